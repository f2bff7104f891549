"""Does what of trtexec is needed here by TensorRT's Python API, for boards and containers that have only that.

It takes the same options, prints the same lines and writes the same files (`--exportTimes`, `--exportProfile`,
`--exportLayerInfo`, `--exportOutput`), so that it is read by the same code. Unlike trtexec it uses no CUDA graphs, and
says so. Python 3.6 or later, numpy, TensorRT 8.0 or later; CUDA's runtime library is called through ctypes.
"""

import ctypes
import glob
import json
import os
import sys
import time

import numpy as np

import tensorrt as trt

VERSION = tuple(int(part) for part in trt.__version__.split(".")[:3])
TO_DEVICE, TO_HOST = 1, 2


def say(level, text):
    stream = sys.stderr if level == "E" else sys.stdout
    print(f"[{time.strftime('%m/%d/%Y-%H:%M:%S')}] [{level}] {text}", file=stream, flush=True)


def banner(word):
    major, minor, patch = VERSION
    number = f"{major}{minor}{patch:02}" if major < 10 else f"{major}{minor:02}{patch:02}"
    print(f"&&&& {word} TensorRT.trtexec [TensorRT v{number}] # {' '.join(sys.argv[1:])}", flush=True)


class Failure(Exception):
    """What ends the program, said as trtexec says it."""


class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)

    def log(self, severity, msg):
        levels = {trt.ILogger.INTERNAL_ERROR: "E", trt.ILogger.ERROR: "E", trt.ILogger.WARNING: "W"}
        if severity in levels:
            say(levels[severity], "[TRT] " + msg)


class Cuda:
    """The few functions of CUDA's runtime that running an engine takes."""

    def __init__(self):
        self._library = self._open()

    @staticmethod
    def _open():
        places = [os.environ.get("EDGECOMPILE_CUDART"), "libcudart.so"]
        places += sorted(glob.glob("/usr/local/cuda*/lib64/libcudart.so*"), reverse=True)
        places += [f"libcudart.so.{number}" for number in ("13", "12", "11.0", "10.2")]
        for place in filter(None, places):
            try:
                return ctypes.CDLL(place)
            except OSError:
                continue
        raise Failure("CUDA initialization failure with error: 35. There is no libcudart.so")

    def __getattr__(self, name):
        function = getattr(self._library, "cuda" + name)

        def call(*arguments):
            code = function(*arguments)
            if code:
                raise Failure(f"Cuda failure: cuda{name} gave error {code}")

        return call

    def allocate(self, size):
        pointer = ctypes.c_void_p()
        self.Malloc(ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return pointer

    def copy(self, target, source, size, kind):
        self.Memcpy(target, source, ctypes.c_size_t(size), ctypes.c_int(kind))

    def stream(self):
        found = ctypes.c_void_p()
        self.StreamCreate(ctypes.byref(found))
        return found

    def event(self):
        found = ctypes.c_void_p()
        self.EventCreate(ctypes.byref(found))
        return found

    def between(self, first, last):
        ms = ctypes.c_float()
        self.EventElapsedTime(ctypes.byref(ms), first, last)
        return ms.value


# ---------------------------------------------------------------------------------------------------------- build


def build(options):
    logger = Log()
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(options))
    parser = trt.OnnxParser(network, logger)
    with open(options["onnx"], "rb") as stream:
        if not parser.parse(stream.read()):
            for number in range(parser.num_errors):
                _say_refusal(parser.get_error(number))
            raise Failure("Failed to parse onnx file")
    config = builder.create_builder_config()
    _configure(config, options)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Failure("Engine could not be created from network")
    with open(options["saveEngine"], "wb") as stream:
        stream.write(bytes(plan))
    _keep_timings(config, options)
    if "exportLayerInfo" in options:
        engine = trt.Runtime(logger).deserialize_cuda_engine(bytes(plan))
        export_layers(engine, options["exportLayerInfo"])


def _network_flags(options):
    names = ["EXPLICIT_BATCH"] if VERSION < (10,) else []
    names += ["STRONGLY_TYPED"] if "stronglyTyped" in options or VERSION >= (11,) else []
    flags = 0
    for name in names:
        if hasattr(trt.NetworkDefinitionCreationFlag, name):
            flags |= 1 << int(getattr(trt.NetworkDefinitionCreationFlag, name))
    return flags


