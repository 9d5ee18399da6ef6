"""`check_data`: every fault of a broken data set is found at once; sound ones pass, with the right counts."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as rle_codec

from mask2former_dinov3.data import check as check_module
from mask2former_dinov3.data.achievable_ap import mask_ceilings
from mask2former_dinov3.data.check import Report, check_data
from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.image_folders import PassedOver, image_names_in
from mask2former_dinov3.data.layout import Split, find_splits
from mask2former_dinov3.data.read_rules import ReadRules
from mask2former_dinov3.errors import DatasetError
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.read_options import ReadOptions
from support.coco import rle_of
from support.paths import SHARED


def check(root: Path, **kwargs: Any) -> Report:
    return check_data(*find_splits(root, valid_split=kwargs.pop("valid_split", 0.1)), **kwargs)


def edit(root: Path, change: Callable[[dict[str, Any]], object], split: str = "train") -> None:
    file = root / split / "_annotations.coco.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def found(report: Report, severity: str, split: str = "train") -> list[str]:
    return [str(fault) for fault in report.splits[split].of(severity)]


def test_check_data__a_sound_set_has_statistics_and_no_fault(toy_dataset: Path) -> None:
    """6 images, every fourth empty (index 3), a disc and a bar on each other, a crowd on index 2."""
    report = check(toy_dataset)
    assert [fault for split in report.splits.values() for fault in split.faults] == []
    statistics = report.splits["train"].statistics
    assert statistics is not None
    assert (statistics.images, statistics.images_without_instances) == (6, 1)
    assert (statistics.instances, statistics.crowd_regions) == (10, 1)
    assert statistics.per_class == {"disc": 5, "bar": 5}
    assert statistics.per_size == {"small": 10, "medium": 0, "large": 0}
    assert statistics.image_sizes == {"72 x 64": 3, "64 x 80": 3}
    assert (statistics.instances_per_image_median, statistics.instances_per_image_most) == (2, 2)
    assert list(report.data) == ["train", "valid"]
    report.raise_errors()
    assert report.text().endswith("total: 0 errors, 0 warnings, 0 notes")


def test_check_data__lists_everything_at_once(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset()
    train = root / "train"

    def change(content: dict[str, Any]) -> None:
        content["images"][3]["width"] = 33
        content["annotations"][0]["category_id"] = 99
        content["annotations"][1]["segmentation"] = [[1, 1, 5, 1, 5]]
        content["annotations"][2]["segmentation"] = []

    edit(root, change)
    (train / "002.png").unlink()
    (train / "001.png").write_bytes((train / "001.png").read_bytes()[:3000])
    Image.new("RGB", (8, 8)).save(train / "stray.JPG")
    (train / "notes.txt").write_text("not an image")
    (root / "valid" / "003.png").write_bytes((train / "003.png").read_bytes())
    report = check(root)
    errors = found(report, "error")
    assert errors[0] == "image 10, annotation 1: category_id: expected the id of one of the categories, got 99"
    assert errors[1] == "image 10, annotation 2: polygon: expected an even count of numbers (x, y, x, y, …), got 5"
    assert errors[2].startswith("image 11: ")
    assert "001.png: expected a readable image file, got one that is damaged or cut short" in errors[2]
    assert errors[3] == f"image 12: {train / '002.png'}: expected an image file, got no such file"
    assert errors[4].startswith(
        "image 13: 003.png: expected 64 x 33 pixels (height x width) as in the annotations, got 64 x 80"
    )
    assert len(errors) == 5
    warnings = found(report, "warning")
    assert warnings[0] == (
        "image 11, annotation 3: no segmentation (a box alone trains no mask); left out of training, where the object "
        "is background; incomplete_images drop leaves its image out"
    )
    assert warnings[1] == f"{train / 'stray.JPG'}: in the image folder, not in the annotations"
    assert len(warnings) == 2
    assert found(report, "warning", "valid") == [
        "image 13: 003.png: the same image as image 13 of train; scores will be too high"
    ]
    assert len(report.errors) == 5
    with pytest.raises(
        DatasetError, match=rf"^{root}/train/_annotations\.coco\.json: 5 errors\n  image 10, annotation 1: (.|\n)*"
    ):
        report.raise_errors()


def test_check_data__headers_alone_find_what_stops_training(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset()
    (root / "train" / "002.png").unlink()
    (root / "train" / "001.png").write_text("no image")
    edit(root, lambda content: content["images"][3].update(width=33))
    errors = found(check(root, full=False), "error")
    assert [error.split(":")[0] for error in errors] == ["image 11", "image 12", "image 13"]


def test_check_data__exif_orientation_is_a_note_and_explains_swapped_sizes(
    make_toy_dataset: Callable[..., Path],
) -> None:
    root = make_toy_dataset()
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("000.png", "001.png"):
        with Image.open(root / "train" / name) as picture:
            picture.load()
        picture.save(root / "train" / name, exif=exif)
    edit(root, lambda content: content["images"][1].update(height=80, width=64))
    edit(root, lambda content: content.update(annotations=[a for a in content["annotations"] if a["image_id"] != 11]))
    report = check(root)
    (note,) = found(report, "note")
    assert note.startswith("2 images: EXIF orientation 6 is not applied")
    assert note.endswith("(images 10, 11)")
    assert len(report.errors) == 1
    assert "as EXIF rotates it" in report.errors[0].reason


def test_check_data__more_instances_than_queries(toy_dataset: Path) -> None:
    warnings = found(check(toy_dataset, num_queries=1), "warning")
    assert warnings == [
        "5 images with more instances than num_queries (1), up to 2: the model cannot find them all; raise "
        "num_queries, or set it to auto (images 10, 11, 12, 14, 15)"
    ]


def test_check_data__nothing_to_train_on(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset()

    def crowds_only(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation["iscrowd"] = 1

    edit(root, crowds_only)
    edit(root, lambda content: content.update(annotations=[]), "valid")
    report = check(root)
    assert found(report, "error") == [
        "train: expected an instance with a mask to train on, got none but 11 crowd regions, which do not count; if "
        "they are single objects, set crowd to instances"
    ]
    assert found(report, "error", "valid") == []
    assert found(report, "warning", "valid") == [
        "valid: expected an instance with a mask to score, got none: AP is undefined"
    ]
    splits, _ = find_splits(root, rules=ReadRules(crowd="instances"))
    report = check_data(splits, full=False)
    assert found(report, "error") == []
    assert report.splits["train"].statistics is not None
    assert report.splits["train"].statistics.instances == 11


def test_check_data__a_split_with_a_part_of_the_classes_is_a_note_with_others_an_error(
    make_toy_dataset: Callable[..., Path],
) -> None:
    root = make_toy_dataset()

    def only_bars(content: dict[str, Any]) -> None:
        content["categories"] = content["categories"][1:]
        content["annotations"] = [one for one in content["annotations"] if one["category_id"] == 7]

    edit(root, only_bars, "valid")
    report = check(root, full=False)
    assert report.errors == []
    assert found(report, "note", "valid") == ['categories: 1 of the 2 classes of train; ["disc"] are not scored here']
    edit(root, lambda content: content["categories"].append({"id": 9, "name": "ring"}), "valid")
    assert found(check(root, full=False), "error", "valid") == [
        'categories: expected the classes of train, ["bar", "disc"], got ["bar", "ring"]'
    ]


def test_check_data__a_split_all_of_whose_images_are_left_out(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset(valid=1)
    edit(root, lambda content: content["annotations"][0].update(segmentation=None), "valid")
    splits, _ = find_splits(root, rules=ReadRules(incomplete_images="drop"))
    report = check_data(splits, full=False)
    assert found(report, "error", "valid") == ["valid: expected an image, got none: all are left out"]
    assert not [one for one in found(report, "warning", "valid") if "not in the annotations" in one]


def test_check_data__a_folder_of_two_splits_is_listed_once(
    make_toy_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not listed is reported with the first of its splits, what is passed over with both."""
    root = make_toy_dataset()
    shutil.rmtree(root / "valid")
    (root / "train" / "notes.txt").touch()
    Image.new("RGB", (8, 8)).save(root / "train" / "more.png")
    listed: list[Path] = []

    def list_folder(folder: Path, passed_over: PassedOver) -> Iterator[str]:
        listed.append(folder)
        return image_names_in(folder, passed_over)

    monkeypatch.setattr(check_module, "image_names_in", list_folder)
    report = check(root, full=False, valid_split=0.3)
    assert list(report.splits) == ["train", "valid"]
    assert listed == [root / "train"]
    unlisted = [one for split in report.splits for one in found(report, "warning", split)]
    assert unlisted == [f"{root / 'train' / 'more.png'}: in the image folder, not in the annotations"]
    for split in report.splits:
        assert f"{root / 'train'}: passed over: 1 file (.txt 1)" in found(report, "note", split)


