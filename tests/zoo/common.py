"""What the nets share: the convolution-norm-activation unit, the seeded weights, and the way to ONNX."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]
Activation = Callable[[], nn.Module]

_OPSET = 18
_CALIBRATION_BATCH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """One architecture: as published (``full``), and a reduced one of the same blocks for quick tests (``small``).

    ``parameters`` is the published number of trainable parameters of the full net, where there is one.
    """

    full: Callable[[], nn.Module]
    shapes: Shapes
    small: Callable[[], nn.Module]
    small_shapes: Shapes
    parameters: int | None = None


def image(size: int, channels: int = 3) -> Shapes:
    return {"image": (1, channels, size, size)}


class ConvBn(nn.Sequential):
    """Convolution without bias, BatchNorm, and an activation unless ``act`` is None; "same" padding for odd kernels."""

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int | tuple[int, int] = 1,
        stride: int | tuple[int, int] = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        padding: int | tuple[int, int] | None = None,
        act: Activation | None = nn.ReLU,
        eps: float = 1e-5,
    ) -> None:
        sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
        same = (dilation * (sizes[0] // 2), dilation * (sizes[1] // 2))
        pad = same if padding is None else padding
        layers: list[nn.Module] = [
            nn.Conv2d(cin, cout, kernel, stride, pad, dilation=dilation, groups=groups, bias=False),
            nn.BatchNorm2d(cout, eps=eps),
        ]
        super().__init__(*layers, *([] if act is None else [act()]))


class SqueezeExcite(nn.Module):
    """Channel gates from the global mean. Hu et al., "Squeeze-and-Excitation Networks", 2018 (arXiv:1709.01507)."""

    def __init__(
        self, channels: int, squeezed: int, *, act: Activation = nn.ReLU, gate: Activation = nn.Sigmoid
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = act()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.expand(self.act(self.reduce(pooled))))


class Head(nn.Sequential):
    """The usual classifier: global mean, then one dense layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def rounded(channels: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` nearest to ``channels``, never more than 10 % below (the rule of MobileNetV2)."""
    value = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return value + divisor if value < 0.9 * channels else value


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` groups. Zhang et al., "ShuffleNet", 2018 (arXiv:1707.01083)."""
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width)
    return x.transpose(1, 2).reshape(batch, channels, height, width)


def made(factory: Callable[[], nn.Module], shapes: Shapes, seed: int) -> nn.Module:
    """The net in evaluation mode with weights that depend on ``seed`` only; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = factory().eval()
        _draw_weights(module)
        _calibrate_norms(module, shapes)
    return module


def _draw_weights(module: nn.Module) -> None:
    """He-normal weights (He et al. 2015, arXiv:1502.01852), small biases, affine terms near one and zero."""
    for part in module.modules():
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            transposed = isinstance(part, nn.ConvTranspose2d)
            fan_in = part.weight.shape[0] if transposed else part.weight[0].numel()
            part.weight.normal_(0, (2 / fan_in) ** 0.5)
            if part.bias is not None:
                part.bias.normal_(0, 0.05)
        elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            part.weight.uniform_(0.7, 1.3)
            part.bias.normal_(0, 0.2)
    for part in module.modules():
        # Without norms, every residual sum would double the variance; such blocks say how much their branch adds.
        gain = getattr(part, "residual_gain", None)
        if gain is not None:
            [inner for inner in part.modules() if isinstance(inner, nn.Conv2d)][-1].weight.mul_(gain)


def _calibrate_norms(module: nn.Module, shapes: Shapes) -> None:
    """Give every BatchNorm the statistics that random inputs really cause, shaken a little.

    Statistics drawn blindly make the activations of a deep net vanish or explode. One pass is enough: a norm's
    statistics are set before it runs, so those after it see its calibrated output.
    """
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    if not norms:
        return
    hooks = [norm.register_forward_pre_hook(_set_statistics) for norm in norms]
    batch = (torch.randn(_CALIBRATION_BATCH, *shape[1:]) for shape in shapes.values())
    try:
        module(*batch)
    finally:
        for hook in hooks:
            hook.remove()


def _set_statistics(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
    values = args[0].transpose(0, 1).flatten(1)
    variance = values.var(1)
    # A channel that is constant here (after a pooling to 1x1, say) would be blown up by its tiny variance.
    variance = variance.maximum(0.1 * variance.mean()) + 1e-3
    shaken = torch.empty_like(variance).uniform_(0.8, 1.25)
    norm.running_mean.copy_(values.mean(1) + 0.1 * variance.sqrt() * torch.randn_like(variance))
    norm.running_var.copy_(variance * shaken)


def export_onnx(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], path: Path) -> Path:
    """Write the module as ONNX with static shapes, weights inside; the same module gives the same bytes."""
    example = tuple(torch.zeros(shape) for shape in shapes.values())
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's, on its own use of torch; none concerns the model
            torch.onnx.export(
                module,
                example,
                path,
                input_names=list(shapes),
                dynamo=True,
                opset_version=_OPSET,
                external_data=False,
                verbose=False,
            )
    finally:
        log.setLevel(level)
    return path
