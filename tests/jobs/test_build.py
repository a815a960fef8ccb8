"""`layerkit build` on real Go: reproducible, static, clear when it fails, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from layerkit.digest import sha256_digest
from layerkit.edges.layout import Layout
from layerkit.edges.sources import read_base
from layerkit.errors import (
    BuildError,
    CgoError,
    LayerkitError,
    NotFoundError,
    ToolMissingError,
    UsageError,
)
from layerkit.formats import oci
from layerkit.formats.chunkmanifest import parse_chunk_manifest
from layerkit.formats.deflate import compress, decompress
from layerkit.formats.formpack import PACKED_TYPE, unpack
from layerkit.formats.protocol import unpack_form
from layerkit.formats.reference import Reference
from layerkit.formats.statement import PROVENANCE_TYPE, SBOM_TYPE
from layerkit.formats.tar import read_tar
from layerkit.jobs.build import BuildResult, build

pytestmark = [pytest.mark.go, pytest.mark.xdist_group("build")]  # one `hello` for all
HELLO = Path(__file__).parent.parent.parent / "examples" / "hello"
REF = Reference.parse("hello:v1")
AMD64 = oci.Platform("linux", "amd64")
ARM64 = oci.Platform("linux", "arm64")


@pytest.fixture(scope="session")
def env(go_toolchain: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    caches = subprocess.run(
        [go_toolchain, "env", "GOCACHE", "GOMODCACHE"], capture_output=True, text=True, check=True
    ).stdout.split()
    return kept | {"GOCACHE": caches[0], "GOMODCACHE": caches[1]}


@pytest.fixture(scope="session")
def hello(
    env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[BuildResult, Layout]:
    """Built with packs; the builds of the same image below are without."""
    path = tmp_path_factory.mktemp("hello") / "layout"
    return build(HELLO, REF, layout_path=path, env=env, packs=True), Layout(path)


def module(folder: Path, files: Mapping[str, str], go: str = "1.24") -> Path:
    for name, text in ({"go.mod": f"module example.com/fn\n\ngo {go}\n"} | dict(files)).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def layers_of(layout: Layout, descriptor: oci.Descriptor) -> dict[str, oci.Descriptor]:
    return {
        layer.annotations[oci.ANNOTATION_ROLE]: layer
        for layer in layout.read_manifest(descriptor.digest).layers
    }


def binary_of(layout: Layout, descriptor: oci.Descriptor) -> bytes:
    code = layers_of(layout, descriptor)["code"]
    tar = decompress(layout.read_blob(code.digest), code.media_type, 1 << 30)
    return next(bytes(entry.data) for entry in read_tar(tar) if entry.path == "app/hello")


def test_pack_publishes_a_smaller_form(hello: tuple[BuildResult, Layout]) -> None:
    result, layout = hello
    artifact = layout.read_manifest(layout.referrers(result.digest)[0].digest)
    packed = [blob for blob in artifact.layers if blob.media_type == PACKED_TYPE]
    layer = packed[0].annotations[oci.ANNOTATION_LAYER]
    form = next(
        blob
        for blob in artifact.layers
        if blob.media_type == oci.FORM_ZSTD and blob.annotations[oci.ANNOTATION_LAYER] == layer
    )
    assert unpack(layout.read_blob(packed[0])) == unpack_form(layout.read_blob(form))
    assert packed[0].size < 0.9 * form.size


def test_binary_equals_bare_go_build(
    hello: tuple[BuildResult, Layout], env: dict[str, str], go_toolchain: Path, tmp_path: Path
) -> None:
    flags = ["-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid="]
    subprocess.run(
        [go_toolchain, "build", *flags, "-o", tmp_path / "x", "."],
        cwd=HELLO,
        env=env | {"CGO_ENABLED": "0", "GOARCH": "amd64", "GOOS": "linux"},
        check=True,
    )
    result, layout = hello
    want = (tmp_path / "x").read_bytes()
    assert binary_of(layout, layout.resolve(REF)) == want
    assert result.images[0].binary_digest == sha256_digest(want)


def test_a_binary_that_cannot_be_stripped_is_linked_again(
    hello: tuple[BuildResult, Layout],
    env: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with some programs of go1.20 and go1.21: the linker strips then, and names are lost."""
    monkeypatch.setattr("layerkit.jobs.build.strip", lambda unstripped: None)
    made = build(HELLO, REF, layout_path=tmp_path / "layout", env=env)
    layout = Layout(tmp_path / "layout")
    assert binary_of(layout, layout.resolve(REF)) == binary_of(hello[1], hello[1].resolve(REF))
    assert made.digest == hello[0].digest


