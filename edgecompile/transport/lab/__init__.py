"""The lab: emulated Arm boards on this machine. They check outputs and count instructions; they never give times."""

from edgecompile.transport.lab.box import Box, boxes, clean, disk_bytes, down, up
from edgecompile.transport.lab.cores import CORES, Core
from edgecompile.transport.lab.places import root
from edgecompile.transport.lab.way import LabTransport, core_of, emulated_core, ready, refuse_latency, require

__all__ = [
    "CORES",
    "Box",
    "Core",
    "LabTransport",
    "boxes",
    "clean",
    "core_of",
    "disk_bytes",
    "down",
    "emulated_core",
    "ready",
    "refuse_latency",
    "require",
    "root",
    "up",
]
