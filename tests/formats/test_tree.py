"""Trees: what layers make together, and layers that make the same tree again."""

from __future__ import annotations

import io
import tarfile

import pytest

from layerkit.errors import FormatError
from layerkit.formats import tar
from layerkit.formats.tar import TarEntry, read_tar, write_tar
from layerkit.formats.tree import Tree, read_tree, same_trees, write_layers


def file(path: str, data: bytes = b"x", **facts: object) -> TarEntry:
    return TarEntry(path, tar.FILE, data=data, **facts)  # type: ignore[arg-type]


def folder(path: str, mode: int = 0o755, **facts: object) -> TarEntry:
    return TarEntry(path, tar.FOLDER, mode, **facts)  # type: ignore[arg-type]


def link(path: str, target: str) -> TarEntry:
    return TarEntry(path, tar.SYMLINK, 0o777, link=target)


def name(path: str, target: str) -> TarEntry:
    return TarEntry(path, tar.HARDLINK, link=target)


def tree_of(*layers: list[TarEntry]) -> Tree:
    return read_tree(write_tar(layer) for layer in layers)


def contents(tree: Tree) -> dict[str, bytes]:
    return {path: bytes(n.data) for path, n in tree.nodes.items() if n.kind == tar.FILE}


RICH = [
    folder("", 0o755, mtime=7),
    folder("etc", 0o700, uid=3, gid=4, mtime=1_700_000_000, nanoseconds=123_456_789),
    file("etc/old", mtime=-5, nanoseconds=500_000_000),
    file("etc/huge-owner", uid=3_000_000, gid=4_000_000_000, mode=0o4755),
    file(
        "etc/cap", xattrs=(("security.capability", b"\x01\0\0\xff"), ("user.umlaut", b"\xc3\xa4"))
    ),
    TarEntry("dev/null", tar.CHAR_DEVICE, 0o666, device=(1, 3)),
    TarEntry("dev/sda", tar.BLOCK_DEVICE, 0o660, gid=6, device=(8, 0)),
    TarEntry("run/pipe", tar.PIPE, 0o600),
    link("bin", "usr/bin"),
    link("long", "/" + "x" * 300),
    file("usr/bin/tool", b"tool"),
    name("usr/bin/alias", "usr/bin/tool"),
    file("n/" + "d" * 90 + "/" + "f" * 200, b"deep"),
    file("caf\udce9", b"latin-1 name"),
    folder("empty", 0o1777),
]


def test_a_tree_comes_back_from_its_layers_with_all_that_a_tar_says() -> None:
    tree = tree_of(RICH)
    roles = {path: hash(path) % 3 for path in tree.nodes}
    for names in tree.linked().values():
        roles.update(dict.fromkeys(names, 1))
    again = read_tree(write_layers(tree, roles, 3))
    assert same_trees(tree, again) == ""
    node = again.nodes["etc/old"]
    assert (node.mtime, node.nanoseconds) == (-5, 500_000_000)
    assert dict(again.nodes["etc/cap"].xattrs)["security.capability"] == b"\x01\0\0\xff"
    assert again.nodes["usr/bin/alias"] is again.nodes["usr/bin/tool"]


def test_tarfile_reads_what_is_written_as_it_was_meant() -> None:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(write_tar(RICH)), errors="surrogateescape") as file:
        for info in file:
            found[info.name] = info
    assert found["etc/huge-owner"].gid == 4_000_000_000
    assert found["etc"].mtime == pytest.approx(1_700_000_000.123456789)
    assert found["etc/old"].mtime == pytest.approx(-4.5)
    assert (found["dev/null"].devmajor, found["dev/null"].devminor) == (1, 3)
    assert found["long"].linkname == "/" + "x" * 300
    raw = found["etc/cap"].pax_headers["SCHILY.xattr.security.capability"]
    assert raw.encode("utf-8", "surrogateescape") == b"\x01\0\0\xff"


@pytest.mark.parametrize("seed", [1, 2])
def test_each_layer_alone_is_the_same_every_time(seed: int) -> None:
    tree = tree_of(RICH)
    roles = dict.fromkeys(tree.nodes, 0)
    assert write_layers(tree, roles, 1) == write_layers(tree, roles, 1)


def test_whiteouts_act_on_lower_layers_only() -> None:
    tree = tree_of(
        [file("etc/a"), file("etc/b"), file("var/x/1"), file("var/x/2"), file("gone/deep/er")],
        [
            file("etc/.wh.a"),
            file("var/x/3", b"new"),
            file("var/x/.wh..wh..opq"),
            file("etc/c"),
            file(".wh.gone"),
            file("gone/new"),
            file(".wh..wh.aufs"),
        ],
    )
    assert sorted(contents(tree)) == ["etc/b", "etc/c", "gone/new", "var/x/3"]


def test_a_file_takes_the_place_of_a_folder_and_back() -> None:
    assert sorted(contents(tree_of([file("a/b/c")], [file("a/b")]))) == ["a/b"]
    assert sorted(contents(tree_of([file("a")], [folder("a"), file("a/b")]))) == ["a/b"]


def test_what_a_layer_puts_behind_a_link_of_a_folder_lands_where_an_engine_puts_it() -> None:
    lower = [folder("usr"), folder("usr/bin"), link("bin", "usr/bin"), link("abs", "/usr/./bin")]
    tree = tree_of(lower, [file("bin/new"), file("abs/other"), file("bin/.wh.gone")])
    assert sorted(contents(tree)) == ["usr/bin/new", "usr/bin/other"]
    assert tree.nodes["bin"].kind == tar.SYMLINK


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        ([link("a", "b"), link("b", "a"), file("a/x")], "too many links"),
        ([file("a"), file("a/x")], "leads through a file"),
        ([name("a", "nowhere")], "points at no file"),
        ([folder("d"), name("a", "d")], "points at no file"),
        ([TarEntry("", tar.FILE)], "root is not a folder"),
    ],
)
def test_trees_that_no_engine_makes_are_refused(layer: list[TarEntry], why: str) -> None:
    with pytest.raises(FormatError, match=why):
        tree_of(layer)


def test_another_name_of_a_lower_layers_file_shares_it() -> None:
    tree = tree_of([file("a", b"data")], [name("b", "a")], [file("a", b"new")])
    assert contents(tree) == {"a": b"new", "b": b"data"}
    assert tree.linked() == {}


@pytest.mark.parametrize(
    "change",
    [
        {"mode": 0o600},
        {"uid": 1},
        {"mtime": 1},
        {"nanoseconds": 1},
        {"data": b"y"},
        {"xattrs": (("user.a", b"b"),)},
    ],
)
def test_every_difference_is_seen(change: dict[str, object]) -> None:
    entry = {"data": b"x"} | change
    assert same_trees(tree_of([file("f")]), tree_of([file("f", **entry)])) == "f"  # type: ignore[arg-type]


def test_a_lost_hard_link_is_seen() -> None:
    one = tree_of([file("a"), name("b", "a")])
    assert same_trees(one, tree_of([file("a"), file("b")])) == "hard links"
    assert same_trees(one, tree_of([file("a")])) == "b"


def test_extended_attributes_are_bounded() -> None:
    big = write_tar([file("a", xattrs=tuple((f"user.{n}", b"v" * 60_000) for n in range(6)))])
    with pytest.raises(FormatError, match="over their limit"):
        list(read_tar(big, xattrs=True))
    assert [entry.xattrs for entry in read_tar(big)] == [()]
