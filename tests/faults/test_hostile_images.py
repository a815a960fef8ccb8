"""Images that a hostile publisher made, every digest right: nothing leaves the root, memory stays
bounded, an old image is not taken for a pinned one.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import lying_server as lies
import pytest
from builders import AMD64, hello_files, noise, publish_image, publish_tars
from lying_server import Answer, Asked, Lie, Line, LyingServer

from layerkit.digest import sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.http import RunningServer
from layerkit.edges.remote import Remote
from layerkit.edges.store import Store
from layerkit.errors import FormatError, LayerkitError
from layerkit.formats import formpack, oci
from layerkit.formats.chunker import MAX_CHUNK_SIZE
from layerkit.formats.chunkmanifest import ChunkManifest
from layerkit.formats.cursor import Writer
from layerkit.formats.formpack import PACKED_TYPE
from layerkit.formats.plan import LayerPlan, LayerWant
from layerkit.formats.protocol import pack_form
from layerkit.formats.reference import Reference
from layerkit.jobs.pull import PullResult, pull
from layerkit.jobs.pull.fetching import Fetcher
from layerkit.jobs.serve import start

HERE = Path(__file__).parent
GOOD, BAD = "team/hello:v1", "team/hello:v2"
BINARY = noise(30_000)


# --- layers ----------------------------------------------------------------------------------


def tar_of(*items: tuple[str, bytes, str | bytes]) -> bytes:
    """A tar of (name, type, link or data) exactly as given."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, what in items:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o755
            data = what if isinstance(what, bytes) else b""
            info.size = len(data)
            info.linkname = what if isinstance(what, str) else ""
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


FILE, LINK, HARD = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
HUGE = bytearray(tar_of(("big", FILE, b"x" * 4096)))
HUGE[124:136] = b"77777777777\0"  # the size field; the checksum is made anew below
HUGE[148:156] = b"%06o\0 " % (sum(HUGE[:148]) + 8 * 32 + sum(HUGE[156:512]))
LAYERS = {
    "dots": tar_of(("../outside/sentinel", FILE, b"gotcha")),
    "dots inside": tar_of(("a/../../outside/sentinel", FILE, b"gotcha")),
    "through a link": tar_of(("a", LINK, "../outside"), ("a/sentinel", FILE, b"gotcha")),
    "through an absolute link": tar_of(("a", LINK, "/tmp"), ("a/sentinel", FILE, b"gotcha")),
    "a link out": tar_of(("a", LINK, "../../outside/sentinel")),
    "a hard link out": tar_of(("a", HARD, "../outside/sentinel")),
    "a hard link through a link": tar_of(("a", LINK, "/etc"), ("b", HARD, "a/passwd")),
    "a duplicate": tar_of(("a", FILE, b"1"), ("a", FILE, b"2")),
    "a file over its folder": tar_of(("a/b", FILE, b"1"), ("a", FILE, b"2")),
    "a device": tar_of(("a", tarfile.BLKTYPE, b"")),
    "a pipe": tar_of(("a", tarfile.FIFOTYPE, b"")),
    "deep": tar_of(("/".join("d" * 100), FILE, b"1")),
    "a long name": tar_of(("n" * 1000, FILE, b"1")),
    "a size of 8 GiB": bytes(HUGE),
    "no tar": noise(2048, 3),
}
WAYS = ("update", "form", "layer")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[RunningServer]:
    publish_image(tmp_path / "layout", GOOD, hello_files(BINARY))
    with start(tmp_path / "layout") as running:
        yield running


def run(url: str, folder: Path, ref: str) -> PullResult:
    with (
        Remote(url, pauses=(0.01,), read_seconds=10) as remote,
        Store(folder / "store", Disk()) as store,
    ):
        return pull(Reference.parse(ref), remote, store, rootfs=folder / "root", platform=AMD64)


# Each layer each way; a fifth of them is quick.
LAYER_WAYS = [
    pytest.param(name, way, marks=[pytest.mark.slow] if (row + column) % 5 else [])
    for row, name in enumerate(LAYERS)
    for column, way in enumerate(WAYS)
]


