"""Data sets of Hugging Face's `datasets`: objects as polygons, masks and label maps give the same pixels."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.data.check import check_data
from mask2former_dinov3.data.coco import parse_coco
from mask2former_dinov3.data.formats import hub_datasets
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.errors import DatasetError, MissingExtraError
from support.formats import find_split, masks_of, png_bytes, read_split, write_image

datasets = pytest.importorskip("datasets")

POLYGON = [8.0, 6.0, 24.0, 6.0, 24.0, 18.0, 8.0, 18.0]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def picture(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def square() -> Any:
    mask = np.zeros((24, 32), dtype=bool)
    mask[6:18, 8:24] = True
    return mask


def save(root: Path, columns: dict[str, Any], features: dict[str, Any]) -> Path:
    """A data set with one split, train, saved to disk."""
    whole = datasets.Features({"image": datasets.Image(), **features})
    images = [{"bytes": picture(seed), "path": f"{seed}.png"} for seed in range(len(next(iter(columns.values()))))]
    rows = datasets.Dataset.from_dict({"image": images, **columns}, features=whole)
    datasets.DatasetDict({"train": rows}).save_to_disk(root)
    return root


OBJECTS = {
    "category": datasets.List(datasets.ClassLabel(names=["crack", "hole"])),
    "segmentation": datasets.List(datasets.List(datasets.List(datasets.Value("float64")))),
    "bbox": datasets.List(datasets.List(datasets.Value("float64"))),
}


def test_read_datasets__objects_with_polygons(tmp_path: Path, cache: Path) -> None:
    objects = {
        "category": [1, 0],
        "segmentation": [[POLYGON], [[0.0, 0, 4, 0, 4, 4]]],
        "bbox": [[8.0, 6, 16, 12], [0.0, 0, 4, 4]],
    }
    empty: dict[str, list[Any]] = {"category": [], "segmentation": [], "bbox": []}
    root = save(tmp_path / "set", {"objects": [objects, empty]}, {"objects": OBJECTS})
    assert find_split(root).format == "datasets"
    data = read_split(root)
    assert [(one.id, one.name) for one in data.categories] == [(0, "crack"), (1, "hole")]
    assert [len(image.annotations) for image in data.images] == [2, 0]
    (name, mask), (other, _) = next(iter(masks_of(data).values()))
    assert (name, other) == ("hole", "crack")
    np.testing.assert_array_equal(mask, square())
    assert list(data.images[0].annotations[0].bbox) == [8, 6, 16, 12]
    for seed, image in enumerate(data.images):  # files with the bytes of the data set, in the cache and nowhere else
        assert image.path.read_bytes() == picture(seed)
        assert cache in image.path.parents
    assert sorted(path.name for path in root.iterdir()) == ["dataset_dict.json", "train"]
    report = check_data(*find_splits(root, valid_split=0.5))
    assert report.errors == []
    assert {split: len(one.images) for split, one in report.data.items()} == {"train": 1, "valid": 1}


def test_read_datasets__objects_with_masks_and_texts_as_classes(tmp_path: Path) -> None:
    features = {"objects": datasets.List({"mask": datasets.Image(), "label": datasets.Value("string")})}
    mask = {"bytes": png_bytes(square().astype(np.uint8) * 255), "path": None}
    root = save(
        tmp_path / "set", {"objects": [[{"mask": mask, "label": "zebra"}, {"mask": mask, "label": "ant"}]]}, features
    )
    data = read_split(root)
    assert [one.name for one in data.categories] == ["zebra", "ant"]
    for _, found in masks_of(data)[data.images[0].file_name]:
        np.testing.assert_array_equal(found, square())


def annotation() -> tuple[Any, Any]:
    """Classes and objects (H, W): two objects of class 1, one of class 2, and a class without an object."""
    kinds, objects = np.zeros((24, 32), np.uint8), np.zeros((24, 32), np.uint8)
    for number, (kind, rows, columns) in enumerate(
        ((1, (0, 5), (0, 9)), (1, (7, 20), (3, 6)), (2, (2, 20), (20, 30))), start=1
    ):
        kinds[slice(*rows), slice(*columns)], objects[slice(*rows), slice(*columns)] = kind, number
    kinds[22:] = 2
    return kinds, objects


@pytest.mark.parametrize("as_text", [False, True])
def test_read_datasets__label_maps_as_the_example_of_transformers_takes_them(tmp_path: Path, as_text: bool) -> None:
    kinds, objects = annotation()
    pixels = np.stack((kinds, objects, np.zeros_like(kinds)), axis=2)
    names: Any = {"background": 0, "cell": 1, "tube": 2}
    feature: Any = datasets.Value("string") if as_text else {name: datasets.Value("int64") for name in names}
    columns = {
        "annotation": [{"bytes": png_bytes(pixels), "path": None}],
        "semantic_class_to_id": [json.dumps(names) if as_text else names],
    }
    root = save(tmp_path / "set", columns, {"annotation": datasets.Image(), "semantic_class_to_id": feature})
    data = read_split(root)
    assert [(one.id, one.name) for one in data.categories] == [(0, "background"), (1, "cell"), (2, "tube")]
    found = masks_of(data)[data.images[0].file_name]
    assert [name for name, _ in found] == ["cell", "cell", "tube"]
    for number, (_, mask) in enumerate(found, start=1):
        np.testing.assert_array_equal(mask, objects == number)


def test_read_datasets__label_maps_of_one_channel(tmp_path: Path) -> None:
    _, objects = annotation()
    map16 = objects.astype(np.uint16) * 500
    root = save(tmp_path / "set", {"label": [{"bytes": png_bytes(map16), "path": None}]}, {"label": datasets.Image()})
    data = read_split(root)
    assert [(one.id, one.name) for one in data.categories] == [(1, "object")]
    found = masks_of(data)[data.images[0].file_name]
    for number, (_, mask) in enumerate(found, start=1):
        np.testing.assert_array_equal(mask, objects == number)


def test_find_datasets__image_folder_and_parquet(tmp_path: Path) -> None:
    root = tmp_path / "folder"
    for split, seed in (("train", 0), ("validation", 1)):
        write_image(root / split / "1.png", seed=seed)
        line = {"file_name": "1.png", "objects": {"category": ["crack"], "segmentation": [[POLYGON]]}}
        (root / split / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    splits, _ = find_splits(root)
    assert list(splits) == ["train", "valid"]
    data = read_split(root, "valid")
    assert data.images[0].path.samefile(root / "validation" / "1.png")
    np.testing.assert_array_equal(next(iter(masks_of(data).values()))[0][1], square())

    objects = {"category": [0], "segmentation": [[POLYGON]], "bbox": [[8.0, 6, 16, 12]]}
    saved = save(tmp_path / "set", {"objects": [objects]}, {"objects": OBJECTS})
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    datasets.load_from_disk(str(saved))["train"].to_parquet(
        tmp_path / "parquet" / "data" / "train-00000-of-00001.parquet"
    )
    again = read_split(tmp_path / "parquet")
    assert [one.name for one in again.categories] == ["crack", "hole"]
    np.testing.assert_array_equal(next(iter(masks_of(again).values()))[0][1], square())


def test_find_splits__a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the hub: what `load_dataset` gives for a name is a set that was saved before."""
    objects = {"category": [1], "segmentation": [[POLYGON]], "bbox": [[8.0, 6, 16, 12]]}
    saved = save(tmp_path / "set", {"objects": [objects]}, {"objects": OBJECTS})
    asked: list[str] = []

    def load_dataset(name: str) -> Any:
        asked.append(name)
        return datasets.load_from_disk(str(saved))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match="a data set on the Hugging Face hub needs --format datasets"):
        find_splits("someone/cells")
    data = read_split(Path("someone/cells"), dataset_format="datasets")
    assert [category.name for category in data.categories] == ["crack", "hole"]
    np.testing.assert_array_equal(next(iter(masks_of(data).values()))[0][1], square())
    assert set(asked) == {"someone/cells"}


