"""Connections: what uvicorn's protocol leaves open. Heads, bodies and readers that are too slow,
too many connections, and answers that are ready (`ready`), which go out without a task.

A sweep each second looks at all connections, so that no request needs a timer. It ends those that
stay too long in one state: no whole head, no whole body, idle, or an answer that nobody takes.
Memory of a connection: a head, 64 KiB of an answer, a part (`app.PART_SIZE`), and what the kernel
holds. Written against uvicorn's protocols/http/httptools_impl.py, 0.54.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from typing import Any, Final, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from layerkit.edges.http.app import GONE, KEY, LAST, PROGRESS, SEND_FILE, TASK, ServerApp
from layerkit.edges.http.logs import RequestRecord
from layerkit.edges.http.ready import SMALL_SIZE, ReadyAnswer
from layerkit.edges.http.sendfile import SocketWriter
from layerkit.errors import BusyError

__all__ = ["Wire", "WireProtocol"]

_REFUSAL: Final = b"HTTP/1.1 %s\r\ncontent-length: 0\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
BUSY: Final = _REFUSAL % b"503 Service Unavailable"
SLOW: Final = _REFUSAL % b"408 Request Timeout"
LONG_HEAD: Final = _REFUSAL % b"431 Request Header Fields Too Large"


class Wire:
    """What the connections of a worker share."""

    def __init__(self, app: ServerApp) -> None:
        self.app = app
        self.limits = app.limits
        self.ready = app.ready
        self.end_of_head = b"\r\n"  # with the date, by the server's clock
        self.addresses: Counter[str] = Counter()
        self._swept = time.monotonic()

    def refuse(self, reason: str) -> None:
        self.app.metrics.refused.labels(reason).inc()

    def sweep(self, state: ServerState) -> None:
        """Once a second: count, and end what takes too long."""
        now = time.monotonic()
        passed, self._swept = now - self._swept, now
        connections = cast("list[WireProtocol]", list(state.connections))
        self.app.metrics.connections.set(len(connections))
        self.ready.flush(self.app.metrics)
        self.app.metrics.publish()
        for connection in connections:
            connection.check(now, passed)


class WireProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        wire: Wire,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.wire = wire
        self._message_open = False  # between the first byte of a request and its last
        self._head_open = False
        self._head_size = 0
        self._since = time.monotonic()  # of the state that it is in
        self._key: bytes | None = None
        self._handed = 0  # bytes of the answer given to the transport
        self._stalled = 0.0  # seconds in which some of them were not taken
        self._address = ""
        self._writer: SocketWriter | None = None  # of a plain connection

    # --- begin and end ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limits, wire = self.wire.limits, self.wire
        self._address = self.client[0] if self.client else ""
        wire.addresses[self._address] += 1
        most = limits.max_address_connections
        if len(self.connections) > limits.max_connections or (
            most and wire.addresses[self._address] > most
        ):
            wire.refuse("connections")
            self._end(BUSY)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._writer is not None:
            self._writer.detach()
            self._writer = None
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self.wire.addresses[self._address] -= 1
        if self.wire.addresses[self._address] <= 0:
            del self.wire.addresses[self._address]
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            scope = cast("dict[str, Any]", cycle.scope)
            scope[GONE] = True
            if TASK in scope:
                scope[TASK].cancel()  # nobody is there for the answer: a long poll would wait on

    def _end(self, words: bytes) -> None:
        """Say why, and close; the sweep cuts it if the words are not taken."""
        if not self.transport.is_closing():
            self.transport.write(words)
            self.transport.close()

    # --- requests --------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._key = None
        if not self._message_open and self._is_idle():
            self._handed, self._stalled = 0, 0.0
            ready = self.wire.ready
            key = ready.key_of(data)
            if key is not None:
                now = time.monotonic()
                entry = ready.find(key, now, self.loop.call_soon)
                if entry is not None and self._send_ready(entry, now):
                    return
                self._key = key
        if self._head_open or not self._message_open:
            self._head_size += len(data)
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._head_open and self._head_size > self.wire.limits.max_head_size:
            self.wire.refuse("long_head")
            self._end(LONG_HEAD)

    def _is_idle(self) -> bool:
        cycle = self.cycle
        return (cycle is None or cycle.response_complete) and not self.pipeline

    def _send_ready(self, entry: ReadyAnswer, now: float) -> bool:
        """Send what is ready; False if it is to be asked for in full. Measured: 4 us of a small
        answer; as much again is asyncio's, and twice that the kernel's."""
        wire, transport = self.wire, self.transport
        app, size = wire.app, len(entry.body)
        if transport.is_closing():
            return True
        if app.rates.are_on:
            try:
                app.rates.check(entry.caller or self._address)
            except BusyError:
                return False
            app.rates.sent(entry.caller or self._address, size)
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if size <= SMALL_SIZE:
            transport.write(entry.join(wire.end_of_head))
        else:
            writer = self._find_writer() if entry.fd >= 0 else None
            head = entry.head + wire.end_of_head
            if writer is None or not writer.write_now(head, entry.fd, entry.body):
                transport.writelines((head, entry.body))
        if entry.is_last:
            transport.close()
        self._since = now
        self._handed = size
        wire.ready.count_hit(entry)
        if app.log is not None:
            app.log.write(
                RequestRecord(
                    "GET",
                    entry.path,
                    entry.status,
                    size,
                    0.0,
                    entry.caller,
                    self._address,
                    entry.endpoint,
                )
            )
        return True

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._message_open = self._head_open = True
        self._since = time.monotonic()
        scope = cast("dict[str, Any]", self.scope)
        scope[PROGRESS] = self._progress

    def on_headers_complete(self) -> None:
        self._head_open, self._head_size = False, 0
        self._since = time.monotonic()
        if self._key is not None and self._may_be_kept():
            scope = cast("dict[str, Any]", self.scope)
            scope[KEY], scope[LAST] = self._key, not self.parser.should_keep_alive()
        super().on_headers_complete()
        if self.scheme == "http" and self.cycle is not None:
            send_file = functools.partial(self._send_file, self.cycle)
            cast("dict[str, Any]", self.scope)[SEND_FILE] = send_file

    def _may_be_kept(self) -> bool:
        """Do the bytes hold one request, without a body?"""
        names = {name for name, _ in self.headers}
        unfit = {b"content-length", b"transfer-encoding", b"expect", b"upgrade"}
        return self.parser.get_http_version() == "1.1" and not names & unfit

    def on_message_complete(self) -> None:
        self._message_open = False
        self._since = time.monotonic()
        super().on_message_complete()

    def _find_writer(self) -> SocketWriter | None:
        """For large answers; made when there is one. None where bytes are encrypted."""
        if self._writer is None and self.scheme == "http":
            self._writer = SocketWriter(self.transport, self.loop)
        return self._writer

    async def _send_file(
        self, cycle: RequestResponseCycle, fd: int, offset: int, size: int
    ) -> None:
        """A body, or a part of one, past the transport once that holds nothing back."""
        writer = self._find_writer()
        if writer is None or self.transport.is_closing():
            cycle.disconnected = True
            raise ConnectionError("the connection is closed")
        self.transport.set_write_buffer_limits(high=0)
        try:
            while self.transport.get_write_buffer_size() and not self.transport.is_closing():
                await self.flow.drain()
            await writer.send_file(fd, offset, size, self._progress)
        except ConnectionError:
            cycle.disconnected = True
            raise
        finally:
            if not self.transport.is_closing():
                self.transport.set_write_buffer_limits()
        cycle.expected_content_length -= size

    def _progress(self, size: int) -> None:
        self._handed += size

    def on_response_complete(self) -> None:
        self._since = time.monotonic()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """The sweep ends idle connections: uvicorn's timer knows nothing of ready answers."""

    # --- time ------------------------------------------------------------------------------------

    def check(self, now: float, passed: float) -> None:
        """End the connection if it has been in its state for too long."""
        limits, waited = self.wire.limits, now - self._since
        if self.transport is None:
            return
        buffered = self.transport.get_write_buffer_size()
        if buffered or (self._writer is not None and self._writer.is_blocked):
            self._stalled += passed
            taken = max(0, self._handed - buffered)
            if self._stalled > limits.write_seconds + taken / limits.write_rate:
                self.wire.refuse("slow_reader")
                self.transport.abort()
            return
        if self.transport.is_closing():
            self.transport.abort()  # all is sent, and the other side does not close
        elif self._head_open or (self.cycle is None and not self._handed):
            if waited > limits.head_seconds:
                self.wire.refuse("slow_head")
                self._end(SLOW)
        elif self._message_open:
            if waited > limits.body_seconds + 1:  # who reads the body says so first
                self.wire.refuse("slow_body")
                self._end(SLOW)
        elif self._is_idle() and waited > limits.idle_seconds:
            self.transport.close()
