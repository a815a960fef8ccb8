"""A TCP address for an aiohttp application; where it cannot be had, the error names the option."""

from __future__ import annotations

from aiohttp import web

from layerkit.errors import UsageError

__all__ = ["listen_on_tcp"]


async def listen_on_tcp(runner: web.AppRunner, host: str, port: int, option: str) -> int:
    """Serve what `runner` has set up; the port, which is another than 0."""
    try:
        await web.TCPSite(runner, host.strip("[]"), port).start()
    except OSError as exc:
        raise UsageError(
            f"cannot listen on {host}:{port}",
            cause=str(exc.strerror),
            hint=f"choose another {option}",
        ) from exc
    return int(runner.addresses[0][1])
