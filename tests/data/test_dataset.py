"""Samples: shapes and kinds, randomness from (seed, epoch, index) alone, and targets that belong to their image."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from mask2former_dinov3.data.coco import CocoData, read_coco
from mask2former_dinov3.data.dataset import CocoInstanceDataset, Sample, collate
from mask2former_dinov3.data.fitting import fitted_size, size_on_canvas, to_pixel_values, warp_image
from mask2former_dinov3.data.images import read_image
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.data.sampler import SampleKey
from mask2former_dinov3.data.transforms import (
    Augmentation,
    jitter_colors,
    rasterise,
    rasterise_windows,
    sample_matrix,
)
from mask2former_dinov3.errors import DatasetError
from mask2former_dinov3.read_options import ReadOptions
from support.channels import write_bands

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def dataset_of(data: CocoData, **kwargs: Any) -> CocoInstanceDataset:
    options: dict[str, Any] = {"image_height": 64, "image_width": 80, "image_mean": MEAN, "image_std": STD} | kwargs
    return CocoInstanceDataset(data, **options)


@pytest.fixture(scope="module")
def data(toy_dataset: Path) -> CocoData:
    return read_coco(find_splits(toy_dataset)[0]["train"])


def equal(one: Sample, other: Sample) -> bool:
    assert one["unreadable"] == other["unreadable"] == {}
    keys = one.keys() - {"unreadable"}
    return all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in keys)  # type: ignore[literal-required]


def test_getitem__shapes_and_kinds(data: CocoData) -> None:
    dataset = dataset_of(data, augmentation=Augmentation())
    assert len(dataset) == 6
    for index in range(6):
        sample = dataset[0, index]
        count = len(sample["class_labels"])
        assert sample["pixel_values"].shape == (3, 64, 96)  # 80 is a multiple of 16, the tensor one of 32
        assert sample["pixel_values"].dtype == torch.float32
        assert sample["pixel_mask"].shape == (64, 96)
        assert sample["pixel_mask"].dtype == torch.bool
        assert sample["mask_labels"].shape == (count, 64, 96)
        assert sample["mask_labels"].dtype == torch.uint8
        assert sample["class_labels"].dtype == torch.int64
        assert sample["image_id"] == 10 + index
        assert not sample["pixel_mask"][:, 80:].any()
        assert not sample["pixel_values"][:, ~sample["pixel_mask"]].any()
        assert not sample["mask_labels"][:, ~sample["pixel_mask"]].any()
        assert sample["mask_labels"].flatten(1).any(1).all()  # what left the picture is gone
        assert sample["mask_labels"].numel() == 0 or sample["mask_labels"].max() == 1


def test_getitem__without_augmentation_is_the_fitted_picture(data: CocoData) -> None:
    """At the picture's own size nothing is resampled: pixels and masks as they are stored."""
    record = data.images[1]  # 64 x 80
    sample = dataset_of(data)[0, 1]
    image = read_image(record.path)
    expected = (image / 255 - MEAN) / STD
    np.testing.assert_allclose(sample["pixel_values"][:, :, :80].permute(1, 2, 0), expected, atol=1e-5)
    targets = [one for one in record.annotations if not one.iscrowd]
    assert sample["class_labels"].tolist() == [one.label for one in targets]
    for mask, one in zip(sample["mask_labels"], targets, strict=True):
        np.testing.assert_array_equal(mask[:, :80], rasterise(one.segmentation, (64, 80), np.eye(2, 3), 64, 80))
    rows, columns = fitted_size(72, 64, 64, 80)
    assert dataset_of(data)[0, 0]["pixel_mask"].sum() == rows * columns


def test_getitem__reads_images_as_the_options_say(make_toy_dataset: Callable[..., Path]) -> None:
    """12 bits in a file of 16: the picture of 8 bits, and nearly black without the option."""
    data = read_coco(find_splits(make_toy_dataset())[0]["train"])
    record = data.images[1]
    grey = read_image(record.path)[:, :, 0]
    Image.fromarray(grey).save(record.path)
    expected = dataset_of(data)[0, 1]["pixel_values"]
    Image.fromarray(np.round(grey / 255 * 4095).astype(np.uint16)).save(record.path)
    found = dataset_of(data, options=ReadOptions("0,4095"))[0, 1]["pixel_values"]
    assert torch.equal(found, expected)
    assert not torch.equal(dataset_of(data)[0, 1]["pixel_values"], expected)


