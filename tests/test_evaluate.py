"""Accuracy out: every metric on cases whose answer is known, and on real nets and images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgecompile import calibration, evaluate, stats
from edgecompile.calibration import Boxes, Detection
from edgecompile.errors import EdgecompileError, InputError
from edgecompile.evaluate import boxes, detect, segment, signal
from edgecompile.types import TensorSpec

Array = np.ndarray[Any, Any]
Run = Callable[[Mapping[str, Array]], dict[str, Array]]


def scores_of(classes: Array, count: int = 10) -> Array:
    """Scores whose highest is at the given class."""
    return np.eye(count, dtype=np.float32)[classes]


def samples(tmp_path: Path, x: Array, labels: Array | None = None) -> calibration.Samples:
    """``x`` as an evaluation part, in the order of ``samples.indices``."""
    extra = {} if labels is None else {"labels": labels}
    np.savez(tmp_path / "test.npz", x=x, **extra)
    np.save(tmp_path / "data.npy", np.full((4, *x.shape[1:]), -1000.0) + np.arange(4).reshape(4, *[1] * (x.ndim - 1)))
    spec = (TensorSpec(name="x", shape=(1, *x.shape[1:]), dtype="float32"),)
    return calibration.load(None, spec, data=tmp_path / "data.npy", evaluation=tmp_path / "test.npz").evaluation


def numbered(tmp_path: Path, labels: Array | None = None, count: int = 0) -> calibration.Samples:
    """Samples that hold nothing but their own number, so that a run function can answer by it."""
    return samples(tmp_path, np.arange(count or len(labels), dtype=np.float32)[:, None], labels)  # type: ignore[arg-type]


def answering(classes: Array, count: int = 10) -> Run:
    table = scores_of(classes, count)
    return lambda arrays: {"y": table[int(arrays["x"].item())][None]}


# --------------------------------------------------------------------------------------------- classification


def test_top_1_and_its_paired_drop(tmp_path: Path) -> None:
    labels = np.arange(200) % 10
    original, worse = labels.copy(), labels.copy()
    original[:20] = (labels[:20] + 1) % 10  # 90 % right
    worse[10:50] = (labels[10:50] + 1) % 10  # 80 % right: 10 won, 30 lost
    part = numbered(tmp_path, labels)
    base = evaluate.reference(answering(original), part)
    assert base.metric == "top-1"
    assert (base.accuracy.value, base.accuracy.drop, base.accuracy.drop_ci_low) == (90.0, 0.0, 0.0)
    wilson = stats.wilson(160, 200)
    found = evaluate.accuracy(answering(worse), base, part)
    assert found.value == 80.0
    assert (found.ci_low, found.ci_high) == pytest.approx((100 * wilson.low, 100 * wilson.high))
    assert found.drop == pytest.approx(10.0)
    assert found.samples == 200
    spread = 1.96 * math.sqrt((40 / 200 - 0.1**2) / 200) * 100  # of the paired differences, by the normal formula
    assert found.drop_ci_low == pytest.approx(10 - spread, abs=1)
    assert found.drop_ci_high == pytest.approx(10 + spread, abs=1)
    assert evaluate.accuracy(answering(worse), answering(original), part) == found


def test_no_differing_sample_does_not_prove_that_there_is_none(tmp_path: Path) -> None:
    labels = np.arange(100) % 10
    part = numbered(tmp_path, labels)
    found = evaluate.accuracy(answering(labels), evaluate.reference(answering(labels), part), part)
    assert found.drop == 0
    assert found.drop_ci_high == pytest.approx(100 * stats.wilson(0, 100).high) == pytest.approx(3.7, abs=0.1)
    assert found.drop_ci_low == -found.drop_ci_high


def test_the_original_runs_once_for_many_files(tmp_path: Path) -> None:
    labels = np.arange(50) % 10
    part, calls, progress = numbered(tmp_path, labels), [], []
    inner = answering(labels)

    def original(arrays: Mapping[str, Array]) -> dict[str, Array]:
        calls.append(1)
        return inner(arrays)

    base = evaluate.reference(original, part)
    made = len(calls)
    for _ in range(3):
        evaluate.accuracy(inner, base, part, progress=lambda done, total: progress.append((done, total)))
    assert len(calls) == made <= 51
    assert progress[:2] == [(1, 50), (2, 50)]
    assert len(progress) == 150


def test_a_reference_of_other_samples_is_refused(tmp_path: Path) -> None:
    labels = np.arange(50) % 10
    part = numbered(tmp_path, labels)
    base = evaluate.reference(answering(labels), part[:20])
    with pytest.raises(EdgecompileError, match="other samples"):
        evaluate.accuracy(answering(labels), base, part[20:])


def test_without_labels_the_metric_is_agreement(tmp_path: Path) -> None:
    first = np.arange(80) % 10
    second = first.copy()
    second[:4] = (second[:4] + 1) % 10
    part = numbered(tmp_path, count=80)
    base = evaluate.reference(answering(first), part)
    found = evaluate.accuracy(answering(second), base, part)
    assert (found.metric, found.value, found.drop) == ("agreement", 95.0, pytest.approx(5.0))
    assert found.drop_ci_low == pytest.approx(100 - found.ci_high)
    assert found.drop_ci_high == pytest.approx(100 - found.ci_low)
    assert (base.accuracy.value, base.accuracy.ci_low, base.accuracy.drop) == (100, 100, 0)


def test_scores_that_are_not_numbers_are_never_right(tmp_path: Path) -> None:
    labels = np.zeros(30, dtype=int)
    broken: Run = lambda arrays: {"y": np.full((1, 10), np.nan, np.float32)}  # noqa: E731
    part = numbered(tmp_path, labels)
    assert evaluate.accuracy(broken, answering(labels), part).value == 0
    unlabelled = numbered(tmp_path, count=30)
    assert evaluate.accuracy(broken, answering(labels), unlabelled).value == 0
    with pytest.raises(InputError, match="not numbers"):
        evaluate.reference(broken, unlabelled)


@pytest.mark.parametrize(
    ("outputs", "metric"),
    [
        ({"y": np.zeros((1, 5), np.float32)}, "agreement"),
        ({"y": np.zeros((1, 5, 1, 1), np.float32)}, "agreement"),
        ({"y": np.zeros((1, 5), np.float32), "label": np.zeros(1, np.int64)}, "agreement"),
        ({"y": np.zeros((1, 1), np.float32)}, "SQNR"),
        ({"y": np.zeros((1, 5, 4, 4), np.float32)}, "SQNR"),
        ({"y": np.zeros((1, 5), np.float32), "z": np.zeros((1, 5), np.float32)}, "SQNR"),
        ({"y": np.zeros((2, 5), np.float32)}, "SQNR"),
    ],
)
def test_what_counts_as_a_classifier(tmp_path: Path, outputs: dict[str, Array], metric: str) -> None:
    assert evaluate.reference(lambda arrays: outputs, numbered(tmp_path, count=8)).metric == metric


def test_a_metric_may_be_asked_for(tmp_path: Path) -> None:
    labels = np.arange(40) % 10
    part = numbered(tmp_path, labels)
    assert evaluate.reference(answering(labels), part, metric="agreement").metric == "agreement"
    assert evaluate.reference(answering(labels), part, metric="SQNR").metric == "SQNR"
    with pytest.raises(InputError, match=r"mAP cannot be computed .*\n.*top-1, agreement, SQNR"):
        evaluate.reference(answering(labels), part, metric="mAP")


def test_labels_that_the_model_cannot_have(tmp_path: Path) -> None:
    labels = np.arange(24) % 12
    with pytest.raises(InputError, match=r"name class 11, but the model has 10 outputs \(0-9\)"):
        evaluate.reference(answering(np.zeros(24, dtype=int)), numbered(tmp_path, labels))


def test_random_inputs_give_no_accuracy() -> None:
    part = calibration.random_inputs((TensorSpec(name="x", shape=(1, 1), dtype="float32"),), 8)
    with pytest.raises(InputError, match="random inputs"):
        evaluate.reference(answering(np.zeros(8, dtype=int)), part)


# ------------------------------------------------------------------------------------------------ near chance


def test_another_class_order_is_recognised(tmp_path: Path) -> None:
    labels = np.arange(300) % 10
    with pytest.raises(InputError) as caught:
        evaluate.reference(answering((labels + 3) % 10), numbered(tmp_path, labels))
    assert "right on 0.0 % of 300" in str(caught.value)
    assert "in another order it would be 100.0 %" in str(caught.value)
    assert "--labels" in str(caught.value)
    assert "--preset" in str(caught.value)


def test_a_missing_class_that_moves_those_behind_it_is_recognised(tmp_path: Path) -> None:
    """Nine folders of ten: the sorted names of the last five stand one place too early."""
    truth = np.array([c for c in range(10) if c != 4])[np.arange(270) % 9]
    with pytest.raises(InputError, match=r"in another order it would be 100\.0 %"):
        evaluate.reference(answering(truth), numbered(tmp_path, np.arange(270) % 9))


@pytest.mark.parametrize(("classes", "count"), [(2, 400), (10, 300), (100, 1000), (1000, 2000)])
def test_a_guessing_original_is_refused(tmp_path: Path, classes: int, count: int) -> None:
    generator = np.random.default_rng(1)
    labels, guesses = generator.integers(0, classes, (2, count))
    labels[0] = classes - 1
    with pytest.raises(InputError, match="guessing gives") as caught:
        evaluate.reference(answering(guesses, classes), numbered(tmp_path, labels))
    assert "another order" not in caught.value.message


@pytest.mark.parametrize(
    ("classes", "count", "right"), [(2, 400, 0.65), (10, 300, 0.35), (1000, 1000, 0.05), (10, 5, 0.4), (2, 3, 0.34)]
)
def test_weak_models_and_few_samples_are_let_through(tmp_path: Path, classes: int, count: int, right: float) -> None:
    labels = np.arange(count) % classes
    others = (labels + 1 + np.arange(count) // classes % max(classes - 1, 1)) % classes
    answers = np.where(np.arange(count) < right * count, labels, others)
    assert evaluate.reference(answering(answers, classes), numbered(tmp_path, labels)).metric == "top-1"


# ------------------------------------------------------------------------------------------------------- SQNR


def noisy(parts: Mapping[str, tuple[Array, float]], seed: int) -> Run:
    """Outputs that depend on the sample, with relative noise of a known power."""

    def run(arrays: Mapping[str, Array]) -> dict[str, Array]:
        generator = np.random.default_rng([seed, int(arrays["x"].item())])
        return {
            name: (base * (1 + arrays["x"].item()) * (1 + share * generator.standard_normal(base.shape))).astype(
                np.float32
            )
            for name, (base, share) in parts.items()
        }

    return run


def test_sqnr_of_known_noise(tmp_path: Path) -> None:
    base = np.ones((1, 40, 50))
    part = numbered(tmp_path, count=10)
    found = evaluate.accuracy(noisy({"y": (base, 0.01)}, 0), noisy({"y": (base, 0.0)}, 0), part)
    assert found.metric == "SQNR"
    assert found.value == pytest.approx(40, abs=0.3)  # 1 % noise: -20 log10(0.01)
    assert found.ci_low < found.value < found.ci_high
    assert found.drop is None
    assert found.unit == "dB"


def test_a_bad_output_is_not_hidden_by_a_large_good_one(tmp_path: Path) -> None:
    part = numbered(tmp_path, count=10)
    small, large = np.full((1, 8, 8), 1e-3), np.full((1, 100, 100), 1e3)
    clean = noisy({"small": (small, 0.0), "large": (large, 0.0)}, 0)
    found = evaluate.accuracy(noisy({"small": (small, 0.5), "large": (large, 0.0)}, 0), clean, part)
    assert found.value == pytest.approx(-10 * math.log10(0.25 / 2), abs=1.0)


def test_sqnr_at_its_ends(tmp_path: Path) -> None:
    part = numbered(tmp_path, count=6)
    clean = noisy({"y": (np.ones((1, 3, 3)), 0.0)}, 0)
    base = evaluate.reference(clean, part)
    assert evaluate.accuracy(clean, base, part).value == signal.CAP_DB
    assert (
        evaluate.accuracy(lambda a: {"y": np.full((1, 3, 3), np.nan, np.float32)}, base, part).value == -signal.CAP_DB
    )
    silent = evaluate.reference(lambda a: {"y": np.zeros((1, 3, 3), np.float32)}, part)
    assert silent.accuracy.value == signal.CAP_DB
    assert evaluate.accuracy(clean, silent, part).value == 0
    with pytest.raises(EdgecompileError, match="'y' of the file is missing"):
        evaluate.accuracy(lambda a: {"z": np.zeros((1, 3, 3), np.float32)}, base, part)
    with pytest.raises(EdgecompileError, match=r"shape \(1, 9\) instead of \(1, 3, 3\)"):
        evaluate.accuracy(lambda a: {"y": np.zeros((1, 9), np.float32)}, base, part)
    with pytest.raises(InputError, match="not finite"):
        evaluate.reference(lambda a: {"y": np.full((1, 3, 3), np.inf, np.float32)}, part)
    with pytest.raises(InputError, match="floating-point"):
        evaluate.reference(lambda a: {"y": np.zeros((1, 3), np.int64)}, part)


def test_sqnr_keeps_a_bounded_number_of_outputs(tmp_path: Path) -> None:
    part = numbered(tmp_path, count=200)
    base = evaluate.reference(noisy({"y": (np.ones((1, 3, 3)), 0.0)}, 0), part)
    assert len(base.samples) == base.accuracy.samples == signal.MAX_SAMPLES
    assert evaluate.accuracy(noisy({"y": (np.ones((1, 3, 3)), 0.1)}, 0), base, part).samples == signal.MAX_SAMPLES
    assert signal.sample_limit({"y": np.zeros((1, 3, 2000, 2000), np.float32)}) == 5


# -------------------------------------------------------------------------------------------------------- mAP


def truth(*rows: tuple[float, ...], classes: tuple[int, ...], crowd: tuple[bool, ...] = ()) -> Boxes:
    return Boxes(
        xyxy=np.array(rows, dtype=np.float64).reshape(-1, 4),
        classes=np.array(classes, dtype=np.int64),
        crowd=np.array(crowd or [False] * len(classes), dtype=bool),
    )


def found(*rows: tuple[float, ...], classes: tuple[int, ...], scores: tuple[float, ...]) -> boxes.Found:
    return boxes.Found(
        xyxy=np.array(rows, dtype=np.float64).reshape(-1, 4), scores=np.array(scores), classes=np.array(classes)
    )


def mean_average_precision(pairs: list[tuple[boxes.Found, Boxes]], classes: int) -> float:
    kept = [detect.match(mine, theirs) for mine, theirs in pairs]
    positives = np.array([np.bincount(t.classes[~t.crowd], minlength=classes) for _, t in pairs], dtype=np.float64)
    return detect._Precision(kept, positives).mean(np.ones(len(kept)))


A, B = (0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 40.0, 40.0)


def test_perfect_boxes_score_100() -> None:
    assert (
        mean_average_precision([(found(A, B, classes=(0, 1), scores=(0.9, 0.8)), truth(A, B, classes=(0, 1)))], 2)
        == 100
    )


def test_half_of_the_boxes_found_scores_half_the_recall() -> None:
    score = mean_average_precision([(found(A, classes=(0,), scores=(0.9,)), truth(A, B, classes=(0, 0)))], 1)
    assert score == pytest.approx(100 * 51 / 101)  # precision 1 at the recalls 0.00 to 0.50


def test_the_overlap_decides_how_many_thresholds_are_met() -> None:
    shifted = (0.0, 0.0, 10.0, 7.4)  # IoU 0.74: thresholds 0.50, 0.55, 0.60, 0.65, 0.70
    assert mean_average_precision([(found(shifted, classes=(0,), scores=(0.9,)), truth(A, classes=(0,)))], 1) == 50


def test_a_second_box_on_the_same_object_is_a_miss() -> None:
    doubled = found(A, A, B, classes=(0, 0, 0), scores=(0.9, 0.8, 0.7))
    score = mean_average_precision([(doubled, truth(A, B, classes=(0, 0)))], 1)
    assert score == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)


def test_a_wrong_class_is_a_miss_and_classes_without_truth_do_not_count() -> None:
    pairs = [(found(A, A, classes=(1, 2), scores=(0.9, 0.9)), truth(A, B, classes=(0, 2)))]
    assert mean_average_precision(pairs, 3) == 0
    assert mean_average_precision([(found(B, A, classes=(0, 2), scores=(0.9, 0.8)), truth(B, classes=(0,)))], 3) == 100


def test_boxes_in_a_crowd_are_neither_hits_nor_misses() -> None:
    inside = (21.0, 21.0, 25.0, 25.0)
    mine = found(inside, inside, A, classes=(0, 0, 0), scores=(0.9, 0.8, 0.7))
    assert mean_average_precision([(mine, truth(A, B, classes=(0, 0), crowd=(False, True)))], 1) == 100


def test_the_same_figure_as_pycocotools() -> None:
    """Random boxes; the expected figures were computed by pycocotools 2.0 (AP, IoU 0.50:0.95, all areas, 100 boxes)."""
    for seed, expected in ((1, 0.2526253515617923), (2, 0.26306869475050093), (3, 0.19095106968760925)):
        assert mean_average_precision(random_scene(seed), 3) == pytest.approx(100 * expected, abs=1e-9)


def random_scene(seed: int) -> list[tuple[boxes.Found, Boxes]]:
    generator, pairs = np.random.default_rng(seed), []
    for _ in range(40):
        true: list[tuple[Array, int, bool]] = []
        mine: list[tuple[Array, int, float]] = []
        for _ in range(generator.integers(0, 6)):
            box, label, crowd = random_box(generator), int(generator.integers(0, 3)), bool(generator.random() < 0.15)
            true.append((box, label, crowd))
            if generator.random() < 0.8:
                moved = generator.normal(0, 1.0, 4)
                said = label if generator.random() < 0.85 else int(generator.integers(0, 3))
                mine.append((np.round(box + moved, 3), said, round(generator.random(), 4)))
        for _ in range(generator.integers(0, 4)):
            mine.append((random_box(generator), int(generator.integers(0, 3)), round(generator.random(), 4)))
        mine.sort(key=lambda item: -item[2])
        pairs.append(
            (
                found(
                    *(corners(b) for b, _, _ in mine),
                    classes=tuple(c for _, c, _ in mine),
                    scores=tuple(s for *_, s in mine),
                ),
                truth(
                    *(corners(b) for b, _, _ in true),
                    classes=tuple(c for _, c, _ in true),
                    crowd=tuple(k for *_, k in true),
                ),
            )
        )
    return pairs


def random_box(generator: np.random.Generator) -> Array:
    width, height = generator.integers(5, 40, 2)
    return np.array(
        [generator.integers(0, 100 - width), generator.integers(0, 80 - height), width, height], dtype=float
    )


def corners(box: Array) -> tuple[float, ...]:
    return (box[0], box[1], box[0] + box[2], box[1] + box[3])


def test_box_formats_activations_and_background() -> None:
    size = (100, 50)
    logits = np.array([[[4.0, 0.0, -4.0], [-6.0, -6.0, 6.0]]], dtype=np.float32)
    expected = [[10, 10, 30, 40], [50, 0, 90, 20]]
    for box_format, values in (
        ("xyxy", [[0.1, 0.2, 0.3, 0.8], [0.5, 0.0, 0.9, 0.4]]),
        ("xywh", [[0.1, 0.2, 0.2, 0.6], [0.5, 0.0, 0.4, 0.4]]),
        ("cxcywh", [[0.2, 0.5, 0.2, 0.6], [0.7, 0.2, 0.4, 0.4]]),
    ):
        outputs = {"b": np.array([values], dtype=np.float32), "s": logits}
        reading = Detection(
            boxes="b", scores="s", box_format=box_format, normalized=True, activation="sigmoid", score_threshold=0.6
        )
        got = boxes.decode(outputs, reading, size)
        order = np.argsort(got.classes)
        np.testing.assert_allclose(got.xyxy[order], expected, atol=1e-4)
        assert got.classes[order].tolist() == [0, 2]
        np.testing.assert_allclose(got.scores[order], 1 / (1 + np.exp([-4, -6])), rtol=1e-6)
    reading = Detection(boxes="b", scores="s", normalized=True, activation="softmax", background=0, score_threshold=0.5)
    got = boxes.decode({"b": np.array([[[0.1, 0.2, 0.3, 0.8], [0.5, 0.0, 0.9, 0.4]]]), "s": logits}, reading, size)
    assert got.classes.tolist() == [1]  # class 2 of the model, with the background left out
    assert boxes.class_count({"b": np.zeros((1, 2, 4)), "s": logits}, reading) == 2


def test_suppression_keeps_the_best_of_each_class() -> None:
    rows = np.array([A, (1.0, 0.0, 11.0, 10.0), A, B])
    assert boxes.suppress(rows, np.array([0, 0, 1, 0]), 0.5) == [0, 2, 3]
    assert boxes.suppress(rows, np.array([0, 0, 1, 0]), 1.0) == [0, 1, 2, 3]


def test_scores_and_boxes_that_are_not_numbers_are_dropped() -> None:
    outputs = {"b": np.array([[A, (np.nan, 0, 1, 1), B]]), "s": np.array([[[np.nan], [0.9], [0.8]]])}
    got = boxes.decode(outputs, Detection(boxes="b", scores="s"), (100, 100))
    assert got.scores.tolist() == [0.8]


DETECTOR = "[resize]\nmode = 'exact'\n[values]\nrange = [0.0, 255.0]\n[detection]\nboxes = 'b'\nscores = 's'\n"


def detection_part(tmp_path: Path, preset: str = DETECTOR, shift: float = 0.0) -> calibration.Samples:
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True, exist_ok=True)
    content: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "thing"}],
    }
    for i in range(40):
        pixels = np.full((20, 40, 3), i, np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i:02}.png")
        content["images"].append({"id": i, "file_name": f"{i:02}.png", "width": 40, "height": 20})
        content["annotations"].append({"image_id": i, "category_id": 1, "bbox": [i / 4 + shift, 5, 20, 10]})
    (root / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "detector.toml").write_text(preset)
    inputs = (TensorSpec(name="x", shape=(1, 3, 80, 80), dtype="float32"),)
    return calibration.load(calibration.load_preset(str(tmp_path / "detector.toml")), inputs, data=root).evaluation


def detector(error: float = 0.0) -> Run:
    """Reads the image's number from its pixels, and says where the annotation put the box."""

    def run(arrays: Mapping[str, Array]) -> dict[str, Array]:
        left = float(arrays["x"].max()) / 4 + error
        box = np.array([[[left * 2, 20, (left + 20) * 2, 60]]], dtype=np.float32)
        return {"b": box, "s": np.array([[[0.9]]], dtype=np.float32)}

    return run


