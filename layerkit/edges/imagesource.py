"""Where an image comes from that somebody else made: a layout, an archive, an engine, a registry.

| what a person writes | what is meant |
|---|---|
| ``DIR`` or ``DIR:REF`` | an OCI layout |
| ``FILE`` or ``FILE:REF`` | an OCI archive, or what `docker save` wrote; gzip or zstd around it |
| ``HOST/NAME:TAG`` or ``docker://REF`` | a registry; without a host docker's |
| ``NAME:TAG`` or ``docker-daemon:REF`` | the docker engine of this machine |

The prefixes are skopeo's. What is opened lives as long as the context; what an engine gives lies in
a folder of ours meanwhile. An archive is mapped, not read. Limits: MAX_ARCHIVE_SIZE for what is
compressed as a whole, for that is unpacked in memory.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from layerkit.edges.disk import Disk, map_os_error
from layerkit.edges.subject import find_subject
from layerkit.errors import FormatError, NotFoundError, RemoteLimitError, UsageError
from layerkit.formats import oci
from layerkit.formats.deflate import decompress
from layerkit.formats.imagearchive import parse_image_archive
from layerkit.formats.reference import Reference

if TYPE_CHECKING:
    from layerkit.edges.registry import Registry

__all__ = ["ImageSource", "OpenImage", "Places", "open_image"]

MAX_ARCHIVE_SIZE: Final = 4 << 30  # bytes that a compressed archive may unpack to
MAX_READ_SIZE: Final = 4 << 30  # bytes of one blob of a registry; held in memory
DOCKER_HUB: Final = "docker.io"
DOCKER_HUB_URL: Final = "https://registry-1.docker.io"
_ENGINE, _REGISTRY = "docker-daemon:", "docker://"
_HINT: Final = "name a layout, an archive, LAYOUT:REF, HOST/NAME:TAG or docker-daemon:NAME:TAG"

Progress = Callable[[int], None]


class ImageSource(Protocol):
    """Reads what an image is made of."""

    def read_blob(self, what: oci.Descriptor) -> bytes:
        """The bytes of a blob, manifest or index, verified."""


@dataclass(frozen=True, slots=True)
class OpenImage:
    """An image or index that can be read; `name` is for people."""

    name: str
    top: oci.Descriptor
    source: ImageSource


@dataclass(frozen=True, slots=True)
class Places:
    """What of the outside is needed to find an image. `scratch`: where temporary folders go;
    `docker`: an engine's address, "" as `env` says; the rest is a registry's (see
    edges.registry.Transport)."""

    scratch: Path
    disk: Disk = field(default_factory=Disk)
    docker: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    config: Path | None = None
    ca: Path | None = None
    realms: Collection[str] = ()
    progress: Progress = lambda size: None


@contextlib.contextmanager
def open_image(text: str, places: Places) -> Iterator[OpenImage]:
    """Open what `text` names. Raises NotFoundError, UsageError, FormatError (an archive),
    RemoteError (a registry), ToolError (an engine)."""
    found = None if _has_prefix(text) else _split_file(text)
    if found is not None:
        with _open_archive(found[0]) as data:
            archived = parse_image_archive(data)
            image = archived.find(found[1])
            yield OpenImage(text, image.top, archived)
    elif not _has_prefix(text) and _is_layout(text):
        subject = find_subject(text, None)
        assert subject.layout is not None and subject.descriptor is not None
        yield OpenImage(subject.name, subject.descriptor, subject.layout)
    elif text.startswith(_REGISTRY) or (not text.startswith(_ENGINE) and _parse(text).host):
        yield _open_remote(_parse(text.removeprefix(_REGISTRY)).tagged, places)
    else:
        with _open_engine(text, places) as image_of_engine:
            yield image_of_engine


def _has_prefix(text: str) -> bool:
    return text.startswith((_ENGINE, _REGISTRY))


def _parse(text: str) -> Reference:
    try:
        return Reference.parse(text)
    except UsageError as exc:
        raise NotFoundError(
            f"{text} is neither a layout, an archive nor a reference", cause=exc.cause, hint=_HINT
        ) from exc


def _is_layout(text: str) -> bool:
    path = Path(text)
    cuts = (at for at, letter in enumerate(text) if letter == ":")
    return path.is_dir() or any(Path(text[:at]).is_dir() for at in cuts if at)


# --- archives ----------------------------------------------------------------------------------


def _split_file(text: str) -> tuple[Path, str] | None:
    """(file, name in it) where `text` starts with the name of a file."""
    if Path(text).is_file():
        return Path(text), ""
    for at in (at for at, letter in enumerate(text) if letter == ":"):
        if at and Path(text[:at]).is_file():
            return Path(text[:at]), text[at + 1 :]
    return None


@contextlib.contextmanager
def _open_archive(path: Path) -> Iterator[memoryview]:
    """The plain tar. Slices of it must not be used after the end; what was read is a copy."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise FormatError(f"{path} is empty")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as exc:
        raise map_os_error(exc, "read", path) from exc
    media_type = _compression_of(mapped[:4])
    if media_type:
        with contextlib.closing(mapped):
            plain = decompress(mapped[:], media_type, MAX_ARCHIVE_SIZE)
        yield memoryview(plain)
    else:
        # not closed but let go of: views of it may live on in an exception's frames
        yield memoryview(mapped)


