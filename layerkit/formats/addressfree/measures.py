"""Numbers that follow from where regions begin and end: lengths of Go's slices over its tables, and
what ELF's headers say of sections and segments. The form holds zeros there.

A measure says where a number stands and which two **boundaries** it is the distance of. Boundary 0
is zero; then come four of each region: address, end address, file position, end in the file.
Spec: docs/format.md "Measures".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from layerkit.errors import FormatError
from layerkit.formats.addressfree.model import Bytes8, Labels, Measure, Region

__all__ = ["Place", "clear_measures", "find_measures", "list_boundaries", "write_measures"]


def list_boundaries(regions: Sequence[Region]) -> list[int]:
    """All boundaries; a region without place in the file has 0 for both positions."""
    found = [0]
    for region in regions:
        in_file = region.offset >= 0
        found += [region.addr, region.addr + region.size]
        found += [region.offset, region.offset + region.size] if in_file else [0, 0]
    return found


def _positions(labels: Labels, size: int) -> list[tuple[int, Measure]]:
    """The file position of each measure. Raises FormatError for one outside its region."""
    placed = []
    for measure in labels.measures:
        begin, end = 0, size
        if measure.region >= 0:
            region = labels.regions[measure.region]
            begin, end = region.offset, region.offset + region.size
        at = begin + measure.offset
        if begin < 0 or at + measure.width > min(end, size):
            raise FormatError("form: a measure lies outside its region")
        placed.append((at, measure))
    return placed


def clear_measures(labels: Labels, body: Bytes8) -> None:
    """Zero the measured numbers, as the form has them."""
    for at, measure in _positions(labels, len(body)):
        body[at : at + measure.width] = 0


def write_measures(labels: Labels, out: Bytes8) -> None:
    """Put the numbers back. Raises FormatError where one does not fit."""
    bounds = list_boundaries(labels.regions)
    for at, measure in _positions(labels, len(out)):
        value = _value(bounds, measure.high, measure.low, measure.shift, measure.add)
        if value < 0 or value >> (8 * measure.width):
            raise FormatError("form: a measured number does not fit its place")
        out[at : at + measure.width] = memoryview(value.to_bytes(measure.width, "little"))


def _value(bounds: Sequence[int], high: int, low: int, shift: int, add: int) -> int:
    return (bounds[high] - bounds[low] >> shift) + add


@dataclass(frozen=True, slots=True)
class Place:
    """A number in the file that may be a measure: region (-1: the file), offset in it, width."""

    region: int
    offset: int
    width: int


SMALL = 64  # numbers below it are rather counts and constants


def find_measures(
    regions: Sequence[Region], places: Sequence[Place], data: bytes
) -> tuple[Measure, ...]:
    """The places whose number is that of a simple measure, the simplest: a boundary, the size of a
    region in bytes or entries, a distance of two boundaries of one sort."""
    bounds = list_boundaries(regions)
    known: dict[int, tuple[int, int, int, int]] = {}

    def offer(high: int, low: int, shift: int = 0, add: int = 0) -> None:
        value = _value(bounds, high, low, shift, add)
        if value >= SMALL:
            known.setdefault(value, (high, low, shift, add))

    count = len(bounds)
    for high in range(1, count):
        offer(high, 0)
    for first in range(1, count, 4):
        for shift, add in ((0, 0), (2, 0), (3, 0), (3, 1)):
            offer(first + 1, first, shift, add)
    for sort in ((0, 1), (2, 3)):
        ends = [first + k for first in range(1, count, 4) for k in sort if bounds[first + k]]
        for low in ends:
            for high in ends:
                offer(high, low)
    found = []
    for place in places:
        at = place.offset + (regions[place.region].offset if place.region >= 0 else 0)
        value = int.from_bytes(data[at : at + place.width], "little")
        if rule := known.get(value):
            found.append(Measure(place.region, place.offset, place.width, *rule))
    return tuple(found)
