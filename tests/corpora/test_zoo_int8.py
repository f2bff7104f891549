"""Every net of the zoo as an INT8 file: it runs, nothing in it is left in float, and it is still the same net."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgecompile import lower
from edgecompile.types import Plan
from tests import zoo
from tests.lowering import run_onnx, run_tflite, samples, save_model
from tests.zoo import exported

#: One of each kind of structure; the rest takes minutes.
_QUICK = {
    "resnet20", "mobilenet_v3_small", "shufflenet_v2_x1", "efficientnet_b0", "convnext_tiny", "unet", "vit_tiny",
    "ssdlite", "espcn_x3", "lstm",
}  # fmt: skip
#: Eight bits on random weights are noisy; an output that has nothing to do with the original is at -3 dB.
_LEAST_SQNR_DB = 3.0


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in _QUICK else [pytest.mark.slow]) for name in zoo.NAMES]
)
def test_an_int8_net_runs_and_is_the_same_net(name: str, tmp_path: Path) -> None:
    model = save_model(onnx.load(exported.small(name)), tmp_path / "model.onnx")
    data, tflite = samples(model), lower.RUNTIMES["tflite"]
    made = tflite.lower(model, Plan(runtime="tflite", precision="int8"), data, tmp_path, path="direct")
    assert (made.path_taken, made.float_islands) == ("direct", 0)
    run, original = run_tflite(made), run_onnx(model.path)
    ratios = []
    for sample in data[:4]:
        found, expected = run(sample), original(sample)
        for output, value in expected.items():
            noise = np.square(found[output].astype(np.float64) - value).sum()
            ratios.append(10 * np.log10(np.square(value.astype(np.float64)).sum() / (noise or 1e-12)))
    assert np.median(ratios) > _LEAST_SQNR_DB
