"""The zoo's nets are what they claim to be: sizes as published, seeded, alive, and the same through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import zoo
from tests.lowering import run_onnx
from tests.zoo import exported

_PUBLISHED = sorted(name for name, net in zoo.NETS.items() if net.parameters is not None)


def _inputs(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@torch.no_grad()
def _outputs(module: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    found = module(*inputs.values())
    return [found] if isinstance(found, Tensor) else list(found)


def _agrees(module: nn.Module, shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    run = run_onnx(path)
    inputs = _inputs(shapes, 7)
    found = run({name: value.numpy() for name, value in inputs.items()})
    expected = _outputs(module, inputs)
    assert len(found) == len(expected)
    for ours, theirs in zip(found.values(), expected, strict=True):
        assert ours.shape == tuple(theirs.shape)
        scale = float(theirs.abs().max())
        assert float(np.abs(ours - theirs.numpy()).max()) <= 1e-4 * scale


@pytest.mark.parametrize("name", _PUBLISHED)
def test_the_full_net_has_the_published_number_of_parameters(name: str) -> None:
    assert zoo.parameter_count(name) == zoo.NETS[name].parameters


@pytest.mark.parametrize(("name", "millions"), [("ghostnet", 5.18), ("repvgg_a0", 9.11), ("shufflenet_v1_g3", 1.87)])
def test_the_full_net_has_about_the_published_number_of_parameters(name: str, millions: float) -> None:
    assert round(zoo.parameter_count(name) / 1e6, 2) == millions


@pytest.mark.parametrize("name", zoo.NAMES)
def test_weights_depend_on_the_seed_only(name: str) -> None:
    state = torch.random.get_rng_state()
    first, shapes = zoo.small(name)
    torch.manual_seed(123)
    again, other = zoo.small(name)[0], zoo.small(name, seed=1)[0]
    torch.random.set_rng_state(state)
    assert not first.training
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    inputs = _inputs(shapes, 0)
    same = zip(_outputs(first, inputs), _outputs(other, inputs), strict=True)
    assert not any(torch.equal(a, b) for a, b in same)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_output_is_finite_and_depends_on_the_input(name: str) -> None:
    module, shapes = zoo.small(name)
    first, second = (_outputs(module, _inputs(shapes, seed)) for seed in (1, 2))
    for a, b in zip(first, second, strict=True):
        assert torch.isfinite(a).all()
        assert 1e-3 < a.abs().max() < 1e4
        assert (a - b).abs().max() > 1e-2 * a.abs().max()


@pytest.mark.parametrize("name", zoo.NAMES)
def test_onnxruntime_agrees_with_torch(name: str) -> None:
    _agrees(*zoo.small(name), exported.small(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NAMES)
def test_onnxruntime_agrees_with_torch_at_full_size(name: str, tmp_path: Path) -> None:
    module, shapes = zoo.build(name), zoo.input_shapes(name)
    _agrees(module, shapes, zoo.export_onnx(module, shapes, tmp_path / f"{name}.onnx"))


def test_an_export_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    again = zoo.export_onnx(*zoo.small("shufflenet_v2_x1"), tmp_path / "again.onnx")
    assert again.read_bytes() == exported.small("shufflenet_v2_x1").read_bytes()


def test_every_name_is_a_factory_of_the_package() -> None:
    factories: dict[str, Callable[[], nn.Module]] = {name: getattr(zoo, name) for name in zoo.NAMES}
    assert isinstance(factories["resnet20"](), nn.Module)
    assert all(callable(factory) for factory in factories.values())
    with pytest.raises(AttributeError, match="no attribute 'resnet21'"):
        _ = zoo.resnet21


@pytest.mark.parametrize(("name", "file"), [("resnet20", "resnet20-12fca82f.th"), ("resnet32", "resnet32-d509ac18.th")])
def test_the_published_cifar_checkpoints_fit(name: str, file: str, shared_data: Path) -> None:
    path = shared_data / "models" / "resnet-cifar10" / file
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    zoo.build(name).load_state_dict({key.removeprefix("module."): value for key, value in state.items()})


def test_the_published_blazeface_weights_fit_and_find_a_face(shared_data: Path) -> None:
    from PIL import Image

    folder = shared_data / "models" / "blazeface"
    net = zoo.build("blazeface")
    net.load_state_dict(torch.load(folder / "blazeface.pth", map_location="cpu", weights_only=True))
    with Image.open(folder / "1face.png") as picture:
        pixels = np.asarray(picture.convert("RGB").resize((128, 128)), np.float32)
    face = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]
    scores = [float(_outputs(net, {"image": x})[1].sigmoid().max()) for x in (face, torch.zeros_like(face))]
    assert scores[0] > 0.75
    assert scores[1] < 0.5
