"""Golden vectors of forms, deltas, layer forms, updates: encoders write them, decoders read them.

The formats are major 0 and may change, but never in silence: FROZEN moves only together with a
format's major or minor and a line in docs/format.md "Format changelog".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from vector_cases import (
    FOLDER,
    HELD,
    LONG_NEW,
    LONG_OLD,
    NEW,
    NEW_DOCUMENTS,
    OLD,
    OLD_DOCUMENTS,
    OLD_IMAGE,
    PACKED_LIST,
    RAW_RUN,
    UPDATE_PARTS,
    Case,
    cases,
    minimal_binary,
    minimal_labels,
    read_vector,
)

from layerkit.errors import VersionError
from layerkit.formats import addressfree, bundle, chunkpack, delta, layerform, shelf, update
from layerkit.formats.addressfree import wire
from layerkit.formats.chunkpack import Frame
from layerkit.formats.delta.covers import Cover, write_covers
from layerkit.formats.delta.far import write_far

CASES = {case.path: case for case in cases()}
READ: dict[str, Callable[[bytes], object]] = {
    "addressfree": addressfree.decode,
    "bundle": lambda data: bundle.parse_head(data, len(data)),
    "chunkpack": lambda data: chunkpack.parse_pack_index(data, PACKED_LIST),
    "delta": lambda data: delta.patch([OLD], data),
    "labels": lambda data: layerform.rebuild_layer(RAW_RUN + HELD, data),
    "layerform": layerform.decode_layer,
    "shelf": lambda data: shelf.parse_entry(data, "a key"),
    "update": lambda data: read_update(data),
}
# SHA-256 of each vector's bytes, versions 0.0
FROZEN = {
    "addressfree/minimal.txt": "e6d86a0293785f09b27fb393fdb79036446e147f65fb5aa3f12d25c3196be4a7",
    "bundle/two-parts.txt": "8a1acd2988159ebd443eb06b2feddd393848197b0cfaa65316b68ac1233b7e93",
    "chunkpack/index.txt": "8544216e99daf050702aa37991bd55765e24aa67202595e688241316c13254d4",
    "delta/primed.txt": "e71f7ff29aa354c9b5368054eebe42ea2186d38ef9ba5f42200250218ecfde2a",
    "delta/one-cover.txt": "db7b59f1f4050a358fdc089d5ad868efbabb56390f544d3ba2914d44c1034c9b",
    "labels/raw.txt": "1aeaafeb51cb90599547f997255f9089cedf1c7a3d2756e9f472b046eab61bac",
    "layerform/two-parts.txt": "5c4a0e9ff36612cf9395ab7cda0b3fc45fb478c4bdebff44d36158c8122b4328",
    "shelf/entry.txt": "d6b39420aafbf4d3f4327a4eeb7c265ee2f385b396369f73c5c3aab72b11330f",
    "update/parts.txt": "f5f146747e36097dca72216354a790a3746842a41bf33cf434332983d0778b80",
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_regenerate_changes_nothing(case: Case) -> None:
    assert (FOLDER / case.path).read_text() == case.text


@pytest.mark.parametrize("path", FROZEN)
def test_a_version_of_a_format_never_moves(path: str) -> None:
    assert hashlib.sha256(read_vector(path)).hexdigest() == FROZEN[path]


@pytest.mark.parametrize("path", [path for path in CASES if path.endswith("unknown-major.txt")])
def test_a_later_major_is_a_version_error(path: str) -> None:
    with pytest.raises(VersionError):
        READ[path.partition("/")[0]](read_vector(path))


def test_the_minimal_form_decodes() -> None:
    assert addressfree.decode(read_vector("addressfree/minimal.txt")) == minimal_binary()


def test_the_minimal_labels_serialize() -> None:
    labels = wire.serialize_labels(minimal_labels(), np.zeros(0, np.int64))
    assert labels in read_vector("addressfree/minimal.txt")


def test_a_file_that_is_not_elf_encodes_and_decodes() -> None:
    vector = read_vector("addressfree/raw.txt")
    assert (addressfree.encode(HELD).form, addressfree.decode(vector)) == (vector, HELD)


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [("delta/primed.txt", OLD, NEW), ("delta/one-cover.txt", LONG_OLD, LONG_NEW)],
)
def test_the_deltas_apply(path: str, old: bytes, new: bytes) -> None:
    assert delta.patch([old], read_vector(path)) == new


def test_the_covers_serialize() -> None:
    covers = write_covers([Cover(256, 300, 512)])
    far = write_far([(0, len(LONG_OLD))])
    assert covers + far in read_vector("delta/one-cover.txt")


def test_the_layer_form_decodes() -> None:
    form = read_vector("layerform/two-parts.txt")
    assert layerform.decode_layer(form) == RAW_RUN + HELD


def test_the_labels_give_the_layer_form_from_the_tar() -> None:
    made = layerform.rebuild_layer(RAW_RUN + HELD, read_vector("labels/raw.txt"))
    assert made == read_vector("layerform/two-parts.txt")


def read_update(data: bytes) -> tuple[update.Documents, tuple[update.Part, ...]]:
    reader = update.UpdateReader([data])
    documents = reader.read_documents(OLD_DOCUMENTS)
    parts = reader.read_parts()
    return documents, tuple(update.Part(row.layer, row.kind, raw) for row, raw in parts)


def test_the_pack_index_parses() -> None:
    index = chunkpack.parse_pack_index(read_vector("chunkpack/index.txt"), PACKED_LIST)
    assert index.frames == (Frame(0, 9, (3,)), Frame(9, 11, (4, 0, 1)))
    assert chunkpack._serialize_index(index.frames) == read_vector("chunkpack/index.txt")


def test_the_update_parses() -> None:
    assert read_update(read_vector("update/parts.txt")) == (NEW_DOCUMENTS, UPDATE_PARTS)


def test_the_update_is_what_serialize_makes() -> None:
    made = update.serialize_update(NEW_DOCUMENTS, UPDATE_PARTS, OLD_IMAGE, OLD_DOCUMENTS)
    assert made == read_vector("update/parts.txt")
