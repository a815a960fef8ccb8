"""Shelves: one suite over each kind; a folder's with crashes, rot and many processes."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from builders import noise

sys.path.append(str(Path(__file__).parent.parent / "faults"))
from faulty_disk import CrashError, FaultyDisk

from layerkit.edges.storage import FolderShelf, Shelf
from layerkit.formats.shelf import HEADER, name_entry


class ShelfSuite:
    """What every shelf of LIMIT bytes does."""

    LIMIT = 10_000

    def test_what_was_put_is_found(self, shelf: Shelf) -> None:
        shelf.put("key", b"bytes")
        assert [shelf.get("key"), shelf.get("other")] == [b"bytes", None]

    def test_a_key_is_any_text(self, shelf: Shelf) -> None:
        keys = ["../../etc/passwd", "", "a/b", "ä\0"]
        for key in keys:
            shelf.put(key, key.encode())
        assert [shelf.get(key) for key in keys] == [key.encode() for key in keys]

    def test_the_last_put_counts(self, shelf: Shelf) -> None:
        shelf.put("key", b"old")
        shelf.put("key", b"new")
        assert shelf.get("key") == b"new"

    def test_no_bytes_are_bytes(self, shelf: Shelf) -> None:
        shelf.put("key", b"")
        assert shelf.get("key") == b""

    def test_it_stays_within_its_limit(self, shelf: Shelf) -> None:
        for number in range(20):
            shelf.put(f"key {number}", noise(1000, number))
        found = [data for number in range(20) if (data := shelf.get(f"key {number}"))]
        assert 5 <= len(found) <= 10

    def test_what_is_over_the_limit_is_not_kept(self, shelf: Shelf) -> None:
        shelf.put("small", b"small")
        shelf.put("large", bytes(self.LIMIT))
        assert [shelf.get("small"), shelf.get("large")] == [b"small", None]

    def test_what_is_claimed_is_not_claimed_again(self, shelf: Shelf) -> None:
        assert shelf.claim("key", 60) and shelf.claim("other", 60)
        assert not shelf.claim("key", 60)
        shelf.release("key")
        assert shelf.claim("key", 60)

    def test_a_claim_whose_time_is_out_is_taken_over(self, shelf: Shelf) -> None:
        assert shelf.claim("key", 60)
        assert shelf.claim("key", 0)
        assert not shelf.claim("key", 60)

    def test_a_claim_is_no_entry(self, shelf: Shelf) -> None:
        shelf.claim("key", 60)
        assert shelf.get("key") is None
        shelf.release("never claimed")


class TestFolderShelf(ShelfSuite):
    def test_where_nothing_can_be_kept_all_may_make_it(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        shelf = FolderShelf(tmp_path / "file" / "made")
        assert shelf.claim("key", 60) and shelf.claim("key", 60)

    @pytest.fixture
    def shelf(self, tmp_path: Path) -> FolderShelf:
        return FolderShelf(tmp_path / "made", limit=self.LIMIT)

    def test_looking_makes_no_folder(self, shelf: FolderShelf) -> None:
        assert shelf.get("key") is None
        assert not shelf.path.exists()

    def test_another_server_finds_it(self, shelf: FolderShelf) -> None:
        shelf.put("key", b"bytes")
        assert FolderShelf(shelf.path).get("key") == b"bytes"

    def test_what_was_used_longest_ago_goes_first(self, shelf: FolderShelf) -> None:
        for number in range(8):
            shelf.put(f"key {number}", noise(1000, number))
            os.utime(shelf.path / name_entry(f"key {number}"), (number, number))
        shelf.get("key 0")  # is now the one used last
        for number in range(8, 12):
            shelf.put(f"key {number}", noise(1000, number))
        assert shelf.get("key 0") is not None
        assert shelf.get("key 1") is None

    def test_all_its_files_are_within_the_limit(self, shelf: FolderShelf) -> None:
        for number in range(50):
            shelf.put(f"key {number}", noise(100 * number, number))
        assert sum(path.stat().st_size for path in shelf.path.iterdir()) <= self.LIMIT

    @pytest.mark.parametrize("offset", [0, HEADER.size - 1, HEADER.size, -1])
    def test_a_rotten_entry_is_dropped(self, shelf: FolderShelf, offset: int) -> None:
        shelf.put("key", b"bytes")
        path = shelf.path / name_entry("key")
        raw = bytearray(path.read_bytes())
        raw[offset] ^= 1
        path.write_bytes(raw)
        assert shelf.get("key") is None
        assert not path.exists()

    def test_a_folder_that_cannot_be_written_keeps_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("no folder")
        shelf = FolderShelf(tmp_path / "file" / "made")
        shelf.put("key", b"bytes")
        assert shelf.get("key") is None

    def test_each_crash_leaves_old_or_new(self, tmp_path: Path) -> None:
        stop_at = 0
        while True:
            stop_at += 1
            path = tmp_path / str(stop_at)
            FolderShelf(path).put("key", b"old")
            disk = FaultyDisk(stop_at, torn=True, lose=True)
            try:
                FolderShelf(path, disk).put("key", b"newer")
            except CrashError:
                disk.lose_unsynced()
                assert FolderShelf(path).get("key") in (b"old", b"newer")
                FolderShelf(path).put("other", b"x")
                names = {name_entry("key"), name_entry("other"), ".lock"}
                assert {entry.name for entry in path.iterdir()} == names
                continue
            break
        assert stop_at > 4

    def test_many_processes_share_it(self, shelf: FolderShelf) -> None:
        context = multiprocessing.get_context("spawn")
        workers = [
            context.Process(target=use_shelf, args=(shelf.path, self.LIMIT, seed))
            for seed in range(3)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
        assert sum(path.stat().st_size for path in shelf.path.iterdir()) <= self.LIMIT

    def test_what_a_killed_process_claimed_is_free_at_once(self, shelf: FolderShelf) -> None:
        argv = [sys.executable, "-c", CLAIMER, str(shelf.path)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as owner:
            assert owner.stdout is not None and owner.stdout.readline() == b"True\n"
            assert not shelf.claim("key", 60)
            owner.kill()
            owner.wait()
        assert shelf.claim("key", 60)
        shelf.release("key")
        assert list(shelf.path.iterdir()) == []

    def test_who_did_not_claim_gives_nothing_back(self, shelf: FolderShelf) -> None:
        other = FolderShelf(shelf.path)
        assert shelf.claim("key", 60)
        other.release("key")
        assert not other.claim("key", 60)
        shelf.release("key")
        assert other.claim("key", 60)

    def test_a_claim_is_of_one_at_a_time(self, shelf: FolderShelf) -> None:
        """Taken, given back and taken again by many at once: no two ever have it."""
        shelves = [FolderShelf(shelf.path) for _ in range(4)]
        owners, most, taken = [0], [0], [0]

        def work(mine: FolderShelf) -> None:
            for _ in range(300):
                if mine.claim("key", 60):
                    owners[0] += 1
                    most[0], taken[0] = max(most[0], owners[0]), taken[0] + 1
                    owners[0] -= 1
                    mine.release("key")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, shelves))
        assert most == [1] and taken[0] >= 300


CLAIMER = """
import sys, time
from pathlib import Path
from layerkit.edges.storage import FolderShelf
shelf = FolderShelf(Path(sys.argv[1]))
print(shelf.claim("key", 60), flush=True)
time.sleep(600)
"""


def use_shelf(path: Path, limit: int, seed: int) -> None:
    """Put and get what others put and get, too; what is got must be whole."""
    shelf = FolderShelf(path, limit=limit)
    for number in range(60):
        key = (seed + number) % 15
        shelf.put(str(key), noise(900, key))
        found = shelf.get(str((key + 7) % 15))
        assert found in (None, noise(900, (key + 7) % 15))
