"""The model zoo: architectures with their real block structures, written from their papers, with seeded weights.

``build(name)`` gives a net as published, ``small(name)`` a reduced one of the same blocks. Every name is also a
factory without arguments, for ``edgecompile build tests.zoo:resnet20``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from tests.zoo import (
    audio,
    convnext,
    densenet,
    detection,
    efficient,
    ghost,
    inception,
    mobilenet,
    regnet,
    repvgg,
    resnet,
    segmentation,
    shufflenet,
    squeezenet,
    transformer,
)
from tests.zoo.common import Net, Shapes, export_onnx, made

NETS: dict[str, Net] = {
    **resnet.NETS,
    **mobilenet.NETS,
    **efficient.NETS,
    **shufflenet.NETS,
    **squeezenet.NETS,
    **inception.NETS,
    **densenet.NETS,
    **regnet.NETS,
    **repvgg.NETS,
    **ghost.NETS,
    **convnext.NETS,
    **segmentation.NETS,
    **detection.NETS,
    **transformer.NETS,
    **audio.NETS,
}
NAMES: tuple[str, ...] = tuple(NETS)


def build(name: str, seed: int = 0) -> nn.Module:
    """The full net, in evaluation mode, with weights that depend on ``seed`` only."""
    return made(NETS[name].full, NETS[name].shapes, seed)


def input_shapes(name: str) -> Shapes:
    """The full net's inputs by name, in order, batch axis included."""
    return dict(NETS[name].shapes)


def small(name: str, seed: int = 0) -> tuple[nn.Module, Shapes]:
    """A net of the same blocks at a reduced resolution, width and depth, and its inputs by name."""
    net = NETS[name]
    return made(net.small, net.small_shapes, seed), dict(net.small_shapes)


def parameter_count(name: str) -> int:
    """Trainable parameters of the full net; nothing is allocated."""
    import torch

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in NETS[name].full().parameters())


def __getattr__(name: str) -> Callable[[], nn.Module]:
    if name in NETS:
        return partial(build, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["NAMES", "NETS", "build", "export_onnx", "input_shapes", "parameter_count", "small"]
