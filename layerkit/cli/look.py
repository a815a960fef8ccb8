"""The verbs that only look: inspect, diff, version, completion."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

import layerkit
from layerkit.cli.common import DEFAULT_LAYOUT, json_option, option, state_of, verb

if TYPE_CHECKING:
    from layerkit.jobs.diff import PartChange

__all__ = ["add_look_verbs"]

SHELLS = ("bash", "zsh", "fish")


def add_look_verbs(group: click.Group) -> None:
    """Register the verbs of this module."""
    verb(group, "inspect")(inspect)
    verb(group, "diff")(diff)
    verb(group, "version")(version)
    verb(group, "completion")(completion)


layout_option = option(
    "--layout",
    type=click.Path(path_type=Path),
    help="The OCI layout that references name an image in.  [default: layout]",
)


@click.argument("subject", metavar="REF|FILE")
@layout_option
@json_option
@click.pass_context
def inspect(context: click.Context, subject: str, layout: Path | None) -> None:
    """Describe an image (LAYOUT:REF, or REF with --layout) or a FILE: binary, form, delta, chunk
    manifest, bundle, OCI document, tar layer. Go binaries and their chunks by role."""
    from layerkit.edges.subject import find_subject
    from layerkit.jobs.inspect import inspect as run_inspect

    document = run_inspect(find_subject(subject, layout, DEFAULT_LAYOUT))
    state = state_of(context)
    if state.as_json:
        state.console.document(document)
    else:
        state.console.outline(document)


@click.argument("old")
@click.argument("new")
@layout_option
@option(
    "--platform", default="linux/amd64", show_default=True, help="Which image of an index to take."
)
@json_option
@click.pass_context
def diff(context: click.Context, old: str, new: str, layout: Path | None, platform: str) -> None:
    """Say what would travel to a node that has OLD and wants NEW, by method, section and role.

    OLD and NEW are binaries, their forms, or images: LAYOUT:REF, LAYOUT, or REF with --layout.
    Sections and roles are measured alone, so they do not add up to the whole.
    """
    from layerkit.edges.subject import find_subject
    from layerkit.formats.oci import parse_platform
    from layerkit.jobs.diff import compare_versions, read_version

    wanted = parse_platform(platform)
    old_version = read_version(find_subject(old, layout, DEFAULT_LAYOUT), wanted)
    new_version = read_version(find_subject(new, layout, DEFAULT_LAYOUT), wanted)
    found = compare_versions(old_version, new_version)
    state = state_of(context)
    if state.as_json:
        state.console.document(found.document())
        return
    plain = found.plain_size
    methods = [("plain, as any registry serves it", plain), ("whole form", found.whole_size)]
    methods += [("chunks", found.chunks_size), ("delta", found.delta_size)]
    state.console.table(
        f"{found.old.name} -> {found.new.name}",
        ("method", "bytes", "of plain"),
        [
            (name, f"{size:,}", f"{100 * size / plain:.1f} %" if plain else "-")
            for name, size in methods
        ],
    )
    columns = ("old", "new", "plain", "whole", "chunks", "delta")
    if found.sections:
        rows = [(name, *_numbers(change)) for name, change in found.sections.items()]
        state.console.table("", ("section", *columns), rows)
    rows = [
        (name, *_numbers(role.change), f"{role.held_count:,} of {role.chunk_count:,}")
        for name, role in found.roles.items()
    ]
    state.console.table("", ("role", *columns, "chunks held"), rows)


def _numbers(change: PartChange) -> tuple[str, ...]:
    sizes = (change.old_size, change.new_size, change.plain_size, change.whole_size)
    return tuple(f"{size:,}" for size in (*sizes, change.chunks_size, change.delta_size))


@json_option
@click.pass_context
def version(context: click.Context) -> None:
    """Print the versions of layerkit and of what its digests follow."""
    from importlib.metadata import version as release_of

    facts = {
        "layerkit": layerkit.__version__,
        "python": sys.version.split()[0],
        "deflate": release_of("deflate"),
        "zstandard": release_of("zstandard"),
    }
    state = state_of(context)
    if state.as_json:
        state.console.document(facts)
    else:
        state.console.result("\n".join(f"{name} {release}" for name, release in facts.items()))


@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a completion script: eval "$(layerkit completion bash)"."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:  # a click without it
        raise click.UsageError(f"no completion for {shell}")
    root = context.find_root().command
    state_of(context).console.result(found(root, {}, "layerkit", "_LAYERKIT_COMPLETE").source())
