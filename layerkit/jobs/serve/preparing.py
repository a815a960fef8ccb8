"""What a server makes before anyone asks: updates to what tags name from what they named before,
then packed forms.

One thread of low priority, which does a thing at a time and begins none while a caller waits for
one. A tag that moves comes first, whatever is due besides. What was made by another server, or
before a restart, is found on the shelf.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Final

from layerkit.digest import Digest
from layerkit.errors import LayerkitError
from layerkit.formats.oci import INDEX_TYPES, Platform
from layerkit.formats.tokens import Caller
from layerkit.jobs.serve.ledger import Ledger, Prepared
from layerkit.jobs.updating.catalogue import Catalogue, Repository, View
from layerkit.jobs.updating.packing import Packing
from layerkit.jobs.updating.updates import ANY, MAKE_SECONDS, Updates
from layerkit.jobs.updating.workshop import Workshop

__all__ = ["PREPARE_COUNT", "Preparing"]

PREPARE_COUNT: Final = 3  # versions before the new one: nodes that watch have one of them
PAUSE: Final = 0.5  # seconds between two looks for new tags: one stat of a file
IDLE_SECONDS: Final = 1.0  # between two looks whether it is to stop while callers wait
NICENESS: Final = 15
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Step:
    """An update to prepare: repository, new and old image, for which platform."""

    name: str
    new: Digest
    old: Digest
    platform: Platform


class Preparing:
    """Prepares what is in `catalogue`. `updates` makes in the thread that asks it, at nobody's
    cost; `count` is of versions, 0 for none."""

    def __init__(
        self,
        catalogue: Catalogue,
        updates: Updates,
        packing: Packing,
        workshop: Workshop,
        ledger: Ledger,
        count: int = PREPARE_COUNT,
    ) -> None:
        self._catalogue = catalogue
        self._updates = updates
        self._packing = packing
        self._workshop = workshop
        self._ledger = ledger
        self._count = count
        self._seen: dict[str, dict[str, Digest]] = {}  # tags of each repository
        self._version: Hashable = None
        self._due: dict[_Step, None] = {}  # the next one first

    def run(self, stop: threading.Event) -> None:
        """Until `stop`. Of this thread alone, as Linux has it, the priority is lowered."""
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while not stop.is_set():
            if not self._workshop.wait_idle(IDLE_SECONDS):
                continue
            try:
                is_done = not self.step()
            except LayerkitError as exc:  # of the storage: it is looked at again
                _log.warning("nothing is prepared: %s (%s)", exc.message, exc.cause)
                is_done = True
            if is_done:
                stop.wait(PAUSE)

    def step(self) -> bool:
        """Do the next thing; False if there is none."""
        view = self._catalogue.view()
        if view.version != self._version:
            self._version = view.version
            self._look(view)
        if self._due:
            step = next(iter(self._due))
            del self._due[step]
            self._prepare(step)
            if not self._due:
                self._ledger.save()
            return True
        unpacked = self._packing.list_unpacked()
        if unpacked:
            self._packing.pack(unpacked[0])
            return True
        return False

    def _look(self, view: View) -> None:
        """Put what has moved before what is due."""
        new: dict[_Step, None] = {}
        for name, repository in view.repositories.items():
            for top in _moved(repository, self._seen.get(name)):
                for step in self._steps(repository, top):
                    new.setdefault(step)
        self._seen = {name: dict(one.tags) for name, one in view.repositories.items()}
        self._due = new | {
            step: None for step in self._due if step.name in view.repositories and step not in new
        }

    def _steps(self, repository: Repository, top: Digest) -> Iterator[_Step]:
        versions = list(repository.versions)
        if top not in versions:
            return
        start, stored = versions.index(top) + 1, repository.updates.get(top, ())
        for old in versions[start : start + self._count]:
            for platform in self._platforms(repository, top):
                if any(one.old == old and one.fits(platform) for one in stored):
                    continue  # it was published
                yield _Step(repository.name, top, old, platform)

    def _platforms(self, repository: Repository, top: Digest) -> list[Platform]:
        if repository.manifests[top].media_type not in INDEX_TYPES:
            return [ANY]
        return self._catalogue.list_platforms(top)

    def _prepare(self, step: _Step) -> None:
        what = f"{step.name} from {step.old.short} to {step.new.short}"
        caller = Caller("", (step.name,), ())
        try:
            answer = self._updates.answer(
                step.name, step.new, [step.old], caller, step.platform, MAKE_SECONDS
            )
        except LayerkitError as exc:
            _log.warning("update of %s is not prepared: %s (%s)", what, exc.message, exc.cause)
            return
        except Exception:  # one image that we fail at must not keep all others from being prepared
            _log.exception("update of %s is not prepared", what)
            return
        if answer.stream is not None:
            whole = sum(share.whole_size for share in answer.shares)
            self._ledger.add(step.name, Prepared(step.old, step.new, answer.stream.size, whole))


def _moved(repository: Repository, seen: dict[str, Digest] | None) -> list[Digest]:
    """What tags name since the last look; of a repository that was not seen before, the newest
    version: it may have been published while no server ran."""
    if seen is None:
        return list(repository.versions)[:1]
    found = dict.fromkeys(repository.tags.values())
    return [top for top in found if top not in seen.values()]
