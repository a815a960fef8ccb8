"""Deltas: what comes back, what a liar cannot get, what memory and bytes it takes."""

from __future__ import annotations

import contextlib
import random
import tracemalloc
from pathlib import Path

import pytest
from builders import noise
from hypothesis import given, settings
from hypothesis import strategies as st

from layerkit.errors import FormatError, IntegrityError, VersionError
from layerkit.formats import delta
from layerkit.formats.cursor import Reader, Writer
from layerkit.formats.delta import primed
from layerkit.formats.delta.covers import (
    GAP_LIMIT,
    REACH,
    SIDE,
    UNIT,
    Cover,
    choose_covers,
    find_runs,
    gaps_of,
    read_covers,
    write_covers,
)
from layerkit.formats.delta.far import BLOCK, choose_far, read_far, write_far

OLD = noise(40_000) + bytes(range(256)) * 40
EDITED = OLD[:9000] + b"some new bytes" + OLD[9100:20_000] + OLD[21_000:] + OLD[500:3000]
DELTA = delta.diff([OLD], EDITED)


def edited(data: bytes, seed: int, count: int) -> bytes:
    """`count` small edits anywhere."""
    pick = random.Random(seed)
    out = bytearray(data)
    for _ in range(count):
        at = pick.randrange(len(out))
        out[at : at + pick.randrange(8)] = pick.randbytes(pick.randrange(12))
    return bytes(out)


def shuffled(data: bytes, size: int, seed: int) -> bytes:
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    random.Random(seed).shuffle(blocks)
    return b"".join(blocks)


