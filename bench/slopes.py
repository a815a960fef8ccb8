"""Is it a leak? The slope of what a process or a folder takes, against a limit. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Table = dict[str, Any]
PARTS = 12  # of the judged time, each counts by its least sample
LIMITS = {  # growth allowed over the judged time, of each process and folder
    "handles": 8.0,
    "memory": 24 << 20,  # bytes: the allocator's arenas
    "disk": 24 << 20,  # bytes: packs that wait for gc, SQLite's log
}


def growth(times: Sequence[float], values: Sequence[float]) -> float:
    """By how much the values rise over the last two thirds of the time, by a straight line through
    the least of each of PARTS."""
    start = times[0] + (times[-1] - times[0]) / 3
    at = [index for index, when in enumerate(times) if when >= start]
    if len(at) < 2 * PARTS:
        raise ValueError(f"{len(at)} samples are too few for a slope: run longer")
    parts = np.array_split(np.array(at), PARTS)
    low = [min(values[index] for index in part) for part in parts]
    middle = [times[part[len(part) // 2]] for part in parts]
    return float(np.polyfit(middle, low, 1)[0]) * (times[-1] - start)


def judge(name: str, times: Sequence[float], values: Sequence[float]) -> Table:
    """Whether what was sampled grew by more than the limit of its kind."""
    grown, limit = growth(times, values), LIMITS[name.rpartition(", ")[2]]
    row: Table = {"first": values[len(values) // 3], "last": values[-1], "most": max(values)}
    return row | {"growth": round(grown, 1), "limit": limit, "good": grown <= limit}