def test_check_data__files_that_are_not_listed_are_one_line(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset()
    (root / "train" / "more").mkdir()
    for number in range(12):
        Image.new("RGB", (8, 8)).save(root / "train" / "more" / f"{number:02}.png")
    assert found(check(root, full=False), "warning") == [
        f"12 files of {root / 'train'}, {', '.join(f'more/{number:02}.png' for number in range(10))}, …: "
        "in the image folder, not in the annotations"
    ]
    edit(root, lambda content: content["images"][0].update(id="\uff11\uff10"))
    edit(root, lambda content: content.update(annotations=content["annotations"][2:]))
    report = check(root, full=False)
    assert found(report, "error") == [
        'images[0]: expected an object with an id (a whole number), got the id "\\uff11\\uff10"'
    ]
    assert found(report, "warning") == []  # the file of that image would seem to be unlisted


def test_check_data__sizes_of_zero_are_one_line(make_toy_dataset: Callable[..., Path]) -> None:
    """Not also a line for each annotation, each file that seems unlisted, and for nothing to train on."""
    root = make_toy_dataset()
    edit(root, lambda content: [image.update(height=0, width=0) for image in content["images"]])
    report = check(root, full=False)
    (error,) = report.errors
    assert error.reason == (
        "6 images, for example: 000.png: height and width: expected whole numbers of pixels above 0, got 0 and 0"
    )
    assert len(error.places) == 6
    assert found(report, "warning") == []


def test_check_data__a_class_without_instances_is_a_note(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset()
    for split in ("train", "valid"):
        edit(root, lambda content: content["categories"].append({"id": 8, "name": "ring"}), split)
    assert found(check(root), "note") == ['class "ring" has no instance']


def test_check_data__classes_must_agree_between_splits(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset()
    edit(root, lambda content: content["categories"][0].update(name="disk"), "valid")
    assert found(check(root), "error", "valid") == [
        'categories: expected the classes of train, ["bar", "disc"], got ["bar", "disk"]'
    ]


def test_check_data__a_divided_file_reports_its_faults_once(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset(train=6, valid=0)
    edit(root, lambda content: content["annotations"].append({"id": 50, "image_id": 999}))
    edit(root, lambda content: content["annotations"].append("junk"))
    Image.new("RGB", (8, 8)).save(root / "train" / "stray.png")
    report = check(root, valid_split=0.3)
    assert list(report.splits) == ["train", "valid"]
    assert len(report.errors) == 2
    strays = [fault for split in report.splits.values() for fault in split.of("warning")]
    assert len(strays) == 1
    assert report.text().startswith("note: ")


def test_check_data__the_same_file_for_train_and_valid_is_an_overlap(toy_dataset: Path) -> None:
    file = toy_dataset / "train" / "_annotations.coco.json"
    splits, notes = find_splits(None, train_annotations=file, valid_annotations=file)
    (fault,) = check_data(splits, notes, full=False).splits["valid"].of("warning")
    assert str(fault) == (
        "6 images are the same as images of train, such as 000.png: the same image as image 10 of train; scores will "
        "be too high (images 10, 11, 12, 13, 14, …)"
    )


def test_check_data__an_unreadable_annotation_file_is_a_fault_like_others(
    make_toy_dataset: Callable[..., Path],
) -> None:
    root = make_toy_dataset()
    (root / "valid" / "_annotations.coco.json").write_text("{")
    report = check(root)
    assert "got invalid JSON" in found(report, "error", "valid")[0]
    assert report.splits["valid"].data is None
    assert report.splits["train"].faults == []
    assert list(report.data) == ["train"]


def test_check_data__progress_counts_every_image(toy_dataset: Path) -> None:
    calls: list[tuple[int, int]] = []
    check(toy_dataset, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 10) for done in range(1, 11)]


def test_report__text_is_cut_where_asked_and_json_is_not(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset()
    edit(root, lambda content: [one.update(category_id=1) for one in content["annotations"][:4]])
    edit(root, lambda content: [one.update(iscrowd=3) for one in content["annotations"][4:6]])
    edit(root, lambda content: [one.update(segmentation=[[1, 2, 3]]) for one in content["annotations"][6:7]])
    report = check(root)
    assert "… and 2 more; check-data --json FILE lists all" in report.text(limit=1)
    assert "more; check-data" not in report.text(limit=None)
    stored = json.loads(json.dumps(report.to_json()))
    assert stored["errors"] == 3
    assert len([one for one in stored["splits"]["train"]["faults"] if one["severity"] == "error"]) == 3
    assert stored["splits"]["train"]["statistics"]["images"] == 6
    assert stored["splits"]["train"]["faults"][0] == {
        "severity": "error",
        "image_id": 10,
        "annotation_id": 1,
        "reason": "4 annotations: category_id: expected the id of one of the categories, got 1",
        "kind": "unknown category",
        "more": [[10, 2], [11, 3], [11, 4]],
    }


@pytest.mark.parametrize(("name", "images"), [("nuclei", 556), ("fruits", 18)])
def test_check_data__real_sets_pass_in_seconds(name: str, images: int) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"the real data set {name} is not on this machine")
    start = time.monotonic()
    report = check(SHARED / name)
    assert report.errors == []
    warnings = [fault for split in report.splits.values() for fault in split.of("warning")]
    assert all(fault.kind == "more instances than queries" for fault in warnings)  # nothing that contradicts a mask
    assert sum(split.statistics.images for split in report.splits.values() if split.statistics) == images
    assert time.monotonic() - start < 60  # takes about 2 s on two idle cores


def test_mask_ceilings__are_the_ap_of_coarse_ground_truth(tmp_path: Path) -> None:
    """Discs of 3 to 12 pixels, made coarse by plain means, resized by torch, scored by `evaluate_coco`."""
    rng = np.random.default_rng(0)
    truths, annotations = [], []
    images: list[dict[str, Any]] = [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 96} for i in range(1, 9)]
    y, x = np.mgrid[:64, :96]
    for image in images:
        Image.new("RGB", (96, 64)).save(tmp_path / image["file_name"])
        for place in range(6):
            center, radius = (16 + 32 * (place % 3), 16 + 32 * (place // 3)), rng.uniform(1.5, 6)
            mask = (x - center[0] - rng.uniform(-4, 4)) ** 2 + (y - center[1] - rng.uniform(-4, 4)) ** 2 <= radius**2
            truths.append((image["id"], mask))
            fields = {"id": len(truths), "image_id": image["id"], "category_id": 1, "iscrowd": 0}
            box = rle_codec.toBbox(rle_codec.encode(np.asfortranarray(mask))).tolist()
            annotations.append({**fields, "segmentation": rle_of(mask), "area": float(mask.sum()), "bbox": box})
    file = tmp_path / "truth.json"
    categories = [{"id": 1, "name": "disc"}]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    found = mask_ceilings(read_coco(Split("train", file, tmp_path, None)), (64, 96), strides=(1, 2, 4, 8))
    assert found[1] == 1.0
    for stride, ceiling in found.items():
        results = []
        for image_id, mask in truths:
            coarse = F.avg_pool2d(torch.from_numpy(mask)[None, None].float(), stride)
            back = F.interpolate(coarse, size=(64, 96), mode="bilinear")[0, 0] > 0.5
            score = float(rng.uniform())
            results.append(
                {"image_id": image_id, "category_id": 1, "segmentation": rle_of(back.numpy()), "score": score}
            )
        assert ceiling == pytest.approx(evaluate_coco(file, results)["AP"], abs=0.05), stride
    assert found[1] > found[2] > found[4] > found[8]


def make_deep(root: Path, scale: float, split: str = "train") -> None:
    """Replace the images of a split by 16-bit ones with their values times `scale`."""
    for file in (root / split).glob("*.png"):
        with Image.open(file) as picture:
            values = np.asarray(picture.convert("L")).astype(np.float64) * scale
        Image.fromarray(values.astype(np.uint16)).save(file)


@pytest.mark.parametrize("full", [True, False])
def test_check_data__warns_of_deep_images_that_come_out_black(
    make_toy_dataset: Callable[..., Path], full: bool
) -> None:
    """12 bits in files of 16: one line for all images, with the range and the way out; at the start of training too."""
    root = make_toy_dataset()
    make_deep(root, 16)
    report = check(root, full=full)
    (warning,) = (str(fault) for fault in report.splits["train"].of("warning") if fault.kind == "nearly black")
    assert re.match(r"6 images: values 0\.\.2464 become 0\.\.10 of 255 with value_range full: nearly black", warning)
    assert 'set value_range to "0,4095" or "percentile"' in warning
    assert [fault for fault in report.splits["valid"].faults if fault.kind == "nearly black"] == []
    for value_range in ("0,4095", "percentile"):
        chosen = check(root, full=full, options=ReadOptions(value_range))
        assert found(chosen, "warning") == []


def test_check_data__warns_of_one_file_of_12_bits_among_others(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset()
    make_deep(root, 256)
    assert found(check(root), "warning") == []
    with Image.open(root / "train" / "002.png") as picture:
        values = np.asarray(picture) // 16
    Image.fromarray(values).save(root / "train" / "002.png")
    (warning,) = found(check(root), "warning")
    assert warning.startswith("image 12: 002.png: values")


def test_check_data__warns_of_deep_images_that_come_out_white(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset()
    make_deep(root, 100)
    kinds = [fault.kind for fault in check(root, options=ReadOptions("-9000,20")).splits["train"].of("warning")]
    assert kinds == ["nearly white"]
    assert found(check(root, options=ReadOptions("0,25500")), "warning") == []


def test_check_data__counts_files_that_are_read_in_part(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset()
    for name in ("000", "001", "002"):
        with Image.open(root / "train" / f"{name}.png") as picture:
            page = picture.convert("L")
        page.save(root / "train" / f"{name}.tif", save_all=True, append_images=[page] * 4)
        (root / "train" / f"{name}.png").unlink()
    edit(
        root, lambda content: [image.update(file_name=f"{i:03d}.tif") for i, image in enumerate(content["images"][:3])]
    )
    report = check(root)
    (note,) = found(report, "note")
    assert note.startswith("3 images: 5 pages, the first is read; the options page and channels choose others")
    assert [fault.kind for fault in report.splits["train"].of("note")] == ["read in part"]
    (error,) = check(root, options=ReadOptions(page=6)).splits["train"].of("error")
    assert "expected a page 6, got a file with 5 pages" in error.reason
    assert len(error.places) == 6


@pytest.mark.parametrize("place", ["tag", "xmp"])
def test_check_data__a_turned_tiff_has_its_stored_size(make_toy_dataset: Callable[..., Path], place: str) -> None:
    """Once: "the file has 64 x 48", the size after Pillow's turn; or nothing, and training stopped."""
    root = make_toy_dataset()
    with Image.open(root / "train" / "000.png") as picture:
        picture.load()
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    picture.save(root / "train" / "000.tif", tiffinfo={274: 6} if place == "tag" else {700: xmp})
    (root / "train" / "000.png").unlink()
    edit(root, lambda content: content["images"][0].update(file_name="000.tif"))
    report = check(root)
    assert report.errors == []
    assert [note.split(";")[0] for note in found(report, "note")] == [
        "image 10: 000.tif: EXIF orientation 6 is not applied"
    ]


def test_check_data__finds_data_by_deflate_that_no_decoder_doubts(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset()
    file = root / "train" / "000.tif"
    noise = np.random.default_rng(0).integers(0, 64, (72, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, compression="tiff_adobe_deflate")
    (root / "train" / "000.png").unlink()
    edit(root, lambda content: content["images"][0].update(file_name="000.tif"))
    assert check(root).errors == []
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 8
    file.write_bytes(data)
    (error,) = found(check(root), "error")
    assert "damaged or cut short" in error
