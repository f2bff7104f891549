"""Why ``trtexec`` failed, in words that help: from its log and its exit status.

Only errors count: lines that ``trtexec`` marks as warnings or information are left out, since a build that goes well
prints many of them that read like failures (tactics that need more memory than there is, formats that are skipped).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgecompile.errors import DeviceError, EdgecompileError, UnsupportedModelError
from edgecompile.jetson import trtexec
from edgecompile.jetson.versions import Version

Step: TypeAlias = Literal["build", "run"]
Kind: TypeAlias = Literal[
    "unsupported", "memory", "cuda", "permission", "engine version", "engine device", "option", "killed", "stopped",
    "crash", "timeout", "missing", "no kernel", "precision", "disk", "board", "unknown",
]  # fmt: skip

_STEPS: dict[Step, str] = {"build": "building the engine", "run": "running the engine"}
_NOT_AN_ERROR = re.compile(r"\[[WIV]\]")
_TAGS = re.compile(r"^(?:\[[^\]]*\] ?)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a step failed: ``message`` names the fault, ``remedy`` what to do.

    ``operators`` are the pairs of operator type and node name that are at fault, where the log names them.
    """

    kind: Kind
    step: Step
    message: str
    remedy: str
    operators: tuple[tuple[str, str], ...] = ()

    def error(self) -> EdgecompileError:
        """What to raise: `UnsupportedModelError` where the model is at fault, else `DeviceError`."""
        if self.kind in ("unsupported", "no kernel", "precision"):
            return UnsupportedModelError(self.message, remedy=self.remedy, operators=self.operators)
        return DeviceError(self.message, remedy=self.remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """What is known when explaining: all lines, those that are errors, and how the program ended."""

    rows: list[str]
    errors: list[str]
    returncode: int
    step: Step
    version: Version | None

    def find(self, *patterns: str) -> re.Match[str] | None:
        """The first match of the first pattern that an error line matches."""
        for pattern in patterns:
            found = next((m for row in self.errors if (m := re.search(pattern, row, re.IGNORECASE))), None)
            if found:
                return found
        return None

    def failure(self, kind: Kind, message: str, remedy: str, operators: tuple[tuple[str, str], ...] = ()) -> Failure:
        named = tuple((_printable(operator), _printable(node)) for operator, node in operators)
        return Failure(kind=kind, step=self.step, message=_printable(message), remedy=remedy, operators=named)

    @property
    def tensorrt(self) -> str:
        return f"TensorRT {self.version}" if self.version else "TensorRT"

    @property
    def doing(self) -> str:
        return _STEPS[self.step]


def explain(
    log: str, *, returncode: int, step: Step, version: Version | None = None, timed_out: bool = False
) -> Failure:
    """Why ``trtexec`` ended with ``returncode``: the cause where it is known, else its first error or how it ended.

    ``log`` is its standard output and error; ``returncode`` as the shell (137) or Python (-9) gives it; ``timed_out``
    says that the caller stopped it. Never raises.
    """
    rows = trtexec.lines(log)
    case = _Case(
        rows=rows,
        errors=[row for row in rows if row and not _NOT_AN_ERROR.search(row) and not row.startswith("&&&&")],
        returncode=returncode,
        step=step,
        version=version or trtexec.parse_log(log).version,
    )
    if timed_out:
        return _timeout(case)
    return next(failure for rule in _RULES if (failure := rule(case)) is not None)


# ------------------------------------------------------------------------------------------------- how it ended


def _timeout(case: _Case) -> Failure:
    return case.failure(
        "timeout",
        f"{case.doing} took longer than allowed",
        "allow more time; with a timing cache, the next build on this board is faster"
        if case.step == "build"
        else "allow more time, or look whether another program uses the GPU",
    )


def _ended_by_timeout(case: _Case) -> Failure | None:
    return _timeout(case) if case.returncode == 124 else None


def _killed(case: _Case) -> Failure | None:
    if case.returncode not in (137, -9):
        return None
    return case.failure(
        "killed",
        f"{case.doing} was killed (signal 9): the board most likely ran out of memory",
        _memory_remedy(case) + "; dmesg on the board says whether it was the out-of-memory killer",
    )


def _stopped(case: _Case) -> Failure | None:
    names = {1: "hung up", 2: "interrupted", 15: "terminated"}
    signal = -case.returncode if case.returncode < 0 else case.returncode - 128
    if signal not in names:
        return None
    return case.failure("stopped", f"{case.doing} was {names[signal]} (signal {signal})", "start it again")


def _crash(case: _Case) -> Failure | None:
    names = {4: "illegal instruction", 6: "aborted", 7: "bus error", 8: "arithmetic fault", 11: "segmentation fault"}
    signal = -case.returncode if case.returncode < 0 else case.returncode - 128
    if signal not in names:
        return None
    said = f"; it said last: {_plain(case.errors[-1])}" if case.errors else ""
    return case.failure(
        "crash",
        f"trtexec crashed while {case.doing} ({names[signal]}){said}",
        "try another precision, or a newer JetPack; a crash is a fault in TensorRT or its driver",
    )


# ---------------------------------------------------------------------------------------- the board and its files


def _option(case: _Case) -> Failure | None:
    found = case.find(r"Unknown option: (--?[\w-]+)")
    if found is None:
        return None
    option = found[1]
    since, until = _OPTIONS.get(option, (None, None))
    why = "does not know"
    if case.version and since and case.version < since:
        why = f"is too old ({since} was the first) for"
    elif case.version and until and case.version >= until:
        why = f"is too new ({until} was the first without it) for"
    return case.failure(
        "option",
        f"the board's trtexec refuses {option}: {case.tensorrt} {why} this option",
        "check that the trtexec on the board and its TensorRT are of the same JetPack",
    )


#: The versions from which on, and until before which, ``trtexec`` takes an option.
_OPTIONS: dict[str, tuple[Version | None, Version | None]] = {
    "--exportLayerInfo": (Version(8, 2), None),
    "--dumpLayerInfo": (Version(8, 2), None),
    "--profilingVerbosity": (Version(8, 2), None),
    "--memPoolSize": (Version(8, 5), None),
    "--skipInference": (Version(8, 6), None),
    "--stronglyTyped": (Version(9, 0), None),
    "--workspace": (None, Version(10, 0)),
    "--buildOnly": (None, Version(10, 0)),
    "--fp16": (None, Version(11, 0)),
    "--int8": (None, Version(11, 0)),
    "--best": (None, Version(11, 0)),
    "--calib": (None, Version(11, 0)),
}


def _missing(case: _Case) -> Failure | None:
    library = case.find(r"error while loading shared libraries: ([^:\s]+)")
    if library:
        return case.failure(
            "missing",
            f"the board's trtexec does not start: the library {library[1]} is not there",
            "install TensorRT again on the board: sudo apt install --reinstall nvidia-tensorrt",
        )
    if case.returncode == 127:
        return case.failure(
            "missing",
            "there is no trtexec on the board",
            "install it on the board (sudo apt install libnvinfer-bin), or say where it is",
        )
    return _absent(case, r"Could not open file:? (\S+)", r"Error opening (?:engine )?file:? ?(\S+)")


def _other_missing(case: _Case) -> Failure | None:
    # Drivers say this of files that they can do without: it counts only where nothing else explains the failure.
    return _absent(case, r"(\S+): No such file or directory")


def _absent(case: _Case, *patterns: str) -> Failure | None:
    found = case.find(*patterns)
    if found is None:
        return None
    return case.failure(
        "missing",
        f"{case.doing} failed: {found[1].strip(chr(39))} is not there or cannot be read",
        "look whether the board's disk is full, or whether something empties its temporary folder, and try again",
    )


def _disk(case: _Case) -> Failure | None:
    if not case.find(r"No space left on device", r"Saving engine to file failed", r"Disk quota exceeded"):
        return None
    return case.failure(
        "disk", f"the board's disk took no more while {case.doing}", "free space on the board, and try again"
    )


def _permission(case: _Case) -> Failure | None:
    if case.returncode == 126:
        return case.failure("permission", "the board's trtexec may not be executed", "look at the file's permissions")
    if not case.find(r"Nv\w+.*Permission denied", r"/dev/nv\S*.*Permission denied", r"Permission denied.*/dev/nv"):
        return None
    return case.failure(
        "permission",
        "the user on the board may not use the GPU",
        "add the user to the groups: sudo usermod -aG video,render USER, and log in again",
    )


_CUDA_CODES = {
    "35": "the driver is older than the CUDA libraries",
    "46": "another program holds the GPU for itself",
    "100": "there is no GPU",
    "222": "the CUDA libraries are newer than the driver",
    "801": "the driver does not support this",
    "802": "the system is not ready yet",
    "803": "the driver and the CUDA libraries do not fit together",
    "999": "an unknown error of the driver",
}


def _cuda(case: _Case) -> Failure | None:
    # Some versions print this one as a warning, and fail right after it.
    pattern = re.compile(r"CUDA initialization failure with error:? (\d+)", re.IGNORECASE)
    code = next((m[1] for row in case.rows if (m := pattern.search(row))), None)
    if code is None and not case.find(
        r"no CUDA-capable device", r"CUDA driver version is insufficient", r"system not yet initialized",
        r"Cannot find any (?:available )?(?:CUDA )?(?:GPU|device)",
    ):  # fmt: skip
        return None
    why = f" (error {code}: {_CUDA_CODES.get(code, 'see the CUDA documentation')})" if code else ""
    return case.failure(
        "cuda",
        f"CUDA did not start on the board{why}",
        "reboot the board; in a container, start it with --runtime nvidia and an image of the board's own JetPack",
    )


def _board(case: _Case) -> Failure | None:
    if not case.find(r"Unknown embedded device"):
        return None
    return case.failure(
        "board",
        f"{case.tensorrt} does not know this board",
        "install the JetPack that is made for the board; in a container, take an image of that JetPack",
    )


# ----------------------------------------------------------------------------------------------------- the engine


def _engine(case: _Case) -> Failure | None:
    remedy = "build the engine again on this board: engines are tied to one GPU and one version of TensorRT"
    device = case.find(r"generated on an incompatible device(?:, expecting compute (\S+) got compute ([\d.]+))?")
    if device:
        numbers = f" (compute capability {device[1]} against {device[2]})" if device[1] else ""
        return case.failure("engine device", f"the engine was built on another GPU{numbers}", remedy)
    found = case.find(
        r"engine plan file is not compatible with this version of TensorRT"
        r"(?:, expecting library version (?P<a>[\d.]*\d) got (?P<b>[\d.]*\d),)?",
        r"Version tag does not match(?:\. Note: Current Version: (?P<a>\d+), Serialized Engine Version: (?P<b>\d+)\))?",
    )
    if found is None:
        return None
    numbers = f" ({found['a']} against {found['b']})" if found["a"] else ""
    return case.failure("engine version", f"the engine was built by another version of TensorRT{numbers}", remedy)


# ------------------------------------------------------------------------------------------------------ the model


def _unsupported(case: _Case) -> Failure | None:
    plugin = case.find(
        r"Plugin not found",
        r"could not find plugin",
        r"Cannot find plugin",
        r"UNSUPPORTED_NODE",
        r"importFallbackPlugin",
    )
    refused = plugin or case.find(r"Failed to parse (?:the )?onnx", r"Parsing model failed", r"Failed to parse.*model")
    if refused is None:
        return None
    operators = _nodes(case.rows, plugin=plugin is not None)
    where = _named(operators)
    if plugin:
        message = f"{case.tensorrt} has no operator or plugin for {where or 'a node of the model'}"
        return case.failure(
            "unsupported", message, "replace the operator in the model, or leave it to the host", operators
        )
    assertion = case.find(r"Assertion failed: (.*)", r"ERROR: (.*)", r"Error\[\d+\]:? ?(.*)")
    message = f"{case.tensorrt} cannot read the model{f' at {where}' if where else ''}"
    return case.failure(
        "unsupported",
        f"{message}: {_short(assertion[1])}" if assertion else message,
        "export the model with static shapes and an opset that this version takes",
        operators,
    )


_IN_NODE = re.compile(r"In node \d+ with name: (.*?) and operator: ([\w.:-]+) \(")
_PARSING = re.compile(r'While parsing node number \d+ \[([\w.:-]+)(?: -> "(.*?)")?')
# The node is printed as text: attributes and sub-graphs are indented, what is the node's own is not.
_NODE_NAME = re.compile(r'(?:.*\.cpp:\d+: )?name: "(.*)"')
_PLUGIN = re.compile(
    r"(?:could not find plugin:|Cannot find plugin:|Searching for plugin:) ([\w.:-]+?)(?:,| version|$)"
)
_CREATED = re.compile(r"Successfully created plugin: ([\w.:-]+)")


def _nodes(rows: list[str], *, plugin: bool) -> tuple[tuple[str, str], ...]:
    """The operator types and names of the nodes that the parser stumbled over, without repetition."""
    listed = [(m[2], m[1] or "?") for row in rows if (m := _IN_NODE.search(row))]
    if listed:
        return tuple(dict.fromkeys(listed))
    searched = [m[1] for row in rows if (m := _PLUGIN.search(row))]
    created = {m[1] for row in rows if (m := _CREATED.search(row))}
    lacking = next((name for name in reversed(searched) if name not in created), None) if plugin else None
    for at, row in enumerate(rows):
        parsing = _PARSING.search(row)
        if parsing:
            return ((lacking or parsing[1], _name_after(rows[at + 1 :]) or parsing[2] or "?"),)
    return ((lacking, "?"),) if lacking else ()


def _name_after(rows: list[str]) -> str | None:
    for row in rows:
        if "--- End node ---" in row or _PARSING.search(row):
            return None
        match = _NODE_NAME.fullmatch(row)
        if match:
            return match[1]
    return None


def _named(operators: tuple[tuple[str, str], ...]) -> str:
    shown = [f"{kind} (node {name})" if name != "?" else kind for kind, name in operators[:5]]
    return ", ".join(shown) + (f" and {len(operators) - 5} more" if len(operators) > 5 else "")


def _precision(case: _Case) -> Failure | None:
    found = case.find(
        r"(?:int8|fp16|half|bf16|fp8) (?:is )?not (?:configured|supported|enabled)",
        r"does not support (?:INT8|FP16|BF16|FP8)",
        r"invalid precision",
    )
    if found is None:
        return None
    return case.failure(
        "precision",
        f"{case.tensorrt} does not compute this model in the precision asked for: {_plain(found.string)}",
        "ask for another precision",
    )


# --------------------------------------------------------------------------------------------------------- memory

_MEMORY = (
    r"out of memory", r"OutOfMemory", r"std::bad_alloc", r"Cannot allocate memory", r"NvMapMemAlloc\w* ?.*error 12",
    r"insufficient workspace", r"User allocator error allocating (\d+)-byte", r"Failed to allocate",
)  # fmt: skip


def _memory(case: _Case) -> Failure | None:
    if not case.find(*_MEMORY):
        return None
    wanted = [
        int(m[1])
        for row in case.rows
        if (m := re.search(r"(?:Requested amount of GPU memory \(|allocating )(\d+)[ -]bytes?\b", row))
    ]
    size = f" (it wanted {max(wanted) / 2**20:.0f} MiB at once)" if wanted else ""
    return case.failure("memory", f"the board ran out of memory while {case.doing}{size}", _memory_remedy(case))


def _memory_remedy(case: _Case) -> str:
    first = (
        "lower the workspace, the batch or the input size" if case.step == "build" else "lower the batch or input size"
    )
    return f"{first}; close other programs on the board, its desktop too; add swap"


def _no_kernel(case: _Case) -> Failure | None:
    found = case.find(r"Could not find any implementation for node (.+?)\.?\)?$")
    if found is None:
        return None
    node = _short(found[1].rstrip(".)") if not found[1].startswith("{") else found[1])
    tight = any(
        re.search(r"Tactic Device request|insufficient memory|memory is insufficient", row) for row in case.rows
    )
    return case.failure(
        "no kernel",
        f"{case.tensorrt} has no kernel for {node}",
        "some kernels needed more memory than there was: raise the workspace, or close other programs on the board"
        if tight
        else "try another precision, a static batch, or another form of this part of the model",
        (("?", node),),
    )


def _cuda_fault(case: _Case) -> Failure | None:
    found = case.find(r"Cuda (?:Runtime|Driver) \((.*?)\)", r"Cuda failure: (.*)", r"CUDA error (.*)")
    if found is None:
        return None
    return case.failure("cuda", f"CUDA failed while {case.doing}: {found[1]}", "try again after a reboot of the board")


def _unknown(case: _Case) -> Failure:
    tagged = next((row for row in case.errors if "[E]" in row), None)
    said = _short(_plain(tagged or (case.errors[-1] if case.errors else "")))
    return case.failure(
        "unknown",
        f"{case.doing} failed (exit status {case.returncode}): {said or 'trtexec said nothing'}",
        "read the whole log of trtexec",
    )


def _plain(row: str) -> str:
    return _TAGS.sub("", row).strip()


def _printable(text: str) -> str:
    """What a board sent must not steer the terminal that shows it."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."


#: From what leaves no doubt to what is told from many causes; the last knows all.
_RULES: tuple[Callable[[_Case], Failure | None], ...] = (
    _ended_by_timeout, _killed, _stopped, _option, _permission, _disk, _missing, _cuda, _board, _engine, _unsupported,
    _memory, _precision, _no_kernel, _crash, _cuda_fault, _other_missing, _unknown,
)  # fmt: skip
