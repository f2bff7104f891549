"""ONNX Runtime as if it had been built for a GPU: the providers that the settings name seem to be there."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

_HERE = str(Path(__file__).resolve().parents[1])
_spec = importlib.machinery.PathFinder.find_spec(
    "onnxruntime", [p for p in sys.path if str(Path(p).resolve()) != _HERE]
)
assert _spec is not None
assert _spec.loader is not None
_real: Any = importlib.util.module_from_spec(_spec)
sys.modules["onnxruntime"] = _real
_spec.loader.exec_module(_real)
_CPU_SESSION = _real.InferenceSession
_SETTINGS = json.loads((Path(os.environ["EDGECOMPILE_HOST_ROOT"]) / "standin.json").read_text())


class _Session(_CPU_SESSION):  # type: ignore[misc]
    """Runs on the CPU, and says of itself what was asked for, where the settings let it start."""

    def __init__(self, path: str, options: Any, providers: list[Any]) -> None:
        super().__init__(path, options, providers=["CPUExecutionProvider"])
        names = [entry if isinstance(entry, str) else entry[0] for entry in providers]
        self._said = [name for name in names if name in _SETTINGS.get("starting", _SETTINGS["providers"])]

    def get_providers(self) -> list[str]:
        return [*self._said, "CPUExecutionProvider"]


_real.InferenceSession = _Session
_real.get_available_providers = lambda: [*_SETTINGS["providers"], "CPUExecutionProvider"]
