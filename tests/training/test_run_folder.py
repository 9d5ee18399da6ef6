"""A run folder that is no straight line: rollbacks, other metrics, new folders, new category ids, moved weights."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from mask2former_dinov3.cli import main
from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.data.read_rules import ReadRules
from mask2former_dinov3.errors import ConfigError, OptionError
from mask2former_dinov3.model_folder.folder import SCORE_FILE
from mask2former_dinov3.training import rehearsal, run, time_budget
from mask2former_dinov3.training import train as train_module
from mask2former_dinov3.training.checkpoint import checkpoint_step, find_checkpoint, list_checkpoints
from mask2former_dinov3.training.run_folder import Score, best_so_far, read_score
from mask2former_dinov3.training.train import load_data, train
from support.small_run import metric_lines, small_config, weights_equal

EVERY_STEP: dict[str, Any] = {"checkpointing_steps": 1, "save_total_limit": None}


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """What evaluations give, by step: AP and AR100 are the same."""
    wanted: dict[int, float] = {}
    evaluate = run.Run.evaluate

    def evaluate_as_wanted(one: run.Run, *args: Any) -> Any:
        metrics, *others = evaluate(one, *args)
        value = wanted.get(one.state.step, 0.0)
        return {**metrics, "AP": value, "AR100": 2 * value}, *others

    monkeypatch.setattr(run.Run, "evaluate", evaluate_as_wanted)
    return wanted


def steps_in(folder: Path) -> list[int | None]:
    return [checkpoint_step(path) for path in list_checkpoints(folder)]


def best_of(folder: Path) -> Score:
    score = read_score(folder / "best")
    assert score is not None
    return score


def test_train__going_on_from_an_older_checkpoint_keeps_what_is_newer(
    toy_dataset: Path, tmp_path: Path, scores: dict[int, float], caplog: pytest.LogCaptureFixture
) -> None:
    """Four steps, then from step 1 on to step 3 with one checkpoint kept; the best is of the branch that was left."""
    folder = tmp_path / "run"
    scores.update({1: 0.1, 2: 0.5, 3: 0.2, 4: 0.3})
    train(small_config(toy_dataset, folder, **EVERY_STEP, max_train_steps=4))
    scores.update({2: 0.15, 3: 0.16})
    before = {path.name: path.read_bytes() for path in (folder / "best").iterdir()}
    options = {**EVERY_STEP, "save_total_limit": 1, "learning_rate": 1e-4, "max_train_steps": 3}
    train(small_config(toy_dataset, folder, **options, resume_from_checkpoint=str(folder / "checkpoint-1")))
    aside = folder / "set-aside-1"
    assert sorted(path.name for path in aside.iterdir()) == ["checkpoint-2", "checkpoint-3", "checkpoint-4", "last"]
    assert f"(checkpoint-2, checkpoint-3, checkpoint-4, last) is set aside in {aside}" in caplog.text
    assert "best/ stays until a better model replaces it: AP 0.5000 of step 2 (at most 100" in caplog.text
    assert steps_in(folder) == [3]
    assert find_checkpoint("latest", folder) == folder / "checkpoint-3"
    assert {path.name: path.read_bytes() for path in (folder / "best").iterdir()} == before
    assert [(line["step"], line["AP"]) for line in metric_lines(folder) if "AP" in line] == [
        (1, 0.1),
        (2, 0.15),
        (3, 0.16),
    ]
    left = metric_lines(folder, "metrics.abandoned.jsonl")
    assert [(line["step"], line["AP"]) for line in left if "AP" in line] == [(2, 0.5), (3, 0.2), (4, 0.3)]
    scores.update({4: 0.6})
    train(small_config(toy_dataset, folder, **{**options, "max_train_steps": 4}, resume_from_checkpoint="latest"))
    assert (best_of(folder).value, best_of(folder).step) == (0.6, 4)
    assert not (folder / "set-aside-2").exists()


def test_train__compares_only_numbers_of_the_same(
    toy_dataset: Path, tmp_path: Path, scores: dict[int, float], caplog: pytest.LogCaptureFixture
) -> None:
    """AP 0.5, then AR100: its 0.2 is not below it. The model that AP chose is set aside."""
    folder = tmp_path / "run"
    scores.update({1: 0.5, 2: 0.1, 3: 0.05})
    train(small_config(toy_dataset, folder, **EVERY_STEP, max_train_steps=1))
    again: dict[str, Any] = {"resume_from_checkpoint": "latest", "metric_for_best_model": "AR100"}
    train(small_config(toy_dataset, folder, **EVERY_STEP, max_train_steps=3, **again))
    score = best_of(folder)
    assert (score.metric, score.value, score.step) == ("AR100", 0.2, 2)
    kept = read_score(folder / "set-aside-1" / "best")
    assert kept is not None
    assert (kept.metric, kept.value) == ("AP", 0.5)
    assert f"it is set aside as {folder / 'set-aside-1' / 'best'}" in caplog.text
    for other in (
        Score(9, "AP", None, score.data, 100),
        Score(9, "AR100", None, "x", 100),
        Score(9, "AR100", None, "", 9),
    ):
        assert best_so_far(folder, other, (1.0, 1)) == (None, None)
    assert best_so_far(folder, score, (1.0, 1)) == (0.2, 2)
    (folder / "best" / SCORE_FILE).unlink()  # of an earlier version
    assert best_so_far(folder, score, (1.0, 1)) == (1.0, 1)


def test_train__in_a_new_folder_has_a_best_model_of_its_own(
    toy_dataset: Path, tmp_path: Path, scores: dict[int, float]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    scores.update({1: 0.5, 2: 0.1})
    train(small_config(toy_dataset, first, **EVERY_STEP, max_train_steps=1))
    checkpoint = str(first / "checkpoint-1")
    train(small_config(toy_dataset, second, **EVERY_STEP, resume_from_checkpoint=checkpoint))
    assert (best_of(second).value, best_of(second).step) == (0.1, 2)
    assert steps_in(first) == [1]
    with pytest.raises(
        OptionError, match=r"^output_dir: expected a folder without a run, got .*/second with an earlier"
    ):
        train(small_config(toy_dataset, second, **EVERY_STEP, resume_from_checkpoint=checkpoint))


@pytest.mark.parametrize("left", ["best", "last", "checkpoint-2"])
def test_train__a_folder_with_any_model_is_not_empty(left: str, toy_dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(small_config(toy_dataset, folder, **EVERY_STEP))
    for path in folder.iterdir():
        if path.is_dir() and path.name != left:
            shutil.rmtree(path)
    with pytest.raises(OptionError, match=r"^output_dir: expected a folder without a run, got"):
        train(small_config(toy_dataset, folder))


def test_train__an_undefined_metric_replaces_no_model(
    toy_dataset: Path, tmp_path: Path, scores: dict[int, float], caplog: pytest.LogCaptureFixture
) -> None:
    scores.update({1: 0.1, 2: -1.0})
    train(small_config(toy_dataset, tmp_path / "run", **EVERY_STEP))
    assert best_of(tmp_path / "run").step == 1
    assert "AP is undefined, so best/ stays as it is" in caplog.text


def renumber(dataset: Path, ids: dict[int, int], names: dict[str, str] | None = None) -> None:
    for split in ("train", "valid"):
        file = dataset / split / "_annotations.coco.json"
        content = json.loads(file.read_text())
        for category in content["categories"]:
            category["id"] = ids[category["id"]]
            category["name"] = (names or {}).get(category["name"], category["name"])
        for annotation in content["annotations"]:
            annotation["category_id"] = ids[annotation["category_id"]]
        file.write_text(json.dumps(content))


def test_resume__matches_classes_by_name(
    make_toy_dataset: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The data set is exported again with the ids of its two classes exchanged: the numbers stay those of one run."""
    data = make_toy_dataset()
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    train(small_config(data, straight, **EVERY_STEP))
    train(small_config(data, cut, **EVERY_STEP, max_train_steps=1))
    renumber(data, {3: 7, 7: 3})
    train(small_config(data, cut, **EVERY_STEP, resume_from_checkpoint="latest"))
    assert "the category ids are given out in another order than before; names decide" in caplog.text
    assert weights_equal(straight / "last", cut / "last")
    assert metric_lines(straight) == metric_lines(cut)
    ids = [json.loads((one / "last" / "config.json").read_text())["category_ids"] for one in (straight, cut)]
    assert ids == [[3, 7], [7, 3]]
    renumber(data, {3: 3, 7: 7}, {"disc": "ring"})
    message = (
        r"(?s)^.*checkpoint-2: expected the classes of the checkpoint, got others.*disc, bar.*bar, ring.*rename them"
    )
    with pytest.raises(ConfigError, match=message):
        train(small_config(data, cut, **EVERY_STEP, max_train_steps=3, resume_from_checkpoint="latest"))


