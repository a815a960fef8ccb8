"""Role ranges against the plain rule: one role a byte."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.formats.gonames import BASE, CODE, DEPS, ROLES, SHARED
from layerkit.formats.ranges import chunk_roles, join_ranges, one_role, ranges_of

painted = st.lists(st.integers(0, 3), max_size=60)


def of(*roles: int) -> np.ndarray:
    return np.array(roles, np.uint8)


@given(painted)
def test_painting_and_back(roles: list[int]) -> None:
    ranges = ranges_of(of(*roles))
    assert ranges.painted().tolist() == roles
    assert list(ranges.sizes().values()) == [roles.count(role) for role in range(len(ROLES))]


@given(painted, st.data())
def test_sizes_between_bounds(roles: list[int], data: st.DataObject) -> None:
    bounds = sorted(data.draw(st.lists(st.integers(0, len(roles)), min_size=2, max_size=6)))
    found = ranges_of(of(*roles)).sizes_between(bounds).tolist()
    pairs = pairwise(bounds)
    assert found == [[roles[a:b].count(role) for role in range(4)] for a, b in pairs]


@given(painted, painted)
def test_joined_ranges_lie_end_to_end(first: list[int], second: list[int]) -> None:
    joined = join_ranges([ranges_of(of(*first)), ranges_of(of(*second))])
    assert joined.painted().tolist() == first + second


def test_a_chunk_has_the_role_of_most_of_its_bytes() -> None:
    ranges = ranges_of(of(BASE, BASE, CODE, DEPS, CODE, CODE, SHARED, SHARED, SHARED, DEPS))
    assert chunk_roles([3, 2, 1, 2, 2], ranges) == [BASE, DEPS, CODE, SHARED, DEPS]


def test_chunks_of_another_form_are_refused() -> None:
    with pytest.raises(ValueError, match="chunks of 3 bytes"):
        chunk_roles([3], one_role(4, BASE))


def test_no_bytes_no_chunks() -> None:
    assert chunk_roles([], one_role(0, BASE)) == []
