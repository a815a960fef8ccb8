"""Packed forms that a server makes aside, of what tags name. `formats.formpack` is how."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from layerkit.digest import Digest
from layerkit.errors import LayerkitError, NotFoundError
from layerkit.formats.formpack import ANNOTATION_PACKED, PACKED_TYPE, pack, worth_packing
from layerkit.formats.oci import (
    ANNOTATION_LAYER,
    CHUNK_MANIFEST,
    CHUNKS_ARTIFACT,
    FORM_ZSTD,
    INDEX_TYPES,
    Descriptor,
    Manifest,
    parse_index,
    parse_manifest,
)
from layerkit.jobs.serve.catalogue import Catalogue
from layerkit.jobs.serve.forms import Forms

__all__ = ["Packing"]

PACKED_SIZE: Final = 256 << 20  # bytes of packed forms kept
PACKING_PAUSE: Final = 0.5  # seconds between two looks for new tags: one stat of a file
PACKING_NICENESS: Final = 15
_log = logging.getLogger(__name__)


class Packing:
    """Packs forms of `catalogue`. Safe for threads."""

    def __init__(self, catalogue: Catalogue, forms: Forms) -> None:
        self._catalogue = catalogue
        self._forms = forms
        self._lock = threading.Lock()
        self._packed: OrderedDict[Digest, bytes] = OrderedDict()  # empty: it does not pack

    def read(self, name: str, digest: Digest) -> bytes:
        """The packed form of a form blob, where there is one."""
        lists = self._catalogue.get(name).chunk_lists
        if all(form.digest != digest for form in lists.values()):
            raise NotFoundError(f"form {digest.short} is not in repository {name}")
        with self._lock:
            raw = self._packed.get(digest)
        if not raw:
            raise NotFoundError(f"form {digest.short} is not packed")
        return raw

    def annotate(self, name: str, entries: Sequence[Descriptor]) -> Sequence[Descriptor]:
        """Referrers of repository `name`: a chunks artifact with what of it is packed here."""
        with self._lock:
            packed = {form for form, raw in self._packed.items() if raw}
        return [self._annotate(name, one, packed) if packed else one for one in entries]

    def _annotate(self, name: str, entry: Descriptor, packed: set[Digest]) -> Descriptor:
        if entry.artifact_type != CHUNKS_ARTIFACT:
            return entry
        blobs = parse_manifest(self._catalogue.read_document(name, entry.digest)).layers
        names = ",".join(str(blob.digest) for blob in blobs if blob.digest in packed)
        more = {ANNOTATION_PACKED: names} if names else {}
        return replace(entry, annotations={**entry.annotations, **more})

    def pack_tagged(self, stop: threading.Event | None = None) -> int:
        """Pack the forms of all images that a tag names, the newest first, until PACKED_SIZE bytes
        are kept; those that were published packed are left alone. Returns how many were packed.
        3 s for 6 MB; nobody waits for it."""
        count = 0
        for name, listed, form in self._list_unpacked():
            with self._lock:
                full = sum(map(len, self._packed.values())) >= PACKED_SIZE
            if full or (stop is not None and stop.is_set()):
                break
            raw = b""
            try:
                form_size = self._forms.find_places(name, listed.digest).form_size
                if worth_packing(form.size, form_size):
                    raw = pack(self._forms.read_form(name, listed.digest, form))
            except LayerkitError as exc:
                _log.warning("form %s is not packed: %s", form.digest.short, exc.message)
            with self._lock:
                self._packed[form.digest] = raw if len(raw) < form.size else b""
            count += bool(raw)
        return count

    def _list_unpacked(self) -> list[tuple[str, Descriptor, Descriptor]]:
        """Chunk manifest and form of each layer of the tagged images that is still to be packed."""
        found: dict[Digest, tuple[str, Descriptor, Descriptor]] = {}
        for name, repository in self._catalogue.view().repositories.items():
            images = set(repository.tags.values())
            for top in repository.tags.values():
                if repository.manifests[top].media_type in INDEX_TYPES:
                    raw = self._catalogue.read_document(name, top)
                    images |= {child.digest for child in parse_index(raw).manifests}
            for image, referrers in repository.referrers.items():
                for entry in referrers if image in images else ():
                    if entry.artifact_type == CHUNKS_ARTIFACT:
                        raw = self._catalogue.read_document(name, entry.digest)
                        unpacked = _unpacked(parse_manifest(raw))
                        found |= {form: (name, *parts) for form, parts in unpacked.items()}
        with self._lock:
            return [parts for form, parts in found.items() if form not in self._packed]

    def keep_packing(self, stop: threading.Event) -> None:
        """Until `stop`: pack what is tagged, and what gets a tag from now on. Gives way to who
        answers requests."""
        with contextlib.suppress(OSError):  # of this thread alone, as Linux has it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), PACKING_NICENESS)
        seen = None
        while not stop.is_set():
            try:
                version = self._catalogue.view().version
                if seen != version:
                    seen = version
                    self.pack_tagged(stop)
            except LayerkitError as exc:
                _log.warning("nothing is packed: %s", exc.message)
            stop.wait(PACKING_PAUSE)


def _unpacked(artifact: Manifest) -> dict[Digest, tuple[Descriptor, Descriptor]]:
    """Chunk manifest and form of each layer in a chunks artifact that has no packed form, by the
    form's digest."""
    parts: dict[str, dict[str, Descriptor]] = {}
    for blob in artifact.layers:
        parts.setdefault(blob.annotations.get(ANNOTATION_LAYER, ""), {})[blob.media_type] = blob
    return {
        part[FORM_ZSTD].digest: (part[CHUNK_MANIFEST], part[FORM_ZSTD])
        for part in parts.values()
        if CHUNK_MANIFEST in part and FORM_ZSTD in part and PACKED_TYPE not in part
    }
