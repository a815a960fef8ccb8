"""Images that `docker build` made are cut anew, and two engines make the same files of both."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from docker_engine import Engine
from go_builds import build_go
from registry_servers import find_tool
from test_split_docker import export_files

from layerkit.digest import sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.engine import Containerd, Docker
from layerkit.edges.imagesource import Places, open_image
from layerkit.edges.layout import Layout
from layerkit.edges.loading import ImageLoader
from layerkit.edges.tools import Tools
from layerkit.formats import oci
from layerkit.formats.deflate import compression_by_name, decompress
from layerkit.formats.layerform import PART_BINARY, decode_layer, split_parts
from layerkit.formats.protocol import unpack_form
from layerkit.formats.reference import Reference
from layerkit.formats.statement import SBOM_TYPE
from layerkit.formats.tar import read_tar
from layerkit.jobs.split import SplitResult, split

sys.path.append(str(Path(__file__).parent.parent.parent / "bench"))
import foreign  # needs the line above

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.usefixtures("emptied")]
AMD64 = oci.Platform("linux", "amd64")
CONTAINERD_NAMESPACE = "split"
# What layers do to each other: removed files and folders, a folder made anew (opaque), new rights,
# owners and times, links to and copies of files of lower layers, odd names.
CHANGES = """RUN mkdir -p /data/old/deep && echo 1 > /data/old/deep/a && echo 2 > /data/keep
RUN rm -rf /data/old && mkdir /data/old && echo 3 > /data/old/new
RUN chmod 4751 /bin/busybox && chown 7:9 /data/keep && touch -t 200102030405 /data/keep
RUN ln /data/keep /data/twin && ln -s ../data/keep /var/link && mknod /data/pipe p
RUN echo x > "/data/a name with spaces" && echo y > /data/ümlaut && rm /etc/passwd
RUN mv /data/old/new /data/moved && chmod 711 /var && mkdir /data/empty
"""
ROLES = {
    "python": {
        "app/main.py": "code",
        "app/venv/lib/python3.12/site-packages/flask/app.py": "deps",
        "bin/busybox": "base",
    },
    "node": {
        "app/index.js": "code",
        "app/node_modules/express/index.js": "deps",
        "bin/busybox": "base",
    },
    "java": {"app/app.jar": "code", "app/libs/gson.jar": "deps", "bin/busybox": "base"},
    "go": {
        "srv/app/bin/server": "code",
        "srv/app/bin/cgo": "code",
        "srv/app/static/page1.html": "code",
        "bin/busybox": "base",
    },
}
PACKAGES = {  # package URLs without versions
    "python": {"pkg:pypi/flask", "pkg:pypi/werkzeug"},
    "node": {"pkg:npm/express"},
    "java": {"pkg:maven/com.google.code.gson/gson"},
    "go": {"pkg:golang/std"},
}


MAIN = """package main

import (
	"fmt"
	"net/http"
)

func main() { fmt.Println(http.ListenAndServe("127.0.0.1:1", nil)) }
"""
C_MAIN = """package main

// int twice(int x) { return 2 * x; }
import "C"

