"""Compression of layers: gzip by libdeflate, or zstd, with the recipe to make a blob again.

The libraries are pinned by exact version, so that a layer's digest follows neither the machine's
zlib nor its Python. The recipe (``gzip;deflate/0.9.0;level=6``) travels as the annotation
`dev.layerkit.compression`; a node that has the plain tar makes the same blob from it. The gzip
header is fixed: no name, time 0, system unknown. Decompression is bounded by the caller's limit and
does not need the pinned libraries' versions. Spec: docs/design.md "Layers"; RFC 1952; RFC 8878.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import deflate
import zstandard

from layerkit.errors import FormatError, UsageError, VersionError
from layerkit.formats.filled import join_bytes

__all__ = [
    "DEFAULT_COMPRESSION",
    "NO_COMPRESSION",
    "Compression",
    "compress",
    "compression_by_name",
    "decompress",
    "parse_compression",
]

# Measured on a 5.9 MB binary: level 6 takes 0.07 s, level 9 0.22 s and is 0.8 % smaller; a node
# pays it again for every layer that it makes.
GZIP_LEVEL: Final = 6
ZSTD_LEVEL: Final = 9  # 0.13 s and 5 % smaller than gzip; level 19 takes 1.8 s
MAX_WINDOW_SIZE: Final = 1 << 27  # bytes of memory that a zstd frame may ask for
GZIP_FEED_SIZE: Final = 1 << 16  # bytes a step, in a member that goes on
GZIP_FIRST_SIZE: Final = 1 << 10  # bytes of its first: what is not a member's own is copied
GZIP_MAGIC: Final = b"\x1f\x8b"
FEED_SIZE: Final = 1 << 10  # bytes a step: 256 blocks of four bytes, 32 MiB, if it is a bomb
_LIBRARIES: Final = {"gzip": "deflate", "zstd": "zstandard"}
_LEVELS: Final = {"gzip": range(1, 13), "zstd": range(1, 23)}


@dataclass(frozen=True, slots=True)
class Compression:
    """A recipe: algorithm ("gzip", "zstd" or "tar" for none), library, its version, level."""

    algorithm: str
    library: str = ""
    version: str = ""
    level: int = 0

    def __str__(self) -> str:
        if not self.library:
            return self.algorithm
        return f"{self.algorithm};{self.library}/{self.version};level={self.level}"


NO_COMPRESSION: Final = Compression("tar")
DEFAULT_COMPRESSION: Final = "gzip"


def compression_by_name(name: str) -> Compression:
    """The recipe that this layerkit uses for "gzip", "zstd" or "tar"."""
    if name == "gzip":
        return Compression("gzip", "deflate", deflate.__version__, GZIP_LEVEL)
    if name == "zstd":
        return Compression("zstd", "zstandard", zstandard.__version__, ZSTD_LEVEL)
    if name == "tar":
        return NO_COMPRESSION
    raise UsageError(f"compression {name[:40]!r} is not known", hint="use gzip, zstd or tar")


def parse_compression(text: str) -> Compression:
    """Parse a recipe. One that cannot be followed here is an error of `compress`, not of this."""
    if text == "tar":
        return NO_COMPRESSION
    parts = text.split(";")
    if len(parts) != 3 or len(text) > 200:
        raise FormatError(f"{text[:80]!r} is not a compression recipe")
    algorithm, made_by, raw_level = parts
    library, slash, version = made_by.partition("/")
    key, equals, digits = raw_level.partition("=")
    known = _LEVELS.get(algorithm)
    if known is None or key != "level" or not equals or not slash or not library or not version:
        raise FormatError(f"{text[:80]!r} is not a compression recipe")
    if not digits.isascii() or not digits.isdigit() or int(digits) not in known:
        raise FormatError(f"{text[:80]!r}: level is not in {known.start}..{known.stop - 1}")
    return Compression(algorithm, library, version, int(digits))


def compress(data: bytes | bytearray | memoryview, recipe: Compression | str) -> bytes:
    """Compress by the recipe; VersionError where it cannot give the same bytes here."""
    if isinstance(recipe, str):
        recipe = parse_compression(recipe)
    if recipe.algorithm == "tar":
        return bytes(data)
    want = compression_by_name(recipe.algorithm)
    if (recipe.library, recipe.version) != (want.library, want.version):
        raise VersionError(
            f"layer compression '{recipe}' cannot be made again here",
            cause=f"got {want.library} {want.version}, want {recipe.library} {recipe.version}",
            hint=f"install {recipe.library}=={recipe.version}",
        )
    if recipe.algorithm == "gzip":
        return bytes(deflate.gzip_compress(data, recipe.level))
    return zstandard.ZstdCompressor(
        level=recipe.level, write_checksum=False, write_content_size=True
    ).compress(data)


def decompress(blob: bytes | memoryview, media_type: str, limit: int) -> bytes:
    """The plain bytes of a layer blob, at most `limit` of them; raises FormatError."""
    if media_type.endswith("gzip"):
        return _gunzip(blob, limit)
    if media_type.endswith("zstd"):
        return _unzstd(blob, limit)
    if media_type.endswith("tar"):
        if len(blob) > limit:
            raise _over(limit)
        return bytes(blob)
    raise FormatError(f"layer media type {media_type[:80]!r} is not known")


def _gunzip(blob: bytes | memoryview, limit: int) -> bytes:
    """All members of a gzip file: of one in the eStargz format as many as an image has files.
    Memory: what comes out, at most `limit` and one step."""
    return join_bytes(_gunzip_parts(memoryview(blob), limit))


def _gunzip_parts(blob: memoryview, limit: int) -> Iterator[bytes]:
    at, left = 0, limit
    while True:
        member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        step = GZIP_FIRST_SIZE
        while not member.eof:
            if at == len(blob):
                what = "ends early" if at else "is empty"
                raise FormatError(f"gzip layer {what}", offset=at)
            fed, step = blob[at : at + step], min(4 * step, GZIP_FEED_SIZE)
            try:
                part = member.decompress(fed, left + 1)
            except zlib.error as exc:
                raise FormatError("layer is not gzip", cause=str(exc)) from exc
            at += len(fed) - len(member.unused_data) - len(member.unconsumed_tail)
            left -= len(part)
            if left < 0:
                raise _over(limit)
            yield part
        if bytes(blob[at : at + 2]) == GZIP_MAGIC:
            continue
        if not bytes(blob[at:]).strip(b"\0"):  # padding after the last member, as in tar files
            return


def _unzstd(blob: bytes | memoryview, limit: int) -> bytes:
    """All frames of a zstd file. Memory: what comes out, at most `limit` and one step, and
    MAX_WINDOW_SIZE."""
    return join_bytes(_unzstd_parts(memoryview(blob), limit))


def _unzstd_parts(blob: memoryview, limit: int) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_SIZE)
    at, left = 0, limit
    while True:
        frame = decompressor.decompressobj(write_size=1 << 20)
        while not frame.eof:
            if at == len(blob):
                raise FormatError("zstd layer ends early", offset=at)
            fed = blob[at : at + FEED_SIZE]
            try:
                part = frame.decompress(fed)
            except zstandard.ZstdError as exc:
                raise FormatError("layer is not zstd", cause=str(exc)) from exc
            at += len(fed) - len(frame.unused_data)
            left -= len(part)
            if left < 0:
                raise _over(limit)
            yield part
        if at == len(blob):
            return


def _over(limit: int) -> FormatError:
    return FormatError(f"layer is over its limit of {limit} plain bytes")
