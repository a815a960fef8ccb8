"""Where an image is found: layouts, archives plain and compressed, a registry, an engine."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest
import zstandard
from builders import Silent, publish_image
from registries import FakeRegistry

from layerkit.edges.disk import Disk
from layerkit.edges.imagesource import Places, open_image
from layerkit.edges.layout import Layout
from layerkit.edges.registry import Registry, Transport
from layerkit.edges.storage.targets import RegistryTarget
from layerkit.errors import FormatError, IntegrityError, NotFoundError, RemoteError, ToolError
from layerkit.formats import oci
from layerkit.formats.reference import Reference
from layerkit.jobs.publish import publish

FILES = {"base": {"etc/passwd": b"root"}, "code": {"app/x": b"code" * 100}}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    publish_image(tmp_path / "layout", "shop:1", FILES)
    return Layout(tmp_path / "layout")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path, Disk(), docker=f"unix://{tmp_path}/docker.sock")


def archive(layout: Layout, path: Path) -> Path:
    with tarfile.open(path, "w") as file:
        file.add(layout.path, ".")
    return path


def read_all(text: str, places: Places) -> list[bytes]:
    """Every blob of the image."""
    with open_image(text, places) as found:
        manifest = oci.parse_manifest(found.source.read_blob(found.top))
        return [found.source.read_blob(one) for one in (manifest.config, *manifest.layers)]


def test_layouts_and_archives_give_the_same(layout: Layout, places: Places, tmp_path: Path) -> None:
    wanted = read_all(f"{layout.path}:shop:1", places)
    plain = archive(layout, tmp_path / "shop.tar")
    (tmp_path / "shop.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "shop.tar.zst").write_bytes(zstandard.ZstdCompressor().compress(plain.read_bytes()))
    before = sorted(tmp_path.iterdir())
    for text in (str(layout.path), *(f"{tmp_path}/shop.tar{end}" for end in ("", ".gz", ".zst"))):
        assert read_all(text, places) == wanted
        assert read_all(f"{text}:shop:1", places) == wanted
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("prefix", ["", "docker://"])
def test_a_registry_has_it(layout: Layout, places: Places, prefix: str) -> None:
    with FakeRegistry(referrers_api=True).serving() as fake:
        ref = Reference.parse("shop:1")
        registry = Registry(Transport(fake.host, plain_http=True))
        publish(layout, ref, RegistryTarget(registry), Silent())
        text = f"{prefix}{fake.host}/shop:1"
        assert read_all(text, places) == read_all(str(layout.path), places)
        with pytest.raises(NotFoundError):
            read_all(f"{prefix}{fake.host}/shop:2", places)
    with pytest.raises(RemoteError):
        read_all(f"{prefix}127.0.0.1:9/shop:1", places)


def test_what_is_nowhere(places: Places, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no docker runs here"):
        read_all("shop:1", places)
    with pytest.raises(ToolError, match="cannot save"):
        read_all("docker-daemon:shop:1", places)
    with pytest.raises(NotFoundError, match="neither"):
        read_all("UPPER", places)
    assert list(tmp_path.iterdir()) == []


def test_damaged_archives(layout: Layout, places: Places, tmp_path: Path) -> None:
    path = archive(layout, tmp_path / "shop.tar")
    data = path.read_bytes()
    for bad in (b"", b"x" * 600, gzip.compress(data)[:-20], data[:1000]):
        path.write_bytes(bad)
        with pytest.raises(FormatError):
            read_all(str(path), places)
    blob = layout.read_manifest(layout.resolve(Reference.parse("shop:1")).digest).layers[1]
    at = data.index(layout.read_blob(blob))
    path.write_bytes(data[: at + 9] + b"\0" + data[at + 10 :])
    with pytest.raises(IntegrityError):
        read_all(str(path), places)
