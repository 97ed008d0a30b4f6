"""Ray Serve around vLLM: every replica starts one, and Ray spreads the requests over them, on one host or many.

    JUSTRIGHT_SERVE="BUNDLE --name mine" REPLICAS=2 serve run ray_serve:app

The command's paths must be the same on every host. A replica whose vLLM dies is replaced.
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

from justright.serve.relay import fault_of, origin, passed_headers

START_S = 1800


@serve.deployment(
    num_replicas=int(os.environ.get("REPLICAS", "1")),
    max_ongoing_requests=64,
    ray_actor_options={
        "num_cpus": float(os.environ.get("CPUS", "1")),
        "num_gpus": float(os.environ.get("GPUS", "0")),
    },
)
class Vllm:
    """One vLLM as justright starts it."""

    async def __init__(self, options: list[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "justright",
            "serve",
            *options,
            "--engine",
            "vllm",
            "--port",
            str(port),
        ]
        self.process = subprocess.Popen(command)
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=600)
        for _ in range(START_S):
            self.check_health()
            with contextlib.suppress(httpx.HTTPError):
                if (await self.client.get("/health")).status_code == 200:
                    return
            await asyncio.sleep(1)
        raise RuntimeError(f"vLLM did not start within {START_S} s")

    def check_health(self) -> None:
        """Ray replaces the replica where this fails."""
        if self.process.poll() is not None:
            raise RuntimeError(f"vLLM has ended with exit code {self.process.returncode}")

    async def __call__(self, http: Request) -> Response:
        """Hand a request on, and the answer back as it comes."""
        headers = passed_headers(http.headers.items())
        kept = [(name, value) for name, value in http.headers.items() if name == "content-type"]
        request = self.client.build_request(
            http.method, http.url.path, content=await http.body(), headers=[*headers, *kept]
        )
        try:
            answer = await self.client.send(request, stream=True)
        except httpx.HTTPError as error:
            fault = fault_of(error, origin(request.url), 600)
            return JSONResponse(fault.to_dict(), fault.status)
        told = {
            name: value
            for name, value in answer.headers.items()
            if name not in ("transfer-encoding", "connection")
        }
        return StreamingResponse(
            answer.aiter_raw(), answer.status_code, told, background=BackgroundTask(answer.aclose)
        )

    def __del__(self) -> None:
        if hasattr(self, "process"):
            self.process.terminate()


app = Vllm.bind(shlex.split(os.environ.get("JUSTRIGHT_SERVE", "")))
