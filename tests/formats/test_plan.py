"""formats/plan: what is fetched, and how; by bytes alone, and by what they cost here."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from layerkit.digest import chunk_id, sha256_digest
from layerkit.formats import oci
from layerkit.formats.chunkmanifest import ChunkManifest
from layerkit.formats.formpack import PACKED_TYPE
from layerkit.formats.plan import (
    LayerPlan,
    LayerWant,
    Rates,
    choose_method,
    crossing_bandwidth,
    plan_pull,
    prefers_documents,
    prefers_plain,
    prefers_unpacked,
    replan,
)

KB, MB = 1e3, 1e6


def _want(sizes: dict[str, int], form_size: int, blob_size: int = 1000) -> LayerWant:
    raw_ids = b"".join(chunk_id(name.encode()).raw for name in sizes)
    digest = sha256_digest(repr(sizes).encode())
    total = sum(sizes.values())
    manifest = ChunkManifest(
        "raw", "cdc-v1", digest, total, digest, total, tuple(sizes.values()), raw_ids
    )
    blob = oci.Descriptor(oci.LAYER_GZIP, digest, blob_size)
    return LayerWant(blob, digest, manifest, oci.Descriptor(oci.FORM_ZSTD, digest, form_size))


def _ids(*names: str) -> set[bytes]:
    return {chunk_id(name.encode()).raw for name in names}


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


def test_a_layer_without_form_comes_by_its_chunks() -> None:
    want = replace(_want(SIZES, 8000, 1), form=None)
    for rates in (None, Rates(bandwidth=1e10)):
        assert plan_pull([want], _ids("a"), rates).layers[0].method == "chunks"


def test_a_chunk_that_two_layers_share_is_planned_once() -> None:
    plan = plan_pull([_want({"a": 10}, 9), _want({"a": 10, "b": 10}, 9)], set())
    assert (plan.fetch_count, plan.held_count) == (2, 1)


# --- time --------------------------------------------------------------------------------------

# A 6 MB binary as it was measured here, in bytes; and what the work takes on this machine
FIRST = {"blob": 2_470_000, "form": 2_150_000, "packed": 1_400_000}
EDIT = {"blob": 2_470_000, "form": 2_150_000, "packed": 1_400_000, "chunks": 9_000}
HERE = Rates(blob=60e6, form=43e6, packed=20e6, chunks=45e6, update=60e6)
LINES = {  # name -> round trip in seconds, bytes a second
    "10 Mbit/s": (0.02, 1.25e6),
    "100 Mbit/s": (0.02, 12.5e6),
    "1 Gbit/s": (0.001, 125e6),
    "loopback": (0.0002, 2e9),
}


def on(line: str, rates: Rates = HERE) -> Rates:
    return replace(rates, round_trip=LINES[line][0], bandwidth=LINES[line][1])


@pytest.mark.parametrize(
    ("line", "ways", "method"),
    [
        ("10 Mbit/s", FIRST, "packed"),
        ("100 Mbit/s", FIRST, "form"),
        ("1 Gbit/s", FIRST, "form"),
        ("loopback", FIRST, "form"),
        ("10 Mbit/s", EDIT, "chunks"),
        ("100 Mbit/s", EDIT, "chunks"),
        ("loopback", EDIT, "chunks"),
    ],
)
def test_the_way_of_a_small_binary(line: str, ways: dict[str, int], method: str) -> None:
    assert choose_method(ways, 6e6, on(line)) == method


@pytest.mark.parametrize(
    ("line", "method"),
    [
        ("10 Mbit/s", "packed"),
        ("100 Mbit/s", "blob"),
        ("1 Gbit/s", "blob"),
        ("loopback", "blob"),
    ],
)
def test_the_way_of_a_large_binary(line: str, method: str) -> None:
    ways = {way: 13 * size for way, size in FIRST.items()}
    assert choose_method(ways, 76e6, on(line)) == method


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("scale", [0.01, 0.1, 1, 13, 100])
def test_no_way_is_slower_than_the_plain_blob(line: str, scale: float) -> None:
    rates, plain_size = on(line), 6e6 * scale
    for ways in (FIRST, EDIT):
        sizes = {way: int(scale * size) for way, size in ways.items()}
        took = {way: rates.seconds(way, size, plain_size) for way, size in sizes.items()}
        assert took[choose_method(sizes, plain_size, rates)] <= took["blob"] + 0.05


def test_without_rates_only_bytes_count() -> None:
    assert choose_method(FIRST, 1e12, None) == "packed"
    assert choose_method({"blob": 1, "form": 2}, 1.0, None) == "form"  # which can be built on


@pytest.mark.parametrize(
    ("line", "scale", "is_plain"),
    [
        ("10 Mbit/s", 1, False),
        ("100 Mbit/s", 1, False),
        ("loopback", 1, False),  # the work is the same, and the bytes are fewer
        ("loopback", 100, False),
    ],
)
def test_an_update_that_costs_no_more_work_is_always_asked_for(
    line: str, scale: int, is_plain: bool
) -> None:
    assert prefers_plain(on(line), 2_400_000 * scale, 6_000_000 * scale) is is_plain


@pytest.mark.parametrize(
    ("line", "is_plain"),
    [("10 Mbit/s", False), ("100 Mbit/s", False), ("1 Gbit/s", True), ("loopback", True)],
)
def test_where_patching_is_slow_a_fast_line_brings_large_layers_plainly(
    line: str, is_plain: bool
) -> None:
    slow = replace(HERE, update=30e6)
    assert prefers_plain(on(line, slow), 30_000_000, 76_000_000) is is_plain
    assert not prefers_plain(None, 30_000_000, 76_000_000)


@pytest.mark.parametrize(("line", "first"), [("10 Mbit/s", False), ("loopback", True)])
def test_who_holds_nothing_looks_before_a_first_update_on_a_fast_line(
    line: str, first: bool
) -> None:
    assert prefers_documents(on(line)) is first


def test_until_something_is_measured_few_bytes_are_best() -> None:
    start = Rates()
    assert choose_method(FIRST, 6e6, start) == "packed"
    assert not prefers_documents(start) and not prefers_plain(start, 30_000_000, 76_000_000)


def test_the_crossing_bandwidth_is_where_both_take_the_same() -> None:
    rates = replace(HERE, update=30e6, round_trip=0.001)
    crossing = crossing_bandwidth(rates, 2_470_000, 1_000, 6_000_000)
    at = replace(rates, bandwidth=crossing)
    plain, update = at.seconds("blob", 2_470_000, 6e6, 3), at.seconds("update", 1_000, 6e6)
    assert plain == pytest.approx(update)
    assert crossing_bandwidth(HERE, 2_470_000, 1_000, 6_000_000) == math.inf


def test_a_layer_is_planned_anew_when_the_line_turns_out_to_be_fast() -> None:
    packed = oci.Descriptor(PACKED_TYPE, sha256_digest(b"packed"), 1_400_000)
    want = replace(_want(SIZES, 2_150_000, 2_470_000), chunk_manifest=None, packed=packed)
    (layer,) = plan_pull([want], set(), on("10 Mbit/s")).layers
    assert layer.method == "packed"
    again = replan(layer, on("loopback"))
    assert again == LayerPlan(want.unpacked(), "form", (), 2_150_000)


@pytest.mark.parametrize(
    ("bandwidth", "seconds"), [(1.25e9, 0.5), (125 * KB, 2.097152), (1 * KB, 10.0)]
)
def test_a_delta_is_waited_for_as_long_as_chunks_would_cost(
    bandwidth: float, seconds: float
) -> None:
    assert Rates(bandwidth=bandwidth).patience == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("rates", "unpacked"),
    [
        (Rates(), False),  # nothing is known: few bytes
        (replace(HERE, bandwidth=12.5e6), False),  # the line takes as long as the unpacking
        (replace(HERE, bandwidth=125e6, round_trip=0.001), True),
    ],
)
def test_packed_forms_are_left_where_the_line_is_quicker_than_unpacking(
    rates: Rates, unpacked: bool
) -> None:
    assert prefers_unpacked(rates) is unpacked
