"""What `layerkit diff` counts: the changed layers only, by method, section and role."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import pytest
from toy_go import toy_go

from layerkit.digest import sha256_digest
from layerkit.edges.subject import Subject
from layerkit.formats import addressfree, oci
from layerkit.formats.layer import Entry, build_tar
from layerkit.jobs.diff import HEAD, OUTSIDE, Methods, Version, compare_versions, read_version


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def version(*layers: bytes, binary: bytes = b"", roles: tuple[str, ...] = ()) -> Version:
    digest = sha256_digest(b"".join(layers))
    return Version("v", "binary", digest, layers, binary, roles)


def whole(binary: bytes) -> Version:
    return version(binary, binary=binary)


def tiny_elf(text: bytes, data: bytes) -> bytes:
    """An ELF64 file with .text, .data, .shstrtab and nothing else that matters."""
    names = b"\0.text\0.data\0.shstrtab\0"
    bodies = [text, data, names]
    offset = 64
    rows = [b"\0" * 64]
    for name, body, kind in zip((1, 7, 13), bodies, (1, 1, 3), strict=True):
        rows.append(struct.pack("<IIQQQQIIQQ", name, kind, 2, 0, offset, len(body), 0, 0, 1, 0))
        offset += len(body)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 0, offset, 0, 64, 56, 0, 64, 4, 3
    )
    return header + b"".join(bodies) + b"".join(rows)


def test_equal_versions_move_nothing() -> None:
    found = compare_versions(version(noise(50_000)), version(noise(50_000)))
    sizes = (found.plain_size, found.whole_size, found.chunks_size, found.delta_size)
    assert sizes == (0, 0, 0, 0)


def test_a_small_edit_moves_fewer_bytes_in_chunks_than_whole() -> None:
    old = noise(200_000)
    new = old[:100_000] + b"edited" + old[100_006:]
    found = compare_versions(version(old), version(new))
    assert 0 < found.chunks_size < found.whole_size / 5


def test_a_layer_that_both_have_is_not_counted() -> None:
    base = noise(100_000, 2)
    found = compare_versions(version(base, noise(1000, 3)), version(base, noise(1000, 4)))
    assert max(found.plain_size, found.whole_size) < 2000


def test_forms_and_deltas_come_in_through_methods() -> None:
    methods = Methods(encode=lambda layer: b"", delta_size=lambda olds, new: 7)
    found = compare_versions(version(noise(9000)), version(noise(9000, 5)), methods)
    assert (found.chunks_size, found.delta_size) == (0, 7)


def test_a_delta_starts_from_the_old_layer_of_the_same_role() -> None:
    seen: list[list[bytes]] = []

    def delta_size(olds: Sequence[bytes], new: bytes) -> int:
        seen.append(list(olds))
        return 0

    old = version(b"base" * 100, b"old code" * 100, roles=("base", "code"))
    new = version(b"base" * 100, b"new code" * 100, roles=("base", "code"))
    compare_versions(old, new, Methods(lambda layer: layer, delta_size))
    assert seen == [[b"old code" * 100]]


def test_sections_name_where_new_chunks_lie() -> None:
    text, data = noise(60_000, 6), noise(60_000, 7)
    edited = data[:30_000] + b"edited" + data[30_006:]
    changes = compare_versions(whole(tiny_elf(text, data)), whole(tiny_elf(text, edited))).sections
    assert (changes[".text"].chunks_size, changes[".text"].delta_size) == (0, 0)
    assert 0 < changes[".data"].delta_size < changes[".data"].chunks_size < 30_000
    assert changes[OUTSIDE].new_size == 64 + 4 * 64


@pytest.mark.parametrize("side", ["old", "new"])
def test_a_section_of_one_side_only_counts_there(side: str) -> None:
    small, large = tiny_elf(b"", noise(500)), tiny_elf(noise(700), noise(500))
    old, new = (large, small) if side == "old" else (small, large)
    change = compare_versions(whole(old), whole(new)).sections[".text"]
    assert (change.old_size, change.new_size) == ((700, 0) if side == "old" else (0, 700))


def test_input_that_is_no_elf_has_no_sections() -> None:
    assert compare_versions(whole(b"text"), whole(tiny_elf(b"a", b"b"))).sections == {}


def test_a_go_binary_is_measured_in_its_form() -> None:
    old, new = toy_go(), toy_go(b"another greeting")
    found = compare_versions(whole(old), whole(new))
    assert found.whole_size == pytest.approx(len(addressfree.encode(new).form), rel=0.8)
    assert (found.sections[HEAD].new_size, found.sections[HEAD].plain_size) == (0, 0)
    assert found.sections[HEAD].whole_size > 0
    assert sum(part.new_size for part in found.sections.values()) == len(new)


def test_roles_sum_to_the_layers() -> None:
    tar = build_tar([Entry("app/fn", toy_go() + bytes(1 << 16), 0o755)])
    other = build_tar([Entry("etc/zone", noise(3000), 0o644)])
    old = version(other, tar, roles=("base", "code"))
    new_tar = build_tar([Entry("app/fn", toy_go(b"hi") + bytes(1 << 16), 0o755)])
    found = compare_versions(old, version(other, new_tar, roles=("base", "code")))
    assert sum(role.change.old_size for role in found.roles.values()) == len(other) + len(tar)
    assert found.roles["base"].change.old_size >= len(other)
    assert found.roles["base"].chunk_count == found.roles["base"].held_count > 0


def test_a_form_counts_as_the_form_of_its_binary() -> None:
    form = addressfree.encode(toy_go()).form
    read = read_version(Subject("f", form), oci.Platform("linux", "amd64"))
    assert (read.kind, read.binary, read.forms) == ("form", toy_go(), (form,))
