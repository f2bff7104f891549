"""Students: nets of the family build, are written as they compute, run on a device's runtime, and learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgecompile import execute, lower, model, parity, students, techniques
from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.progress import Silent
from edgecompile.tables import OperatorKey
from edgecompile.tables.costs import cost_of
from edgecompile.techniques import student, student_family, student_net
from edgecompile.types import Model, Plan, Step, TensorSpec

SIZES = ((1, 8, 8, 10), (3, 32, 32, 10), (3, 33, 47, 7), (1, 49, 10, 12), (3, 96, 96, 2), (3, 224, 224, 5))


def teacher_file(folder: Path, channels: int, height: int, width: int, classes: int, *, opset: int = 17) -> Path:
    """A linear classifier of the flat image; random weights."""
    generator = np.random.default_rng(0)
    count = channels * height * width
    weight = generator.normal(0, count**-0.5, (count, classes)).astype(np.float32)
    return classifier(folder, (channels, height, width), weight, np.zeros(classes, np.float32), opset=opset)


def classifier(
    folder: Path, shape: tuple[int, ...], weight: np.ndarray, bias: np.ndarray, *, opset: int = 17, end: str = ""
) -> Path:
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "w", "b"], ["scores" if end else "logits"]),
        *([helper.make_node(end, ["scores"], ["logits"])] if end else []),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, *shape])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, weight.shape[1]])
    tensors = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    made = helper.make_model(
        helper.make_graph(nodes, "net", [image], [logits], tensors),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    path = folder / f"net{opset}{end}{'x'.join(map(str, shape))}.onnx"
    onnx.save(made, str(path))
    return path


def described(path: Path) -> Model:
    """The file as it is, not prepared."""
    graph = onnx.load(str(path)).graph
    specs = [
        TensorSpec(name=i.name, shape=tuple(d.dim_value for d in i.type.tensor_type.shape.dim), dtype="float32")
        for i in (graph.input[0], graph.output[0])
    ]
    return Model(
        name=path.stem, path=path, original_path=path, inputs=(specs[0],), outputs=(specs[1],), source=str(path),
        kind="onnx", sha256=path.stem, parameters=0,
    )  # fmt: skip


def by_macs(keys: Sequence[OperatorKey]) -> Mapping[OperatorKey, float]:
    """A device that takes a millisecond for a million multiply-accumulates, and one for a million elements."""
    costs = {key: cost_of(key) for key in keys}
    return {key: (c.macs + c.input_elements + c.output_elements) / 1e6 for key, c in costs.items()}


def lively(made: student_net.StudentNet, seed: int = 0) -> student_net.StudentNet:
    """With statistics and factors of batch normalization that are not those of a fresh net, and logits that differ."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in made.norms.values():
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.uniform_(-0.5, 0.5, generator=generator)
        made.classifier.weight.normal_(0, 1, generator=generator)
        made.train()
        for _ in range(5):
            made(images(made.face, 8, generator))
    return made.eval()  # type: ignore[no-any-return]


