"""Networks as ONNX, and how fast onnxruntime runs them."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import math
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from torch import Tensor, nn

__all__ = ["count_onnx_memory", "open_session", "quantise", "to_onnx"]

# Images at a time when it is seen what ranges the numbers in a network have.
_BATCH = 64
# What reads a table of operators, and keeps it.
_READ: dict[Any, Callable[..., Any]] = {}


def to_onnx(model: nn.Module, images: Tensor) -> Any:
    """Return a network in eval mode as an ONNX model, for batches of any size.

    Args:
        model: From images to logits; left as it is.
        images: An example of at least 2, (N, C, H, W), on the CPU.

    Returns:
        An `onnx.ModelProto` with the input "images" and the output "logits".
    """
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it tells how it goes about it
    try:
        with warnings.catch_warnings(), _known_operators():
            warnings.simplefilter("ignore")  # torch's own deprecations
            exported: Any = torch.onnx.export(
                copy.deepcopy(model).cpu().eval(),
                (images,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                verbose=False,
            )
    finally:
        log.setLevel(level)
    return exported.model_proto


@contextlib.contextmanager
def _known_operators() -> Iterator[None]:
    """Let torch's exporter use the table of operators that it has read before.

    It reads the source of all of them for every network, which takes as long as the rest.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, AttributeError):  # versions differ
            from torch.onnx._internal.exporter import _registration

            registry: Any = _registration.ONNXRegistry
            _READ.setdefault(registry, functools.cache(registry.from_torchlib))
            known = staticmethod(_READ[registry])
            stack.enter_context(mock.patch.object(registry, "from_torchlib", known))
        yield


def quantise(model: Any, images: np.ndarray[Any, Any]) -> Any:
    """Return an ONNX model with weights and activations of 8 bits.

    onnxruntime's static quantisation: weights by channel, activations by the smallest and largest
    values on the images, both as signed integers around which operations stay as they are.

    Args:
        model: From `to_onnx`.
        images: What it is calibrated on, (N, C, H, W) in float32.

    Returns:
        An `onnx.ModelProto` with the same input and output.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = iter([{"images": images[i : i + _BATCH]} for i in range(0, len(images), _BATCH)])

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            return next(batches, None)

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("float.onnx", "folded.onnx", "int8.onnx")]
        onnx.save(model, str(files[0]))
        quant_pre_process(str(files[0]), str(files[1]), skip_symbolic_shape=True)
        quantize_static(str(files[1]), str(files[2]), Reader(), per_channel=True)
        return onnx.load(str(files[2]))


def count_onnx_memory(model: Any) -> int:
    """Return the bytes that an ONNX model takes for one image: its weights and its largest maps.

    onnxruntime's basic optimisations are made first, which fold batch norm into convolutions. Then
    a map counts from the operation that makes it to the last one that reads it; the most that are
    there at one time are added to the weights. It is the same on every machine.

    Args:
        model: From `to_onnx`; left as it is.

    Returns:
        The bytes.
    """
    import onnx
    import onnxruntime

    single = copy.deepcopy(model)
    del single.graph.value_info[:]
    for value in (*single.graph.input, *single.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(
            single.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        graph = onnx.shape_inference.infer_shapes(onnx.load(options.optimized_model_filepath)).graph
    weights = {part.name: onnx.numpy_helper.to_array(part).nbytes for part in graph.initializer}
    maps = {
        value.name: _bytes_of(value.type.tensor_type)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    last = {name: i for i, node in enumerate(graph.node) for name in node.input}
    last |= {value.name: len(graph.node) for value in graph.output}
    live = peak = sum(maps[value.name] for value in graph.input)
    for i, node in enumerate(graph.node):
        live += sum(maps[name] for name in node.output if name)
        peak = max(peak, live)
        read = {name for name in (*node.input, *node.output) if last.get(name, i) == i}
        live -= sum(maps[name] for name in read if name and name not in weights)
    return sum(weights.values()) + peak


def _bytes_of(kind: Any) -> int:
    from onnx.helper import tensor_dtype_to_np_dtype

    return math.prod(dim.dim_value for dim in kind.shape.dim) * int(
        tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    )


def open_session(model: str | bytes) -> Any:
    """Return onnxruntime's session of a file or its bytes, on as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
