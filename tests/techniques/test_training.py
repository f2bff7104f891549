"""The trainer: every loss learns, going on equals never having stopped, and what goes wrong is said."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from edgecompile.errors import EdgecompileError, InputError
from edgecompile.techniques import features, losses, training, training_data
from edgecompile.techniques.training import TrainingOptions
from edgecompile.types import Step


class Killed(Exception):
    pass


class Net(nn.Module):
    """A small classifier of 8 x 8 images; dropout makes it depend on torch's own random numbers as well."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.drop, self.head = nn.Dropout(0.05), nn.Linear(width * 4, 10)

    def forward(self, inputs: dict[str, Tensor], collect: tuple[str, ...] = ()) -> dict[str, Tensor]:
        x = self.norm(self.conv(inputs["image"])).relu()
        y = self.head(self.drop(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)))
        return {"scores": y, **({"features": x} if collect else {})}


@pytest.fixture(scope="module")
def stacks() -> dict[str, Tensor]:
    return {"image": torch.from_numpy(load_digits().images[:400, None].astype(np.float32) / 8 - 1)}


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.from_numpy(load_digits().target[:400].astype(np.int64))


@pytest.fixture(scope="module")
def teacher(stacks: dict[str, Tensor], labels: Tensor) -> Net:
    net = Net(24, seed=1)
    training.train(net, net, stacks, _options(loss="labels", steps=250, augment="none"), labels=labels)
    return net


def _options(**given: object) -> TrainingOptions:
    usual: dict[str, object] = {"steps": 60, "samples": 400, "batch": 32, "rate": 1e-2}
    return TrainingOptions(**(usual | given))


def _right(net: Net, stacks: dict[str, Tensor], labels: Tensor) -> float:
    with torch.no_grad():
        return float((net(stacks)["scores"].argmax(1) == labels).double().mean())


def _same(a: Net, b: Net) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def _after(calls: int) -> Callable[[], bool]:
    """Raises at call ``calls``, as a kill would."""
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        if count == calls:
            raise Killed
        return False

    return stop


@pytest.mark.parametrize(
    "given",
    [
        {"loss": "kl"},
        {"loss": "dist", "temperature": 1.0},
        {"loss": "kl", "label_weight": 0.3},
        {"loss": "kl", "feature_weight": 1.0},
        {"loss": "kl", "augment": "mix+shift", "patience": 5},
    ],
)
def test_every_loss_brings_the_student_nearer(
    teacher: Net, stacks: dict[str, Tensor], labels: Tensor, given: dict[str, object]
) -> None:
    student = Net(8, seed=2)
    before = _right(student, stacks, labels)
    found = training.train(
        teacher, student, stacks, _options(**({"augment": "mix", "steps": 150} | given)), labels=labels,
        features=("features", "features"),
    )  # fmt: skip
    assert found.after < 0.7 * found.before
    assert found.steps == 150
    assert _right(student, stacks, labels) > before + 0.3
    assert not student.training


def test_labels_alone_teach(stacks: dict[str, Tensor], labels: Tensor) -> None:
    student = Net(8, seed=2)
    training.train(None, student, stacks, _options(loss="labels", augment="none"), labels=labels)
    assert _right(student, stacks, labels) > 0.6


def test_a_killed_training_goes_on_to_the_same_weights(
    teacher: Net, stacks: dict[str, Tensor], labels: Tensor, tmp_path: Path
) -> None:
    options = _options(steps=36, label_weight=0.2, feature_weight=0.5)
    whole, parts, file = Net(8, seed=2), Net(8, seed=2), tmp_path / "kept" / "one.pt"
    common = {"labels": labels, "features": ("features", "features")}
    first = training.train(teacher, whole, stacks, options, **common)
    with pytest.raises(Killed):
        training.train(teacher, parts, stacks, options, checkpoint=file, stop=_after(20), **common)
    assert torch.load(file, weights_only=True)["done"] == 18
    parts = Net(8, seed=2)
    assert training.train(teacher, parts, stacks, options, checkpoint=file, **common) == first
    assert _same(whole, parts)
    assert torch.load(file, weights_only=True)["done"] == 36, (
        "the last checkpoint stays, for whoever must keep the model"
    )
    begun = Net(8, seed=2)
    assert training.train(teacher, begun, stacks, options, checkpoint=file, **common) == first
    assert _same(whole, begun)


