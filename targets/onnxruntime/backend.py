"""Runs .onnx files with ONNX Runtime on the CPU. Python 3.7+, numpy."""


class Session:
    """One loaded file; run() takes and gives arrays by name."""

    def __init__(self, path, threads=1, package=None, optimize=True):
        import onnxruntime

        self.package = "onnxruntime"
        self._version = onnxruntime.__version__
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A pool that spins would disturb whatever is measured in between.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = {i.name: {"shape": i.shape, "type": i.type} for i in self._session.get_inputs()}
        self.outputs = {o.name: {"shape": o.shape, "type": o.type} for o in self._session.get_outputs()}
        self._names = list(self.outputs)

    def version(self):
        return self._version

    def operators(self):
        return None, None

    def set(self, feed):
        self._feed = {name: feed[name] for name in self.inputs}

    def invoke(self):
        self._result = self._session.run(self._names, self._feed)

    def get(self):
        return dict(zip(self._names, self._result))

    def run(self, feed):
        self.set(feed)
        self.invoke()
        return self.get()