def test_image_is_the_same_from_another_folder_home_and_shell(
    hello: tuple[BuildResult, Layout], env: dict[str, str], tmp_path: Path
) -> None:
    other = tmp_path / "somewhere" / "else"
    shutil.copytree(HELLO, other)
    for path in other.iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    loud = {"GOFLAGS": "-race", "GOAMD64": "v3", "GOEXPERIMENT": "nope", "TZ": "Asia/Tokyo"}
    loud |= {"HOME": str(tmp_path), "LANG": "tr_TR.UTF-8", "CGO_ENABLED": "1"}
    old = os.umask(0o077)
    try:
        found = build(other, REF, layout_path=tmp_path / "layout", env=env | loud)
    finally:
        os.umask(old)
    assert found.digest == hello[0].digest


@pytest.mark.slow
def test_image_is_the_same_from_an_empty_go_cache(
    hello: tuple[BuildResult, Layout], env: dict[str, str], tmp_path: Path
) -> None:
    fresh = env | {"GOCACHE": str(tmp_path / "cache")}
    assert build(HELLO, REF, layout_path=tmp_path / "l", env=fresh).digest == hello[0].digest


def test_image_says_how_it_was_made(hello: tuple[BuildResult, Layout]) -> None:
    result, layout = hello
    manifest = layout.read_manifest(result.digest)
    config = oci.parse_config(layout.read_blob(manifest.config))
    assert manifest.annotations["dev.layerkit.go"] == config.labels["dev.layerkit.go"] == result.go
    assert manifest.annotations["org.opencontainers.image.title"] == "hello"
    assert (config.user, config.entrypoint) == ("65532:65532", ("/app/hello",))


def test_image_is_small(hello: tuple[BuildResult, Layout]) -> None:
    assert sum(layer.size for layer in hello[0].images[0].layers) < 6 << 20


def test_layers_are_made_again_from_their_recipe(hello: tuple[BuildResult, Layout]) -> None:
    _, layout = hello
    for layer in layers_of(layout, layout.resolve(REF)).values():
        blob = layout.read_blob(layer)
        plain = decompress(blob, layer.media_type, 1 << 30)
        assert compress(plain, layer.annotations[oci.ANNOTATION_COMPRESSION]) == blob


def test_base_is_the_same_in_every_image(
    hello: tuple[BuildResult, Layout], env: dict[str, str], tmp_path: Path
) -> None:
    folder = module(tmp_path / "fn", {"main.go": "package main\n\nfunc main() {}\n"})
    found = build(folder, REF, layout_path=tmp_path / "l", env=env, platforms=[ARM64])
    assert found.images[0].layers[0] == hello[0].images[0].layers[0]


def test_base_has_every_zone_and_certificates() -> None:
    entries, made_from = read_base()
    paths = {entry.path for entry in entries}
    assert {"usr/share/zoneinfo/Europe/Berlin", "etc/ssl/certs/ca-certificates.crt"} <= paths
    assert len(paths) > 400 and "tzdata 20" in made_from


def test_chunks_artifact_lies_beside_the_image(hello: tuple[BuildResult, Layout]) -> None:
    result, layout = hello
    (referrer,) = layout.referrers(result.digest, oci.CHUNKS_ARTIFACT)
    artifact = layout.read_manifest(referrer.digest)
    diff_ids = [str(layer.diff_id) for layer in result.images[0].layers]
    assert (
        list(dict.fromkeys(item.annotations[oci.ANNOTATION_LAYER] for item in artifact.layers))
        == diff_ids
    )
    chunks = parse_chunk_manifest(layout.read_blob(artifact.layers[2]))
    assert chunks.plain_size == result.images[0].layers[1].plain_size


