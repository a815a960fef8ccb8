"""Bit rot in any file of a store: found, then healed or named; what reads is never wrong.

Bits are flipped, files cut, deleted, replaced. After each: no image reads wrongly and no other one
is claimed; `verify` finds the damage unless nothing at all has changed; `verify --repair` with a
server leaves a sound store in which a next pull makes whole what was lost for good.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builders import noise
from test_crash_points import put_image

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.store import Store
from layerkit.errors import IntegrityError, LayerkitError, NotFoundError, StoreError
from layerkit.formats.chunkmanifest import build_chunk_manifest
from layerkit.formats.reference import Reference
from layerkit.jobs.verify import StoreResult, verify_store

FORMS = {"a:1": noise(6000, 1), "a:2": noise(6000, 2) + noise(3000, 1)}
TOPS = {ref: sha256_digest(f"manifest of {ref}".encode()) for ref in FORMS}
FACTS = {"rate": "12.5", "other": "x" * 50}


def fill(store: Store) -> None:
    for ref, form in FORMS.items():
        store.pin(put_image(store, ref, form))
    for name, value in FACTS.items():
        store.put_fact(name, value)


@pytest.fixture
def good(quick_path: Path) -> Path:
    """A store at rest."""
    path = quick_path / "good"
    with Store(path, Disk()) as store:
        fill(store)
    return path


@pytest.fixture
def killed(quick_path: Path) -> Path:
    """A store as a killed process leaves it: with a log and shared memory."""
    with Store(quick_path / "live", Disk()) as store:
        fill(store)
        shutil.copytree(quick_path / "live", quick_path / "killed")
    return quick_path / "killed"


def read_form(store: Store, ref: str) -> bytes:
    form = FORMS[ref]
    manifest = build_chunk_manifest(form, "raw", sha256_digest(form), len(form))
    return store.get_all(manifest.list_raw_ids(), manifest.form_digest, ref)


def check_reads(path: Path) -> set[str]:
    """The images that read whole; anything else is an error of ours, never wrong bytes."""
    whole = set()
    try:
        with Store(path, Disk()) as store:
            for image in store.list_images():
                if image.complete:
                    assert TOPS.get(image.ref) == image.digest, "an image that never was"
            for name, value in FACTS.items():
                assert store.fact(name) in (value, None)
            for ref, form in FORMS.items():
                found = store.find_image(ref)
                assert found in (TOPS[ref], None)
                try:
                    if found is not None and store.get_blob(found):
                        assert read_form(store, ref) == form
                        whole.add(ref)
                except (IntegrityError, NotFoundError):
                    continue
    except LayerkitError:
        pass
    return whole


def pull_again(ref: Reference, store: Store) -> Digest:
    """What a pull from a sound server does."""
    text = f"{ref.name}:{ref.tag}"
    if text not in FORMS:
        raise NotFoundError(f"{text} is not on the server")
    digest = put_image(store, text, FORMS[text])
    if str(ref) != text:
        store.commit_image(str(ref), digest, store.list_blobs(digest))
    return digest


def check_heals(path: Path) -> StoreResult:
    """Repair from a server: what it says it did is so, and the rest is a plain pull away."""
    result = verify_store(path, Disk(), repair=True, heal=pull_again)
    assert verify_store(path, Disk()).good
    left = check_reads(path)
    with Store(path, Disk()) as store:
        assert {image.ref for image in store.list_images()} <= set(FORMS) | set(result.left_images)
        for ref in FORMS:
            if ref not in left:
                pull_again(Reference.parse(ref), store)
        store.gc()
    assert check_reads(path) == set(FORMS) and verify_store(path, Disk()).good
    return result


def find_damage(path: Path) -> bool:
    try:
        return not verify_store(path, Disk()).good
    except StoreError:
        return True


def is_as_before(path: Path) -> bool:
    with Store(path, Disk()) as store:
        facts = {name: store.fact(name) for name in FACTS}
        pins = set(store.list_pins())
        return facts == FACTS and pins == set(TOPS.values()) and check_reads(path) == set(FORMS)


def flips(path: Path, count: int, seed: int) -> Iterator[tuple[Path, int, int]]:
    """Places in all files: name, offset, bit; a file's first bytes are among them."""
    random_ = random.Random(seed)
    for file in sorted(one for one in path.rglob("*") if one.is_file()):
        size = file.stat().st_size
        places = {0, 7, 20, 63, 99, size - 1} | {random_.randrange(size or 1) for _ in range(count)}
        for offset in sorted(place for place in places if 0 <= place < size):
            yield file.relative_to(path), offset, random_.randrange(8)


