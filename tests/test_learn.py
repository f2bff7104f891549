"""Learning what operators cost on a device: the grid, the fit, the profile, the session, and a build's estimates."""

from __future__ import annotations

import json
import math
import os
import stat
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgecompile import learn, profiles
from edgecompile import model as models
from edgecompile.errors import DeviceError, InputError
from edgecompile.learn import blocked, features, fit, grid, measuring, nets, profile_file, session, views
from edgecompile.learn.device import Facts, Found
from edgecompile.learn.features import Moving, Part, Weighted
from edgecompile.learn.predict import Predictor, cold_share, on_curve, weights_of
from edgecompile.learn.regression import nonnegative
from edgecompile.lower import ort_patterns
from edgecompile.profiles import Costs, DeviceProfile
from edgecompile.progress import Silent
from edgecompile.store import Store
from edgecompile.tables import OperatorKey, files, keys_of, timing
from edgecompile.tables.costs import output_shape
from edgecompile.transport.local import LocalTransport
from tests import zoo
from tests.net import Project
from tests.sshd import serve_known
from tests.test_cli import edgecompile

TILE = 8
RATES = {"pointwise": 40e3, "conv": 50e3, "depthwise": 12e3, "dense": 30e3, "product": 20e3}  # MACs a microsecond
CALL_US, INFERENCE_US = 1.5, 20.0
COLD_US = 150.0  # of a million weights from memory
FACTS = Facts(
    schema_version=1, device="Test Board 4", machine="aarch64", core="Cortex-A72", cores=4, memory_bytes=4 << 30,
    runtimes={"tflite": Found(package="ai_edge_litert", version="2.1")},
)  # fmt: skip


def part_us(part: Part) -> float:
    """A device with known rates, a staircase in the channels, and fixed costs."""
    if features.is_free(part):
        return 0.0
    if isinstance(part, Moving):
        return CALL_US + part.elements / 4e3
    columns = math.ceil(part.columns / TILE) * TILE
    macs = part.groups * part.rows * part.window * part.depth * columns
    # Short sums are inefficient everywhere: what a sum of rates cannot say, and the process over the points can.
    efficiency = 1.0 if part.family == "depthwise" else min(1.0, (part.depth * part.window / 64) ** 0.3)
    moved = part.groups * part.rows * (part.depth + part.columns)
    return CALL_US + macs / RATES[part.family] / efficiency + moved / 8e3


def operator_us(key: OperatorKey) -> float:
    part = views.alone(key, "tflite")
    return sum(map(part_us, features.parts(key))) if part is None else part_us(part)


def net_us(name: str) -> float:
    parts = views.view(nets.build(name), "tflite")
    weights = sum(map(weights_of, parts))
    cold = COLD_US * weights / 1e6 * cold_share(4 * weights)
    return INFERENCE_US + sum(map(part_us, parts)) + cold


@pytest.fixture(scope="module")
def measured() -> fit.Measured:
    rng = np.random.default_rng(0)
    return fit.Measured(
        runtime="tflite",
        precision="fp32",
        threads=1,
        package="ai_edge_litert",
        version="2.1",
        operators={key: operator_us(key) * float(np.exp(rng.normal(0, 0.03))) / 1e3 for key in grid.points()},
        cold={key: (operator_us(key) + COLD_US * math.prod(key.weight_shape) / 1e6) / 1e3 for key in grid.heavy()},
        nets={name: net_us(name) / 1e3 for name in nets.NAMES},
    )


@pytest.fixture(scope="module")
def learned(measured: fit.Measured) -> profiles.Learned:
    return fit.learn(measured)


@pytest.fixture(scope="module")
def profile(learned: profiles.Learned, measured: fit.Measured) -> DeviceProfile:
    tables = [session.LearnedTable(learned=learned, points=measured.operators)]
    return session.profile_of(FACTS, [learned], session.costs_of(tables))


@pytest.fixture
def file(profile: DeviceProfile, tmp_path: Path) -> Path:
    path = tmp_path / "board.toml"
    path.write_text(profile_file.text(profile, ["A board."]))
    return path


# --------------------------------------------------------------------------------------------------------- the grid


