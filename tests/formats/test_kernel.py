"""layerkit/native against its reference: with and without it, every result is the same."""

from __future__ import annotations

import functools
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from go_builds import SMALL, UNSTRIPPED, build_go
from hypothesis import given
from hypothesis import strategies as st
from toy_go import toy_go
from xxhash import xxh3_64_intdigest

from layerkit.errors import FormatError
from layerkit.formats import addressfree, kernel, packed, sets, sites
from layerkit.formats.addressfree import decoder, discover, model, rewriting
from layerkit.formats.elf import parse_elf

ROOT = Path(__file__).parent.parent.parent
MACHINES = (sites.AMD64, sites.ARM64)
seeds = st.integers(0, (1 << 32) - 1)
pytestmark = pytest.mark.skipif(
    os.environ.get("LAYERKIT_KERNEL") == "off", reason="the kernel is switched off"
)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the class of what it raises."""
    try:
        return call()
    except (FormatError, IndexError, ValueError) as exc:
        return FormatError if isinstance(exc, FormatError) else IndexError


def both(call: Callable[[], Any]) -> tuple[Any, Any]:
    """The outcome with the kernel and without it."""
    fast = outcome(call)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "_LIBRARY", None)
        return fast, outcome(call)


def assert_same(call: Callable[[], Any]) -> Any:
    fast, plain = both(call)
    if isinstance(plain, tuple):
        assert len(fast) == len(plain)
        for one, other in zip(fast, plain, strict=True):
            np.testing.assert_array_equal(one, other)
    elif isinstance(plain, np.ndarray):
        np.testing.assert_array_equal(fast, plain)
    else:
        assert fast == plain
    return plain


def noisy(rng: np.random.Generator, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Bytes of which every other one is one that code is made of."""
    common = np.frombuffer(bytes.fromhex("000f05e8e9488d810d8066f6f7c7ff90b094144111"), np.uint8)
    data = rng.integers(0, 256, size, np.uint8)
    return np.where(rng.random(size) < 0.5, rng.choice(common, size), data).astype(np.uint8)


def test_kernel_is_loaded() -> None:
    """On the machines that it is for, an install without it is a broken one."""
    assert kernel.is_loaded()


def test_kernel_has_every_function_that_is_called() -> None:
    """VERSION of layerkit/native keeps an older one away."""
    names = set(re.findall(r'"(lk_\w+)"', Path(kernel.__file__).read_text()))
    assert len(names) > 20
    assert not [name for name in names if not hasattr(kernel._LIBRARY, name)]


# --- hashes and numbers


@pytest.mark.parametrize("zeros", [0, 3, 40])
def test_hashes_are_xxh3_of_every_length(zeros: int) -> None:
    data = np.random.default_rng(zeros).integers(1, 256, 6000, np.uint8)
    sizes = np.array([*range(0, 1100), 2047, 2048, 2049, 5000])
    starts = np.arange(len(sizes)) % 700
    for end in (starts + sizes).tolist()[::7]:
        data[max(0, end - zeros) : end] = 0
    want = [
        xxh3_64_intdigest(data[s : s + n].tobytes().rstrip(b"\0") or data[s : s + n].tobytes())
        for s, n in zip(starts.tolist(), sizes.tolist(), strict=True)
    ]
    got = kernel.hash_runs(data, starts, sizes)
    assert got is not None
    assert got.tolist() == want


def test_hashes_of_runs_past_the_end_are_refused() -> None:
    data = np.zeros(100, np.uint8)
    for start, size in ((0, 101), (101, 0), (-1, 2), (50, -1), (1 << 62, 1 << 62), (99, 2)):
        assert kernel.hash_runs(data, np.array([start]), np.array([size])) is None


@given(seeds)
def test_numbers_are_read_and_written_alike_where_they_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, 200, np.uint8)
    pos, value = rng.integers(-3, 202, 40), rng.integers(-(1 << 62), 1 << 62, 40)
    if seed % 2:
        pos = np.clip(pos, 0, 192)

    def write(put: Callable[..., None], *arguments: Any) -> Any:
        out = data.copy()
        put(out, *arguments)
        return out

    assert_same(lambda: packed.read_u32(data, pos))
    assert_same(lambda: packed.read_u64(data, pos))
    assert_same(lambda: write(packed.write_u32, pos, value))
    assert_same(lambda: write(packed.write_u64, pos, value))
    assert_same(lambda: write(packed.clear, pos, 4))


