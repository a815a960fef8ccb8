"""Covers: the long equal runs of an old and a new form, and what they leave over.

A **cover** copies a run from the old forms (joined end to end) into the new one. Between two covers
lies a **gap**: bytes of the new form that a window of `primed` codes, with the bytes that stand at
the same place of the old forms as a dictionary. So covers need not be exact to the byte: they count
in units, and what is left at their ends goes with the gap, where it costs next to nothing.

Spec: docs/format.md "Delta".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from pyfastcdc import FastCDC

from layerkit.formats.cursor import Reader, Writer, unzigzag, zigzag

__all__ = ["Cover", "Gap", "choose_covers", "find_runs", "gaps_of", "read_covers", "write_covers"]

UNIT: Final = 128  # bytes: covers start behind a gap of whole units and are whole units long
ANCHOR_SIZE: Final = 512  # average bytes of the chunks that find equal runs
LEAST_SIZE: Final = 1024  # bytes of a cover: a shorter run costs less inside its gap
LEAST_SEEKING_SIZE: Final = 2048  # bytes of a cover that seeks, which takes two or three bytes more
MARGIN: Final = 32  # bytes that a cover leaves to the gaps at both ends: they lead the coder there
GAP_LIMIT: Final = 4 << 20  # bytes: a longer gap is cut by empty covers
REACH: Final = 1 << 16  # bytes of old between two covers, beyond eight times the gap's
SIDE: Final = 2048  # bytes of old beside one cover, beyond twice the gap's, where that is too much

Bytes8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Cover:
    """`size` bytes of old, from `source` on, stand at `start` of the new form. An empty cover only
    says where the old forms go on."""

    start: int
    source: int
    size: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes of the new form that no cover brings, and the runs of old that stand around them."""

    start: int
    size: int
    near: tuple[tuple[int, int], ...]  # start in old, bytes


def find_runs(old: bytes, new: bytes) -> list[Cover]:
    """Equal runs in the order of `new`, without overlaps there: found by equal content-defined
    chunks, and grown to both sides. Linear in both sizes."""
    known: dict[bytes, int] = {}
    cutter = FastCDC(avg_size=ANCHOR_SIZE, min_size=ANCHOR_SIZE // 4, max_size=ANCHOR_SIZE * 8)
    for chunk in cutter.cut_buf(old):
        known.setdefault(bytes(chunk.data), chunk.offset)
    a, b = np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)
    runs: list[Cover] = []
    end_new = end_old = 0
    for chunk in cutter.cut_buf(new):
        start, size = chunk.offset, chunk.length
        if start + size <= end_new:
            continue
        ahead = start - end_new + end_old  # the place that goes on the run before it
        text = bytes(chunk.data)
        at = ahead if runs and old[ahead : ahead + size] == text else known.get(text, -1)
        if at < 0:
            continue
        if start < end_new:  # the run before it grew into this chunk
            start, at, size = end_new, at + end_new - start, size - end_new + start
        back = _common_back(a[:at], b[end_new:start])
        forward = _common(a[at + size :], b[start + size :])
        run = Cover(start - back, at - back, back + size + forward)
        if runs and run.start == end_new and run.source == end_old:
            last = runs.pop()
            run = Cover(last.start, last.source, last.size + run.size)
        runs.append(run)
        end_new, end_old = run.start + run.size, run.source + run.size
    return runs


def _common(a: Bytes8, b: Bytes8) -> int:
    """Bytes that two arrays have in common at their starts."""
    size, step = min(len(a), len(b)), 256
    done = 0
    while done < size:
        part = min(step, size - done)
        differ = np.flatnonzero(a[done : done + part] != b[done : done + part])
        if len(differ):
            return done + int(differ[0])
        done += part
        step = min(step * 4, 1 << 22)
    return done


def _common_back(a: Bytes8, b: Bytes8) -> int:
    size = min(len(a), len(b))
    return _common(a[len(a) - size :][::-1], b[len(b) - size :][::-1])


