"""A threshold goes from an evaluation into a model folder and from there into everything that uses the model."""

from __future__ import annotations

import functools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mask2former_dinov3.cli import main
from mask2former_dinov3.errors import CheckpointError, ConfigError, DatasetError, OptionError
from mask2former_dinov3.evaluation.operating_point import Aim
from mask2former_dinov3.evaluation.set_threshold import set_threshold
from mask2former_dinov3.export.file_metadata import build_metadata
from mask2former_dinov3.inference.onnx_model import OnnxMetadata
from mask2former_dinov3.inference.predictor import Predictor, load_network
from mask2former_dinov3.inference.score_calibration import ScoreCalibration
from mask2former_dinov3.inference.settings import DEFAULTS
from mask2former_dinov3.model_folder.folder import save_model_folder
from mask2former_dinov3.model_folder.thresholds import fit_classes
from support.coco_reference import Scene, blob, moved


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A model folder with a card that has a line on its threshold."""
    network, processor = load_network(model_folder, "cpu")
    network.config.score_threshold = 0.5
    save_model_folder(network, processor, tmp_path / "model", {})
    return tmp_path / "model"


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """The output of `evaluate` for results on 60 images of discs and bars; only discs are many."""
    scene = Scene(0, (3, 7))
    for category, name in zip(scene.truth["categories"], ("disc", "bar"), strict=True):
        category["name"] = name
    for image in range(1, 61):
        scene.image(image)
        for category in (3, 3, 3, 7) if image < 9 else (3, 3, 3):
            mask = blob(scene.rng, 90, 120, 14)
            if mask.any():
                scene.annotate(image, category, mask)
                scene.detect(image, category, moved(mask, 1, 0), float(scene.rng.beta(5, 2)))
        scene.detect(image, 3, moved(mask, 40, 40), float(scene.rng.beta(2, 4)))
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "truth.json").write_text(json.dumps(scene.truth))
    (tmp_path / "toy" / "results.json").write_text(json.dumps(scene.results))
    return tmp_path / "toy"


def evaluated(evaluation: Path, *flags: str) -> dict[str, Any]:
    files = ("--annotations", evaluation / "truth.json", "--predictions", evaluation / "results.json")
    words = ["evaluate", *map(str, files), "--output", str(evaluation / "out"), *flags]
    assert main(words) == 0
    block: dict[str, Any] = json.loads((evaluation / "out" / "metrics.json").read_text())["operating_point"]
    return block


def test_set_threshold__goes_into_config_card_and_whatever_uses_the_model(folder: Path, evaluation: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    block = evaluated(evaluation)
    assert main(["set-threshold", "--model", str(folder), "--from", str(evaluation / "out")]) == 0
    config = json.loads((folder / "config.json").read_text())
    disc, bar = (block["per_class"][name]["threshold"] for name in ("disc", "bar"))
    assert bar == block["threshold"]
    assert config["score_threshold"] == {"disc": disc, "bar": bar}
    assert config["score_threshold_source"]["data"].endswith("toy/truth")
    assert config["score_threshold_source"]["metric"] == "best F1"
    assert (folder / "model.safetensors").read_bytes() == weights
    (line,) = [one for one in (folder / "README.md").read_text().splitlines() if one.startswith("Score threshold: ")]
    assert re.search(r"\(best F1, IoU 0.5, \S*toy/truth, 60 images, ", line)
    predictor = Predictor.from_pretrained(folder, "cpu")
    assert predictor.fill(DEFAULTS).threshold == (disc, bar)

    network, processor = load_network(folder, "cpu")
    metadata = OnnxMetadata.from_properties(build_metadata(network, processor, folder).to_properties())
    assert metadata.score_threshold == config["score_threshold"]
    assert metadata.score_threshold_source == config["score_threshold_source"]
    properties = replace(metadata, score_threshold=None).to_properties()
    del properties["score_threshold"]  # as in files of earlier versions
    assert OnnxMetadata.from_properties(properties).score_threshold is None

    again = folder.with_name("again")
    save_model_folder(network, processor, again, {})
    assert json.loads((again / "config.json").read_text())["score_threshold"] == config["score_threshold"]


@pytest.mark.parametrize("flags", [["--target-precision", "0.99"], ["--cost-fp", "9", "--cost-fn", "1"]])
def test_set_threshold__chooses_for_a_target_as_evaluate_does(folder: Path, evaluation: Path, flags: list[str]) -> None:
    evaluated(evaluation)
    assert main(["set-threshold", "--model", str(folder), "--from", str(evaluation / "out"), *flags]) == 0
    source = json.loads((folder / "config.json").read_text())["score_threshold_source"]
    block = evaluated(evaluation, *flags)
    assert source["metric"] == block["aim"]
    bar = json.loads((folder / "config.json").read_text())["score_threshold"]["bar"]
    assert bar == pytest.approx(block["threshold"], abs=0.05)


def test_set_threshold__by_hand_leaves_the_rest(folder: Path, evaluation: Path) -> None:
    before = json.loads((folder / "config.json").read_text())
    assert main(["set-threshold", "--model", str(folder), "--threshold", "0.7"]) == 0
    after = json.loads((folder / "config.json").read_text())
    assert after["score_threshold"] == 0.7
    assert after["score_threshold_source"]["metric"] == "given by hand"
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"score_threshold", "score_threshold_source"}
    assert "Score threshold: 0.7 (given by hand, " in (folder / "README.md").read_text()


# What somebody may write into metrics.json by hand: the place, the value, and the message.
EDITS: list[tuple[str, object, str]] = [
    ("threshold", "x", 'threshold: expected a number, or null, got "x"'),
    ("threshold", -5, "threshold: expected a number from 0 to 1, got -5"),
    ("threshold", float("nan"), "threshold: expected a number, or null, got NaN"),
    ("threshold", True, "threshold: expected a number, or null, got true"),
    ("points", [], r"points: expected an object, got \[\]"),
    ("points", {}, r"points: expected the IoUs 0.50 and 0.75, got \[\]"),
    ("points/0.50", None, "points: 0.50: expected an object, got null"),
    ("default/0.50", {}, "default: 0.50: expected an object with right, got {}"),
    ("per_class", 3, "per_class: expected an object, got 3"),
    ("per_class/bar", [], r"per_class: bar: expected an object, got \[\]"),
    ("per_class/bar/threshold", "0.5", 'per_class: bar: threshold: expected a number, got "0.5"'),
    ("per_class/bar/threshold", 2, "per_class: bar: threshold: expected a number from 0 to 1, got 2"),
    ("per_class/bar/curves", {"x": {"thresholds": [], "right": [], "wrong": []}}, r"bar: curves: .*, got \[.x.\]"),
    ("why", None, "why: expected a text, got null"),
    ("objects", 2.5, r"objects: expected a whole number up to 2\^53, got 2.5"),
    ("objects", 10**400, r"objects: expected a whole number up to 2\^53, got 10000.*"),
    ("calibration/scale", 10**400, "calibration: scale: expected a number, got 10000.*"),
    ("iou", 0.6, "iou: expected 0.5, got 0.6"),
    ("intervals/recall", [0.1], r"intervals: recall: expected two numbers, got \[0.1\]"),
    ("copies/overlap", 7, "copies: overlap: expected a number from 0 to 1, got 7"),
    ("copies/gain_interval", [], r"copies: gain_interval: expected two numbers, got \[\]"),
    ("calibration/scale", 0, "calibration: scale: expected a number above 0, got 0"),
    ("calibration/before", [1], r"calibration: before: expected two numbers, got \[1\]"),
    ("calibration/before", [-1, 0], "calibration: before: 1: expected a number above 0, got -1"),
    ("curves/0.50/right", [1], r"curves: 0.50: expected lists of one length, got .*"),
    ("curves/0.50/wrong/2", "many", r'curves: 0.50: wrong: 3: expected a whole number up to 2\^53, got "many"'),
    (
        "curves/0.50",
        {"thresholds": [0, 1], "right": [1, 2], "wrong": [0, 0]},
        "curves: 0.50: thresholds: .*, got .*",
    ),
]


def test_set_threshold__says_what_it_cannot_use(folder: Path, evaluation: Path, tmp_path: Path) -> None:
    config = (folder / "config.json").read_bytes()
    with pytest.raises(ConfigError, match="expected an evaluation or a threshold, got both or none"):
        set_threshold(folder)
    with pytest.raises(OptionError, match=r"^threshold: expected a score from 0 to 1, got 1.5$"):
        set_threshold(folder, threshold=1.5)
    with pytest.raises(CheckpointError, match="expected a model folder, got no folder"):
        set_threshold(tmp_path / "none", threshold=0.5)
    advice = r"run `evaluate --model M --output DIR` and give its DIR, or a run folder$"
    with pytest.raises(DatasetError, match=rf"evaluate, got a folder without metrics\.json; {advice}"):
        set_threshold(folder, tmp_path)
    with pytest.raises(DatasetError, match=rf"evaluate, got no such file or folder; {advice}"):
        set_threshold(folder, tmp_path / "none")
    (tmp_path / "metrics.json").write_text('{"AP": 0.5}')
    with pytest.raises(DatasetError, match="expected metrics with an operating_point, got one without"):
        set_threshold(folder, tmp_path)
    (tmp_path / "metrics.json").write_text('{"operating_point": {"threshold": 0.5}}')
    missing = "expected an object with data, got {.threshold.: 0.5}; run `evaluate` of this version again$"
    with pytest.raises(DatasetError, match=f"operating_point: {missing}"):
        set_threshold(folder, tmp_path)
    block = evaluated(evaluation)
    block["per_class"]["star"] = block["per_class"]["bar"]
    (tmp_path / "metrics.json").write_text(json.dumps({"operating_point": block}))
    with pytest.raises(CheckpointError, match="expected classes of the model, got star"):
        set_threshold(folder, tmp_path)
    for place, wrong, message in EDITS:
        edited = json.loads(json.dumps(block))
        *keys, last = place.split("/")
        functools.reduce(lambda part, key: part[key], keys, edited)[int(last) if last.isdigit() else last] = wrong
        (tmp_path / "metrics.json").write_text(json.dumps({"operating_point": edited}))
        with pytest.raises(DatasetError, match=f"json: operating_point: (.*: )?{message}; run `evaluate` of"):
            set_threshold(folder, tmp_path, aim=Aim(target_recall=0.5))
    del block["calibration"]  # as in evaluations of earlier versions
    del block["per_class"]["star"]
    (tmp_path / "metrics.json").write_text(json.dumps({"operating_point": block}))
    assert set_threshold(folder, tmp_path)
    config = (folder / "config.json").read_bytes()
    block["threshold"], block["why"] = None, "no result finds an object"
    (tmp_path / "metrics.json").write_text(json.dumps({"operating_point": block}))
    with pytest.raises(DatasetError, match="expected an evaluation with a threshold, got none; no result finds"):
        set_threshold(folder, tmp_path)
    assert (folder / "config.json").read_bytes() == config


def test_fit_classes__classes_that_the_data_lack_take_the_threshold_of_all() -> None:
    assert fit_classes({"bar": 0.3}, {0: "disc", 1: " bar"}, 0.8, "m") == {"disc": 0.8, " bar": 0.3}
    assert fit_classes(0.4, {0: "disc"}, 0.8, "m") == 0.4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--threshold 0.5 --from x", "--from: cannot be combined with --threshold"),
        ("--threshold 0.5 --target-recall 0.5", "--target-recall: cannot be combined with --threshold"),
        ("--from x --target-recall 0.5 --cost-fp 1", "--cost-fp: cannot be combined with --target-recall"),
        ("", "expected --from or --threshold"),
    ],
)
def test_set_threshold__refuses_options_that_exclude_each_other(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["set-threshold", "--model", "m", *words.split()])
    assert re.search(f"error: {re.escape(message)}", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cost-fp", "1"], "--cost-fn: expected a number above 0, as cost_fp has one, got none"),
        (["--target_precision", "7"], "--target_precision: expected a fraction above 0, up to 1, got 7"),
    ],
)
def test_evaluate__refuses_aims_out_of_range(
    evaluation: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--annotations", evaluation / "truth.json", "--predictions", evaluation / "results.json")
    assert main(["evaluate", *map(str, files), "--output", str(evaluation / "out"), *flags]) == 1
    assert f"error: {message}" in capsys.readouterr().err
    shutil.rmtree(evaluation)


def test_set_threshold__stores_the_calibration_of_a_models_own_scores_once(
    folder: Path, evaluation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = evaluated(evaluation)
    numbers = block["calibration"]
    assert numbers["helps"]
    assert numbers["before"] is None  # of a file of results nobody knows what made the scores
    words = ["set-threshold", "--model", str(folder), "--from", str(evaluation / "out")]
    assert main(words) == 0
    config = json.loads((folder / "config.json").read_text())
    assert config["score_calibration"] is None
    assert config["score_threshold"]["bar"] == block["threshold"]
    assert "calibrated ones need an evaluation of the model" in capsys.readouterr().out

    metrics = json.loads((evaluation / "out" / "metrics.json").read_text())
    metrics["operating_point"]["calibration"]["before"] = [2.0, 0.5]
    (evaluation / "out" / "metrics.json").write_text(json.dumps(metrics))
    found = ScoreCalibration(numbers["scale"], numbers["shift"])
    for _ in range(2):  # a second time changes nothing
        assert main(words) == 0
        config = json.loads((folder / "config.json").read_text())
        assert config["score_calibration"] == pytest.approx(ScoreCalibration(2.0, 0.5).then(found), abs=1e-5)
        assert config["score_threshold"]["bar"] == pytest.approx(float(found.apply(block["threshold"])))
    assert "of calibrated scores; it was " in capsys.readouterr().out
    assert main(["set-threshold", "--model", str(folder), "--threshold", "0.3"]) == 0
    by_hand = json.loads((folder / "config.json").read_text())
    assert (by_hand["score_threshold"], by_hand["score_calibration"]) == (0.3, config["score_calibration"])

    network, processor = load_network(folder, "cpu")
    metadata = OnnxMetadata.from_properties(build_metadata(network, processor, folder).to_properties())
    assert metadata.score_calibration == config["score_calibration"]
    config["score_calibration"] = [-1, 0]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"score_calibration: expected \[scale, shift\], two finite numbers"):
        load_network(folder, "cpu")
