"""Results of `predict` are matched with annotations by the names of images and classes; wrong ids are explained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mask2former_dinov3.errors import DatasetError
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.evaluation.evaluate import evaluate_model
from mask2former_dinov3.inference.files.predict_files import predict_files
from mask2former_dinov3.inference.settings import InferenceSettings
from support.coco import rle_of
from support.paths import PACKAGE

NAMES = ["c.png", "a.png", "deep/b.png"]  # ids 5, 6, 7 in the annotations


def disc(place: int) -> dict[str, Any]:
    """A disc at one of 9 places that do not overlap, 96 x 96 pixels."""
    y, x = np.mgrid[:96, :96]
    return rle_of((x - 16 - 32 * (place % 3)) ** 2 + (y - 16 - 32 * (place // 3)) ** 2 <= 100)


def truth() -> dict[str, Any]:
    """Each picture has two discs at places of its own: results of another picture overlap none."""
    annotations = [
        {"id": 2 * image + side, "image_id": 5 + image, "category_id": 3 + side, "segmentation": disc(3 * image + side)}
        for image in range(3)
        for side in range(2)
    ]
    images = [{"id": 5 + image, "file_name": name, "height": 96, "width": 96} for image, name in enumerate(NAMES)]
    categories = [{"id": 3, "name": "disc"}, {"id": 4, "name": "ring"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_results(folder: Path, names: list[str], **changes: Any) -> Path:
    """Perfect results with predict's own ids: images from 1 on as `names` has them, classes 9 (ring) and 3 (disc)."""
    folder.mkdir(exist_ok=True)
    entries = []
    for number, name in enumerate(names, start=1):
        image = [Path(one).name for one in NAMES].index(name.replace("\\", "/").split("/")[-1])
        for side, category in enumerate((3, 9)):
            entries.append(
                {"image_id": number, "category_id": category, "segmentation": disc(3 * image + side), "score": 0.9}
            )
    (folder / "predictions.json").write_text(json.dumps(entries))
    images = [
        {"id": number, "file_name": name, "height": 96, "width": 96} for number, name in enumerate(names, start=1)
    ]
    content = {"images": images, "categories": [{"id": 3, "name": "disc"}, {"id": 9, "name": "ring"}], **changes}
    (folder / "images.json").write_text(json.dumps(content))
    return folder / "predictions.json"


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "c.png", "deep/b.png"],
        ["a.png", "b.png", "c.png"],  # predicted in the folder itself
        ["set/a.png", "set/c.png", "set/deep/b.png"],  # from the folder above
        [r"deep\b.png", "c.png", "./a.png"],
    ],
)
def test_evaluate_coco__matches_results_by_the_names_of_images(names: list[str], tmp_path: Path) -> None:
    file = write_results(tmp_path / "o", names)
    metrics = evaluate_coco(truth(), file)
    assert metrics["AP"] == 1.0
    assert metrics["per_class"] == {"disc": 1.0, "ring": 1.0}
    assert metrics["notes"] == [
        f"ids of images and classes were matched by name: 3 images of {tmp_path}/o/images.json with annotations"
    ]


def test_evaluate_coco__leaves_out_results_of_other_images_and_counts_them(tmp_path: Path) -> None:
    content = truth()
    file = write_results(tmp_path / "o", ["a.png", "c.png", "deep/b.png"])
    content["images"].pop()
    content["annotations"] = content["annotations"][:4]
    metrics = evaluate_coco(content, file)
    assert metrics["AP"] == 1.0
    assert metrics["detections"] == 4
    assert metrics["notes"][1] == "results of 1 image that annotations does not have were left out: deep/b.png"


def test_evaluate_coco__keeps_ids_that_are_the_annotations_own(tmp_path: Path) -> None:
    content = truth()
    file = write_results(tmp_path / "o", ["a.png"])
    results = [{**one, "score": 1.0} for one in content["annotations"]]
    file.write_text(json.dumps(results))
    (tmp_path / "o" / "images.json").write_text(json.dumps(content))
    assert evaluate_coco(content, file)["notes"] == []
    # An images.json of another run, which does not know these ids, says nothing about them.
    write_results(tmp_path / "o", ["a.png"])
    file.write_text(json.dumps(results))
    metrics = evaluate_coco(content, file)
    assert metrics["AP"] == 1.0
    assert metrics["notes"] == [
        f"{tmp_path}/o/images.json does not name all images of predictions.json and was not used: ids are taken "
        "as they are"
    ]


@pytest.mark.parametrize(
    ("names", "changes", "reason"),
    [
        (
            ["c.png"],
            {"images": [{"id": 1, "file_name": "x.png"}]},
            r"images\.json: expected names of images in annotations \(c\.png, a\.png, deep/b\.png\), got x\.png",
        ),
        (
            ["c.png"],
            {"images": [{"id": 1, "file_name": "c.png", "height": 96, "width": 80}]},
            r"image c\.png: expected the size of the annotations, 96 x 96 pixels .*, got results for 96 x 80",
        ),
        (
            ["one/c.png", "two/c.png"],
            {},
            r"images\.json: expected one image with results for c\.png of the annotations, got one/c\.png, two/c\.png",
        ),
        (
            ["c.png"],
            {"categories": [{"id": 3, "name": "square"}, {"id": 9, "name": "ring"}]},
            r"category_id: expected the id of a category in annotations, got 2",
        ),
    ],
)
def test_evaluate_coco__refuses_names_that_do_not_match(
    names: list[str], changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=reason):
        evaluate_coco(truth(), write_results(tmp_path / "o", names, **changes))


