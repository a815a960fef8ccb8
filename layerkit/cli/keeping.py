"""The verbs that keep what is in the store: images, pin, unpin, remove, verify, gc."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerkit.cli.common import (
    State,
    document_of,
    json_option,
    must_exist,
    option,
    quota_option,
    state_of,
    store_option,
    verb,
)
from layerkit.cli.pulling import open_remote, read_token, trust_options
from layerkit.errors import IntegrityError, NotFoundError, PartialError, UsageError

if TYPE_CHECKING:
    from layerkit.digest import Digest
    from layerkit.edges.store import Store
    from layerkit.formats.reference import Reference
    from layerkit.jobs.verify import Heal

__all__ = ["add_keeping_verbs"]


def add_keeping_verbs(group: click.Group) -> None:
    """Register the verbs of this module."""
    verb(group, "images")(images)
    verb(group, "pin")(pin)
    verb(group, "unpin")(unpin)
    verb(group, "remove")(remove)
    verb(group, "verify")(verify)
    verb(group, "gc")(gc)


def _open(path: Path) -> Store:
    from layerkit.edges.disk import Disk
    from layerkit.edges.store import Store

    must_exist(path)
    return Store(path, Disk())


# --- images ----------------------------------------------------------------------------------


@store_option
@json_option
@click.pass_context
def images(context: click.Context, store: Path) -> None:
    """List the images in the store: digest, pinned or not, last used when."""
    from datetime import UTC, datetime

    with _open(store) as opened:
        found, size = opened.list_images(), opened.usage()
    state = state_of(context)
    if state.as_json:
        documents = [document_of(image) for image in found]
        state.console.document({"images": documents, "used_size": size})
        return
    rows = []
    for image in found:
        used = datetime.fromtimestamp(image.used_at, UTC).strftime("%Y-%m-%d %H:%M")
        what = "" if image.complete else "not whole"
        rows.append((image.ref, image.digest.short, "pinned" if image.pinned else what, used))
    state.console.table("", ("image", "digest", "state", "last used (UTC)"), rows)


def _find(store: Store, text: str) -> tuple[Reference, Digest]:
    """The image in the store that a reference names: by its tag, or by its digest."""
    from layerkit.formats.reference import Reference

    ref = Reference.parse(text).tagged
    for image in store.list_images():
        named = Reference.parse(image.ref)
        if image.ref == str(ref) or (named.name, image.digest) == (ref.name, ref.digest):
            return named, image.digest
    raise NotFoundError(
        f"{ref} is not in store {store.path}", hint="'layerkit images' lists what is"
    )


@click.argument("ref")
@store_option
@click.pass_context
def pin(context: click.Context, ref: str, store: Path) -> None:
    """Keep the image REF whatever gc and quota say, until it is unpinned."""
    with _open(store) as opened:
        named, digest = _find(opened, ref)
        opened.pin(digest)
    state_of(context).console.result(str(named.pinned(digest)))


@click.argument("ref")
@store_option
@click.pass_context
def unpin(context: click.Context, ref: str, store: Path) -> None:
    """Undo pin."""
    with _open(store) as opened:
        named, digest = _find_pinned(opened, ref)
        opened.unpin(digest)
    state_of(context).console.result(str(named.pinned(digest)))


def _find_pinned(store: Store, text: str) -> tuple[Reference, Digest]:
    """Like `_find`; a digest alone is enough, for a pin outlives its references."""
    from layerkit.formats.reference import Reference

    ref = Reference.parse(text)
    if ref.digest is not None and ref.digest in store.list_pins():
        return ref, ref.digest
    return _find(store, text)


@click.argument("refs", nargs=-1, required=True, metavar="REF...")
@store_option
@click.pass_context
def remove(context: click.Context, refs: tuple[str, ...], store: Path) -> None:
    """Take images out of the store; gc then drops the chunks that no other image needs."""
    with _open(store) as opened:
        names = [_find(opened, ref)[0] for ref in refs]  # all of them, before any goes
        for name in names:
            opened.remove_image(str(name))
    for name in names:
        state_of(context).console.result(str(name))


# --- verify ----------------------------------------------------------------------------------


@click.argument("subject", metavar="[REF|LAYOUT]", default="")
@store_option
@option("--repair", is_flag=True, help="Drop what is damaged; the next pull fetches it.")
@option(
    "--server",
    "servers",
    multiple=True,
    metavar="URL",
    help="With --repair: fetch at once what images lack from this server.",
)
@trust_options
@json_option
@click.pass_context
def verify(context: click.Context, /, subject: str, store: Path, **facts: Any) -> None:
    """Read every byte of the store, or of an OCI LAYOUT, and say what is damaged.

    With REF only that image decides the exit status: 5 damaged, 3 repaired but not whole.
    """
    state = state_of(context)
    if facts["servers"] and not facts["repair"]:
        raise UsageError("--server heals, and goes with --repair", hint="add --repair")
    if subject and Path(subject).is_dir():
        _verify_layout(Path(subject), state)
    else:
        _verify_store(store, subject, facts, state)


def _verify_layout(path: Path, state: State) -> None:
    from layerkit.jobs.verify import verify_layout

    found = verify_layout(path)
    counts = f"{found.image_count} images, {found.blob_count} blobs, {found.chunk_count} chunks"
    _show_findings({"good": found.good, **document_of(found)}, counts, found.problems, state)
    if not found.good:
        raise IntegrityError(
            f"layout {path} is damaged", cause=f"{len(found.problems)} problems, listed above"
        )


def _verify_store(path: Path, ref: str, facts: dict[str, Any], state: State) -> None:
    from layerkit.edges.disk import Disk
    from layerkit.edges.store import Store
    from layerkit.formats.reference import Reference
    from layerkit.jobs.verify import verify_store

    must_exist(path)
    name, repair = str(Reference.parse(ref).tagged) if ref else "", facts["repair"]
    heal = _make_heal(facts) if facts["servers"] else None
    found = verify_store(path, Disk(), repair=repair, heal=heal)
    if name:
        with Store(path, Disk()) as store:
            if store.find_image(name) is None and name not in found.broken_images:
                raise NotFoundError(f"{name} is not in store {path}")
    problems = found.list_problems()
    counts = f"{found.image_count} images, {found.blob_count} blobs, {found.chunk_count} chunks"
    _show_findings({"good": found.good, **document_of(found)}, counts, problems, state)
    if found.good or (name and name not in found.broken_images):
        return
    if repair and not found.left_images:
        state.console.say(f"repaired: {len(found.healed_images)} images are whole again")
        return
    if repair:
        raise PartialError(
            f"store {path} is repaired, but not whole",
            cause=f"{len(found.left_images)} images lack what was dropped",
            hint="pull them again" if heal is None else "pull them from where they still are",
        )
    raise IntegrityError(
        f"store {path} is damaged",
        cause=f"{len(problems)} problems, listed above",
        hint="run 'layerkit verify --repair --server URL', or without --server and then pull again",
    )


def _make_heal(facts: dict[str, Any]) -> Heal:
    """Pull from the first server that has the image."""
    from layerkit.errors import LayerkitError
    from layerkit.jobs.pull import pull

    token = read_token(facts["token"], facts["token_file"])

    def heal(ref: Reference, store: Store) -> object:
        for url in facts["servers"][:-1]:
            try:
                with open_remote(url, {**facts, "token": token}) as remote:
                    return pull(ref, remote, store)
            except LayerkitError:
                continue
        with open_remote(facts["servers"][-1], {**facts, "token": token}) as remote:
            return pull(ref, remote, store)

    return heal


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


# --- gc --------------------------------------------------------------------------------------


@store_option
@quota_option
@option("--dry-run", is_flag=True, help="Remove nothing, say what would go.")
@json_option
@click.pass_context
def gc(context: click.Context, store: Path, quota: int, dry_run: bool) -> None:
    """Drop from the store what no image, no pin and no running pull needs.

    With --quota, images go, too, those not used for longest first, until the rest fits.
    """
    from layerkit.console import human_size

    if quota and dry_run:
        raise UsageError("--quota and --dry-run exclude each other")
    removed: list[str] = []
    with _open(store) as opened:
        before = opened.usage()
        found = opened.gc(dry_run=dry_run)
        if quota:
            removed = opened.evict(quota)
        left = opened.usage()
    state = state_of(context)
    freed = found.freed_size if dry_run else max(before - left, found.freed_size)
    if state.as_json:
        facts = {**document_of(found), "freed_size": freed, "used_size": left}
        state.console.document({"dry_run": dry_run, **facts, "removed_images": removed})
    else:
        for ref in removed:
            state.console.result(f"removed {ref}")
        did = "would drop" if dry_run else "dropped"
        state.console.result(f"{did} {found.chunk_count} chunks, {human_size(freed)}")
    if quota and left > quota:
        raise PartialError(
            f"store {store} is over its quota",
            cause=f"{human_size(left)} of {human_size(quota)} are in use, pinned or being read",
            hint="unpin or remove images",
        )
