"""The board's file system: Debian packages for 64-bit Arm and the runtimes' wheels, fetched once and unpacked.

Neither root nor emulation is needed for it: `apt-get` works on a configuration and a state of its own, and packages are
unpacked without running their scripts. QEMU comes from the same place, so that counts do not depend on this machine's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from edgecompile import content
from edgecompile.errors import DeviceError
from edgecompile.progress import Progress
from edgecompile.transport.lab.places import Deadline, locked, program, root, run

_RELEASE = "bookworm"
_MIRROR = "http://deb.debian.org/debian"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
#: ``qemu-user`` is this machine's; all others are the board's.
_PACKAGES = (
    "dash", "coreutils", "findutils", "grep", "sed", "util-linux", "python3", "openssh-server", "libstdc++6",
    "libgomp1", "qemu-user:amd64",
)  # fmt: skip
_WHEELS = ("ai-edge-litert==2.1.2", "tflite-runtime==2.14.0", "numpy==1.26.4")
_PLATFORMS = ("manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in (17, 27, 28, 31, 34, 35)))
_LEFT_OUT = (
    "./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./usr/share/info", "./usr/share/perl*",
    "*/perl/*", "./usr/bin/qemu-a[l-r]*", "./usr/bin/qemu-aarch64_be", "./usr/bin/qemu-[b-z]*",
)  # fmt: skip
_SITE = "usr/local/lib/python3.11/dist-packages"
_USER = "pi"
_VERSION = "1"
_ACCOUNTS = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\npi:x:1000:1000:pi:/home/pi:/bin/sh\n"
    "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n",
    "group": "root:x:0:\npi:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


def prepare(progress: Progress, deadline: Deadline) -> Path:
    """The folder with the board's file system, made if it is not there. Raises `DeviceError` naming what is missing."""
    if platform.machine() != "x86_64":
        raise DeviceError(
            f"the emulated boards run on x86-64 machines, and this is {platform.machine()}",
            remedy="use another machine, or a board itself with --on ssh://user@host",
        )
    words = (_VERSION, _RELEASE, *_PACKAGES, *_WHEELS, *_LEFT_OUT)
    image = root() / f"image-{hashlib.sha256(chr(10).join(words).encode()).hexdigest()[:12]}"
    with locked(root() / "image.lock", deadline):
        if not image.is_dir():
            part = image.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            _make(part, progress, deadline)
            part.rename(image)
    return image


def _make(image: Path, progress: Progress, deadline: Deadline) -> None:
    with progress.stage("Fetch Debian for 64-bit Arm (about 75 MB, once)"):
        packages = _fetch_packages(deadline)
    with progress.stage("Fetch LiteRT for 64-bit Arm (about 30 MB, once)"):
        wheels = _fetch_wheels(deadline)
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
        _compile(image, deadline)


