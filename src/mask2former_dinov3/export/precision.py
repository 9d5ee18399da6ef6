"""An fp32 graph with less precise products: half precision, or 8-bit integers by onnxruntime's quantiser.

Both touch only matrix products and convolutions with trained weights; what lies between them stays float32: positions,
sampling, norms, softmax, the ellipses of the spatial prior (whose values leave the range of half precision), the
products that make masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..inference.onnx_model import data_file

Feed = dict[str, Any]  # input name -> array

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SCOPES = "pkg.torch.onnx.name_scopes"  # where torch's exporter says from which module a node comes
NOT_HALF = ("mask_prior",)
ONE_FILE = 1.8e9  # bytes of weights; a file of ONNX holds 2 GB at most


def to_half(source: Path, target: Path) -> None:
    """Weights of all products as float16, their activations cast before and back after, as autocast does it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(source)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    halves: dict[str, str] = {}  # float32 value -> its float16 twin
    nodes = []

    def half_of(name: str) -> str:
        if name and name not in halves:
            halves[name] = f"{name}_half"
            if name in weights:
                values = numpy_helper.to_array(weights[name]).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(values, halves[name]))
            else:
                nodes.append(helper.make_node("Cast", [name], [halves[name]], to=TensorProto.FLOAT16))
        return halves.get(name, "")

    for node in graph.node:
        if is_product(node, weights) and not any(word in scope_of(node) for word in NOT_HALF):
            node.input[:] = [half_of(name) for name in node.input]
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
    save(model, target)


def to_int8(source: Path, target: Path, images: Iterable[Feed]) -> None:
    """Weights (per channel) and activations of the products of backbone and neck as 8-bit integers, QDQ format.

    images: inputs by which the ranges of the activations are found. Metadata do not come along.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.coming: Iterator[Feed] = iter(images)

        def get_next(self) -> Feed | None:
            return next(self.coming, None)

    model = onnx.load(source, load_external_data=False)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    chosen = [node.name for node in model.graph.node if is_product(node, weights) and in_int8(scope_of(node))]
    quantize_static(
        source,
        target,
        Images(),
        quant_format=QuantFormat.QDQ,
        nodes_to_quantize=chosen,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        use_external_data_format=data_file(source).exists(),
    )


def in_int8(scope: str) -> bool:
    """Backbone and neck, most of the work: the head loses AP, and OpenVINO refuses its products of shared inputs."""
    return "model.backbone" in scope or "model.neck" in scope


def is_product(node: Any, weights: dict[str, Any]) -> bool:
    """A product of an activation with a trained weight."""
    return node.op_type in PRODUCTS and len(node.input) > 1 and node.input[1] in weights


def scope_of(node: Any) -> str:
    """The modules that a node comes from, as text."""
    return next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")


def save(model: Any, target: Path) -> None:
    """As one file, or with the weights in `target`.data beside it."""
    import onnx

    is_large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > ONE_FILE
    onnx.save(model, target, save_as_external_data=is_large, location=data_file(target).name)
