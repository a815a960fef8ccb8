"""`layerkit build`: a folder of Go sources becomes an OCI image in a layout folder.

Static binaries only: CGO_ENABLED=0, -trimpath, no version control stamp, and a linked file that
equals `-ldflags="-s -w -buildid="`. The same sources give the same digest from another folder,
user, day or machine with the same Go. go runs in a scratch folder; every blob is made in memory;
the layout's index.json is written last, so a build that fails leaves nothing behind.
Spec: docs/design.md "Layers".
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.goruntime import offer_runtime
from layerkit.edges.layout import Layout
from layerkit.edges.sources import base_packages, read_assets, read_base, read_file
from layerkit.edges.tools import Go, Tools, parse_go_version
from layerkit.errors import (
    BuildError,
    FormatError,
    NotFoundError,
    StoreError,
    ToolMissingError,
    UsageError,
)
from layerkit.formats import deflate, gotool, image, layer, oci, tar
from layerkit.formats.addressfree import Hints, read_hints
from layerkit.formats.buildconfig import FILE_NAME, BuildSettings, parse_settings
from layerkit.formats.buildinfo import read_build_info
from layerkit.formats.elf import parse_elf, strip_symbols
from layerkit.formats.reference import Reference
from layerkit.formats.statement import PROVENANCE_TYPE, SBOM_TYPE

__all__ = [
    "DEFAULT_PLATFORM",
    "BuildResult",
    "BuiltImage",
    "BuiltLayer",
    "Linked",
    "build",
    "link",
]

DEFAULT_PLATFORM: Final = oci.Platform("linux", "amd64")
_TITLE: Final = "org.opencontainers.image.title"
_VERSION: Final = "org.opencontainers.image.version"
_VARIANTS: Final = {"amd64": ("GOAMD64", "v1"), "arm64": ("GOARM64", "v8.0"), "arm": ("GOARM", "7")}


@dataclass(frozen=True, slots=True)
class BuiltLayer:
    """A layer of the result."""

    role: str
    digest: Digest
    diff_id: Digest
    size: int
    plain_size: int


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """One platform of the result; `binary_digest` names the linked file in the code layer."""

    platform: str
    digest: Digest
    binary: str
    binary_digest: Digest
    binary_size: int
    layers: tuple[BuiltLayer, ...]


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What was built: `reference` is ``name@digest``, `tag` the name it also has in the layout."""

    reference: str
    tag: str
    digest: Digest
    media_type: str
    size: int
    go: str
    layout: str
    images: tuple[BuiltImage, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Linked:
    """A linked, stripped binary, and what its symbols said about its data."""

    binary: bytes
    hints: Hints = field(default_factory=lambda: Hints({}), repr=False)


@dataclass(frozen=True, slots=True)
class _Source:
    """What is built, by what, with which settings."""

    folder: Path
    settings: BuildSettings
    tools: Tools
    go: Go
    scratch: Path  # go's temporary files too, so that none stay when it is killed
    mod_flags: tuple[str, ...] = ()  # of go commands that read go.mod


def build(
    folder: Path,
    ref: Reference,
    *,
    layout_path: Path,
    env: Mapping[str, str],
    platforms: Sequence[oci.Platform] = (DEFAULT_PLATFORM,),
    compression: str = deflate.DEFAULT_COMPRESSION,
    strict_cgo: bool = False,
    packs: bool = False,
    describes: bool = True,
    version: str = "",
    warn: Callable[[str], None] = lambda text: None,
    disk: Disk | None = None,
) -> BuildResult:
    """Build `folder` into the layout as `ref`.

    Args:
        env: the user's environment; only what says where things are reaches Go.
        packs: publish packed forms, too: 3 s for 6 MB, and a sixth less for a node with nothing.
        describes: publish an SBOM and the provenance of each image, too.
        version: of the function, for `org.opencontainers.image.version`; "" leaves it out.
        warn: gets one line for each package that has cgo files but a fallback.
    Raises: BuildError, CgoError, ToolMissingError, UsageError, NotFoundError, StoreFullError.
    """
    disk = disk or Disk()
    recipe = deflate.compression_by_name(compression)
    wanted = _check_platforms(platforms)
    tools, settings = Tools(env), _read_settings(folder)
    go = _choose_go(tools, settings, folder)
    scratch = disk.make_temp_folder(Path(env.get("TMPDIR") or "/tmp").absolute())
    source = _Source(folder, settings, tools, go, scratch)
    try:
        source, told = _offer_runtime(source, disk)
        built, warnings = _build_images(source, wanted, recipe, strict_cgo, version)
    except BaseException:
        tools.kill()
        raise
    finally:
        _remove_scratch(disk, scratch)
    warnings = (*told, *warnings)
    for text in warnings:
        warn(text)
    hints = {sha256_digest(linked.binary): linked.hints for _, _, linked in built}
    images = [packed for packed, _, _ in built]
    artifacts = [image.pack_chunks_artifact(packed, hints, packs) for packed in images]
    if describes:
        for packed, name, linked in built:
            artifacts += _describe_supply(source, ref, packed, name, linked)
    top = _publish(Layout(layout_path, disk), ref, images, artifacts)
    return BuildResult(
        str(ref.pinned(top.digest)),
        str(replace(ref.tagged, digest=None)),
        top.digest,
        top.media_type,
        top.size,
        go.release,
        str(layout_path),
        tuple(_describe(packed, name, linked) for packed, name, linked in built),
        warnings,
    )


def _build_images(
    source: _Source,
    platforms: Sequence[oci.Platform],
    recipe: deflate.Compression,
    strict_cgo: bool,
    version: str,
) -> tuple[list[tuple[image.PackedImage, str, Linked]], tuple[str, ...]]:
    """An image for each platform, with its binary's name; and the warnings, each once.

    Base and deps are packed once, while the linker works.
    """

    @functools.cache
    def pack_fixed() -> tuple[image.Layer, image.Layer | None]:
        entries, made_from = read_base()
        base = image.pack_layer(layer.BASE, entries, recipe, made_from)
        return base, _pack_deps(source, recipe)

    built = []
    warnings: dict[str, None] = {}
    for platform in platforms:
        name, linked, found = _compile(source, platform, strict_cgo, pack_fixed)
        warnings |= dict.fromkeys(found)
        layers = _layers(source, name, linked, *pack_fixed(), recipe)
        packed = image.pack_image(layers, _settings_for(source, platform, name, version))
        built.append((packed, name, linked))
    return built, tuple(warnings)


def _remove_scratch(disk: Disk, scratch: Path) -> None:
    """Killed compilers may still write for a moment, so try more than once."""
    for _ in range(20):
        try:
            disk.remove_tree(scratch)
            return
        except (StoreError, NotFoundError):
            time.sleep(0.05)
    disk.remove_tree(scratch)


# --- settings and assets ---


def _check_platforms(platforms: Sequence[oci.Platform]) -> tuple[oci.Platform, ...]:
    for platform in platforms:
        if platform.os != "linux":
            raise UsageError(f"platform {platform} is not linux")
    if not platforms or len(set(platforms)) != len(platforms):
        raise UsageError("platforms must be given, each once", hint="write linux/amd64,linux/arm64")
    return tuple(sorted(platforms, key=str))


def _read_settings(folder: Path) -> BuildSettings:
    if not folder.is_dir():
        raise NotFoundError(f"folder {folder} does not exist")
    path = folder / FILE_NAME
    return parse_settings(read_file(path)) if path.exists() else BuildSettings()


# --- layers ---


def _pack_deps(source: _Source, recipe: deflate.Compression) -> image.Layer | None:
    if not source.settings.deps:
        return None
    entries = read_assets(source.folder, source.settings.deps, "layers.deps")
    return image.pack_layer(layer.DEPS, entries, recipe, "layerkit deps")


def _layers(
    source: _Source,
    name: str,
    linked: Linked,
    base: image.Layer,
    deps: image.Layer | None,
    recipe: deflate.Compression,
) -> list[image.Layer]:
    """Base, deps if there are any, code."""
    configuration = read_assets(source.folder, source.settings.code, "layers.code")
    taken = f"{layer.APP_FOLDER}/{name}"
    assets = [entry.path for entry in configuration]
    if deps is not None:
        assets += [entry.path for entry in tar.read_tar(deps.tar) if entry.kind == tar.FILE]
    for path in assets:
        if path == taken or path.startswith(f"{taken}/"):
            raise UsageError(f"{FILE_NAME}: /{path} is where the binary goes", hint="rename it")
    code = image.pack_layer(
        layer.CODE,
        layer.code_entries(name, linked.binary, configuration),
        recipe,
        f"layerkit code: {source.go.release}",
    )
    return [base, *([] if deps is None else [deps]), code]


def _settings_for(
    source: _Source, platform: oci.Platform, name: str, version: str
) -> image.ImageSettings:
    settings = source.settings
    annotations = {_TITLE: name, image.ANNOTATION_GO: source.go.release}
    if version:
        annotations[_VERSION] = version
    return image.ImageSettings(
        platform,
        settings.entrypoint or (f"/{layer.APP_FOLDER}/{name}",),
        settings.user,
        settings.cmd,
        settings.image_env,
        {image.ANNOTATION_GO: source.go.release} | dict(settings.labels),
        annotations | dict(settings.annotations),
    )


# --- go ---


def _offer_runtime(source: _Source, disk: Disk) -> tuple[_Source, tuple[str, ...]]:
    """Let go find the module that functions import; with what is to be told of it."""
    go = source.go
    offer = offer_runtime(disk, source.scratch, source.folder, go.environment)
    told = (
        f"go.mod wants {offer.asked} of layerkit's Go module, this layerkit has another: taken is"
        f" that ('layerkit init --runtime {source.folder}' writes it down)",
    )
    go = replace(go, environment={**go.environment, **offer.environment})
    return replace(source, go=go, mod_flags=offer.flags), told if offer.asked else ()


def _choose_go(tools: Tools, settings: BuildSettings, folder: Path) -> Go:
    """The Go that is there, or the exact release that layerkit.toml names, fetched by Go itself."""
    go = tools.find_go()
    want = parse_go_version(f"go{settings.go}")
    if not settings.go or go.release == f"go{settings.go}":
        return go
    if settings.go.count(".") == 1 and settings.go[2:].isdigit():
        if parse_go_version(go.release)[:2] == want:
            return go
        raise ToolMissingError(
            f"{FILE_NAME} wants go {settings.go}",
            cause=f"got {go.release} at {go.path}",
            hint=f'install it, or name a whole release, as in go = "{settings.go}.0"',
        )
    env = dict(go.environment) | {"GOTOOLCHAIN": f"go{settings.go}"}
    done = tools.run([str(go.path), "env", "GOVERSION"], env=env, cwd=folder)
    if done.status != 0:
        raise ToolMissingError(
            f"go {settings.go} cannot be fetched",
            argv=done.argv,
            status=done.status,
            stderr_tail=done.stderr_text[-500:].strip(),
        )
    return Go(go.path, done.stdout.decode("ascii", "replace").strip(), env)


def _go_env(source: _Source, platform: oci.Platform, *, cgo: bool = False) -> dict[str, str]:
    """The whole environment of a go command: where things are, and what is built."""
    env = dict(source.go.environment)
    for name, value in _VARIANTS.values():
        env[name] = value
    env |= {name: value for name, value in source.settings.env.items()}
    if platform.variant and platform.architecture in _VARIANTS:
        name = _VARIANTS[platform.architecture][0]
        env[name] = platform.variant.removeprefix("v") if name == "GOARM" else platform.variant
        if name == "GOARM64" and "." not in platform.variant:
            env[name] += ".0"
    env |= {"GOOS": platform.os, "GOARCH": platform.architecture}
    env |= {"TMPDIR": str(source.scratch), "GOTMPDIR": str(source.scratch)}
    return env | {"CGO_ENABLED": "1" if cgo else "0", "GOFLAGS": ""}


def _compile(
    source: _Source, platform: oci.Platform, strict_cgo: bool, meanwhile: Callable[[], object]
) -> tuple[str, Linked, list[str]]:
    """(name, binary, warnings). go links with both cores to itself; then the package list is read
    while `meanwhile` runs and the symbols are read."""
    try:
        unstripped = link(source, platform)
    except (BuildError, FormatError):
        # what is missing may be what cgo would have built, or a main package
        packages, _ = _check_cgo(source, platform, strict_cgo)
        gotool.binary_name(packages, str(source.folder))
        raise
    with ThreadPoolExecutor(1) as pool:
        checking = pool.submit(_check_cgo, source, platform, strict_cgo)
        try:
            meanwhile()
            linked = strip(unstripped)
            packages, report = checking.result()
            if linked is None:
                linked = Linked(link(source, platform, "-s -w"), Hints({}))
        except BaseException:
            source.tools.kill()
            raise
    name = gotool.binary_name(packages, str(source.folder))
    warnings = [
        f"package {package.path} has cgo files; the static build uses its fallback"
        for package in report.fallback
    ]
    return name, linked, warnings


def _check_cgo(
    source: _Source, platform: oci.Platform, strict_cgo: bool
) -> tuple[tuple[gotool.Package, ...], gotool.CgoReport]:
    """The packages, and what of them has cgo files; CgoError when a static build cannot be had."""
    packages = _list_packages(source, platform, cgo=True)
    report = gotool.CgoReport((), ())
    if any(map(gotool.has_cgo, packages)):  # seldom: the second list is worth its time
        report = gotool.compare_cgo(packages, _list_packages(source, platform, cgo=False))
    if report.needed:
        raise gotool.needs_cgo(report.needed, strict=False)
    if report.fallback and strict_cgo:
        raise gotool.needs_cgo(report.fallback, strict=True)
    return packages, report


def _list_packages(
    source: _Source, platform: oci.Platform, *, cgo: bool
) -> tuple[gotool.Package, ...]:
    argv = [str(source.go.path), "list", "-e", "-deps", f"-json={gotool.LIST_FIELDS}"]
    argv += [*source.mod_flags, *_tag_flags(source.settings), source.settings.package]
    env = _go_env(source, platform, cgo=cgo)
    done = source.tools.run(argv, env=env, cwd=source.folder)
    if done.status != 0:
        raise gotool.explain_failure(done.stderr_text, done.argv, done.status, str(source.folder))
    return gotool.parse_packages(done.stdout)


def _tag_flags(settings: BuildSettings) -> list[str]:
    return [f"-tags={','.join(settings.tags)}"] if settings.tags else []


def link(source: _Source, platform: oci.Platform, symbols: str = "-w") -> bytes:
    """Compile and link; `symbols` are the linker's flags for them."""
    output = source.scratch / f"binary-{str(platform).replace('/', '-')}"
    settings = source.settings
    argv = [str(source.go.path), "build", "-trimpath", "-buildvcs=false"]
    argv += [*source.mod_flags, *settings.flags]
    argv += [*_tag_flags(settings), f"-ldflags={f'{symbols} -buildid= {settings.ldflags}'.strip()}"]
    argv += ["-o", str(output), settings.package]
    env = _go_env(source, platform)
    done = source.tools.run(argv, env=env, cwd=source.folder)
    if done.status != 0:
        raise gotool.explain_failure(done.stderr_text, done.argv, done.status, str(source.folder))
    binary = read_file(output)
    if not binary.startswith(b"\x7fELF"):
        raise FormatError(f"go did not link an ELF binary for {platform}")
    return binary


def strip(unstripped: bytes) -> Linked | None:
    """Keep what the symbols say and leave them out. The file is the one that `-s -w -buildid=`
    gives (a test compares). None where they cannot be left out, as in some programs of go1.20 and
    go1.21, whose linker would have to lay the file out anew."""
    elf = parse_elf(unstripped)
    try:
        return Linked(strip_symbols(elf), read_hints(elf))
    except FormatError:
        return None


# --- the layout ---


def _publish(
    layout: Layout,
    ref: Reference,
    images: Sequence[image.PackedImage],
    artifacts: Sequence[tuple[image.Blob, ...]],
) -> oci.Descriptor:
    """Write blobs, then artifacts, then the one commit point. Nothing stays if a write fails."""
    blobs = [blob for packed in images for blob in packed.blobs()]
    blobs += [blob for artifact in artifacts for blob in artifact]
    top = images[0].manifest
    if len(images) > 1:
        top = image.pack_index([packed.manifest for packed in images], {})
        blobs.append(top)
    with layout.batch():
        for blob in blobs:
            layout.put_blob(blob.data, blob.descriptor.media_type)
        layout.commit(ref, top.descriptor, [artifact[-1].descriptor for artifact in artifacts])
    return top.descriptor


def _describe_supply(
    source: _Source, ref: Reference, packed: image.PackedImage, name: str, linked: Linked
) -> list[tuple[image.Blob, ...]]:
    """The SBOM and the provenance of an image, as referrers of it."""
    from layerkit.formats import supplychain  # its library takes 0.25 s to load

    settings = source.settings
    subject = packed.manifest.descriptor
    built = supplychain.Built(
        ref.repository,
        subject.digest,
        str(subject.platform),
        name,
        sha256_digest(linked.binary),
        read_build_info(parse_elf(linked.binary)),
        base_packages(),
        {
            "package": settings.package,
            "tags": list(settings.tags),
            "flags": list(settings.flags),
            "ldflags": settings.ldflags,
            "go": source.go.release,
        },
    )
    sbom = supplychain.make_sbom(built)
    provenance = supplychain.make_provenance(built, sbom)
    return [
        image.pack_referrer(subject, SBOM_TYPE, sbom),
        image.pack_referrer(subject, PROVENANCE_TYPE, provenance),
    ]


def _describe(packed: image.PackedImage, name: str, linked: Linked) -> BuiltImage:
    layers = tuple(
        BuiltLayer(
            item.role,
            item.blob.descriptor.digest,
            item.diff_id,
            item.blob.descriptor.size,
            len(item.tar),
        )
        for item in packed.layers
    )
    descriptor = packed.manifest.descriptor
    return BuiltImage(
        str(descriptor.platform),
        descriptor.digest,
        name,
        sha256_digest(linked.binary),
        len(linked.binary),
        layers,
    )
