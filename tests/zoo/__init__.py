"""Real block structures with random weights: what the lowering is proven on.

Each architecture is written for this project from its paper, at its real size and in a small variant for quick tests.
``tests.zoo:resnet20`` and the like are factories for the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from torch import nn

from tests.zoo import (
    common,
    convnext,
    densenet,
    efficient,
    ghostnet,
    inception,
    mobilenet,
    regnet,
    repvgg,
    resnet,
    shufflenet,
    squeezenet,
)

NETS: dict[str, common.Net] = {
    **resnet.NETS,
    **mobilenet.NETS,
    **efficient.NETS,
    **shufflenet.NETS,
    **squeezenet.NETS,
    **inception.NETS,
    **densenet.NETS,
    **regnet.NETS,
    **repvgg.NETS,
    **ghostnet.NETS,
    **convnext.NETS,
    **densenet.NETS,
    **regnet.NETS,
    **repvgg.NETS,
    **ghostnet.NETS,
    **convnext.NETS,
}

NAMES: tuple[str, ...] = tuple(NETS)


def build(name: str, seed: int = 0) -> nn.Module:
    """An architecture as published, in evaluation mode; the same seed gives the same weights."""
    return common.made(NETS[name].full, NETS[name].shapes, seed)


def input_shapes(name: str) -> common.Shapes:
    """Input name -> shape of `build`'s net, batch axis included."""
    return dict(NETS[name].shapes)


def small(name: str, seed: int = 0) -> tuple[nn.Module, common.Shapes]:
    """A reduced net of the same blocks, and the shapes of its inputs: for quick tests."""
    return common.made(NETS[name].small, NETS[name].small_shapes, seed), dict(NETS[name].small_shapes)


def export_onnx(name: str, path: Path, *, size: Literal["full", "small"] = "full", seed: int = 0) -> Path:
    """Write an architecture as ONNX; the same arguments give the same bytes."""
    module, shapes = small(name, seed) if size == "small" else (build(name, seed), input_shapes(name))
    return common.export_onnx(module, shapes, path)


def __getattr__(name: str) -> Callable[[], nn.Module]:
    """The factories, ``tests.zoo.resnet20()``."""
    if name in NETS:
        return partial(build, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
