"""The conformance suite of the OCI distribution specification against `layerkit serve`.

Pull and content discovery: a chunk server takes no pushes. The suite is told which content is there
(OCI_RO_DATA_…). That is ours in a layout, and the suite's own, with everything that the
specification allows (nested and empty indexes, no layers, artifacts, missing subjects, SHA-512),
pushed into a real registry that the chunk server reads.

`go install github.com/opencontainers/distribution-spec/conformance@latest` makes the suite.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import urllib3
from builders import hello_files, noise, publish_image
from registry_servers import find_tool, free_port, running
from trust import TrustCases

from layerkit.digest import Digest
from layerkit.edges.http import start_server
from layerkit.edges.layout import Layout
from layerkit.edges.storage import open_storage
from layerkit.formats import oci
from layerkit.jobs.serve import SourceOptions, StorageSource, make_app, start

ROW = "the OCI distribution conformance suite: pull and content discovery"
APIS = [  # of a run without pushes; ranges are tested only with pushes, here by tests/edges
    *("Tag listing", "Blob get", "Blob head", "Referrers"),
    *("Manifest get by digest", "Manifest get by tag"),
    *("Manifest head by digest", "Manifest head by tag"),
]
_LINE = re.compile(
    r" *(OCI Conformance Test\S.*|[A-Z][a-z ]+?)\.*: +(Pass|FAIL|Error|Skip|Disabled|Unknown)"
)
pytestmark = pytest.mark.slow


@dataclass
class Content:
    """What the suite is told to ask for."""

    host: str
    repository: str
    tags: list[str]
    manifests: set[str] = field(default_factory=set)
    blobs: set[str] = field(default_factory=set)
    subjects: set[str] = field(default_factory=set)

    def add(self, digest: Digest, manifest: bytes) -> None:
        """A manifest or index, and what it names of blobs and of a subject."""
        document = json.loads(manifest)
        self.manifests.add(str(digest))
        if "manifests" not in document:
            named = [document["config"], *document["layers"]]
            self.blobs |= {part["digest"] for part in named if not part.get("urls")}
        if "subject" in document:
            self.subjects.add(document["subject"]["digest"])


def run_suite(folder: Path, content: Content, **settings: str) -> list[tuple[str, str]]:
    """What the suite says of each test and each API: name and result."""
    told = {
        "OCI_REGISTRY": content.host, "OCI_TLS": "disabled", "OCI_REPO1": content.repository,
        "OCI_API_BLOBS_DELETE": "false", "OCI_API_MANIFESTS_DELETE": "false",
        "OCI_API_TAGS_DELETE": "false", "OCI_RESULTS_DIR": str(folder),
        "OCI_RO_DATA_TAGS": " ".join(sorted(content.tags)),
        "OCI_RO_DATA_MANIFESTS": " ".join(sorted(content.manifests)),
        "OCI_RO_DATA_BLOBS": " ".join(sorted(content.blobs)),
        "OCI_RO_DATA_REFERRERS": " ".join(sorted(content.subjects)),
    }  # fmt: skip
    env = {key: value for key, value in os.environ.items() if not key.startswith("OCI_")}
    # Without pushes it ends with a panic, after it said all (v0.0.0-20260831232431: its YAML report
    # looks for data that was not generated), so its text is read, not its files
    done = subprocess.run(
        [find_tool("conformance")], env=env | told | settings, cwd=folder, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    (folder / "said.txt").write_text(done.stdout)
    found = [_LINE.fullmatch(line) for line in done.stdout.splitlines()]
    assert any(found), done.stderr[-2000:]
    return [(line[1], line[2]) for line in found if line]


def assert_conformant(folder: Path, content: Content, cases: TrustCases) -> None:
    said = run_suite(folder, content, OCI_API_PUSH="false")
    assert [line for line in said if line[1] not in ("Pass", "Disabled", "Unknown")] == [], (
        folder / "said.txt"
    )
    assert {name: "Pass" for name in APIS}.items() <= dict(said).items()
    passed = sum(name.startswith("OCI") and result == "Pass" for name, result in said)
    asked = len({*content.manifests, *content.blobs, *content.tags})
    assert passed >= 2 * asked, "each by HEAD and by GET"
    cases.add(number=passed)


@pytest.mark.trust(ROW)
def test_a_layout(tmp_path: Path, trust_cases: TrustCases) -> None:
    path = tmp_path / "layout"
    for text in (b"one", b"two"):
        publish_image(path, "team/fn:v1", hello_files(noise(60_000) + text), packs=True)
    publish_image(path, "team/fn:v2", hello_files(noise(60_000) + b"three"), compression="zstd")
    layout = Layout(path)
    with start(path) as server:
        host = server.url.removeprefix("http://")
        content = Content(host, "team/fn", ["v1", "v2"])
        for entry in layout.read_index().manifests:
            content.add(entry.digest, layout.read_blob(entry.digest))
        assert_conformant(tmp_path, content, trust_cases)


@pytest.fixture
def suites_own(tmp_path: Path) -> Iterator[Content]:
    """A real registry with the referrers API, and what can be found in it of what the suite pushed:
    tags, what they lead to, and what refers to that."""
    port, folder = free_port(), tmp_path / "registry"
    argv = [find_tool("crane"), "registry", "serve", "--address", f"127.0.0.1:{port}"]
    folder.mkdir()
    with running([*argv, "--disk", str(folder)], port, folder):
        content = Content(f"127.0.0.1:{port}", "conformance/repo1", [])
        run_suite(folder, content, OCI_DATA_SHA512="false")  # sha256 is what we speak
        base = f"http://{content.host}/v2/{content.repository}"
        asked = urllib3.PoolManager(headers={"Accept": f"{oci.MANIFEST}, {oci.INDEX}"})
        content.tags = asked.request("GET", f"{base}/tags/list").json()["tags"]
        assert len(content.tags) > 10
        waiting = list(content.tags)
        while waiting:
            answer = asked.request("GET", f"{base}/manifests/{waiting.pop()}")
            digest = answer.headers["docker-content-digest"]
            if answer.status == 200 and digest not in content.manifests:
                content.add(Digest.parse(digest), answer.data)
                referrers = asked.request("GET", f"{base}/referrers/{digest}").json()
                below = (answer.json().get("manifests") or []) + (referrers.get("manifests") or [])
                waiting += [entry["digest"] for entry in below]
        yield content


@pytest.mark.trust(ROW)
def test_the_suites_own_content(
    suites_own: Content, tmp_path: Path, trust_cases: TrustCases
) -> None:
    storage = open_storage(
        f"http://{suites_own.host}",
        repositories=(suites_own.repository,),
        cache=tmp_path / "cache",
        made=str(tmp_path / "made"),
    )
    with start_server(make_app(StorageSource(storage, SourceOptions()))) as server:
        suites_own.host = server.url.removeprefix("http://")
        assert_conformant(tmp_path, suites_own, trust_cases)