def test_every_point_of_the_grid_makes_a_graph() -> None:
    points = grid.points()
    assert len(points) == len(set(points)) > 400
    for key in points:
        files.onnx_model(key)


def test_every_beginning_of_the_grid_covers_the_families() -> None:
    for count in (fit.FEWEST_POINTS, 200):
        parts = [features.parts(key)[0] for key in grid.points()[:count]]
        found = Counter(part.family for part in parts if isinstance(part, Weighted))
        assert min(found[name] for name in ("pointwise", "conv", "depthwise")) >= count // 12
        assert found["dense"] >= 4
        kinds = {part.kind for part in parts if isinstance(part, Moving)}
        assert {"Add of two", "Mul by channel", "Sigmoid", "MaxPool 9/4"} <= kinds
    assert {"GlobalAveragePool", "Concat 2", "HardSwish", "ReduceMean maps", "Softmax"} <= kinds


def test_the_small_nets_are_whole_graphs_that_the_table_can_read() -> None:
    for name in nets.NAMES:
        keys = [key for _, key in keys_of(nets.build(name))]
        assert keys
        assert all(part for key in keys for part in features.parts(key))


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The channels in a block on this machine."""
    graph = optimized(files.onnx_model(grid._conv(32, 4, 8, kernel=(3, 3))), tmp_path_factory.mktemp("blocks"))
    made = next((node for node in graph.node if node.domain == "com.microsoft.nchwc" and node.op_type == "Conv"), None)
    if made is None:
        pytest.skip("ONNX Runtime's convolutions want no blocks of channels on this machine")
    weights = next(tensor for tensor in graph.initializer if tensor.name == made.input[1])
    return int(weights.dims[0])


def optimized(model: onnx.ModelProto, folder: Path) -> onnx.GraphProto:
    """The graph that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath).graph


@pytest.mark.parametrize("name", nets.NAMES)
def test_layouts_are_changed_where_onnx_runtime_changes_them(name: str, blocks: int, tmp_path: Path) -> None:
    model = nets.build(name)
    found = blocked.layouts(model, blocks)
    nodes = [node for node in optimized(model, tmp_path).node if node.domain == "com.microsoft.nchwc"]
    there = Counter(node.op_type for node in nodes)
    assert (len(found.into), len(found.out_of)) == (there["ReorderInput"], there["ReorderOutput"])
    assert len(found.resized) == there["Upsample"]
    assert len(found.added) == sum(node.op_type == "Conv" and len(node.input) == 4 for node in nodes)


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NAMES)
def test_layouts_of_published_nets_are_those_of_onnx_runtime(name: str, blocks: int, tmp_path: Path) -> None:
    source = zoo.export_onnx(zoo.build(name), zoo.input_shapes(name), tmp_path / "exported.onnx")
    prepared = onnx.load(str(models.load(str(source), tmp_path / "model").path))
    ort_patterns.arrange(prepared, "fp32")
    found = blocked.layouts(prepared, blocks)
    nodes = [node for node in optimized(prepared, tmp_path).node if node.domain == "com.microsoft.nchwc"]
    there = Counter(node.op_type for node in nodes)
    assert (len(found.into), len(found.out_of)) == (there["ReorderInput"], there["ReorderOutput"])


def test_what_only_onnx_runtime_does_is_measured_there_alone(tmp_path: Path) -> None:
    keys = [key for key in grid.points(float_onnxruntime=True) if key not in set(grid.points())]
    assert {key.op_type for key in keys} == {"ReorderInput", "ReorderOutput", "BlockedUpsample", "Conv"}
    assert {replace(key, activation="Relu") for key in grid.clamped()} <= set(grid.points(float_onnxruntime=True))
    alien = [files.onnx_model(key) for key in keys if key.op_type != "Conv"]
    made = files.lowered(alien[:2], runtime="tflite", precision="fp32", workdir=tmp_path)
    assert made == [None, None]


