"""edges/registry: against a registry in this process, with the faults of those in the wild."""

from __future__ import annotations

import base64
import email.utils
import io
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import noise
from registries import FakeRegistry

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.registry import (
    HELD,
    MOUNTED,
    SENT,
    Registry,
    Transport,
    add_fallback,
    fallback_tag,
    is_fallback_tag,
    list_referrers,
)
from layerkit.edges.registry import referrers as referrers_module
from layerkit.errors import (
    FormatError,
    IntegrityError,
    LayerkitError,
    NotFoundError,
    RemoteDeniedError,
    RemoteError,
    RemoteLimitError,
    UsageError,
)
from layerkit.formats import oci

BLOB = noise(300_000, 5)
DIGEST = sha256_digest(BLOB)
TYPE = "application/octet-stream"
LOGIN = "user:secret"


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry().serving() as running:
        yield running


@pytest.fixture
def other() -> Iterator[FakeRegistry]:
    with FakeRegistry().serving() as running:
        yield running


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


@pytest.fixture
def registry(fake: FakeRegistry, config: Path) -> Registry:
    return connect(fake, config)


def connect(
    fake: FakeRegistry, config: Path, pauses: list[float] | None = None, **facts
) -> Registry:
    def sleep(seconds: float) -> None:
        if pauses is not None:
            pauses.append(seconds)

    transport = Transport(fake.host, plain_http=True, config=config, sleep=sleep, **facts)
    return Registry(transport)


def log_in(config: Path, fake: FakeRegistry, login: str = LOGIN) -> None:
    auth = base64.b64encode(login.encode()).decode()
    config.write_text(json.dumps({"auths": {fake.host: {"auth": auth}}}))


def hold(fake: FakeRegistry, data: bytes = BLOB, name: str = "fn") -> Digest:
    digest = sha256_digest(data)
    fake.blobs.setdefault(name, {})[str(digest)] = data
    return digest


def item(data: bytes = BLOB) -> oci.Descriptor:
    return oci.describe(data, TYPE)


def opened(data: bytes = BLOB) -> io.BytesIO:
    return io.BytesIO(data)


def put_image(
    registry: Registry, name: str = "fn", tag: str = "v1", note: str = ""
) -> oci.Descriptor:
    config = oci.EMPTY_DESCRIPTOR
    registry.put_blob(name, config, lambda: io.BytesIO(oci.EMPTY_BLOB))
    raw = oci.serialize_manifest(oci.Manifest(config, (), {"note": note} if note else {}))
    top = oci.describe(raw, oci.MANIFEST)
    registry.put_manifest(name, tag, top, raw)
    return top


# --- reading


def test_a_blob_comes_in_parts_and_is_verified(fake: FakeRegistry, registry: Registry) -> None:
    hold(fake)
    assert b"".join(registry.read_parts("fn", DIGEST, len(BLOB))) == BLOB


def test_another_blob_is_refused(fake: FakeRegistry, registry: Registry) -> None:
    fake.blobs["fn"] = {str(DIGEST): BLOB[:-1] + b"x"}
    with pytest.raises(IntegrityError):
        list(registry.read_parts("fn", DIGEST, len(BLOB)))
    with pytest.raises(IntegrityError):
        registry.read_blob("fn", DIGEST, len(BLOB))


def test_a_blob_over_its_limit_is_refused(fake: FakeRegistry, registry: Registry) -> None:
    hold(fake)
    with pytest.raises(RemoteLimitError):
        registry.read_blob("fn", DIGEST, len(BLOB) - 1)


def test_a_longer_blob_is_refused_before_its_end(fake: FakeRegistry, registry: Registry) -> None:
    fake.blobs["fn"] = {str(DIGEST): BLOB + bytes(10_000_000)}
    with pytest.raises(IntegrityError, match="longer"):
        list(registry.read_parts("fn", DIGEST, len(BLOB)))


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_blob_that_breaks_off_goes_on(
    fake: FakeRegistry, registry: Registry, knows_ranges: bool
) -> None:
    hold(fake)
    fake.knows_ranges = knows_ranges
    fake.cuts = [100_000, 150_000, 0]
    assert b"".join(registry.read_parts("fn", DIGEST, len(BLOB))) == BLOB


def test_a_blob_that_never_comes_is_given_up(fake: FakeRegistry, registry: Registry) -> None:
    hold(fake)
    fake.cuts = [1000] + [0] * 50
    with pytest.raises(RemoteError):
        list(registry.read_parts("fn", DIGEST, len(BLOB)))
    assert len(fake.paths("GET", "/blobs/")) < 12


