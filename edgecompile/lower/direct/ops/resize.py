"""Resize and Upsample, in the ways in which TFLite's kernels and ONNX mean the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.build import Builder, OnnxNode, RefusedError
from edgecompile.lower.direct.ir import Value
from edgecompile.lower.direct.ops.windows import image, like
from edgecompile.lower.direct.read import Handler


def _resize(b: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    old = node.opset < 11
    scales = node.constant(1 if old else 2, "scales")
    sizes = None if old else node.ints_operand(3, "sizes")
    mode = node.text("mode", "nearest")
    way = "asymmetric" if old else node.text("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if old else node.text("nearest_mode", "round_prefer_floor")
    if node.flag("antialias") or node.flag("exclude_outside"):
        raise RefusedError("antialias or exclude_outside is set")
    if node.text("keep_aspect_ratio_policy", "stretch") != "stretch" or node.ints("axes") is not None:
        if node.ints("axes") is None:
            raise RefusedError("it keeps the aspect ratio")
        scales, sizes = _on_all_axes(node, x, scales, sizes)
    return resize(b, x, scales, sizes, mode, way, rounding)


def _on_all_axes(
    node: OnnxNode, x: Value, scales: ir.Array | None, sizes: tuple[int, ...] | None
) -> tuple[ir.Array | None, tuple[int, ...] | None]:
    if node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise RefusedError("it keeps the aspect ratio")
    axes = [a % x.rank for a in node.ints("axes") or ()]
    if scales is not None and scales.size:
        full = np.ones(x.rank, np.float32)
        full[axes] = scales
        return full, None
    wanted = list(x.shape)
    for axis, size in zip(axes, sizes or (), strict=True):
        wanted[axis] = size
    return None, tuple(wanted)


def _upsample(b: Builder, node: OnnxNode) -> Value:
    if node.opset >= 9:
        scales = node.constant(1, "scales")
    else:
        listed = node.floats("scales")
        scales = None if listed is None else np.array(listed, np.float32)
    return resize(b, node.required(0), scales, None, node.text("mode", "nearest"), "asymmetric", "floor")


def resize(
    b: Builder, x: Value, scales: ir.Array | None, sizes: tuple[int, ...] | None, mode: str, way: str, rounding: str
) -> Value:
    """ONNX's Resize of the last two axes of an image, or the last of a tensor of rank 3."""
    if x.dtype != "float32":
        raise RefusedError(f"it resizes {x.dtype}; float32 is lowered")
    if scales is not None and scales.size:
        factors = [float(s) for s in scales.reshape(-1)]
        # In float32, as runtimes do: 5 * 2.6 is 13 there.
        target = tuple(math.floor(np.float32(d) * np.float32(f)) for d, f in zip(x.shape, factors, strict=True))
    elif sizes:
        target, factors = sizes, [s / d for s, d in zip(sizes, x.shape, strict=True)]
    else:
        raise RefusedError("it has neither scales nor sizes")
    if len(target) != x.rank or min(target) < 1:
        raise RefusedError(f"it resizes {x.shape} to {target}")
    if target == x.shape and all(f == 1 for f in factors):
        return x
    if x.rank not in (3, 4) or target[:2] != x.shape[:2]:
        raise RefusedError(f"it resizes {x.shape} to {target}; the last two axes of an image are lowered")
    wide = image(b, x)
    size = (target[-2] if x.rank == 4 else 1, target[-1])
    if mode == "nearest":
        return like(b, _nearest(b, wide, size, (factors[-2] if x.rank == 4 else 1.0, factors[-1]), way, rounding), x)
    if any(s / d != f for s, d, f in zip(target, x.shape, factors, strict=True)):
        raise RefusedError(
            f"scales {factors} make {target} of {x.shape}, which is not these scales; TFLite has sizes only"
        )
    if mode in ("linear", "bilinear"):
        return like(b, _bilinear(b, wide, size, way), x)
    raise RefusedError(f"its mode is {mode!r}; nearest and linear are lowered")


