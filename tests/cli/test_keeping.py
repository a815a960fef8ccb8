"""The keeping verbs on a store with an image in it, and a server to heal from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import hello_files, noise, publish_image

from layerkit.cli import run
from layerkit.jobs.serve import start


def test_images_are_listed_pinned_removed_and_healed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    top = publish_image(tmp_path / "layout", "hello:v1", hello_files(noise(20_000)))
    store = ["--store", str(tmp_path / "store")]

    def say(*argv: str, status: int = 0) -> str:
        assert run([*argv, *store]) == status, capsys.readouterr()
        return capsys.readouterr().out

    with start(tmp_path / "layout") as running:
        server = ["--server", running.url]
        say("pull", "hello:v1", *server)
        assert say("pin", "hello:v1") == f"hello@{top.digest}\n"
        (image,) = json.loads(say("images", "--json"))["images"]
        assert (image["ref"], image["digest"]) == ("hello:v1", str(top.digest))
        assert image["pinned"] and image["complete"]
        assert "pinned" in say("images")
        say("gc", "--quota", "1KB", status=3)  # it is pinned, and stays
        for pack in (tmp_path / "store/packs").iterdir():
            data = bytearray(pack.read_bytes())
            data[len(data) // 2] ^= 1
            pack.write_bytes(data)
        assert "image hello:v1 is not whole" in say("verify", status=5)
        say("verify", "--repair", *server)
        assert "good" in say("verify")
        assert say("unpin", f"hello@{top.digest}") == f"hello@{top.digest}\n"
        say("remove", "hello:v1", "hello:v2", status=4)
        assert say("remove", "hello:v1") == "hello:v1\n"
        assert json.loads(say("gc", "--json"))["used_size"] == 0
