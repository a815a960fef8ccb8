"""The verbs that move or keep bytes: serve, pull, verify, gc."""

from __future__ import annotations

from pathlib import Path

import click

from layerkit.cli.common import document_of, json_option, option, state_of, verb
from layerkit.errors import NotFoundError

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
    verb(group, "serve")(serve)
    verb(group, "gc")(gc)


@click.argument("layout", type=click.Path(path_type=Path))
@option(
    "--listen",
    default="127.0.0.1:7420",
    show_default=True,
    metavar="ADDR",
    help="Where to listen; port 0 takes a free one.",
)
@click.pass_context
def serve(context: click.Context, layout: Path, listen: str) -> None:
    """Serve the images of an OCI LAYOUT as chunks, and plainly. Prints its URL when ready."""
    from layerkit.jobs.serve import serve as run_serve

    console = state_of(context).console
    try:
        run_serve(layout, listen, console.result)
    except SystemExit:  # SIGTERM is how a server ends well; running answers are finished
        console.say("stopped")


def must_exist(store: Path) -> None:
    """A verb that only looks does not make a store."""
    if not store.is_dir():
        raise NotFoundError(f"store {store} does not exist", hint="name another one with --store")


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
