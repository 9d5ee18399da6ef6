"""What to label next: disagreement by hand, k-centre greedy, and the verb on real files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mask2former_dinov3.cli import main
from mask2former_dinov3.data.images import read_image
from mask2former_dinov3.errors import OptionError
from mask2former_dinov3.evaluation import label_next
from mask2former_dinov3.evaluation.flip_agreement import FlipAgreement, flip_agreement
from mask2former_dinov3.evaluation.label_next import RankingSettings, choose_centres
from mask2former_dinov3.instances import Instances


def instances(*parts: tuple[int, int, int, float]) -> Instances:
    """(left, width, label, score) of bars in an image of 10 x 40 pixels."""
    masks = np.zeros((len(parts), 10, 40), bool)
    for mask, (left, width, _, _) in zip(masks, parts, strict=True):
        mask[2:8, left : left + width] = True
    labels = np.array([one[2] for one in parts], np.int64)
    return Instances.from_masks(masks, labels, [one[3] for one in parts])


def test_flip_agreement__by_hand() -> None:
    found = instances((0, 10, 0, 0.8), (20, 10, 1, 0.6))
    same = flip_agreement(found, found)
    assert (same.found, same.mirrored, same.matched) == (2, 2, 2)
    assert same.disagreement == pytest.approx(0, abs=1e-7)
    half = instances((0, 20, 0, 0.4), (20, 10, 0, 0.6))  # IoU 0.5 with the first; the second has another class
    expected = 1 - 2 * 0.5 * 0.4 / (0.8 + 0.6 + 0.4 + 0.6)
    assert flip_agreement(found, half).matched == 1
    assert flip_agreement(found, half).disagreement == pytest.approx(expected)
    assert flip_agreement(found, instances()) == FlipAgreement(2, 0, 0, 1.0)
    assert flip_agreement(instances(), instances()) == FlipAgreement(0, 0, 0, 0.0)
    with pytest.raises(ValueError, match="instances of one image"):
        flip_agreement(found, Instances(5, 40, (), np.zeros(0, np.int64), np.zeros(0, np.float32)))


def unit(*angles: float) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def test_choose_centres__is_k_centre_greedy_with_weight_1() -> None:
    """Equal to the greedy choice written down from algorithm 1 of arXiv:1708.00489."""
    rng = np.random.default_rng(0)
    features = unit(*rng.uniform(0, 6, 30))
    labelled = unit(0.5, 3.0)
    steps = list(choose_centres(features, rng.random(30), 12, 1.0, labelled))
    centres = list(labelled)
    for index, value, distance, nearest in steps:
        gaps = np.min([np.linalg.norm(features - one, axis=1) for one in centres], axis=0)
        assert index == int(gaps.argmax())
        assert distance == pytest.approx(gaps.max(), abs=1e-6)
        everything = [*features, *labelled]
        assert np.linalg.norm(features[index] - everything[nearest]) == pytest.approx(distance, abs=1e-6)
        assert value == pytest.approx(gaps.max() / steps[0][2], abs=1e-6)
        centres.append(features[index])


def test_choose_centres__orders_by_disagreement_with_weight_0_and_puts_copies_last() -> None:
    disagreement = np.array([0.2, 0.9, 0.9, 0.1])
    features = unit(0, 1, 2, 3)
    assert [one[0] for one in choose_centres(features, disagreement, 9, 0.0, features[:0])] == [1, 2, 0, 3]
    copies = unit(0, 0, 0, 1)
    chosen = list(choose_centres(copies, np.array([0.5, 0.6, 0.5, 0.0]), 4, 0.9, copies[:0]))
    assert [one[0] for one in chosen[:2]] == [1, 3]
    assert np.isinf(chosen[0][2])
    assert chosen[0][3] == -1
    assert [one[2] for one in chosen[2:]] == [0, 0]
    same = unit(1, 1)
    assert len(list(choose_centres(same, np.zeros(2), 5, 1.0, same))) == 2  # no distance at all


def test_rank_images__writes_the_list_and_is_deterministic(
    model_folder: Path, toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in [*(toy_dataset / "train").glob("*.*"), *(toy_dataset / "valid").glob("*.*")]:
        if path.suffix != ".json":
            shutil.copy(path, folder / f"{path.parent.name}_{path.name}")
    first = sorted(folder.iterdir())[0]
    shutil.copy(first, folder / f"zz_copy{first.suffix}")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    first.rename(first.with_name(f"=1+1{first.suffix}"))  # a spreadsheet would compute it
    first = first.with_name(f"=1+1{first.suffix}")
    words = ["rank-images", str(folder), "--model", str(model_folder), "--device", "cpu", "--threshold", "0"]
    for name, size in (("one", "1"), ("two", "3")):
        assert main([*words, "--output", str(tmp_path / name), "--batch-size", size, "--number", "8"]) == 1
    out = capsys.readouterr().out
    assert "8 of 11 images chosen" in out
    assert "1 failed:" in out
    content = json.loads((tmp_path / "one" / "ranking.json").read_text())
    again = json.loads((tmp_path / "two" / "ranking.json").read_text())
    assert [one["file_name"] for one in content["ranking"]] == [one["file_name"] for one in again["ranking"]]
    assert "broken.png" in content["failed"][0]["reason"]
    with (tmp_path / "one" / "ranking.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    names = [one["file_name"] for one in content["ranking"]]
    assert [row["file_name"] for row in rows] == [f"'{name}" if name.startswith("=") else name for name in names]
    assert any(name.startswith("=") for name in names)
    assert content["ranking"][0]["nearest"] is None
    assert all(0 <= one["disagreement"] <= 1 and one["nearest"] for one in content["ranking"][1:])
    code = main([*words, "--output", str(tmp_path / "three"), "--labelled", str(first), "--rarity-weight", "1"])
    ranking = json.loads((tmp_path / "three" / "ranking.json").read_text())
    assert (code, ranking["labelled"], len(ranking["ranking"])) == (1, 1, 11)
    assert {one["file_name"] for one in ranking["ranking"][-2:]} == {first.name, f"zz_copy{first.suffix}"}
    assert ranking["ranking"][-1]["distance"] == 0


def test_rank_images__explains_what_it_cannot_use(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    words = ["rank-images", str(tmp_path / "empty"), "--model", str(model_folder), "--output", str(tmp_path / "out")]
    assert main(words) == 1
    assert "expected at least one image, got none" in capsys.readouterr().err
    for values, name in (({"rarity_weight": 1.5}, "rarity_weight"), ({"number": 0}, "number")):
        with pytest.raises(OptionError, match=name):
            RankingSettings(**values)


def test_rank_images__goes_on_after_an_image_of_other_channels(
    model_folder: Path, toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    pictures = sorted((toy_dataset / "valid").glob("*.png"))[:2]
    for path in pictures:
        shutil.copy(path, folder / path.name)

    def read_two_channels(path: Path, *options: Any) -> Any:
        image = read_image(path, *options)
        return image[:, :, :2] if Path(path).name == pictures[0].name else image

    monkeypatch.setattr(label_next, "read_image", read_two_channels)
    ranking = label_next.rank_images(model_folder, [str(folder)], tmp_path / "out", device="cpu")
    assert [one.file for one in ranking.chosen] == [pictures[1].name]
    ((name, reason),) = ranking.failed
    assert name.endswith(pictures[0].name)
    assert "channels" in reason