def test_map_from_folder_to_figure(tmp_path: Path) -> None:
    part = detection_part(tmp_path)
    base = evaluate.reference(detector(), part)
    assert (base.metric, base.accuracy.value, base.accuracy.drop, base.accuracy.samples) == ("mAP", 100, 0, 20)
    worse = evaluate.accuracy(detector(error=4), base, part)  # IoU 2/3: four of the ten thresholds
    assert worse.value == pytest.approx(40)
    assert worse.drop == pytest.approx(60)
    assert worse.drop_ci_low is not None
    assert worse.drop_ci_low < 60 < worse.drop_ci_high  # type: ignore[operator]


def test_a_detector_that_finds_nothing_true_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mAP is 0.00 %.*\n.*--labels"):
        evaluate.reference(detector(error=50), detection_part(tmp_path))


def test_boxes_need_to_know_how_outputs_are_read(tmp_path: Path) -> None:
    part = detection_part(tmp_path, preset="color = 'rgb'\n")
    with pytest.raises(InputError, match=r"does not say how .*\nadd a table \[detection\]"):
        evaluate.reference(detector(), part)
    assert evaluate.reference(detector(), part, metric="SQNR").metric == "SQNR"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("boxes = 'nothing'", "output 'nothing', which the model does not have"),
        ("boxes = 's'\nscores = 'b'", r"boxes are \(1, N, 4\)"),
        ("background = 7", "detection.background is 7"),
        ("background = 0", "name class 0, but the model has 0"),
    ],
)
def test_a_detection_table_that_does_not_fit_the_outputs(tmp_path: Path, change: str, words: str) -> None:
    lines = [line for line in DETECTOR.splitlines() if line.split(" = ")[0] not in change]
    with pytest.raises(InputError, match=words):
        evaluate.reference(detector(), detection_part(tmp_path, preset="\n".join([*lines, change])))


