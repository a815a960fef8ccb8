"""Bundles: made from layouts, registries and servers, taken by nodes that ask nobody."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
from builders import AMD64, Silent, hello_files, noise, publish_image
from registries import FakeRegistry

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.bundle import BundleFile, BundleUpstream, PartSource, write_bundle
from layerkit.edges.disk import TEMP_PREFIX, Disk
from layerkit.edges.layout import Layout
from layerkit.edges.registry import Registry, Transport
from layerkit.edges.signing import Signer, Verifier
from layerkit.edges.storage.targets import find_target
from layerkit.edges.store import Store
from layerkit.errors import (
    FormatError,
    IntegrityError,
    LayerkitError,
    NotFoundError,
    SignatureError,
    UsageError,
)
from layerkit.formats import oci
from layerkit.formats.reference import Reference
from layerkit.jobs.bundle import BundleResult, Found, bundle, check_usable, find_image
from layerkit.jobs.publish import publish
from layerkit.jobs.pull import PullResult, make_check, pull
from layerkit.jobs.sign import sign_image

BODY = noise(120_000)
COSIGN = Path(__file__).parent.parent / "edges" / "cosign"
ARM64 = oci.Platform("linux", "arm64")


def put(layout: Path, ref: str, text: bytes, **how: bool) -> Digest:
    return publish_image(layout, ref, hello_files(BODY + text + BODY[:5000]), **how).digest


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        put(tmp_path / "layout", f"fn:v{number}", b"%d" % number)
    return tmp_path / "layout"


def no_registry(url: str) -> Registry:
    raise AssertionError(f"asks {url}")


def find(layout: Path, ref: str) -> Found:
    return find_image(ref, layout, None, no_registry)


def make(layout: Path, path: Path, new: str, *olds: str, **facts: object) -> BundleResult:
    found = [find(layout, old) for old in olds]
    return bundle(find(layout, new), found, path, Disk(), **facts)  # type: ignore[arg-type]


def take(
    path: Path, ref: str, store: Store, platform: oci.Platform = AMD64, **facts: object
) -> PullResult:
    parsed = Reference.parse(ref)
    with BundleUpstream(path) as upstream:
        check_usable(upstream, parsed, store, str(platform))
        return pull(parsed, upstream, store, platform=platform, **facts)  # type: ignore[arg-type]


def test_a_whole_bundle_then_an_update(layout: Path, store: Store, tmp_path: Path) -> None:
    whole, small = tmp_path / "1.lkb", tmp_path / "2.lkb"
    first = make(layout, whole, "fn:v1")
    assert first.olds == () and first.size == whole.stat().st_size
    second = make(layout, small, "fn:v2", "fn:v1")
    assert second.olds == (str(first.digest),)
    assert small.stat().st_size < whole.stat().st_size / 10
    take(whole, "fn:v1", store)
    got = take(small, "fn:v2", store, rootfs=tmp_path / "root")
    assert got.digest == Layout(layout).resolve(Reference.parse("fn:v2")).digest
    assert (tmp_path / "root/app/hello").read_bytes() == BODY + b"2" + BODY[:5000]
    again = take(small, "fn:v2", store)
    assert again.up_to_date


def test_the_image_keeps_its_digests(layout: Path, store: Store, tmp_path: Path) -> None:
    make(layout, tmp_path / "b", "fn:v1")
    got = take(tmp_path / "b", "fn:v1", store, output=tmp_path / "copy")
    assert Layout(tmp_path / "copy").resolve(Reference.parse("fn:v1")).digest == got.digest


def test_a_bundle_for_several_olds(layout: Path, store: Store, tmp_path: Path) -> None:
    make(layout, tmp_path / "2", "fn:v2")
    made = make(layout, tmp_path / "3", "fn:v3", "fn:v1", "fn:v2")
    assert made.update_count == 2
    take(tmp_path / "2", "fn:v2", store)
    assert store.is_complete(take(tmp_path / "3", "fn:v3", store).digest)


def test_who_lacks_the_old_image_is_told_and_takes_nothing(
    layout: Path, store: Store, tmp_path: Path
) -> None:
    make(layout, tmp_path / "b", "fn:v2", "fn:v1")
    old = Layout(layout).resolve(Reference.parse("fn:v1")).digest
    with pytest.raises(NotFoundError, match="not in the store") as caught:
        take(tmp_path / "b", "fn:v2", store)
    assert f"fn:v1@{old}" in caught.value.cause
    assert store.list_images() == [] and store.usage() == Store(tmp_path / "e", Disk()).usage()


@pytest.mark.parametrize("ref", ["fn:v9", "other:v2", "fn@sha256:" + "0" * 64])
def test_another_image_is_not_in_it(ref: str, layout: Path, store: Store, tmp_path: Path) -> None:
    made = make(layout, tmp_path / "b", "fn:v2")
    with pytest.raises(NotFoundError, match="does not hold") as caught:
        take(tmp_path / "b", ref, store)
    assert str(made.digest) in caught.value.cause


def test_a_name_with_a_host_or_a_digest_finds_it(
    layout: Path, store: Store, tmp_path: Path
) -> None:
    made = make(layout, tmp_path / "b", "fn:v2")
    assert take(tmp_path / "b", "registry.example/fn:v2", store).digest == made.digest
    with Store(tmp_path / "other", Disk()) as other:
        assert take(tmp_path / "b", f"fn@{made.digest}", other).digest == made.digest


def test_an_interrupted_pull_is_finished_by_the_bundle(
    layout: Path, store: Store, tmp_path: Path
) -> None:
    """What a pull left behind counts for nothing where no layer can be had by itself."""
    made = make(layout, tmp_path / "b", "fn:v2")
    store.put_fact("started fn:v2", str(made.digest))
    assert store.is_complete(take(tmp_path / "b", "fn:v2", store).digest)


def test_several_platforms(layout: Path, store: Store, tmp_path: Path) -> None:
    for number in (1, 2):
        put_index(layout, f"multi:v{number}", number)
    both = make(layout, tmp_path / "both", "multi:v2", "multi:v1")
    assert both.platforms == ("linux/amd64", "linux/arm64") and both.update_count == 2
    one = make(layout, tmp_path / "one", "multi:v2", platforms=[ARM64])
    assert one.platforms == ("linux/arm64",)
    with pytest.raises(NotFoundError, match="linux/amd64") as caught:
        take(tmp_path / "one", "multi:v2", store)
    assert "linux/arm64" in caught.value.cause
    assert take(tmp_path / "one", "multi:v2", store, ARM64).digest == both.digest
    with pytest.raises(UsageError, match="no bundle"):
        make(layout, tmp_path / "x", "multi:v2", platforms=[oci.Platform("linux", "s390x")])


def put_index(layout: Path, ref: str, number: int) -> None:
    """An index of two images of `layout`."""
    held = Layout(layout)
    children = []
    for name in (AMD64, ARM64):
        text = f"{number} {name}".encode()
        top = publish_image(
            layout, f"part-{number}-{name.architecture}:x", hello_files(BODY + text)
        )
        children.append(oci.Descriptor(top.media_type, top.digest, top.size, platform=name))
    with held.batch():
        top = held.put_blob(oci.serialize_index(oci.Index(tuple(children))), oci.INDEX)
        held.commit(Reference.parse(ref), top)


def test_anybodys_image_goes_as_blobs(tmp_path: Path, store: Store) -> None:
    layout = tmp_path / "foreign"
    put(layout, "theirs:v1", b"1", chunks=False, recipe=False)
    made = make(layout, tmp_path / "b", "theirs:v1")
    assert take(tmp_path / "b", "theirs:v1", store, rootfs=tmp_path / "root").digest == made.digest
    assert (tmp_path / "root/app/hello").read_bytes().startswith(BODY)


def test_a_layer_that_does_not_fit_into_an_update_goes_as_a_blob(
    layout: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerkit.jobs.updating.updates.ANSWER_SIZE", 50_000)
    made = make(layout, tmp_path / "b", "fn:v1")
    assert made.update_size < 50_000 < made.size
    assert take(tmp_path / "b", "fn:v1", store, rootfs=tmp_path / "root").digest == made.digest
    assert (tmp_path / "root/app/hello").read_bytes().startswith(BODY)


def test_from_a_registry(layout: Path, store: Store, tmp_path: Path) -> None:
    with FakeRegistry().serving() as registry:
        for tag in ("v1", "v2"):
            ref = Reference.parse(f"fn:{tag}")
            publish(Layout(layout), ref, find_target(registry.url, ref), Silent())

        def opened(url: str) -> Registry:
            assert url == registry.url
            return Registry(Transport(registry.host, plain_http=True))

        found = [find_image(f"fn:{tag}", None, None, opened, registry.url) for tag in ("v1", "v2")]
        bundle(found[0], [], tmp_path / "1", Disk())
        bundle(found[1], [found[0]], tmp_path / "2", Disk())
        with pytest.raises(NotFoundError):
            find_image("fn:v9", None, None, opened, registry.url)
    take(tmp_path / "1", "fn:v1", store)
    take(tmp_path / "2", "fn:v2", store)


def test_what_cannot_be_made_leaves_no_file(layout: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UsageError, match="no bundle"):
        make(layout, out / "b", "fn:v1", "fn:v1")
    top = Layout(layout).resolve(Reference.parse("fn:v3"))
    for part in Layout(layout).read_manifest(top.digest).layers:
        Layout(layout).blob_path(part.digest).unlink()
    for entry in Layout(layout).referrers(top.digest):
        for part in Layout(layout).read_manifest(entry.digest).layers:
            Layout(layout).blob_path(part.digest).unlink(missing_ok=True)
    with pytest.raises(LayerkitError):
        make(layout, out / "b", "fn:v3")
    assert list(out.iterdir()) == []


def test_a_bundle_replaces_one_only_when_it_is_whole(layout: Path, tmp_path: Path) -> None:
    path = tmp_path / "b"
    path.write_bytes(b"before")

    class Full(Disk):
        def fsync_fd(self, fd: int, path: Path | str) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        bundle(find(layout, "fn:v1"), [], path, Full())
    assert path.read_bytes() == b"before"
    assert not list(tmp_path.glob(f"{TEMP_PREFIX}*"))


def test_a_signature_goes_along(layout: Path, store: Store, tmp_path: Path) -> None:
    unsigned, signed = tmp_path / "unsigned", tmp_path / "signed"
    check = make_check(Verifier.load([COSIGN / "cosign.pub"]))
    make(layout, unsigned, "fn:v1")
    with pytest.raises(SignatureError):
        take(unsigned, "fn:v1", store, check=check)
    assert store.list_images() == []
    signer = Signer.load(COSIGN / "cosign.key", "pw")
    sign_image(Layout(layout), Reference.parse("fn:v1"), signer)
    assert make(layout, signed, "fn:v1").signature_count == 1
    with BundleFile(signed) as held:
        assert len(held.index.manifests) == 3  # the image, its update, its signature
    assert store.is_complete(take(signed, "fn:v1", store, check=check).digest)


# --- damaged and lying bundles -------------------------------------------------------------------


def test_every_damaged_byte_is_refused_or_harmless(
    layout: Path, store: Store, tmp_path: Path
) -> None:
    """A flipped byte anywhere: an error by name, or the image as it should be."""
    make(layout, tmp_path / "1", "fn:v1")
    made = make(layout, tmp_path / "2", "fn:v2", "fn:v1")
    take(tmp_path / "1", "fn:v1", store)
    raw = (tmp_path / "2").read_bytes()
    for at in range(0, len(raw), 41):
        path = tmp_path / "damaged"
        path.write_bytes(raw[:at] + bytes((raw[at] ^ 1,)) + raw[at + 1 :])
        with contextlib.suppress(FormatError, IntegrityError, NotFoundError):
            assert take(path, "fn:v2", store, dry_run=at % 2 == 0).digest == made.digest
        store.remove_image("fn:v2")


@pytest.mark.parametrize("size", [0, 3, 11, 12, 60, 500, -1])
def test_a_cut_file_is_refused(size: int, layout: Path, tmp_path: Path) -> None:
    make(layout, tmp_path / "b", "fn:v1")
    os.truncate(tmp_path / "b", size if size >= 0 else (tmp_path / "b").stat().st_size - 1)
    with pytest.raises(FormatError):
        BundleFile(tmp_path / "b")


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        BundleFile(tmp_path / "none")
    (tmp_path / "text").write_bytes(b"some text that is no bundle")
    with pytest.raises(FormatError, match="no magic"):
        BundleFile(tmp_path / "text")


def test_an_update_of_another_image_is_refused(layout: Path, store: Store, tmp_path: Path) -> None:
    """The index of a bundle lies: its update makes another image than the name says."""
    make(layout, tmp_path / "b", "fn:v1")
    with BundleFile(tmp_path / "b") as held:
        parts = {digest: held.read(digest, 1 << 30) for digest in held.parts}
        index = json.loads(next(iter(parts.values())))
    v2 = Layout(layout).resolve(Reference.parse("fn:v2"))
    raw_top = Layout(layout).read_blob(v2)
    for data in list(parts.values()):
        if b'"subject"' in data:  # the update, as one to v2
            document = json.loads(data)
            document["subject"] |= {"digest": str(v2.digest), "size": v2.size}
            moved = json.dumps(document).encode()
            parts[sha256_digest(moved)] = moved
            index["manifests"].append(
                {"mediaType": oci.MANIFEST, "digest": str(sha256_digest(moved)), "size": len(moved)}
            )
    index["manifests"][0] |= {"digest": str(v2.digest), "size": v2.size}
    sources = [
        PartSource(sha256_digest(data), len(data), lambda data=data: (data,))  # type: ignore[misc]
        for data in (raw_top, *parts.values())
    ]
    write_bundle(tmp_path / "lie", oci.parse_index(json.dumps(index).encode()), sources, Disk())
    with pytest.raises(LayerkitError):
        take(tmp_path / "lie", "fn:v2", store)
    assert not store.is_complete(v2.digest)
