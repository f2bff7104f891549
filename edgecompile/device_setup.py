"""`edgecompile device setup`: an environment on a device, with what measuring there needs.

All that happens there is done by ``targets/environment.py``, which is carried along and removed again.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from edgecompile import content
from edgecompile.bench import document
from edgecompile.errors import DeviceError, EdgecompileError, InputError
from edgecompile.progress import Progress
from edgecompile.transport import open_transport
from edgecompile.transport.ssh import SSHTransport
from edgecompile.types import RuntimeName

T = TypeVar("T")
_SCRIPT = "environment.py"
_LOOK_S, _MAKE_S, _FETCH_S = 120.0, 1800.0, 600.0
#: The oldest C library that wheels of this decade are made for.
_OLDEST_GLIBC = 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What makes files of a runtime run: packages for pip, the first that can be had; a module of one of them."""

    packages: tuple[tuple[str, ...], ...]
    module: str


#: tflite-runtime was compiled against NumPy 1.
CHOICES: Mapping[str, Choice] = {
    "tflite": Choice(
        packages=(("ai-edge-litert>=2.1,<2.2", "numpy"), ("tflite-runtime", "numpy<2")),
        module="ai_edge_litert.interpreter|tflite_runtime.interpreter",
    ),
    "onnxruntime": Choice(packages=(("onnxruntime", "numpy"),), module="onnxruntime"),
}
_PACKAGES = {"tflite": ("ai_edge_litert", "tflite_runtime"), "onnxruntime": ("onnxruntime",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What ``environment.py look`` found. ``environment`` is what an earlier set-up installed, if there was one."""

    python: tuple[int, int, int]
    implementation: str
    machine: str
    system: str
    libc: str
    libc_version: str
    has_venv: bool
    has_pip: bool
    installed: dict[str, str]
    root: str
    environment: dict[str, str] | None
    free_bytes: int

    def has(self, runtime: str) -> bool:
        """Whether files of a runtime can be run there as it is."""
        used = self.installed if self.environment is None else self.environment
        return "numpy" in used and any(package in used for package in _PACKAGES[runtime])


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """An environment that was made: where, and what is in it."""

    root: str
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Removed:
    removed: int


class Setup:
    """A device that is being set up; use `connected` to get one."""

    def __init__(self, transport: SSHTransport, progress: Progress) -> None:
        self._transport = transport
        self._progress = progress
        self._python = transport.system_python
        transport.put(content.builtin_root("targets") / _SCRIPT, _SCRIPT)

    def look(self) -> Device:
        """What is there."""
        return self._run(["look"], Device, _LOOK_S)

    def make(self, device: Device, runtimes: Sequence[str], *, offline: bool, wheels: Path | None = None) -> Made:
        """Make the environment, in place of an earlier one.

        ``offline``: wheels for the device are fetched here, or taken from the folder ``wheels``, and carried along.
        Raises `DeviceError` when nothing can be installed there; an earlier environment is then as it was.
        """
        if offline or wheels is not None:
            self._carry(device, runtimes, wheels)
            arguments = ["--wheels", "wheels"]
        else:
            arguments = ["--packages", *_joined(runtimes, 0)]
            if "tflite" in runtimes:
                arguments += ["--or", *_joined(runtimes, 1)]
        arguments += ["--check", "numpy", *(CHOICES[name].module for name in runtimes)]
        try:
            with self._progress.stage(f"Install on {self._transport.description}"):
                return self._run(["make", *arguments], Made, _MAKE_S)
        except BaseException:
            with contextlib.suppress(EdgecompileError):  # the first fault, or Ctrl-C, is what shall be seen
                self._run(["tidy"], _Removed, _LOOK_S)
            raise

    def remove(self) -> int:
        """Remove the environment; gives how many there were."""
        return self._run(["remove"], _Removed, _LOOK_S).removed

    def _carry(self, device: Device, runtimes: Sequence[str], given: Path | None) -> None:
        with tempfile.TemporaryDirectory() as name, self._progress.stage("Fetch wheels for the device"):
            folder = Path(name)
            fetch(device, runtimes, folder, given)
            for wheel in sorted(folder.glob("*.whl")):
                self._transport.put(wheel, f"wheels/{wheel.name}")

    def _run(self, arguments: Sequence[str], kind: type[T], timeout_s: float) -> T:
        done = self._transport.run([self._python, _SCRIPT, *arguments], timeout_s=timeout_s)
        lines = [line for line in done.out.splitlines() if line.startswith(document.SENTINEL)]
        if len(lines) != 1:
            last = (done.err or done.out).strip().splitlines()
            raise DeviceError(
                f"setting up {self._transport.description} failed: {last[-1] if last else f'exit code {done.code}'}",
                remedy="see -vv for more",
            )
        try:
            found: dict[str, Any] = msgspec.json.decode(lines[0].removeprefix(document.SENTINEL), type=dict)
            if "error" not in found:
                return msgspec.convert(found, kind)
            fault = msgspec.convert(found["error"], dict[str, str])
        except msgspec.DecodeError as exc:
            raise DeviceError(f"the device's answer is malformed: {exc}", remedy="see -vv for more") from exc
        raise self._fault(fault.get("kind", ""), fault.get("message", "it did not say why"))

    def _fault(self, kind: str, message: str) -> DeviceError:
        address = self._transport.address
        offline = f"edgecompile device setup --on {address} --offline fetches wheels here and carries them there"
        remedies = {
            "read_only": "make one of these folders writable for the account, or set EDGECOMPILE_HOME for it",
            "no_venv": "install it there (on Debian and Ubuntu: sudo apt install python3-venv)",
            "no_pip": f"install it there (on Debian and Ubuntu: sudo apt install python3-venv), or: {offline}",
            "not_installed": f"where the device has no network: {offline}",
            "disk": "make room there",
            "does_not_run": "no wheel fits this machine: install the runtime there by other means",
        }
        return DeviceError(f"{self._transport.description}: {message}", remedy=remedies.get(kind, "see -vv for more"))


@contextmanager
def connected(on: str, progress: Progress) -> Iterator[Setup]:
    """The device at ``on``. Raises `InputError` for this machine, which pip sets up."""
    if on == "local":
        raise InputError("this machine needs no set-up by edgecompile", remedy="pip install ai-edge-litert onnxruntime")
    if on.startswith("adb:"):
        raise InputError(
            "a phone reached by adb has no Python to set up", remedy="give LiteRT's benchmark_model: --benchmark-model"
        )
    way = open_transport(on, waiting=progress.note)
    assert isinstance(way, SSHTransport), "only these are left"
    with way as transport:
        yield Setup(transport, progress)


def _joined(runtimes: Sequence[str], choice: int) -> list[str]:
    """The packages for all runtimes, with the ``choice``-th way where there are several."""
    ways = [CHOICES[name].packages for name in runtimes]
    return list(dict.fromkeys(package for way in ways for package in way[min(choice, len(way) - 1)]))


# ------------------------------------------------------------------------------------------------------- wheels


def fetch(device: Device, runtimes: Sequence[str], folder: Path, given: Path | None = None) -> None:
    """Put wheels for a device into ``folder``, by this machine's pip.

    ``given`` is a folder with wheels to take instead of an index. Raises `DeviceError` when there are none that fit.
    """
    if device.system != "linux" or device.libc != "glibc":
        what = "Android" if device.system == "android" else device.system
        raise DeviceError(
            f"there are no wheels of the runtimes for {what} with {device.libc or 'another C library than glibc'}",
            remedy="install the runtime there by other means, or use --benchmark-model",
        )
    said: list[str] = []
    for choice in range(max(len(CHOICES[name].packages) for name in runtimes)):
        fault = _download(_joined(runtimes, choice), device, folder, given)
        if fault is None:
            return
        said.append(fault)
    version = ".".join(map(str, device.python[:2]))
    raise DeviceError(
        f"no wheels for Python {version} on {device.machine} with glibc {device.libc_version}: {said[0]}",
        remedy="see that the package index can be reached from here, or give a folder with wheels: --wheels FOLDER",
    )


def _download(packages: Sequence[str], device: Device, folder: Path, given: Path | None) -> str | None:
    """Fetch packages with what they need; why that failed, if it did."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--only-binary=:all:", "--dest", str(folder), *_tags(device)]
    if given is not None:
        command += ["--no-index", "--find-links", str(given)]
    try:
        done = subprocess.run(
            [*command, *packages],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_FETCH_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"pip did not end within {_FETCH_S:.0f} s"
    if done.returncode == 0:
        return None
    for wheel in folder.glob("*.whl"):
        wheel.unlink()
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module named" in line]
    return (errors or done.stderr.splitlines() or ["pip failed"])[-1]


def _tags(device: Device) -> list[str]:
    """What pip must know of another machine. https://peps.python.org/pep-0600/"""
    major, minor, _ = device.python
    newest = int(device.libc_version.split(".")[1])
    # 32-bit programs of a 64-bit kernel are not told by the machine; a Raspberry Pi OS of 32 bits says armv7l.
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(device.machine, device.machine)
    platforms = [f"manylinux_2_{number}_{machine}" for number in range(newest, _OLDEST_GLIBC - 1, -1)]
    platforms += [f"manylinux2014_{machine}", f"linux_{machine}"]
    abis = [f"cp{major}{minor}{'m' if (major, minor) < (3, 8) else ''}", "abi3", "none"]
    words = ["--python-version", f"{major}.{minor}", "--implementation", "cp"]
    for name in platforms:
        words += ["--platform", name]
    for abi in abis:
        words += ["--abi", abi]
    return words


def runtimes_of(names: Sequence[str]) -> tuple[RuntimeName, ...]:
    """The runtimes that were asked for, TFLite's where none was."""
    return cast("tuple[RuntimeName, ...]", tuple(dict.fromkeys(names)) or ("tflite",))
