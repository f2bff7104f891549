"""Fetches what the board's file system is made of: Debian packages and the runtimes' wheels, all checked by SHA-256.

`apt-get` works on a configuration and a state of its own, so that neither root nor a change to this machine is needed.
Debian's signature covers the packages' hashes; those of the wheels stand below.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecompile.errors import DeviceError
from edgecompile.progress import Progress
from edgecompile.transport.lab.places import Deadline, is_full, program, root, run
from edgecompile.types import file_sha256

RELEASE = "bookworm"
_MIRROR = "http://deb.debian.org/debian"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
#: ``qemu-user`` is this machine's; all others are the board's.
PACKAGES = (
    "dash", "coreutils", "findutils", "grep", "sed", "util-linux", "python3", "openssh-server", "libstdc++6",
    "libgomp1", "qemu-user:amd64",
)  # fmt: skip
#: The versions that a build is made with (``onnx2tf`` pins them), and what PyPI has under these names for 64-bit Arm.
WHEELS = {
    "ai-edge-litert==2.1.0": "92b24d2507fccf5680c26e712c156266dcf64a892df3921dd42f4a7d26527462",
    "tflite-runtime==2.14.0": "ce9fa5d770a9725c746dcbf6f59f3178233b3759f09982e8b2db8d2234c333b0",
    "onnxruntime==1.23.0": "e8634c5f54774df1e4d1debfdf2ca8f3274fe4ffc816ff5f861c01c48468a2c4",
    "numpy==1.26.4": "7ab55401287bfec946ced39700c053796e7cc0e3acbef09993a9ad2adba6ca6e",
}
_PLATFORMS = ("manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in (17, 27, 28, 31, 34, 35)))
_LISTED = re.compile(r"'[^']*' (\S+) (\d+) SHA256:([0-9a-f]{64})")
_SETTING = re.compile(r"Acquire::(https?|ftp|Retries|Check-Valid-Until|Check-Date)\b.* \"[^\"]*\";")
_KEY_WORDS = "::".join((RELEASE, *PACKAGES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A Debian package as the signed index describes it; ``name`` is that of the file."""

    name: str
    size_bytes: int
    sha256: str


