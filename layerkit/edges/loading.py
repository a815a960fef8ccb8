"""An image of a layout into container engines: one archive, written once for all that read it.

`layerkit build --load`, `layerkit pull --load` and the agent come through here. Not here: how an
engine is spoken to (edges.engine). Spec: docs/design.md "Engines".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from layerkit.digest import Digest
from layerkit.edges.disk import Disk
from layerkit.edges.engine import Engine, Handed
from layerkit.edges.layout import Layout, write_docker_archive
from layerkit.errors import UsageError
from layerkit.formats import oci
from layerkit.formats.reference import Reference

__all__ = ["ImageLoader", "Loaded"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an engine has now. `keeps_manifest`: it knows the image by its manifest's digest;
    docker's own image store knows the config's only. `unpacked`: it got zstd layers as tars."""

    engine: str
    name: str
    platform: str
    config: Digest
    manifest: Digest
    keeps_manifest: bool
    unpacked: bool


@dataclass(slots=True)
class ImageLoader:
    """Hands the image that `ref` names in `layout`, of an index that of `platform`, to engines.
    Archives lie in `folder`, which is the caller's to remove."""

    layout: Layout
    ref: Reference
    platform: oci.Platform
    folder: Path
    disk: Disk = field(default_factory=Disk)
    _written: dict[bool, Path] = field(default_factory=dict)

    def load(self, engine: Engine) -> Loaded:
        """Raises ToolError where the engine does not take it, NotFoundError for a platform that the
        image is not there for, UsageError for a reference without a tag: engines go by names."""
        ref = self.ref.tagged
        if not ref.tag:
            raise UsageError(
                f"{ref} has no tag to load it as", hint=f"write {ref.name}:TAG@{ref.digest}"
            )
        top = self.layout.select(self.layout.resolve(ref), self.platform)
        manifest = self.layout.read_manifest(top.digest)
        platform = oci.parse_config(self.layout.read_blob(manifest.config)).platform
        has_zstd = any(layer.media_type == oci.LAYER_ZSTD for layer in manifest.layers)
        unpacked = has_zstd and not engine.reads_zstd()
        handed = Handed(ref, manifest.config.digest, top.digest)
        keeps_manifest = engine.load(self._archive(unpacked=unpacked), handed)
        return Loaded(
            engine.kind,
            handed.name,
            str(platform),
            handed.config,
            handed.manifest,
            keeps_manifest,
            unpacked,
        )

    def _archive(self, *, unpacked: bool) -> Path:
        path = self._written.get(unpacked)
        if path is None:
            path = self.folder / ("unpacked.tar" if unpacked else "image.tar")
            write_docker_archive(
                self.layout, self.ref, path, self.platform, self.disk, unpacked=unpacked
            )
            self._written[unpacked] = path
        return path
