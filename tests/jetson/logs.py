"""Logs of ``trtexec`` from boards, as people published them, shortened; some with a line of another added."""

from __future__ import annotations

XAVIER_NX = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v8201] # /usr/src/tensorrt/bin/trtexec --loadEngine=model.trt --batch=16
[12/06/2022-15:00:20] [I] === Performance summary ===
[12/06/2022-15:00:20] [I] Throughput: 27207 qps
[12/06/2022-15:00:20] [I] Latency: min = 0.564209 ms, max = 0.593018 ms, mean = 0.573891 ms, median = 0.572998 ms, \
percentile(99%) = 0.587769 ms
[12/06/2022-15:00:20] [I] End-to-End Host Latency: min = 0.574707 ms, max = 0.606201 ms, mean = 0.586663 ms, \
median = 0.585938 ms, percentile(99%) = 0.601685 ms
[12/06/2022-15:00:20] [I] GPU Compute Time: min = 0.554932 ms, max = 0.58374 ms, mean = 0.564682 ms, \
median = 0.564087 ms, percentile(99%) = 0.578552 ms
[12/06/2022-15:00:21] [I] Total Host Walltime: 3.00158 s
[12/06/2022-15:00:21] [W] * Throughput may be bound by Enqueue Time rather than GPU Compute and the GPU may be \
under-utilized.
[12/06/2022-15:00:21] [W]   If not already in use, --useCudaGraph (utilize CUDA graphs where possible) may increase \
the throughput.
"""

AGX_XAVIER = """\
[03/11/2022-14:57:03] [I] === Performance summary ===
[03/11/2022-14:57:03] [I] Throughput: 41087.7 qps
[03/11/2022-14:57:03] [I] Latency: min = 0.387207 ms, max = 0.447357 ms, mean = 0.402238 ms, median = 0.401947 ms, \
percentile(99%) = 0.420288 ms
[03/11/2022-14:57:03] [I] GPU Compute Time: min = 0.375977 ms, max = 0.403564 ms, mean = 0.388221 ms, \
median = 0.388443 ms, percentile(99%) = 0.393188 ms
[03/11/2022-14:57:03] [I] Total GPU Compute Time: 2.99202 s
&&&& PASSED TensorRT.trtexec [TensorRT v8400] # trtexec --loadEngine=mnist16.trt --batch=16
"""

AGX_ORIN = """\
[02/27/2024-18:35:51] [I] Average on 10 runs - GPU latency: 4.77773 ms - Host latency: 4.8364 ms (enqueue 0.363794 ms)
[02/27/2024-18:35:51] [I] === Performance summary ===
[02/27/2024-18:35:51] [I] Throughput: 208.729 qps
[02/27/2024-18:35:51] [I] Latency: min = 4.81763 ms, max = 4.86572 ms, mean = 4.83767 ms, median = 4.83752 ms, \
percentile(90%) = 4.84772 ms, percentile(95%) = 4.85034 ms, percentile(99%) = 4.85547 ms
[02/27/2024-18:35:51] [W] * GPU compute time is unstable, with coefficient of variance = 5.25%.
[02/27/2024-18:35:51] [W]   If not already in use, locking GPU clock frequency or adding --useSpinWait may improve it.
"""

OUT_OF_MEMORY = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b26] # trtexec --onnx=yolov8-seg.onnx --saveEngine=x.engine
[11/22/2024-13:40:47] [E] Error[1]: [defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)
[11/22/2024-13:40:47] [W] [TRT] Requested amount of GPU memory (15485030400 bytes) could not be allocated. There may \
not be enough free memory for allocation to succeed.
[11/22/2024-13:40:47] [E] Error[10]: IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find \
any implementation for node {ForeignNode[/1/Constant_36_output_0.../1/Slice_4]}.)
[11/22/2024-13:40:47] [E] Engine could not be created from network
"""

NO_PLUGIN = """\
[07/18/2023-14:17:05] [E] [TRT] ModelImporter.cpp:732: ERROR: builtin_op_importers.cpp:5428 In function \
importFallbackPluginImporter:
[8] Assertion failed: creator && "Plugin not found, are the plugin name, version, and namespace correct?"
[07/18/2023-14:17:05] [E] Failed to parse onnx file
[07/18/2023-14:17:05] [E] Parsing model failed
[07/18/2023-14:17:05] [E] Failed to create engine from model or file.
[07/18/2023-14:17:05] [E] Engine set up failed
"""