def test_getitem__crowds_are_no_targets_and_empty_images_have_none(data: CocoData) -> None:
    dataset = dataset_of(data)
    assert [one.iscrowd for one in data.images[2].annotations] == [False, False, True]
    assert dataset[2]["class_labels"].tolist() == [0, 1]
    assert dataset[3]["mask_labels"].shape == (0, 64, 96)
    assert dataset[3]["class_labels"].shape == (0,)


def test_getitem__flip_all_lays_picture_and_masks_down_in_eight_ways(data: CocoData) -> None:
    """At the picture's own size: pixels bit for bit one of the eight, masks up to the rasteriser's rounding."""
    options: dict[str, Any] = {"image_height": 80, "image_width": 80}

    def laid(values: Tensor, mask: Tensor) -> list[Tensor]:
        rows, columns = int(mask[:, 0].sum()), int(mask[0].sum())
        real = values[:, :rows, :columns]
        return [way.flip(dims) for way in (real, real.mT) for dims in ((), (1,), (2,), (1, 2))]

    upright = dataset_of(data, **options)[1]  # 64 x 80
    ways = laid(upright["pixel_values"], upright["pixel_mask"])
    masks = laid(upright["mask_labels"], upright["pixel_mask"])
    still = Augmentation(scale_min=1.0, scale_max=1.0, flip="all", color_jitter=0.0)
    dataset = dataset_of(data, augmentation=still, **options)
    found = set()
    for epoch in range(60):
        sample = dataset[epoch, 1]
        own = laid(sample["pixel_values"], sample["pixel_mask"])[0]
        (way,) = [number for number, way in enumerate(ways) if torch.equal(way, own)]
        found.add(way)
        here, there = laid(sample["mask_labels"], sample["pixel_mask"])[0].bool(), masks[way].bool()
        assert ((here & there).sum((1, 2)) / (here | there).sum((1, 2))).min() > 0.9
    assert found == set(range(8))


def test_getitem__flip_all_on_a_canvas_that_is_not_square(data: CocoData) -> None:
    """The picture, laid on its side, is fitted into the canvas as it is: 64 x 80 pixels into 64 x 80 at four fifths."""
    still = Augmentation(scale_min=1.0, scale_max=1.0, flip="all")
    masks = [dataset_of(data, augmentation=still)[epoch, 1]["pixel_mask"] for epoch in range(20)]
    assert {(int(mask[:, 0].sum()), int(mask[0].sum())) for mask in masks} == {(64, 80), (64, 51)}


def test_getitem__randomness_is_seed_epoch_and_index(data: CocoData) -> None:
    dataset = dataset_of(data, augmentation=Augmentation(), seed=7)
    first = dataset[2, 4]
    torch.rand(3)
    np.random.default_rng().random()
    [dataset[0, index] for index in range(3)]
    assert equal(dataset[2, 4], first)
    assert equal(dataset_of(data, augmentation=Augmentation(), seed=7)[2, 4], first)
    assert not equal(dataset[3, 4], first)
    assert not equal(dataset_of(data, augmentation=Augmentation(), seed=8)[2, 4], first)


ALL_CHANGES: dict[str, Any] = {
    **{"rotation": 45.0, "gamma_jitter": 0.5, "invert": 0.5, "blur": 1.0, "noise": 0.1, "jpeg_quality": 20},
    "copy_paste": 0.5,
}