PAIRS = {
    "nothing from nothing": (b"", b""),
    "nothing": (OLD, b""),
    "from nothing": (b"", OLD),
    "the same": (OLD, OLD),
    "one byte": (b"", b"a"),
    "an edit": (OLD, EDITED),
    "many edits": (OLD * 4, edited(OLD * 4, 1, 400)),
    "moved blocks": (OLD, shuffled(OLD, 5000, 2)),
    "other bytes": (OLD, noise(50_000, seed=2)),
    "cut": (OLD, OLD[100:-3000]),
    "zeros": (bytes(100_000), bytes(90_001)),
    "a run of old, twice": (OLD, OLD + OLD),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_goes_in_comes_back(name: str) -> None:
    old, new = PAIRS[name]
    assert delta.patch([old], delta.diff([old], new)) == new


def test_several_old_forms_count_as_one() -> None:
    olds = [noise(9000, seed=n) for n in range(3)]
    new = olds[2][500:] + olds[0] + b"and more" + olds[1]
    made = delta.diff(olds, new)
    assert (delta.patch(olds, made) == new, len(made) < 300) == (True, True)


def test_small_edits_take_few_bytes() -> None:
    """Besides the header: what is new, and a few bytes for each place."""
    new = edited(OLD * 8, 5, 10)
    assert len(delta.diff([OLD * 8], new)) < 400


def test_one_input_gives_one_delta() -> None:
    assert delta.diff([OLD], EDITED) == DELTA


def test_digests_are_read_back() -> None:
    olds, new, size = delta.read_digests(DELTA)
    assert (len(olds), len(olds[0]), len(new), size) == (1, 16, 16, len(EDITED))


# --- covers and gaps


def test_covers_and_gaps_make_the_new_form() -> None:
    covers = choose_covers(find_runs(OLD, EDITED), len(OLD), len(EDITED))
    sizes = sum(cover.size for cover in covers)
    sizes += sum(gap.size for gap in gaps_of(covers, len(OLD), len(EDITED)))
    assert (sizes, len(covers) > 2) == (len(EDITED), True)


def test_covers_come_back() -> None:
    covers = [Cover(UNIT, 0, UNIT * 3), Cover(UNIT * 4, 9, UNIT), Cover(UNIT * 9, UNIT * 6, 0)]
    reader = Reader(write_covers(covers), "covers")
    assert read_covers(reader, UNIT * 7, UNIT * 10) == covers


def test_a_long_gap_is_cut() -> None:
    size = GAP_LIMIT * 5 // 2
    covers = choose_covers([], size, size)
    assert covers == [Cover(GAP_LIMIT * k, (size // 3) * k, 0) for k in (1, 2)]


def test_near_runs_are_between_covers_or_beside_them() -> None:
    covers = [Cover(0, 0, UNIT), Cover(UNIT * 2, UNIT * 3, UNIT), Cover(UNIT * 4, UNIT, UNIT)]
    gaps = list(gaps_of(covers, 1 << 20, UNIT * 5 + 10))
    side = 2 * UNIT + SIDE
    assert [gap.near for gap in gaps] == [
        ((UNIT, UNIT * 2),),
        ((UNIT * 4, side), (0, UNIT)),
        ((UNIT * 2, 20 + SIDE), ((1 << 20) - 20 - SIDE, 20 + SIDE)),
    ]


def covers_of(*numbers: int) -> Reader:
    out = Writer()
    for number in numbers:
        out.varint(number)
    return Reader(out.getvalue(), "covers")


@pytest.mark.parametrize(
    ("why", "numbers"),
    [
        ("more covers than units", (11,)),
        ("past the new form", (1, 8 << 1, 3)),
        ("past the old forms", (1, 0, 8)),
        ("before the old forms", (1, 1, 1, 1)),
        ("a seek of nothing", (1, 1, 0, 1)),
        ("an empty cover that says nothing", (1, 0, 0)),
        ("an empty cover where one ends", (2, 0, 1, 1, 2, 0)),
    ],
)
def test_bad_covers_are_refused(why: str, numbers: tuple[int, ...]) -> None:
    with pytest.raises(FormatError):
        read_covers(covers_of(*numbers), UNIT * 7, UNIT * 10)


def test_a_gap_over_its_limit_is_refused() -> None:
    with pytest.raises(FormatError, match="over its limit"):
        read_covers(covers_of(0), 10, GAP_LIMIT + 1)


# --- far runs


def test_like_blocks_are_found_far_away() -> None:
    old = noise(BLOCK * 50)
    data = old[BLOCK * 20 + 100 : BLOCK * 20 + 400] + old[BLOCK * 7 : BLOCK * 9]
    assert choose_far(old, data, b"", BLOCK * 8) == [(BLOCK * 7, BLOCK * 2), (BLOCK * 20, BLOCK)]


def test_what_is_near_is_not_looked_for_far_away() -> None:
    old = noise(BLOCK * 50)
    assert choose_far(old, old[5000:9000], old[4000:10_000], BLOCK * 8) == []


def test_far_runs_keep_their_limit() -> None:
    old = noise(BLOCK * 50)
    assert sum(size for _, size in choose_far(old, old, b"", BLOCK * 8)) == BLOCK * 8


def test_far_runs_come_back() -> None:
    runs = [(0, BLOCK), (BLOCK * 3, BLOCK * 2), (BLOCK * 9, 5)]
    reader = Reader(write_far(runs), "far")
    assert read_far(reader, BLOCK * 9 + 5, BLOCK * 4) == runs


@pytest.mark.parametrize("numbers", [(4,), (1, 10, 0), (1, 0, 3), (2, 0, 2, 0, 0), (1, 9, 1)])
def test_bad_far_runs_are_refused(numbers: tuple[int, ...]) -> None:
    with pytest.raises(FormatError):
        read_far(covers_of(*numbers), BLOCK * 10, BLOCK * 3)


# --- LZMA2 behind a dictionary


@pytest.mark.parametrize("size", [0, 1, 100, 65_536, 300_000])
@pytest.mark.parametrize("front", [1, 5000, 70_000, 400_000])
def test_primed_windows_come_back(front: int, size: int) -> None:
    old = edited((noise(300) + b"and so on") * (front // 300 + 1), 3, front // 100)[:front]
    data = edited((old * (size // front + 1))[:size], 4, size // 1000) if size else b""
    filler, packed = primed.compress(old, data)
    assert primed.decompress([old], filler, packed + b"rest", len(data)) == (data, b"rest")


def test_a_dictionary_pays() -> None:
    old = noise(20_000)
    packed = primed.compress(old, old[:9000] + b"!" + old[9001:])[1]
    assert len(packed) < 200


@pytest.mark.parametrize("front", [b"", OLD])
def test_a_stream_of_one_chunk_shrinks_and_comes_back(front: bytes) -> None:
    data = (noise(50) + b"again and again") * 20
    filler, stream = primed.compress(front, data)
    lean = primed.shrink(stream)
    assert (primed.expand(lean, filler, len(data)), len(stream) - len(lean)) == (stream, 8)


@pytest.mark.parametrize("data", [b"", noise(40), noise(90_000) + bytes(90_000)])
def test_other_streams_do_not_shrink(data: bytes) -> None:
    """Nothing, a stored chunk, several chunks."""
    assert primed.shrink(primed.compress(b"", data)[1]) == b""


@pytest.mark.parametrize(("count", "size"), [(10, 0), (10, (1 << 21) + 1), (1 << 16, 100)])
def test_what_is_no_chunk_does_not_expand(count: int, size: int) -> None:
    with pytest.raises(FormatError):
        primed.expand(bytes(count), 4, size)


def test_without_a_place_for_the_data_the_dictionary_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(primed, "_chunks_from", lambda stream, start: b"")
    filler, packed = primed.compress(OLD, OLD)
    assert (filler, primed.decompress([OLD], 0, packed, len(OLD))) == (0, (OLD, b""))


@pytest.mark.parametrize("size", [99, 101])
def test_a_window_of_another_size_is_refused(size: int) -> None:
    filler, packed = primed.compress(b"old", noise(100))
    with pytest.raises(FormatError):
        primed.decompress([b"old"], filler, packed, size)


# --- liars


def test_another_old_form_is_refused() -> None:
    for other in (EDITED, OLD[:-1] + b"x"):
        with pytest.raises(IntegrityError):
            delta.patch([other], DELTA)


def test_another_count_of_old_forms_is_refused() -> None:
    for olds in ([], [OLD, OLD]):
        with pytest.raises(FormatError):
            delta.patch(olds, DELTA)


def test_a_later_major_is_a_version_error() -> None:
    with pytest.raises(VersionError):
        delta.patch([OLD], DELTA[:4] + b"\x09" + DELTA[5:])


def test_a_new_form_over_the_limit_is_refused() -> None:
    with pytest.raises(FormatError, match="over"):
        delta.patch([OLD], DELTA, limit=len(EDITED) - 1)


def test_bytes_behind_the_end_are_refused() -> None:
    for made in (DELTA, delta.diff([OLD], OLD)):
        with pytest.raises(FormatError):
            delta.patch([OLD], made + b"\0")


@pytest.mark.parametrize("size", [*range(0, 60, 3), *range(60, len(DELTA), 37)])
def test_a_cut_delta_is_refused(size: int) -> None:
    with pytest.raises((FormatError, IntegrityError)):
        delta.patch([OLD], DELTA[:size])


@given(st.integers(0, len(DELTA) - 1), st.integers(1, 255))
@settings(max_examples=200)
def test_a_changed_byte_is_refused_or_harmless(at: int, change: int) -> None:
    damaged = DELTA[:at] + bytes((DELTA[at] ^ change,)) + DELTA[at + 1 :]
    with contextlib.suppress(FormatError, IntegrityError):
        assert delta.patch([OLD], damaged) == EDITED


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_any_body_raises_only_our_errors(body: bytes) -> None:
    with contextlib.suppress(FormatError, IntegrityError):
        delta.patch([OLD], DELTA[:43] + body)


def test_a_window_that_makes_too_much_stops_early() -> None:
    """LZMA packs zeros 7000 to one: what comes out is bounded by what the covers leave."""
    bomb = primed.compress(b"", bytes(50 << 20))[1]
    tracemalloc.start()
    with pytest.raises(FormatError):
        primed.decompress([], 0, bomb, 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_promise_of_much_takes_no_memory() -> None:
    """A new form of 2 GiB by its header, and nothing behind it."""
    out = Writer()
    out.raw(b"LKDE\x01\x00")
    out.varint(delta.SIZE_LIMIT * 2)
    out.raw(bytes(16) + b"\0")
    tracemalloc.start()
    with pytest.raises(FormatError):
        delta.patch([], out.getvalue())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_the_document_names_the_codes_numbers() -> None:
    doc = (Path(__file__).parent.parent.parent / "docs/format.md").read_text()
    text = doc.split("\n## Delta\n")[1].split("\n## ")[0]
    for number in (
        f"| major | u8 | {delta.MAJOR} |",
        f"at most {delta.OLD_LIMIT}, {delta.SIZE_LIMIT >> 30} GiB",
        f"first {delta.DIGEST_SIZE} bytes of a SHA-256",
        f"A *unit* is {UNIT} bytes",
        f"a gap has at most {GAP_LIMIT >> 20} MiB",
        f"as many gaps as come to {delta.WINDOW_SIZE >> 20} MiB",
        f"old blocks of {BLOCK:,} bytes",
        f"at most {delta.FAR_SIZE >> 20} MiB",
        f"more than 8 * gap + {REACH:,} bytes",
        f"the 2 * gap + {SIDE:,} bytes behind the one",
        f"The first {delta.NEAR_SIZE >> 20} MiB of all",
        f"`filler / {primed.NOISE_COUNT}` bytes (at most {primed.FILLER_LIMIT:,} of them)",
    ):
        assert number in text