def test_resume__needs_the_checkpoint_alone(
    toy_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder of the backbone's weights moves between two jobs; one with other weights in its place is refused."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2}
    DINOv3ViTModel(DINOv3ViTConfig(**shape, num_register_tokens=4)).save_pretrained(tmp_path / "job1")
    names = [str(tmp_path / name) for name in ("job1", "job2")]
    options = {**EVERY_STEP, "freeze_backbone": False}
    train(small_config(toy_dataset, tmp_path / "straight", **options, backbone=names[0]))
    for number, name in enumerate(names):
        cut = tmp_path / f"cut{number}"
        cut.mkdir()
        for one in ("checkpoint-1", "best"):
            shutil.copytree(tmp_path / "straight" / one, cut / one)
        if number == 0:
            (tmp_path / "job1").rename(tmp_path / "job2")
        train(small_config(toy_dataset, cut, **options, backbone=name, resume_from_checkpoint="latest"))
        assert weights_equal(tmp_path / "straight" / "last", cut / "last")
        stored = [
            json.loads((run / "last" / "preprocessor_config.json").read_text()) for run in (tmp_path / "straight", cut)
        ]
        assert stored[0] == stored[1]
    assert f"backbone: was {names[0]}, now {names[1]}; the checkpoint holds all weights" in caplog.text
    (tmp_path / "job1").mkdir()
    checkpoint = str(cut / "checkpoint-1")
    for backbone in (names[1], "tiny"):
        config = small_config(toy_dataset, cut, **options, backbone=backbone, resume_from_checkpoint=checkpoint)
        with pytest.raises(ConfigError, match=rf"backbone: was {names[0]}, now {backbone}"):
            train(config)


def test_command__ends_with_the_number_of_the_model_that_it_names(
    toy_dataset: Path, tmp_path: Path, scores: dict[int, float], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "options.json"
    config = small_config(toy_dataset, tmp_path / "run", checkpointing_steps=1, max_train_steps=2)
    file.write_text(json.dumps(config.model_dump(mode="json")))
    scores.update({1: 0.5, 2: 0.2})
    assert main(["train", "--config", str(file)]) == 0
    shown = capsys.readouterr().out
    best, folder = tmp_path / "run" / "best", tmp_path / "run"
    assert shown.startswith("best model: AP 0.5000, of step 1\nAP           0.5000\n")
    assert f"the last model, of step 2, has AP 0.2000: {folder / 'last'}\n" in shown
    assert shown.splitlines()[-3:] == [
        f"model: {best}",
        f"evaluate: mask2former-dinov3 evaluate --model {best} --output {folder / 'evaluation'}",
        f"predict: mask2former-dinov3 predict --model {best} {toy_dataset / 'valid'} --output {folder / 'overlays'}",
    ]
    scores.update({1: 0.1})
    assert main(["train", "--config", str(file), "--output-dir", str(tmp_path / "other")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("best model: AP 0.2000, of step 2\n")
    assert "the last model" not in shown  # it is the best


def test_early_stopping__ends_after_evaluations_without_a_better_model(
    toy_dataset: Path, tmp_path: Path, scores: dict[int, float], caplog: pytest.LogCaptureFixture
) -> None:
    """A tie is no better model; a resumed run counts on; a finished one stays so until the patience is raised."""
    caplog.set_level(logging.INFO)
    folder, cut = tmp_path / "run", tmp_path / "cut"
    scores.update({1: 0.1, 2: 0.3, 3: 0.3, 4: 0.2, 5: 0.1, 6: 0.1})
    options = {**EVERY_STEP, "max_train_steps": 6, "early_stopping_patience": 2}
    train(small_config(toy_dataset, folder, **options))
    reason = "It ended early at step 4 of 6: 2 evaluations without a better model than AP 0.3000 of step 3"
    assert f"{reason} (early_stopping_patience)." in caplog.text
    assert reason in (folder / "report.html").read_text()
    assert steps_in(folder) == [1, 2, 3, 4]
    cut.mkdir()
    for name in ("checkpoint-3", "best"):
        shutil.copytree(folder / name, cut / name)
    for patience, steps in ((2, [3, 4]), (2, [3, 4]), (3, [3, 4, 5])):
        resumed = {**options, "early_stopping_patience": patience, "resume_from_checkpoint": "latest"}
        train(small_config(toy_dataset, cut, **resumed))
        assert steps_in(cut) == steps
    assert "the run is finished: step 4 of 6; raise --early-stopping-patience to train longer" in caplog.text
    with pytest.raises(OptionError, match="early_stopping_patience: expected null for a run without validation data"):
        train(small_config(toy_dataset, tmp_path / "no", **options, **without_validation(toy_dataset)))
    with pytest.raises(ConfigError, match="expected null with checkpointing_steps null, which evaluates only at the"):
        small_config(toy_dataset, tmp_path / "no", early_stopping_patience=2, checkpointing_steps=None)


def without_validation(dataset: Path) -> dict[str, Any]:
    file = str(dataset / "train" / "_annotations.coco.json")
    return {"dataset_name": None, "train_annotations": file, "valid_split": 0}


def test_max_hours__end_run_and_schedule_together(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A step takes 100 s of a clock that nothing else moves: 648 s hold 5 and one in reserve, also over a resume."""
    caplog.set_level(logging.INFO)
    now, step = [1000.0], train_module.do_step

    def slow_step(*arguments: Any) -> Any:
        now[0] += 100
        return step(*arguments)

    monkeypatch.setattr(train_module, "do_step", slow_step)
    for module in (train_module, time_budget, rehearsal):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    folder, cut = tmp_path / "run", tmp_path / "cut"
    options = {
        **{"max_hours": 0.18, "max_train_steps": 50, "checkpointing_steps": 2, "save_total_limit": None},
        **{"lr_scheduler_type": "linear", "num_warmup_steps": 2},
    }
    train(small_config(toy_dataset, folder, **options))
    assert steps_in(folder) == [2, 4, 5]
    rates = [line["lr"] for line in metric_lines(folder) if "lr" in line]
    assert rates[0] == pytest.approx(5e-4)  # the speed is not known yet; then the warm-up is a tenth of five steps
    assert 9e-4 < rates[1] < 1e-3
    assert sorted(rates[1:], reverse=True) == rates[1:]
    assert rates[-1] == 0.0
    assert "It ended at step 5 of 50: 0.14 of 0.18 hours are used (max_hours)." in caplog.text
    assert json.loads((folder / "checkpoint-5" / "state.json").read_text())["seconds"] == 500.0
    cut.mkdir()
    shutil.copytree(folder / "checkpoint-2", cut / "checkpoint-2")
    for hours, last in ((0.18, 5), (0.18, 5), (0.25, 7)):
        train(small_config(toy_dataset, cut, **{**options, "max_hours": hours}, resume_from_checkpoint="latest"))
        assert steps_in(cut)[-1] == last
        assert [line["lr"] for line in metric_lines(cut) if "lr" in line][-1] == 0.0
    assert "the run is finished: step 5 of 50; raise --max-hours to train longer" in caplog.text
    assert "resuming with another max_hours: was 0.18, now 0.25" in caplog.text


def test_drawn_split__is_kept_and_what_evaluate_scores(make_toy_dataset: Callable[..., Path], tmp_path: Path) -> None:
    """Eight images in one file without a split, of two classes renamed: two files that load, with every image once.

    The model is scored on them although the file has changed since, which would now be divided in another way.
    """
    root = make_toy_dataset(train=8, valid=0) / "train"
    folder = tmp_path / "run"
    options = {"valid_split": 0.3, "classes": {"bar": "rod"}, "crowd": "instances"}
    metrics = train(small_config(root, folder, **options))
    splits, _ = find_splits(folder / "split", rules=ReadRules("instances"))
    kept = {name: read_coco(split) for name, split in splits.items()}
    read = load_data(small_config(root, folder, **options))
    for name in ("train", "valid"):
        assert kept[name].images.ids == read[name].images.ids
        assert kept[name].categories == read[name].categories
        assert [len(one.annotations) for one in kept[name].images] == [
            len(one.annotations) for one in read[name].images
        ]
        assert all(path.is_file() for path in kept[name].images.paths)
    content = json.loads((root / "_annotations.coco.json").read_text())
    content["images"] = content["images"][:3]
    ids = [one["id"] for one in content["images"]]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in ids]
    (root / "_annotations.coco.json").write_text(json.dumps(content))
    for split, count in (("valid", metrics["images"]), ("train", 8 - metrics["images"])):
        words = ["evaluate", "--model", str(folder / "best"), "--split", split, "--output", str(tmp_path / split)]
        assert main(words) == 0
        again = json.loads((tmp_path / split / "metrics.json").read_text())
        assert again["images"] == count
        if split == "valid":
            assert again["per_class"] == pytest.approx(metrics["per_class"])
    assert main(["evaluate", "--model", str(folder / "best"), "--split", "test", "--output", str(tmp_path / "t")]) == 1
