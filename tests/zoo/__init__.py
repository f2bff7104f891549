"""Real block structures with random weights: what the lowering is proven on.

Each architecture is written for this project from its paper, at its real size and in a small variant for quick tests.
``tests.zoo:resnet20`` and the like are factories for the command line.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from tests.zoo import cifar, mobile, residual
from tests.zoo.weights import randomize

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A network at its real size and in a small variant, with the shapes of their inputs."""

    full: Callable[[], nn.Module]
    inputs: dict[str, Shape]
    small: Callable[[], nn.Module]
    small_inputs: dict[str, Shape]


def _image(
    full: Callable[..., nn.Module], size: int, small: Callable[..., nn.Module], small_size: int, channels: int = 3
) -> Architecture:
    return Architecture(
        full=full,
        inputs={"image": (1, channels, size, size)},
        small=small,
        small_inputs={"image": (1, channels, small_size, small_size)},
    )


ARCHITECTURES: dict[str, Architecture] = {
    "resnet8": _image(cifar.tiny_resnet8, 32, partial(cifar.tiny_resnet8, width=8), 32),
    "resnet20": _image(partial(cifar.CifarResNet, 3), 32, partial(cifar.CifarResNet, 2, width=8), 32),
    "resnet20_b": _image(partial(cifar.CifarResNet, 3, "B"), 32, partial(cifar.CifarResNet, 2, "B", width=8), 32),
    "resnet32": _image(partial(cifar.CifarResNet, 5), 32, partial(cifar.CifarResNet, 2), 16),
    "resnet18": _image(residual.resnet_basic, 224, partial(residual.resnet_basic, (1, 1, 2, 1), 8, 10), 64),
    "resnet50": _image(residual.resnet_bottleneck, 224, partial(residual.resnet_bottleneck, (1, 2, 1, 1), 8, 10), 64),
    "mobilenet_v1": _image(mobile.mobilenet_v1, 224, partial(mobile.mobilenet_v1, 0.25, 10), 64),
    "mobilenet_v2": _image(mobile.mobilenet_v2, 224, partial(mobile.mobilenet_v2, 0.25, 10), 64),
}

NAMES: tuple[str, ...] = tuple(ARCHITECTURES)


def _make(factory: Callable[[], nn.Module], shapes: dict[str, Shape], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = factory()
    return randomize(module, list(shapes.values()), seed)


def build(name: str, seed: int = 0) -> nn.Module:
    """An architecture at its real size in eval mode; the same seed gives the same weights."""
    entry = ARCHITECTURES[name]
    return _make(entry.full, entry.inputs, seed)


def input_shapes(name: str) -> dict[str, Shape]:
    """Input name -> shape of `build`'s network, batch axis included."""
    return dict(ARCHITECTURES[name].inputs)


def small(name: str, seed: int = 0) -> tuple[nn.Module, dict[str, Shape]]:
    """A narrow or shallow variant with the same blocks, and the shapes of its inputs: for quick tests."""
    entry = ARCHITECTURES[name]
    return _make(entry.small, entry.small_inputs, seed), dict(entry.small_inputs)


def export_onnx(name: str, path: Path, opset: int = 18, *, size: str = "full", seed: int = 0) -> Path:
    """Write an architecture (``size`` "full" or "small") as ONNX; the same arguments give the same bytes."""
    module, shapes = small(name, seed) if size == "small" else (build(name, seed), input_shapes(name))
    return export_module(module, shapes, path, opset)


def export_module(module: nn.Module, shapes: dict[str, Shape], path: Path, opset: int = 18) -> Path:
    """Write a module as ONNX without the exporter's notes on source lines, which differ from one checkout to another.

    The exporter writes opset 18 and newer itself; older ones come of its version converter, and where that fails the
    file stays at 18.
    """
    import onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    example = tuple(torch.zeros(shape) for shape in shapes.values())
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        torch.onnx.export(
            module, example, str(path), dynamo=True, opset_version=opset, external_data=False, verbose=False,
            input_names=list(shapes),
        )  # fmt: skip
    proto = onnx.load(str(path))
    for item in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output, proto.graph):
        del item.metadata_props[:]
        item.doc_string = ""
    onnx.save(proto, str(path))
    return path


def __getattr__(name: str) -> Callable[[], nn.Module]:
    """The factories, ``tests.zoo.resnet20()``."""
    if name in ARCHITECTURES:
        return partial(build, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
