"""The verbs that make something: init, build, split."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from layerkit.cli.loading import check_load, load_image, load_options, say_loaded, scratch_folder
from layerkit.cli.pushing import find_push, push_options, say_pushed

if TYPE_CHECKING:
    from layerkit.edges.imagesource import Places
    from layerkit.edges.loading import Loaded
    from layerkit.formats.oci import Platform
    from layerkit.formats.reference import Reference
    from layerkit.formats.splitting import Rule
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
describe_option = option(
    "--describe/--no-describe",
    default=True,
    show_default=True,
    help="Publish an SBOM (CycloneDX) and SLSA provenance beside the image.",
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
@option(
    "--runtime",
    "only_runtime",
    is_flag=True,
    help="DIR is a function: require this layerkit's Go module in its go.mod and go.sum.",
)
@click.pass_context
def init(context: click.Context, /, folder: Path, template: str, only_runtime: bool) -> None:
    """Make a new function in DIR from a template. Prints the folder."""
    from layerkit.jobs.init import add_runtime
    from layerkit.jobs.init import init as run_init

    console = state_of(context).console
    if only_runtime:
        console.say(f"go.mod requires {add_runtime(folder)}")
        console.result(str(folder))
        return
    found = run_init(folder, template)
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
@describe_option
@load_options
@option("--push", is_flag=True, help="Push the image, too, as 'layerkit push' does.")
@push_options
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
    push: bool,
    **facts: Any,
) -> None:
    """Build the Go function in DIR into an OCI image, with its chunks beside it.

    Prints the image as name@digest. Settings are in DIR/layerkit.toml.
    """
    from layerkit.formats.oci import parse_platform
    from layerkit.formats.reference import Reference
    from layerkit.jobs.build import build as run_build

    state, parsed = state_of(context), Reference.parse(ref)
    check_load(facts, parsed)
    pushing = find_push(context, push, parsed, facts)
    wanted = [parse_platform(text.strip()) for text in platforms.split(",")]
    found = run_build(
        folder,
        parsed,
        layout_path=output,
        env=os.environ,
        platforms=wanted,
        compression=compression,
        strict_cgo=strict_cgo,
        packs=pack,
        describes=describe,
        warn=state.console.warn,
    )
    loaded = _load_built(output, parsed, wanted, facts) if facts["load"] else None
    pushed = pushing.run(output, state) if pushing is not None else None
    if state.as_json:
        more = {"loaded": document_of(loaded)} if loaded is not None else {}
        more |= {"pushed": document_of(pushed)} if pushed is not None else {}
        state.console.document(document_of(found) | more)
        return
    state.console.say(f"{found.tag} in {found.layout}, built with {found.go}")
    if loaded is not None:
        say_loaded(loaded, state)
    if pushed is not None:
        say_pushed(pushed, state)
    state.console.result(found.reference)


def _load_built(
    output: Path, ref: Reference, platforms: list[Platform], facts: dict[str, Any]
) -> Loaded:
    """Of several platforms that of this machine."""
    from layerkit.edges.layout import Layout
    from layerkit.jobs.pull import host_platform

    platform = platforms[0] if len(platforms) == 1 else host_platform()
    with scratch_folder() as folder:
        return load_image(Layout(output), ref, platform, facts, folder)


def rule_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What belongs to which layer, by the user."""
    for one in (
        option(
            "--settings",
            type=click.Path(dir_okay=False, exists=True, path_type=Path),
            help="Rules in the [split] table of this layerkit.toml; they come last.",
        ),
        option("--code", multiple=True, metavar="GLOB", help="The same as --rule code=GLOB."),
        option("--deps", multiple=True, metavar="GLOB", help="The same as --rule deps=GLOB."),
        option("--base", multiple=True, metavar="GLOB", help="The same as --rule base=GLOB."),
        option(
            "--rule",
            "rules",
            multiple=True,
            metavar="ROLE=GLOB",
            help="What belongs to a layer; the first that matches wins over all else.",
        ),
    ):
        function = one(function)
    return function