def check_flips(source: Path, work: Path, count: int, seed: int, *, log: bool) -> None:
    healed = total = 0
    for name, offset, bit in flips(source, count, seed):
        where = f"{name} at {offset} bit {bit} of seed {seed}"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(source, work)
        data = bytearray((work / name).read_bytes())
        data[offset] ^= 1 << bit
        (work / name).write_bytes(data)
        check_reads(work)
        if not find_damage(work):
            # a damaged log looks like one that a power cut tore: what was in it did not happen
            assert log or is_as_before(work), f"{where} is not found"
            continue
        total += 1
        result = check_heals(work)
        healed += not result.left_images
    if not log:
        assert healed > 0.9 * total > 0


def test_flipped_bits_are_found_and_healed(good: Path, quick_path: Path) -> None:
    check_flips(good, quick_path / "s", 5, 1, log=False)


def test_flipped_bits_of_a_killed_store_are_never_wrong(killed: Path, quick_path: Path) -> None:
    check_flips(killed, quick_path / "s", 1, 2, log=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_many_flipped_bits(good: Path, killed: Path, quick_path: Path, seed: int) -> None:
    check_flips(good, quick_path / "s", 400, seed, log=False)
    check_flips(killed, quick_path / "k", 100, seed, log=True)


def truncate(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def grow(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(noise(5000))


def scramble(file: Path) -> None:
    file.write_bytes(noise(file.stat().st_size))


SLOW_HARMS = [pytest.param(harm, marks=pytest.mark.slow) for harm in (empty, grow, scramble)]


@pytest.mark.parametrize("harm", [truncate, Path.unlink, *SLOW_HARMS])
def test_harm_to_whole_files(
    good: Path, killed: Path, quick_path: Path, harm: Callable[[Path], None]
) -> None:
    for source in (good, killed):
        for number, (name, _, _) in enumerate(flips(source, 0, 1)):
            work = quick_path / "work" / source.name / str(number)
            if work.exists():
                continue
            shutil.copytree(source, work)
            harm(work / name)
            check_reads(work)
            if find_damage(work):
                check_heals(work)
            else:
                assert source == killed or is_as_before(work), f"{name} is not found"


def test_swapped_packs_are_found_and_healed(good: Path, quick_path: Path) -> None:
    shutil.copytree(good, quick_path / "s")
    first, second = sorted((quick_path / "s/packs").iterdir())[:2]
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    check_reads(quick_path / "s")
    assert find_damage(quick_path / "s") and not check_heals(quick_path / "s").left_images


def test_an_index_of_yesterday_is_found_and_healed(quick_path: Path) -> None:
    work = quick_path / "s"
    with Store(work, Disk()) as store:
        put_image(store, "a:2", FORMS["a:2"])
    old = (work / "index.sqlite").read_bytes()
    with Store(work, Disk()) as store:
        fill(store)
        store.remove_image("a:2")
        store.unpin(TOPS["a:2"])
        store.gc()
    (work / "index.sqlite").write_bytes(old)
    check_reads(work)
    if find_damage(work):  # gc had dropped or moved what the old index names
        check_heals(work)


def test_a_lost_index_is_made_again_without_a_server(good: Path, quick_path: Path) -> None:
    shutil.copytree(good, quick_path / "s")
    (quick_path / "s/index.sqlite").unlink()
    with pytest.raises(StoreError, match="damaged"):
        Store(quick_path / "s", Disk())
    result = verify_store(quick_path / "s", Disk(), repair=True)
    assert result.index_rebuilt and result.chunk_count > 0


def test_a_damaged_index_keeps_images_pins_and_facts(good: Path, quick_path: Path) -> None:
    shutil.copytree(good, quick_path / "s")
    with sqlite3.connect(quick_path / "s/index.sqlite") as db:
        db.execute("PRAGMA user_version = 7")
    result = verify_store(quick_path / "s", Disk(), repair=True)
    assert result.index_rebuilt and not result.left_images and is_as_before(quick_path / "s")


def test_a_rotten_kind_makes_gc_drop_nothing(good: Path, quick_path: Path) -> None:
    shutil.copytree(good, quick_path / "s")
    with sqlite3.connect(quick_path / "s/index.sqlite") as db:
        db.execute("UPDATE blobs SET kind = 'chunk-manifesu' WHERE kind = 'chunk-manifest'")
    with Store(quick_path / "s", Disk()) as store:
        assert store.gc().chunk_count == 0 and read_form(store, "a:1") == FORMS["a:1"]
    assert not verify_store(quick_path / "s", Disk()).good
    check_heals(quick_path / "s")
