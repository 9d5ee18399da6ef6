"""The report that a run leaves in its folder."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.evaluation import evaluate
from mask2former_dinov3.evaluation.run_record import read_run
from mask2former_dinov3.evaluation.stored_evaluation import read_evaluation
from mask2former_dinov3.training import run as training
from mask2former_dinov3.training.run_report import report_run
from mask2former_dinov3.training.train import train
from support.run_config import make_config


def test_train__leaves_a_report_of_its_best_model(toy_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    metrics = train(make_config(toy_dataset, run, max_train_steps=2, checkpointing_steps=1, with_tracking=True))
    content = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert content["metrics"]["AP"] == json.loads((run / "metrics.json").read_text())["AP"] >= metrics["AP"]
    assert content["run"]["step"] == 2
    assert content["run"]["stopped"] == "It ended with its last step."
    assert [step for step, _ in content["run"]["series"]["loss"]] == [1, 2]
    assert len(content["run"]["series"]["valid AP"]) == 2
    assert len(content["verdict"]) in (1, 5)
    curves = json.loads((run / "metrics.json").read_text())["operating_point"]["curves"]
    assert set(curves) == {"0.50", "0.75"}  # the page draws them
    page = (run / "report.html").read_text(encoding="utf-8")
    assert all(f"<h2>{title}" in page for title in ("Verdict", "Run", "Numbers", "Errors by kind", "Pictures"))
    assert "torch" in page
    assert (run / "labels_in_doubt.csv").is_file()
    stored = read_evaluation(run)
    assert stored is not None
    assert stored.scored == str((run / "best").absolute())
    check_tracked(run, content)


def check_tracked(run: Path, report: dict[str, Any]) -> None:
    """TensorBoard's event file, read back: AP by class at both steps, and pictures of the report at that of best/."""
    events = EventAccumulator(str(run / "tracking"), size_guidance={"images": 0}).Reload()
    for name, value in report["metrics"]["per_class"].items():
        scalars = events.Scalars(f"valid/per_class/{name}")
        assert [one.step for one in scalars] == [1, 2]
        assert value in [pytest.approx(one.value) for one in scalars]
    tags = events.Tags()["images"]
    names = [f"{number:03}.png" for number in range(4)]  # of the validation images
    sheets = {"training samples": [0], "validation images": [1, 2]}
    assert {tag.split("/")[0] for tag in tags} == {"worst images", *sheets}  # after two steps none is good
    assert {tag: [one.step for one in events.Images(tag)] for tag in sheets} == sheets
    for tag in set(tags) - sheets.keys():
        assert any(name in tag for name in names)
        (one,) = events.Images(tag)
        picture = Image.open(io.BytesIO(one.encoded_image_string))
        assert max(picture.size) == 512
        assert np.asarray(picture).std() > 1
        assert one.step in (1, 2)


def test_train__reports_a_run_without_validation_data(make_toy_dataset: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(make_config(make_toy_dataset(valid=0), run, max_train_steps=1, valid_split=0))
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "without validation data" in page
    assert "<h2>Run" in page
    assert json.loads((run / "report.json").read_text())["run"]["step"] == 1


def test_train__reports_on_the_images_that_it_held_out(make_toy_dataset: Callable[..., Path], tmp_path: Path) -> None:
    """The ground truth is one file with the training images; only those held out are scored, also when read again."""
    run = tmp_path / "run"
    train(make_config(make_toy_dataset(train=12, valid=0), run, max_train_steps=1, valid_split=0.3))
    content = json.loads((run / "report.json").read_text())
    assert len(content["images"]) == content["metrics"]["images"] > 0
    assert content["run"]["stopped"]


def test_report_run__warns_where_it_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    report_run(tmp_path / "absent", "It ended.")
    assert "no report: " in caplog.text
    assert "train_config.json" in caplog.text


def test_read_run__counts_lines_that_are_cut_off(tmp_path: Path) -> None:
    (tmp_path / "train_config.json").write_text('{"seed": 3}')
    good = '{"step": 1, "epoch": 0.5, "time": 2.0, "loss": 3.5, "lr": null}\n'
    (tmp_path / "metrics.jsonl").write_text(good + '{"split": "valid", "step": 1, "AP": 0.25}\n[1]\n{"step": 2, "lo')
    record = read_run(tmp_path, "It was stopped.", {})
    assert record.series == {"loss": [(1.0, 3.5)], "valid AP": [(1.0, 0.25)]}
    assert (record.unread, record.step, record.options) == (2, 1, {"seed": 3})


def test_report_run__goes_on_with_a_damaged_log(toy_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(make_config(toy_dataset, run, max_train_steps=1))
    with (run / "metrics.jsonl").open("ab") as log:
        log.write(b"\xff\xfe damaged\n")
    report_run(run, "It was read again.")
    content = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert (content["run"]["stopped"], content["run"]["unread"]) == ("It was read again.", 1)


def test_train__reports_on_the_images_that_could_be_read(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that could not be is not scored, and its objects are not missed in the report."""
    predict = evaluate.predict_split
    valid = toy_dataset / "valid"
    last = read_coco(Split("valid", valid / "_annotations.coco.json", valid)).images[-1].id

    def predict_but_one(*args: Any, unreadable: dict[int, str], **options: Any) -> Any:
        results = predict(*args, unreadable=unreadable, **options)
        unreadable[last] = "cannot be read"
        return [one for one in results if one["image_id"] != last]

    monkeypatch.setattr(training, "predict_split", predict_but_one)
    run = tmp_path / "run"
    metrics = train(make_config(toy_dataset, run, max_train_steps=1, max_bad_images=0.5))
    content = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert len(content["images"]) == content["metrics"]["images"] == metrics["images"] == 3
