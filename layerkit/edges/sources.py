"""What goes into layers besides the binary: a function's files, CA certificates, time zones.

Reads only. Of a file's mode only the owner's execute bit is kept, so that neither umask nor
checkout changes a digest; links are followed inside the function's folder only. Certificates come
from the certifi package, zones from tzdata: never from the machine. Limits: MAX_ASSET_SIZE.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import certifi
import tzdata

from layerkit.edges.disk import map_os_error
from layerkit.errors import NotFoundError, UsageError
from layerkit.formats import layer
from layerkit.formats.buildconfig import FILE_NAME

__all__ = ["base_packages", "read_assets", "read_base", "read_file"]

MAX_ASSET_SIZE: Final = 4 << 30  # bytes of one asset; layers are held in memory


def read_file(path: Path) -> bytes:
    """A whole file; an operating system error becomes ours."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_ASSET_SIZE + 1)
    except OSError as exc:
        raise map_os_error(exc, "read", path) from exc
    if len(data) > MAX_ASSET_SIZE:
        raise UsageError(f"{path} is over {MAX_ASSET_SIZE} bytes")
    return data


def read_assets(folder: Path, patterns: Sequence[str], key: str) -> list[layer.Entry]:
    """The files that the patterns name, as /app/PATH; only the owner's execute bit is kept."""
    found: dict[str, Path] = {}
    for pattern in patterns:
        if pattern.startswith("/") or ".." in Path(pattern).parts:
            raise UsageError(f"{FILE_NAME}: {key}: {pattern!r} leaves the function's folder")
        hits = sorted(folder.glob(pattern))
        if not hits:
            raise NotFoundError(f"{FILE_NAME}: {key}: nothing is named {pattern!r} in {folder}")
        for hit in hits:
            for path in sorted(hit.rglob("*")) if hit.is_dir() else [hit]:
                if not path.is_dir():
                    found[path.relative_to(folder).as_posix()] = path
    entries = []
    for name, path in sorted(found.items()):
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"{FILE_NAME}: {key}: {name!r} is no file of the function's folder")
        if not name.isprintable():
            raise UsageError(f"{FILE_NAME}: {key}: {name!r} is not a printable name")
        mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
        entries.append(layer.Entry(f"{layer.APP_FOLDER}/{name}", read_file(path), mode))
    return entries


def base_packages() -> tuple[tuple[str, str], ...]:
    """Names and versions of the Python packages that the base layer is made from."""
    return (("certifi", certifi.__version__), ("tzdata", tzdata.__version__))


def read_base() -> tuple[list[layer.Entry], str]:
    """The base layer's entries and what they were made from."""
    root = importlib.resources.files(tzdata)
    names = root.joinpath("zones").read_text("utf-8").split()
    zones = {name: root.joinpath("zoneinfo", *name.split("/")).read_bytes() for name in names}
    bundle = certifi.contents().encode("ascii")
    made_from = "layerkit base: " + ", ".join(f"{name} {v}" for name, v in base_packages())
    return layer.base_entries(bundle, zones), made_from
