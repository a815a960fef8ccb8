"""formats/storedupdate: what is offered is found; what is no offer is left out."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_format_doc import rows, section

from layerkit.digest import sha256_digest
from layerkit.formats import oci
from layerkit.formats.storedupdate import (
    StoredUpdate,
    choose_update,
    find_updates,
    make_update_artifact,
)
from layerkit.formats.update import UPDATE_TYPE

OLD = sha256_digest(b"old")
TOP = oci.describe(b"new", oci.INDEX, {"dev.example": "stays out of the subject"})
BLOB = oci.describe(b"update", UPDATE_TYPE)
AMD64, ARM = oci.parse_platform("linux/amd64"), oci.parse_platform("linux/arm/v7")
ENTRY, RAW = make_update_artifact(TOP, OLD, AMD64, BLOB)


def test_what_is_offered_is_found() -> None:
    want = StoredUpdate(OLD, AMD64, BLOB.digest, BLOB.size, sha256_digest(RAW))
    assert find_updates([TOP, ENTRY]) == [want]


def test_the_artifact_is_frozen() -> None:
    """Its digest is in registries: another one is another format."""
    manifest = oci.parse_manifest(RAW)
    assert manifest.subject == oci.Descriptor(TOP.media_type, TOP.digest, TOP.size)
    assert manifest.layers == (BLOB,) and manifest.config == oci.EMPTY_DESCRIPTOR
    assert (
        str(ENTRY.digest)
        == "sha256:ba3227240e64e4382d72c13fad4e6c1dd56f0d72c0af973ed6a6d5ffea0d94d0"
    )


def test_the_table_of_the_document_is_the_manifest() -> None:
    document = oci.parse_manifest(RAW)
    names = [row[0] for row in rows(section("Stored update"))]
    listed = {name for row in names for name in re.findall(r"annotation `(.+)`", row)}
    assert listed == set(document.annotations)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (oci.ANNOTATION_OLD, "sha256:0"),
        (oci.ANNOTATION_OLD, f"b3:{OLD.hex}"),
        (oci.ANNOTATION_UPDATE, ""),
        (oci.ANNOTATION_UPDATE, f"b3:{OLD.hex}"),
        (oci.ANNOTATION_UPDATE_SIZE, "0"),
        (oci.ANNOTATION_UPDATE_SIZE, "-1"),
        (oci.ANNOTATION_UPDATE_SIZE, "1" * 5000),
        (oci.ANNOTATION_UPDATE_SIZE, "99999999999"),
        (oci.ANNOTATION_UPDATE_SIZE, "\u0661"),
        (oci.ANNOTATION_PLATFORM, "linux"),
        (oci.ANNOTATION_PLATFORM, "linux/" + "a" * 200),
    ],
)
def test_what_says_something_else_is_left_out(key: str, value: str) -> None:
    wrong = replace(ENTRY, annotations={**ENTRY.annotations, key: value})
    assert find_updates([wrong, ENTRY]) == find_updates([ENTRY])


@given(st.dictionaries(st.sampled_from(sorted(ENTRY.annotations)), st.text(max_size=100)))
def test_any_annotations_raise_nothing(facts: dict[str, str]) -> None:
    find_updates([replace(ENTRY, annotations={**ENTRY.annotations, **facts})])


def test_a_referrer_of_another_kind_is_none() -> None:
    assert not find_updates([replace(ENTRY, artifact_type=oci.WAS_ARTIFACT)])


def test_the_least_that_fits_is_chosen() -> None:
    def offer(size: int, old: bytes, platform: oci.Platform | None) -> oci.Descriptor:
        blob = oci.describe(bytes(size), UPDATE_TYPE)
        return make_update_artifact(TOP, sha256_digest(old), platform, blob)[0]

    found = find_updates(
        [offer(9, b"a", AMD64), offer(8, b"b", AMD64), offer(2, b"b", ARM), offer(1, b"c", None)]
    )

    def sizes(*held: bytes, platform: oci.Platform = AMD64) -> int | None:
        chosen = choose_update(found, [sha256_digest(one) for one in held], platform)
        return chosen.size if chosen else None

    assert sizes(b"a", b"b") == 8
    assert sizes(b"b", platform=ARM) == 2
    assert sizes(b"a", platform=ARM) is None
    assert sizes(b"c", platform=ARM) == 1
    assert sizes() is None
