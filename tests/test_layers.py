"""Imports go downward only: read from the source of every module, not from what happens to be imported."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import edgecompile

PACKAGE = Path(edgecompile.__file__).parent
LAYERS = (
    {"__main__"},
    {"cli"},
    {"api"},
    {"pipeline", "checking", "inspection"},
    {"measuring", "device_setup", "importing"},
    {"page"},
    {"report"},
    {"search", "bundle", "config", "shrink", "students", "learn"},
    {"tables", "allocation", "operator_times", "engines"},
    {"techniques", "lower", "parity", "estimate", "bench", "evaluate", "jetson"},
    {"execute", "model", "graph", "profiles", "calibration", "transport", "tflite_file"},
    {"content", "sandbox", "store", "stats", "progress"},
    {"types"},
    {"errors"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
HEAVY = {"torch", "tensorflow", "onnx", "onnxruntime", "onnxsim", "onnx2tf", "paramiko", "PIL", "scipy", "sklearn",
         "ai_edge_litert", "ai_edge_quantizer", "tflite_runtime", "onnxconverter_common",
         "tensorrt_rtx", "safetensors"}  # fmt: skip


def unit(module: str) -> str:
    """``edgecompile.lower.tflite`` belongs to the unit ``lower``."""
    return module.split(".")[1]


def files() -> list[Path]:
    return sorted(
        p for p in PACKAGE.rglob("*.py") if "_content" not in p.parts and p.parent / p.name != PACKAGE / "__init__.py"
    )


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_units(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {unit(a.name) for a in node.names if a.name.startswith("edgecompile.")}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "edgecompile":
                found |= {a.name for a in node.names if not a.name.startswith("__")}
            elif node.module.startswith("edgecompile."):
                found.add(unit(node.module))
        elif isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail("relative imports hide the layer")
    return found


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    own = unit(module_name(path))
    assert own in LEVEL, f"{own} stands in no layer: add it to LAYERS and docs/architecture.md"
    for other in imported_units(ast.parse(path.read_text())) - {own}:
        assert LEVEL[own] < LEVEL[other], f"{own} must not import {other}: it is on the same layer or above"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_inside_functions(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            assert name.split(".")[0] not in HEAVY, f"{name} is imported at the top of {path.name}"


def test_targets_never_import_edgecompile() -> None:
    from edgecompile import content

    sources = list(content.builtin_root("targets").rglob("*.py"))
    assert sources
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "edgecompile" for name in names), path
