"""The store with company: sessions, claims, gc beside pulls, eviction, seals, older schemas."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import noise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerkit.digest import Digest, chunk_id, sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.store import CHUNK_MANIFEST_KIND, Store, rebuild_index
from layerkit.errors import (
    IntegrityError,
    StoreChangedError,
    StoreError,
    StoreFullError,
    StoreLockedError,
)
from layerkit.formats.chunkmanifest import build_chunk_manifest, serialize_chunk_manifest

TESTS = Path(__file__).parent.parent
IDS = [bytes([n]) * 32 for n in range(6)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store(path, Disk()) as opened:
        yield opened


@pytest.fixture
def other(path: Path, store: Store) -> Iterator[Store]:
    with Store(path, Disk()) as opened:
        yield opened


def put_image(store: Store, ref: str, form: bytes) -> tuple[Digest, list[bytes]]:
    manifest = build_chunk_manifest(form, "raw", sha256_digest(form), len(form))
    store.put_many((chunk.id, form[at : at + chunk.size]) for at, chunk in manifest.spans())
    data, top = serialize_chunk_manifest(manifest), f"manifest of {ref}".encode()
    new = {sha256_digest(data): (data, CHUNK_MANIFEST_KIND), sha256_digest(top): (top, "")}
    store.commit_image(ref, sha256_digest(top), new, new)
    return sha256_digest(top), list(manifest.list_raw_ids())


def pack_names(path: Path) -> list[str]:
    return sorted(os.listdir(path / "packs"))


# --- sessions ------------------------------------------------------------------------------------


def test_a_session_that_begins_beside_a_gc_begins(store: Store, path: Path) -> None:
    """Its file may be swept away before it is locked: then it makes another."""

    class Swept(Disk):
        count = 0

        def act(self, op, path, call):  # type: ignore[no-untyped-def]
            made = super().act(op, path, call)
            if op == "lock" and self.count < 2:
                self.count += 1
                for name in os.listdir(store.path / "sessions"):
                    os.unlink(store.path / "sessions" / name)
            return made

    disk = Swept()
    with Store(path, disk) as opened, opened.session() as token:
        assert disk.count == 2 and os.listdir(path / "sessions") == [token]
    assert os.listdir(path / "sessions") == []


def test_gc_keeps_the_file_of_a_session_that_begins(store: Store, path: Path) -> None:
    begun, left = path / "sessions" / ".tmp-begun", path / "sessions" / ".tmp-left"
    left.touch()
    with Disk().hold_new(begun):
        store.gc()
        assert begun.exists() and not left.exists()


def test_no_index_is_made_again_beside_a_living_session(store: Store, path: Path) -> None:
    top, _ = put_image(store, "a:1", noise(5000))
    with Store(path, Disk()) as puller, puller.session():
        with pytest.raises(StoreLockedError, match="being used"):
            rebuild_index(path, Disk())
        put_image(puller, "a:2", noise(5000, 2))
    assert rebuild_index(path, Disk()) > 0
    with Store(path, Disk()) as again:
        assert again.find_image("a:1") == top and again.find_image("a:2") is not None


def test_what_is_lost_as_packs_are_written_anew_is_known(store: Store, path: Path) -> None:
    """Rot that came after all was read."""
    put_image(store, "a:1", noise(5000))
    put_image(store, "a:2", noise(5000, 2))
    pack = path / "packs" / store._chunks.list_packs()[0]
    data = bytearray(pack.read_bytes())
    data[-1] ^= 1
    pack.write_bytes(data)
    store.rewrite_packs([pack.name])
    assert store.find_image("a:1") is None and store.find_image("a:2") is not None


def test_an_empty_fact_is_none(store: Store) -> None:
    store.put_fact("name", "value")
    store.put_fact("name", "")
    assert store.fact("name") is None
    assert store._index.query("SELECT COUNT(*) FROM facts WHERE name = 'name'") == [(0,)]


def test_gc_keeps_what_a_living_session_has_put(store: Store, other: Store) -> None:
    data = noise(500)
    with store.session():
        store.put_many([(chunk_id(data), data)])
        loose = store.put_blob(b"loose")
        assert other.gc().chunk_count == 0
        assert other.has_blob(loose)
        assert store.get(chunk_id(data)) == data
    result = other.gc()
    assert (result.chunk_count, result.blob_count, result.pack_count) == (1, 1, 1)
    assert pack_names(store.path) == []


def test_gc_keeps_a_removed_image_while_it_is_read(store: Store, other: Store) -> None:
    top, ids = put_image(store, "a:1", noise(20_000))
    with store.use(top):
        other.remove_image("a:1")
        assert other.gc().chunk_count == 0 and store.has_raw(ids) == set(ids)
    assert other.gc().chunk_count == len(ids)


def test_a_session_leaves_nothing_behind(store: Store) -> None:
    with store.session(), store.session():
        assert len(os.listdir(store.path / "sessions")) == 1
    assert os.listdir(store.path / "sessions") == []


def test_a_commit_says_when_gc_took_what_it_relied_on(store: Store, other: Store) -> None:
    form = noise(20_000)
    _, ids = put_image(store, "a:1", form)
    store.remove_image("a:1")
    with store.session():
        assert store.has_raw(ids) == set(ids)  # so this pull fetches nothing
        other.gc()
        with pytest.raises(StoreChangedError):
            manifest = build_chunk_manifest(form, "raw", sha256_digest(form), len(form))
            data = serialize_chunk_manifest(manifest)
            new = {sha256_digest(data): (data, CHUNK_MANIFEST_KIND)}
            store.commit_image("a:2", sha256_digest(data), new, new)
    assert store.find_image("a:2") is None
    assert store.verify().good


def test_gc_stops_at_a_damaged_chunk_manifest_in_place_of_dropping_its_chunks(store: Store) -> None:
    _, ids = put_image(store, "a:1", noise(20_000))
    with sqlite3.connect(store.path / "index.sqlite") as db:
        db.execute("UPDATE blobs SET data = x'00' WHERE kind = 'chunk-manifest'")
    with pytest.raises(IntegrityError, match="nothing is dropped"):
        store.gc()
    assert store.has_raw(ids) == set(ids)


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from builders import noise
from layerkit.digest import chunk_id
from layerkit.edges.disk import Disk
from layerkit.edges.store import Store
with Store(Path(sys.argv[1]), Disk()) as store, store.session():
    data = noise(700)
    store.put_many([(chunk_id(data), data)])
    store.claim([b"x" * 32])
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_the_death_of_a_process_frees_what_it_held(store: Store) -> None:
    argv = [sys.executable, "-c", KILLED, str(store.path), str(TESTS)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        with store.session():
            assert store.claim([b"x" * 32]).others
            assert store.gc().chunk_count == 0
            process.kill()
            process.wait()
            assert store.wait_for([b"x" * 32], patience=5) == {b"x" * 32}
            assert store.claim([b"x" * 32]).mine
    assert store.gc().chunk_count == 1
    assert pack_names(store.path) == os.listdir(store.path / "sessions") == []


# --- claims --------------------------------------------------------------------------------------


def test_a_claim_is_given_once(store: Store, other: Store) -> None:
    with store.session(), other.session():
        assert store.claim(IDS[:4]).mine == set(IDS[:4])
        second = other.claim(IDS[2:])
        assert (second.mine, second.others) == (set(IDS[4:]), set(IDS[2:4]))
        assert store.claim(IDS[:4]).mine == set(IDS[:4]), "one's own are no others'"
        store.release(IDS[:4])
        assert other.claim(IDS[2:4]).mine == set(IDS[2:4])


def test_who_waits_gets_what_comes_and_learns_what_does_not(store: Store, other: Store) -> None:
    data = noise(300)
    wanted = [chunk_id(data).raw, IDS[0]]
    turns = iter(range(9))

    def step(_: float) -> None:
        turn = next(turns)
        if turn == 1:
            store.put_many([(chunk_id(data), data)])
        if turn == 3:
            store.release(wanted)

    with store.session(), other.session():
        store.claim(wanted)
        assert other._sessions.wait_for(wanted, other.has_raw, sleep=step) == {IDS[0]}
    assert next(turns) == 4


def test_nobody_waits_for_ever_for_a_session_that_is_stuck(store: Store, other: Store) -> None:
    clock = iter(range(0, 1000, 10))
    with store.session(), other.session():
        store.claim(IDS[:1])
        missing = other._sessions.wait_for(
            IDS[:1], other.has_raw, sleep=lambda _: None, now=lambda: next(clock)
        )
    assert missing == set(IDS[:1])


def test_claims_end_with_their_session(store: Store, other: Store) -> None:
    with other.session():
        with store.session():
            store.claim(IDS)
        assert other.claim(IDS).mine == set(IDS)


# --- quota ---------------------------------------------------------------------------------------


def timed(path: Path, quota: int = 0) -> Store:
    clock = iter(range(1000, 9999))
    return Store(path, Disk(), quota, lambda: next(clock))


def test_the_least_recently_used_image_goes_first(path: Path) -> None:
    with timed(path) as store:
        tops = [put_image(store, f"a:{n}", noise(20_000, n))[0] for n in range(4)]
        store.touch(tops[0])
        assert store.evict(store.usage() - 1) == ["a:1"]
        assert store.evict(store.usage() - 20_000) == ["a:2"]
        assert [image.ref for image in store.list_images()] == ["a:0", "a:3"]
        assert store.verify().good


def test_what_is_pinned_read_or_named_is_never_evicted(path: Path) -> None:
    with timed(path) as store, Store(path, Disk()) as reader:
        tops = [put_image(store, f"a:{n}", noise(20_000, n))[0] for n in range(4)]
        store.pin(tops[0])
        with reader.use(tops[1]):
            assert store.evict(0, keep=[tops[2]]) == ["a:3"]
        assert store.evict(0, keep=[tops[2]]) == ["a:1"]
        store.unpin(tops[0])
        assert store.evict(0) == ["a:0", "a:2"]
        assert pack_names(path) == []


def test_room_is_made_or_the_error_says_why(path: Path) -> None:
    with timed(path, quota=70_000) as store:
        tops = [put_image(store, f"a:{n}", noise(20_000, n))[0] for n in range(3)]
        assert store.make_room(20_000) == ["a:0"]
        with pytest.raises(StoreFullError, match="quota"):
            store.make_room(80_000)
        store.pin(tops[1])
        store.pin(tops[2])
        with pytest.raises(StoreFullError, match="have to stay"):
            store.make_room(50_000)
        assert len(store.list_images()) == 2 and store.verify().good


def test_nothing_is_evicted_for_what_cannot_fit(path: Path) -> None:
    with timed(path, quota=90_000) as store, Store(path, Disk()) as reader:
        tops = [put_image(store, f"a:{n}", noise(20_000, n))[0] for n in range(4)]
        store.pin(tops[0])
        for at in range(3):
            with reader.use(tops[1]), pytest.raises(StoreFullError, match="have to stay"):
                store.make_room(30_001, keep=[tops[2]])
            assert len(store.list_images()) == 4, at
        with reader.use(tops[1]):
            assert store.make_room(20_000, keep=[tops[2]]) == ["a:3"]
        # what shares its chunks with a pinned image frees nothing of them
        put_image(store, "b:1", noise(20_000, 0))
        with pytest.raises(StoreFullError, match="have to stay"):
            store.make_room(75_000)
        assert store.find_image("b:1") and store.verify().good


def test_what_a_living_session_put_has_to_stay(path: Path) -> None:
    with timed(path, quota=60_000) as store, Store(path, Disk()) as other:
        put_image(store, "a:1", noise(20_000))
        with other.session():
            data = noise(25_000, 7)
            other.put_many([(chunk_id(data), data)])
            with pytest.raises(StoreFullError, match="have to stay"):
                store.make_room(38_000)
        assert store.find_image("a:1")
        assert store.make_room(38_000) == []  # that session has ended: its chunk goes first


def test_a_put_over_the_quota_leaves_nothing(path: Path) -> None:
    with timed(path, quota=30_000) as store:
        top, _ = put_image(store, "a:1", noise(20_000))
        store.pin(top)
        names = pack_names(path)
        with pytest.raises(StoreFullError):
            put_image(store, "a:2", noise(20_000, 2))
        assert pack_names(path) == names
        assert store.find_image("a:1") and not store.find_image("a:2")


def test_a_put_over_the_quota_evicts(path: Path) -> None:
    with timed(path, quota=30_000) as store:
        put_image(store, "a:1", noise(20_000))
        top, ids = put_image(store, "a:2", noise(20_000, 2))
        assert store.find_image("a:2") == top and store.has_raw(ids) == set(ids)
        assert not store.find_image("a:1") and store.usage() <= 30_000 and store.verify().good


# --- seals, facts, replacing ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE images SET ref = 'a:2'",
        "UPDATE images SET digest = 'sha256:' || substr(digest, 8, 63) || '0'",
        "UPDATE images SET digest = 'rubbish'",
        "DELETE FROM holds WHERE blob IN (SELECT digest FROM blobs WHERE kind != '')",
        "UPDATE holds SET owner = 'x' WHERE blob IN (SELECT digest FROM blobs WHERE kind != '')",
        "UPDATE pins SET digest = 'sha256:0'",
        "UPDATE blobs SET digest = 'x' WHERE kind != ''",
        "UPDATE chunks SET id = x'00' WHERE offset = (SELECT MAX(offset) FROM chunks)",
        "UPDATE chunks SET offset = offset + 1",
        "UPDATE packs SET name = 'x'",
    ],
)
def test_damage_in_the_index_is_named_and_healed(store: Store, damage: str) -> None:
    form = noise(20_000)
    top, _ = put_image(store, "a:1", form)
    store.pin(top)
    with sqlite3.connect(store.path / "index.sqlite") as db:
        db.execute(damage)
    for ref in ("a:1", "a:2"):  # another image than the one that was committed is never named
        assert store.find_image(ref) in (None, top)
    assert not store.verify().good
    store.verify(repair=True)
    put_image(store, "a:1", form)
    assert store.verify().good
    assert store.find_image("a:1") == top


def test_what_an_image_needs_is_replaced_in_one_step(store: Store) -> None:
    top, ids = put_image(store, "a:1", noise(20_000))
    store.commit_image("a:same", top, ())
    form = noise(9_000, 7)
    manifest = build_chunk_manifest(form, "raw", sha256_digest(form), len(form))
    store.put_many((chunk.id, form[at : at + chunk.size]) for at, chunk in manifest.spans())
    data = serialize_chunk_manifest(manifest)
    gone = store.list_blobs(top, CHUNK_MANIFEST_KIND)
    store.replace_blobs(top, gone, {sha256_digest(data): (data, CHUNK_MANIFEST_KIND)})
    store.gc()
    assert not store.has_raw(ids)
    assert store.find_image("a:1") == store.find_image("a:same") == top
    assert store.verify().good
    with pytest.raises(StoreChangedError):
        other = serialize_chunk_manifest(
            build_chunk_manifest(b"x" * 900, "raw", sha256_digest(b"x" * 900), 900)
        )
        store.replace_blobs(top, (), {sha256_digest(other): (other, CHUNK_MANIFEST_KIND)})
    assert store.verify().good


def test_facts_are_small_and_stay(store: Store, path: Path) -> None:
    assert store.fact("rate") is None
    store.put_fact("rate", "1e6")
    store.put_fact("rate", "2e6")
    with Store(path, Disk()) as again:
        assert again.fact("rate") == "2e6"
    with pytest.raises(StoreError):
        store.put_fact("rate", "x" * 5000)


# --- older schemas -------------------------------------------------------------------------------

SCHEMA_1 = """
CREATE TABLE packs (pack INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, size INTEGER NOT NULL);
CREATE TABLE chunks (id BLOB PRIMARY KEY, pack INTEGER NOT NULL, offset INTEGER NOT NULL,
    size INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX chunks_pack ON chunks (pack, offset);
CREATE TABLE blobs (digest TEXT PRIMARY KEY, kind TEXT NOT NULL, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE images (ref TEXT PRIMARY KEY, digest TEXT NOT NULL, complete INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE holds (owner TEXT NOT NULL, blob TEXT NOT NULL, PRIMARY KEY (owner, blob))
    WITHOUT ROWID;
CREATE TABLE pins (digest TEXT PRIMARY KEY) WITHOUT ROWID;
PRAGMA user_version = 1;
"""


def test_a_store_of_the_first_schema_opens_and_works(path: Path) -> None:
    path.mkdir()
    with sqlite3.connect(path / "index.sqlite") as db:
        db.executescript(SCHEMA_1)
        db.execute("INSERT INTO images VALUES ('a:old', ?, 1)", (str(sha256_digest(b"old")),))
        db.execute("INSERT INTO blobs VALUES (?, '', ?)", (str(sha256_digest(b"old")), b"old"))
        db.execute("INSERT INTO holds VALUES (?, ?)", (str(sha256_digest(b"old")),) * 2)
    with Store(path, Disk()) as store:
        assert store.find_image("a:old") == sha256_digest(b"old")
        put_image(store, "a:1", noise(20_000))
        store.gc()
        assert store.verify().good and len(store.list_images()) == 2


@pytest.mark.parametrize("version", [0, 1, 3, 66])
def test_a_flipped_schema_number_is_damage(path: Path, version: int) -> None:
    Store(path, Disk()).close()
    with sqlite3.connect(path / "index.sqlite") as db:
        db.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(StoreError, match="damaged"):
        Store(path, Disk())


def test_a_newer_schema_is_refused(path: Path) -> None:
    Store(path, Disk()).close()
    with sqlite3.connect(path / "index.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
        db.execute("UPDATE facts SET value = '99' WHERE name = 'schema'")
    with pytest.raises(StoreError, match="schema 99"):
        Store(path, Disk())


def test_opening_is_cheap_and_closing_gives_all_back(path: Path) -> None:
    Store(path, Disk()).close()
    before = len(os.listdir("/proc/self/fd"))
    for n in range(30):
        with Store(path, Disk()) as store, store.session():
            store.put_many([(chunk_id(bytes([n]) * 50), bytes([n]) * 50)])
    assert len(os.listdir("/proc/self/fd")) == before


# --- any order of things -------------------------------------------------------------------------

VERBS = ["put", "remove", "pin", "unpin", "gc", "evict", "use"]
FORMS = {n: noise(6_000, 1) + noise(3_000, n) for n in range(5)}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.sampled_from(VERBS), st.integers(0, 4)),
        max_size=14,
    )
)
def test_whatever_the_order_what_is_named_reads(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    with timed(tmp_path_factory.mktemp("any") / "s") as store:
        named: set[int] = set()
        pinned: set[int] = set()
        tops = {n: sha256_digest(f"manifest of a:{n}".encode()) for n in FORMS}
        for verb, n in steps:
            if verb == "put":
                put_image(store, f"a:{n}", FORMS[n])
                named.add(n)
            elif verb == "remove":
                assert store.remove_image(f"a:{n}") == (n in named)
                named.discard(n)
            elif verb == "pin" and n in named:
                store.pin(tops[n])
                pinned.add(n)
            elif verb == "unpin":
                store.unpin(tops[n])
                pinned.discard(n)
            elif verb == "gc":
                store.gc()
            elif verb == "evict":
                gone = {int(ref[2:]) for ref in store.evict(store.usage() // 2)}
                assert not gone & pinned
                named -= gone
            elif verb == "use" and n in named:
                store.touch(tops[n])
            assert store.verify().good
            for one in named | pinned:
                manifest = build_chunk_manifest(
                    FORMS[one], "raw", sha256_digest(FORMS[one]), len(FORMS[one])
                )
                ids = manifest.list_raw_ids()
                assert store.get_all(ids, sha256_digest(FORMS[one]), "form") == FORMS[one]


def test_a_store_of_many_chunks_is_swept_in_little_memory_and_time(store: Store) -> None:
    put_image(store, "a:1", noise(400_000))
    store.put_many((chunk_id(noise(64, n)), noise(64, n)) for n in range(5_000))
    since = time.monotonic()
    assert store.gc().chunk_count == 5_000
    assert time.monotonic() - since < 30, "quadratic"
