"""Chunks of a store: found by the index, read from packs, written as new packs.

What is put is durable when `put` returns, and is kept from gc while the session that put it lives;
then only what an image needs stays. A chunk is verified when it is read: bit rot is a
ChunkDigestError, never wrong bytes.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

from layerkit.digest import Digest, check_digest, chunk_id, sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.index import REPAIR_HINT, Index, as_bytes, as_int
from layerkit.edges.pack import PACK_RECORD, PACK_START, PackReader
from layerkit.errors import ChunkDigestError, FormatError, NotFoundError, StoreError
from layerkit.formats.chunker import MAX_CHUNK_SIZE

__all__ = ["Chunks"]

QUERY_COUNT: Final = 500  # ids a query; SQLite's oldest default limit is 999
GROUP_SIZE: Final = 4 << 20  # bytes of chunks looked up together before they are written
WRITE_SIZE: Final = 1 << 20  # bytes of records written at once


class Chunks:
    """The chunks of one store."""

    def __init__(self, folder: Path, disk: Disk, index: Index) -> None:
        self._folder = folder
        self._disk = disk
        self._index = index
        self._reader = PackReader(folder)
        disk.make_folder(folder)

    def close(self) -> None:
        self._reader.close()

    # --- finding and reading -------------------------------------------------------------------

    def has_raw(self, raw_ids: Iterable[bytes]) -> set[bytes]:
        """Those of the ids that are held."""
        return {as_bytes(row[0]) for row in self._list_rows("id", raw_ids)}

    def _find(self, raw_ids: set[bytes]) -> dict[bytes, tuple[str, int, int]]:
        """Where chunks lie: pack, offset, size. One that gc moves right now may be missing."""
        rows: list[Any] = self._list_rows("id, pack, offset, size", raw_ids)
        kinds = [set(map(type, column)) for column in zip(*rows, strict=True)]
        if rows and kinds != [{bytes}, {int}, {int}, {int}]:  # by columns: 2 us a row otherwise
            raise StoreError("index holds a value of the wrong type", hint=REPAIR_HINT)
        names = {row[0]: str(row[1]) for row in self._index.query("SELECT pack, name FROM packs")}
        return {raw: (names[pack], at, size) for raw, pack, at, size in rows if pack in names}

    def _list_rows(self, columns: str, raw_ids: Iterable[bytes]) -> list[tuple[object, ...]]:
        """These columns of the chunks that are held."""
        wanted = sorted(set(raw_ids))  # in the index's own order
        rows: list[tuple[object, ...]] = []
        for start in range(0, len(wanted), QUERY_COUNT):
            some = wanted[start : start + QUERY_COUNT]
            marks = ",".join("?" * len(some))
            rows += self._index.query(f"SELECT {columns} FROM chunks WHERE id IN ({marks})", some)
        return rows

    def get_all(self, raw_ids: Sequence[bytes], want: Digest, what: str) -> bytes:
        """Chunks joined, verified as a whole by `want`; when it does not match, one by one, so that
        the error names the damaged chunk."""
        wanted = set(raw_ids)
        for _ in range(2):  # gc may move chunks to another pack between row and file
            places = self._find(wanted)
            if len(places) < len(wanted):
                continue
            data = self._reader.read_all([places[raw] for raw in raw_ids])
            if data is not None and sha256_digest(data) == want:
                return data
        data = b"".join(self.get(Digest("b3", raw)) for raw in raw_ids)
        check_digest(data, want, what)
        return data

    def get(self, chunk: Digest) -> bytes:
        """The bytes of a chunk, verified. NotFoundError if not held, ChunkDigestError if rotten."""
        for _ in range(2):  # gc may move a chunk to another pack between row and file
            rows = self._index.query(
                "SELECT name, offset, chunks.size FROM chunks JOIN packs USING (pack) WHERE id = ?",
                (chunk.raw,),
            )
            if not rows:
                break
            name, offset, size = str(rows[0][0]), as_int(rows[0][1]), as_int(rows[0][2])
            data = self._reader.read(name, offset, size)
            if data is not None:
                check_digest(data, chunk, f"chunk {chunk.short} in the store")
                return data
        else:
            raise ChunkDigestError(
                f"chunk {chunk.short} in the store has lost its pack",
                got="no file",
                want=str(chunk),
                hint=REPAIR_HINT,
            )
        raise NotFoundError(f"chunk {chunk.short} is not in the store")

    def find_bad(self) -> tuple[list[bytes], int]:
        """Read every chunk: ids of the damaged ones, as the index has them, and how many there
        are."""
        rows = self._index.query(
            "SELECT id, name, offset, chunks.size FROM chunks LEFT JOIN packs USING (pack)"
            " ORDER BY pack, offset"
        )
        bad = []
        for raw, name, offset, size in rows:
            data = self._reader.read(str(name), as_int(offset), as_int(size)) if name else None
            is_good = data is not None and chunk_id(data).raw == raw
            if not is_good and not self._is_moved(as_bytes(raw), name, offset):
                bad.append(as_bytes(raw))
        return bad, len(rows)

    def _is_moved(self, raw: bytes, name: object, offset: object) -> bool:
        """Has gc moved or dropped the chunk since its row was read?"""
        rows = self._index.query(
            "SELECT name, offset FROM chunks LEFT JOIN packs USING (pack) WHERE id = ?", (raw,)
        )
        return rows != [(name, offset)]

    def drop(self, raw_ids: Iterable[bytes]) -> None:
        """Forget chunks (damaged ones), so that they are fetched again."""
        with self._index.transaction() as db:
            db.executemany("DELETE FROM chunks WHERE id = ?", ((raw,) for raw in raw_ids))

    # --- writing -------------------------------------------------------------------------------

    def put(
        self,
        chunks: Iterable[tuple[Digest, bytes]],
        session: str,
        *,
        guard: Callable[[int], None] = lambda size: None,
        old_packs: Sequence[int] = (),
        is_new: bool = False,
    ) -> int:
        """Put verified chunks into one pack of `session`; returns the count. Those held already are
        skipped, but with `is_new` not looked for, and those of `old_packs` moved here. `guard` is
        told the pack's size before each write, and may raise. Memory: what `chunks` yields at a
        time, and the rows."""
        name = f"{session}-{secrets.token_hex(6)}.pack"
        rows: list[tuple[bytes, int, int]] = []
        seen: set[Digest] = set()
        with self._disk.open_new(self._folder / name, mark=f"{session}-") as file:
            file.write(PACK_START)
            buffer = bytearray()
            for chunk, data in chunks if old_packs or is_new else self._lacking(chunks):
                if chunk in seen:
                    continue
                if not 0 < len(data) <= MAX_CHUNK_SIZE:
                    raise FormatError(f"chunk {chunk.short} of {len(data)} bytes cannot be stored")
                seen.add(chunk)
                buffer += PACK_RECORD.pack(len(data), chunk.raw)
                rows.append((chunk.raw, file.size + len(buffer), len(data)))
                buffer += data
                if len(buffer) >= WRITE_SIZE:
                    guard(file.size + len(buffer))
                    file.write(buffer)
                    buffer.clear()
            if not rows:
                return 0
            guard(file.size + len(buffer))
            file.write(buffer)
            file.commit()
        self.add_pack(name, file.size, rows, session, old_packs)
        return len(rows)

    def _lacking(self, chunks: Iterable[tuple[Digest, bytes]]) -> Iterator[tuple[Digest, bytes]]:
        """Those that are not held, looked up in groups of up to GROUP_SIZE bytes."""
        group: list[tuple[Digest, bytes]] = []
        size = 0
        for pair in chain(chunks, [None]):
            if pair is not None:
                group.append(pair)
                size += len(pair[1])
            if pair is None or size >= GROUP_SIZE or len(group) == QUERY_COUNT:
                held = self.has_raw(chunk.raw for chunk, _ in group)
                yield from (pair for pair in group if pair[0].raw not in held)
                group, size = [], 0

    def add_pack(
        self,
        name: str,
        size: int,
        rows: Iterable[tuple[bytes, int, int]],
        session: str = "",
        old_packs: Sequence[int] = (),
    ) -> None:
        """The rows of a pack that is durable: id, offset, size of each chunk. With `old_packs` only
        of chunks that still lie in one of these: what was dropped meanwhile does not come back.
        Those of them that are empty then have no row any more."""
        with self._index.transaction() as db:
            pack = db.execute(
                "INSERT INTO packs (name, size, session) VALUES (?, ?, ?)", (name, size, session)
            )
            number = pack.lastrowid
            if old_packs:
                olds = ",".join(map(str, old_packs))
                db.executemany(
                    f"UPDATE chunks SET pack = ?, offset = ? WHERE id = ? AND pack IN ({olds})",
                    ((number, offset, raw) for raw, offset, _ in rows),
                )
                db.execute(
                    f"DELETE FROM packs WHERE pack IN ({olds})"
                    " AND pack NOT IN (SELECT pack FROM chunks)"
                )
            else:
                db.executemany(
                    "INSERT OR IGNORE INTO chunks (id, pack, offset, size) VALUES (?, ?, ?, ?)",
                    ((raw, number, offset, length) for raw, offset, length in rows),
                )

    def rewrite(self, packs: Sequence[int], session: str) -> int:
        """Copy the undamaged chunks of these packs into one new one. Old ones that are empty then
        are removed; returns their count. What a crash leaves is files without rows: the new pack,
        or old ones."""
        marks = ",".join(map(str, packs))
        names = self._index.query(f"SELECT pack, name FROM packs WHERE pack IN ({marks})")
        ids = self._index.query(
            f"SELECT id FROM chunks WHERE pack IN ({marks}) ORDER BY pack, offset"
        )

        def live() -> Iterator[tuple[Digest, bytes]]:
            for (raw,) in ids:
                chunk = Digest("b3", as_bytes(raw))
                try:
                    yield chunk, self.get(chunk)
                except (ChunkDigestError, NotFoundError):
                    continue  # stays in the old pack, for verify; or was dropped meanwhile

        self.put(live(), session, old_packs=packs)
        left = self._index.query(f"SELECT pack FROM packs WHERE pack IN ({marks})")
        return sum(self.remove_pack(str(name)) for pack, name in names if (pack,) not in left)

    def list_packs(self) -> list[str]:
        return [str(row[0]) for row in self._index.query("SELECT name FROM packs ORDER BY pack")]

    def move(self, name: str, session: str) -> None:
        """The undamaged chunks of a pack into a new one; then the old one goes, with the rest."""
        rows = self._index.query("SELECT pack FROM packs WHERE name = ?", (name,))
        for (pack,) in rows:
            self.rewrite([as_int(pack)], session)
            with self._index.transaction() as db:
                db.execute("DELETE FROM chunks WHERE pack = ?", (pack,))
                db.execute("DELETE FROM packs WHERE pack = ?", (pack,))
        self.remove_pack(name)

    def remove_pack(self, name: str) -> int:
        """Remove a file of the folder that no row names."""
        self._reader.forget(name)
        return int(self._disk.remove(self._folder / name))
