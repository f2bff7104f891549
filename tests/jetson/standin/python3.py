"""Plays the board's ``python3``: it has TensorRT's API or ONNX Runtime for the GPU where the settings say so."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from host import settings

if settings().get("python_api"):
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
if settings().get("providers"):
    os.environ["PYTHONPATH"] = str(Path(__file__).parent / "with_gpu")
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
os.execv("/usr/bin/python3", ["/usr/bin/python3", *sys.argv[1:]])
