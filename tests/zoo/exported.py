"""The small nets as ONNX files, each exported once a test session: the export costs more than all that follows."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from tests import zoo


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="edgecompile-zoo-")


@cache
def small(name: str) -> Path:
    """The ONNX file of a small net with seed 0; not to be changed."""
    module, shapes = zoo.small(name)
    return zoo.export_onnx(module, shapes, Path(_folder().name) / f"{name}.onnx")
