"""The verbs that move or keep bytes: pull, verify, gc."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerkit.cli.common import State, document_of, json_option, option, state_of, verb
from layerkit.errors import IntegrityError, NotFoundError, PartialError, RemoteError

if TYPE_CHECKING:
    from layerkit.formats.reference import Reference
    from layerkit.jobs.pull import PullResult

__all__ = ["add_move_verbs"]


def default_store() -> Path:
    """Where a node keeps its chunks when nobody says: the system's place, or the user's."""
    import os

    if os.geteuid() == 0:
        return Path("/var/lib/layerkit")
    state_home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return Path(state_home) / "layerkit"


store_option = option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    default=default_store,
    show_default="/var/lib/layerkit for root, else ~/.local/state/layerkit",
    help="The node's store.",
)


def add_move_verbs(group: click.Group) -> None:
    """Register the verbs of this module."""
    verb(group, "pull")(pull)
    verb(group, "verify")(verify)
    verb(group, "gc")(gc)


@click.argument("ref")
@option(
    "--server",
    "servers",
    multiple=True,
    required=True,
    metavar="URL",
    help="A chunk server; with several, the next one is asked when one fails.",
)
@store_option
@option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the image to this OCI layout.",
)
@option(
    "--rootfs",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the image's files to this folder.",
)
@option("--platform", help="Which image of an index to take.  [default: this machine's]")
@option("--token", default="", help="Bearer token for the servers.", show_default=False)
@option("--dry-run", is_flag=True, help="Fetch no bytes of layers, say what would be fetched.")
@json_option
@click.pass_context
def pull(context: click.Context, /, ref: str, servers: tuple[str, ...], **facts: Any) -> None:
    """Bring the image REF into the store, fetching only the chunks that it lacks.

    Prints the image's digest. What was fetched stays fetched: after a cut, pull again.
    """
    from layerkit.formats.reference import Reference

    parsed = Reference.parse(ref).tagged
    state = state_of(context)
    for url in servers[:-1]:
        try:
            found = _pull_from(url, parsed, state, **facts)
            break
        except RemoteError as exc:
            state.console.warn(f"{exc.message} [{exc.code}], asking the next server")
    else:
        found = _pull_from(servers[-1], parsed, state, **facts)
    if state.as_json:
        state.console.document(document_of(found))
        return
    if found.dry_run:
        state.console.result(_describe_pull(found))
        return
    state.console.result(str(parsed.pinned(found.digest)))
    state.console.say(_describe_pull(found))


def _pull_from(url: str, ref: Reference, state: State, **facts: Any) -> PullResult:
    from layerkit.edges.disk import Disk
    from layerkit.edges.remote import Remote
    from layerkit.edges.store import Store
    from layerkit.formats.oci import parse_platform
    from layerkit.jobs.pull import pull as run_pull

    disk = Disk()
    with (
        Remote(url, token=facts["token"]) as remote,
        Store(facts["store"], disk) as store,
        state.console.progress(str(ref)) as progress,
    ):
        return run_pull(
            ref,
            remote,
            store,
            disk=disk,
            output=facts["output"],
            rootfs=facts["rootfs"],
            platform=parse_platform(facts["platform"]) if facts["platform"] else None,
            dry_run=facts["dry_run"],
            progress=progress,
        )


def _describe_pull(found: PullResult) -> str:
    from layerkit.console import human_size

    if found.up_to_date:
        return f"up to date: moved {human_size(found.moved_size)}"
    whole = human_size(found.whole_size)
    if found.dry_run:
        return f"would move about {human_size(found.planned_size)} instead of {whole}"
    return (
        f"moved {human_size(found.moved_size)} instead of {whole}, {found.request_count} requests,"
        f" {found.seconds:.2f} s; {found.fetched_count} chunks fetched, {found.held_count} held"
    )


def must_exist(store: Path) -> None:
    """A verb that only looks does not make a store."""
    if not store.is_dir():
        raise NotFoundError(f"store {store} does not exist", hint="name another one with --store")


@click.argument("subject", metavar="[REF|LAYOUT]", default="")
@store_option
@option("--repair", is_flag=True, help="Drop damaged copies; the next pull fetches them.")
@json_option
@click.pass_context
def verify(context: click.Context, /, subject: str, store: Path, repair: bool) -> None:
    """Read every byte of the store, or of an OCI LAYOUT, and say what is damaged.

    With REF only that image decides the exit status: 5 damaged, 3 damaged copies dropped.
    """
    state = state_of(context)
    if subject and Path(subject).is_dir():
        _verify_layout(Path(subject), state)
    else:
        _verify_store(store, subject, repair, state)


def _verify_layout(path: Path, state: State) -> None:
    from layerkit.jobs.verify import verify_layout

    found = verify_layout(path)
    counts = f"{found.image_count} images, {found.blob_count} blobs, {found.chunk_count} chunks"
    _show_findings({"good": found.good, **document_of(found)}, counts, found.problems, state)
    if not found.good:
        raise IntegrityError(
            f"layout {path} is damaged", cause=f"{len(found.problems)} problems, listed above"
        )


def _verify_store(path: Path, ref: str, repair: bool, state: State) -> None:
    from layerkit.edges.disk import Disk
    from layerkit.edges.store import Store
    from layerkit.formats.reference import Reference
    from layerkit.jobs.verify import verify_store

    must_exist(path)
    name = str(Reference.parse(ref).tagged) if ref else ""
    disk = Disk()
    found = verify_store(path, disk, repair=repair)
    if name:
        with Store(path, disk) as store:
            if store.find_image(name) is None:
                raise NotFoundError(f"{name} is not in store {path}")
    problems = [f"chunk {chunk} is damaged" for chunk in found.bad_chunks]
    problems += [f"blob {blob} is damaged" for blob in found.bad_blobs]
    problems += [f"image {image} is not whole" for image in found.broken_images]
    counts = f"{found.image_count} images, {found.blob_count} blobs, {found.chunk_count} chunks"
    _show_findings({"good": found.good, **document_of(found)}, counts, problems, state)
    if found.good or (name and name not in found.broken_images):
        return
    if repair:
        raise PartialError(
            f"store {path} is repaired, but not whole",
            cause=f"{len(found.broken_images)} images lack what was dropped",
            hint="pull them again",
        )
    raise IntegrityError(
        f"store {path} is damaged",
        cause=f"{len(problems)} problems, listed above",
        hint="run 'layerkit verify --repair', then pull again",
    )


def _show_findings(
    document: dict[str, Any], counts: str, problems: Sequence[str], state: State
) -> None:
    if state.as_json:
        state.console.document(document)
        state.as_json = False  # one document only: the error's own lines go to stderr
        return
    for problem in problems:
        state.console.result(problem)
    state.console.result(f"read {counts}: {'good' if not problems else 'damaged'}")


@store_option
@option("--dry-run", is_flag=True, help="Remove nothing, say what would go.")
@json_option
@click.pass_context
def gc(context: click.Context, store: Path, dry_run: bool) -> None:
    """Drop from the store what no image and no pin needs."""
    from layerkit.console import human_size
    from layerkit.edges.disk import Disk
    from layerkit.edges.store import Store

    must_exist(store)
    with Store(store, Disk()) as opened:
        found = opened.gc(dry_run=dry_run)
    state = state_of(context)
    if state.as_json:
        state.console.document({"dry_run": dry_run, **document_of(found)})
        return
    did = "would drop" if dry_run else "dropped"
    state.console.result(f"{did} {found.chunk_count} chunks, {human_size(found.freed_size)}")
