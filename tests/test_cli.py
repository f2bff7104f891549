"""The command line as a user meets it: real builds of a tiny net on this machine, and every refusal."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgecompile import bundle
from edgecompile.cli.common import show_error
from edgecompile.errors import DeviceError
from tests.net import Project

#: Short, and taking what a machine that is busy with other tests gives.
QUICK = (
    "--warmup-seconds", "0.1", "--min-runs", "20", "--min-seconds", "0.2", "--threads", "1", "--accept-throttled",
)  # fmt: skip
GENEROUS = ("--budget-ms", "1000")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    code: int
    out: str
    err: str


def edgecompile(*arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> Done:
    import os

    done = subprocess.run(
        [sys.executable, "-m", "edgecompile", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "80", **(env or {})},
        check=False,
        timeout=300,
    )
    return Done(code=done.returncode, out=done.stdout, err=done.stderr)


@pytest.fixture(scope="session")
def built(project: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    out = tmp_path_factory.mktemp("built") / "out"
    done = edgecompile(
        "build", project.model, "--target", "x86", *GENEROUS, *QUICK, "--data", project.train,
        "--eval", project.test, "--max-drop", "5", "--out", out,
        "--model-license", "MIT", "--model-source", "https://example.org/net",
    )  # fmt: skip
    return done, out


# ------------------------------------------------------------------------------------------------- the main job


def test_build_writes_a_bundle_whose_budget_was_met_by_measurement(built: tuple[Done, Path]) -> None:
    done, out = built
    assert done.code == 0, done.err
    assert "Budget met (measured)" in done.out
    assert "Traceback" not in done.err
    manifest = bundle.read(out).manifest
    assert manifest.verdict.status == "met"
    assert manifest.measurement.provenance == "measured"
    assert manifest.measurement.ci_high_ms <= 1000
    assert {c.label.split("-rr")[0] for c in manifest.candidates} >= {
        "tflite-fp32", "tflite-int8", "onnxruntime-fp32", "onnxruntime-int8",
    }  # fmt: skip
    assert all(c.failure is None for c in manifest.candidates)
    assert manifest.accuracy is not None
    assert manifest.accuracy.metric == "top-1"
    assert manifest.accuracy.samples == 300
    assert manifest.original_accuracy is not None
    assert manifest.original_accuracy.value > 90


def test_the_manifest_fits_its_schema(built: tuple[Done, Path]) -> None:
    import jsonschema

    schema = json.loads(Path(bundle.__file__).with_name("manifest.schema.json").read_text())
    document = json.loads((built[1] / "manifest.json").read_text())
    jsonschema.validate(document, schema)
    document["plan"]["precision"] = "int3"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)


def test_the_manifest_records_where_each_option_came_from(built: tuple[Done, Path]) -> None:
    manifest = bundle.read(built[1]).manifest
    options = {option.name: option for option in manifest.options}
    assert (options["max_drop"].value, options["max_drop"].origin) == ("5.0", "command line")
    assert options["seed"].origin == "default"
    assert manifest.model.license == "MIT"
    assert manifest.model.source_url == "https://example.org/net"


def test_the_bundle_holds_what_an_app_needs(built: tuple[Done, Path]) -> None:
    opened = bundle.read(built[1])
    assert opened.file("model").is_file()
    assert (built[1] / "runner" / "runner.py").is_file()
    golden = np.load(opened.file("golden inputs"))
    port = opened.manifest.inputs[0]
    assert golden[port.spec.name].shape[1:] == port.spec.shape
    listed = {file.path for file in opened.manifest.files} | {"manifest.json"}
    assert listed == {str(p.relative_to(built[1])) for p in built[1].rglob("*") if p.is_file()}


def test_images_lie_as_in_the_model_on_request(project: Project, tmp_path: Path) -> None:
    done = edgecompile(
        "build", project.model, "--target", "x86", *GENEROUS, *QUICK, "--runtime", "tflite", "--precision", "fp32",
        "--layout", "nchw", "--out", tmp_path / "o",
    )  # fmt: skip
    assert done.code == 0, done.err
    manifest = bundle.read(tmp_path / "o").manifest
    (port,) = manifest.inputs
    assert (port.permutation, port.spec.shape[1]) == (None, 3)
    assert manifest.plan.input_layout == "nchw"
    assert {o.name: (o.value, o.origin) for o in manifest.options}["layout"] == ("nchw", "command line")
    assert edgecompile("verify", tmp_path / "o").code == 0


def test_nothing_is_left_beside_the_bundle_but_the_work_folder(built: tuple[Done, Path]) -> None:
    assert sorted(p.name for p in built[1].parent.iterdir()) == ["out", "out.work"]


def test_the_bundles_own_runner_measures_it(built: tuple[Done, Path]) -> None:
    manifest = bundle.read(built[1]).manifest
    done = subprocess.run(
        [sys.executable, "runner/runner.py", "--model", f"{manifest.runtime}:{manifest.model_file.path}",
         "--warmup-s", "0.1", "--min-runs", "5", "--min-seconds", "0.1", "--json"],
        cwd=built[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "latenc" in done.stdout


def test_the_same_plan_gives_the_same_bytes(built: tuple[Done, Path], project: Project, tmp_path: Path) -> None:
    done = edgecompile(
        "build", project.model, "--target", "x86", *GENEROUS, *QUICK, "--data", project.train, "--out", tmp_path / "o",
        "--eval", project.test,
    )  # fmt: skip
    assert done.code == 0, done.err
    first, second = bundle.read(built[1]).manifest, bundle.read(tmp_path / "o").manifest
    hashes = [{c.name: c.read_bytes() for c in (p / "..").resolve().glob("*.work/lower/*/*.tflite")} for p in
              (built[1], tmp_path / "o")]  # fmt: skip
    assert hashes[0]
    assert hashes[0] == hashes[1]
    if first.plan == second.plan:
        assert first.model_file.sha256 == second.model_file.sha256


def test_a_second_build_repeats_no_measurement(built: tuple[Done, Path], project: Project) -> None:
    before = bundle.read(built[1]).manifest
    done = edgecompile(
        "build", project.model, "--target", "x86", *GENEROUS, *QUICK, "--data", project.train,
        "--eval", project.test, "--max-drop", "5", "--out", built[1], "--force",
    )  # fmt: skip
    assert done.code == 0, done.err
    after = bundle.read(built[1]).manifest
    assert [c.measurement for c in after.candidates] == [c.measurement for c in before.candidates]


def test_verify_passes_and_notices_a_changed_byte(built: tuple[Done, Path], tmp_path: Path) -> None:
    import shutil

    assert edgecompile("verify", built[1]).code == 0
    copy = tmp_path / "copy"
    shutil.copytree(built[1], copy)
    model = bundle.read(copy).file("model")
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    done = edgecompile("verify", copy)
    assert done.code == 3
    assert "another SHA-256" in done.err


def test_verify_runs_the_golden_vectors(built: tuple[Done, Path], tmp_path: Path) -> None:
    """A bundle whose hashes agree but whose file computes something else must not pass."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(built[1], copy)
    path = copy / "golden" / "outputs.npz"
    arrays = dict(np.load(path))
    np.savez(path, **{name: array[::-1] for name, array in arrays.items()})
    document = json.loads((copy / "manifest.json").read_text())
    from edgecompile.types import file_sha256

    for file in document["files"]:
        if file["path"] == "golden/outputs.npz":
            file["sha256"] = file_sha256(path)
    (copy / "manifest.json").write_text(json.dumps(document))
    done = edgecompile("verify", copy)
    assert done.code == 3
    assert "differs from the golden vector" in done.err


