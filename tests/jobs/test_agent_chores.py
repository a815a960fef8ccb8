"""When an agent collects garbage by itself."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from layerkit.jobs.agent.chores import GC_SECONDS, Chores


class _Node:
    """A node without names that counts its gcs."""

    def __init__(self) -> None:
        self.names: list[Any] = []
        self.settings = SimpleNamespace(load=())
        self.gc_count = 0

    async def run(self, do: str, **_: object) -> dict[str, object]:
        assert do == "gc"
        self.gc_count += 1
        return {"store_size": 0}

    def note_store(self, _: object) -> None:
        pass


def test_a_node_that_never_runs_for_long_collects_too() -> None:
    """Starts that live for a tenth of the period: one in ten collects, in the mean."""
    node, waits = _Node(), []
    for _ in range(400):
        chores = Chores(cast(Any, node), lambda: True)
        wait = asyncio.run(chores.finish())
        assert wait is None or 0 <= wait <= GC_SECONDS
        waits.append(wait or 0.0)
    assert 10 <= sum(wait < GC_SECONDS / 10 for wait in waits) <= 90


def test_what_was_collected_is_not_collected_again() -> None:
    node = _Node()
    chores = Chores(cast(Any, node), lambda: True)
    asyncio.run(chores.gc())
    assert asyncio.run(chores.finish()) is None
    assert node.gc_count == 1