def test_evaluate_coco__a_name_that_fits_several_images_is_refused(tmp_path: Path) -> None:
    content = truth()
    content["images"][0]["file_name"] = "other/b.png"
    with pytest.raises(
        DatasetError, match=r"image b\.png: expected one image of that name .*, got other/b\.png, deep/b"
    ):
        evaluate_coco(content, write_results(tmp_path / "o", ["b.png"]))


def test_evaluate_coco__many_wrong_ids_are_one_error() -> None:
    results = [{"image_id": one, "category_id": 3, "segmentation": disc(0), "score": 0.5} for one in range(100, 110)]
    results.append({"image_id": 5, "category_id": 3, "segmentation": disc(0), "score": 0.5})
    with pytest.raises(
        DatasetError,
        match=r"^predictions: image_id: expected the ids of images in annotations \(5, 6, 7, …\), got others in 10 of "
        r"11 results \(100, 101, 102, …\); results of `predict` are matched by name if its images\.json lies "
        r"beside them$",
    ):
        evaluate_coco(truth(), results)


def test_evaluate_coco__says_that_no_result_overlaps_anything() -> None:
    content = truth()
    results = [
        {**one, "image_id": 5 + (one["image_id"] - 4) % 3, "score": 0.9} for one in content["annotations"]
    ]  # of the next image
    metrics = evaluate_coco(content, results)
    assert metrics["AP"] == 0
    assert metrics["notes"] == [
        "no result overlaps an object of its image, in any of 3 images: the image ids of the results may be those of "
        "other images, or the masks those of pictures of another size",
        "the results of 3 of 3 images fit the objects of other images better (those of image 5 the objects of image "
        "7): the image ids of the results may be those of other images",
    ]
    results[0] = {**content["annotations"][0], "score": 0.9}
    assert evaluate_coco(content, results)["notes"] == []


def test_evaluate_coco__says_that_results_fit_other_images(tmp_path: Path) -> None:
    """All pictures have large objects in the middle too, so that results of one overlap those of every other."""
    content = truth()
    y, x = np.mgrid[:96, :96]
    for image in range(3):
        middle = rle_of((abs(x - 48) < 6) & (y > 20 + 8 * image) & (y < 60 + 8 * image))
        fields = {"id": 20 + image, "image_id": 5 + image, "category_id": 3}
        content["annotations"].append({**fields, "segmentation": middle})
    results = [{**one, "image_id": 5 + (one["image_id"] - 4) % 3, "score": 0.9} for one in content["annotations"]]
    notes = evaluate_coco(content, results)["notes"]
    assert notes == [
        "the results of 3 of 3 images fit the objects of other images better (those of image 5 the objects of image "
        "7): the image ids of the results may be those of other images"
    ]
    assert evaluate_coco(content, [{**one, "score": 0.9} for one in content["annotations"]])["notes"] == []


def test_evaluate_model__scores_what_predict_wrote_as_the_model_itself(tmp_path: Path) -> None:
    """Four pictures in another order than the annotations have; evaluate's own output can be scored again."""
    sample = PACKAGE / "sample"
    content = json.loads((sample / "valid" / "_annotations.coco.json").read_text())
    images = sorted(content["images"], key=lambda one: str(one["file_name"]), reverse=True)[:2]
    (tmp_path / "in").mkdir()
    for new_id, image in enumerate(images, start=1):
        shutil.copy(sample / "valid" / image["file_name"], tmp_path / "in")
        content["annotations"] = [
            {**one, "image_id": f"new {new_id}"} if one["image_id"] == image["id"] else one
            for one in content["annotations"]
        ]
    kept = [
        {**one, "image_id": int(one["image_id"][4:])}
        for one in content["annotations"]
        if isinstance(one["image_id"], str)
    ]
    content |= {"images": [{**one, "id": new_id} for new_id, one in enumerate(images, start=1)], "annotations": kept}
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    settings = InferenceSettings(threshold=0.0)
    predict_files(sample / "model", [tmp_path / "in"], tmp_path / "o", settings=settings, save=("coco",), device="cpu")
    direct = evaluate_model(sample / "model", file, tmp_path / "in", tmp_path / "e", device="cpu")
    metrics = evaluate_model(None, file, None, tmp_path / "e2", predictions=tmp_path / "o" / "predictions.json")
    assert metrics["AP"] == pytest.approx(direct["AP"], abs=1e-6)
    assert direct["AP"] > 0.2
    for folder, notes in (("e", 0), ("e2", 1)):
        again = evaluate_model(None, file, None, tmp_path / "e3", predictions=tmp_path / folder / "predictions.json")
        assert again["AP"] == pytest.approx(direct["AP"], abs=1e-6)
        assert len(again["notes"]) == notes
