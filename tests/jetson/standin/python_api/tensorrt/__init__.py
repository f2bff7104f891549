"""TensorRT's Python API as far as the board's program uses it, in the form of the version in the settings.

An engine is an ONNX graph with a header; ONNX Runtime computes it in the memory that the fake CUDA library gave.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

_SETTINGS = json.loads((Path(os.environ["EDGECOMPILE_HOST_ROOT"]) / "standin.json").read_text())
__version__ = _SETTINGS["version"] + ".1"
_VERSION = tuple(int(part) for part in _SETTINGS["version"].split("."))
_NAMED = _VERSION >= (8, 5)
_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    def __init__(self) -> None:
        pass


class IProfiler:
    def __init__(self) -> None:
        pass


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    FP16 = 0
    INT8 = 2


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class ProfilingVerbosity(enum.Enum):
    DETAILED = 2


class LayerInformationFormat(enum.Enum):
    JSON = 1


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


def nptype(kind: Any) -> Any:
    return kind


class _Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"by python\n"


class _Config:
    def __init__(self) -> None:
        self.flags: set[BuilderFlag] = set()
        self.cache = _Cache(b"")

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def create_timing_cache(self, data: bytes) -> _Cache:
        return _Cache(data)

    def set_timing_cache(self, cache: _Cache, ignore_mismatch: bool) -> None:
        self.cache = cache

    def get_timing_cache(self) -> _Cache:
        return self.cache


class _Network:
    def __init__(self, flags: int) -> None:
        if _VERSION < (10,) and not flags & 1:
            raise RuntimeError("parsing ONNX needs an explicit batch")
        self.strong = bool(flags & 2)
        self.graph = b""


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> _Network:
        return _Network(flags)

    def create_builder_config(self) -> _Config:
        return _Config()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        graph = onnx.load_from_string(network.graph)
        quantized = any(node.op_type == "QuantizeLinear" for node in graph.graph.node)
        if _SETTINGS.get("fault"):
            words = "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)"
            self.logger.log(ILogger.ERROR, words)
            return None
        if not network.strong and quantized and BuilderFlag.INT8 not in config.flags:
            self.logger.log(ILogger.ERROR, "INT8 is not enabled, and the network has quantizers")
            return None
        return json.dumps({"version": __version__, "strong": network.strong}).encode() + b"\n" + network.graph


class _Refusal:
    def node(self) -> int:
        return 3

    def node_name(self) -> str:
        return "the det"

    def node_operator(self) -> str:
        return "Det"

    def func(self) -> str:
        return "parseNode"

    def desc(self) -> str:
        return "Plugin not found, are the plugin name, version, and namespace correct?"


class OnnxParser:
    num_errors = 1

    def __init__(self, network: _Network, logger: ILogger) -> None:
        self.network = network

    def parse(self, data: bytes) -> bool:
        self.network.graph = data
        return b"Det" not in data

    def get_error(self, number: int) -> _Refusal:
        return _Refusal()


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> _Engine | None:
        head, _, graph = bytes(data).partition(b"\n")
        if json.loads(head)["version"] != __version__:
            words = "6: The engine plan file is not compatible with this version of TensorRT, expecting library "
            words += f"version {__version__} got {json.loads(head)['version']}, please rebuild."
            self.logger.log(ILogger.ERROR, words)
            return None
        return _Engine(graph)


class _Inspector:
    def get_engine_information(self, form: LayerInformationFormat) -> str:
        return json.dumps({"Layers": ["conv0 + relu0", "fc"], "Bindings": []})


class _Engine:
    def __init__(self, graph: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name for value in self.session.get_inputs()}
        self.values = [*self.session.get_inputs(), *self.session.get_outputs()]
        self._count = len(self.values)

    def create_engine_inspector(self) -> _Inspector:
        return _Inspector()

    def create_execution_context(self) -> _Context:
        return _Context(self)

    def _value(self, name: str) -> Any:
        return next(value for value in self.values if value.name == name)

    if _NAMED:

        @property
        def num_io_tensors(self) -> int:
            return self._count

        def get_tensor_name(self, number: int) -> str:
            return str(self.values[number].name)

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

        def get_tensor_shape(self, name: str) -> list[int]:
            return list(self._value(name).shape)

        def get_tensor_dtype(self, name: str) -> Any:
            return _TYPES[self._value(name).type]

    else:

        @property
        def num_bindings(self) -> int:
            return self._count

        def get_binding_name(self, number: int) -> str:
            return str(self.values[number].name)

        def binding_is_input(self, number: int) -> bool:
            return self.values[number].name in self.inputs

        def get_binding_shape(self, number: int) -> list[int]:
            return list(self.values[number].shape)

        def get_binding_dtype(self, number: int) -> Any:
            return _TYPES[self.values[number].type]


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.profiler: Any = None

    def _compute(self) -> None:
        feed = {name: self._array(name).copy() for name in self.engine.inputs}
        results = self.engine.session.run(None, feed)
        for value, result in zip(self.engine.session.get_outputs(), results, strict=True):
            self._array(value.name)[...] = result
        if self.profiler is not None:
            self.profiler.report_layer_time("conv0", 0.75)
            self.profiler.report_layer_time("fc", 0.25)

    def _array(self, name: str) -> Any:
        value = self.engine._value(name)
        kind = np.dtype(_TYPES[value.type])
        size = int(np.prod(value.shape)) * kind.itemsize
        memory = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(memory, kind).reshape(value.shape)

    if _NAMED:

        def set_tensor_address(self, name: str, address: int) -> None:
            self.addresses[name] = address

        def execute_async_v3(self, stream: int) -> None:
            self._compute()

    else:

        def execute_async_v2(self, bindings: list[int], stream: int) -> None:
            self.addresses = {v.name: address for v, address in zip(self.engine.values, bindings, strict=True)}
            self._compute()
