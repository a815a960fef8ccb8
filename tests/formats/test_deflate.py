"""Compression: the same bytes everywhere, made again from the recipe, bounded when undone."""

from __future__ import annotations

import contextlib
import gzip
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.digest import sha256_digest
from layerkit.errors import FormatError, UsageError, VersionError
from layerkit.formats import oci
from layerkit.formats.deflate import (
    compress,
    compression_by_name,
    decompress,
    parse_compression,
)

DATA = b"".join(b"%d layerkit\n" % (n * n % 9973) for n in range(20_000))
TYPES = {"gzip": oci.LAYER_GZIP, "zstd": oci.LAYER_ZSTD, "tar": oci.LAYER_TAR}
FROZEN = {
    "gzip;deflate/0.9.0;level=6": "663b08577ddb7143e1b32570d247607f1d14108969c6d665e5ec72b7fbd21da7",  # noqa: E501
    "gzip;deflate/0.9.0;level=9": "c1c7e8dbfc00ae0fefa6c940ef77f38d69188c04e9a78fe7a5d14b0dbad7d374",  # noqa: E501
    "zstd;zstandard/0.25.0;level=9": "90c4981a7d3634dd867a4efd22be04bc247b62f7cc2b93171110a9dfde68ec1f",  # noqa: E501
}


@pytest.mark.parametrize("recipe", FROZEN)
def test_a_recipe_always_gives_the_same_blob(recipe: str) -> None:
    """Layer digests hang on these: a library that changes them is another recipe."""
    assert sha256_digest(compress(DATA, recipe)).hex == FROZEN[recipe]


@pytest.mark.parametrize("name", TYPES)
def test_round_trip_at_exactly_the_limit(name: str) -> None:
    blob = compress(DATA, compression_by_name(name))
    assert decompress(blob, TYPES[name], len(DATA)) == DATA


@pytest.mark.parametrize("name", TYPES)
def test_more_than_the_limit_is_refused(name: str) -> None:
    blob = compress(DATA, compression_by_name(name))
    with pytest.raises(FormatError, match="over its limit"):
        decompress(blob, TYPES[name], len(DATA) - 1)


def test_a_bomb_is_refused_without_unpacking_it() -> None:
    blob = compress(bytes(1 << 28), "gzip;deflate/0.9.0;level=6")
    with pytest.raises(FormatError, match="over its limit"):
        decompress(blob, oci.LAYER_GZIP, 1 << 20)


@pytest.mark.parametrize("name", ["gzip", "zstd"])
@pytest.mark.parametrize("keep", [0, 1, 9, 500, -1])
def test_truncated_blobs_are_format_errors(name: str, keep: int) -> None:
    blob = compress(DATA, compression_by_name(name))
    with pytest.raises(FormatError):
        decompress(blob[:keep], TYPES[name], len(DATA))


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_several_members_are_one_layer(name: str) -> None:
    blob = compress(DATA, compression_by_name(name))
    assert decompress(blob + blob, TYPES[name], 2 * len(DATA)) == DATA + DATA


def test_many_members_are_quick() -> None:
    """An eStargz layer has one for each file, a hostile one a million."""
    count = 20_000
    blob = gzip.compress(b"some file\n", mtime=0) * count
    begun = time.process_time()
    assert decompress(blob, TYPES["gzip"], 10 * count) == b"some file\n" * count
    assert time.process_time() - begun < 1  # 0.04 s; 1.8 s where each copies what follows


def test_the_gzip_header_is_fixed() -> None:
    blob = compress(DATA, compression_by_name("gzip"))
    assert (blob[:10].hex(), gzip.decompress(blob)) == ("1f8b08000000000000ff", DATA)


@pytest.mark.parametrize(
    "recipe", ["gzip;deflate/0.8.0;level=6", "gzip;zlib/1.3;level=6", "zstd;zstandard/0.1;level=3"]
)
def test_a_recipe_of_another_library_is_a_clear_error(recipe: str) -> None:
    with pytest.raises(VersionError, match="cannot be made again") as caught:
        compress(DATA, recipe)
    assert caught.value.hint.startswith("install ")


@pytest.mark.parametrize(
    "text",
    ["", "gzip", "gzip;deflate/0.9.0", "gzip;deflate;level=6", "gzip;deflate/0.9.0;level=13",
     "gzip;deflate/0.9.0;level=x", "lz4;a/1;level=1", "gzip;deflate/0.9.0;level=6;x"],
)  # fmt: skip
def test_bad_recipes_are_format_errors(text: str) -> None:
    with pytest.raises(FormatError):
        parse_compression(text)


@pytest.mark.parametrize("name", TYPES)
def test_recipes_round_trip(name: str) -> None:
    recipe = compression_by_name(name)
    assert parse_compression(str(recipe)) == recipe


def test_unknown_compression_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        compression_by_name("lz4")


@given(st.binary(max_size=200), st.sampled_from(sorted(TYPES)))
def test_only_format_errors(raw: bytes, name: str) -> None:
    with contextlib.suppress(FormatError):
        decompress(raw, TYPES[name], 1 << 16)