def test_one_number_folds_like_many() -> None:
    values = [0, 1, 12345, (1 << 64) - 1, 1 << 63, 0x9E3779B97F4A7C15]
    for salt in (0, 7, 1 << 31):
        many = model.fold_id(np.array(values, np.uint64), salt).tolist()
        assert [model.fold_one(value, salt) for value in values] == many


def test_one_run_hashes_like_many() -> None:
    for data in (b"a", b"a\0\0", b"\0\0", bytes(range(256)) * 3):
        whole = np.frombuffer(data, np.uint8)
        got = model.hash_content(whole, np.array([0]), np.array([len(data)]))
        assert model.hash_bytes(data) == int(got[0])


@given(seeds)
def test_bytes_are_counted_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = np.where(rng.random(300) < 0.5, 0, rng.integers(0, 256, 300)).astype(np.uint8)
    start = rng.integers(0, 301, 30)
    size = rng.integers(0, 301 - start)
    assert_same(lambda: packed.count_nonzero(data, start, size))


@given(seeds)
def test_varints_are_written_and_read_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 1 << rng.integers(1, 63, 40))
    values[:3] = (0, (1 << 63) - 1, 127)
    wire = assert_same(lambda: packed.write_varints(values))
    np.testing.assert_array_equal(packed.read_varints(wire, 40), values)
    damaged = wire.copy()
    damaged[rng.integers(0, len(wire), 2)] = rng.choice([0, 0x80, 0xFF, 1], 2)
    for data in (damaged, wire[:-1], wire[:0], np.full(12, 0x81, np.uint8)):
        assert_same(functools.partial(packed.read_varints, data, 40))
        assert_same(functools.partial(packed.read_varints, data, 0))


@given(seeds)
def test_pc_value_tables_end_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = np.where(rng.random(300) < 0.4, 0, rng.integers(0, 256, 300)).astype(np.uint8)
    starts = np.sort(rng.integers(0, 305, 20))
    assert_same(lambda: discover.table_ends(data, starts))


# --- labels


