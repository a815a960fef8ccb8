"""The fuzz targets without atheris: the kept corpus, and random damage to seeds and corpus.

What coverage-guided runs found stays here as `found-*`; `bounded.py` runs all of it once more in a
child whose memory is limited, so that an input which asks for much shows.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from targets import CORPUS, KNOWN_BUGS, TARGETS, corpus_of
from trust import TrustCases

HERE = Path(__file__).parent
MEMORY_LIMIT = 64 << 20  # bytes that an input of a few kilobytes may take
KEPT_SIZE = 300_000  # bytes of corpus in the repository, at most
EDITS = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=5)
DAMAGED = {name: 150 for name in TARGETS} | {"encode": 60, "form": 60, "label-table": 120}


def damage(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: a byte, a run of bytes gone, twice or new, a number at its limit."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(out) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 16))
        way = rng.randrange(5)
        if way == 0:
            out[at : at + 1] = rng.randbytes(1)
        elif way == 1:
            out[at : at + size] = b""
        elif way == 2:
            out[at:at] = out[at : at + size]
        elif way == 3:
            out[at : at + size] = rng.randbytes(size)
        else:
            value = rng.choice((b"\0", b"\x7f", b"\x80\x01", b"\xff", b"\xff\xff\xff\xff\x0f"))
            out[at : at + len(value)] = value
    return bytes(out)


def damage_all(name: str, count: int) -> None:
    target, seed = TARGETS[name], random.randrange(1 << 32)
    rng = random.Random(seed)
    known = [data for data in (*target.kept_seeds, *corpus_of(name)) if data]
    for index in range(count):
        data = damage(rng.choice(known), rng)
        try:
            target.run(data)
        except Exception as exc:
            raise AssertionError(f"{name}, seed {seed}, input {index}: {data.hex()}") from exc


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs_find_no_bug(name: str) -> None:
    for data in (*TARGETS[name].kept_seeds, *corpus_of(name)):
        TARGETS[name].run(data)


def _waits(path: str, why: str) -> object:
    return pytest.param(path, marks=pytest.mark.xfail(reason=why, strict=True))


@pytest.mark.parametrize("path", [_waits(*bug) for bug in KNOWN_BUGS.items()])
def test_known_bugs_are_mended(path: str) -> None:
    tracemalloc.start()
    try:
        TARGETS[path.partition("/")[0]].run((CORPUS / path).read_bytes())
        assert tracemalloc.get_traced_memory()[1] <= MEMORY_LIMIT
    finally:
        tracemalloc.stop()


def test_the_kept_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) <= KEPT_SIZE


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs_find_no_bug(name: str) -> None:
    damage_all(name, DAMAGED[name])


@given(st.binary(max_size=121))
def test_no_change_of_a_label_table_finds_a_bug(data: bytes) -> None:
    """Hypothesis shrinks what it finds to the one number that matters (`structure`)."""
    TARGETS["label-table"].run(data)


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "label-table"])
@given(data=st.data())
def test_no_edit_of_a_seed_finds_a_bug(name: str, data: st.DataObject) -> None:
    out = bytearray(data.draw(st.sampled_from(TARGETS[name].kept_seeds)))
    for at, value in data.draw(EDITS):
        out[at % len(out)] = value
    cut = data.draw(st.integers(0, 3))
    TARGETS[name].run(bytes(out[: len(out) - cut]))


@pytest.mark.slow
@pytest.mark.trust("damaged forms, labels, deltas, chunk manifests, layer forms, updates, toys")
@pytest.mark.parametrize("name", TARGETS)
def test_many_damaged_inputs_find_no_bug(name: str, trust_cases: TrustCases) -> None:
    damage_all(name, 40 * DAMAGED[name])
    trust_cases.add(number=40 * DAMAGED[name])


def test_kept_inputs_need_little_memory() -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "bounded.py"), *TARGETS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
