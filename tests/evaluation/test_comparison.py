"""Comparisons of evaluations: the same ground truth or a refusal, what changed on each image, recipes and logs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.errors import ConfigError, DatasetError, OptionError, UserError
from mask2former_dinov3.evaluation.compared_inputs import find_inputs
from mask2former_dinov3.evaluation.comparison import ComparisonSettings, compare_results, summary_lines
from mask2former_dinov3.evaluation.evaluate import evaluate_model
from mask2former_dinov3.evaluation.stored_evaluation import EVALUATION_FILE, read_evaluation
from support.coco_reference import Scene, moved, rle

FEW = ComparisonSettings(samples=100)


def square(top: int, left: int, side: int = 12) -> np.ndarray:
    mask = np.zeros((60, 80), bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.fixture
def scene() -> Scene:
    """Three images with two objects each, all found."""
    drawn = Scene(categories=(3, 7))
    for number in (1, 2, 3):
        drawn.image(number, 60, 80)
        for category, left in ((3, 5), (7, 50)):
            drawn.annotate(number, category, square(10, left))
            drawn.detect(number, category, square(10, left), 0.9)
    return drawn


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def evaluation(root: Path, scene: Scene, name: str, results: list[dict[str, Any]] | None = None) -> Path:
    """An evaluation folder, as `evaluate --predictions` writes it."""
    truth = root / "truth.json"
    if not truth.exists():
        write(truth, scene.truth)
    file = write(root / f"{name}.json", scene.results if results is None else results)
    evaluate_model(None, truth, None, root / name, predictions=file)
    return root / name


def changed_results(scene: Scene) -> list[dict[str, Any]]:
    """Image 1 as before; image 2 without its second object; image 3 with two wrong results."""
    kept = [one for one in scene.results if (one["image_id"], one["category_id"]) != (2, 7)]
    wrong = [
        {"image_id": 3, "category_id": 3, "segmentation": rle(square(40, left)), "score": 0.8} for left in (10, 30)
    ]
    return [*kept, *wrong]


def test_compare_results__says_what_changed_on_each_image(tmp_path: Path, scene: Scene) -> None:
    both_wrong = {"image_id": 1, "category_id": 3, "segmentation": rle(square(40, 60)), "score": 0.7}
    nearly = {**both_wrong, "segmentation": rle(moved(square(40, 60), 1, 0))}
    unsure = {"image_id": 1, "category_id": 3, "segmentation": rle(square(45, 20)), "score": 0.4}
    before = evaluation(tmp_path, scene, "first", [*scene.results, both_wrong])
    after = evaluation(tmp_path, scene, "second", [*changed_results(scene), nearly, unsure])
    comparison = compare_results([before, after], FEW)
    changes = comparison.pairs[0].changes
    assert [one.image for one in changes] == [3, 2]  # image 1: the same mistake twice, and one below the threshold
    assert [(one.gained, one.lost, one.new_wrong, one.gone_wrong) for one in changes] == [(0, 0, 2, 0), (0, 1, 0, 0)]
    assert [one.balance for one in changes] == [-2, -1]
    lost = changes[1]
    assert lost.after.missed_only == (3,)
    assert [comparison.base.results[row]["category_id"] for row in lost.before.found_only] == [2]
    assert len(lost.before.found) == len(lost.after.found) == 1
    lower = compare_results([before, after], ComparisonSettings(samples=100, threshold=0.3))
    assert 1 in [one.image for one in lower.pairs[0].changes]
    back = compare_results([after, before], FEW).pairs[0].changes
    assert [(one.gained, one.lost, one.new_wrong, one.gone_wrong) for one in back] == [(0, 0, 0, 2), (1, 0, 0, 0)]


def test_compare_results__has_ap_as_evaluate_and_a_verdict(tmp_path: Path, scene: Scene) -> None:
    before, after = evaluation(tmp_path, scene, "a"), evaluation(tmp_path, scene, "b", changed_results(scene))
    comparison = compare_results([before, after, before], FEW)
    for folder, pair in ((after, comparison.pairs[0]), (before, comparison.pairs[1])):
        metrics = json.loads((folder / "metrics.json").read_text())
        assert pair.differences.overall["AP"].after == pytest.approx(metrics["AP"])
        values = dict(zip(comparison.truth.names, pair.differences.per_class, strict=True))
        assert {name: one.after for name, one in values.items()} == pytest.approx(metrics["per_class"])
    assert comparison.pairs[1].verdict == "too few images"
    assert comparison.pairs[1].changes == []
    text = "\n".join(summary_lines(comparison))
    assert "a (1)" in text
    assert "b - a (1): 2 of 3 images changed at score 0.5: 0 for the better, 2 for the worse" in text
    assert "b - a (1): AP -" in text
    assert text.count("too few images to tell") == 2 * 3  # AP, AP50, AP75 of two pairs
    assert "note: 3 images are too few to tell a difference from noise; 6 are the least" in text
    content = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert content["differences"][1]["overall"]["AP"]["b"] == pytest.approx(metrics["AP"], abs=1e-6)
    assert [one["file_name"] for one in content["differences"][0]["changed_images"]] == ["3.png", "2.png"]


def test_compare_results__refuses_other_ground_truths(tmp_path: Path, scene: Scene) -> None:
    before = evaluation(tmp_path / "x", scene, "a")
    again = evaluation(tmp_path / "copy", scene, "a")  # the same content at another place
    assert compare_results([before, again], FEW).pairs[0].changes == []
    scene.annotate(1, 3, square(40, 40))
    other = evaluation(tmp_path / "y", scene, "b")
    with pytest.raises(DatasetError, match=r"expected the same ground truth for all.*differ in content; evaluate"):
        compare_results([before, other], FEW)
    write(tmp_path / "x" / "truth.json", scene.truth)
    with pytest.raises(DatasetError, match="got other content: changed since, or another file; run evaluate again"):
        compare_results([before, before], FEW)


def test_compare_results__takes_results_files_with_annotations(tmp_path: Path, scene: Scene) -> None:
    before = evaluation(tmp_path, scene, "a")
    file = write(tmp_path / "others" / "results.json", changed_results(scene))
    with pytest.raises(DatasetError, match="results without it; name it with --annotations"):
        compare_results([before, file], FEW)
    truth = Split("evaluate", tmp_path / "truth.json", tmp_path)
    assert len(compare_results([file, before], FEW, truth).pairs[0].changes) == 2
    scene.annotate(1, 3, square(40, 40))
    another = Split("evaluate", write(tmp_path / "other.json", scene.truth), tmp_path)
    with pytest.raises(DatasetError, match=r"expected the ground truth that .* was evaluated on, got another file"):
        compare_results([before, file], FEW, another)


def test_compare_results__needs_one_limit_on_detections(tmp_path: Path, scene: Scene) -> None:
    before, after = evaluation(tmp_path, scene, "a"), evaluation(tmp_path, scene, "b")
    stored = json.loads((after / EVALUATION_FILE).read_text())
    write(after / EVALUATION_FILE, {**stored, "max_detections": 7})
    with pytest.raises(OptionError, match="made with several, got 7, 100"):
        compare_results([before, after], FEW)
    chosen = ComparisonSettings(samples=100, max_detections=1)
    assert compare_results([before, after], chosen).max_detections == 1


def test_find_inputs__takes_runs_by_their_evaluation(tmp_path: Path, scene: Scene) -> None:
    for name, rate in (("one", 1e-4), ("two", 2e-4)):
        run = tmp_path / name
        (run / "best").mkdir(parents=True)
        write(run / "train_config.json", {"learning_rate": rate, "seed": 0, "output_dir": name})
        lines = [
            {"step": 1, "loss": 2.0},
            {"step": 2, "split": "valid", "AP": rate},
            {"step": 2, "split": "test", "AP": 1},
        ]
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "lo')
    with pytest.raises(
        DatasetError, match=r"older version or without validation data; run `mask2former-dinov3 evaluate --model .*best"
    ):
        find_inputs([tmp_path / "one", tmp_path / "two"])
    for name in ("one", "two"):
        shutil.copytree(evaluation(tmp_path / "scene", scene, name), tmp_path / name / "evaluation")
    comparison = compare_results([tmp_path / "one", tmp_path / "two"], FEW)
    assert [one.source.name for one in comparison.all] == ["one", "two"]
    assert comparison.recipes == [("learning_rate", (1e-4, 2e-4))]
    assert comparison.base.source.history("AP") == [(2.0, 1e-4)]
    assert comparison.base.source.history("loss") == [(1.0, 2.0)]
    inside = find_inputs([tmp_path / "one" / "evaluation", tmp_path / "two" / "evaluation"])
    assert [one.name for one in inside] == ["one", "two"]
    assert inside[0].run == tmp_path / "one"
    shutil.copytree(tmp_path / "one" / "evaluation", tmp_path / "one" / "test")
    with pytest.raises(DatasetError, match="one evaluation in the run folder, got evaluation, test; name one"):
        find_inputs([tmp_path / "one", tmp_path / "two"])


@pytest.mark.parametrize(
    ("other", "verdict"),
    [({"seed": 1}, "no difference"), ({"seed": 0}, "worse"), ({"seed": 1, "learning_rate": 2e-4}, "worse")],
)
def test_compare_results__another_seed_alone_must_change_more(
    tmp_path: Path, other: dict[str, float], verdict: str
) -> None:
    """Every image loses the same little: beyond the noise of the images, within that of another seed."""
    drawn = Scene(categories=(3,))
    for number in range(1, 9):
        drawn.image(number, 60, 80)
        for left in range(2, 80, 13):
            drawn.annotate(number, 3, square(10, left))
            drawn.detect(number, 3, square(10, left), 0.9)
    cut = square(10, 2)
    cut[10] = False  # one row of twelve: IoU 0.917, wrong at 0.95 alone
    results = [
        {**one, "segmentation": rle(cut), "score": 0.5} if row % 6 == 0 else one
        for row, one in enumerate(drawn.results)
    ]
    for name, own, recipe in (("one", drawn.results, {"seed": 0}), ("two", results, other)):
        run = tmp_path / name
        shutil.copytree(evaluation(tmp_path / "scene", drawn, name, own), run / "evaluation")
        write(run / "train_config.json", {"learning_rate": 1e-4, "output_dir": name} | recipe)
        (run / "metrics.jsonl").touch()
    comparison = compare_results([tmp_path / "one", tmp_path / "two"], FEW)
    found = comparison.pairs[0].differences.overall["AP"]
    assert -0.03 < found.low <= found.high < 0
    assert comparison.pairs[0].verdict == verdict
    told = any("two and one differ in the seed alone" in line for line in summary_lines(comparison))
    assert told == (verdict == "no difference")


def test_find_inputs__explains_other_paths(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="at least two to compare, got 1"):
        find_inputs([tmp_path])
    with pytest.raises(DatasetError, match="got no such file or folder"):
        find_inputs([tmp_path / "none", tmp_path])
    with pytest.raises(DatasetError, match="got another folder"):
        find_inputs([tmp_path, tmp_path])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digest": 7}, "digest: expected a text, got 7"),
        ({"max_detections": "x"}, 'max_detections: expected a whole number, got "x"'),
        ({"crowd": "maybe"}, "crowd: expected one of ignore, instances"),
        ({"image_ids": "all"}, "image_ids: expected a list of ids, or null"),
        ({"classes": [1]}, "classes: expected a map of classes, or null, got a list"),
    ],
)
def test_read_evaluation__refuses_a_malformed_file(
    tmp_path: Path, scene: Scene, change: dict[str, object], message: str
) -> None:
    folder = evaluation(tmp_path, scene, "a")
    stored = read_evaluation(folder)
    assert stored is not None
    assert stored.split.annotations == tmp_path / "truth.json"
    assert stored.scored == str(tmp_path / "a.json")
    write(folder / EVALUATION_FILE, {**json.loads((folder / EVALUATION_FILE).read_text()), **change})
    with pytest.raises(DatasetError, match=message):
        read_evaluation(folder)
    assert read_evaluation(tmp_path) is None


@pytest.mark.parametrize("values", [{"samples": 5}, {"threshold": 2.0}, {"threshold": float("nan")}, {"iou": 0.0}])
def test_comparison_settings__refuse_values_out_of_range(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        ComparisonSettings(**values)
    assert isinstance(caught.value, UserError)
    assert str(caught.value).startswith(next(iter(values)))