def choose_covers(runs: Sequence[Cover], old_size: int, new_size: int) -> list[Cover]:
    """The covers to send: the runs that are long enough, cut to whole units."""
    covers: list[Cover] = []
    at = at_old = 0
    for run in runs:
        behind = run.start + (MARGIN if run.start else 0)
        gap = -(-max(0, behind - at) // UNIT) * UNIT
        moved = at + gap - run.start
        size = run.size - moved - (MARGIN if run.start + run.size < new_size else 0)
        size = size // UNIT * UNIT
        source = run.source + moved
        if size < (LEAST_SIZE if source == at_old + gap else LEAST_SEEKING_SIZE):
            continue
        cover = Cover(at + gap, source, size)
        covers += _split_gap(at, at_old, cover)
        covers.append(cover)
        at, at_old = cover.start + size, cover.source + size
    return covers + _split_gap(at, at_old, Cover(new_size, old_size, 0))


def _split_gap(at: int, at_old: int, behind: Cover) -> list[Cover]:
    """Empty covers that cut a long gap, at places of old in proportion."""
    count = max(0, behind.start - at - 1) // GAP_LIMIT
    step = max(0, behind.source - at_old) // (count + 1)
    return [Cover(at + k * GAP_LIMIT, at_old + k * step, 0) for k in range(1, count + 1)]


def gaps_of(covers: Sequence[Cover], old_size: int, new_size: int) -> Iterator[Gap]:
    """What the covers leave of the new form, in order."""
    at = at_old = 0
    for cover in [*covers, Cover(new_size, old_size, 0)]:
        if cover.start > at:
            size = cover.start - at
            yield Gap(at, size, _near(at_old, cover.source, size, old_size))
        at, at_old = cover.start + cover.size, cover.source + cover.size


def _near(low: int, high: int, gap: int, end: int) -> tuple[tuple[int, int], ...]:
    """The old bytes between two covers; where they are many, or the second cover comes from before
    the first, those behind the one and before the other."""
    if 0 <= high - low <= 8 * gap + REACH:
        return ((low, high - low),) if high > low else ()
    side = 2 * gap + SIDE
    first = (low, min(side, end - low))
    second = (max(0, high - side), min(side, high))
    return tuple(run for run in (first, second) if run[1])


def write_covers(covers: Sequence[Cover]) -> bytes:
    """Count, then for each: units in the gap before it, twice, plus one if it is not where the old
    forms would go on; if so how far it is from there; its units."""
    out = Writer()
    out.varint(len(covers))
    at = at_old = 0
    for cover in covers:
        gap = cover.start - at
        seek = cover.source - at_old - gap
        assert gap % UNIT == 0 and cover.size % UNIT == 0
        out.varint(gap // UNIT << 1 | (seek != 0))
        if seek:
            out.varint(zigzag(seek))
        out.varint(cover.size // UNIT)
        at, at_old = cover.start + cover.size, cover.source + cover.size
    return out.getvalue()


def read_covers(reader: Reader, old_size: int, new_size: int) -> list[Cover]:
    """The twin of `write_covers`: all lie inside the forms, in the order of the new one."""
    covers: list[Cover] = []
    at = at_old = 0
    for _ in range(reader.varint(new_size // UNIT, "count of covers")):
        code = reader.varint((new_size - at) // UNIT << 1 | 1, "gap before a cover")
        at += (code >> 1) * UNIT
        at_old += (code >> 1) * UNIT
        if code & 1:
            seek = unzigzag(reader.varint(1 << 33, "seek"))
            if not seek:
                raise reader.fail("a seek of nothing")
            at_old += seek
        size = reader.varint((new_size - at) // UNIT, "bytes of a cover") * UNIT
        if at_old < 0 or at_old + size > old_size or not (size or code > 1):
            raise reader.fail("a cover lies outside the old forms, or says nothing")
        covers.append(Cover(at, at_old, size))
        at, at_old = at + size, at_old + size
    starts = [0, *(cover.start + cover.size for cover in covers)]
    ends = [*(cover.start for cover in covers), new_size]
    if any(end - start > GAP_LIMIT for start, end in zip(starts, ends, strict=True)):
        raise reader.fail("a gap is over its limit")
    return covers
