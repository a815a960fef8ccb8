"""Where a registry tells an agent of pushes: `POST /events` on a TCP address of its own.

Who knows the secret can make the agent ask its registry what a tag names, no more: of a
notification repository and tag are taken (`formats.notifications`). The secret comes as `Bearer
SECRET` or as the password of `Basic`; without one only this machine may be listened to.
Spec: docs/agent.md "Told by a registry". Limits: MAX_NOTIFICATION_SIZE.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import web

from layerkit.edges.tcpsite import listen_on_tcp
from layerkit.errors import FormatError, UsageError
from layerkit.formats.notifications import MAX_NOTIFICATION_SIZE, Pushed, parse_notification
from layerkit.formats.reference import is_loopback
from layerkit.formats.tokens import hash_token, shows_secret

__all__ = ["NewsApi"]

STOP_SECONDS: Final = 1.0
READ_SECONDS: Final = 10.0  # that a body may take: it is some kilobytes
Take = Callable[[tuple[Pushed, ...]], int]


class NewsApi:
    """`take` gets what was pushed, and says how many names that woke. `secret` "": none is asked
    for."""

    def __init__(self, take: Take, secret: str) -> None:
        self._take = take
        self._raw_hash = hash_token(secret) if secret else None
        self._runner: web.AppRunner | None = None

    async def listen(self, host: str, port: int) -> str:
        """Take notifications; the URL for them."""
        if self._raw_hash is None and not is_loopback(host.strip("[]")):
            raise UsageError(
                f"{host}:{port} is not a loopback address, and no secret is asked for",
                hint="add --events-secret-file",
            )
        application = web.Application(client_max_size=MAX_NOTIFICATION_SIZE)
        application.router.add_post("/events", self._hear)
        application.router.add_get("/healthz", _healthy)
        self._runner = web.AppRunner(
            application, access_log=None, handle_signals=False, shutdown_timeout=STOP_SECONDS
        )
        await self._runner.setup()
        port = await listen_on_tcp(self._runner, host, port, "--events")
        return f"http://{host}:{port}/events"

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _hear(self, request: web.Request) -> web.Response:
        credentials = request.headers.get("authorization", "")
        if self._raw_hash is not None and not shows_secret(credentials, self._raw_hash):
            raise web.HTTPUnauthorized(headers={"www-authenticate": 'Basic realm="layerkit"'})
        try:
            async with asyncio.timeout(READ_SECONDS):
                raw = await request.read()
            pushed = parse_notification(raw)
        except TimeoutError as exc:
            raise web.HTTPRequestTimeout from exc
        except FormatError as exc:
            raise web.HTTPBadRequest(text=f"{exc.message}\n") from exc
        return web.json_response({"woken_count": self._take(pushed)})


async def _healthy(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")
