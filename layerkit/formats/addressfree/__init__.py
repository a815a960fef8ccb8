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
from layerkit.formats.addressfree.model import Bytes8
from layerkit.formats.addressfree.rewriting import Exceptions
from layerkit.formats.elf import MACHINE_AMD64, MACHINE_ARM64, TYPE_EXEC, Elf, parse_elf
from layerkit.formats.filled import fill_bytes

__all__ = [
    "Encoded",
    "Hints",
    "decode",
    "decode_into",
    "decoded_size",
    "encode",
    "labels_size",
    "read_hints",
    "rebuild",
    "rebuild_into",
    "rebuilt_size",
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
                body = made.body
                del made
                if _comes_back(binary, body, blob):
                    return Encoded(blob, wire.serialize_form(wire.KIND_GO, labels, body.data))
            why = "does not come back bit for bit"
        except FormatError as exc:
            why = exc.message
        except _DAMAGE as exc:
            # a damaged table that the checks let through; the file stays whole and raw
            why = f"{type(exc).__name__} in Go's tables"
    none = Exceptions(np.zeros(0, np.int64), np.zeros(0, np.int64))
    blob = wire.serialize_blob(b"", len(binary), none)
    return Encoded(blob, wire.serialize_form(wire.KIND_RAW, b"", binary), why)


def _comes_back(binary: bytes, body: Bytes8, blob: bytes) -> bool:
    """Whether the serialized labels give the body from the binary, and the binary from the body."""
    labels, _, exceptions = wire.parse_blob(blob)
    table, skip = wire.parse_labels(labels, len(binary))
    again = np.empty(len(binary), np.uint8)
    rewriting.rewrite(table, np.frombuffer(binary, np.uint8), exceptions, again)
    if not np.array_equal(again, body):
        return False
    decoder.restore(table, body.data, skip, again.data)
    return again.data == binary


def labels_size(labels: bytes | memoryview) -> int:
    """Bytes of the binary that this labels blob is of. Raises FormatError."""
    return wire.parse_blob(labels)[1]


def rebuild(binary: bytes | memoryview, labels: bytes | memoryview) -> bytes:
    """The form that `encode` made together with this labels blob, byte for byte, whatever hints it
    had. For whoever got the binary by other ways. Raises FormatError where the blob is malformed or
    another binary's; the caller checks the form's digest."""
    return fill_bytes(rebuilt_size(labels), lambda out: rebuild_into(binary, labels, out))


def rebuilt_size(labels: bytes | memoryview) -> int:
    """Bytes of the form that `rebuild` makes with this labels blob. Raises FormatError."""
    table, size, _ = wire.parse_blob(labels)
    return len(_head(table, size)) + size


def _head(table: bytes | memoryview, size: int) -> bytes:
    """A form up to its body."""
    kind = wire.KIND_GO if len(table) else wire.KIND_RAW
    return wire.serialize_head(kind, table, size)


def rebuild_into(binary: bytes | memoryview, labels: bytes | memoryview, out: memoryview) -> None:
    """Write the form that `rebuild` makes into `out`, of `rebuilt_size` bytes. Raises FormatError;
    then `out` holds anything."""
    table_bytes, size, exceptions = wire.parse_blob(labels)
    if size != len(binary):
        raise FormatError(f"labels blob: got a binary of {len(binary)} bytes, want {size}")
    head = _head(table_bytes, size)
    out[: len(head)] = head
    body = out[len(head) :]
    if not len(table_bytes):
        body[:] = binary
        return
    table, _ = wire.parse_labels(table_bytes, size)
    data = np.frombuffer(binary, np.uint8)
    try:
        rewriting.rewrite(table, data, exceptions, np.frombuffer(body, np.uint8))
    except (IndexError, ValueError, OverflowError) as exc:
        raise FormatError("labels blob: it is not of this binary") from exc


def decode(form: bytes | memoryview) -> bytes:
    """The binary that a form stands for. Raises only FormatError; the caller checks a digest."""
    return fill_bytes(decoded_size(form), lambda out: decode_into(form, out))


def decoded_size(form: bytes | memoryview) -> int:
    """Bytes of the binary that a form stands for. Raises FormatError."""
    return len(wire.parse_form(form)[2])


def decode_into(form: bytes | memoryview, out: memoryview) -> None:
    """Write the binary that a form stands for into `out`, of `decoded_size` bytes. Raises only
    FormatError; then `out` holds anything."""
    kind, labels, body = wire.parse_form(form)
    if kind == wire.KIND_RAW:
        out[:] = body
        return
    table, skip = wire.parse_labels(labels, len(body))
    try:
        decoder.restore(table, body, skip, out)
    except (IndexError, ValueError, OverflowError) as exc:
        raise FormatError("form: fields lie outside the file") from exc