def test_no_command_runs_the_runner_of_a_bundle_from_elsewhere(built: tuple[Done, Path], tmp_path: Path) -> None:
    import shutil

    from edgecompile.types import file_sha256

    copy, ran = tmp_path / "copy", tmp_path / "ran"
    shutil.copytree(built[1], copy)
    document = json.loads((copy / "manifest.json").read_text())
    for file in document["files"]:
        if file["role"] == "runner":
            (copy / file["path"]).write_text(f"open({str(ran)!r}, 'w')\n")
            file["sha256"] = file_sha256(copy / file["path"])
    (copy / "manifest.json").write_text(json.dumps(document))
    assert edgecompile("verify", copy).code == 0
    assert edgecompile("bench", copy, *QUICK).code == 0
    assert not ran.exists()


def test_verify_refuses_a_manifest_that_points_outside(built: tuple[Done, Path], tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(built[1], copy)
    document = json.loads((copy / "manifest.json").read_text())
    document["files"][0]["path"] = "../../etc/passwd"
    (copy / "manifest.json").write_text(json.dumps(document))
    done = edgecompile("verify", copy)
    assert done.code == 2
    assert "outside the bundle" in done.err


def test_bench_measures_a_bundle_and_files_with_ratios(built: tuple[Done, Path], project: Project) -> None:
    done = edgecompile("bench", built[1], project.model, *QUICK, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert len(document["measurements"]) == 2
    assert document["ratios"][0] is None
    ratio = document["ratios"][1]
    assert ratio["ci_low"] <= ratio["value"] <= ratio["ci_high"]
    assert all(m["runs"] >= 20 and m["provenance"] == "measured" for m in document["measurements"])


def test_bench_says_when_a_budget_is_missed(project: Project) -> None:
    assert edgecompile("bench", project.model, *QUICK, "--budget-ms", "0.0001").code == 3


# --------------------------------------------------------------------------------------------- other verdicts


def test_another_device_is_only_predicted(project: Project, tmp_path: Path) -> None:
    done = edgecompile("build", project.model, "--target", "pi4", "--data", project.train, "--out", tmp_path / "out")
    assert done.code == 6, done.err
    assert "predicted (not measured)" in done.out
    assert "met (measured)" not in done.out
    manifest = bundle.read(tmp_path / "out").manifest
    assert manifest.measurement.provenance == "estimated"
    assert manifest.measurement.runs == 0
    assert manifest.runtime == "tflite"
    assert manifest.budget.latency_ms == 33
    options = {option.name: option for option in manifest.options}
    assert (options["budget_ms"].value, options["budget_ms"].origin) == ("33.0", "profile")
    assert options["threads"].origin == "profile"


def test_jetson_gets_a_checked_fp16_onnx(project: Project, tmp_path: Path) -> None:
    done = edgecompile(
        "build", project.model, "--target", "jetson", "--data", project.train, "--precision", "fp16",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 6, done.err
    manifest = bundle.read(tmp_path / "out").manifest
    assert (manifest.runtime, manifest.precision) == ("tensorrt", "fp16")
    assert manifest.model_file.path == "model.onnx"


def test_a_budget_nobody_meets_still_writes_the_best_bundle(project: Project, tmp_path: Path) -> None:
    done = edgecompile(
        "build", project.model, "--target", "x86", "--budget-ms", "0.0001", *QUICK, "--data", project.train,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 3, done.err
    assert "Budget not met" in done.out
    assert "too slow" in done.out
    assert "what would help" in done.out
    assert bundle.read(tmp_path / "out").manifest.verdict.status == "not met"


def test_unlabelled_data_gives_agreement(project: Project, tmp_path: Path) -> None:
    done = edgecompile(
        "build", project.model, "--target", "x86", *GENEROUS, *QUICK, "--data", project.flat, "--runtime", "tflite",
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["accuracy"]["metric"] == "agreement"
    parts = document["data"]
    assert parts["calibration"] + parts["validation"] + parts["evaluation"] <= 400
    assert parts["evaluation_from"] == "held back from --data"


def test_without_data_there_is_no_int8_and_no_accuracy(project: Project, tmp_path: Path) -> None:
    done = edgecompile(
        "build", project.model, "--target", "x86", *GENEROUS, *QUICK, "--out", tmp_path / "out", "--json"
    )
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["accuracy"] is None
    assert all(c["plan"]["precision"] != "int8" for c in document["candidates"])


def test_int8_inputs_and_outputs_on_request(project: Project, tmp_path: Path) -> None:
    done = edgecompile(
        "build", project.model, "--target", "x86", *GENEROUS, *QUICK, "--data", project.train, "--precision", "int8",
        "--runtime", "tflite", "--io", "int8", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0, done.err
    manifest = bundle.read(tmp_path / "out").manifest
    assert manifest.inputs[0].spec.dtype == "int8"
    assert manifest.outputs[0].spec.dtype == "int8"
    assert manifest.inputs[0].spec.quantization is not None
    assert edgecompile("verify", tmp_path / "out").code == 0


def test_dry_run_writes_nothing(project: Project, tmp_path: Path) -> None:
    done = edgecompile(
        "build", project.model, "--target", "pi4", "--data", project.train, "--dry-run", "--out", tmp_path / "out"
    )
    assert done.code == 0, done.err
    assert "would try" in done.out
    assert "estimated ms" in done.out
    assert "Nothing was written" in done.out
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("out")] == []


# --------------------------------------------------------------------------------------------- project files


def test_init_then_build(project: Project, tmp_path: Path) -> None:
    done = edgecompile(
        "init", "--model", str(project.model), "--data", str(project.train), "--target", "pi4", "--target", "x86",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    done = edgecompile("build", "--target", "pi4", cwd=tmp_path)
    assert done.code == 6, done.err
    options = {o.name: o for o in bundle.read(tmp_path / "out" / "pi4").manifest.options}
    assert options["model"].origin == "edgecompile.toml"
    assert options["target"].origin == "command line"
    assert options["budget_ms"].origin == "edgecompile.toml"


def test_init_does_not_overwrite(tmp_path: Path) -> None:
    (tmp_path / "edgecompile.toml").write_text("mine")
    assert edgecompile("init", cwd=tmp_path).code == 2
    assert (tmp_path / "edgecompile.toml").read_text() == "mine"


def test_several_targets_from_the_project_file(project: Project, tmp_path: Path) -> None:
    (tmp_path / "edgecompile.toml").write_text(
        f'model = "{project.model}"\ndata = "{project.train}"\ntarget = ["raspberry-pi-4", "pi5"]\nmax_drop = 9\n'
        "input_shape = [1, 3, 16, 16]\n"
        "[targets.pi4]\nbudget_ms = 77\n"
    )
    done = edgecompile("build", "--max-drop", "8", cwd=tmp_path)
    assert done.code == 6, done.err
    assert "exit code" in done.out
    assert done.out.count("predicted (not measured)") == 4, "with each target, and once more in the table at the end"
    pi4 = bundle.read(tmp_path / "out" / "raspberry-pi-4").manifest
    pi5 = bundle.read(tmp_path / "out" / "pi5").manifest
    assert pi4.budget.latency_ms == 77, "the table is found by the device's alias"
    assert pi5.budget.latency_ms == 33
    assert pi4.budget.max_drop == 8, "the command line wins"


def test_of_budget_and_use_case_the_nearer_one_wins(project: Project, tmp_path: Path) -> None:
    (tmp_path / "edgecompile.toml").write_text(
        f'model = "{project.model}"\ntarget = ["pi4", "pi5"]\nuse_case = "search"\n[targets.pi4]\nbudget_ms = 7\n'
    )

    def budgets(*arguments: str) -> list[float]:
        done = edgecompile("build", "--dry-run", "--json", *arguments, cwd=tmp_path)
        assert done.code == 0, done.err
        return [plan["budget"]["latency_ms"] for plan in json.loads(done.out)]

    assert budgets() == [7, 50], "a device's own table before the common part"
    assert budgets("--use-case", "voice") == [100, 100], "the command line before both"
    refused(2, "both set the budget", "build", "--budget-ms", "3", "--use-case", "voice", cwd=tmp_path)


def test_a_profile_from_a_file_names_the_bundles_folder(project: Project, tmp_path: Path) -> None:
    board = tmp_path / "boards" / "my-board.toml"
    board.parent.mkdir()
    board.write_text((Path(__file__).parents[1] / "device_profiles" / "raspberry-pi-4.toml").read_text())
    done = edgecompile("build", project.model, "--target", board, "--precision", "fp32", cwd=tmp_path)
    assert done.code == 6, done.err
    assert bundle.read(tmp_path / "out" / "my-board").manifest.target == "my-board"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("trust = true", "cannot be set in a file"),
        ("dry_run = true", "give --dry-run on the command line"),
        ("budgt_ms = 3", "did you mean 'budget_ms'"),
        ('budget_ms = "soon"', "budget_ms"),
        ("budget_ms = true", "does not fit"),
        ("force = 3", "does not fit"),
        ('precision = ["int3"]', "int3"),
        ("model = ", "cannot read"),
    ],
)
def test_a_wrong_project_file_is_one_clear_error(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "edgecompile.toml").write_text(text + "\n")
    done = edgecompile("build", "--target", "x86", cwd=tmp_path)
    assert done.code == 2
    assert word in done.err
    assert "edgecompile.toml" in done.err
    assert "Traceback" not in done.err


# ------------------------------------------------------------------------------------------------- bad input


def refused(code: int, word: str, *arguments: str | Path, cwd: Path | None = None) -> Done:
    done = edgecompile(*arguments, cwd=cwd)
    assert done.code == code, (done.code, done.out, done.err)
    assert word in done.err, done.err
    assert "Traceback" not in done.err
    return done


def build_arguments(project: Project, out: Path, **changes: str | Path) -> Sequence[str | Path]:
    options: dict[str, str | Path] = {"--target": "x86", "--data": project.train, "--out": out}
    options |= {f"--{key.replace('_', '-')}": value for key, value in changes.items()}
    return [part for pair in options.items() for part in pair]


def test_an_unknown_target_suggests_the_nearest(project: Project, tmp_path: Path) -> None:
    refused(2, "did you mean 'pi4'", "build", project.model, *build_arguments(project, tmp_path / "o", target="pi44"))


def test_an_existing_output_is_refused(project: Project, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    refused(2, "--force", "build", project.model, *build_arguments(project, tmp_path / "o"))


def test_no_model_and_no_target(tmp_path: Path, project: Project) -> None:
    refused(2, "no target", "build", project.model, cwd=tmp_path)
    refused(2, "no model", "build", "--target", "x86", cwd=tmp_path)


def test_a_missing_model(project: Project, tmp_path: Path) -> None:
    refused(2, "nowhere.onnx", "build", "nowhere.onnx", *build_arguments(project, tmp_path / "o"))


def test_not_a_model(project: Project, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"this is no model" * 50)
    refused(2, "bad.onnx", "build", bad, *build_arguments(project, tmp_path / "o"))


def test_a_truncated_model(project: Project, tmp_path: Path) -> None:
    bad = tmp_path / "short.onnx"
    bad.write_bytes(project.model.read_bytes()[:-3000])
    refused(2, "short.onnx", "build", bad, *build_arguments(project, tmp_path / "o"))


def test_an_unknown_operator_is_exit_5(project: Project, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(project.model)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type, relu.name = "FancyRelu", "the_fancy_one"
    onnx.save(model, tmp_path / "fancy.onnx")
    done = refused(5, "FancyRelu", "build", tmp_path / "fancy.onnx", *build_arguments(project, tmp_path / "o"))
    assert "the_fancy_one" in done.err


def test_data_of_another_shape(project: Project, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=np.zeros((10, 3, 8, 8), np.float32))
    done = refused(
        2, "(10, 3, 8, 8)", "build", project.model, *build_arguments(project, tmp_path / "o", data=tmp_path / "d.npz")
    )
    assert "16" in done.err


def test_an_empty_data_folder(project: Project, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    arguments = build_arguments(project, tmp_path / "o", data=tmp_path / "photos", preset="zero-to-one")
    refused(2, "photos", "build", project.model, *arguments)


def test_wrong_option_values_are_usage_errors(project: Project, tmp_path: Path) -> None:
    refused(2, "--budget-ms", "build", project.model, *build_arguments(project, tmp_path / "o", budget_ms="-3"))
    refused(2, "shape", "build", project.model, *build_arguments(project, tmp_path / "o", input_shape="1,a"))
    refused(2, "use-case", "build", project.model, *build_arguments(project, tmp_path / "o", use_case="games"))


def test_an_input_shape_that_the_model_does_not_have(project: Project, tmp_path: Path) -> None:
    arguments = build_arguments(project, tmp_path / "o", input_shape="1,3,8,8")
    done = refused(2, "--input-shape says [1, 3, 8, 8]", "build", project.model, *arguments)
    assert "[1, 3, 16, 16]" in done.err
    assert not (tmp_path / "o.work").exists(), "a mistake leaves nothing behind"


class _Code:
    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("import pathlib; pathlib.Path('ran').touch()",)


def test_weights_that_do_not_fit_or_hold_code(project: Project, tmp_path: Path) -> None:
    import torch

    (tmp_path / "mynet.py").write_text("from torch import nn\ndef make(): return nn.Conv2d(3, 4, 3)\n")
    torch.save({"weight": torch.zeros(4, 3, 3, 3), "extra": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save({"state_dict": {"weight": _Code()}}, tmp_path / "code.pth")
    common = ("build", "mynet:make", "--trust", "--input-shape", "1,3,16,16", "--target", "pi4", "--weights")
    done = refused(2, "1 missing: bias", *common, "other.pth", cwd=tmp_path)
    assert "1 unexpected: extra" in done.err
    refused(2, "nothing of it was run", *common, "code.pth", cwd=tmp_path)
    refused(2, "--trust", *(a for a in (*common, "other.pth") if a != "--trust"), cwd=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_corrupt_images_among_good_ones(project: Project, tmp_path: Path) -> None:
    """Up to 5 % are skipped and counted in the manifest; more are an error."""
    from PIL import Image

    photos = tmp_path / "photos"
    photos.mkdir()
    generator = np.random.default_rng(0)
    for number in range(60):
        pixels = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number:02}.png")
    (photos / "03.png").write_bytes((photos / "03.png").read_bytes()[:100])
    arguments = build_arguments(project, tmp_path / "o", data=photos, preset="zero-to-one", target="pi4")
    done = edgecompile("build", project.model, *arguments, "--json")
    assert done.code == 6, done.err
    assert json.loads(done.out)["data"]["skipped"] == 1
    assert "03.png" in done.err
    for number in range(10, 16):
        (photos / f"{number}.png").write_bytes(b"no image")
    done = refused(2, "7 of 60 samples cannot be used", "build", project.model, *arguments, "--force")
    assert "up to 5 %" in done.err


def test_what_a_device_does_not_have(project: Project, tmp_path: Path) -> None:
    arguments = build_arguments(project, tmp_path / "o", runtime="tensorrt", precision="int8")
    refused(2, "x86-avx", "build", project.model, *arguments)
    done = refused(2, "--eval", "build", project.model, "--target", "x86", "--eval", project.test, cwd=tmp_path)
    assert "--data" in done.err


def test_several_targets_as_json_are_one_document(project: Project, tmp_path: Path) -> None:
    """A target that fails does not take the others' results away, and its code is the worst."""
    done = edgecompile(
        "build", project.model, "--target", "pi4", "--target", "nowhere", "--dry-run", "--json", cwd=tmp_path
    )
    assert done.code == 2, done.err
    built, failed = json.loads(done.out)
    assert built["target"] == "raspberry-pi-4"
    assert failed == {"target": "nowhere", "error": "unknown target 'nowhere'", "exit_code": 2}


def test_max_drop_without_data(project: Project, tmp_path: Path) -> None:
    refused(2, "no data", "build", project.model, "--target", "x86", "--max-drop", "1", "--out", tmp_path / "o")


@pytest.mark.parametrize("arguments", [("bench", "nowhere.tflite"), ("verify", "nowhere"), ("inspect", "nowhere.onnx")])
def test_missing_files(arguments: tuple[str, ...], tmp_path: Path) -> None:
    refused(2, "nowhere", *arguments, cwd=tmp_path)


def test_nothing_under_the_final_name_after_a_failure(project: Project, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=np.zeros((10, 3, 8, 8), np.float32))
    edgecompile("build", project.model, *build_arguments(project, tmp_path / "o", data=tmp_path / "d.npz"))
    assert not (tmp_path / "o").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".o.")]


# ------------------------------------------------------------------------------------------ the light package

#: Python reads this first in every process: as if ``edgecompile[build]`` were not installed.
LIGHT = """\
import importlib.metadata, sys
HEAVY = {"torch", "onnx", "onnxsim", "onnxscript", "onnxconverter_common", "onnx2tf", "tensorflow", "tf_keras",
         "ai_edge_quantizer", "safetensors", "PIL", "onnx_ir", "onnx_graphsurgeon"}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
version = importlib.metadata.version
def known(name):
    if name.replace("-", "_") in HEAVY:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = known
"""


@pytest.fixture
def light(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "light"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(LIGHT)
    return {"PYTHONPATH": f"{folder}:{Path(__file__).parents[1]}"}


def test_the_light_package_is_enough_for_what_exists(
    light: dict[str, str], built: tuple[Done, Path], project: Project
) -> None:
    tflite = next((built[1].parent / "out.work").rglob("*fp32*.tflite"))
    for arguments in (
        ("devices",), ("verify", built[1]), ("bench", built[1], project.model, *QUICK), ("inspect", tflite),
    ):  # fmt: skip
        done = edgecompile(*arguments, env=light)
        assert done.code == 0, done.err


def test_a_missing_extra_is_one_line_with_the_command(light: dict[str, str], project: Project, tmp_path: Path) -> None:
    for arguments in (
        ("inspect", project.model),
        ("build", project.model, "--target", "pi4", "--out", tmp_path / "o"),
        ("build", "net:make", "--trust", "--input-shape", "1,3,8,8", "--target", "pi4", "--out", tmp_path / "o"),
    ):
        done = edgecompile(*arguments, env=light)
        assert done.code == 2, done.err
        assert "is not installed" in done.err
        assert "pip install 'edgecompile[build]'" in done.err
        assert "Traceback" not in done.err


# --------------------------------------------------------------------------------------------- small commands


def test_devices_and_cache(built: tuple[Done, Path], tmp_path: Path) -> None:
    done = edgecompile("devices")
    assert done.code == 0
    assert "raspberry-pi-4" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    env = {"EDGECOMPILE_CACHE": str(tmp_path / "c")}
    assert edgecompile("cache", "list", env=env).code == 0
    assert edgecompile("cache", "clean", "--yes", env=env).code == 0


@pytest.mark.parametrize("as_json", [False, True])
def test_inspect_onnx_and_tflite(project: Project, built: tuple[Done, Path], as_json: bool) -> None:
    flags = ("--json",) if as_json else ()
    done = edgecompile("inspect", project.model, *flags)
    assert done.code == 0, done.err
    assert "Conv" in done.out
    tflite = next((built[1].parent / "out.work").rglob("*fp32*.tflite"))
    done = edgecompile("inspect", tflite, *flags)
    assert done.code == 0, done.err
    assert "CONV_2D" in done.out


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from edgecompile.__main__ import run; run(['--help']); "
        "heavy = {'torch', 'tensorflow', 'onnx', 'onnxruntime', 'paramiko', 'numpy', 'rich', 'ai_edge_litert'}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "build" in done.stdout
    # Not a benchmark: a bound ten times what it takes, so that a heavy import cannot slip in by another name.
    assert time.monotonic() - started < 3
    assert edgecompile("build", "--help").code == 0


def test_what_a_device_said_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(DeviceError("it said: \x1b]0;title\x07 \x1b[2J\rgone", remedy="two\nlines"))
    assert capsys.readouterr().err == "error: it said: ?]0;title? ?[2J?gone\n  what to do: two\nlines\n"
