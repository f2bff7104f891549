"""The boards that can be emulated: which core each has, and what the kernel of such a board says about it."""

from __future__ import annotations

from dataclasses import dataclass

from edgecompile.errors import InputError

_OLD = "fp asimd evtstrm crc32 cpuid"
_NEW = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
_CPUS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """A board's processor core. ``qemu`` is QEMU's name of it; the others are the fields of ``/proc/cpuinfo``."""

    board: str
    name: str
    qemu: str
    part: str
    variant: str
    revision: int
    features: str

    @property
    def cpuinfo(self) -> str:
        """``/proc/cpuinfo`` of a board with four of these cores (Linux, 64-bit)."""
        lines = (
            "BogoMIPS\t: 108.00",
            f"Features\t: {self.features}",
            "CPU implementer\t: 0x41",
            "CPU architecture: 8",
            f"CPU variant\t: {self.variant}",
            f"CPU part\t: {self.part}",
            f"CPU revision\t: {self.revision}",
        )
        return "".join(f"processor\t: {n}\n" + "\n".join(lines) + "\n\n" for n in range(_CPUS))

    @property
    def cpus(self) -> str:
        """The range of its processors, as files of ``/sys/devices/system/cpu`` write it."""
        return f"0-{_CPUS - 1}"

    @property
    def host_name(self) -> str:
        """What the machine calls itself, so that whatever it reports cannot be taken for a real board's."""
        return f"emulated-{self.qemu}"


CORES = {
    core.board: core
    for core in (
        Core(board="pi3", name="Cortex-A53", qemu="cortex-a53", part="0xd03", variant="0x0", revision=4, features=_OLD),
        Core(board="pi4", name="Cortex-A72", qemu="cortex-a72", part="0xd08", variant="0x0", revision=3, features=_OLD),
        Core(board="pi5", name="Cortex-A76", qemu="cortex-a76", part="0xd0b", variant="0x4", revision=1, features=_NEW),
    )
}


def find(board: str) -> Core:
    """The core of a board. Raises `InputError` for a board that cannot be emulated."""
    if board not in CORES:
        raise InputError(f"there is no emulated board {board!r}", remedy=f"use one of {', '.join(CORES)}")
    return CORES[board]


__all__ = ["CORES", "Core", "find"]
