"""Packed forms that servers make aside, of what tags name. `formats.formpack` is how.

What was packed lies under its key in `Kept`, so also on the shelf: servers find each other's. A
form that packing gains nothing for is known as such. Nobody waits for a packed form: while there is
none, the form blob is the quick way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from layerkit.digest import Digest
from layerkit.errors import LayerkitError, NotFoundError
from layerkit.formats.formpack import ANNOTATION_PACKED, PACKED_TYPE, pack, worth_packing
from layerkit.formats.oci import (
    ANNOTATION_LAYER,
    CHUNK_MANIFEST,
    CHUNKS_ARTIFACT,
    FORM_ZSTD,
    Descriptor,
    Manifest,
)
from layerkit.jobs.updating.catalogue import Catalogue
from layerkit.jobs.updating.forms import Forms
from layerkit.jobs.updating.kept import Kept

__all__ = ["PACKED_SIZE", "Packing", "Unpacked"]

PACKED_SIZE: Final = 256 << 20  # bytes of packed forms in all: the rest of the shelf is for deltas
LOOK_SECONDS: Final = 5.0  # until it is looked again whether another server has packed a form
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A form that was published without a packed one, and where to read it."""

    name: str
    listed: Descriptor
    form: Descriptor


class Packing:
    """The packed forms of `catalogue`. Safe for threads. `may_come`: this server, or one that
    shares its shelf, packs."""

    def __init__(
        self,
        catalogue: Catalogue,
        forms: Forms,
        kept: Kept,
        *,
        may_come: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalogue = catalogue
        self._forms = forms
        self._kept = kept
        self._may_come = may_come
        self._now = now
        self._lock = threading.Lock()
        self._sizes: dict[Digest, int] = {}  # of what is known; 0: it does not pack
        self._looked: dict[Digest, float] = {}
        self._listed: tuple[Hashable, dict[Digest, Unpacked]] | None = None  # of a version

    # --- for nodes -------------------------------------------------------------------------------

    def read(self, name: str, digest: Digest) -> bytes:
        """The packed form of a form blob of repository `name`, where there is one."""
        lists = self._catalogue.get(name).chunk_lists
        if all(form.digest != digest for form in lists.values()):
            raise NotFoundError(f"form {digest.short} is not in repository {name}")
        raw = self.find(digest)
        if raw is None:
            raise NotFoundError(f"form {digest.short} is not packed")
        return raw

    def find(self, form: Digest) -> bytes | None:
        """The packed form of a form blob, made here or by another server."""
        if not self._is_known(form):
            return None
        try:
            return self._kept.find(_key(form))
        except NotFoundError:  # the shelf has dropped it
            self._forget(form)
            return None

    def is_coming(self, form: Digest) -> bool:
        """May there be a packed form soon, where there is none yet?"""
        with self._lock:
            full = sum(self._sizes.values()) >= PACKED_SIZE
        return self._may_come and not full and form in self._unpacked() and not self._decided(form)

    def annotate(self, name: str, entries: Sequence[Descriptor]) -> Sequence[Descriptor]:
        """Referrers of repository `name`: a chunks artifact with what of it is packed here."""
        return [
            self._annotate(entry) if entry.artifact_type == CHUNKS_ARTIFACT else entry
            for entry in entries
        ]

    def _annotate(self, entry: Descriptor) -> Descriptor:
        artifact = self._catalogue.find_document(entry.digest)
        blobs = artifact.layers if isinstance(artifact, Manifest) else ()
        forms = [blob.digest for blob in blobs if blob.media_type == FORM_ZSTD]
        names = ",".join(str(form) for form in forms if self._is_known(form))
        return (
            replace(entry, annotations={**entry.annotations, ANNOTATION_PACKED: names})
            if names
            else entry
        )

    # --- packing ---------------------------------------------------------------------------------

    def list_unpacked(self) -> list[Unpacked]:
        """What is still to be packed of the images that tags name, the newest first; nothing when
        PACKED_SIZE is reached."""
        with self._lock:
            if sum(self._sizes.values()) >= PACKED_SIZE:
                return []
        found = self._unpacked()
        return [one for form, one in found.items() if not self._decided(form)]

    def pack(self, one: Unpacked) -> bool:
        """Pack it in this thread; False where there is nothing to gain. 3 s for 6 MB."""
        form, raw = one.form, None

        def make() -> bytes | None:
            made = pack(self._forms.read_form(one.name, one.listed.digest, form))
            return made if len(made) < form.size else None

        try:
            form_size = self._forms.find_places(one.name, one.listed.digest).form_size
            if worth_packing(form.size, form_size):
                raw = self._kept.make_here(_key(form.digest), make, form_size)
        except LayerkitError as exc:
            _log.warning("form %s is not packed: %s", form.digest.short, exc.message)
        except Exception:  # one form that we fail at must not keep all others from being packed
            _log.exception("form %s is not packed", form.digest.short)
        self._learn(form.digest, raw)
        return raw is not None

    def _unpacked(self) -> dict[Digest, Unpacked]:
        """By the form's digest, for the current view."""
        view = self._catalogue.view()
        if self._listed is not None and self._listed[0] == view.version:
            return self._listed[1]
        found: dict[Digest, Unpacked] = {}
        for name, repository in view.repositories.items():
            for top in repository.tags.values():
                for image, _ in self._catalogue.list_images(top):
                    for entry in repository.referrers.get(image, []):
                        artifact = self._catalogue.find_document(entry.digest)
                        if entry.artifact_type == CHUNKS_ARTIFACT and artifact is not None:
                            assert isinstance(artifact, Manifest)  # it has a subject
                            for one in _list_unpacked(name, artifact):
                                found.setdefault(one.form.digest, one)
        self._listed = (view.version, found)
        return found

    # --- what is known ---------------------------------------------------------------------------

    def _is_known(self, form: Digest) -> bool:
        return self._decided(form) and bool(self._sizes.get(form))

    def _decided(self, form: Digest) -> bool:
        """Is there a packed form, or is it known that there will be none? Looks on the shelf now
        and then."""
        with self._lock:
            if form in self._sizes:
                return True
            if self._now() - self._looked.get(form, -LOOK_SECONDS) < LOOK_SECONDS:
                return False
            self._looked[form] = self._now()
        try:
            self._learn(form, self._kept.find(_key(form)))
        except NotFoundError:
            return False
        return True

    def _learn(self, form: Digest, raw: bytes | None) -> None:
        with self._lock:
            self._sizes[form] = len(raw or b"")
            self._looked.pop(form, None)

    def _forget(self, form: Digest) -> None:
        with self._lock:
            self._sizes.pop(form, None)


def _key(form: Digest) -> str:
    return f"{PACKED_TYPE}/{form}"  # a packed form of another version is another thing


def _list_unpacked(name: str, artifact: Manifest) -> list[Unpacked]:
    """The layers in a chunks artifact whose form is large enough to pack, and is not packed."""
    parts: dict[str, dict[str, Descriptor]] = {}
    for blob in artifact.layers:
        parts.setdefault(blob.annotations.get(ANNOTATION_LAYER, ""), {})[blob.media_type] = blob
    return [
        Unpacked(name, part[CHUNK_MANIFEST], part[FORM_ZSTD])
        for part in parts.values()
        if CHUNK_MANIFEST in part and FORM_ZSTD in part and PACKED_TYPE not in part
        if worth_packing(part[FORM_ZSTD].size, 0)  # the form's own size is known later
    ]
