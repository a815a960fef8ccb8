"""A server as a process: TLS, signals, workers, metrics of all of them, logs."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import logging
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from memory_source import MemorySource
from serving import get, serving

from layerkit.digest import sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.http import (
    ServerOptions,
    TlsFiles,
    make_app,
    run_server,
    server,
    start_server,
)
from layerkit.edges.http.logs import RequestLog, RequestRecord
from layerkit.edges.http.metrics import Board, Metrics
from layerkit.edges.jsonlog import JsonFormatter
from layerkit.edges.tokens import add_token
from layerkit.errors import StoreError, UsageError
from layerkit.formats.update import Share

FAR = datetime.timedelta(days=2)


class Authority:
    """A CA made for a test, and what it signs."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        cert = self._builder(self.name, self.key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        usage = x509.KeyUsage(*[True] * 7, False, False)
        cert = cert.add_extension(usage, critical=True)
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(_pem(cert.sign(self.key, hashes.SHA256())))

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - FAR)
            .not_valid_after(now + FAR)
        )

    def sign(self, name: str) -> TlsFiles:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        cert = (
            self._builder(subject, key)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        files = TlsFiles(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        files.cert.write_bytes(_pem(cert))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files


def _pem(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def source() -> MemorySource:
    source = MemorySource()
    source.tag("a", "v1", b'{"v":1}')
    return source


# --- TLS -----------------------------------------------------------------------------------------


def test_tls_is_spoken(authority: Authority, source: MemorySource) -> None:
    digest = source.blob("a", bytes(range(256)) * 2000)
    pool = urllib3.PoolManager(ca_certs=str(authority.path), retries=False)
    with serving(source, tls=authority.sign("server")) as served:
        assert served.url.startswith("https://")
        found = [pool.request("GET", f"{served.url}/v2/a/blobs/{digest}").data for _ in range(3)]
        manifests = [pool.request("GET", f"{served.url}/v2/a/manifests/v1").data for _ in range(3)]
    assert found == [bytes(range(256)) * 2000] * 3 and manifests == [b'{"v":1}'] * 3


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_old_tls_is_refused(authority: Authority, source: MemorySource) -> None:
    context = ssl.create_default_context(cafile=authority.path)
    with (
        serving(source, tls=authority.sign("server")) as served,
        pytest.raises(Exception, match="SSL"),
    ):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        urllib3.PoolManager(ssl_context=context, retries=False).request("GET", served.url)


def test_a_client_shows_its_certificate(
    authority: Authority, source: MemorySource, tmp_path: Path
) -> None:
    server, client = authority.sign("server"), authority.sign("client")
    stranger = Authority(tmp_path, "other").sign("stranger")
    tls = TlsFiles(server.cert, server.key, authority.path)

    def ask(files: TlsFiles | None) -> int:
        pool = urllib3.PoolManager(
            ca_certs=str(authority.path),
            retries=False,
            cert_file=str(files.cert) if files else None,
            key_file=str(files.key) if files else None,
        )
        return pool.request("GET", served.url + "/v2/").status

    with serving(source, tls=tls) as served:
        assert ask(client) == 200
        for files in (None, stranger):
            with pytest.raises(urllib3.exceptions.HTTPError):
                ask(files)


def test_plain_http_to_a_tls_port_is_not_answered(
    authority: Authority, source: MemorySource
) -> None:
    with (
        serving(source, tls=authority.sign("server")) as served,
        pytest.raises(urllib3.exceptions.HTTPError),
    ):
        urllib3.PoolManager(retries=False).request("GET", served.url.replace("https", "http"))


def test_a_renewed_certificate_is_taken_up(
    authority: Authority, source: MemorySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = authority.sign("server")
    context = server._load_tls(files)
    assert context is not None
    now = [100.0]
    monkeypatch.setattr("layerkit.edges.http.server.time.monotonic", lambda: now[0])
    renewal = server._Renewal(context, files)
    loaded: list[Path] = []

    class Context:
        def load_cert_chain(self, cert: Path, key: Path) -> None:
            loaded.append(cert)

    renewal._context = Context()  # type: ignore[assignment]
    for _ in range(2):
        now[0] += 20
        renewal()
    assert loaded == []
    authority.sign("server")
    now[0] += 20
    renewal()
    assert loaded == [files.cert]


@pytest.mark.parametrize("what", ["absent", "no pem", "other key"])
def test_bad_tls_files_are_said_at_once(
    authority: Authority, source: MemorySource, tmp_path: Path, what: str
) -> None:
    files, other = authority.sign("server"), authority.sign("another")
    (tmp_path / "junk").write_text("junk")
    tls = {
        "absent": TlsFiles(tmp_path / "none", files.key),
        "no pem": TlsFiles(tmp_path / "junk", files.key),
        "other key": TlsFiles(files.cert, other.key),
    }[what]
    with pytest.raises(UsageError, match="TLS"), serving(source, tls=tls):
        pass


# --- processes -----------------------------------------------------------------------------------

PROGRAM = """
import contextlib, os, sys, time
sys.path.insert(0, {tests!r})
from memory_source import MemorySource
from layerkit.edges.http import ServerOptions, run_server
from layerkit.errors import LayerkitError

@contextlib.contextmanager
def opened(meter, index):
    source = MemorySource()
    old = source.tag("a", "v1", b'{{"v":1}}')
    source.tag("a", "v2", b'{{"v":2}}')
    source.update("a", "v2", old, b"update")
    source.slow = float(os.environ.get("SLOW", "0"))
    source.blob("pid", str(os.getpid()).encode())
    source.tag("pid", "p" + str(os.getpid()))
    if os.environ.get("BROKEN") == str(index):
        from layerkit.errors import StoreError
        raise StoreError("the layout is gone", cause="why", hint="what to do")
    yield source

options = ServerOptions("127.0.0.1:0", worker_count={workers}, drain_seconds={drain})
try:
    run_server(opened, options, lambda url: print(url, flush=True))
except LayerkitError as exc:
    print("error", type(exc).__name__, exc.message, exc.cause, exc.hint, flush=True)
    sys.exit(exc.exit_status)
print("ended", flush=True)
"""


@contextlib.contextmanager
def program(
    workers: int = 1, drain: float = 0.0, **settings: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    text = PROGRAM.format(tests=str(Path(__file__).parent), workers=workers, drain=drain)
    process = subprocess.Popen(
        [sys.executable, "-c", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **settings},
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()
        assert process.stderr is not None
        process.stderr.close()


def fetch(url: str, path: str) -> urllib3.BaseHTTPResponse:
    """On a connection of its own: the kernel deals it to some worker."""
    with urllib3.PoolManager(retries=False) as pool:
        return pool.request("GET", url + path, headers={"connection": "close"})


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_ends_a_server_well(workers: int) -> None:
    """/readyz says so first, requests are still taken, what runs is finished, the status is 0."""
    with program(workers, drain=1.0, SLOW="1.5") as (process, url):
        old = json.loads(fetch(url, "/v2/a/tags/list").data)
        assert old["tags"] == ["v1", "v2"]
        found: list[bytes] = []
        digest = sha256_digest(b'{"v":1}')
        thread = threading.Thread(
            target=lambda: found.append(fetch(url, f"/v1/a/updates/v2?from={digest}").data)
        )
        thread.start()
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        draining = [fetch(url, path).status for path in ("/readyz", "/v2/", "/healthz")]
        assert process.wait(15) == 0
        thread.join(5)
        assert draining == [503, 200, 200] and found == [b"update"]
        assert process.stdout is not None and process.stdout.read() == "ended\n"


def pids_of(url: str, want: int) -> set[str]:
    found: set[str] = set()
    end = time.monotonic() + 20
    while len(found) < want and time.monotonic() < end:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            found.add(json.loads(fetch(url, "/v2/pid/tags/list").data)["tags"][0][1:])
    return found


@pytest.mark.slow
def test_workers_share_a_port_and_a_dead_one_is_replaced() -> None:
    with program(2) as (process, url):
        first = pids_of(url, 2)
        assert len(first) == 2
        os.kill(int(min(first)), signal.SIGKILL)
        time.sleep(1.5)
        second = pids_of(url, 2)
        assert len(second) == 2 and len(first & second) == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        for pid in second:
            with pytest.raises(ProcessLookupError):
                os.kill(int(pid), 0)


def test_workers_end_with_their_parent() -> None:
    with program(2) as (process, url):
        pids = pids_of(url, 2)
        process.kill()
        process.wait(5)
        end = time.monotonic() + 10
        while time.monotonic() < end and any(_alive(int(pid)) for pid in pids):
            time.sleep(0.1)
        assert not any(_alive(int(pid)) for pid in pids)


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_a_source_that_cannot_be_opened_is_an_error_at_once(workers: int) -> None:
    with program(workers, BROKEN="0") as (process, line):
        assert line == "error StoreError the layout is gone why what to do"
        assert process.wait(10) == StoreError.exit_status


@pytest.mark.slow
def test_metrics_are_those_of_all_workers() -> None:
    """Also of one that was killed: what it counted is not lost."""
    name = 'layerkit_http_requests_total{endpoint="manifests",status="200"}'

    def count() -> float:
        lines = fetch(url, "/metrics").data.decode().splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith(name)), 0.0)

    with program(2) as (_, url):
        pids = pids_of(url, 2)
        for _ in range(40):
            fetch(url, "/v2/a/manifests/v1")
        time.sleep(1.3)
        before = count()
        os.kill(int(max(pids)), signal.SIGKILL)
        time.sleep(2.5)
        assert (before, count()) == (40, 40)


def test_a_port_is_not_shared_with_a_stranger(source: MemorySource) -> None:
    with serving(source) as served, pytest.raises(UsageError, match="cannot listen"):
        port = served.url.rpartition(":")[2]
        options = ServerOptions(f"127.0.0.1:{port}", worker_count=2)
        run_server(lambda meter, index: contextlib.nullcontext(source), options, print)


def test_start_server_says_what_port_it_took(source: MemorySource) -> None:
    with start_server(make_app(source)) as first, start_server(make_app(source)) as second:
        assert first.url != second.url


# --- metrics and logs ----------------------------------------------------------------------------


def test_boards_add_up_and_survive_a_torn_slot() -> None:
    board = Board(2)
    first, second = Metrics(board, 0), Metrics(board, 1)
    first.count_shares([Share("base", 1, 11)])
    second.count_shares([Share("base", 2, 22), Share("strange", 5, 5)])
    second.publish()
    assert (first.totals()[0].sent_size, first.totals()[0].saved_size) == (3, 30)
    board._memory[512 << 10 : (512 << 10) + 8] = b"\xff" * 8
    assert first.totals()[0].sent_size == 3
    text = first.render().decode()
    assert 'layerkit_layer_sent_bytes_total{role="other"} 5.0' in text
    assert "# TYPE layerkit_make_seconds histogram" in text


def test_metrics_follow_what_happens(source: MemorySource) -> None:
    with serving(source) as served:
        served.app.metrics.kept("update", False)
        served.app.metrics.made("update", 0.3)
        for path in ("/v2/a/manifests/v1", "/v2/a/manifests/v9", "/nothing"):
            get(served, path)
        want = {
            ("layerkit_http_requests_total", "manifests", "200"): 1,
            ("layerkit_http_requests_total", "manifests", "404"): 1,
            ("layerkit_http_requests_total", "none", "404"): 1,
        }
        for (name, endpoint, status), value in want.items():
            assert served.metric(name, endpoint=endpoint, status=status) == value
        assert served.metric("layerkit_cache_requests_total", what="update", result="miss") == 1
        assert served.metric("layerkit_make_seconds_bucket", what="update", le="0.5") == 1
        assert served.metric("layerkit_http_body_bytes_total", endpoint="manifests") > 7


def test_a_line_of_the_log_says_who_and_what_and_no_secret(
    source: MemorySource, tmp_path: Path
) -> None:
    token = add_token(tmp_path / "tokens", "node7", ["*"], [], day="", disk=Disk())
    read, write = os.pipe()
    log = RequestLog("json", write)
    with serving(source, tmp_path / "tokens", log=log) as served:
        headers = {"authorization": f"Bearer {token}"}
        get(served, f"/v2/a/manifests/v1?secret={token}", headers=headers)
        get(served, f"/v2/a/manifests/v1?secret={token}", headers=headers)
        get(served, "/v2/a/manifests/v%0A1", headers={"authorization": "Bearer wrong-one"})
    os.close(write)
    with open(read) as file:
        text = file.read()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["status"], line["caller"], line["path"]) for line in lines] == [
        (200, "node7", "/v2/a/manifests/v1"),
        (200, "node7", "/v2/a/manifests/v1"),
        (401, "", "/v2/a/manifests/v\n1"),
    ]
    assert {"time", "method", "bytes", "seconds", "address", "endpoint"} <= set(lines[0])
    assert token not in text and "wrong-one" not in text


def test_a_log_that_nobody_reads_slows_nothing() -> None:
    read, write = os.pipe()
    log = RequestLog("text", write)
    record = RequestRecord("GET", "/" + "x" * 300, 200, 1, 0.1, "", "127.0.0.1", "none")
    begun = time.monotonic()
    for _ in range(30_000):
        log.write(record)
    assert time.monotonic() - begun < 30
    os.close(read)
    log.close()
    os.close(write)


def test_text_lines_hold_no_control_characters() -> None:
    read, write = os.pipe()
    log = RequestLog("text", write)
    log.write(RequestRecord("GET", "/\x1b[31m\nx", 200, 1, 0.1, "", "127.0.0.1", "none"))
    log.close()
    os.close(write)
    with open(read) as file:
        text = file.read()
    assert text.count("\n") == 1 and "\x1b" not in text


def test_modules_log_in_the_same_shape() -> None:
    record = logging.LogRecord("layerkit.x", logging.ERROR, "", 0, "a %s", ("b",), None)
    document = json.loads(JsonFormatter().format(record))
    assert (document["level"], document["message"]) == ("error", "a b")
