"""The agent's jobs, each in a process of its own (`main` is what `edges.forker` starts): pull,
remove, sweep, gc, pin, list.

Only here is the store opened and are versions written. Order of a pull (docs/design.md "The
agent"): the image's commit point in the store, a name for this version, its folder by one rename,
the link `current` by one rename; the agent's own record after that. Each step is durable before the
next, so a death in between is found and finished by the next pull or by `sweep`.
"""

from __future__ import annotations

import base64
import contextlib
import logging
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from layerkit.digest import Digest
from layerkit.edges.disk import TEMP_PREFIX, Disk
from layerkit.edges.engine import Handed, open_engine
from layerkit.edges.forked import error_document, serve_jobs
from layerkit.edges.httpclient import Tls
from layerkit.edges.jsonlog import log_as_json
from layerkit.edges.layout import Layout
from layerkit.edges.loading import ImageLoader
from layerkit.edges.remote import Remote
from layerkit.edges.spares import VERSIONS_NAME, Spares
from layerkit.edges.store import Store
from layerkit.edges.tools import Tools
from layerkit.edges.upstream import Upstream
from layerkit.edges.versions import VersionFolders
from layerkit.errors import (
    FormatError,
    IntegrityError,
    LayerkitError,
    NotFoundError,
    RemoteError,
    SignatureError,
    ToolError,
)
from layerkit.formats.oci import Platform, parse_platform
from layerkit.formats.reference import Reference
from layerkit.jobs.agent.settings import Server
from layerkit.jobs.agent.work import Place, kept_name, parse_servers
from layerkit.jobs.pull import (
    PullResult,
    host_platform,
    make_check,
    make_spare,
    pull,
    rebuild_forms,
)
from layerkit.jobs.pull.signatures import Keys, is_signed

if TYPE_CHECKING:
    from layerkit.edges.registry.upstream import RegistryUpstream

__all__ = ["STAGING_NAME", "main", "run_job"]

STAGING_NAME: Final = "agent/staging"  # in the store: for images that only engines get
EVICT_TO: Final = 0.75  # of the quota: room for some pulls, not for the next one only
NEXT_SERVER: Final = (RemoteError, NotFoundError, IntegrityError, FormatError, SignatureError)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Bench:
    """What a job works with."""

    place: Place
    disk: Disk
    store: Store
    folders: VersionFolders  # of the versions, or where images for engines are staged

    @property
    def platform(self) -> Platform:
        return parse_platform(self.place.platform) if self.place.platform else host_platform()

    @property
    def spares(self) -> Spares:
        """Beside the versions, so that a rename makes one of them."""
        return Spares(self.folders.root / VERSIONS_NAME, self.disk)

    @property
    def keys(self) -> Keys | None:
        """One of these must have signed an image; None: anything goes."""
        if not self.place.verify:
            return None
        from layerkit.edges.signing import Verifier  # `daemon` has it loaded where it is wanted

        return Verifier.load(map(Path, self.place.verify))

    @property
    def tls(self) -> Tls:
        names = self.place.ca, self.place.client_cert, self.place.client_key
        return Tls(*(Path(name) if name else None for name in names))

    def open_upstream(self, server: Server) -> Upstream:
        """A client of one server, with its token, or of a registry, with docker's logins."""
        if server.is_registry:
            return self.open_registry(server)
        return Remote(server.url, token=server.token, tls=self.tls)

    def open_registry(self, server: Server) -> RegistryUpstream:
        from layerkit.edges.registry.upstream import open_upstream  # `daemon` has it loaded

        return open_upstream(
            server.url,
            self.store,
            config=Path(self.place.docker_config) if self.place.docker_config else None,
            ca=self.tls.ca,
            client_cert=self.tls.client_cert,
            client_key=self.tls.client_key,
            realms=self.place.token_realms,
        )


