"""Convolutions, pools, normalizations and resizing in torch, as ONNX defines them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompile.techniques.torch_call import Call, Operator, Refused, torch

Array = npt.NDArray[Any]
Pads = list[tuple[int, int]]

# ---------------------------------------------------------------------------------------------------- windows


def _functional(name: str, rank: int) -> Any:
    if rank not in (1, 2, 3):
        raise Refused(f"{rank} spatial axes")
    return getattr(torch.nn.functional, f"{name}{rank}d")


def _pads(call: Call, sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int]) -> Pads:
    """Rows in front and behind on each spatial axis."""
    rank, mode = len(sizes), call.attribute("auto_pad", "NOTSET")
    if mode == "NOTSET":
        flat = call.attribute("pads", [0] * 2 * rank)
        return list(zip(flat[:rank], flat[rank:], strict=True))
    if mode == "VALID":
        return [(0, 0)] * rank
    pads = []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
        pads.append((total // 2, total - total // 2) if mode == "SAME_UPPER" else (total - total // 2, total // 2))
    return pads


def _padded(x: Any, pads: Pads, value: float = 0.0) -> Any:
    return torch.nn.functional.pad(x, [n for pair in reversed(pads) for n in pair], value=value)


def _conv(call: Call) -> Any:
    x, weight, bias = call[0], call[1], call.get(2)
    kernel = list(weight.shape[2:])
    rank = len(kernel)
    strides, dilations = call.attribute("strides", [1] * rank), call.attribute("dilations", [1] * rank)
    pads = _pads(call, list(x.shape[2:]), kernel, strides, dilations)
    convolve = _functional("conv", rank)
    if any(a != b for a, b in pads):
        x, pads = _padded(x, pads), [(0, 0)] * rank
    return convolve(x, weight, bias, strides, [a for a, _ in pads], dilations, call.attribute("group", 1))


def _conv_transpose(call: Call) -> Any:
    x, weight, bias = call[0], call[1], call.get(2)
    kernel = list(weight.shape[2:])
    rank = len(kernel)
    strides, dilations = call.attribute("strides", [1] * rank), call.attribute("dilations", [1] * rank)
    extra, group = call.attribute("output_padding", [0] * rank), call.attribute("group", 1)
    full = [
        (size - 1) * s + (k - 1) * d + 1 + e
        for size, s, k, d, e in zip(x.shape[2:], strides, kernel, dilations, extra, strict=True)
    ]
    pads = _transposed_pads(call, list(x.shape[2:]), strides, full)
    convolve = _functional("conv_transpose", rank)
    symmetric = all(a == b for a, b in pads) and all(
        e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)
    )
    if symmetric:
        return convolve(x, weight, bias, strides, [a for a, _ in pads], extra, group, dilations)
    # Torch cuts both sides alike: compute everything, then cut, or add rows that no input reaches.
    y = _padded(convolve(x, weight, None, strides, 0, 0, group, dilations), [(0, e) for e in extra])
    y = _padded(y, [(-a, -b) for a, b in pads])
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


def _transposed_pads(call: Call, sizes: list[int], strides: list[int], full: list[int]) -> Pads:
    """What is cut in front and behind; ``output_shape`` and ``auto_pad`` decide on it, else ``pads``."""
    rank, mode = len(sizes), call.attribute("auto_pad", "NOTSET")
    wanted = call.attribute("output_shape")
    if wanted is None and mode in ("NOTSET", "VALID"):
        flat = call.attribute("pads", [0] * 2 * rank) if mode == "NOTSET" else [0] * 2 * rank
        return list(zip(flat[:rank], flat[rank:], strict=True))
    wanted = wanted or [size * s for size, s in zip(sizes, strides, strict=True)]
    totals = [f - w for f, w in zip(full, wanted[-rank:], strict=True)]
    if mode == "SAME_UPPER":
        return [(total // 2, total - total // 2) for total in totals]
    return [(total - total // 2, total // 2) for total in totals]


def _window(call: Call) -> tuple[list[int], list[int], list[int], Pads, Pads]:
    """Kernel, strides, dilations, the pads, and the rows that rounding up adds behind them."""
    sizes = list(call[0].shape[2:])
    kernel = call.attribute("kernel_shape")
    rank = len(kernel)
    strides, dilations = call.attribute("strides", [1] * rank), call.attribute("dilations", [1] * rank)
    pads = _pads(call, sizes, kernel, strides, dilations)
    more = [(0, 0)] * rank
    if call.attribute("ceil_mode", 0):
        for i, (size, k, s, d, (a, b)) in enumerate(zip(sizes, kernel, strides, dilations, pads, strict=True)):
            reach = (k - 1) * d + 1
            count = math.ceil((size + a + b - reach) / s) + 1
            if (count - 1) * s >= size + a:  # a window may not start behind the data
                count -= 1
            more[i] = (0, max((count - 1) * s + reach - (size + a + b), 0))
    return kernel, strides, dilations, pads, more


def _fits_torch(kernel: list[int], pads: Pads, more: Pads) -> bool:
    return not any(b for _, b in more) and all(a == b and 2 * a <= k for (a, b), k in zip(pads, kernel, strict=True))


def _max_pool(call: Call) -> Any:
    if len(call.static_outputs) > 1:
        raise Refused("its second output, the indices")
    kernel, strides, dilations, pads, more = _window(call)
    pool, x = _functional("max_pool", len(kernel)), call[0]
    if not _fits_torch(kernel, pads, more):
        both = [(a + c, b + d) for (a, b), (c, d) in zip(pads, more, strict=True)]
        x, pads = _padded(x, both, -math.inf), [(0, 0)] * len(kernel)
    return pool(x, kernel, strides, [a for a, _ in pads], dilations)


def _average_pool(call: Call) -> Any:
    kernel, strides, dilations, pads, more = _window(call)
    if any(d != 1 for d in dilations):
        raise Refused("dilations")
    pool, x = _functional("avg_pool", len(kernel)), call[0]
    counted = bool(call.attribute("count_include_pad", 0))
    if _fits_torch(kernel, pads, more):
        return pool(x, kernel, strides, [a for a, _ in pads], False, counted)
    ones = torch.ones_like(x[:1, :1])
    ones = _padded(_padded(ones, pads, 1.0 if counted else 0.0), more)
    return pool(_padded(_padded(x, pads), more), kernel, strides) / pool(ones, kernel, strides)


def _lp_pool(call: Call) -> Any:
    kernel, strides, dilations, pads, more = _window(call)
    if any(d != 1 for d in dilations):
        raise Refused("dilations")
    p = call.attribute("p", 2)
    powers = _padded(_padded(call[0].abs() ** p, pads), more)
    return (_functional("avg_pool", len(kernel))(powers, kernel, strides) * math.prod(kernel)) ** (1 / p)


def _global_average(call: Call) -> Any:
    return call[0].mean(dim=tuple(range(2, call[0].dim())), keepdim=True)


def _global_max(call: Call) -> Any:
    return call[0].amax(dim=tuple(range(2, call[0].dim())), keepdim=True)


# ---------------------------------------------------------------------------------------------------- normalizations


def _batch_normalization(call: Call) -> Any:
    if call.attribute("training_mode", 0) or len(call.static_outputs) > 1:
        raise Refused("training mode")
    x, scale, shift, mean, variance = call.inputs
    return torch.nn.functional.batch_norm(
        x,
        mean,
        variance,
        scale,
        shift,
        call.training,
        1.0 - call.attribute("momentum", 0.9),
        call.attribute("epsilon", 1e-5),
    )


def _layer_normalization(call: Call) -> Any:
    x, scale, shift = call[0], call[1], call.get(2)
    if len(call.static_outputs) > 1:
        return _layer_normalization_parts(call)
    shape, epsilon = x.shape[call.attribute("axis", -1) :], call.attribute("epsilon", 1e-5)
    if scale.shape == shape and (shift is None or shift.shape == shape):
        return torch.nn.functional.layer_norm(x, shape, scale, shift, epsilon)
    y = torch.nn.functional.layer_norm(x, shape, None, None, epsilon) * scale
    return y if shift is None else y + shift


def _layer_normalization_parts(call: Call) -> Any:
    """With the mean and the inverse of the deviation as outputs of their own."""
    x, shift = call[0], call.get(2)
    axes = tuple(range(call.attribute("axis", -1) % x.dim(), x.dim()))
    mean = x.mean(dim=axes, keepdim=True)
    inverse = torch.rsqrt((x - mean).square().mean(dim=axes, keepdim=True) + call.attribute("epsilon", 1e-5))
    y = (x - mean) * inverse * call[1]
    return (y if shift is None else y + shift, mean, inverse)[: len(call.static_outputs)]


def _rms_normalization(call: Call) -> Any:
    x, axis = call[0], call.attribute("axis", -1)
    axes = tuple(range(axis % x.dim(), x.dim()))
    return x * torch.rsqrt(x.square().mean(dim=axes, keepdim=True) + call.attribute("epsilon", 1e-5)) * call[1]


def _instance_normalization(call: Call) -> Any:
    x = call[0]
    axes, shape = tuple(range(2, x.dim())), (-1, *[1] * (x.dim() - 2))
    mean = x.mean(dim=axes, keepdim=True)
    variance = (x - mean).square().mean(dim=axes, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + call.attribute("epsilon", 1e-5))
    return y * call[1].reshape(shape) + call[2].reshape(shape)


def _group_normalization(call: Call) -> Any:
    x, scale, shift, groups = call[0], call[1], call[2], call.attribute("num_groups")
    if scale.shape[0] != x.shape[1]:  # before opset 21 there is one factor for a group, not for a channel
        scale, shift = (t.repeat_interleave(x.shape[1] // groups) for t in (scale, shift))
    return torch.nn.functional.group_norm(x, groups, scale, shift, call.attribute("epsilon", 1e-5))


def _lrn(call: Call) -> Any:
    size = call.attribute("size")
    if size % 2 == 0:
        raise Refused("an even size")
    return torch.nn.functional.local_response_norm(
        call[0], size, call.attribute("alpha", 1e-4), call.attribute("beta", 0.75), call.attribute("bias", 1.0)
    )


def _mean_variance_normalization(call: Call) -> Any:
    x, axes = call[0], tuple(call.attribute("axes", [0, 2, 3]))
    mean = x.mean(dim=axes, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(dim=axes, keepdim=True).sqrt() + 1e-9)


def _lp_normalization(call: Call) -> Any:
    return torch.nn.functional.normalize(call[0], p=call.attribute("p", 2), dim=call.attribute("axis", -1), eps=1e-38)


# ---------------------------------------------------------------------------------------------------- resizing


def _coordinates(mode: str, size: int, new: int, scale: float) -> Array:
    """Where each of ``new`` rows lies among the ``size`` old ones."""
    out = np.arange(new, dtype=np.float64)
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and new > 1):
        return (out + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return np.zeros(new)
    if mode == "align_corners":
        return out * (size - 1) / (new - 1) if new > 1 else np.zeros(new)
    if mode == "asymmetric":
        return out / scale
    if mode == "half_pixel_symmetric":
        return size / 2 * (1 - new / (scale * size)) + (out + 0.5) / scale - 0.5
    raise Refused(f"coordinates by {mode}")


def _nearest(where: Array, rounding: str) -> Array:
    rounds: dict[str, Callable[[Array], Any]] = {
        "round_prefer_floor": lambda x: np.ceil(x - 0.5),
        "round_prefer_ceil": lambda x: np.floor(x + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    return np.asarray(rounds[rounding](where))


def _taps(call: Call, size: int, new: int, scale: float) -> tuple[Array, Array]:
    """The old rows that each new row is made of, and their weights: both ``(new, taps)``."""
    where = _coordinates(call.attribute("coordinate_transformation_mode", "half_pixel"), size, new, scale)
    mode = call.attribute("mode", "nearest")
    if mode == "nearest":
        rows = _nearest(where, call.attribute("nearest_mode", "round_prefer_floor"))[:, None]
        return rows.clip(0, size - 1).astype(np.int64), np.ones((new, 1))
    low = np.floor(where)
    part = (where - low)[:, None]
    if mode == "linear":
        offsets, weights = np.arange(2), np.concatenate([1 - part, part], axis=1)
    else:
        offsets = np.arange(-1, 3)
        weights = _cubic(np.abs(part - offsets), call.attribute("cubic_coeff_a", -0.75))
    rows = low[:, None] + offsets
    if call.attribute("exclude_outside", 0):
        weights = np.where((rows < 0) | (rows >= size), 0, weights)
        weights = weights / weights.sum(axis=1, keepdims=True)
    return rows.clip(0, size - 1).astype(np.int64), weights


def _cubic(x: Array, a: float) -> Array:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.asarray(np.where(x <= 1, near, np.where(x < 2, far, 0)))


def _resize(call: Call) -> Any:
    """One axis after the other, each new row as a weighted sum of old rows."""
    if call.attribute("antialias", 0) or call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Refused("antialias or a kept aspect ratio")
    x = call[0]
    axes = [axis % x.dim() for axis in call.attribute("axes", range(x.dim()))]
    scales, sizes = call.values(2), call.values(3)
    static = call.static_inputs[0] or tuple(x.shape)
    jobs = {}
    for i, axis in enumerate(axes):
        size = static[axis]
        new = sizes[i] if sizes else math.floor(size * scales[i] + 1e-6) if scales else size
        scale = scales[i] if scales else new / size
        if new != size or scale != 1.0:
            jobs[axis] = (size, new, scale)
    native = _resize_natively(call, jobs)
    if native is not None:
        return native
    for axis, (_, new, scale) in jobs.items():
        x = _resize_axis(call, x, axis, new, scale)
    return x


def _resize_natively(call: Call, jobs: Mapping[int, tuple[int, int, float]]) -> Any:
    """By torch's own function, which is faster, where it computes the same; None elsewhere."""
    x, mode = call[0], call.attribute("mode", "nearest")
    how = call.attribute("coordinate_transformation_mode", "half_pixel")
    names = {3: "linear", 4: "bilinear", 5: "trilinear"}
    if not jobs or min(jobs) < 2 or x.dim() not in names or x.dtype not in (torch.float32, torch.float16):
        return None
    if any(abs(scale * size - new) > 1e-6 for size, new, scale in jobs.values()):
        return None
    shape = [jobs[axis][1] if axis in jobs else x.shape[axis] for axis in range(2, x.dim())]
    if mode == "nearest":
        same = all(_same_rows(call, size, new, scale) for size, new, scale in jobs.values())
        return torch.nn.functional.interpolate(x, shape, mode="nearest") if same else None
    halves = how == "half_pixel" or (how == "pytorch_half_pixel" and min(new for _, new, _ in jobs.values()) > 1)
    if mode != "linear" or not (halves or how == "align_corners"):
        return None
    return torch.nn.functional.interpolate(x, shape, mode=names[x.dim()], align_corners=not halves)


def _same_rows(call: Call, size: int, new: int, scale: float) -> bool:
    return bool((_taps(call, size, new, scale)[0][:, 0] == np.arange(new) * size // new).all())


def _resize_axis(call: Call, x: Any, axis: int, new: int, scale: float) -> Any:
    rows, weights = _taps(call, x.shape[axis], new, scale)
    shape = [-1 if i == axis else 1 for i in range(x.dim())]
    total = None
    for tap in range(rows.shape[1]):
        y = x.index_select(axis, torch.as_tensor(rows[:, tap], device=x.device))
        if rows.shape[1] > 1:
            y = y * torch.as_tensor(weights[:, tap], dtype=x.dtype, device=x.device).reshape(shape)
        total = y if total is None else total + y
    return total


OPERATORS: dict[str, Operator] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LRN": _lrn,
    "LayerNormalization": _layer_normalization,
    "LpNormalization": _lp_normalization,
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
    "MeanVarianceNormalization": _mean_variance_normalization,
    "RMSNormalization": _rms_normalization,
    "Resize": _resize,
}
