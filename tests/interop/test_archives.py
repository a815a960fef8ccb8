"""Archives as others write them are read: skopeo's of both kinds, and containerd's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from builders import publish_image
from docker_engine import Engine

from layerkit.edges.disk import Disk
from layerkit.edges.imagesource import Places, open_image
from layerkit.edges.layout import Layout, write_docker_archive
from layerkit.formats import oci
from layerkit.formats.deflate import compression_by_name, decompress
from layerkit.formats.reference import Reference
from layerkit.jobs.split import SplitResult, split

pytestmark = [pytest.mark.docker, pytest.mark.slow]
REF = Reference.parse("shop:1")
FILES = {"base": {"etc/passwd": b"root"}, "deps": {"app/node_modules/a.js": b"d"}, "code": {}}
FILES["code"]["app/index.js"] = b"code" * 100


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    publish_image(tmp_path / "layout", str(REF), FILES)
    return Layout(tmp_path / "layout")


def run(*argv: str | Path) -> None:
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def plain_layers(text: str, folder: Path) -> list[bytes]:
    with open_image(text, Places(folder, Disk())) as found:
        manifest = oci.parse_manifest(found.source.read_blob(found.top))
        return [
            decompress(found.source.read_blob(one), one.media_type, 1 << 30)
            for one in manifest.layers
        ]


def cut(text: str, folder: Path) -> SplitResult:
    with open_image(text, Places(folder, Disk())) as found:
        recipe = compression_by_name("gzip")
        return split(found.source, found.top, REF, Layout(folder / "cut"), recipe=recipe)


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_skopeos(layout: Layout, tmp_path: Path, kind: str) -> None:
    if not shutil.which("skopeo"):
        pytest.skip("skopeo is not installed")
    path = tmp_path / "skopeo.tar"
    source = f"oci:{layout.path}:{REF}"
    run("skopeo", "--insecure-policy", "copy", source, f"{kind}:{path}:{REF}")
    for text in (str(path), f"{path}:{REF}"):
        assert plain_layers(text, tmp_path) == plain_layers(str(layout.path), tmp_path)
    roles = [layer.role for layer in cut(str(path), tmp_path).images[0].layers]
    assert roles == ["base", "deps", "code"]


def test_containerds(engine: Engine, layout: Layout, tmp_path: Path) -> None:
    socket = engine.socket.parent / "exec" / "containerd" / "containerd.sock"
    path, name = tmp_path / "in.tar", f"{REF.full_name}:{REF.tag}"
    write_docker_archive(layout, REF, path, oci.Platform("linux", "amd64"))
    ctr = ("ctr", "-a", socket, "-n", "archives")
    run(*ctr, "images", "import", path)
    run(*ctr, "images", "export", tmp_path / "out.tar", name)
    for text in (f"{tmp_path}/out.tar", f"{tmp_path}/out.tar:{REF}"):
        assert plain_layers(text, tmp_path) == plain_layers(str(layout.path), tmp_path)