#: The operator that lacks (Round) is inside an If; the names of the nodes in it are indented.
NO_PLUGIN_IN_IF = """\
[02/03/2022-06:14:51] [I] [TRT] No importer registered for op: Resize_TRT. Attempting to import as plugin.
[02/03/2022-06:14:51] [I] [TRT] Searching for plugin: Resize_TRT, plugin_version: 1, plugin_namespace:
[02/03/2022-06:14:51] [I] [TRT] Successfully created plugin: Resize_TRT
[02/03/2022-06:14:51] [I] [TRT] Searching for plugin: Round, plugin_version: 1, plugin_namespace:
[02/03/2022-06:14:51] [E] [TRT] 3: getPluginCreator could not find plugin: Round version: 1
[02/03/2022-06:14:51] [E] [TRT] ModelImporter.cpp:720: While parsing node number 12 [If -> "Preprocessor/cond:0"]:
[02/03/2022-06:14:51] [E] [TRT] ModelImporter.cpp:721: --- Begin node ---
[02/03/2022-06:14:51] [E] [TRT] ModelImporter.cpp:722: input: "Preprocessor/Less:0"
output: "Preprocessor/cond:0"
name: "Preprocessor/cond"
op_type: "If"
attribute {
  name: "then_branch"
  g {
    node {
      name: "Preprocessor/ExpandDims"
      op_type: "Unsqueeze"
    }
  }
}
[02/03/2022-06:14:51] [E] [TRT] ModelImporter.cpp:723: --- End node ---
[02/03/2022-06:14:51] [E] [TRT] ModelImporter.cpp:726: ERROR: builtin_op_importers.cpp:4870 In function \
importFallbackPluginImporter:
[8] Assertion failed: creator && "Plugin not found, are the plugin name, version, and namespace correct?"
[02/03/2022-06:14:51] [E] Failed to parse onnx file
"""

#: TensorRT 10 lists every node.
NO_PLUGINS_10 = """\
[06/17/2025-10:21:18] [TRT] [E] ModelImporter.cpp:967: ERROR: onnxOpCheckers.cpp:818 In function \
checkFallbackPluginImporter:
[6] creator && "Plugin not found, are the plugin name, version, and namespace correct?"
In node 11 with name: /motion/GridSample and operator: GridSample3D (checkFallbackPluginImporter): INVALID_NODE: \
creator && "Plugin not found, are the plugin name, version, and namespace correct?"
In node 77 with name: /GridSample and operator: GridSample3D (checkFallbackPluginImporter): INVALID_NODE: creator
"""

CUDA_NOT_READY = """\
[07/07/2022-16:56:15] [W] [TRT] CUDA initialization failure with error: 222. Please check your CUDA installation
[07/07/2022-16:56:15] [E] Builder creation failed
[07/07/2022-16:56:15] [E] Failed to create engine from model or file.
[07/07/2022-16:56:15] [E] Engine set up failed
&&&& FAILED TensorRT.trtexec [TensorRT v8400] # bin/trtexec --onnx=converted.onnx --saveEngine=engine.trt --useCudaGraph
"""

OTHER_LIBRARY = (
    "[06/26/2023-14:33:12] [TRT] [E] 6: The engine plan file is not compatible with this version of TensorRT, "
    "expecting library version 8.5.1.7 got 8.5.3.1, please rebuild.\n"
)
OTHER_SERIALIZATION = (
    "[06/29/2022-16:20:45] [TRT] [E] 1: [stdArchiveReader.cpp::StdArchiveReader::35] Error Code 1: Serialization "
    "(Serialization assertion safeVersionRead == safeSerializationVersion failed.Version tag does not match. "
    "Note: Current Version: 0, Serialized Engine Version: 43)\n"
)
OTHER_DEVICE = (
    "[07/14/2023-11:41:43] [TRT] [E] 6: The engine plan file is generated on an incompatible device, expecting "
    "compute 5.3 got compute 6.1, please rebuild.\n"
    "[07/14/2023-11:41:43] [TRT] [E] 4: [runtime.cpp::deserializeCudaEngine::50] Error Code 4: Internal Error "
    "(Engine deserialization failed.)\n"
)
#: What a build that goes well prints, too.
HARMLESS = """\
[07/07/2022-16:56:15] [W] [TRT] Tactic Device request: 4229MB Available: 2658MB. Device memory is insufficient to use \
tactic.
[07/07/2022-16:56:15] [W] [TRT] Skipping tactic 3 due to insufficient memory on requested size of 4229 detected for \
tactic 4.
[07/07/2022-16:56:16] [I] [TRT] No importer registered for op: Resize_TRT. Attempting to import as plugin.
"""
