"""What is signed is taken, what is not is refused before any of it is used, whatever the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import AgentProcess, eventually, stopped_at_end
from builders import hello_files, noise, publish_image
from cryptography.hazmat.primitives.asymmetric import ec
from keys import write_key

from layerkit.digest import Digest
from layerkit.edges.disk import Disk
from layerkit.edges.http import RunningServer
from layerkit.edges.layout import Layout
from layerkit.edges.remote import Remote
from layerkit.edges.signing import Signer, Verifier
from layerkit.edges.store import Store
from layerkit.errors import SignatureError
from layerkit.formats.oci import EMPTY, EMPTY_BLOB, MANIFEST, Descriptor
from layerkit.formats.reference import Reference
from layerkit.formats.signature import (
    BUNDLE_TYPE,
    make_bundle,
    make_signature_artifact,
    make_statement,
    signed_bytes,
)
from layerkit.jobs.pull import PullResult, make_check, pull
from layerkit.jobs.serve import start
from layerkit.jobs.sign import sign_image

HELLO = "hello:latest"
REF = Reference.parse(HELLO)
BODY = noise(60_000)


def publish(layout: Path, number: int) -> Digest:
    return publish_image(layout, HELLO, hello_files(BODY + b"%d" % number)).digest


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    publish(tmp_path / "layout", 0)
    return tmp_path / "layout"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """Two pairs of files: a private and its public key."""
    folder = tmp_path_factory.mktemp("keys")
    return [
        write_key(folder, ec.generate_private_key(ec.SECP256R1()), name)
        for name in ("ours", "theirs")
    ]


def sign(layout: Path, key: Path, ref: str = HELLO) -> None:
    sign_image(Layout(layout), Reference.parse(ref), Signer.load(key, None))


def pull_signed(server: RunningServer, store: Store, key: Path) -> PullResult:
    with Remote(server.url) as remote:
        return pull(REF, remote, store, check=make_check(Verifier.load([key])))


def attach(layout: Path, top: Descriptor, bundle: bytes) -> None:
    """A signature's artifact with any content beside an image."""
    descriptor, raw, _ = make_signature_artifact(top, bundle)
    held = Layout(layout)
    with held.batch():
        held.put_blob(EMPTY_BLOB, EMPTY)
        held.put_blob(bundle, BUNDLE_TYPE)
        held.put_blob(raw, MANIFEST)
        held.add_referrers([descriptor])


def test_an_image_that_is_signed_comes(
    layout: Path, server: RunningServer, store: Store, keys: list[tuple[Path, Path]]
) -> None:
    sign(layout, keys[0][0])
    first = pull_signed(server, store, keys[0][1])
    assert store.is_complete(first.digest)
    new = publish(layout, 1)
    with pytest.raises(SignatureError, match="not signed"):
        pull_signed(server, store, keys[0][1])
    assert store.find_image(HELLO) == first.digest
    assert not store.is_complete(new)
    sign(layout, keys[0][0])
    assert pull_signed(server, store, keys[0][1]).digest == new


def test_what_is_held_is_asked_for_its_signature_too(
    layout: Path, server: RunningServer, store: Store, keys: list[tuple[Path, Path]]
) -> None:
    with Remote(server.url) as remote:
        pull(REF, remote, store)
    with pytest.raises(SignatureError):
        pull_signed(server, store, keys[0][1])


def test_a_signature_that_came_with_the_image_is_not_asked_for_again(
    layout: Path, server: RunningServer, store: Store, keys: list[tuple[Path, Path]]
) -> None:
    sign(layout, keys[0][0])
    pull_signed(server, store, keys[0][1])
    assert pull_signed(server, store, keys[0][1]).request_count == 1
    with pytest.raises(SignatureError):
        pull_signed(server, store, keys[1][1])


def test_a_signature_of_ours_is_one_request(
    layout: Path, server: RunningServer, store: Store, keys: list[tuple[Path, Path]]
) -> None:
    sign(layout, keys[0][0])
    assert pull_signed(server, store, keys[0][1]).request_count == 2


