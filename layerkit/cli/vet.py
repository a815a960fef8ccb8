"""The verb vet."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import click

from layerkit.cli.common import default_cache, document_of, json_option, option, state_of, verb

__all__ = ["add_vet_verb"]

FOUND = 3  # exit status when there is something to mend


def add_vet_verb(group: click.Group) -> None:
    """Register the verb of this module."""
    verb(group, "vet")(vet)


@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@option("--only", metavar="NAMES", default="", help="Run these passes, with commas between.")
@option("--skip", metavar="NAMES", default="", help="Run all but these.")
@option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    default=lambda: default_cache(""),
    show_default="~/.cache/layerkit",
    help="Where the built passes are kept.",
)
@json_option
@click.pass_context
def vet(context: click.Context, /, folder: Path, only: str, skip: str, cache: Path) -> None:
    """Find goroutines that leak, dropped contexts and locks held too long in DIR.

    Prints a line for each finding; exit status 3 if there is one. A comment
    '//layerkit:allow NAME reason' on the line or above it takes a finding back.
    """
    from layerkit.jobs.vet import vet as run_vet

    state = state_of(context)
    found = run_vet(
        folder,
        env=os.environ,
        cache=cache,
        only=_names(only),
        skip=_names(skip),
        say=state.console.say,
    )
    if state.as_json:
        state.console.document(document_of(found))
    else:
        for one in found.findings:
            place = f"{one.file}:{one.line}:{one.column}"
            state.console.result(f"{place}: {one.message} [{one.analyzer}]")
        counts = Counter(one.analyzer for one in found.findings)
        told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        state.console.say(told or "nothing found")
    if found.findings:
        context.exit(FOUND)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.replace(" ", "").split(",") if name)
