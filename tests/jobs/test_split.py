"""`split`: other people's images cut anew; their files and how they run stay as they are."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard
from builders import noise
from go_builds import build_go

from layerkit.digest import sha256_digest
from layerkit.edges.layout import Layout
from layerkit.errors import FormatError, IntegrityError, NotFoundError, UsageError
from layerkit.formats import oci, tar
from layerkit.formats.deflate import compression_by_name, decompress
from layerkit.formats.layerform import LABELS_TYPE
from layerkit.formats.reference import Reference
from layerkit.formats.splitting import Rule
from layerkit.formats.statement import PROVENANCE_TYPE, SBOM_TYPE, is_own_provenance
from layerkit.formats.tar import TarEntry, write_tar
from layerkit.formats.tree import Tree, read_tree, same_trees
from layerkit.jobs.split import SplitResult, split
from layerkit.jobs.verify import verify_layout

OLD, NEW = Reference.parse("shop:1"), Reference.parse("shop:split")
MAIN = "package main\n\nfunc main() { println(42) }\n"
GZIP = compression_by_name("gzip")
CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "created": "2024-05-06T07:08:09Z",
    "author": "somebody",
    "config": {
        "Entrypoint": ["/app/run"],
        "WorkingDir": "/srv",
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGINT",
    },
    "history": [{"created_by": "ADD rootfs"}, {"created_by": "ENV", "empty_layer": True}],
}
LOWER = [
    TarEntry("etc", tar.FOLDER, 0o755, mtime=11),
    TarEntry("etc/passwd", tar.FILE, data=b"root", uid=0, gid=42, mtime=12, nanoseconds=5),
    TarEntry("etc/gone", tar.FILE, data=b"x"),
    TarEntry("usr/bin/su", tar.FILE, 0o4755, data=b"su"),
    TarEntry("usr/bin/alias", tar.HARDLINK, link="usr/bin/su"),
    TarEntry("dev/null", tar.CHAR_DEVICE, 0o666, device=(1, 3)),
]
UPPER = [
    TarEntry("etc/.wh.gone", tar.FILE),
    TarEntry("usr/lib/python3/site-packages/m.py", tar.FILE, data=b"dep" * 500),
    TarEntry("srv/main.py", tar.FILE, data=b"code", xattrs=(("user.a", b"\xff"),)),
    TarEntry("srv/link", tar.SYMLINK, link="../etc/passwd"),
]


def publish(
    layout: Layout, layers: Sequence[bytes], media_type: str = oci.LAYER_GZIP
) -> oci.Descriptor:
    """An image as somebody else's tool writes it."""
    pack = {
        oci.LAYER_GZIP: gzip.compress,
        oci.LAYER_ZSTD: zstandard.ZstdCompressor().compress,
        oci.LAYER_TAR: bytes,
        oci.DOCKER_LAYER_GZIP: gzip.compress,
    }[media_type]
    diff_ids = [str(sha256_digest(layer)) for layer in layers]
    config = CONFIG | {"rootfs": {"type": "layers", "diff_ids": diff_ids}}
    with layout.batch():
        blobs = [layout.put_blob(pack(layer), media_type) for layer in layers]
        manifest = oci.Manifest(
            layout.put_blob(json.dumps(config).encode(), oci.CONFIG), tuple(blobs), {"a": "b"}
        )
        top = layout.put_blob(oci.serialize_manifest(manifest), oci.MANIFEST)
        layout.commit(OLD, top, [])
    return top


def tree_of(layout: Layout, digest: object) -> Tree:
    manifest = layout.read_manifest(digest)  # type: ignore[arg-type]
    return read_tree(
        decompress(layout.read_blob(blob), blob.media_type, 1 << 26) for blob in manifest.layers
    )


def run(layout: Layout, top: oci.Descriptor, **facts: object) -> SplitResult:
    return split(layout, top, NEW, layout, recipe=GZIP, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "media_type", [oci.LAYER_GZIP, oci.LAYER_ZSTD, oci.LAYER_TAR, oci.DOCKER_LAYER_GZIP]
)
def test_the_files_stay_and_layers_have_roles(tmp_path: Path, media_type: str) -> None:
    layout = Layout(tmp_path / "l")
    top = publish(layout, [write_tar(LOWER), write_tar(UPPER)], media_type)
    found = run(layout, top)
    assert same_trees(tree_of(layout, top.digest), tree_of(layout, found.digest)) == ""
    assert [layer.role for layer in found.images[0].layers] == ["base", "deps", "code"]
    assert found.images[0].old_digest == top.digest
    assert verify_layout(layout.path).good
    assert layout.resolve(NEW).digest == found.digest


