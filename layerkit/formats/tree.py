"""The file system that an image's layers make, with all that a tar says of a file.

`read_tree` applies layers of anybody's tars, lowest first, whiteouts included; `write_layers` makes
deterministic layers of it again, so that applying them gives the same tree: modes, owners, times to
the nanosecond, extended attributes, devices, symbolic and hard links. Nothing touches a disk, so
nothing is lost to a user's rights or a filter. Data stays where the plain tars have it: memory is
the tars, and about 500 bytes a file.

Spec: OCI image-spec 1.1 "Image Layer Filesystem Changeset"; POSIX pax. Raises only FormatError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from layerkit.errors import FormatError
from layerkit.formats.tar import FOLDER, HARDLINK, SYMLINK, TarEntry, read_tar, write_tar

__all__ = ["Node", "Tree", "parents", "read_tree", "same_trees", "write_layers"]

WHITEOUT: Final = ".wh."
OPAQUE: Final = ".wh..wh..opq"
MAX_LINKS: Final = 40  # followed on one path, as Linux does
AUFS: Final = ".wh..wh."  # aufs's own bookkeeping, which docker skips, too


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """What a path names: an inode. Two paths with the same node are hard links of each other."""

    kind: str  # of `tar`, but no hard link
    mode: int
    uid: int
    gid: int
    mtime: int  # seconds since 1970
    nanoseconds: int
    link: str = ""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, bytes], ...] = ()
    data: bytes | memoryview = field(default=b"", repr=False)

    def facts(self) -> tuple[object, ...]:
        """All but the data, to compare by."""
        when, owner = (self.mtime, self.nanoseconds), (self.mode, self.uid, self.gid)
        return (self.kind, owner, when, self.link, self.device, self.xattrs, len(self.data))


@dataclass(slots=True)
class Tree:
    """Nodes by clean path, "" the root. A folder that no layer mentions is not in it."""

    nodes: dict[str, Node] = field(default_factory=dict)
    _above: set[str] = field(default_factory=set)  # every folder that has or had something below it

    def resolve(self, path: str, below: Tree | None = None) -> str:
        """`path` with the links of its folders followed, as /bin/sh -> usr/bin/sh; its own name is
        not. `below`: a tree under this one. The spec is silent; containerd writes there, whose root
        is the image's, while docker's overlay2 (seen with 20.10) hides the link behind a folder."""
        for _ in range(MAX_LINKS):
            for parent in parents(path):
                node = self.nodes.get(parent) or (below.nodes.get(parent) if below else None)
                if node is not None and node.kind == SYMLINK:
                    path = (_join(parent, node.link) + path[len(parent) :]).strip("/")
                    break
            else:
                return path
        raise FormatError(f"layer: {path[:200]!r} leads through too many links")

    def put(self, path: str, node: Node) -> None:
        """Put a node at a path, in the place of what is there (a folder joins a folder)."""
        if node.kind != FOLDER:
            self.remove(path)
        for parent in parents(path):
            above = self.nodes.get(parent)
            if above is not None and above.kind != FOLDER:
                raise FormatError(f"layer: {path[:200]!r} leads through a {above.kind}")
            self._above.add(parent)
        self.nodes[path] = node

    def remove(self, path: str) -> None:
        """A path and all below it."""
        self.nodes.pop(path, None)
        self.empty(path)

    def empty(self, path: str) -> None:
        """All below a path."""
        if path and path not in self._above:
            return
        prefix = path + "/" if path else ""
        for below in [name for name in self.nodes if name.startswith(prefix) and name != path]:
            del self.nodes[below]
        self._above.discard(path)

    def linked(self) -> dict[int, list[str]]:
        """Paths of each file that has more than one, sorted, by the node's identity."""
        groups: dict[int, list[str]] = {}
        for path, node in self.nodes.items():
            if node.kind != FOLDER:
                groups.setdefault(id(node), []).append(path)
        return {key: sorted(paths) for key, paths in groups.items() if len(paths) > 1}


def parents(path: str) -> list[str]:
    """The folders that lead to a path, the outermost first, without the root."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _join(link: str, target: str) -> str:
    """Where a link at path `link` leads, as a clean path; the root's parent is the root."""
    parts = [] if target.startswith("/") else link.split("/")[:-1]
    for part in target.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


# --- reading -----------------------------------------------------------------------------------


