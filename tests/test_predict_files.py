"""Prediction on files: all that can be done is done, a stopped run goes on, nothing is written elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.errors import DatasetError
from mask2former_dinov3.evaluate import evaluate_coco
from mask2former_dinov3.inputs import find_images
from mask2former_dinov3.predict import Predictor
from mask2former_dinov3.predict_files import predict_files
from mask2former_dinov3.visualize import draw_instances


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Predictor:
    return Predictor.from_pretrained(model_folder, "cpu")


def picture(seed: int = 0, height: int = 40, width: int = 60) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_predict_files__does_all_it_can_and_reports_the_rest(predictor: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    Image.fromarray(picture(0)).save(folder / "a.png")
    Image.fromarray(picture(1)).save(folder / "deeper" / "a.jpg")
    Image.fromarray(picture(2)).save(folder / "b.bmp")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("no image, and not one to try")
    summary = predict_files(
        predictor,
        [folder, tmp_path / "missing.png", str(folder / "*.bmp")],
        tmp_path / "out",
        threshold=0.0,
        save=("overlays", "masks", "coco"),
        batch_size=2,
    )
    assert summary.images == 3
    assert sorted(Path(name).name for name, _ in summary.failed) == ["broken.png", "missing.png"]
    assert summary.without_detection == []
    assert "2 failed" in summary.text()
    assert "broken.png" in summary.text()
    overlays = sorted(str(path.relative_to(tmp_path / "out")) for path in summary.overlays)
    assert overlays == ["overlays/a.png", "overlays/b.png", "overlays/deeper/a.jpg"]
    assert all(path.is_file() for path in summary.overlays)
    images = json.loads((tmp_path / "out" / "images.json").read_text())
    assert [(one["id"], one["file_name"]) for one in images["images"]] == [
        (1, "a.png"),
        (2, "b.bmp"),
        (4, "deeper/a.jpg"),
    ]
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(results) == summary.detections > 0
    for image, name in ((1, "a"), (4, "deeper/a")):
        masks = sorted((tmp_path / "out" / "masks" / name).glob("*.png"))
        assert len(masks) == sum(result["image_id"] == image for result in results)
        with Image.open(masks[0]) as mask:
            assert (mask.size, mask.mode) == ((60, 40), "1")
    # Both files together are enough for a score.
    truth = {**images, "annotations": [{**one, "id": index} for index, one in enumerate(results, start=1)]}
    assert evaluate_coco(truth, results)["images"] == 3


def test_predict_files__names_images_without_a_detection(predictor: Predictor, tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    summary = predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out", threshold=1.0)
    assert [path.name for path in summary.without_detection] == ["a.png"]
    assert "no detection in 1 of them" in summary.text()
    assert "a.png" in summary.text()
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []


def test_predict_files__does_again_what_it_did_and_not_its_own_overlays(predictor: Predictor, tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.png")
    counts = [
        predict_files(predictor, [tmp_path], tmp_path / "out", threshold=threshold, save=("overlays", "masks")).images
        for threshold in (0.0, 1.0)
    ]
    assert counts == [1, 1]
    assert list((tmp_path / "out" / "masks" / "a").iterdir()) == []  # of the first run
    assert not (tmp_path / "out" / "predictions.json").exists()


def test_predict_files__keeps_what_is_done_when_interrupted(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        Image.fromarray(picture()).save(tmp_path / f"{name}.png")
    done: list[int] = []
    draw = draw_instances

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return draw(*arguments, **options)

    monkeypatch.setattr("mask2former_dinov3.outputs.draw_instances", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped: 2 of 3 images are done; the same command goes on"):
        predict_files(predictor, [tmp_path], tmp_path / "out", threshold=0.0)
    assert len(json.loads((tmp_path / "out" / "images.json").read_text())["images"]) == 2


def test_predict_files__says_what_it_cannot_do(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"(?s)no image found.*nowhere/\*\.png: no such file.*: no image in it"):
        predict_files(predictor, ["nowhere/*.png", tmp_path], tmp_path / "out")
    with pytest.raises(ValueError, match="save: expected some of overlays, masks, coco, geojson, yolo, got video"):
        predict_files(predictor, [tmp_path], tmp_path / "out", save=("video",))
    Image.fromarray(picture()).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="batch_size"):
        predict_files(predictor, [tmp_path], tmp_path / "out", batch_size=0)


def test_find_images__gives_each_file_once_with_a_name_of_its_own(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for name in ("a.png", "a.JPG", "b.tif"):
            (tmp_path / folder / name).write_bytes(b"")
    failed: list[tuple[str, str]] = []
    found = find_images([tmp_path / "one", tmp_path / "two", tmp_path / "one" / "b.tif"], tmp_path / "out", failed)
    assert failed == []
    assert len({path for path, _ in found}) == len(found) == 6
    assert [name for _, name in found] == ["a.JPG", "a-2.JPG", "a-3.png", "a-4.png", "b.tif", "b-2.tif"]
    (single,) = find_images([tmp_path / "one" / "notes.txt", str(tmp_path / "**" / "b.tif")], tmp_path, failed)[:1]
    assert single[1] == "b.tif"
    assert failed[0][1].endswith("no such file, folder or pattern")


@pytest.mark.parametrize("threshold", [50.0, -0.1, float("nan")])
def test_predict_files__refuses_a_threshold_that_is_no_score(threshold: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="threshold: expected a score between 0 and 1"):
        predict_files(tmp_path, [tmp_path], tmp_path / "out", threshold=threshold)
