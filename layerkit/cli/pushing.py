"""The verb push, and `--push` of verbs that make an image."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from layerkit.cli.common import (
    DEFAULT_LAYOUT,
    State,
    docker_config,
    document_of,
    json_option,
    option,
    state_of,
    verb,
)
from layerkit.console import human_size
from layerkit.errors import UsageError

if TYPE_CHECKING:
    from layerkit.edges.signing import Signer
    from layerkit.edges.storage.targets import Target
    from layerkit.formats.reference import Reference
    from layerkit.jobs.publish import PushResult

__all__ = ["Push", "add_push_verb", "find_push", "push_options", "say_pushed"]


def add_push_verb(group: click.Group) -> None:
    """Register the verb of this module."""
    verb(group, "push")(push)


def push_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Where an image goes, and what goes beside it."""
    for one in (
        option(
            "--forms/--no-forms",
            default=None,
            help="Send the forms of new layers to a registry, too: empty nodes pull a sixth less."
            "  [default: if there is no update]",
        ),
        option(
            "--chunk-packs/--no-chunk-packs",
            "packs",
            default=None,
            help="Send packs of its chunks, for nodes that hold older images than these.  [default:"
            " if there is no update]",
        ),
        option("--delta-from", "olds", multiple=True, metavar="REF", help="Make one from it, too."),
        option(
            "--deltas",
            "update_count",
            type=click.IntRange(0, 64),
            default=3,
            show_default=True,
            metavar="COUNT",
            help="Images that the tag named before, from which updates are made; 0: none.",
        ),
        option(
            "--sign",
            "key",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="KEY",
            help="Sign it with this private key, cosign's or in PEM; COSIGN_PASSWORD opens it.",
        ),
        option(
            "--token-realm", "realms", multiple=True, help="A registry's token service, by host."
        ),
        option(
            "--ca", type=click.Path(dir_okay=False, path_type=Path), help="A registry's CA, PEM."
        ),
        option(
            "--to",
            "target",
            default="",
            metavar="URL|DIR",
            help="https://registry, s3://bucket/prefix or a layout.  [default: REF's registry]",
        ),
    ):
        function = one(function)
    return function


OPTIONS = ("target", "ca", "realms", "key", "update_count", "olds", "packs", "forms")


class Push:
    """A push of what `ref` names, once it is there; all that can be wrong about it is known when
    this is made. `facts` are those of `push_options`."""

    def __init__(self, ref: Reference, facts: dict[str, Any]) -> None:
        from layerkit.edges.disk import Disk
        from layerkit.edges.storage.targets import find_target
        from layerkit.formats.reference import Reference

        self._ref = ref
        self._facts = facts
        self._olds = [Reference.parse(old) for old in facts["olds"]]
        self._signer = _load_key(facts["key"]) if facts["key"] is not None else None
        self._target: Target = find_target(
            facts["target"],
            ref,
            disk=Disk(),
            config=docker_config(),
            ca=facts["ca"],
            realms=facts["realms"],
        )

    def run(self, folder: Path, state: State) -> PushResult:
        """Sign, if that is wanted, and push from the layout `folder`."""
        from layerkit.edges.layout import Layout
        from layerkit.jobs.publish import publish
        from layerkit.jobs.sign import sign_image

        layout = Layout(folder)
        if self._signer is not None:
            sign_image(layout, self._ref, self._signer)
        with state.console.progress(str(self._ref)) as progress:
            return publish(
                layout,
                self._ref,
                self._target,
                progress,
                update_count=self._facts["update_count"],
                olds=self._olds,
                packs=self._facts["packs"],
                forms=self._facts["forms"],
                warn=state.console.warn,
            )


def _load_key(path: Path) -> Signer:
    from layerkit.edges.signing import Signer

    return Signer.load(path, os.environ.get("COSIGN_PASSWORD"))


def find_push(
    context: click.Context, is_wanted: bool, ref: Reference, facts: dict[str, Any]
) -> Push | None:
    """The push that `--push` of another verb asks for, said before any work is done."""
    if is_wanted:
        return Push(ref, facts)
    for name in OPTIONS:
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            raise UsageError("a push is described, but nothing is to be pushed", hint="add --push")
    return None


@click.argument("ref")
@option(
    "--from",
    "layout",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_LAYOUT,
    show_default=True,
    help="The OCI layout that has the image.",
)
@push_options
@json_option
@click.pass_context
def push(context: click.Context, /, ref: str, layout: Path, **facts: Any) -> None:
    """Push the image REF with all its platforms and what refers to it; print name@digest.

    Beside it go updates from the images that nodes have by now: they need only these few bytes.
    What is there already is not sent; so --sign also signs what was pushed before. The signature
    stays in the layout, too. Logins are docker's ('docker login').
    """
    from layerkit.formats.reference import Reference

    state = state_of(context)
    result = Push(Reference.parse(ref), facts).run(layout, state)
    if state.as_json:
        state.console.document(document_of(result))
        return
    state.console.result(result.ref)
    say_pushed(result, state)


def say_pushed(result: PushResult, state: State) -> None:
    """What was sent, in one line."""
    state.console.say(
        f"{result.target}: sent {result.sent_count} blobs, {human_size(result.sent_size)};"
        f" {result.held_count} were there, {result.mounted_count} mounted;"
        f" {result.referrer_count} referrers, {result.update_count} updates of"
        f" {human_size(result.update_size)}"
    )
