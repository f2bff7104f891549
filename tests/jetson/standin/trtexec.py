"""Plays ``trtexec`` of one version: its options, what it prints, what it writes."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from host import ROOT, record, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from tests.jetson import logs

SETTINGS = settings()
VERSION = tuple(int(n) for n in SETTINGS["version"].split("."))
#: What all versions take; then what came, and what went, by version.
OPTIONS = {
    "onnx", "saveEngine", "loadEngine", "shapes", "iterations", "duration", "warmUp", "avgRuns", "timingCacheFile",
    "exportTimes", "exportProfile", "dumpProfile", "exportOutput", "loadInputs", "useSpinWait", "useCudaGraph",
    "noDataTransfers", "separateProfileRun", "percentile", "help", "verbose",
}  # fmt: skip
SINCE = {
    (8, 2): {"exportLayerInfo", "dumpLayerInfo", "profilingVerbosity"},
    (8, 5): {"memPoolSize"},
    (8, 6): {"skipInference"},
    (9, 0): {"stronglyTyped"},
}
UNTIL = {
    (10, 0): {"workspace", "buildOnly"},
    (11, 0): {"fp16", "int8", "best", "calib", "stronglyTyped"},
}
NEWEST_OPSET = ((8, 0), 13), ((8, 5), 17), ((10, 0), 20), ((11, 0), 25)
#: Made up, so that candidates differ; no figure of any GPU.
LATENCY_MS = {"fp32": 2.0, "fp16": 1.0, "int8": 0.6}


def say(level: str, text: str) -> None:
    stream = sys.stderr if level == "E" else sys.stdout
    print(f"[11/26/2025-10:00:00] [{level}] {text}", file=stream, flush=True)


def banner(word: str) -> None:
    major, minor, patch = VERSION
    number = f"{major}{minor}{patch:02}" if major < 10 else f"{major:02}{minor:02}{patch:02}"
    build = " [b26]" if major >= 10 else ""
    words = " ".join(sys.argv[1:])
    print(f"&&&& {word} TensorRT.trtexec [TensorRT v{number}]{build} # trtexec {words}", flush=True)


def fail(*rows: str, code: int = 1) -> NoReturn:
    for row in rows:
        say("E", row)
    banner("FAILED")
    sys.exit(code)


def options() -> dict[str, str]:
    allowed = set(OPTIONS)
    for since, names in SINCE.items():
        allowed |= names if VERSION[:2] >= since else set()
    for since, names in UNTIL.items():
        allowed |= names if VERSION[:2] < since else set()
        allowed -= names if VERSION[:2] >= since else set()
    found = {}
    for word in sys.argv[1:]:
        name, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in allowed:
            fail(f"Unknown option: {word.partition('=')[0]} {value}".rstrip())
        found[name] = value
    return found


def fault(step: str, precision: str) -> None:
    """Do what the settings say goes wrong in a step."""
    wanted = SETTINGS.get("fault")
    if not wanted or wanted["step"] != step or wanted.get("precision", precision) != precision:
        return
    kind = wanted["kind"]
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        (ROOT / "hanging").touch()
        time.sleep(120)
    if kind == "nothing":
        sys.exit(1)
    text = {
        "memory": logs.OUT_OF_MEMORY, "plugin": logs.NO_PLUGIN_IN_IF, "plugins": logs.NO_PLUGINS_10,
        "cuda": logs.CUDA_NOT_READY, "version": logs.OTHER_LIBRARY, "device": logs.OTHER_DEVICE,
    }[kind]  # fmt: skip
    print(text, end="", flush=True)
    sys.exit(1)


def facts_of(graph: Any) -> dict[str, Any]:
    import onnx

    quantized = any(node.op_type == "QuantizeLinear" for node in graph.graph.node)
    half = any(t.data_type == onnx.TensorProto.FLOAT16 for t in graph.graph.initializer)
    opset = next(o.version for o in graph.opset_import if o.domain in ("", "ai.onnx"))
    return {"quantized": quantized, "half": half, "opset": opset}


def build(given: dict[str, str]) -> None:
    import onnx

    path = Path(given["onnx"])
    if not path.is_file():
        fail(f"Could not open file {path}", "Failed to parse onnx file")
    graph = onnx.load(str(path))
    facts = facts_of(graph)
    precision = "int8" if facts["quantized"] else "fp16" if facts["half"] or "fp16" in given else "fp32"
    print(logs.HARMLESS, end="")
    fault("build", precision)
    newest = max(entry for entry in NEWEST_OPSET if entry[0] <= VERSION[:2])[1]
    if facts["opset"] > newest:
        fail(f"[TRT] ModelImporter.cpp:1: ERROR: opset {facts['opset']} is not supported", "Failed to parse onnx file")
    strong = "stronglyTyped" in given or VERSION >= (11, 0)
    if strong and ("fp16" in given or "int8" in given):
        fail("Strongly typed networks cannot have precision flags set")
    if not strong and facts["half"] and "fp16" not in given:
        fail("[TRT] 4: FP16 is not enabled, and the network has float16 tensors")
    if not strong and facts["quantized"] and "int8" not in given:
        fail("[TRT] 4: INT8 is not enabled, and the network has quantizers")
    if VERSION[:2] < (8, 5) and given.get("workspace", "16") == "16":
        say("W", "[TRT] Some tactics do not have sufficient workspace memory to run.")
    if "timingCacheFile" in given:
        cache = Path(given["timingCacheFile"])
        known = cache.read_bytes() if cache.is_file() else b"TIMING CACHE\n"
        say("I", f"Loaded {len(known)} bytes of timing cache from {cache}" if cache.is_file() else "No timing cache")
        cache.write_bytes(known + f"{precision}\n".encode())
    header = {"version": SETTINGS["version"], "precision": precision, "strong": strong}
    Path(given["saveEngine"]).write_bytes(json.dumps(header).encode() + b"\n" + path.read_bytes())
    layers(given)
    say("I", "Engine built in 0.1 sec.")


def load(given: dict[str, str]) -> tuple[dict[str, Any], bytes]:
    path = Path(given["loadEngine"])
    if not path.is_file():
        fail(f"Error opening engine file: {path}", "Failed to create engine from model or file.")
    head, _, graph = path.read_bytes().partition(b"\n")
    header = json.loads(head)
    if header["version"] != SETTINGS["version"]:
        print(logs.OTHER_LIBRARY, end="")
        fail("Failed to create engine from model or file.", "Engine set up failed")
    return header, graph


def layers(given: dict[str, str]) -> None:
    if "exportLayerInfo" in given:
        document = {"Layers": ["conv0 + relu0", "fc"], "Bindings": ["image", "logits"]}
        Path(given["exportLayerInfo"]).write_text(json.dumps(document))


def time_it(given: dict[str, str], header: dict[str, Any]) -> None:
    if VERSION[:2] < (8, 5) and "," in given.get("percentile", ""):
        fail(f"Unknown option: --percentile {given['percentile']}")
    base = LATENCY_MS[header["precision"]]
    warmup, duration = float(given.get("warmUp", 200)), float(given.get("duration", 3))
    generator = random.Random(os.getpid())
    rows, at = [], 0.0
    count = max(int(given.get("iterations", 10)), min(200, int(duration * 1000 / base)))
    for number in range(-20, count):
        # The runs of the warm-up are slower here, so that a reader that takes them in is found out.
        ms = base * generator.uniform(0.99, 1.01) * (3 if number < 0 else 1)
        at = warmup + number * ms if number >= 0 else warmup * (number + 20) / 21
        if number >= 0 or VERSION[:2] < (8, 5):
            rows.append({
                "startEnqMs": at, "endEnqMs": at, "startH2dMs": at, "endH2dMs": at, "startComputeMs": at,
                "endComputeMs": at + ms, "startD2hMs": at + ms, "endD2hMs": at + ms, "h2dMs": 0, "computeMs": ms,
                "d2hMs": 0, "latencyMs": ms,
            })  # fmt: skip
    if "exportTimes" in given and not SETTINGS.get("no_times"):
        text = "[\n" + "\n, ".join(json.dumps(row) for row in rows) + "\n]\n"
        Path(given["exportTimes"]).write_text(text[: len(text) // 2] if SETTINGS.get("cut_times") else text)
    if "exportProfile" in given:
        median = f', "medianMs" : {base / 2}' if VERSION[:2] >= (8, 5) else ""
        rows_of = [
            f', {{ "name" : "{name}", "timeMs" : {base * share}, "averageMs" : {base * share / 100}{median}, '
            f'"percentage" : {share} }}\n'
            for name, share in (('conv0 + relu "0"', 70), ("fc", 30))
        ]
        Path(given["exportProfile"]).write_text('[\n  { "count" : 100 }\n' + "".join(rows_of) + "]\n")
    layers(given)
    summary([row["computeMs"] for row in rows if row["startComputeMs"] >= warmup])


def summary(times: list[float]) -> None:
    ordered = sorted(times)

    def at(percent: float) -> float:
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]

    wanted = [99] if VERSION[:2] < (8, 5) else [90, 95, 99]
    words = ", ".join(f"percentile({p}%) = {at(p):g} ms" for p in wanted)
    say("I", "=== Performance summary ===")
    say("I", f"Throughput: {1000 / at(50):g} qps")
    for name in ("Latency", "GPU Compute Time"):
        mean = sum(times) / len(times)
        say("I", f"{name}: min = {ordered[0]:g} ms, max = {ordered[-1]:g} ms, mean = {mean:g} ms, "
            f"median = {at(50):g} ms, {words}")  # fmt: skip
    if SETTINGS.get("unstable"):
        say("W", "* GPU compute time is unstable, with coefficient of variance = 5.25%.")
        say("W", "  If not already in use, locking GPU clock frequency or adding --useSpinWait may improve it.")
    if SETTINGS.get("over_current"):
        path = ROOT / "sys/class/hwmon/hwmon3/oc3_event_cnt"
        path.write_text(f"{int(path.read_text()) + 1}\n")


def infer(given: dict[str, str], graph: bytes) -> None:
    import numpy as np
    import onnxruntime

    types = {"tensor(float)": "float32", "tensor(int64)": "int64" if VERSION >= (10,) else "int32"}
    kept = onnxruntime.SessionOptions()
    kept.log_severity_level = 4
    session = onnxruntime.InferenceSession(graph, kept, providers=["CPUExecutionProvider"])
    pairs = dict(reversed(word.replace("'", "").rsplit(":", 1)) for word in given["loadInputs"].split(","))
    by_name = {name: path for path, name in pairs.items()}
    feed = {}
    for value in session.get_inputs():
        data = np.fromfile(by_name[value.name], dtype=types[value.type])
        feed[value.name] = data.reshape(value.shape).astype(
            value.type.removeprefix("tensor(").rstrip(")").replace("float", "float32")
        )
    rows = []
    for value, array in zip(session.get_outputs(), session.run(None, feed), strict=True):
        shape = "x".join(map(str, array.shape))
        wrong = 100.0 if SETTINGS.get("other_outputs") else 0.0
        values = ", ".join(f"{float(v) + wrong:g}" for v in array.ravel())
        rows.append(f'{{ "name" : "{value.name}"\n  , "dimensions" : "{shape}"\n  , "values" : [ {values} ]\n  }}\n')
    wrong = SETTINGS.get("wrong_outputs")
    text = "[\n  " + ", ".join(rows) + "]\n"
    Path(given["exportOutput"]).write_text(
        text.replace(" : [ ", " : [ 1e30, ", 1).replace(", ", ", ", 1) if wrong else text
    )


def main() -> None:
    record("trtexec")
    banner("RUNNING")
    given = options()
    if "help" in given:
        print("=== Model Options ===\n  --onnx=<file>   ONNX model")
        return
    say("I", "=== Device Information ===")
    if "onnx" in given:
        build(given)
        if not {"buildOnly", "skipInference"} & set(given):
            fail("the stand-in only builds with --buildOnly or --skipInference")
        banner("PASSED")
        return
    header, graph = load(given)
    fault("run", header["precision"])
    if "loadInputs" in given:
        infer(given, graph)
    else:
        for flag in ("useSpinWait", "useCudaGraph", "noDataTransfers"):
            if VERSION < (11,) and flag not in given:
                fail(f"the stand-in measures comparably only with --{flag}")
        time_it(given, header)
    banner("PASSED")


main()
