"""Formats and classes on the command line: check-data, convert-data and evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from mask2former_dinov3.cli import main
from mask2former_dinov3.config.option_types import DatasetFormat
from mask2former_dinov3.config.presets import DATASET_FORMATS
from mask2former_dinov3.data.formats.format_table import FORMAT_NAMES
from support.paths import ROOT

ASSETS = ROOT / "tests" / "assets" / "formats"


def test_formats__are_the_same_everywhere() -> None:
    assert get_args(DatasetFormat) == DATASET_FORMATS == FORMAT_NAMES


def test_run_check_data__reads_any_format_with_classes(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check-data", str(ASSETS / "datumaro-cvat"), "--classes", '{"small": "large"}']
    assert main(words) == 0
    said = capsys.readouterr().out
    assert 'classes: "large" (4 objects), "small" (1 object) are now "large"' in said
    assert main([*words[:2], "--format", "cvat", "--classes", '{"smal": null}']) == 1
    assert 'got "smal"; nearest is small' in capsys.readouterr().out
    assert main([*words[:3], "{"]) == 1
    assert "error: --classes: expected an object of names such as" in capsys.readouterr().err


def test_run_check_data__says_which_formats_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").touch()
    assert main(["check-data", str(tmp_path)]) == 1
    assert "yolo: data.yaml with names and train; label-maps: images/ and masks/" in capsys.readouterr().err
    assert main(["check-data", str(tmp_path), "--format", "voc"]) == 1
    expected = "expected SegmentationObject, SegmentationClass and ImageSets/Segmentation, got no such files"
    assert expected in capsys.readouterr().err


def test_run_convert_data__writes_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert-data", str(ASSETS / "datumaro-voc"), "--output", str(tmp_path / "out")]
    assert main([*words, "--to", "yolo"]) == 0
    assert f"{tmp_path / 'out'}: 2 images, 10 instances" in capsys.readouterr().out
    assert main(words) == 1
    assert "error: --output: expected a new or empty folder" in capsys.readouterr().err
    assert main(["check-data", str(tmp_path / "out")]) == 0


def test_run_evaluate__scores_on_any_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ASSETS / "datumaro-cvat"
    assert main(["convert-data", str(folder), "--output", str(tmp_path / "coco")]) == 0
    truth = json.loads((tmp_path / "coco" / "annotations" / "instances_valid.json").read_text())
    results = [{**one, "score": 0.9} for one in truth["annotations"]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    words = ["evaluate", "--predictions", str(tmp_path / "results.json"), "--output", str(tmp_path / "scores")]
    for source in (["--dataset", str(folder)], ["--annotations", str(folder / "val.xml")]):
        assert main([*words, *source]) == 0
        assert json.loads((tmp_path / "scores" / "metrics.json").read_text())["AP"] == pytest.approx(1)
    capsys.readouterr()
    assert main([*words, "--dataset", str(folder), "--split", "test"]) == 1
    assert f"error: --split: expected a split of {folder}: train, valid, got test" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(words)
