"""Updates that lie beside an image in the storage: answered at once, at nobody's cost.

Each is looked at once: its bytes are what its digest says, it starts from the image that it names,
and it leads to the one that it refers to. One that is something else is not used, and an update is
made as if it were not there. A large one goes out as the file that it is.

Memory: CACHE_SIZE of small ones.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

from layerkit.digest import Digest, sha256_digest, verify_stream
from layerkit.edges.http.source import Blob, UpdateAnswer
from layerkit.edges.storage import Storage
from layerkit.errors import FormatError, LayerkitError
from layerkit.formats.oci import Platform
from layerkit.formats.storedupdate import StoredUpdate
from layerkit.formats.tokens import Caller
from layerkit.formats.update import Documents, Share, UpdateReader
from layerkit.formats.updating import layers_of
from layerkit.jobs.updating.cache import Cache
from layerkit.jobs.updating.catalogue import Catalogue
from layerkit.jobs.updating.library import Library
from layerkit.jobs.updating.updates import count_shares

__all__ = ["StoredUpdates"]

SMALL_SIZE: Final = 256 << 10  # bytes: kept in memory, and as an answer that is ready
CACHE_SIZE: Final = 32 << 20
ENTRY_SIZE: Final = 1024  # bytes that an entry counts at least
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Opened:
    """An update that was looked at; `body` is None if it is not to be used."""

    body: bytes | Blob | None
    shares: tuple[Share, ...]


class StoredUpdates:
    """The stored updates of `catalogue`. Safe for threads."""

    def __init__(self, catalogue: Catalogue, library: Library, storage: Storage) -> None:
        self._catalogue = catalogue
        self._library = library
        self._storage = storage
        self._opened = Cache[_Opened](CACHE_SIZE)

    def find(
        self, name: str, top: Digest, have: Sequence[Digest], platform: Platform, caller: Caller
    ) -> UpdateAnswer | None:
        """The least update to image `top` of repository `name` for who holds the images `have`."""
        found = [
            one
            for one in self._catalogue.get(name).updates.get(top, ())
            if one.old in have and one.fits(platform)
        ]
        for one in sorted(found, key=lambda one: (one.size, one.manifest)):
            if not self._may_start_from(name, one.old, caller):
                continue
            opened = self._open(name, top, one, platform)
            if opened.body is not None:
                return UpdateAnswer(top, opened.body, opened.shares, True, one.blob.hex)
        return None

    def _may_start_from(self, name: str, old: Digest, caller: Caller) -> bool:
        """What is held in repositories that the caller may not see is no start for him."""
        if self._library.find_holder(name, old, caller) is not None:
            return True
        return not self._catalogue.view().image_holders.get(old)

    def _open(self, name: str, top: Digest, stored: StoredUpdate, platform: Platform) -> _Opened:
        key: Hashable = (name, stored.manifest)

        def make() -> tuple[_Opened, int]:
            try:
                opened = self._look(name, top, stored, platform)
            except FormatError as exc:  # it stays so
                _log.warning("update %s is not used: %s", stored.blob.short, exc.message)
                opened = _Opened(None, ())
            size = len(opened.body) if isinstance(opened.body, bytes) else 0
            return opened, max(size, ENTRY_SIZE)

        try:
            return self._opened.get(key, make)
        except LayerkitError as exc:  # it is tried again
            _log.warning("update %s cannot be read: %s", stored.blob.short, exc.message)
            return _Opened(None, ())

    def _look(self, name: str, top: Digest, stored: StoredUpdate, platform: Platform) -> _Opened:
        blob = self._storage.open_blob(name, stored.blob)
        what = f"update {stored.blob.short}"
        parts = verify_stream(blob.read(0, blob.size), stored.blob, stored.size, what)
        small = blob.size <= SMALL_SIZE
        raw = b"".join(parts) if small else b""
        reader = UpdateReader([raw] if small else parts)
        shares = self._check(name, top, stored, platform, reader)
        for _ in parts:  # to its end, for its digest
            pass
        return _Opened(raw if small else Blob(blob.size, "", blob.path, blob.read), shares)

    def _check(
        self,
        name: str,
        top: Digest,
        stored: StoredUpdate,
        platform: Platform,
        reader: UpdateReader,
    ) -> tuple[Share, ...]:
        """FormatError for an update that leads elsewhere. One from an image that is not held any
        more cannot be read; the node that holds it can."""
        if reader.old != stored.old:
            raise FormatError("update: it starts from another image than it says")
        old = self._find_old(name, stored.old, platform)
        if old is None:
            return (Share("", stored.size, 0),)
        new = reader.read_documents(old)
        if sha256_digest(new.top) != top:
            raise FormatError("update: it leads to another image than it refers to")
        sizes = [(entry.layer, entry.size) for entry in reader.table]
        return count_shares(layers_of(new), sizes, stored.size)

    def _find_old(self, name: str, old: Digest, platform: Platform) -> Documents | None:
        holder = self._library.find_holder(name, old, Caller("", ("*",), ()))
        if holder is None:
            return None
        return self._library.find_documents(holder, old, platform)
