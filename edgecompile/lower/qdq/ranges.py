"""Ranges of activations, measured on calibration samples: the largest magnitude that int8 has to hold, a tensor.

One pass over the samples fills a histogram of magnitudes for each tensor; its range doubles, and pairs of bins merge,
whenever a larger value comes, so that nothing has to be known beforehand. Three methods read a limit from it: ``max``;
``percentile`` (99.99 % of all magnitudes lie below); ``entropy``, which clips where the quantized distribution has the
least Kullback-Leibler divergence from the real one (Migacz, "8-bit Inference with TensorRT", GTC 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.types import Arrays

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

Method: TypeAlias = Literal["max", "percentile", "entropy"]
METHODS: tuple[Method, ...] = ("max", "percentile", "entropy")

PERCENTILE = 99.99
#: At least half of the bins are in use at any time.
_BINS = 4096
#: Positive int8 levels with zero.
_LEVELS = 128
#: The clipping points that ``entropy`` tries, in bins of a histogram of 2048.
_ENTROPY_BINS = 2048
_ENTROPY_STEP = 8


class Histogram:
    """How often each magnitude of one tensor occurred; ``largest`` is the exact largest magnitude."""

    def __init__(self) -> None:
        import numpy as np

        self.counts: npt.NDArray[np.int64] = np.zeros(_BINS, np.int64)
        self.width = 0.0
        self.largest = 0.0

    def add(self, values: npt.NDArray[Any], name: str) -> None:
        """Count one array. Raises `InputError` when it holds a value that is not finite."""
        import numpy as np

        if not values.size:
            return
        magnitudes = np.abs(values, dtype=np.float32).reshape(-1)
        top = float(magnitudes.max())
        if not np.isfinite(top):
            raise InputError(
                f"the tensor {name!r} is not finite on a calibration sample, so it has no int8 range",
                remedy="check the preprocessing of the calibration data, or leave int8 out",
            )
        self.largest = max(self.largest, top)
        self._widen(top)
        if self.width:
            places = np.minimum((magnitudes * np.float32(1 / self.width)).astype(np.int32), _BINS - 1)
            self.counts += np.bincount(places, minlength=_BINS)
        else:
            self.counts[0] += magnitudes.size

    def _widen(self, top: float) -> None:
        """Let the bins reach ``top``: the first value that is not zero sets them, later ones double them."""
        import numpy as np

        if top < 1e-30:  # nothing to divide by
            return
        if not self.width:
            self.width = top / _BINS
        while top > self.width * _BINS * (1 + 1e-6):
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([merged, np.zeros(_BINS // 2, np.int64)])
            self.width *= 2

    def limit(self, method: Method) -> float:
        """The magnitude that becomes 127; 0 for a tensor that is always zero."""
        if method == "max" or not self.width:
            return self.largest
        found = self._percentile() if method == "percentile" else self._entropy()
        return min(found, self.largest)

    def _percentile(self) -> float:
        import numpy as np

        below = np.cumsum(self.counts)
        return float((np.searchsorted(below, below[-1] * (PERCENTILE / 100)) + 1) * self.width)

    def _entropy(self) -> float:
        import numpy as np

        used = min(_BINS, int(np.ceil(self.largest / self.width)))
        # Bins as wide as the range in use asks for: the range may have doubled just before the end.
        edges = np.linspace(0, used, _ENTROPY_BINS + 1)
        running = np.interp(edges, np.arange(_BINS + 1), np.concatenate([[0], np.cumsum(self.counts)]))
        counts = np.diff(running)
        counts[0] = counts[1]  # the zeros of a ReLU are exact at any scale, and would outweigh everything
        if not counts.any():
            return self.largest
        places = range(_LEVELS, _ENTROPY_BINS + 1, _ENTROPY_STEP)
        divergences = [_divergence(counts, place) for place in places]
        best = places[int(np.argmin(divergences))]
        return float(edges[best] * self.width)


def _divergence(counts: npt.NDArray[np.float64], place: int) -> float:
    """Kullback-Leibler divergence of the histogram, clipped at ``place``, from its form in 128 levels."""
    import numpy as np

    reference = counts[:place].copy()
    reference[-1] += counts[place:].sum()
    filled = counts[:place] > 0
    level = np.arange(place) * _LEVELS // place
    sums = np.bincount(level, weights=counts[:place], minlength=_LEVELS)
    members = np.bincount(level, weights=filled, minlength=_LEVELS)
    candidate = np.where(filled, (sums / np.maximum(members, 1))[level], 0.0)
    if not reference.sum() or not candidate.sum():
        return float("inf")
    p, q = reference / reference.sum(), candidate / candidate.sum()
    # A clipped tail that falls into an empty bin has no counterpart: a small probability stands for it.
    shared = p > 0
    return float((p[shared] * np.log(p[shared] / np.maximum(q[shared], 1e-10))).sum())


def measure(proto: onnx.ModelProto, names: Sequence[str], samples: Sequence[Arrays]) -> dict[str, Histogram]:
    """Histograms of the float tensors ``names`` of the graph over ``samples``, run by ONNX Runtime in float32.

    Raises `UnsupportedModelError` when ONNX Runtime does not take the graph.
    """
    found = {name: Histogram() for name in names}
    constants = _constants(proto, names)
    for name, value in constants.items():
        found[name].add(value, name)
    inputs = {value.name for value in proto.graph.input}
    wanted = [name for name in names if name not in constants and name not in inputs]
    run = runner(_tapped(proto, wanted), fused=True, outputs=wanted)
    for number in range(len(samples)):
        sample = samples[number]
        for name, value in (run(sample) if wanted else {}).items():
            found[name].add(value, name)
        for name in names:
            if name in inputs and name not in constants:
                found[name].add(sample[name], name)
    return found


def _constants(proto: onnx.ModelProto, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    import onnx

    return {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name in set(names)}


def _tapped(proto: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """The graph with ``names`` among its outputs."""
    import onnx

    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    present = {value.name for value in tapped.graph.output}
    tapped.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in present
    )
    data: bytes = tapped.SerializeToString()
    return data


class _Runner:
    """A graph in ONNX Runtime as a function of a sample."""

    def __init__(self, session: Any, outputs: Sequence[str]) -> None:
        self._session = session
        self._outputs = list(outputs)
        self._inputs = [value.name for value in session.get_inputs()]

    def __call__(self, sample: Arrays) -> dict[str, npt.NDArray[Any]]:
        values = self._session.run(self._outputs, {name: sample[name] for name in self._inputs})
        return dict(zip(self._outputs, values, strict=True))


def runner(data: bytes, *, fused: bool, outputs: Sequence[str] | None = None) -> _Runner:
    """A function that runs the graph on one thread, so that sums come in the same order every time.

    ``fused=False`` computes Q/DQ graphs as they are written, not by the integer kernels of this machine.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not fused:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # its exceptions have no common base
        raise UnsupportedModelError(
            f"ONNX Runtime does not take the graph: {exc}", remedy="use --precision fp16"
        ) from exc
    return _Runner(session, [value.name for value in session.get_outputs()] if outputs is None else outputs)


def limits(histograms: Mapping[str, Histogram], method: Method) -> dict[str, float]:
    """The limit of each tensor by one method."""
    return {name: histogram.limit(method) for name, histogram in histograms.items()}
