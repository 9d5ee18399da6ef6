"""Runs of seconds on images of five channels, and on RGB with depth in a second file, and all verbs on their models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former_dinov3.cli import main
from mask2former_dinov3.config.train_config import load_config
from mask2former_dinov3.data.images import read_image
from mask2former_dinov3.errors import OptionError
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.inference.tiles import image_reader
from mask2former_dinov3.read_options import ReadOptions
from mask2former_dinov3.training.batches import training_dataset
from mask2former_dinov3.training.build_model import build_model, build_processor
from mask2former_dinov3.training.train import load_data, train
from support.channels import bands_of, run_options, write_bands, write_multispectral, write_rgb_and_depth

Words = Callable[..., list[str]]


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_multispectral(tmp_path_factory.mktemp("bands"))


@pytest.fixture(scope="module")
def model(bands: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a run of two steps."""
    output = tmp_path_factory.mktemp("run") / "run"
    train(load_config(None, run_options(bands, output, channels="all", neck="adapter"))[0])
    return output / "best"


@pytest.fixture(scope="module")
def depth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rgb_and_depth(tmp_path_factory.mktemp("depth"))


@pytest.fixture(scope="module")
def depth_model(depth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("depth_run") / "run"
    train(load_config(None, run_options(depth, output, extra_images="{folder}/../depth/{stem}.png"))[0])
    return output / "best"


def stored(model: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((model / "preprocessor_config.json").read_text())
    return content


def test_train__saves_channels_with_mean_and_std(bands: Path, model: Path) -> None:
    config, content = json.loads((model / "config.json").read_text()), stored(model)
    assert config["backbone_config"]["num_channels"] == 5
    assert content["channels"] == "all"
    files = sorted((bands / "train").glob("*.tif"))
    pixels = np.stack([read_image(file, ReadOptions(channels="all")) for file in files]).reshape(-1, 5) / 255
    np.testing.assert_allclose(content["image_mean"], pixels.mean(0))
    np.testing.assert_allclose(content["image_std"], pixels.std(0))


def test_train__resumes_with_the_same_statistics(model: Path, bands: Path, tmp_path: Path) -> None:
    """They are those of the checkpoint: the images are not measured again."""
    options = run_options(bands, model.parent, channels="all", neck="adapter", max_train_steps=3)
    path = bands / "train" / "train0.tif"
    before = path.read_bytes()
    try:
        write_bands(path, bands_of(np.zeros((48, 64), bool), np.random.default_rng(5)) // 2)
        train(load_config(None, {**options, "resume_from_checkpoint": "latest"})[0])
    finally:
        path.write_bytes(before)
    assert stored(model.parent / "last")["image_mean"] == stored(model)["image_mean"]


def test_train__learns_from_the_channel_that_carries_the_signal(bands: Path, tmp_path: Path) -> None:
    """A change of the fourth channel changes the loss, and a gradient reaches its filters."""
    config = load_config(None, run_options(bands, tmp_path / "run", channels="all"))[0]
    data = load_data(config)["train"]
    torch.manual_seed(0)
    network = build_model(config, data)
    sample = training_dataset(config, build_processor(config, network, data), data)[0]

    def loss_of(pixel_values: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        labels = {"mask_labels": [sample["mask_labels"]], "class_labels": [sample["class_labels"]]}
        loss: torch.Tensor = network(pixel_values[None], pixel_mask=sample["pixel_mask"][None], **labels).loss
        return loss

    network.eval()
    loss = loss_of(sample["pixel_values"])
    without = sample["pixel_values"].clone()
    without[3] = 0
    assert float(loss.detach()) != float(loss_of(without).detach())
    loss.backward()
    gradient = network.backbone.embeddings.patch_embeddings.weight.grad
    assert (gradient.abs().sum((0, 2, 3)) > 0).all()


def test_train__widens_a_model_that_was_trained_on_rgb(bands: Path, model_folder: Path, tmp_path: Path) -> None:
    options = run_options(bands, tmp_path / "run", channels="all", head=str(model_folder), backbone="smallplus")
    kept = {key: value for key, value in options.items() if key not in ("encoder_layers", "decoder_layers")}
    for name in ("num_queries", "mask_feature_size", "query_init", "matching", "mask_loss"):
        kept.pop(name)
    config = load_config(None, kept)[0]
    data = load_data(config)["train"]
    network = build_model(config, data)
    rgb = Predictor.from_pretrained(model_folder, "cpu").model.state_dict()
    name = "backbone.embeddings.patch_embeddings.weight"
    torch.testing.assert_close(network.state_dict()[name][:, :3], rgb[name] * (3 / 5))
    assert len(build_processor(config, network, data).image_mean) == 5


def test_verbs__take_five_channels(
    model: Path,
    bands: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_model = ["--model", str(model), "--device", "cpu"]
    assert main(["check-data", str(bands), "--channels", "all", "--report", str(tmp_path / "report")]) == 0
    assert main(["check-data", str(bands)]) == 1
    assert "or all for a model of so many channels" in capsys.readouterr().out
    assert main(["evaluate", *with_model, "--dataset", str(bands), "--output", str(tmp_path / "scores")]) == 0
    words = ["predict", *with_model, str(bands / "valid"), "--threshold", "0"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "overlays" / "valid0.png") as overlay:
        assert overlay.mode == "RGB"
    assert main([*words, "--output", str(tmp_path / "three"), "--channels", "1,2,3"]) == 1
    shown = capsys.readouterr().out
    assert "valid0.tif: expected 5 channels, as the model takes, got 3" in shown
    assert "valid1.tif: expected 5 channels, as the model takes, got 3" in shown


def test_predictor__of_five_channels_takes_arrays_files_and_tiles(
    model: Path, bands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.from_pretrained(model, "cpu")
    path = bands / "valid" / "valid0.tif"
    pixels = read_image(path, ReadOptions(channels="all"))
    expected = predictor(pixels, threshold=0.0)
    assert len(expected)
    for found in (predictor(path, threshold=0.0), predictor(path, threshold=0.0, tile=64)):  # one tile: the whole
        np.testing.assert_array_equal(found.scores, expected.scores)
        np.testing.assert_array_equal(found.masks, expected.masks)
    in_tiles = predictor(pixels, threshold=0.0, tile=32)
    monkeypatch.setattr(image_reader, "WHOLE_PIXELS", 100)
    in_windows = predictor(path, threshold=0.0, tile=32)  # each tile read by rasterio
    np.testing.assert_array_equal(in_windows.scores, in_tiles.scores)
    np.testing.assert_array_equal(in_windows.masks, in_tiles.masks)
    with pytest.raises(OptionError, match=r"expected 5 channels, first or last, got an array of shape \(48, 64, 3\)"):
        predictor(pixels[:, :, :3])


def test_train__takes_depth_from_second_files(depth: Path, depth_model: Path) -> None:
    content = stored(depth_model)
    assert content["extra_channels"] == 1
    assert len(content["image_mean"]) == len(content["image_std"]) == 4
    assert "depth" not in (depth_model / "preprocessor_config.json").read_text()  # a path of this machine
    given = Predictor.from_pretrained(depth_model, "cpu", extra_images=str(depth / "depth"))
    path = depth / "valid" / "valid0.png"
    pixels = read_image(path, ReadOptions(extra_images=str(depth / "depth")))
    expected = given(pixels, threshold=0.0)
    np.testing.assert_array_equal(given(path, threshold=0.0).masks, expected.masks)
    blind = pixels.copy()
    blind[:, :, 3] = 0
    assert not np.array_equal(given(blind, threshold=0.0).scores, expected.scores)


def test_verbs__want_second_files_where_the_model_does(
    depth: Path, depth_model: Path, model: Path, bands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_model = ["--model", str(depth_model), "--device", "cpu"]
    predict = ["predict", *with_model, str(depth / "valid"), "--output", str(tmp_path / "out"), "--threshold", "0"]
    evaluate = ["evaluate", *with_model, "--dataset", str(depth), "--output", str(tmp_path / "scores")]
    where = ["--extra-images", str(depth / "depth")]
    sentence = (
        "--extra-images: expected where the second file of each image is, since the model takes 1 channel from it"
    )
    for words in (predict, evaluate):
        assert main(words) == 1
        assert sentence in capsys.readouterr().err
        assert main([*words, *where]) == 0
        capsys.readouterr()
    (depth / "depth" / "valid1.png").rename(tmp_path / "valid1.png")
    try:
        assert main([*predict, *where]) == 1  # the other image is predicted
        shown = capsys.readouterr().out
        assert "valid1.png: expected a second file of the image" in shown
        assert "in 1 images" in shown
    finally:
        (tmp_path / "valid1.png").rename(depth / "depth" / "valid1.png")
    one_file = "--model: expected a model of one file an image"
    for words in (
        ["serve", *with_model, "--port", "0"],
        ["batch-predict", *with_model, str(depth / "valid"), "--output", str(tmp_path / "b")],
    ):
        assert main(words) == 1
        assert one_file in capsys.readouterr().err
    words = ["predict", "--model", str(model), str(bands / "valid"), "--output", str(tmp_path / "no"), *where]
    assert main(words) == 1
    assert "--extra-images: expected none, since the model was trained without" in capsys.readouterr().err
