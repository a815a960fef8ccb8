"""Forms, deltas and layer forms from a liar: our format errors and nothing else."""

from __future__ import annotations

import contextlib

import pytest
from builders import noise
from hypothesis import given
from hypothesis import strategies as st
from toy_go import toy_go

from layerkit.errors import FormatError, IntegrityError
from layerkit.formats import addressfree, delta
from layerkit.formats.layer import Entry, build_tar
from layerkit.formats.layerform import decode_layer, encode_layer, find_binaries

FORM = addressfree.encode(toy_go()).form
OLD, NEW = noise(5000), noise(2500) + b"an edit" + noise(5000)[2500:]
DELTA = delta.diff([OLD], NEW)

edits = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=6)


def damage(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    out = bytearray(data)
    for at, value in changes:
        out[at % len(out)] = value
    return bytes(out)


@given(edits)
def test_a_damaged_form_raises_only_format_errors(changes: list[tuple[int, int]]) -> None:
    with contextlib.suppress(FormatError):
        addressfree.decode(damage(FORM, changes))


@given(st.binary(max_size=300))
def test_random_labels_raise_only_format_errors(data: bytes) -> None:
    body = len(FORM).to_bytes(2, "little")
    for raw in (data, FORM[:7] + data, FORM[:7] + bytes([len(data) & 0x7F]) + data + body):
        with contextlib.suppress(FormatError):
            addressfree.decode(raw)


@given(edits)
def test_a_damaged_delta_is_refused_or_harmless(changes: list[tuple[int, int]]) -> None:
    """Digests stand in the header: what comes out is the new form, or nothing."""
    with contextlib.suppress(FormatError, IntegrityError):
        assert delta.patch([OLD], damage(DELTA, changes)) == NEW


@given(st.integers(0, len(DELTA) - 1))
def test_a_cut_delta_is_refused(size: int) -> None:
    with pytest.raises((FormatError, IntegrityError)):
        delta.patch([OLD], DELTA[:size])


def test_a_delta_refuses_another_old_form() -> None:
    with pytest.raises(IntegrityError):
        delta.patch([NEW], DELTA)


@given(st.binary(max_size=3000), st.binary(max_size=3000), st.binary(max_size=3000))
def test_delta_round_trip(first: bytes, second: bytes, new: bytes) -> None:
    made = delta.diff([first, second], new + first[100:900])
    assert delta.patch([first, second], made) == new + first[100:900]


@given(st.binary(max_size=400))
def test_a_random_layer_form_raises_only_format_errors(data: bytes) -> None:
    for raw in (data, b"LKLF\0\0" + data):
        with contextlib.suppress(FormatError):
            decode_layer(raw, 100)


def test_a_layer_without_go_binaries_has_no_form() -> None:
    assert encode_layer(build_tar([Entry("app/x", noise(100_000), 0o755)])) is None


def test_an_elf_file_in_a_tar_is_found() -> None:
    binary = toy_go().ljust(70_000, b"\0")
    tar = build_tar([Entry("a", b"text", 0o644), Entry("app/x", binary, 0o755)])
    assert [tar[at : at + size] == binary for at, size in find_binaries(tar)] == [True]
