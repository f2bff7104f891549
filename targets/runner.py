#!/usr/bin/env python3
"""Measures model files on the machine it runs on, interleaved, or runs given inputs through one of them.

    python runner.py --model tflite:a.tflite --model onnxruntime:b.onnx --threads 2
    python runner.py --model tflite:a.tflite --run-inputs inputs.npz --write-outputs outputs.npz

Needs Python 3.7 or later, numpy, and the files' runtimes. With --json the result is one line on standard output that
begins with EDGECOMPILE-RESULT; what native libraries print goes to standard error. README.md beside this file says
what the fields mean.
"""

import argparse
import contextlib
import functools
import gc
import hashlib
import importlib.util
import json
import operator
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
# The backends' folders are called like the packages they import: here they must not be found in place of those.
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != HERE]

import numpy as np  # noqa: E402

SCHEMA_VERSION = 1
SENTINEL = "EDGECOMPILE-RESULT "
EXIT_FAILED = 1
#: Latencies kept of one file: enough for any percentile that is reported; of faster files every n-th is kept.
MOST_LATENCIES = 10000
#: Turns of every file within a round.
TURNS = 3
#: The share of the warm-up time that rounds after the first spend on it: the machine is warm, the process is new.
LATER_WARMUP = 0.2
#: The threads of a pool spin for about 20 ms after a run; without a pause they would slow the file measured next.
PAUSE_S = 0.05
#: After another file's turn the caches are cold: these first moments of a turn are not counted. A run that takes longer
#: than a few of them fills the caches for the most part of itself.
SETTLE_S = 0.005
SLOW_MS = 20.0
#: Two passes agree when each file's median differs by no more than this share.
AGREE = 0.05
#: A pass begins within so many degrees of what the temperature was at first, or after --cool-down-s seconds.
NEAR_C = 5.0


class Failure(Exception):
    """Something that the caller should tell the user: one of the kinds of README.md, and words."""

    def __init__(self, kind, message, model=None):
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.model = model


def load_module(name, path):
    """A Python file as a module, without leaving anything beside it: a bundle stays as it was written."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    writing, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    spec.loader.exec_module(module)
    sys.dont_write_bytecode = writing
    return module


probes = load_module("edgecompile_probes", os.path.join(HERE, "probes.py"))
#: What is told about this machine, and what this process needs to know of itself.
HOST = probes.Probes()
SELF = probes.Probes()

# ------------------------------------------------------------------------------------------------------- files


def backend(runtime):
    """The module ``<runtime>/backend.py`` beside this file; what follows a ``+`` is for its sessions."""
    runtime = runtime.partition("+")[0]
    path = os.path.join(HERE, runtime, "backend.py")
    if not re.match(r"^[a-z0-9_]+$", runtime) or not os.path.isfile(path):
        raise Failure("usage", f"there is no backend for the runtime {runtime!r}: {path} is missing")
    return load_module("backend_" + runtime, path)


def split(model):
    """``RUNTIME:FILE`` as a pair."""
    runtime, colon, path = model.partition(":")
    if not colon or not os.path.isfile(path):
        raise Failure("usage", f"--model {model}: expected RUNTIME:FILE with a file that exists")
    return runtime, path


def import_runtime(index, model, package):
    """The backend of a model, its runtime imported: (module, the runtime)."""
    runtime, _ = split(model)
    module = backend(runtime)
    try:
        found = module.import_runtime(package if package in module.PACKAGES else None)
        return module, found._replace(package=found.package + "".join(runtime.partition("+")[1:]))
    except ImportError as exc:
        raise Failure("no_runtime", f"{runtime}: {exc}", index) from exc


def open_session(index, model, arguments):
    """A loaded file."""
    module, _ = import_runtime(index, model, arguments.runtime_module)
    package = arguments.runtime_module if arguments.runtime_module in module.PACKAGES else None
    runtime, path = split(model)
    provider = runtime.partition("+")[2]
    try:
        return module.Session(
            path, threads=arguments.threads, package=package, **({"provider": provider} if provider else {})
        )
    except Exception as exc:  # every runtime has errors of its own, some derived from Exception only
        raise Failure("bad_model", f"{os.path.basename(path)} cannot be loaded: {first_line(exc)}", index) from exc


def first_line(exc):
    text = str(exc).strip()
    return text.splitlines()[0] if text else type(exc).__name__


# ------------------------------------------------------------------------------------------------------ inputs


def random_feed(session, seed):
    """Seeded inputs: standard normal floats, all values of 8-bit integers, zeros and ones for wider integers."""
    generator = np.random.RandomState(seed)
    feed = {}
    for name, spec in sorted(session.inputs.items()):
        shape, dtype = spec["shape"], np.dtype(spec["dtype"])
        if dtype.kind == "f":
            feed[name] = generator.standard_normal(shape).astype(dtype)
        elif dtype.itemsize == 1 and dtype.kind in "iu":
            limits = np.iinfo(dtype)
            feed[name] = generator.randint(limits.min, limits.max + 1, shape).astype(dtype)
        else:
            # Wide integers are indices or masks: 0 and 1 are valid for nearly all of them.
            feed[name] = generator.randint(0, 2, shape).astype(dtype)
    return feed


def given_feed(session, arrays, index):
    """Inputs from an .npz: arrays of the input's shape, or stacked samples of which the first is taken."""
    feed = {}
    for name, spec in session.inputs.items():
        if name not in arrays:
            raise Failure("bad_inputs", f"no array {name!r} among the inputs; there are: {sorted(arrays)}", index)
        array, shape = arrays[name], tuple(spec["shape"])
        array = array[0] if array.ndim == len(shape) + 1 else array
        if array.shape != shape:
            message = f"array {name!r} has shape {array.shape}, the model takes {shape}"
            raise Failure("bad_inputs", message, index)
        feed[name] = np.asarray(array, dtype=spec["dtype"], order="C")
    return feed


