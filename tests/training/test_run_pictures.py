"""The sheets of pictures in a run folder: what the network sees, and what it finds in the same few images."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.data.coco import CocoData, read_coco
from mask2former_dinov3.data.coco_types import CocoResult
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.data.sampler import EpochPlan
from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.instances import encode_masks
from mask2former_dinov3.read_options import AS_STORED
from mask2former_dinov3.reports.picture_sheets import CELL_SIDE, draw_pair, make_sheet
from mask2former_dinov3.training.batches import training_dataset
from mask2former_dinov3.training.run_pictures import SAMPLES, SHOWN, choose_shown, show_progress, show_samples
from mask2former_dinov3.training.train import train
from support.run_config import make_config


def data_of(root: Path, split: str = "valid") -> CocoData:
    return read_coco(Split(split, root / split / "_annotations.coco.json", root / split))


def result(data: CocoData, image: int, score: float) -> CocoResult:
    """The left half of an image as an instance of the second class."""
    record = data.images[image]
    mask = np.zeros((1, record.height, record.width), np.bool_)
    mask[:, :, : record.width // 2] = True
    (rle,) = encode_masks(mask)
    return CocoResult(image_id=record.id, category_id=data.categories[1].id, segmentation=rle, score=score)


def test_train__leaves_its_pictures_in_the_run_folder(toy_dataset: Path, tmp_path: Path) -> None:
    """A resumed run adds the sheets of its evaluations and leaves the first sheet as it is."""
    run = tmp_path / "run"
    options = {"checkpointing_steps": 1, "max_train_steps": 1}
    train(make_config(toy_dataset, run, **options))
    samples = (run / "pictures" / SAMPLES).read_bytes()
    (run / "pictures" / SAMPLES).write_bytes(b"kept")
    train(make_config(toy_dataset, run, **options | {"max_train_steps": 2}, resume_from_checkpoint="latest"))
    names = sorted(path.name for path in (run / "pictures").iterdir())
    assert names == [SAMPLES, "valid_step_0000001.jpg", "valid_step_0000002.jpg"]
    assert (run / "pictures" / SAMPLES).read_bytes() == b"kept"
    assert samples.startswith(b"\xff\xd8")
    sizes = [Image.open(io.BytesIO((run / "pictures" / name).read_bytes())).size for name in names[1:]]
    assert sizes[0] == sizes[1]  # the same images


def test_show_samples__draws_the_first_samples_of_the_run(
    make_toy_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_toy_dataset()
    data = data_of(root, "train")
    config = make_config(root, tmp_path / "run", image_height=64, image_width=96)
    dataset = training_dataset(config, Mask2FormerDinov3ImageProcessor({"height": 64, "width": 96}), data)
    sheet = show_samples(tmp_path, data, dataset, EpochPlan(len(dataset)))
    assert sheet is not None
    with Image.open(tmp_path / "pictures" / SAMPLES) as picture:
        assert picture.size == (sheet.shape[1], sheet.shape[0])
    assert sheet.shape[1] > 4 * 96  # four in a row
    (data.images[0].path).write_bytes(b"")  # one that cannot be read is left out
    assert show_samples(tmp_path, data, dataset, EpochPlan(len(dataset))) is not None


def test_show_progress__draws_results_above_the_threshold_in_the_colour_of_their_class(
    toy_dataset: Path, tmp_path: Path
) -> None:
    data = data_of(toy_dataset)
    results = [result(data, image, score) for image in range(len(data.images)) for score in (0.4, 0.6)]
    none, some = (
        show_progress(tmp_path, step, data, results, threshold, AS_STORED) for step, threshold in ((1, 0.7), (20, 0.5))
    )
    assert none is not None
    assert some is not None
    assert none.shape == some.shape
    changed = (none != some).any(2)
    assert changed.any()
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["valid_step_0000001.jpg", "valid_step_0000020.jpg"]
    assert show_progress(tmp_path, 2, data, results, 0.3, AS_STORED) is not None


def test_draw_pair__left_is_annotated_right_is_found() -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    square = [np.array([[10.0, 10], [30, 10], [30, 30], [10, 30]])]
    categories = ((3, "disc"), (7, "bar"))
    pair = draw_pair(image, [(square, 0)], [(square, 1)], categories)
    left, right = np.split(pair, 2, 1)
    assert left.shape == right.shape == (round(CELL_SIDE * 40 / 60), CELL_SIDE, 3)
    inside = (left.shape[0] // 2, left.shape[1] // 3)  # pixel (20, 20) of the image
    assert (left[inside] != 100).any()
    assert (left[inside] != right[inside]).any()  # one colour for each class
    assert (left[-2, -2] == 100).all()


def test_make_sheet__puts_pictures_in_rows_and_words_below() -> None:
    pictures = [(np.full((20, 30, 3), 10 * number, np.uint8), f"n {number} ß") for number in range(1, 6)]
    sheet = make_sheet(pictures, 4)
    for number, (top, left) in enumerate([(6, 6), (6, 42), (6, 78), (6, 114), (50, 6)], 1):
        assert (sheet[top : top + 20, left : left + 30] == 10 * number).all()
        assert (sheet[top + 20 : top + 38, left : left + 30] < 200).any()
    assert make_sheet(pictures[:1], 4).shape[1] == 42  # no empty columns


@pytest.mark.parametrize(("valid", "count"), [(4, 3), (40, SHOWN), (1, 1)])
def test_choose_shown__spreads_over_the_images_with_objects(
    make_toy_dataset: Callable[..., Path], valid: int, count: int
) -> None:
    data = data_of(make_toy_dataset(valid=valid))
    shown = choose_shown(data)
    with_objects = [record.id for record in data.images if len(record.annotations)]
    assert len(shown) == min(count, len(with_objects) or count)
    assert [record.id for record in shown] == [record.id for record in choose_shown(data)]
    if with_objects:
        assert {record.id for record in shown} <= set(with_objects)
        assert (shown[0].id, shown[-1].id) == (with_objects[0], with_objects[-1])
