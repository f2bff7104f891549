from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecompile import bundle
from edgecompile.errors import InputError, LimitNotMet

SCHEMA = Path(bundle.__file__).with_name("manifest.schema.json")
EXACT = bundle.Golden(samples=1, comparison="exact", tolerance=0.0)
RELATIVE = bundle.Golden(samples=1, comparison="relative", tolerance=1e-5)


def test_the_shipped_schema_is_that_of_the_dataclasses() -> None:
    assert json.loads(SCHEMA.read_text()) == json.loads(json.dumps(bundle.json_schema())), (
        "run: python -c 'import json; from edgecompile import bundle; "
        "print(json.dumps(bundle.json_schema(), indent=1, sort_keys=True))' > edgecompile/manifest.schema.json"
    )


@pytest.mark.parametrize("golden", [EXACT, RELATIVE])
def test_equal_outputs_pass(golden: bundle.Golden) -> None:
    outputs = {"y": np.array([[1, -2, 3]], dtype=np.int8)}
    assert bundle.compare_golden(golden, outputs, dict(outputs)) == 0.0


def test_one_step_fails_the_exact_comparison() -> None:
    want, have = np.array([1, -2, 3], dtype=np.int8), np.array([1, -1, 3], dtype=np.int8)
    with pytest.raises(LimitNotMet, match="'y' differs"):
        bundle.compare_golden(EXACT, {"y": want}, {"y": have})


def test_one_step_passes_with_another_runtime() -> None:
    golden = replace(EXACT, runtime="ai_edge_litert 2.1.0", steps={"y": 1.0, "z": 0.25})
    want = {"y": np.array([1, -2, 3], dtype=np.int8), "z": np.array([0.0, 1.0], dtype=np.float32)}
    have = {"y": np.array([1, -1, 3], dtype=np.int8), "z": np.array([0.25, 1.0], dtype=np.float32)}
    assert bundle.compare_golden(golden, want, have, runtime="ai_edge_litert 2.1.2") == 0.25
    for same in ("ai_edge_litert 2.1.0", None):
        with pytest.raises(LimitNotMet, match="'y' differs"):
            bundle.compare_golden(golden, want, have, runtime=same)
    have["z"][0] = 0.5
    with pytest.raises(LimitNotMet, match="one step of tflite_runtime"):
        bundle.compare_golden(golden, want, have, runtime="tflite_runtime 2.14.0")


def test_int8_differences_do_not_wrap_around() -> None:
    want, have = np.array([127, -128], dtype=np.int8), np.array([-128, -128], dtype=np.int8)
    with pytest.raises(LimitNotMet, match=r"1\.00e\+00 of its range"):
        bundle.compare_golden(RELATIVE, {"y": want}, {"y": have})


@pytest.mark.parametrize(
    ("have", "word"),
    [
        ({"z": np.zeros(3)}, "outputs"),
        ({"y": np.zeros(4)}, "shape"),
        ({"y": np.array([0.0, 1.0, np.nan])}, "not finite"),
        ({"y": np.array([0.0, 1.0, 2.001])}, "differs"),
    ],
)
def test_other_outputs_fail(have: dict[str, np.ndarray], word: str) -> None:
    with pytest.raises(LimitNotMet, match=word):
        bundle.compare_golden(RELATIVE, {"y": np.array([0.0, 1.0, 2.0])}, have)


def test_rounding_passes_the_relative_comparison() -> None:
    want = np.array([0.0, 1.0, 2.0])
    assert 0 < bundle.compare_golden(RELATIVE, {"y": want}, {"y": want + 1e-6}) < 1e-5


# -------------------------------------------------------------------------------------------- output folder


def test_an_output_that_exists_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match="exists") as caught:
        bundle.check_output(out, force=False)
    assert "--force" in str(caught.value.remedy)
    bundle.check_output(out, force=True)


def test_force_never_replaces_what_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="is not a bundle"):
        bundle.check_output(tmp_path / "photos", force=True)


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        bundle.check_output(tmp_path / "file" / "out", force=False)


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), bundle.BundleWriter(tmp_path / "out") as writer:
        writer.add_bytes("labels", b"cat\n", "labels.txt")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- reading


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a bundle"):
        bundle.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"schema_version": 2}', "schema version 2"),
        ('{"schema_version": 1}', "damaged"),
    ],
)
def test_a_damaged_manifest_is_an_input_error(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=word):
        bundle.read(tmp_path)
