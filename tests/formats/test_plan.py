"""formats/plan: what is fetched, and how."""

from __future__ import annotations

import pytest

from layerkit.digest import Digest, chunk_id, sha256_digest
from layerkit.formats import oci
from layerkit.formats.chunkmanifest import ChunkManifest
from layerkit.formats.plan import LayerWant, plan_pull


def _want(sizes: dict[str, int], form_size: int, blob_size: int = 1000) -> LayerWant:
    raw_ids = b"".join(chunk_id(name.encode()).raw for name in sizes)
    digest = sha256_digest(repr(sizes).encode())
    total = sum(sizes.values())
    manifest = ChunkManifest(
        "raw", "cdc-v1", digest, total, digest, total, tuple(sizes.values()), raw_ids
    )
    blob = oci.Descriptor(oci.LAYER_GZIP, digest, blob_size)
    return LayerWant(blob, digest, manifest, oci.Descriptor(oci.FORM_ZSTD, digest, form_size))


def _ids(*names: str) -> set[Digest]:
    return {chunk_id(name.encode()) for name in names}


SIZES = {"a": 5000, "b": 5000, "c": 5000, "d": 5000}


@pytest.mark.parametrize(
    ("have", "method", "fetched"),
    [((), "form", 4), (("a", "b", "c"), "chunks", 1), (("a", "b", "c", "d"), "held", 0)],
)
def test_the_plan_takes_what_is_smallest(have: tuple[str, ...], method: str, fetched: int) -> None:
    plan = plan_pull([_want(SIZES, 8000)], _ids(*have))
    assert (plan.layers[0].method, plan.fetch_count) == (method, fetched)


def test_a_layer_without_chunk_manifest_is_planned_whole() -> None:
    want = _want(SIZES, 8000, 7777)
    plan = plan_pull([LayerWant(want.blob, want.diff_id)], set())
    assert (plan.layers[0].method, plan.planned_size) == ("blob", 7777)


def test_a_chunk_that_two_layers_share_is_planned_once() -> None:
    plan = plan_pull([_want({"a": 10}, 9), _want({"a": 10, "b": 10}, 9)], set())
    assert (plan.fetch_count, plan.held_count) == (2, 1)
