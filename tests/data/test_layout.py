"""Every layout is found, options override it, and ambiguous ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mask2former_dinov3.data.layout import find_splits, name_of_data
from mask2former_dinov3.errors import DatasetError, OptionError


def write(path: Path, images: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"id": number, "file_name": f"{number}.png", "height": 4, "width": 4} for number in range(images)]
    path.write_text(json.dumps({"images": entries, "annotations": [], "categories": []}))
    return path


def folders(*paths: Path) -> None:
    for path in paths:
        path.mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("valid", ["valid", "val"])
def test_find_splits__roboflow(tmp_path: Path, valid: str) -> None:
    for folder in ("train", valid, "test"):
        write(tmp_path / folder / "_annotations.coco.json")
    splits, notes = find_splits(tmp_path)
    assert list(splits) == ["train", "valid", "test"]
    assert splits["valid"].annotations == tmp_path / valid / "_annotations.coco.json"
    assert splits["valid"].images == tmp_path / valid
    assert splits["train"].image_ids is None
    assert notes == []


@pytest.mark.parametrize("images", ["", "images"])
def test_find_splits__coco(tmp_path: Path, images: str) -> None:
    write(tmp_path / "annotations" / "instances_train2017.json")
    write(tmp_path / "annotations" / "instances_val2017.json")
    write(tmp_path / "annotations" / "captions_val2017.json")
    folders(tmp_path / images / "train2017", tmp_path / images / "val2017")
    splits, _ = find_splits(tmp_path)
    assert splits["train"].images == tmp_path / images / "train2017"
    assert splits["valid"].annotations.name == "instances_val2017.json"
    assert splits["valid"].images == tmp_path / images / "val2017"


def test_find_splits__coco_with_folders_of_another_name(tmp_path: Path) -> None:
    write(tmp_path / "annotations" / "instances_train.json")
    write(tmp_path / "annotations" / "instances_val.json")
    folders(tmp_path / "train_images", tmp_path / "images")
    splits, _ = find_splits(tmp_path)
    assert splits["train"].images == tmp_path / "train_images"
    assert splits["valid"].images == tmp_path / "images"


@pytest.mark.parametrize("names", [("Train", "Validation"), ("train", "val")])
def test_find_splits__cvat_with_subsets(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        write(tmp_path / "annotations" / f"instances_{name}.json")
        folders(tmp_path / "images" / name)
    splits, _ = find_splits(tmp_path)
    assert splits["train"].images == tmp_path / "images" / names[0]
    assert splits["valid"].images == tmp_path / "images" / names[1]


def test_find_splits__cvat_without_subsets_is_divided(tmp_path: Path) -> None:
    file = write(tmp_path / "annotations" / "instances_default.json", images=20)
    folders(tmp_path / "images" / "default")
    splits, notes = find_splits(tmp_path)
    assert splits["train"].annotations == splits["valid"].annotations == file
    assert splits["train"].images == tmp_path / "images" / "default"
    assert len(splits["valid"].image_ids or ()) == 2
    assert "2 of its 20 images" in notes[0]
    assert "valid_split=0.1" in notes[0]


def test_find_splits__label_studio(tmp_path: Path) -> None:
    write(tmp_path / "result.json", images=5)
    folders(tmp_path / "images")
    splits, _ = find_splits(tmp_path)
    assert splits["train"].images == tmp_path / "images"


def test_find_splits__a_json_file_in_place_of_a_folder(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.json", images=5)
    splits, _ = find_splits(file)
    assert splits["train"].annotations == file
    assert splits["train"].images == tmp_path


def test_find_splits__division_depends_on_names_alone(tmp_path: Path) -> None:
    """Another order and other ids in the file, or another place, leave every picture in its part."""

    def valid_names(path: Path) -> set[str]:
        names = {image["id"]: image["file_name"] for image in json.loads(path.read_text())["images"]}
        splits, _ = find_splits(path, valid_split=0.3)
        parts = [splits[name].image_ids for name in ("train", "valid")]
        assert parts[0] is not None
        assert parts[1] is not None
        assert parts[0] | parts[1] == set(names)
        assert not parts[0] & parts[1]
        return {names[image_id] for image_id in parts[1]}

    first = write(tmp_path / "a.json", images=40)
    content = json.loads(first.read_text())
    content["images"] = [image | {"id": str(1000 - image["id"])} for image in reversed(content["images"])]
    content["images"] = [image | {"id": int(image["id"])} for image in content["images"]]
    second = tmp_path / "elsewhere" / "b.json"
    second.parent.mkdir()
    second.write_text(json.dumps(content))
    assert valid_names(first) == valid_names(second)
    assert len(valid_names(first)) == 12


def test_find_splits__valid_split_zero_trains_without_validation(tmp_path: Path) -> None:
    write(tmp_path / "train" / "_annotations.coco.json", images=5)
    splits, notes = find_splits(tmp_path, valid_split=0)
    assert list(splits) == ["train"]
    assert splits["train"].image_ids is None
    assert "without evaluation" in notes[0]


@pytest.mark.parametrize(("images", "valid"), [(2, 1), (3, 1)])
def test_find_splits__small_sets_keep_an_image_on_either_side(tmp_path: Path, images: int, valid: int) -> None:
    write(tmp_path / "train" / "_annotations.coco.json", images=images)
    for share in (0.01, 0.4):
        splits, _ = find_splits(tmp_path, valid_split=share)
        assert len(splits["valid"].image_ids or ()) == valid
    splits, _ = find_splits(tmp_path, valid_split=0.99)
    assert len(splits["train"].image_ids or ()) == 1


def test_find_splits__one_image_cannot_be_divided(tmp_path: Path) -> None:
    splits, notes = find_splits(write(tmp_path / "a.json", images=1))
    assert list(splits) == ["train"]
    assert "cannot be divided" in notes[0]


def test_find_splits__train_and_test_still_need_validation(tmp_path: Path) -> None:
    write(tmp_path / "train" / "_annotations.coco.json", images=10)
    write(tmp_path / "test" / "_annotations.coco.json", images=3)
    splits, notes = find_splits(tmp_path)
    assert list(splits) == ["train", "valid", "test"]
    assert splits["test"].image_ids is None
    assert len(notes) == 1


def test_find_splits__without_train_adds_a_note(tmp_path: Path) -> None:
    write(tmp_path / "test" / "_annotations.coco.json")
    splits, notes = find_splits(tmp_path)
    assert list(splits) == ["test"]
    assert "no train split" in notes[0]


def test_find_splits__options_stand_alone(tmp_path: Path) -> None:
    train, valid = write(tmp_path / "a" / "t.json", 3), write(tmp_path / "b" / "v.json", 3)
    folders(tmp_path / "a" / "images", tmp_path / "pictures")
    splits, notes = find_splits(
        None, train_annotations=train, valid_annotations=valid, valid_images=tmp_path / "pictures"
    )
    assert splits["train"].images == tmp_path / "a" / "images"  # beside the annotations
    assert splits["valid"].images == tmp_path / "pictures"
    assert notes == []


def test_find_splits__options_replace_what_was_found(tmp_path: Path) -> None:
    write(tmp_path / "train" / "_annotations.coco.json")
    write(tmp_path / "valid" / "_annotations.coco.json")
    write(tmp_path / "better.json")
    folders(tmp_path / "pictures")
    splits, _ = find_splits(tmp_path, valid_annotations="better.json", train_images="pictures")  # under the folder
    assert splits["valid"].annotations == tmp_path / "better.json"
    assert splits["train"].images == tmp_path / "pictures"
    assert splits["train"].annotations == tmp_path / "train" / "_annotations.coco.json"


def test_find_splits__an_unknown_layout_lists_what_is_there(tmp_path: Path) -> None:
    folders(tmp_path / "labels")
    (tmp_path / "data.yaml").write_text("")
    with pytest.raises(
        DatasetError, match=r"expected one of .*, got data\.yaml, labels/; name the files with --train-ann"
    ):
        find_splits(tmp_path)


def test_find_splits__several_files_for_a_split_are_not_guessed(tmp_path: Path) -> None:
    write(tmp_path / "annotations" / "instances_train2014.json")
    write(tmp_path / "annotations" / "instances_train2017.json")
    with pytest.raises(
        DatasetError,
        match=r"expected one annotation file for train, got .*2014.*2017.*; choose with --train-annotations",
    ):
        find_splits(tmp_path)
    write(tmp_path / "other" / "val" / "_annotations.coco.json")
    write(tmp_path / "other" / "valid" / "_annotations.coco.json")
    with pytest.raises(DatasetError, match="expected one annotation file for valid"):
        find_splits(tmp_path / "other")


def test_find_splits__bad_input_is_explained(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^dataset_name: expected the folder of a data set, got nothing; set it, or"):
        find_splits(None)
    with pytest.raises(
        DatasetError, match="nothing: expected the folder of a data set, or a JSON file, got no such file or folder"
    ):
        find_splits(tmp_path / "nothing")
    with pytest.raises(
        OptionError, match=r"^train_annotations: expected a file that exists, got .*no\.json: no such file$"
    ):
        find_splits(None, train_annotations=tmp_path / "no.json")
    with pytest.raises(OptionError, match=r"^valid_images: expected --valid-annotations beside it, got none"):
        find_splits(None, train_annotations=write(tmp_path / "t.json"), valid_images=tmp_path)
    with pytest.raises(
        OptionError, match=r"^valid_split: expected a fraction of the images from 0 to below 1, got 1\.5"
    ):
        find_splits(tmp_path, valid_split=1.5)
    broken = tmp_path / "broken.json"
    broken.write_text('{"images": [')
    with pytest.raises(DatasetError, match="got invalid JSON"):
        find_splits(broken)


def test_find_splits__an_id_beyond_64_bits_does_not_end_the_division(tmp_path: Path) -> None:
    """`parse_coco` reports it; the other images are divided."""
    images = [{"id": number, "file_name": f"{number}.png", "height": 4, "width": 4} for number in (1, 2, 3, 2**63)]
    content = {"images": images, "annotations": [], "categories": []}
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(content))
    splits, _ = find_splits(tmp_path, valid_split=0.4)
    held = [split.image_ids for split in splits.values()]
    assert sorted(one for ids in held if ids is not None for one in ids) == [1, 2, 3]


@pytest.mark.parametrize(
    ("path", "subset", "name"),
    [
        ("/data/nuclei/valid/_annotations.coco.json", "", "nuclei/valid"),
        ("/data/fruits/annotations/instances_val.json", "", "fruits/instances_val"),
        ("/data/set/train.json", "", "set/train"),
        ("/data/yolo/set", "val", "yolo/set/val"),
        ("a.json", "", "a"),
    ],
)
def test_name_of_data__tells_the_splits_of_a_data_set_apart_and_no_more_of_its_path(
    path: str, subset: str, name: str
) -> None:
    assert name_of_data(Path(path), subset) == name


def test_name_of_data__is_the_same_for_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "nuclei" / "valid" / "_annotations.coco.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    monkeypatch.chdir(file.parent)
    assert name_of_data(Path(file.name)) == name_of_data(file) == "nuclei/valid"
