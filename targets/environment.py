#!/usr/bin/env python3
"""Makes, on the machine it runs on, a Python environment with what the runner needs, in a folder that stays.

    python environment.py look
    python environment.py make --packages ai-edge-litert numpy --or tflite-runtime "numpy<2"
    python environment.py make --wheels FOLDER --check numpy onnxruntime
    python environment.py tidy
    python environment.py remove

Needs Python 3.7 or later and its standard library only. The result is one line on standard output that begins with
EDGECOMPILE-RESULT. The environment lies in the first of these folders that can be written: $EDGECOMPILE_HOME,
~/.edgecompile, /var/tmp/edgecompile-UID; a link `current` leads to it, which is set when it works.
"""

import argparse
import contextlib
import glob
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile

SENTINEL = "EDGECOMPILE-RESULT "
#: Nothing else below a root is ever removed: EDGECOMPILE_HOME may name a folder that holds other things, too.
MADE = "edgecompile-env-"
#: What the runner could use, as packages are imported, and where each is looked up.
PACKAGES = {
    "numpy": "numpy",
    "ai_edge_litert": "ai-edge-litert",
    "tflite_runtime": "tflite-runtime",
    "onnxruntime": "onnxruntime",
}
PIP = ["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-cache-dir", "--quiet"]
PIP += ["--only-binary", ":all:"]


class Failure(Exception):
    """Something that the caller should tell the user."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind
        self.message = message


def roots():
    """Where an environment may lie, in the order of preference."""
    found = [os.environ.get("EDGECOMPILE_HOME"), os.path.join(os.path.expanduser("~"), ".edgecompile")]
    if hasattr(os, "getuid"):
        found.append(f"/var/tmp/edgecompile-{os.getuid()}")
    return [root for root in found if root and os.path.isabs(root)]


def is_ours(folder):
    """Whether a folder is there and nobody else's, nor a link that somebody else made: /var/tmp is open to all."""
    if not os.path.isdir(folder):
        return False
    return not hasattr(os, "getuid") or {os.stat(folder).st_uid, os.lstat(folder).st_uid} == {os.getuid()}


def existing():
    """The root whose environment is in use, or None."""
    for root in roots():
        if is_ours(root) and os.path.exists(os.path.join(root, "current", "bin", "python")):
            return root
    return None


def writable_root():
    """The first root that can be written, made if need be."""
    reasons = []
    for root in roots():
        try:
            os.makedirs(root, mode=0o700, exist_ok=True)
            if not is_ours(root):
                raise OSError("it belongs to somebody else")
            with tempfile.TemporaryFile(dir=root):
                return root
        except OSError as exc:
            reasons.append(f"{root}: {exc.strerror or exc}")
    message = "no folder for the environment can be written ({})".format("; ".join(reasons))
    raise Failure("read_only", message)


def version(package, python=None):
    """The version of an installed package, None where it is not there; of ``python``, or else of this one.

    Nothing is imported where that can be told without: it may take long.
    """
    code = (
        "import importlib, importlib.util, sys\n"
        "if importlib.util.find_spec(sys.argv[1]) is None: sys.exit(1)\n"
        "try:\n"
        "    from importlib import metadata\n"
        "    found = metadata.version(sys.argv[2])\n"
        "except ImportError:\n"  # before Python 3.8, or a package without metadata
        "    found = getattr(importlib.import_module(sys.argv[1]), '__version__', 'unknown')\n"
        "sys.stdout.write(str(found))\n"
    )
    done = run([python or sys.executable, "-c", code, package, PACKAGES[package]])
    return done.stdout.strip() if done.returncode == 0 else None


def run(command):
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def installed(python=None):
    found = {package: version(package, python) for package in PACKAGES}
    return {package: text for package, text in found.items() if text}


