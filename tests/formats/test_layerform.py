"""formats/layerform: binaries of a layer in their form, and the form again from tar and labels."""

from __future__ import annotations

import pytest
from builders import noise
from toy_go import toy_go

from layerkit.errors import FormatError
from layerkit.formats import layerform
from layerkit.formats.layer import Entry, build_tar
from layerkit.formats.layerform import LayerForm, encode_layer, rebuild_layer, serialize_labels

NO_GO = b"\x7fELF\x02\x01" + noise(5000)
TAR = build_tar(
    [
        Entry("app/a", toy_go(b"hello"), 0o755),
        Entry("app/b", NO_GO),
        Entry("app/c", toy_go(b"good evening, everybody"), 0o755),
        Entry("app/d", b"text"),
    ]
)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> LayerForm:
    monkeypatch.setattr(layerform, "MIN_BINARY_SIZE", 1024)  # a toy is smaller than any Go binary
    found = encode_layer(TAR)
    assert found is not None and len(found.labels) == 2
    return found


@pytest.fixture
def labels(made: LayerForm) -> bytes:
    return serialize_labels(made.places, made.labels)


def test_a_binary_without_form_stays_in_a_raw_run(made: LayerForm) -> None:
    raw = b"".join(data for kind, data in layerform.split_parts(made.form) if not kind)
    assert NO_GO in raw and len(made.why_raw) == 1


def test_a_layer_without_go_has_no_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layerform, "MIN_BINARY_SIZE", 1024)
    assert encode_layer(build_tar([Entry("app/b", NO_GO)])) is None


def test_tar_and_labels_give_the_form_again(made: LayerForm, labels: bytes) -> None:
    assert rebuild_layer(TAR, labels) == made.form


def test_labels_of_another_layer_are_refused(labels: bytes) -> None:
    with pytest.raises(FormatError):
        rebuild_layer(TAR[: len(TAR) // 3], labels)


def test_labels_over_the_tar_are_refused_before_they_unpack(labels: bytes) -> None:
    with pytest.raises(FormatError, match="over the limit"):
        rebuild_layer(TAR[:100], labels)


def test_a_frame_of_another_length_than_declared_is_refused(labels: bytes) -> None:
    with pytest.raises(FormatError, match="as long as declared"):
        rebuild_layer(TAR, labels[:8] + (1).to_bytes(8, "little") + labels[16:])


@pytest.mark.parametrize("step", range(7))
def test_damaged_labels_raise_format_errors_only(labels: bytes, step: int) -> None:
    for at in range(step, len(labels), 7):
        for bad in (labels[:at], labels[:at] + bytes((labels[at] ^ 0x55,)) + labels[at + 1 :]):
            try:
                rebuild_layer(TAR, bad)
            except FormatError:
                continue


def test_labels_with_bytes_behind_them_are_refused(labels: bytes) -> None:
    with pytest.raises(FormatError):
        rebuild_layer(TAR, labels + b"x")
