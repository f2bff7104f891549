#!/usr/bin/env python3
"""Times many small files, each one operator, in one process: the machine's side of edgecompile's latency tables.

    python operators.py job.json times.json

Needs Python 3.7 or later, numpy, and the files' runtime; runner.py and the backends lie beside this file. The job is
``{"runtime", "threads", "seed", "files": [...], "passes", "blocks", "block_runs", "footprint_bytes"}``, the answer
``{"schema_version": 1, "version": ..., "times": [{"ms": ..., "spread": ...} or {"error": ...}, ...]}``.

All files are visited in several passes, so that drift hits all alike; in a pass each is loaded, warmed up, and run in
blocks. A time is the median of the blocks' minima. In a whole model an operator finds its inputs in the caches, since
the operator before has just written them, but not its weights, since a whole inference lies between two uses: so
before each timed run as many bytes are read as a whole inference touches, and then the inputs are written again.
"""

import gc
import importlib.util
import json
import os
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SCHEMA_VERSION = 1
#: Operators that only change the layout at the edge of a file; within a whole model they stand between other layouts.
LAYOUT = ("ReorderInput", "ReorderOutput", "Transpose")
#: What a file gets in a pass at most, so that one slow operator does not take all the time.
MOST_SECONDS = 0.5


def load_runner():
    """The module runner.py beside this file."""
    spec = importlib.util.spec_from_file_location("edgecompile_runner", os.path.join(HERE, "runner.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class WallClock:
    """Times a run from outside: for runtimes whose call costs next to nothing, such as TFLite."""

    def __init__(self, session):
        self.session = session
        self.times = []

    def run(self):
        start = time.perf_counter_ns()
        self.session.invoke()
        self.times.append(1e-6 * (time.perf_counter_ns() - start))

    def finish(self):
        """Milliseconds of every run since the start."""
        return self.times


class OnnxProfile:
    """Times the kernels of a run by ONNX Runtime's profile: a file's edges hold changes of layout that cost as much.

    The profile has whole microseconds, rounded down, so half of one is added for each kernel.
    """

    def __init__(self, session, keep):
        self.session = session
        self.keep = keep

    def run(self):
        self.session.invoke()

    def finish(self):
        """Milliseconds of every run since the file was loaded."""
        path = self.session._session.end_profiling()
        with open(path) as stream:
            events = json.load(stream)
        os.remove(path)
        times, total = [], 0.0
        for event in events:
            if event.get("name") == "model_run":
                times.append(1e-3 * total)
                total = 0.0
            elif event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                op_type = event["args"]["op_name"]
                total += event["dur"] + 0.5 if op_type not in LAYOUT or op_type in self.keep else 0.0
        return times


def open_timer(module, runtime, entry, threads):
    """A loaded file that can be timed."""
    if runtime != "onnxruntime":
        session = module.Session(entry["file"], threads=threads)
        return WallClock(session)
    # The backend opens the file; only the profile is added to the options that it makes.
    package = module.import_runtime().module
    plain = package.SessionOptions

    def profiled():
        options = plain()
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(tempfile.gettempdir(), f"operators-{os.getpid()}")
        return options

    package.SessionOptions = profiled
    try:
        session = module.Session(entry["file"], threads=threads)
    finally:
        package.SessionOptions = plain
    return OnnxProfile(session, entry.get("keep", []))


def visit(np, runner, module, job, number, scratch):
    """The block minima of one file in one pass, in milliseconds."""
    timer = open_timer(module, job["runtime"], job["files"][number], job["threads"])
    session = timer.session
    feed = runner.random_feed(session, job["seed"] + number)
    session.set(feed)
    for _ in range(3):
        session.invoke()
    runs, end = 0, time.perf_counter() + MOST_SECONDS
    while runs < job["blocks"] * job["block_runs"] and (runs < job["block_runs"] or time.perf_counter() < end):
        scratch[::16].sum()
        session.get()
        session.set(feed)
        timer.run()
        runs += 1
    times = timer.finish()[-runs:]
    size = job["block_runs"]
    return [min(times[at : at + size]) for at in range(0, len(times) - size + 1, size)]


def measure(job):
    """The document: a time a file."""
    import numpy as np

    runner = load_runner()
    runner.pin(job["threads"])
    module = runner.backend(job["runtime"])
    try:
        version = module.import_runtime().version
    except ImportError as exc:
        return {"schema_version": SCHEMA_VERSION, "error": str(exc)}
    scratch = np.ones(max(16, job["footprint_bytes"] // 4), np.float32)
    found, errors = [[] for _ in job["files"]], {}
    gc.disable()
    for number in range(job["passes"]):
        for index in np.random.RandomState([job["seed"], number]).permutation(len(job["files"])):
            try:
                found[index].append(visit(np, runner, module, job, int(index), scratch))
            except Exception as exc:  # every runtime has errors of its own
                errors[int(index)] = runner.first_line(exc)
        gc.collect()
    times = []
    for index, passes in enumerate(found):
        if index in errors or not passes:
            times.append({"error": errors.get(index, "no pass ended")})
            continue
        medians = [float(np.median(blocks)) for blocks in passes]
        spread = (max(medians) - min(medians)) / max(float(np.median(medians)), 1e-9)
        times.append({"ms": float(np.median(np.concatenate(passes))), "spread": spread})
    return {"schema_version": SCHEMA_VERSION, "version": version, "times": times}


def main():
    with open(sys.argv[1]) as stream:
        job = json.load(stream)
    document = measure(job)
    with open(sys.argv[2], "w") as stream:
        json.dump(document, stream)
    return 1 if "error" in document else 0


if __name__ == "__main__":
    sys.exit(main())
