"""Exported files against torch: every neck and option, fixed and open sizes, both precisions, and what is refused.

Tracing takes seconds of CPU time, so networks are as small as they can be, and each file carries several options.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from transformers import DINOv3ConvNextConfig, DINOv3ViTConfig, SwinConfig

from mask2former_dinov3.cli import main
from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.errors import CheckpointError, DatasetError, MissingExtraError, OptionError
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.evaluation.evaluate import evaluate_model, predict_split
from mask2former_dinov3.export import onnx_export as exporting
from mask2former_dinov3.export import precision as lower_precision
from mask2former_dinov3.export.check_images import CheckBatches, feed_of, make_batches, read_images
from mask2former_dinov3.export.file_metadata import build_metadata, set_metadata
from mask2former_dinov3.export.onnx_check import align_queries, check_agreement, check_detections
from mask2former_dinov3.export.onnx_export import export
from mask2former_dinov3.export.onnx_graph import patch_centers, search_at_slices_only
from mask2former_dinov3.export.precision import to_half, to_int8
from mask2former_dinov3.inference.files.predict_files import predict_files
from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.inference.onnx_model import DETECTIONS, LOGITS, OnnxModel, load_onnx
from mask2former_dinov3.inference.predictor import Predictor, load_network
from mask2former_dinov3.model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
from mask2former_dinov3.sample_data import SAMPLE
from support.channels import SIDE, bands_of, write_bands
from support.models import HEAD, SEEDS, padded_mask
from support.onnx_files import CHECKED_IMAGES
from support.paths import PACKAGE

pytestmark = pytest.mark.timeout(900)  # a trace is half a minute of CPU time
VALID = SAMPLE / "valid"
SMALL: dict[str, Any] = {**HEAD, "encoder_layers": 1, "decoder_layers": 2}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


# All that an exported network consists of. Not among them: GridSample, which runtimes compile wrongly
# (NVIDIA/TensorRT issue 4813), and what scatters, loops or branches.
PLAIN_OPERATORS = frozenset(
    [
        "Add",
        "And",
        "Cast",
        "Clip",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Conv",
        "ConvTranspose",
        "Cos",
        "CumSum",
        "Div",
        "Einsum",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "Gelu",
        "Gemm",
        "Greater",
        "GreaterOrEqual",
        "Identity",
        "InstanceNormalization",
        "IsNaN",
        "LayerNormalization",
        "Less",
        "LessOrEqual",
        "MatMul",
        "Max",
        "MaxPool",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "Pad",
        "Pow",
        "Range",
        "Reciprocal",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Resize",
        "Round",
        "Shape",
        "Sigmoid",
        "Sin",
        "Slice",
        "Softmax",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tile",
        "TopK",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)


@pytest.fixture(autouse=True)
def only_plain_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that a test of this module exports is made of plain operators."""
    check = exporting.check_operators

    def check_plain(path: Path) -> None:
        check(path)
        found = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
        assert found <= PLAIN_OPERATORS, sorted(found - PLAIN_OPERATORS)

    monkeypatch.setattr(exporting, "check_operators", check_plain)


def vit(channels: int = 3, blocks: int = 2) -> DINOv3ViTConfig:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": blocks, "num_attention_heads": 2}
    return DINOv3ViTConfig(**sizes, num_register_tokens=4, num_channels=channels)


def swin() -> SwinConfig:
    return SwinConfig(embed_dim=32, depths=[1, 2, 1, 1], num_heads=[1, 2, 4, 8], window_size=4, out_features=STAGES)


def convnext() -> DINOv3ConvNextConfig:
    return DINOv3ConvNextConfig(hidden_sizes=[32, 32, 64, 64], depths=[1, 1, 1, 1], out_features=STAGES)


# Between them: every neck (the adapter holds the pyramid), both births of queries, masks at both strides, no encoder,
# other sizes of the head, taps, images of three and of five channels. Each has few layers: the bundled model, which is
# exported as well, has more.
MODELS: dict[str, dict[str, Any]] = {
    "plain": {
        "backbone_config": partial(vit, 5, blocks=1),
        "neck": "plain",
        "backbone_norm": False,
        "mask_feature_size": 64,
        "encoder_layers": 0,
        "decoder_layers": 1,
    },
    "adapter": {"backbone_config": vit, "neck": "adapter", "backbone_taps": [1, 1, 1, 2], **SEEDS, "feature_size": 64},
    "swin": {"backbone_config": swin, "neck": "none", "encoder_layers": 0, "mask_stride": 2, "decoder_layers": 1},
    "convnext": {
        "backbone_config": convnext,
        "neck": "none",
        "query_init": "seeds",
        "encoder_layers": 0,
        "decoder_layers": 1,
    },
}


