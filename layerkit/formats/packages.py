"""Which packages an image has in it, by what their installers left behind. Pure.

Debian's (dpkg, distroless' `status.d`), Alpine's (apk), Python's (`METADATA` of dist-info, PKG-INFO
of egg-info), Node's (`package.json` in node_modules), Java's (`pom.properties` in jars, also in
jars within jars; else the jar's manifest). Not: RPM, conda, gems, yarn's zip files, what was
compiled or bundled into a file. Damaged files say nothing.

Limits: MAX_COUNT packages; of a jar MAX_JAR_SIZE bytes, MAX_ENTRIES files, one level of jars below.
Sources: deb822(5), APKINDEX (wiki.alpinelinux.org/wiki/Apk_spec), PEP 376 and 566, npm
package.json, Maven's archiver (pom.properties), JAR file specification, os-release(5).
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from typing import Final

from layerkit.formats.tar import FILE
from layerkit.formats.tree import Node, Tree

__all__ = ["Package", "find_packages"]

MAX_COUNT: Final = 50_000
MAX_TEXT_SIZE: Final = 1 << 20  # bytes of a file that says what a package is
MAX_DATABASE_SIZE: Final = 64 << 20  # bytes of dpkg's or apk's list
MAX_JAR_SIZE: Final = 256 << 20  # bytes, unpacked, of a jar; and of all within one
MAX_ENTRIES: Final = 200_000  # files in a jar
MAX_FACT_SIZE: Final = 256  # characters of a name or a version
_DPKG: Final = re.compile(r"var/lib/dpkg/(?:status|status\.d/[^/]+(?<!\.md5sums))")
_APK: Final = "lib/apk/db/installed"
_RELEASES: Final = ("etc/os-release", "usr/lib/os-release")
_PYTHON: Final = re.compile(
    r".*/[^/]+(?:\.dist-info/METADATA|\.egg-info/PKG-INFO)|.*/(?:site|dist)-packages/[^/]+\.egg-info"
)
_NODE: Final = re.compile(r"(?:.*/)?node_modules/(?:@[^/]+/)?[^/@.][^/]*/package\.json")
_JARS: Final = (".jar", ".war", ".ear")
_POM: Final = re.compile(r"META-INF/maven/[^/]+/[^/]+/pom\.properties")
_MANIFEST: Final = "META-INF/MANIFEST.MF"
_ENTRY_MAGIC: Final = b"PK\x01\x02"  # of each entry in a zip's list
_JAR_NAME: Final = re.compile(r"(?P<name>.+?)-(?P<version>\d[^/]*)")
_BAD_ZIP: Final = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError),
    *(ValueError, RuntimeError, NotImplementedError, OverflowError),
)


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """A package. `kind` is a type of package URLs: deb, apk, pypi, npm, maven; "" for a jar that
    says no group. `qualifiers` are those of such a URL."""

    kind: str
    group: str  # the namespace: a distribution, an npm scope, a Maven group
    name: str
    version: str
    path: str  # of the file that says so; within a jar behind a "!"
    qualifiers: tuple[tuple[str, str], ...] = ()


def find_packages(tree: Tree) -> list[Package]:
    """All of them, sorted; one that is there twice at each of its paths."""
    found: set[Package] = set()
    release = _read_release(tree)
    for path, node in sorted(tree.nodes.items()):
        if node.kind == FILE and len(found) < MAX_COUNT:
            found.update(one for one in _read(path, node, release) if _is_sane(one))
    return sorted(found)[:MAX_COUNT]


def _is_sane(package: Package) -> bool:
    facts = (package.group, package.name, package.version)
    return bool(package.name) and all(
        len(fact) <= MAX_FACT_SIZE and fact.isprintable() for fact in facts
    )


def _read(path: str, node: Node, release: dict[str, str]) -> Iterable[Package]:
    if path.endswith(_JARS):
        return _read_jar(path, node.data, jars_below=True) if len(node.data) <= MAX_JAR_SIZE else ()
    if len(node.data) > MAX_DATABASE_SIZE:
        return ()
    if path == _APK:
        return _read_apk(path, node.data, release)
    if _DPKG.fullmatch(path):
        return _read_dpkg(path, node.data, release)
    if len(node.data) > MAX_TEXT_SIZE:
        return ()
    if _NODE.fullmatch(path):
        return _read_node(path, node.data)
    return _read_python(path, node.data) if _PYTHON.fullmatch(path) else ()


# --- systems -----------------------------------------------------------------------------------


def _read_release(tree: Tree) -> dict[str, str]:
    """What os-release says of the system: ID, VERSION_ID."""
    for path in _RELEASES:
        node = tree.nodes.get(path)
        if node is not None and node.kind == FILE and len(node.data) <= MAX_TEXT_SIZE:
            pairs = (line.partition("=") for line in _text(node.data).splitlines())
            return {key: value.strip().strip("\"'") for key, _, value in pairs}
    return {}


def _about_system(release: dict[str, str], arch: str) -> tuple[tuple[str, str], ...]:
    distro = "-".join(part for part in (release.get("ID"), release.get("VERSION_ID")) if part)
    return tuple((key, value) for key, value in (("arch", arch), ("distro", distro)) if value)


def _read_dpkg(path: str, data: bytes | memoryview, release: dict[str, str]) -> Iterator[Package]:
    for fields in _stanzas(data, ": "):
        status = fields.get("Status", "installed").split()  # distroless has none
        if status[-1:] == ["installed"]:
            about = _about_system(release, fields.get("Architecture", ""))
            name, version = fields.get("Package", ""), fields.get("Version", "")
            yield Package("deb", release.get("ID", "debian"), name, version, path, about)


def _read_apk(path: str, data: bytes | memoryview, release: dict[str, str]) -> Iterator[Package]:
    for fields in _stanzas(data, ":"):
        about = _about_system(release, fields.get("A", ""))
        name, version = fields.get("P", ""), fields.get("V", "")
        yield Package("apk", release.get("ID", "alpine"), name, version, path, about)


def _stanzas(data: bytes | memoryview, colon: str) -> Iterator[dict[str, str]]:
    """The first line of each field, stanza by stanza."""
    fields: dict[str, str] = {}
    for line in (*_text(data).split("\n"), ""):
        if line:
            key, found, value = line.partition(colon)
            if found and not key.startswith((" ", "\t")):
                fields.setdefault(key, value.strip())
        elif fields:
            yield fields
            fields = {}


def _text(data: bytes | memoryview) -> str:
    return bytes(data).decode("utf-8", "replace")


# --- languages ---------------------------------------------------------------------------------


def _read_python(path: str, data: bytes | memoryview) -> Iterator[Package]:
    head = BytesHeaderParser().parsebytes(bytes(data))
    name, version = str(head.get("Name") or ""), str(head.get("Version") or "")
    if version:
        yield Package("pypi", "", name.strip(), version.strip(), path)


def _read_node(path: str, data: bytes | memoryview) -> Iterator[Package]:
    try:
        document = json.loads(bytes(data))
    except (ValueError, RecursionError):
        return
    if not isinstance(document, dict):
        return
    name, version = document.get("name"), document.get("version")
    if isinstance(name, str) and isinstance(version, str) and version:
        scope, _, short = name.rpartition("/")
        yield Package("npm", scope, short, version, path)


def _read_jar(path: str, data: bytes | memoryview, *, jars_below: bool) -> list[Package]:
    """What a jar says that it is made from: all poms in it (a shaded one has several), else its
    manifest; and of the jars in it, as Spring Boot packs them."""
    raw = bytes(data)
    if raw.count(_ENTRY_MAGIC) > MAX_ENTRIES:
        return []
    found: list[Package] = []
    left = MAX_JAR_SIZE
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as jar:
            for entry in jar.infolist():
                inner = f"{path}!/{entry.filename}"
                if _POM.fullmatch(entry.filename):
                    found += _read_pom(inner, _read_entry(jar, entry, MAX_TEXT_SIZE))
                elif jars_below and entry.filename.endswith(".jar"):
                    below = _read_entry(jar, entry, left)
                    left -= len(below)
                    found += _read_jar(inner, below, jars_below=False)
            if not any(one.path.startswith(f"{path}!/META-INF/") for one in found):
                found += _read_manifest(
                    path, _read_entry(jar, jar.getinfo(_MANIFEST), MAX_TEXT_SIZE)
                )
    except (*_BAD_ZIP, KeyError):
        return found
    return found


def _read_entry(jar: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int) -> bytes:
    """A file of at most `limit` bytes, whatever its header says; b"" for a larger one."""
    if entry.file_size > limit:
        return b""
    with jar.open(entry) as file:
        data = file.read(limit + 1)
    return data if len(data) <= limit else b""


def _read_pom(path: str, data: bytes) -> Iterator[Package]:
    lines = (line.partition("=") for line in _text(data).splitlines() if line[:1] not in "#!")
    facts = {key.strip(): value.strip() for key, _, value in lines}
    if facts.get("version"):
        name = facts.get("artifactId", "")
        yield Package("maven", facts.get("groupId", ""), name, facts["version"], path)


def _read_manifest(path: str, data: bytes) -> Iterator[Package]:
    """The jar by its file's name, or what its manifest says: neither has Maven's group."""
    named = _JAR_NAME.fullmatch(path.rpartition("/")[2].rpartition(".")[0])
    text = re.sub(r"\r\n|\r", "\n", _text(data)).replace("\n ", "")  # lines end at 72 bytes
    facts = next(_stanzas(text.partition("\n\n")[0].encode(), ":"), {})
    name = (named and named["name"]) or facts.get("Bundle-SymbolicName", "").partition(";")[0]
    name = name or facts.get("Implementation-Title", "")
    said = facts.get("Implementation-Version") or facts.get("Bundle-Version", "")
    version = (named and named["version"]) or said
    if name and version:
        yield Package("", "", name, version, path)
