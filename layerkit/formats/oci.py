"""OCI documents: descriptors, manifests, indexes, image configs; media types; canonical JSON.

Pure. Parsers check types and sizes and raise only FormatError; unknown fields are ignored, as the
specification asks. Serializers sort keys and write no spaces, so one value has one digest. A
document is kept as the bytes it came in: parsing and serializing again may lose unknown fields.
Spec: OCI image-spec 1.1; docs/design.md for our media types. Limits: MAX_DOCUMENT_SIZE, MAX_ITEMS.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from layerkit.digest import Digest, sha256_digest
from layerkit.errors import FormatError, UsageError

__all__ = [
    "ANNOTATION_COMPRESSION",
    "ANNOTATION_FORM",
    "ANNOTATION_LAYER",
    "ANNOTATION_OLD",
    "ANNOTATION_PLATFORM",
    "ANNOTATION_REF_NAME",
    "ANNOTATION_ROLE",
    "ANNOTATION_UPDATE",
    "ANNOTATION_UPDATE_SIZE",
    "ANNOTATION_WAS",
    "CHUNKS_ARTIFACT",
    "CHUNK_MANIFEST",
    "CONFIG",
    "DOCKER_CONFIG",
    "DOCKER_INDEX",
    "DOCKER_LAYER_GZIP",
    "DOCKER_MANIFEST",
    "EMPTY",
    "EMPTY_BLOB",
    "EMPTY_DESCRIPTOR",
    "FORM_ZSTD",
    "INDEX",
    "INDEX_TYPES",
    "LAYER_GZIP",
    "LAYER_TAR",
    "LAYER_TYPES",
    "LAYER_ZSTD",
    "LAYOUT_MARKER",
    "LAYOUT_VERSION",
    "MANIFEST",
    "MANIFEST_TYPES",
    "MAX_DOCUMENT_SIZE",
    "PACKS_ARTIFACT",
    "UPDATE_ARTIFACT",
    "WAS_ARTIFACT",
    "Descriptor",
    "ImageConfig",
    "Index",
    "Manifest",
    "Platform",
    "describe",
    "parse_config",
    "parse_index",
    "parse_layout_marker",
    "parse_manifest",
    "parse_platform",
    "serialize_config",
    "serialize_index",
    "serialize_json",
    "serialize_manifest",
]

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TAR: Final = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
EMPTY: Final = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
MANIFEST_TYPES: Final = (MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES: Final = (INDEX, DOCKER_INDEX)
LAYER_TYPES: Final = (LAYER_TAR, LAYER_GZIP, LAYER_ZSTD, DOCKER_LAYER_GZIP)

CHUNKS_ARTIFACT: Final = "application/vnd.layerkit.chunks.v0"
CHUNK_MANIFEST: Final = "application/vnd.layerkit.chunk-manifest.v0"
FORM_ZSTD: Final = "application/vnd.layerkit.form.v0+zstd"
# a referrer without content: what a tag named before it named the subject (ANNOTATION_WAS, _OLD)
WAS_ARTIFACT: Final = "application/vnd.layerkit.was.v0"
# a referrer whose one layer is an update to the subject from one old image (formats.storedupdate)
UPDATE_ARTIFACT: Final = "application/vnd.layerkit.update.v1"
# a referrer with chunk packs of an image's layers, each behind its index (formats.chunkpack)
PACKS_ARTIFACT: Final = "application/vnd.layerkit.packs.v0"

ANNOTATION_ROLE: Final = "dev.layerkit.role"
ANNOTATION_COMPRESSION: Final = "dev.layerkit.compression"
ANNOTATION_LAYER: Final = "dev.layerkit.layer"
ANNOTATION_FORM: Final = "dev.layerkit.form"  # digest and size of a form blob that was left out
ANNOTATION_OLD: Final = "dev.layerkit.old"  # of a WAS_ARTIFACT or an update: the image before
ANNOTATION_PLATFORM: Final = "dev.layerkit.platform"  # of a stored update: what it is for,
ANNOTATION_UPDATE: Final = "dev.layerkit.update"  # the digest of its blob,
ANNOTATION_UPDATE_SIZE: Final = "dev.layerkit.update.size"  # and the bytes of that
ANNOTATION_WAS: Final = "dev.layerkit.was"  # in index.json: the name that moved on from an entry
ANNOTATION_REF_NAME: Final = "org.opencontainers.image.ref.name"

MAX_DOCUMENT_SIZE: Final = 4 << 20  # bytes: what registries accept as a manifest
MAX_ITEMS: Final = 4096  # layers, manifests, annotations, environment entries
MAX_TEXT: Final = 64 << 10  # characters of one string
MAX_BLOB_SIZE: Final = 1 << 40  # bytes a descriptor may declare

LAYOUT_MARKER: Final = b'{"imageLayoutVersion":"1.0.0"}'
LAYOUT_VERSION: Final = "1.0.0"
EMPTY_BLOB: Final = b"{}"

Json = dict[str, object]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Platform:
    """What a manifest of an index runs on, in Go's words."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Points at a blob: what it is, its digest, its size."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    artifact_type: str = ""

    def __post_init__(self) -> None:
        if self.digest.algorithm != "sha256":
            raise FormatError(f"descriptor digest {self.digest.short} is not sha256")
        if not 0 <= self.size <= MAX_BLOB_SIZE:
            raise FormatError(f"descriptor size {self.size} is not in 0..{MAX_BLOB_SIZE}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest; with `artifact_type` an artifact; `subject` is what it refers to."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str = ""
    subject: Descriptor | None = None
    media_type: str = MANIFEST


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests: of one image for several platforms, or of a layout folder."""

    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str = ""
    subject: Descriptor | None = None
    media_type: str = INDEX


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How an image runs, and the diff_ids of its layers. It has no creation time of its own."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    exposed_ports: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    history: tuple[str, ...] = ()  # one `created_by` for each layer
    created: str = ""


EMPTY_DESCRIPTOR: Final = Descriptor(EMPTY, sha256_digest(EMPTY_BLOB), len(EMPTY_BLOB))


def describe(
    data: bytes,
    media_type: str,
    annotations: Mapping[str, str] | None = None,
    *,
    platform: Platform | None = None,
    artifact_type: str = "",
) -> Descriptor:
    """The descriptor of `data`."""
    digest = sha256_digest(data)
    return Descriptor(
        media_type, digest, len(data), dict(annotations or {}), platform, artifact_type
    )


# --- writing ---------------------------------------------------------------------------------


def serialize_json(value: Mapping[str, object]) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8")


def serialize_manifest(manifest: Manifest) -> bytes:
    """The bytes of a manifest; one value has one serialization."""
    out: Json = {
        "schemaVersion": 2,
        "mediaType": manifest.media_type,
        "config": _descriptor_json(manifest.config),
        "layers": [_descriptor_json(layer) for layer in manifest.layers],
    }
    _put_common(out, manifest.annotations, manifest.artifact_type, manifest.subject)
    return serialize_json(out)


def serialize_index(index: Index) -> bytes:
    """The bytes of an index; the order of its manifests is kept."""
    out: Json = {
        "schemaVersion": 2,
        "mediaType": index.media_type,
        "manifests": [_descriptor_json(entry) for entry in index.manifests],
    }
    _put_common(out, index.annotations, index.artifact_type, index.subject)
    return serialize_json(out)


def serialize_config(config: ImageConfig) -> bytes:
    """The bytes of an image config."""
    run: Json = {}
    for key, value in (
        ("Entrypoint", list(config.entrypoint)),
        ("Cmd", list(config.cmd)),
        ("Env", list(config.env)),
        ("User", config.user),
        ("WorkingDir", config.working_dir),
        ("ExposedPorts", {port: {} for port in config.exposed_ports}),
        ("Labels", dict(config.labels)),
    ):
        if value:
            run[key] = value
    out: Json = {
        "architecture": config.platform.architecture,
        "os": config.platform.os,
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [str(diff_id) for diff_id in config.diff_ids]},
    }
    if config.platform.variant:
        out["variant"] = config.platform.variant
    if config.history:
        out["history"] = [{"created_by": text} for text in config.history]
    if config.created:
        out["created"] = config.created
    return serialize_json(out)


def _put_common(
    out: Json, annotations: Mapping[str, str], artifact_type: str, subject: Descriptor | None
) -> None:
    if annotations:
        out["annotations"] = dict(annotations)
    if artifact_type:
        out["artifactType"] = artifact_type
    if subject is not None:
        out["subject"] = _descriptor_json(subject)


def _descriptor_json(descriptor: Descriptor) -> Json:
    out: Json = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.annotations:
        out["annotations"] = dict(descriptor.annotations)
    if descriptor.platform is not None:
        platform = descriptor.platform
        out["platform"] = {"os": platform.os, "architecture": platform.architecture}
        if platform.variant:
            out["platform"] = {
                "os": platform.os,
                "architecture": platform.architecture,
                "variant": platform.variant,
            }
    if descriptor.artifact_type:
        out["artifactType"] = descriptor.artifact_type
    return out


# --- reading ---------------------------------------------------------------------------------


def parse_manifest(raw: bytes | memoryview) -> Manifest:
    """Parse an image manifest (OCI, or docker's schema 2)."""
    what = "manifest"
    document = _load(raw, what)
    media_type = _text(document, "mediaType", what) or MANIFEST
    if media_type not in MANIFEST_TYPES:
        raise FormatError(f"{what}: media type {media_type[:80]!r} is not an image manifest")
    _check_schema(document, what)
    return Manifest(
        _descriptor(document.get("config"), "manifest config"),
        _list(document, "layers", what, lambda item: _descriptor(item, "layer"), required=True),
        _texts(document, "annotations", what),
        _text(document, "artifactType", what),
        _subject(document),
        media_type,
    )


def parse_index(raw: bytes | memoryview) -> Index:
    """Parse an index (OCI, or docker's manifest list). Its list may be null, as Go's servers write
    one with nothing in it (cuelabs.dev/go/oci/ociregistry, ociserver/lister.go)."""
    what = "index"
    document = _load(raw, what)
    has_list = document.get("manifests", "") is not None
    media_type = _text(document, "mediaType", what) or INDEX
    if media_type not in INDEX_TYPES:
        raise FormatError(f"{what}: media type {media_type[:80]!r} is not an index")
    _check_schema(document, what)
    return Index(
        _list(
            document,
            "manifests",
            what,
            lambda item: _descriptor(item, "manifest"),
            required=has_list,
        ),
        _texts(document, "annotations", what),
        _text(document, "artifactType", what),
        _subject(document),
        media_type,
    )


def parse_config(raw: bytes | memoryview) -> ImageConfig:
    """Parse an image config."""
    what = "image config"
    document = _load(raw, what)
    rootfs = _object(document.get("rootfs"), f"{what}: rootfs")
    run = _object(document.get("config") or {}, f"{what}: config")
    history = _list(document, "history", what, lambda item: _created_by(item, what))
    return ImageConfig(
        _platform(document, what),
        _list(rootfs, "diff_ids", what, lambda item: _digest(item, what), required=True),
        _strings(run, "Entrypoint", what),
        _strings(run, "Cmd", what),
        _strings(run, "Env", what),
        _text(run, "User", what),
        _text(run, "WorkingDir", what),
        tuple(sorted(_object(run.get("ExposedPorts") or {}, f"{what}: ExposedPorts"))),
        _texts(run, "Labels", what),
        history,
        _text(document, "created", what),
    )


def parse_layout_marker(raw: bytes | memoryview) -> str:
    """The version in an `oci-layout` file; only 1.x is known."""
    version = _text(_load(raw, "oci-layout"), "imageLayoutVersion", "oci-layout")
    if not version.startswith("1."):
        raise FormatError(f"oci-layout: version {version[:40]!r} is not known")
    return version


def parse_platform(text: str) -> Platform:
    """Parse what a user writes: ``linux/amd64`` or ``linux/arm/v7``."""
    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or not all(part.isascii() and part.isalnum() for part in parts):
        raise UsageError(
            f"{text[:80]!r} is not a platform", hint="write os/architecture, as in linux/amd64"
        )
    return _normalize(*parts)


def _normalize(system: str, architecture: str, variant: str = "") -> Platform:
    """One spelling for what is the same: arm64's v8 and amd64's v1 are what goes without saying.
    Spec: containerd/platforms "Normalize"."""
    usual = {"arm64": ("v8", "8"), "amd64": ("v1",)}
    known = {"aarch64": "arm64", "x86_64": "amd64", "x86-64": "amd64"}
    architecture = known.get(architecture, architecture)
    return Platform(system, architecture, "" if variant in usual.get(architecture, ()) else variant)


def _load(raw: bytes | memoryview, what: str) -> Json:
    if len(raw) > MAX_DOCUMENT_SIZE:
        raise FormatError(
            f"{what} is over its limit: {len(raw)} bytes, want <= {MAX_DOCUMENT_SIZE}"
        )
    try:
        document = json.loads(bytes(raw).decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise FormatError(f"{what} is not JSON", offset=getattr(exc, "pos", 0)) from exc
    return _object(document, what)


def _object(value: object, what: str) -> Json:
    if not isinstance(value, dict) or len(value) > MAX_ITEMS:
        raise FormatError(f"{what} is not an object of at most {MAX_ITEMS} entries")
    return value


def _string(value: object, what: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise FormatError(f"{what} is not a string of at most {MAX_TEXT} characters")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as exc:  # a lone surrogate: JSON has it, UTF-8 does not
        raise FormatError(f"{what} is not a Unicode string") from exc
    return value


def _text(document: Json, key: str, what: str) -> str:
    """An optional string; "" where it is absent or null."""
    value = document.get(key)
    return "" if value is None else _string(value, f"{what}: {key}")


def _texts(document: Json, key: str, what: str) -> dict[str, str]:
    """An optional object of strings."""
    value = document.get(key)
    if value is None:
        return {}
    where = f"{what}: {key}"
    return {
        _string(name, where): _string(text, where) for name, text in _object(value, where).items()
    }


def _list(
    document: Json,
    key: str,
    what: str,
    parse: Callable[[object], T],
    *,
    required: bool = False,
) -> tuple[T, ...]:
    value = document.get(key)
    if value is None and not required:
        return ()
    if not isinstance(value, list) or len(value) > MAX_ITEMS:
        raise FormatError(f"{what}: {key} is not a list of at most {MAX_ITEMS} items")
    return tuple(parse(item) for item in value)


def _strings(document: Json, key: str, what: str) -> tuple[str, ...]:
    return _list(document, key, what, lambda item: _string(item, f"{what}: {key}"))


def _digest(value: object, what: str) -> Digest:
    digest = Digest.parse(_string(value, f"{what}: digest"))
    if digest.algorithm != "sha256":
        raise FormatError(f"{what}: digest {digest.short} is not sha256")
    return digest


def _descriptor(value: object, what: str) -> Descriptor:
    document = _object(value, f"{what} descriptor")
    size = document.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_BLOB_SIZE:
        raise FormatError(f"{what} descriptor: size is not a number in 0..{MAX_BLOB_SIZE}")
    media_type = _text(document, "mediaType", f"{what} descriptor")
    if not media_type:
        raise FormatError(f"{what} descriptor: mediaType is missing")
    if not (media_type.isascii() and media_type.isprintable()):  # it goes into HTTP headers
        raise FormatError(f"{what} descriptor: {media_type[:80]!r} is not a media type")
    raw_platform = document.get("platform")
    return Descriptor(
        media_type,
        _digest(document.get("digest"), f"{what} descriptor"),
        size,
        _texts(document, "annotations", f"{what} descriptor"),
        None if raw_platform is None else _platform(_object(raw_platform, "platform"), "platform"),
        _text(document, "artifactType", f"{what} descriptor"),
    )


def _subject(document: Json) -> Descriptor | None:
    value = document.get("subject")
    return None if value is None else _descriptor(value, "subject")


def _platform(document: Json, what: str) -> Platform:
    return _normalize(
        _text(document, "os", what),
        _text(document, "architecture", what),
        _text(document, "variant", what),
    )


def _created_by(value: object, what: str) -> str:
    return _text(_object(value, f"{what}: history"), "created_by", what)


def _check_schema(document: Json, what: str) -> None:
    if document.get("schemaVersion") != 2:
        raise FormatError(f"{what}: schemaVersion is not 2")