def _skeleton(image: Path) -> None:
    """The folders that packages expect: ``/bin`` is a link to ``/usr/bin`` and so on."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (image / "usr" / name).mkdir(parents=True)
        (image / name).symlink_to(f"usr/{name}")
    for name in ("proc", "sys", "dev", "tmp", "run", "etc", "home/pi", "opt/edgecompile", "etc/ssh", _SITE):
        (image / name).mkdir(parents=True, exist_ok=True)


# ---------------------------------------------------------------------------------------------------- fetching


def _fetch_packages(deadline: Deadline) -> list[Path]:
    apt = program("apt-get", "apt", "fetches the board's Debian packages")
    if not _KEYRING.is_file():
        raise DeviceError(
            f"there is no {_KEYRING}, without which Debian's signatures cannot be checked",
            remedy="install it with: sudo apt install debian-archive-keyring",
        )
    folder = root() / f"apt-{hashlib.sha256(' '.join(_PACKAGES).encode()).hexdigest()[:12]}"
    configuration = {"APT_CONFIG": str(_configure(folder, deadline))}
    run([apt, "update", "--error-on=any"], deadline, "reading Debian's index", environment=configuration)
    # What an earlier try fetched is not fetched again, but older versions must not be unpacked beside newer ones.
    run([apt, "autoclean"], deadline, "removing old packages", environment=configuration)
    install = [apt, "install", "-y", "--download-only", *_PACKAGES]
    run(install, deadline, "fetching Debian packages", environment=configuration)
    return sorted((folder / "cache" / "archives").glob("*.deb"))


def _configure(folder: Path, deadline: Deadline) -> Path:
    """A configuration of apt's that knows nothing of this machine but the way to the network."""
    for name in ("state/lists/partial", "cache/archives/partial", "etc/preferences.d"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    source = f"deb [signed-by={_KEYRING}] {os.environ.get('EDGECOMPILE_DEBIAN_MIRROR', _MIRROR)} {_RELEASE} main\n"
    (folder / "etc" / "sources.list").write_text(source)
    values = {
        "Dir": f"{folder}/",
        "Dir::State": f"{folder}/state",
        "Dir::State::status": f"{folder}/status",
        "Dir::Cache": f"{folder}/cache",
        "Dir::Etc": f"{folder}/etc",
        "Dir::Etc::parts": "/dev/null",
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::sourceparts": "/dev/null",
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Binary::apt-get::APT::Keep-Downloaded-Packages": "true",
        "APT::Keep-Downloaded-Packages": "true",
    }
    lines = [f'{key} "{value}";' for key, value in values.items()] + ['APT::Architectures:: "amd64";']
    path = folder / "apt.conf"
    path.write_text("\n".join((*_network_settings(deadline), *lines)) + "\n")
    return path


def _network_settings(deadline: Deadline) -> list[str]:
    """Proxies and certificates as this machine's own apt is told them."""
    dump = run([program("apt-config", "apt", "tells the proxy"), "dump"], deadline, "reading apt's configuration")
    wanted = re.compile(r"Acquire::(https?|ftp|Retries|Check-Valid-Until|Check-Date)\b.* \"[^\"]*\";")
    return [line for line in dump.splitlines() if wanted.fullmatch(line)]


def _fetch_wheels(deadline: Deadline) -> list[Path]:
    folder = root() / "wheels"
    names = {f"{name.replace('-', '_')}-{version}-" for name, _, version in (w.partition("==") for w in _WHEELS)}
    have = [path for path in folder.glob("*.whl") if any(path.name.startswith(name) for name in names)]
    if len(have) != len(names):
        if importlib.util.find_spec("pip") is None:
            raise DeviceError(
                f"{sys.executable} has no pip, which fetches the board's runtimes",
                remedy=f"install it with: {sys.executable} -m ensurepip",
            )
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--dest", str(folder), "--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"]
        command += ["--abi", "cp311", *(word for name in _PLATFORMS for word in ("--platform", name)), *_WHEELS]
        run(command, deadline, "fetching the runtimes for 64-bit Arm")
        have = [path for path in folder.glob("*.whl") if any(path.name.startswith(name) for name in names)]
    return sorted(have)


# --------------------------------------------------------------------------------------------------- unpacking


def _unpack(package: Path, image: Path, deadline: Deadline) -> None:
    """Unpack a package. Not with ``dpkg-deb -x``, which puts a folder in the place of the link ``/bin``."""
    unpack = [program("dpkg-deb", "dpkg", "unpacks packages"), "--fsys-tarfile", str(package)]
    write = [program("tar", "tar", "unpacks packages"), "-x", "-C", str(image), "--keep-directory-symlink"]
    write += ["--no-same-owner", "--no-same-permissions", *(f"--exclude={pattern}" for pattern in _LEFT_OUT)]
    with subprocess.Popen(unpack, stdout=subprocess.PIPE) as source:
        done = subprocess.run(write, stdin=source.stdout, capture_output=True, text=True, check=False)
    if source.returncode or done.returncode:
        package.unlink(missing_ok=True)
        raise DeviceError(
            f"cannot unpack {package.name}: {done.stderr.strip()[-200:]}", remedy="make room on the disk and try again"
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


__all__ = ["plugin_folder", "prepare"]