def run_job(job: Mapping[str, object], disk: Disk | None = None) -> Mapping[str, object]:
    """Do one job and answer."""
    document: Mapping[str, Any] = job
    place, disk = Place.parse(document["place"]), disk or Disk()
    root = Path(place.root) if place.kind else Path(place.store) / STAGING_NAME
    with Store(Path(place.store), disk, place.quota) as store:
        bench = _Bench(place, disk, store, VersionFolders(root, disk))
        return _JOBS[document["do"]](bench, document)


# --- pull ----------------------------------------------------------------------------------------


def _pull(bench: _Bench, job: Mapping[str, Any]) -> dict[str, object]:
    """`ref`, from the first of `servers` that gives it whole, to where the place says. With
    `digest` that version, for engines that did not get it; `update` is what a poll brought."""
    ref = Reference.parse(job["ref"]).tagged
    wanted = Digest.parse(job["digest"]) if job.get("digest") else None
    asked = replace(ref, digest=wanted) if wanted else ref
    kind = bench.place.kind if not wanted else ""
    update = base64.b64decode(job.get("update", ""))
    needs_files = bool(kind or bench.place.engines)
    with bench.folders.staging(ref) if needs_files else contextlib.nullcontext(Path()) as staging:
        result, url = _pull_from_any(bench, asked, parse_servers(job["servers"]), staging, update)
        answer: dict[str, object] = {
            "digest": str(result.digest),
            "server": url,
            "up_to_date": result.up_to_date,
            "moved_size": result.moved_size + len(update),
            "whole_size": result.whole_size,
            "seconds": result.seconds,
            "plain_count": result.plain_count,
            "wants_spare": result.wants_spare,
        }
        if result.up_to_date:  # else it has its name since the commit
            bench.store.commit_image(kept_name(ref, result.digest), result.digest, ())
        if kind:
            bench.folders.publish(ref, result.digest, staging / kind)
            bench.folders.point(ref, job["link"], result.digest)
        if bench.place.engines:
            where = bench.folders.path(ref, result.digest) if kind == "layout" else None
            answer |= _hand_over(bench, ref, where or staging / "layout", staging)
    return answer


def _pull_from_any(
    bench: _Bench,
    ref: Reference,
    servers: tuple[Server, ...],
    staging: Path,
    update: bytes,
) -> tuple[PullResult, str]:
    kind, engines = bench.place.kind if ref.digest is None else "", bench.place.engines
    check = make_check(bench.keys) if bench.keys is not None else None
    failure: LayerkitError | None = None
    for server in servers:
        try:
            with bench.open_upstream(server) as remote:
                if update and isinstance(remote, Remote):
                    remote.offer_update(ref.repository, ref.tag, update)
                found = pull(
                    ref,
                    remote,
                    bench.store,
                    disk=bench.disk,
                    output=staging / "layout" if kind == "layout" or engines else None,
                    rootfs=staging / "rootfs" if kind == "rootfs" else None,
                    spares=bench.spares,
                    keeps_version=True,
                    platform=bench.platform,
                    check=check,
                )
                return found, server.url
        except NEXT_SERVER as exc:
            update = b""  # it came from the first
            _log.warning("%s from %s: %s (%s)", ref, server.url, exc.message, exc.cause)
            # what is not there says less than what went wrong
            if failure is None or isinstance(failure, NotFoundError):
                failure = exc
    assert failure is not None, "an agent has a server"
    raise failure


def _authorize(bench: _Bench, job: Mapping[str, Any]) -> dict[str, object]:
    """The Authorization header that a registry wants for a look at `ref`; "" for none."""
    ref = Reference.parse(job["ref"]).tagged
    with bench.open_registry(parse_servers(job["servers"])[0]) as upstream:
        return {"header": upstream.authorize(ref.repository, ref.tag)}


