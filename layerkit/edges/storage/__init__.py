"""Where a chunk server's images lie: a layout folder, an OCI registry or an S3 bucket."""

from __future__ import annotations

from layerkit.edges.storage.cache import BlobCache
from layerkit.edges.storage.cached import CachedStorage, Origin
from layerkit.edges.storage.folder import FolderStorage
from layerkit.edges.storage.opening import open_storage
from layerkit.edges.storage.protocol import Shelf, Storage, StoredBlob
from layerkit.edges.storage.shelf import FolderShelf

__all__ = [
    "BlobCache",
    "CachedStorage",
    "FolderShelf",
    "FolderStorage",
    "Origin",
    "Shelf",
    "Storage",
    "StoredBlob",
    "open_storage",
]
