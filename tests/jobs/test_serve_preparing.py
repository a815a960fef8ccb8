"""jobs/serve: what is made before anyone asks, in which order, and where it is found."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import AMD64, LayoutSource, hello_files, noise, publish_image

from layerkit.edges.http import UpdateAnswer
from layerkit.edges.layout import Layout
from layerkit.edges.storage import FolderShelf
from layerkit.errors import StoreError
from layerkit.formats import delta, oci
from layerkit.formats.formpack import ANNOTATION_PACKED
from layerkit.formats.reference import Reference
from layerkit.formats.tokens import ANYONE, Caller
from layerkit.jobs.serve import SourceOptions
from layerkit.jobs.serve.ledger import KEY, Ledger, Prepared
from layerkit.jobs.updating import packing

REF = "team/hello"


def version(number: int) -> bytes:
    """A binary of which each version differs from the one before by a string."""
    return noise(100_000) + b"".join(b"string %d;" % at for at in range(number)) + noise(2000, 5)


@pytest.fixture
def packs_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms of some ten KB are packed, too."""
    monkeypatch.setattr("layerkit.formats.formpack.MIN_BLOB_SIZE", 32 << 10)


def publish(layout: Path, number: int, tag: str = "") -> oci.Descriptor:
    return publish_image(layout, f"{REF}:{tag or f'v{number}'}", hello_files(version(number)))


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    for number in range(1, 6):
        publish(tmp_path / "layout", number)
    return tmp_path / "layout"


