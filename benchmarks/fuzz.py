"""What damaged and hostile model files do to edgecompile: mutations of three small files, and one clear error for each.

    python -m benchmarks.fuzz                      # 10,000 mutations; writes benchmarks/results/fuzz.json
    python -m benchmarks.fuzz --mutations 300

``edgecompile`` opens a file from outside in a child process with limits, and starting one takes seconds. Here the same
functions run in forks of one child that has imported everything, under the same memory limit and a shorter time limit.
Verdicts: ``read`` (the mutation did no harm), ``refused`` (one error of ours), ``killed`` (the parsers crashed, which
costs the child only), ``timed out``, and ``foreign``: an error that is not ours, of which the user would be told the
last line. What was killed, and every 500th file, is then opened through ``edgecompile`` itself from this process, which
must answer with a result or one clear error.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
#: What `edgecompile` gives its own children for files of this size.
MEMORY_BYTES = 6 << 30
TIMEOUT_S = 40
_SAMPLE = 500
_INTERESTING = (0, 1, -1, 2, 7, 127, 128, 255, 256, 32767, 65536, 2**24, 2**31 - 1, -(2**31), 2**31, 2**62, -(2**63))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one mutation; ``peak_bytes`` is the largest resident set of its fork."""

    number: int
    file: str
    verdict: str
    message: str
    seconds: float
    peak_bytes: int


# ------------------------------------------------------------------------------------------------- the three files


def seed_files(folder: Path) -> tuple[Path, ...]:
    """A small classifier, a small graph of data movement and shape arithmetic, and that graph as TFLite."""
    import onnx

    from edgecompile.lower import direct
    from tests.lowering import small_net

    small_net(folder)
    _moving_net(folder / "moving.onnx")
    (folder / "moving.tflite").write_bytes(direct.lower(onnx.load(folder / "moving.onnx")).data)
    return folder / "small.onnx", folder / "moving.onnx", folder / "moving.tflite"