@pytest.mark.parametrize(("name", "way"), LAYER_WAYS)
def test_a_hostile_layer_stays_in_its_root(
    served: RunningServer, tmp_path: Path, name: str, way: str
) -> None:
    node = tmp_path / "node"
    (node / "outside").mkdir(parents=True)
    (node / "outside/sentinel").write_text("untouched")
    if way == "update":
        run(served.url, node, GOOD)
    publish_tars(tmp_path / "layout", BAD, {"code": LAYERS[name]}, chunks=way != "layer")
    with pytest.raises(FormatError):
        run(served.url, node, BAD)
    run(served.url, node, GOOD)
    assert sorted(path.name for path in node.iterdir()) == ["outside", "root", "store"]
    assert (node / "outside/sentinel").read_text() == "untouched"
    assert (node / "root/app/hello").read_bytes() == BINARY
    with Store(node / "store", Disk()) as store:
        assert store.verify().good


# --- documents -------------------------------------------------------------------------------


def manifest_of(config: bytes, *layers: tuple[bytes, int]) -> bytes:
    """A manifest with these layers: bytes, and a size to declare (-1: the real one)."""

    def entry(kind: str, data: bytes, size: int = -1) -> dict[str, object]:
        size = len(data) if size == -1 else size
        return {"mediaType": kind, "digest": str(sha256_digest(data)), "size": size}

    document = {
        "schemaVersion": 2,
        "mediaType": oci.MANIFEST,
        "config": entry(oci.CONFIG, config),
        "layers": [entry(oci.LAYER_GZIP, data, size) for data, size in layers],
    }
    return json.dumps(document).encode()


def config_of(*plains: bytes) -> bytes:
    ids = tuple(sha256_digest(plain) for plain in plains)
    return oci.serialize_config(oci.ImageConfig(AMD64, ids, ("/a",)))


TAR = tar_of(("a", FILE, b"1"))
BLOB = gzip.compress(TAR)
DOCUMENTS: dict[str, tuple[bytes, list[bytes]]] = {
    "a layer of 1 TB": (manifest_of(config_of(TAR), (BLOB, 1 << 40)), [config_of(TAR), BLOB]),
    "a layer of 1 EB": (manifest_of(config_of(TAR), (BLOB, 1 << 60)), [config_of(TAR), BLOB]),
    "a layer of -5 bytes": (manifest_of(config_of(TAR), (BLOB, -5)), [config_of(TAR), BLOB]),
    "no diff_id": (manifest_of(config_of(), (BLOB, -1)), [config_of(), BLOB]),
    "another diff_id": (manifest_of(config_of(b"x"), (BLOB, -1)), [config_of(b"x"), BLOB]),
    "no gzip": (manifest_of(config_of(TAR), (TAR, -1)), [config_of(TAR), TAR]),
    "no config": (manifest_of(config_of(TAR), (BLOB, -1)), [BLOB]),
    "a config of html": (manifest_of(b"<html>", (BLOB, -1)), [b"<html>", BLOB]),
    "many layers": (manifest_of(config_of(TAR), *[(BLOB, -1)] * 5000), [config_of(TAR), BLOB]),
    "deep": (b'{"layers":' + b"[" * 100_000, []),
    "a list": (b"[]", []),
    "NaN": (b'{"schemaVersion": NaN}', []),
    "a surrogate": (b'{"schemaVersion": 2, "mediaType": "\\ud800"}', []),
    "a long number": (b'{"schemaVersion": ' + b"9" * 100_000 + b"}", []),
}


