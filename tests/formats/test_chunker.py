"""formats/chunker: cut points that may never move."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.errors import VersionError
from layerkit.formats.chunker import DEFAULT_PROFILE, PROFILES, cut

FROZEN = {
    "cdc-v1": "d9863fd429f442f65cf9b6f62f9f94975e564d87c2922b4a66e20ecdcd14f9ec",
    "cdc-v2": "9700e8bed70fe94fae2d20dcbc7b1ca8e952fa8a5ee8e9b7a07d5662af778c33",
}  # a new hash needs a new profile name


def _fixed_input() -> bytes:
    """4 MiB from SHA-256 in counter mode, every third MiB of it sparse: like code and padding."""
    out = bytearray()
    for counter in range((4 << 20) // 32):
        block = hashlib.sha256(counter.to_bytes(8, "little")).digest()
        out += bytes(32) if counter >> 15 == 2 and block[0] < 200 else block
    return bytes(out)


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_cut_points_never_move(profile: str) -> None:
    sizes = cut(_fixed_input(), profile)
    assert hashlib.sha256(",".join(map(str, sizes)).encode()).hexdigest() == FROZEN[profile]


@given(st.binary(max_size=40_000))
def test_sizes_sum_to_the_input_and_keep_the_bounds(data: bytes) -> None:
    sizes = cut(data)
    known = PROFILES[DEFAULT_PROFILE]
    assert sum(sizes) == len(data)
    assert all(known.min_size <= size <= known.max_size for size in sizes[:-1])


def test_an_insertion_moves_few_cut_points() -> None:
    data = _fixed_input()[: 1 << 20]
    old, new = cut(data), cut(data[:500_000] + b"one edit" + data[500_000:])
    assert (
        len(set(_ends(old)) & {end - 8 for end in _ends(new)} | set(_ends(old)) & set(_ends(new)))
        >= len(old) - 4
    )


def _ends(sizes: list[int]) -> list[int]:
    ends, at = [], 0
    for size in sizes:
        at += size
        ends.append(at)
    return ends


def test_an_unknown_profile_is_a_version_error() -> None:
    with pytest.raises(VersionError):
        cut(b"x", "cdc-v9")