def _moving_net(path: Path) -> None:
    from tests.lowering import Net

    net = Net()
    ints = lambda *values: net.constant(np.array(values, np.int64))  # noqa: E731
    x = net.add("Relu", net.conv(net.input("image", 1, 3, 16, 16), 3, 8, stride=2))
    x = net.add("Pad", x, ints(0, 0, 1, 0, 0, 0, 0, 1))
    x = net.add("Slice", x, ints(0, 0), ints(8, 8), ints(2, 3))
    wide = net.add("Resize", x, "", "", ints(1, 8, 16, 16), mode="nearest", coordinate_transformation_mode="asymmetric")
    x = net.add("MaxPool", wide, kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("Concat", x, net.add("Tile", net.add("GlobalAveragePool", x), ints(1, 1, 8, 8)), axis=1)
    x = net.add("Transpose", net.add("Reshape", x, ints(1, 16, -1)), perm=[0, 2, 1])
    x = net.add("MatMul", x, net.constant(net.rng.normal(0, 0.2, (16, 12)).astype(np.float32)))
    x = net.add("Add", x, net.add("Expand", net.constant(np.ones((1, 1, 12), np.float32)), ints(1, 64, 12)))
    x = net.add("Gather", net.add("Softmax", x, axis=-1), ints(0, 5, 9), axis=1)
    net.save(path, net.add("ReduceMean", x, axes=[1], keepdims=0, out="scores"))


# --------------------------------------------------------------------------------------------------- the mutations


def mutate(data: bytes, suffix: str, number: int) -> bytes:
    """Mutation ``number`` of a file: half of the time of its bytes, else of what a parser makes of them."""
    rng = random.Random(number)
    if rng.random() < 0.5:
        return _bytes_changed(data, rng)
    changed = (_onnx_changed if suffix == ".onnx" else _tflite_changed)(data, rng)
    return _bytes_changed(changed, rng) if rng.random() < 0.1 else changed


def _bytes_changed(data: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    kind = rng.choice(["truncate", "flip", "flip", "number", "number", "delete", "repeat", "noise"])
    at, length = rng.randrange(len(made)), rng.choice([1, 2, 4, 8, 64, 500])
    if kind == "truncate":
        del made[at:]
    elif kind == "flip":
        for _ in range(rng.choice([1, 2, 8, 50])):
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    elif kind == "number":
        width = rng.choice([1, 2, 4, 8])
        value = rng.choice(_INTERESTING) % 2 ** (8 * width)
        made[at : at + width] = value.to_bytes(width, "little")
    elif kind == "delete":
        del made[at : at + length]
    elif kind == "repeat":
        made[at:at] = made[at : at + length] * rng.choice([1, 3, 100])
    else:
        made[at : at + length] = rng.randbytes(length)
    return bytes(made)


def _onnx_changed(data: bytes, rng: random.Random) -> bytes:
    import onnx

    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        rng.choice(_ONNX_CHANGES)(model, rng)
    made: bytes = model.SerializeToString()
    return made


def _int64(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def _weights_changed(model: Any, rng: random.Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    kind = rng.choice(["dims", "dims", "type", "cut", "external", "values", "values", "values"])
    if kind == "dims" and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = _int64(rng.choice(_INTERESTING))
    elif kind == "type":
        tensor.data_type = rng.randrange(25)
    elif kind == "cut":
        tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
    elif kind == "external":
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", rng.choice(["/etc/passwd", "../secret", "small.onnx", "/dev/zero", ""])
        tensor.data_location = 1
    else:  # shapes, axes, sizes and pads of the operators around it
        values = np.frombuffer(tensor.raw_data, np.uint8).copy()
        values = values[: len(values) // 8 * 8].view(np.int64)
        if len(values) and tensor.data_type == 7:
            values[rng.randrange(len(values))] = _int64(rng.choice(_INTERESTING))
            tensor.raw_data = values.tobytes()


def _node_changed(model: Any, rng: random.Random) -> None:
    nodes = model.graph.node
    node = rng.choice(nodes)
    kind = rng.choice(["input", "output", "operator", "domain", "delete", "repeat", "swap", "no inputs"])
    names = [name for other in nodes for name in (*other.input, *other.output)]
    if kind == "input" and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([*names, "", "nowhere"])
    elif kind == "output":
        node.output[0] = rng.choice(names)
    elif kind == "operator":
        node.op_type = rng.choice(
            ["If", "Loop", "Wobble", "Conv", "NonZero", "ConstantOfShape", "Range", "LSTM", "Add"]
        )
    elif kind == "domain":
        node.domain = "com.example"
    elif kind == "delete" and len(nodes) > 1:
        del nodes[rng.randrange(len(nodes))]
    elif kind == "repeat":
        nodes.add().CopyFrom(node)
    elif kind == "swap":
        copy = type(node).FromString(node.SerializeToString())
        other = rng.choice(nodes)
        node.CopyFrom(other)
        other.CopyFrom(copy)
    else:
        del node.input[:]


def _attribute_changed(model: Any, rng: random.Random) -> None:
    node = rng.choice([node for node in model.graph.node if node.attribute] or list(model.graph.node))
    if not node.attribute:
        return
    attribute = rng.choice(node.attribute)
    if attribute.ints and rng.random() < 0.8:
        attribute.ints[rng.randrange(len(attribute.ints))] = _int64(rng.choice(_INTERESTING))
    elif rng.random() < 0.5:
        attribute.i = _int64(rng.choice(_INTERESTING))
    elif rng.random() < 0.5:
        attribute.type = rng.randrange(15)
    else:
        attribute.s = rng.randbytes(rng.choice([0, 5, 500]))


def _interface_changed(model: Any, rng: random.Random) -> None:
    value = rng.choice([*model.graph.input, *model.graph.output, *model.graph.value_info])
    kind = value.type.tensor_type
    if rng.random() < 0.5 and kind.shape.dim:
        rng.choice(kind.shape.dim).dim_value = _int64(rng.choice(_INTERESTING))
    elif rng.random() < 0.5:
        kind.elem_type = rng.randrange(25)
    elif rng.random() < 0.5:
        value.name = rng.choice(["", "image", "scores", "../../x", "n\0ul", "\u202e"])
    else:
        value.type.Clear()


def _header_changed(model: Any, rng: random.Random) -> None:
    if rng.random() < 0.5:
        model.opset_import[0].version = _int64(rng.choice(_INTERESTING))
    elif rng.random() < 0.5:
        model.ir_version = _int64(rng.choice(_INTERESTING))
    else:
        del model.graph.output[:]


_ONNX_CHANGES: tuple[Callable[[Any, random.Random], None], ...] = (
    _weights_changed, _weights_changed, _node_changed, _attribute_changed, _interface_changed, _header_changed,
)  # fmt: skip


def _tflite_changed(data: bytes, rng: random.Random) -> bytes:
    """Overwrite whole words: nearly all that a flatbuffer consists of are offsets, sizes and indices."""
    made = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(made) // 4) * 4
        old = int.from_bytes(made[at : at + 4], "little")
        new = rng.choice([*_INTERESTING, old + 1, old - 1, old + 4, old * 2, -old, rng.randrange(len(made))])
        made[at : at + 4] = (new % 2**32).to_bytes(4, "little")
    return bytes(made)


# ------------------------------------------------------------------------------------------------------ the worker


def _open(path: Path, workdir: Path) -> None:
    """What `edgecompile` does with a file from outside in its child processes, and then with what they let through."""
    if path.suffix == ".tflite":
        from edgecompile import tflite_file

        tflite_file.describe_in_child({"path": str(path), "what": f"the model file {path.name}"})
        return
    import onnx

    from edgecompile.lower import direct
    from edgecompile.model import prepare

    prepare.read_in_child({"file": str(path), "name": path.name, "workdir": str(workdir), "shapes": {}})
    prepare.finish_in_child({"name": path.name, "workdir": str(workdir), "simplify": True})
    direct.lower(onnx.load(str(workdir / prepare.PREPARED)))


def _in_fork(path: Path, workdir: Path, answer: int) -> None:
    """The forked child: limits, then the file; a line says how it ended. Does not return."""
    from edgecompile.errors import EdgecompileError

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _open(path, workdir)
        verdict, message = "read", ""
    except EdgecompileError as exc:
        clear = type(exc).exit_code in (2, 5) and exc.message.strip()
        verdict, message = ("refused" if clear else "foreign"), f"{type(exc).__name__}: {exc.message}"
    except BaseException as exc:  # anything else is what this looks for
        verdict, message = "foreign", f"{type(exc).__name__}: {exc}"
    os.write(answer, json.dumps([verdict, message[:300]]).encode())
    os._exit(0)


def _forked(path: Path, workdir: Path, number: int) -> Outcome:
    reader, writer = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _in_fork(path, workdir, writer)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], TIMEOUT_S)
    if not ready:
        os.kill(child, signal.SIGKILL)
    text = os.read(reader, 4096) if ready else b""
    os.close(reader)
    _, status, usage = os.wait4(child, 0)
    if text:
        verdict, message = json.loads(text)
    else:
        verdict = "killed" if ready else "timed out"
        message = signal.strsignal(os.WTERMSIG(status)) or "" if os.WIFSIGNALED(status) else f"exit {status}"
    return Outcome(
        number=number,
        file=path.name,
        verdict=verdict,
        message=message,
        seconds=round(time.monotonic() - began, 3),
        peak_bytes=usage.ru_maxrss * 1024,
    )


def _work(folder: Path, numbers: range) -> None:
    """The one child: import everything, then fork for each mutation; prints an outcome a line."""
    import onnxruntime
    import onnxsim  # noqa: F401
    from ai_edge_litert import interpreter  # noqa: F401

    import edgecompile.lower.direct
    import edgecompile.model.prepare
    import edgecompile.tflite_file  # noqa: F401

    onnxruntime.set_default_logger_severity(4)
    out = os.fdopen(os.dup(1), "w")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # the native libraries print
    os.dup2(quiet, 2)
    files = _files_in(folder)
    for number in numbers:
        seed = files[number % len(files)]
        with tempfile.TemporaryDirectory(dir=folder) as workdir:
            path = Path(workdir) / f"mutated{seed.suffix}"
            path.write_bytes(mutate(seed.read_bytes(), seed.suffix, number))
            out.write(json.dumps(asdict(_forked(path, Path(workdir), number))) + "\n")
            out.flush()


def _files_in(folder: Path) -> tuple[Path, ...]:
    return folder / "small.onnx", folder / "moving.onnx", folder / "moving.tflite"


# -------------------------------------------------------------------------------------------------------- the run


def outcomes(folder: Path, mutations: int) -> Iterator[Outcome]:
    """All mutations of the files in ``folder``; a worker that dies is started again after the one that ended it."""
    done = 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    while done < mutations:
        command = [sys.executable, "-m", "benchmarks.fuzz", "--worker", str(folder), str(done), str(mutations)]
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                yield Outcome(**json.loads(line))
                done += 1
        if worker.returncode != 0 or done < mutations:
            # The worker itself holds nothing that a mutation can reach, except that forks share its memory limit.
            raise RuntimeError(f"the worker ended with {worker.returncode} after mutation {done}")


def answer_of_edgecompile(folder: Path, number: int) -> str | None:
    """Open one mutation as a user does; returns the message of the error, or None when it was read.

    Any other exception passes: it is what must not happen.
    """
    from edgecompile import model, tflite_file
    from edgecompile.errors import InputError, UnsupportedModelError

    files = _files_in(folder)
    seed = files[number % len(files)]
    with tempfile.TemporaryDirectory() as workdir:
        path = Path(workdir) / f"mutated{seed.suffix}"
        path.write_bytes(mutate(seed.read_bytes(), seed.suffix, number))
        try:
            if seed.suffix == ".tflite":
                tflite_file.describe(path)
            else:
                model.load(str(path), Path(workdir) / "work")
        except (InputError, UnsupportedModelError) as exc:
            return exc.message or "an error without a message"
    return None


def _table(found: Sequence[Outcome]) -> str:
    lines = [f"{'file':16} {'read':>6} {'refused':>8} {'killed':>7} {'timed out':>10} {'foreign':>8}"]
    for number, name in enumerate(("small.onnx", "moving.onnx", "moving.tflite")):
        count = Counter(outcome.verdict for outcome in found if outcome.number % 3 == number)
        columns = [count[verdict] for verdict in ("read", "refused", "killed", "timed out", "foreign")]
        lines.append(f"{name:16} {columns[0]:6} {columns[1]:8} {columns[2]:7} {columns[3]:10} {columns[4]:8}")
    slowest, largest = max(o.seconds for o in found), max(o.peak_bytes for o in found)
    return "\n".join([*lines, f"slowest {slowest:.1f} s, largest resident set {largest / 2**30:.2f} GiB"])


def main() -> None:
    """Run, print the table and what was found, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "fuzz.json")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        folder, begin, end = arguments.worker
        _work(Path(folder), range(int(begin), int(end)))
        return
    with tempfile.TemporaryDirectory(prefix="edgecompile-fuzz-") as name:
        folder = Path(name)
        seed_files(folder)
        began = time.monotonic()
        found = list(outcomes(folder, arguments.mutations))
        seconds = time.monotonic() - began
        again = {o.number for o in found if o.verdict == "killed"} | set(range(0, arguments.mutations, _SAMPLE))
        answers = {number: answer_of_edgecompile(folder, number) for number in sorted(again)}
    print(_table(found), f"{seconds:.0f} s for {len(found)} mutations", sep="\n")
    errors = sum(answer is not None for answer in answers.values())
    print(f"through edgecompile itself: {len(answers)}, of which {errors} gave one clear error")
    for outcome in found:
        if outcome.verdict in ("foreign", "timed out"):
            print(f"{outcome.verdict} {outcome.number} ({outcome.file}): {outcome.message}")
    document = {
        "mutations": len(found),
        "seconds": round(seconds, 1),
        "verdicts": dict(Counter(o.verdict for o in found)),
        "slowest_s": max(o.seconds for o in found),
        "largest_resident_bytes": max(o.peak_bytes for o in found),
        "through_edgecompile": {"opened": len(answers), "errors": errors},
        "not_clean": [asdict(o) for o in found if o.verdict not in ("read", "refused")],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
