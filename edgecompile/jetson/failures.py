"""Why ``trtexec`` failed, in words that help: from its log and its exit status."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgecompile.errors import DeviceError, EdgecompileError, UnsupportedModelError
from edgecompile.jetson import trtexec
from edgecompile.jetson.versions import Version

Step: TypeAlias = Literal["build", "run"]
Kind: TypeAlias = Literal[
    "unsupported", "memory", "cuda", "permission", "engine version", "engine device", "option", "killed", "crash",
    "timeout", "missing", "no kernel", "precision", "disk", "unknown",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a step failed: ``message`` names the fault, ``remedy`` what to do."""

    kind: Kind
    step: Step
    message: str
    remedy: str
    node: str | None = None
    operator: str | None = None

    def error(self) -> EdgecompileError:
        """What to raise: `UnsupportedModelError` where the model is at fault, else `DeviceError`."""
        if self.kind == "unsupported":
            named = ((self.operator or "?", self.node or "?"),) if self.operator or self.node else ()
            return UnsupportedModelError(self.message, remedy=self.remedy, operators=named)
        return DeviceError(self.message, remedy=self.remedy)


def explain(
    log: str, *, returncode: int, step: Step, version: Version | None = None, timed_out: bool = False
) -> Failure:
    """Why ``trtexec`` ended with ``returncode``: the first error in ``log`` that is known, else how it ended.

    ``log`` is its standard output and error. Never raises.
    """
    rows = trtexec.lines(log)
    if timed_out:
        return Failure(kind="timeout", step=step, message="trtexec took too long", remedy="allow more time")
    shown = next((row for row in rows if re.search(r"\[E\]", row)), "it said nothing")
    return Failure(kind="unknown", step=step, message=f"trtexec failed ({returncode}): {shown}", remedy="see the log")