def test_what_a_clip_costs_more_than_a_relu_is_a_rate(measured: fit.Measured) -> None:
    known = dict(measured.operators)
    for key in grid.clamped():
        known[replace(key, activation="Relu")] = 0.1
        known[key] = 0.1 + 4e-8 * math.prod(output_shape(key))
    table = fit.learn(replace(measured, operators=known))
    assert on_curve(table.curves[features.CLAMP], 1e6) == pytest.approx(40.0, rel=0.01)
    parts = views.of_table(nets.build("inverted"), replace(table, runtime="onnxruntime"))
    assert sum(isinstance(part, Moving) and part.kind == features.CLAMP for part in parts) == 22
    bare = {key: 0.1 for key in known if key in set(grid.clamped()) or known[key] == 0.1}
    assert features.CLAMP not in fit.learn(replace(measured, operators={**known, **bare})).curves


def test_an_activation_that_no_kernel_computes_along_is_a_part_of_its_own() -> None:
    conv = next(key for key in grid.points() if key.op_type == "Conv")
    assert [type(part) for part in features.parts(replace(conv, activation="Clip"))] == [Weighted]
    main, gate = features.parts(replace(conv, activation="SiLU"))
    assert isinstance(main, Weighted)
    assert gate == Moving(kind="SiLU", plain="SiLU", elements=2.0 * main.rows * main.columns)


# ---------------------------------------------------------------------------------------------------------- the fit


def test_coefficients_are_found_and_none_is_negative() -> None:
    rng = np.random.default_rng(0)
    columns = rng.random((60, 4))
    found = nonnegative(columns, columns @ np.array([2.0, 0.0, 0.5, 0.0]) - 0.1 * columns[:, 1])
    assert found == pytest.approx([2.0, 0.0, 0.5, 0.0], abs=0.06)
    assert (found >= 0).all()


def test_a_device_with_known_rates_is_recovered(learned: profiles.Learned) -> None:
    assert learned.tile == TILE
    predictor, known = Predictor(learned), set(grid.points())
    for family in (grid._pointwise, grid._convolutions, grid._depthwise):
        others = [key for key in dict.fromkeys(family(77)) if key not in known][:80]
        found = predictor.operators_ms(others)
        errors = [abs(1e3 * found[key] / operator_us(key) - 1) for key in others]
        assert np.median(errors) < 0.1
    # Each net is predicted by what was fitted without it.
    assert learned.fit.median_error is not None
    assert learned.fit.median_error < 0.03
    assert all(predicted == pytest.approx(ms, rel=0.1) for name, ms, predicted in learned.nets if ms > 0.2)
    assert learned.fit.rows == len(learned.nets) == len(nets.NAMES)


def test_fixed_costs_are_told(learned: profiles.Learned) -> None:
    assert learned.corrections.inference_us == pytest.approx(INFERENCE_US, rel=0.8)
    assert learned.cold_us == pytest.approx(COLD_US, rel=0.4)
    smallest = min(us for curve in learned.curves.values() for _, us in curve)
    assert smallest == pytest.approx(CALL_US, rel=0.5)


@pytest.mark.parametrize("tile", [1, 4, 8, 16, 32])
def test_the_tile_is_what_the_staircase_shows(tile: int) -> None:
    rng = np.random.default_rng(tile)
    channels = [key.out_channels for key in grid.staircase()]
    steps = [(float(n), (5 + math.ceil(n / tile) * tile) * float(np.exp(rng.normal(0, 0.005)))) for n in channels]
    assert fit.tile_of(steps) == tile


def test_a_disturbed_point_does_not_bend_its_neighbours(measured: fit.Measured) -> None:
    operators = dict(measured.operators)
    victims = [key for key in operators if key.op_type == "Conv" and key.groups == 1][40:160:20]
    for key in victims:
        operators[key] = 6 * (operators[key] or 0.0)
    found = fit.learn(replace(measured, operators=operators))
    predictor = Predictor(found)
    others = [key for key in dict.fromkeys(grid._pointwise(77)) if key not in operators][:80]
    errors = [abs(1e3 * ms / operator_us(key) - 1) for key, ms in predictor.operators_ms(others).items()]
    assert np.median(errors) < 0.08


def test_too_few_points_are_no_table(measured: fit.Measured) -> None:
    few = dict(list(measured.operators.items())[:30])
    with pytest.raises(InputError, match="30 operators of tflite fp32") as caught:
        fit.learn(replace(measured, operators=few))
    assert "--time-limit" in (caught.value.remedy or "")