def libc_version():
    """The C library's name and version, empty where it cannot be told (musl, Android)."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return tuple((os.confstr("CS_GNU_LIBC_VERSION") or "").split()[:2]) or ("", "")
    return "", ""


def look():
    """What is there."""
    root = existing()
    libc, number = libc_version()
    home = next((r for r in roots() if os.path.isdir(os.path.dirname(r))), "/")
    return {
        "python": list(sys.version_info[:3]),
        "implementation": platform.python_implementation(),
        "machine": platform.machine(),
        "system": "android" if hasattr(sys, "getandroidapilevel") else sys.platform,
        "libc": libc,
        "libc_version": number,
        "has_venv": importlib.util.find_spec("venv") is not None,
        "has_pip": importlib.util.find_spec("ensurepip") is not None,
        "installed": installed(),
        "root": root or roots()[0],
        "environment": None if root is None else installed(os.path.join(root, "current", "bin", "python")),
        "free_bytes": shutil.disk_usage(os.path.dirname(home)).free,
    }


def make(arguments):
    """A new environment, which takes the place of an older one when it works."""
    if importlib.util.find_spec("venv") is None:
        raise Failure("no_venv", "this Python has no module venv")
    if not arguments.wheels and importlib.util.find_spec("ensurepip") is None:
        raise Failure("no_pip", "this Python cannot make an environment with pip: it has no module ensurepip")
    tidy()
    root = writable_root()
    folder = tempfile.mkdtemp(prefix=MADE, dir=root)
    # Whatever is left by programs that are killed lies in a folder that is removed.
    tempfile.tempdir = os.environ["TMPDIR"] = os.path.join(folder, "tmp")
    try:
        os.mkdir(tempfile.tempdir)
        fill(folder, arguments)
        shutil.rmtree(tempfile.tempdir, ignore_errors=True)
        python = os.path.join(folder, "bin", "python")
        check(python, arguments.check)
        link = os.path.join(root, "next-" + os.path.basename(folder))
        os.symlink(os.path.basename(folder), link)
        os.replace(link, os.path.join(root, "current"))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(root)  # only where nothing else is in it
        raise
    tidy()
    return {"root": root, "environment": installed(os.path.join(root, "current", "bin", "python"))}


def fill(folder, arguments):
    """Make the environment and install what is wanted."""
    import venv

    try:
        venv.EnvBuilder(with_pip=not arguments.wheels, symlinks=True).create(folder)
    except subprocess.CalledProcessError as exc:
        raise Failure("no_pip", f"pip cannot be put into an environment here: {last_line(exc.output)}") from exc
    except OSError as exc:
        raise Failure("disk", f"cannot write {folder}: {exc.strerror}") from exc
    if arguments.wheels:
        unpack(arguments.wheels, folder)
        return
    said = []
    for packages in [arguments.packages, *arguments.alternatives]:
        done = run([os.path.join(folder, "bin", "python"), *PIP, *packages])
        if done.returncode == 0:
            return
        said.append(f"{packages[0]}: {last_line(done.stderr or done.stdout)}")
    raise Failure("not_installed", "; ".join(said))


def last_line(text):
    lines = [line.strip() for line in (text or b"").splitlines() if line.strip()] if text else []
    errors = [line for line in lines if str(line).startswith("ERROR")]
    shown = (errors or lines or ["it said nothing"])[-1]
    return shown.decode("utf-8", "replace") if isinstance(shown, bytes) else shown


def unpack(wheels, folder):
    """Wheels are archives of what lies in site-packages: no pip is needed to install them."""
    packages = glob.glob(os.path.join(glob.escape(folder), "lib", "python3*", "site-packages"))[0]
    for path in sorted(glob.glob(os.path.join(glob.escape(wheels), "*.whl"))):
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(packages)
        except OSError as exc:
            raise Failure("disk", f"cannot unpack {os.path.basename(path)}: {exc.strerror}") from exc
        except zipfile.BadZipFile as exc:
            raise Failure("not_installed", f"{os.path.basename(path)} is damaged") from exc
    for data in glob.glob(os.path.join(glob.escape(packages), "*.data", "*lib")):
        for name in os.listdir(data):  # purelib and platlib: what a wheel keeps apart for no reason of ours
            shutil.move(os.path.join(data, name), os.path.join(packages, name))


def check(python, modules):
    """Import what was installed: a wheel for another machine, or a missing dependency, is found here."""
    for names in modules:
        said = []
        for module in names.split("|"):
            done = run([python, "-c", "import importlib, sys; importlib.import_module(sys.argv[1])", module])
            if done.returncode == 0:
                break
            how = last_line(done.stderr) if done.returncode > 0 else f"signal {-done.returncode}"
            said.append(f"{module} cannot be imported here: {how}")
        else:
            raise Failure("does_not_run", said[0])


def tidy():
    """Remove environments that are not in use; gives how many."""
    count = 0
    for root in filter(is_ours, roots()):
        used = os.path.realpath(os.path.join(root, "current"))
        for name in os.listdir(root):
            path = os.path.join(root, name)
            if name.startswith((MADE, "next-" + MADE)) and os.path.realpath(path) != used:
                if os.path.islink(path):
                    os.unlink(path)
                else:
                    shutil.rmtree(path, ignore_errors=True)
                count += 1
        with contextlib.suppress(OSError):
            os.rmdir(root)
    return {"removed": count}


def remove():
    """Remove everything that `make` made."""
    for root in filter(is_ours, roots()):
        link = os.path.join(root, "current")
        if os.path.islink(link):
            os.unlink(link)
    return tidy()


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["look", "make", "tidy", "remove"])
    parser.add_argument("--packages", nargs="+", default=[], metavar="PACKAGE", help="what pip installs")
    parser.add_argument(
        "--or", nargs="+", action="append", default=[], dest="alternatives", metavar="PACKAGE", help="else this"
    )
    parser.add_argument("--wheels", metavar="FOLDER", help="unpack the wheels in this folder; no pip, no network")
    parser.add_argument(
        "--check", nargs="+", default=[], metavar="MODULE", help="modules that must be importable; a|b: one of them"
    )
    return parser.parse_args()


def main():
    arguments = parse()
    actions = {"look": look, "make": lambda: make(arguments), "tidy": tidy, "remove": remove}
    try:
        document = actions[arguments.action]()
    except Failure as exc:
        document = {"error": {"kind": exc.kind, "message": exc.message}}
    sys.stdout.write("\n" + SENTINEL + json.dumps(document) + "\n")
    return 1 if "error" in document else 0


if __name__ == "__main__":
    sys.exit(main())