class Diffs:
    """Counts deltas."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self._diff = 0, delta.diff
        monkeypatch.setattr("layerkit.formats.delta.diff", self)

    def __call__(self, olds: list[bytes], new: bytes) -> bytes:
        self.count += 1
        return self._diff(olds, new)


@pytest.fixture
def diffs(monkeypatch: pytest.MonkeyPatch) -> Diffs:
    return Diffs(monkeypatch)


def prepared(source: LayoutSource) -> list[tuple[str, str]]:
    """Both ends of what the page says is prepared, the newest version and its nearest first."""
    (facts,) = source.describe(ANYONE)
    return [(update.old, update.new) for update in facts.updates]


def ask(source: LayoutSource, old: str, new: str, caller: Caller = ANYONE) -> UpdateAnswer:
    have = source.resolve(REF, old)
    assert have is not None
    return source.read_update(REF, new, [have], AMD64, caller, 0)


def test_the_last_versions_of_the_newest_one_are_prepared(layout: Path, diffs: Diffs) -> None:
    source = LayoutSource(layout)
    assert source.prepare_all() == 3
    assert prepared(source) == [("v4", "v5"), ("v3", "v5"), ("v2", "v5")]
    assert diffs.count == 3


def test_who_asks_for_what_is_prepared_does_not_wait(layout: Path, diffs: Diffs) -> None:
    source = LayoutSource(layout)
    source.prepare_all()
    made = diffs.count
    answer = ask(source, "v4", "v5")
    assert answer.raw is not None and len(answer.raw) < 2048
    assert diffs.count == made


@pytest.mark.parametrize(("count", "want"), [(0, 0), (1, 1), (99, 4)])
def test_how_many_are_prepared_can_be_said(layout: Path, count: int, want: int) -> None:
    source = LayoutSource(layout, options=SourceOptions(prepare_count=count))
    assert source.prepare_all() == want


def test_a_tag_that_moves_is_prepared_from_what_it_named(layout: Path) -> None:
    source = LayoutSource(layout, options=SourceOptions(prepare_count=1))
    preparing = source.make_preparing()
    while preparing.step():
        pass
    old = source.resolve(REF, "v5")
    assert old is not None
    publish(layout, 7, "v5")
    assert preparing.step() and not preparing.step()
    (facts,) = source.describe(ANYONE)
    assert (facts.updates[0].old, facts.updates[0].new) == (old.short, "v5")


def test_a_new_tag_of_an_old_image_is_nothing_new(layout: Path) -> None:
    source = LayoutSource(layout)
    preparing = source.make_preparing()
    while preparing.step():
        pass
    publish(layout, 5, "latest")
    assert not preparing.step()


def test_what_moves_comes_before_what_is_due(layout: Path) -> None:
    source = LayoutSource(layout)
    preparing = source.make_preparing()
    assert preparing.step()  # of three
    publish(layout, 6)
    for _ in range(3):
        assert preparing.step()
    assert prepared(source) == [("v5", "v6"), ("v4", "v6"), ("v3", "v6"), ("v4", "v5")]
    assert preparing.step() and preparing.step() and not preparing.step()


@pytest.mark.usefixtures("packs_small")
def test_updates_come_before_packed_forms(layout: Path) -> None:
    publish_image(layout, f"{REF}:v6", hello_files(noise(100_000, 6)))
    source = LayoutSource(layout)
    preparing, order = source.make_preparing(), []
    pack, prepare = source._packing.pack, preparing._prepare
    preparing._packing.pack = lambda one: order.append("pack") or pack(one)  # type: ignore[method-assign,func-returns-value]
    preparing._prepare = lambda step: order.append("update") or prepare(step)  # type: ignore[method-assign,func-returns-value]
    while preparing.step():
        pass
    assert order[:3] == ["update"] * 3 and set(order[3:]) == {"pack"}


def test_each_platform_of_an_index_is_prepared(tmp_path: Path) -> None:
    path = tmp_path / "layout"
    layout = Layout(path)
    arm64 = oci.Platform("linux", "arm64")
    for number in (1, 2):
        entries = []
        for platform in (AMD64, arm64):
            binary = version(number) + str(platform).encode()
            image = publish_image(path, "tmp:v1", hello_files(binary))
            entries.append(oci.Descriptor(image.media_type, image.digest, image.size, {}, platform))
        with layout.batch():
            top = layout.put_blob(oci.serialize_index(oci.Index(tuple(entries))), oci.INDEX)
            layout.commit(Reference.parse(f"{REF}:v{number}"), top)
    source = LayoutSource(path)
    preparing = source.make_preparing()
    steps = []
    preparing._prepare = steps.append  # type: ignore[method-assign]
    while preparing.step():
        pass
    assert {step.platform for step in steps if step.name == REF} == {AMD64, arm64}


def test_after_a_restart_nothing_is_made_again(layout: Path, tmp_path: Path, diffs: Diffs) -> None:
    shelf = FolderShelf(tmp_path / "made")
    first = LayoutSource(layout, shelf)
    first.prepare_all()
    made = diffs.count
    again = LayoutSource(layout, shelf)
    assert prepared(again) == prepared(first)
    assert again.prepare_all() == 3 and diffs.count == made
    assert ask(again, "v4", "v5").raw == ask(first, "v4", "v5").raw


def test_preparing_costs_no_caller_anything(layout: Path) -> None:
    source = LayoutSource(layout, options=SourceOptions(budget_seconds=1e-9))
    source.prepare_all()
    poor = Caller("poor", ("*",), ())
    assert ask(source, "v4", "v5", poor).raw is not None


def test_an_image_that_cannot_be_prepared_does_not_keep_the_others(
    layout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diff, calls = delta.diff, list[int]()

    def fail_once(olds: list[bytes], new: bytes) -> bytes:
        calls.append(1)
        if len(calls) == 1:
            raise AssertionError("a fresh delta does not give its form back")
        return diff(olds, new)

    monkeypatch.setattr("layerkit.formats.delta.diff", fail_once)
    source = LayoutSource(layout)
    source.prepare_all()
    assert prepared(source)[-2:] == [("v3", "v5"), ("v2", "v5")]


def test_nothing_is_begun_while_a_caller_waits(layout: Path) -> None:
    source, stop = LayoutSource(layout), threading.Event()
    go_on = threading.Event()
    running = source._workshop.submit("a caller's", lambda: b"" if go_on.wait(30) else None, 0, "")
    preparing = source.make_preparing()
    begun = threading.Event()
    preparing.step = lambda: begun.set() or False  # type: ignore[method-assign,func-returns-value]
    thread = threading.Thread(target=preparing.run, args=(stop,))
    thread.start()
    assert not begun.wait(0.05)
    go_on.set()
    running.result(30)
    assert begun.wait(30)
    stop.set()
    thread.join()


def test_a_storage_that_fails_is_looked_at_again(
    layout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerkit.jobs.serve.preparing.PAUSE", 0.001)
    source, stop, done = LayoutSource(layout), threading.Event(), threading.Event()
    preparing = source.make_preparing()
    step, failures = preparing.step, iter([StoreError("not now")] * 3)

    def fail_first() -> bool:
        if (failure := next(failures, None)) is not None:
            raise failure
        if not step():
            done.set()
        return not done.is_set()

    preparing.step = fail_first  # type: ignore[method-assign]
    thread = threading.Thread(target=preparing.run, args=(stop,))
    thread.start()
    assert done.wait(30)
    stop.set()
    thread.join()
    assert len(prepared(source)) == 3


# --- packed forms ----------------------------------------------------------------------------


def words(seed: int) -> bytes:
    """Words in random order: LZMA makes less of them than a quick zstd."""
    known = noise(2048)
    return b"".join(known[8 * at : 8 * at + 8] for at in noise(50_000, seed))


@pytest.fixture
def packable(tmp_path: Path, packs_small: None) -> Path:
    publish_image(tmp_path / "packable", f"{REF}:v1", {"code": {"app/hello": words(2)}})
    return tmp_path / "packable"


def is_announced(source: LayoutSource) -> bool:
    top = source.resolve(REF, "v1")
    assert top is not None
    return any(ANNOTATION_PACKED in one.annotations for one in source.list_referrers(REF, top))


def form_of(source: LayoutSource) -> oci.Descriptor:
    return next(iter(source.catalogue.get(REF).chunk_lists.values()))


def test_a_packed_form_is_found_by_servers_that_do_not_pack(
    packable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "LOOK_SECONDS", 0)
    shelf = FolderShelf(tmp_path / "made")
    other = LayoutSource(packable, shelf)
    assert not is_announced(other)
    packs = LayoutSource(packable, shelf)
    packs.prepare_all()
    form = form_of(packs)
    assert is_announced(packs) and is_announced(other)
    assert other.read_packed(REF, form.digest) == packs.read_packed(REF, form.digest)
    assert len(other.read_packed(REF, form.digest)) < form.size


def test_what_may_still_be_packed_is_said_until_it_is(packable: Path) -> None:
    source = LayoutSource(packable, options=SourceOptions(is_preparing=True))
    library, form = source._library(is_aside=False), form_of(source)
    assert library.is_packing(form) and library.find_packed(form.digest) is None
    source.prepare_all()
    assert not library.is_packing(form) and library.find_packed(form.digest) is not None
    assert not LayoutSource(packable)._library(is_aside=False).is_packing(form)  # nobody packs


@pytest.mark.usefixtures("packs_small")
def test_what_does_not_pack_is_known_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_image(tmp_path / "layout", f"{REF}:v1", {"code": {"app/hello": noise(100_000)}})
    shelf = FolderShelf(tmp_path / "made")
    source = LayoutSource(tmp_path / "layout", shelf)
    assert source.prepare_all() == 1 and not is_announced(source)
    monkeypatch.setattr(packing, "pack", lambda _: pytest.fail("it is packed again"))
    again = LayoutSource(tmp_path / "layout", shelf)
    assert again.prepare_all() == 0 and not is_announced(again)


def test_what_the_shelf_dropped_is_not_announced_any_more(
    packable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = FolderShelf(tmp_path / "made")
    LayoutSource(packable, shelf).prepare_all()
    source = LayoutSource(packable, shelf)
    assert is_announced(source)
    for path in (tmp_path / "made").iterdir():
        path.unlink()
    source._packing._kept._made = type(source._packing._kept._made)(0)
    library = source._library(is_aside=False)
    assert library.find_packed(form_of(source).digest) is None and not is_announced(source)


def test_packing_ends_at_its_size(packable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_image(packable, f"{REF}:v2", {"code": {"app/hello": words(3)}})
    monkeypatch.setattr(packing, "PACKED_SIZE", 1000)
    source = LayoutSource(packable, options=SourceOptions(prepare_count=0))
    assert source.prepare_all() == 1


# --- the list of what was prepared -----------------------------------------------------------


def entry(number: int) -> Prepared:
    return Prepared(oci.EMPTY_DESCRIPTOR.digest, oci.EMPTY_DESCRIPTOR.digest, number, number * 100)


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[FolderShelf]:
    yield FolderShelf(tmp_path / "shelf")


def test_the_list_goes_on_after_a_restart(shelf: FolderShelf) -> None:
    first = Ledger(shelf)
    first.add("a", entry(1))
    first.save()
    again = Ledger(shelf)
    again.add("b", entry(2))
    again.save()
    assert Ledger(shelf).read() == {"a": [entry(1)], "b": [entry(2)]}


@pytest.mark.parametrize("raw", [b"", b"[1]", b"{", b'{"a": [["x", "y", 1, 2]]}', b'{"a": 7}'])
def test_a_list_that_is_none_is_an_empty_one(shelf: FolderShelf, raw: bytes) -> None:
    shelf.put(KEY, raw)
    assert Ledger(shelf).read() == {}


def test_the_same_update_is_listed_once(shelf: FolderShelf) -> None:
    ledger = Ledger(shelf)
    for number in (1, 2):
        ledger.add("a", entry(number))
    assert ledger.read() == {"a": [entry(2)]}
