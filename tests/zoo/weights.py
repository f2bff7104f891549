"""Seeded weights under which a network's activations neither vanish nor explode.

Weights are He-normal (He et al. 2015, arXiv:1502.01852). Batch normalization gets statistics near those of its real
input, each channel off by a random amount as in a trained network. A layer without normalization whose output is far
from unit size is scaled (Mishkin & Matas 2016, "All you need is a good init", arXiv:1511.06422).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

_SAMPLES = 4
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_LIMIT = 4.0


def randomize(module: nn.Module, shapes: Sequence[tuple[int, ...]], seed: int) -> nn.Module:
    """Give ``module`` seeded weights and statistics, measured on noise of ``shapes``; returns it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    module.eval()
    with torch.no_grad():
        for layer in module.modules():
            _draw(layer, generator)
        _calibrate(module, shapes, generator)
    return module.requires_grad_(False)


def _normal(like: torch.Tensor, generator: torch.Generator, std: float, mean: float = 0.0) -> torch.Tensor:
    return torch.randn(like.shape, generator=generator) * std + mean


def _draw(layer: nn.Module, generator: torch.Generator) -> None:
    if isinstance(layer, _WEIGHTED):
        fan_in = layer.weight[0].numel()
        if isinstance(layer, nn.ConvTranspose2d):
            fan_in = layer.weight.numel() // layer.weight.shape[1]
        layer.weight.copy_(_normal(layer.weight, generator, math.sqrt(2 / fan_in)))
        if layer.bias is not None:
            layer.bias.copy_(_normal(layer.bias, generator, 0.1))
    elif isinstance(layer, (nn.LSTM, nn.GRU)):
        for parameter in layer.parameters():
            parameter.copy_(_normal(parameter, generator, math.sqrt(1 / layer.hidden_size)))
    elif isinstance(layer, (*_NORMS, nn.LayerNorm, nn.GroupNorm)) and layer.weight is not None:
        layer.weight.copy_(torch.rand(layer.weight.shape, generator=generator) + 0.5)
        layer.bias.copy_(_normal(layer.bias, generator, 0.2))
    elif isinstance(layer, nn.PReLU):
        layer.weight.copy_(_normal(layer.weight, generator, 0.05, 0.25))
    else:  # position embeddings, class tokens, layer scales: what a block keeps as its own parameter
        for parameter in layer.parameters(recurse=False):
            parameter.copy_(_normal(parameter, generator, 0.2))


def _calibrate(module: nn.Module, shapes: Sequence[tuple[int, ...]], generator: torch.Generator) -> None:
    """One pass over noise, in which each layer is fitted to its input before the next one sees its output."""

    def fit_norm(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, _NORMS)
        x = inputs[0].transpose(0, 1).flatten(1)
        var = x.var(dim=1, unbiased=False)
        var = torch.maximum(var, 0.1 * var.mean() + 1e-6)
        off = _normal(var, generator, 0.1)
        layer.running_mean.copy_(x.mean(dim=1) + off * var.sqrt())
        layer.running_var.copy_(var * (torch.rand(var.shape, generator=generator) * 0.5 + 0.75))

    def scale(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        std = float(output.std())
        if 1 / _LIMIT < std < _LIMIT or not std:
            return None
        layer.weight.div_(std)
        if layer.bias is not None:
            layer.bias.div_(std)
        return output / std

    hooks = [m.register_forward_pre_hook(fit_norm) for m in module.modules() if isinstance(m, _NORMS)]
    hooks += [m.register_forward_hook(scale) for m in module.modules() if isinstance(m, _WEIGHTED)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order: the same weights on any number of cores
    try:
        module(*(torch.randn((shape[0] * _SAMPLES, *shape[1:]), generator=generator) for shape in shapes))
    finally:
        torch.set_num_threads(threads)
        for hook in hooks:
            hook.remove()
