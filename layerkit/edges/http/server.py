"""A server in this process or in several: sockets, TLS, signals, the end. By uvicorn and uvloop.

With several workers each has a socket of its own on the same port (SO_REUSEPORT: the kernel deals
connections out), a source of its own, and its part of the rates. The parent holds the sockets, so
what waits on one is not lost while its worker is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import resource
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from email.utils import formatdate
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn

from layerkit.edges.heap import bound_heap
from layerkit.edges.http.app import ServerApp, make_server_app
from layerkit.edges.http.gate import Gate
from layerkit.edges.http.logs import RequestLog
from layerkit.edges.http.metrics import Board, Metrics
from layerkit.edges.http.options import ServerOptions, TlsFiles, parse_listen
from layerkit.edges.http.source import Meter, Source
from layerkit.edges.http.wire import Wire, WireProtocol
from layerkit.edges.http.workers import run_workers
from layerkit.edges.jsonlog import JsonFormatter
from layerkit.edges.tokens import TokenFile
from layerkit.errors import UsageError

__all__ = ["OpenApp", "OpenSource", "RunningServer", "run_app", "run_server", "start_server"]

BACKLOG: Final = 2048
DOOR_COUNT: Final = 16  # connections taken in a turn of the event loop
SWEEP_SECONDS: Final = 1.0
HANDSHAKE_SECONDS: Final = 10.0  # of TLS
GOODBYE_SECONDS: Final = 2.0  # for the other side's last word in TLS
TLS_LOOK_SECONDS: Final = 10.0  # between two looks for a renewed certificate
USER_TIMEOUT: Final = 60_000  # milliseconds: the kernel drops who acknowledges nothing for so long

OpenSource = Callable[[Meter, int], AbstractContextManager[Source]]  # the int: which worker


# metrics, worker, and the log of requests if there is one
OpenApp = Callable[[Metrics, int, RequestLog | None], AbstractContextManager[ServerApp]]


def run_server(
    open_source: OpenSource, options: ServerOptions, ready: Callable[[str], None]
) -> None:
    """Serve until SIGINT or SIGTERM; running answers are finished. `ready` gets the URL once
    requests can be sent. `open_source` is called in each worker."""
    if options.token_file is not None:
        TokenFile(options.token_file)  # what is wrong with it is said before anything starts

    @contextlib.contextmanager
    def open_app(metrics: Metrics, index: int, log: RequestLog | None) -> Iterator[ServerApp]:
        gate = Gate(TokenFile(options.token_file) if options.token_file is not None else None)
        with open_source(metrics, index) as source:
            yield make_server_app(
                source,
                metrics=metrics,
                gate=gate,
                limits=options.limits,
                worker_count=options.worker_count,
                log=log,
            )

    run_app(open_app, options, ready)


def run_app(open_app: OpenApp, options: ServerOptions, ready: Callable[[str], None]) -> None:
    """The same with any application, which is opened in each worker."""
    tls = _load_tls(options.tls)
    sockets = _bind_all(options)
    try:
        url = _url(sockets[0], options.tls is not None)
        if options.worker_count == 1:
            _serve(open_app, options, sockets[0], tls, None, 0, lambda: ready(url))
            return
        board = Board(options.worker_count)

        def work(index: int, started: Callable[[], None]) -> None:
            _serve(open_app, options, sockets[index], tls, board, index, started)

        patience = options.drain_seconds + options.shutdown_seconds + 5
        run_workers(options.worker_count, work, lambda: ready(url), patience)
    finally:
        for sock in sockets:
            sock.close()


def _serve(
    open_app: OpenApp,
    options: ServerOptions,
    sock: socket.socket,
    tls: ssl.SSLContext | None,
    board: Board | None,
    index: int,
    started: Callable[[], None],
) -> None:
    """One worker, until it is told to end."""
    bound_heap()
    metrics = Metrics(board, index)
    _allow_connections(options.limits.max_connections)
    with _logging(options.log_format) as log, open_app(metrics, index, log) as app:
        server = _Server(app, tls, options.drain_seconds, options.shutdown_seconds, started)
        if options.tls is not None and tls is not None:
            server.renew_tls = _Renewal(tls, options.tls)
        try:
            server.run(sockets=[sock])
        finally:
            app.close()


class _Server(uvicorn.Server):
    """uvicorn's, with our protocol, a sweep each second, and an end in two steps: SIGTERM turns
    /readyz to 503 for a while, then running answers are finished. SIGINT skips the first."""

    def __init__(
        self,
        app: ServerApp,
        tls: ssl.SSLContext | None,
        drain_seconds: float,
        shutdown_seconds: float,
        started: Callable[[], None],
    ) -> None:
        self._app = app
        self._wire = Wire(app)
        self._tls = tls
        self._drain_seconds = drain_seconds
        self._started = started
        self._end: float | None = None
        self._next_sweep = 0.0
        self._doors: list[socket.socket] = []
        self.renew_tls: Callable[[], None] = lambda: None
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                interface="asgi3",
                server_header=False,
                proxy_headers=False,
                http=WireProtocol,
                ws="none",
                timeout_graceful_shutdown=max(1, round(shutdown_seconds)),
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's gives no time limit for TLS handshakes."""
        loop = asyncio.get_running_loop()
        await self.on_tick(0)
        protocol = functools.partial(
            WireProtocol, self.config, self.server_state, {}, loop, wire=self._wire
        )
        # libuv takes one connection of a socket in each turn of the loop, and a turn answers all
        # who ask: of 500 nodes that come at once some waited 1 s. So it gets the socket often.
        self._doors = [sock.dup() for sock in sockets or [] for _ in range(DOOR_COUNT)]
        self.servers = [
            await loop.create_server(
                protocol,
                sock=sock,
                ssl=self._tls,
                backlog=BACKLOG,
                ssl_handshake_timeout=HANDSHAKE_SECONDS if self._tls else None,
                ssl_shutdown_timeout=GOODBYE_SECONDS if self._tls else None,
            )
            for sock in self._doors
        ]
        self.started = True
        self._started()

    async def on_tick(self, counter: int) -> bool:
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_SECONDS
            self._wire.sweep(self.server_state)
            self._wire.end_of_head = f"date: {formatdate(usegmt=True)}\r\n\r\n".encode()
            self.renew_tls()
        if self._end is not None and now >= self._end:
            self.should_exit = True
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that ended the server well is not raised again after it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.is_draining = True
        if sig == signal.SIGINT:
            self.force_exit = self.should_exit
            self.should_exit = True
        elif self._end is None:
            self._end = time.monotonic() + self._drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.drain()
        await super().shutdown([*self._doors, *(sockets or [])])


