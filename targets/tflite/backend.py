"""Runs .tflite files: LiteRT, else tflite_runtime, else TensorFlow Lite. Python 3.7+, numpy."""

import importlib

PACKAGES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite")


def _package(forced):
    for name in PACKAGES:
        if forced and name.split(".")[0] != forced:
            continue
        try:
            return name, importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError("no TFLite runtime is installed: pip install ai-edge-litert")


class Session:
    """One loaded file; run() takes and gives arrays by the names of the file's signature, or of its tensors."""

    def __init__(self, path, threads=1, package=None):
        self.package, module = _package(package)
        self.interpreter = module.Interpreter(model_path=path, num_threads=threads)
        self.interpreter.allocate_tensors()
        signatures = self.interpreter.get_signature_list()
        inputs = self.interpreter.get_input_details()
        outputs = self.interpreter.get_output_details()
        self.inputs, self.outputs = {}, {}
        if len(signatures) == 1:
            runner = self.interpreter.get_signature_runner(list(signatures)[0])
            by_in, by_out = runner.get_input_details(), runner.get_output_details()
            self.inputs = {name: by_in[name] for name in by_in}
            self.outputs = {name: by_out[name] for name in by_out}
        else:
            self.inputs = {d["name"]: d for d in inputs}
            self.outputs = {d["name"]: d for d in outputs}

    def version(self):
        try:
            from importlib import metadata
        except ImportError:
            return "unknown"
        for name in ("ai-edge-litert", "tflite-runtime", "tensorflow"):
            if self.package.split(".")[0].replace("_", "-") == name:
                try:
                    return metadata.version(name)
                except Exception:
                    return "unknown"
        return "unknown"

    def operators(self):
        """(operators the delegate took or None, operators in all)"""
        try:
            names = [d["op_name"] for d in self.interpreter._get_ops_details()]
        except Exception:
            return None, None
        delegates = names.count("DELEGATE")
        return delegates, len(names)

    def set(self, feed):
        for name, detail in self.inputs.items():
            self.interpreter.set_tensor(detail["index"], feed[name])

    def invoke(self):
        self.interpreter.invoke()

    def get(self):
        return {name: self.interpreter.get_tensor(d["index"]) for name, d in self.outputs.items()}

    def run(self, feed):
        self.set(feed)
        self.invoke()
        return self.get()
