"""What an image says of its runtimes and dependencies."""

from __future__ import annotations

import pytest

from layerkit.formats import tar
from layerkit.formats.ecosystems import find_claims
from layerkit.formats.layer import ROLES
from layerkit.formats.splitting import assign_roles
from layerkit.formats.tar import TarEntry, write_tar
from layerkit.formats.tree import Tree, read_tree

SITE = "usr/local/lib/python3.12/site-packages"


def tree_of(files: dict[str, bytes]) -> Tree:
    return read_tree(
        [write_tar(TarEntry(path, tar.FILE, data=data) for path, data in files.items())]
    )


@pytest.mark.parametrize(
    ("mark", "data", "path", "role"),
    [
        ("opt/java/release", b'JAVA_VERSION="21"\n', "opt/java/lib/modules", "base"),
        ("opt/java/release", b'JAVA_VERSION="21"\n', "opt/java/lib/jrt-fs.jar", "base"),
        ("opt/java/release", b"1.0\n", "opt/java/lib/modules", "code"),
        ("opt/py/lib/python3.12/os.py", b"", "opt/py/bin/python3.12", "base"),
        ("opt/py/lib/python3.12/os.py", b"", "opt/py/lib/python3.12/site-packages/a.py", "deps"),
        ("opt/n/include/node/node_version.h", b"", "opt/n/bin/node", "base"),
        ("srv/venv/pyvenv.cfg", b"", "srv/venv/bin/gunicorn", "deps"),
        ("opt/conda/conda-meta/history", b"", "opt/conda/bin/x", "deps"),
        ("srv/vendor/composer/installed.json", b"{}", "srv/vendor/monolog/a.php", "deps"),
        ("app/x", b"", "app/.yarn/cache/left-pad.zip", "deps"),
        ("app/x", b"", "app/.pnp.cjs", "deps"),
        ("app/x", b"", "usr/src/app/node_modules/a/index.js", "deps"),
        ("app/x", b"", "usr/local/lib/node_modules/npm/index.js", "base"),
        ("app/x", b"", "app/org/springframework/boot/loader/Main.class", "deps"),
        ("app/x", b"", "usr/local/tomcat/webapps/ROOT/WEB-INF/lib/a.jar", "deps"),
        ("app/x", b"", "usr/local/tomcat/webapps/ROOT/index.jsp", "code"),
        ("app/x", b"", "var/www/index.php", "code"),
        ("app/x", b"", "home/node/app/index.js", "code"),
        ("app/x", b"", "home/node/.bashrc", "base"),
    ],
)
def test_marks(mark: str, data: bytes, path: str, role: str) -> None:
    tree = tree_of({mark: data, path: b"x"})
    assert ROLES[assign_roles(tree)[path]] == role


def test_gos_own_toolchain_is_base_and_its_binaries_too() -> None:
    tree = tree_of({"opt/go/VERSION": b"go1.26.8\n", "opt/go/bin/go": b"x", "opt/go/src/a.go": b""})
    assert {ROLES[role] for role in assign_roles(tree).values()} == {"base"}


def test_scripts_of_python_packages_are_deps() -> None:
    record = "flask/app.py,sha256=x,1\n../../../bin/flask,sha256=x,1\n/etc/absolute,,\nabsent,,\n"
    tree = tree_of(
        {
            f"{SITE}/flask-3.dist-info/RECORD": record.encode(),
            f"{SITE}/flask/app.py": b"x",
            "usr/local/bin/flask": b"x",
            "usr/local/bin/other": b"x",
            "etc/absolute": b"x",
        }
    )
    roles = {path: ROLES[role] for path, role in assign_roles(tree).items()}
    assert roles["usr/local/bin/flask"] == roles[f"{SITE}/flask/app.py"] == "deps"
    assert roles["usr/local/bin/other"] == roles["etc/absolute"] == "base"


def test_what_was_installed_from_a_folder_is_code() -> None:
    def roles_of(url: bytes) -> str:
        info = f"{SITE}/shop-1.dist-info"
        files = {f"{info}/RECORD": b"shop/main.py,,\n", f"{info}/direct_url.json": url}
        tree = tree_of(files | {f"{SITE}/shop/main.py": b"x", f"{SITE}/other.py": b"x"})
        found = assign_roles(tree)
        assert ROLES[found[f"{SITE}/other.py"]] == "deps"
        return ROLES[found[f"{SITE}/shop/main.py"]]

    assert roles_of(b'{"url": "file:///src", "dir_info": {}}') == "code"
    assert roles_of(b'{"url": "file:///wheels/shop.whl", "archive_info": {}}') == "deps"
    assert roles_of(b"{") == roles_of(b"[]") == "deps"


def test_damaged_files_claim_nothing() -> None:
    files = {f"{SITE}/a.dist-info/RECORD": b'"x\n\xff\0,,\n' * 3, "a/release": b"\xff" * 100}
    claims = find_claims(tree_of(files))
    assert not claims.paths
    assert not claims.folders


@pytest.mark.parametrize("shell", ["sh", "busybox", "tini", "python3.12", "node"])
def test_what_only_starts_something_else_is_no_code(shell: str) -> None:
    path = f"bin/{shell}"
    roles = assign_roles(tree_of({path: b"x"}), entrypoint=[f"/{path}", "-c", "x"])
    assert ROLES[roles[path]] == "base"
