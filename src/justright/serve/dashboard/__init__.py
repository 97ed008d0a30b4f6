"""The page at ``/``: static files, without a build step or another host, that use the public API."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Response

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_POLICY = "default-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
def page() -> Response:
    """Return the page."""
    return _file("index.html")


@router.get("/dashboard/{name}")
def part(name: str) -> Response:
    """Return one file of the page; 404 for any other name."""
    return _file(name) if name in _PARTS else Response(status_code=404)


_PARTS = frozenset(file.name for file in files(__package__).iterdir() if file.name.endswith((".js", ".css")))


def _file(name: str) -> Response:
    content = files(__package__).joinpath(name).read_bytes()
    headers = {
        "Content-Security-Policy": _POLICY,
        "Cache-Control": "no-cache",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(content, media_type=_TYPES[name.rpartition(".")[2]], headers=headers)
