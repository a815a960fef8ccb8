"""JSON on a unix socket: whose it is, what it refuses, what its client makes of it."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from layerkit.edges.localapi import MAX_BODY_SIZE, LocalApi
from layerkit.edges.localclient import ask_agent
from layerkit.errors import (
    LayerkitError,
    NotFoundError,
    RemoteError,
    StoreFullError,
    StoreLockedError,
    UsageError,
)


async def echo(document: Mapping[str, Any]) -> Mapping[str, Any]:
    if document.get("fail"):
        raise StoreFullError("no space left", cause="full", hint="free some")
    if document.get("bug"):
        raise ZeroDivisionError
    return {"got": dict(document)}


def serve(path: Path, body: Callable[[Callable[..., Awaitable[Any]]], Awaitable[None]]) -> None:
    async def main() -> None:
        api = LocalApi({("POST", "/v1/echo"): echo}, lambda: b"x 1.0\n")
        await api.listen(path)
        await api.listen_for_metrics("127.0.0.1", 0)
        try:
            await body(lambda *asked: asyncio.to_thread(ask_agent, path, *asked))
        finally:
            await api.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_documents_errors_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"

    async def body(ask: Callable[..., Awaitable[Any]]) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await ask("POST", "/v1/echo", {"a": 1}) == {"got": {"a": 1}}
        assert await ask("GET", "/metrics") == "x 1.0\n"
        with pytest.raises(StoreFullError) as caught:
            await ask("POST", "/v1/echo", {"fail": True})
        assert (caught.value.cause, caught.value.hint) == ("full", "free some")
        with pytest.raises(LayerkitError, match="unexpected ZeroDivisionError"):
            await ask("POST", "/v1/echo", {"bug": True})
        with pytest.raises(NotFoundError):
            await ask("GET", "/v1/echo")
        with pytest.raises((UsageError, RemoteError)):
            await ask("POST", "/v1/echo", {"a": "x" * MAX_BODY_SIZE})
        with pytest.raises(UsageError):
            await ask("POST", "/v1/echo", [1])

    serve(path, body)
    assert not path.exists()


def test_the_socket_of_a_dead_agent_is_replaced_and_of_a_living_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def body(ask: Callable[..., Awaitable[Any]]) -> None:
        with pytest.raises(StoreLockedError, match="another agent answers"):
            await LocalApi({}, bytes).listen(path)
        assert await ask("POST", "/v1/echo", {}) == {"got": {}}

    serve(path, body)


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path, kind in (
        (tmp_path / "file", UsageError),
        (tmp_path / "nowhere" / "a.sock", NotFoundError),
        (tmp_path / ("x" * 120), UsageError),
    ):
        with pytest.raises(kind):
            asyncio.run(LocalApi({}, bytes).listen(path))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_socket_that_somebody_else_took_over_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"

    async def body(ask: Callable[..., Awaitable[Any]]) -> None:
        path.unlink()
        path.write_text("another's")

    serve(path, body)
    assert path.read_text() == "another's"


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no agent answers"):
        ask_agent(tmp_path / "a.sock", "GET", "/v1/status")