def test_getitem__without_the_new_changes_is_what_it_was_before_they_came(data: CocoData) -> None:
    """Bit for bit, written out with the random numbers in the order of earlier versions."""
    augmentation = Augmentation(flip="both")
    dataset = dataset_of(data, augmentation=augmentation, seed=3)
    for epoch, index in ((0, 0), (1, 1), (4, 2)):
        record, rng = data.images[index], np.random.default_rng((3, epoch, index))
        size = (record.height, record.width)
        matrix = sample_matrix(rng, *size, 64, 80, augmentation)
        image = warp_image(read_image(record.path), matrix, *size_on_canvas(matrix, *size, 64, 80))
        targets = [one.segmentation for one in record.annotations if not one.iscrowd]
        windows = [one for one in rasterise_windows(targets, size, matrix, 64, 80) if one is not None]
        jitter_colors(image, rng, 0.2)
        pixel_values, pixel_mask = to_pixel_values(image, 64, 96, MEAN, STD)
        sample = dataset[epoch, index]
        np.testing.assert_array_equal(sample["pixel_values"], pixel_values)
        np.testing.assert_array_equal(sample["pixel_mask"], pixel_mask)
        for mask, window in zip(sample["mask_labels"], windows, strict=True):
            np.testing.assert_array_equal(mask[window.place], window.pixels)
            assert mask.sum() == window.pixels.sum()


def test_getitem__a_rotated_sample_keeps_masks_on_their_objects(data: CocoData) -> None:
    """Objects are brighter than the ground (`draw_image`): their mean is, and there are no masks in the corners."""
    still = Augmentation(scale_min=1.0, scale_max=1.0, flip="none", color_jitter=0.0, rotation=180)
    dataset, seen = dataset_of(data, augmentation=still), 0
    for key in [(epoch, index) for epoch in range(6) for index in (0, 1, 2)]:
        sample = dataset[key]
        real = sample["pixel_values"].mean(0)
        corners = (sample["pixel_values"].abs() < 0.02).all(0) & sample["pixel_mask"]
        masks = sample["mask_labels"].bool()
        assert not (masks & corners).any()
        ground = sample["pixel_mask"] & ~corners & ~masks.any(0)
        assert all(real[mask].mean() > real[ground].mean() + 0.5 for mask in masks if mask.sum() > 20)
        seen += int(corners.any())
    assert seen > 10


@pytest.mark.parametrize("bands", [1, 5])
def test_getitem__changes_take_16_bits_and_any_number_of_channels(
    make_toy_dataset: Callable[..., Path], bands: int
) -> None:
    """The option says which of the 16 bits become black and white; no change goes beyond them."""
    data = read_coco(find_splits(make_toy_dataset())[0]["train"])
    path = data.images[1].path
    grey = read_image(path)[:, :, :1].astype(np.uint16)
    write_bands(path, np.repeat(1000 + 10 * grey, bands, axis=2))
    count = 3 if bands == 1 else bands  # grey is read as RGB
    options: dict[str, Any] = {"image_mean": (0.0,) * count, "image_std": (1.0,) * count}
    options["options"] = ReadOptions("1000,3550", channels=None if bands == 1 else "all")
    plain = dataset_of(data, **options)[1]["pixel_values"]
    torch.testing.assert_close(plain[0, :, :80] * 255, torch.from_numpy(grey[:, :, 0].astype(np.float32)))
    dataset = dataset_of(data, augmentation=Augmentation(**ALL_CHANGES | {"copy_paste": 0.0}), **options)
    for epoch in range(4):
        values = dataset[epoch, 1]["pixel_values"]
        assert values.shape == (count, 64, 96)
        assert 0 <= values.min() < values.max() <= 1


def test_getitem__an_image_that_is_shown_twice_in_an_epoch_looks_different(data: CocoData) -> None:
    dataset = dataset_of(data, augmentation=Augmentation(), seed=7)
    assert equal(dataset[2, 4, 1], dataset[2, 4, 1])
    assert not equal(dataset[2, 4, 1], dataset[2, 4])
    assert dataset[2, 4, 1]["image_id"] == dataset[2, 4]["image_id"] == 14