RANGES = [(10, 5), (20, 100), (200_000, 1000), (299_990, 10)]


def test_near_ranges_come_with_one_request(fake: FakeRegistry, registry: Registry) -> None:
    hold(fake)
    found = list(registry.read_ranges("fn", DIGEST, RANGES))
    assert found == [BLOB[at : at + size] for at, size in RANGES]
    wanted = [headers["Range"] for headers in fake.headers("/blobs/")]
    assert wanted == ["bytes=10-119", "bytes=200000-200999", "bytes=299990-299999"]


def test_a_whole_answer_to_a_range_is_fetched_once(fake: FakeRegistry, registry: Registry) -> None:
    hold(fake)
    fake.knows_ranges = False
    found = list(registry.read_ranges("fn", DIGEST, RANGES))
    assert found == [BLOB[at : at + size] for at, size in RANGES]
    assert len(fake.paths("GET", "/blobs/")) == 1


@pytest.mark.parametrize("knows_ranges", [True, False])
@pytest.mark.parametrize("cuts", [[], [0, 700, 0, 50], [2_000, 90_000]])
def test_the_start_of_a_blob_is_asked_for_once(
    fake: FakeRegistry, registry: Registry, knows_ranges: bool, cuts: list[int]
) -> None:
    """All of it, where the registry sends all of it anyhow, and wherever that breaks off."""
    hold(fake)
    fake.knows_ranges, fake.cuts = knows_ranges, list(cuts)
    found = registry.read_start("fn", DIGEST, 1_000, len(BLOB))
    assert found == (BLOB[:1_000] if knows_ranges else BLOB)
    assert cuts or len(fake.paths("GET", "/blobs/")) == 1


def test_a_whole_that_is_too_long_is_refused(fake: FakeRegistry, registry: Registry) -> None:
    hold(fake)
    fake.knows_ranges = False
    with pytest.raises(RemoteLimitError):
        registry.read_start("fn", DIGEST, 1_000, 100_000)


def test_ranges_go_on_where_they_were_cut(fake: FakeRegistry, registry: Registry) -> None:
    hold(fake)
    fake.cuts = [7, 3, 50]
    found = list(registry.read_ranges("fn", DIGEST, RANGES))
    assert found == [BLOB[at : at + size] for at, size in RANGES]


def test_a_range_beyond_the_end_is_an_error(fake: FakeRegistry, registry: Registry) -> None:
    hold(fake)
    with pytest.raises(RemoteError):
        list(registry.read_ranges("fn", DIGEST, [(299_990, 20)]))


def test_what_is_absent_is_not_found(registry: Registry) -> None:
    with pytest.raises(NotFoundError):
        registry.read_blob("fn", DIGEST, 10)
    with pytest.raises(NotFoundError):
        registry.read_manifest("fn", "v1")
    with pytest.raises(NotFoundError):
        registry.list_tags("fn")
    assert registry.size_of("fn", DIGEST) is None
    assert registry.resolve("fn", "v1") is None


def test_a_redirect_is_followed(
    fake: FakeRegistry, other: FakeRegistry, registry: Registry
) -> None:
    hold(fake)
    hold(other)
    fake.redirect = other.url
    assert b"".join(registry.read_parts("fn", DIGEST, len(BLOB))) == BLOB


def test_a_circle_of_redirects_ends(fake: FakeRegistry, registry: Registry) -> None:
    hold(fake)
    fake.redirect = fake.url
    with pytest.raises(RemoteError, match="redirects"):
        registry.read_blob("fn", DIGEST, len(BLOB))


# --- names and manifests


def test_all_pages_of_a_list_are_read(fake: FakeRegistry, registry: Registry) -> None:
    fake.page_size = 2
    tags = [f"v{number}" for number in range(5)]
    for tag in tags:
        put_image(registry, tag=tag, note=tag)
    assert registry.list_tags("fn") == tags


def test_repositories_are_listed(fake: FakeRegistry, registry: Registry) -> None:
    put_image(registry, "a/b")
    put_image(registry, "c")
    assert registry.list_repositories() == ["a/b", "c"]


def test_a_manifest_by_tag_and_by_digest(registry: Registry) -> None:
    top = put_image(registry)
    by_tag, by_digest = (registry.read_manifest("fn", ref) for ref in ("v1", str(top.digest)))
    assert by_tag == by_digest == (top, by_tag[1])
    assert registry.resolve("fn", "v1") == top


def test_another_manifest_under_a_digest_is_refused(fake: FakeRegistry, registry: Registry) -> None:
    top = put_image(registry)
    fake.manifests["fn"][str(top.digest)] = (oci.MANIFEST, b"{}")
    with pytest.raises(IntegrityError):
        registry.read_manifest("fn", str(top.digest))


