"""Which packs gc writes anew: those that are mostly unused, and small ones, joined.

Each pull leaves a pack, so hundreds of edits leave hundreds of small ones. They are joined by
classes of size, and only when one class has MERGE_COUNT of them: so a chunk is copied about once a
class, however many edits come. What is copied for that in one gc is bounded by MERGE_SIZE; what
is copied out of packs that are mostly unused is less than what goes with them. Values only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

__all__ = ["PackUse", "choose_packs"]

REWRITE_BELOW: Final = 0.5  # a pack is rewritten when less than this part of it is in use
MERGE_COUNT: Final = 16  # small packs of one class that are worth being one
CLASS_SIZES: Final = (16 << 10, 256 << 10, 4 << 20)  # bytes below which a pack is of this class
MERGE_SIZE: Final = 64 << 20  # bytes that one gc copies to join small packs: about a second
PACK_SIZE: Final = 16 << 20  # bytes from which on a written pack is large enough

assert all(  # joined, they leave their class
    MERGE_COUNT * low >= high for low, high in pairwise(CLASS_SIZES)
)


@dataclass(frozen=True, slots=True)
class PackUse:
    """A pack of the index: its size, and bytes of it that are chunks in use."""

    pack: int
    size: int
    live_size: int


def choose_packs(packs: Sequence[PackUse], *, join: bool) -> list[list[int]]:
    """Packs to be written anew, those of one list into one, in their order. `join`: small ones,
    too, not only those that are mostly unused."""
    chosen = [one for one in packs if 0 < one.live_size < REWRITE_BELOW * one.size]
    if join:
        known = {one.pack for one in chosen}
        whole = [one for one in packs if one.live_size and one.pack not in known]
        chosen = sorted([*chosen, *_choose_small(whole)], key=lambda one: one.pack)
    return _group(chosen)


def _choose_small(packs: Iterable[PackUse]) -> list[PackUse]:
    """Those of each class that has enough of them, the oldest first, up to MERGE_SIZE."""
    classes: dict[int, list[PackUse]] = {}
    for one in packs:
        size = next((size for size in CLASS_SIZES if one.size < size), None)
        if size is not None:
            classes.setdefault(size, []).append(one)
    chosen: list[PackUse] = []
    left = MERGE_SIZE
    for _, found in sorted(classes.items()):
        some = _take(found, left)
        if len(some) >= MERGE_COUNT:
            chosen += some
            left -= sum(one.live_size for one in some)
    return chosen


def _take(packs: Sequence[PackUse], left: int) -> list[PackUse]:
    taken = []
    for one in packs:
        left -= one.live_size
        if left < 0:
            break
        taken.append(one)
    return taken


def _group(packs: Sequence[PackUse]) -> list[list[int]]:
    groups: list[list[int]] = []
    size = PACK_SIZE
    for one in packs:
        if size >= PACK_SIZE:
            groups.append([])
            size = 0
        groups[-1].append(one.pack)
        size += one.live_size
    return groups
