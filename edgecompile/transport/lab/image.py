"""The board's file system: Debian packages for 64-bit Arm and the runtimes' wheels, fetched once and unpacked.

Neither root nor emulation is needed for it: packages are unpacked without running their scripts. QEMU comes from the
same place, so that counts do not depend on this machine's.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from edgecompile import content
from edgecompile.errors import DeviceError
from edgecompile.progress import Progress
from edgecompile.transport.lab import fetch
from edgecompile.transport.lab.places import ROOM, Deadline, is_full, locked, program, root, run

_LEFT_OUT = (
    "./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./usr/share/info", "./usr/share/perl*",
    "*/perl/*", "./usr/bin/qemu-a[l-r]*", "./usr/bin/qemu-aarch64_be", "./usr/bin/qemu-[b-z]*",
)  # fmt: skip
_SITE = "usr/local/lib/python3.11/dist-packages"
_VERSION = "2"
_ACCOUNTS = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\npi:x:1000:1000:pi:/home/pi:/bin/sh\n"
    "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n",
    "group": "root:x:0:\npi:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
#: What fetching and unpacking take at their most; less than half of it stays.
_NEEDED_BYTES = 750_000_000
#: A file of the image that holds the hash of all that it was made of.
_IDENTITY = "etc/edgecompile-image"


def prepare(progress: Progress, deadline: Deadline) -> Path:
    """The folder with the board's file system, made if it is not there. Raises `DeviceError` naming what is missing."""
    if platform.machine() != "x86_64":
        raise DeviceError(
            f"the emulated boards run on x86-64 machines, and this is {platform.machine()}",
            remedy="use another machine, or a board itself with --on ssh://user@host",
        )
    words = (_VERSION, fetch.RELEASE, *fetch.PACKAGES, *fetch.WHEELS, *_LEFT_OUT)
    image = root() / f"image-{hashlib.sha256(chr(10).join(words).encode()).hexdigest()[:12]}"

    def tell() -> None:
        progress.note("waiting for another process that makes the boards' file system")

    with locked(root() / "image.lock", deadline, waiting=tell):
        if not image.is_dir():
            _require_room()
            part = image.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            try:
                part.mkdir(parents=True)
                _make(part, progress, deadline)
                part.rename(image)
            except OSError as exc:
                if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise _no_room(exc.strerror or "no space is left") from exc
                raise
            finally:
                shutil.rmtree(part, ignore_errors=True)
            fetch.clean()
    return image


def identity(image: Path) -> str:
    """The hash of the packages and wheels that an image was made of: counts of equal images can be compared."""
    return (image / _IDENTITY).read_text().strip()


def _require_room() -> None:
    free = shutil.disk_usage(root()).free
    if free < _NEEDED_BYTES:
        raise _no_room(f"{free / 1e6:.0f} MB are free, and {_NEEDED_BYTES / 1e6:.0f} MB are needed to make a board")


def _no_room(fault: str) -> DeviceError:
    return DeviceError(f"{root()}: {fault}", remedy=ROOM)


def _make(image: Path, progress: Progress, deadline: Deadline) -> None:
    packages = fetch.packages(progress, deadline)
    wheels = fetch.wheels(progress, deadline)
    with progress.stage("Unpack", total=len(packages) + len(wheels)) as step:
        _skeleton(image)
        for package in packages:
            _unpack(package, image, deadline)
            step(1)
        for name, text in _ACCOUNTS.items():
            (image / "etc" / name).write_text(text)
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(image / _SITE)
            step(1)
    with progress.stage("Compile Python's modules"):
        _compile(image, deadline)
    (image / _IDENTITY).write_text(_hash_of((*packages, *wheels)) + "\n")


def _hash_of(files: Sequence[Path]) -> str:
    """A hash of the names, which hold the versions: what is in the files was checked."""
    return hashlib.sha256("\n".join(sorted(file.name for file in files)).encode()).hexdigest()


def _skeleton(image: Path) -> None:
    """The folders that packages expect: ``/bin`` is a link to ``/usr/bin`` and so on."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (image / "usr" / name).mkdir(parents=True)
        (image / name).symlink_to(f"usr/{name}")
    for name in ("proc", "sys", "dev", "tmp", "run", "etc", "home/pi", "opt/edgecompile", "etc/ssh", _SITE):
        (image / name).mkdir(parents=True, exist_ok=True)


# --------------------------------------------------------------------------------------------------- unpacking


def _unpack(package: Path, image: Path, deadline: Deadline) -> None:
    """Unpack a package. Not with ``dpkg-deb -x``, which puts a folder in the place of the link ``/bin``."""
    unpack = [program("dpkg-deb", "dpkg", "unpacks packages"), "--fsys-tarfile", str(package)]
    write = [program("tar", "tar", "unpacks packages"), "-x", "-C", str(image), "--keep-directory-symlink"]
    write += ["--no-same-owner", "--no-same-permissions", *(f"--exclude={pattern}" for pattern in _LEFT_OUT)]
    with subprocess.Popen(unpack, stdout=subprocess.PIPE) as source:
        environment = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(write, stdin=source.stdout, capture_output=True, text=True, check=False, env=environment)
    if source.returncode or done.returncode:
        if is_full(done.stderr):
            raise _no_room(f"no space is left to unpack {package.name}")
        raise DeviceError(
            f"cannot unpack {package.name}: {done.stderr.strip()[-200:]}",
            remedy=f"see that files can be written in {root()} and run from there, and try again",
        )
    _ = deadline.left_s


def _compile(image: Path, deadline: Deadline) -> None:
    """Byte code of what the runners import, by this Python, which is the same version: emulated, it takes seconds."""
    if sys.version_info[:2] != (3, 11):
        return
    command = [sys.executable, "-m", "compileall", "-q", "-j", "2", "-s", str(image), "-p", "/"]
    folders = [str(image / "usr/lib/python3.11"), str(image / _SITE)]
    skip = r"/(tests?|f2py|distutils|lib2to3|ensurepip|idlelib|tkinter|pydoc_data)/"
    run([*command, "-x", skip, *folders], deadline, "compiling Python's modules")


# --------------------------------------------------------------------------------------------------- the plugin


def plugin_folder(deadline: Deadline) -> Path:
    """The folder with the plugin that counts, compiled if it is not there; empty where there is no C compiler."""
    source = content.builtin_root("targets") / "lab" / "insn_count.c"
    folder = root() / f"plugin-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    compiler = shutil.which(os.environ.get("CC", "cc"))
    with locked(root() / "plugin.lock", deadline):
        folder.mkdir(parents=True, exist_ok=True)
        library = folder / "insn_count.so"
        if compiler is not None and not library.is_file():
            part = library.with_suffix(".part")
            run([compiler, "-shared", "-fPIC", "-O2", "-o", str(part), str(source)], deadline, "compiling the plugin")
            part.rename(library)
    return folder


__all__ = ["identity", "plugin_folder", "prepare"]
