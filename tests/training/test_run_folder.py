"""A run folder that is no straight line: rollbacks, other metrics, new folders, new category ids, moved weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from mask2former_dinov3.cli import main
from mask2former_dinov3.errors import ConfigError, OptionError
from mask2former_dinov3.model_folder.folder import SCORE_FILE
from mask2former_dinov3.training import run
from mask2former_dinov3.training.checkpoint import checkpoint_step, find_checkpoint, list_checkpoints
from mask2former_dinov3.training.run_folder import Score, best_so_far, read_score
from mask2former_dinov3.training.train import train
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
    assert "best model: AP 0.5000 at step 1; the numbers above are of the last\n" in capsys.readouterr().out
    scores.update({1: 0.1})
    assert main(["train", "--config", str(file), "--output-dir", str(tmp_path / "other")]) == 0
    assert "best model" not in capsys.readouterr().out  # it is the last
