#!/usr/bin/env python3
"""Times many small files, each one operator, in one process: the machine's side of edgecompile's latency tables.

    python operators.py job.json times.json

Needs Python 3.7 or later, numpy, and the files' runtime; runner.py and the backends lie beside this file. The job is
``{"runtime", "threads", "seed", "files": [...], "passes", "blocks", "block_runs", "footprint_bytes"}``, the answer
``{"schema_version": 1, "version": ..., "times": [{"ms": ..., "share": ...} or {"error": ...}, ...]}``,
where ``share`` is the operator's part of the file's kernels: the others change layouts at the file's edges.

All files are visited in several passes, so that drift hits all alike; in a pass each is loaded, warmed up, and run in
blocks. A time is the median of the blocks' minima. In a whole model an operator finds its inputs in the caches, since
the operator before has just written them, but not its weights, since a whole inference lies between two uses: so
before each timed run as many bytes are read as a whole inference touches, and then the inputs are written again.
A file that ends the process is left out, and the others are measured anew.
"""

import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SCHEMA_VERSION = 1
#: Operators that only change the layout at the edge of a file; within a whole model they stand between other layouts.
LAYOUT = ("ReorderInput", "ReorderOutput", "Transpose")
#: What a file gets in a pass at most, so that one slow operator does not take all the time.
MOST_SECONDS = 0.5
PROFILED_RUNS = 8


def load_runner():
    """The module runner.py beside this file."""
    spec = importlib.util.spec_from_file_location("edgecompile_runner", os.path.join(HERE, "runner.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timed_runs(session, feed, runs, scratch):
    """Milliseconds of some runs (fewer where they are slow), the weights out of the caches and the inputs in them."""
    times, end = [], time.perf_counter() + MOST_SECONDS
    while len(times) < runs and (len(times) < 3 or time.perf_counter() < end):
        scratch[::16].sum()
        session.get()
        session.set(feed)
        start = time.perf_counter_ns()
        session.invoke()
        times.append(1e-6 * (time.perf_counter_ns() - start))
    return times


def visit(runner, module, job, number, scratch):
    """One file in one pass: its block minima in milliseconds, and the operator's share of them."""
    entry, size = job["files"][number], job["block_runs"]
    session = module.Session(entry["file"], threads=job["threads"])
    feed = runner.random_feed(session, job["seed"] + number)
    warm_up(session, feed)
    times = timed_runs(session, feed, job["blocks"] * size, scratch)
    minima = [min(times[at : at + size]) for at in range(0, len(times) - size + 1, size)] or [min(times)]
    if job["runtime"] != "onnxruntime":
        return minima, 1.0
    return minima, profiled_share(module, entry, job["threads"], feed, scratch)


def warm_up(session, feed):
    session.set(feed)
    for _ in range(3):
        session.invoke()


def profiled_share(module, entry, threads, feed, scratch):
    """The operator's share of a file's kernels, by ONNX Runtime's profile.

    At a file's edges are changes of layout that cost as much as a small operator. The profile itself slows kernels by
    about a microsecond, so only the share is taken from it, and the time from runs without it.
    """
    package = module.import_runtime().module
    plain = package.SessionOptions

    def profiled():
        options = plain()
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(tempfile.gettempdir(), f"operators-{os.getpid()}")
        return options

    package.SessionOptions = profiled  # the backend opens the file: only the profile is added to its options
    try:
        session = module.Session(entry["file"], threads=threads)
    finally:
        package.SessionOptions = plain
    warm_up(session, feed)
    timed_runs(session, feed, PROFILED_RUNS, scratch)
    path = session._session.end_profiling()
    with open(path) as stream:
        events = json.load(stream)
    os.remove(path)
    return share_of(events, entry.get("keep", []))


def share_of(events, keep):
    """The median over runs of the time in kernels that count over the time in all kernels."""
    shares, counted, total = [], 0.0, 0.0
    for event in events:
        if event.get("name") == "model_run" and total:
            shares.append(counted / total)
            counted, total = 0.0, 0.0
        elif event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            op_type, spent = event["args"]["op_name"], event["dur"] + 0.5  # whole microseconds, rounded down
            total += spent
            counted += spent if op_type not in LAYOUT or op_type in keep else 0.0
    shares.sort()
    return shares[len(shares) // 2] if shares else 1.0


def measure(job, skip, current):
    """The document: a time a file. ``skip`` maps files to why they cannot be timed; ``current`` is told the file."""
    import numpy as np

    runner = load_runner()
    runner.pin(job["threads"])
    module = runner.backend(job["runtime"])
    try:
        version = module.import_runtime().version
    except ImportError as exc:
        return {"schema_version": SCHEMA_VERSION, "error": str(exc)}
    scratch = np.ones(max(16, job["footprint_bytes"] // 4), np.float32)
    found, errors = [[] for _ in job["files"]], dict(skip)
    gc.disable()
    for number in range(job["passes"]):
        for index in map(int, np.random.RandomState([job["seed"], number]).permutation(len(job["files"]))):
            if index in errors:
                continue
            write(current, index)
            try:
                found[index].append(visit(runner, module, job, index, scratch))
            except Exception as exc:  # every runtime has errors of its own
                errors[index] = runner.first_line(exc)
        gc.collect()
    times = []
    for index, passes in enumerate(found):
        if index in errors or not passes:
            times.append({"error": errors.get(index, "no pass ended")})
            continue
        ms = float(np.median([one for minima, _ in passes for one in minima]))
        times.append({"ms": ms, "share": float(np.median([share for _, share in passes]))})
    return {"schema_version": SCHEMA_VERSION, "version": version, "times": times}


def write(path, value):
    with open(path, "w") as stream:
        json.dump(value, stream)


def read(path):
    with open(path) as stream:
        return json.load(stream)


def supervise(job_path, times_path):
    """Measure in a process of its own; a file that ends it is left out, and the others are measured anew."""
    files, skip = len(read(job_path)["files"]), {}
    current, skipped = times_path + ".current", times_path + ".skip"
    while True:
        write(current, None)
        write(skipped, skip)
        command = [sys.executable, os.path.abspath(__file__), job_path, times_path, skipped, current]
        code = subprocess.call(command)
        culprit = read(current)
        if code >= 0 or culprit is None or len(skip) == files:
            return code
        skip[culprit] = f"running it ended its process with signal {-code}"


def main():
    if len(sys.argv) == 3:
        return abs(supervise(sys.argv[1], sys.argv[2]))
    skip = {int(index): reason for index, reason in read(sys.argv[3]).items()}
    document = measure(read(sys.argv[1]), skip, sys.argv[4])
    write(sys.argv[2], document)
    return 1 if "error" in document else 0


if __name__ == "__main__":
    sys.exit(main())