def serve_documents(manifest: bytes, blobs: list[bytes], artifact: bytes = b"") -> lies.Tell:
    """A plain registry that holds just this image, and maybe a chunks artifact of it."""
    held = {str(sha256_digest(blob)): blob for blob in blobs}
    entry = oci.Descriptor(
        oci.MANIFEST, sha256_digest(artifact), len(artifact), artifact_type=oci.CHUNKS_ARTIFACT
    )
    referrers = oci.serialize_index(oci.Index((entry,) if artifact else ()))

    def tell(line: Line, asked: Asked, _: Answer) -> None:
        path = asked.text.partition("?")[0]
        name = path.rpartition("/")[2]
        if path.endswith("/manifests/v2"):
            answer = Answer(200, {"content-type": oci.MANIFEST}, manifest)
        elif name == str(sha256_digest(artifact)):
            answer = Answer(200, {"content-type": oci.MANIFEST}, artifact)
        elif "/referrers/" in path:
            answer = Answer(200, {"content-type": oci.INDEX}, referrers)
        elif name in held:
            answer = Answer(200, {"content-type": "application/octet-stream"}, held[name])
        else:
            answer = Answer(404, {}, b"")
        line.send(answer.head(len(answer.body)), answer.body)

    return tell


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_hostile_document_is_refused(served: RunningServer, tmp_path: Path, name: str) -> None:
    manifest, blobs = DOCUMENTS[name]
    with (
        LyingServer(served.url, [Lie("", serve_documents(manifest, blobs))]) as liar,
        pytest.raises(LayerkitError) as caught,
    ):
        run(liar.url, tmp_path, BAD)
    assert caught.value.code != "UNKNOWN"
    assert run(served.url, tmp_path, GOOD).digest
    with Store(tmp_path / "store", Disk()) as store:
        assert store.verify().good and [image.ref for image in store.list_images()] == [GOOD]


# --- bombs -----------------------------------------------------------------------------------

MADE = 1 << 30  # bytes that a bomb makes
ROOM = 320 << 20  # bytes that a pull of it may take: two zstd windows of 128 MiB, and its own
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
RLE_BLOCK = ((128 << 10) << 3 | 2).to_bytes(3, "little") + b"\0"  # RFC 8878 3.1.1.2
LAST_BLOCK = bytes([RLE_BLOCK[0] | 1]) + RLE_BLOCK[1:]


def zstd_bomb(size: int) -> bytes:
    """A frame that says that it makes `size` zeros, and does: 4 bytes for each 128 KiB."""
    count = size >> 17
    head = ZSTD_MAGIC + b"\xc0\x50" + size.to_bytes(8, "little")  # a window of 1 MiB
    return head + RLE_BLOCK * (count - 1) + LAST_BLOCK


def gzip_bomb(size: int) -> bytes:
    return gzip.compress(bytes(16 << 20)) * (size >> 24)


def lzma_bomb(form_size: int) -> bytes:
    """A packed form of zeros."""
    out = Writer()
    out.raw(formpack.MAGIC + bytes((formpack.MAJOR, formpack.MINOR, formpack.AS_IS)))
    out.varint(form_size)
    out.varint(form_size)
    out.raw(lzma.compress(bytes(form_size), lzma.FORMAT_RAW, filters=formpack.FILTERS))
    return out.getvalue()


def layer_bomb(blob: bytes, kind: str) -> lies.Tell:
    """An image whose only layer is a bomb."""
    config = config_of(TAR)
    manifest = manifest_of(config, (blob, -1)).replace(oci.LAYER_GZIP.encode(), kind.encode())
    return serve_documents(manifest, [config, blob])


def part_bomb(blob: bytes, kind: str) -> lies.Tell:
    """A good image, beside it a chunks artifact with a form that is a bomb."""
    config, form = config_of(TAR), pack_form(TAR)
    manifest = manifest_of(config, (BLOB, -1))
    parts = {oci.CHUNK_MANIFEST: b"not asked for", oci.FORM_ZSTD: form} | {kind: blob}
    annotations = {oci.ANNOTATION_LAYER: str(sha256_digest(TAR))}
    listed = [
        oci.Descriptor(one, sha256_digest(data), len(data), annotations)
        for one, data in parts.items()
    ]
    artifact = oci.Manifest(
        oci.EMPTY_DESCRIPTOR,
        tuple(listed),
        artifact_type=oci.CHUNKS_ARTIFACT,
        subject=oci.Descriptor(oci.MANIFEST, sha256_digest(manifest), len(manifest)),
    )
    blobs = [config, BLOB, *parts.values()]
    return serve_documents(manifest, blobs, oci.serialize_manifest(artifact))