def read_arrays(path):
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays.items())
    except (OSError, ValueError, AttributeError) as exc:
        raise Failure("bad_inputs", f"{path} is not an .npz of arrays: {first_line(exc)}") from exc


def feed_of(session, index, arguments):
    if arguments.inputs:
        return given_feed(session, read_arrays(arguments.inputs), index)
    return random_feed(session, arguments.seed + index)


# ---------------------------------------------------------------------------------------------- the measurement


def invoke_once(session, index):
    """One run, whose failure is the file's."""
    start = time.perf_counter_ns()
    try:
        session.invoke()
    except Exception as exc:
        raise Failure("bad_model", f"the model cannot be run: {first_line(exc)}", index) from exc
    return 1e-6 * (time.perf_counter_ns() - start)


def probe(arguments):
    """Load and run one file in this fresh process: what cannot be told where several files are loaded."""
    index, model = arguments.probe, arguments.model[arguments.probe]
    _, runtime = import_runtime(index, model, arguments.runtime_module)
    before = memory("VmRSS")
    start = time.perf_counter_ns()
    session = open_session(index, model, arguments)
    load_ms = 1e-6 * (time.perf_counter_ns() - start)
    session.set(feed_of(session, index, arguments))
    cold_ms = invoke_once(session, index)
    for _ in range(2):
        invoke_once(session, index)
    peak = memory("VmHWM")
    return {
        "load_ms": load_ms,
        "cold_ms": cold_ms,
        "peak_memory_bytes": None if peak is None or before is None else max(0, peak - before),
        "process_peak_memory_bytes": peak,
        "package": runtime.package,
        "version": runtime.version,
        "operators": session.operators(),
        "inputs": session.inputs,
        "outputs": session.outputs,
    }


