"""Small inputs that ask for much: refused before the work is done. Each was found by reading."""

from __future__ import annotations

import struct
import time

import numpy as np
import pytest
from toy_go import toy_go

from layerkit.errors import FormatError
from layerkit.formats import addressfree
from layerkit.formats.addressfree import model, wire
from layerkit.formats.addressfree.rewriting import DEPTH_LIMIT, Exceptions
from layerkit.formats.cursor import Writer
from layerkit.formats.elf import EHDR, SHDR, parse_elf


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


@pytest.mark.parametrize(("depth", "fits"), [(DEPTH_LIMIT, True), (DEPTH_LIMIT + 1, False)])
def test_objects_that_point_to_each_other_have_a_limit(depth: int, fits: bool) -> None:
    """A labels blob: each object is what it points to, the next one. Each takes a pass."""
    count, addr = depth + 1, 4096
    body = b"".join(struct.pack("<II", 8 * n, 7) for n in range(1, count)) + b"the last"
    start = np.append(addr + 8 * np.arange(count), addr + len(body))
    rule = np.full(count + 1, model.RULE_FULL, np.uint8)
    rule[-2:] = model.RULE_CONTENT, model.RULE_END
    pattern = np.zeros(count + 1, np.int32)
    pattern[:depth] = 1
    labels = model.Labels(
        (model.Region(addr, 0, len(body), False, False),),
        (model.Kind(0, 0, 0, -1, -1, -1, False),),
        (model.Pattern(), model.Pattern(((0, 0),))),
        np.zeros(count + 1, np.int32),
        start,
        np.append(np.full(count, 8), 0),
        pattern,
        rule,
        np.zeros(0, np.uint32),
    )
    none = np.zeros(0, np.int64)
    blob = wire.serialize_blob(
        wire.serialize_labels(labels, none), len(body), Exceptions(none, none)
    )
    if not fits:
        with pytest.raises(FormatError, match="nested"):
            addressfree.rebuild(body, blob)
    else:
        assert addressfree.decode(addressfree.rebuild(body, blob)) == body


def test_a_binary_of_many_sections_stays_raw_at_once() -> None:
    """Distances between regions are looked at in pairs."""
    toy = toy_go()
    elf, head = parse_elf(toy), list(EHDR.unpack_from(toy))
    start, many = elf.section_table_offset, 20_000
    first = max(section.end_addr for section in elf.sections)
    rows = [SHDR.pack(1, 8, 2, first + 64 * n, 0, 64, 0, 0, 16, 0) for n in range(many)]
    out = bytearray(toy.ljust(-(-len(toy) // 8) * 8, b"\0"))
    head[6], head[12] = len(out), head[12] + many  # where the table is, how many rows it has
    out += toy[start : start + SHDR.size * len(elf.sections)] + b"".join(rows)
    EHDR.pack_into(out, 0, *head)
    begun = time.process_time()
    made = addressfree.encode(bytes(out))
    assert "sections are loaded" in made.why_raw and addressfree.decode(made.form) == bytes(out)
    assert time.process_time() - begun < 5