def test_an_sbom_and_provenance_lie_beside_the_image(
    hello: tuple[BuildResult, Layout],
) -> None:
    result, layout = hello
    (entry,) = layout.referrers(result.digest, SBOM_TYPE)
    bom = json.loads(layout.read_blob(layout.read_manifest(entry.digest).layers[0]))
    names = {part["name"]: part["purl"] for part in bom["components"]}
    assert names["std"] == f"pkg:golang/std@{result.go.removeprefix('go')}"
    assert "tzdata" in names
    binary = bom["metadata"]["component"]["hashes"][0]["content"]
    assert binary == result.images[0].binary_digest.hex
    (entry,) = layout.referrers(result.digest, PROVENANCE_TYPE)
    statement = json.loads(layout.read_blob(layout.read_manifest(entry.digest).layers[0]))
    assert statement["subject"] == [{"name": "hello", "digest": {"sha256": result.digest.hex}}]
    assert str(layout.path) not in json.dumps([bom, statement])


def test_several_platforms_give_one_index(env: dict[str, str], tmp_path: Path) -> None:
    folder = module(tmp_path / "fn", {"main.go": "package main\n\nfunc main() {}\n"})
    found = build(folder, REF, layout_path=tmp_path / "l", env=env, platforms=[ARM64, AMD64])
    layout = Layout(tmp_path / "l")
    images = layout.images(layout.resolve(REF))
    assert [str(image.platform) for image in images] == ["linux/amd64", "linux/arm64"]
    assert found.media_type == oci.INDEX
    assert all(layout.referrers(image.digest) for image in images)


def test_assets_go_into_their_layers(env: dict[str, str], tmp_path: Path) -> None:
    folder = module(
        tmp_path / "fn",
        {
            "main.go": "package main\n\nfunc main() {}\n",
            "models/a.bin": "A",
            "models/deep/b.bin": "B",
            "config.json": "{}",
            "layerkit.toml": "[layers]\ndeps = ['models']\ncode = ['*.json']\n",
        },
    )
    build(folder, REF, layout_path=tmp_path / "l", env=env, compression="zstd")
    layout = Layout(tmp_path / "l")
    found = {}
    for role, layer in layers_of(layout, layout.resolve(REF)).items():
        tar = decompress(layout.read_blob(layer), layer.media_type, 1 << 30)
        found[role] = [entry.path for entry in read_tar(tar) if entry.kind == "file"]
    assert found["deps"] == ["app/models/a.bin", "app/models/deep/b.bin"]
    assert found["code"] == ["app/config.json", "app/fn"]


NATIVE = """package native

// int f(void) { return 1; }
import "C"

func F() int { return int(C.f()) }
"""
PLAIN = "//go:build !cgo\n\npackage native\n\nfunc F() int { return 2 }\n"
USER = 'package main\n\nimport "example.com/fn/native"\n\nfunc main() { println(native.F()) }\n'


def test_a_package_that_needs_cgo_is_named(env: dict[str, str], tmp_path: Path) -> None:
    folder = module(tmp_path / "fn", {"main.go": USER, "native/native.go": NATIVE})
    with pytest.raises(CgoError, match=r"example\.com/fn/native needs cgo"):
        build(folder, REF, layout_path=tmp_path / "l", env=env)


def test_a_package_with_a_fallback_is_a_warning(env: dict[str, str], tmp_path: Path) -> None:
    files = {"main.go": USER, "native/native.go": NATIVE, "native/plain.go": PLAIN}
    folder = module(tmp_path / "fn", files)
    said: list[str] = []
    build(folder, REF, layout_path=tmp_path / "l", env=env, warn=said.append)
    assert len(said) == 1 and "example.com/fn/native" in said[0]


def test_a_package_with_a_fallback_is_refused_when_strict(
    env: dict[str, str], tmp_path: Path
) -> None:
    files = {"main.go": USER, "native/native.go": NATIVE, "native/plain.go": PLAIN}
    folder = module(tmp_path / "fn", files)
    with pytest.raises(CgoError, match="has cgo files"):
        build(folder, REF, layout_path=tmp_path / "l", env=env, strict_cgo=True)


MAIN = "package main\n\nfunc main() {}\n"


def no_go_mod(folder: Path) -> None:
    (folder / "go.mod").unlink()


def collision(folder: Path) -> None:
    (folder / "fn").write_text("x")
    (folder / "layerkit.toml").write_text("[layers]\ndeps = ['fn']\n")