def test_what_is_known_of_it_lies_beside_it(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    top = publish(layout, [write_tar(LOWER), write_tar(UPPER)])
    digest = run(layout, top, describes=False).digest
    assert layout.referrers(digest, SBOM_TYPE) == []
    run(layout, top)
    (sbom,) = layout.referrers(digest, SBOM_TYPE)
    (provenance,) = layout.referrers(digest, PROVENANCE_TYPE)
    blobs = [layout.read_manifest(one.digest).layers[0] for one in (sbom, provenance)]
    assert is_own_provenance(layout.read_blob(blobs[1]), digest)
    assert blobs[0].digest.hex.encode() in layout.read_blob(blobs[1])
    assert top.digest.hex.encode() in layout.read_blob(blobs[1])


def test_how_it_runs_stays(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    top = publish(layout, [write_tar(LOWER), write_tar(UPPER)])
    manifest = layout.read_manifest(run(layout, top).digest)
    config = json.loads(layout.read_blob(manifest.config))
    assert config["config"] == CONFIG["config"]
    assert (config["author"], config["created"]) == ("somebody", CONFIG["created"])
    kept = [step["created_by"] for step in config["history"] if not step.get("empty_layer")]
    assert kept == ["layerkit split: base", "layerkit split: deps", "layerkit split: code"]
    assert config["history"][0] == {"created_by": "ADD rootfs", "empty_layer": True}
    assert manifest.annotations["dev.layerkit.split-from"] == str(top.digest)
    assert manifest.annotations["a"] == "b"


def test_the_same_image_gives_the_same_digest(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    top = publish(layout, [write_tar(LOWER), write_tar(UPPER)])
    assert run(layout, top).digest == run(layout, top).digest


def test_a_change_of_code_leaves_the_other_layers(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    one = run(layout, publish(layout, [write_tar(LOWER), write_tar(UPPER)]))
    upper = [*UPPER, TarEntry("srv/more.py", tar.FILE, data=b"more")]
    two = run(layout, publish(layout, [write_tar(LOWER), write_tar(upper)]))
    old, new = ([layer.diff_id for layer in found.images[0].layers] for found in (one, two))
    assert old[:2] == new[:2]
    assert old[2] != new[2]


def test_a_folder_that_code_touches_leaves_the_layers_below(tmp_path: Path) -> None:
    """A new file changes the times of its folders, and these lead to dependencies, too."""

    def cut(when: int) -> list[str]:
        layout = Layout(tmp_path / str(when))
        folders = [TarEntry(path, tar.FOLDER, 0o755, mtime=when) for path in ("", "app")]
        deps = TarEntry("app/node_modules/a.js", tar.FILE, data=b"dep")
        code = TarEntry("app/index.js", tar.FILE, data=b"code", mtime=when)
        top = publish(layout, [write_tar(LOWER), write_tar([*folders, deps, code])])
        found = run(layout, top)
        assert same_trees(tree_of(layout, top.digest), tree_of(layout, found.digest)) == ""
        return [str(layer.diff_id) for layer in found.images[0].layers]

    old, new = cut(100), cut(200)
    assert old[:2] == new[:2]
    assert old[2] != new[2]


def test_rules_and_empty_roles(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    top = publish(layout, [write_tar(LOWER)])
    found = run(layout, top, rules=[Rule("code", "**")])
    assert [layer.role for layer in found.images[0].layers] == ["code"]
    assert same_trees(tree_of(layout, top.digest), tree_of(layout, found.digest)) == ""


def test_every_image_of_an_index_is_cut_and_attestations_stay_behind(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    top = publish(layout, [write_tar(LOWER), write_tar(UPPER)])
    entries = [
        oci.Descriptor(top.media_type, top.digest, top.size, platform=oci.Platform("linux", arch))
        for arch in ("amd64", "arm64")
    ]
    unknown = oci.Platform("unknown", "unknown")
    entries.append(oci.Descriptor(top.media_type, top.digest, top.size, platform=unknown))
    raw = oci.serialize_index(oci.Index(tuple(entries)))
    found = run(layout, layout.put_blob(raw, oci.INDEX))
    assert [each.platform for each in found.images] == ["linux/amd64", "linux/arm64"]
    assert len(oci.parse_index(layout.read_blob(found.digest)).manifests) == 2


def test_platforms_of_an_index_are_chosen_and_only_linux_is_cut(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    top = publish(layout, [write_tar(LOWER), write_tar(UPPER)])
    names = ("linux/amd64", "linux/arm64", "windows/amd64")
    entries = tuple(
        oci.Descriptor(top.media_type, top.digest, top.size, platform=oci.parse_platform(name))
        for name in names
    )
    absent = sha256_digest(b"absent")  # what docker saves of an index names what is not there
    entries += (
        oci.Descriptor(oci.MANIFEST, absent, 1, platform=oci.parse_platform("linux/arm/v7")),
    )
    raw = oci.serialize_index(oci.Index(entries, {"made.by": "somebody"}))
    index = layout.put_blob(raw, oci.INDEX)
    found = run(layout, index)
    assert [each.platform for each in found.images] == ["linux/amd64", "linux/arm64"]
    assert found.left_out == ("linux/arm/v7", "windows/amd64")
    made = oci.parse_index(layout.read_blob(found.digest))
    assert made.annotations["made.by"] == "somebody"
    assert made.annotations["dev.layerkit.split-from"] == str(index.digest)
    one = run(layout, index, platforms=[oci.parse_platform("linux/arm64")])
    assert [each.platform for each in one.images] == ["linux/arm64"]
    assert one.left_out == ()
    with pytest.raises(NotFoundError, match="s390x"):
        run(layout, index, platforms=[oci.parse_platform("linux/s390x")])
    with pytest.raises(UsageError, match="linux"):
        run(layout, index, platforms=[oci.parse_platform("windows/amd64")])


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    top = publish(layout, [write_tar(LOWER)])
    before = sorted(path.name for path in tmp_path.rglob("*"))
    found = run(layout, top, dry_run=True)
    assert found.images[0].layers
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_damage_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "l")
    top = publish(layout, [b"no tar at all" * 100])
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(FormatError, match="tar"):
        run(layout, top)
    blob = layout.read_manifest(top.digest).layers[0]
    layout.blob_path(blob.digest).write_bytes(b"other")
    with pytest.raises((FormatError, IntegrityError)):
        run(layout, top)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.go
def test_anybodys_go_binary_gets_its_form(tmp_path: Path, go_toolchain: Path) -> None:
    """And the result says so, and why others have none."""
    layout = Layout(tmp_path / "l")
    binary = build_go(go_toolchain, {"go.mod": "module m\n", "main.go": MAIN})
    packed = b"\x7fELF\x02\x01" + bytes(232) + b"UPX!" + noise(100_000)  # as upx 4 writes them
    entries = [
        TarEntry("usr/local/bin/server", tar.FILE, 0o755, data=binary),
        TarEntry("usr/local/bin/packed", tar.FILE, 0o755, data=packed),
        TarEntry("usr/local/bin/cut", tar.FILE, 0o755, data=binary[: len(binary) // 2]),
        TarEntry("usr/local/bin/other", tar.FILE, 0o755, data=b"\x7fELF\x02\x01" + noise(100_000)),
    ]
    top = publish(layout, [write_tar(LOWER), write_tar(entries)])
    planned = run(layout, top, dry_run=True).images[0].binaries
    assert [(one.path.rpartition("/")[2], one.has_form) for one in planned] == [
        ("packed", None),
        ("server", None),
    ]
    found = run(layout, top)
    listed = {one.path.rpartition("/")[2]: one for one in found.images[0].binaries}
    assert set(listed) == {"server", "packed"}
    server = listed["server"]
    assert (server.has_form, server.why_raw, server.size) == (True, "", len(binary))
    assert listed["packed"].has_form is False
    assert "UPX" in listed["packed"].why_raw
    assert [layer.role for layer in found.images[0].layers] == ["base", "code"]
    artifacts = [
        manifest
        for entry in layout.read_index().manifests
        if (manifest := layout.read_manifest(entry.digest)).subject is not None
    ]
    kinds = {blob.media_type for blob in artifacts[0].layers}
    assert LABELS_TYPE in kinds
