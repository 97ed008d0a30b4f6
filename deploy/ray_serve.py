"""Ray Serve around `justright serve`: every replica starts one server, Ray spreads the requests over them.

    pip install 'ray[serve]'
    JUSTRIGHT_SERVE="BUNDLE --engine vllm" REPLICAS=2 serve run deploy.ray_serve:app

On one host or many (then the command's paths must be the same on every host). GPUS=1 gives every replica a GPU of its
own. A replica whose server dies is replaced; its answers that are under way break off.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import socket
import subprocess
import sys

import httpx
from ray import serve
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from justright.serve.proxy import fault_of, origin, passed_headers

START_S = 1800
SILENT_S = 600.0
RESOURCES = {"num_cpus": float(os.environ.get("CPUS", "1")), "num_gpus": float(os.environ.get("GPUS", "0"))}


@serve.deployment(
    num_replicas=int(os.environ.get("REPLICAS", "1")),
    max_ongoing_requests=64,
    health_check_period_s=5,
    ray_actor_options=RESOURCES,
)
class Replica:
    """One server as the command starts it.

    Args:
        options: of ``justright serve``.
    """

    async def __init__(self, options: list[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "justright", "serve", *options, "--port", str(port)]
        self.process = subprocess.Popen(command)
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=SILENT_S)
        for _ in range(START_S):
            self.check_health()
            with contextlib.suppress(httpx.HTTPError):
                if (await self.client.get("/health")).status_code == 200:
                    return
            await asyncio.sleep(1)
        raise RuntimeError(f"the server did not start within {START_S} s")

    def check_health(self) -> None:
        """Ray replaces the replica where this fails."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the server has ended with exit code {self.process.returncode}")

    async def __call__(self, http: Request) -> Response:
        """Hand a request on, and the answer back as it comes."""
        headers = passed_headers(http.headers.items())
        request = self.client.build_request(
            http.method, http.url.path, params=http.query_params, content=await http.body(), headers=headers
        )
        try:
            answer = await self.client.send(request, stream=True)
        except httpx.HTTPError as error:
            fault = fault_of(error, origin(request.url), SILENT_S)
            return JSONResponse(fault.to_dict(), fault.status)
        told = {n: v for n, v in answer.headers.items() if n not in ("transfer-encoding", "connection")}
        closing = BackgroundTask(answer.aclose)
        return StreamingResponse(answer.aiter_raw(), answer.status_code, told, background=closing)

    def __del__(self) -> None:
        if hasattr(self, "process"):
            self.process.terminate()


app = Replica.bind(shlex.split(os.environ.get("JUSTRIGHT_SERVE", "")))
