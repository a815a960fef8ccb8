"""A registry on this machine, named by a bare reference: TLS if it speaks that, else plain HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from builders import noise
from registries import FakeRegistry
from test_httpclient_tls import certify

from layerkit.digest import sha256_digest
from layerkit.edges.loopback import speaks_tls
from layerkit.edges.polling import Poller, Question
from layerkit.edges.registry import SENT, Registry
from layerkit.edges.registry.upstream import open_upstream
from layerkit.edges.storage.opening import open_registry
from layerkit.errors import NotFoundError, RemoteDeniedError, RemoteError
from layerkit.formats import oci
from layerkit.formats.reference import Reference, is_loopback

BLOB = noise(200_000)
ITEM = oci.describe(BLOB, "application/octet-stream")
LOGIN = "user:secret"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    certify(tmp_path, "ca")
    certify(tmp_path, "server", "ca")
    return tmp_path


@pytest.fixture
def secure(folder: Path) -> Iterator[FakeRegistry]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    with FakeRegistry(tls=context).serving() as running:
        yield running


def named(fake: FakeRegistry) -> str:
    """The registry's URL, as a bare reference gives it."""
    return Reference.parse(f"{fake.host}/fn:v1").registry_url


def connect(fake: FakeRegistry, folder: Path, *, ca: bool = True) -> Registry:
    authority = folder / "ca.pem" if ca else None
    config = folder / "config.json"
    return open_registry(named(fake), ca=authority, config=config, patience=0.1)


def log_in(fake: FakeRegistry, folder: Path) -> None:
    fake.login = LOGIN
    auth = base64.b64encode(LOGIN.encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {fake.host: {"auth": auth}}}))


def test_a_login_works_by_tls_and_goes_nowhere_in_clear(secure: FakeRegistry, folder: Path) -> None:
    log_in(secure, folder)
    registry = connect(secure, folder)
    assert registry.put_blob("fn", ITEM, lambda: io.BytesIO(BLOB)) == SENT
    assert secure.blobs["fn"][str(ITEM.digest)] == BLOB
    assert registry.transport.base == f"https://{secure.host}"


def test_what_is_not_trusted_is_not_asked_in_clear(secure: FakeRegistry, folder: Path) -> None:
    log_in(secure, folder)
    with pytest.raises(RemoteError, match="no trusted TLS") as caught:
        connect(secure, folder, ca=False).ping()
    assert "--ca" in caught.value.hint and not secure.log


def test_many_threads_find_it_out_at_once(secure: FakeRegistry, folder: Path) -> None:
    registry = connect(secure, folder)
    blobs = [noise(20_000, seed) for seed in range(8)]

    def put(data: bytes) -> str:
        item = oci.describe(data, "application/octet-stream")
        return registry.put_blob("fn", item, lambda: io.BytesIO(data))

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(put, blobs)) == {SENT}
    assert len(secure.blobs["fn"]) == 8


def test_plain_http_stays_plain(folder: Path) -> None:
    """A registry that answers 400 to the first question, too."""
    with FakeRegistry(faults=[("GET /v2/", 400, {})]).serving() as fake:
        log_in(fake, folder)
        registry = connect(fake, folder)
        with pytest.raises((RemoteError, RemoteDeniedError)):
            registry.ping()
        registry.ping()
        assert registry.transport.base == f"http://{fake.host}"


def test_pulls_find_it_out_too(secure: FakeRegistry, folder: Path) -> None:
    raw = oci.serialize_manifest(oci.Manifest(oci.EMPTY_DESCRIPTOR, ()))
    secure.manifests["fn"] = {"v1": (oci.MANIFEST, raw)}
    with open_upstream(named(secure), ca=folder / "ca.pem") as upstream:
        found = upstream.resolve("fn", "v1")
        assert found is not None and found.digest == sha256_digest(raw)


def test_an_agent_looks_by_tls(secure: FakeRegistry, folder: Path) -> None:
    raw = oci.serialize_manifest(oci.Manifest(oci.EMPTY_DESCRIPTOR, ()))
    secure.manifests["fn"] = {"v1": (oci.MANIFEST, raw)}

    async def main() -> None:
        poller = Poller(2, folder / "ca.pem")
        try:
            for _ in range(2):
                found = await poller.look(named(secure), "", Question("fn", "v1", (), "any/any"))
                assert found.changed and found.digest == sha256_digest(raw)
            with pytest.raises(NotFoundError):
                await poller.look(named(secure), "", Question("fn", "v2", (), "any/any"))
        finally:
            await poller.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_only_plain_urls_of_this_machine_are_looked_at(secure: FakeRegistry) -> None:
    assert speaks_tls(named(secure))
    assert not speaks_tls(secure.url)  # it is TLS already
    assert not speaks_tls("http://192.0.2.1:1")  # another machine: not asked
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert not speaks_tls(f"http://127.0.0.1:{port}")  # nothing is there
    assert is_loopback("::1") and is_loopback("localhost") and not is_loopback("10.0.0.1")
