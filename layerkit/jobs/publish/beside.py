"""What helps nodes, made beside an image while that is sent: updates and packs of chunks.

An extra: whatever keeps one from being made is told, and the image goes without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from layerkit.edges.layout import Layout
from layerkit.edges.storage.reading import ImageReader, LayoutReader
from layerkit.edges.storage.targets import Document, Target
from layerkit.errors import LayerkitError, NotFoundError
from layerkit.formats.oci import Descriptor
from layerkit.formats.reference import Reference
from layerkit.jobs.publish.content import Content
from layerkit.jobs.publish.lean import Lean, LeanReader, find_lean
from layerkit.jobs.publish.wanted import Extras, Progress
from layerkit.jobs.updating.packs import put_packs
from layerkit.jobs.updating.stored import Image, MadeUpdate, find_stored, make_updates, put_update

__all__ = ["Beside", "find_old"]

_log = logging.getLogger(__name__)


def find_old(layout: Layout, target: Target, ref: Reference) -> Image:
    """An image that nodes have, as the layout or else the target knows it."""
    found = LayoutReader(layout).resolve(ref) or target.reader.resolve(ref)
    if found is None:
        raise NotFoundError(
            f"{ref} is neither in {layout.path} nor in {target.where}",
            hint="name an image that was pushed, by its tag or digest",
        )
    return Image(ref.repository, found)


@dataclass(slots=True)
class Beside:
    """For one push of an image of `size` bytes, which need not be in the target yet. Blobs are
    put as they are made; `documents` are the manifests that refer with them, for when the image is
    there. Each old image counts once more as `size` in the progress: it is read again."""

    layout: Layout
    ref: Reference
    target: Target
    content: Content
    size: int
    progress: Progress
    warn: Callable[[str], None]
    extras: Extras
    lean: Lean = field(default_factory=Lean)
    has_update: bool = False
    documents: list[Document] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # of the updates that were made
    _before: list[Image] = field(default_factory=list)  # what the tag named
    _olds: list[Image] = field(default_factory=list)

    @property
    def top(self) -> Descriptor:
        return self.content.top

    @property
    def leaves_out(self) -> bool:
        """Now that updates are made: do the forms of `lean` stay out?"""
        is_lean = self.has_update if self.extras.forms is None else not self.extras.forms
        return bool(self.lean.documents) and (is_lean or self.lean.is_there)

    def prepare(self, named: Sequence[Image]) -> None:
        """Find what updates are made from, and which forms may be left out."""
        count, extras = self.extras.update_count, self.extras
        with self._told():
            tops = self.target.reader.find_tops(self.ref, max(count, 1) + 1)
            name = self.ref.repository
            self._before = [Image(name, old) for old in tops if old.digest != self.top.digest]
            self._olds = [*named, *self._before[:count]]
            is_lean = extras.forms is False or (extras.forms is None and bool(self._olds))
            if self.target.is_lean and is_lean:
                olds = [*named, *self._before]
                self.lean = find_lean(self.layout, self.target.reader, self.ref, self.content, olds)

    def make(self, is_vain: Callable[[], bool]) -> None:
        """Until all is made, or `is_vain` says that nobody will need it."""
        new, extras = Image(self.ref.repository, self.top), self.extras
        plain = (LayoutReader(self.layout), self.target.reader)
        readers: tuple[ImageReader, ...] = plain
        if self.target.is_lean:
            readers = (LeanReader(self.layout, self.target.reader, self.lean), self.target.reader)
        with self._told():
            self.progress.total(self.size * len(self._olds))
            known = find_stored(self.target.reader, new) if self._olds else []
            self.has_update = bool(known)
            for one in self._count(make_updates(readers, new, self._olds, known, warn=self.warn)):
                self.documents.append(put_update(self.target, self.ref, self.top, one))
                self.has_update = True
                if is_vain():
                    return
        if extras.packs is False or (extras.packs is None and self.has_update):
            return
        with self._told():
            last = self._before[0] if self._before else None
            for document in put_packs(plain, self.target, self.ref, new, last):
                self.documents.append(document)  # one by one: what is there counts
                if is_vain():
                    return

    def _count(self, made: Iterable[MadeUpdate]) -> Iterator[MadeUpdate]:
        for one in made:
            yield one
            self.progress.advance(self.size)
            self.sizes.append(len(one.raw))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except LayerkitError as exc:
            self.warn(f"the image goes without some of its updates or packs: {exc.message}")
        except Exception as exc:  # an image that we fail at must be pushed nevertheless
            _log.exception("updates and packs of %s", self.top.digest.short)
            self.warn(f"the image goes without some of its updates or packs: {exc!r}")
