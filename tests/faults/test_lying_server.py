"""A pull from a server that lies, on every route: refused by name, in bounded time, nothing outside
the store touched, the store whole; then an honest server completes the pull.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lying_server as lies
import pytest
from builders import AMD64, hello_files, noise, publish_image
from lying_server import Lie, LyingServer, Tell

from layerkit.digest import Digest
from layerkit.edges.disk import Disk
from layerkit.edges.layout import Layout
from layerkit.edges.remote import Remote
from layerkit.edges.store import Store
from layerkit.errors import IntegrityError, LayerkitError
from layerkit.formats import oci
from layerkit.formats.reference import Reference
from layerkit.jobs.pull import PullResult, pull
from layerkit.jobs.serve import start

WORDS = noise(2048)
OLD = noise(30_000) + b"".join(WORDS[8 * at : 8 * at + 8] for at in noise(20_000, 2))
NEW = OLD[:30_000] + b"one edited string" + OLD[30_000:]
FIRST, SECOND = "team/hello:v1", "team/hello:v2"
SECONDS = (
    30.0  # a lie may cost a pull this long, on a busy machine: what is not bounded takes hours
)
FAST = 600  # the clock of the tests about slowness runs this much faster


@dataclass(frozen=True)
class Honest:
    """An honest server of both versions, and the store of a node that holds the first."""

    url: str
    layout: Path
    node: Path
    want: Digest

    def digest_of(self, media_type: str, role: int) -> Digest:
        """A blob of the second image or of its chunks artifact."""
        layout = Layout(self.layout)
        manifest = layout.read_manifest(self.want)
        (entry,) = layout.referrers(self.want)
        artifact = layout.read_manifest(entry.digest)
        blobs = [manifest.config, *manifest.layers, *artifact.layers]
        return [blob.digest for blob in blobs if blob.media_type == media_type][role]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Honest]:
    folder = tmp_path_factory.mktemp("honest")
    publish_image(folder / "layout", FIRST, hello_files(OLD))
    want = publish_image(folder / "layout", SECOND, hello_files(NEW), packs=True)
    with start(folder / "layout") as server:
        with Remote(server.url) as remote, Store(folder / "node", Disk()) as store:
            pull(Reference.parse(FIRST), remote, store, platform=AMD64)
        yield Honest(server.url, folder / "layout", folder / "node", want.digest)


@dataclass(frozen=True)
class Route:
    """What is lied about, and what is shut so that the pull comes that way."""

    path: str  # a pattern; {config}, {layer}, {listed}, {form}, {packed} stand for digests
    holds_old: bool = True
    shut: tuple[str, ...] = ()
    only_way: bool = False  # a pull that is lied to here cannot succeed
    rotten: bool = False  # a chunk of the store is damaged


NO_UPDATE = ("/updates/",)
NO_CHANGE = (*NO_UPDATE, "/chunk-manifests/[^/]*$")
NO_PLACES = (*NO_CHANGE, "/chunk-manifests/.*/chunks")
ROUTES = {
    "tag": Route("/manifests/v2", False, NO_UPDATE, only_way=True),
    "referrers": Route("/referrers/", False, NO_UPDATE),
    "artifact": Route("/manifests/sha256:(?!{top})", False, NO_UPDATE),
    "config": Route("/blobs/{config}", False, NO_UPDATE, only_way=True),
    "packed form": Route("/blobs/{packed}", False, NO_UPDATE),
    "form": Route("/blobs/{form}", False, (*NO_UPDATE, "/blobs/{packed}")),
    "layer": Route("/blobs/{layer}", False, (*NO_UPDATE, "/referrers/"), only_way=True),
    "update": Route("/updates/"),
    "change": Route("POST .*/chunk-manifests/[^/]*$", shut=NO_UPDATE),
    "chunk manifest": Route("GET .*/blobs/{listed}", shut=NO_CHANGE),
    "places": Route("POST .*/chunk-manifests/.*/chunks", shut=NO_UPDATE),
    "ids": Route("POST .*/chunks$", shut=NO_PLACES),
    "one chunk": Route("GET .*/chunks/b3:", rotten=True, shut=NO_PLACES),
}
PAGE = b"<html><body>Please log in to the Wi-Fi</body></html>"
LIES: dict[str, Tell] = {
    "a wrong byte": lies.with_body(lambda body: body[:-9] + bytes([body[-9] ^ 1]) + body[-8:]),
    "other bytes": lies.with_body(lambda body: body[::-1]),
    "nothing": lies.with_body(lambda body: b""),
    "short": lies.with_body(lambda body: body[: len(body) // 2]),
    "long": lies.with_body(lambda body: body + b"more"),
    "html": lies.say(200, PAGE, "text/html"),
    "html with our type": lies.with_body(lambda body: PAGE),
    "length too large": lies.with_length(lambda size: str(size + 9)),
    "length too small": lies.with_length(lambda size: str(size - 9)),
    "length huge": lies.with_length(lambda size: str(1 << 60)),
    "length no number": lies.with_length(lambda size: "-1"),
    "cut": lies.cut(0.5),
    "reset": lies.cut(0.5, reset=True),
    "reset at once": lies.cut(0, reset=True),
    "endless": lies.endless,
    "endless, chunked": lies.endless_chunked,
    "no http": lies.raw(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "head flood": lies.raw(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 100_000),
    "a head of one line": lies.raw(b"HTTP/1.1 200 OK\r\nx: " + b"y" * (1 << 20)),
    "gzip": lies.say(200, b"\x1f\x8b" + bytes(100), content_encoding="gzip"),
    "not modified": lies.say(304),
    "part": lies.say(206, b"part", content_range="bytes 3-6/9"),
    "no": lies.say(403),
    "broken": lies.say(500, PAGE, "text/html"),
}
HARMLESS = {"length too large", "length no number"}  # the bytes are right: a pull may take them
SLOW: dict[str, Tell] = {
    "continue for ever": lies.raw(b"HTTP/1.1 100 Continue\r\n\r\n", times=1 << 30),
    "drip": lies.drip,
    "slow head": lies.slow_head,
    "silence": lies.silence,
}


class Node:
    """A store, beside it a sentinel; looks after each pull whether all is in order."""

    def __init__(self, folder: Path, honest: Honest, route: Route) -> None:
        self.folder = folder
        self.honest = honest
        if route.holds_old:
            shutil.copytree(honest.node, folder / "store")
        if route.rotten:
            pack = max((folder / "store/packs").iterdir(), key=lambda one: one.stat().st_size)
            data = bytearray(pack.read_bytes())
            data[len(data) // 4] ^= 1
            pack.write_bytes(data)
        (folder / "outside").mkdir()
        (folder / "outside/sentinel").write_text("untouched")

    def pull(self, url: str, ref: str = SECOND, speed: float = 1.0) -> PullResult:
        """With `speed` the clock runs faster, and the node waits shorter for what comes."""
        with (
            Remote(
                url,
                pauses=(0.01, 0.01),
                read_seconds=5.0 if speed == 1 else 0.5,
                now=lambda: time.monotonic() * speed,
            ) as remote,
            Store(self.folder / "store", Disk()) as store,
        ):
            return pull(
                Reference.parse(ref),
                remote,
                store,
                rootfs=self.folder / "root",
                platform=AMD64,
                fewest_bytes=True,  # the same plan whatever was measured
            )

    def check(self, done: bool, rotten: bool = False) -> None:
        """Nothing but the store and the wanted tree was made; what is committed is whole."""
        names = {"outside", "store"} | ({"root"} if done else set())
        assert {path.name for path in self.folder.iterdir()} == names
        assert [path.name for path in (self.folder / "outside").iterdir()] == ["sentinel"]
        assert (self.folder / "outside/sentinel").read_text() == "untouched"
        with Store(self.folder / "store", Disk()) as store:
            assert rotten or store.verify().good
            assert store.find_image(SECOND) == (self.honest.want if done else None)
        if done:
            assert (self.folder / "root/app/hello").read_bytes() == NEW


def lie_on(honest: Honest, route: Route, tell: Tell, times: int = 1 << 30) -> list[Lie]:
    """The lie, and 404 on all that is shut."""
    kinds = {
        "config": (oci.CONFIG, 0),
        "layer": (oci.LAYER_GZIP, 1),
        "listed": (oci.CHUNK_MANIFEST, 1),
        "form": (oci.FORM_ZSTD, 1),
        "packed": ("application/vnd.layerkit.packed-form.v0", 1),
    }
    words = {name: str(honest.digest_of(*kind)) for name, kind in kinds.items()}
    words["top"] = honest.want.hex

    def fill(pattern: str) -> str:
        for name, text in words.items():
            pattern = pattern.replace(f"{{{name}}}", text)
        return pattern

    return [Lie(fill(route.path), tell, times), *(Lie(fill(p), lies.say(404)) for p in route.shut)]


def check_lie(honest: Honest, folder: Path, route: Route, tell: Tell, speed: float = 1) -> str:
    """One pull that is lied to, then an honest one. Returns the code of the refusal, or ""."""
    node, code = Node(folder, honest, route), ""
    told = lie_on(honest, route, tell)
    started = time.monotonic()
    with LyingServer(honest.url, told) as liar:
        try:
            assert node.pull(liar.url, speed=speed).digest == honest.want
        except LayerkitError as exc:
            code = exc.code
            assert exc.message and code != "UNKNOWN"
    assert time.monotonic() - started < SECONDS
    assert told[0].told, "the pull did not come by"
    node.check(not code, route.rotten)
    assert node.pull(honest.url).digest == honest.want
    node.check(True)
    return code


# Each lie on each route; a sixth of them, each lie and each route among it, is quick.
PAIRS = [
    pytest.param(
        name, lie, marks=[pytest.mark.slow] if (row + column) % 6 else [], id=f"{name}-{lie}"
    )
    for row, name in enumerate(ROUTES)
    for column, lie in enumerate(LIES)
    if (name, lie) != ("update", "not modified")  # a replay: below
]


@pytest.mark.parametrize(("name", "lie"), PAIRS)
def test_a_lie_is_refused_and_harms_nothing(
    honest: Honest, tmp_path: Path, name: str, lie: str
) -> None:
    code = check_lie(honest, tmp_path, ROUTES[name], LIES[lie])
    if ROUTES[name].only_way and lie not in HARMLESS:
        assert code


@pytest.mark.slow
@pytest.mark.parametrize("lie", SLOW)
@pytest.mark.parametrize("name", ROUTES)
def test_a_slow_server_is_given_up(honest: Honest, tmp_path: Path, name: str, lie: str) -> None:
    """The node's clock runs fast, so that a minute of patience is over at once."""
    code = check_lie(honest, tmp_path, ROUTES[name], SLOW[lie], FAST)
    assert code or not ROUTES[name].only_way


