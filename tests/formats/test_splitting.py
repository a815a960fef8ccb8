"""Which layer a file belongs to."""

from __future__ import annotations

import pytest

from layerkit.errors import UsageError
from layerkit.formats import tar
from layerkit.formats.layer import ROLES
from layerkit.formats.splitting import Rule, assign_roles, parse_rule
from layerkit.formats.tar import TarEntry, write_tar
from layerkit.formats.tree import Tree, read_tree


def tree_of(**files: bytes) -> Tree:
    return read_tree(
        [write_tar(TarEntry(path, tar.FILE, data=data) for path, data in files.items())]
    )


def role_of(path: str, tree: Tree | None = None, **facts: object) -> str:
    tree = tree or tree_of(**{path: b"x"})
    return ROLES[assign_roles(tree, **facts)[path]]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("usr/lib/os-release", "base"),
        ("usr/local/lib/python3.12/os.py", "base"),
        ("usr/local/lib/python3.12/site-packages/flask/app.py", "deps"),
        ("opt/venv/lib/python3.11/site-packages/numpy/core.so", "deps"),
        ("app/node_modules/left-pad/index.js", "deps"),
        ("usr/local/lib/node_modules/npm/bin/npm.js", "base"),
        ("app/index.js", "code"),
        ("app/lib/guava.jar", "deps"),
        ("app/app.jar", "code"),
        ("opt/java/lib/x.txt", "code"),
        ("usr/lib/jvm/lib/jrt-fs.jar", "base"),
        ("app/BOOT-INF/lib/spring.jar", "deps"),
        ("app/BOOT-INF/classes/Main.class", "code"),
        ("srv/main.py", "code"),
        ("home/user/.profile", "base"),
    ],
)
def test_paths_say_much(path: str, role: str) -> None:
    assert role_of(path) == role


def test_the_working_folder_and_the_entry_point_are_code() -> None:
    assert role_of("usr/src/app/main.py", work_folder="/usr/src/app") == "code"
    assert role_of("usr/src/application/main.py", work_folder="/usr/src/app") == "base"
    assert role_of("usr/local/bin/run.sh", entrypoint=["/usr/local/bin/run.sh"]) == "code"
    assert role_of("usr/local/bin/run.sh", entrypoint=["run.sh"]) == "base"


def test_what_packages_own_is_base_though_it_looks_like_dependencies() -> None:
    owned = "usr/lib/python3/dist-packages/apt.py"
    lists = {
        "var/lib/dpkg/info/python3-apt.list": b"/.\n/" + owned.encode() + b"\n",
        "var/lib/dpkg/status.d/tz.md5sums": b"d41d8cd98f00b204e9800998ecf8427e  opt/zone/tab\n",
        "lib/apk/db/installed": b"P:musl\nF:opt/musl\nR:ld.so\nZ:Q1\n",
    }
    files = {owned: b"x", "usr/lib/python3/dist-packages/own.py": b"x"}
    files |= {"opt/zone/tab": b"x", "opt/musl/ld.so": b"x", "opt/musl/mine": b"x"}
    roles = assign_roles(tree_of(**lists, **files))
    assert {path: ROLES[roles[path]] for path in files} == {
        owned: "base",
        "usr/lib/python3/dist-packages/own.py": "deps",
        "opt/zone/tab": "base",
        "opt/musl/ld.so": "base",
        "opt/musl/mine": "code",
    }


def test_packages_own_what_their_lists_reach_through_links() -> None:
    entries = [
        TarEntry("bin", tar.SYMLINK, link="opt/bin"),
        TarEntry("opt/bin/sh", tar.FILE, data=b"x"),
        TarEntry("var/lib/dpkg/info/dash.list", tar.FILE, data=b"/bin/sh\n"),
    ]
    assert role_of("opt/bin/sh", read_tree([write_tar(entries)])) == "base"


def test_the_users_rules_come_first() -> None:
    rules = [parse_rule("code=usr/lib/own/**/*.wasm"), parse_rule("deps=/usr/lib/own/")]
    tree = tree_of(**{"usr/lib/own/a/b.wasm": b"", "usr/lib/own/c.txt": b"", "usr/lib/ownx": b""})
    roles = assign_roles(tree, rules)
    assert [ROLES[roles[path]] for path in sorted(tree.nodes)] == ["code", "deps", "base"]
    assert role_of("a/b/c", rules=[Rule("base", "a/*")]) == "base"
    assert role_of("a/b/c", rules=[Rule("base", "a/?")]) == "base"
    assert role_of("ab/c", rules=[Rule("base", "a")]) == "code"


@pytest.mark.parametrize("text", ["", "deps", "deps=", "lib=usr", "deps=/", "code=" + "x" * 600])
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_rule(text)


def test_names_of_one_file_stay_together_where_it_changes_most() -> None:
    entries = [
        TarEntry("usr/bin/tool", tar.FILE, data=b"x"),
        TarEntry("srv/tool", tar.HARDLINK, link="usr/bin/tool"),
    ]
    roles = assign_roles(read_tree([write_tar(entries)]))
    assert ROLES[roles["usr/bin/tool"]] == ROLES[roles["srv/tool"]] == "code"


def test_folders_go_with_the_lowest_layer_that_needs_them() -> None:
    entries = [
        TarEntry("opt", tar.FOLDER, 0o755),
        TarEntry("opt/site-packages", tar.FOLDER, 0o755),
        TarEntry("opt/site-packages/a.py", tar.FILE),
        TarEntry("opt/main.py", tar.FILE),
        TarEntry("srv", tar.FOLDER, 0o755),
    ]
    roles = assign_roles(read_tree([write_tar(entries)]))
    assert ROLES[roles["opt"]] == "deps"
    assert ROLES[roles["srv"]] == "base"
