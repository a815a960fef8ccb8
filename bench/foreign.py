"""Images as others build them: contexts for `docker build` of a Python, a Node, a Java and a Go
application, each in two versions that differ by one string in the code.

What they need comes through ordinary clients (pip, npm, apt-get) or is made here (javac, go), once,
under bench/work. Three layouts of each: `deps first`, as its ecosystem advises; `one copy`, where
dependencies and code come in one layer; and `anew`, the same by a machine that has no cache, so
that all files have new times.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

CACHE = Path(__file__).resolve().parent / "work" / "foreign"
LAYOUTS = ("deps first", "one copy", "anew")
BUILT = 1_700_000_000  # seconds since 1970: when the first version was installed
GREETING = {1: "good morning", 2: "good evening"}
BASE = """FROM scratch
COPY busybox /bin/busybox
COPY etc /etc
RUN ["/bin/busybox", "--install", "/bin"]
RUN mkdir -m 1777 /tmp && mkdir -p /var/cache /usr/local/bin
"""


class MissingError(Exception):
    """Something that is needed cannot be had here; the text says what."""


def run(*argv: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            ["nice", *map(str, argv)], cwd=cwd, env=env, capture_output=True, text=True
        )
    except OSError as exc:
        raise MissingError(f"{argv[0]}: {exc}") from exc
    if done.returncode != 0:
        raise MissingError(f"{argv[0]} {argv[1]}: {done.stderr.strip()[-300:]}")


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills once; whole or not there."""
    target = CACHE / name
    if not target.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as part:
            made = Path(part) / name
            made.mkdir()
            make(made)
            with contextlib.suppress(OSError):  # another process was first
                made.rename(target)
    return target


def _deb(*names: str) -> Callable[[Path], None]:
    """Unpack Debian packages."""

    def make(folder: Path) -> None:
        run("apt-get", "download", *names, cwd=folder)
        for package in sorted(folder.glob("*.deb")):
            run("dpkg", "-x", package, folder / "root")
            package.unlink()

    return make


def _pip(folder: Path) -> None:
    run(
        sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile",
        "--target", folder / "site-packages", "flask==3.1.0", "sqlalchemy==2.0.36",
    )  # fmt: skip


def _npm(folder: Path) -> None:
    (folder / "package.json").write_text('{"name": "shop", "version": "1.0.0"}\n')
    env = os.environ | {"npm_config_cache": str(folder / "cache")}
    run(
        "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "express@4.21.2",
        "lodash@4.17.21", cwd=folder, env=env,
    )  # fmt: skip
    shutil.rmtree(folder / "cache", ignore_errors=True)


def _python(folder: Path, greeting: str) -> tuple[str, str]:
    packages = _cached("pip", _pip) / "site-packages"
    where = folder / "venv" / "lib" / "python3.12" / "site-packages"
    shutil.copytree(packages, where, symlinks=True)
    (folder / "main.py").write_text(
        f"import flask\n\napp = flask.Flask(__name__)\n\n\n@app.get('/')\n"
        f"def index() -> str:\n    return '{greeting}'\n"
    )
    return "COPY venv /app/venv\nCOPY main.py /app/main.py\n", "COPY . /app\n"


def _node(folder: Path, greeting: str) -> tuple[str, str]:
    modules = _cached("npm", _npm) / "node_modules"
    shutil.copytree(modules, folder / "node_modules", symlinks=True)
    (folder / "index.js").write_text(
        f"const app = require('express')()\napp.get('/', (q, a) => a.send('{greeting}'))\n"
    )
    return "COPY node_modules /app/node_modules\nCOPY index.js /app/index.js\n", "COPY . /app\n"


def _java(folder: Path, greeting: str) -> tuple[str, str]:
    jars = _cached("jars", _deb("libgoogle-gson-java", "libguava-java", "libcommons-lang3-java"))
    (folder / "libs").mkdir()
    for path in sorted((jars / "root").rglob("*.jar")):
        if not path.is_symlink() and "maven" not in path.parts[-2]:
            shutil.copy(path, folder / "libs" / path.name)
    source, out = folder / "src", folder / "classes"
    source.mkdir()
    (source / "Main.java").write_text(
        "public class Main {\n  public static void main(String[] a) {\n"
        f'    System.out.println("{greeting}");\n  }}\n}}\n'
    )
    run("javac", "-d", out, source / "Main.java")
    run(
        "jar", "--create", "--file", folder / "app.jar", "--main-class", "Main",
        "--date", "2026-01-01T00:00:00Z", "-C", out, ".",
    )  # fmt: skip
    shutil.rmtree(source)
    shutil.rmtree(out)
    return "COPY libs /app/libs\nCOPY app.jar /app/app.jar\n", "COPY . /app\n"


def _go(folder: Path, _: str) -> tuple[str, str]:
    """Pages only; the binaries are the caller's."""
    (folder / "static").mkdir()
    for index in range(40):
        (folder / "static" / f"page{index}.html").write_text(f"<p>{index}</p>\n" * 200)
    return "COPY static /srv/app/static\nCOPY bin /srv/app/bin\n", "COPY . /srv/app/\n"


APPS: dict[str, Callable[[Path, str], tuple[str, str]]] = {
    "python": _python,
    "node": _node,
    "java": _java,
    "go": _go,
}
STARTS = {
    "python": ["/app/venv/bin/python", "/app/main.py"],
    "node": ["/usr/bin/node", "/app/index.js"],
    "java": ["/usr/bin/java", "-cp", "/app/libs/*:/app/app.jar", "Main"],
    "go": ["/srv/app/bin/server"],
}


def make_context(
    kind: str,
    folder: Path,
    version: int,
    layout: str,
    *,
    binaries: Mapping[str, bytes],
    more: str = "",
) -> None:
    """Fill `folder` with a context and its Dockerfile. `binaries` by name: what a "go" image has;
    `more` are lines at the Dockerfile's end. Raises MissingError."""
    app = folder / "app"
    app.mkdir(parents=True)
    if kind == "go":
        (app / "bin").mkdir()
        for name, data in binaries.items():
            (app / "bin" / name).write_bytes(data)
            (app / "bin" / name).chmod(0o755)
    steps = APPS[kind](app, GREETING[version])[layout != LAYOUTS[0]]
    (app / "layout").write_text(layout)  # docker's cache does not look at times
    for index, path in enumerate(sorted(app.rglob("*"), reverse=True)):
        when = BUILT + (version * 86_400 + index // 20 if layout == "anew" else 0)
        os.utime(path, (when, when), follow_symlinks=False)
    busybox = _cached("busybox", _deb("busybox-static")) / "root" / "bin" / "busybox"
    shutil.copy(busybox, folder / "busybox")
    (folder / "etc").mkdir()
    (folder / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    start = ", ".join(f'"{part}"' for part in STARTS[kind])
    copied = steps.replace("COPY . ", "COPY app ").replace("COPY ", "COPY app/")
    copied = copied.replace("COPY app/app ", "COPY app ")
    work = "" if kind == "go" else "WORKDIR /app\n"
    (folder / "Dockerfile").write_text(f"{BASE}{work}{copied}{more}ENTRYPOINT [{start}]\n")
