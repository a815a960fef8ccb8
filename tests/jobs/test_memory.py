"""Memory of a pull: at its most it grows by less than five bytes with each byte of the binary.
Measured on two generated programs; bench/memory.py measures a released one."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import AMD64
from go_builds import SMALL, SYMBOLS_ONLY, build_go

from layerkit.digest import sha256_digest
from layerkit.edges.layout import Layout
from layerkit.formats import deflate, delta, image, layer
from layerkit.formats.addressfree import read_hints
from layerkit.formats.elf import parse_elf, strip_symbols
from layerkit.formats.layerform import (
    decode_layer,
    encode_layer,
    rebuild_layer,
    serialize_labels,
)
from layerkit.formats.reference import Reference
from layerkit.jobs.serve import start

MOST = 5.0  # bytes of memory a byte of binary
MOST_BESIDE = 2.9  # the same, without what was there before: one form or tar, and the interpreter
PACKAGE_COUNTS, FUNCTION_COUNT = (8, 24), 400
NODE = """
import sys
from pathlib import Path
from layerkit.edges.disk import Disk
from layerkit.edges.remote import Remote
from layerkit.edges.store import Store
from layerkit.formats.oci import parse_platform
from layerkit.formats.reference import Reference
from layerkit.jobs.pull import pull, rebuild_forms

def peak():
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) << 10

url, ref, path, way = sys.argv[1:]
with Store(Path(path), Disk()) as store, Remote(url) as remote:
    if way == "plain":
        store.put_fact(f"line/{url[7:]}/bandwidth", "1e10")
        store.put_fact("rate/blob", "1e11")
        for name in ("form", "packed", "chunks", "update"):
            store.put_fact(f"rate/{name}", "1e3")
    ref, machine = Reference.parse(ref), parse_platform("linux/amd64")
    if way == "rebuild":
        assert rebuild_forms(ref, remote, store, platform=machine)
    else:
        result = pull(ref, remote, store, platform=machine, rootfs=Path(path + "-root"),
                      fewest_bytes=way != "plain")
        assert (result.plain_count > 0) == (way == "plain")
print(peak())
"""


def write_sources(folder: Path, greeting: str, package_count: int) -> None:
    """A Go program that is large because it has much code, as real ones are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "go.mod").write_text("module big\n\ngo 1.21\n")
    for package in range(package_count):
        path = folder / f"p{package}"
        path.mkdir(parents=True, exist_ok=True)
        lines = [f"package p{package}", 'import "fmt"', "type T struct { A, B int; S string }"]
        for number in range(FUNCTION_COUNT):
            lines.append(
                f"func (t *T) F{number}(n int) (string, error) {{\n"
                f'\tif n > {number} {{ return fmt.Sprintf("{package} {number}: %v", t), nil }}\n'
                f"\tfor i := 0; i < n; i++ {{ t.A += i * {number}; t.S += fmt.Sprint(t.B, i) }}\n"
                f'\treturn t.S, fmt.Errorf("p{package} f{number} %w %d", fmt.Errorf(t.S), n)\n}}'
            )
        (path / "p.go").write_text("\n".join(lines))
    calls = "\n".join(f"\tuse(&p{package}.T{{}})" for package in range(package_count))
    imports = "\n".join(f'\t"big/p{package}"' for package in range(package_count))
    (folder / "main.go").write_text(
        f'package main\nimport (\n\t"fmt"\n\t"os"\n\t"reflect"\n{imports}\n)\n'
        "func use(v any) { m := reflect.ValueOf(v); for i := 0; i < m.NumMethod(); i++ {\n"
        "\tif len(os.Args) > i { m.Method(i).Call([]reflect.Value{reflect.ValueOf(i)}) } } }\n"
        f'func main() {{ fmt.Println("{greeting}")\n{calls}\n}}\n'
    )


