"""ONNX files, opened with onnxruntime and onnx."""

from typing import Any

import onnx

from dltrain.commands import onnx_graph


def session(path: str = "model.onnx") -> Any:
    onnxruntime = onnx_graph.require_packages()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


def metadata(path: str = "model.onnx") -> dict[str, str]:
    return {each.key: each.value for each in onnx.load(path).metadata_props}