def source_places(size: int, target: int, scale: float, way: str) -> ir.Array:
    """Where in an axis of ``size`` each of ``target`` places lies, by ONNX's coordinate transformations."""
    out = np.arange(target, dtype=np.float64)
    if way == "half_pixel_symmetric" and scale != target / size:
        raise RefusedError(f"its coordinates are {way!r}, of a scale that no size says")
    if way in ("half_pixel", "half_pixel_symmetric") or (way == "pytorch_half_pixel" and target > 1):
        return (out + 0.5) / scale - 0.5
    if way == "pytorch_half_pixel":
        return np.zeros(target)
    if way == "asymmetric":
        return out / scale
    if way == "align_corners":
        return out * (size - 1) / (target - 1) if target > 1 else np.zeros(target)
    raise RefusedError(f"its coordinates are {way!r}")


_ROUNDINGS: dict[str, Callable[[ir.Array], ir.Array]] = {
    "round_prefer_floor": lambda v: np.ceil(v - 0.5),
    "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _nearest(
    b: Builder, x: Value, size: tuple[int, int], scales: tuple[float, float], way: str, rounding: str
) -> Value:
    """The places are known: where TFLite's kernel takes the same ones it is used, else they are gathered."""
    if rounding not in _ROUNDINGS:
        raise RefusedError(f"its rounding is {rounding!r}")
    places = []
    for i in range(2):
        exact = source_places(x.shape[2 + i], size[i], scales[i], way)
        # A place that is exactly between two is there in decimals too; ONNX Runtime computes in float32.
        rounded = _ROUNDINGS[rounding](np.round(exact, 6))
        places.append(np.clip(rounded, 0, x.shape[2 + i] - 1).astype(np.int32))
    for align, half in ((False, False), (False, True), (True, False)):
        theirs = [_tflite_nearest(x.shape[2 + i], size[i], align, half) for i in range(2)]
        if all((p == t).all() for p, t in zip(places, theirs, strict=True)):
            op = ir.Resize(kind="NEAREST_NEIGHBOR", size=size, align_corners=align, half_pixel_centers=half)
            return b.add(op, x)
    for i in range(2):
        if size[i] != x.shape[2 + i] or (places[i] != np.arange(size[i])).any():
            x = b.add(ir.Gather(axis=2 + i), x, b.constant(places[i], "int32"))
    return x


def _tflite_nearest(size: int, target: int, align: bool, half: bool) -> ir.Array:
    """The places that TFLite's RESIZE_NEAREST_NEIGHBOR takes (``reference_ops::GetNearestNeighbor``), in float32."""
    scale = np.float32((size - 1) / (target - 1)) if align and target > 1 else np.float32(size / target)
    offset = np.float32(0.5 if half else 0.0)
    value = (np.arange(target, dtype=np.float32) + offset) * scale
    rounded = np.floor(value + np.float32(0.5)) if align else np.floor(value)
    places: ir.Array = np.clip(rounded, 0, size - 1).astype(np.int32)
    return places


def _bilinear(b: Builder, x: Value, size: tuple[int, int], way: str) -> Value:
    if way == "align_corners" and min(size) > 1:
        flags = (True, False)
    elif way == "asymmetric":
        flags = (False, False)
    elif way in ("half_pixel", "half_pixel_symmetric") or (way == "pytorch_half_pixel" and min(size) > 1):
        flags = (False, True)
    elif way in ("pytorch_half_pixel", "align_corners") and all(
        s > 1 or x.shape[2 + i] == 1 for i, s in enumerate(size)
    ):
        flags = (way == "align_corners", way != "align_corners")
    else:
        raise RefusedError(f"its coordinates are {way!r}, and it resizes to {size}")
    op = ir.Resize(kind="BILINEAR", size=size, align_corners=flags[0], half_pixel_centers=flags[1])
    return b.add(op, x)


HANDLERS: dict[str, Handler] = {"Resize": _resize, "Upsample": _upsample}
