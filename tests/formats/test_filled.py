"""Bytes made in place: right, and in memory once."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from layerkit.formats.filled import fill_bytes, join_bytes

SIZE = 8 << 20


def pieces() -> Iterator[bytes]:
    for number in range(SIZE >> 12):
        yield bytes([number & 0xFF]) * (1 << 12)


def count_up(out: memoryview) -> None:
    for at, part in zip(range(0, SIZE, 1 << 12), pieces(), strict=True):
        out[at : at + (1 << 12)] = part


@pytest.mark.parametrize("size", [0, 1, 2, 100])
def test_filled_bytes_are_zeros_but_for_what_was_written(size: int) -> None:
    def fill(out: memoryview) -> None:
        assert len(out) == size
        out[size // 2 : size // 2 + 1] = b"x"[: size > 0]

    want = bytearray(size)
    want[size // 2 : size // 2 + 1] = b"x"[: size > 0]
    assert fill_bytes(size, fill) == want


def test_both_ways_give_the_same() -> None:
    assert fill_bytes(SIZE, count_up) == join_bytes(pieces()) == b"".join(pieces())


@pytest.mark.parametrize("make", [lambda: join_bytes(pieces()), lambda: fill_bytes(SIZE, count_up)])
def test_the_whole_is_in_memory_once(make: Callable[[], bytes]) -> None:
    tracemalloc.start()
    made = make()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(made) == SIZE
    assert peak < 1.3 * SIZE  # join_bytes asks for an eighth more while it grows


def test_a_view_that_is_kept_costs_a_copy_and_changes_nothing() -> None:
    kept: list[memoryview] = []
    made = fill_bytes(10, kept.append)
    kept[0][0] = 1
    assert made == bytes(10)
