"""Who may see what: tokens, scopes, what is hidden, the token file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from memory_source import MemorySource
from serving import Served, get, serving

from layerkit.digest import chunk_id, sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.http import Limits, ServerOptions, TlsFiles
from layerkit.edges.tokens import TokenFile, add_token, read_token_file, remove_token
from layerkit.errors import NotFoundError, StoreError, UsageError

NOTHING = sha256_digest(b"nothing")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


@pytest.fixture
def team(tokens: Path) -> str:
    return add_token(tokens, "team", ["team/*"], [], day="2026-11-25", disk=Disk())


@pytest.fixture
def source() -> MemorySource:
    source = MemorySource()
    old = source.tag("team/a", "v1", b'{"v":1}')
    source.tag("team/a", "v2", b'{"v":2}')
    source.update("team/a", "v2", old, b"update")
    source.tag("secret", "v1", b'{"secret":1}')
    source.blob("secret", b"blob")
    source.chunk("secret", b"chunk")
    return source


@pytest.fixture
def served(source: MemorySource, tokens: Path, team: str) -> Iterator[Served]:
    with serving(source, tokens) as found:
        yield found


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    "path", ["/v2/", "/v2/team/a/tags/list", "/v2/none/tags/list", "/metrics", "/", "/nothing"]
)
def test_without_a_token_nothing_is_told(served: Served, path: str) -> None:
    answer = get(served, path)
    assert (answer.status, json.loads(answer.data)["errors"][0]["code"]) == (401, "UNAUTHORIZED")
    assert answer.headers["www-authenticate"].startswith('Basic realm="layerkit"')


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_balancer_needs_no_token(served: Served, path: str) -> None:
    assert get(served, path).status == 200


def test_bearer_and_basic_let_in(served: Served, team: str) -> None:
    basic = urllib3.make_headers(basic_auth=f"whoever:{team}")
    found = [
        get(served, "/v2/team/a/tags/list", headers=headers).status
        for headers in (bearer(team), basic)
    ]
    assert found == [200, 200]


@pytest.mark.parametrize(
    "value",
    [
        "Bearer",
        "Bearer x",
        "Basic x",
        "Basic !!!",
        "Basic eA==",
        "Digest a=b",
        "Bearer " + "x" * 9000,
    ],
)
def test_bad_credentials_are_refused(served: Served, value: str) -> None:
    assert get(served, "/v2/", headers={"authorization": value}).status == 401


def test_who_guesses_is_slowed_down(source: MemorySource, tokens: Path, team: str) -> None:
    with serving(source, tokens, Limits(request_rate=1, burst_seconds=3)) as served:
        guesses = [get(served, "/v2/", headers=bearer(str(at))).status for at in range(5)]
        assert guesses == [401, 401, 401, 429, 429]
        assert get(served, "/v2/", headers=bearer(team)).status == 200


SECRET_PATHS = [
    ("GET", "/v2/{}/tags/list"),
    ("GET", "/v2/{}/manifests/v1"),
    ("HEAD", "/v2/{}/manifests/v1"),
    ("GET", f"/v2/{{}}/blobs/{sha256_digest(b'blob')}"),
    ("GET", f"/v2/{{}}/referrers/{NOTHING}"),
    ("GET", f"/v1/{{}}/chunks/{chunk_id(b'chunk')}"),
    ("POST", "/v1/{}/chunks"),
    ("GET", f"/v1/{{}}/packed-forms/{sha256_digest(b'blob')}"),
    ("POST", f"/v1/{{}}/chunk-manifests/{NOTHING}/chunks"),
    ("GET", "/v1/{}/updates/v1?from="),
    ("GET", f"/v1/{{}}/updates/v1?from={NOTHING}"),
    ("GET", f"/v1/{{}}/updates/v1?from={NOTHING}&wait=1"),
]


@pytest.mark.parametrize(("method", "path"), SECRET_PATHS)
def test_what_is_hidden_looks_as_what_is_not_there(
    served: Served, team: str, method: str, path: str
) -> None:
    body = chunk_id(b"chunk").raw if method == "POST" else None
    hidden, absent = (
        get(served, path.format(name), method, headers=bearer(team), body=body)
        for name in ("secret", "absent")
    )
    assert (hidden.status, hidden.data.replace(b"secret", b"absent")) == (404, absent.data)
    plain = [
        {key: value for key, value in answer.headers.items() if key != "date"}
        for answer in (hidden, absent)
    ]
    assert plain[0] == plain[1]


def test_a_hidden_repository_is_not_asked_for_anything(
    served: Served, source: MemorySource, team: str
) -> None:
    get(served, f"/v1/secret/updates/v1?from={NOTHING}&wait=1", headers=bearer(team))
    assert "read_update" not in source.calls


def test_the_source_learns_who_asks(served: Served, source: MemorySource, team: str) -> None:
    old = sha256_digest(b'{"v":1}')
    assert get(served, f"/v1/team/a/updates/v2?from={old}", headers=bearer(team)).status == 200
    assert [(caller.id, caller.pull) for caller in source.callers] == [("team", ("team/*",))]


def test_what_is_scoped_is_private(served: Served, team: str) -> None:
    digest = sha256_digest(b'{"v":1}')
    headers = get(served, f"/v2/team/a/manifests/{digest}", headers=bearer(team)).headers
    assert headers["cache-control"] == "private, max-age=31536000, immutable"
    assert headers["vary"] == "authorization"


def test_what_is_open_is_public(source: MemorySource) -> None:
    digest = sha256_digest(b'{"v":1}')
    with serving(source) as served:
        headers = get(served, f"/v2/team/a/manifests/{digest}").headers
    assert headers["cache-control"] == "public, max-age=31536000, immutable"
    assert "vary" not in headers


def test_a_token_that_was_taken_back_is_refused_at_once(
    served: Served, tokens: Path, team: str
) -> None:
    """Also where the answer was kept by the bytes of the request."""
    path = "/v2/team/a/manifests/v1"
    before = [get(served, path, headers=bearer(team)).status for _ in range(3)]
    remove_token(tokens, "team", Disk())
    assert (before, get(served, path, headers=bearer(team)).status) == ([200] * 3, 401)


def test_a_new_token_is_let_in_at_once(served: Served, tokens: Path) -> None:
    token = add_token(tokens, "all", ["*"], [], day="2026-11-25", disk=Disk())
    assert get(served, "/v2/secret/tags/list", headers=bearer(token)).status == 200


def test_a_token_file_that_opens_up_lets_nobody_in(served: Served, tokens: Path, team: str) -> None:
    tokens.chmod(0o644)
    opened = get(served, "/v2/", headers=bearer(team)).status
    tokens.chmod(0o600)
    assert (opened, get(served, "/v2/", headers=bearer(team)).status) == (401, 200)


def test_the_page_shows_what_the_caller_may_see(served: Served, tokens: Path, team: str) -> None:
    everything = add_token(tokens, "all", ["*"], [], day="2026-11-25", disk=Disk())
    own, whole = (get(served, "/", headers=bearer(token)).data for token in (team, everything))
    assert b"team/a" in own and b"secret" not in own and b"already had" not in own
    assert b"secret" in whole and b"already had" in whole


# --- the file ------------------------------------------------------------------------------------


def test_only_a_hash_of_the_token_is_stored(tokens: Path, team: str) -> None:
    assert team not in tokens.read_text() and team.removeprefix("lkt_") not in tokens.read_text()
    assert tokens.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_can_read_is_refused(tokens: Path, team: str, mode: int) -> None:
    tokens.chmod(mode)
    with pytest.raises(StoreError, match="can be read by others"):
        read_token_file(tokens)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff", b'{"kind":"layerkit-tokens"}'])
def test_a_damaged_file_is_refused(tokens: Path, raw: bytes) -> None:
    tokens.touch(0o600)
    tokens.write_bytes(raw)
    with pytest.raises(StoreError, match="damaged"):
        TokenFile(tokens)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_token_file(tmp_path / "absent")
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(StoreError, match="is not a file"):
        read_token_file(tmp_path / "fifo")


def test_names_of_tokens_are_unique(tokens: Path, team: str) -> None:
    with pytest.raises(UsageError, match="exists"):
        add_token(tokens, "team", ["*"], [], day="2026-11-25", disk=Disk())


@pytest.mark.parametrize(("name", "pattern"), [("a b", "*"), ("", "*"), ("a", ""), ("a", "A*")])
def test_bad_names_and_patterns_are_refused(tokens: Path, name: str, pattern: str) -> None:
    with pytest.raises(UsageError):
        add_token(tokens, name, [pattern], [], day="2026-11-25", disk=Disk())


# --- where it listens ----------------------------------------------------------------------------


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "example.com:1"])
def test_others_are_not_served_unasked(listen: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tokens are asked for"):
        ServerOptions(listen)
    with pytest.raises(UsageError):
        ServerOptions(listen, tls=TlsFiles(tmp_path, tmp_path))
    ServerOptions(listen, token_file=tmp_path)
    ServerOptions(listen, open_to_all=True)
    ServerOptions(listen, tls=TlsFiles(tmp_path, tmp_path, tmp_path))


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1", ":1"])
def test_loopback_needs_no_tokens(listen: str) -> None:
    ServerOptions(listen)