def test_curves_go_on_beyond_their_ends() -> None:
    curve = ((100.0, 2.0), (1000.0, 8.0), (10000.0, 60.0))
    assert on_curve(curve, 1000.0) == pytest.approx(8.0)
    assert 2.0 < on_curve(curve, 300.0) < 8.0
    assert on_curve(curve, 1e6) == pytest.approx(6000.0)
    assert 0.0 < on_curve(curve, 1.0) < 2.0


# ------------------------------------------------------------------------------------------------------ the profile


def test_a_learned_profile_is_read_back_as_it_was(profile: DeviceProfile, file: Path) -> None:
    loaded = profiles.load(str(file))
    (mine,), (theirs,) = profile.learned, loaded.learned
    assert replace(loaded, name=profile.name, learned=()) == replace(profile, learned=())
    assert replace(theirs, families=mine.families, curves=mine.curves) == mine
    assert list(theirs.curves) == list(mine.curves)
    parts = views.view(nets.build("gated"), "tflite")
    assert Predictor(theirs).net_ms(parts, 0) == pytest.approx(Predictor(mine).net_ms(parts, 0), rel=1e-3)
    again = profile_file.text(loaded, ["A board."])
    assert again == file.read_text()


@pytest.mark.parametrize(
    ("line", "wrong", "key", "nearest"),
    [
        ("tile = 8", "tyle = 8", "learned.tyle", "learned.tile"),
        ("compute = ", "computes = ", "learned.corrections.computes", "learned.corrections.compute"),
        ("[learned.families.conv]", "[learned.families.conf]", "learned.families.conf", "learned.families.conv"),
        ("amplitude = ", "amplitud = ", "learned.families.pointwise.amplitud", "learned.families.pointwise.amplitude"),
    ],
)
def test_an_unknown_key_names_the_file_the_key_and_the_nearest(
    file: Path, line: str, wrong: str, key: str, nearest: str
) -> None:
    text = file.read_text()
    at = text.index(line, text.index("[[learned]]"))
    file.write_text(text[:at] + wrong + text[at + len(line) :])
    with pytest.raises(InputError, match=f"{file}: unknown key {key!r}") as caught:
        profiles.load(str(file))
    assert f"did you mean {nearest!r}" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("line", "wrong", "fault"),
    [
        ("scales = [", "scales = [1.0, ", "scales"),
        ("amplitude = ", "amplitude = -", "amplitude"),
        ("interval_factor = 1.", "interval_factor = 0.", "interval_factor"),
        ("points = [\n    [", "points = [\n    [-", "points"),
    ],
)
def test_a_learned_table_that_cannot_be_is_refused(file: Path, line: str, wrong: str, fault: str) -> None:
    text = file.read_text()
    at = text.index(line, text.index("[[learned]]"))
    file.write_text(text[:at] + wrong + text[at + len(line) :])
    with pytest.raises(InputError, match=fault):
        profiles.load(str(file))