def _make_spare(bench: _Bench, job: Mapping[str, Any]) -> dict[str, object]:
    """For the next version: the form of the current one's highest layer, the tree of all others."""
    ref = Reference.parse(job["ref"]).tagged
    server = parse_servers(job["servers"])[0]  # not asked: the store has all
    with bench.open_upstream(server) as remote:
        made = make_spare(
            ref,
            remote,
            bench.store,
            bench.spares,
            disk=bench.disk,
            platform=bench.platform,
            with_tree=bench.place.kind == "rootfs",
        )
    return {"made": made}


def _rebuild(bench: _Bench, job: Mapping[str, Any]) -> dict[str, object]:
    """Make the forms of layers that came plainly, so that updates can build on them."""
    ref = Reference.parse(job["ref"]).tagged
    for server in parse_servers(job["servers"]):
        try:
            with bench.open_upstream(server) as remote:
                count = rebuild_forms(ref, remote, bench.store, platform=bench.platform)
                return {"count": count}
        except NEXT_SERVER as exc:
            _log.info("no forms of %s from %s: %s", ref, server.url, exc.message)
    return {"count": 0}


def _hand_over(bench: _Bench, ref: Reference, path: Path, staging: Path) -> dict[str, object]:
    """Give the image to each engine; one that fails is told, not raised: the pull stands."""
    layout = Layout(path, bench.disk)
    top = layout.select(layout.resolve(ref), bench.platform)
    config = layout.read_manifest(top.digest).config.digest
    loader = ImageLoader(layout, ref, bench.platform, staging, bench.disk)
    engines: dict[str, object] = {}
    for engine in _engines(bench.place):
        try:
            loader.load(engine)
            engines[engine.kind] = None
        except ToolError as exc:
            _log.warning("%s did not take %s: %s (%s)", engine.kind, ref, exc.message, exc.cause)
            engines[engine.kind] = error_document(exc)
    return {"engines": engines, "config": str(config), "manifest": str(top.digest)}


def _engines(place: Place) -> Iterator[Any]:
    tools = Tools({"PATH": place.path})
    for at in place.engines:
        yield open_engine(at.kind, tools, address=at.address, namespace=at.namespace)


# --- remove, sweep -------------------------------------------------------------------------------


def _remove(bench: _Bench, job: Mapping[str, Any]) -> dict[str, object]:
    """Versions of `ref`: first the link (if the whole name goes), then folders, then names in the
    store, then the engines' copies. What is pinned stays, and is told."""
    ref = Reference.parse(job["ref"]).tagged
    pinned = {image.digest for image in bench.store.list_images() if image.pinned}
    kept = []
    if job["whole"]:
        bench.folders.unlink(ref, job["link"])
        bench.store.remove_image(str(ref))
    shared = {Digest.parse(text) for text in job["shared"]}  # another tag has that folder, too
    for version in job["versions"]:
        digest = Digest.parse(version["digest"])
        if digest in pinned and not job["whole"]:
            kept.append(str(digest))
            continue
        if digest not in shared:
            bench.folders.remove(ref, digest)
        bench.store.remove_image(kept_name(ref, digest))
        _forget(bench, ref, version)
    if job["whole"]:
        bench.folders.unlink(ref, job["link"])  # again: the folder is empty now
    return {"kept": kept}


def _forget(bench: _Bench, ref: Reference, version: Mapping[str, str]) -> None:
    if not version.get("config"):
        return
    digests = Digest.parse(version["config"]), Digest.parse(version["manifest"])
    for engine in _engines(bench.place):
        try:
            if not engine.forget(Handed(ref, *digests)):
                _log.info("%s still uses %s of %s", engine.kind, digests[0].short, ref)
        except ToolError as exc:
            _log.warning("%s: %s (%s)", engine.kind, exc.message, exc.cause)


def _tidy(bench: _Bench, _: Mapping[str, Any]) -> dict[str, object]:
    """At the end: what serves this agent only."""
    bench.spares.clear()
    return {}


