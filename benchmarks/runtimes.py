"""One model in four runtimes: torch, torch compiled, onnxruntime and OpenVINO, in float32, bf16 and int8, side by side.

Latency of one image at each size is the median over rounds in which every runtime has its turn; AP is that of the model
folder's validation images on its own canvas. Float32 rows are checked against torch as `export` does it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from machine import describe_run, write_result
from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.evaluation.evaluate import predict_split
from mask2former_dinov3.export.check_images import change_canvas, feed_of, read_images
from mask2former_dinov3.export.file_metadata import build_metadata, set_metadata
from mask2former_dinov3.export.onnx_export import silence_exporter, trace
from mask2former_dinov3.export.precision import to_int8
from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.inference.onnx_model import LOGITS, OnnxModel
from mask2former_dinov3.inference.predictor import load_network
from mask2former_dinov3.model import (
    Mask2FormerDinov3Config,
    Mask2FormerDinov3ForInstanceSegmentation,
    Mask2FormerDinov3Output,
)
from mask2former_dinov3.sample_data import SAMPLE
from measure import HERE, NUM_LABELS, Row, alternate, markdown, timed

CALIBRATION_IMAGES = 16
Network = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""pixel_values (B, 3, H, W), pixel_mask (B, H, W) -> class logits, mask logits."""


class Contender(nn.Module):
    """One runtime in one precision, behind the interface that `predict_split` runs."""

    device = torch.device("cpu")

    def __init__(self, config: Any, network: Network) -> None:
        super().__init__()
        self.config, self.network = config, network

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> Mask2FormerDinov3Output:
        with torch.inference_mode():
            class_logits, mask_logits = self.network(pixel_values, pixel_mask)
        return Mask2FormerDinov3Output(
            class_queries_logits=class_logits.float(),
            masks_queries_logits=mask_logits.float(),
            pixel_mask=pixel_mask,
        )