def _compression_of(head: bytes) -> str:
    if head[:2] == b"\x1f\x8b":
        return oci.LAYER_GZIP
    return oci.LAYER_ZSTD if head == b"\x28\xb5\x2f\xfd" else ""


# --- an engine ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _open_engine(text: str, places: Places) -> Iterator[OpenImage]:
    """An image that docker has, by the archive that it writes."""
    from layerkit.edges.engine import Docker

    ref = _parse(text.removeprefix(_ENGINE))
    name = str(ref if ref.digest is not None else ref.tagged)
    engine = Docker(places.docker, places.env)
    if not text.startswith(_ENGINE) and not engine.is_there():
        raise NotFoundError(
            f"{text} is neither a layout nor an archive, and no docker runs here", hint=_HINT
        )
    folder = places.disk.make_temp_folder(places.scratch)
    try:
        path = folder / "image.tar"
        with places.disk.open_new(path) as file:
            for part in engine.save(name):
                file.write(part)
                places.progress(len(part))
            file.commit()
        with _open_archive(path) as data:
            archived = parse_image_archive(data)
            image = archived.find("" if len(archived.images) == 1 else name)
            yield OpenImage(name, image.top, archived)
    finally:
        places.disk.remove_tree(folder)


# --- a registry --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _RegistrySource:
    registry: Registry
    repository: str
    progress: Progress

    def read_blob(self, what: oci.Descriptor) -> bytes:
        if what.media_type in (*oci.MANIFEST_TYPES, *oci.INDEX_TYPES):
            return self.registry.read_manifest(self.repository, str(what.digest))[1]
        if what.size > MAX_READ_SIZE:
            raise RemoteLimitError(
                f"blob {what.digest.short} has {what.size} bytes, want <= {MAX_READ_SIZE}"
            )
        parts = []
        for part in self.registry.read_parts(self.repository, what.digest, what.size):
            parts.append(part)
            self.progress(len(part))
        return b"".join(parts)


def _open_remote(ref: Reference, places: Places) -> OpenImage:
    from layerkit.edges.storage.opening import open_registry

    repository, host = ref.repository, ref.host
    if host in ("", DOCKER_HUB):
        repository = repository if "/" in repository else f"library/{repository}"
        url = DOCKER_HUB_URL
    else:
        url = ref.registry_url
    registry = open_registry(url, config=places.config, ca=places.ca, realms=places.realms)
    wanted = str(ref.digest) if ref.digest is not None else ref.tag
    top, _ = registry.read_manifest(repository, wanted)
    return OpenImage(str(ref), top, _RegistrySource(registry, repository, places.progress))