@click.argument("image", metavar="IMAGE")
@option(
    "-t", "--tag", "ref", required=True, metavar="REF", help="Name the new image, as host/name:tag."
)
@output_option
@option(
    "--platform",
    "platforms",
    metavar="LIST",
    help="Which images of an index, with commas between.  [default: all]",
)
@rule_options
@compression_option
@pack_option
@describe_option
@option("--docker", metavar="URL", help="The docker engine.  [default: as the docker command's]")
@option("--ca", type=click.Path(dir_okay=False, path_type=Path), help="A registry's CA, PEM.")
@option("--token-realm", "realms", multiple=True, help="A registry's token service, by host.")
@option("--dry-run", is_flag=True, help="Write nothing, say what the layers would be.")
@json_option
@click.pass_context
def split(
    context: click.Context, /, image: str, ref: str, output: Path, dry_run: bool, **facts: Any
) -> None:
    """Cut IMAGE anew into base, deps and code layers. Its files stay as they are.

    IMAGE is a layout (DIR, DIR:REF), an archive (FILE, FILE:REF, OCI's or of 'docker save'), what a
    registry has (HOST/NAME:TAG, docker://NAME:TAG) or the docker engine (NAME:TAG,
    docker-daemon:NAME:TAG). Prints the new image as name@digest.
    """
    from layerkit.edges.imagesource import open_image
    from layerkit.edges.layout import Layout
    from layerkit.formats.deflate import compression_by_name
    from layerkit.formats.oci import parse_platform
    from layerkit.formats.reference import Reference
    from layerkit.jobs.split import split as run_split

    state = state_of(context)
    parsed, rules = Reference.parse(ref), _read_rules(facts)
    wanted = facts["platforms"]
    platforms = [parse_platform(text.strip()) for text in wanted.split(",")] if wanted else []
    with (
        state.console.progress(image) as progress,
        open_image(image, _places(facts, progress.advance)) as opened,
    ):
        found = run_split(
            opened.source,
            opened.top,
            parsed,
            Layout(output),
            rules=rules,
            recipe=compression_by_name(facts["compression"]),
            packs=facts["pack"],
            platforms=platforms,
            describes=facts["describe"],
            dry_run=dry_run,
        )
    if state.as_json:
        state.console.document(document_of(found))
        return
    for each in found.images:
        state.console.say(_describe_split(each))
    for platform in found.left_out:
        state.console.warn(f"{platform} is left out: it is not there, or not linux")
    state.console.result(found.reference)


def _places(facts: dict[str, Any], progress: Callable[[int], None]) -> Places:
    from layerkit.edges.imagesource import Places

    return Places(
        Path(os.environ.get("TMPDIR") or "/tmp").absolute(),
        docker=facts["docker"] or "",
        env=os.environ,
        config=docker_config(),
        ca=facts["ca"],
        realms=facts["realms"],
        progress=progress,
    )


def _read_rules(facts: dict[str, Any]) -> list[Rule]:
    """Those of --rule in their order, then of --code, --deps, --base, then of the settings."""
    from layerkit.edges.sources import read_file
    from layerkit.formats.buildconfig import parse_settings
    from layerkit.formats.splitting import parse_rule, rules_of

    rules = [parse_rule(text) for text in facts["rules"]]
    for role in ("code", "deps", "base"):
        rules += rules_of(role, facts[role])
    if facts["settings"] is not None:
        for role, globs in parse_settings(read_file(facts["settings"])).split:
            rules += rules_of(role, globs)
    return rules


def _describe_split(found: SplitImage) -> str:
    from layerkit.console import human_size

    layers = ", ".join(
        f"{layer.role} {human_size(layer.size)} ({layer.path_count} paths)"
        for layer in found.layers
    )
    old = f"{found.old_layer_count} layers, {human_size(found.old_size)}"
    lines = [f"{found.platform}: {old} -> {layers}"]
    for binary in found.binaries:
        form = "address-free" if binary.has_form else binary.why_raw or "to be encoded"
        lines.append(f"  {binary.path} ({human_size(binary.size)}): {form}")
    return "\n".join(lines)