def test_a_foreign_or_broken_checkpoint_is_ignored(teacher: Net, stacks: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "one.pt"
    whole, other = Net(8, seed=2), Net(8, seed=2)
    training.train(teacher, whole, stacks, _options(steps=12))
    with pytest.raises(Killed):
        training.train(teacher, Net(8, seed=2), stacks, _options(steps=13), checkpoint=file, stop=_after(8))
    training.train(teacher, other, stacks, _options(steps=12), checkpoint=file)
    assert _same(whole, other)
    file.write_bytes(b"no checkpoint")
    other = Net(8, seed=2)
    training.train(teacher, other, stacks, _options(steps=12), checkpoint=file)
    assert _same(whole, other)


def test_a_stopped_training_is_cut_and_can_be_repeated(teacher: Net, stacks: dict[str, Tensor]) -> None:
    stopped, again, answers = Net(8, seed=2), Net(8, seed=2), iter([False] * 21 + [True])
    found = training.train(teacher, stopped, stacks, _options(), stop=lambda: next(answers))
    assert found.steps == 22
    assert training.train(teacher, again, stacks, _options(cut=found.steps)) == found
    assert _same(stopped, again)


def test_patience_ends_a_training_that_gains_nothing(teacher: Net, stacks: dict[str, Tensor]) -> None:
    found = training.train(teacher, Net(8, seed=2), stacks, _options(rate=1e-12, patience=2, augment="none"))
    copied = Net(24, seed=1)
    copied.load_state_dict(teacher.state_dict())
    kept = training.train(teacher, copied, stacks, _options(rate=0.05, patience=2))
    assert kept.steps == 10
    assert kept.after == kept.before < found.before
    assert _same(copied, teacher)


class Breaking(Net):
    """Gives no numbers at some calls in training mode."""

    broken: tuple[int, ...] = ()
    calls = 0

    def forward(self, inputs: dict[str, Tensor], collect: tuple[str, ...] = ()) -> dict[str, Tensor]:
        self.calls += self.training
        found = super().forward(inputs, collect)
        return {"scores": found["scores"] * (float("nan") if self.training and self.calls in self.broken else 1.0)}


def test_a_training_that_diverges_goes_on_with_half_its_rate(teacher: Net, stacks: dict[str, Tensor]) -> None:
    student = Breaking(8, seed=2)
    student.broken = (8, 20)
    found = training.train(teacher, student, stacks, _options(steps=24))
    assert len(found.notes) == 2
    assert "0.005" in found.notes[0]
    assert "0.0025" in found.notes[1]
    assert found.after < found.before
    student.broken = tuple(range(1000))
    with pytest.raises(EdgecompileError, match=r"diverged at step 1 with a rate of 0\.0025"):
        training.train(teacher, student, stacks, _options(steps=24))


@pytest.mark.parametrize(
    ("given", "words"),
    [({"loss": "kl"}, "needs a teacher"), ({"loss": "labels"}, "needs labels")],
)
def test_a_training_without_what_it_needs_is_refused(
    stacks: dict[str, Tensor], given: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        training.train(None, Net(4, seed=0), stacks, _options(**given))


@pytest.mark.parametrize("given", [{"steps": 0}, {"loss": "x"}, {"augment": "spin"}, {"label_weight": 2.0}])
def test_options_that_make_no_sense_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(InputError, match="cannot be run"):
        _options(**given)


def test_labels_are_mixed_as_the_images_are() -> None:
    labels = torch.arange(6)
    stacks = {"a": labels.float()[:, None, None, None].expand(6, 1, 8, 8), "b": torch.ones(6, 2, 4, 4)}
    stacks["b"] = stacks["b"] * labels[:, None, None, None]
    batch = training_data.draw(
        stacks, labels, labels, augment=("flip", "mix", "shift"), generator=torch.Generator().manual_seed(3)
    )
    assert batch.others is not None
    wanted = batch.share * labels + (1 - batch.share) * batch.others
    assert bool((batch.share < 1).any())
    for image in batch.inputs.values():
        torch.testing.assert_close(image.mean((1, 2, 3)), wanted)
    scores = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    soft = batch.share[:, None] * torch.eye(6)[labels] + (1 - batch.share)[:, None] * torch.eye(6)[batch.others]
    found = losses.label_entropy(scores, labels, batch.others, batch.share)
    torch.testing.assert_close(found, nn.functional.cross_entropy(scores, soft))


def test_a_shift_repeats_the_border() -> None:
    ramp = torch.arange(16.0).expand(5, 1, 16, 16)
    batch = training_data.draw(
        {"x": ramp}, None, torch.arange(5), augment=("shift",), generator=torch.Generator().manual_seed(0)
    )
    for image in batch.inputs["x"]:
        moves = [m for m in range(-2, 3) if torch.equal(image[0, 0], (torch.arange(16.0) + m).clamp(0, 15))]
        assert len(moves) == 1


def test_what_is_no_image_is_neither_changed_nor_mixed() -> None:
    stacks = {"image": torch.rand(4, 1, 4, 4), "number": torch.rand(4, 3)}
    batch = training_data.draw(
        stacks, None, torch.arange(4), augment=("flip", "mix"), generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(batch.inputs["number"], stacks["number"])
    assert torch.equal(batch.share, torch.ones(4))


def test_a_teacher_at_chance_is_told(labels: Tensor) -> None:
    scores = torch.eye(10)[labels]
    assert training.check_teacher(scores, labels, 10) == ()
    with pytest.raises(InputError, match=r"chance is 10\.0 %") as fault:
        training.check_teacher(scores.roll(1, dims=1), labels, 10)
    assert "--labels" in str(fault.value)
    with pytest.raises(InputError, match="labels go from"):
        training.check_teacher(scores[:, :5], labels, 5)
    some = labels != 3
    assert training.check_teacher(scores[some], labels[some], 10) == (
        "the training samples have no example of 1 of 10 classes: 3",
    )


@pytest.mark.parametrize(("pool", "wanted"), [("GlobalAveragePool", "y"), ("MaxPool", None)])
def test_features_are_what_the_last_pooling_reads(pool: str, wanted: str | None) -> None:
    from onnx import TensorProto, helper

    rest = {"kernel_shape": [2, 2]} if pool == "MaxPool" else {}
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node(pool, ["y"], ["z"], **rest),
        helper.make_node("Flatten", ["z"], ["out"]),
    ]
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )  # fmt: skip
    assert features.pooled(helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)])) == wanted