def test_a_real_detector_on_real_images(shared_data: Path, tmp_path: Path) -> None:
    """The slim-320 face detector: boxes read by hand from the raw outputs, as truth, are found again by the metric."""
    import onnxruntime

    source = shared_data / "models" / "face-slim320"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # this file lists its initializers as inputs, and a warning comes for each
    session = onnxruntime.InferenceSession(source / "version-slim-320.onnx", options, ["CPUExecutionProvider"])
    (tmp_path / "slim.toml").write_text(
        "[resize]\nmode = 'exact'\n[values]\nrange = [0.0, 255.0]\nmean = [127.0]\nstd = [128.0]\n"
        "[detection]\nboxes = 'boxes'\nscores = 'scores'\nnormalized = true\nbackground = 0\niou_threshold = 0.3\n"
    )

    def run(arrays: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(("scores", "boxes"), session.run(None, {"input": arrays["input"]}), strict=True))

    root, images, annotations = tmp_path / "data", [], []
    root.mkdir()
    for number, (name, flip) in enumerate([("10.jpg", False), ("10.jpg", True), ("12.jpg", False), ("12.jpg", True)]):
        picture = Image.open(source / name).convert("RGB")
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else picture
        picture.save(root / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": picture.width, "height": picture.height})
        small = np.asarray(picture.resize((320, 240), Image.Resampling.BILINEAR), dtype=np.float32)
        scores, places = session.run(None, {"input": ((small - 127) / 128).transpose(2, 0, 1)[None]})
        best = int(np.argmax(scores[0, :, 1]))  # the surest face of each image
        left, top, right, bottom = (places[0, best] * np.array([*picture.size, *picture.size])).tolist()
        annotations.append({"image_id": number, "category_id": 1, "bbox": [left, top, right - left, bottom - top]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "face"}]}
    (root / "annotations.json").write_text(json.dumps(content))
    inputs = (TensorSpec(name="input", shape=(1, 3, 240, 320), dtype="float32"),)
    part = calibration.load(calibration.load_preset(str(tmp_path / "slim.toml")), inputs, data=root).evaluation
    base = evaluate.reference(run, part)
    assert base.metric == "mAP"
    # The two true faces are the surest boxes of all, so hardly anything ranks above them; lower ranks cost nothing.
    assert base.accuracy.value > 90
    assert evaluate.accuracy(run, base, part).drop == 0


