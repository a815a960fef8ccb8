"""`layerkit pull REF` from real registries, with nothing of ours in between."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import hello_files, noise, publish_image
from commands import layerkit
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
from layerkit.edges.registry.upstream import open_upstream
from layerkit.edges.store import Store
from layerkit.errors import RemoteDeniedError
from layerkit.formats.reference import Reference
from layerkit.jobs.pull import pull as pull_image

HASHED = "$2b$04$2W.apcCUu1qLCtw5WT6fJ.sc95d3HLhhXYS2zuol6xhRg4lgRYGY2"  # bcrypt of "secret"
BODY = noise(80_000)
pytestmark = pytest.mark.slow  # each starts a server and several processes of ours


def push(folder: Path, ref: str, text: bytes, *argv: str | Path, **environment: str) -> str:
    top = publish_image(folder / "layout", ref, hello_files(BODY + text + BODY[::-1]))
    layerkit("push", ref, "--from", folder / "layout", *argv, **environment)
    return str(top.digest)


def pull(folder: Path, ref: str, *argv: str | Path, **environment: str) -> dict[str, Any]:
    options = ("--store", folder / "store", "--fewest-bytes", "--json", *argv)
    return dict(json.loads(layerkit("pull", ref, *options, **environment)))


@pytest.fixture(params=KINDS)
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with empty_registry(request.param, tmp_path / "registry") as host:
        yield host


def test_an_edit_is_three_requests(
    registry: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Where a registry does not tell what referrers are, one more for each of them."""
    tells_types = "go-containerregistry" not in request.node.name
    ref = f"{registry}/fn:latest"
    push(tmp_path, ref, b"one")
    first = pull(tmp_path, ref)
    assert first["moved_size"] < 1.1 * first["whole_size"]
    second = push(tmp_path, ref, b"two")
    found = pull(tmp_path, ref, "--rootfs", tmp_path / "root")
    assert found["digest"] == second
    assert found["request_count"] == 3 if tells_types else found["request_count"] <= 3 + 5
    assert found["moved_size"] < (3000 if tells_types else 9000)
    assert (tmp_path / "root/app/hello").read_bytes() == BODY + b"two" + BODY[::-1]
    assert pull(tmp_path, ref)["request_count"] == 1


def test_few_bytes_without_an_update(registry: str, tmp_path: Path) -> None:
    """Of the chunk manifest, which has 100 KB, and of the pack come only what is missing."""
    ref, body, edit = f"{registry}/fn:latest", noise(3_000_000), noise(20_000, 2)
    for text in (b"", edit):
        files = hello_files(body[:900_000] + text + body[900_000:])
        publish_image(tmp_path / "layout", ref, files)
        layerkit("push", ref, "--from", tmp_path / "layout", "--deltas", "0", "--chunk-packs")
        found = pull(tmp_path, ref, "--rootfs", tmp_path / "root")
    assert found["moved_size"] < 110_000  # of the pack 64 KB
    assert (tmp_path / "root/app/hello").read_bytes() == body[:900_000] + edit + body[900_000:]


def test_what_others_pushed_comes_plainly(registry: str, tmp_path: Path) -> None:
    source, ref = tmp_path / "layout", f"{registry}/plain:v1"
    publish_image(source, "plain:v1", hello_files(BODY), chunks=False)
    copy = [find_tool("skopeo"), "copy", "--dest-tls-verify=false", "--insecure-policy"]
    subprocess.run([*copy, f"oci:{source}:plain:v1", f"docker://{ref}"], check=True, timeout=60)
    pull(tmp_path, ref, "--rootfs", tmp_path / "root")
    assert (tmp_path / "root/app/hello").read_bytes() == BODY


def test_tls_and_a_login(tmp_path: Path) -> None:
    folder, port = tmp_path / "registry", free_port()
    folder.mkdir()
    certificate, key = certify(folder)
    (folder / "htpasswd").write_text(f"user:{HASHED}\n")
    tls = f", tls: {{certificate: {certificate}, key: {key}}}"
    auth = f"auth: {{htpasswd: {{realm: r, path: {folder / 'htpasswd'}}}}}"
    config = write_config(folder, port, tls, auth)
    (tmp_path / "docker").mkdir()
    login = {"auth": base64.b64encode(b"user:secret").decode()}
    document = {"auths": {f"127.0.0.1:{port}": login}}
    docker = tmp_path / "docker/config.json"
    docker.write_text(json.dumps(document))
    ref, url = Reference.parse(f"127.0.0.1:{port}/fn:latest"), f"https://127.0.0.1:{port}"
    with running([find_tool("docker-registry"), "serve", str(config)], port, folder):
        with Store(tmp_path / "store", Disk()) as store:
            for text in (b"one", b"two"):
                to = ("--ca", certificate)  # REF alone: it is found out that this is TLS
                digest = push(tmp_path, str(ref), text, *to, DOCKER_CONFIG=str(docker.parent))
                with open_upstream(url, store, config=docker, ca=certificate) as upstream:
                    found = pull_image(ref, upstream, store, fewest_bytes=True)
        assert str(found.digest) == digest
        assert found.request_count == 4  # the first of each connection is told to log in
        with (
            Store(tmp_path / "other", Disk()) as store,
            open_upstream(url, store, config=tmp_path / "none", ca=certificate) as upstream,
            pytest.raises(RemoteDeniedError),
        ):
            pull_image(ref, upstream, store)
