"""Measures model files on the machine it runs on: interleaved rounds, one JSON document. Python 3.7+, numpy."""

import argparse
import importlib.util
import json
import os
import platform
import sys
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
SENTINEL = "EDGECOMPILE-RESULT "
TYPES = {
    "tensor(float)": "float32",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
}


def open_session(spec, threads, package):
    runtime, _, path = spec.partition(":")
    source = importlib.util.spec_from_file_location("backend_" + runtime, os.path.join(HERE, runtime, "backend.py"))
    module = importlib.util.module_from_spec(source)
    source.loader.exec_module(module)
    return module.Session(path, threads=threads, package=package)


def random_feed(session, seed):
    generator = np.random.RandomState(seed)
    feed = {}
    for name, detail in session.inputs.items():
        dtype = detail.get("dtype") or np.dtype(TYPES[detail["type"]]).type
        shape = [int(d) for d in detail["shape"]]
        if np.dtype(dtype).kind == "f":
            feed[name] = generator.standard_normal(shape).astype(dtype)
        else:
            info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
            low, high = (info.min, info.max + 1) if info is not None and info.bits == 8 else (0, 2)
            feed[name] = generator.randint(low, high, shape).astype(dtype)
    return feed


def block(session, runs):
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        session.invoke()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def load_average():
    try:
        return os.getloadavg()[0]
    except OSError:
        return -1.0


def cpu():
    model, flags = platform.processor(), []
    try:
        with open("/proc/cpuinfo") as stream:
            for line in stream:
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "Model") and not model:
                    model = value.strip()
                if key.strip() in ("flags", "Features") and not flags:
                    flags = value.split()
    except OSError:
        pass
    return model, flags


def peak_kb():
    try:
        with open("/proc/self/status") as stream:
            return next(int(line.split()[1]) for line in stream if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0


def measure(arguments):
    loads, sessions, cold, peaks = [], [], [], []
    before = load_average()
    for index, spec in enumerate(arguments.model):
        base = peak_kb()
        start = time.perf_counter()
        session = open_session(spec, arguments.threads, arguments.runtime_module)
        loads.append(1e3 * (time.perf_counter() - start))
        session.set(random_feed(session, arguments.seed + index))
        cold.append(block(session, 1)[0])
        peaks.append(1024 * (peak_kb() - base))
        sessions.append(session)
    sizes = []
    for session in sessions:
        end, done, start = time.perf_counter() + arguments.warmup_s, 0, time.perf_counter()
        while time.perf_counter() < end or done < 2:
            session.invoke()
            done += 1
        each = (time.perf_counter() - start) / done
        sizes.append(max(arguments.min_runs, int(arguments.min_seconds / each) + 1))
    rounds = arguments.rounds
    latencies = [[] for _ in sessions]
    order = np.random.RandomState(arguments.seed)
    for _ in range(rounds):
        for index in order.permutation(len(sessions)):
            block(sessions[index], 2)
            latencies[index].append(block(sessions[index], max(1, -(-sizes[index] // rounds))))
    model, flags = cpu()
    return {
        "environment": {
            "device": platform.node(),
            "machine": platform.machine(),
            "cpu_model": model,
            "cpu_flags": flags,
            "cores": os.cpu_count(),
            "affinity": sorted(os.sched_getaffinity(0)),
            "kernel": platform.release(),
            "load_before": before,
            "load_after": load_average(),
        },
        "models": [
            {
                "latencies_ms": lat,
                "cold_ms": c,
                "load_ms": load,
                "peak_memory_bytes": p,
                "package": s.package,
                "version": s.version(),
                "operators": s.operators(),
            }
            for lat, c, load, p, s in zip(latencies, cold, loads, peaks, sessions)
        ],
    }


def run_inputs(arguments):
    session = open_session(arguments.model[0], arguments.threads, arguments.runtime_module)
    inputs = dict(np.load(arguments.run_inputs, allow_pickle=False))
    count = len(next(iter(inputs.values())))
    found = [session.run({name: array[k] for name, array in inputs.items()}) for k in range(count)]
    np.savez(arguments.write_outputs, **{name: np.stack([f[name] for f in found]) for name in found[0]})
    return {"samples": count}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", required=True, help="RUNTIME:FILE, repeatable")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warmup-s", type=float, default=1.0)
    parser.add_argument("--min-runs", type=int, default=50)
    parser.add_argument("--min-seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runtime-module")
    parser.add_argument("--run-inputs")
    parser.add_argument("--write-outputs")
    parser.add_argument("--output")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = run_inputs(arguments) if arguments.run_inputs else measure(arguments)
    text = json.dumps(result)
    if arguments.output:
        with open(arguments.output, "w") as stream:
            stream.write(text)
    print(SENTINEL + text)


if __name__ == "__main__":
    sys.exit(main())
