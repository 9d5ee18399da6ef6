"""Names of runtimes and precisions, without torch, for the help of the command line."""

from __future__ import annotations

PRECISIONS_OF = {
    "torch": ("fp32", "fp16", "bf16"),
    "torch-compiled": ("fp32", "fp16", "bf16"),
    "onnxruntime": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
}
"""What each runtime is measured in: torch by autocast, the others from exported files."""

RUNTIMES = tuple(PRECISIONS_OF)
RUNTIME_PRECISIONS = ("fp32", "fp16", "bf16", "int8")
