"""One client's connection: limits on their number, and on the time in which a request's head arrives."""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from justright.serve.api_errors import ApiError

CROWDED = "crowded"
"""Key in the ``state`` of a request's scope: the request exceeds the connection limit and must be rejected."""
PROBE = "probe"
"""Key in the ``state`` of a request's scope, set by an application: bytes that its response may hold anywhere.

They are written when the client closes its sending side, to find out whether it still reads. Without them, such a
client counts as disconnected once its response has begun.
"""
_LONGEST_PAUSE_S = 10.0


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with our own limits; invalid HTTP gets an error in OpenAI's format."""

    max_connections: int
    head_s: float
    _timer: asyncio.TimerHandle | None = None

    @classmethod
    def limited(cls, max_connections: int, head_s: float) -> type[Connection]:
        """Return a subclass with these limits, as uvicorn constructs it without our arguments.

        Args:
            max_connections: most open connections; the application must reject requests marked `CROWDED`.
            head_s: seconds in which a request's head must arrive, from the connection or its first byte on.
        """
        return type("Limited", (cls,), {"max_connections": max_connections, "head_s": head_s})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Handle a new connection."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self.app_state = {**self.app_state, CROWDED: True}
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Handle data from the client."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._start_timer()
        else:
            self._stop_timer()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Handle the end of the client's data: it has gone, or it waits (``nc -N``); True keeps the connection.

        Only a write tells these apart, since the system of a client that has gone rejects what it receives.
        """
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.response_complete:
            return False
        if cycle.response_started and PROBE not in cycle.scope["state"]:
            return False
        cycle.keep_alive = False
        self._probe(0.05)
        return True

    def _probe(self, pause_s: float) -> None:
        """Close the connection if the client has gone; write something repeatedly to find out."""
        cycle, error = self.cycle, 0
        if cycle.response_complete or self.transport.is_closing():
            return
        if (found := self.transport.get_extra_info("socket")) is not None:
            error = found.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self.transport.abort()
            return
        if self.conn.our_state is h11.SEND_RESPONSE and self.conn.their_http_version == b"1.1":
            # Clients skip an interim response.
            interim = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self.transport.write(self.conn.send(interim) or b"")
        elif self.conn.our_state is h11.SEND_BODY and PROBE in cycle.scope["state"]:
            self.transport.write(self.conn.send(h11.Data(data=cycle.scope["state"][PROBE])) or b"")
        self.loop.call_later(pause_s, self._probe, min(2 * pause_s, _LONGEST_PAUSE_S))

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the end of the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def _should_upgrade(self) -> bool:
        """Return False without uvicorn's advice to install a package; the request is answered over HTTP/1.1."""
        return False

    def send_400_response(self, msg: str) -> None:
        """Report invalid HTTP."""
        self._reject(ApiError(400, msg, None, "invalid_http"))

    def _start_timer(self) -> None:
        """Start the time limit for a request's head; further pieces do not extend it."""
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.head_s, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        received, _ = self.conn.trailing_data
        if not received:
            self.transport.close()  # no error: the client would take it for the response to a later request
            return
        message = f"the head of the request did not arrive within {self.head_s:g} s: send it at once"
        self._reject(ApiError(408, message, None, "head_timeout"))

    def _reject(self, error: ApiError) -> None:
        """Send an error and close the connection."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer, phrase = error.to_response(), HTTPStatus(error.status).phrase
            headers = [*answer.raw_headers, (b"connection", b"close")]
            head = h11.Response(status_code=error.status, headers=headers, reason=phrase)
            pieces = (head, h11.Data(data=bytes(answer.body)))
            self.transport.write(b"".join(self.conn.send(piece) or b"" for piece in pieces))
        self.transport.close()
