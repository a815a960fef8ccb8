"""formats/addressfree without a Go toolchain: raw or right, never wrong, never an exception."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from builders import noise
from toy_go import AMD64, ARM64, PAIRS, place_of, toy_go
from trust import TrustCases

from layerkit.formats import addressfree
from layerkit.formats.addressfree import decoder, model, wire
from layerkit.formats.addressfree.model import Labels

ROOT = Path(__file__).parent.parent.parent.parent
TOYS = {"amd64": toy_go(), "arm64": toy_go(machine=ARM64)}
TOY = TOYS["amd64"]


def assert_comes_back(binary: bytes, about: str = "") -> addressfree.Encoded:
    made = addressfree.encode(binary)
    assert addressfree.decode(made.form) == binary, about
    assert addressfree.rebuild(binary, made.labels) == made.form, about
    return made


def labels_of(binary: bytes) -> Labels:
    made = addressfree.encode(binary)
    assert not made.why_raw
    return wire.parse_labels(wire.parse_form(made.form)[1], len(binary))[0]


def body_of(form: bytes) -> bytes:
    return bytes(wire.parse_form(form)[2])


def mutate(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    out[rng.randrange(len(out))] ^= rng.randrange(1, 256)
    return bytes(out)


@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
def test_a_toy_has_a_form_of_its_own(toy: bytes) -> None:
    assert assert_comes_back(toy).why_raw == ""


@pytest.mark.parametrize("machine", [AMD64, ARM64])
def test_a_binary_that_calls_c_has_a_form_of_its_own(machine: int) -> None:
    assert assert_comes_back(toy_go(machine=machine, plt=True)).why_raw == ""


@pytest.mark.parametrize("machine", [AMD64, ARM64])
@pytest.mark.parametrize("size", [0, 1, 40, 200])
def test_toys_with_other_strings_come_back(size: int, machine: int) -> None:
    assert assert_comes_back(toy_go(noise(size), machine)).why_raw == ""


ARM64_SITES = [(name, "main", 4 + 8 * index, 8) for index, (name, *_) in enumerate(PAIRS)]
ARM64_SITES += [("bl", "main", 4 + 8 * len(PAIRS), 4), ("b", "main", 8 + 8 * len(PAIRS), 4)]
SITES = [
    (AMD64, "call", "main", 12, 4), (AMD64, "compare with an immediate", "main", 18, 4),
    (AMD64, "conditional jump", "main", 25, 4), (AMD64, "store of an immediate", "main", 31, 4),
    (AMD64, "method's text", "type", 104, 4), (ARM64, "method's text", "type", 104, 4),
    *((ARM64, *site) for site in ARM64_SITES),
]  # fmt: skip


@pytest.mark.parametrize(("machine", "what", "piece", "field", "size"), SITES)
def test_a_field_of_each_kind_stays_when_its_target_moves(
    machine: int, what: str, piece: str, field: int, size: int
) -> None:
    """Equal in the forms of two toys whose strings have different lengths."""
    binaries, bodies = [], []
    for hello in (b"hello, world", b"hello, other and far wider world"):
        binary, place = toy_go(hello, machine), place_of(piece, hello, machine) + field
        binaries.append(binary[place : place + size])
        body = body_of(addressfree.encode(binary).form)
        bodies.append(body[place : place + size])
    assert binaries[0] != binaries[1], f"{what}: the toy does not test it"
    assert bodies[0] == bodies[1], what


def test_a_near_jump_stays_as_it_is() -> None:
    """arm64 code is full of them; none may cost an id."""
    place = place_of("method", machine=ARM64) + 4
    toy = TOYS["arm64"]
    assert body_of(addressfree.encode(toy).form)[place : place + 4] == toy[place : place + 4]


@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
def test_labels_partition_every_region(toy: bytes) -> None:
    labels = labels_of(toy)
    ends = [int(labels.size[labels.region_of == i].sum()) for i in range(len(labels.regions))]
    assert ends == [region.size for region in labels.regions]


def test_ids_are_unique() -> None:
    """Of the labels that have one; 0 is none."""
    binary = toy_go()
    labels = labels_of(binary)
    assert (labels.rule < model.RULE_COUNT).all()
    assert len(set(labels.explicit.tolist())) == len(labels.explicit)


@pytest.mark.parametrize("bits", [5, 7, 9, 12])
def test_clashing_ids_are_settled(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few bits everything clashes: right all the same, and raw at worst."""
    monkeypatch.setattr(model, "ID_MASK", (1 << bits) - 1)
    for binary in (toy_go(), TOY):
        made = addressfree.encode(binary)
        assert addressfree.decode(made.form) == binary
        assert bits < 12 or made.why_raw == ""


def test_findfunctab_is_derived() -> None:
    labels = labels_of(TOY)
    assert [p.derived for p in labels.patterns].count(model.DERIVED_FINDFUNCTAB) == 1
    assert decoder.findfunctab(labels, 5).tolist() == [0, 0, 0, 0, 0]
    assert decoder.findfunctab(labels, 4).tolist() == []


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4096, 100_000])
def test_random_bytes_come_back(size: int) -> None:
    assert assert_comes_back(noise(size)).why_raw


def test_random_bytes_behind_an_elf_header_come_back() -> None:
    for seed in range(50):
        assert_comes_back(TOY[:64] + noise(3000, seed), f"seed {seed}")


@pytest.mark.skipif(not Path("/bin/true").exists(), reason="no /bin/true")
def test_a_program_that_is_not_go_comes_back_raw() -> None:
    made = assert_comes_back(Path("/bin/true").read_bytes())
    assert made.why_raw


@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
def test_every_truncation_of_a_toy_comes_back(toy: bytes) -> None:
    for size in range(len(toy)):
        assert_comes_back(toy[:size], f"cut to {size}")


@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
def test_bytes_behind_a_toy_come_back(toy: bytes) -> None:
    assert assert_comes_back(toy + noise(100)).why_raw == ""


@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
def test_mutations_of_a_toy_come_back(toy: bytes) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for index in range(100):  # each byte is changed by a slow test
        assert_comes_back(mutate(toy, rng), f"seed {seed}, mutation {index}")


@pytest.mark.slow
@pytest.mark.trust("every byte of both toys, seven values each")
@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
def test_every_byte_of_a_toy_changed_comes_back(toy: bytes, trust_cases: TrustCases) -> None:
    for at in range(len(toy)):
        for value in (0, 1, 0x7F, 0x80, 0xFF, toy[at] ^ 1, toy[at] ^ 0x80):
            changed = toy[:at] + bytes((value,)) + toy[at + 1 :]
            assert_comes_back(changed, f"byte {at} = {value}")
            trust_cases.add()


SCRIPT = """
import hashlib, sys
sys.path[:0] = [{tests!r}]
from toy_go import toy_go
from layerkit.formats import addressfree, delta, layerform
from layerkit.formats.layer import Entry, build_tar
old, new = (addressfree.encode(toy_go(text)) for text in (b"hello", b"hello again"))
made = [old.form, new.labels, new.form, delta.diff([old.form], new.form)]
print(hashlib.sha256(b"".join(made)).hexdigest())
"""


def test_two_encoders_of_one_binary_give_the_same_bytes() -> None:
    said = set()
    for seed in ("0", "1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(tests=str(ROOT / "tests"))],
            env=dict(os.environ) | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        said.add(done.stdout)
    assert len(said) == 1