def in_child(index, *mode):
    """What this program says with other arguments, in a process of its own; ``index`` is the file it is about."""
    # -u: a crash must not lose what was printed.
    command = [sys.executable, "-u", os.path.abspath(__file__), *sys.argv[1:], *mode, "--json"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        output = child.communicate()[0].decode("utf-8", "replace")
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    document = find_document(output)
    if document is None:
        how = f"signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
        raise Failure("crash", "loading and running the model ended its process with " + how, index)
    if "error" in document:
        raise Failure(document["error"]["kind"], document["error"]["message"], document["error"]["model"])
    return document


def find_document(output):
    for line in output.splitlines():
        if line.startswith(SENTINEL):
            return json.loads(line[len(SENTINEL) :])
    return None


def warm_up(session, index, seconds):
    """Run for some seconds (twice at least); gives the milliseconds of a run in the second half."""
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 2 or time.perf_counter() < end:
        times.append(invoke_once(session, index))
        if len(times) > MOST_LATENCIES:
            del times[: MOST_LATENCIES // 2]
    return float(np.median(times[len(times) // 2 :]))


def settle(session, estimate_ms, pause_s):
    """Let the other files' threads come to rest, and this file's data come back into the caches."""
    if pause_s:
        time.sleep(pause_s)
    end = time.perf_counter() + SETTLE_S
    while estimate_ms < SLOW_MS:
        session.invoke()
        if time.perf_counter() >= end:
            return


def turn(session, least_runs, least_seconds, stride):
    """Runs without a break; gives (latencies in ms, of which every stride-th is kept; number of runs)."""
    clock, invoke, times, runs = time.perf_counter_ns, session.invoke, [], 0
    end = clock() + int(1e9 * least_seconds)
    while True:
        start = clock()
        invoke()
        stop = clock()
        if runs % stride == 0:
            times.append(round(1e-6 * (stop - start), 6))
        runs += 1
        if runs >= least_runs and stop >= end:
            return times, runs


def measure_round(arguments):
    """One round, in this fresh process: every file is loaded and warmed up, then they take turns."""
    number, models = arguments.round, arguments.model
    generator = np.random.RandomState([arguments.seed, number])
    sessions = {}
    for index in generator.permutation(len(models)):
        sessions[index] = open_session(index, models[index], arguments)
        sessions[index].set(feed_of(sessions[index], index, arguments))
    warmup_s = arguments.warmup_s * (1.0 if number == 0 else LATER_WARMUP)
    estimates = [warm_up(sessions[index], index, warmup_s) for index in range(len(models))]
    before, gathered = usage(), [([], 0) for _ in models]
    runs = -(-arguments.min_runs // arguments.rounds)
    turns = min(TURNS, runs)
    seconds = arguments.min_seconds / arguments.rounds
    strides = arguments.strides or [
        max(1, int(1e3 * seconds * arguments.rounds / ms / MOST_LATENCIES)) for ms in estimates
    ]
    pause_s = PAUSE_S if arguments.threads > 1 and len(models) > 1 else 0.0
    gc.disable()
    for _ in range(turns):
        for index in generator.permutation(len(models)):
            settle(sessions[index], estimates[index], pause_s)
            times, count = turn(sessions[index], -(-runs // turns), seconds / turns, strides[index])
            gathered[index] = (gathered[index][0] + times, gathered[index][1] + count)
    gc.enable()
    found = [{"latencies_ms": g[0], "runs": g[1], "kept_every": k} for g, k in zip(gathered, strides)]
    return {"usage": spent(before, usage()), "models": found}


def measure(arguments):
    """The whole measurement as one document.

    A round is a process of its own: where a file's data happens to lie in memory changes its latency by some percent,
    and stays the same for as long as a process lives. With --passes, rounds are made in passes until two passes agree.
    """
    allowed = current_affinity()
    affinity = pin(arguments.threads) if arguments.pin else allowed
    before = HOST.state(affinity)
    found = [in_child(index, "--probe", str(index)) for index in range(len(arguments.model))]
    passes = make_passes(arguments, affinity, allowed, before["temperature_c"])
    kept = agreeing(passes) or passes
    rounds = [one for each in kept for one in each["rounds"]]
    environment = dict(machine(), affinity=affinity, before=before, after=HOST.state(affinity))
    environment["during"] = probes.summary([each["samples"] for each in passes])
    environment["passes"] = [
        dict({name: each[name] for name in ("medians_ms", "cooled_s", "temperature_c")}, kept=each in kept)
        for each in passes
    ]
    for name in ("own_cpus", "other_cpus", "stolen_cpus"):
        values = [one["usage"][name] for one in rounds]
        environment[name] = None if None in values else sum(values) / len(values)
    models = [
        dict(found_of(arguments, index, one), **gathered(index, rounds), agreed=agreed(passes, index))
        for index, one in enumerate(found)
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "threads": arguments.threads,
        "seed": arguments.seed,
        "inputs": arguments.inputs or "random",
        "environment": environment,
        "models": models,
    }


def found_of(arguments, index, one):
    """What the probe found of a file, with what says which file it was."""
    with open(split(arguments.model[index])[1], "rb") as stream:
        digest = hashlib.sha256(stream.read()).hexdigest()
    return dict(one, model=arguments.model[index], sha256=digest)


def gathered(index, rounds):
    """What the rounds found of one file."""
    ours = [one["models"][index] for one in rounds]
    return {
        "latencies_ms": [one["latencies_ms"] for one in ours],
        "runs": sum(one["runs"] for one in ours),
        "kept_every": ours[0]["kept_every"],
    }


def make_passes(arguments, affinity, allowed, start_c):
    """Halves of the rounds, and then as many rounds again as the first half had, until two of these passes agree."""
    most = arguments.passes if arguments.rounds > 1 else 1
    first = arguments.rounds if most == 1 else -(-arguments.rounds // 2)
    passes, number, strides = [], 0, ()
    others = sorted(set(allowed) - set(affinity))
    while len(passes) < most and not agreeing(passes):
        cooled_s = cool_down(start_c, arguments.cool_down_s) if passes else 0.0
        count = arguments.rounds - first if len(passes) == 1 else first
        celsius = HOST.temperature()
        with probes.Watch(HOST, affinity, others) as watch:
            rounds = []
            for _ in range(count):
                rounds.append(in_child(None, "--round", str(number), *strides))
                # Every round keeps the same share of its latencies, else some would weigh more than others.
                strides = ["--strides", *(str(one["kept_every"]) for one in rounds[0]["models"])]
                number += 1
        medians = [float(np.median(np.concatenate(gathered(i, rounds)["latencies_ms"])))
                   for i in range(len(arguments.model))]  # fmt: skip
        passes.append(
            {"rounds": rounds, "samples": watch.samples, "medians_ms": medians, "cooled_s": cooled_s,
             "temperature_c": celsius}
        )  # fmt: skip
    return passes


def agreeing(passes):
    """The two earliest passes whose medians agree for every file; None where there are none."""
    for later in range(1, len(passes)):
        for earlier in range(later):
            pairs = zip(passes[earlier]["medians_ms"], passes[later]["medians_ms"])
            if all(close(a, b) for a, b in pairs):
                return [passes[earlier], passes[later]]
    return None


def agreed(passes, index):
    """Whether any two passes agree about one file; None where only one pass was made."""
    medians = [each["medians_ms"][index] for each in passes]
    if len(medians) < 2:
        return None
    return any(close(a, b) for k, b in enumerate(medians) for a in medians[:k])


def close(a, b):
    return max(a, b) <= (1.0 + AGREE) * min(a, b)


def cool_down(start_c, most_s):
    """Wait until the temperature is near ``start_c``, for ``most_s`` seconds at most; the seconds waited."""
    begin = time.monotonic()
    while start_c is not None and time.monotonic() - begin < most_s:
        celsius = HOST.temperature()
        if celsius is None or celsius <= start_c + NEAR_C:
            break
        time.sleep(min(1.0, most_s))
    return time.monotonic() - begin


# ------------------------------------------------------------------------------------------- for a long time


def sustain(arguments):
    """One file without a break, in this fresh process: for each second the median latency and the number of runs.

    They go to the log as they come, so that nothing is lost when somebody ends it.
    """
    session = open_session(0, arguments.model[0], arguments)
    session.set(feed_of(session, 0, arguments))
    invoke_once(session, 0)
    before, begin, at_s = usage(), time.monotonic(), 0.0
    each_s = each_second(arguments.sustained)
    gc.disable()
    while at_s < arguments.sustained:
        times, count = turn(session, 1, each_s, 1)
        now = time.monotonic()
        at_s = now - begin
        told = {"at_s": at_s, "now_s": now, "latency_ms": float(np.median(times)), "runs": count}
        note(arguments.log, "second", dict(told, usage=spent(before, usage())))
    return {"seconds": at_s}


def note(path, kind, value):
    """Add a line to a log: one write, since two processes write to it."""
    line = json.dumps({kind: value}) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def read_log(path):
    """The lines of a log by their kind; one that was cut off is left out."""
    found = {"start": [], "second": [], "sample": []}
    with contextlib.suppress(OSError), open(path) as stream:
        for line in stream:
            with contextlib.suppress(ValueError):
                for kind, value in json.loads(line).items():
                    found[kind].append(value)
    return found


def each_second(seconds):
    """What "each second" means: a second, or for a run of less than a minute the sixtieth part of it."""
    return min(1.0, seconds / 60.0)


def measure_sustained(arguments):
    """Latency, temperature and clock against time, as one document."""
    allowed = current_affinity()
    affinity = pin(arguments.threads) if arguments.pin else allowed
    before = HOST.state(affinity)
    found = in_child(0, "--probe", "0")
    environment = dict(machine(), affinity=affinity, before=before)
    with contextlib.ExitStack() as stack:
        # Whoever names a log looks after it.
        log = arguments.log or os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "log")
        start = {"environment": environment, "model": dict(found, model=arguments.model[0])}
        note(log, "start", dict(start, threads=arguments.threads, seed=arguments.seed))
        others = sorted(set(allowed) - set(affinity))
        every_s = each_second(arguments.sustained)
        with probes.Watch(HOST, affinity, others, every_s=every_s, tell=lambda one: note(log, "sample", one)):
            in_child(0, "--sustain", "--log", log)
        return from_log(arguments, log)


def from_log(arguments, path):
    """The document of a run that is over, or that somebody ended."""
    lines = read_log(path)
    seconds, samples = lines["second"], lines["sample"]
    if not lines["start"] or not seconds:
        raise Failure("usage", "nothing was measured yet")
    start = lines["start"][0]
    environment = dict(start["environment"], **seconds[-1]["usage"])
    environment["after"] = HOST.state(environment["affinity"])
    environment["during"] = probes.summary([samples])
    times = [one["now_s"] for one in seconds]
    return {
        "schema_version": SCHEMA_VERSION,
        "threads": start["threads"],
        "seed": start["seed"],
        "inputs": arguments.inputs or "random",
        "environment": environment,
        "model": start["model"],
        "at_s": [one["at_s"] for one in seconds],
        "latency_ms": [one["latency_ms"] for one in seconds],
        "runs": [one["runs"] for one in seconds],
        "temperature_c": nearest(samples, "temperature_c", times),
        "frequency_mhz": nearest(samples, "frequency_mhz", times),
    }


def nearest(samples, name, times):
    """What the sample nearest to each moment tells of something; None where no sample does."""
    told = [(one["at_s"], one[name]) for one in samples if one[name] is not None]
    return [min(told, key=lambda one: abs(one[0] - at_s))[1] if told else None for at_s in times]


# ------------------------------------------------------------------------------------------------- the machine


def machine():
    """What does not change while measuring."""
    info = HOST.cpu()
    return {
        "device": HOST.device() or platform.node(),
        "machine": platform.machine(),
        "cpu_model": info["model"] or platform.processor(),
        "cpu_flags": info["flags"],
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": platform.platform(),
    }


def memory(field):
    """VmRSS or VmHWM of this process in bytes."""
    match = re.search(field + r":\s+(\d+) kB", SELF.read("proc/self/status") or "")
    return 1024 * int(match.group(1)) if match else None


def current_affinity():
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def pin(threads):
    """Keep this process on as many CPUs as it has threads, and give those: the big cores, each core once."""
    allowed = current_affinity()
    chosen = HOST.biggest(allowed, threads)
    with contextlib.suppress(OSError):
        if chosen:
            os.sched_setaffinity(0, chosen)
    return current_affinity()


def usage():
    """Seconds so far: of the clock, of this process, of all processes, and those that a hypervisor took."""
    fields = [int(n) for n in (SELF.read("proc/stat") or "cpu").splitlines()[0].split()[1:]]
    if len(fields) < 8 or not hasattr(os, "sysconf"):
        return time.perf_counter(), time.process_time(), None, None
    user, nice, system, _, _, irq, softirq, stolen = (n / os.sysconf("SC_CLK_TCK") for n in fields[:8])
    return time.perf_counter(), time.process_time(), user + nice + system + irq + softirq, stolen


def spent(before, after):
    """How many CPUs this process, all others, and the hypervisor took between two `usage`."""
    wall, own, busy, stolen = (None if a is None or b is None else b - a for a, b in zip(before, after))
    return {
        "own_cpus": own / wall,
        "other_cpus": None if busy is None else max(0.0, (busy - own) / wall),
        "stolen_cpus": None if stolen is None else stolen / wall,
    }


# ------------------------------------------------------------------------------------------------- given inputs


def run_inputs(arguments):
    """Run every stacked sample of an .npz through one file and write its outputs, stacked the same way."""
    session = open_session(0, arguments.model[0], arguments)
    arrays = read_arrays(arguments.run_inputs)
    counts = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(counts) != 1 or counts == {0}:
        raise Failure("bad_inputs", f"the arrays must be stacked, the same number of samples each: {sorted(counts)}")
    results = []
    for number in range(counts.pop()):
        session.set(given_feed(session, {name: array[number] for name, array in arrays.items()}, 0))
        invoke_once(session, 0)
        results.append(session.get())
    stacked = {name: np.stack([result[name] for result in results]) for name in results[0]}
    with open(arguments.write_outputs, "wb") as stream:
        np.savez(stream, **stacked)
    _, runtime = import_runtime(0, arguments.model[0], arguments.runtime_module)
    facts = {"package": runtime.package, "version": runtime.version, "environment": machine()}
    return dict(facts, schema_version=SCHEMA_VERSION, samples=len(results))


# ----------------------------------------------------------------------------------------------------- the face


def parse():
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form, allow_abbrev=False)
    add = parser.add_argument
    add("--model", action="append", required=True, metavar="RUNTIME:FILE", help="a file to measure; repeatable")
    add("--threads", type=positive, default=1, metavar="N")
    add("--warmup-s", type=float, default=1.0, metavar="S", help="seconds before measuring, each file (1)")
    add("--min-runs", type=positive, default=50, metavar="N", help="runs of each file, at least (50)")
    add("--min-seconds", type=float, default=3.0, metavar="S", help="seconds of runs of each file, at least (3)")
    add("--rounds", type=positive, default=10, metavar="N", help="fresh processes in which all files take turns (10)")
    add(
        "--passes",
        type=positive,
        default=1,
        metavar="N",
        help="halve the rounds, repeat until two agree, N at most (1)",
    )
    add("--cool-down-s", type=float, default=30.0, metavar="S", help="wait so long at most between passes (30)")
    add("--sustained", type=duration, metavar="TIME", help="run one file for 10m (or 90s, 1h) without a break")
    add("--log", metavar="FILE", help="where --sustained writes each second as it comes")
    add("--from-log", metavar="FILE", help="the document of what a --log holds so far; nothing is measured")
    add("--seed", type=int, default=0, metavar="N", help="of the random inputs and of the order in a round")
    add("--inputs", metavar="NPZ", help="inputs by name in place of random ones")
    add("--no-pin", dest="pin", action="store_false", help="leave the choice of CPUs to the kernel")
    add("--runtime-module", metavar="PACKAGE", help="ai_edge_litert, tflite_runtime or tensorflow")
    add("--run-inputs", metavar="NPZ", help="run these stacked samples through the file; nothing is measured")
    add("--write-outputs", metavar="NPZ", help="where --run-inputs writes the outputs")
    add("--output", metavar="JSON", help="write the document to this file too")
    add("--json", action="store_true", help="print the document, not a summary")
    add("--machine-root", default="/", help=argparse.SUPPRESS)
    add("--probe", type=int, help=argparse.SUPPRESS)
    add("--round", type=int, help=argparse.SUPPRESS)
    add("--sustain", action="store_true", help=argparse.SUPPRESS)
    add("--strides", type=positive, nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if bool(arguments.run_inputs) != bool(arguments.write_outputs):
        parser.error("--run-inputs and --write-outputs belong together")
    if arguments.run_inputs and len(arguments.model) != 1:
        parser.error("--run-inputs takes one --model")
    if arguments.sustained and (len(arguments.model) != 1 or arguments.run_inputs):
        parser.error("--sustained takes one --model, and no --run-inputs")
    return arguments


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def duration(text):
    """``90``, ``90s``, ``10m`` or ``1h`` in seconds."""
    match = re.match(r"^(\d+(?:\.\d+)?)([smh]?)$", text)
    seconds = float(match.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600}[match.group(2)] if match else 0.0
    if seconds <= 0:
        raise argparse.ArgumentTypeError("must be a time such as 90s or 10m")
    return seconds


def perform(arguments):
    """The document that was asked for, or the one that says why there is none."""
    try:
        check_package(arguments)
        if arguments.probe is not None:
            return probe(arguments)
        if arguments.round is not None:
            return measure_round(arguments)
        if arguments.sustain:
            return sustain(arguments)
        if arguments.from_log:
            return from_log(arguments, arguments.from_log)
        if arguments.sustained:
            return measure_sustained(arguments)
        return run_inputs(arguments) if arguments.run_inputs else measure(arguments)
    except Failure as exc:
        error = {"kind": exc.kind, "message": exc.message, "model": exc.model}
    except MemoryError:
        error = {"kind": "no_memory", "message": "not enough memory on this machine", "model": None}
    return {"schema_version": SCHEMA_VERSION, "error": error}


def check_package(arguments):
    """A forced package that no file's runtime knows is a mistake."""
    runtimes = [split(model)[0] for model in arguments.model]
    known = [package for runtime in runtimes for package in backend(runtime).PACKAGES]
    if arguments.runtime_module and arguments.runtime_module not in known:
        message = f"--runtime-module {arguments.runtime_module}: expected one of {', '.join(known)}"
        raise Failure("usage", message)


def summary(document):
    """The document in a few lines for people."""
    if "samples" in document:
        return "ran {samples} samples with {package} {version}".format(**document)
    lines = ["latency in ms, {} thread(s), {}".format(document["threads"], document["environment"]["cpu_model"])]
    if "at_s" in document:
        return "\n".join(lines + sustained_lines(document) + machine_lines(document["environment"]))
    for found in document["models"]:
        series = np.concatenate(found["latencies_ms"])
        figures = tuple(np.percentile(series, q) for q in (50, 90, 95, 99))
        lines.append(found["model"])
        lines.append("  median {:.3f}  p90 {:.3f}  p95 {:.3f}  p99 {:.3f}".format(*figures))
        facts = "  {runs} runs, first run {cold_ms:.3f}, loading {load_ms:.1f}, {package} {version}"
        lines.append(facts.format(**found))
        if found["agreed"] is False:
            lines.append("  no two passes agreed: do not rely on these figures")
    return "\n".join(lines + machine_lines(document["environment"]))


def machine_lines(environment):
    """Why the figures may be about the machine's state more than about the file."""
    states = [environment[name] for name in ("before", "during", "after") if environment[name]]
    bits = functools.reduce(operator.or_, (one["throttled"] or 0 for one in states))
    lines = [f"throttled: {words}" for bit, words in probes.THROTTLED_BITS.items() if bits >> bit & 1]
    cooling = sorted({kind for one in states for kind in one["cooling"]})
    if cooling:
        lines.append("the kernel slows the CPU to cool it: " + ", ".join(cooling))
    if (environment["before"]["load"] or 0.0) > environment["cores"]:
        lines.append(
            "the machine was overloaded before the start: load average {load:.1f}".format(**environment["before"])
        )
    return lines


def sustained_lines(document):
    """A line for each tenth of the time."""
    rows = list(zip(*(document[name] for name in ("at_s", "latency_ms", "temperature_c", "frequency_mhz"))))
    shown = rows[:: max(1, len(rows) // 10)]
    return ["  after {:.0f} s: {:.3f} ms, {} degrees, {} MHz".format(*row) for row in shown]


def quiet_stdout():
    """Send what native libraries print to standard error, and give a stream to the real standard output."""
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(real, "w")


def stop(number, frame):
    # Raised between two runs, so that children are ended and nothing is left half written.
    raise SystemExit(128 + number)


def main():
    arguments = parse()
    HOST.root = arguments.machine_root
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    with quiet_stdout() as stdout:
        document = perform(arguments)
        text = json.dumps(document)
        child = arguments.probe is not None or arguments.round is not None or arguments.sustain
        if arguments.output and not child:
            with open(arguments.output, "w") as stream:
                stream.write(text + "\n")
        if arguments.json:
            stdout.write("\n" + SENTINEL + text + "\n")
        elif "error" in document:
            sys.stderr.write("error: {}\n".format(document["error"]["message"]))
        else:
            stdout.write(summary(document) + "\n")
        stdout.flush()
    return EXIT_FAILED if "error" in document else 0


if __name__ == "__main__":
    sys.exit(main())
