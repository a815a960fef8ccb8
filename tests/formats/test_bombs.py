"""Small inputs that ask for much: refused before the work is done. Each was found by reading."""

from __future__ import annotations

import tracemalloc

import pytest

from layerkit.errors import FormatError
from layerkit.formats import addressfree, update
from layerkit.formats.addressfree import wire
from layerkit.formats.cursor import Writer

RLE_BLOCK = ((128 << 10) << 3 | 2).to_bytes(3, "little") + b"a"  # RFC 8878 3.1.1.2: 128 KiB


def rle_update(window_log: int, blocks: int, size: int) -> bytes:
    """An update of `size` bytes by its header, whose frame makes 128 KiB of every four bytes."""
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes(((window_log - 10) << 3,)) + blocks * RLE_BLOCK
    return update.HEADER.pack(b"LKUP", 0, 0, update.HEADER.size, bytes(32), size) + frame


def test_an_update_that_makes_too_much_stops_early() -> None:
    raw = rle_update(17, 1000, 1000)
    tracemalloc.start()
    with pytest.raises(FormatError):
        update.parse_update(raw, [b"old"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def test_an_update_with_a_large_window_is_refused() -> None:
    with pytest.raises(FormatError, match="not a zstd frame"):
        update.parse_update(rle_update(30, 1, 1000), [b"old"])


def test_labels_with_many_counters_are_refused() -> None:
    """Each counter takes a pass over all labels."""
    labels = Writer()
    labels.raw(bytes(5))  # salt, machine
    for value in (1, 4, 0, 0, 0, 1):  # one region (flags, space, address, position), one kind
        labels.varint(value)
    for value in (0, 0, 0, wire.COUNTER_LIMIT + 1, 1, 0):
        labels.varint(value)
    form = Writer()
    form.raw(wire.MAGIC + bytes((wire.MAJOR, wire.MINOR, wire.KIND_GO)))
    form.sized(labels.getvalue())
    form.sized(b"")
    with pytest.raises(FormatError, match="counter of a kind is over its limit"):
        addressfree.decode(form.getvalue())
