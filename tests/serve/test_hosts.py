"""On loopback without a key, other host names are rejected, and no redirect uses a host name of the client."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway_helpers import served
from justright.errors import UsageError
from justright.serve.api_errors import ApiError
from justright.serve.gateway import Gateway, GatewaySettings, create_gateway
from justright.serve.hosts import Hosts, is_loopback
from justright.serve.responses import ErrorBody
from justright.serve.server_settings import ServeSettings
from justright.serve.upstream import Upstream
from justright.serve.vllm.effort_middleware import (
    VARIABLE,
    EffortMiddleware,
    ServedModels,
    from_variable,
    to_variable,
)
from serve_helpers import MODEL, Running, running

OURS = ["localhost", "localhost:8000", "LocalHost.:80", "127.0.0.1", "127.0.0.1:9", "[::1]", "[::1]:8000"]
FOREIGN = [
    *(
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.localhost",
    ),
    *("0.0.0.0", "127.0.0.2", "[::2]:8000", "", ":8000", "[", "x" * 500),
]
PATHS = [
    "/",
    "/dashboard/page.js",
    "/health",
    "/health/live",
    "/metrics",
    "/v1/models",
    "/openapi.json",
    "/nothing",
]


def get(address: str, path: str, host: str) -> httpx.Response:
    return httpx.get(address + path, headers={"Host": host}, timeout=30)


def refused(answer: httpx.Response) -> None:
    assert answer.status_code == 403
    error = ErrorBody.model_validate_json(answer.content).error
    assert (error.type, error.code) == ("permission_error", "host_not_allowed")
    assert "--allowed-host" in error.message
    assert len(error.message) < 300


def test_a_foreign_name_is_refused_on_loopback(plain: Running) -> None:
    for host in FOREIGN:
        refused(get(plain.address, "/v1/models", host))
    for path in PATHS:
        refused(get(plain.address, path, FOREIGN[0]))
    body = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    for path in ("/v1/chat/completions", "/v1/completions"):
        refused(httpx.post(plain.address + path, json=body, headers={"Host": FOREIGN[0]}))
    for host in OURS:
        assert get(plain.address, "/v1/models", host).status_code == 200


def test_names_are_added_and_keys_make_them_needless(plain: Running) -> None:
    hosts = Hosts(("gpu-box.local", "[2001:db8::1]"), "mine.local")
    for settings, good, bad in (
        (
            ServeSettings(MODEL, hosts=hosts),
            [*OURS, "GPU-box.local:80", "mine.local", "[2001:db8::1]:1"],
            FOREIGN,
        ),
        (ServeSettings(MODEL, api_keys=("key",)), [*OURS, *FOREIGN], []),
        (ServeSettings(MODEL, api_keys=("key",), hosts=hosts), ["gpu-box.local"], FOREIGN),
    ):
        with running(plain.engine, settings) as server:
            for host in good:
                assert get(server.address, "/health", host).status_code == 200
            for host in bad:
                refused(get(server.address, "/health", host))


def test_the_gateway_checks_likewise(plain: Running) -> None:
    for hosts, good in ((Hosts(), OURS), (Hosts(("box",)), ["box"])):
        with served(create_gateway(Gateway(GatewaySettings(plain.address, hosts=hosts)))) as there:
            for path in ("/v1/models", "/metrics", "/health/live", "/v1/models/tiny"):
                refused(get(there, path, FOREIGN[0]))
            for host in good:
                assert get(there, "/v1/models", host).status_code == 200


def test_vllm_checks_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    async def vllm(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"vllm"})

    told = ServedModels(Upstream("vllm", "base"), hosts=Hosts(("box",), "mine"))
    assert from_variable(to_variable(told)) == told
    monkeypatch.setenv(VARIABLE, to_variable(told))
    with served(EffortMiddleware(vllm)) as there:
        for host in ("box", "mine", "localhost:1"):
            assert get(there, "/metrics", host).text == "vllm"
        refused(get(there, "/metrics", FOREIGN[0]))
        squeezed = {"content-encoding": "gzip"}
        assert httpx.post(f"{there}/v1/completions", content=b"x", headers=squeezed).status_code == 415


@pytest.mark.parametrize(
    "path", ["/v1/models/", "/metrics/", "/health/", "/dashboard/", "/v1/chat/completions/", "//"]
)
def test_no_path_redirects(plain: Running, path: str) -> None:
    with served(create_gateway(Gateway(GatewaySettings(plain.address)))) as gateway:
        for address in (plain.address, gateway):
            for method in ("GET", "POST"):
                answer = httpx.request(method, address + path, headers={"Host": "localhost"}, timeout=30)
                assert answer.status_code in (404, 405)
                assert "location" not in answer.headers


def local(address: str, host: str | None) -> dict[str, Any]:
    headers = [] if host is None else [(b"host", host.encode())]
    return {"type": "http", "server": (address, 80), "headers": headers}


def test_only_loopback_is_checked_without_names() -> None:
    for address in ("192.168.0.5", "10.0.0.1", "2001:db8::7", "::ffff:10.0.0.1"):
        Hosts().check(local(address, "any.example"), keys=False)
    for address in ("127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"):
        with pytest.raises(ApiError):
            Hosts().check(local(address, "any.example"), keys=False)
        Hosts().check(local(address, None), keys=False)  # HTTP/1.0: no browser
    Hosts().check(local("127.3.2.1", "127.3.2.1:80"), keys=False)
    assert [is_loopback(name) for name in ("localhost", "127.0.0.9", "::1", "0.0.0.0", "::", "box")] == [
        *(True, True, True, False, False, False)
    ]


@pytest.mark.parametrize("name", ["", "http://box", "box:80", "*", "a b", "box/", ".", "a..b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError, match="without scheme and port"):
        Hosts((name,))
