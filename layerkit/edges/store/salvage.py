"""Healing what SQLite and the file system cannot: an unreadable index, packs with rotten heads.

The index is made again from two things. From the old one comes what still reads and proves itself:
images by their seals, blobs by their digests, pins and facts of those. From the packs come the
chunks, for each record repeats its id, and each chunk is verified; a place in the old index helps
where a record's head is rotten. The new index is made beside the old one and takes its name in one
step: a crash leaves the old one, and the next repair begins anew. Memory: the ids of all chunks,
one pack, one blob.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from layerkit.digest import Digest, chunk_id
from layerkit.edges.disk import TEMP_PREFIX, Disk
from layerkit.edges.index import INDEX_NAME, SCHEMA_FACT, Index, read_rows
from layerkit.edges.pack import PACK_START, scan_pack, walk_pack
from layerkit.edges.store.chunks import Chunks
from layerkit.edges.store.images import (
    ARTIFACT_KIND,
    CHUNK_MANIFEST_KIND,
    Images,
    is_chunk_manifest,
    is_sealed,
    open_fact,
)
from layerkit.edges.store.sweep import LOCK_NAME
from layerkit.errors import FormatError, StoreError, StoreLockedError

__all__ = ["find_bad_packs", "has_lost_index", "list_old_images", "rebuild_index"]

PACKS_NAME: Final = "packs"
SESSIONS_NAME: Final = "sessions"
MIN_INDEX_SIZE: Final = 512  # bytes; SQLite takes a shorter file for a new one
_SUFFIXES: Final = ("-wal", "-shm")
_ARTIFACT_MARK: Final = b"application/vnd.layerkit.chunks."


def has_lost_index(path: Path) -> bool:
    """Are there packs, and no index? A new store has neither."""
    with contextlib.suppress(FileNotFoundError):
        if (path / INDEX_NAME).stat().st_size >= MIN_INDEX_SIZE:
            return False
    with contextlib.suppress(FileNotFoundError):
        return any(_pack_names(path))
    return False


def find_bad_packs(path: Path, names: Sequence[str]) -> list[str]:
    """Those of the named packs in which something is not as it was written: a head, a chunk that
    nobody needs any more, bytes at the end. Damaged chunks that are needed are found by reading
    them. A pack that gc has removed meanwhile is none of them."""
    bad = []
    for name in names:
        try:
            sound = all(good for _, _, _, good in walk_pack(path / PACKS_NAME / name))
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise StoreError(f"cannot read pack {name}", cause=str(exc)) from exc
        if not sound:
            bad.append(name)
    return bad


def list_old_images(path: Path) -> dict[str, Digest | None]:
    """References that a damaged index still names, with their digests where these make sense."""
    rows = [_texts(row) for row in read_rows(path / INDEX_NAME, "images")]
    return {row["ref"]: _digest(row.get("digest", "")) for row in rows if "ref" in row}


def rebuild_index(path: Path, disk: Disk) -> int:
    """Make the index again; returns the count of its chunks. StoreLockedError while gc runs, or a
    session lives: what it commits would go into the old index, and be lost."""
    with disk.lock(path / LOCK_NAME):
        _check_alone(path, disk)
        temp = path / f"{TEMP_PREFIX}{INDEX_NAME}"
        for suffix in ("", *_SUFFIXES):
            disk.remove(Path(f"{temp}{suffix}"))
        index = Index(temp, disk)
        try:
            count = _save_chunks(path, disk, index)
            _save_images(path / INDEX_NAME, index)
        finally:
            index.close()  # SQLite moves its log into the file, durably
        _check_alone(path, disk)
        # a log without its index is nothing; an index with a foreign log would be nonsense
        for suffix in _SUFFIXES:
            disk.remove(path / f"{INDEX_NAME}{suffix}")
        disk.fsync_folder(path)
        disk.rename(temp, path / INDEX_NAME)
    return count


def _check_alone(path: Path, disk: Disk) -> None:
    folder = path / SESSIONS_NAME
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            if disk.is_held(folder / name):
                raise StoreLockedError(
                    f"store {path} is being used, and its index is to be made again",
                    hint="stop pulls and agents that use it, then repair it",
                )


def _save_chunks(path: Path, disk: Disk, index: Index) -> int:
    chunks = Chunks(path / PACKS_NAME, disk, index)
    try:
        names = {row.get("pack"): row.get("name") for row in read_rows(path / INDEX_NAME, "packs")}
        hints: dict[object, list[dict[str, object]]] = {}
        for row in read_rows(path / INDEX_NAME, "chunks"):
            hints.setdefault(names.get(row.get("pack")), []).append(row)
        count = 0
        for name in _pack_names(path):
            file = path / PACKS_NAME / name
            rows = {row[0]: row for row in scan_pack(file)}
            for place in _proven(file, hints.get(name.encode(), ())):
                rows.setdefault(place[0], place)
            if rows:
                chunks.add_pack(name, file.stat().st_size, list(rows.values()))
                count += len(rows)
        return count
    finally:
        chunks.close()


def _pack_names(path: Path) -> list[str]:
    names = os.listdir(path / PACKS_NAME)
    return sorted(name for name in names if not name.startswith(TEMP_PREFIX))


def _proven(file: Path, hints: Sequence[dict[str, object]]) -> Iterator[tuple[bytes, int, int]]:
    """Places of the old index at which the chunk really lies."""
    if not hints:
        return
    data = file.read_bytes()
    for hint in hints:
        raw_id, offset, size = hint.get("id"), hint.get("offset"), hint.get("size")
        if not (isinstance(raw_id, bytes) and isinstance(offset, int) and isinstance(size, int)):
            continue
        if not (len(PACK_START) <= offset and 0 < size <= len(data) - offset):
            continue
        if chunk_id(memoryview(data)[offset : offset + size]).raw == raw_id:
            yield raw_id, offset, size


def _save_images(old: Path, index: Index) -> None:
    """Blobs, images, what they hold, pins and facts, each as far as it proves itself."""
    images = Images(index)
    for row in read_rows(old, "blobs"):
        data = row.get("data")
        if isinstance(data, bytes):
            images.put_blob(data, _kind_of(data, row.get("kind")), "")
    holds: dict[str, list[str]] = {}
    for row in read_rows(old, "holds"):
        texts = _texts(row)
        if "owner" in texts and "blob" in texts:
            holds.setdefault(texts["owner"], []).append(texts["blob"])
    for row in read_rows(old, "images"):
        texts, used_at, seal = _texts(row), row.get("used_at"), row.get("seal")
        ref, digest = texts.get("ref", ""), texts.get("digest", "")
        held = sorted(holds.get(digest, []))
        if held and (seal is None or is_sealed(ref, digest, held, seal)):
            images.restore(ref, digest, held, used_at if isinstance(used_at, int) else 0)
    for row in read_rows(old, "pins"):
        digest = _texts(row).get("digest", "")
        parsed = _digest(digest)
        if parsed is not None and digest in holds:
            images.restore_holds(digest, holds[digest])
            images.pin(parsed)
    for row in read_rows(old, "facts"):
        texts = _texts(row)
        name = texts.get("name", SCHEMA_FACT)
        value = open_fact(name, texts.get("value", "")) if name != SCHEMA_FACT else None
        if value is not None:
            images.put_fact(name, value)


def _kind_of(data: bytes, raw_kind: object) -> str:
    """What a blob is, from itself where that can be seen."""
    if is_chunk_manifest(data):
        return CHUNK_MANIFEST_KIND
    if _ARTIFACT_MARK in data and raw_kind == ARTIFACT_KIND.encode():
        return ARTIFACT_KIND
    return ""


def _texts(row: Mapping[str, object]) -> dict[str, str]:
    """The texts of a row of a damaged index, those that are UTF-8."""
    found = {}
    for name, value in row.items():
        if isinstance(value, bytes):
            with contextlib.suppress(UnicodeDecodeError):
                found[name] = value.decode()
    return found


def _digest(text: str) -> Digest | None:
    try:
        return Digest.parse(text)
    except FormatError:
        return None