# --- other hosts, other images ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["tag", "layer", "update", "ids"])
def test_no_other_host_is_asked(honest: Honest, tmp_path: Path, name: str) -> None:
    with LyingServer(honest.url) as other:
        check_lie(honest, tmp_path, ROUTES[name], lies.redirect(other.url))
        assert other.asked == []


def replay(honest: Honest) -> list[Lie]:
    """Whatever is asked about manifests and updates, the first image is the answer."""
    layout = Layout(honest.layout)
    old = layout.resolve(Reference.parse(FIRST))
    data = layout.read_blob(old)
    return [
        Lie("/updates/", lies.say(304, etag=f'"{old.digest}"')),
        Lie("/manifests/", lies.say(200, data, old.media_type)),
    ]


@pytest.mark.parametrize("holds_old", [False, True])
def test_an_old_image_is_not_taken_for_a_pinned_one(
    honest: Honest, tmp_path: Path, holds_old: bool
) -> None:
    node = Node(tmp_path, honest, Route("", holds_old))
    pinned = f"team/hello@{honest.want}"
    with LyingServer(honest.url, replay(honest)) as liar, pytest.raises(IntegrityError):
        node.pull(liar.url, pinned)
    assert not (tmp_path / "root").exists()
    assert node.pull(honest.url, pinned).digest == honest.want
    assert (tmp_path / "root/app/hello").read_bytes() == NEW


@pytest.mark.parametrize("holds_old", [False, True])
def test_by_tag_an_old_image_comes_whole_or_not_at_all(
    honest: Honest, tmp_path: Path, holds_old: bool
) -> None:
    """Nobody can know by a tag alone that it was moved on; but what comes is an image that was
    published, bit for bit (docs/design.md "What a server can do to a node")."""
    node = Node(tmp_path, honest, Route("", holds_old))
    with LyingServer(honest.url, replay(honest)) as liar:
        assert (
            node.pull(liar.url).digest
            == Layout(honest.layout).resolve(Reference.parse(FIRST)).digest
        )
    assert (tmp_path / "root/app/hello").read_bytes() == OLD
