"""Small inputs that ask for much: refused before the work is done. Each was found by reading."""

from __future__ import annotations

import numpy as np
import pytest

from layerkit.errors import FormatError
from layerkit.formats import addressfree
from layerkit.formats.addressfree import wire
from layerkit.formats.cursor import Writer


def form_of(labels: Writer) -> bytes:
    form = Writer()
    form.raw(wire.MAGIC + bytes((wire.MAJOR, wire.MINOR, wire.KIND_GO)))
    form.sized(labels.getvalue())
    form.sized(b"")
    return form.getvalue()


def test_labels_with_many_counters_are_refused() -> None:
    """Each counter takes a pass over all labels."""
    labels = Writer()
    labels.raw(bytes(5))  # salt, machine
    for value in (1, 4, 0, 0, 0, 1):  # one region (flags, space, address, position), one kind
        labels.varint(value)
    for value in (0, 0, 0, wire.COUNTER_LIMIT + 1, 1, 0):
        labels.varint(value)
    with pytest.raises(FormatError, match="counter of a kind is over its limit"):
        addressfree.decode(form_of(labels))


def start_labels() -> Writer:
    """Salt, machine, no regions, no kinds."""
    labels = Writer()
    labels.raw(bytes(5))
    labels.varint(0)
    labels.varint(0)
    return labels


def test_patterns_with_many_fields_are_refused() -> None:
    """Each field is a tuple: a hundred bytes of memory for two that compress to nothing."""
    labels = start_labels()
    patterns = 2 * wire.FIELD_LIMIT // wire.SMALL_LIMIT + 1
    wire.write_column(labels, np.array([0, 0, 0, 0, 0, wire.SMALL_LIMIT, 0] * patterns))
    wire.write_column(labels, np.zeros(2 * patterns * wire.SMALL_LIMIT, np.int64))
    with pytest.raises(FormatError, match="count of fields of patterns is over its limit"):
        addressfree.decode(form_of(labels))


def test_labels_without_a_body_for_them_are_refused() -> None:
    """Each label is some sixty bytes of memory."""
    labels = start_labels()
    for _ in range(3):  # patterns, their fields, counts
        wire.write_column(labels, np.zeros(0, np.int64))
    wire.write_column(labels, np.zeros(2 * wire.SMALL_LIMIT + 2, np.int64))
    with pytest.raises(FormatError, match="count of label records is over its limit"):
        addressfree.decode(form_of(labels))
