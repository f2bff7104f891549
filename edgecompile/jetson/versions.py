"""Which TensorRT a board has, and what that version can do.

The versions differ in the flags of ``trtexec``, in the ONNX opsets that their parsers take, and in how a precision is
asked for. Sources: the release notes and the support matrix of TensorRT, the sources of ``trtexec`` and onnx-tensorrt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgecompile.errors import DeviceError

#: The oldest TensorRT whose ``trtexec`` is known here (JetPack 4.6).
OLDEST_MAJOR = 8
_BANNER = re.compile(r"\[TensorRT v(\d+)\]")
_NUMBER = re.compile(r"v?(\d+)")
# A dpkg version may begin with an epoch; what follows "-" or "+" is Debian's or CUDA's, not TensorRT's.
_DOTTED = re.compile(r"(?:\d+:)?v?(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?(?:\.\d+)?(?:[-+~][\w.+~-]*)?")


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A version of TensorRT, ordered; the build number that some banners add is left out."""

    major: int
    minor: int
    patch: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JetPack:
    """A board's system: ``l4t`` is its release (``36.4.3``), ``name`` the JetPack's.

    ``name`` is like ``6.2``, or ``6.x`` where only the line is known, or ``None``.
    """

    l4t: str
    name: str | None
    board: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a version of TensorRT takes.

    ``safe_opset`` is the opset worth exporting at, ``highest_opset`` the newest that its parser takes. ``typing`` is
    how a precision is asked for: by builder flags (``flags``), by ``--stronglyTyped`` (``strong``), or by the graph
    alone (``graph``, where the option is no longer needed). ``strong_option`` says whether ``--stronglyTyped`` exists.
    ``times_with_warmup``: the exported times hold the warm-up's runs too. ``measure_flags`` make versions comparable.
    """

    version: Version
    highest_opset: int
    safe_opset: int
    typing: Literal["flags", "strong", "graph"]
    strong_option: bool
    precision_flags: bool
    workspace: Literal["--workspace", "--memPoolSize"]
    build_only: Literal["--buildOnly", "--skipInference"]
    layer_info: bool
    percentile_list: bool
    profile_median: bool
    times_with_warmup: bool
    measure_flags: tuple[str, ...]
    jetpack: str | None


#: The newest opset from a version on.
_HIGHEST_OPSET = (
    (Version(8, 0), 13),
    (Version(8, 5), 17),
    (Version(10, 0), 20),
    (Version(11, 0), 25),
)
_SAFE_OPSET = ((Version(8, 0), 13), (Version(8, 5), 17), (Version(10, 0), 19))
#: The JetPack that brought a TensorRT, by major and minor version.
_JETPACK = {
    (8, 0): "4.6", (8, 2): "4.6.1", (8, 4): "5.0.2", (8, 5): "5.1", (8, 6): "6.0",
    (10, 3): "6.1 or 6.2", (10, 13): "7.0 or 7.1", (10, 16): "7.2",
}  # fmt: skip
#: The JetPack of an L4T release; a release that is not here has at least the major version of its line.
_L4T = {
    (32, 6, 1): "4.6", (32, 7, 1): "4.6.1", (32, 7, 2): "4.6.2", (32, 7, 3): "4.6.3", (32, 7, 4): "4.6.4",
    (32, 7, 5): "4.6.5", (32, 7, 6): "4.6.6",
    (34, 1, 0): "5.0", (34, 1, 1): "5.0.1", (35, 1, 0): "5.0.2", (35, 2, 1): "5.1", (35, 3, 1): "5.1.1",
    (35, 4, 1): "5.1.2", (35, 5, 0): "5.1.3", (35, 6, 0): "5.1.4", (35, 6, 1): "5.1.5",
    (36, 2, 0): "6.0", (36, 3, 0): "6.0", (36, 4, 0): "6.1", (36, 4, 3): "6.2", (36, 4, 4): "6.2.1",
    (38, 2, 0): "7.0", (38, 4, 0): "7.1",
}  # fmt: skip
_L4T_LINE = {32: "4.x", 34: "5.x", 35: "5.x", 36: "6.x", 38: "7.x"}
_RELEASE = re.compile(r"#?\s*R(\d+) \(release\), REVISION: (\d+)(?:\.(\d+))?(?:\.\d+)*,")
_BOARD = re.compile(r"BOARD: ([\w-]+),")


def parse(text: str) -> Version:
    """The version in ``text``: a banner of ``trtexec``, ``v8502``, ``8.5.2.2`` or dpkg's ``8.6.2.3-1+cuda12.2``.

    Raises `DeviceError` where there is none, or where it is older than what is known here.
    """
    found = find(text)
    if found is None:
        raise DeviceError(
            f"{text.strip()[:80]!r} is not a version of TensorRT",
            remedy="look at what /usr/src/tensorrt/bin/trtexec prints first on the board",
        )
    return found


def find(text: str) -> Version | None:
    """Like `parse`, and ``None`` where the text holds no version."""
    banner = _BANNER.search(text)
    if banner:
        return _of_number(banner[1])
    word = text.strip()
    number = _NUMBER.fullmatch(word)
    if number:
        return _of_number(number[1])
    dotted = _DOTTED.fullmatch(word)
    if dotted:
        return Version(int(dotted[1]), int(dotted[2]), int(dotted[3] or 0))
    return None


def _of_number(digits: str) -> Version | None:
    """``8502`` counts majors in thousands (to TensorRT 9), ``100300`` in ten thousands (from 10)."""
    value = int(digits)
    if len(digits) == 4:
        return Version(value // 1000, value // 100 % 10, value % 100)
    if len(digits) == 6:
        return Version(value // 10000, value // 100 % 100, value % 100)
    return None


def capabilities(version: Version) -> Capabilities:
    """What ``version`` takes. Raises `DeviceError` for versions before 8, whose ``trtexec`` is another."""
    if version.major < OLDEST_MAJOR:
        raise DeviceError(
            f"the board has TensorRT {version}, and {OLDEST_MAJOR}.0 is the oldest supported",
            remedy="install JetPack 4.6 or newer on the board",
        )
    at = (version.major, version.minor)
    return Capabilities(
        version=version,
        highest_opset=_from(_HIGHEST_OPSET, version),
        safe_opset=_from(_SAFE_OPSET, version),
        typing="graph" if at >= (11, 0) else "strong" if at >= (10, 12) else "flags",
        strong_option=(9, 0) <= at < (11, 0),
        precision_flags=at < (11, 0),
        workspace="--memPoolSize" if at >= (8, 5) else "--workspace",
        build_only="--skipInference" if at >= (8, 6) else "--buildOnly",
        layer_info=at >= (8, 2),
        percentile_list=at >= (8, 5),
        profile_median=at >= (8, 5),
        times_with_warmup=at < (8, 5),
        measure_flags=_MEASURE_FLAGS if at < (11, 0) else _MEASURE_FLAGS_11,
        jetpack=_JETPACK.get(at),
    )


_MEASURE_FLAGS = ("--useSpinWait", "--useCudaGraph", "--noDataTransfers", "--separateProfileRun")
#: 11 spins, uses CUDA graphs and leaves out the transfers unless told otherwise.
_MEASURE_FLAGS_11 = ("--separateProfileRun",)


def _from(table: tuple[tuple[Version, int], ...], version: Version) -> int:
    return max((entry for entry in table if entry[0] <= version), default=table[0])[1]


def newest_of(jetpacks: Sequence[str]) -> Version | None:
    """The newest TensorRT that these JetPacks (``5.1``, ``6.2``) bring; ``None`` where none of them is known."""
    found = [Version(*number) for number, names in _JETPACK.items() if set(names.split(" or ")) & set(jetpacks)]
    return max(found, default=None)


def jetpack(l4t_release_text: str) -> JetPack | None:
    """The JetPack by the text of ``/etc/nv_tegra_release``; ``None`` where that is not such a text."""
    release = _RELEASE.search(l4t_release_text)
    if release is None:
        return None
    board = _BOARD.search(l4t_release_text)
    number = (int(release[1]), int(release[2]), int(release[3] or 0))
    return JetPack(
        l4t=".".join(str(n) for n in number),
        name=_L4T.get(number, _L4T_LINE.get(number[0])),
        board=board[1] if board else None,
    )
