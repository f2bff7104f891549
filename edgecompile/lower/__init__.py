"""Lowering: a model at a precision becomes the file that a runtime executes."""

from __future__ import annotations

from edgecompile.lower.base import Runtime
from edgecompile.lower.onnxruntime import OnnxRuntime
from edgecompile.lower.tensorrt import TensorRT
from edgecompile.lower.tflite import TFLite
from edgecompile.types import RuntimeName

RUNTIMES: dict[RuntimeName, Runtime] = {
    "tflite": TFLite(),
    "onnxruntime": OnnxRuntime(),
    "tensorrt": TensorRT(),
}

__all__ = ["RUNTIMES", "Runtime"]