def read_tree(layers: Iterable[bytes]) -> Tree:
    """Apply plain layer tars, lowest first."""
    tree = Tree()
    for plain in layers:
        _apply(tree, plain)
    return tree


def _apply(tree: Tree, plain: bytes) -> None:
    layer = Tree()  # what this layer alone has, for its whiteouts act on lower ones only
    whiteouts: list[tuple[str, str]] = []
    for entry in read_tar(plain, xattrs=True):
        path = layer.resolve(entry.path, tree)
        parent, _, name = path.rpartition("/")
        if name == OPAQUE or (name.startswith(WHITEOUT) and not name.startswith(AUFS)):
            whiteouts.append((parent, name))
        elif name.startswith(AUFS):
            continue
        elif entry.kind == HARDLINK:
            layer.put(path, _target(layer, tree, entry))
        elif not entry.path and entry.kind != FOLDER:
            raise FormatError("layer: the root is not a folder")
        else:
            layer.put(path, _node(entry))
    for parent, name in whiteouts:
        if name == OPAQUE:
            tree.empty(parent)
        else:
            victim = name[len(WHITEOUT) :]
            tree.remove(f"{parent}/{victim}" if parent else victim)
    for path in sorted(layer.nodes, key=_order):
        tree.put(path, layer.nodes[path])


def _target(layer: Tree, tree: Tree, entry: TarEntry) -> Node:
    """What a hard link is another name of: of this layer, or of a lower one."""
    link = layer.resolve(entry.link, tree)
    node = layer.nodes.get(link) or tree.nodes.get(link)
    if node is None or node.kind == FOLDER:
        raise FormatError(f"layer: hard link {entry.path[:200]!r} points at no file")
    return node


def _node(entry: TarEntry) -> Node:
    return Node(
        entry.kind,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime,
        entry.nanoseconds,
        entry.link,
        entry.device,
        entry.xattrs,
        entry.data,
    )


# --- writing -----------------------------------------------------------------------------------


def write_layers(tree: Tree, layer_of: Mapping[str, int], count: int) -> list[bytes]:
    """`count` plain tars, lowest first; each path goes to the layer that `layer_of` names, a folder
    also to each layer that has something below it, so that a layer applied on another leaves its
    times and rights as they are. The time of a folder, which a change of anything in it changes,
    stands in the highest of these layers only, which is applied last: a change of code leaves the
    layers below it as they are. All names of a file must be of one layer. A layer that no path is
    there for is an empty tar."""
    paths: list[set[str]] = [set() for _ in range(count)]
    for path in tree.nodes:
        at = layer_of[path]
        paths[at].add(path)
        paths[at].update(parent for parent in parents(path) if parent in tree.nodes)
    if "" in tree.nodes:
        for each in paths:
            if each:
                each.add("")
    highest = {path: at for at, each in enumerate(paths) for path in each}
    groups = tree.linked()
    return [
        write_tar(_entries(tree, sorted(each, key=_order), groups, highest, at))
        for at, each in enumerate(paths)
    ]


def _order(path: str) -> list[str]:
    return path.split("/")


def _entries(
    tree: Tree,
    paths: Iterable[str],
    groups: Mapping[int, list[str]],
    highest: Mapping[str, int],
    at: int,
) -> Iterator[TarEntry]:
    """Entries of layer `at` in order; of a file with several names the first one is the file."""
    first: dict[int, str] = {}
    for path in paths:
        node = tree.nodes[path]
        if highest[path] != at:
            node = replace(node, mtime=0, nanoseconds=0)
        owner = (node.mode, node.uid, node.gid, node.mtime)
        if id(node) in groups and first.setdefault(id(node), path) != path:
            yield TarEntry(path, HARDLINK, *owner, first[id(node)], nanoseconds=node.nanoseconds)
            continue
        yield TarEntry(
            path,
            node.kind,
            *owner,
            node.link,
            data=node.data,
            device=node.device,
            nanoseconds=node.nanoseconds,
            xattrs=node.xattrs,
        )


def same_trees(one: Tree, other: Tree) -> str:
    """Where two trees differ, for people; "" if they are the same, data and hard links included."""
    if one.nodes.keys() != other.nodes.keys():
        return min(one.nodes.keys() ^ other.nodes.keys()) or "/"
    for path, node in one.nodes.items():
        twin = other.nodes[path]
        if node.facts() != twin.facts() or node.data != twin.data:
            return path or "/"
    if sorted(one.linked().values()) != sorted(other.linked().values()):
        return "hard links"
    return ""
