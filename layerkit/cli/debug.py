"""The verbs below `layerkit debug`: encode, decode, diff, patch. Plumbing, for study."""

from __future__ import annotations

from pathlib import Path

import click

from layerkit.cli.common import document_of, json_option, option, state_of, verb

__all__ = ["add_debug_verbs"]

FILE = click.Path(path_type=Path)
output_option = option(
    "-o",
    "--output",
    type=FILE,
    required=True,
    metavar="FILE",
    help="Write here; a file that is there is replaced once all is well.",
)


def add_debug_verbs(group: click.Group) -> None:
    """Register the group of this module."""
    debug = click.Group("debug", help="Encode, decode, diff and patch files, for study.")
    for name, function in (
        ("encode", encode),
        ("decode", decode),
        ("diff", diff),
        ("patch", patch),
    ):
        verb(debug, name)(function)
    group.add_command(debug)


@click.argument("binary", type=FILE)
@output_option
@option(
    "--symbols",
    type=FILE,
    metavar="UNSTRIPPED",
    help="Take names from the same link, not stripped.",
)
@json_option
@click.pass_context
def encode(context: click.Context, binary: Path, output: Path, symbols: Path | None) -> None:
    """Write the address-free form of BINARY, or the form of a layer's tar.

    A file that cannot be taken apart stays raw, and the result says why.
    """
    from layerkit.edges.disk import Disk
    from layerkit.jobs.debug import encode as run_encode

    _show(context, run_encode(binary, output, Disk(), symbols))


@click.argument("form", type=FILE)
@output_option
@json_option
@click.pass_context
def decode(context: click.Context, form: Path, output: Path) -> None:
    """Write the binary, or the layer's tar, that FORM stands for."""
    from layerkit.edges.disk import Disk
    from layerkit.jobs.debug import decode as run_decode

    _show(context, run_decode(form, output, Disk()))


@click.argument("olds", metavar="OLD-FORM...", type=FILE, nargs=-1, required=True)
@click.argument("new", metavar="NEW-FORM", type=FILE)
@output_option
@json_option
@click.pass_context
def diff(context: click.Context, olds: tuple[Path, ...], new: Path, output: Path) -> None:
    """Write the delta that makes NEW-FORM of one or several old forms."""
    from layerkit.edges.disk import Disk
    from layerkit.jobs.debug import diff as run_diff

    _show(context, run_diff(olds, new, output, Disk()))


@click.argument("olds", metavar="OLD-FORM...", type=FILE, nargs=-1, required=True)
@click.argument("delta", metavar="DELTA", type=FILE)
@output_option
@json_option
@click.pass_context
def patch(context: click.Context, olds: tuple[Path, ...], delta: Path, output: Path) -> None:
    """Write the form that DELTA makes of the old forms that it was made for, in their order."""
    from layerkit.edges.disk import Disk
    from layerkit.jobs.debug import patch as run_patch

    _show(context, run_patch(olds, delta, output, Disk()))


def _show(context: click.Context, found: object) -> None:
    state = state_of(context)
    document = document_of(found)
    if state.as_json:
        state.console.document(document)
    else:
        state.console.outline(document)
