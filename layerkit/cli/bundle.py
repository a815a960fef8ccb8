"""The verb bundle."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import click

from layerkit.cli.common import (
    DEFAULT_LAYOUT,
    docker_config,
    document_of,
    json_option,
    option,
    state_of,
    verb,
)
from layerkit.console import human_size
from layerkit.errors import UsageError

__all__ = ["add_bundle_verb"]


def add_bundle_verb(group: click.Group) -> None:
    """Register the verb of this module."""
    verb(group, "bundle")(bundle)


@click.argument("refs", nargs=-1, required=True, metavar="[OLD] NEW")
@option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="The bundle to write.",
)
@option("--from", "olds", multiple=True, metavar="OLD", help="For nodes that have this one, too.")
@option(
    "--layout",
    type=click.Path(file_okay=False, path_type=Path),
    help="The OCI layout that REFs name an image in.  [default: layout, then the registry]",
)
@option("--server", default="", metavar="URL", help="A chunk server or registry that has them.")
@option("--platform", "platforms", multiple=True, help="Only this one of an index.  [default: all]")
@option("--sbom", is_flag=True, help="Put SBOM and provenance in, too.")
@option("--ca", type=click.Path(dir_okay=False, path_type=Path), help="A registry's CA, PEM.")
@option("--token-realm", "realms", multiple=True, help="A registry's token service, by host.")
@json_option
@click.pass_context
def bundle(
    context: click.Context,
    /,
    refs: tuple[str, ...],
    output: Path,
    olds: tuple[str, ...],
    layout: Path | None,
    server: str,
    platforms: tuple[str, ...],
    sbom: bool,
    ca: Path | None,
    realms: tuple[str, ...],
) -> None:
    """Write one FILE that brings NEW to nodes that hold OLD, without a network; without OLD, to any
    node. 'layerkit pull NEW --bundle FILE' takes it.

    OLD and NEW are LAYOUT:REF, REF with --layout, or references of a registry or server. Signatures
    of NEW go along. Logins are docker's. Prints name@digest.
    """
    from layerkit.edges.disk import Disk
    from layerkit.edges.storage.opening import open_registry
    from layerkit.formats.oci import parse_platform
    from layerkit.jobs.bundle import bundle as make_bundle
    from layerkit.jobs.bundle import find_image

    if len(refs) > 2:
        raise UsageError(
            f"got {len(refs)} images, want [OLD] NEW", hint="name further old ones with --from"
        )
    state = state_of(context)
    opened = cache(partial(open_registry, config=docker_config(), ca=ca, realms=realms))
    found = [
        find_image(text, layout, DEFAULT_LAYOUT, opened, server) for text in (*refs[:-1], *olds)
    ]
    new = find_image(refs[-1], layout, DEFAULT_LAYOUT, opened, server)
    with state.console.progress(str(output)) as progress:
        result = make_bundle(
            new,
            found,
            output,
            Disk(),
            platforms=[parse_platform(text) for text in platforms],
            with_sbom=sbom,
            progress=progress,
        )
    if state.as_json:
        state.console.document(document_of(result))
        return
    state.console.result(result.ref)
    needs = f"for nodes that hold {' or '.join(result.olds)}" if result.olds else "for any node"
    state.console.say(
        f"{output}: {human_size(result.size)}, {result.update_count} updates,"
        f" {result.signature_count} signatures; {needs}"
    )
