"""From a push to a program that can be run, on a line of 20 ms and 100 Mbit/s: layerkit against
`docker pull` of the same change from a real registry (bench/contest.py).

layerkit is measured in four ways: `layerkit` asks for a version whose update the server has kept,
as it does for what is published; `layerkit, at once` asks a server that was started anew and has
kept nothing. `layerkit agent` is the whole way: an agent that watches the name, from the move of
the tag at the server until its link leads to the new version; what was not made before is made in
that time, too. `layerkit agent, update kept` is the same where the server has the update before the
tag moves; `layerkit agent, pushed` where `layerkit push` published it into the served layout, from
the move of the tag, and `push to agent` from the start of that push. Pushes over the line, by
themselves, are in `pushes` (bench/pushes.py): that is where the making of an update is paid.
Nodes were idle before: they have a spare tree of the lower layers, as the engine has
these layers extracted.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pushes
from contest import Contest, Sample, missing_tools
from netns import Network, why_not
from versions import layout_of

Table = dict[str, Any]
LINE = Network(round_trip=20, rate=100)
CHANGES = {  # change -> old and new workload
    "base -> a_literal": ("base", "a_literal"),
    "base -> c1_base64": ("base", "c1_base64"),
    "zerolog 1.34.0 -> 1.35.1": ("d_zerolog_1.34.0", "d_zerolog_1.35.1"),
}
ROUNDS = 5


def in_turn(
    contestants: Mapping[str, Callable[[], Sample]], rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Samples of each, one of each in every round, so that a busy machine is busy for all. The
    first round warms up and is not counted."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            sample = run()
            if turn:
                found[name].append(sample.as_row())
    return found


def middle(samples: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {
        key: statistics.median(sample[key] for sample in samples) for key in ("seconds", "received")
    }


def pushed(contest: Contest, new: str, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Samples of an agent whose server is pushed to, from both starts."""
    found: dict[str, list[dict[str, Any]]] = {"layerkit agent, pushed": [], "push to agent": []}
    for turn in range(rounds + 1):
        samples = pushes.agent(contest, new)
        if turn:
            for rows, sample in zip(found.values(), samples, strict=True):
                rows.append(sample.as_row())
    return found


def measure(rounds: int = ROUNDS, changes: dict[str, tuple[str, str]] = CHANGES) -> Table:
    """The samples of each change; {"missing": why} where it cannot be measured."""
    why = missing_tools() or why_not()
    if why:
        return {"missing": why}
    names = sorted({name for pair in changes.values() for name in pair})
    layout, plain = layout_of(names), layout_of(names, chunks=False)
    table: Table = {"round_trip": LINE.round_trip, "rate": LINE.rate, "changes": {}, "pushes": {}}
    for change, (old, new) in changes.items():
        scratch = Path(tempfile.mkdtemp(prefix="lk-latency-"))
        try:
            with Contest(LINE, layout, plain, old, scratch) as contest:
                contest.push(new)
                contestants = {
                    "docker": partial(contest.docker, new),
                    "layerkit": partial(contest.layerkit, new),
                    "layerkit agent, update kept": partial(contest.agent, new, True),
                    "layerkit, at once": partial(contest.at_once, new),
                    "layerkit agent": partial(contest.agent, new),
                }
                table["how"] = contest.lab.how
                table["changes"][change] = in_turn(contestants, rounds)
                table["changes"][change] |= pushed(contest, new, rounds)
                pushers = {
                    "docker push": partial(pushes.docker_push, contest, new),
                    "layerkit push": partial(pushes.layerkit_push, contest, new),
                }
                table["pushes"][change] = in_turn(pushers, rounds)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        found = table["changes"][change] | table["pushes"][change]
        ends = {name: middle(rows) for name, rows in found.items()}
        print(change, ends, flush=True)
    return table


if __name__ == "__main__":
    measure()
