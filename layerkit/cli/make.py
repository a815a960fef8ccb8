"""The verbs that make something: init, build, split."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from layerkit.cli.common import DEFAULT_LAYOUT, document_of, json_option, option, state_of, verb
from layerkit.errors import UsageError

if TYPE_CHECKING:
    from layerkit.jobs.split import SplitImage

__all__ = ["add_make_verbs"]

TEMPLATES = ("http", "cron", "worker")
COMPRESSIONS = ("gzip", "zstd", "tar")
output_option = option(
    "-o",
    "--output",
    default=DEFAULT_LAYOUT,
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The OCI layout to write to.",
)
compression_option = option(
    "--compression",
    type=click.Choice(COMPRESSIONS),
    default="gzip",
    show_default=True,
    help="Of layers; Debian 12's docker cannot load zstd.",
)
pack_option = option(
    "--pack", is_flag=True, help="Pack forms for empty nodes: some seconds, a sixth less to pull."
)


def add_make_verbs(group: click.Group) -> None:
    """Register the verbs of this module."""
    verb(group, "init")(init)
    verb(group, "build")(build)
    verb(group, "split")(split)


@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@option(
    "--template",
    type=click.Choice(TEMPLATES),
    default=TEMPLATES[0],
    show_default=True,
    help="What kind of function.",
)
@click.pass_context
def init(context: click.Context, /, folder: Path, template: str) -> None:
    """Make a new function in DIR from a template. Prints the folder."""
    from layerkit.jobs.init import init as run_init

    found = run_init(folder, template)
    console = state_of(context).console
    console.say(f"made {', '.join(found.files)}; next: layerkit build {folder} -t {found.name}:v1")
    console.result(found.folder)


@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@option(
    "-t", "--tag", "ref", required=True, metavar="REF", help="Name the image, as host/name:tag."
)
@output_option
@option(
    "--platform",
    "platforms",
    default="linux/amd64",
    show_default=True,
    metavar="LIST",
    help="Platforms with commas between; several make an index.",
)
@compression_option
@option("--strict-cgo", is_flag=True, help="Refuse packages that merely fall back without cgo.")
@pack_option
@option(
    "--describe/--no-describe",
    default=True,
    show_default=True,
    help="Publish an SBOM (CycloneDX) and SLSA provenance beside the image.",
)
@json_option
@click.pass_context
def build(
    context: click.Context,
    /,
    folder: Path,
    ref: str,
    output: Path,
    platforms: str,
    compression: str,
    strict_cgo: bool,
    pack: bool,
    describe: bool,
) -> None:
    """Build the Go function in DIR into an OCI image, with its chunks beside it.

    Prints the image as name@digest. Settings are in DIR/layerkit.toml.
    """
    from layerkit.formats.oci import parse_platform
    from layerkit.formats.reference import Reference
    from layerkit.jobs.build import build as run_build

    state = state_of(context)
    found = run_build(
        folder,
        Reference.parse(ref),
        layout_path=output,
        env=os.environ,
        platforms=[parse_platform(text.strip()) for text in platforms.split(",")],
        compression=compression,
        strict_cgo=strict_cgo,
        packs=pack,
        describes=describe,
        warn=state.console.warn,
    )
    if state.as_json:
        state.console.document(document_of(found))
        return
    state.console.say(f"{found.tag} in {found.layout}, built with {found.go}")
    state.console.result(found.reference)


@click.argument("image", metavar="IMAGE")
@option(
    "-t", "--tag", "ref", required=True, metavar="REF", help="Name the new image, as host/name:tag."
)
@output_option
@option(
    "--rule",
    "rules",
    multiple=True,
    metavar="ROLE=GLOB",
    help="What belongs to a layer; the first that matches wins over all else.",
)
@compression_option
@pack_option
@option("--dry-run", is_flag=True, help="Write nothing, say what the layers would be.")
@json_option
@click.pass_context
def split(
    context: click.Context,
    /,
    image: str,
    ref: str,
    output: Path,
    rules: tuple[str, ...],
    compression: str,
    pack: bool,
    dry_run: bool,
) -> None:
    """Cut IMAGE (LAYOUT:REF, or a LAYOUT with one image) anew into base, deps and code layers.

    Its files stay as they are. Prints the new image as name@digest.
    """
    from layerkit.edges.layout import Layout
    from layerkit.edges.subject import find_subject
    from layerkit.formats.deflate import compression_by_name
    from layerkit.formats.reference import Reference
    from layerkit.formats.splitting import parse_rule
    from layerkit.jobs.split import split as run_split

    state = state_of(context)
    parsed = Reference.parse(ref)
    subject = find_subject(image, None)
    if subject.layout is None or subject.descriptor is None:
        raise UsageError(f"{image} is not an image", hint="name LAYOUT:REF")
    found = run_split(
        subject.layout,
        subject.descriptor,
        parsed,
        Layout(output),
        rules=[parse_rule(text) for text in rules],
        recipe=compression_by_name(compression),
        packs=pack,
        dry_run=dry_run,
    )
    if state.as_json:
        state.console.document(document_of(found))
        return
    for each in found.images:
        state.console.say(_describe_split(each))
    state.console.result(found.reference)


def _describe_split(found: SplitImage) -> str:
    from layerkit.console import human_size

    layers = ", ".join(
        f"{layer.role} {human_size(layer.size)} ({layer.path_count} paths)"
        for layer in found.layers
    )
    old = f"{found.old_layer_count} layers, {human_size(found.old_size)}"
    return f"{found.platform}: {old} -> {layers}"
