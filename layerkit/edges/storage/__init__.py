"""Where a chunk server's images lie: a layout folder, an OCI registry or an S3 bucket."""

from __future__ import annotations

from layerkit.edges.storage.folder import FolderStorage
from layerkit.edges.storage.protocol import Shelf, Storage, StoredBlob
from layerkit.edges.storage.shelf import FolderShelf

__all__ = ["FolderShelf", "FolderStorage", "Shelf", "Storage", "StoredBlob"]