def frame_bomb(line: Line, _: Asked, answer: Answer) -> None:
    """The honest answer whose zstd frame is a bomb."""
    head, magic, _rest = answer.body.partition(ZSTD_MAGIC)
    assert magic
    body = head + zstd_bomb(MADE)
    line.send(answer.head(len(body)), body)


def update_bomb(line: Line, _: Asked, answer: Answer) -> None:
    """An update whose header declares what its frame makes."""
    head = answer.body.partition(ZSTD_MAGIC)[0]
    body = head[:-4] + MADE.to_bytes(4, "little") + zstd_bomb(MADE)
    line.send(answer.head(len(body)), body)


BOMBS: dict[str, tuple[bool, Callable[[], list[Lie]]]] = {  # does the node hold the first?
    "gzip layer": (False, lambda: [Lie("", layer_bomb(gzip_bomb(MADE), oci.LAYER_GZIP))]),
    "zstd layer": (False, lambda: [Lie("", layer_bomb(zstd_bomb(MADE), oci.LAYER_ZSTD))]),
    "form": (False, lambda: [Lie("", part_bomb(zstd_bomb(MADE), oci.FORM_ZSTD))]),
    "packed form": (False, lambda: [Lie("", part_bomb(lzma_bomb(1 << 28), PACKED_TYPE))]),
    "update": (True, lambda: [Lie("/updates/", update_bomb)]),
    "change": (True, lambda: [Lie("/updates/", GONE), Lie("/chunk-manifests/", frame_bomb)]),
    "batch": (True, lambda: [Lie("/updates/|/chunk-manifests/", GONE), Lie("/chunks", frame_bomb)]),
}
GONE = lies.say(404)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_little_memory(served: RunningServer, tmp_path: Path, name: str) -> None:
    holds_old, make = BOMBS[name]
    publish_image(tmp_path / "layout", BAD, hello_files(BINARY[:9000] + b"!" + BINARY[9000:]))
    with LyingServer(served.url, make()) as liar:
        argv = [sys.executable, str(HERE / "bombed_node.py"), served.url, liar.url]
        argv += [GOOD, BAD, str(tmp_path), str(ROOM), "old" if holds_old else "none"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        asked = liar.asked
    assert done.returncode == 0, done.stderr[-2000:]
    assert asked, "the node asked for nothing"
    said = json.loads(done.stdout)
    assert said["code"] in ("", "FORMAT_INVALID", "LIMIT_EXCEEDED", "DIGEST_INVALID"), said
    assert said["good"] and said["grown"] < ROOM


def test_a_form_is_bounded_by_what_came_whatever_its_chunk_manifest_says(tmp_path: Path) -> None:
    """The chunk manifest comes from the same publisher as the form."""
    bomb, count = zstd_bomb(MADE), MADE // MAX_CHUNK_SIZE
    name = sha256_digest(b"its form")
    sizes, ids = (MAX_CHUNK_SIZE,) * count, bytes(32) * count
    listed = ChunkManifest("x", "cdc-v1", name, 1, name, MADE, sizes, ids)
    form = oci.Descriptor(oci.FORM_ZSTD, sha256_digest(bomb), len(bomb))
    want = LayerWant(oci.EMPTY_DESCRIPTOR, name, listed, form)
    layer = LayerPlan(want, "form", listed.chunks, 0)
    remote = SimpleNamespace(fetch_blob=lambda *_: bomb, chunk_server=None)
    with Store(tmp_path / "store", Disk()) as store:
        tracemalloc.start()
        try:
            left = Fetcher("team/hello", remote, store).fetch_form(layer)
            assert tracemalloc.get_traced_memory()[1] < ROOM
        finally:
            tracemalloc.stop()
    assert left == list(listed.chunks)
