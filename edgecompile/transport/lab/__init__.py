"""The lab: emulated Arm boards on this machine. They check outputs and count instructions; they never give times."""

from edgecompile.transport.lab.box import Box, boxes, down, up
from edgecompile.transport.lab.cores import CORES, Core
from edgecompile.transport.lab.count import InstructionCount, instructions
from edgecompile.transport.lab.way import LabTransport, emulated_core, latency_warning, refuse_latency

__all__ = [
    "CORES",
    "Box",
    "Core",
    "InstructionCount",
    "LabTransport",
    "boxes",
    "down",
    "emulated_core",
    "instructions",
    "latency_warning",
    "refuse_latency",
    "up",
]
