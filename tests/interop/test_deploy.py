"""What examples/deploy holds is understood by those it is for: systemd, Kubernetes, the agent."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import urllib3

from layerkit.jobs.agent.settings import load_settings

FOLDER = Path(__file__).parent.parent.parent / "examples" / "deploy"
UNIT = FOLDER / "layerkit-agent.service"
HOOK = FOLDER / "layerkit-hook.service"
MAX_EXPOSURE = 2.0  # of 10, as systemd-analyze counts it


@pytest.fixture(scope="module")
def analyze() -> str:
    """systemd-analyze; installed where that is possible, else the reason is said."""
    found = shutil.which("systemd-analyze")
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        argv = ["apt-get", "install", "-y", "--no-install-recommends", "systemd"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        found = shutil.which("systemd-analyze")
        if found is None:
            pytest.skip(f"systemd cannot be installed: {done.stderr[-200:]}")
    if found is None:
        pytest.skip("systemd-analyze is not installed, and only root with apt-get may install it")
    return found


def verify(analyze: str, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Verify a unit, with programs that are here."""
    program = folder / "layerkit"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = folder / UNIT.name
    unit.write_text(text.replace("/usr/bin/layerkit", str(program)))
    argv = [analyze, "verify", str(unit)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


@pytest.mark.docker
@pytest.mark.parametrize("unit", [UNIT, HOOK], ids=["agent", "hook"])
def test_systemd_takes_the_unit(analyze: str, unit: Path, tmp_path: Path) -> None:
    done = verify(analyze, unit.read_text(), tmp_path)
    assert (done.returncode, done.stderr.strip()) == (0, "")


@pytest.mark.docker
def test_systemd_refuses_a_broken_unit(analyze: str, tmp_path: Path) -> None:
    """The check above can fail."""
    broken = UNIT.read_text().replace("ProtectSystem=strict", "ProtectSystem=very")
    assert "protect system" in verify(analyze, broken, tmp_path).stderr


@pytest.mark.docker
@pytest.mark.parametrize("unit", [UNIT, HOOK], ids=["agent", "hook"])
def test_the_unit_is_hardened(analyze: str, unit: Path) -> None:
    argv = [analyze, "security", "--offline=true", "--no-pager", str(unit)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if "offline" in done.stderr and "unrecognized" in done.stderr:
        pytest.skip("this systemd-analyze cannot look at a file (before 250)")
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= MAX_EXPOSURE


@pytest.mark.slow  # a process of ours
def test_the_hook_runs_as_its_unit_says(tmp_path: Path) -> None:
    """With folders of this test in the place of systemd's."""
    unit = HOOK.read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^ExecStart=/usr/bin/layerkit (.+)$", unit, re.MULTILINE)
    (tmp_path / "secret").write_text("a-secret-for-the-registry\n")
    (tmp_path / "config.json").write_text("{}")
    for name in ("STATE_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        command = command.replace(f"${{{name}}}", str(tmp_path))
    command = command.replace("0.0.0.0:7430", "127.0.0.1:0")
    env = os.environ | {"LAYERKIT_REGISTRY": "http://127.0.0.1:1"}
    env["DOCKER_CONFIG"] = str(tmp_path)
    argv = [sys.executable, "-m", "layerkit", *command.split()]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert urllib3.request("GET", f"{url}/readyz").status == 200
        process.terminate()
        assert process.wait(30) == 0
    assert (tmp_path / "queue").is_dir()


def documents() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML: pip install kubernetes-validate")
    found = list(yaml.safe_load_all((FOLDER / "daemonset.yaml").read_text()))
    return {document["kind"]: document for document in found}


@pytest.mark.parametrize("kind", ["Namespace", "ConfigMap", "Secret", "DaemonSet"])
def test_kubernetes_takes_each_document(kind: str) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    schemas.validate(documents()[kind], "1.30", strict=True)


def test_kubernetes_refuses_a_broken_document() -> None:
    """The check above can fail."""
    schemas = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    broken = documents()["DaemonSet"]
    broken["spec"]["template"]["spec"]["containers"][0]["port"] = 1
    with pytest.raises(schemas.ValidationError):
        schemas.validate(broken, "1.30", strict=True)


def test_names_in_the_daemonset_fit() -> None:
    """What a schema does not see: each mount has its volume, the configuration its files."""
    found = documents()
    pod = found["DaemonSet"]["spec"]["template"]["spec"]
    (agent,) = pod["containers"]
    assert {mount["name"] for mount in agent["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    by_name = {volume["name"]: volume for volume in pod["volumes"]}
    assert by_name["config"]["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"]
    assert by_name["token"]["secret"]["secretName"] == found["Secret"]["metadata"]["name"]
    selector = found["DaemonSet"]["spec"]["selector"]["matchLabels"]
    assert selector == found["DaemonSet"]["spec"]["template"]["metadata"]["labels"]
    mounts = [mount["mountPath"] for mount in agent["volumeMounts"]]
    text = found["ConfigMap"]["data"]["agent.toml"]
    for path in re.findall(r'"(/[^"]+)"', re.sub("(?m)^#.*", "", text)):
        assert any(path.startswith(mount + "/") for mount in mounts), path


@pytest.mark.parametrize("where", ["agent.toml", "daemonset.yaml"])
def test_the_agent_takes_the_configuration(where: str, tmp_path: Path) -> None:
    if where == "agent.toml":
        text = (FOLDER / where).read_text()
    else:
        text = documents()["ConfigMap"]["data"]["agent.toml"]
    (tmp_path / "token").write_text("secret\n")
    text = text.replace("/run/secrets/layerkit", str(tmp_path))
    config = tmp_path / "agent.toml"
    config.write_text(text)
    found = load_settings({"config": config}, tmp_path)
    assert found.watch == ("hello:latest",)
    assert found.quota == 10 << 30