def write_model(folder: Path, name: str, **kwargs: Any) -> Path:
    """A network of random weights as a model folder with a canvas of 64 x 96."""
    torch.manual_seed(0)
    options = {**SMALL, **MODELS[name], **kwargs}
    config = Mask2FormerDinov3Config(**{**options, "backbone_config": options["backbone_config"]()})
    Mask2FormerDinov3ForInstanceSegmentation(config).save_pretrained(folder)
    count = config.num_channels
    wide: dict[str, Any] = (
        {"image_mean": [0.3] * count, "image_std": [0.2] * count, "channels": "all"} if count != 3 else {}
    )
    Mask2FormerDinov3ImageProcessor({"height": 64, "width": 96}, **wide).save_pretrained(folder)
    return folder


def compare(network: Any, exported: OnnxModel, batch: int, height: int, width: int) -> None:
    """Logits of noise, padded differently from image to image."""
    shape = (batch, network.config.num_channels, height, width)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(batch))
    mask = torch.cat([padded_mask(1, height, width, (height - 9 * i, width - 17 * i)) for i in range(batch)])
    with torch.no_grad():
        expected = network(pixel_values=pixels, pixel_mask=mask)
    got = exported(pixel_values=pixels, pixel_mask=mask)
    for name in LOGITS:
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), atol=1e-3, rtol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("name", ["swin", "convnext"])
def test_export__fixed_files_say_what_torch_says(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", name)
    done = export(folder, tmp_path / "new" / "model.onnx")
    assert done.comparison.agreement.batches == ((1, 3, 64, 96), (3, 3, 64, 96))
    assert sorted(path.name for path in done.path.parent.iterdir()) == ["model.onnx", "model.onnx.parity.json"]
    network, _ = load_network(folder, "cpu")
    exported, processor = load_onnx(done.path, "cpu")
    assert processor.size == {"height": 64, "width": 96}
    compare(network, exported, 2, 64, 96)
    with pytest.raises(ValueError, match=r"height x width 64 x 96, got \(1, 3, 96, 96\)"):
        exported(pixel_values=torch.zeros(1, 3, 96, 96))


def compare_sizes(folder: Path, file: Path) -> None:
    """A dynamic file against the network of a folder at sizes that the export has not checked."""
    network, exported = load_network(folder, "cpu")[0], load_onnx(file, "cpu")[0]
    for batch, height, width in ((1, 64, 64), (3, 160, 96), (2, 128, 192)):
        compare(network, exported, batch, height, width)
    with pytest.raises(ValueError, match="multiples of 32"):
        exported(pixel_values=torch.zeros(1, network.config.num_channels, 80, 96))


@pytest.mark.long
def test_export__dynamic_files_take_every_size(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "adapter")
    done = export(folder, tmp_path / "model.onnx", dynamic=True)
    assert done.comparison.agreement.batches == ((1, 3, 64, 96), (3, 3, 64, 96), (1, 3, 64, 128))
    compare_sizes(folder, done.path)


@pytest.mark.long
def test_export__makes_a_dynamic_file_of_five_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command: checked on images of five channels, it predicts what the model predicts."""
    folder, images, file = write_model(tmp_path / "model", "plain"), tmp_path / "images", tmp_path / "m.onnx"
    images.mkdir()
    path = write_bands(images / "a.tif", bands_of(np.ones(SIDE, bool), np.random.default_rng(0)))
    words = ["export", "--model", str(folder), "--output", str(file), "--dynamic"]
    assert main(words) == 1  # the bundled images have three
    assert main([*words, "--images", str(images)]) == 0
    assert "checked on batches of 1x5x64x96, 2x5x64x96, 1x5x64x128: " in capsys.readouterr().out
    compare_sizes(folder, file)
    exported, own = Predictor.from_pretrained(file, "cpu"), Predictor.from_pretrained(folder, "cpu")
    assert exported.model.config.num_channels == 5
    assert exported.processor.to_dict() == own.processor.to_dict()
    found, expected = exported(path, threshold=0.0), own(path, threshold=0.0)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)
    assert (found.masks != expected.masks).mean() < 0.01


@pytest.fixture(scope="session")
def sample_model() -> tuple[Any, Mask2FormerDinov3ImageProcessor]:
    """The bundled model in torch, and its processor."""
    return load_network(SAMPLE / "model", "cpu")


def other_weights(folder: Path) -> Any:
    """The network of a folder, a little changed: every class logit by 0.01."""
    network: Any = load_network(folder, "cpu")[0]
    with torch.no_grad():
        network.head.transformer_decoder.class_predictor.bias += 0.01 * torch.tensor([1.0, -1.0])
    return network


def average_precision(model: Any, processor: Mask2FormerDinov3ImageProcessor) -> float:
    file = VALID / "_annotations.coco.json"
    results = predict_split(model, processor, read_coco(Split("valid", file, VALID)), batch_size=2)
    return float(evaluate_coco(file, results)["AP"])


@pytest.fixture(scope="session")
def sample_ap(sample_model: Any) -> float:
    """The AP of the bundled model in torch."""
    return average_precision(*sample_model)


def test_export__has_the_ap_of_the_folder(sample_file: Path, sample_ap: float, tmp_path: Path) -> None:
    file = VALID / "_annotations.coco.json"
    metrics = evaluate_model(str(sample_file), file, VALID, tmp_path, device="cpu")
    assert metrics["AP"] > 0.5
    assert abs(metrics["AP"] - sample_ap) <= 0.002


def test_export__has_only_operators_of_onnx_and_says_what_it_is(sample_file: Path) -> None:
    graph = onnx.load(sample_file)
    onnx.checker.check_model(graph)
    assert {node.domain for node in graph.graph.node} == {""}
    assert {node.op_type for node in graph.graph.node} <= PLAIN_OPERATORS
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", exporting.OPSET)]
    assert [value.name for value in graph.graph.input] == ["pixel_values", "pixel_mask"]
    assert [value.name for value in graph.graph.output] == [*LOGITS, *DETECTIONS]
    said = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
    assert (said["classes"], said["category_ids"], said["canvas"]) == (["nucleus"], [1], [256, 256])
    assert (said["precision"], said["mask_stride"], said["num_queries"]) == ("fp32", 2, 250)
    assert said["licence"] == {"code": "MIT", "weights": "not stated; ask whoever trained the model"}


def test_build_metadata__weights_of_dinov3_bring_their_licence(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "plain", backbone_source="facebook/dinov3-vits16plus-pretrain-lvd1689m")
    metadata = build_metadata(*load_network(folder, "cpu"), folder)
    assert metadata.licence["weights"].startswith("DINOv3 License")
    licence = PACKAGE / "model_folder" / "DINOV3_LICENSE.md"
    assert metadata.licence["weights_text"] == licence.read_text(encoding="utf-8")


def test_export__predicts_as_the_folder_does(sample_file: Path, tmp_path: Path) -> None:
    found = []
    for model in (str(sample_file), str(SAMPLE / "model")):
        output = tmp_path / Path(model).name
        predict_files(model, [VALID / "97126a9791f0c117.png"], output, device="cpu", save=("coco",))
        found.append(json.loads((output / "predictions.json").read_text())["annotations"])
    assert len(found[0]) == len(found[1]) > 10
    scores = [sorted(one["score"] for one in side) for side in found]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)


def test_best_detections__are_those_of_post_process(sample_file: Path, sample_model: Any) -> None:
    _, processor = sample_model
    exported = OnnxModel(sample_file, "cpu")
    tall = np.array(Image.open(VALID / "97126a9791f0c117.png").convert("RGB"))[:256, :150]  # padded at the right
    other = np.array(Image.open(VALID / "6fc83b33896f58a4.png").convert("RGB"))[:256, :256]
    inputs = processor.preprocess([tall, other])
    pixels, mask = inputs["pixel_values"], inputs["pixel_mask"]
    output = exported(pixels, mask)
    assert not check_detections(exported, processor, output, pixels, mask)
    scores, labels, masks = exported.run({"pixel_values": pixels.numpy(), "pixel_mask": mask.numpy()}, DETECTIONS)
    assert scores.shape == labels.shape == (2, 100)
    assert masks.shape == (2, 100, 256, 256)
    assert (np.diff(scores) <= 0).all()
    moved = exported(pixels.flip(0), mask.flip(0))  # logits of other images than those of the graph's instances
    found = check_detections(exported, processor, moved, pixels, mask)
    assert found.startswith("expected the instances of its own logits, got others")


@pytest.fixture(scope="session")
def checked_batches(sample_model: Any) -> CheckBatches:
    return make_batches(None, sample_model[1], False, CHECKED_IMAGES)


def test_align_queries__undoes_another_order_of_queries_and_hides_nothing() -> None:
    torch.manual_seed(0)
    expected = [torch.randn(2, 30, 4), torch.randn(2, 30, 24, 32) * 20]
    order = torch.stack([torch.randperm(30), torch.randperm(30)])
    got = [logits[torch.arange(2)[:, None], order].clone() for logits in expected]
    for one, other in zip(align_queries(expected, got), expected, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
    got[1][1, 7] += 0.01
    wrong = [
        (one != other).flatten(2).any(2) for one, other in zip(align_queries(expected, got), expected, strict=True)
    ]
    assert [int(one.sum()) for one in wrong] == [0, 1]
    assert wrong[1][1, order[1, 7]]


def test_check_agreement__sees_another_network(sample_file: Path, sample_model: Any, checked_batches: Any) -> None:
    exported = OnnxModel(sample_file, "cpu")
    assert check_agreement(sample_model[0], exported, checked_batches).matched > 0.99
    with pytest.raises(CheckpointError, match=r"class_queries_logits: expected 95% of the logits within 0.001, got"):
        check_agreement(other_weights(SAMPLE / "model"), exported, checked_batches)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the quantiser's, on zeros
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precision__keeps_instances_and_ap(
    precision: str, sample_file: Path, sample_model: Any, sample_ap: float, checked_batches: Any, tmp_path: Path
) -> None:
    network, processor = sample_model
    file = tmp_path / "lower.onnx"
    if precision == "fp16":
        to_half(sample_file, file)
    else:
        to_int8(sample_file, file, (feed_of(processor, one) for one in read_images(SAMPLE / "train", processor, 8)))
    set_metadata(file, replace(OnnxModel(sample_file, "cpu").metadata, precision=precision))
    exported = OnnxModel(file, "cpu")
    assert check_agreement(network, exported, checked_batches).instances > 50
    assert file.stat().st_size < 0.75 * sample_file.stat().st_size
    types = Counter(tensor.data_type for tensor in onnx.load(file).graph.initializer if len(tensor.dims) > 1)
    assert types[{"fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[precision]] > 20
    assert abs(average_precision(exported, processor) - sample_ap) < 0.03


def test_save__large_weights_lie_beside_the_file_and_move_with_it(
    sample_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lower_precision, "MAX_FILE_BYTES", 1000)
    (tmp_path / "made").mkdir()
    written, output = tmp_path / "made" / "model.onnx", tmp_path / "model.onnx"
    to_half(sample_file, written)
    assert written.stat().st_size < 2_100_000 < written.with_name("model.onnx.data").stat().st_size
    total = exporting.move_file(written, output)
    assert total == sum(path.stat().st_size for path in tmp_path.glob("model.onnx*"))
    OnnxModel(output, "cpu")
    exporting.move_file(Path(shutil.copy(sample_file, written)), output)  # a small one takes its place
    assert [path.name for path in tmp_path.glob("model.onnx*")] == ["model.onnx"]
    output.with_name("model.onnx.data").write_bytes(b"")
    to_half(sample_file, output)
    output.with_name("model.onnx.data").unlink()
    with pytest.raises(CheckpointError, match=r"its .data file is missing"):
        OnnxModel(output, "cpu")


def test_check_agreement__cannot_judge_lower_precision_without_instances(
    sample_file: Path, sample_model: Any, tmp_path: Path
) -> None:
    network, processor = sample_model
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    file = tmp_path / "half.onnx"
    to_half(sample_file, file)
    set_metadata(file, replace(OnnxModel(sample_file, "cpu").metadata, precision="fp16"))
    batches = make_batches(tmp_path, processor, False, 1)
    with pytest.raises(OptionError, match=r"images: expected images with .* score of at least 0.5, to check fp16, got"):
        check_agreement(network, OnnxModel(file, "cpu"), batches)


def test_export__leaves_nothing_when_the_check_fails(
    sample_file: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is a file of other weights: the folder's own are changed after it was made."""
    unsigned = shutil.ignore_patterns("*.sha256")  # of the weights that are replaced
    folder = shutil.copytree(SAMPLE / "model", tmp_path / "model", ignore=unsigned)
    other_weights(folder).save_pretrained(folder)
    output = tmp_path / "out" / "model.onnx"
    output.parent.mkdir()
    output.write_bytes(b"of an earlier export")
    monkeypatch.setattr(exporting, "CHECKED_IMAGES", CHECKED_IMAGES)
    monkeypatch.setattr(exporting, "trace", lambda _, __, path, *rest, **flags: shutil.copy(sample_file, path))
    with pytest.raises(CheckpointError, match="expected the results of the model, got others"):
        export(folder, output)
    assert [path.name for path in output.parent.iterdir()] == ["model.onnx"]
    assert output.read_bytes() == b"of an earlier export"


@pytest.mark.parametrize(
    ("output", "flags", "message"),
    [
        ("model.pt", {}, "output: expected a file name that ends in .onnx or .pt2, got OUTPUT"),
        ("model.onnx", {"precision": "bf16"}, "precision: expected one of fp32, fp16, int8, got bf16"),
        (
            "model.onnx",
            {"precision": "int8"},
            "calibration_images: expected a folder of images for the precision int8, got none; int8 measures the "
            "ranges of activations on some dozens of images like those the model is used on",
        ),
        (
            "model.onnx",
            {"calibration_images": VALID},
            f"calibration_images: expected none for the precision fp32, got {VALID}",
        ),
        ("model.onnx", {"size": (100, 96)}, "size: expected a multiple of 16, got 100; 96 and 112 are the nearest"),
        (
            "model.onnx",
            {"size": (96, 96), "dynamic": True},
            "size: expected no size together with dynamic, got 96 96; a dynamic file takes all",
        ),
    ],
)
def test_export__says_what_cannot_be_done(output: str, flags: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        export(SAMPLE / "model", tmp_path / output, **flags)
    assert str(caught.value) == message.replace("OUTPUT", str(tmp_path / output))
    assert list(tmp_path.iterdir()) == []


def test_export__says_which_packages_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError) as caught:
        export(SAMPLE / "model", tmp_path / "model.onnx")
    needed = "export needs onnx and onnxscript, not installed here"
    assert str(caught.value) == f"{needed}; run pip install 'mask2former-dinov3[export]' in this environment"


def test_export__says_what_it_cannot_read(sample_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a model folder"):
        export(sample_file, tmp_path / "model.onnx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty: expected images, got a folder without images"):
        export(SAMPLE / "model", tmp_path / "model.onnx", images=tmp_path / "empty")


def test_export__refuses_open_sizes_for_a_swin(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="dynamic: expected a DINOv3 backbone, got a Swin"):
        export(write_model(tmp_path / "model", "swin"), tmp_path / "model.onnx", dynamic=True)


HALVES = """<ir_version: 10, opset_import: ["": 20]>
halves (float[2, 8] x) => (float[2, 4] sum) {
    start = Constant <value = int64[1] {0}> ()
    middle = Constant <value = int64[1] {4}> ()
    end = Constant <value = int64[1] {8}> ()
    axis = Constant <value = int64[1] {1}> ()
    y = Sin (x)
    right = Slice (y, middle, end, axis)
    left = Slice (y, start, middle, axis)
    sum = Add (left, right)
}"""


def test_search_at_slices_only__changes_nothing_but_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxscript import optimizer
    from onnxscript.rewriter.rules.common import slice_split_rule

    match = slice_split_rule.match
    made: list[Any] = []
    searched: list[set[str]] = []

    def watched(model: Any, graph: Any, node: Any, **flags: Any) -> Any:
        searched[-1].add(node.op_type)
        return match(model, graph, node, **flags)

    monkeypatch.setattr(slice_split_rule, "match", watched)
    for context in (nullcontext(), search_at_slices_only(), nullcontext()):
        searched.append(set())
        with context:
            made.append(optimizer.optimize(onnx.parser.parse_model(HALVES)))
    assert made[0] == made[1] == made[2]
    assert [node.op_type for node in made[1].graph.node] == ["Sin", "Split", "Add"]
    assert searched[0] == searched[2] > searched[1] == {"Slice"}


def test_patch_centers__are_those_of_transformers() -> None:
    from transformers.models.dinov3_vit.modeling_dinov3_vit import get_patches_center_coordinates

    expected = get_patches_center_coordinates(3, 5, dtype=torch.float32, device=torch.device("cpu"))
    torch.testing.assert_close(patch_centers(3, 5, torch.float32, torch.device("cpu")), expected)
