"""Several platforms in one index: built, cut anew, pushed, and each node gets its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from builders import Silent
from registries import FakeRegistry

from layerkit.edges.disk import Disk
from layerkit.edges.layout import Layout
from layerkit.edges.registry import Registry, Transport
from layerkit.edges.registry.upstream import RegistryUpstream
from layerkit.edges.remote import Remote
from layerkit.edges.storage.targets import FolderTarget, RegistryTarget
from layerkit.edges.store import Store
from layerkit.errors import NotFoundError
from layerkit.formats import oci
from layerkit.formats.deflate import compression_by_name
from layerkit.formats.reference import Reference
from layerkit.formats.statement import PROVENANCE_TYPE, SBOM_TYPE
from layerkit.jobs.build import BuildResult, build
from layerkit.jobs.publish import publish
from layerkit.jobs.pull import pull
from layerkit.jobs.serve import start
from layerkit.jobs.split import split

pytestmark = [pytest.mark.go, pytest.mark.slow]
REF = Reference.parse("fn:v1")
PLATFORMS = [oci.Platform("linux", name) for name in ("amd64", "arm64")]
MACHINES = {"amd64": 62, "arm64": 183}  # of an ELF file
MAIN = 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("hello") }\n'


def make(folder: Path, layout: Path, platforms: list[oci.Platform]) -> BuildResult:
    folder.mkdir(exist_ok=True)
    (folder / "go.mod").write_text("module example.com/fn\n\ngo 1.24\n")
    (folder / "main.go").write_text(MAIN)
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return build(folder, REF, layout_path=layout, env=env, platforms=platforms)


@pytest.fixture(scope="module")
def built(go_toolchain: Path, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    folder = tmp_path_factory.mktemp("built")
    make(folder / "fn", folder / "layout", PLATFORMS)
    return Layout(folder / "layout")


def machine_of(root: Path) -> int:
    data = (root / "app" / "fn").read_bytes()
    return int.from_bytes(data[18:20], "little")


def test_the_index_does_not_depend_on_the_order(built: Layout, tmp_path: Path) -> None:
    again = make(tmp_path / "fn", tmp_path / "layout", PLATFORMS[::-1])
    assert again.digest == built.resolve(REF).digest


def test_each_platform_has_its_own_sbom_and_provenance(built: Layout) -> None:
    binaries = set()
    for image in built.images(built.resolve(REF)):
        (entry,) = built.referrers(image.digest, PROVENANCE_TYPE)
        raw = built.read_blob(built.read_manifest(entry.digest).layers[0])
        (subject,) = json.loads(raw)["subject"]
        assert subject["digest"]["sha256"] == image.digest.hex
        (entry,) = built.referrers(image.digest, SBOM_TYPE)
        bom = json.loads(built.read_blob(built.read_manifest(entry.digest).layers[0]))
        binaries.add(bom["metadata"]["component"]["hashes"][0]["content"])
    assert len(binaries) == 2


@pytest.mark.parametrize("cut", [False, True], ids=["built", "split"])
def test_every_node_gets_its_own(built: Layout, tmp_path: Path, cut: bool) -> None:
    layout, ref = built, REF
    if cut:
        layout, ref = Layout(tmp_path / "cut"), Reference.parse("fn:cut")
        split(built, built.resolve(REF), ref, layout, recipe=compression_by_name("gzip"))
    top = layout.resolve(ref).digest
    publish(layout, ref, FolderTarget(tmp_path / "pushed", Disk()), Silent())
    with FakeRegistry(referrers_api=True).serving() as fake, start(tmp_path / "pushed") as server:
        registry = Registry(Transport(fake.host, plain_http=True))
        publish(layout, ref, RegistryTarget(registry), Silent())
        for platform in PLATFORMS:
            for name, opened in (
                ("served", Remote(server.url)),
                ("registry", RegistryUpstream(registry)),
            ):
                root = tmp_path / f"{name}-{platform.architecture}"
                with Store(tmp_path / f"store-{root.name}", Disk()) as store, opened as remote:
                    found = pull(ref, remote, store, rootfs=root, platform=platform)
                assert found.digest == top
                assert machine_of(root) == MACHINES[platform.architecture]
        missing = oci.Platform("linux", "s390x")
        with (
            Store(tmp_path / "none", Disk()) as store,
            Remote(server.url) as remote,
            pytest.raises(NotFoundError, match="s390x"),
        ):
            pull(ref, remote, store, platform=missing)


def test_one_spelling_of_a_platform() -> None:
    entry = {"architecture": "arm64", "os": "linux", "variant": "v8"}
    item = {"mediaType": oci.MANIFEST, "digest": f"sha256:{'0' * 64}", "size": 1, "platform": entry}
    raw = json.dumps({"schemaVersion": 2, "manifests": [item]}).encode()
    assert oci.parse_index(raw).manifests[0].platform == PLATFORMS[1]
    assert oci.parse_platform("linux/arm64/v8") == oci.parse_platform("linux/aarch64")
    assert oci.parse_platform("linux/arm/v7").variant == "v7"
