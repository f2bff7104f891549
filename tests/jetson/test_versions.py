"""Versions of TensorRT, what they take, and the JetPack that they came with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompile.errors import DeviceError
from edgecompile.jetson.versions import Version, capabilities, find, jetpack, parse

ORIN = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n"
    "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
)
NANO = "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64, DATE: Wed Jan  8 2025\n"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("v8502", Version(8, 5, 2)),
        ("8502", Version(8, 5, 2)),
        ("v8400", Version(8, 4, 0)),
        ("v100300", Version(10, 3, 0)),
        ("v101303", Version(10, 13, 3)),
        ("v110000", Version(11, 0, 0)),
        ("8.5.2.2", Version(8, 5, 2)),
        ("8.6", Version(8, 6, 0)),
        ("8.6.2.3-1+cuda12.2\n", Version(8, 6, 2)),
        ("10.3.0.30-1+cuda12.5", Version(10, 3, 0)),
        ("8.2.1-1+cuda10.2", Version(8, 2, 1)),
        ("1:8.2.1-1+cuda10.2", Version(8, 2, 1)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # trtexec --onnx=v9.onnx", Version(8, 5, 2)),
        ("&&&& PASSED TensorRT.trtexec [TensorRT v100300] [b26] # trtexec", Version(10, 3, 0)),
    ],
)
def test_versions_are_read(text: str, version: Version) -> None:
    assert parse(text) == version


@pytest.mark.parametrize(
    "text", ["", "trtexec", "v85", "v85020", "8", "cuda12.2", "8.5.2.2 and 8.6.1", "v1003000", "8."]
)
def test_what_is_no_version_is_refused(text: str) -> None:
    assert find(text) is None
    with pytest.raises(DeviceError, match="is not a version"):
        parse(text)


def test_a_banner_that_is_cut_gives_no_other_version() -> None:
    banner = "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec"
    assert {find(banner[:end]) for end in range(len(banner) + 1)} == {None, Version(10, 3, 0)}


def test_versions_are_ordered_as_numbers() -> None:
    assert Version(8, 6, 2) < Version(10, 3) < Version(10, 13, 3) < Version(11, 0)
    assert str(Version(8, 5, 2)) == "8.5.2"


@given(st.integers(8, 20), st.integers(0, 40), st.integers(0, 40))
def test_every_way_to_write_a_version_is_read_alike(major: int, minor: int, patch: int) -> None:
    version = Version(major, minor, patch)
    assert parse(f"{version}") == parse(f"v{version}.7") == parse(f"{version}.7-1+cuda13.0") == version
    if major >= 10:
        assert parse(f"x [TensorRT v{major * 10000 + minor * 100 + patch}] y") == version
    elif minor < 10:
        assert parse(f"x [TensorRT v{major * 1000 + minor * 100 + patch}] y") == version


@pytest.mark.parametrize(
    ("version", "opsets", "typing", "workspace", "build_only", "listed"),
    [
        (Version(8, 0, 1), (13, 13), "flags", "--workspace", "--buildOnly", False),
        (Version(8, 2, 1), (13, 13), "flags", "--workspace", "--buildOnly", False),
        (Version(8, 5, 2), (17, 17), "flags", "--memPoolSize", "--buildOnly", True),
        (Version(8, 6, 2), (17, 17), "flags", "--memPoolSize", "--skipInference", True),
        (Version(10, 3, 0), (20, 19), "flags", "--memPoolSize", "--skipInference", True),
        (Version(10, 13, 3), (20, 19), "strong", "--memPoolSize", "--skipInference", True),
        (Version(11, 0, 0), (25, 19), "graph", "--memPoolSize", "--skipInference", True),
    ],
)
def test_capabilities_by_version(
    version: Version, opsets: tuple[int, int], typing: str, workspace: str, build_only: str, listed: bool
) -> None:
    found = capabilities(version)
    assert (found.highest_opset, found.safe_opset) == opsets
    assert (found.typing, found.workspace, found.build_only) == (typing, workspace, build_only)
    assert found.percentile_list is listed
    assert found.profile_median is listed
    assert found.times_with_warmup is not listed
    assert found.layer_info is (version >= Version(8, 2))
    assert found.precision_flags is (version < Version(11, 0))
    assert found.strong_option is (Version(10, 0) <= version < Version(11, 0))


def test_capabilities_name_the_jetpack() -> None:
    assert capabilities(Version(8, 5, 2)).jetpack == "5.1"
    assert capabilities(Version(10, 3, 0)).jetpack == "6.1 or 6.2"
    assert capabilities(Version(10, 7, 0)).jetpack is None


def test_versions_before_8_are_refused() -> None:
    with pytest.raises(DeviceError, match=r"7\.1\.3.*8\.0 is the oldest"):
        capabilities(Version(7, 1, 3))


@given(st.integers(8, 12), st.integers(0, 40))
def test_safe_opset_never_exceeds_the_highest(major: int, minor: int) -> None:
    found = capabilities(Version(major, minor))
    assert found.safe_opset <= found.highest_opset
    assert found.precision_flags or found.typing == "graph"


def test_jetpack_of_a_release() -> None:
    orin = jetpack(ORIN)
    assert orin is not None
    assert (orin.l4t, orin.name, orin.board) == ("36.4.3", "6.2", "generic")
    nano = jetpack(NANO)
    assert nano is not None
    assert (nano.l4t, nano.name, nano.board) == ("32.7.1", "4.6.1", "t210ref")


def test_a_release_that_is_not_known_gets_its_line_only() -> None:
    newer = jetpack(ORIN.replace("4.3,", "5.0,"))
    assert newer is not None
    assert (newer.l4t, newer.name) == ("36.5.0", "6.x")
    unknown = jetpack(ORIN.replace("R36", "R41"))
    assert unknown is not None
    assert (unknown.l4t, unknown.name) == ("41.4.3", None)


@pytest.mark.parametrize("text", ["", "Linux jetson 5.15", "# R36 (release), REVISION: 4", "cat: no such file"])
def test_what_is_no_release_gives_none(text: str) -> None:
    assert jetpack(text) is None


def test_a_release_that_is_cut_gives_no_other_release() -> None:
    found = {jetpack(ORIN[:end]) for end in range(len(ORIN))}
    assert {f.l4t for f in found if f} == {"36.4.3"}
