"""JSON over HTTP on a unix socket that only its owner may open; `localclient` is the other side.

The server knows paths and documents, not what they mean: a handler gets the request's document and
answers one. Errors are error documents with the status of their class. The socket of an agent that
died is replaced, one that answers is refused. The same handlers' numbers may be shown on a TCP
address: `/metrics` and `/healthz`, nothing else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from layerkit.edges.tcpsite import listen_on_tcp
from layerkit.errors import (
    LayerkitError,
    NotFoundError,
    StoreError,
    StoreLockedError,
    UsageError,
)

__all__ = ["Handler", "LocalApi"]

MAX_BODY_SIZE: Final = 64 << 10
MAX_PATH_SIZE: Final = 107  # bytes of a unix socket's path (unix(7))
STOP_SECONDS: Final = 2.0
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_log = logging.getLogger(__name__)
Document = Mapping[str, Any]
Handler = Callable[[Document], Awaitable[Document]]


class LocalApi:
    """Serves `handlers`, by method and path, until it is closed."""

    def __init__(self, handlers: Mapping[tuple[str, str], Handler], render: Callable[[], bytes]):
        self._handlers = handlers
        self._render = render
        self._runners: list[web.AppRunner] = []
        self._bound: Path | None = None
        self._identity = (0, 0)

    async def listen(self, path: Path) -> None:
        """Answer on the socket `path`, mode 0600."""
        listener = _bind(path)
        info = path.stat()
        self._bound, self._identity = path, (info.st_dev, info.st_ino)
        application = web.Application(client_max_size=MAX_BODY_SIZE)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = await self._run(application)
        await web.SockSite(runner, listener).start()

    async def listen_for_metrics(self, host: str, port: int) -> None:
        """Show the numbers on a TCP address."""
        application = web.Application(client_max_size=1)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_get("/healthz", self._healthy)
        runner = await self._run(application)
        await listen_on_tcp(runner, host, port, "--metrics")

    async def _run(self, application: web.Application) -> web.AppRunner:
        runner = web.AppRunner(
            application, access_log=None, handle_signals=False, shutdown_timeout=STOP_SECONDS
        )
        await runner.setup()
        self._runners.append(runner)
        return runner

    async def close(self) -> None:
        """Answer what is being asked for a moment more; remove the socket if it is still ours."""
        for runner in self._runners:
            await runner.cleanup()
        if self._bound is not None:
            with contextlib.suppress(OSError):
                info = self._bound.lstat()
                if (info.st_dev, info.st_ino) == self._identity:
                    self._bound.unlink()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._render(), headers={"content-type": METRICS_TYPE})

    async def _healthy(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            answer = await self._handle(request)
            return web.json_response(dict(answer))
        except LayerkitError as exc:
            return _refuse(exc)
        except web.HTTPRequestEntityTooLarge:
            return _refuse(UsageError(f"a request is over {MAX_BODY_SIZE} bytes"))
        except Exception as exc:  # the request loop: a bug of ours fails this request alone
            _log.exception("%s %s failed", request.method, request.path)
            return _respond(LayerkitError, f"unexpected {type(exc).__name__}", "", "")

    async def _handle(self, request: web.Request) -> Document:
        handler = self._handlers.get((request.method, request.path))
        if handler is None:
            raise NotFoundError(f"there is no {request.method} {request.path[:200]}")
        raw = await request.read()
        document = _parse(raw) if raw else {}
        return await handler(document)


def _refuse(error: LayerkitError) -> web.Response:
    return _respond(type(error), error.message, error.cause, error.hint)


def _respond(kind: type[LayerkitError], message: str, detail: str, hint: str) -> web.Response:
    entry = {"code": kind.code, "message": message, "detail": detail}
    document = {"errors": [entry | ({"hint": hint} if hint else {})]}
    return web.json_response(document, status=kind.http_status)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise UsageError("body is not JSON", cause=str(exc)[:200]) from exc
    if not isinstance(document, dict):
        raise UsageError("body is not a JSON object")
    return document


def _bind(path: Path) -> socket.socket:
    """A listening socket at `path` for its owner alone."""
    if len(os.fsencode(path)) > MAX_PATH_SIZE:
        raise UsageError(f"{path} is too long for a socket", cause=f"want <= {MAX_PATH_SIZE} bytes")
    if not path.parent.is_dir():
        raise NotFoundError(f"{path.parent} does not exist", hint="make it, for the socket")
    _make_room(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        mask = os.umask(0o177)  # from its first moment it is the owner's
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(64)
        listener.setblocking(False)
    except OSError as exc:
        listener.close()
        raise StoreError(f"cannot listen at {path}", cause=str(exc.strerror)) from exc
    return listener


def _make_room(path: Path) -> None:
    """Remove the socket of an agent that died; refuse one that answers, and what is no socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise UsageError(f"{path} is there and is no socket", hint="name another --socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            _log.info("%s was left by an agent that died, replacing it", path)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return
        except OSError as exc:
            raise StoreError(f"cannot look at {path}", cause=str(exc)) from exc
    raise StoreLockedError(f"another agent answers at {path}", hint="stop it, or name a --socket")