def of_torch(model: Mask2FormerDinov3ForInstanceSegmentation, *, bf16: bool, compiled: bool) -> Network:
    predict = torch.compile(model.predict) if compiled else model.predict

    def network(pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            _, output = predict(pixel_values, pixel_mask)
        assert output.class_queries_logits is not None
        assert output.masks_queries_logits is not None
        return output.class_queries_logits, output.masks_queries_logits

    return network


def of_onnxruntime(file: Path) -> Network:
    session = OnnxModel(file, "cpu")

    def network(pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, Tensor]:
        feed = {"pixel_values": pixel_values.numpy(), "pixel_mask": pixel_mask.numpy()}
        class_logits, mask_logits = map(torch.from_numpy, session.run(feed, LOGITS))
        return class_logits, mask_logits

    return network


def of_openvino(file: Path, precision: str) -> Network:
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
    model = openvino.compile_model(file, "CPU", hints)

    def network(pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, Tensor]:
        output = model({"pixel_values": pixel_values.numpy(), "pixel_mask": pixel_mask.numpy()})
        class_logits, mask_logits = (torch.from_numpy(output[name].copy()) for name in LOGITS)
        return class_logits, mask_logits

    return network


def contenders(
    model: Mask2FormerDinov3ForInstanceSegmentation,
    processor: Mask2FormerDinov3ImageProcessor,
    folder: Path,
    images: Path,
    compiled: bool,
) -> tuple[dict[tuple[str, str], Contender], dict[str, float]]:
    """(runtime, precision) -> contender at the processor's canvas, and the MB of the two files in `folder`."""
    full, small = folder / "fp32.onnx", folder / "int8.onnx"
    metadata = build_metadata(model, processor, folder)
    trace(model, processor, full, metadata, dynamic=False, with_postprocess=False)
    calibration = read_images(images, processor, CALIBRATION_IMAGES)
    with silence_exporter():
        to_int8(full, small, (feed_of(processor, one) for one in calibration))
    set_metadata(small, replace(metadata, precision="int8"))
    found: dict[tuple[str, str], Network] = {
        ("torch eager", "fp32"): of_torch(model, bf16=False, compiled=False),
        ("torch eager", "bf16"): of_torch(model, bf16=True, compiled=False),
        ("onnxruntime", "fp32"): of_onnxruntime(full),
        ("onnxruntime", "int8"): of_onnxruntime(small),
        ("OpenVINO", "fp32"): of_openvino(full, "f32"),
        ("OpenVINO", "bf16"): of_openvino(full, "bf16"),
        ("OpenVINO", "int8"): of_openvino(small, "f32"),
    }
    if compiled:
        found[("torch compiled", "fp32")] = of_torch(model, bf16=False, compiled=True)
        found[("torch compiled", "bf16")] = of_torch(model, bf16=True, compiled=True)
    sizes = {"fp32": full.stat().st_size / 1e6, "int8": small.stat().st_size / 1e6}
    return {key: Contender(model.config, network) for key, network in sorted(found.items())}, sizes


def rows(args: argparse.Namespace) -> list[Row]:
    """One row per runtime and precision: latency at every size, AP on the model's own canvas, file size."""
    model, processor = load(args)
    weights = sum(parameter.numel() * 4 for parameter in model.parameters()) / 1e6
    own = (processor.size["height"], processor.size["width"])
    canvases = {(size, size): f"latency_{size}_seconds" for size in args.sizes}
    if not args.preset:
        canvases.setdefault(own, "")
    table: dict[tuple[str, str], Row] = {}
    with tempfile.TemporaryDirectory() as name:
        for canvas, column in canvases.items():
            print(f"{canvas[0]} x {canvas[1]} …", file=sys.stderr, flush=True)
            folder = Path(name) / f"{canvas[0]}x{canvas[1]}"
            folder.mkdir()
            at = change_canvas(processor, *canvas)
            found, sizes = contenders(model, at, folder, args.calibration, args.compiled)
            for (runtime, precision), contender in found.items():
                row = table.setdefault((runtime, precision), {"runtime": runtime, "precision": precision})
                kind = "int8" if precision == "int8" else "fp32"
                row["file_mb"] = weights if runtime.startswith("torch") else sizes[kind]
                if canvas == own and not args.preset:
                    data = read_coco(Split("valid", args.annotations, args.images))
                    row["AP"] = evaluate_coco(args.annotations, predict_split(contender, at, data))["AP"]
            if column:
                for key, seconds in latencies(found, at, args).items():
                    table[key][column] = seconds
    return list(table.values())


def latencies(
    found: dict[tuple[str, str], Contender], processor: Mask2FormerDinov3ImageProcessor, args: argparse.Namespace
) -> dict[tuple[str, str], float]:
    """Median seconds of each on the first image, in alternation."""
    inputs = processor.collate(read_images(args.images, processor, 1))
    pair = inputs["pixel_values"], inputs["pixel_mask"]
    works = {"/".join(key): timed(partial(contender, *pair), "cpu") for key, contender in found.items()}
    return dict(zip(found, alternate(works, args.repeat).values(), strict=True))


def load(args: argparse.Namespace) -> tuple[Mask2FormerDinov3ForInstanceSegmentation, Mask2FormerDinov3ImageProcessor]:
    """The network and its processor."""
    if not args.preset:
        return load_network(args.model, "cpu")
    torch.manual_seed(0)
    config = Mask2FormerDinov3Config.preset(args.preset, num_labels=NUM_LABELS)
    return Mask2FormerDinov3ForInstanceSegmentation(config).eval(), Mask2FormerDinov3ImageProcessor()


def table_of(found: list[Row]) -> str:
    """Markdown: seconds as milliseconds."""
    keys = list(dict.fromkeys(key for row in found for key in row))
    head = [key.replace("latency_", "").replace("_seconds", "² ms").replace("_mb", ", MB") for key in keys]
    return markdown([head, *([cell(key, row.get(key)) for key in keys] for row in found)])


def cell(key: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value * 1000:.0f}" if key.endswith("_seconds") else f"{value:.4f}" if key == "AP" else f"{value:.1f}"
    return "—" if value is None else str(value)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    found.add_argument("--model", type=Path, default=SAMPLE / "model", help="model folder; default: the bundled sample")
    found.add_argument("--preset", choices=("tiny", "smallplus", "large"), help="random weights, without AP")
    found.add_argument("--images", type=Path, default=SAMPLE / "valid", help="validation images of the model")
    found.add_argument("--annotations", type=Path, default=SAMPLE / "valid" / "_annotations.coco.json")
    found.add_argument("--calibration", type=Path, default=SAMPLE / "train", help="images for int8")
    found.add_argument("--sizes", type=int, nargs="*", default=[512, 1024])
    found.add_argument("--repeat", type=int, default=5)
    found.add_argument("--no-compiled", dest="compiled", action="store_false", help="without torch.compile")
    found.add_argument("--output", type=Path, default=HERE / "results", help="folder of the results")
    return found


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.mkdtemp())
    facts = describe_run() | {"model": args.preset or args.model.resolve().parts[-2]}
    found = rows(args)
    table = table_of(found)
    parts = ["runtimes", *([args.preset] if args.preset else [])]
    write_result(args.output, parts, "Runtimes", facts, table, {"rows": found})
    print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
