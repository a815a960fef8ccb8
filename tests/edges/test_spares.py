"""Spare trees of lower layers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerkit.digest import sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.spares import MAX_COUNT, TAKEN_SECONDS, Spares

ONE, TWO, THREE = (sha256_digest(b"%d" % number) for number in range(3))


def make(folder: Path, text: str) -> Path:
    made = folder / f"made-{text}"
    made.mkdir()
    (made / "file").write_text(text)
    (made / "folder").mkdir()
    (made / "folder" / "link").symlink_to("../file")
    return made


def spares_in(folder: Path) -> Spares:
    return Spares(folder / "spares", Disk())


def test_the_spare_of_most_layers_is_taken_once(tmp_path: Path) -> None:
    spares = spares_in(tmp_path)
    spares.put([ONE], make(tmp_path, "one"))
    spares.put([ONE, TWO], make(tmp_path, "two"))
    spares.put([ONE, TWO], make(tmp_path, "again"))  # there is one
    count, place = spares.take([ONE, TWO, THREE])
    assert count == 2 and place is not None and (place / "file").read_text() == "two"
    assert [spares.take([ONE, TWO, THREE])[0] for _ in range(2)] == [1, 0]
    assert spares.take([TWO, ONE]) == (0, None)


def test_all_layers_of_an_image_are_no_spare_for_it(tmp_path: Path) -> None:
    spares = spares_in(tmp_path)
    spares.put([ONE], make(tmp_path, "one"))
    assert spares.take([ONE]) == (0, None)


@pytest.mark.parametrize("what", ["write", "chmod", "add", "remove", "touch"])
def test_a_spare_that_somebody_was_in_is_removed(tmp_path: Path, what: str) -> None:
    spares = spares_in(tmp_path)
    spares.put([ONE], make(tmp_path, "one"))
    (spare,) = spares.folder.iterdir()
    file = spare / "file"
    before = file.stat()
    if what == "write":
        file.write_text("two")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif what == "chmod":
        file.chmod(0o600)
        file.chmod(before.st_mode & 0o777)
    elif what == "add":
        (spare / "folder" / "more").touch()
    elif what == "remove":
        file.unlink()
    else:
        os.utime(spare / "folder" / "link", follow_symlinks=False)
    assert spares.take([ONE, TWO]) == (0, None)
    assert list(spares.folder.iterdir()) == []


def test_what_was_taken_and_never_used_goes_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spares = spares_in(tmp_path)
    spares.put([ONE], make(tmp_path, "one"))
    _, place = spares.take([ONE, TWO])
    spares.put([TWO], make(tmp_path, "two"))
    assert place is not None and place.exists()  # somebody may be about to use it
    now = os.stat(place).st_ctime
    monkeypatch.setattr("layerkit.edges.spares.time.time", lambda: now + TAKEN_SECONDS + 1)
    spares.put([THREE], make(tmp_path, "three"))
    assert not place.exists()


def test_the_oldest_go(tmp_path: Path) -> None:
    spares = spares_in(tmp_path)
    digests = [sha256_digest(b"x%d" % number) for number in range(MAX_COUNT + 2)]
    for number, digest in enumerate(digests):
        spares.put([digest], make(tmp_path, str(number)))
    assert sum(spares.has([digest]) for digest in digests) == MAX_COUNT
    assert spares.has([digests[-1]])
    spares.clear()
    assert not spares.folder.exists()


def test_a_spare_form_is_read_as_it_was_put_and_never_when_it_is_damaged(tmp_path: Path) -> None:
    spares = Spares(tmp_path / "spares", Disk())
    form = b"form" * 1000
    digest = sha256_digest(form)
    assert spares.read_form(digest) is None
    assert not spares.has_form(digest, len(form))
    spares.put_form(digest, form)
    assert spares.has_form(digest, len(form))
    assert spares.read_form(digest) == form
    (path,) = spares.folder.iterdir()
    path.write_bytes(form[:-1] + b"!")
    assert spares.read_form(digest) is None
    assert not path.exists()


def test_the_newest_spare_forms_are_kept(tmp_path: Path) -> None:
    spares = Spares(tmp_path / "spares", Disk(), most=2)
    forms = [b"form %d" % number for number in range(4)]
    for form in forms:
        spares.put_form(sha256_digest(form), form)
    kept = [form for form in forms if spares.read_form(sha256_digest(form))]
    assert kept == forms[2:]
