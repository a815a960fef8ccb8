"""Role ranges: every byte of a form or a file has exactly one role; sums and chunks follow.

A value, no knowledge of Go: `formats.roles` makes them. Roles are the numbers of
`formats.gonames`: 0 shared, 1 base, 2 deps, 3 code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from layerkit.formats.gonames import ROLES, SHARED

__all__ = ["RoleRanges", "chunk_roles", "join_ranges", "one_role", "ranges_of"]

Int64s = npt.NDArray[np.int64]
Bytes8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class RoleRanges:
    """`roles[i]` holds from `starts[i]` to the next start; the last one ends at `size` (bytes)."""

    starts: Int64s  # ascending, the first is 0; empty for nothing
    roles: Bytes8
    size: int

    def __post_init__(self) -> None:
        assert len(self.starts) == len(self.roles) and (len(self.starts) > 0) == (self.size > 0)
        assert not len(self.starts) or (self.starts[0] == 0 and self.starts[-1] < self.size)

    def sizes(self) -> dict[str, int]:
        """Bytes of each role; they sum to `size`."""
        counts = np.zeros(len(ROLES), np.int64)
        np.add.at(counts, self.roles, np.diff(self.starts, append=self.size))
        return dict(zip(ROLES, counts.tolist(), strict=True))

    def sizes_between(self, bounds: Sequence[int] | Int64s) -> Int64s:
        """Bytes of each role between each bound and the next: a row a gap, a column a role."""
        at = np.asarray(bounds, np.int64)
        if not self.size:
            return np.zeros((max(0, len(at) - 1), len(ROLES)), np.int64)
        ends = np.append(self.starts[1:], self.size)
        index = np.clip(np.searchsorted(self.starts, at, side="right") - 1, 0, None)
        before = np.zeros((len(at), len(ROLES)), np.int64)
        for role in range(len(ROLES)):
            mine = self.roles == role
            total = np.concatenate(([0], np.cumsum(np.where(mine, ends - self.starts, 0))))
            before[:, role] = total[index] + np.where(mine[index], at - self.starts[index], 0)
        return np.diff(before, axis=0)

    def painted(self) -> Bytes8:
        """One role a byte."""
        return np.repeat(self.roles, np.diff(self.starts, append=self.size))


def ranges_of(painted: Bytes8) -> RoleRanges:
    """From one role a byte."""
    change = np.flatnonzero(painted[1:] != painted[:-1]) + 1
    starts = np.concatenate(([0], change)) if len(painted) else np.zeros(0, np.int64)
    return RoleRanges(starts.astype(np.int64), painted[starts], len(painted))


def one_role(size: int, role: int) -> RoleRanges:
    """`size` bytes of one role."""
    count = 1 if size else 0
    return RoleRanges(np.zeros(count, np.int64), np.full(count, role, np.uint8), size)


def join_ranges(parts: Iterable[RoleRanges]) -> RoleRanges:
    """Ranges of what lies end to end."""
    starts, roles, size = [np.zeros(0, np.int64)], [np.zeros(0, np.uint8)], 0
    for part in parts:
        starts.append(part.starts + size)
        roles.append(part.roles)
        size += part.size
    return RoleRanges(np.concatenate(starts), np.concatenate(roles), size)


def chunk_roles(sizes: Sequence[int], ranges: RoleRanges) -> list[int]:
    """The role of each chunk: the one with most of its bytes, shared only where no other has any;
    the innermost of equals. `sizes` sum to the size of `ranges`."""
    bounds = np.concatenate(([0], np.cumsum(np.asarray(sizes, np.int64))))
    if bounds[-1] != ranges.size:
        raise ValueError(f"chunks of {bounds[-1]} bytes, ranges of {ranges.size}")
    counts = ranges.sizes_between(bounds)
    owned = counts[:, SHARED + 1 :]
    best: list[int] = (owned.argmax(axis=1) + 1).tolist()
    nobody = (owned.sum(axis=1) == 0).tolist()
    return [SHARED if none else role for none, role in zip(nobody, best, strict=True)]
