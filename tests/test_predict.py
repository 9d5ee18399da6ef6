"""Prediction: one image or many, memory or files, and what happens when something cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.errors import CheckpointError, DatasetError
from mask2former_dinov3.evaluate import evaluate_coco
from mask2former_dinov3.instances import Instances
from mask2former_dinov3.predict import Predictor, find_images, load_model, predict_files, usable_device
from mask2former_dinov3.visualize import draw_instances


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Predictor:
    return Predictor.from_pretrained(model_folder, "cpu")


def picture(seed: int = 0, height: int = 40, width: int = 60) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(one: Instances, other: Instances) -> None:
    """Sums in a batch and alone differ in the last bits, which may move a pixel on an edge."""
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    assert (one.masks != other.masks).mean() < 1e-3


def test_predictor__gives_instances_at_the_images_own_size(predictor: Predictor) -> None:
    found = predictor(picture(), threshold=0.0)
    assert isinstance(found, Instances)
    assert (found.height, found.width) == (40, 60)
    assert len(found) > 0
    assert found.categories == ((3, "disc"), (7, "bar"))
    assert (np.diff(found.scores) <= 0).all()
    assert len(predictor(picture(), threshold=0.0, max_detections=3)) <= 3
    assert (predictor(picture(), threshold=0.2).scores >= 0.2).all()


def test_predictor__takes_one_image_or_a_list_of_any_kind(predictor: Predictor, tmp_path: Path) -> None:
    rgb = picture()
    Image.fromarray(rgb).save(tmp_path / "a.png")
    alone = predictor(rgb, threshold=0.0)
    several = predictor(
        [rgb, tmp_path / "a.png", Image.fromarray(rgb), picture(1, 90, 30)], threshold=0.0, batch_size=3
    )
    assert [(one.height, one.width) for one in several] == [(40, 60)] * 3 + [(90, 30)]
    for one in several[:3]:
        assert_same(one, alone)
    (only,) = predictor([rgb], threshold=0.0)
    assert_same(only, alone)
    assert predictor([]) == []


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
    assert "2 could not be read" in summary.text()
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

    monkeypatch.setattr("mask2former_dinov3.predict.draw_instances", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_files(predictor, [tmp_path], tmp_path / "out", threshold=0.0)
    assert len(json.loads((tmp_path / "out" / "images.json").read_text())["images"]) == 2


def test_predict_files__says_what_it_cannot_do(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"(?s)no image found.*nowhere/\*\.png: no such file.*: no image in it"):
        predict_files(predictor, ["nowhere/*.png", tmp_path], tmp_path / "out")
    with pytest.raises(ValueError, match="save: expected some of overlays, masks, coco, got video"):
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


def test_load_model__says_why_not(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json and no preprocessor_config\.json"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match="expected a model folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="taken for a hub id"):
        load_model("nobody/nothing")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    with pytest.raises(CheckpointError, match=r"config\.json says 'swin'"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text((model_folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        load_model(tmp_path)


def test_load_model__refuses_weights_of_another_network(model_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_text((model_folder / file).read_text())
    weights = load_file(model_folder / "model.safetensors")
    removed = next(key for key in weights if key.startswith("head"))
    save_file({key: value for key, value in weights.items() if key != removed}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=removed.replace(".", r"\.")):
        load_model(tmp_path)


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_usable_device__names_what_is_not_there(device: str) -> None:
    with pytest.raises(ValueError, match=f"device: {device} cannot be used here"):
        usable_device(device)


@pytest.mark.parametrize("threshold", [50.0, -0.1, float("nan")])
def test_predict_files__refuses_a_threshold_that_is_no_score(threshold: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="threshold: expected a score between 0 and 1"):
        predict_files(tmp_path, [tmp_path], tmp_path / "out", threshold=threshold)


@pytest.mark.parametrize(("name", "content"), [("config.json", "[]"), ("preprocessor_config.json", "[1]")])
def test_load_model__explains_a_broken_folder(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mask2former_dinov3"}')
    (tmp_path / "preprocessor_config.json").write_text("{}")
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_model(tmp_path, "cpu")


def test_predictor__finds_the_same_in_one_tile_as_without(predictor: Predictor) -> None:
    alone = predictor(picture(), threshold=0.0)
    tiled = predictor([picture(), picture()], threshold=0.0, tile=60)
    for one in tiled:
        assert one.rles == alone.rles
        assert one.scores.tolist() == alone.scores.tolist()
        assert one.categories == alone.categories
    larger = predictor(picture(0, 100, 130), threshold=0.0, tile=64, overlap=0.3, batch_size=4)
    assert (larger.height, larger.width) == (100, 130)
    assert len(larger) > 0
    with pytest.raises(ValueError, match="tile: expected at least 32 pixels, got 8"):
        predictor(picture(), tile=8)