def test_a_manifest_that_is_html_is_a_format_error(fake: FakeRegistry, registry: Registry) -> None:
    fake.manifests["fn"] = {"v1": ("text/html", b"<html>log in, please</html>")}
    with pytest.raises(FormatError):
        registry.read_manifest("fn", "v1")


# --- writing


def test_a_blob_is_sent_once(fake: FakeRegistry, registry: Registry) -> None:
    assert [registry.put_blob("fn", item(), opened) for _ in range(2)] == [SENT, HELD]
    assert fake.blobs["fn"] == {str(DIGEST): BLOB}


def test_an_empty_blob_is_sent(fake: FakeRegistry, registry: Registry) -> None:
    assert registry.put_blob("fn", item(b""), lambda: io.BytesIO(b"")) == SENT


def test_a_blob_is_streamed(fake: FakeRegistry, registry: Registry) -> None:
    sizes = []

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            sizes.append(len(data))
            return data

    data = noise(3_000_000, 3)
    registry.put_blob("fn", item(data), lambda: Watched(data))
    (sent,) = [headers for headers in fake.headers("digest=") if "Content-Length" in headers]
    assert sent["Content-Length"] == str(len(data))
    assert max(sizes) <= 256 << 10


def test_a_blob_of_another_repository_is_mounted(fake: FakeRegistry, registry: Registry) -> None:
    hold(fake, name="base")
    assert registry.put_blob("fn", item(), opened, ["nowhere", "base"]) == MOUNTED
    assert fake.uploads == {}, "the upload that the first try opened is let go"


def test_a_blob_that_cannot_be_mounted_is_sent(fake: FakeRegistry, registry: Registry) -> None:
    assert registry.put_blob("fn", item(), opened, ["base"]) == SENT


def test_an_upload_that_breaks_off_starts_anew(fake: FakeRegistry, registry: Registry) -> None:
    fake.upload_cuts = [100_000, 0]
    assert registry.put_blob("fn", item(), opened) == SENT
    assert fake.blobs["fn"] == {str(DIGEST): BLOB}


def test_wrong_bytes_are_refused_by_the_registry(registry: Registry) -> None:
    with pytest.raises(RemoteError) as caught:
        registry.put_blob("fn", item(), lambda: io.BytesIO(bytes(len(BLOB))))
    assert "DIGEST_INVALID" in caught.value.cause


# --- retries


def test_retry_after_is_heeded(fake: FakeRegistry, config: Path) -> None:
    pauses: list[float] = []
    hold(fake)
    fake.faults = [("GET /v2/fn/blobs", 429, {"Retry-After": "7"}), ("GET", 503, {})]
    assert connect(fake, config, pauses).read_blob("fn", DIGEST, len(BLOB)) == BLOB
    assert pauses[0] == 7.0
    assert 0 < pauses[1] < 1


def test_a_retry_after_that_is_a_date_is_heeded(fake: FakeRegistry, config: Path) -> None:
    pauses: list[float] = []
    date = email.utils.formatdate(time.time() + 20, usegmt=True)
    fake.faults = [("GET /v2/", 503, {"Retry-After": date})]
    connect(fake, config, pauses).ping()
    assert 15 < pauses[0] <= 20


def test_a_registry_that_asks_for_an_hour_is_given_up(fake: FakeRegistry, config: Path) -> None:
    pauses: list[float] = []
    fake.faults = [("GET", 429, {"Retry-After": "3600"})]
    with pytest.raises(RemoteError, match="failed"):
        connect(fake, config, pauses).ping()
    assert pauses == []


def test_a_registry_that_is_always_busy_is_given_up(fake: FakeRegistry, config: Path) -> None:
    pauses: list[float] = []
    fake.faults = [("GET", 503, {})] * 20
    with pytest.raises(RemoteError, match="failed"):
        connect(fake, config, pauses).ping()
    assert len(pauses) == 5


def test_a_wrong_request_is_not_repeated(fake: FakeRegistry, config: Path) -> None:
    fake.faults = [("GET", 400, {})] * 2
    with pytest.raises(RemoteError):
        connect(fake, config).ping()
    assert len(fake.log) == 1


def test_a_registry_that_is_down_is_said_to_be(config: Path, fake: FakeRegistry) -> None:
    fake.down = True
    with pytest.raises(RemoteError, match="cannot reach"):
        connect(fake, config, []).ping()


# --- credentials