# ------------------------------------------------------------------------------------------------------- mIoU


def test_layouts_of_segmentation_scores() -> None:
    for shape, classes in (((1, 5, 64, 32), 5), ((1, 64, 32, 5), 5), ((1, 5, 16, 8), 5), ((1, 16, 8, 5), 5)):
        scores = segment.pixel_scores({"y": np.zeros(shape, np.float32)}, (64, 32))
        assert scores is not None
        assert scores.shape[0] == classes
    for shape in ((1, 5, 64, 30, 2), (1, 1, 64, 32), (1, 5), (1, 5, 7, 32)):
        assert segment.pixel_scores({"y": np.zeros(shape, np.float32)}, (64, 32)) is None


def test_enlarging_is_bilinear_with_half_pixel_centres() -> None:
    import torch

    scores = np.random.default_rng(0).standard_normal((3, 5, 7)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(scores)[None], (20, 21), mode="bilinear")[0].numpy()
    np.testing.assert_allclose(segment.enlarge(scores, (20, 21)), expected, atol=1e-6)
    np.testing.assert_array_equal(segment.enlarge(scores, (5, 7)), scores)


def mask_part(tmp_path: Path, classes: int = 3) -> calibration.Samples:
    """Images whose red channel is the class and whose mask has a strip of 255 that does not count."""
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for i in range(20):
        mask = generator.integers(0, classes, (8, 8)).astype(np.uint8)
        pixels = np.stack([mask, np.full_like(mask, i), mask], axis=2)
        mask[:, 0] = 255
        Image.fromarray(pixels).save(tmp_path / "data" / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"{i}.png")
    inputs = (TensorSpec(name="x", shape=(1, 3, 8, 8), dtype="float32"),)
    return calibration.load(calibration.load_preset("raw-255"), inputs, data=tmp_path / "data").evaluation


