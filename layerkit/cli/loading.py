"""`--load`: what `build` and `pull` share to hand an image to a container engine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerkit.cli.common import State, option
from layerkit.errors import UsageError

if TYPE_CHECKING:
    from layerkit.edges.layout import Layout
    from layerkit.edges.loading import Loaded
    from layerkit.formats.oci import Platform
    from layerkit.formats.reference import Reference

__all__ = ["check_load", "load_image", "load_options", "say_loaded", "scratch_folder"]

ENGINES = ("docker", "containerd")


def load_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Which engine gets the image, if any."""
    for one in (
        option(
            "--namespace",
            help="containerd's namespace; Kubernetes' is k8s.io.  [default: default]",
        ),
        option(
            "--engine-address",
            metavar="ADDRESS",
            help="Its URL (docker) or socket.  [default: docker's own, CONTAINERD_ADDRESS]",
        ),
        option(
            "--engine",
            type=click.Choice(ENGINES),
            default=ENGINES[0],
            show_default=True,
            help="Which engine --load means.",
        ),
        option("--load", is_flag=True, help="Load the image into a container engine, too."),
    ):
        function = one(function)
    return function


def check_load(facts: dict[str, Any], ref: Reference) -> None:
    """Say what makes no sense before any work is done."""
    asked = facts["engine_address"] or facts["namespace"]
    if not facts["load"]:
        if asked:
            raise UsageError("an engine is named, but nothing is to be loaded", hint="add --load")
        return
    if facts["namespace"] and facts["engine"] != "containerd":
        raise UsageError("only containerd has namespaces", hint="add --engine containerd")
    if not ref.tagged.tag:
        raise UsageError(
            f"{ref} has no tag to load it as", hint=f"write {ref.name}:TAG@{ref.digest}"
        )


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder, gone at the end."""
    from layerkit.edges.disk import Disk

    disk = Disk()
    folder = disk.make_temp_folder(Path(os.environ.get("TMPDIR") or "/tmp").absolute())
    try:
        yield folder
    finally:
        disk.remove_tree(folder)


def load_image(
    layout: Layout, ref: Reference, platform: Platform, facts: dict[str, Any], folder: Path
) -> Loaded:
    """Load what `ref` names in `layout`; `folder` is for the archive."""
    from layerkit.edges.engine import open_engine
    from layerkit.edges.loading import ImageLoader
    from layerkit.edges.tools import Tools

    twin = {"docker": "DOCKER_HOST", "containerd": "CONTAINERD_ADDRESS"}[facts["engine"]]
    engine = open_engine(
        facts["engine"],
        Tools(os.environ),
        address=facts["engine_address"] or os.environ.get(twin, ""),
        namespace=facts["namespace"] or os.environ.get("CONTAINERD_NAMESPACE", ""),
    )
    return ImageLoader(layout, ref, platform, folder).load(engine)


def say_loaded(found: Loaded, state: State) -> None:
    """What the engine has now, in one line."""
    known = "manifest and config" if found.keeps_manifest else "config"
    state.console.say(
        f"{found.engine} has {found.name} ({found.platform}) by the same {known}"
        f" {(found.manifest if found.keeps_manifest else found.config).short}"
        + ("; zstd layers went as plain tars, which this engine can read" if found.unpacked else "")
    )
