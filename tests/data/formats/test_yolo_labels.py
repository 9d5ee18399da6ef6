"""YOLO's segmentation data sets: found, read exactly, and every malformed line named with its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mask2former_dinov3.data.check import check_data
from mask2former_dinov3.data.coco import parse_coco
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.errors import DatasetError, OptionError
from mask2former_dinov3.evaluation.coco_files import read_ground_truth
from support.formats import find_split, masks_of, read_split, write_image

SQUARE = "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75"


def write(root: Path, labels: dict[str, str], yaml: str = "train: images/train\nnames: [crack, hole]\n") -> Path:
    for number, (name, text) in enumerate(labels.items()):
        write_image(root / "images" / f"{name}.png", seed=number)
        file = root / "labels" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (root / "data.yaml").write_text(yaml)
    return root


def test_read_yolo__polygons_are_fractions_of_the_image(tmp_path: Path) -> None:
    data = read_split(write(tmp_path, {"train/a": SQUARE + "\n1 0 0 0.5 0 0 1\n", "train/b": ""}))
    assert [(one.id, one.name) for one in data.categories] == [(0, "crack"), (1, "hole")]
    assert [(image.file_name, image.height, image.width) for image in data.images] == [
        ("a.png", 24, 32),
        ("b.png", 24, 32),
    ]
    first, second = data.images[0].annotations
    assert isinstance(first.segmentation, list)
    np.testing.assert_array_equal(first.segmentation[0], [(8, 6), (24, 6), (24, 18), (8, 18)])
    assert (first.category_id, second.category_id) == (0, 1)
    mask = masks_of(data)["a.png"][0][1]
    assert mask[6:18, 8:24].all()
    assert mask.sum() == 12 * 16


@pytest.mark.parametrize(
    ("yaml", "train", "valid"),
    [
        ("path: .\ntrain: images/train\nval: images/val\nnames:\n  0: crack\n  1: hole\n", "a.png", "b.png"),
        (
            "path: /home/other/machine\ntrain: images/train\nval: images/val\nnames: [crack, hole]\nnc: 2\n",
            "a.png",
            "b.png",
        ),
        ("train: ../images/train\nval: ../images/val\nnames: ['crack', 'hole']\n", "a.png", "b.png"),
        ("train: train.txt\nval: [images/val]\nnames: [crack, hole]\n", "images/train/a.png", "b.png"),
    ],
)
def test_find_yolo__resolves_the_paths_of_data_yaml(tmp_path: Path, yaml: str, train: str, valid: str) -> None:
    write(tmp_path, {"train/a": SQUARE, "val/b": SQUARE}, yaml)
    (tmp_path / "train.txt").write_text("./images/train/a.png\n")
    splits, notes = find_splits(tmp_path)
    assert {name: split.format for name, split in splits.items()} == {"train": "yolo", "valid": "yolo"}
    assert notes == []
    assert read_split(tmp_path).images[0].file_name == train
    assert read_split(tmp_path, "valid").images[0].file_name == valid
    assert read_split(tmp_path, "valid").images[0].path.is_file()


def test_read_yolo__roboflow_folders(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "images" / "a.jpg")
    (tmp_path / "train" / "labels").mkdir()
    (tmp_path / "train" / "labels" / "a.txt").write_text(SQUARE)
    (tmp_path / "data.yaml").write_text("train: ../train/images\ntest: ../test/images\nnc: 1\nnames: ['crack']\n")
    data, faults = parse_coco(find_split(tmp_path))
    assert len(data.images[0].annotations) == 1
    assert [str(fault) for fault in faults] == ['test: "../test/images" has no images; there is no test split']


def test_read_yolo__every_malformed_line_is_named(tmp_path: Path) -> None:
    lines = [
        "2 0 0 1 0 1 1",
        "0 0 0 1 0 1",
        "0 nan 0 1 0 1 1",
        "0 0 0 1 0 1 one",
        "0 0 0 32 0 32 24",
        "0 0 0 1",
        "-1 0 0 1 0 1 1",
        "0.5 0 0 1 0 1 1",
        SQUARE,
    ]
    write(tmp_path, {"train/a": "\n".join(lines)})
    data, faults = parse_coco(find_split(tmp_path))
    assert [len(image.annotations) for image in data.images] == [1]
    texts = [str(fault) for fault in faults if fault.severity == "error"]
    for number in range(1, 9):
        assert any(
            f"labels/train/a.txt:{number}: expected" in text or f"labels/train/a.txt:{number}: class" in text
            for text in texts
        ), number
    assert (
        "labels/train/a.txt:1: class: expected a number from 0 to 1, the classes that data.yaml names, got 2" in texts
    )
    assert any("divide pixels by the image's width and height" in text for text in texts)
    assert any("the last one may be the score of a prediction" in text for text in texts)
    with pytest.raises(DatasetError, match="8 errors"):
        read_ground_truth(find_split(tmp_path))


def test_read_yolo__one_cause_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, {f"train/{number}": "7 0 0 1 0 1 1" for number in range(9)})
    _, faults = parse_coco(find_split(tmp_path))
    errors = [str(fault) for fault in faults if fault.severity == "error"]
    assert len(errors) == 1
    assert errors[0].startswith("unknown class, 9 places: labels/train/0.txt:1: class: expected a number")
    assert errors[0].endswith(
        "(and labels/train/1.txt:1, labels/train/2.txt:1, labels/train/3.txt:1, labels/train/4.txt:1, …)"
    )


def test_read_yolo__counts_boxes_joined_parts_and_missing_files(tmp_path: Path) -> None:
    bridge = "0 0 0 0.2 0 0.2 0.2 0 0 0.5 0.5 0.9 0.5 0.9 0.9 0.5 0.5"
    write(tmp_path, {"train/a": f"0 0.5 0.5 0.25 0.5\n{bridge}\n", "train/b": ""})
    write_image(tmp_path / "images" / "train" / "c.png", seed=5)
    (tmp_path / "labels" / "train" / "lost.txt").write_text(SQUARE)
    data, faults = parse_coco(find_split(tmp_path))
    texts = [(fault.severity, str(fault)) for fault in faults]
    assert ("note", "1 image without a label file: no objects in them") in texts
    assert ("note", "1 line of four numbers: boxes, which train no mask") in texts
    assert any(severity == "note" and text.startswith("1 polygon that pass a point twice") for severity, text in texts)
    assert ("warning", "labels/train/lost.txt: expected an image of the same name, got none") in texts
    assert [len(image.annotations) for image in data.images] == [1, 0, 0]
    assert any("labels/train/a.txt:1" in text and "box" in text for _, text in texts)
    assert any(note.startswith("1 annotation of") for note in read_ground_truth(find_split(tmp_path)).notes)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images/train\nnames: [a, a]\n", "names: expected a different name for each class"),
        ("train: images/train\nnames: {0: a, 2: b}\n", "names: expected the numbers 0 to 1 as keys"),
        ("train: images/train\nnames: [a]\nnc: 3\n", "nc: expected 1, the number of names, got 3"),
        ("train: images/train\nnames:\n", "names: expected a list of class names"),
        ("train: images/nowhere\nnames: [a]\n", "expected image files for train, got none in"),
        ("train: [images/train\nnames: [a]\n", "expected a YAML file, got"),
    ],
)
def test_read_yolo__malformed_data_yaml(tmp_path: Path, yaml: str, message: str) -> None:
    write(tmp_path, {"train/a": SQUARE}, yaml)
    with pytest.raises(DatasetError, match=r"data\.yaml") as caught:
        read_split(tmp_path)
    assert message in str(caught.value)


def test_read_yolo__label_files_in_other_encodings(tmp_path: Path) -> None:
    write(tmp_path, {"train/a": "", "train/b": "", "train/c": ""})
    for name, text in (("a", SQUARE.encode("utf-16")), ("b", SQUARE.encode("utf-8-sig")), ("c", b"0 \x81\xfe 1")):
        (tmp_path / "labels" / "train" / f"{name}.txt").write_bytes(text)
    data, faults = parse_coco(find_split(tmp_path))
    assert [len(image.annotations) for image in data.images] == [1, 1, 0]
    (error,) = (str(fault) for fault in faults)
    assert error.startswith("labels/train/c.txt: expected lines of text, got bytes that are not text")


def test_read_yolo__unreadable_image_and_no_labels_at_all(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "train" / "a.png")
    (tmp_path / "images" / "train" / "b.png").write_bytes(b"no image")
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [a]\n")
    with pytest.raises(DatasetError) as caught:
        read_split(tmp_path)
    assert "b.png: expected an image file" in str(caught.value)
    assert "expected label files such as labels/train/a.txt, got none for 2 images" in str(caught.value)


def test_find_splits__another_image_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"train/a": SQUARE})
    with pytest.raises(
        OptionError, match=r"train_images: expected nothing: .*data.yaml says where the images are \(yolo\)"
    ):
        find_splits(tmp_path, train_images=tmp_path / "images")


def test_check_data__holds_out_images_of_yolo(tmp_path: Path) -> None:
    write(tmp_path, {f"train/{number}": SQUARE for number in range(10)})
    report = check_data(*find_splits(tmp_path, valid_split=0.2))
    assert report.errors == []
    assert {name: len(data.images) for name, data in report.data.items()} == {"train": 8, "valid": 2}
    valid = report.data["valid"]
    assert valid.source is not None
    truth = read_ground_truth(valid.source, [record.id for record in valid.images])
    assert len(truth.annotations) == 2
    assert truth.names == ["crack", "hole"]
