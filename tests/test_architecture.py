"""The law of the floors: a module imports only what its row names. Walks the AST, runs nothing."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "layerkit"
MAX_LINES = 600

# module -> (layerkit modules it may import, outside packages it may import)
FORMATS = {
    "cursor": ("", ""),
    "elf": ("cursor", ""),
    "golang": ("buildinfo cursor elf", "numpy"),
    "kernel": ("native", "ctypes numpy"),
    "packed": ("kernel", "numpy"),
    "filled": ("", ""),
    "sets": ("kernel", "numpy"),
    "sites": ("kernel packed sets", "numpy iced_x86"),
    "gotypes": ("elf golang", ""),
    "buildinfo": ("cursor elf", ""),
    "gonames": ("buildinfo", ""),
    "ranges": ("gonames", "numpy"),
    "roles": (
        "addressfree buildinfo cursor elf golang gonames gotypes layerform ranges sites",
        "numpy",
    ),
    "bundle": ("digest", ""),
    "tokens": ("", ""),
    "notifications": ("reference", ""),
    "update": ("cursor digest", "zstandard"),
    "shelf": ("digest", ""),
    "chunkpack": ("chunkmanifest cursor digest protocol", ""),
    "storedupdate": ("digest oci update", ""),
    "updateparts": (
        "chunker chunkmanifest chunksync cursor delta digest formpack oci protocol update",
        "",
    ),
    "lean": ("digest oci", ""),
    "updating": (
        "digest oci chunker chunkmanifest chunksync formpack layerform lean update",
        "",
    ),
    "delta": ("cursor digest", "numpy pyfastcdc"),
    "chunker": ("", "pyfastcdc"),
    "chunkmanifest": ("chunker cursor digest", ""),
    "formpack": ("addressfree cursor filled layerform", "numpy"),
    "chunksync": ("chunkmanifest cursor digest", "zstandard"),
    "oci": ("digest", ""),
    "deflate": ("filled", "deflate zstandard"),
    "tar": ("", ""),
    "tree": ("tar", ""),
    "imagearchive": ("digest oci reference tar", ""),
    "statement": ("digest", ""),
    "packages": ("tar tree", ""),
    "supplychain": ("digest buildinfo oci packages statement", "cyclonedx packageurl"),
    "signature": ("digest oci statement", ""),
    "ecosystems": ("layer tar tree", ""),
    "splitting": ("buildinfo ecosystems elf layer tar tree", ""),
    "layer": ("tar", ""),
    "layerform": ("cursor digest addressfree elf filled golang", "zstandard"),
    "plan": ("chunkmanifest digest oci", ""),
    "protocol": ("cursor digest chunkmanifest filled", "zstandard"),
    "reference": ("digest", ""),
    "buildconfig": ("layer", ""),
    "gotool": ("", ""),
    "gomodule": ("", ""),
    "govet": ("", ""),
    "image": (
        "digest oci deflate layer chunkmanifest formpack protocol layerform addressfree",
        "",
    ),
}
EDGES = {
    "disk": ("", "ctypes fcntl"),
    "pack": ("digest", ""),
    "index": ("edges.disk", "sqlite3"),
    "store": (
        "edges.disk edges.index edges.pack digest formats.chunker formats.chunkmanifest",
        "",
    ),
    "queue": ("edges.disk", "sqlite3"),
    "jsonlog": ("", ""),
    "heap": ("", "ctypes"),
    "hookapi": ("edges.http formats.notifications formats.oci", ""),
    "layout": (
        "edges.disk digest formats.deflate formats.imagearchive formats.layer formats.oci"
        " formats.reference",
        "",
    ),
    "loading": (
        "digest edges.disk edges.engine edges.layout formats.oci formats.reference",
        "",
    ),
    "subject": ("edges.layout formats.oci formats.reference", ""),
    "imagesource": (
        "edges.disk edges.engine edges.registry edges.storage.opening edges.storage.targets"
        " edges.subject formats.deflate"
        " formats.imagearchive formats.oci formats.reference",
        "mmap",
    ),
    "rootfs": ("edges.disk formats.tar", ""),
    "held": (
        "digest edges.store formats.oci formats.chunkmanifest formats.chunksync formats.delta"
        " formats.reference formats.update formats.updating",
        "",
    ),
    "upstream": ("digest formats.chunksync formats.oci", ""),
    "httpclient": ("edges.upstream formats.protocol formats.reference", "urllib3"),
    "remote": (
        "digest edges.httpclient edges.upstream formats.protocol formats.oci formats.chunkmanifest"
        " formats.chunksync formats.formpack"
        " formats.reference formats.update",
        "",
    ),
    "loopback": ("formats.reference", ""),
    "registry": (
        "digest edges.loopback edges.upstream formats.oci formats.reference formats.storedupdate",
        "oras requests urllib3",
    ),
    "storage": (
        "edges.disk edges.layout edges.registry digest formats.oci formats.reference formats.shelf"
        " formats.signature",
        "boto3 botocore",
    ),
    "tools": ("", "subprocess"),
    "bundle": (
        "digest edges.disk edges.upstream formats.bundle formats.oci formats.reference"
        " formats.storedupdate",
        "",
    ),
    "signing": ("digest edges.disk formats.signature", "cryptography nacl"),
    "sources": ("edges.disk formats.layer formats.buildconfig", "certifi tzdata"),
    "data": ("", ""),
    "goruntime": ("edges.data edges.disk formats.gomodule", ""),
    "http": (
        "digest formats.chunksync formats.formpack formats.protocol formats.oci formats.reference"
        " formats.tokens formats.update edges.heap edges.jsonlog edges.tokens",
        "jinja2 prometheus_client uvicorn",
    ),
    "tokens": ("edges.disk formats.tokens", ""),
    "engine": ("digest edges.tools formats.reference", "docker requests"),
    "forked": ("", ""),
    "forker": ("edges.forked", ""),
    "versions": ("digest edges.disk formats.reference", ""),
    "spares": ("digest edges.disk", ""),
    "polling": ("digest edges.loopback edges.upstream formats.oci formats.update", "aiohttp"),
    "tcpsite": ("", "aiohttp"),
    "localapi": ("edges.forked edges.tcpsite", "aiohttp"),
    "telling": ("edges.httpclient formats.notifications", ""),
    "newsapi": ("edges.tcpsite formats.notifications formats.reference formats.tokens", "aiohttp"),
    "localclient": ("edges.forked", ""),
    "notify": ("", ""),
    "agentmetrics": ("", "prometheus_client"),
}
# jobs that make updates, or serve them
MAKE_UPDATES = ("jobs.bundle", "jobs.hook", "jobs.publish", "jobs.serve")
WORDS = {"errors", "digest", "native"}  # floor 0: everyone may import errors
READS_ENVIRONMENT = {"cli", "__main__", "native"}  # native: LAYERKIT_KERNEL=off, as it is loaded
HTTP = {"edges.http.server", "edges.http.wire"}
ONE_OWNER = {
    "cryptography": {"edges.signing"},
    "nacl": {"edges.signing"},
    "ctypes": {"native", "formats.kernel", "edges.disk", "edges.heap"},
    "subprocess": {"edges.tools"},
    "sqlite3": {"edges.index", "edges.queue"},
    "docker": {"edges.engine"},
    "uvicorn": HTTP,
    "jinja2": {"edges.http.page"},
    "prometheus_client": {"edges.agentmetrics", "edges.http.metrics"},
    "aiohttp": {"edges.localapi", "edges.newsapi", "edges.polling", "edges.tcpsite"},
    "urllib3": {"edges.registry.traffic", "edges.httpclient"},
    "rich": {"console"},
    "click": {
        "cli",
        "cli.agent",
        "cli.common",
        "cli.debug",
        "cli.hook",
        "cli.keeping",
        "cli.loading",
        "cli.look",
        "cli.make",
    }
    | {"cli.pulling", "cli.pushing", "cli.serving", "cli.signing", "cli.bundle", "cli.vet"},
    "oras": {"edges.registry.transport"},
    "requests": {
        "edges.engine",
        "edges.registry.client",
        "edges.registry.traffic",
        "edges.registry.transport",
    },
    "boto3": {"edges.storage.bucket"},
    "botocore": {"edges.storage.bucket"},
}
FORBIDDEN_IN_FORMATS = {
    "os",
    "pathlib",
    "socket",
    "time",
    "random",
    "logging",
    "tempfile",
    "shutil",
}


@functools.cache
def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if "_data" in relative.parts:
            continue
        name = ".".join(relative.with_suffix("").parts)
        found.append((name.removesuffix(".__init__"), path))
    return found


@functools.cache
def _names() -> frozenset[str]:
    return frozenset(f"layerkit.{name}" for name, _ in modules())


@functools.cache
def imports(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert all(alias.name != "*" for alias in node.names), f"{path}: star import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            known = _names()
            for name in names:
                found.append((node.lineno, name if name in known else str(node.module)))
    return found


def allowed_inside(module: str) -> set[str] | None:
    """Full names that `module` may import from layerkit; None means all lower floors."""
    parts = module.split(".")
    if module in WORDS:
        return {"errors"}
    if parts[0] == "formats" and len(parts) > 1:
        own = "addressfree" if parts[1] == "addressfree" else parts[1]
        row = FORMATS.get(own, ("", ""))[0].split()
        if own == "addressfree":
            row = ["cursor", "digest", "elf", "filled", "golang", "gotypes"]
            row += ["kernel", "packed", "sets", "sites"]
        return WORDS & ({"errors"} | set(row)) | {
            f"formats.{name}" for name in row if name not in WORDS
        }
    if parts[0] == "edges" and len(parts) > 1:
        return {"errors"} | set(EDGES[parts[1]][0].split())
    return None


@pytest.mark.parametrize(("module", "path"), modules())
def test_imports_go_down_only(module: str, path: Path) -> None:
    allowed = allowed_inside(module)
    for line, name in imports(path):
        if not name.startswith("layerkit"):
            continue
        target = name.removeprefix("layerkit").lstrip(".")
        if target == "":
            continue  # layerkit.__version__
        where = f"layerkit/{path.relative_to(PACKAGE)}:{line} imports {name}"
        if any(
            f"{module}.".startswith(f"{package}.") and f"{target}.".startswith(f"{package}.")
            for package in (
                "formats.addressfree",
                "formats.delta",
                "edges.http",
                "edges.registry",
                "edges.storage",
                "edges.store",
            )
        ):
            continue
        if allowed is not None:
            base = "formats.addressfree" if target.startswith("formats.addressfree") else target
            assert base in allowed, where
        elif module.startswith("jobs"):
            inside = any(
                module.startswith(package) and target.startswith(package)
                for package in (
                    "jobs.agent",
                    "jobs.hook",
                    "jobs.publish",
                    "jobs.pull",
                    "jobs.serve",
                    "jobs.split",
                    "jobs.updating",
                )
            )
            agent = module.startswith("jobs.agent") and target.startswith("jobs.pull")
            makes = module.startswith(MAKE_UPDATES) and target.startswith("jobs.updating")
            known = target.split(".")[0] in {"errors", "digest", "formats", "edges"}
            assert known or inside or agent or makes, where
        elif module == "console":
            assert target == "errors", where


@pytest.mark.parametrize(("module", "path"), modules())
def test_outside_things_have_one_owner(module: str, path: Path) -> None:
    for line, name in imports(path):
        top = name.split(".")[0]
        if top in ONE_OWNER:
            assert module in ONE_OWNER[top], (
                f"{path.name}:{line}: {top} belongs to {ONE_OWNER[top]}"
            )
        if module.startswith("formats"):
            assert top not in FORBIDDEN_IN_FORMATS, f"{path.name}:{line}: {top} in formats/"


@pytest.mark.parametrize(("module", "path"), modules())
def test_modules_stay_small(module: str, path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize(("module", "path"), modules())
def test_modules_say_what_they_are(module: str, path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


@pytest.mark.parametrize(("module", "path"), modules())
def test_only_the_cli_reads_the_environment(module: str, path: Path) -> None:
    if module.split(".")[0] in READS_ENVIRONMENT:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            word = f"{node.value.id}.{node.attr}"
            assert word not in {"os.environ", "os.getenv", "sys.argv"}, f"{path}:{node.lineno}"


def test_test_files_have_names_of_their_own() -> None:
    """Tests are modules without packages: two of one name cannot be collected together."""
    names = [
        path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py"
    ]
    assert sorted(names) == sorted(set(names))
