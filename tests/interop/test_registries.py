"""What we push, in real registries and a real S3 store, read by others and by our own server."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import hello_files, noise, publish_image
from registry_servers import (
    KINDS,
    certify,
    empty_registry,
    find_tool,
    free_port,
    running,
    write_config,
)

from layerkit.edges.disk import Disk
from layerkit.edges.http import start_server
from layerkit.edges.layout import Layout
from layerkit.edges.remote import Remote
from layerkit.edges.storage import open_storage
from layerkit.edges.store import Store
from layerkit.formats import oci
from layerkit.formats.reference import Reference
from layerkit.jobs.pull import PullResult, pull
from layerkit.jobs.serve import SourceOptions, StorageSource, make_app

HASHED = "$2b$04$2W.apcCUu1qLCtw5WT6fJ.sc95d3HLhhXYS2zuol6xhRg4lgRYGY2"  # bcrypt of "secret"
pytestmark = pytest.mark.slow  # each starts a server and several processes of ours


@pytest.fixture(params=KINDS)
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with empty_registry(request.param, tmp_path / "registry") as host:
        yield host


def run(*argv: str, **environment: str) -> str:
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def push(layout: Path, *argv: str, **environment: str) -> str:
    return run(
        sys.executable, "-m", "layerkit", "push", "--from", str(layout), *argv, **environment
    ).strip()


def publish(layout: Path, ref: str, seed: int = 1, text: bytes = b"one") -> oci.Descriptor:
    binary = noise(40_000, seed) + text + noise(40_000, seed + 1)
    return publish_image(layout, ref, hello_files(binary))


def test_others_read_what_we_push(registry: str, tmp_path: Path) -> None:
    top = publish(tmp_path / "layout", "fn:v1")
    said = push(tmp_path / "layout", "fn:v1", "--to", f"http://{registry}")
    assert said == f"fn@{top.digest}"
    host = f"{registry}/fn"
    assert run(find_tool("crane"), "digest", f"{host}:v1").strip() == str(top.digest)
    run(find_tool("crane"), "validate", "--remote", f"{host}:v1")
    target = tmp_path / "copy"
    argv = [find_tool("skopeo"), "copy", "--src-tls-verify=false", "--insecure-policy"]
    run(*argv, f"docker://{host}:v1", f"oci:{target}:v1")
    assert top.digest in [entry.digest for entry in Layout(target).read_index().manifests]
    found = run(find_tool("oras"), "discover", "--plain-http", "--format", "json", f"{host}:v1")
    listed = json.loads(found)["referrers"]
    told = {entry["artifactType"] for entry in listed}
    assert len(listed) >= 1
    assert oci.CHUNKS_ARTIFACT in told or told == {oci.EMPTY}  # go-containerregistry's own mistake


def test_a_push_again_sends_nothing(registry: str, tmp_path: Path) -> None:
    publish(tmp_path / "layout", "fn:v1")
    argv = ("fn:v1", "--to", f"http://{registry}", "--json")
    first = json.loads(push(tmp_path / "layout", *argv))
    again = json.loads(push(tmp_path / "layout", *argv))
    assert first["sent_count"] > 0 and first["referrer_count"] == 1
    assert again["sent_count"] == again["mounted_count"] == 0
    assert again["digest"] == first["digest"]


def update_through(storage_url: str, layout: Path, tmp_path: Path, **environment: str) -> None:
    """push v1, pull; push the next under the same tag, pull: by an update, smaller than a tenth."""
    publish(layout, "fn:v1")
    push(layout, "fn:v1", "--to", storage_url, **environment)

    def pull_now(number: int) -> PullResult:
        """By a server that starts now: it knows only what the storage tells."""
        storage = open_storage(
            storage_url,
            repositories=("fn",),
            cache=tmp_path / f"cache{number}",
            made=str(tmp_path / f"made{number}"),
        )
        source = StorageSource(storage, SourceOptions(budget_seconds=0))
        with start_server(make_app(source)) as server, Store(tmp_path / "store", Disk()) as store:
            return pull(Reference.parse("fn:v1"), Remote(server.url), store, disk=Disk())

    first = pull_now(1)
    new = publish(layout, "fn:v1", text=b"two")
    push(layout, "fn:v1", "--to", storage_url, **environment)
    second = pull_now(2)
    assert second.digest == new.digest
    assert second.moved_size < first.moved_size / 10


def test_an_update_through_a_registry(registry: str, tmp_path: Path) -> None:
    update_through(f"http://{registry}", tmp_path / "layout", tmp_path)


def test_what_a_tag_named_before_is_found_by_a_new_server(registry: str, tmp_path: Path) -> None:
    layout, url = tmp_path / "layout", f"http://{registry}"
    tops = []
    for text in (b"one", b"two", b"three"):
        tops.append(publish(layout, "fn:v1", text=text).digest)
        push(layout, "fn:v1", "--to", url)
    storage = open_storage(url, repositories=("fn",), cache=tmp_path / "cache")
    entries = oci.parse_index(storage.read_index()).manifests
    was = [e.digest for e in entries if e.annotations.get(oci.ANNOTATION_WAS) == "fn:v1"]
    assert was == tops[:2]


def test_the_image_lives_through_a_garbage_collection(tmp_path: Path) -> None:
    tool = find_tool("docker-registry")
    port, folder = free_port(), tmp_path / "registry"
    folder.mkdir()
    config = write_config(folder, port)
    layout, url = tmp_path / "layout", f"http://127.0.0.1:{port}"
    with running([tool, "serve", str(config)], port, folder):
        old = publish(layout, "fn:v1")
        push(layout, "fn:v1", "--to", url)
        top = publish(layout, "fn:v1", text=b"two")
        push(layout, "fn:v1", "--to", url)
    run(tool, "garbage-collect", str(config))
    with running([tool, "serve", str(config)], port, folder):
        run(find_tool("crane"), "validate", "--remote", f"127.0.0.1:{port}/fn:v1")
        storage = open_storage(url, repositories=("fn",), cache=tmp_path / "cache")
        entries = oci.parse_index(storage.read_index()).manifests
        assert {old.digest, top.digest} <= {entry.digest for entry in entries}
        for entry in entries:
            storage.read_blob("fn", entry.digest, oci.MAX_DOCUMENT_SIZE)


def test_tls_and_a_login(tmp_path: Path) -> None:
    tool, port, folder = find_tool("docker-registry"), free_port(), tmp_path / "registry"
    folder.mkdir()
    (folder / "htpasswd").write_text(f"me:{HASHED}\n")
    auth = f"auth: {{htpasswd: {{realm: here, path: {folder}/htpasswd}}}}"
    certificate, key = certify(tmp_path)
    keys = f", tls: {{certificate: {certificate}, key: {key}}}"
    publish(tmp_path / "layout", "fn:v1")
    argv = ("fn:v1", "--to", f"https://127.0.0.1:{port}", "--ca", str(certificate))
    with running([tool, "serve", str(write_config(folder, port, keys, auth))], port, folder):
        with pytest.raises(AssertionError, match=r"UNAUTHORIZED|DENIED"):
            push(tmp_path / "layout", *argv, DOCKER_CONFIG=str(tmp_path))
        login = base64.b64encode(b"me:secret").decode()
        logins = {"auths": {f"127.0.0.1:{port}": {"auth": login}}}
        (tmp_path / "config.json").write_text(json.dumps(logins))
        assert push(tmp_path / "layout", *argv, DOCKER_CONFIG=str(tmp_path)).startswith("fn@")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a real S3 server, versitygw over a folder."""
    pytest.importorskip("boto3", reason="boto3 is not installed: pip install layerkit[s3]")
    tool, port = find_tool("versitygw"), free_port()
    (tmp_path / "s3" / "images").mkdir(parents=True)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "tester")
    argv = [tool, "--access", "tester", "--secret", "tester", "--port", f"127.0.0.1:{port}"]
    with running([*argv, "posix", str(tmp_path / "s3")], port, tmp_path):
        where = f"endpoint=http://127.0.0.1:{port}&region=us-east-1&style=path"
        yield f"s3://images/team?{where}"


def test_an_update_through_a_bucket(bucket: str, tmp_path: Path) -> None:
    update_through(bucket, tmp_path / "layout", tmp_path)
