"""Convert an fp32 graph to a lower precision: half precision, or 8-bit integers with onnxruntime's quantiser.

Both convert only matrix products and convolutions with trained weights. All else stays float32: positions, sampling,
norms, softmax, the ellipses of the spatial prior (whose values exceed the range of half precision), and the products
that make masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..inference.onnx_model import data_file

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

Feed = dict[str, NDArray[np.generic]]
"""Input name -> array, as onnxruntime takes them."""

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SCOPES = "pkg.torch.onnx.name_scopes"  # the key under which torch's exporter stores the module that a node comes from
NOT_HALF = ("mask_prior",)
MAX_FILE_BYTES = 1.8e9  # of weights; an ONNX file holds at most 2 GB


def to_half(source: Path, target: Path) -> None:
    """Store the weights of all products as float16, and cast activations before and after, as autocast does."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(source)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    halves: dict[str, str] = {}  # name of a float32 value -> name of its float16 copy
    nodes = []

    def to_half_name(name: str) -> str:
        if name and name not in halves:
            halves[name] = f"{name}_half"
            if name in weights:
                values = numpy_helper.to_array(weights[name]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(values, halves[name]))
            else:
                nodes.append(helper.make_node("Cast", [name], [halves[name]], to=TensorProto.FLOAT16))
        return halves.get(name, "")

    for node in graph.node:
        if is_product(node, weights) and not any(word in module_of(node) for word in NOT_HALF):
            node.input[:] = [to_half_name(name) for name in node.input]
            output = node.output[0]
            node.output[0] = f"{output}_of_half"
            nodes += [node, helper.make_node("Cast", [node.output[0]], [output], to=TensorProto.FLOAT)]
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    save_graph(model, target)


def to_int8(source: Path, target: Path, images: Iterable[Feed]) -> None:
    """Quantise the products of backbone and neck to 8-bit integers, weights per channel, in the QDQ format.

    Weights use 7 of their 8 bits, so that a file gives the same results on CPUs with and without VNNI (onnxruntime's
    documentation, "Quantize ONNX Models", on the choice of data types).

    images: inputs from which the quantiser measures the ranges of the activations. The metadata are lost.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.remaining: Iterator[Feed] = iter(images)

        def get_next(self) -> Feed | None:
            return next(self.remaining, None)

    model = onnx.load(source, load_external_data=False)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    chosen = [node.name for node in model.graph.node if is_product(node, weights) and is_quantised(module_of(node))]
    quantize_static(
        source,
        target,
        Images(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(PRODUCTS),  # by default it measures the outputs of all operators, in twice the memory
        nodes_to_quantize=chosen,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=True,  # 7-bit weights: a CPU without VNNI adds pairs of 8-bit products in 16 bits, which overflow
        use_external_data_format=data_file(source).exists(),
    )


def is_quantised(scope: str) -> bool:
    """Whether int8 applies to a module: to backbone and neck, which do most of the work.

    A quantised head loses AP, and OpenVINO refuses its products with shared inputs.
    """
    return "model.backbone" in scope or "model.neck" in scope


def is_product(node: NodeProto, weights: dict[str, TensorProto]) -> bool:
    """Whether a node multiplies an activation by a trained weight."""
    return node.op_type in PRODUCTS and len(node.input) > 1 and node.input[1] in weights


def module_of(node: NodeProto) -> str:
    """The modules that a node comes from, outermost first, as text."""
    return next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")


def save_graph(model: ModelProto, target: Path) -> None:
    """Save as one file, or with the weights in `target`.data beside it if they are too large."""
    import onnx

    is_large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > MAX_FILE_BYTES
    onnx.save(model, target, save_as_external_data=is_large, location=data_file(target).name)