def random_labels(rng: np.random.Generator, size: int) -> model.Labels:
    """Regions without gaps over `size` bytes, cut into labels of all kinds."""
    cuts = np.unique(rng.integers(0, size // 8, 3) * 8).tolist()
    regions, addr = [], 0x1000
    for low, high in zip([0, *cuts], [*cuts, size], strict=True):
        offset = low if rng.random() < 0.9 else -1
        regions.append(model.Region(addr, offset, high - low, bool(rng.random() < 0.5), False))
        addr += high - low
    patterns = [model.Pattern()]
    for _ in range(4):
        fixed = tuple((int(o), int(rng.integers(3))) for o in rng.integers(0, 40, 3))
        again = tuple((int(o), int(rng.integers(3))) for o in rng.integers(0, 12, 2))
        if rng.random() < 0.6:
            fixed, again = tuple((4 * i, 1) for i in range(3)), ((0, 0), (4, 2))
        start, stride = int(rng.integers(12, 20)), int(rng.integers(8, 16))
        patterns.append(model.Pattern(fixed, start, stride, again))
    kinds = tuple(model.Kind(0, 0, 0, k - 1, k, k if k < 2 else -1, False) for k in range(3))
    region_of, sizes = [], []
    for index, region in enumerate(regions):
        inner = np.unique(rng.integers(0, region.size + 1, 9))
        own = np.diff(np.concatenate(([0], inner, [region.size]))).tolist()
        own.append(0)
        sizes += own
        region_of += [index] * len(own)
    size_array, which = np.array(sizes), np.array(region_of)
    start = 0x1000 + np.cumsum(size_array) - size_array
    count = len(sizes)
    return model.Labels(
        tuple(regions), kinds, tuple(patterns), which.astype(np.int32), start, size_array,
        rng.integers(0, len(patterns), count).astype(np.int32), np.zeros(count, np.uint8),
        np.zeros(0, np.uint32),
    )  # fmt: skip


@given(seeds)
def test_fields_are_expanded_alike(seed: int) -> None:
    labels = random_labels(np.random.default_rng(seed), 600 if seed % 3 else 90)

    def expand() -> Any:
        made = model.expand_fields(labels)
        return made.pos, made.kind

    assert_same(expand)


@given(seeds)
def test_ids_are_found_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    top = (1 << 32, 1 << 9, 40)[seed % 3]
    ids = np.where(rng.random(300) < 0.2, 0, rng.integers(0, top, 300))
    if seed % 5 == 0:
        ids = ids >> 20 << 20 | rng.integers(0, 8, 300)  # crowded buckets
    value = np.concatenate([ids, rng.integers(-5, top + 5, 100), [1 << 32, (1 << 32) - 1, 0, -1]])
    assert_same(lambda: decoder.make_lookup(ids).find(value))
    assert_same(lambda: decoder.make_lookup(ids[:0]).find(value))


@given(seeds)
def test_sets_are_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    top = (3, 1 << 11, 1 << 40, (1 << 63) - 1)[seed % 4]
    low = -top if seed % 3 else 0
    values, among = rng.integers(low, top, 200), rng.integers(low, top, 60)
    among[:20] = values[:20]
    if seed % 5 == 0:
        values, among = values.astype(np.int32), among[: seed % 2]
    assert_same(lambda: sets.distinct(values))
    assert_same(lambda: sets.is_in(values, among))
    assert_same(lambda: sets.is_in(among, values))


@given(seeds)
def test_new_fields_are_resolved_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = random_labels(rng, 600)
    ids = rng.integers(1, 1 << 32, labels.count)
    count = int(rng.integers(0, 30))
    fields = random_fields(rng, count)
    value = np.where(rng.random(count) < 0.4, model.NEW, rng.choice(ids, count)).astype(np.uint32)
    value[rng.random(count) < 0.2] = 3
    assert_same(
        lambda: decoder.field_labels(labels, fields, value, decoder.make_lookup(ids)),
    )


def random_fields(rng: np.random.Generator, count: int) -> model.Fields:
    """Fields 4 bytes apart, or at random, where they overlap."""
    pos = np.arange(count) * 4 if rng.random() < 0.5 else rng.integers(0, 500, count)
    return model.Fields(pos.astype(np.int32), rng.integers(0, 3, count).astype(np.uint16))


@given(seeds)
def test_targets_of_fields_are_found_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = random_labels(rng, 600)
    fields = random_fields(rng, int(rng.integers(0, 40)))
    base, shift = decoder.field_bases(labels)
    start = rng.choice(labels.start, len(fields.pos))
    value = (start - base[fields.kind]) >> shift[fields.kind]
    value[rng.random(len(value)) < 0.2] = rng.choice([0, 3, 0xFFFFFFFF])
    raw = value.astype(np.uint32)

    def find() -> Any:
        return rewriting.find_targets(labels, rewriting.find_starts(labels), fields, raw)

    assert_same(find)


@given(seeds)
def test_fields_are_read_cleared_and_written_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = random_labels(rng, 600)
    fields = random_fields(rng, int(rng.integers(0, 60)))
    data, other = (rng.integers(0, 256, 500 + 3 * (seed % 2), np.uint8) for _ in range(2))
    target = rng.integers(-1, labels.count, len(fields.pos)).astype(np.int32)
    value = rng.integers(0, 1 << 32, len(fields.pos)).astype(np.uint32)

    def write(put: Callable[..., None], *arguments: Any) -> Any:
        out = data.copy()
        put(*arguments, out)
        return out

    assert_same(lambda: model.read_fields(data, fields.pos))
    assert_same(lambda: write(lambda pos, out: model.clear_fields(out, pos), fields.pos))
    assert_same(
        lambda: write(
            lambda pos, named, out: model.copy_numbers(other, out, pos, named), fields.pos, target
        )
    )
    assert_same(lambda: write(decoder.place_fields, labels, fields, value, target))


@given(seeds)
def test_words_of_a_binary_are_found_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = random_labels(rng, 600)
    words = np.where(
        rng.random(75) < 0.5, rng.choice(labels.start, 75), rng.integers(-9, 1 << 40, 75)
    )
    data = words.astype("<i8").view(np.uint8)
    assert_same(lambda: rewriting.find_words(labels, data, rewriting.find_starts(labels)))


@given(seeds, st.sampled_from(MACHINES))
def test_sites_of_a_binary_are_rewritten_alike(seed: int, machine: int) -> None:
    """Code full of sites, in which many point to labels of it."""
    rng = np.random.default_rng(seed)
    size = 600
    code = arm64_noise(rng, size) if machine == sites.ARM64 else noisy(rng, size)
    labels = text_labels(rng, size, machine)
    found = sites.find_candidates(code, machine)
    data = code.copy()
    sites.write_targets(data, 0, found, TEXT_ADDR, rng.choice(labels.start, len(found.pos)))
    turned = np.sort(rng.choice(found.pos, min(3, len(found.pos)), replace=False))
    ids = rng.integers(0, 1 << 26, labels.count) | model.ID_TOP
    assert_same(lambda: rewriting.leaving_sites(labels, data, rewriting.find_starts(labels)))

    def write() -> Any:
        body = data.copy()
        rewriting.write_sites(labels, data, rewriting.find_starts(labels), ids, turned, body)
        return body

    assert_same(write)


TEXT_ADDR = 0x401000


def text_labels(rng: np.random.Generator, size: int, machine: int) -> model.Labels:
    """One region of code, cut into functions and parts that go them on."""
    cuts = np.unique(np.concatenate(([0], rng.integers(0, size // 4, 12) * 4)))
    count = len(cuts) + 1
    start = TEXT_ADDR + np.append(cuts, size)
    rule = np.where(rng.random(count) < 0.3, model.RULE_CONT, model.RULE_NAME).astype(np.uint8)
    rule[0], rule[-1] = model.RULE_NAME, model.RULE_END
    region = model.Region(TEXT_ADDR, 0, size, False, True)
    zero = np.zeros(count, np.int32)
    return model.Labels(
        (region,), (), (model.Pattern(),), zero, start, np.append(np.diff(start), 0), zero, rule,
        np.zeros(0, np.uint32), machine=machine,
    )  # fmt: skip


@given(seeds)
def test_address_words_are_found_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = random_labels(rng, 600)
    body = np.where(np.arange(600) % 8 < 4, rng.integers(0, 256, 600), np.tile(_tag(), 75)).astype(
        np.uint8
    )
    body[rng.integers(0, 600, 50)] = 0
    assert_same(lambda: model.find_tagged_words(labels, body))


def _tag() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(bytes(4) + model.TAG.to_bytes(4, "little"), np.uint8)


# --- code


@given(seeds, st.sampled_from(MACHINES))
def test_candidates_and_their_fields_are_alike(seed: int, machine: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(0, 600))
    text = arm64_noise(rng, size) if machine == sites.ARM64 else noisy(rng, size)
    found = sites.Candidates(*assert_same(lambda: sites.find_candidates(text, machine).arrays()))
    data = np.concatenate([rng.integers(0, 256, 5, np.uint8), text])
    addr = int(rng.integers(0, 1 << 40))
    assert_same(lambda: sites.read_values(data, 5, found))
    target = assert_same(lambda: sites.read_targets(data, 5, found, addr))
    value = rng.integers(0, 1 << 33, len(found.pos))

    def write(put: Callable[..., None], *arguments: Any) -> Any:
        out = data.copy()
        put(out, *arguments)
        return out

    assert_same(lambda: write(sites.write_values, 5, found, value))
    assert_same(lambda: write(sites.write_targets, 5, found, addr, target + value))
    assert_same(lambda: write(sites.write_values, size + 9, found, value))


def arm64_noise(rng: np.random.Generator, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Words of which many are branches, ADRP, ADD, loads and stores of few registers."""
    words = rng.integers(0, 1 << 32, size // 4 + 1)
    shapes = np.array([0x14000000, 0x94000000, 0x90000000, 0x91000000, 0x3D800000, 0xF9400000])
    mask = np.array([0x3FFFFFF, 0x3FFFFFF, 0x60FFFFE1, 0x3FFC21, 0x7FFC21, 0x3FFC21])
    pick = rng.integers(0, 6, len(words))
    words = np.where(rng.random(len(words)) < 0.8, shapes[pick] | words & mask[pick], words)
    return words.astype("<u4").view(np.uint8)[:size]


@given(seeds)
def test_random_bytes_disassemble_alike(seed: int) -> None:
    text = noisy(np.random.default_rng(seed), 3000).tobytes()
    assert_same(lambda: sites.disassemble(text, 0x401000))


@pytest.mark.parametrize("text", [b"", b"\x90", b"\xe8\0\0\0", b"\xe8\0\0\0\0", b"\x66" * 40])
def test_short_texts_disassemble_alike(text: bytes) -> None:
    assert_same(lambda: sites.disassemble(text, 0x401000))


@pytest.mark.go
def test_a_real_text_disassembles_alike(go_toolchain: Path) -> None:
    elf = parse_elf(build_go(go_toolchain, SMALL))
    section = elf.section(".text")
    assert section is not None
    true = assert_same(lambda: sites.disassemble(elf.bytes_of(section), section.addr))
    assert len(true) > 10_000


def test_the_instruction_table_covers_common_code() -> None:
    """What the kernel gives back to iced-x86 costs ten times as much: it must stay rare."""
    text = np.frombuffer(bytes.fromhex("488b05000000004889c3e80000000074057505c390") * 50, np.uint8)
    into = np.empty(1000, np.int64)
    count, stop = kernel.amd64_fields(text, 0, into)
    assert count >= 98
    assert len(text) - stop < 32


# --- whole forms


def _form_of_small(go: Path, arch: str) -> bytes:
    named = build_go(go, SMALL, UNSTRIPPED, arch=arch)
    made = assert_same(lambda: addressfree.encode(named).form)
    assert isinstance(made, bytes)
    return made


@pytest.mark.go
@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_forms_are_alike_and_so_are_damaged_ones(go_toolchain: Path, arch: str) -> None:
    form = _form_of_small(go_toolchain, arch)
    assert_same(lambda: addressfree.decode(form))
    rng = random.Random(1)
    for _ in range(12):
        damaged = _damage(rng, form)
        assert_same(functools.partial(addressfree.decode, damaged))


def _damage(rng: random.Random, form: bytes) -> bytes:
    """Flip bytes, half of them near the start, where the labels are."""
    out = bytearray(form)
    for _ in range(rng.randrange(1, 30)):
        limit = len(out) if rng.random() < 0.5 else min(len(out), 4000)
        out[rng.randrange(16, limit)] ^= 1 << rng.randrange(8)
    return bytes(out)


@given(seeds)
def test_damaged_toys_are_alike(seed: int) -> None:
    form = addressfree.encode(toy_go()).form
    damaged = _damage(random.Random(seed), form)
    assert_same(lambda: addressfree.decode(damaged))


# --- the build


def test_an_install_without_a_compiler_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import build_kernel

    shutil.copytree(ROOT / "layerkit/native", tmp_path / "layerkit/native")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python-without-ziglang"))
    assert build_kernel.compile_kernel(tmp_path) is None
    assert "plain Python will be used" in capsys.readouterr().err
    assert not (tmp_path / "layerkit/native/_kernel.so").exists()


@pytest.mark.parametrize("content", [None, b"not a shared object"])
def test_a_shared_object_that_does_not_fit_is_left_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    from layerkit import native

    monkeypatch.setattr(native, "SHARED_OBJECT", tmp_path / "kernel.so")
    if content is not None:
        (tmp_path / "kernel.so").write_bytes(content)
    assert native.load() is None


def test_the_kernel_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from layerkit import native

    monkeypatch.setenv("LAYERKIT_KERNEL", "off")
    assert native.load() is None


@pytest.mark.slow
def test_the_instruction_table_is_what_iced_says() -> None:
    script = ROOT / "tools/make_amd64_table.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc with its sanitizers")
def test_nothing_is_touched_outside_or_undefined(tmp_path: Path) -> None:
    """This file again, over a kernel that checks every access."""
    checked = tmp_path / "kernel.so"
    flags = ["-shared", "-fPIC", "-g", "-O1", "-fsanitize=address,undefined"]
    flags += ["-fno-sanitize-recover=all"]
    sources = sorted((ROOT / "layerkit/native").glob("*.c"))
    subprocess.run(["gcc", *flags, "-o", checked, *sources], check=True)
    asan = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    script = (
        "import sys, pathlib, pytest; from layerkit import native;"
        f"native.SHARED_OBJECT = pathlib.Path({str(checked)!r});"
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-m', 'not slow', {__file__!r}]))"
    )
    env = os.environ | {"LD_PRELOAD": asan.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    env |= {"PYTHONMALLOC": "malloc"}  # arrays then lie between red zones
    done = subprocess.run([sys.executable, "-c", script], env=env, cwd=ROOT, check=False)
    assert done.returncode == 0
