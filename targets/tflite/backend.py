"""Runs .tflite files: LiteRT, else tflite_runtime, else TensorFlow Lite. Python 3.7 or later, numpy."""

import collections
import importlib
import sys
import warnings

import numpy as np

PACKAGES = ("ai_edge_litert", "tflite_runtime", "tensorflow")
DISTRIBUTIONS = {"ai_edge_litert": ("ai-edge-litert",), "tflite_runtime": ("tflite-runtime",)}
Runtime = collections.namedtuple("Runtime", "package version module")


def import_runtime(package=None):
    """The first package that can be imported (or just ``package``), its version and its module with `Interpreter`."""
    reasons = []
    for name in (package,) if package else PACKAGES:
        try:
            if name == "tensorflow":
                module = importlib.import_module("tensorflow")
                return Runtime(name, module.__version__, module.lite)
            return Runtime(name, version(name), importlib.import_module(name + ".interpreter"))
        except (ImportError, AttributeError) as exc:
            reasons.append(f"{name}: {exc}")
    wanted = package.replace("_", "-") if package else "ai-edge-litert"
    raise ImportError(f"no TFLite runtime ({'; '.join(reasons)}); install one with: pip install {wanted}")


def version(package):
    """The installed version of a package, ``unknown`` where it cannot be told."""
    module = sys.modules.get(package) or importlib.import_module(package)
    found = getattr(module, "__version__", None)
    if found:
        return str(found)
    try:
        from importlib import metadata

        return metadata.version(package.replace("_", "-"))
    except ImportError:  # before Python 3.8, or a package without metadata
        return "unknown"


class Session:
    """One loaded file; `run` takes and gives arrays by the names of the file's signature, or else of its tensors.

    ``inputs`` and ``outputs`` map names to ``{"shape": [...], "dtype": "int8", "scale": [...], "zero_point": [...]}``,
    the last two only where the tensor is quantized. With ``keep_all`` every intermediate tensor can be read by
    `tensors` after a run.
    """

    def __init__(self, path, threads=1, package=None, keep_all=False):
        make = import_runtime(package).module.Interpreter
        with warnings.catch_warnings():
            # LiteRT warns that keeping all tensors takes memory; TensorFlow that its interpreter moves to LiteRT.
            warnings.simplefilter("ignore")
            self.interpreter = make(model_path=path, num_threads=threads, experimental_preserve_all_tensors=keep_all)
        self.interpreter.allocate_tensors()
        inputs, outputs = self._interface()
        self._in = {name: detail["index"] for name, detail in inputs}
        self._out = {name: detail["index"] for name, detail in outputs}
        self.output_indices = dict(self._out)
        self.inputs = {name: _spec(detail) for name, detail in inputs}
        self.outputs = {name: _spec(detail) for name, detail in outputs}

    def _interface(self):
        """(name, details) of the inputs and of the outputs, in the file's order."""
        inputs, outputs = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        names_in, names_out = self._signature_names()
        return _named(inputs, names_in), _named(outputs, names_out)

    def _signature_names(self):
        """Tensor index -> name in the one signature; empty where there is none, or several."""
        keys = list(self.interpreter.get_signature_list())
        if len(keys) != 1:
            return {}, {}
        runner = self.interpreter.get_signature_runner(keys[0])
        if getattr(runner, "_subgraph_index", 0) != 0:
            return {}, {}
        both = runner.get_input_details(), runner.get_output_details()
        return tuple({detail["index"]: name for name, detail in details.items()} for details in both)

    def operators(self):
        """How many operators the file has and how many the delegate (XNNPACK) took; None where it is not told."""
        try:
            details = self.interpreter._get_ops_details()
        except AttributeError:
            return None
        taken = delegated(details)
        own = [d for d in details if d["op_name"] != "DELEGATE"]
        left = collections.Counter(d["op_name"] for d in own if d["index"] not in taken)
        partitions = len(details) - len(own)
        return {
            "total": len(own),
            "delegated": len(taken),
            "partitions": partitions,
            "left": dict(sorted(left.items())),
        }

    def set(self, feed):
        """Take the inputs of the next runs."""
        for name, index in self._in.items():
            self.interpreter.set_tensor(index, feed[name])

    def invoke(self):
        """Run once."""
        self.interpreter.invoke()

    def get(self):
        """The outputs of the last run."""
        return {name: self.interpreter.get_tensor(index) for name, index in self._out.items()}

    def run(self, feed):
        """The outputs for these inputs."""
        self.set(feed)
        self.invoke()
        return self.get()

    def tensors(self):
        """Every tensor that an operator made in the last run: (name, array, scale, zero point). Needs ``keep_all``."""
        made = {index for op in self.interpreter._get_ops_details() for index in op["outputs"]}
        found = []
        for detail in self.interpreter.get_tensor_details():
            if detail["index"] in made and detail["name"]:
                spec = _spec(detail)
                array = self.interpreter.get_tensor(detail["index"])
                found.append((detail["name"], array, spec.get("scale"), spec.get("zero_point")))
        return found


def delegated(details):
    """The indices of the operators that run inside a delegate, from ``Interpreter._get_ops_details()``.

    The list has the file's operators and then one ``DELEGATE`` for each part that was taken. A part's operators are
    those reached from the tensors it gives, backwards, up to the tensors it takes.
    """
    maker = {out: op for op in details if op["op_name"] != "DELEGATE" for out in op["outputs"]}
    taken = set()
    for part in (op for op in details if op["op_name"] == "DELEGATE"):
        outside = set(part["inputs"])
        waiting = [tensor for tensor in part["outputs"] if tensor not in outside]
        while waiting:
            op = maker.get(waiting.pop())
            if op is not None and op["index"] not in taken:
                taken.add(op["index"])
                waiting.extend(tensor for tensor in op["inputs"] if tensor not in outside)
    return taken


def _named(details, names):
    found, taken = [], set()
    for detail in details:
        name = names.get(detail["index"], detail["name"])
        if not name or name in taken:
            name = "{}#{}".format(name, detail["index"])
        taken.add(name)
        found.append((name, detail))
    return found


def _spec(detail):
    spec = {"shape": [int(size) for size in detail["shape"]], "dtype": np.dtype(detail["dtype"]).name}
    parameters = detail["quantization_parameters"]
    if len(parameters["scales"]):
        spec["scale"] = [float(scale) for scale in parameters["scales"]]
        spec["zero_point"] = [int(zero) for zero in parameters["zero_points"]]
    return spec
