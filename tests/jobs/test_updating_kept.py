"""jobs/updating: what is made once, in memory and on a shelf; caches."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layerkit.edges.storage import FolderShelf, Shelf
from layerkit.errors import NotFoundError, StoreError
from layerkit.formats.tokens import ANYONE, Caller
from layerkit.jobs.updating import kept as module
from layerkit.jobs.updating.budget import Budgets
from layerkit.jobs.updating.cache import Cache
from layerkit.jobs.updating.kept import Kept
from layerkit.jobs.updating.workshop import Workshop

WAIT = 30


class Told:
    """A meter that notes what it is told."""

    def __init__(self) -> None:
        self.hits: list[bool] = []
        self.makes: list[str] = []

    def kept(self, what: str, hit: bool) -> None:
        self.hits.append(hit)

    def made(self, what: str, seconds: float) -> None:
        self.makes.append(what)


def make_kept(
    shelf: Shelf | None = None, *, limit: int = 1 << 20, told: Told | None = None
) -> Kept:
    return Kept("delta", limit, Workshop(), told or Told(), shelf)


def refuse() -> bytes:
    pytest.fail("it is made a second time")


def test_it_is_made_once_and_counted() -> None:
    told = Told()
    kept = make_kept(told=told)
    assert kept.get_soon("key", lambda: b"made", WAIT, ANYONE) == b"made"
    assert kept.get_soon("key", refuse, 0, ANYONE) == b"made"
    assert (told.hits, told.makes) == ([False, True], ["delta"])


def test_all_who_ask_at_the_same_time_share_one(tmp_path: Path) -> None:
    kept, go_on, made = make_kept(), threading.Event(), []

    def make() -> bytes:
        made.append(1)
        assert go_on.wait(WAIT)
        return b"made"

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(kept.get_soon, "key", make, WAIT, ANYONE) for _ in range(8)]
        go_on.set()
        assert {one.result() for one in asked} == {b"made"}
    assert made == [1]


def test_who_does_not_wait_finds_it_later() -> None:
    kept, go_on = make_kept(), threading.Event()

    def make() -> bytes:
        assert go_on.wait(WAIT)
        return b"made"

    with pytest.raises(NotFoundError, match="not made within"):
        kept.get_soon("key", make, 0, ANYONE)
    with pytest.raises(NotFoundError):
        kept.find("key")
    go_on.set()
    assert kept.get_soon("key", refuse, WAIT, ANYONE) == b"made"
    assert kept.find("key") == b"made"


def test_it_survives_a_restart_and_other_servers_find_it(tmp_path: Path) -> None:
    make_kept(FolderShelf(tmp_path)).get_soon("key", lambda: b"made", WAIT, ANYONE)
    other = make_kept(FolderShelf(tmp_path))
    assert other.find("key") == b"made"
    assert other.get_soon("key", refuse, 0, ANYONE) == b"made"


def test_that_there_is_none_is_kept_too(tmp_path: Path) -> None:
    assert make_kept(FolderShelf(tmp_path)).get_soon("key", lambda: None, WAIT, ANYONE) is None
    assert make_kept(FolderShelf(tmp_path)).get_soon("key", refuse, 0, ANYONE) is None


def test_what_another_server_made_while_it_waited_is_not_made_again(tmp_path: Path) -> None:
    shelf = FolderShelf(tmp_path)
    kept, go_on = make_kept(shelf), threading.Event()
    kept._workshop._thread_count = 1
    kept._workshop.submit("other", lambda: b"" if go_on.wait(WAIT) else None, 0, "")
    with pytest.raises(NotFoundError):
        kept.get_soon("key", refuse, 0, ANYONE)
    shelf.put("key", b"made elsewhere")
    go_on.set()
    assert kept.get_soon("key", refuse, WAIT, ANYONE) == b"made elsewhere"


def test_what_is_on_the_shelf_costs_no_budget(tmp_path: Path) -> None:
    budgets = Budgets(1, 60, lambda: 1000.0)
    budgets.charge("a", 2)
    poor = Caller("a", ("*",), ())
    kept = Kept("delta", 1 << 20, Workshop(budgets), Told(), FolderShelf(tmp_path))
    make_kept(FolderShelf(tmp_path)).get_soon("key", lambda: b"made", WAIT, ANYONE)
    assert kept.get_soon("key", refuse, 0, poor) == b"made"
    with pytest.raises(NotFoundError, match="budget"):
        kept.get_soon("new", lambda: b"made", WAIT, poor)
    assert kept.make_here("new", lambda: b"prepared") == b"prepared"
    assert kept.get_soon("new", refuse, 0, poor) == b"prepared"


def test_a_torn_entry_of_the_shelf_is_made_again(tmp_path: Path) -> None:
    make_kept(FolderShelf(tmp_path)).get_soon("key", lambda: b"made" * 100, WAIT, ANYONE)
    entry = next(path for path in tmp_path.iterdir() if not path.name.startswith("."))
    entry.write_bytes(entry.read_bytes()[:-7])
    again = make_kept(FolderShelf(tmp_path))
    assert again.get_soon("key", lambda: b"anew", WAIT, ANYONE) == b"anew"


def test_memory_is_bounded_and_the_shelf_has_the_rest(tmp_path: Path) -> None:
    kept = make_kept(FolderShelf(tmp_path), limit=10_000)
    for index in range(20):
        kept.get_soon(f"key{index}", lambda: bytes(4000), WAIT, ANYONE)
    assert len(kept._made._made) == 2
    assert kept.get_soon("key0", refuse, 0, ANYONE) == bytes(4000)


def test_what_fails_is_not_kept(tmp_path: Path) -> None:
    kept = make_kept(FolderShelf(tmp_path))

    def fail() -> bytes:
        raise StoreError("a form is damaged")

    with pytest.raises(StoreError):
        kept.get_soon("key", fail, WAIT, ANYONE)
    assert kept.get_soon("key", lambda: b"made", WAIT, ANYONE) == b"made"


# --- caches ----------------------------------------------------------------------------------


def test_a_cache_keeps_what_was_used_last() -> None:
    cache = Cache[str](10)
    for key in "abc":
        cache.put(key, key, 4)
        cache.find("a")
    assert [cache.find(key) for key in "abc"] == ["a", None, "c"]


def test_a_cache_keeps_one_that_is_larger_than_it() -> None:
    cache = Cache[str](10)
    cache.put("a", "a", 4)
    assert cache.get("b", lambda: ("b", 100)) == "b"
    assert (cache.find("a"), cache.find("b")) == (None, "b")


def test_a_cache_counts_what_is_put_again_once() -> None:
    cache = Cache[str](10)
    for _ in range(5):
        cache.put("a", "a", 4)
    cache.put("b", "b", 4)
    assert cache.find("a") == "a"


def test_a_cache_makes_different_things_side_by_side_and_one_thing_once() -> None:
    cache, meet = Cache[str](10), threading.Barrier(2, timeout=WAIT)
    made = []

    def make(key: str) -> tuple[str, int]:
        made.append(key)
        meet.wait()  # for the other one: were they made in turns, this would break
        return key, 1

    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(cache.get, key, lambda key=key: make(key)) for key in "ababab"]
        assert [one.result() for one in asked] == list("ababab")
    assert sorted(made) == ["a", "b"] and cache._making == {}


def test_a_cache_tries_again_what_failed() -> None:
    def fail() -> tuple[str, int]:
        raise StoreError("a form is damaged")

    cache = Cache[str](10)
    with pytest.raises(StoreError):
        cache.get("a", fail)
    assert cache.get("a", lambda: ("a", 1)) == "a" and cache._making == {}


# --- servers that share a shelf ---------------------------------------------------------------


def test_two_servers_make_a_thing_once(tmp_path: Path) -> None:
    """The second one waits for what the first has claimed."""
    begun, go_on, told = threading.Event(), threading.Event(), Told()
    servers = [make_kept(FolderShelf(tmp_path), told=told) for _ in range(2)]

    def make() -> bytes:
        begun.set()
        assert go_on.wait(WAIT)
        return b"made"

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(servers[0].get_soon, "key", make, WAIT, ANYONE)
        assert begun.wait(WAIT)
        second = pool.submit(servers[1].get_soon, "key", refuse, WAIT, ANYONE)
        threading.Timer(0.2, go_on.set).start()
        assert first.result() == second.result() == b"made"
    assert told.makes == ["delta"]
    assert not list(tmp_path.glob(".claim-*"))


def test_what_a_server_failed_to_make_the_other_one_makes(tmp_path: Path) -> None:
    servers = [make_kept(FolderShelf(tmp_path)) for _ in range(2)]

    def fail() -> bytes:
        raise StoreError("the disk is gone")

    with pytest.raises(StoreError):
        servers[0].get_soon("key", fail, WAIT, ANYONE)
    assert servers[1].get_soon("key", lambda: b"made", WAIT, ANYONE) == b"made"


def test_the_claim_of_a_server_that_is_stuck_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLAIM_SECONDS", 0.3)
    FolderShelf(tmp_path).claim("key", 60)
    kept = make_kept(FolderShelf(tmp_path))
    assert kept.get_soon("key", lambda: b"made", WAIT, ANYONE) == b"made"