def wrong_signatures(top: Descriptor, signer: Signer) -> dict[str, bytes]:
    statement = make_statement(top.digest)
    other = make_statement(Digest("sha256", bytes(32)))
    return {
        "another image": make_bundle(other, signer.sign(signed_bytes(other)), signer.hint),
        "another statement": make_bundle(statement, signer.sign(signed_bytes(other)), signer.hint),
        "not over DSSE": make_bundle(statement, signer.sign(statement), signer.hint),
        "no JSON": b"\xff\xfe",
        "nested": b"[" * 50_000,
    }


@pytest.mark.parametrize(
    "kind", ["another image", "another statement", "not over DSSE", "no JSON", "nested"]
)
def test_a_wrong_signature_is_none(
    kind: str, layout: Path, server: RunningServer, store: Store, keys: list[tuple[Path, Path]]
) -> None:
    top = Layout(layout).resolve(REF)
    attach(layout, top, wrong_signatures(top, Signer.load(keys[0][0], None))[kind])
    with pytest.raises(SignatureError):
        pull_signed(server, store, keys[0][1])
    assert store.list_images() == []


def test_a_wrong_signature_hides_no_right_one(
    layout: Path, server: RunningServer, store: Store, keys: list[tuple[Path, Path]]
) -> None:
    top = Layout(layout).resolve(REF)
    for bundle in wrong_signatures(top, Signer.load(keys[0][0], None)).values():
        attach(layout, top, bundle)
    sign(layout, keys[1][0])
    sign(layout, keys[0][0])
    assert pull_signed(server, store, keys[0][1]).digest == top.digest


def test_a_child_of_a_signed_image_is_what_the_digest_says(
    layout: Path, server: RunningServer, store: Store, keys: list[tuple[Path, Path]]
) -> None:
    """A signature of the old version does not help the new one, which names it as its old."""
    sign(layout, keys[0][0])
    publish(layout, 1)
    with pytest.raises(SignatureError), Remote(server.url) as remote:
        pull(Reference.parse("hello"), remote, store, check=make_check(Verifier.load([keys[0][1]])))


def test_signing_again_changes_nothing(layout: Path, keys: list[tuple[Path, Path]]) -> None:
    sign(layout, keys[0][0])
    before = (layout / "index.json").read_bytes()
    sign(layout, keys[0][0])
    assert (layout / "index.json").read_bytes() == before


@pytest.fixture
def agent(
    tmp_path: Path, layout: Path, keys: list[tuple[Path, Path]]
) -> Iterator[tuple[AgentProcess, RunningServer]]:
    with start(layout) as server:
        options = ["--server", server.url, "--watch", "hello", "--rootfs", tmp_path / "root"]
        made = AgentProcess(tmp_path, *options, "--verify", keys[0][1])
        with stopped_at_end(made):
            yield made, server


@pytest.mark.slow  # a process, and pauses between its tries
def test_the_agent_makes_only_signed_versions_current(
    agent: tuple[AgentProcess, RunningServer], layout: Path, keys: list[tuple[Path, Path]]
) -> None:
    process, _ = agent
    sign(layout, keys[0][0])
    process.start()
    first = Layout(layout).resolve(REF).digest
    process.wait_for(HELLO, first)
    new = publish(layout, 1)  # unsigned
    eventually(lambda: process.name(HELLO)["last_error"])
    error = process.name(HELLO)["last_error"]
    assert error["code"] == "SIGNATURE_INVALID" and str(new) in error["cause"]
    sign(layout, keys[1][0])  # by a key that does not count
    code = (process.root / "hello" / "current" / "app" / "hello").read_bytes()
    assert code == BODY + b"0" and process.name(HELLO)["digest"] == str(first)
    with Store(process.store, Disk()) as store:
        assert not store.is_complete(new)
    sign(layout, keys[0][0])  # now it is signed: the agent tries again by itself
    process.wait_for(HELLO, new)
    assert process.name(HELLO)["last_error"] is None