func main() { println(C.twice(21)) }
"""


@pytest.fixture(scope="module")
def binaries(go_toolchain: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Programs by name: Go's, stripped and with symbols, linked by C's linker, cut off as a packer
    leaves them, and one that is not Go's."""
    sources = {"go.mod": "module m\n\ngo 1.24\n", "main.go": MAIN}
    server = build_go(go_toolchain, sources)
    found = {"server": server, "packed": server[: len(server) // 2]}
    found["worker"] = build_go(go_toolchain, sources, "")
    found["other"] = Path("/bin/true").read_bytes()
    folder = tmp_path_factory.mktemp("cgo")
    (folder / "go.mod").write_text(sources["go.mod"])
    (folder / "main.go").write_text(C_MAIN)
    env = os.environ | {"CGO_ENABLED": "1"}
    argv = [go_toolchain, "build", "-trimpath", "-o", "cgo", "."]
    if subprocess.run(argv, cwd=folder, env=env, capture_output=True).returncode == 0:
        found["cgo"] = (folder / "cgo").read_bytes()
    return found


@pytest.mark.parametrize("layout", foreign.LAYOUTS[:2])
@pytest.mark.parametrize("kind", list(foreign.APPS))
def test_engines_make_the_same_files(
    engine: Engine, tmp_path: Path, kind: str, layout: str, binaries: dict[str, bytes]
) -> None:
    old, new = (Reference.parse(f"{kind}:{name}") for name in ("built", "cut"))
    try:
        foreign.make_context(kind, tmp_path / "context", 1, layout, binaries=binaries, more=CHANGES)
    except foreign.MissingError as exc:
        pytest.skip(str(exc))
    build(engine, tmp_path / "context", old)
    cut = Layout(tmp_path / "cut")
    result = split_text(engine, f"docker-daemon:{old}", new, cut)
    engine.docker("save", "-o", tmp_path / "saved.tar", str(old))
    again = split_text(engine, f"{tmp_path}/saved.tar", new, Layout(tmp_path / "again"))
    assert again.digest == result.digest
    assert {path: role_of(cut, result, path) for path in ROLES[kind]} == ROLES[kind]

    assert PACKAGES[kind] <= package_urls(cut, result)
    loader = ImageLoader(cut, new, AMD64, tmp_path)
    loader.load(Docker(f"unix://{engine.socket}"))
    seen = [export_files(engine, ref, tmp_path) for ref in (old, new)]
    assert "data/twin" in seen[0] and "etc/passwd" not in seen[0]
    assert seen[0] == seen[1]

    socket = str(engine.socket.parent / "exec" / "containerd" / "containerd.sock")
    containerd = Containerd(Tools(os.environ), socket, CONTAINERD_NAMESPACE)
    loader.load(containerd)
    ctr(socket, "images", "import", str(tmp_path / "saved.tar"))
    mounted = [mount_files(socket, ref, tmp_path) for ref in (old, new)]
    assert mounted[0]["data/keep"]["links"] == ["data/keep", "data/twin"]
    assert mounted[0] == mounted[1]
    for ref in (old, new):
        engine.docker("rmi", str(ref))
        ctr(socket, "images", "rm", f"{ref.full_name}:{ref.tag}")


def test_go_binaries_of_any_image_get_their_form(
    engine: Engine, tmp_path: Path, binaries: dict[str, bytes]
) -> None:
    """In one layer, beside other files and programs that have none."""
    foreign.make_context("go", tmp_path / "context", 1, "one copy", binaries=binaries)
    ref = Reference.parse("gobins:built")
    build(engine, tmp_path / "context", ref)
    cut = Layout(tmp_path / "cut")
    result = split_text(engine, f"docker-daemon:{ref}", Reference.parse("gobins:cut"), cut)
    code = next(layer for layer in result.images[0].layers if layer.role == "code")
    forms = [
        blob
        for entry in cut.referrers(result.digest, oci.CHUNKS_ARTIFACT)
        for blob in cut.read_manifest(entry.digest).layers
        if blob.media_type == oci.FORM_ZSTD
        and blob.annotations[oci.ANNOTATION_LAYER] == str(code.diff_id)
    ]
    form = unpack_form(cut.read_blob(forms[0]))
    listed = {one.path.rpartition("/")[2]: one for one in result.images[0].binaries}
    assert listed["server"].has_form and listed["worker"].has_form
    coded = sum(kind == PART_BINARY for kind, _ in split_parts(form))
    assert coded in (2, 3), "server and worker; cgo's too where C links to a fixed address"
    assert sha256_digest(decode_layer(form)) == code.diff_id


def test_a_binary_that_upx_packed_is_named(
    binaries: dict[str, bytes], tmp_path: Path, engine: Engine
) -> None:
    """It goes as it is: the same file comes out, and the result says why it has no form."""
    packed = tmp_path / "packed"
    packed.write_bytes(binaries["worker"])
    packed.chmod(0o755)
    subprocess.run([find_tool("upx"), "-q", "-1", str(packed)], check=True, capture_output=True)
    programs = {"server": binaries["server"], "packed": packed.read_bytes()}
    foreign.make_context("go", tmp_path / "context", 1, "one copy", binaries=programs)
    ref = Reference.parse("upx:built")
    build(engine, tmp_path / "context", ref)
    cut = Layout(tmp_path / "cut")
    result = split_text(engine, f"docker-daemon:{ref}", Reference.parse("upx:cut"), cut)
    listed = {one.path.rpartition("/")[2]: one for one in result.images[0].binaries}
    assert listed["server"].has_form
    assert "UPX" in listed["packed"].why_raw


# --- engines -----------------------------------------------------------------------------------


def build(engine: Engine, context: Path, ref: Reference) -> None:
    done = subprocess.run(
        [
            *("docker", "-H", f"unix://{engine.socket}", "build", "--network", "none", "-q"),
            *("-t", str(ref), str(context)),
        ],
        env=os.environ | {"DOCKER_BUILDKIT": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stderr}\n{engine.log_tail()}"


def split_text(engine: Engine, text: str, ref: Reference, layout: Layout) -> SplitResult:
    places = Places(layout.path.parent, Disk(), docker=f"unix://{engine.socket}")
    with open_image(text, places) as found:
        recipe = compression_by_name("gzip")
        return split(found.source, found.top, ref, layout, recipe=recipe)


def role_of(layout: Layout, result: SplitResult, path: str) -> str:
    """The role of the layer that has a file, not only the folder that leads to it."""
    manifest = layout.read_manifest(result.digest)
    for blob in manifest.layers:
        plain = decompress(layout.read_blob(blob), blob.media_type, 1 << 32)
        if any(entry.path == path for entry in read_tar(plain)):
            return blob.annotations[oci.ANNOTATION_ROLE]
    return ""


def package_urls(layout: Layout, result: SplitResult) -> set[str]:
    """Those in the SBOM."""
    (sbom,) = layout.referrers(result.digest, SBOM_TYPE)
    raw = layout.read_blob(layout.read_manifest(sbom.digest).layers[0])
    return {part.get("purl", "").rpartition("@")[0] for part in json.loads(raw)["components"]}


def ctr(socket: str, *argv: str) -> str:
    done = subprocess.run(
        ["ctr", "-a", socket, "-n", CONTAINERD_NAMESPACE, *argv], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


WALK = """
import sys, json
sys.path[:0] = [sys.argv[2]]
from test_split_images import list_tree
json.dump(list_tree(sys.argv[1]), sys.stdout)
"""


def mount_files(socket: str, ref: Reference, folder: Path) -> dict[str, dict[str, object]]:
    """Everything that the kernel says of the files, once containerd has mounted the image."""
    where = folder / f"mount-{ref.tag}"
    where.mkdir()
    script = (
        f"ctr -a {socket} -n {CONTAINERD_NAMESPACE} images mount --snapshotter native"
        f" {ref.full_name}:{ref.tag} {where} >&2"
        f' && "$0" -c "$1" {where} {Path(__file__).parent}'
    )
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", script),
            *(sys.executable, WALK),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, object]] = json.loads(done.stdout)
    return found


def list_tree(root: str) -> dict[str, dict[str, object]]:
    """Paths with what lstat says, extended attributes, bytes, and all names of a file."""
    found: dict[str, dict[str, object]] = {}
    names: dict[int, list[str]] = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            about = os.lstat(path)
            short = os.path.relpath(path, root)
            if not stat.S_ISDIR(about.st_mode):
                names.setdefault(about.st_ino, []).append(short)
            found[short] = {
                "mode": about.st_mode,
                "owner": [about.st_uid, about.st_gid],
                "mtime": about.st_mtime_ns,
                "device": about.st_rdev,
                "xattrs": {
                    key: os.getxattr(path, key, follow_symlinks=False).hex()
                    for key in os.listxattr(path, follow_symlinks=False)
                },
                "inode": about.st_ino,
            }
            if stat.S_ISLNK(about.st_mode):
                found[short]["target"] = os.readlink(path)
            if stat.S_ISREG(about.st_mode):
                with open(path, "rb") as file:
                    found[short]["data"] = hashlib.file_digest(file, "sha256").hexdigest()
    for facts in found.values():
        inode = facts.pop("inode")
        assert isinstance(inode, int)
        facts["links"] = sorted(names.get(inode, []))
    return found
