"""Signatures and the real cosign (3.x), both ways, offline, through real registries."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from builders import LayoutSource, hello_files, noise, publish_image
from commands import layerkit as run_layerkit
from registry_servers import KINDS, empty_registry, find_tool

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.http import start_server
from layerkit.edges.layout import Layout
from layerkit.edges.remote import Remote
from layerkit.edges.signing import Verifier
from layerkit.edges.storage import open_storage
from layerkit.edges.store import Store
from layerkit.errors import SignatureError
from layerkit.formats import oci
from layerkit.formats.buildinfo import BuildInfo
from layerkit.formats.image import pack_referrer
from layerkit.formats.reference import Reference
from layerkit.formats.signature import BUNDLE_TYPE
from layerkit.formats.statement import PROVENANCE_TYPE, SBOM_TYPE
from layerkit.formats.supplychain import Built, make_provenance, make_sbom
from layerkit.jobs.pull import make_check, pull
from layerkit.jobs.serve import SourceOptions, StorageSource, make_app

pytestmark = pytest.mark.slow  # starts registries and cosign, which takes a second each time
PASSWORD = "pw"


@dataclass
class Cosign:
    """The tool, a key pair of it, and a home where it finds nothing."""

    tool: str
    folder: Path

    @property
    def key(self) -> Path:
        return self.folder / "cosign.key"

    @property
    def public(self) -> Path:
        return self.folder / "cosign.pub"

    def run(self, *argv: str, status: int = 0) -> str:
        settings = {
            "COSIGN_PASSWORD": PASSWORD,
            "HOME": str(self.folder),
            "TUF_ROOT": str(self.folder),
        }
        done = subprocess.run(
            [self.tool, *argv],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.folder,
            env={**os.environ, **settings},
        )
        assert bool(done.returncode) == bool(status), done.stdout + done.stderr
        return done.stdout + done.stderr

    def sign(self, ref: str, *argv: str) -> None:
        """Without a log: the first flags are what version 3 wants for that."""
        offline = ("--tlog-upload=false", "--use-signing-config=false", "--allow-http-registry")
        self.run("sign", "--key", str(self.key), "-y", *offline, *argv, ref)

    def verify(self, ref: str, status: int = 0) -> str:
        offline = ("--insecure-ignore-tlog", "--allow-http-registry")
        return self.run("verify", "--key", str(self.public), *offline, ref, status=status)


@pytest.fixture
def cosign(tmp_path: Path) -> Cosign:
    folder = tmp_path / "cosign"
    folder.mkdir()
    made = Cosign(find_tool("cosign"), folder)
    made.run("generate-key-pair")
    return made


@pytest.fixture(params=KINDS)
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with empty_registry(request.param, tmp_path / "registry") as host:
        yield host


layerkit = partial(run_layerkit, COSIGN_PASSWORD=PASSWORD)


def publish(layout: Path, ref: str, seed: int = 1) -> Digest:
    return publish_image(layout, ref, hello_files(noise(40_000, seed))).digest


def pull_verified(host: str, ref: str, key: Path, tmp_path: Path) -> Digest:
    """By a chunk server over the registry, with what it holds read anew."""
    storage = open_storage(
        f"http://{host}",
        repositories=("fn",),
        cache=tmp_path / "cache",
        made=str(tmp_path / "made"),
    )
    check = make_check(Verifier.load([key]))
    source = StorageSource(storage, SourceOptions(budget_seconds=0))
    with start_server(make_app(source)) as server, Store(tmp_path / "store", Disk()) as store:
        return pull(Reference.parse(ref), Remote(server.url), store, check=check).digest


def test_cosign_verifies_what_push_signed(registry: str, cosign: Cosign, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    publish(layout, f"{registry}/fn:v1")
    ref = layerkit("push", f"{registry}/fn:v1", "--from", str(layout), "--sign", str(cosign.key))
    assert "The signatures were verified against the specified public key" in cosign.verify(
        ref.strip()
    )
    publish(layout, f"{registry}/fn:v2", seed=5)
    ref = layerkit("push", f"{registry}/fn:v2", "--from", str(layout))
    cosign.verify(ref.strip(), status=1)
    layerkit("push", f"{registry}/fn:v2", "--from", str(layout), "--sign", str(cosign.key))
    cosign.verify(ref.strip())  # what was pushed already is signed by a push again


@pytest.mark.parametrize("style", [(), ("--new-bundle-format=false",)], ids=["bundle", "tag"])
def test_what_cosign_signed_verifies(
    registry: str, cosign: Cosign, style: tuple[str, ...], tmp_path: Path
) -> None:
    layout = tmp_path / "layout"
    digest = publish(layout, "fn:v1")
    layerkit("push", "fn:v1", "--from", str(layout), "--to", f"http://{registry}")
    with pytest.raises(SignatureError, match="is not signed by"):
        pull_verified(registry, "fn:v1", cosign.public, tmp_path)
    cosign.sign(f"{registry}/fn@{digest}", *style)
    assert pull_verified(registry, "fn:v1", cosign.public, tmp_path) == digest
    pull_straight = ("pull", f"{registry}/fn:v1", "--store", str(tmp_path / "straight"))
    assert layerkit(*pull_straight, "--verify", str(cosign.public)).strip().endswith(str(digest))
    made = ("bundle", f"{registry}/fn:v1", "-o", str(tmp_path / "fn.lkb"))
    layerkit(*made)
    pull_file = ("pull", "fn:v1", "--bundle", str(tmp_path / "fn.lkb"), "--store")
    layerkit(*pull_file, str(tmp_path / "offline"), "--verify", str(cosign.public))


def describe(layout: Path, image: oci.Descriptor, digest: Digest) -> None:
    """SBOM and provenance beside an image, as `build` writes them."""
    made = Built(
        "fn", digest, "linux/amd64", "fn", sha256_digest(b""), BuildInfo("go1.26.8", "a.example/fn")
    )
    sbom = make_sbom(made)
    held = Layout(layout)
    listed = []
    with held.batch():
        for kind, raw in ((SBOM_TYPE, sbom), (PROVENANCE_TYPE, make_provenance(made, sbom))):
            for blob in pack_referrer(image, kind, raw):
                item = held.put_blob(blob.data, blob.descriptor.media_type)
            listed.append(item)
        held.add_referrers(listed)


def test_cosign_verifies_the_provenance(cosign: Cosign, registry: str, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    top = publish_image(layout, f"{registry}/fn:v1", hello_files(noise(40_000)))
    describe(layout, top, top.digest)
    push = ("push", f"{registry}/fn:v1", "--from", str(layout), "--sign", str(cosign.key))
    ref = layerkit(*push).strip()
    kind = ("--type", "slsaprovenance1", "--key", str(cosign.public))
    offline = ("--insecure-ignore-tlog", "--allow-http-registry")
    said = cosign.run("verify-attestation", *kind, *offline, ref)
    assert "verified against the specified public key" in said
    cosign.verify(ref)
    found = subprocess.run(
        [find_tool("oras"), "discover", "--plain-http", "--format", "json", ref],
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    for name in (SBOM_TYPE, PROVENANCE_TYPE, BUNDLE_TYPE):
        assert name in found or oci.EMPTY in found  # go-containerregistry's own mistake


def test_cosign_verifies_through_our_server(cosign: Cosign, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    digest = publish(layout, "fn:v1")
    argv = ("push", "fn:v1", "--from", str(layout), "--sign", str(cosign.key))
    layerkit(*argv, "--to", str(tmp_path / "copy"))
    with start_server(make_app(LayoutSource(tmp_path / "copy"))) as server:
        host = server.url.removeprefix("http://")
        cosign.verify(f"{host}/fn@{digest}")