def segmenter(change: Callable[[Array], Array] = lambda classes: classes, *, nhwc: bool = False) -> Run:
    def run(arrays: Mapping[str, Array]) -> dict[str, Array]:
        scores = scores_of(change(arrays["x"][0, 0].astype(int)), 3)[None]
        return {"y": scores if nhwc else scores.transpose(0, 3, 1, 2)}

    return run


@pytest.mark.parametrize("nhwc", [False, True])
def test_miou_from_folder_to_figure(tmp_path: Path, nhwc: bool) -> None:
    part = mask_part(tmp_path)
    base = evaluate.reference(segmenter(nhwc=nhwc), part)
    assert (base.metric, base.accuracy.value, base.accuracy.drop, base.accuracy.samples) == ("mIoU", 100, 0, 10)
    worse = evaluate.accuracy(segmenter(lambda c: np.where(c == 2, 1, c), nhwc=nhwc), base, part)
    counts = np.bincount(np.concatenate([np.ravel(part.truth(i)) for i in range(len(part))]), minlength=256)  # type: ignore[arg-type]
    expected = 100 * np.mean([1, counts[1] / (counts[1] + counts[2]), 0])
    assert worse.value == pytest.approx(expected)
    assert worse.drop == pytest.approx(100 - expected)
    assert worse.ci_low < worse.value < worse.ci_high
    assert evaluate.accuracy(segmenter(nhwc=nhwc), base, part).drop == 0


