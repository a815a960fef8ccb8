"""The verb push."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

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

if TYPE_CHECKING:
    from layerkit.jobs.publish import PushResult

__all__ = ["add_push_verb"]


def add_push_verb(group: click.Group) -> None:
    """Register the verb of this module."""
    verb(group, "push")(push)


@click.argument("ref")
@option(
    "--from",
    "layout",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_LAYOUT,
    show_default=True,
    help="The OCI layout that has the image.",
)
@option(
    "--to",
    "target",
    default="",
    metavar="URL|DIR",
    help="https://registry, s3://bucket/prefix or a layout.  [default: the registry in REF]",
)
@option("--ca", type=click.Path(dir_okay=False, path_type=Path), help="A registry's CA, PEM.")
@option("--token-realm", "realms", multiple=True, help="A registry's token service, by host.")
@option(
    "--sign",
    "key",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="KEY",
    help="Sign it with this private key, cosign's or in PEM; COSIGN_PASSWORD opens it.",
)
@option(
    "--deltas",
    "update_count",
    type=click.IntRange(0, 64),
    default=3,
    show_default=True,
    metavar="COUNT",
    help="Images that the tag named before, from which updates are made; 0: none.",
)
@option("--delta-from", "olds", multiple=True, metavar="REF", help="And from this image.")
@json_option
@click.pass_context
def push(
    context: click.Context,
    ref: str,
    layout: Path,
    target: str,
    ca: Path | None,
    realms: tuple[str, ...],
    key: Path | None,
    update_count: int,
    olds: tuple[str, ...],
) -> None:
    """Push the image REF with all its platforms and what refers to it; print name@digest.

    Beside it go updates from the images that nodes have by now: they need only these few bytes.
    What is there already is not sent; so --sign also signs what was pushed before. The signature
    stays in the layout, too. Logins are docker's ('docker login').
    """
    from layerkit.edges.disk import Disk
    from layerkit.edges.layout import Layout
    from layerkit.edges.storage.targets import find_target
    from layerkit.formats.reference import Reference
    from layerkit.jobs.publish import publish

    state = state_of(context)
    parsed = Reference.parse(ref)
    found = find_target(
        target,
        parsed,
        disk=Disk(),
        config=docker_config(),
        ca=ca,
        realms=realms,
    )
    if key is not None:
        from layerkit.edges.signing import Signer
        from layerkit.jobs.sign import sign_image

        sign_image(Layout(layout), parsed, Signer.load(key, os.environ.get("COSIGN_PASSWORD")))
    with state.console.progress(str(parsed)) as progress:
        result = publish(
            Layout(layout),
            parsed,
            found,
            progress,
            update_count=update_count,
            olds=[Reference.parse(old) for old in olds],
            warn=state.console.warn,
        )
    _show(state, result)


def _show(state: State, result: PushResult) -> None:
    if state.as_json:
        state.console.document(document_of(result))
        return
    state.console.result(result.ref)
    state.console.say(
        f"{result.target}: sent {result.sent_count} blobs, {human_size(result.sent_size)};"
        f" {result.held_count} were there, {result.mounted_count} mounted;"
        f" {result.referrer_count} referrers, {result.update_count} updates of"
        f" {human_size(result.update_size)}"
    )
