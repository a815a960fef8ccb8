"""The verbs that only look: inspect, diff, version, completion."""

from __future__ import annotations

import sys

import click

import layerkit
from layerkit.cli.common import json_option, state_of, verb

__all__ = ["add_look_verbs"]

SHELLS = ("bash", "zsh", "fish")


def add_look_verbs(group: click.Group) -> None:
    """Register the verbs of this module."""
    verb(group, "version")(version)
    verb(group, "completion")(completion)


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
