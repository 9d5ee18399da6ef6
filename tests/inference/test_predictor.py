"""Prediction: one image or many, in memory or in files, in tiles, and the errors of models and devices."""

from __future__ import annotations

import json
import os
import pickle
import select
import shutil
import signal
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former_dinov3.errors import CheckpointError, HubError, OptionError
from mask2former_dinov3.inference.predictor import Predictor, load_model, usable_device
from mask2former_dinov3.inference.settings import InferenceSettings
from mask2former_dinov3.inference.tiles.grid import Grid, Region
from mask2former_dinov3.inference.tiles.merging import merge_rows
from mask2former_dinov3.inference.tiles.part_reader import ImageReader
from mask2former_dinov3.instances import Instances


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


def test_load_model__says_why_not(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"got a folder without config\.json and preprocessor_config\.json"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"nowhere: expected a model folder .*, got a path to nothing"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(HubError, match="nobody/nothing: expected weights in the local cache or on the hub"):
        load_model("nobody/nothing")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    with pytest.raises(CheckpointError, match=r"config\.json: expected model_type 'mask2former_dinov3', got 'swin'"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text((model_folder / "config.json").read_text())
    with pytest.raises(
        CheckpointError, match=r"pytorch_model\.bin, got no file of weights; copy the file into the folder"
    ):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected a whole file, got one that is cut"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: expected a JSON object, got invalid JSON"):
        load_model(tmp_path)


def test_load_model__names_the_file_of_a_value_out_of_range(model_folder: Path, tmp_path: Path) -> None:
    """An OptionError would blame an option of the command line."""
    folder = shutil.copytree(model_folder, tmp_path / "model")
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | {"size": {"height": 100, "width": 96}}))
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    told = "size: expected a multiple of 16, got 100; 96 and 112 are the nearest"
    assert str(caught.value) == f"{folder}: preprocessor_config.json: {told}"
    assert not isinstance(caught.value, OptionError)


def test_load_model__refuses_weights_of_another_network(model_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_text((model_folder / file).read_text())
    weights = load_file(model_folder / "model.safetensors")
    removed = next(key for key in weights if key.startswith("head"))
    save_file({key: value for key, value in weights.items() if key != removed}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=removed.replace(".", r"\.")):
        load_model(tmp_path)


@pytest.mark.parametrize("device", ["quantum", "cuda:99", "cuda:x", "mps", "hpu", "vulkan", "meta"])
def test_usable_device__names_what_can_be_used(device: str) -> None:
    """Neither torch's list of forty names nor its advice to file a bug."""
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has the device")
    gpus = "".join(f", cuda:{number}" for number in range(torch.cuda.device_count()))
    with pytest.raises(OptionError) as caught:
        usable_device(device)
    expected = "expected cpu, cuda or cuda:N (N: index of a GPU)"
    assert str(caught.value) == f"device: {expected}, got {device}; usable here: cpu{gpus}"


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 5}, "threshold: expected a score from 0 to 1, got 5"),
        ({"threshold": float("nan")}, "threshold: expected a score from 0 to 1, got nan"),
        ({"max_detections": 0}, "max_detections: expected a whole number above 0, got 0"),
        ({"max_detections": 2.5}, "max_detections: expected a whole number above 0, got 2.5"),
        ({"batch_size": 0}, "batch_size: expected a whole number above 0, got 0"),
        ({"tile": 8}, "tile: expected a whole number of pixels, at least 32, got 8"),
        ({"overlap": 0.5}, "overlap: expected a fraction from 0 to below 0.5, got 0.5"),
    ],
)
def test_predictor__refuses_values_out_of_range(options: dict[str, Any], message: str, predictor: Predictor) -> None:
    with pytest.raises(OptionError) as caught:
        predictor(picture(), **options)
    assert str(caught.value) == message


