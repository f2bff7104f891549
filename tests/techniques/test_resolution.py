"""The same weights at another input size: equal to the network itself at that size, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgecompile import model as models
from edgecompile import tables
from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.progress import Silent
from edgecompile.techniques import resolution
from edgecompile.types import Step
from tests import zoo
from tests.zoo import exported

torch = pytest.importorskip("torch")

MOVES = (
    "resnet18", "resnet50", "se_resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v1_g3",
    "shufflenet_v2_x1", "squeezenet1_1", "googlenet", "inception_v3_blocks", "densenet121", "regnet_y_400mf",
    "ghostnet", "convnext_tiny", "ds_cnn",
)  # fmt: skip
STAYS = ("vgg11", "vit_tiny", "swin_blocks", "mobilevit_block", "mlp_mixer_b16", "yolo", "ssdlite", "blazeface", "unet")


def _larger(proto: onnx.ModelProto) -> tuple[str, tuple[int, ...]]:
    value = proto.graph.input[0]
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
    return value.name, (*shape[:2], 3 * shape[2] // 2, 2 * shape[3])


@pytest.mark.parametrize("name", MOVES)
def test_the_net_computes_what_it_computes_at_that_size(name: str) -> None:
    proto = onnx.load(str(exported.small(name)))
    input_name, shape = _larger(proto)
    changed = resolution.resized(proto, {input_name: shape})
    x = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(changed.SerializeToString(), options)
    (found,) = session.run(None, {input_name: x})
    module, _ = zoo.small(name)
    with torch.no_grad():
        wanted = module(torch.from_numpy(x)).numpy()
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-4 * max(np.ptp(wanted), 1e-3)


@pytest.mark.parametrize("name", STAYS)
def test_a_net_that_fits_one_size_only_is_refused_by_name(name: str) -> None:
    proto = onnx.load(str(exported.small(name)))
    input_name, shape = _larger(proto)
    with pytest.raises(UnsupportedModelError, match=r"at this input size output|fits one input size only"):
        resolution.resized(proto, {input_name: shape})


def test_the_technique_says_what_it_made(tmp_path: Path) -> None:
    model = models.load(str(exported.small("mobilenet_v2")), tmp_path / "model")
    assert resolution.spatial_size(model) == (64, 64)
    made = resolution.apply(model, model, resolution.step(48, 32), (), tmp_path, Silent())
    assert made.inputs[0].shape == (1, 3, 48, 32)
    assert made.sha256 != model.sha256
    assert made.parameters == model.parameters
    assert made.notes[-1] == "the input is 48x32 pixels"
    assert tables.keys_of(onnx.load(str(made.path))), "its shapes are known"
    (tmp_path / "again").mkdir()
    again = resolution.apply(model, model, resolution.step(48, 32), (), tmp_path / "again", Silent())
    assert again.sha256 == made.sha256


@pytest.mark.parametrize(
    "options", [(("height", 0), ("width", 3)), (("height", 3),), (("height", 8), ("width", 8), ("x", 1))]
)
def test_a_step_that_says_something_else_is_refused(options: tuple[tuple[str, int], ...]) -> None:
    with pytest.raises(InputError, match="resolution step"):
        resolution.size_of(Step(technique="resolution", options=options))


def test_a_model_that_takes_no_image_is_refused(tmp_path: Path) -> None:
    model = models.load(str(exported.small("anomaly_autoencoder")), tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match="does not take one image"):
        resolution.spatial_size(model)
