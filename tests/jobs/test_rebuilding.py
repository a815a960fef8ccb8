"""Layers that come plainly, and their published forms afterwards; the planner with measured rates;
several processes that pull at once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from builders import AMD64, LayoutSource, noise
from toy_go import toy_go

from layerkit.digest import sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.http import RunningServer, make_app, start_server
from layerkit.edges.layout import Layout
from layerkit.edges.remote import Remote
from layerkit.edges.store import CHUNK_MANIFEST_KIND, Store
from layerkit.formats import deflate, image, layer, layerform
from layerkit.formats.addressfree import Hints
from layerkit.formats.layer import Entry
from layerkit.formats.plan import prefers_plain
from layerkit.formats.reference import Reference
from layerkit.jobs.pull import PullResult, pull, rebuild_forms
from layerkit.jobs.pull.rates import Stopwatch, load_rates
from layerkit.jobs.serve import start

REF = "team/toy:v1"
OLD, NEW = toy_go(b"hello"), toy_go(b"good evening, everybody")


def publish(path: Path, ref: str, binary: bytes, *, labels: bool = True) -> None:
    """An image as `layerkit build` publishes it, of a toy."""
    recipe = deflate.compression_by_name("gzip")
    entries = [Entry("etc/certs", noise(4000, 3))]
    layers = [
        image.pack_layer(layer.BASE, entries, recipe, "base"),
        image.pack_layer(layer.CODE, layer.code_entries("toy", binary), recipe, "code"),
    ]
    packed = image.pack_image(layers, image.ImageSettings(AMD64, ("/app/toy",), ""))
    artifact = image.pack_chunks_artifact(packed, {sha256_digest(binary): Hints({})})
    blobs = [*packed.blobs(), *artifact]
    layout = Layout(path)
    with layout.batch():
        for blob in blobs:
            if labels or blob.descriptor.media_type != layerform.LABELS_TYPE:
                layout.put_blob(blob.data, blob.descriptor.media_type)
        layout.commit(Reference.parse(ref), packed.manifest.descriptor, [artifact[-1].descriptor])


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(layerform, "MIN_BINARY_SIZE", 1024)  # a toy is smaller than any Go binary
    publish(tmp_path / "layout", REF, OLD)
    return tmp_path / "layout"


def run(server: RunningServer, store: Store, ref: str = REF, **options: object) -> PullResult:
    with Remote(server.url, pauses=(0.01, 0.01)) as remote:
        return pull(Reference.parse(ref), remote, store, platform=AMD64, **options)  # type: ignore[arg-type]


def rebuild(server: RunningServer, store: Store) -> int:
    with Remote(server.url, pauses=(0.01, 0.01)) as remote:
        return rebuild_forms(Reference.parse(REF), remote, store, platform=AMD64)


def on_a_fast_line(store: Store, url: str) -> None:
    """Facts of a machine for which nothing pays but plain blobs."""
    line = f"line/{url.removeprefix('http://')}"
    for name, value in (("bandwidth", "1e10"), ("round-trip", "1e-5")):
        store.put_fact(f"{line}/{name}", value)
    for name, value in (("blob", "1e11"), ("form", "1e3"), ("packed", "1e3"), ("update", "1e3")):
        store.put_fact(f"rate/{name}", value)
    store.put_fact("rate/chunks", "1e3")


def pull_plainly(server: RunningServer, store: Store) -> PullResult:
    on_a_fast_line(store, server.url)
    result = run(server, store)
    assert result.plain_count == 2 and store.find_image(REF) == result.digest
    return result


def transforms(store: Store, result: PullResult) -> list[bytes]:
    lists = store.list_blobs(result.digest, CHUNK_MANIFEST_KIND)
    return sorted(store.get_blob(digest)[24:40].rstrip(b"\0") for digest in lists)


def test_on_a_fast_line_layers_come_plainly(server: RunningServer, store: Store) -> None:
    result = pull_plainly(server, store)
    assert transforms(store, result) == [b"raw", b"raw"]
    assert store.verify().good


def test_fewest_bytes_does_not_ask_for_the_time(server: RunningServer, store: Store) -> None:
    on_a_fast_line(store, server.url)
    result = run(server, store, fewest_bytes=True)
    assert (result.plain_count, transforms(store, result)) == (0, [b"address-free", b"raw"])


def test_labels_give_the_published_form_and_the_tar_is_let_go(
    server: RunningServer, store: Store, tmp_path: Path
) -> None:
    result = pull_plainly(server, store)
    assert rebuild(server, store) == 1
    assert transforms(store, result) == [b"address-free", b"raw"]
    assert store.gc().chunk_count > 0  # of the tar
    assert store.verify().good and rebuild(server, store) == 0
    run(server, store, rootfs=tmp_path / "root")
    assert (tmp_path / "root/app/toy").read_bytes() == OLD


def test_who_has_rebuilt_the_form_gets_a_delta(
    layout: Path, server: RunningServer, store: Store
) -> None:
    pull_plainly(server, store)
    rebuild(server, store)
    publish(layout, REF, NEW)
    result = run(server, store, fewest_bytes=True)
    assert result.request_count == 1 and result.moved_size < 0.3 * len(NEW)


def test_who_has_not_rebuilt_it_yet_gets_the_new_version_all_the_same(
    layout: Path, server: RunningServer, store: Store
) -> None:
    pull_plainly(server, store)
    publish(layout, REF, NEW)
    result = run(server, store, fewest_bytes=True)
    assert result.moved_size < 1.5 * result.whole_size and store.verify().good


def test_without_labels_the_form_is_made_by_encoding(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layerform, "MIN_BINARY_SIZE", 1024)
    publish(tmp_path / "bare", REF, OLD, labels=False)
    with start(tmp_path / "bare") as server:
        pull_plainly(server, store)
        monkeypatch.setattr(
            "layerkit.jobs.pull.rebuilding.rebuild_layer", lambda *_: pytest.fail("no labels")
        )
        monkeypatch.setattr("layerkit.formats.layerform.LABELS_TYPE", "none")
        monkeypatch.setattr("layerkit.jobs.pull.documents.LABELS_TYPE", "none")
        assert rebuild(server, store) == 1


def test_labels_of_another_binary_leave_the_layer_plain(
    layout: Path, server: RunningServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = pull_plainly(server, store)
    other = layerform.encode_layer(layer_tar(NEW))
    assert other is not None
    wrong = layerform.serialize_labels(other.places, other.labels)
    fetch = Remote.fetch_blob

    def lying(self: Remote, name: str, digest: object, size: int, *rest: object) -> bytes:
        data = fetch(self, name, digest, size, *rest)  # type: ignore[arg-type]
        return wrong if data[:4] == layerform.LABELS_MAGIC else data

    monkeypatch.setattr(Remote, "fetch_blob", lying)
    assert rebuild(server, store) == 0
    assert transforms(store, result) == [b"raw", b"raw"] and store.verify().good


def layer_tar(binary: bytes) -> bytes:
    return image.pack_layer(
        layer.CODE, layer.code_entries("toy", binary), deflate.NO_COMPRESSION, ""
    ).tar


# --- rates -------------------------------------------------------------------------------------


def test_rates_are_measured_and_kept(store: Store) -> None:
    clock = [0.0]
    with Remote("http://127.0.0.1:9") as remote:
        watch = Stopwatch(store, remote, now=lambda: clock[0])
        with watch.work("blob") as sizes:
            sizes.append(100_000_000)
            clock[0] += 2.0
            remote.link.waited += 1.0
        remote.link.bandwidth, remote.link.round_trip = 5e7, 0.003
        watch.keep()
        rates = load_rates(store, remote.url)
        assert (rates.blob, rates.bandwidth, rates.round_trip) == (1e8, 5e7, 0.003)
        remote.link.bandwidth, remote.link.round_trip = 1e7, 0.1  # slower: by and by
        watch.keep()
        again = load_rates(store, remote.url)
        assert 1e7 < again.bandwidth < 5e7 and 0.003 < again.round_trip < 0.1


def test_a_layer_too_small_to_tell_is_not_measured(store: Store) -> None:
    with Remote("http://127.0.0.1:9") as remote:
        watch = Stopwatch(store, remote)
        with watch.work("blob") as sizes:
            sizes.append(1000)
        watch.keep()
        assert store.fact("rate/blob") is None


def test_a_way_not_taken_yet_is_as_slow_as_the_others_were(store: Store) -> None:
    store.put_fact("rate/update", "15e6")  # half the usual: the machine is busy
    rates = load_rates(store, "http://a")
    assert (rates.update, rates.blob, rates.form) == (15e6, 15e6, 10e6)
    assert not prefers_plain(replace(rates, bandwidth=1e9), 2_400_000, 6_000_000)


@pytest.mark.parametrize("value", ["", "fast", "-1", "0", "nan", "1e99"])
def test_a_fact_that_is_no_rate_is_not_believed(store: Store, value: str) -> None:
    store.put_fact("rate/blob", value)
    assert load_rates(store, "http://a").blob == 30e6


# --- at the same time --------------------------------------------------------------------------

NODE = """
import sys
from pathlib import Path
from layerkit.edges.disk import Disk
from layerkit.edges.remote import Remote
from layerkit.edges.store import Store
from layerkit.formats.oci import parse_platform
from layerkit.formats.reference import Reference
from layerkit.jobs.pull import pull
url, ref, path = sys.argv[1:]
with Store(Path(path), Disk()) as store, Remote(url) as remote:
    print(pull(Reference.parse(ref), remote, store, platform=parse_platform("linux/amd64")).digest)
"""


class Slow(LayoutSource):
    """Counts what is asked, and takes its time, so that pulls overlap."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked: Counter[str] = Counter()
        self.lock = threading.Lock()

    def read_update(self, *rest: object, **options: object) -> object:
        with self.lock:
            self.asked["empty" if not rest[2] else "update"] += 1
        time.sleep(0.5)
        return super().read_update(*rest, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_four_processes_fetch_an_image_once(layout: Path, tmp_path: Path) -> None:
    source = Slow(layout)
    with start_server(make_app(source)) as server:
        argv = [sys.executable, "-c", NODE, server.url, REF, str(tmp_path / "node")]
        nodes = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        said = {node.communicate(timeout=60)[0] for node in nodes}
    assert {node.returncode for node in nodes} == {0} and len(said) == 1
    assert source.asked["empty"] == 1  # the others found what the first one brought
    with Store(tmp_path / "node", Disk()) as store:
        assert store.verify().good
