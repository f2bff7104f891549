"""Runs .onnx files with ONNX Runtime on the CPU, or on a GPU where asked. Python 3.7 or later, numpy."""

import collections
import os

PACKAGES = ("onnxruntime",)
Runtime = collections.namedtuple("Runtime", "package version module")
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint64)": "uint64",
    "tensor(uint32)": "uint32",
    "tensor(uint16)": "uint16",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


#: By the short name: ONNX Runtime's own, the CPU's after it for what it does not take.
PROVIDERS = {
    "cpu": (),
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}


def import_runtime(package=None):
    """The runtime's package, its version and its module. Raises ImportError with the remedy."""
    try:
        import onnxruntime

        return Runtime("onnxruntime", onnxruntime.__version__, onnxruntime)
    except (ImportError, AttributeError) as exc:
        raise ImportError(f"ONNX Runtime cannot be imported ({exc}); install it with: pip install onnxruntime") from exc


class Session:
    """One loaded file; `run` takes and gives arrays by name.

    ``inputs`` and ``outputs`` map names to ``{"shape": [...], "dtype": "float32"}``; open sizes are 1.
    """

    def __init__(self, path, threads=1, package=None, optimize=True, provider="cpu"):
        module = import_runtime(package).module
        options = module.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = module.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        levels = module.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        # As applications have it: the workers spin for some 20 ms after a run. The runner pauses between files for
        # that; turned off, the runs themselves would be slower.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
        wanted = [(name, _options(name, path)) for name in PROVIDERS[provider]]
        self._session = module.InferenceSession(path, options, providers=[*wanted, "CPUExecutionProvider"])
        # ONNX Runtime goes on with the CPU where a provider does not start, and only logs it.
        if wanted and self._session.get_providers()[0] != wanted[0][0]:
            raise RuntimeError(f"{wanted[0][0]} does not start on this machine")
        self.inputs = {value.name: _spec(value) for value in self._session.get_inputs()}
        self.outputs = {value.name: _spec(value) for value in self._session.get_outputs()}
        self._binding = None

    def operators(self):
        """ONNX Runtime does not tell its operators."""
        return

    def set(self, feed):
        """Take the inputs of the next runs."""
        # Bound once, so that a run is timed without copies from and to Python.
        self._binding = self._session.io_binding()
        for name in self.inputs:
            self._binding.bind_cpu_input(name, feed[name])
        for name in self.outputs:
            self._binding.bind_output(name)

    def invoke(self):
        """Run once."""
        self._session.run_with_iobinding(self._binding)

    def get(self):
        """The outputs of the last run, copies of their own."""
        return {name: array.copy() for name, array in zip(self.outputs, self._binding.copy_outputs_to_cpu())}

    def run(self, feed):
        """The outputs for these inputs."""
        self.set(feed)
        self.invoke()
        return self.get()


def _options(provider, path):
    if provider != "TensorrtExecutionProvider":
        return {}
    # Every round is a process of its own: without the cache, each would build the engine again.
    cache = os.path.dirname(os.path.abspath(path))
    return {"trt_fp16_enable": True, "trt_engine_cache_enable": True, "trt_engine_cache_path": cache}


def _spec(value):
    if value.type not in DTYPES:
        raise ValueError(f"{value.name} has the type {value.type}, which is not supported")
    return {"shape": [d if isinstance(d, int) else 1 for d in value.shape], "dtype": DTYPES[value.type]}