def test_a_checkpoint_has_a_place_only_where_one_is_given(tmp_path: Path) -> None:
    assert training.checkpoint_file("a" * 64) is None
    with training.checkpoints_in(tmp_path):
        assert training.checkpoint_file("a" * 64) == tmp_path / ("a" * 32 + ".pt")
    assert training.checkpoint_file("a" * 64) is None


def test_a_watched_training_says_where_it_was_stopped() -> None:
    with training.watched(lambda: True) as watch:
        assert training.watch() is watch
        assert watch.asked()
    assert watch.stopped
    assert not training.watch().asked()
    step = Step(technique="distill", options=(("cut", 9), ("steps", 50)))
    assert training.cut(step, 7).options == (("cut", 7), ("steps", 50))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"loss": "dist", "steps": "50"}, (("loss", "dist"), ("steps", 50))),
        ({"rate": "1e-3", "label_weight": 1}, (("label_weight", 1.0), ("rate", 1e-3))),
        ({}, ()),
    ],
)
def test_choices_have_the_types_of_the_options(given: dict[str, str], found: tuple[object, ...]) -> None:
    assert training.choices(given) == found


@pytest.mark.parametrize("given", [{"los": "kl"}, {"loss": "mse"}, {"steps": "many"}, {"seed": "1"}, {"cut": "3"}])
def test_choices_that_are_none_are_refused(given: dict[str, str]) -> None:
    with pytest.raises(InputError):
        training.choices(given)


def test_a_full_disk_is_told_as_what_it_is(
    teacher: Net, stacks: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(training, "write_atomically", full)
    with pytest.raises(OSError) as caught:
        training.train(teacher, Net(8, seed=2), stacks, _options(steps=4), checkpoint=tmp_path / "one.pt")
    assert caught.value.errno == errno.ENOSPC
