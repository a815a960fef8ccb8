"""What examples/ci holds: parsed, and its shell steps run against a real registry that asks for a
login. What a runner brings (pip, docker, apt-get) is played by small scripts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from registry_servers import find_tool, free_port, running, write_config

from layerkit.cli import cli
from layerkit.digest import Digest
from layerkit.edges.registry import Registry, Transport, list_referrers
from layerkit.formats import oci
from layerkit.formats.storedupdate import find_updates

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
FOLDER = EXAMPLES / "ci"
HASHED = "$2b$04$2W.apcCUu1qLCtw5WT6fJ.sc95d3HLhhXYS2zuol6xhRg4lgRYGY2"  # bcrypt of "secret"
SHIMS = {
    "layerkit": f'exec "{sys.executable}" -m layerkit "$@"',
    "pip": "exit 0",
    "apt-get": "exit 0",
    "docker": """\
[ "$1 $3 $5" = "login --username --password-stdin" ] || exit 2
mkdir -p "$DOCKER_CONFIG"
login="$(printf %s:%s "$4" "$(cat)" | base64 -w 0)"
printf '{"auths":{"%s":{"auth":"%s"}}}' "$2" "$login" > "$DOCKER_CONFIG/config.json"
""",
    "python3": 'mkdir -p .venv/bin && echo "" > .venv/bin/activate',  # -m venv .venv
}


def read(name: str) -> dict[str, Any]:
    document = yaml.safe_load((FOLDER / name).read_text())
    assert isinstance(document, dict)
    return document


def github_steps() -> list[tuple[str, Mapping[str, str]]]:
    """Each step's script, and its environment."""
    job = read("github-actions.yml")["jobs"]["deliver"]
    return [
        (step["run"], {**job["env"], **step.get("env", {})})
        for step in job["steps"]
        if "run" in step
    ]


def gitlab_steps() -> list[tuple[str, Mapping[str, str]]]:
    """One shell runs before_script and script; after_script has its own."""
    job = read("gitlab-ci.yml")["deliver"]
    script = "\n".join([*job["before_script"], *job["script"]])
    return [(script, job["variables"]), ("\n".join(job["after_script"]), job["variables"])]


def test_every_option_that_they_use_is_there() -> None:
    texts = [script for script, _ in (*github_steps(), *gitlab_steps())]
    texts.append((FOLDER / "registry.yml").read_text())
    calls = re.findall(r"layerkit (build|push|hook)\b([^\n|)]*)", "\n".join(texts))
    assert {verb for verb, _ in calls} == {"build", "push", "hook"}
    for verb, rest in calls:
        said = CliRunner().invoke(cli, [verb, "--help"]).output
        for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest):
            assert re.search(rf"(^|[\s,]){option}\b", said, re.M), f"{verb} has no {option}"


def test_the_registry_tells_the_hook() -> None:
    [endpoint] = read("registry.yml")["notifications"]["endpoints"]
    assert endpoint["url"].endswith(":7430/events")
    [said] = endpoint["headers"]["Authorization"]
    assert said.startswith("Bearer ")


@dataclass
class Runner:
    """A machine with a checkout, and a registry that asks for a login."""

    host: str
    folder: Path

    def run(self, steps: list[tuple[str, Mapping[str, str]]]) -> None:
        known = {
            "github.repository": "team/fn", "github.actor": "ci",
            "secrets.GITHUB_TOKEN": "secret",
            "CI_REGISTRY_IMAGE": f"{self.host}/team/fn", "CI_COMMIT_REF_SLUG": "main",
            "CI_PROJECT_DIR": str(self.folder / "checkout"), "CI_REGISTRY": self.host,
            "CI_REGISTRY_USER": "ci", "CI_REGISTRY_PASSWORD": "secret",
        }  # fmt: skip
        env = {**os.environ, "DOCKER_CONFIG": str(self.folder / "docker")}
        env |= {key: value for key, value in known.items() if "." not in key}
        env |= {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        env |= {name: str(self.folder / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        for script, facts in steps:
            own = {key: self._fill(value, known) for key, value in facts.items()}
            done = subprocess.run(
                ["bash", "-eo", "pipefail", "-c", self._fill(script, known)],
                cwd=self.folder / "checkout", env=env | own,
                capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"

    def _fill(self, text: str, known: Mapping[str, str]) -> str:
        """The runner's expressions and variables; another registry."""
        text = re.sub(r"\$\{\{ ([\w.]+) \}\}", lambda match: known[match[1]], text)
        text = re.sub(r"\$(CI_\w+)", lambda match: known[match[1]], text)
        return text.replace("ghcr.io", self.host)

    def list_referrers(self) -> list[oci.Descriptor]:
        transport = Transport(self.host, plain_http=True, config=self.folder / "login.json")
        registry = Registry(transport)
        top = registry.resolve("team/fn", "main")
        assert top is not None and top.media_type == oci.INDEX
        images = oci.parse_index(registry.read_manifest("team/fn", "main")[1]).manifests
        digests: list[Digest] = [top.digest, *(image.digest for image in images)]
        return [one for digest in digests for one in list_referrers(registry, "team/fn", digest)]


@pytest.fixture
def runner(tmp_path: Path, go_toolchain: Path) -> Iterator[Runner]:
    shutil.copytree(EXAMPLES / "hello", tmp_path / "checkout")
    for name in ("bin", "registry"):
        (tmp_path / name).mkdir()
    for name, script in {**SHIMS, "go": f'exec "{go_toolchain}" "$@"'}.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    (tmp_path / "passwords").write_text(f"ci:{HASHED}\n")
    auth = f"auth: {{htpasswd: {{realm: r, path: {tmp_path / 'passwords'}}}}}"
    port = free_port()
    host = f"127.0.0.1:{port}"
    (tmp_path / "login.json").write_text(f'{{"auths":{{"{host}":{{"auth":"Y2k6c2VjcmV0"}}}}}}')
    config = write_config(tmp_path / "registry", port, auth=auth)
    with running([find_tool("registry"), "serve", str(config)], port, tmp_path / "registry"):
        yield Runner(host, tmp_path)


@pytest.mark.slow
@pytest.mark.go
@pytest.mark.parametrize("steps", [github_steps, gitlab_steps])
def test_the_second_push_has_updates(runner: Runner, steps: Any) -> None:
    runner.run(steps())
    kinds = {one.artifact_type for one in runner.list_referrers()}
    assert oci.CHUNKS_ARTIFACT in kinds and any("cyclonedx" in kind for kind in kinds)
    main = runner.folder / "checkout" / "main.go"
    source = main.read_text()
    assert "hello" in source
    main.write_text(source.replace("hello", "good day"))
    runner.run(steps())
    found = find_updates(runner.list_referrers())
    assert sorted(str(one.platform) for one in found) == ["linux/amd64", "linux/arm64"]
    assert all(one.size < 8_000 for one in found)
    assert not (runner.folder / "checkout" / ".docker").exists()