def _say_refusal(error):
    """As TensorRT 10's own program lists what its parser refuses."""
    name = error.node_name() if hasattr(error, "node_name") else "?"
    operator = error.node_operator() if hasattr(error, "node_operator") else "?"
    where = f"In node {error.node()} with name: {name} and operator: {operator} ({error.func()})"
    say("E", f"{where}: {error.desc()}")


def _configure(config, options):
    mib = int(options.get("workspace") or options.get("memPoolSize", "").partition(":")[2] or 0)
    if mib and hasattr(config, "set_memory_pool_limit"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, mib << 20)
    elif mib:
        config.max_workspace_size = mib << 20
    for option, flag in (("fp16", "FP16"), ("int8", "INT8")):
        if option in options:
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if options.get("profilingVerbosity") == "detailed" and hasattr(config, "profiling_verbosity"):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if "timingCacheFile" in options:
        known = b""
        if os.path.isfile(options["timingCacheFile"]):
            with open(options["timingCacheFile"], "rb") as stream:
                known = stream.read()
        config.set_timing_cache(config.create_timing_cache(known), False)


def _keep_timings(config, options):
    if "timingCacheFile" in options:
        with open(options["timingCacheFile"], "wb") as stream:
            stream.write(bytes(config.get_timing_cache().serialize()))


def export_layers(engine, path):
    if not hasattr(engine, "create_engine_inspector"):
        return
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    with open(path, "w") as stream:
        stream.write(text)


# ------------------------------------------------------------------------------------------------------------ run


class Tensor:
    """One input or output: its name, shape and type, and its memory on the GPU."""

    def __init__(self, name, is_input, shape, dtype):
        self.name, self.is_input, self.shape = name, is_input, tuple(shape)
        self.dtype = np.dtype(trt.nptype(dtype))
        self.bytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self.pointer = None


class Engine:
    """An engine with its tensors in place, ready to run."""

    def __init__(self, path, cuda):
        self.cuda = cuda
        self._runtime = trt.Runtime(Log())
        with open(path, "rb") as stream:
            self.engine = self._runtime.deserialize_cuda_engine(stream.read())
        if self.engine is None:
            raise Failure("Engine set up failed")
        self.context = self.engine.create_execution_context()
        self.by_name = hasattr(self.engine, "num_io_tensors")
        self.tensors = self._named() if self.by_name else self._numbered()
        self.stream = cuda.stream()
        for tensor in self.tensors:
            tensor.pointer = cuda.allocate(tensor.bytes)
            if self.by_name:
                self.context.set_tensor_address(tensor.name, tensor.pointer.value)

    def _named(self):
        engine = self.engine
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        return [Tensor(n, is_input[n], engine.get_tensor_shape(n), engine.get_tensor_dtype(n)) for n in names]

    def _numbered(self):
        engine = self.engine
        numbers = range(engine.num_bindings)
        is_input = [engine.binding_is_input(n) for n in numbers]
        shapes = [engine.get_binding_shape(n) for n in numbers]
        return [
            Tensor(engine.get_binding_name(n), is_input[n], shapes[n], engine.get_binding_dtype(n)) for n in numbers
        ]

    def launch(self):
        if self.by_name:
            self.context.execute_async_v3(self.stream.value or 0)
        else:
            self.context.execute_async_v2([t.pointer.value for t in self.tensors], self.stream.value or 0)

    def wait(self):
        self.cuda.StreamSynchronize(self.stream)

    def load(self, files):
        """Fill the inputs: from files by name, else with random values."""
        generator = np.random.RandomState(0)
        for tensor in self.tensors:
            if not tensor.is_input:
                continue
            if tensor.name in files:
                with open(files[tensor.name], "rb") as stream:
                    data = stream.read()
            else:
                data = generator.uniform(-1, 1, tensor.shape).astype(tensor.dtype).tobytes()
            if len(data) != tensor.bytes:
                raise Failure(f"{tensor.name} has {len(data)} bytes, and the input takes {tensor.bytes}")
            self.cuda.copy(tensor.pointer, data, len(data), TO_DEVICE)

    def outputs(self):
        for tensor in self.tensors:
            if not tensor.is_input:
                array = np.empty(tensor.shape, tensor.dtype)
                self.cuda.copy(array.ctypes.data_as(ctypes.c_void_p), tensor.pointer, tensor.bytes, TO_HOST)
                yield tensor, array


