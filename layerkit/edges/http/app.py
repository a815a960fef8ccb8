"""The server as an ASGI application: who asks, how often, what path, and the answer on its way.

Raw ASGI: an answer is a value (`answers`), so conditional requests, ranges and caching are one
function, whatever it is made of. `ready` keeps what can be sent again, `wire` sends it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import parse_qsl

from layerkit.edges.http.answers import NEVER, Answer, Piece, Reply, finish, problem
from layerkit.edges.http.endpoints import Call, Endpoint, Endpoints, Handler
from layerkit.edges.http.gate import CHALLENGE, Gate, SecretGate
from layerkit.edges.http.limits import Rates, Room
from layerkit.edges.http.logs import RequestLog, RequestRecord
from layerkit.edges.http.metrics import CONTENT_TYPE, Metrics
from layerkit.edges.http.options import Limits
from layerkit.edges.http.page import render_page
from layerkit.edges.http.ready import MAX_ENTRY_SIZE, Ready, ReadyAnswer
from layerkit.edges.http.sendfile import read_cached
from layerkit.edges.http.source import Blob, Source
from layerkit.errors import (
    BusyError,
    LayerkitError,
    NotFoundError,
    RemoteLimitError,
    UnauthorizedError,
    UsageError,
)
from layerkit.formats.tokens import Caller

__all__ = [
    "GONE",
    "KEY",
    "LAST",
    "PROGRESS",
    "SEND_FILE",
    "TASK",
    "ServerApp",
    "Surface",
    "make_app",
    "make_server_app",
]

# What `wire` and the application tell each other in a scope:
KEY: Final = "layerkit.key"  # the key of the request's bytes, if its answer may be kept
LAST: Final = "layerkit.last"  # with KEY: the connection is to be closed after the answer
PROGRESS: Final = "layerkit.progress"  # a callable that is told of bytes handed on
SEND_FILE: Final = "layerkit.send_file"  # sends bytes of a file descriptor, where that can be
TASK: Final = "layerkit.task"  # that makes the answer
GONE: Final = "layerkit.gone"  # the connection is lost, and the task was ended for that
STATUS_GONE: Final = 499  # in log and metrics: nobody was there for the answer
PART_SIZE: Final = 128 << 10  # bytes read from a file and sent at once
MAX_FIELD_COUNT: Final = 64  # of a query
_log = logging.getLogger(__name__)

Scope = dict[str, Any]  # ASGI's own shapes: asgi.readthedocs.io/en/latest/specs/www.html
Receive = Any
Send = Any
T = TypeVar("T")


class Surface(Protocol):
    """The paths of an application besides those that every one has."""

    def find(self, path: str) -> tuple[Endpoint, dict[str, str]] | None: ...

    def version(self) -> Hashable:
        """Another value when an answer that is_final would be another."""

    async def check_ready(self) -> None:
        """Raise a LayerkitError if requests cannot be answered."""

    async def in_thread(self, call: Callable[[], T]) -> T: ...

    def stop_waiting(self) -> None:
        """The end is near: long polls are to be answered."""

    def close(self) -> None: ...


@dataclass(slots=True)
class _Exchange:
    """One request on its way: what the log and the metrics say of it."""

    scope: Scope
    headers: dict[str, str]
    address: str
    endpoint: str = "none"
    caller: Caller | None = None
    status: int = STATUS_GONE
    size: int = 0


class ServerApp:
    """The application over a surface. For one event loop; `close` after it."""

    def __init__(
        self,
        surface: Surface,
        *,
        metrics: Metrics,
        gate: Gate | SecretGate,
        limits: Limits,
        worker_count: int = 1,
        log: RequestLog | None = None,
    ) -> None:
        self.metrics = metrics
        self.limits = limits
        self.gate = gate
        self.log = log
        self.rates = Rates(limits, worker_count, time.monotonic)
        self.endpoints = surface
        self.ready = Ready(lambda: (surface.version(), gate.version()))
        self.is_draining = False
        self._room = Room(limits.max_bodies_size)
        self.own: dict[str, Handler] = {
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
        }

    def drain(self) -> None:
        """The end is near: /readyz says so, and long polls are answered now."""
        self.is_draining = True
        self.endpoints.stop_waiting()

    def close(self) -> None:
        self.endpoints.close()
        self.ready.clear()
        if self.log is not None:
            self.log.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begun = time.perf_counter()
        scope[TASK] = asyncio.current_task()
        headers = _decode_headers(scope["headers"])
        exchange = _Exchange(scope, headers, (scope.get("client") or ("",))[0])
        self.metrics.in_flight.inc()
        version = self._version_for(scope)
        try:
            answer = await self._answer(exchange, receive)
            is_private = self.gate.asks_for_tokens
            reply = finish(answer, scope["method"], headers, is_private)
            exchange.status = reply.status
            if version is not None and answer.is_final:
                self._keep(exchange, reply, version)
            await self._send(exchange, reply, send)
        except asyncio.CancelledError:
            if GONE not in scope:
                raise
            exchange.status = STATUS_GONE
        except ConnectionError:
            exchange.status = STATUS_GONE
        finally:
            self.metrics.in_flight.dec()
            self._count(exchange, time.perf_counter() - begun)

    # --- making the answer -----------------------------------------------------------------------

    async def _answer(self, exchange: _Exchange, receive: Receive) -> Answer:
        """Errors become documents here, and only here."""
        try:
            return await self._find_answer(exchange, receive)
        except UnauthorizedError as exc:
            self.metrics.refused.labels("token").inc()
            return problem(exc.http_status, exc.code, exc.message, (CHALLENGE,))
        except BusyError as exc:
            self.metrics.refused.labels("rate").inc()
            return problem(exc.http_status, exc.code, exc.message, (("retry-after", exc.cause),))
        except LayerkitError as exc:
            if isinstance(exc, RemoteLimitError):
                self.metrics.refused.labels("body").inc()
            if exc.http_status >= 500:
                _log.warning("%s (%s)", exc.message, exc.cause)
            return problem(exc.http_status, exc.code, exc.message)
        except Exception as exc:
            _log.error("cannot answer %s", exchange.scope["path"], exc_info=exc)
            return problem(500, "UNKNOWN", "the server has a bug; its log says more")

    async def _find_answer(self, exchange: _Exchange, receive: Receive) -> Answer:
        scope, headers = exchange.scope, exchange.headers
        path, method = scope["path"], scope["method"]
        if path in ("/healthz", "/readyz"):  # a balancer has no token, and is not limited
            caller = Caller("", (), ())
        else:
            try:
                caller = exchange.caller = self.gate.find_caller(headers)
            except UnauthorizedError:
                self.rates.check(exchange.address)  # who guesses is limited, too
                raise
            self.rates.check(caller.id or exchange.address)
        own = self.own.get(path)
        if own is not None:
            exchange.endpoint = path.strip("/") or "page"
            handlers: Mapping[str, Handler] = {"GET": own, "HEAD": own}
            parts: dict[str, str] = {}
        else:
            found = self.endpoints.find(path)
            if found is None:
                return problem(404, "NOT_FOUND", "not found")
            endpoint, parts = found
            exchange.endpoint, handlers = endpoint.label, endpoint.handlers
        handler = handlers.get(method)
        if handler is None:
            allowed = (("allow", ", ".join(sorted(handlers))),)
            return problem(405, "UNSUPPORTED", "method not allowed", allowed)
        call = Call(
            method,
            parts,
            _parse_query(scope["query_string"]),
            caller,
            lambda: self.gate.find_caller(headers),
            lambda limit: self._read_body(headers, receive, limit),
        )
        return await handler(call)

    async def _read_body(self, headers: Mapping[str, str], receive: Receive, limit: int) -> bytes:
        """The body, refused as soon as it is too long or too slow."""
        declared = headers.get("content-length", "0")
        if not (declared.isascii() and declared.isdigit()) or int(declared[:20]) > limit:
            raise RemoteLimitError(f"request body of {declared[:20]} bytes is over {limit}")
        body = bytearray()
        taken = 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise NotFoundError("who asked has left")
                    part = message.get("body", b"")
                    self._room.take(len(part))
                    taken += len(part)
                    body += part
                    if len(body) > limit:
                        raise RemoteLimitError(f"request body is over {limit} bytes")
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as exc:
            seconds = self.limits.body_seconds
            raise RemoteLimitError(f"request body takes over {seconds:.0f} seconds") from exc
        finally:
            self._room.give_back(taken)

    # --- the server's own paths ------------------------------------------------------------------

    async def _healthz(self, _: Call) -> Answer:
        return Answer(b"ok\n", "text/plain", cache=NEVER)

    async def _readyz(self, _: Call) -> Answer:
        """Can this server be sent requests? Its storage is looked at once for all who ask."""
        if self.is_draining:
            return problem(503, "STOPPING", "this server is about to stop")
        try:
            await self.endpoints.check_ready()
        except LayerkitError as exc:
            _log.warning("not ready: %s (%s)", exc.message, exc.cause)
            return problem(503, exc.code, "the storage cannot be read")
        return Answer(b"ok\n", "text/plain", cache=NEVER)

    async def _metrics(self, _: Call) -> Answer:
        self.ready.flush(self.metrics)
        return Answer(self.metrics.render(), CONTENT_TYPE, cache=NEVER)

    # --- sending ---------------------------------------------------------------------------------

    async def _send(self, exchange: _Exchange, reply: Reply, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": reply.status, "headers": reply.headers}
        )
        progress = exchange.scope.get(PROGRESS, _ignore)
        if exchange.scope["method"] != "HEAD":
            send_file = exchange.scope.get(SEND_FILE)
            async for part in self._parts(reply.pieces, send_file):
                if isinstance(part, int):
                    exchange.size += part
                    continue
                await send({"type": "http.response.body", "body": part, "more_body": True})
                progress(len(part))
                exchange.size += len(part)
            self.metrics.count_shares(reply.shares)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_file(self, piece: tuple[Blob, int, int], send_file: Any) -> int:
        """A piece of a file, by the system; returns its size."""
        blob, offset, size = piece
        assert blob.path is not None
        fd = os.open(blob.path, os.O_RDONLY | os.O_CLOEXEC)  # not in a thread: who leaves loses it
        try:
            await send_file(fd, blob.start + offset, size)
        finally:
            os.close(fd)
        return size

    async def _parts(
        self, pieces: tuple[Piece, ...] | Iterator[bytes], send_file: Any
    ) -> AsyncIterator[bytes | memoryview | int]:
        """What is to be sent, a part at a time; a number is of bytes that `send_file` has sent.
        Bytes in memory are not copied: all who are sent the same share them."""
        if not isinstance(pieces, tuple):
            async for part in self._drawn(pieces):
                yield part
            return
        for piece in pieces:
            if not isinstance(piece, tuple):
                for start in range(0, len(piece), PART_SIZE):
                    yield memoryview(piece)[start : start + PART_SIZE]
            elif send_file is not None and piece[0].path is not None and piece[2] >= PART_SIZE:
                yield await self._send_file(piece, send_file)
            elif piece[0].path is not None:
                async for part in self._file_parts(*piece):
                    yield part
            else:
                blob, offset, size = piece
                async for part in self._drawn(blob.read(offset, size)):
                    yield part

    async def _drawn(self, parts: Iterator[bytes]) -> AsyncIterator[bytes]:
        """Parts that take time to make, each made in a thread."""
        while part := await self.endpoints.in_thread(lambda: next(parts, b"")):
            yield part

    async def _file_parts(self, blob: Blob, offset: int, size: int) -> AsyncIterator[bytes]:
        """Parts of a file: at once where the system has them in memory, else read by a thread."""
        assert blob.path is not None
        offset += blob.start
        fd = os.open(blob.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while size:
                part = read_cached(fd, offset, min(size, PART_SIZE))
                if part is None:
                    part = await self.endpoints.in_thread(
                        functools.partial(os.pread, fd, min(size, PART_SIZE), offset)
                    )
                if not part:
                    raise EOFError(f"{blob.path} is shorter than {offset + size} bytes")
                yield part
                offset, size = offset + len(part), size - len(part)
        finally:
            os.close(fd)

    # --- keeping and counting --------------------------------------------------------------------

    def _version_for(self, scope: Scope) -> object:
        """How source and tokens stand before the answer is made; None: it will not be kept."""
        if KEY not in scope:
            return None
        try:
            return (self.endpoints.version(), self.gate.version())
        except LayerkitError:
            return None

    def _keep(self, exchange: _Exchange, reply: Reply, version: object) -> None:
        pieces = reply.pieces
        if not isinstance(pieces, tuple) or (reply.size or 0) > MAX_ENTRY_SIZE:
            return
        parts = [piece for piece in pieces if not isinstance(piece, tuple)]
        if len(parts) != len(pieces) or reply.status not in (200, 206, 304):
            return
        lines = [b"HTTP/1.1 %d %s\r\n" % (reply.status, _phrase(reply.status))]
        lines += [b"%s: %s\r\n" % header for header in reply.headers]
        is_last = bool(exchange.scope[LAST])
        if is_last:
            lines.append(b"connection: close\r\n")
        entry = ReadyAnswer(
            version,
            b"".join(lines),
            b"".join(parts),
            reply.status,
            exchange.endpoint,
            exchange.scope["path"],
            exchange.caller.id if exchange.caller else "",
            reply.shares,
            is_last,
        )
        self.ready.put(exchange.scope[KEY], entry)

    def _count(self, exchange: _Exchange, seconds: float) -> None:
        endpoint, status = exchange.endpoint, exchange.status
        self.metrics.requests.labels(endpoint, str(status)).inc()
        self.metrics.bytes.labels(endpoint).inc(exchange.size)
        self.metrics.seconds.labels(endpoint).observe(seconds)
        caller = exchange.caller.id if exchange.caller else ""
        if self.rates.are_on:
            self.rates.sent(caller or exchange.address, exchange.size)
        if self.log is not None:
            scope = exchange.scope
            record = RequestRecord(
                scope["method"],
                scope["path"],
                status,
                exchange.size,
                seconds,
                caller,
                exchange.address,
                endpoint,
            )
            self.log.write(record)


def make_app(source: Source) -> ServerApp:
    """The application of a server that knows no users and has the usual limits."""
    return make_server_app(source, metrics=Metrics(), gate=Gate(None), limits=Limits())


def make_server_app(source: Source, *, metrics: Metrics, **facts: Any) -> ServerApp:
    """The application of a chunk server; `facts` as `ServerApp` takes them."""
    app = ServerApp(Endpoints(source, metrics), metrics=metrics, **facts)
    app.own["/"] = functools.partial(_show_page, app, source, time.time())
    return app


async def _show_page(app: ServerApp, source: Source, started: float, call: Call) -> Answer:
    """The page for people."""
    metrics = app.metrics
    app.ready.flush(metrics)
    totals = metrics.totals() if call.caller.may_pull_all else ()
    count = metrics.count_requests() if call.caller.may_pull_all else 0
    up_seconds = time.time() - started

    def render() -> bytes:
        return render_page(source.describe(call.caller), totals, count, up_seconds)

    html = await app.endpoints.in_thread(render)
    headers = (
        ("content-security-policy", "default-src 'none'; style-src 'unsafe-inline'"),
        ("x-content-type-options", "nosniff"),
    )
    return Answer(html, "text/html; charset=utf-8", cache=NEVER, headers=headers)


def _decode_headers(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _parse_query(raw: bytes) -> dict[str, str]:
    try:
        return dict(parse_qsl(raw.decode("latin-1"), max_num_fields=MAX_FIELD_COUNT))
    except ValueError as exc:
        raise UsageError(f"more than {MAX_FIELD_COUNT} fields in a query") from exc


def _phrase(status: int) -> bytes:
    return HTTPStatus(status).phrase.encode()


def _ignore(_: int) -> None:
    return
