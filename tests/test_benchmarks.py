"""The benchmarks run, name what they measured, and compare like with like. No test asserts on a speed."""

from __future__ import annotations

import io
import json
import math
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former_dinov3.benchmark import asked_process
from mask2former_dinov3.data.check import check_data
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.evaluation.coco_files import read_ground_truth, read_results
from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.inference.predictor import cpu_has_bf16, load_network
from mask2former_dinov3.model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
from mask2former_dinov3.sample_data import SAMPLE
from support.coco import rle_of
from support.paths import BENCHMARKS
from support.processes import PipedPython, run_python


def numbers_of(row: dict[str, Any]) -> list[float]:
    return [value for value in row.values() if isinstance(value, int | float)]


def use_forks(script: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the benchmarks start their processes as forks: each would otherwise import torch and transformers again."""
    outputs = folder / "outputs"
    outputs.mkdir()

    def run(command: Sequence[str], timeout: float | None = None, **options: object) -> Any:
        return run_python(command[1:], outputs, timeout=timeout or 280)

    forked = SimpleNamespace(Popen=PipedPython, run=run, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
    for module in (script("measure"), asked_process):
        monkeypatch.setattr(module, "subprocess", forked)


def parameters_of(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")  # pycocotools'
def test_run_all__quick_writes_every_row_with_finite_numbers(
    tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    use_forks(script, tmp_path, monkeypatch)
    assert script("run_all").main(["--quick", "--output", str(tmp_path)]) == 0, capfd.readouterr().err
    assert {"train", "predict", "serve"} <= {*script("startup").verbs()}  # of which the quick run starts one
    (table,), (raw,) = tmp_path.glob("*_quick.md"), tmp_path.glob("*_quick.json")
    content = json.loads(raw.read_text())
    expected = [f"{entry.work}: {target.what}" for entry in script("run_all").PLAN for target in entry.targets]
    assert [line["work"] for line in content["table"]] == expected
    assert all(math.isfinite(line["value"]) for line in content["table"])
    assert all(math.isfinite(number) for row in content["rows"] for number in numbers_of(row))
    text = table.read_text()
    assert all(f"| {work} " in text for work in expected)
    assert content["facts"]["data set"] == "sample/valid"
    assert {"cpu", "cores", "memory_gb", "python", "torch", "transformers", "commit", "command"} <= set(
        content["facts"]
    )
    for private in (str(BENCHMARKS.parent), str(tmp_path), str(Path.home())):
        assert private not in text + raw.read_text()


@pytest.mark.parametrize("preset", ["tiny", "smallplus", "large"])
def test_build_baseline__has_the_sizes_of_our_preset(preset: str, script: Any) -> None:
    config = Mask2FormerDinov3Config.preset(preset, num_labels=80)
    with torch.device("meta"):
        theirs = script("baseline").build_baseline(config)
        ours: Any = Mask2FormerDinov3ForInstanceSegmentation(config)
    level = theirs.model.pixel_level_module
    assert parameters_of(level.encoder.vit) == parameters_of(ours.backbone)
    assert parameters_of(level.encoder.scales, level.encoder.projections) == parameters_of(ours.neck)
    head = (level.decoder, theirs.model.transformer_module, theirs.class_predictor)
    assert parameters_of(*head) == parameters_of(ours.head)
    assert parameters_of(theirs) == parameters_of(ours)


@pytest.mark.parametrize("train_backbone", [False, True])
def test_build_baseline__gives_our_shapes_and_trains_what_it_should(train_backbone: bool, script: Any) -> None:
    config = Mask2FormerDinov3Config.preset("tiny", num_labels=3, num_queries=7)
    theirs = script("baseline").build_baseline(config, train_backbone).eval()
    ours = Mask2FormerDinov3ForInstanceSegmentation(config).eval()
    pixel_values = torch.zeros(1, 3, 64, 96)
    with torch.no_grad():
        expected, got = ours(pixel_values), theirs(pixel_values)
        maps = theirs.model.pixel_level_module.encoder(pixel_values).feature_maps
        assert [x.shape for x in maps] == [x.shape for x in ours.feature_maps(pixel_values)]
    assert got.class_queries_logits.shape == expected.class_queries_logits.shape
    assert got.masks_queries_logits.shape == expected.masks_queries_logits.shape
    vit = theirs.model.pixel_level_module.encoder.vit
    assert all(parameter.requires_grad is train_backbone for parameter in vit.parameters())


def test_inference__measures_every_contender(tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use_forks(script, tmp_path, monkeypatch)
    words = "--preset tiny --size 64 --repeat 1 --dtype bf16 --eomt --no-memory"
    (row,) = script("inference").rows(words.split())
    assert {"baseline_seconds", "ours_seconds", "floor_seconds", "eomt_seconds", "head_share"} <= set(row)
    assert all(math.isfinite(number) and number > 0 for number in numbers_of(row))


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")  # pycocotools'
def test_evaluation__ap_is_that_of_pycocotools_on_our_masks(
    toy_dataset: Path, tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy set has several classes, a crowd and an image without objects."""
    use_forks(script, tmp_path, monkeypatch)
    words = "--size 128 --detections 30 --repeat 1 --no-memory --dataset"
    (row,) = script("evaluation").rows([*words.split(), str(toy_dataset / "valid")])
    assert row["ours_ap"] > 0.05
    assert row["baseline_ap"] > 0.05
    assert row["ap_difference"] < 1e-6


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")  # pycocotools'
def test_dataloader__reads_every_image_both_ways(
    toy_dataset: Path, tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_forks(script, tmp_path, monkeypatch)
    words = "--size 64 --repeat 1 --no-memory --dataset"
    (row,) = script("dataloader").rows([*words.split(), str(toy_dataset / "valid")])
    assert row["work"].endswith("4 images")
    assert all(math.isfinite(number) and number > 0 for number in numbers_of(row))


def test_alternate__warms_up_then_takes_turns_and_gives_medians(script: Any) -> None:
    order: list[str] = []
    seconds = {"a": iter([9.0, 1.0, 5.0, 2.0]), "b": iter([9.0, 4.0, 3.0, 8.0])}

    def run(name: str) -> float:
        order.append(name)
        return next(seconds[name])

    works = {name: partial(run, name) for name in seconds}
    assert script("measure").alternate(works, 3) == {"a": 2.0, "b": 4.0}
    assert order == ["a", "b"] * 4


@pytest.mark.parametrize(("value", "met"), [(0.4, "yes"), (0.6, "no")])
def test_line_of__says_whether_the_target_is_met(value: float, met: str, script: Any) -> None:
    run_all = script("run_all")
    target = run_all.time_at_most(0.5)
    rows = [{"baseline_seconds": 2.0, "ours_seconds": 2 * value, "time_ratio": value}]
    line = run_all.line_of("work", target, rows, quick=False)
    assert (line["baseline"], line["ratio"], line["met"]) == ("2 s", f"{value:.3g}", met)
    assert run_all.line_of("work", target, rows, quick=True)["met"] == "—"
    opposite = target._replace(least=True)
    assert run_all.line_of("work", opposite, rows, quick=False)["met"] == {"yes": "no", "no": "yes"}[met]


def test_measure__leaves_bf16_out_where_the_cpu_does_not_know_it(
    monkeypatch: pytest.MonkeyPatch, script: Any, tmp_path: Path
) -> None:
    run_all = script("run_all")
    monkeypatch.setattr(run_all, "cpu_has_bf16", lambda: False)
    entry = run_all.Entry("inference, bf16", lambda words: [], "--dtype bf16", "", (run_all.time_at_most(0.5),))
    rows, (line,) = run_all.measure(entry, run_all.parser().parse_args([]), tmp_path)
    assert rows == []
    assert "no bf16 instructions" in line["met"]


def test_growth__picture_leaves_out_points_without_numbers(tmp_path: Path, script: Any) -> None:
    rows = [
        {"axis": axis, "instances": 10, "size": size, "side": side, "seconds": size / 100, "peak_gb": size / 1000}
        for axis in ("instances", "size")
        for side in ("baseline", "ours")
        for size in (256, 1536)
    ]
    rows[-1] = {"axis": "size", "instances": 10, "size": 1536, "side": "ours", "note": "out of memory"}
    panels = script("growth").panels_of(rows)
    assert panels[1][1].lines == {"baseline": [(256.0, 0.256), (1536.0, 1.536)], "ours": [(256.0, 0.256)]}
    script("plot").draw_panels(panels, tmp_path / "growth.png")
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.size == (920, 600)


@pytest.mark.parametrize("highest", [0.003, 1.0, 7.3, 200.0, 1536.0])
def test_ticks_of__reach_the_highest_value_in_few_steps(highest: float, script: Any) -> None:
    ticks = script("plot").ticks_of(highest)
    assert ticks[0] == 0
    assert ticks[-2] < highest <= ticks[-1]
    assert 3 <= len(ticks) <= 7


def test_learning__both_sides_learn_the_same_images_and_leave_rows_and_a_plot(
    toy_dataset: Path, tmp_path: Path, script: Any
) -> None:
    rows, plot = tmp_path / "rows.json", tmp_path / "plot.png"
    small = [
        "image_height=64",
        "image_width=96",
        "num_queries=10",
        "num_warmup_steps=0",
        "per_device_train_batch_size=2",
    ]
    words = ["--data", str(toy_dataset), "--minutes", "0.005", "0.01", "--held-out", "--seeds", "3", "--set", *small]
    script("learning").main([*words, "--output", str(rows), "--plot", str(plot)])
    content = json.loads(rows.read_text())
    assert [(row["side"], row["mark"]) for row in content["rows"]] == [
        (side, minutes) for side in ("ours", "baseline") for minutes in (0.005, 0.01)
    ]
    for row in content["rows"]:
        assert (row["seed"], row["unit"], row["budget"], row["held_out"]) == (3, "minutes", 0.01, True)
        assert row["minutes"] >= row["mark"]
        assert row["images"] >= 2
        assert all(0 <= row[name] <= 1 for name in ("AP", "AP50", "AP75"))
    assert str(tmp_path) not in rows.read_text()
    with Image.open(plot) as picture:
        assert picture.size[0] > 1000

    counted = tmp_path / "counted.json"
    words = ["--data", str(toy_dataset), "--images", "4", "6", "--sides", "ours", "--set", *small]
    script("learning").main([*words, "--output", str(counted)])
    rows_of_it = json.loads(counted.read_text())["rows"]
    assert [(row["unit"], row["mark"], row["images"]) for row in rows_of_it] == [("images", 4, 4), ("images", 6, 6)]


def test_shapes__are_the_same_for_a_seed_and_read_without_a_fault(tmp_path: Path, script: Any) -> None:
    shapes = script("shapes").shapes_dataset
    for name in ("a", "b"):
        shapes(tmp_path / name, train=4, valid=2, seed=1)
    texts = [(tmp_path / name / "train" / "_annotations.coco.json").read_text() for name in ("a", "b")]
    assert texts[0] == texts[1]
    report = check_data(*find_splits(tmp_path / "a"))
    assert not report.errors
    instances = [one for record in report.data["train"].images for one in record.annotations]
    areas = [one.area for one in instances]
    assert max(areas) > 50 * min(areas)
    assert {one.label for one in instances} == {0, 1, 2, 3}


def test_shapes__one_command_draws_imbalanced_classes(tmp_path: Path, script: Any) -> None:
    """50 : 1 from the first kind to the last; each 3.7 times as frequent as the next one."""
    script("shapes").main([str(tmp_path / "a"), "--imbalance", "50", "--train", "150", "--valid", "1"])
    report = check_data(*find_splits(tmp_path / "a"), full=False)
    statistics = report.splits["train"].statistics
    assert statistics is not None
    counts = list(statistics.per_class.values())
    assert counts == sorted(counts, reverse=True)
    assert counts[0] / counts[1] == pytest.approx(50 ** (1 / 3), rel=0.4)
    assert counts[0] > 15 * counts[3]


def test_runtimes__a_preset_is_a_network_of_random_weights(script: Any, tmp_path: Path) -> None:
    script("runtimes").save_preset("tiny", tmp_path)
    network, processor = load_network(tmp_path, "cpu")
    assert network.config.backbone_config.hidden_size == 192
    assert network.config.num_labels == script("measure").NUM_LABELS
    assert processor.size == Mask2FormerDinov3ImageProcessor().size


@pytest.mark.long
@pytest.mark.timeout(900)  # a trace is half a minute of CPU time
def test_runtimes__measures_every_runtime_and_precision(
    tmp_path: Path, toy_dataset: Path, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a folder whose canvas is the size that is measured: it is traced once, and scored as well."""
    use_forks(script, tmp_path, monkeypatch)
    model, valid = tmp_path / "small" / "model", toy_dataset / "valid"
    torch.manual_seed(0)
    names: Any = {"id2label": {0: "disc", 1: "bar"}, "label2id": {"disc": 0, "bar": 1}, "category_ids": [3, 7]}
    config = Mask2FormerDinov3Config.preset("tiny", **names, num_queries=8, encoder_layers=0, decoder_layers=1)
    Mask2FormerDinov3ForInstanceSegmentation(config).save_pretrained(model)
    Mask2FormerDinov3ImageProcessor({"height": 64, "width": 64}).save_pretrained(model)
    words = ["--model", str(model), "--images", str(valid), "--annotations", str(valid / "_annotations.coco.json")]
    words += ["--calibration", str(valid), "--sizes", "64", "--repeat", "1", "--output", str(tmp_path)]
    words += ["--runtimes", "onnxruntime", "openvino"]
    script("runtimes").main(words)
    (file,) = tmp_path.glob("*_runtimes.json")
    content = json.loads(file.read_text())
    rows = {(row["runtime"], row["precision"]): row for row in content["rows"]}
    assert set(rows) == {
        ("torch", "fp32"),
        *(("onnxruntime", precision) for precision in ("fp32", "fp16", "int8")),
        *(("openvino", precision) for precision in ("fp32", "bf16", "int8")),
    }
    if not cpu_has_bf16():
        assert rows.pop(("openvino", "bf16"))["note"] == "this CPU has no instructions for bf16"
    for (runtime, precision), row in rows.items():
        assert row["latency_p50_seconds"] > 0
        assert row["peak_gb"] > 0.1
        assert 0 <= row["AP"] <= 1
        if runtime != "torch":
            assert row["file_mb"] > 1
            assert row["speedup"] > 0
        if runtime != "torch" and precision == "fp32":
            assert abs(row["AP"] - rows["torch", "fp32"]["AP"]) < 1e-3
    assert "| openvino " in file.with_suffix(".md").read_text()
    assert str(tmp_path) not in file.read_text()


def masks_of(boxes: Sequence[tuple[int, int, int, int]], scores: Sequence[float] | None = None) -> list[dict[str, Any]]:
    """Rectangles (top, left, height, width) of image 1, 40 x 60, as annotations or as results."""
    masks = np.zeros((len(boxes), 40, 60), np.uint8)
    for mask, (top, left, height, width) in zip(masks, boxes, strict=True):
        mask[top : top + height, left : left + width] = 1
    found = [
        {"image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": rle_of(mask.astype(bool))} for mask in masks
    ]
    if scores is None:
        return [{**one, "id": number, "area": 1} for number, one in enumerate(found, 1)]
    return [{**one, "score": score} for one, score in zip(found, scores, strict=True)]


def test_stardist_metric__is_the_published_fraction_of_pairs_at_each_iou(script: Any) -> None:
    """By hand: IoU 1, 0.8 and 0.5; a copy behind a better result, an object missed, a result below the threshold."""
    objects = [(0, 0, 10, 10), (0, 20, 10, 10), (20, 0, 10, 10), (20, 30, 5, 5)]
    results = [(0, 0, 10, 10), (1, 0, 9, 10), (0, 20, 8, 10), (20, 0, 5, 10), (30, 50, 5, 5)]
    images = [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}]
    coco = {"images": images, "annotations": masks_of(objects), "categories": [{"id": 1, "name": "nucleus"}]}
    truth = read_ground_truth(coco)
    found = read_results(masks_of(results, [0.9, 0.8, 0.7, 0.6, 0.2]), truth)
    sharp, all_kept = script("stardist_metric").score_stardist(truth, found, [0.5, 0.1])
    # Three of four objects are found at IoU 0.5, by three results; the copy is covered and counts as nothing.
    assert [sharp.accuracy[at] for at in (0.5, 0.55, 0.8, 0.85)] == [3 / 4, 2 / 5, 2 / 5, 1 / 6]
    assert sharp.mean == pytest.approx((3 / 4 + 6 * 2 / 5 + 2 * 1 / 6) / 9)
    assert all_kept.accuracy[0.5] == 3 / 5
    assert script("stardist_metric").choose_threshold(truth, found) == 0.65  # without the one of IoU 0.5


def test_serve_stages__times_functions_that_there_are_without_those_they_call(script: Any) -> None:
    stages = script("serve_stages")
    for place in [place for places in stages.STAGES.values() for place in places]:
        assert callable(stages.find_function(place)[2]), place
    clock, now = stages.Clock(), iter(range(100))
    clock.now = lambda: float(next(now))
    inner = clock.around("model", lambda: "answer")
    assert clock.around("masks", lambda: (inner(), inner()))() == ("answer", "answer")
    assert clock.take() == {"model": 2.0, "masks": 3.0}
    assert clock.take() == {}
    with Image.open(io.BytesIO(stages.picture(SAMPLE / "valid", 300, 530))) as image:
        assert (image.format, image.size) == ("JPEG", (530, 300))
    row = {"size": "a", "answer": "plain", "version": "now", "instances": 3, "seconds": 2.0, "not the model": 0.25}
    table = stages.markdown([row | dict.fromkeys(stages.STAGES, 0.5)])
    assert table.splitlines()[2].startswith("| a | plain | now | 3 | 2000 | 500 |")
    assert table.endswith("| 25 % |")
