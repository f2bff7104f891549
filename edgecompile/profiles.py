"""Device profiles: what a device is. One strict TOML file each. (Thin version.)"""

from __future__ import annotations

import platform
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from edgecompile import content
from edgecompile.types import Precision, RuntimeName

USE_CASES = {"video": 33.0, "voice": 100.0, "search": 50.0, "recommendation": 100.0}
ALIASES = {"pi4": "raspberry-pi-4", "pi5": "raspberry-pi-5", "jetson": "jetson-orin-nano"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRuntime:
    """A runtime of a device."""

    name: RuntimeName
    precisions: tuple[Precision, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """A device."""

    name: str
    description: str
    origin: str
    architecture: str
    threads: int
    runtimes: tuple[ProfileRuntime, ...]
    default_budget_ms: float
    int8_saturates: bool
    gmacs_per_s: dict[str, float]

    def matches_this_machine(self) -> bool:
        """Whether this machine is such a device."""
        return self.architecture == "x86_64" and _x86() == self.name


def _x86() -> str:
    flags = Path("/proc/cpuinfo").read_text() if platform.machine() == "x86_64" else ""
    return "x86-avx512-vnni" if "avx512_vnni" in flags else "x86-avx2"


def load(ref: str, *, content_dir: Path | None = None) -> DeviceProfile:
    """The profile of a device by name, alias or file."""
    name = _x86() if ref == "x86" else ALIASES.get(ref, ref)
    try:
        found = content.find("device_profiles", name, content_dir=content_dir)
    except content.InputError:
        raise content.unknown_name(
            "device_profiles", ref, (*content.names("device_profiles"), *ALIASES, "x86")
        ) from None
    d = tomllib.loads(found.path.read_text())
    return DeviceProfile(
        name=found.name,
        description=d["description"],
        origin=found.origin,
        architecture=d["architecture"],
        threads=d["threads"],
        runtimes=tuple(
            ProfileRuntime(name=cast(RuntimeName, n), precisions=tuple(p)) for n, p in d["runtimes"].items()
        ),
        default_budget_ms=d.get("default_budget_ms", 33.0),
        int8_saturates=d.get("int8_saturates", False),
        gmacs_per_s=d["gmacs_per_s"],
    )


def all_profiles(*, content_dir: Path | None = None) -> tuple[DeviceProfile, ...]:
    """All profiles."""
    return tuple(
        load(name, content_dir=content_dir) for name in content.names("device_profiles", content_dir=content_dir)
    )