def test_basic_credentials_come_from_dockers_configuration(
    fake: FakeRegistry, config: Path, registry: Registry
) -> None:
    fake.login = LOGIN
    with pytest.raises(RemoteDeniedError) as caught:
        registry.ping()
    assert "docker login" in caught.value.hint
    log_in(config, fake)
    connect(fake, config).ping()


def test_wrong_credentials_are_denied_at_once(fake: FakeRegistry, config: Path) -> None:
    fake.login = LOGIN
    log_in(config, fake, "user:wrong")
    with pytest.raises(RemoteDeniedError):
        connect(fake, config).ping()
    assert len(fake.log) == 2


def test_a_credential_helper_is_asked(
    fake: FakeRegistry, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.login = LOGIN
    helper = tmp_path / "docker-credential-fake"
    helper.write_text('#!/bin/sh\necho \'{"Username": "user", "Secret": "secret"}\'\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    config.write_text(json.dumps({"credHelpers": {fake.host: "fake"}}))
    connect(fake, config).ping()


def test_a_configuration_that_is_no_json_is_a_usage_error(fake: FakeRegistry, config: Path) -> None:
    fake.login = LOGIN
    config.write_text("{")
    with pytest.raises(UsageError):
        connect(fake, config).ping()


def test_each_scope_has_its_token(fake: FakeRegistry, config: Path) -> None:
    fake.realm, fake.login = f"{fake.url}/token", LOGIN
    log_in(config, fake)
    registry = connect(fake, config)
    for name in ("a", "b"):
        put_image(registry, name)
        registry.read_manifest(name, "v1")
        registry.read_manifest(name, "v1")
    assert sorted(fake.tokens) == sorted(
        f"repository:{name}:{right}" for name in "ab" for right in ("pull", "pull,push")
    )


def test_an_expired_token_is_asked_for_again(fake: FakeRegistry, config: Path) -> None:
    fake.realm = f"{fake.url}/token"
    registry = connect(fake, config)
    put_image(registry)
    registry.read_manifest("fn", "v1")
    registry.transport._headers = {key: "Bearer old" for key in registry.transport._headers}
    registry.read_manifest("fn", "v1")


def test_an_upload_is_sent_again_after_a_challenge(fake: FakeRegistry, config: Path) -> None:
    fake.login = LOGIN
    log_in(config, fake)
    registry = connect(fake, config)
    fake.faults = [("digest=", 401, {"WWW-Authenticate": 'Basic realm="x"'})]
    registry.transport._headers.clear()
    with pytest.raises(RemoteDeniedError):  # the same credentials twice: no third time
        registry.put_blob("fn", item(), opened)
    assert registry.put_blob("fn", item(), opened) == SENT


def authorised(fake: FakeRegistry) -> list[str]:
    return [headers["Authorization"] for _, _, headers in fake.log if "Authorization" in headers]


def test_the_target_of_a_redirect_gets_no_credentials(
    fake: FakeRegistry, other: FakeRegistry, config: Path
) -> None:
    fake.login, fake.redirect = LOGIN, other.url
    log_in(config, fake)
    hold(fake)
    hold(other)
    assert connect(fake, config).read_blob("fn", DIGEST, len(BLOB)) == BLOB
    assert authorised(fake)
    assert len(other.log) == 1
    assert not authorised(other)


def test_an_upload_elsewhere_gets_no_credentials(
    fake: FakeRegistry, other: FakeRegistry, config: Path
) -> None:
    fake.login, fake.upload_at = LOGIN, other.url
    log_in(config, fake)
    assert connect(fake, config).put_blob("fn", item(), opened) == SENT
    assert other.blobs["fn"] == {str(DIGEST): BLOB}
    assert not authorised(other)


def test_a_token_server_elsewhere_gets_no_credentials(
    fake: FakeRegistry, other: FakeRegistry, config: Path
) -> None:
    other.login = LOGIN
    fake.realm = other.url.replace("127.0.0.1", "localhost") + "/token"
    log_in(config, fake)
    with pytest.raises(RemoteDeniedError) as caught:
        connect(fake, config).list_tags("fn")
    assert "--token-realm localhost" in caught.value.hint
    assert not authorised(other)


def test_a_token_server_that_is_named_gets_them(
    fake: FakeRegistry, other: FakeRegistry, config: Path
) -> None:
    other.login = LOGIN
    fake.realm = other.url.replace("127.0.0.1", "localhost") + "/token"
    log_in(config, fake)
    put_image(connect(fake, config, realms=["localhost"]))
    assert authorised(other)


def test_netrc_is_not_read(
    fake: FakeRegistry, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    connect(fake, config).ping()
    assert not authorised(fake)


def test_a_proxy_from_the_environment_is_used(
    fake: FakeRegistry, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", fake.url)
    monkeypatch.setenv("no_proxy", "")
    Registry(Transport("registry.invalid", plain_http=True, config=config)).ping()
    assert fake.log[0][1] == "http://registry.invalid/v2/"


def test_a_certificate_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="certificate"):
        Transport("registry.invalid", ca=tmp_path / "no.pem")


def test_answers_without_a_body_keep_the_connection(fake: FakeRegistry, registry: Registry) -> None:
    top = put_image(registry)
    registry.put_blob("fn", oci.describe(BLOB, TYPE), lambda: io.BytesIO(BLOB))
    assert registry.resolve("fn", "v1") == top
    assert len(fake.log) > 4
    assert fake.connection_count == 1


# --- referrers


@pytest.fixture(params=[True, False], ids=["api", "fallback"])
def either(request: pytest.FixtureRequest, fake: FakeRegistry, registry: Registry) -> Registry:
    fake.referrers_api = request.param
    return registry


def refer(registry: Registry, subject: oci.Descriptor, note: str, kind: str) -> oci.Descriptor:
    """Push an artifact that refers to `subject`, as publish does."""
    manifest = oci.Manifest(
        oci.EMPTY_DESCRIPTOR, (), {"note": note}, artifact_type=kind, subject=subject
    )
    raw = oci.serialize_manifest(manifest)
    entry = oci.describe(raw, oci.MANIFEST, {"note": note}, artifact_type=kind)
    if not registry.put_manifest("fn", str(entry.digest), entry, raw):
        add_fallback(registry, "fn", subject.digest, [entry])
    return entry


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(referrers_module, "SETTLE_SECONDS", 0.05)


@pytest.mark.usefixtures("quick")
def test_referrers_are_found_by_type(either: Registry) -> None:
    top = put_image(either)
    assert list_referrers(either, "fn", top.digest) == []
    mine, theirs = refer(either, top, "a", "x/mine"), refer(either, top, "b", "x/theirs")
    assert {entry.digest for entry in list_referrers(either, "fn", top.digest)} == {
        mine.digest,
        theirs.digest,
    }
    assert list_referrers(either, "fn", top.digest, "x/mine") == [mine]


def test_a_registry_that_tells_the_type_of_the_config(
    fake: FakeRegistry, registry: Registry
) -> None:
    """The manifests say what they are: those that cannot be read count for nothing."""
    top = put_image(registry)
    mine, broken = refer(registry, top, "a", "x/mine"), refer(registry, top, "b", "x/mine")
    fake.told_type = oci.EMPTY
    held = fake.manifests["fn"]
    held[str(broken.digest)] = (oci.MANIFEST, held[str(broken.digest)][1] + b" ")
    assert list_referrers(registry, "fn", top.digest) == [mine]
    assert list_referrers(registry, "fn", top.digest, "x/mine") == [mine]


@pytest.mark.usefixtures("quick")
def test_publishers_at_once_lose_no_referrer(fake: FakeRegistry, config: Path) -> None:
    fake.referrers_api = False
    top = put_image(connect(fake, config))
    errors: list[LayerkitError] = []

    def publish(number: int) -> None:
        try:
            refer(connect(fake, config), top, str(number), "x/mine")
        except LayerkitError as exc:
            errors.append(exc)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = list_referrers(connect(fake, config), "fn", top.digest)
    assert not errors
    assert sorted(entry.annotations["note"] for entry in found) == list("012345")


def test_a_fallback_tag_that_is_no_index_lists_nothing(
    fake: FakeRegistry, registry: Registry
) -> None:
    fake.referrers_api = False
    top = put_image(registry)
    put_image(registry, tag=fallback_tag(top.digest))
    assert list_referrers(registry, "fn", top.digest) == []
    with pytest.raises(FormatError):
        list_referrers(registry, "fn", top.digest, strict=True)


def test_fallback_tags_are_told_from_images(registry: Registry) -> None:
    tags = [fallback_tag(DIGEST), fallback_tag(DIGEST) + ".sig", "sha256-1", "v1"]
    assert [is_fallback_tag(tag) for tag in tags] == [True, True, False, False]


@pytest.mark.usefixtures("quick")
def test_what_a_garbage_collection_took_keeps_no_referrer_out(
    fake: FakeRegistry, registry: Registry
) -> None:
    fake.referrers_api, fake.checks_lists = False, True
    top = put_image(registry)
    gone = refer(registry, top, "gone", "x/mine")
    del fake.manifests["fn"][str(gone.digest)]
    new = refer(registry, top, "new", "x/mine")
    assert list_referrers(registry, "fn", top.digest) == [new]
