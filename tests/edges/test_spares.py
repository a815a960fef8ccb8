"""Spare trees of lower layers."""

from __future__ import annotations

from pathlib import Path

from layerkit.digest import sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.spares import MAX_COUNT, Spares

ONE, TWO, THREE = (sha256_digest(b"%d" % number) for number in range(3))


def make(folder: Path, text: str) -> Path:
    made = folder / f"made-{text}"
    made.mkdir()
    (made / "file").write_text(text)
    return made


def test_the_spare_of_most_layers_is_taken_once(tmp_path: Path) -> None:
    spares = Spares(tmp_path, Disk())
    spares.put([ONE], make(tmp_path, "one"))
    spares.put([ONE, TWO], make(tmp_path, "two"))
    spares.put([ONE, TWO], make(tmp_path, "again"))  # there is one
    assert spares.take([ONE, TWO, THREE], tmp_path / "a") == 2
    assert (tmp_path / "a" / "file").read_text() == "two"
    assert spares.take([ONE, TWO, THREE], tmp_path / "b") == 1
    assert spares.take([ONE, TWO, THREE], tmp_path / "c") == 0
    assert spares.take([TWO, ONE], tmp_path / "d") == 0


def test_all_layers_of_an_image_are_no_spare_for_it(tmp_path: Path) -> None:
    spares = Spares(tmp_path, Disk())
    spares.put([ONE], make(tmp_path, "one"))
    assert spares.take([ONE], tmp_path / "a") == 0


def test_the_oldest_go(tmp_path: Path) -> None:
    spares = Spares(tmp_path, Disk())
    digests = [sha256_digest(b"x%d" % number) for number in range(MAX_COUNT + 2)]
    for number, digest in enumerate(digests):
        spares.put([digest], make(tmp_path, str(number)))
    assert sum(spares.has([digest]) for digest in digests) == MAX_COUNT
    assert spares.has([digests[-1]])
    spares.clear()
    assert not spares.folder.exists()
