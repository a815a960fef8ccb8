"""The agent's local API: paths, what each request must hold, and what answers it.

Documented in docs/agent.md; every path here is there (a test compares).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from layerkit import __version__
from layerkit.edges.localapi import Handler
from layerkit.errors import UsageError
from layerkit.formats.reference import Reference
from layerkit.jobs.agent.keeper import Keeper

__all__ = ["make_handlers"]

MAX_REF_SIZE: Final = 512  # characters: a name, a tag and a digest
Document = dict[str, Any]


def make_handlers(
    keeper: Keeper, follow: Callable[[], None], started: float
) -> Mapping[tuple[str, str], Handler]:
    """Handlers by method and path; `follow` lets the watching know that names changed."""

    async def status(document: Mapping[str, Any]) -> Document:
        _check(document)
        return describe_agent(keeper, started)

    async def pull(document: Mapping[str, Any]) -> Document:
        _check(document, "ref", "wait")
        ref = _tagged(document)
        wait = document.get("wait", True)
        if not isinstance(wait, bool):
            raise UsageError(f"wait: got {wait!r}, want true or false")
        keeper.names.add(ref)  # what is no name is refused now
        task = asyncio.ensure_future(keeper.pull(ref))
        if wait:
            return await asyncio.shield(task)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.sleep(0)
        return keeper.describe(keeper.names.get(ref))

    async def watch(document: Mapping[str, Any]) -> Document:
        _check(document, "ref")
        found = await keeper.watch(_tagged(document))
        follow()
        return found

    async def unwatch(document: Mapping[str, Any]) -> Document:
        _check(document, "ref")
        found = await keeper.unwatch(_tagged(document))
        follow()
        return found

    async def remove(document: Mapping[str, Any]) -> Document:
        _check(document, "ref")
        found = await keeper.remove(_reference(document))
        follow()
        return found

    async def pin(document: Mapping[str, Any]) -> Document:
        _check(document, "ref")
        return await keeper.pin(_reference(document), keep=True)

    async def unpin(document: Mapping[str, Any]) -> Document:
        _check(document, "ref")
        return await keeper.pin(_reference(document), keep=False)

    async def collect(document: Mapping[str, Any]) -> Document:
        _check(document, "dry_run")
        dry_run = document.get("dry_run", False)
        if not isinstance(dry_run, bool):
            raise UsageError(f"dry_run: got {dry_run!r}, want true or false")
        return await keeper.chores.gc(dry_run=dry_run)

    async def images(document: Mapping[str, Any]) -> Document:
        _check(document)
        return await keeper.list_images()

    return {
        ("GET", "/v1/status"): status,
        ("GET", "/v1/images"): images,
        ("POST", "/v1/pull"): pull,
        ("POST", "/v1/watch"): watch,
        ("POST", "/v1/unwatch"): unwatch,
        ("POST", "/v1/remove"): remove,
        ("POST", "/v1/pin"): pin,
        ("POST", "/v1/unpin"): unpin,
        ("POST", "/v1/gc"): collect,
    }


def describe_agent(keeper: Keeper, started: float) -> Document:
    """The whole state, for people and for monitors."""
    node = keeper.node
    places = node.list_places()
    usable = node.health.list_usable(places)
    settings = node.settings
    names = sorted(keeper.names, key=lambda name: str(name.ref))
    return {
        "version": __version__,
        "pid": os.getpid(),
        "seconds": round(time.monotonic() - started, 3),
        "store": str(settings.store),
        "store_size": node.store_size,
        "keep": settings.keep,
        "servers": [{"url": one.url, "usable": one in usable} for one in places],
        "engines": [
            {"kind": kind, "last_error": node.engine_errors.get(kind)} for kind in settings.load
        ],
        "running_count": len(keeper.running),
        "failing_count": sum(name.last_error is not None for name in names),
        "names": [keeper.describe(name) for name in names],
    }


def _check(document: Mapping[str, Any], *known: str) -> None:
    unknown = sorted(document.keys() - set(known))
    if unknown:
        there = ", ".join(known) or "nothing"
        raise UsageError(f"{unknown[0][:80]!r} is no part of this request", cause=f"it has {there}")


def _reference(document: Mapping[str, Any]) -> Reference:
    text = document.get("ref")
    if not isinstance(text, str) or not 0 < len(text) <= MAX_REF_SIZE:
        raise UsageError("ref: want a reference, as in hello:v1")
    return Reference.parse(text)


def _tagged(document: Mapping[str, Any]) -> str:
    ref = _reference(document).tagged
    if ref.digest is not None:
        raise UsageError(f"{ref} is named by its digest", hint="name it by a tag")
    return str(ref)
