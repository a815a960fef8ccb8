"""Small inputs that ask for much: refused before the work is done. Each was found by reading."""

from __future__ import annotations

import pytest

from layerkit.errors import FormatError
from layerkit.formats import addressfree
from layerkit.formats.addressfree import wire
from layerkit.formats.cursor import Writer


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
