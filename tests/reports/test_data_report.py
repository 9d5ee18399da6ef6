"""The page of `check-data --report`: every fault with its picture, and samples as training gets them."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.cli import main
from mask2former_dinov3.data.check import SplitReport, check_data
from mask2former_dinov3.data.class_balance import image_repeat_factors
from mask2former_dinov3.data.dataset import CocoInstanceDataset
from mask2former_dinov3.data.faults import Fault
from mask2former_dinov3.data.layout import Split, find_splits
from mask2former_dinov3.data.sampler import EpochPlan
from mask2former_dinov3.data.transforms import Augmentation
from mask2former_dinov3.reports.data_report import write_data_report
from mask2former_dinov3.reports.data_sections import faults_section, group_faults, kind_of_reason
from mask2former_dinov3.reports.fault_views import FaultViews
from mask2former_dinov3.reports.pictures import FOCUS, draw_box, draw_focus, surround, view_of

SQUARE = [np.array([[4.0, 4.0], [20.0, 4.0], [20.0, 20.0], [4.0, 20.0]])]


def report_of(root: Path, output: Path, *words: str) -> str:
    main(["check-data", str(root), "--image-height", "64", "--image-width", "96", "--report", str(output), *words])
    return (output / "report.html").read_text(encoding="utf-8")


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = root / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def pictures_of(text: str) -> list[tuple[str, np.ndarray[Any, np.dtype[np.uint8]]]]:
    """The alternative text and the pixels of every picture."""
    found = []
    for tag in re.findall(r"<img [^>]*>", text):
        data = re.search(r'src="data:image/jpeg;base64,([^"]*)"', tag)
        alt = re.search(r'alt="([^"]*)"', tag)
        assert data is not None
        assert alt is not None
        found.append((alt[1], np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))))))
    return found


def test_report__shows_every_fault_in_one_file(make_toy_dataset: Callable[..., Path], tmp_path: Path) -> None:
    root = make_toy_dataset()

    def change(content: dict[str, Any]) -> None:
        content["categories"][0]["name"] = "<script>alert(1)</script>"
        content["annotations"][0]["segmentation"] = [[1, 1, 30, 40]]
        content["annotations"][2]["segmentation"] = []

    edit(root, change)
    (root / "train" / "002.png").unlink()
    text = report_of(root, tmp_path / "page")
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == ["report.html"]
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "image 10, annotation 1: polygon: expected at least 3 points, got 2" in text
    assert "image 11, annotation 3: no segmentation (a box alone trains no mask)" in text
    shown = dict(pictures_of(text))
    # The points of a polygon that is none, the box of an annotation without a mask.
    lines = shown["000.png, image 10, annotation 1: its points in orange, its box in white, 1 other objects"]
    assert (np.abs(lines.astype(int) - FOCUS).max(2) < 60).any()
    box = shown["001.png, image 11, annotation 3: its box in white, 1 other objects"]
    assert (box.min(2) > 220).sum() > 100
    assert all(picture.shape[2] == 3 and max(picture.shape) <= 320 for picture in shown.values())
    assert text.count("the image cannot be read") == 2  # as a fault, and among the images of train


def test_report__shows_what_training_sees(toy_dataset: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "scale_min": 0.5,
        "scale_max": 1.5,
        "flip": "all",
        "copy_paste": 0.5,
        "color_jitter": 0.4,
    }
    changes |= {"rotation": 30.0, "gamma_jitter": 0.5, "invert": 0.5, "blur": 1.0}
    recipe = {**changes, "seed": 3, "repeat_factor": 1.0}
    config = {"dataset_name": "elsewhere", "output_dir": "out", "image_height": 48, "image_width": 64, **recipe}
    (tmp_path / "c.json").write_text(json.dumps(config))
    words = ["check-data", str(toy_dataset), "--config", str(tmp_path / "c.json"), "--report", str(tmp_path / "page")]
    assert main(words) == 0
    text = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    data = check_data(find_splits(toy_dataset)[0], full=False).data["train"]
    assert "copy_paste 0.5, rotation 30, gamma_jitter 0.5, invert 0.5, blur 1, seed 3 (options of " in text
    augmentation = Augmentation(**changes)
    plain = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # as in the report: empty corners get the mean
    dataset = CocoInstanceDataset(
        data,
        image_height=48,
        image_width=64,
        image_mean=plain[0],
        image_std=plain[1],
        augmentation=augmentation,
        seed=3,
    )
    plan = EpochPlan(6, 3, image_repeat_factors(data, 1.0))
    shown = [pair for pair in pictures_of(text) if pair[0].startswith("training sample of ")]
    assert len(shown) == 24
    for position, (alt, picture) in enumerate(shown):
        key = plan.key_at(position)
        sample, index = dataset[key], key[1]
        count = len(sample["class_labels"])
        assert f"{data.images[index].file_name}: {count} target" in alt
        pixels = (sample["pixel_values"].numpy().transpose(1, 2, 0) * 0.25 + 0.5) * 255  # (H, W, 3)
        free = sample["pixel_mask"].numpy() & ~sample["mask_labels"].numpy().any(0)
        # JPEG and the outlines change some pixels; a wrong sample changes most.
        assert np.median(np.abs(picture[free].astype(float) - pixels[free])) < 12
        assert (
            np.abs(picture[~sample["pixel_mask"].numpy()].astype(int) - 128).mean() < 20 or sample["pixel_mask"].all()
        )


def test_report__is_the_same_each_time_and_bounded(make_toy_dataset: Callable[..., Path], tmp_path: Path) -> None:
    root = make_toy_dataset(train=30)
    edit(root, lambda content: [one.update(category_id=99) for one in content["annotations"][:40]])
    first, second = report_of(root, tmp_path / "a"), report_of(root, tmp_path / "b")
    assert first == second
    assert "6 of 40 places shown." in first
    assert "12 of 30 images, chosen at random (seed 0)" in first
    assert first.count('alt="training sample of ') == 24


def test_faults_section__shows_a_bounded_number_of_sentences_and_pictures(toy_dataset: Path) -> None:
    splits, _ = find_splits(toy_dataset)
    report = check_data(splits, full=False)
    views = FaultViews(splits["train"], report.data["train"])
    one = [Fault("warning", 10, 1, f"sentence {number}", "one place each") for number in range(40)]
    many = Fault("error", 10, 1, "one sentence", "many places", ((11, 3),) * 99)
    section = faults_section("train", SplitReport(splits["train"].annotations, [*one, many]), views)
    assert "… and 35 more; check-data --json FILE lists all" in section
    assert "6 of 40 places shown." in section
    assert "6 of 100 places shown." in section
    assert section.count("<figure>") == 12
    assert section.index("Many places") < section.index("One place each")  # errors first


@pytest.mark.parametrize("place", ["", "train", "train/page", "page"])
def test_report__is_not_written_into_the_data(
    place: str, toy_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-data", str(toy_dataset), "--report", str(toy_dataset / place)]) == 1
    assert "--report: expected a folder outside the data set" in capsys.readouterr().err
    assert not list(toy_dataset.rglob("*.html"))
    assert not (toy_dataset / "page").exists()


def test_report__beside_annotations_whose_images_are_elsewhere(toy_dataset: Path, tmp_path: Path) -> None:
    content = json.loads((toy_dataset / "train" / "_annotations.coco.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(content))
    given = ["--train-annotations", str(tmp_path / "a.json"), "--train-images", str(toy_dataset / "train")]
    sides = ["--image-height", "64", "--image-width", "96", "--valid-split", "0"]
    assert main(["check-data", *given, *sides, "--report", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page" / "report.html").is_file()
    assert main(["check-data", *given, *sides, "--report", str(tmp_path)]) == 1


def test_report__of_unreadable_annotations_has_the_error(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "_annotations.coco.json").write_text('{"images": 3')
    splits = {"train": Split("train", tmp_path / "data" / "_annotations.coco.json", tmp_path / "data")}
    path = write_data_report(check_data(splits), splits, tmp_path, None, "data")
    assert "invalid JSON" in path.read_text()


def test_group_faults__by_kind_or_by_the_words_of_the_reason() -> None:
    faults = [
        Fault("warning", 1, 2, "mask and box differ", "box differs from mask"),
        Fault("error", 3, None, "/data/a/3.png: expected an image file, got no such file"),
        Fault("error", 4, None, "/data/a/4.png: expected an image file, got no such file"),
        Fault("warning", 5, 6, 'class "x": 12 of 30 objects; look', ""),
        Fault("warning", 7, 8, 'class "yy": 3 of 4 objects; look', ""),
    ]
    assert [(key, len(found)) for key, found in group_faults(faults).items()] == [
        (("error", "expected an image file"), 2),
        (("warning", "box differs from mask"), 1),
        (("warning", "class …: N of N objects"), 2),
    ]
    assert kind_of_reason("") == "other"


def test_view_of__crops_to_a_box_and_draws_in_the_source_s_coordinates() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    view = view_of(image, (0, 0, 40, 20), side=80)
    assert view.pixels.shape == (40, 80, 3)
    drawn = draw_focus(view, [SQUARE], [])
    assert drawn[24, 24].tolist() == pytest.approx([0.38 * value for value in FOCUS], abs=1)  # inside, twice as large
    assert not drawn[24, 60].any()
    draw_box(drawn, view, (20, 2, 10, 10))
    assert drawn[4, 50].tolist() == [255, 255, 255]
    assert view_of(image, (300, 300, 400, 400)).pixels.shape == (160, 320, 3)  # outside: the whole image
    assert surround([(300, 10, 5, 5)], (100, 200)) is None
    assert surround([(10, 20, 40, 10)], (100, 200)) == (-10, 0, 70, 50)


def test_fault_views__draws_the_box_where_the_fault_is_about_it(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset()
    edit(root, lambda content: content["annotations"][0].update(bbox=[2, 40, 30, 20]))
    splits, _ = find_splits(root)
    report = check_data(splits, full=False)
    views = FaultViews(splits["train"], report.data["train"])
    found = []
    for kind in ("box differs from mask", "mask of another kind"):
        ((alt, picture),) = pictures_of(views.draw((10, 1), Fault("warning", 10, 1, "", kind)))
        found.append(((picture.min(2) > 235).sum(), alt))
    assert found[0][0] > 100 > found[1][0]
    assert found[0][1] == "000.png, image 10, annotation 1, disc: its mask in orange, its box in white, 1 other objects"
