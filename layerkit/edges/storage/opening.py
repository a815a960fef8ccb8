"""From what a person writes to a storage: a folder, a registry's URL, a bucket's URL.

Registries and buckets load what speaks to them when they are opened: 0.1 to 0.3 s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from layerkit.edges.disk import Disk
from layerkit.edges.storage.cache import BlobCache
from layerkit.edges.storage.cached import CachedStorage, Origin
from layerkit.edges.storage.folder import FolderStorage
from layerkit.edges.storage.protocol import Shelf, Storage
from layerkit.edges.storage.shelf import FolderShelf
from layerkit.errors import UsageError

__all__ = ["is_bucket", "is_registry", "open_storage"]

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
    disk: Disk | None = None,
    config: Path | None = None,
    ca: Path | None = None,
    realms: Collection[str] = (),
) -> Storage:
    """The storage that `text` names. `cache` is the folder for what is fetched, needed but for a
    folder; `made` (a folder, or an s3: URL) is where servers keep what they make, if not beside the
    images. `config`, `ca` and `realms` are a registry's (see `Transport`). Raises UsageError."""
    disk = disk or Disk()
    if not (is_registry(text) or is_bucket(text)):
        if "://" in text:
            raise UsageError(
                f"{text[:120]!r} is no storage",
                hint="name a layout folder, https://registry or s3://bucket/prefix",
            )
        path = Path(text)
        return FolderStorage(path, _open_shelf(made, disk) or FolderShelf(path / MADE, disk))
    if cache is None:
        raise UsageError(f"{text[:120]!r} needs a folder for what is fetched", hint="give --cache")
    shelf = _open_shelf(made, disk)
    blobs = BlobCache(cache, disk)
    if is_bucket(text):
        origin, beside = _open_bucket(text)
        return CachedStorage(origin, blobs, shelf or beside)
    from layerkit.edges.registry import Registry, Transport
    from layerkit.edges.storage.registry import RegistryOrigin

    parts = urlsplit(text)
    if not parts.netloc or parts.path.strip("/") or parts.query or parts.username:
        raise UsageError(
            f"{text[:120]!r} is not a registry", hint="write https://host, with --repository NAME"
        )
    transport = Transport(
        parts.netloc,
        plain_http=parts.scheme == "http",
        config=config,
        ca=ca,
        realms=realms,
    )
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    shelf = shelf or FolderShelf(cache / f"{MADE}-{name}", disk)
    return CachedStorage(RegistryOrigin(Registry(transport), repositories), blobs, shelf)


def _open_shelf(made: str, disk: Disk) -> Shelf | None:
    if is_bucket(made):
        return _open_bucket(made)[1]
    return FolderShelf(Path(made), disk) if made else None


def _open_bucket(url: str) -> tuple[Origin, Shelf]:
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
    return BucketOrigin(bucket), BucketShelf(bucket)
