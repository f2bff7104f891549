"""Trained nets on real images: the lowered files decide as the originals do."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from edgecompile.lower import direct
from tests import zoo
from tests.corpora.harness import TOLERANCE, reference, runner, worst

_IMAGES = 1000
#: Below this difference of the two largest logits, float rounding may decide.
_MARGIN = 1e-4
_MEAN, _STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
#: Intersection over union above which two boxes are of one face.
_SAME_FACE = 0.3


# ----------------------------------------------------------------------------------------------- CIFAR ResNets


@pytest.fixture(scope="module")
def cifar_images(shared_data: Path) -> np.ndarray:
    """1,000 test images, 100 a class, normalized as the nets were trained: N, 3, 32, 32."""
    images: dict[str, list[np.ndarray]] = {}
    with tarfile.open(shared_data / "cifar10.tar.gz") as archive:
        for member in archive:
            kind = member.name.split("/")
            if not member.isfile() or kind[-3] != "test" or len(images.setdefault(kind[-2], [])) == _IMAGES // 10:
                continue
            with Image.open(archive.extractfile(member)) as image:
                pixels = np.asarray(image.convert("RGB"), np.float32) / 255
            images[kind[-2]].append(((pixels - _MEAN) / _STD).transpose(2, 0, 1))
    return np.stack([image for _, of_class in sorted(images.items()) for image in of_class])


@pytest.mark.parametrize(
    ("name", "checkpoint"), [("resnet20", "resnet20-12fca82f.th"), ("resnet32", "resnet32-d509ac18.th")]
)
def test_a_cifar_resnet_decides_as_in_pytorch(
    name: str, checkpoint: str, cifar_images: np.ndarray, shared_data: Path, tmp_path: Path
) -> None:
    path = shared_data / "models/resnet-cifar10" / checkpoint
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    net = zoo.build(name)
    net.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    run = runner(direct.lower(onnx.load(zoo.export_onnx(net, zoo.input_shapes(name), tmp_path / "net.onnx"))))
    with torch.no_grad():
        expected = net(torch.from_numpy(cifar_images)).numpy()
    found = np.concatenate([next(iter(run({"image": image[None]}).values())) for image in cifar_images])
    assert len(found) == _IMAGES
    ordered = np.sort(expected, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > _MARGIN
    assert clear.sum() > 0.99 * _IMAGES
    assert (found.argmax(1) == expected.argmax(1))[clear].all()
    assert np.abs(found - expected).max() < TOLERANCE * np.ptp(expected)


# ---------------------------------------------------------------------------------------------- face detectors


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of one box (x1, y1, x2, y2) with many."""
    low, high = np.maximum(a[:2], b[:, :2]), np.minimum(a[2:], b[:, 2:])
    shared = np.clip(high - low, 0, None).prod(1)
    return shared / ((a[2:] - a[:2]).prod() + (b[:, 2:] - b[:, :2]).prod(1) - shared)


def _faces(boxes: np.ndarray, scores: np.ndarray, least: float) -> np.ndarray:
    """Greedy non-maximum suppression; the most certain box first."""
    keep, order = [], np.argsort(-scores, kind="stable")
    order = order[scores[order] > least]
    while len(order):
        keep.append(boxes[order[0]])
        order = order[1:][_overlap(boxes[order[0]], boxes[order[1:]]) < _SAME_FACE]
    return np.array(keep).reshape(-1, 4)


@pytest.mark.parametrize(("image", "least_faces"), [("10.jpg", 10), ("12.jpg", 3)])
def test_the_slim_detector_finds_the_same_boxes(image: str, least_faces: int, shared_data: Path) -> None:
    """Its file lists the weights as inputs too, as old exporters did."""
    folder = shared_data / "models/face-slim320"
    model = onnx.load(folder / "version-slim-320.onnx")
    with Image.open(folder / image) as opened:
        pixels = np.asarray(opened.convert("RGB").resize((320, 240), Image.Resampling.BILINEAR), np.float32)
    inputs = {"input": ((pixels - 127) / 128).transpose(2, 0, 1)[None]}
    expected, found = reference(model, inputs), runner(direct.lower(model))(inputs)
    assert worst(found, expected)[0] < TOLERANCE
    boxes = [_faces(result["boxes"][0], result["scores"][0, :, 1], least=0.7) for result in (found, expected)]
    assert len(boxes[0]) == len(boxes[1]) >= least_faces
    np.testing.assert_allclose(boxes[0], boxes[1], atol=1e-4)


def _anchors() -> np.ndarray:
    """Centres of BlazeFace's 896 anchors, all of the size of the image: 2 on 16x16 cells, 6 on 8x8."""
    grids = [(cells, per_cell) for cells, per_cell in ((16, 2), (8, 6))]
    return np.array([
        ((column + 0.5) / cells, (row + 0.5) / cells)
        for cells, per_cell in grids for row in range(cells) for column in range(cells) for _ in range(per_cell)
    ])  # fmt: skip


@pytest.fixture(scope="module")
def blazeface(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    net = zoo.build("blazeface")
    net.load_state_dict(
        torch.load(shared_data / "models/blazeface/blazeface.pth", map_location="cpu", weights_only=True)
    )
    path = tmp_path_factory.mktemp("blazeface") / "blazeface.onnx"
    return onnx.load(zoo.export_onnx(net, zoo.input_shapes("blazeface"), path))


@pytest.mark.parametrize(("image", "faces"), [("1face.png", 1), ("3faces.png", 3), ("4faces.png", 4)])
def test_blazeface_finds_each_face(image: str, faces: int, blazeface: onnx.ModelProto, shared_data: Path) -> None:
    """The four faces are 20 pixels wide, and the net is not sure of them: its usual threshold of 0.75 passes none.

    So the threshold is lower here, and the same for all images: nothing that is not a face comes near it.
    """
    with Image.open(shared_data / "models/blazeface" / image) as opened:
        pixels = np.asarray(opened.convert("RGB"), np.float32)
    inputs = {"image": (pixels / 127.5 - 1).transpose(2, 0, 1)[None]}
    expected, found = reference(blazeface, inputs), runner(direct.lower(blazeface))(inputs)
    assert worst(found, expected)[0] < TOLERANCE
    boxes = [_blaze_faces(*(value[0].astype(np.float64) for value in side.values())) for side in (found, expected)]
    assert len(boxes[0]) == faces
    np.testing.assert_allclose(boxes[0], boxes[1], atol=1e-4)


def _blaze_faces(raw: np.ndarray, logits: np.ndarray) -> np.ndarray:
    centres, sizes = raw[:, :2] / 128 + _anchors(), raw[:, 2:4] / 128
    corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
    return _faces(corners, 1 / (1 + np.exp(-logits[:, 0])), least=0.05)
