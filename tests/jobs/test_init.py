"""`layerkit init`: every template is made, vetted, built and run."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from layerkit.edges.disk import Disk
from layerkit.edges.goruntime import offer_runtime
from layerkit.errors import NotFoundError, StoreFullError, UsageError
from layerkit.jobs.init import TEMPLATES, add_runtime, init

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_function_gets_its_name(template: str, tmp_path: Path) -> None:
    found = init(tmp_path / "My Fn", template)
    assert found.files == ("go.mod", "go.sum", "layerkit.toml", "main.go")
    assert "module example.com/my-fn\n" in (tmp_path / "My Fn" / "go.mod").read_text()
    assert b"FUNCTION" not in (tmp_path / "My Fn" / "main.go").read_bytes()


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert init(tmp_path).folder == str(tmp_path)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        init(tmp_path)
    assert (tmp_path / "main.go").read_text() == "mine"


def test_an_unknown_template_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not known"):
        init(tmp_path / "x", "grpc")


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    class Full(Disk):
        def rename(self, old: Path, new: Path) -> None:
            if new.name == "main.go":
                raise StoreFullError("no space left")
            super().rename(old, new)

    with pytest.raises(StoreFullError):
        init(tmp_path / "fn", disk=Full())
    assert list(tmp_path.iterdir()) == []


def test_a_function_that_exists_gets_the_runtime(tmp_path: Path) -> None:
    (tmp_path / "go.mod").write_text("module example.com/mine\n\ngo 1.24\n")
    named = add_runtime(tmp_path)
    assert f"require {named.replace('@', ' ')}\n" in (tmp_path / "go.mod").read_text()
    assert (tmp_path / "go.sum").read_text().count(named.replace("@", " ")) == 2


def test_no_function_is_no_place_for_the_runtime(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no go\.mod"):
        add_runtime(tmp_path)
    assert list(tmp_path.iterdir()) == []


def compiled(template: str, go: Path, folder: Path) -> Path:
    init(folder / template, template)
    offer = offer_runtime(Disk(), folder, folder / template, {"GOPROXY": "off"})
    env = dict(os.environ) | {"CGO_ENABLED": "0", "GOFLAGS": ""} | dict(offer.environment)
    for argv in (["vet", "."], ["build", "-o", "../binary", "."]):
        subprocess.run([go, *argv], cwd=folder / template, env=env, check=True)
    return folder / "binary"


@pytest.mark.go
def test_http_answers_and_drains(go_toolchain: Path, tmp_path: Path) -> None:
    binary = compiled("http", go_toolchain, tmp_path)
    process = subprocess.Popen(
        [binary], env={"PORT": "0", "HOST": "127.0.0.1"}, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        address = process.stderr.readline().split()[-1]
        with urllib.request.urlopen(f"http://{address}/?name=you", timeout=10) as answer:
            assert json.load(answer) == {"message": "hello, you"}
        with urllib.request.urlopen(f"http://{address}/debug/layerkit", timeout=10) as answer:
            assert json.load(answer)["handlers"]["http"]["requests"] == 1
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.go
def test_cron_runs_once(go_toolchain: Path, tmp_path: Path) -> None:
    binary = compiled("cron", go_toolchain, tmp_path)
    done = subprocess.run([binary], env={}, capture_output=True, check=True, timeout=30)
    assert json.loads(done.stdout) == {"job": "cron", "items": 3}
    late = subprocess.run([binary], env={"DEADLINE": "1us"}, capture_output=True, timeout=30)
    assert late.returncode == 1


@pytest.mark.go
def test_worker_answers_each_task(go_toolchain: Path, tmp_path: Path) -> None:
    binary = compiled("worker", go_toolchain, tmp_path)
    tasks = "".join(json.dumps({"id": str(n), "text": "a"}) + "\n" for n in range(9)) + "junk\n"
    done = subprocess.run(
        [binary], env={}, input=tasks, capture_output=True, check=True, text=True, timeout=30
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(a["id"] for a in answers if "result" in a) == [str(n) for n in range(9)]
    assert sum("error" in a for a in answers) == 1


@pytest.mark.go
def test_worker_stops_on_sigterm(go_toolchain: Path, tmp_path: Path) -> None:
    binary = compiled("worker", go_toolchain, tmp_path)
    process = subprocess.Popen([binary], env={}, stdin=subprocess.PIPE)
    time.sleep(0.3)
    process.terminate()
    try:
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.go
def test_go_runtime_passes_its_own_tests(go_toolchain: Path) -> None:
    env = dict(os.environ) | {"CGO_ENABLED": "0", "GOFLAGS": ""}
    for argv in (["vet", "./..."], ["test", "./..."]):
        subprocess.run([go_toolchain, *argv], cwd=ROOT / "go-runtime", env=env, check=True)
