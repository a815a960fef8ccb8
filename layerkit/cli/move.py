"""The verbs that keep what is in the store: verify, gc."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from layerkit.cli.common import State, document_of, json_option, option, state_of, verb
from layerkit.errors import IntegrityError, NotFoundError, PartialError

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
    verb(group, "verify")(verify)
    verb(group, "gc")(gc)


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