def run(options):
    engine = Engine(options["loadEngine"], Cuda())
    engine.load(_files(options.get("loadInputs", "")))
    if "exportOutput" in options:
        engine.launch()
        engine.wait()
        export_outputs(engine, options["exportOutput"])
        return
    times = measured(engine, options)
    if "exportTimes" in options:
        export_times(times, options["exportTimes"])
    if "exportProfile" in options:
        export_profile(engine, options["exportProfile"])
    if "exportLayerInfo" in options:
        export_layers(engine.engine, options["exportLayerInfo"])
    summary([ms for _, ms in times], options.get("percentile", "99"))


def _files(text):
    """``'name':file,'name':file``; a name stands in quotes, and may hold anything else."""
    found = {}
    while text:
        name, _, text = text[1:].partition("':")
        path, _, text = text.partition(",")
        found[name] = path
    return found


def measured(engine, options):
    """When each run after the warm-up began, and what it took, in ms."""
    warmup, duration = float(options.get("warmUp", 200)), 1000 * float(options.get("duration", 3))
    first, last = engine.cuda.event(), engine.cuda.event()
    began, times = time.time(), []
    while True:
        at = 1000 * (time.time() - began)
        if at >= warmup + duration and len(times) >= int(options.get("iterations", 10)):
            return times
        engine.cuda.EventRecord(first, engine.stream)
        engine.launch()
        engine.cuda.EventRecord(last, engine.stream)
        engine.cuda.EventSynchronize(last)
        if at >= warmup:
            times.append((at, engine.cuda.between(first, last)))


# -------------------------------------------------------------------------------------------------------- exports


def export_times(times, path):
    rows = [
        {"startComputeMs": at, "endComputeMs": at + ms, "h2dMs": 0, "computeMs": ms, "d2hMs": 0, "latencyMs": ms}
        for at, ms in times
    ]
    with open(path, "w") as stream:
        json.dump(rows, stream)


def export_outputs(engine, path):
    parts = []
    for tensor, array in engine.outputs():
        values = ", ".join(f"{value:g}" for value in array.ravel().tolist())
        shape = "x".join(str(size) for size in tensor.shape)
        head = f'{{ "name" : "{tensor.name}"\n  , "dimensions" : "{shape}"\n'
        parts.append(f'{head}  , "values" : [ {values} ]\n  }}\n')
    with open(path, "w") as stream:
        stream.write("[\n  " + ", ".join(parts) + "]\n")


class Profiler(trt.IProfiler):
    def __init__(self):
        trt.IProfiler.__init__(self)
        self.times = {}

    def report_layer_time(self, layer_name, ms):
        self.times.setdefault(layer_name, []).append(ms)


def export_profile(engine, path, runs=50):
    profiler = Profiler()
    engine.context.profiler = profiler
    for _ in range(runs):
        engine.launch()
        engine.wait()
    total = sum(map(sum, profiler.times.values())) or 1.0
    rows = [f'{{ "count" : {runs} }}']
    for name, times in profiler.times.items():
        figures = f'"timeMs" : {sum(times):g}, "averageMs" : {sum(times) / runs:g}, "medianMs" : {np.median(times):g}'
        rows.append(f'{{ "name" : "{name}", {figures}, "percentage" : {100 * sum(times) / total:g} }}')
    with open(path, "w") as stream:
        stream.write("[\n  " + "\n, ".join(rows) + "\n]\n")


def summary(times, percentiles):
    wanted = [float(part) for part in percentiles.split(",")]
    rest = ", ".join(f"percentile({p:g}%) = {np.percentile(times, p):g} ms" for p in wanted)
    figures = f"min = {min(times):g} ms, max = {max(times):g} ms, mean = {np.mean(times):g} ms"
    say("I", "=== Performance summary ===")
    say("I", f"Throughput: {1000 / max(float(np.mean(times)), 1e-9):g} qps")
    for name in ("Latency", "GPU Compute Time"):
        say("I", f"{name}: {figures}, median = {np.median(times):g} ms, {rest}")
    say("W", "* measured by TensorRT's Python API, without CUDA graphs: small models launch more slowly so")


def main():
    banner("RUNNING")
    options = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
    if "help" in options:
        print(__doc__)
        return 0
    try:
        build(options) if "onnx" in options else run(options)
    except (Failure, OSError) as error:
        say("E", str(error))
        banner("FAILED")
        return 1
    banner("PASSED")
    return 0


if __name__ == "__main__":
    sys.exit(main())