def test_read_datasets__every_malformed_row_is_named(tmp_path: Path) -> None:
    features = {
        "objects": datasets.List({"segmentation": datasets.Value("string"), "category": datasets.Value("string")})
    }
    objects = [
        {"segmentation": "[[1, 2, 3", "category": "a"},
        {"segmentation": "[5, [1]]", "category": "a"},
        {"segmentation": json.dumps([POLYGON[:4]]), "category": "a"},
        {"segmentation": json.dumps([[float("nan"), 1, 2, 3, 4, 5]]), "category": "a"},
        {"segmentation": json.dumps([POLYGON]), "category": None},
    ]
    root = save(tmp_path / "set", {"objects": [objects, []]}, features)
    _, faults = parse_coco(find_split(root))
    texts = [str(fault) for fault in faults if fault.severity == "error"]
    assert any('train[0].objects[0]: mask: expected JSON, got "[[1, 2, 3"' in text for text in texts)
    assert any("train[0].objects[1]: polygon: expected [x, y, x, y, …]" in text for text in texts)
    assert any("train[0].objects[2]: polygon: expected at least 3 points, got 2" in text for text in texts)
    assert any("train[0].objects[3]" in text and "NaN" in text for text in texts)


def test_read_datasets__columns_that_are_not_known_are_listed(tmp_path: Path) -> None:
    root = save(tmp_path / "set", {"caption": ["a cat"]}, {"caption": datasets.Value("string")})
    with pytest.raises(
        DatasetError, match=r"expected a column image, and one called objects, .* got image \(Image\), caption"
    ):
        read_split(root)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "dataset_dict.json").write_text("{")
    with pytest.raises(DatasetError, match="expected a data set that datasets loads, got"):
        find_splits(tmp_path / "broken")


def test_read_datasets__asks_for_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = save(tmp_path / "set", {"caption": ["a cat"]}, {"caption": datasets.Value("string")})
    monkeypatch.setattr(hub_datasets, "require", refuse)
    with pytest.raises(MissingExtraError, match="pip install"):
        find_splits(root)


def refuse(*_: object) -> None:
    raise MissingExtraError("pip install 'mask2former-dinov3[datasets]'")
