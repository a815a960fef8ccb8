"""The same change on lines of other rates: the plan against the plain pull of whole layers, and
`docker pull` (bench/contest.py). layerkit must be slower than the plain pull on none of them.

On each line the node asks as it would: the rate that it measured before (in its store) decides
what it plans. `crossing` is the rate above which whole layers would be quicker: from the seconds
that both take where the line costs nothing, and the bytes that both move.
"""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from contest import Contest, missing_tools
from latency import CHANGES, in_turn, middle
from netns import Network, why_not
from versions import layout_of

Table = dict[str, Any]
LINES = {
    "10 Mbit/s, 20 ms": Network(round_trip=20, rate=10),
    "100 Mbit/s, 20 ms": Network(round_trip=20, rate=100),
    "1 Gbit/s, 1 ms": Network(round_trip=1, rate=1000),
    "no limit": Network(),
}
ROUNDS = 5


def measure(rounds: int = ROUNDS, change: str = "base -> c1_base64") -> Table:
    """Samples for each line; {"missing": why} where it cannot be measured."""
    why = missing_tools() or why_not()
    if why:
        return {"missing": why}
    old, new = CHANGES[change]
    layout, plain = layout_of([old, new]), layout_of([old, new], chunks=False)
    table: Table = {"change": change, "lines": {}}
    for line, network in LINES.items():
        scratch = Path(tempfile.mkdtemp(prefix="lk-lines-"))
        try:
            with Contest(network, layout, plain, old, scratch) as contest:
                contest.push(new)
                contestants = {
                    "docker": partial(contest.docker, new),
                    "plain": partial(contest.plain, new),
                    "layerkit": partial(contest.layerkit, new),
                    "first, plain": partial(contest.plain, new, False),
                    "first, layerkit": partial(contest.layerkit, new, False),
                }
                rows = in_turn(contestants, rounds)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        table["lines"][line] = {"how": contest.lab.how, "samples": rows}
        print(line, {name: middle(found) for name, found in rows.items()}, flush=True)
    table["crossing"] = crossing(table["lines"]["no limit"]["samples"])
    return table


def crossing(rows: dict[str, list[dict[str, Any]]]) -> dict[str, float | None]:
    """Mbit/s above which whole layers would be quicker; None: at no rate."""
    found: dict[str, float | None] = {}
    for first in ("", "first, "):
        ours, plain = middle(rows[f"{first}layerkit"]), middle(rows[f"{first}plain"])
        more_seconds = ours["seconds"] - plain["seconds"]
        fewer_bits = 8 * (plain["received"] - ours["received"])
        key = "first pull" if first else "update"
        found[key] = fewer_bits / more_seconds / 1e6 if more_seconds > 0 else None
    return found


if __name__ == "__main__":
    measure()
