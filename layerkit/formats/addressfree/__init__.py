"""The address-free form: a reversible re-encoding of one Go binary in which nothing depends on
where the linker put things, so that an edit changes only what it means. **The heart.**

``encode(binary)`` gives the form and a labels blob; ``decode(form)`` the binary, bit for bit;
``rebuild(binary, labels)`` the form again. Encode decodes, rebuilds and compares before it returns,
and what does not come back exactly is left raw: it never fails and is never wrong.

Not here: knowledge of tar layers (`formats.layerform`), chunks and deltas.
Spec: docs/format.md "Address-free form". Limits: Go 1.20 to 1.27, amd64 and arm64, not PIE; the
rest is raw.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

import numpy as np

from layerkit.errors import FormatError
from layerkit.formats.addressfree import decoder, encoder, rewriting, wire
from layerkit.formats.addressfree.rewriting import Exceptions
from layerkit.formats.elf import MACHINE_AMD64, MACHINE_ARM64, TYPE_EXEC, Elf, parse_elf

__all__ = [
    "Encoded",
    "Hints",
    "decode",
    "decode_view",
    "encode",
    "labels_size",
    "read_hints",
    "rebuild",
]

TRIES: Final = 3  # salts: a clash of ids, one in some hundred thousand binaries, needs another


# What a damaged table that the checks let through can raise in the encoder
_DAMAGE: Final = (ArithmeticError, LookupError, ValueError, TypeError, StopIteration, struct.error)


@dataclass(frozen=True, slots=True)
class Hints:
    """What the builder knows: address -> (name, size) of data objects in the same link."""

    symbols: Mapping[int, tuple[bytes, int]]


def read_hints(elf: Elf) -> Hints:
    """Hints from the symbol table of an unstripped binary: its named data objects. Symbols that
    stand for many objects (`type:*`, or what others lie in) or for nothing are left out."""
    text = elf.section(".text")
    low = text.end_addr if text else 0
    named = [s for s in elf.symbols() if s.addr >= low and not s.name.endswith(b"*")]
    named.sort(key=lambda s: s.addr)
    found: dict[int, tuple[bytes, int]] = {}
    for symbol, behind in zip_longest(named, named[1:]):
        covers = behind and symbol.addr < behind.addr < symbol.addr + symbol.size
        if not covers:
            found.setdefault(symbol.addr, (symbol.name, symbol.size))
    return Hints(found)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A form, the labels blob that gives it from the binary, and why it is raw, if it is."""

    labels: bytes
    form: bytes
    why_raw: str = ""


def encode(binary: bytes, hints: Hints | None = None) -> Encoded:
    """Encode; raw where the binary is not one that we know how to take apart."""
    why = "over the size limit"
    if len(binary) <= wire.SIZE_LIMIT:
        try:
            elf = parse_elf(binary)
            if elf.machine not in (MACHINE_AMD64, MACHINE_ARM64) or elf.kind != TYPE_EXEC:
                raise FormatError("not an amd64 or arm64 executable at a fixed address")
            for salt in range(TRIES):
                made = encoder.encode_binary(elf, hints.symbols if hints else {}, salt)
                labels = wire.serialize_labels(made.labels, made.skip)
                blob = wire.serialize_blob(labels, len(binary), made.exceptions)
                body, found = made.body, made.found
                del made
                if _comes_back(binary, body, blob, found):
                    return Encoded(blob, wire.serialize_form(wire.KIND_GO, labels, body))
            why = "does not come back bit for bit"
        except FormatError as exc:
            why = exc.message
        except _DAMAGE as exc:
            # a damaged table that the checks let through; the file stays whole and raw
            why = f"{type(exc).__name__} in Go's tables"
    none = Exceptions(np.zeros(0, np.int64), np.zeros(0, np.int64))
    blob = wire.serialize_blob(b"", len(binary), none)
    return Encoded(blob, wire.serialize_form(wire.KIND_RAW, b"", binary), why)


def _comes_back(binary: bytes, body: bytes, blob: bytes, found: rewriting.Found) -> bool:
    """Whether the serialized labels give the body from the binary, and the binary from the body;
    `found` spares a second look at the binary."""
    labels, _, exceptions = wire.parse_blob(blob)
    table, skip = wire.parse_labels(labels, len(binary))
    data = np.frombuffer(binary, np.uint8)
    rebuilt = rewriting.rewrite(table, data, exceptions, found)
    if not np.array_equal(rebuilt, np.frombuffer(body, np.uint8)):
        return False
    del found, rebuilt
    return decoder.restore(table, body, skip) == binary


def labels_size(labels: bytes | memoryview) -> int:
    """Bytes of the binary that this labels blob is of. Raises FormatError."""
    return wire.parse_blob(labels)[1]


def rebuild(binary: bytes | memoryview, labels: bytes | memoryview) -> bytes:
    """The form that `encode` made together with this labels blob, byte for byte, whatever hints it
    had. For whoever got the binary by other ways. Raises FormatError where the blob is malformed or
    another binary's; the caller checks the form's digest."""
    table_bytes, size, exceptions = wire.parse_blob(labels)
    if size != len(binary):
        raise FormatError(f"labels blob: got a binary of {len(binary)} bytes, want {size}")
    if not len(table_bytes):
        return wire.serialize_form(wire.KIND_RAW, b"", memoryview(binary))
    table, _ = wire.parse_labels(table_bytes, size)
    try:
        body = rewriting.rewrite(table, np.frombuffer(binary, np.uint8), exceptions)
    except (IndexError, ValueError, OverflowError) as exc:
        raise FormatError("labels blob: it is not of this binary") from exc
    return wire.serialize_form(wire.KIND_GO, table_bytes, body.data)


def decode(form: bytes | memoryview) -> bytes:
    """The binary that a form stands for. Raises only FormatError; the caller checks a digest."""
    return bytes(decode_view(form))


def decode_view(form: bytes | memoryview) -> memoryview:
    """The same without a last copy; of a raw form it is a part of it."""
    kind, labels, body = wire.parse_form(form)
    if kind == wire.KIND_RAW:
        return body
    table, skip = wire.parse_labels(labels, len(body))
    try:
        return decoder.restore(table, body, skip)
    except (IndexError, ValueError, OverflowError) as exc:
        raise FormatError("form: fields lie outside the file") from exc
