"""`layerkit verify`: read every byte of a node's store, or of an OCI layout; say what is damaged.

It does not fetch: `repair` drops damaged copies, and the next pull brings them. Memory: one chunk
of a store; one blob of a layout, and for a chunks artifact one form.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from layerkit.digest import Digest, chunk_id, sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.index import INDEX_DAMAGED
from layerkit.edges.layout import Layout
from layerkit.edges.store import Store, VerifyResult, rebuild_index
from layerkit.errors import FormatError, IntegrityError, NotFoundError, StoreError
from layerkit.formats import oci
from layerkit.formats.chunkmanifest import parse_chunk_manifest
from layerkit.formats.protocol import unpack_form

__all__ = ["LayoutResult", "verify_layout", "verify_store"]


@dataclass(frozen=True, slots=True)
class LayoutResult:
    """What was read of a layout; each problem names the thing and what is wrong."""

    image_count: int
    blob_count: int
    chunk_count: int
    problems: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        return not self.problems


def verify_store(path: Path, disk: Disk, *, repair: bool = False) -> VerifyResult:
    """Verify the store at `path`; `repair` makes an unreadable index again from the packs."""
    if not path.is_dir():
        raise NotFoundError(f"store {path} does not exist")
    try:
        with Store(path, disk) as store:
            store.check_index()
            return store.verify(repair=repair)
    except StoreError as exc:
        if not repair or INDEX_DAMAGED not in exc.message:
            raise
    rebuild_index(path, disk)
    with Store(path, disk) as store:
        return replace(store.verify(repair=True), index_rebuilt=True)


def verify_layout(path: Path) -> LayoutResult:
    """Verify all that the index of a layout names: digests, sizes, chunk manifests and forms."""
    layout = Layout(path)
    run = _LayoutRun(layout)
    for entry in layout.read_index().manifests:
        run.read_any(entry)
    return LayoutResult(run.image_count, len(run.seen), run.chunk_count, tuple(run.problems))


class _LayoutRun:
    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.seen: set[Digest] = set()
        self.problems: list[str] = []
        self.image_count = 0
        self.chunk_count = 0

    def read_any(self, entry: oci.Descriptor) -> None:
        """A manifest or index, and all that it names."""
        if entry.digest in self.seen:
            return
        data = self._read_blob(entry)
        if data is None:
            return
        try:
            if entry.media_type in oci.INDEX_TYPES:
                for child in oci.parse_index(data).manifests:
                    self.read_any(child)
                return
            manifest = oci.parse_manifest(data)
        except FormatError as exc:
            self.problems.append(f"{entry.digest}: {exc.message}")
            return
        if manifest.artifact_type == oci.CHUNKS_ARTIFACT:
            self._read_artifact(manifest)
            return
        if not manifest.artifact_type:  # else something about an image, such as its SBOM
            self.image_count += 1
        for blob in (manifest.config, *manifest.layers):
            if blob.digest not in self.seen:
                self._read_blob(blob)

    def _read_blob(self, descriptor: oci.Descriptor) -> bytes | None:
        self.seen.add(descriptor.digest)
        try:
            data = self._layout.read_blob(descriptor.digest)
        except (IntegrityError, NotFoundError, StoreError, FormatError) as exc:
            self.problems.append(f"{descriptor.digest}: {exc.message}")
            return None
        if len(data) != descriptor.size:
            self.problems.append(
                f"{descriptor.digest}: got {len(data)} bytes, want {descriptor.size}"
            )
        return data

    def _read_artifact(self, manifest: oci.Manifest) -> None:
        self._read_blob(manifest.config)
        for listed, form in _pairs(manifest):
            raw_list, raw_form = self._read_blob(listed), self._read_blob(form)
            if raw_list is None or raw_form is None:
                continue
            try:
                self._check_form(raw_list, raw_form)
            except FormatError as exc:
                self.problems.append(f"{listed.digest}: {exc.message}")

    def _check_form(self, raw_list: bytes, raw_form: bytes) -> None:
        chunk_manifest = parse_chunk_manifest(raw_list)
        form = unpack_form(raw_form, chunk_manifest.form_size)
        if sha256_digest(form) != chunk_manifest.form_digest:
            self.problems.append(f"form {chunk_manifest.form_digest} does not match its digest")
        view = memoryview(form)
        for offset, chunk in chunk_manifest.spans():
            self.chunk_count += 1
            if chunk_id(view[offset : offset + chunk.size]) != chunk.id:
                self.problems.append(f"chunk {chunk.id} does not match its id")


def _pairs(manifest: oci.Manifest) -> Iterator[tuple[oci.Descriptor, oci.Descriptor]]:
    """Each chunk manifest of an artifact with its form."""
    forms = {
        blob.annotations.get(oci.ANNOTATION_LAYER): blob
        for blob in manifest.layers
        if blob.media_type == oci.FORM_ZSTD
    }
    for blob in manifest.layers:
        form = forms.get(blob.annotations.get(oci.ANNOTATION_LAYER))
        if blob.media_type == oci.CHUNK_MANIFEST and form is not None:
            yield blob, form