def clean() -> None:
    """Remove what was fetched."""
    for folder in (_apt_folder(), _wheels_folder()):
        shutil.rmtree(folder, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------ Debian


def packages(progress: Progress, deadline: Deadline) -> list[Path]:
    """The board's packages, fetched if need be. Raises `DeviceError` naming what is missing or cannot be reached."""
    apt = program("apt-get", "apt", "fetches the board's Debian packages")
    if not _KEYRING.is_file():
        raise DeviceError(
            f"there is no {_KEYRING}, without which Debian's signatures cannot be checked",
            remedy="install it with: sudo apt install debian-archive-keyring",
        )
    with progress.stage("Read Debian's index"):
        settings = _index(apt, deadline)
        wanted = _resolve(apt, settings, deadline)
    total = sum(package.size_bytes for package in wanted)
    with progress.stage("Fetch Debian for 64-bit Arm, MB", total=_mb(total)) as step:
        archives = _apt_folder() / "cache" / "archives"
        watch = _Growth(step, [archives, archives / "partial"], [package.name for package in wanted])
        install = [apt, "install", "-y", "--download-only", *PACKAGES]
        run(install, deadline, "fetching Debian packages", environment=settings, watch=watch)
        return [_checked(archives / package.name, package.sha256) for package in wanted]


def _index(apt: str, deadline: Deadline) -> dict[str, str]:
    """Read the index of the first mirror that answers; the environment for further commands of apt's."""
    failed: DeviceError | None = None
    for mirror in _mirrors(apt, deadline):
        settings = {"APT_CONFIG": str(_configure(mirror, deadline))}
        try:
            run([apt, "update", "--error-on=any"], deadline, "reading Debian's index", environment=settings)
        except DeviceError as exc:
            remedy = (
                f"see that {_shown(mirror)} can be reached from here (proxies are taken from apt's configuration), "
            )
            remedy += "or name another with EDGECOMPILE_DEBIAN_MIRROR"
            failed = failed or DeviceError(exc.message, remedy=exc.remedy if is_full(exc.message) else remedy)
        else:
            return settings
    assert failed is not None
    raise failed


def _shown(address: str) -> str:
    """An address without the name and password that may stand in it."""
    return re.sub(r"//[^/@]*@", "//", address)


def _mirrors(apt: str, deadline: Deadline) -> Iterable[str]:
    """Where Debian may be had from: as the user says, else where this machine has it from, else Debian's own."""
    given = os.environ.get("EDGECOMPILE_DEBIAN_MIRROR")
    if given:
        return (given,)
    wanted = "$(REPO_URI)|$(ORIGIN)|$(LABEL)|$(COMPONENT)"
    found = []
    with contextlib.suppress(DeviceError):
        listed = run([apt, "indextargets", "--format", wanted, "Created-By: Packages"], deadline, "reading sources")
        found = [uri for line in listed.splitlines() if (uri := debian_of(line)) is not None]
    return dict.fromkeys((*found, _MIRROR))


def debian_of(line: str) -> str | None:
    """The mirror of a line ``URI|ORIGIN|LABEL|COMPONENT`` where it is one of Debian's main archive, else ``None``.

    Where apt has read no index yet, origin and label are empty, and only the address can tell.
    """
    uri, origin, label, component = line.split("|")
    uri = uri.rstrip("/")
    known = (origin, label) == ("Debian", "Debian") or (not origin and uri.endswith("/debian"))
    return uri if known and component == "main" and not uri.startswith("cdrom") else None


def _configure(mirror: str, deadline: Deadline) -> Path:
    """A configuration of apt's that knows nothing of this machine but the way to the network."""
    folder = _apt_folder()
    for name in ("state/lists/partial", "cache/archives/partial", "etc/preferences.d", "none/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    sources = folder / "etc" / "sources.list"
    sources.touch(mode=0o600)  # a password may stand in the mirror's address
    sources.write_text(f"deb [signed-by={_KEYRING}] {mirror} {RELEASE} main\n")
    values = {
        "Dir": f"{folder}/",
        "Dir::State": f"{folder}/state",
        "Dir::State::status": f"{folder}/status",
        "Dir::Cache": f"{folder}/cache",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "Dir::Etc": f"{folder}/etc",
        "Dir::Etc::parts": "/dev/null",
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::sourceparts": "/dev/null",
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::ForceHash": "SHA256",
        "Binary::apt-get::APT::Keep-Downloaded-Packages": "true",
        "APT::Keep-Downloaded-Packages": "true",
    }
    logins = Path("/etc/apt/auth.conf")
    if os.access(logins, os.R_OK):
        values["Dir::Etc::netrc"] = str(logins)
    lines = [f'{key} "{value}";' for key, value in values.items()] + ['APT::Architectures:: "amd64";']
    path = folder / "apt.conf"
    path.write_text("\n".join((*_network_settings(deadline), *lines)) + "\n")
    return path


def _network_settings(deadline: Deadline) -> list[str]:
    """Proxies and certificates as this machine's own apt is told them."""
    dump = run([program("apt-config", "apt", "tells the proxy"), "dump"], deadline, "reading apt's configuration")
    return [line for line in dump.splitlines() if _SETTING.fullmatch(line)]


def _resolve(apt: str, settings: Mapping[str, str], deadline: Deadline) -> list[Package]:
    """The packages to unpack, with those that they depend on, as if none had been fetched."""
    nothing = f"Dir::Cache::archives={_apt_folder()}/none/"
    listing = [apt, "install", "-qq", "--print-uris", "-o", nothing, *PACKAGES]
    found = [
        Package(name=match[1], size_bytes=int(match[2]), sha256=match[3])
        for line in run(listing, deadline, "resolving packages", environment=settings).splitlines()
        if (match := _LISTED.fullmatch(line)) is not None
    ]
    return sorted(found, key=lambda package: package.name)


def _apt_folder() -> Path:
    return root() / f"apt-{hashlib.sha256(_KEY_WORDS.encode()).hexdigest()[:12]}"


class _Growth:
    """Tells how many megabytes of some files there are by now, which others write."""

    def __init__(self, step: Callable[[int], None], folders: Sequence[Path], names: Sequence[str]) -> None:
        self._step, self._told = step, 0
        self._paths = [folder / name for folder in folders for name in names]

    def __call__(self) -> None:
        now = 0
        for path in self._paths:
            with contextlib.suppress(OSError):
                now += path.stat().st_size
        if _mb(now) > self._told:
            self._step(_mb(now) - self._told)
            self._told = _mb(now)


def _mb(size_bytes: int) -> int:
    return round(size_bytes / 1e6)


def _checked(path: Path, sha256: str) -> Path:
    """A fetched file that is what it should be; another is removed. Raises `DeviceError`."""
    if not path.is_file() or file_sha256(path) != sha256:
        path.unlink(missing_ok=True)
        raise DeviceError(
            f"{path.name} is not the file that it should be",
            remedy="try again: it was removed and will be fetched anew; if this stays, the mirror serves another file",
        )
    return path


# ------------------------------------------------------------------------------------------------------ wheels


def wheels(progress: Progress, deadline: Deadline) -> list[Path]:
    """The runtimes' wheels, fetched if need be. Raises `DeviceError` naming what is missing or cannot be reached."""
    folder = _wheels_folder()
    with progress.stage("Fetch the runtimes for 64-bit Arm (45 MB)"):
        found = {name: _wheel(folder, name) for name in WHEELS}
        if None in found.values():
            if importlib.util.find_spec("pip") is None:
                raise DeviceError(
                    f"{sys.executable} has no pip, which fetches the board's runtimes",
                    remedy=f"install it with: {sys.executable} -m ensurepip",
                )
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--dest", str(folder), "--only-binary=:all:", "--python-version", "3.11"]
            command += ["--implementation", "cp", "--abi", "cp311"]
            command += [*(word for name in _PLATFORMS for word in ("--platform", name)), *WHEELS]
            run(command, deadline, "fetching the runtimes for 64-bit Arm")
            found = {name: _wheel(folder, name) for name in WHEELS}
        return [_checked(path or folder / name, WHEELS[name]) for name, path in found.items()]


def _wheels_folder() -> Path:
    """No name that a folder of the user's could have: the lab's root may be one, and this is removed."""
    return root() / f"wheels-{hashlib.sha256('::'.join(WHEELS).encode()).hexdigest()[:12]}"


def _wheel(folder: Path, requirement: str) -> Path | None:
    name, _, version = requirement.partition("==")
    return next(iter(sorted(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))), None)


__all__ = ["PACKAGES", "RELEASE", "WHEELS", "Package", "clean", "debian_of", "packages", "wheels"]
