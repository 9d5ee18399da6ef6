"""The option `classes`: keeps, drops, merges and renames by name, with counts, the same in every reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mask2former_dinov3.config.class_option import parse_class_map
from mask2former_dinov3.data.check import check_data
from mask2former_dinov3.data.coco import CocoData, parse_coco
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.evaluation.coco_files import read_ground_truth
from support.formats import write_image

NAMES = ("crack", "scratch", "dust", "hole")


def write(root: Path, split: str = "train", names: tuple[str, ...] = NAMES) -> Path:
    """One image with one object of each class, two of the first; categories 10, 11, …"""
    write_image(root / split / "1.png", seed=len(split))
    polygon = [[2, 2, 9, 2, 9, 9, 2, 9]]
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 24, "width": 32}],
        "categories": [{"id": 10 + number, "name": name} for number, name in enumerate(names)],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 10 + number % len(names), "segmentation": polygon}
            for number in range(len(names) + 1)
        ],
    }
    (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def read(root: Path, classes: Any, split: str = "train") -> tuple[CocoData, list[str]]:
    splits, _ = find_splits(root, valid_split=0, classes=classes)
    data, faults = parse_coco(splits[split])
    return data, [f"{fault.severity}: {fault}" for fault in faults]


def test_map_classes__merges_drops_renames_and_keeps(tmp_path: Path) -> None:
    classes = {"crack": "defect", "scratch": "defect", "dust": None}
    data, texts = read(write(tmp_path), classes)
    assert [(one.id, one.name) for one in data.categories] == [(10, "defect"), (13, "hole")]
    assert [(one.id, one.label) for one in data.images[0].annotations] == [(0, 0), (1, 0), (3, 1), (4, 0)]
    assert texts == [
        'note: classes: "crack" (2 objects), "scratch" (1 object) are now "defect"',
        'note: classes: "dust" (1 object) is left out: background from now on',
    ]
    splits, _ = find_splits(tmp_path, valid_split=0, classes=classes)
    truth = read_ground_truth(splits["train"])
    assert truth.names == ["defect", "hole"]
    assert [one["category_id"] for one in truth.annotations] == [1, 1, 2, 1]


def test_map_classes__a_star_stands_for_all_others(tmp_path: Path) -> None:
    data, texts = read(write(tmp_path), {"crack": "crack", "*": None})
    assert [(one.id, one.name) for one in data.categories] == [(10, "crack")]
    assert len(data.images[0].annotations) == 2
    assert texts == [
        'note: classes: "scratch" (1 object), "dust" (1 object), "hole" (1 object) are left out: background from now on'
    ]


def test_map_classes__a_new_name_may_be_that_of_another_class(tmp_path: Path) -> None:
    data, _ = read(write(tmp_path), {"scratch": "hole"})
    assert [(one.id, one.name) for one in data.categories] == [(10, "crack"), (11, "hole"), (12, "dust")]
    assert [one.category_id for one in data.images[0].annotations] == [10, 11, 12, 11, 10]


def test_map_classes__unknown_names_are_errors_with_the_nearest(tmp_path: Path) -> None:
    _, texts = read(write(tmp_path), {"crak": "defect", "zebra": None})
    errors = [text for text in texts if text.startswith("error")]
    assert len(errors) == 2
    assert errors[0].endswith('got "crak"; nearest is crack')
    assert errors[1].endswith('got "zebra"; it has crack, scratch, dust, hole')


def test_map_classes__valid_may_lack_a_class(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "valid", ("crack", "hole"))
    classes = {"crack": "defect", "scratch": "defect", "dust": None}
    report = check_data(*find_splits(tmp_path, classes=classes))
    assert report.errors == []
    assert 'classes: no class "scratch" in this file' in [str(fault) for fault in report.splits["valid"].faults]


def test_map_classes__nothing_left_is_an_error(tmp_path: Path) -> None:
    _, texts = read(write(tmp_path), {"*": None})
    assert any(text.startswith("error: classes: expected at least one class to keep") for text in texts)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{crack: 1}", "text that is no JSON"),
        ("[]", "got a list"),
        ("{}", "got an empty object"),
        ('{"a": 1}', '"a": expected a new name or null, got 1'),
        ('{"a": " "}', '"a": expected a new name or null, got " "'),
        ('{"a": "b", "a": null}', "expected each name once, got a"),
    ],
)
def test_parse_class_map__refuses_what_is_no_map(value: str, message: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        parse_class_map(value)
    assert message in str(caught.value)


def test_parse_class_map__takes_an_object_and_its_text() -> None:
    expected = {"crack": "defect", "dust": None}
    assert parse_class_map('{"crack": " defect", "dust": null}') == parse_class_map(expected) == expected
