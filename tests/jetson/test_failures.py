"""Why ``trtexec`` failed: the cause by its name, and no cause where there is only a warning."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompile.errors import DeviceError, UnsupportedModelError
from edgecompile.jetson.failures import Failure, Step, explain
from edgecompile.jetson.versions import Version
from tests.jetson import logs


def built(log: str, returncode: int = 1, version: Version | None = None) -> Failure:
    return explain(log, returncode=returncode, step="build", version=version)


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        (logs.OUT_OF_MEMORY, "memory"),
        (logs.NO_PLUGIN, "unsupported"),
        (logs.NO_PLUGIN_IN_IF, "unsupported"),
        (logs.NO_PLUGINS_10, "unsupported"),
        (logs.CUDA_NOT_READY, "cuda"),
        (logs.OTHER_LIBRARY, "engine version"),
        (logs.OTHER_SERIALIZATION, "engine version"),
        (logs.OTHER_DEVICE, "engine device"),
    ],
)
def test_published_failures(log: str, kind: str) -> None:
    for text in (log, logs.HARMLESS + log, log.replace("\n", "\r\n"), log.replace("[E]", "\x1b[31m[E]\x1b[0m")):
        assert built(text).kind == kind


def test_out_of_memory_says_where_and_how_much() -> None:
    build = built(logs.OUT_OF_MEMORY)
    assert build.message == "the board ran out of memory while building the engine (it wanted 14768 MiB at once)"
    assert "lower the workspace" in build.remedy
    assert "swap" in build.remedy
    run = explain(logs.OUT_OF_MEMORY, returncode=1, step="run")
    assert "while running the engine" in run.message
    assert "workspace" not in run.remedy
    assert type(run.error()) is DeviceError


def test_an_operator_without_a_name_in_the_log() -> None:
    failure = built(logs.NO_PLUGIN, version=Version(8, 6, 1))
    assert failure.message == "TensorRT 8.6.1 has no operator or plugin for a node of the model"
    error = failure.error()
    assert isinstance(error, UnsupportedModelError)
    assert error.operators == ()


def test_the_operator_that_lacks_is_named_with_its_node() -> None:
    failure = built(logs.NO_PLUGIN_IN_IF)
    assert failure.operators == (("Round", "Preprocessor/cond"),)
    assert "Round (node Preprocessor/cond)" in failure.message
    assert "Resize_TRT" not in failure.message


def test_every_node_is_named() -> None:
    failure = built(logs.NO_PLUGINS_10)
    assert failure.operators == (("GridSample3D", "/motion/GridSample"), ("GridSample3D", "/GridSample"))
    many = "".join(f"In node {i} with name: n{i} and operator: Det (x): UNSUPPORTED_NODE: y\n" for i in range(9))
    assert built(many).message.endswith("Det (node n4) and 4 more")
    assert built("".join(many.splitlines(keepends=True)[:5])).message.endswith("Det (node n4)")


def test_a_node_that_the_parser_refuses() -> None:
    log = (
        '[07/15/2022-05:26:40] [E] [TRT] ModelImporter.cpp:791: While parsing node number 3 [Cast -> "y"]:\n'
        "[07/15/2022-05:26:40] [E] [TRT] ModelImporter.cpp:796: ERROR: ModelImporter.cpp:179 In function parseGraph:\n"
        "[6] Invalid Node - Cast_3\n"
        "[07/15/2022-05:26:40] [E] Failed to parse onnx file\n"
    )
    failure = built(log, version=Version(8, 2, 1))
    assert failure.kind == "unsupported"
    assert failure.operators == (("Cast", "y"),)
    assert failure.message.startswith("TensorRT 8.2.1 cannot read the model at Cast (node y): ")


def test_a_node_without_a_name_goes_by_its_output() -> None:
    log = logs.NO_PLUGIN_IN_IF.replace('\nname: "Preprocessor/cond"', "").replace(
        "723: --- End node ---", '723: --- End node ---\nname: "other"'
    )
    assert built(log).operators == (("Round", "Preprocessor/cond:0"),)


def test_cuda_says_what_the_number_means() -> None:
    failure = built(logs.CUDA_NOT_READY)
    assert failure.message.endswith("(error 222: the CUDA libraries are newer than the driver)")


def test_engines_of_elsewhere_say_of_where() -> None:
    assert "(8.5.1.7 against 8.5.3.1)" in built(logs.OTHER_LIBRARY).message
    assert "(0 against 43)" in built(logs.OTHER_SERIALIZATION).message
    assert "(compute capability 5.3 against 6.1)" in built(logs.OTHER_DEVICE).message
    assert "build the engine again" in built(logs.OTHER_DEVICE).remedy


@pytest.mark.parametrize(
    ("option", "version", "part"),
    [
        ("--stronglyTyped", Version(8, 6, 2), "TensorRT 8.6.2 is too old (9.0.0 was the first)"),
        ("--exportLayerInfo=x.json", Version(8, 0, 1), "TensorRT 8.0.1 is too old"),
        ("--fp16", Version(11, 0), "TensorRT 11.0.0 is too new"),
        ("--workspace=16", Version(10, 3), "TensorRT 10.3.0 is too new"),
        ("--fp16", Version(8, 6), "TensorRT 8.6.0 does not know"),
        ("--exportLayerInfo ./model.json", Version(8, 0, 1), "TensorRT 8.0.1 is too old"),
        ("--other", None, "TensorRT does not know"),
    ],
)
def test_options_of_other_versions(option: str, version: Version | None, part: str) -> None:
    failure = built(f"[01/01/2025-00:00:00] [E] Unknown option: {option} \n", version=version)
    assert failure.kind == "option"
    assert part in failure.message
    assert f"refuses {re.split('[= ]', option)[0]}:" in failure.message


@pytest.mark.parametrize("returncode", [137, -9])
def test_killed_by_the_board(returncode: int) -> None:
    failure = built(logs.HARMLESS, returncode)
    assert failure.kind == "killed"
    assert "out of memory" in failure.message
    assert "swap" in failure.remedy


@pytest.mark.parametrize(
    ("returncode", "kind"),
    [(124, "timeout"), (143, "stopped"), (-15, "stopped"), (130, "stopped"), (139, "crash"), (-11, "crash"),
     (134, "crash"), (127, "missing"), (126, "permission")],
)  # fmt: skip
def test_by_how_it_ended(returncode: int, kind: str) -> None:
    for step in ("build", "run"):
        assert explain(logs.HARMLESS, returncode=returncode, step=step).kind == kind


def test_a_time_out_is_the_callers_word() -> None:
    assert explain(logs.OUT_OF_MEMORY, returncode=-9, step="build", timed_out=True).kind == "timeout"


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("./trtexec: error while loading shared libraries: libnvinfer.so.8: cannot open shared object file", "missing"),
        ("[E] Error opening engine file: /t/e.engine", "missing"),
        ("[E] [TRT] ModelImporter.cpp:735: Could not open file /t/m.onnx\n[E] Failed to parse onnx file", "missing"),
        ("[E] Saving engine to file failed.", "disk"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "memory"),
        ("NvMapMemAllocInternalTagged: 1075072515 error 12", "memory"),
        ("NvRmMemInitNvmap failed with Permission denied", "permission"),
        ("[E] 2: [utils.cpp::checkMemLimit::380] Error Code 2: Internal Error (Assertion upperBound != 0 failed. "
         "Unknown embedded device detected. Please update the table)", "board"),
        ("[E] Error[10]: Internal Error (Could not find any implementation for node Conv_119 + Add_182.)", "no kernel"),
        ("[E] Error Code 1: Cuda Runtime (an illegal memory access was encountered)", "cuda"),
    ],
)  # fmt: skip
def test_other_failures(log: str, kind: str) -> None:
    assert built(log, 134 if "terminate" in log else 1).kind == kind


def test_what_is_missing_is_named() -> None:
    library = (
        "./trtexec: error while loading shared libraries: libnvinfer.so.8: cannot open shared object file: No such"
    )
    assert built(library).message == "the board's trtexec does not start: the library libnvinfer.so.8 is not there"
    opened = built("[E] Error opening engine file: /t/e.engine\n")
    assert opened.message == "building the engine failed: /t/e.engine is not there or cannot be read"
    assert "/t/x: " not in built("cat: /t/x: No such file or directory\n").message
    assert "/t/x is not there" in built("cat: /t/x: No such file or directory\n").message


def test_a_file_that_a_driver_misses_explains_nothing_else() -> None:
    noise = "nvrm: /sys/devices/gpu.0/x: No such file or directory\n"
    assert built(noise + logs.OUT_OF_MEMORY).kind == "memory"
    assert built(noise + logs.NO_PLUGIN).kind == "unsupported"


def test_a_crash_gives_the_last_words() -> None:
    failure = built("[E] first\n[E] [TRT] last\n[W] x\n", -11)
    assert "(segmentation fault); it said last: last" in failure.message
    assert built("", 139).message == "trtexec crashed while building the engine (segmentation fault)"


def test_remedies_by_step() -> None:
    build, run = (explain("", returncode=124, step=step) for step in ("build", "run"))
    assert "timing cache" in build.remedy
    assert "another program" in run.remedy


def test_no_kernel_names_the_node() -> None:
    log = "[E] Error[10]: Error Code 10: Internal Error (Could not find any implementation for node Conv_1 + Add_2.)\n"
    plain, tight = built(log), built(logs.HARMLESS + log)
    assert "has no kernel for Conv_1 + Add_2" in plain.message
    assert "another precision" in plain.remedy
    assert "workspace" in tight.remedy


def test_warnings_are_no_failures() -> None:
    failure = built(logs.HARMLESS)
    assert failure.kind == "unknown"
    assert failure.message == "building the engine failed (exit status 1): trtexec said nothing"


def test_a_command_line_is_no_failure() -> None:
    log = "&&&& FAILED TensorRT.trtexec [TensorRT v8400] # trtexec --onnx='out of memory, Unknown option: --fp16'\n"
    assert built(log).kind == "unknown"


def test_an_unknown_failure_gives_its_first_error() -> None:
    log = logs.HARMLESS + "hello\n[01/01/2025-00:00:00] [E] [TRT] something new\n[01/01/2025-00:00:00] [E] and more\n"
    assert built(log).message == "building the engine failed (exit status 1): something new"
    assert built("one\ntwo\n").message.endswith(": two")


ALL = [value for name, value in vars(logs).items() if name.isupper()]


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(ALL) | st.text(max_size=30), max_size=4),
    st.integers(0, 300),
    st.integers(-64, 255),
    st.sampled_from(["build", "run"]),
)
def test_any_log_is_explained(parts: list[str], cut: int, returncode: int, step: Step) -> None:
    failure = explain("".join(parts)[cut:], returncode=returncode, step=step)
    assert failure.message
    assert failure.remedy
    assert isinstance(failure.error(), DeviceError | UnsupportedModelError)
    assert "\x1b" not in failure.message
    assert "\n" not in failure.message