@pytest.mark.parametrize("workers", [0, 2])
def test_getitem__workers_change_nothing(data: CocoData, workers: int) -> None:
    dataset = dataset_of(data, augmentation=Augmentation(**ALL_CHANGES), seed=1)
    keys: list[list[SampleKey]] = [[(0, 3), (0, 1)], [(1, 5), (1, 0, 2)]]
    loader = DataLoader(dataset, batch_sampler=keys, num_workers=workers, collate_fn=collate)
    for batch, chosen in zip(loader, keys, strict=True):
        direct = [dataset[key] for key in chosen]
        assert batch["image_ids"] == [sample["image_id"] for sample in direct]
        assert torch.equal(batch["pixel_values"], torch.stack([sample["pixel_values"] for sample in direct]))
        assert torch.equal(batch["pixel_mask"], torch.stack([sample["pixel_mask"] for sample in direct]))
        for masks, classes, sample in zip(batch["mask_labels"], batch["class_labels"], direct, strict=True):
            assert torch.equal(masks, sample["mask_labels"])
            assert torch.equal(classes, sample["class_labels"])


def test_getitem__instances_that_overlap_keep_their_whole_masks(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset(train=2)
    file = root / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    squares = [[4, 4, 30, 4, 30, 30, 4, 30], [10, 10, 50, 10, 50, 50, 10, 50]]
    content["annotations"] = [
        {"id": number, "image_id": 11, "category_id": 3, "segmentation": [square]}
        for number, square in enumerate(squares, start=1)
    ]
    file.write_text(json.dumps(content))
    sample = dataset_of(read_coco(find_splits(root)[0]["train"]))[1]
    assert sample["mask_labels"].sum((1, 2)).tolist() == [26 * 26, 40 * 40]
    assert sample["mask_labels"].prod(0).sum() == 20 * 20


def test_dataset__records_are_small_and_travel_to_workers(data: CocoData) -> None:
    """A few hundred bytes an image beside its vertices, and a copy sent to another process gives the same samples."""
    dataset = dataset_of(data, augmentation=Augmentation())
    sent = pickle.dumps(dataset)
    assert len(sent) < 600 * len(dataset) + 2000
    assert equal(pickle.loads(sent)[1, 2], dataset[1, 2])


def test_dataset__a_canvas_off_the_patch_grid_is_refused(data: CocoData) -> None:
    with pytest.raises(
        ValueError, match=r"image_height: expected a multiple of 16, got 100; 96 and 112 are the nearest"
    ):
        dataset_of(data, image_height=100)


def test_getitem__an_index_beyond_the_end(data: CocoData) -> None:
    with pytest.raises(IndexError, match="index 6 of a data set of 6 images"):
        dataset_of(data)[0, 6]


def test_getitem__bad_images_are_named(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset()
    dataset = dataset_of(read_coco(find_splits(root)[0]["train"]))
    Image.new("RGB", (10, 12)).save(root / "train" / "001.png")
    with pytest.raises(
        DatasetError, match=r"image 11, .*001\.png: expected 64 x 80 pixels \(height x width\) .*, got 12 x 10; correct"
    ):
        dataset[0, 1]
    (root / "train" / "002.png").unlink()
    with pytest.raises(DatasetError, match=r"002\.png: expected an image file, got no such file"):
        dataset[0, 2]


def test_getitem__the_next_image_stands_for_one_that_cannot_be_read(make_toy_dataset: Callable[..., Path]) -> None:
    root = make_toy_dataset()
    data = read_coco(find_splits(root)[0]["train"])
    for name in ("005", "000"):
        (root / "train" / f"{name}.png").write_bytes(b"cut")
    dataset = dataset_of(data, skip_unreadable=True)
    sample = dataset[3, 5]
    assert sample["image_id"] == 11
    assert list(sample["unreadable"]) == [15, 10]
    assert "005.png: expected an image file" in sample["unreadable"][15]
    assert torch.equal(sample["pixel_values"], dataset[3, 1]["pixel_values"])
    assert list(collate([sample, dataset[3, 0]])["unreadable"]) == [15, 10]
    with pytest.raises(DatasetError, match=r"005\.png"):
        dataset_of(data)[3, 5]
    pasting = dataset_of(data, skip_unreadable=True, augmentation=Augmentation(copy_paste=1.0))
    seen = [pasting[epoch, 2]["unreadable"] for epoch in range(20)]
    assert {10, 15} >= {key for one in seen for key in one} != set()
    for path in (root / "train").glob("*.png"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"005\.png.*000\.png.*001\.png"):
        dataset[3, 5]