def test_estimates_are_by_the_learned_table_and_say_so(profile: DeviceProfile, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "net.onnx"
    onnx.save(nets.build("gated"), str(path))
    arguments = {"runtime": "tflite", "precision": "fp32", "percentile": 50.0}
    found = learn.latency(path, profile, threads=1, **arguments)  # type: ignore[arg-type]
    assert found is not None
    assert (found.provenance, found.runs, found.environment) == ("estimated", 0, None)
    assert found.value_ms == pytest.approx(net_us("gated") / 1e3, rel=0.1)
    factor = profile.learned[0].fit.interval_factor
    assert found.ci_high_ms == pytest.approx(factor * found.value_ms)
    assert found.ci_low_ms == pytest.approx(found.value_ms / factor)
    half = learn.latency(path, profile, threads=1, **{**arguments, "precision": "fp16"})  # type: ignore[arg-type]
    assert half is not None
    assert half.value_ms == found.value_ms
    # Nothing was learned of two threads: the plain cost table has to do.
    assert learn.latency(path, profile, threads=2, **arguments) is None  # type: ignore[arg-type]
    assert profile.costs("tflite", "fp32") is not None


def test_the_search_times_operators_by_the_learned_table(profile: DeviceProfile) -> None:
    keys = [key for _, key in keys_of(nets.build("separable"))]
    found = learn.operator_times(keys, profile, runtime="tflite", precision="fp32", threads=1)
    assert found is not None
    assert set(found) == set(keys)
    convolutions = [key for key in keys if key.op_type == "Conv"]
    assert all(1e3 * found[key] == pytest.approx(operator_us(key), rel=0.35) for key in convolutions)
    assert learn.operator_times(keys, profile, runtime="onnxruntime", precision="fp32", threads=1) is None


def test_a_build_for_a_learned_device_is_predicted(project: Project, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = edgecompile(
        "build", project.model, "--target", file, "--budget-ms", "1000", "--runtime", "tflite", "--precision", "fp32",
        "--out", out, "--json",
    )  # fmt: skip
    assert done.code == 6, done.err
    (candidate,) = json.loads(done.out)["candidates"]
    found = candidate["measurement"]
    factor = profiles.load(str(file)).learned[0].fit.interval_factor
    assert (found["provenance"], found["device"]) == ("estimated", "board")
    assert found["ci_high_ms"] == pytest.approx(factor * found["value_ms"])
    assert "predicted" in candidate["verdict"]


# ------------------------------------------------------------------------------------------------------ the session


def timed_by_rates(counts: Counter[int], stop_after: int | None = None):  # type: ignore[no-untyped-def]
    """Instead of a machine: the times of `operator_us`, and who was asked for; stops as Ctrl-C does."""
    portions = 0

    def measure(
        keys: Sequence[OperatorKey], where: object, workdir: Path, transport: object
    ) -> dict[OperatorKey, timing.Timed]:
        nonlocal portions
        if portions == stop_after:
            raise KeyboardInterrupt
        portions += 1
        counts.update(map(hash, keys))
        return {key: timing.Timed(ms=operator_us(key) / 1e3) for key in keys}

    return measure


def test_an_interrupted_run_goes_on_and_repeats_no_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[int] = Counter()
    points = grid.points()[:200]
    with LocalTransport() as transport:
        where = measuring.Where(
            runtime="tflite", precision="fp32", threads=1, transport=transport, store=Store(tmp_path), fingerprint="f"
        )
        monkeypatch.setattr(timing, "_measure", timed_by_rates(asked, stop_after=2))
        with pytest.raises(KeyboardInterrupt):
            measuring.operators(points, where, Silent(), until=math.inf)
        kept = len(asked)
        assert 0 < kept < len(points)
        monkeypatch.setattr(timing, "_measure", timed_by_rates(asked))
        found = measuring.operators(points, where, Silent(), until=math.inf)
    assert list(found) == list(points)
    assert len(asked) == len(points)
    assert set(asked.values()) == {1}


def test_a_time_limit_takes_the_beginning_of_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_measure", timed_by_rates(Counter()))
    with LocalTransport() as transport:
        where = measuring.Where(
            runtime="tflite", precision="fp32", threads=1, transport=transport, store=Store(tmp_path), fingerprint="f"
        )
        found = measuring.operators(grid.points(), where, Silent(), until=-math.inf)
    assert 0 < len(found) < 64
    assert list(found) == list(grid.points()[: len(found)])


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid and nets that are measured in seconds."""
    monkeypatch.setenv("EDGECOMPILE_CACHE", str(tmp_path / "cache"))
    keys = [key for key in grid.points() if math.prod(key.in_shape) < 30_000]
    monkeypatch.setattr(grid, "points", lambda seed=0, **_: (*grid.staircase()[:4], *keys[:44]))
    monkeypatch.setattr(fit, "FEWEST_POINTS", 30)
    monkeypatch.setattr(fit, "_FEWEST_OF_FAMILY", 4)
    monkeypatch.setattr(nets, "NAMES", ("plain", "narrow", "separable", "fire", "heads", "rows"))
    monkeypatch.chdir(tmp_path)


def test_a_device_is_learned_over_ssh(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_known(tmp_path, monkeypatch) as server:
        request = learn.LearnRequest(
            on=f"ssh://{server.user}@127.0.0.1:{server.port}", out=tmp_path / "board.toml", runtimes=("onnxruntime",),
            precisions=("fp32",), time_limit_s=30.0,
        )  # fmt: skip
        result = learn.learn(request, Silent())
        assert server.left() == []
        # All is there already: nothing is measured, and a profile that is there is not replaced unasked.
        monkeypatch.setattr(timing, "_measure", None)
        with pytest.raises(InputError, match="already") as caught:
            learn.learn(request, Silent())
        assert "--force" in (caught.value.remedy or "")
        again = learn.learn(replace(request, force=True), Silent())
    assert again.profile.learned == result.profile.learned
    loaded = profiles.load(str(result.path))
    (table,) = loaded.learned
    assert (table.runtime, table.package, table.threads) == ("onnxruntime", "onnxruntime", 1)
    assert table.points == 48
    assert len(table.nets) == 6
    assert loaded.cores == os.cpu_count()


def test_too_little_time_is_an_error_that_says_what_to_do(small: None, tmp_path: Path) -> None:
    request = learn.LearnRequest(runtimes=("tflite",), precisions=("fp32",), time_limit_s=0.01)
    with pytest.raises(InputError, match="24 operators of tflite fp32, 1 thread were measured") as caught:
        learn.learn(request, Silent())
    assert "goes on from there" in (caught.value.remedy or "")
    assert list(tmp_path.glob("*.toml")) == []


def test_a_device_without_a_runtime_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    bare.chmod(bare.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(LocalTransport, "python", str(bare))
    monkeypatch.setenv("EDGECOMPILE_CACHE", str(tmp_path / "cache"))
    for runtimes in ((), ("onnxruntime",)):
        request = learn.LearnRequest(out=tmp_path / "out.toml", runtimes=runtimes)  # type: ignore[arg-type]
        with pytest.raises(DeviceError, match="has no runtime for") as caught:
            learn.learn(request, Silent())
        assert "pip install" in (caught.value.remedy or "")
    assert not (tmp_path / "out.toml").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "taken.toml"], "there is a profile taken.toml already"),
        (["--out", "board"], "must end in .toml"),
        (["--out", "absent/board.toml"], "there is no folder absent"),
        (["--threads", "4096"], "4096 threads were asked for"),
        (["--on", "nowhere"], "no way to a machine"),
        (["--on", "lab:pi4"], "an emulated Cortex-A72 has no latency"),
        (["--time-limit", "0"], "Invalid value for '--time-limit'"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "taken.toml").write_text("")
    done = edgecompile("device", "learn", *arguments, cwd=tmp_path, env={"EDGECOMPILE_CACHE": str(tmp_path / "cache")})
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "cache").exists()  # no board was fetched or started for it


@pytest.mark.parametrize(
    ("device", "name"),
    [("Raspberry Pi 4 Model B Rev 1.4", "raspberry-pi-4-model-b-rev-1-4"), ("../../x", "x"), ("\u2603", "device")],
)
def test_a_profile_is_named_after_its_device(device: str, name: str) -> None:
    assert session.name_of(replace(FACTS, device=device)) == name


def test_a_machine_that_profiles_do_not_know_is_refused() -> None:
    with pytest.raises(DeviceError, match="armv7l"):
        session.refuse_unusable(replace(FACTS, machine="armv7l"), learn.LearnRequest())


def test_threads_set_the_scaling_of_the_plain_table(learned: profiles.Learned, measured: fit.Measured) -> None:
    twice = fit.learn(
        replace(
            measured, threads=4,
            operators={key: None if ms is None else ms / 2 for key, ms in measured.operators.items()},
            nets={name: ms / 2 for name, ms in measured.nets.items()},
        )
    )  # fmt: skip
    tables = [session.LearnedTable(learned=one, points=measured.operators) for one in (learned, twice)]
    table = session.costs_of(tables).tflite.fp32
    assert table is not None
    assert table.compute_scaling == pytest.approx(0.5, abs=0.02)
    profile = session.profile_of(FACTS, [learned, twice], Costs())
    assert profile.learned_for("tflite", "fp32", 4) == twice
    assert profile.threads == 1