def publish(layout_path: Path, ref: str, named: bytes) -> int:
    elf = parse_elf(named)
    binary = strip_symbols(elf)
    recipe = deflate.compression_by_name("gzip")
    code = image.pack_layer(layer.CODE, layer.code_entries("big", binary), recipe, "code")
    packed = image.pack_image([code], image.ImageSettings(AMD64, ("/app/big",), ""))
    artifact = image.pack_chunks_artifact(packed, {sha256_digest(binary): read_hints(elf)})
    layout = Layout(layout_path)
    with layout.batch():
        for blob in (*packed.blobs(), *artifact):
            layout.put_blob(blob.data, blob.descriptor.media_type)
        layout.commit(Reference.parse(ref), packed.manifest.descriptor, [artifact[-1].descriptor])
    return len(binary)


def peak(url: str, ref: str, store: Path, way: str) -> int:
    """Bytes that a process held at most, which pulled into a store and a folder."""
    argv = [sys.executable, "-c", NODE, url, ref, str(store), way]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=True)
    return int(done.stdout)


def measure(folder: Path, package_count: int) -> tuple[int, dict[str, int]]:
    """Bytes of a binary, and of the pulls of it."""
    size = 0
    for ref, greeting in (("big:v1", "hello"), ("big:v2", "good evening")):
        source = folder / ref.partition(":")[2]
        write_sources(source, greeting, package_count)
        argv = ["go", "build", "-trimpath", "-ldflags=-w -buildid=", "-o", "../big", "."]
        subprocess.run(argv, cwd=source, check=True)
        size = publish(folder / "layout", ref, (folder / "big").read_bytes())
    with start(folder / "layout") as server:
        return size, {
            "first": peak(server.url, "big:v1", folder / "node", "bytes"),
            "update": peak(server.url, "big:v2", folder / "node", "bytes"),
            "plain": peak(server.url, "big:v1", folder / "other", "plain"),
            "made again": peak(server.url, "big:v1", folder / "other", "rebuild"),
        }


@pytest.mark.slow
@pytest.mark.go
def test_memory_grows_by_less_than_five_times_the_binary(
    tmp_path: Path, go_toolchain: object
) -> None:
    (small, low), (large, high) = (
        measure(tmp_path / str(count), count) for count in PACKAGE_COUNTS
    )
    growth = {way: (high[way] - low[way]) / (large - small) for way in high}
    assert max(growth.values()) < MOST, (small, low, large, high)


def traced(call: Callable[[], object]) -> int:
    """Bytes that a call allocates at most, its result included; no interpreter, no library."""
    call()  # what is imported and kept at first use does not count
    tracemalloc.start()
    call()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


@pytest.mark.go
def test_what_a_node_makes_of_a_binary_takes_little_beside_it(go_toolchain: Path) -> None:
    """Each result counts once; 1.4 to 1.6 of a binary of 1.3 MB, and less of larger ones, is what
    it takes to get there."""
    named = build_go(go_toolchain, SMALL, SYMBOLS_ONLY)
    other = build_go(
        go_toolchain, SMALL | {"main.go": SMALL["main.go"].replace("hello", "good day")},
        SYMBOLS_ONLY,
    )  # fmt: skip
    elf = parse_elf(named)
    tar, other_tar = (
        layer.build_tar(layer.code_entries("small", strip_symbols(one)))
        for one in (elf, parse_elf(other))
    )
    made = encode_layer(tar, {sha256_digest(strip_symbols(elf)): read_hints(elf)})
    old = encode_layer(other_tar)
    assert made is not None
    assert old is not None
    labels = serialize_labels(made.places, made.labels)
    change = delta.diff([old.form], made.form)
    most = {
        "decode": traced(lambda: decode_layer(made.form)) / len(tar),
        "made again": traced(lambda: rebuild_layer(tar, labels)) / len(tar),
        "patch": traced(lambda: delta.patch([old.form], change)) / len(tar),
    }
    assert max(most.values()) < MOST_BESIDE, most
