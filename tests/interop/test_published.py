"""A real function for two platforms, edited and pushed twice into real registries: others read it,
nodes pull it without a server of ours, and it lives through the registry's garbage collection."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import layerkit
from registry_servers import COLLECTS, KINDS, RealRegistry, find_tool

from layerkit.edges.http import start_server
from layerkit.edges.layout import Layout
from layerkit.edges.registry.client import Registry
from layerkit.edges.registry.referrers import list_referrers
from layerkit.edges.registry.transport import Transport
from layerkit.edges.storage import open_storage
from layerkit.formats import oci
from layerkit.formats.reference import Reference
from layerkit.formats.statement import PROVENANCE_TYPE, SBOM_TYPE
from layerkit.jobs.serve import SourceOptions, StorageSource, make_app

HELLO = Path(__file__).parent.parent.parent / "examples" / "hello"
PLATFORMS = "linux/amd64,linux/arm64"
pytestmark = [pytest.mark.slow, pytest.mark.go, pytest.mark.xdist_group("published")]


def run(*argv: str | Path, status: int = 0, **environment: str) -> str:
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=180, env={**os.environ, **environment}
    )
    assert done.returncode == status, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Built:
    """Two layouts with `hello:v1`: the first build, and that of an edit of one string."""

    old: Path
    new: Path

    def top(self, path: Path) -> oci.Descriptor:
        return Layout(path).resolve(Reference.parse("hello:v1"))


def build_twice(folder: Path, platforms: str) -> Built:
    shutil.copytree(HELLO, folder / "hello")
    argv = ("build", folder / "hello", "-t", "hello:v1", "--platform", platforms, "-o")
    layerkit(*argv, folder / "old")
    main = folder / "hello" / "main.go"
    edited = main.read_text().replace("hello from", "hello again from")
    main.write_text(edited)
    shutil.copytree(folder / "old", folder / "new")
    layerkit(*argv, folder / "new")
    return Built(folder / "old", folder / "new")


@pytest.fixture(scope="session")
def built(go_toolchain: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_twice(tmp_path_factory.mktemp("published"), PLATFORMS)


@pytest.fixture(scope="session")
def built_alone(go_toolchain: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """For one platform only: no index."""
    return build_twice(tmp_path_factory.mktemp("alone"), "linux/amd64")


class Published(RealRegistry):
    """A registry with `hello:v1` in it."""

    def collect(self, *options: str) -> None:
        run(self.tool, "garbage-collect", *options, self.folder / "config.yml")

    def push(self, layout: Path) -> None:
        layerkit("push", "hello:v1", "--from", layout, "--to", f"http://{self.host}")

    def pull(self, store: Path, *options: str | Path) -> dict[str, Any]:
        said = layerkit("pull", f"{self.host}/hello:v1", "--store", store, "--json", *options)
        found: dict[str, Any] = json.loads(said)
        return found


@pytest.fixture(params=KINDS)
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Published]:
    made = Published(request.param, tmp_path / "registry")
    with made.serving():
        yield made


def test_others_read_all_of_it(registry: Published, built: Built, tmp_path: Path) -> None:
    registry.push(built.old)
    registry.push(built.new)
    top, name = built.top(built.new), f"{registry.host}/hello:v1"
    crane = find_tool("crane")
    listed = json.loads(run(crane, "manifest", name))
    assert [entry["platform"]["architecture"] for entry in listed["manifests"]] == [
        "amd64",
        "arm64",
    ]
    run(crane, "validate", "--remote", name)
    for architecture in ("amd64", "arm64"):
        run(crane, "pull", "--platform", f"linux/{architecture}", name, tmp_path / architecture)
    argv = [find_tool("skopeo"), "copy", "--all", "--src-tls-verify=false", "--insecure-policy"]
    run(*argv, f"docker://{name}", f"oci:{tmp_path / 'copy'}:v1")
    assert top.digest in [e.digest for e in Layout(tmp_path / "copy").read_index().manifests]
    oras = [find_tool("oras"), "discover", "--plain-http", "--format", "json"]
    below = f"{registry.host}/hello@{listed['manifests'][0]['digest']}"
    wanted = (oci.CHUNKS_ARTIFACT, SBOM_TYPE, PROVENANCE_TYPE)
    if not registry.tells_types:
        assert len(json.loads(run(*oras, below))["referrers"]) >= len(wanted)
        return
    assert oci.UPDATE_ARTIFACT in run(*oras, name)
    said = run(*oras, below)
    for kind in wanted:
        assert kind in said


@pytest.fixture
def containerd(tmp_path: Path) -> Iterator[list[str]]:
    """`ctr` with a containerd of its own; nothing is mounted by fetching content."""
    ctr, daemon = find_tool("ctr"), find_tool("containerd")
    if os.geteuid() != 0:
        pytest.skip("containerd needs root")
    folder = tmp_path / "containerd"
    folder.mkdir()
    socket = folder / "sock"
    argv = [daemon, "--root", folder / "root", "--state", folder / "state", "-a", socket]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        for _ in range(200):
            if subprocess.run([ctr, "-a", socket, "version"], capture_output=True).returncode == 0:
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        else:
            pytest.skip(f"containerd does not start here: {(folder / 'log').read_text()[-500:]}")
        yield [ctr, "-a", str(socket)]
    finally:
        process.terminate()
        process.wait(20)


def test_containerd_fetches_it(registry: Published, built: Built, containerd: list[str]) -> None:
    registry.push(built.new)
    name = f"{registry.host}/hello:v1"
    run(*containerd, "content", "fetch", "--plain-http", "--all-platforms", name)
    held = run(*containerd, "content", "ls", "-q").split()
    layout = Layout(built.new)
    for entry in oci.parse_index(layout.read_blob(built.top(built.new))).manifests:
        manifest = layout.read_manifest(entry.digest)
        assert {str(entry.digest), str(manifest.config.digest)} <= set(held)
        assert {str(layer.digest) for layer in manifest.layers} <= set(held)


def test_a_node_goes_from_version_to_version(
    registry: Published, built: Built, tmp_path: Path
) -> None:
    registry.push(built.old)
    first = registry.pull(tmp_path / "store")
    registry.push(built.new)
    second = registry.pull(tmp_path / "store", "--rootfs", tmp_path / "root")
    assert second["moved_size"] < 0.05 * first["moved_size"]
    registry.pull(tmp_path / "other", "--rootfs", tmp_path / "fresh")
    run("diff", "-r", tmp_path / "root", tmp_path / "fresh")


def lost_referrers(made: Published) -> set[str]:
    """Artifact types of those that are listed, but whose manifest is not there."""
    registry = Registry(Transport(made.host, plain_http=True))
    top = registry.resolve("hello", "v1")
    assert top is not None
    listed = list_referrers(registry, "hello", top.digest)
    assert len(listed) >= 4
    return {
        entry.artifact_type
        for entry in listed
        if registry.resolve("hello", str(entry.digest)) is None
    }


@pytest.mark.parametrize("option", [[], ["--delete-untagged"]], ids=["plain", "delete-untagged"])
@pytest.mark.parametrize("kind", COLLECTS)
def test_a_garbage_collection(
    kind: str, option: list[str], built_alone: Built, tmp_path: Path
) -> None:
    """The image stays. docker-registry 2.8 removes untagged manifests also where the index of a
    tag names them: our referrers (and the platforms of anybody's image). Then nodes pull plainly,
    and another push brings back what the layout has: all but what push itself had made.
    distribution v3 keeps what a tagged index names."""
    made, loses = Published(kind, tmp_path / "registry"), kind == "docker-registry" and option
    top = built_alone.top(built_alone.new)
    with made.serving():
        made.push(built_alone.old)
        first = made.pull(tmp_path / "store")
        made.push(built_alone.new)
    made.collect(*option)
    with made.serving():
        run(find_tool("crane"), "validate", "--remote", f"{made.host}/hello:v1")
        fresh = made.pull(tmp_path / "fresh", "--rootfs", tmp_path / "root")
        assert fresh["digest"] == str(top.digest)
        next_one = made.pull(tmp_path / "store", "--rootfs", tmp_path / "same")
        run("diff", "-r", tmp_path / "root", tmp_path / "same")
        assert next_one["moved_size"] < (1.1 if loses else 0.05) * first["moved_size"]
        assert (SBOM_TYPE in lost_referrers(made)) is bool(loses)
        made.push(built_alone.new)
        made_by_push = {oci.UPDATE_ARTIFACT, oci.WAS_ARTIFACT, oci.PACKS_ARTIFACT}
        assert lost_referrers(made) <= (made_by_push if loses else set())
        storage = open_storage(f"http://{made.host}", repositories=("hello",), cache=tmp_path / "c")
        with start_server(make_app(StorageSource(storage, SourceOptions()))) as server:
            layerkit("pull", "hello:v1", "--server", server.url, "--store", tmp_path / "served")
