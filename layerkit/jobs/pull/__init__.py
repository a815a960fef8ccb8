"""`layerkit pull`: bring an image into the store, moving only what the node lacks.

choose the way -> an update, or documents -> plan (pure) -> fetch -> verify each chunk -> assemble
-> verify form digest and diff_id -> commit -> materialise. What was fetched stays fetched: after a
crash or a cut the next pull goes on. The chunks artifact only says how to move bytes; what is
accepted is decided by the image's own manifest and diff_ids. Memory: one layer's form and plain
tar, and plain tars up to KEEP_SIZE while they are to be written out.

`documents` reads what the reference names, `updates` takes what one answer brings, `fetching` moves
bytes into the store, `rates` measures, `rebuilding` makes forms of what came plainly; `pulling`
is one pull with its steps, here is their order.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from layerkit.edges.disk import Disk
from layerkit.edges.rootfs import Limits, Rights
from layerkit.edges.spares import Spares
from layerkit.edges.store import Store
from layerkit.edges.upstream import Upstream
from layerkit.errors import StoreChangedError
from layerkit.formats import oci
from layerkit.formats.plan import LayerPlan, LayerWant, Plan, plan_pull
from layerkit.formats.reference import Reference
from layerkit.jobs.pull.documents import Check, WantedImage, host_platform
from layerkit.jobs.pull.fetching import Fetcher, Progress
from layerkit.jobs.pull.pulling import Output, Pull, PullResult
from layerkit.jobs.pull.rates import Stopwatch
from layerkit.jobs.pull.rebuilding import rebuild_forms
from layerkit.jobs.pull.signatures import make_check
from layerkit.jobs.pull.trees import Target

__all__ = [
    "LayerPlan",
    "LayerWant",
    "Plan",
    "PullResult",
    "host_platform",
    "make_check",
    "make_spare",
    "plan_pull",
    "pull",
    "rebuild_forms",
]

_log = logging.getLogger(__name__)


def pull(
    ref: Reference,
    remote: Upstream,
    store: Store,
    *,
    disk: Disk | None = None,
    output: Path | None = None,
    rootfs: Path | None = None,
    spares: Spares | None = None,
    limits: Limits | None = None,
    rights: Rights | None = None,
    platform: oci.Platform | None = None,
    dry_run: bool = False,
    fewest_bytes: bool = False,
    keeps_version: bool = False,
    progress: Progress | None = None,
    check: Check | None = None,
    now: Callable[[], float] = time.monotonic,
) -> PullResult:
    """Pull `ref`; then write an OCI layout (`output`) and a file tree (`rootfs`) if asked to.
    `limits` and `rights` are those of the file tree, and a spare tree of `spares` becomes its lower
    part, a spare form is what a delta builds on (`PullResult.wants_spare`: some are missing for the
    next version, see `make_spare`). With `fewest_bytes` the time that bytes take to unpack does not
    count. `check` (`make_check`) raises unless what the reference names may be used: asked before
    anything is, also of what is held.
    With `keeps_version` the store knows the image by its digest, too (`name:tag@digest`), so that
    it stays when the tag moves on."""
    started = now()
    image = WantedImage(ref.tagged, remote, store, platform or host_platform(), check=check)
    disk = disk or Disk()
    tree = None
    if rootfs is not None:
        tree = Target(rootfs, disk, limits or Limits(), rights or Rights(), spares)
    target = Output(disk, output, tree)
    before = (remote.bytes_moved, remote.request_count)
    run = Pull(
        image,
        Fetcher(ref.repository, remote, store, progress, spares),
        Stopwatch(store, remote),
        output=Output(disk) if dry_run else target,
        fewest_bytes=fewest_bytes,
        keeps_version=keeps_version,
    )
    with store.session(), contextlib.closing(run):
        try:
            planned_size = run.bring(dry_run=dry_run)
            run.write()
        except StoreChangedError as exc:  # evicted or dropped meanwhile, or found damaged
            _log.info("again, from what is here now: %s", exc.message)
            run.begin_anew()
            planned_size = run.bring(dry_run=dry_run)
            run.write()
    return replace(
        run.describe(),
        dry_run=dry_run,
        moved_size=remote.bytes_moved - before[0],
        request_count=remote.request_count - before[1],
        planned_size=planned_size,
        seconds=now() - started,
    )


def make_spare(
    ref: Reference,
    remote: Upstream,
    store: Store,
    spares: Spares,
    *,
    disk: Disk | None = None,
    platform: oci.Platform | None = None,
    with_tree: bool = True,
) -> bool:
    """While nobody waits, for the next version: the form of the highest layer of the held version
    of `ref`, and the tree of all others. `remote` is asked only for what is damaged here. False if
    all of it was there."""
    found, disk = store.find_image(str(ref.tagged)), disk or Disk()
    if found is None:
        return False
    image = WantedImage(
        replace(ref.tagged, digest=found), remote, store, platform or host_platform()
    )
    target = Target(spares.folder / "next", disk, Limits(), Rights(), without=1)
    run = Pull(
        image,
        Fetcher(ref.repository, remote, store),
        Stopwatch(store, remote),
        output=Output(disk, tree=target),
    )
    disk.make_folder(spares.folder, 0o700)
    with store.session(), contextlib.closing(run):
        run.bring(dry_run=False)
        run.read_stored()
        made = run.make_spare_form(spares)
        lower = [want.diff_id for want in run.wants[:-1]]
        if not with_tree or not lower or spares.has(lower):
            return made
        staged = run.stage()
        try:
            spares.put(lower, staged.temp)
        finally:
            staged.discard()
    return True
