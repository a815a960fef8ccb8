"""Digests: the names of stored bytes (``sha256:``) and of chunks (``b3:``).

SHA-256 names everything that OCI sees (blobs, layers, manifests, forms, deltas). BLAKE3 names
chunks, always over their plain bytes. Spec: docs/format.md "Digests"; docs/decisions/0001, 0002.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from layerkit.errors import ChunkDigestError, FormatError, IntegrityError

__all__ = ["Digest", "check_digest", "chunk_id", "raw_chunk_id", "sha256_digest", "verify_stream"]

SIZE: Final = 32  # bytes of both hash functions
_ALGORITHMS: Final = ("sha256", "b3")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A hash of bytes: ``algorithm`` is "sha256" or "b3", ``raw`` is 32 bytes."""

    algorithm: str
    raw: bytes

    def __post_init__(self) -> None:
        if self.algorithm not in _ALGORITHMS or len(self.raw) != SIZE:
            raise FormatError(f"digest {self.algorithm}:{self.raw.hex()[:12]} is not one of ours")

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse ``sha256:<64 hex>`` or ``b3:<64 hex>``; anything else is a FormatError."""
        algorithm, colon, hexdigits = text.partition(":")
        if not colon or len(hexdigits) != 2 * SIZE or hexdigits.strip("0123456789abcdef"):
            raise FormatError(f"{text[:80]!r} is not a digest")
        return cls(algorithm, bytes.fromhex(hexdigits))

    @property
    def hex(self) -> str:
        return self.raw.hex()

    @property
    def short(self) -> str:
        """Algorithm and 12 digits, for people."""
        return f"{self.algorithm}:{self.hex[:12]}"

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def sha256_digest(data: bytes | bytearray | memoryview) -> Digest:
    """Digest of stored bytes, as OCI counts it."""
    return Digest("sha256", hashlib.sha256(data).digest())


def chunk_id(data: bytes | bytearray | memoryview) -> Digest:
    """Id of a chunk: BLAKE3 of its plain bytes."""
    return Digest("b3", blake3(data).digest())


def raw_chunk_id(data: bytes | bytearray | memoryview) -> bytes:
    """The same as 32 bytes, for columns of ids."""
    return blake3(data).digest()


def check_digest(data: bytes | bytearray | memoryview, want: Digest, what: str) -> None:
    """Raise IntegrityError (ChunkDigestError for a chunk id) unless `data` hashes to `want`."""
    got = chunk_id(data) if want.algorithm == "b3" else sha256_digest(data)
    if got != want:
        error = ChunkDigestError if want.algorithm == "b3" else IntegrityError
        raise error(f"{what} does not match its digest", got=str(got), want=str(want))


def verify_stream(parts: Iterable[bytes], want: Digest, size: int, what: str) -> Iterator[bytes]:
    """Pass `parts` on while hashing; raise IntegrityError as soon as they exceed `size`, or at the
    end if they are short or do not hash to `want`. The caller must not commit before the end."""
    hasher = hashlib.sha256()
    total = 0
    for part in parts:
        total += len(part)
        if total > size:
            raise IntegrityError(
                f"{what} is longer than declared", got=f"over {total} bytes", want=f"{size} bytes"
            )
        hasher.update(part)
        yield part
    got = Digest("sha256", hasher.digest())
    if total != size or got != want:
        raise IntegrityError(
            f"{what} does not match its digest",
            got=f"{got} ({total} bytes)",
            want=f"{want} ({size} bytes)",
        )