class RunningServer:
    """A server in a thread of this process."""

    def __init__(self, app: ServerApp, host: str, port: int, tls: TlsFiles | None) -> None:
        context = _load_tls(tls)
        self._sock = _bind(host, port)
        self._app = app
        self.url = _url(self._sock, tls is not None)
        self._server = _Server(app, context, 0.0, 10.0, lambda: None)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._sock]}, daemon=True
        )
        self._thread.start()

    @property
    def connections(self) -> set[object]:
        """Those that are open."""
        return set(self._server.server_state.connections)

    def stop(self) -> None:
        """Finish running answers, then end."""
        self._server.should_exit = True
        self._thread.join(15)
        self._sock.close()
        self._app.close()

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_server(
    app: ServerApp, host: str = "127.0.0.1", port: int = 0, tls: TlsFiles | None = None
) -> RunningServer:
    """Serve in the background; the URL is known at once, port 0 takes a free one."""
    return RunningServer(app, host, port, tls)


# --- sockets -------------------------------------------------------------------------------------


def _bind_all(options: ServerOptions) -> list[socket.socket]:
    """A socket for each worker, on one port."""
    host, port = parse_listen(options.listen)
    first = _bind(host, port)  # alone: a port that another server has is an error
    if options.worker_count == 1:
        return [first]
    port = first.getsockname()[1]
    first.close()
    return [_bind(host, port, shared=True) for _ in range(options.worker_count)]


def _bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=shared)
    except (OSError, OverflowError) as exc:
        raise UsageError(
            f"cannot listen on {host}:{port}", cause=str(exc), hint="choose another --listen"
        ) from exc
    sock.setblocking(False)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT)
    return sock


def _url(sock: socket.socket, is_tls: bool) -> str:
    host, port = sock.getsockname()[:2]
    scheme = "https" if is_tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _allow_connections(count: int) -> None:
    """Raise the limit of open files as far as it may be: a connection takes one, an answer of a
    blob another."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = min(count * 2 + 256, hard) if hard != resource.RLIM_INFINITY else count * 2 + 256
    if want > soft:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (want, hard))


# --- TLS -----------------------------------------------------------------------------------------


def _load_tls(files: TlsFiles | None) -> ssl.SSLContext | None:
    if files is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.cert, files.key)
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as exc:  # ssl.SSLError is one
        raise UsageError(
            "cannot use these TLS files",
            cause=str(exc),
            hint="--tls-cert, --tls-key and --client-ca are PEM files",
        ) from exc
    return context


class _Renewal:
    """Takes up a certificate that was renewed; connections from then on get it."""

    def __init__(self, context: ssl.SSLContext, files: TlsFiles) -> None:
        self._context = context
        self._files = files
        self._seen = self._look()
        self._next = time.monotonic() + TLS_LOOK_SECONDS

    def __call__(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + TLS_LOOK_SECONDS
        seen = self._look()
        if seen == self._seen:
            return
        try:
            self._context.load_cert_chain(self._files.cert, self._files.key)
            self._seen = seen
        except OSError as exc:  # half renewed: the old one goes on, and is looked for again
            logging.getLogger(__name__).error("cannot load the new certificate: %s", exc)

    def _look(self) -> list[tuple[int, int] | None]:
        return [_stamp(path) for path in (self._files.cert, self._files.key)]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return (info.st_ino, info.st_mtime_ns)


# --- logs ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _logging(log_format: str) -> Iterator[RequestLog | None]:
    """A request log, and what modules say in its shape."""
    if not log_format:
        yield None
        return
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JsonFormatter())
    loggers = {"layerkit": logging.INFO, "uvicorn": logging.WARNING}
    before = [
        (logger := logging.getLogger(name), logger.level, logger.propagate) for name in loggers
    ]
    for logger, _, _ in before:
        logger.addHandler(handler)
        logger.setLevel(loggers[logger.name])
        logger.propagate = False
    log = RequestLog(log_format)
    try:
        yield log
    finally:
        log.close()
        for logger, level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
