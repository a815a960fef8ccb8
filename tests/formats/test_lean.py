"""Lean chunks artifacts: what is left out keeps its name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerkit.formats import oci
from layerkit.formats.lean import find_left_out, leave_out

LAYERS = [f"sha256:{digit * 64}" for digit in "12"]


def artifact() -> oci.Manifest:
    parts = [
        oci.describe(f"{kind} of {layer}".encode(), kind, {oci.ANNOTATION_LAYER: layer})
        for layer in LAYERS
        for kind in (oci.CHUNK_MANIFEST, oci.FORM_ZSTD)
    ]
    return oci.Manifest(oci.EMPTY_DESCRIPTOR, tuple(parts), artifact_type=oci.CHUNKS_ARTIFACT)


def test_a_form_that_is_left_out_keeps_its_name() -> None:
    full = artifact()
    lean = leave_out(full, {LAYERS[1]})
    assert [blob.media_type for blob in lean.layers] == [
        oci.CHUNK_MANIFEST,
        oci.FORM_ZSTD,
        oci.CHUNK_MANIFEST,
    ]
    assert lean.layers[:2] == full.layers[:2]
    again = oci.parse_manifest(oci.serialize_manifest(lean))
    assert find_left_out(again.layers[2]) == full.layers[3]
    assert find_left_out(again.layers[0]) is None


def test_leaving_out_nothing_changes_nothing() -> None:
    assert leave_out(artifact(), set()) == artifact()
    lean = leave_out(artifact(), LAYERS)
    assert leave_out(lean, LAYERS) == lean


@pytest.mark.parametrize(
    "text",
    ["", "sha256:00 1", f"{LAYERS[0]} 0", f"{LAYERS[0]} -1", f"{LAYERS[0]}", f"{LAYERS[0]} 1 1"],
)
def test_an_annotation_that_says_nothing_names_no_form(text: str) -> None:
    listed = artifact().layers[0]
    annotations = {**listed.annotations, oci.ANNOTATION_FORM: text}
    assert find_left_out(replace(listed, annotations=annotations)) is None


def test_only_a_chunk_manifest_says_so() -> None:
    annotations = {oci.ANNOTATION_FORM: f"{LAYERS[0]} 5"}
    assert find_left_out(oci.describe(b"blob", oci.LAYER_GZIP, annotations)) is None