def _sweep(bench: _Bench, job: Mapping[str, Any]) -> dict[str, object]:
    """At the start, while nothing is pulled: remove what a crash left, and say what is there."""
    keep: dict[Path, set[Digest]] = {}
    for name in job["names"]:
        folder = bench.folders.folder(Reference.parse(name["ref"]))
        keep.setdefault(folder, set()).update(map(Digest.parse, name["versions"]))
    staging = Path(bench.place.store) / STAGING_NAME
    if staging.is_dir():
        bench.disk.remove_tree(staging)
    bench.spares.clear()
    for path in staging.parent.glob(f"{TEMP_PREFIX}*"):  # of the record
        bench.disk.remove(path)
    keys = bench.keys
    removed, names = 0, {}
    known: dict[str, set[Digest | None]] = {}
    for name in job["names"]:
        ref = Reference.parse(name["ref"])
        if bench.place.kind:
            removed += bench.folders.sweep(ref, keep[bench.folders.folder(ref)])
            current = bench.folders.find_current(ref, name["link"])
        else:
            current = bench.store.find_image(str(ref))
        whole = current is not None and bench.store.is_complete(current)
        if current is not None and keys is not None:  # keys may be new: it is asked for again
            whole = whole and is_signed(bench.store, current, keys)
        names[name["ref"]] = str(current) if whole else ""
        known[name["ref"]] = {*map(Digest.parse, name["versions"]), current}
    removed += _forget_unknown(bench.store, known)
    if removed:
        _log.info("removed %d folders and versions that a crash left", removed)
    return {"names": names, "removed": removed, "platform": str(bench.platform)}


def _forget_unknown(store: Store, known: Mapping[str, Set[Digest | None]]) -> int:
    """Versions that a pull named in the store before it died, and nothing else knows of."""
    count = 0
    for image in store.list_images():
        ref, is_version, _ = image.ref.partition("@")
        if is_version and ref in known and image.digest not in known[ref] and not image.pinned:
            count += store.remove_image(image.ref)
    return count


# --- the store -----------------------------------------------------------------------------------


def _gc(bench: _Bench, job: Mapping[str, Any]) -> dict[str, object]:
    found = bench.store.gc(dry_run=bool(job.get("dry_run")))
    return {
        "chunk_count": found.chunk_count,
        "blob_count": found.blob_count,
        "pack_count": found.pack_count,
        "freed_size": found.freed_size,
        "store_size": bench.store.usage(),
    }


def _evict(bench: _Bench, job: Mapping[str, Any]) -> dict[str, object]:
    """Make room: images go, the least recently used first, but those in `keep` and what is pinned
    or being read. Down to a part of the quota, or of what is used where the disk is full."""
    limit = bench.place.quota or bench.store.usage()
    target = int(limit * EVICT_TO)
    return {"removed": bench.store.evict(target, [Digest.parse(text) for text in job["keep"]])}


def _pin(bench: _Bench, job: Mapping[str, Any]) -> dict[str, object]:
    digest = Digest.parse(job["digest"])
    if job["keep"]:
        if not bench.store.is_complete(digest):
            raise NotFoundError(f"image {digest.short} is not in the store")
        bench.store.pin(digest)
    else:
        bench.store.unpin(digest)
    return {"digest": str(digest)}


def _list(bench: _Bench, _: Mapping[str, Any]) -> dict[str, object]:
    return {
        "images": [
            {
                "ref": image.ref,
                "digest": str(image.digest),
                "complete": image.complete,
                "pinned": image.pinned,
            }
            for image in bench.store.list_images()
        ],
        "store_size": bench.store.usage(),
    }


_JOBS: Final = {
    "pull": _pull,
    "authorize": _authorize,
    "rebuild": _rebuild,
    "spare": _make_spare,
    "remove": _remove,
    "sweep": _sweep,
    "tidy": _tidy,
    "gc": _gc,
    "evict": _evict,
    "pin": _pin,
    "list": _list,
}


def main(lock: str) -> None:
    """The program. Its forks hold `lock`, too: the next agent waits for the last one."""
    log_as_json()
    with Disk().lock(Path(lock), shared=True, wait=True):
        serve_jobs(run_job)
