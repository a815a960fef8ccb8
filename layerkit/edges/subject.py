"""What a person names on the command line to be looked at: a file, or an image in a layout.

``FILE`` · ``LAYOUT:REF`` · ``LAYOUT`` (its only image) · ``REF`` together with ``--layout``. Reads
from this machine only. Limits: MAX_FILE_SIZE.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layerkit.edges.layout import Layout
from layerkit.errors import NotFoundError, StoreError, UsageError
from layerkit.formats.oci import Descriptor
from layerkit.formats.reference import Reference

__all__ = ["Subject", "find_subject"]

MAX_FILE_SIZE: Final = 2 << 30  # bytes; held in memory
_HINT: Final = "name a file, LAYOUT:REF, or REF with --layout LAYOUT"


@dataclass(frozen=True, slots=True)
class Subject:
    """A file's bytes, or (with `layout` and `descriptor`) an image or an index of images."""

    name: str
    raw: bytes = b""
    layout: Layout | None = None
    descriptor: Descriptor | None = None


def find_subject(text: str, layout: Path | None, fallback: Path | None = None) -> Subject:
    """Find what `text` names; NotFoundError if it is not on this machine.

    `layout` makes `text` a reference; `fallback` is a layout that is tried last.
    """
    if layout is not None:
        return _image(Layout(layout), text)
    path = Path(text)
    if path.is_file():
        return Subject(text, _read_file(path))
    if path.is_dir():
        return _only_image(Layout(path), text)
    for at in (at for at, letter in enumerate(text) if letter == ":"):
        if Path(text[:at]).is_dir():
            return _image(Layout(Path(text[:at])), text[at + 1 :])
    if fallback is not None and Layout(fallback).exists():
        return _image(Layout(fallback), text)
    raise NotFoundError(f"{text} is neither a file nor an image in a layout", hint=_HINT)


def _image(layout: Layout, ref: str) -> Subject:
    parsed = Reference.parse(ref)
    return Subject(str(parsed.tagged), b"", layout, layout.resolve(parsed))


def _only_image(layout: Layout, text: str) -> Subject:
    tags = layout.tags()
    if len({entry.digest for entry in tags.values()}) != 1:
        have = ", ".join(sorted(tags)[:5]) or "none"
        raise UsageError(
            f"layout {text} has {len(tags)} images", cause=f"it has {have}", hint=_HINT
        )
    name, descriptor = next(iter(tags.items()))
    return Subject(name, b"", layout, descriptor)


def _read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_SIZE:
            raise UsageError(f"{path} is over {MAX_FILE_SIZE} bytes")
        return path.read_bytes()
    except OSError as exc:
        raise StoreError(f"cannot read {path}", cause=str(exc.strerror)) from exc
