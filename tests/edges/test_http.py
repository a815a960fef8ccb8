"""edges/http and jobs/serve over a real socket: the pull part of the OCI spec, chunks, limits."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from builders import hello_files, noise, publish_image

from layerkit.digest import Digest, chunk_id, sha256_digest
from layerkit.edges.http import RunningServer
from layerkit.errors import NotFoundError, UsageError
from layerkit.formats import oci
from layerkit.formats.chunkmanifest import parse_chunk_manifest
from layerkit.formats.protocol import MAX_REQUEST_SIZE, parse_chunk_batch
from layerkit.jobs.serve import open_layout, parse_listen, start

HTTP = urllib3.PoolManager(retries=False)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "layout"
    publish_image(path, "team/hello:v1", hello_files(noise(30_000)))
    publish_image(path, "secret:v1", {"code": {"app/secret": noise(9000, 9)}})
    return path


@pytest.fixture(scope="module")
def server(layout: Path) -> Iterator[RunningServer]:
    with start(layout) as running:
        yield running


def get(
    server: RunningServer, path: str, method: str = "GET", **kwargs: object
) -> urllib3.BaseHTTPResponse:
    return HTTP.request(method, server.url + path, **kwargs)  # type: ignore[arg-type]


def manifest_of(server: RunningServer, name: str = "team/hello") -> oci.Manifest:
    return oci.parse_manifest(get(server, f"/v2/{name}/manifests/v1").data)


def artifact_of(server: RunningServer, name: str = "team/hello") -> oci.Manifest:
    digest = get(server, f"/v2/{name}/manifests/v1").headers["docker-content-digest"]
    found = oci.parse_index(get(server, f"/v2/{name}/referrers/{digest}").data).manifests
    return oci.parse_manifest(get(server, f"/v2/{name}/manifests/{found[0].digest}").data)


def chunks_of(server: RunningServer, name: str = "team/hello") -> list[tuple[Digest, int]]:
    found = []
    for blob in artifact_of(server, name).layers:
        if blob.media_type == oci.CHUNK_MANIFEST:
            raw = get(server, f"/v2/{name}/blobs/{blob.digest}").data
            found += [(chunk.id, chunk.size) for chunk in parse_chunk_manifest(raw).chunks]
    return found


def test_ping_and_health(server: RunningServer) -> None:
    assert [get(server, path).status for path in ("/v2/", "/healthz")] == [200, 200]


def test_a_manifest_by_tag_and_by_digest_is_the_same(server: RunningServer) -> None:
    by_tag = get(server, "/v2/team/hello/manifests/v1")
    digest = by_tag.headers["docker-content-digest"]
    by_digest = get(server, f"/v2/team/hello/manifests/{digest}")
    assert by_tag.data == by_digest.data and str(sha256_digest(by_tag.data)) == digest
    assert by_tag.headers["content-type"] == oci.MANIFEST


def test_head_has_the_facts_and_no_body(server: RunningServer) -> None:
    answer = get(server, "/v2/team/hello/manifests/v1", "HEAD")
    assert answer.data == b"" and int(answer.headers["content-length"]) > 100
    blob = manifest_of(server).layers[0]
    answer = get(server, f"/v2/team/hello/blobs/{blob.digest}", "HEAD")
    assert (answer.status, answer.data) == (200, b"")
    assert int(answer.headers["content-length"]) == blob.size


def test_a_known_manifest_is_not_sent_again(server: RunningServer) -> None:
    etag = get(server, "/v2/team/hello/manifests/v1").headers["etag"]
    answer = get(server, "/v2/team/hello/manifests/v1", headers={"if-none-match": etag})
    assert (answer.status, answer.data) == (304, b"")


def test_a_blob_is_whole_immutable_and_named(server: RunningServer) -> None:
    blob = manifest_of(server).layers[1]
    answer = get(server, f"/v2/team/hello/blobs/{blob.digest}")
    assert sha256_digest(answer.data) == blob.digest
    assert answer.headers["docker-content-digest"] == str(blob.digest)
    assert "immutable" in answer.headers["cache-control"]


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=100-", 206, slice(100, None)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=99999999-", 416, None),
        ("lines=1-2", 200, slice(None)),
    ],
)
def test_ranges_of_a_blob(
    server: RunningServer, wanted: str, status: int, part: slice | None
) -> None:
    blob = manifest_of(server).layers[1]
    whole = get(server, f"/v2/team/hello/blobs/{blob.digest}").data
    answer = get(server, f"/v2/team/hello/blobs/{blob.digest}", headers={"range": wanted})
    assert answer.status == status
    assert part is None or answer.data == whole[part]


def test_tags_are_listed_in_pages(server: RunningServer) -> None:
    assert json.loads(get(server, "/v2/team/hello/tags/list").data) == {
        "name": "team/hello",
        "tags": ["v1"],
    }
    assert json.loads(get(server, "/v2/team/hello/tags/list?last=v1").data)["tags"] == []


def test_referrers_can_be_filtered(server: RunningServer) -> None:
    digest = get(server, "/v2/team/hello/manifests/v1").headers["docker-content-digest"]
    path = f"/v2/team/hello/referrers/{digest}?artifactType="
    counts = [
        len(oci.parse_index(get(server, path + kind).data).manifests)
        for kind in (oci.CHUNKS_ARTIFACT, "application/other")
    ]
    assert counts == [1, 0]


def test_one_chunk(server: RunningServer) -> None:
    chunk, size = chunks_of(server)[0]
    answer = get(server, f"/v1/team/hello/chunks/{chunk}")
    assert chunk_id(answer.data) == chunk and len(answer.data) == size


def test_many_chunks_come_in_order_with_a_mark_for_the_missing(server: RunningServer) -> None:
    wanted = chunks_of(server)[:5]
    ids = [wanted[3][0], chunk_id(b"absent"), wanted[1][0]]
    body = b"".join(chunk.raw for chunk in ids)
    raw = get(server, "/v1/team/hello/chunks", "POST", body=body).data
    found = list(parse_chunk_batch([raw], [wanted[3][1], 0, wanted[1][1]]))
    assert [None if data is None else chunk_id(data) for data in found] == [ids[0], None, ids[2]]


def test_a_chunk_goes_out_only_through_a_repository_that_holds_it(server: RunningServer) -> None:
    secret, size = chunks_of(server, "secret")[0]
    assert get(server, f"/v1/team/hello/chunks/{secret}").status == 404
    raw = get(server, "/v1/team/hello/chunks", "POST", body=secret.raw).data
    assert list(parse_chunk_batch([raw], [size])) == [None]
    blob = manifest_of(server, "secret").layers[0].digest
    assert get(server, f"/v2/team/hello/blobs/{blob}").status == 404


SHA = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "NOT_FOUND"),
        ("GET", "/v2/none/manifests/v1", 404, "NOT_FOUND"),
        ("GET", "/v2/team/hello/manifests/v9", 404, "NOT_FOUND"),
        ("GET", f"/v2/team/hello/manifests/{SHA}", 404, "NOT_FOUND"),
        ("GET", f"/v2/team/hello/blobs/{SHA}", 404, "NOT_FOUND"),
        ("GET", "/v2/team/hello/blobs/sha256:zz", 400, "USAGE_INVALID"),
        ("GET", "/v2/team/hello/blobs/b3:" + "0" * 64, 400, "USAGE_INVALID"),
        ("GET", "/v2/team/hello/manifests/..", 404, "NOT_FOUND"),
        ("GET", "/v2/team/hello/manifests/-x", 400, "USAGE_INVALID"),
        ("GET", "/v2/Team/manifests/v1", 400, "USAGE_INVALID"),
        ("GET", "/v2/../../etc/manifests/v1", 404, "NOT_FOUND"),
        ("GET", "/v2/%2e%2e/etc/manifests/v1", 400, "USAGE_INVALID"),
        ("PUT", "/v2/team/hello/manifests/v1", 405, "UNSUPPORTED"),
        ("GET", "/v1/team/hello/chunks/b3:zz", 400, "USAGE_INVALID"),
        ("GET", "/v1/none/chunks/b3:" + "0" * 64, 404, "NOT_FOUND"),
        ("GET", "/v2/team/hello/tags/list?n=x", 400, "USAGE_INVALID"),
    ],
)
def test_errors_are_documents(
    server: RunningServer, method: str, path: str, status: int, code: str
) -> None:
    answer = get(server, path, method)
    assert answer.status == status
    assert json.loads(answer.data)["errors"][0]["code"] == code


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"x" * 33, 400), (bytes(MAX_REQUEST_SIZE + 32), 413)],
)
def test_a_bad_body_is_refused(server: RunningServer, body: bytes, status: int) -> None:
    try:
        answer = get(server, "/v1/team/hello/chunks", "POST", body=body)
    except urllib3.exceptions.ProtocolError:  # refused while we still sent
        assert status == 413
    else:
        assert answer.status == status


def test_a_body_without_a_length_is_bounded_too(server: RunningServer) -> None:
    parts = (bytes(1 << 20) for _ in range(4))
    try:
        answer = get(server, "/v1/team/hello/chunks", "POST", body=parts)
    except urllib3.exceptions.HTTPError:
        return
    assert answer.status == 413


def test_an_endless_head_is_cut(server: RunningServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(OSError):
            for _ in range(1000):
                sock.sendall(b"x: " + b"y" * 4000 + b"\r\n")
            if not sock.recv(1):
                raise OSError


def test_a_new_version_is_served_without_a_restart(tmp_path: Path) -> None:
    publish_image(tmp_path / "layout", "a:v1", {"code": {"f": noise(2000)}})
    with start(tmp_path / "layout") as running:
        assert get(running, "/v2/a/manifests/v2").status == 404
        publish_image(tmp_path / "layout", "a:v2", {"code": {"f": noise(2000, 2)}})
        assert get(running, "/v2/a/manifests/v2").status == 200


def test_a_folder_that_is_no_layout_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        open_layout(tmp_path)


def test_a_damaged_layout_is_the_servers_fault(tmp_path: Path) -> None:
    top = publish_image(tmp_path / "layout", "a:v1", {"code": {"f": noise(2000)}})
    with start(tmp_path / "layout") as running:
        (tmp_path / "layout/blobs/sha256" / top.digest.hex).write_bytes(b"{}")
        answer = get(running, "/v2/a/manifests/v1")
    assert answer.status == 500 and b"STORE_FAILED" in answer.data


def test_a_taken_port_is_a_usage_error(server: RunningServer, layout: Path) -> None:
    with pytest.raises(UsageError):
        start(layout, port=int(server.url.rpartition(":")[2]))


@pytest.mark.parametrize(
    ("text", "want"),
    [("1.2.3.4:80", ("1.2.3.4", 80)), (":0", ("127.0.0.1", 0)), ("[::1]:7", ("::1", 7))],
)
def test_listen_addresses(text: str, want: tuple[str, int]) -> None:
    assert parse_listen(text) == want


@pytest.mark.parametrize("text", ["", "host", "host:x", "host:70000"])
def test_bad_listen_addresses(text: str) -> None:
    with pytest.raises(UsageError):
        parse_listen(text)