def test_masks_with_classes_that_the_model_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has class 3, but the model has 3 \(0-2\); 255 is ignored"):
        evaluate.reference(segmenter(lambda c: np.minimum(c, 2)), mask_part(tmp_path, classes=4))


def test_masks_in_which_nothing_counts_are_refused(tmp_path: Path) -> None:
    part = mask_part(tmp_path)
    for path in (tmp_path / "data" / "masks").iterdir():
        Image.fromarray(np.full((8, 8), 255, np.uint8)).save(path)
    with pytest.raises(InputError, match=r"mIoU is nan .*\n.*segmentation.ignore"):
        evaluate.reference(segmenter(), part)


def test_masks_need_scores_for_each_pixel(tmp_path: Path) -> None:
    part = mask_part(tmp_path)
    with pytest.raises(InputError, match=r"not scores of classes and pixels: y \(1, 3\)"):
        evaluate.reference(lambda arrays: {"y": np.zeros((1, 3), np.float32)}, part)


def test_a_segmenter_that_is_always_wrong_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mIoU is 0\.00 %"):
        evaluate.reference(segmenter(lambda c: (c + 1) % 3), mask_part(tmp_path))


# -------------------------------------------------------------------------------------------- a real classifier


def cifar_resnet(path: Path) -> Any:
    """ResNet-20 for CIFAR-10 with parameter-free shortcuts (He et al. 2015, option A), from its checkpoint."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, inside: int, outside: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outside)
            self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outside)
            self.pad = (outside - inside) // 2

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
            if self.pad:
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
            return functional.relu(x + y)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
            self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
            self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
            self.linear = nn.Linear(64, 10)

        def forward(self, x: Any) -> Any:
            x = functional.relu(self.bn1(self.conv1(x)))
            return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))

    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    net = Net()
    net.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return net.eval()


@pytest.mark.slow
def test_the_preset_gives_a_real_net_its_known_accuracy(shared_data: Path, cifar10: Path, tmp_path: Path) -> None:
    """79.86 % on the 5,000 JPEG files that are here, the same as decoding and normalising them all by hand."""
    import torch

    net = cifar_resnet(shared_data / "models" / "resnet-cifar10" / "resnet20-12fca82f.th")
    inputs = (TensorSpec(name="x", shape=(1, 3, 32, 32), dtype="float32"),)

    def run(arrays: Mapping[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            return {"y": net(torch.from_numpy(arrays["x"])).numpy()}

    def data(preset: str, **options: Any) -> calibration.CalibrationSet:
        return calibration.load(
            calibration.load_preset(preset), inputs, data=cifar10 / "train", evaluation=cifar10 / "test", **options
        )

    files = sorted((cifar10 / "test").glob("*/*.jpg"))
    names = sorted({path.parent.name for path in files})
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) for path in files])
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    batch = (batch - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    with torch.inference_mode():
        chosen = torch.cat([net(batch[i : i + 250]).argmax(1) for i in range(0, len(batch), 250)]).numpy()
    by_hand = 100 * np.mean(chosen == [names.index(path.parent.name) for path in files])

    found = evaluate.reference(run, data("cifar10-imagenet-stats").evaluation).accuracy
    assert found.samples == len(files) == 5000
    assert found.value == pytest.approx(by_hand, abs=0.05)
    assert found.value == pytest.approx(79.86, abs=0.1)
    wrong = evaluate.reference(run, data("zero-to-one", evaluation_samples=1000).evaluation).accuracy
    assert wrong.value < 40  # the preset matters

    (tmp_path / "labels.txt").write_text("\n".join([*names[1:], names[0]]))
    with pytest.raises(InputError, match="with the classes in another order it would be"):
        evaluate.reference(
            run, data("cifar10-imagenet-stats", labels=tmp_path / "labels.txt", evaluation_samples=500).evaluation
        )
