"""Runs a graph on many samples, piece by piece: after each piece the weights of the next may be changed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgecompile.techniques.channels import GraphView

if TYPE_CHECKING:
    import onnx

    from edgecompile.types import Arrays

Array = npt.NDArray[Any]


class Flow:
    """The samples on their way through a graph, each holding only the tensors that are still needed.

    Every piece runs in ONNX Runtime with one thread a sample, so that results do not depend on the number of cores.
    """

    def __init__(self, view: GraphView, samples: Sequence[Arrays], *, keep: Sequence[str] = ()) -> None:
        self.view = view
        self.constants = dict(view.constants)
        self.values: list[dict[str, Array]] = [{k: np.asarray(v) for k, v in sample.items()} for sample in samples]
        self.position = 0
        self._keep = {*keep, *view.outputs}
        #: The last node that reads a tensor.
        self._last = {name: i for i, node in enumerate(view.nodes) for name in node.input}

    def advance(self, stop: int) -> None:
        """Run all nodes before number ``stop``; tensors that no later node reads are dropped."""
        if stop <= self.position:
            return
        nodes = [node for node in self.view.nodes[self.position : stop] if node.op_type != "Constant"]
        made = {name for node in nodes for name in node.output}
        needed = [name for name in made if name and (self._last.get(name, -1) >= stop or name in self._keep)]
        if nodes and needed:
            self._run(nodes, sorted(needed))
        self.position = stop
        for values in self.values:
            for name in [n for n in values if self._last.get(n, -1) < stop and n not in self._keep]:
                del values[name]

    def finish(self) -> None:
        """Run to the end."""
        self.advance(len(self.view.nodes))

    def value(self, name: str) -> list[Array]:
        """A tensor of every sample."""
        return [values[name] for values in self.values]

    def _run(self, nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> None:
        session, inputs = self._session(nodes, outputs)

        def one(values: dict[str, Array]) -> None:
            made = session.run(list(outputs), {name: values[name] for name in inputs})
            values.update(zip(outputs, made, strict=True))

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(one, self.values))

    def _session(self, nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> tuple[Any, list[str]]:
        import onnx
        import onnxruntime

        made = {name for node in nodes for name in node.output}
        read = list(dict.fromkeys(name for node in nodes for name in node.input if name and name not in made))
        inputs = [name for name in read if name not in self.constants]
        graph = onnx.helper.make_graph(
            nodes,
            "piece",
            [self._info(name, self.values[0][name]) for name in inputs],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [onnx.numpy_helper.from_array(self.constants[n], n) for n in read if n in self.constants],
        )
        model = onnx.helper.make_model(graph, opset_imports=list(self.view.model.opset_import))
        model.ir_version = self.view.model.ir_version
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session, inputs

    @staticmethod
    def _info(name: str, array: Array) -> onnx.ValueInfoProto:
        import onnx

        return onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), list(array.shape)
        )