def images(face: student_family.Interface, count: int, generator: object) -> dict[str, object]:
    import torch

    return {face.input: torch.randn((count, face.channels, face.height, face.width), generator=generator)}  # type: ignore[call-overload]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_the_file_computes_what_the_module_does(size: tuple[int, int, int, int], tmp_path: Path) -> None:
    import onnxruntime
    import torch

    original = described(teacher_file(tmp_path, *size))
    found = student.candidates(original, 8)
    small = [a for a in found if a.width <= 0.5]
    for architecture in (small[0], next(a for a in small if a.squeeze_excite), small[-1]):
        made = lively(student.net(architecture, original, 3))
        proto = student.to_onnx(made)
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        x = images(made.face, 1, torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = made(x)["logits"].numpy()
        (computed,) = session.run(["logits"], {"image": x["image"].numpy()})  # type: ignore[attr-defined]
        assert expected.std() > 0.1
        np.testing.assert_allclose(computed, expected, atol=1e-4 * max(1, np.abs(expected).max()))
        assert proto.opset_import[0].version == 17
        assert not any(node.op_type in ("BatchNormalization", "Pad") for node in proto.graph.node)


@pytest.mark.parametrize("opset", [10, 13, 17])
def test_activations_are_written_for_the_operator_set_of_the_original(opset: int, tmp_path: Path) -> None:
    import onnxruntime
    import torch

    original = described(teacher_file(tmp_path, 1, 8, 8, 10, opset=opset))
    for activation in ("relu", "relu6", "hardswish"):
        plain = next(a for a in student.candidates(original, 8) if a.squeeze_excite)
        made = lively(student.net(replace(plain, activation=activation), original))  # type: ignore[arg-type]
        session = onnxruntime.InferenceSession(
            student.to_onnx(made).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        x = images(made.face, 1, torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = made(x)["logits"].numpy()
        (computed,) = session.run(None, {"image": x["image"].numpy()})  # type: ignore[attr-defined]
        np.testing.assert_allclose(computed, expected, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("size", [(1, 8, 8, 10), (3, 32, 32, 10), (3, 96, 96, 2)], ids=lambda s: f"{s[1]}")
def test_students_lower_to_tflite_and_pass_the_gate(size: tuple[int, int, int, int], tmp_path: Path) -> None:
    original = described(teacher_file(tmp_path, *size))
    found = [a for a in student.candidates(original, 8) if a.width == 0.5 or a.squeeze_excite]
    generator = np.random.default_rng(0)
    samples = [{"image": generator.normal(size=(1, *size[:3])).astype(np.float32)} for _ in range(4)]
    for number, architecture in enumerate((found[0], next(a for a in found if a.squeeze_excite), found[-1])):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "model.onnx"
        onnx.save(student.to_onnx(lively(student.net(architecture, original))), str(path))
        made = described(path)
        artifact = lower.RUNTIMES["tflite"].lower(made, Plan(runtime="tflite", precision="fp32"), [], folder)
        result = parity.float_gate(execute.artifact(artifact), execute.original(made), samples)
        assert result.passed, parity.describe(result)


@pytest.mark.parametrize("tile", [8, 16])
def test_channels_lie_on_the_grid(tile: int, tmp_path: Path) -> None:
    original = described(teacher_file(tmp_path, 3, 32, 32, 10))
    found = student.candidates(original, tile)
    face = student.interface(original)
    assert 24 <= len(found) <= 100
    assert {a.kind for a in found} == {"inverted", "fused"}
    assert len({student_family.blocks(a, face) for a in found}) == len(found)
    for architecture in found:
        made = student_family.blocks(architecture, face)
        assert all(conv.outputs % tile == 0 for block in made for conv in block.convs)
        assert all(block.gate % tile == 0 for block in made)
        assert student_family.parse(architecture.code) == architecture


def test_small_images_are_halved_less_often() -> None:
    assert [student_family.halvings(n, n) for n in (4, 8, 16, 32, 96, 224)] == [0, 0, 1, 2, 4, 5]
    assert student_family.halvings(49, 10) == 1


def test_a_device_without_gates_is_offered_none(tmp_path: Path) -> None:
    original = described(teacher_file(tmp_path, 3, 32, 32, 10))
    found = student.candidates(original, 8, supports_se=False, supports_hardswish=False)
    assert not any(a.squeeze_excite or a.activation == "hardswish" for a in found)


def test_the_ranking_honours_the_budget_and_mixes_the_sorts(tmp_path: Path) -> None:
    original = described(teacher_file(tmp_path, 3, 32, 32, 10))
    found = student.candidates(original, 8)
    times = students.predict(found, original, by_macs)
    budget = float(np.median(times))
    ranked = students.rank(found, budget, by_macs, model=original)
    assert {r.architecture for r in ranked} == {a for a, ms in zip(found, times, strict=True) if ms <= budget}
    assert {r.architecture.kind for r in ranked[:3]} == {"inverted", "fused"}
    plain = [r for r in ranked if r.architecture.kind == "fused"]
    assert [r.capacity for r in plain] == sorted((r.capacity for r in plain), reverse=True)
    assert students.rank(found, min(times) / 2, by_macs, model=original) == ()
    assert students.rank(found, budget, by_macs, model=original, fixed_ms=budget) == ()


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images[:, None] / 8 - 1).astype(np.float32), found.target


@pytest.fixture(scope="module")
def digits_teacher(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A linear classifier of 8x8 digits, fitted to the labels, right on most others."""
    x, y = _digits()
    flat = np.hstack([x[:1200].reshape(1200, -1), np.ones((1200, 1))])
    wanted = np.eye(10)[y[:1200]]
    solved = np.linalg.solve(flat.T @ flat + np.eye(flat.shape[1]), flat.T @ wanted) * 10
    folder = tmp_path_factory.mktemp("digits")
    path = classifier(folder, (1, 8, 8), solved[:-1].astype(np.float32), solved[-1].astype(np.float32))
    return model.load(str(path), folder / "model")


def _step(original: Model, **options: object) -> Step:
    found = [a for a in student.candidates(original, 8) if a.kind == "fused" and a.width <= 0.5]
    return student.step(found[0], **{"steps": 120, "samples": 1200, "batch": 32, "augment": "none", **options})


def test_a_student_learns_digits_without_labels(digits_teacher: Model, tmp_path: Path) -> None:
    x, y = _digits()
    samples = [{"image": image[None]} for image in x[:1200]]
    made = techniques.apply(digits_teacher, [_step(digits_teacher, steps=300)], samples, tmp_path)
    run = execute.original(made)
    found = [int(run({"image": image[None]})["logits"].argmax()) for image in x[1200:]]
    assert np.mean(found == y[1200:]) > 0.8
    assert (made.inputs, made.outputs) == (digits_teacher.inputs, digits_teacher.outputs)
    assert "student" in made.notes[-1]


def test_the_same_step_gives_the_same_bytes(digits_teacher: Model, tmp_path: Path) -> None:
    samples = [{"image": image[None]} for image in _digits()[0][:64]]
    made = [
        techniques.apply(digits_teacher, [_step(digits_teacher, steps=3, seed=seed)], samples, tmp_path / name).sha256
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert made[0] == made[1] != made[2]


class Labelled(list[dict[str, np.ndarray]]):
    """Samples with labels, as `calibration.Samples` has them."""

    labels: np.ndarray


def test_labels_make_up_for_a_poor_teacher(tmp_path: Path) -> None:
    """A teacher of other data is trained on the labels first; without that the student learns its faults."""
    x, y = _digits()
    generator = np.random.default_rng(0)
    weight = generator.normal(0, 0.3, (64, 10)).astype(np.float32)
    poor = model.load(str(classifier(tmp_path, (1, 8, 8), weight, np.zeros(10, np.float32))), tmp_path / "model")
    samples = Labelled({"image": image[None]} for image in x[:1200])
    samples.labels = y[:1200]
    right = []
    for name, options in (("alone", {}), ("taught", {"teacher_steps": 200, "label_weight": 0.3})):
        step = _step(poor, steps=200, **options)
        run = execute.original(techniques.apply(poor, [step], samples, tmp_path / name))
        right.append(np.mean([run({"image": i[None]})["logits"].argmax() for i in x[1200:]] == y[1200:]))
    assert right[0] < 0.4
    assert right[1] > 0.8


def test_features_of_the_original_teach_too(digits_convolution: Model, tmp_path: Path) -> None:
    samples = [{"image": image[None]} for image in _digits()[0][:64]]
    made = [
        techniques.apply(digits_convolution, [_step(digits_convolution, steps=3, **o)], samples, tmp_path / name).sha256
        for name, o in (("without", {}), ("with", {"feature_weight": 1.0, "loss": "dist"}))
    ]
    assert made[0] != made[1]


@pytest.fixture(scope="module")
def digits_convolution(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A classifier that pools a feature map; random weights."""
    folder = tmp_path_factory.mktemp("convolution")
    found = student.candidates(described(teacher_file(folder, 1, 8, 8, 10)), 8)[0]
    path = folder / "net.onnx"
    onnx.save(student.to_onnx(lively(student.net(found, described(teacher_file(folder, 1, 8, 8, 10))))), str(path))
    return model.load(str(path), folder / "model")


def test_a_killed_training_goes_on(digits_teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgecompile.techniques import training

    class Killed(Exception):
        pass

    class Killer(Silent):
        """Kills at the fifth training step."""

        def stage(self, title: str, total: int | None = None) -> Any:
            @contextmanager
            def watched() -> Iterator[Callable[[int], None]]:
                done = 0

                def advance(count: int) -> None:
                    nonlocal done
                    done += count
                    if done > 4:
                        raise Killed

                yield advance

            return watched()

    monkeypatch.setattr(training, "_EVERY", 2)
    samples = [{"image": image[None]} for image in _digits()[0][:64]]
    step = _step(digits_teacher, steps=8, batch=16)
    with training.checkpoints_in(tmp_path / "kept"):
        with pytest.raises(Killed):
            techniques.apply(digits_teacher, [step], samples, tmp_path / "a", Killer())
        assert list((tmp_path / "kept").iterdir())
        resumed = techniques.apply(digits_teacher, [step], samples, tmp_path / "b")
    assert resumed.sha256 == techniques.apply(digits_teacher, [step], samples, tmp_path / "c").sha256


def test_too_few_samples_are_refused() -> None:
    assert student.check_samples(student.MIN_SAMPLES) is None
    reason = student.check_samples(500)
    assert reason is not None
    assert "500" in reason


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"inputs": 2}, "2 inputs"),
        ({"outputs": 2}, "2 outputs"),
        ({"image": (1, 64)}, "one float32 image"),
        ({"image": (2, 1, 8, 8)}, "one float32 image"),
        ({"image": (1, 224, 224, 3)}, "no image's"),
        ({"logits": (1, 10, 4)}, "logits"),
        ({"logits": (1, 1)}, "logits"),
    ],
)
def test_other_models_can_have_no_student(change: dict[str, object], why: str, tmp_path: Path) -> None:
    found = described(teacher_file(tmp_path, 1, 8, 8, 10))
    (image,), (logits,) = found.inputs, found.outputs
    image = replace(image, shape=change.get("image", image.shape))  # type: ignore[arg-type]
    logits = replace(logits, shape=change.get("logits", logits.shape))  # type: ignore[arg-type]
    other = replace(
        found,
        inputs=(image,) * int(str(change.get("inputs", 1))),
        outputs=(logits,) * int(str(change.get("outputs", 1))),
    )
    with pytest.raises(UnsupportedModelError, match=why):
        student.candidates(other, 8)


def test_probabilities_are_refused(tmp_path: Path) -> None:
    path = classifier(tmp_path, (1, 8, 8), np.zeros((64, 10), np.float32), np.zeros(10, np.float32), end="Softmax")
    with pytest.raises(UnsupportedModelError, match="Softmax"):
        student.interface(described(path))


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "fused-w9"}, {"architecture": "fused-w1-d1.1.1.1-s3.1.1.1.1-e2-k3-relu-t8"}, {"steps": 0},
        {"colour": 1}, {"batch": 1}, {"rate": -1.0}, {"augment": "paint"}, {"optimizer": "luck"},
    ],
    ids=str,
)  # fmt: skip
def test_steps_that_cannot_be_run_are_refused(
    digits_teacher: Model, options: dict[str, object], tmp_path: Path
) -> None:
    good = dict(_step(digits_teacher).options)
    broken = Step(technique="student", options=tuple({**good, **options}.items()))  # type: ignore[arg-type]
    with pytest.raises(InputError):
        techniques.apply(digits_teacher, [broken], [{"image": np.zeros((1, 1, 8, 8), np.float32)}] * 4, tmp_path)