def test_predict_rows__reads_each_tile_once_in_batches() -> None:
    image = np.arange(150 * 100, dtype=np.uint32).reshape(150, 100)
    batches: list[list[tuple[int, ...]]] = []
    read: list[Region] = []

    class Recorder(Predictor):
        """Predicts nothing; `processor.prepare` passes tiles on as they are."""

        def __init__(self) -> None:
            self.processor = SimpleNamespace(prepare=lambda tile: tile)  # type: ignore[assignment]

        def fill(self, settings: InferenceSettings) -> InferenceSettings:
            return settings

        def predict_prepared(self, prepared: Sequence[Any], settings: Any) -> list[Instances]:
            batches.append([tile.shape for tile in prepared])
            return [Instances.from_masks(np.zeros((0, 64, 64), bool), [], []) for _ in prepared]

    def pixels(at: Region) -> Any:
        read.append(at)
        return image[at.y0 : at.y1, at.x0 : at.x1]

    grid = Grid.of(150, 100, 64, 0.2)
    rows = Recorder().predict_rows(ImageReader(150, 100, pixels), grid, InferenceSettings(batch_size=2))
    found = merge_rows(rows, grid, ((3, "disc"), (7, "bar")))
    assert (len(found), found.height, found.width) == (0, 150, 100)
    assert read == [tile for row in range(3) for tile in grid.row(row)]
    assert batches == [[(64, 64)] * 2] * 3
    last = Recorder().predict_rows(ImageReader(150, 100, pixels), grid, InferenceSettings(), first=2)
    assert len(list(last)) == 1
    assert read[6:] == list(grid.row(2))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_predictor__reads_files_as_the_models_options_say(
    orientation: int, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 bits in a TIFF of 16, with an orientation: the same instances as in the picture of 8 bits, with tiles too."""
    folder = shutil.copytree(model_folder, tmp_path / "model")
    for name in ("config.json", "preprocessor_config.json"):
        stored = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(stored | {"value_range": "0,4095"}))
    grey = picture()[:, :, 0]
    deep = Image.fromarray(np.round(grey / 255 * 4095).astype(np.uint16))
    deep.save(tmp_path / "deep.tif", tiffinfo={274: orientation})
    predictor = Predictor.from_pretrained(folder, "cpu")
    expected = predictor(np.repeat(grey[:, :, None], 3, axis=2), threshold=0.0)
    for tile in (None, 32):
        wanted = predictor(np.repeat(grey[:, :, None], 3, axis=2), threshold=0.0, tile=tile)
        found = predictor(tmp_path / "deep.tif", threshold=0.0, tile=tile)
        np.testing.assert_array_equal(found.scores, wanted.scores)
        np.testing.assert_array_equal(found.masks, wanted.masks)
    np.testing.assert_array_equal(predictor(deep, threshold=0.0).masks, expected.masks)


def test_load_model__refuses_two_value_ranges(model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    file = folder / "preprocessor_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"value_range": "percentile"}))
    with pytest.raises(
        CheckpointError, match=r"config\.json: expected value_range 'percentile' as in prepro.*got 'full'"
    ):
        load_model(folder)
    file.write_text(json.dumps(content | {"value_range": "much"}))
    with pytest.raises(
        CheckpointError, match=r"preprocessor_config\.json: value_range: expected \"full\", \"percentile\""
    ):
        load_model(folder)


def test_predictor__threads_share_it_and_get_the_same(predictor: Predictor) -> None:
    pictures = [picture(seed) for seed in range(4)]
    alone = [predictor(one, threshold=0.0) for one in pictures]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: predictor(one, threshold=0.0), pictures * 2))
    for one, other in zip(alone * 2, together, strict=True):
        assert_same(one, other)


def test_predictor__works_in_a_forked_process_and_pickled(predictor: Predictor) -> None:
    expected = predictor(picture(), threshold=0.0)
    assert_same(pickle.loads(pickle.dumps(predictor))(picture(), threshold=0.0), expected)
    torch.ones(600, 600) @ torch.ones(600, 600)  # the threads that a fork loses
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python 3.12: a fork of a process with threads
        child = os.fork()
    if child == 0:
        try:
            found = predictor(picture(), threshold=0.0)
            os.write(write, pickle.dumps([one["counts"] for one in found.rles[:3]]))
        finally:
            os._exit(0)
    os.close(write)
    ended = select.select([read], [], [], 60)[0]
    if not ended:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert ended, "the forked process waits"
    with os.fdopen(read, "rb") as file:
        assert pickle.loads(file.read()) == [one["counts"] for one in expected.rles[:3]]


def test_predictor__takes_generators_batch_by_batch_and_no_image_at_all(predictor: Predictor) -> None:
    made = 0

    def pictures() -> Iterator[Any]:
        nonlocal made
        for seed in range(3):
            made += 1
            yield picture(seed)

    assert len(predictor(pictures(), threshold=0.0, batch_size=2)) == made == 3
    assert predictor([]) == []
    bgr = predictor(picture()[:, :, ::-1], threshold=0.0, bgr=True)
    assert_same(bgr, predictor(picture(), threshold=0.0))
    with pytest.raises(OptionError, match="timeout: expected a number of seconds above 0, got -1"):
        predictor(picture(), timeout=-1)