def settings(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "layerkit.toml").write_text(text) and None


def source(text: str, go: str = "1.24") -> Callable[[Path], None]:
    return lambda folder: module(folder, {"main.go": text}, go) and None


@pytest.mark.parametrize(
    ("spoil", "error", "status", "message"),
    [
        (source("package main\n\nfunc main() { foo() }\n"), BuildError, 8, "go:3:15: undefined"),
        (source("package main\n\nfunc main( {}\n"), BuildError, 8, "main.go:3:12: syntax error"),
        (source("package main\n\nimport \"x.y/z\"\n\nfunc main() {}\n"), BuildError, 8, "go:3:8"),
        (no_go_mod, BuildError, 8, "no go.mod in"),
        (source("package lib\n"), BuildError, 8, "no main package in"),
        (source(MAIN, go="1.99"), ToolMissingError, 8, "go is too old"),
        (settings("[build]\ngo = '1.23'\n"), ToolMissingError, 8, "wants go 1.23"),
        (settings("[build]\nspeed = 9\n"), UsageError, 2, "build.speed"),
        (settings("[layers]\ndeps = ['none']\n"), NotFoundError, 4, "'none'"),
        (settings("[layers]\ndeps = ['../x']\n"), UsageError, 2, "leaves"),
        (collision, UsageError, 2, "/app/fn is where the binary goes"),
        (lambda folder: shutil.rmtree(folder), NotFoundError, 4, "does not exist"),
    ],
)  # fmt: skip
def test_failures_are_clear_and_leave_nothing(
    spoil: Callable[[Path], None],
    error: type[LayerkitError],
    status: int,
    message: str,
    env: dict[str, str],
    tmp_path: Path,
) -> None:
    folder = module(tmp_path / "fn", {"main.go": MAIN})
    (tmp_path / "tmp").mkdir()
    spoil(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error) as caught:
        build(folder, REF, layout_path=tmp_path / "l", env=env | {"TMPDIR": str(tmp_path / "tmp")})
    assert caught.value.exit_status == status
    assert message in caught.value.message
    assert sorted(tmp_path.rglob("*")) == before


def test_no_go_at_all_is_a_missing_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ToolMissingError, match="go is not installed"):
        build(HELLO, REF, layout_path=tmp_path / "l", env={"PATH": "/nowhere"})


def test_ctrl_c_stops_go_and_leaves_nothing(env: dict[str, str], tmp_path: Path) -> None:
    scratch, cache = tmp_path / "tmp", tmp_path / "cache"
    scratch.mkdir()
    argv = [sys.executable, "-m", "layerkit", "build", str(HELLO), "-t", "hello:v1"]
    process = subprocess.Popen(
        [*argv, "-o", str(tmp_path / "l")],
        env=env | {"GOCACHE": str(cache), "TMPDIR": str(scratch)},  # empty: compiles for long
        stderr=subprocess.PIPE,
        # a shell's background job starts with SIGINT ignored, and so would this one
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 30
    while not list(scratch.glob("*/go-build*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert (list(scratch.iterdir()), (tmp_path / "l").exists()) == ([], False)


@pytest.mark.parametrize("full", ["scratch", "layout"])
def test_a_full_disk_is_told_and_leaves_nothing(
    full: str, hello: tuple[BuildResult, Layout], env: dict[str, str], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs in a private namespace needs root")
    for name in ("scratch", "layout"):
        (tmp_path / name).mkdir()
    script = (
        'mount -t tmpfs -o size=1m tmpfs "$1" && "$2" -m layerkit build "$3" -t hello:v1 -o "$4"'
    )
    script += '; status=$?; ls -A "$1" >&2; exit $status'
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    argv += [str(tmp_path / full), sys.executable, str(HELLO), str(tmp_path / "layout" / "l")]
    done = subprocess.run(
        argv, env=env | {"TMPDIR": str(tmp_path / "scratch")}, capture_output=True, text=True
    )
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(f"no tmpfs here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 7, done.stderr
    assert done.stderr.splitlines()[0].startswith("layerkit: error: no space left")
    assert done.stderr.splitlines()[-1].startswith("layerkit: "), "ls found something"
