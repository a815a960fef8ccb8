"""From what a person writes to a storage: a folder, a registry's URL, a bucket's URL.

Registries and buckets load what speaks to them when they are opened: 0.1 to 0.3 s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from layerkit.edges.disk import Disk
from layerkit.edges.storage.cache import BlobCache
from layerkit.edges.storage.cached import CachedStorage, Origin
from layerkit.edges.storage.folder import FolderStorage
from layerkit.edges.storage.protocol import Shelf, Storage
from layerkit.edges.storage.shelf import SHELF_SIZE, FolderShelf
from layerkit.errors import UsageError

if TYPE_CHECKING:
    from layerkit.edges.registry import Registry

__all__ = ["is_bucket", "is_registry", "open_registry", "open_storage"]

MADE: Final = "made"


def is_registry(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def is_bucket(text: str) -> bool:
    return text.startswith("s3://")


def open_storage(
    text: str,
    *,
    repositories: Sequence[str] = (),
    cache: Path | None = None,
    made: str = "",
    made_size: int = SHELF_SIZE,
    disk: Disk | None = None,
    config: Path | None = None,
    ca: Path | None = None,
    realms: Collection[str] = (),
) -> Storage:
    """The storage that `text` names. `cache` is the folder for what is fetched, needed but for a
    folder; `made` (a folder, or an s3: URL) is where servers keep what they make, within
    `made_size` bytes. Without it that is beside a bucket's images, else in `cache`: never in a
    layout, which others may serve without asking who reads. `config`, `ca` and `realms` are a
    registry's (see `Transport`). Raises UsageError."""
    disk = disk or Disk()
    if not (is_registry(text) or is_bucket(text)):
        if "://" in text:
            raise UsageError(
                f"{text[:120]!r} is no storage",
                hint="name a layout folder, https://registry or s3://bucket/prefix",
            )
        path = Path(text)
        shelf = _open_shelf(made, made_size, disk)
        if shelf is None and cache is not None:
            shelf = FolderShelf(_made_of(cache, str(path.resolve())), disk, made_size)
        return FolderStorage(path, shelf)
    if cache is None:
        raise UsageError(f"{text[:120]!r} needs a folder for what is fetched", hint="give --cache")
    shelf = _open_shelf(made, made_size, disk)
    blobs = BlobCache(cache, disk)
    if is_bucket(text):
        origin, beside = _open_bucket(text, made_size)
        return CachedStorage(origin, blobs, shelf or beside)
    from layerkit.edges.storage.registry import RegistryOrigin

    registry = open_registry(text, config=config, ca=ca, realms=realms)
    shelf = shelf or FolderShelf(_made_of(cache, text), disk, made_size)
    return CachedStorage(RegistryOrigin(registry, repositories), blobs, shelf)


def open_registry(
    text: str,
    *,
    config: Path | None = None,
    ca: Path | None = None,
    realms: Collection[str] = (),
    patience: float | None = None,
) -> Registry:
    """The registry at a URL, which has no path; `patience` if not the usual seconds. UsageError."""
    from layerkit.edges.registry import PATIENCE, Registry, Transport

    parts = urlsplit(text)
    if not parts.netloc or parts.path.strip("/") or parts.query or parts.username:
        raise UsageError(
            f"{text[:120]!r} is not a registry",
            hint="write https://host; the repository is said apart from it",
        )
    return Registry(
        Transport(
            parts.netloc,
            plain_http=parts.scheme == "http",
            config=config,
            ca=ca,
            realms=realms,
            patience=PATIENCE if patience is None else patience,
        )
    )


def _open_shelf(made: str, made_size: int, disk: Disk) -> Shelf | None:
    if is_bucket(made):
        return _open_bucket(made, made_size)[1]
    return FolderShelf(Path(made), disk, made_size) if made else None


def _made_of(cache: Path, storage: str) -> Path:
    """A folder of its own for each storage: one's readers must not find another's by its key."""
    return cache / f"{MADE}-{hashlib.sha256(storage.encode()).hexdigest()[:16]}"


def _open_bucket(url: str, made_size: int) -> tuple[Origin, Shelf]:
    """What lies in a bucket, and the shelf beside it."""
    try:
        from layerkit.edges.storage.bucket import Bucket, BucketOrigin, BucketShelf
    except ModuleNotFoundError as exc:
        raise UsageError(
            f"{url[:120]} needs boto3, which is not installed",
            cause=str(exc),
            hint="run \"pip install 'layerkit[s3]'\"",
        ) from exc
    bucket = Bucket(url)
    return BucketOrigin(bucket), BucketShelf(bucket, made_size)
