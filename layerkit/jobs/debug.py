"""`layerkit debug encode|decode|diff|patch`: one step of the heart at a time, from file to file.

For study, not for deploys. An output file is whole and durable under its name, or as it was before;
an existing regular file is replaced, as `go build -o` does. Memory: inputs and output whole.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.disk import Disk
from layerkit.errors import FormatError, IntegrityError, NotFoundError, StoreError, UsageError
from layerkit.formats import addressfree, delta
from layerkit.formats.elf import parse_elf
from layerkit.formats.layerform import decode_layer, encode_layer, is_layer_form

__all__ = ["DebugResult", "EncodeResult", "decode", "diff", "encode", "patch"]

MAX_FILE_SIZE = 2 << 30  # bytes; forms and deltas have the same limit
LINKED_ALIKE = (".text", ".rodata", ".data", ".noptrdata")  # of a binary and its unstripped twin
TAR_MAGIC = slice(257, 262)


@dataclass(frozen=True, slots=True)
class DebugResult:
    """What was written: `size` in bytes."""

    output: Path
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """A form that was written. `why_raw` is empty for an address-free one; of a layer it names each
    binary's reason. `labels_size` counts the labels blobs, which make the form from the binary."""

    output: Path
    digest: Digest
    size: int
    plain_size: int
    labels_size: int
    why_raw: tuple[str, ...]


def encode(path: Path, output: Path, disk: Disk, symbols: Path | None = None) -> EncodeResult:
    """Write the form of a binary, or of a layer's tar. `symbols` is an unstripped binary of the
    same link, for hints."""
    data = _read(path)
    _check_output(output)
    if data[TAR_MAGIC] == b"ustar":
        if symbols is not None:
            raise UsageError("--symbols goes with a binary, not with a layer")
        layer = encode_layer(data)
        if layer is None:
            raise FormatError(
                f"{path} has no form", cause="no Go binary in the layer, or none that has one"
            )
        form, labels, why = layer.form, sum(map(len, layer.labels)), layer.why_raw
    else:
        made = addressfree.encode(data, _read_symbols(symbols, data) if symbols else None)
        form, labels, why = made.form, len(made.labels), (made.why_raw,) if made.why_raw else ()
    disk.write_atomic(output, form)
    return EncodeResult(output, sha256_digest(form), len(form), len(data), labels, why)


def _read_symbols(path: Path, binary: bytes) -> addressfree.Hints:
    """Hints from the unstripped twin; IntegrityError when it is of another link."""
    try:
        twin, mine = parse_elf(_read(path)), parse_elf(binary)
    except FormatError as exc:
        raise FormatError(f"{path} has no symbols for this binary", cause=exc.message) from exc
    for name in LINKED_ALIKE:
        theirs, ours = twin.section(name), mine.section(name)
        same = (theirs is None) == (ours is None)
        if theirs is not None and ours is not None:
            same = theirs.addr == ours.addr and twin.bytes_of(theirs) == mine.bytes_of(ours)
        if not same:
            raise IntegrityError(
                f"{path} is of another link than the binary", cause=f"section {name} differs"
            )
    hints = addressfree.read_hints(twin)
    if not hints.symbols:
        raise FormatError(f"{path} has no symbols", cause="it is stripped")
    return hints


def decode(path: Path, output: Path, disk: Disk) -> DebugResult:
    """Write what a form stands for: a binary (executable), or a layer's tar."""
    form = _read(path)
    _check_output(output)
    with _about(path):
        data = decode_layer(form) if is_layer_form(form) else addressfree.decode(form)
    mode = 0o755 if data.startswith(b"\x7fELF") else 0o644
    return _write(output, data, disk, mode)


def diff(olds: Sequence[Path], new: Path, output: Path, disk: Disk) -> DebugResult:
    """Write the delta from old forms to a new one."""
    old_forms, new_form = [_read(path) for path in olds], _read(new)
    _check_output(output)
    return _write(output, delta.diff(old_forms, new_form), disk)


def patch(olds: Sequence[Path], delta_path: Path, output: Path, disk: Disk) -> DebugResult:
    """Write the new form that a delta makes of old ones, in the order it was made for."""
    old_forms, raw = [_read(path) for path in olds], _read(delta_path)
    _check_output(output)
    with _about(delta_path):
        new_form = delta.patch(old_forms, raw)
    return _write(output, new_form, disk)


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Errors name the file that they are about."""
    try:
        yield
    except FormatError as exc:
        raise type(exc)(f"{path}: {exc.message}", offset=exc.offset) from exc
    except IntegrityError as exc:
        hint = f"'layerkit inspect {path}' names the forms that it goes with"
        raise IntegrityError(f"{path}: {exc.message}", cause=exc.cause, hint=hint) from exc


def _read(path: Path) -> bytes:
    """A regular file, whole."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise UsageError(f"{path} is {kind}", hint="name a file")
        if status.st_size > MAX_FILE_SIZE:
            raise UsageError(f"{path} is over {MAX_FILE_SIZE} bytes")
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise NotFoundError(f"{path} does not exist") from exc
    except OSError as exc:
        raise StoreError(f"cannot read {path}", cause=str(exc.strerror)) from exc


def _check_output(path: Path) -> None:
    """Refuse what a rename must not replace: a folder, a device, a link."""
    if not path.parent.is_dir():
        raise NotFoundError(f"folder {path.parent} does not exist", hint="name a file with -o")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as exc:
        raise StoreError(f"cannot write {path}", cause=str(exc.strerror)) from exc
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is not a regular file", hint="name a file with -o")


def _write(output: Path, data: bytes, disk: Disk, mode: int = 0o644) -> DebugResult:
    disk.write_atomic(output, data, mode)
    return DebugResult(output, sha256_digest(data), len(data))
