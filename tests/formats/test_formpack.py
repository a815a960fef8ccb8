"""formats/formpack and addressfree/packing: forms come back bit for bit; only FormatError."""

from __future__ import annotations

from contextlib import suppress

import pytest
from builders import noise
from hypothesis import given
from hypothesis import strategies as st
from toy_go import AMD64, ARM64, toy_go

from layerkit.errors import FormatError, VersionError
from layerkit.formats import addressfree
from layerkit.formats.addressfree import packing
from layerkit.formats.cursor import Reader
from layerkit.formats.formpack import Unpacker, _restore, pack, unpack
from layerkit.formats.layerform import PART_BINARY, PART_RAW, join_parts


def _layer_form(machine: int = AMD64) -> bytes:
    form = addressfree.encode(toy_go(machine=machine)).form
    return join_parts([(PART_RAW, b"a tar header"), (PART_BINARY, form), (PART_RAW, b"its end")])


FORM = _layer_form()
PACKED = pack(FORM)
FORMS = {
    "amd64": FORM,
    "arm64": _layer_form(ARM64),
    "empty": b"",
    "a plain tar": b"a plain tar",
    "noise": noise(100_000),
    "cut": FORM[:-9],
    "trailing": FORM + b"x",
    "raw binary": join_parts([(PART_BINARY, addressfree.encode(noise(1000)).form)]),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_any_form_comes_back(form: bytes) -> None:
    assert unpack(pack(form)) == form


@pytest.mark.parametrize("machine", [AMD64, ARM64])
def test_ids_become_numbers_and_ids_again(machine: int) -> None:
    made = packing.split(addressfree.encode(toy_go(machine=machine)).form)
    assert made is not None
    numbered = packing.number_ids(*made)
    assert numbered is not None and numbered.body != made[1]
    assert packing.restore_ids(made[0], numbered) == made[1]


def test_the_parts_with_numbers_are_what_travels() -> None:
    assert PACKED[6] == 1


def test_another_major_is_a_version_error() -> None:
    with pytest.raises(VersionError):
        unpack(PACKED[:4] + b"\x09" + PACKED[5:])


@pytest.mark.parametrize("step", [1, 7, 26, 27, 28, 1 << 20])
def test_it_is_unpacked_piece_by_piece(step: int) -> None:
    form = b"form" + noise(300) + bytes(5000)
    raw = pack(form)
    unpacker = Unpacker()
    for start in range(0, len(raw), step):
        unpacker.feed(raw[start : start + step])
    assert unpacker.finish() == form


@pytest.mark.parametrize("step", [1, 1 << 20])
@pytest.mark.parametrize("junk", [b"", b"junk"])
def test_a_stream_that_ends_elsewhere_is_refused_in_pieces_too(step: int, junk: bytes) -> None:
    raw = pack(noise(3000))
    raw = raw + junk if junk else raw[:-1]
    unpacker = Unpacker()
    with pytest.raises(FormatError):
        for start in range(0, len(raw), step):
            unpacker.feed(raw[start : start + step])
        unpacker.finish()


def test_what_makes_more_than_it_may_by_now_is_refused() -> None:
    unpacker = Unpacker()
    with pytest.raises(FormatError, match="more than"):
        unpacker.feed(pack(bytes(3 << 20)), 1 << 20)


def test_a_size_that_lies_is_refused() -> None:
    with pytest.raises(FormatError):
        unpack(PACKED[:7] + b"\x01" + PACKED[9:])


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=6))
def test_damage_raises_only_format_errors(changes: list[tuple[int, int]]) -> None:
    raw = bytearray(PACKED)
    for at, value in changes:
        raw[at % len(raw)] = value
    with suppress(FormatError):
        unpack(bytes(raw))


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=6))
def test_damaged_parts_raise_only_format_errors(changes: list[tuple[int, int]]) -> None:
    """Behind LZMA, where hardly any damage gets through."""
    made = packing.split(addressfree.encode(toy_go()).form)
    assert made is not None
    numbered = packing.number_ids(*made)
    assert numbered is not None
    labels, body = bytearray(made[0]), bytearray(numbered.body)
    for at, value in changes:
        (labels if at & 1 else body)[at // 2 % len(labels if at & 1 else body)] = value
    with suppress(FormatError):
        packing.restore_ids(
            bytes(labels), packing.NumberedBody(numbered.tag, numbered.skip, bytes(body))
        )


@given(st.binary(max_size=200))
def test_any_bytes_are_a_form_or_a_format_error(raw: bytes) -> None:
    with suppress(FormatError):
        unpack(raw)
    with suppress(FormatError):
        _restore(Reader(raw, "packed form"), 1000)
