"""From configuration to model: backbones and heads from local folders, and what a saved folder then carries."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DINOv3ConvNextModel,
    DINOv3ViTModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)

from mask2former_dinov3.config.train_config import load_config
from mask2former_dinov3.data.coco import Annotation, Category, ImageRecord
from mask2former_dinov3.errors import CheckpointError, ConfigError, OptionError, UserError
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.model import Mask2FormerDinov3ForInstanceSegmentation
from mask2former_dinov3.model_folder.folder import save_model_folder
from mask2former_dinov3.read_options import ReadOptions
from mask2former_dinov3.training.build_model import build_model, build_processor, resolve_auto
from support.coco import make_table
from support.models import DATA, config_of, hf_mask2former, randomised, small_convnext, small_vit
from support.paths import ROOT


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv3 ViT as the hub has it, with a mean and std of its own."""
    folder = tmp_path_factory.mktemp("vit")
    randomised(DINOv3ViTModel(small_vit())).save_pretrained(folder)
    statistics = {"image_mean": [0.43, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    return folder


def test_build_model__a_pretrained_backbone_is_frozen_unless_asked(vit_folder: Path) -> None:
    assert not any(
        p.requires_grad for p in build_model(config_of(backbone=str(vit_folder)), DATA).backbone.parameters()
    )
    trained = build_model(config_of(backbone=str(vit_folder), freeze_backbone=False), DATA)
    assert any(p.requires_grad for p in trained.backbone.parameters())
    random = build_model(config_of(backbone="tiny"), DATA)
    assert any(p.requires_grad for p in random.backbone.parameters())
    assert random.config.category_ids == [3, 7]
    assert random.config.id2label == {0: "disc", 1: "bar"}


@pytest.mark.parametrize(("most", "queries"), [(0, 50), (40, 50), (41, 75), (100, 125), (376, 475)])
def test_resolve_auto__queries_follow_the_fullest_image(most: int, queries: int) -> None:
    triangle = [np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0]])]
    one, crowd = (Annotation(1, 0, 3, triangle, iscrowd, (0.0, 0.0, 4.0, 4.0), 8.0) for iscrowd in (False, True))
    record = ImageRecord(1, "x", Path("x"), 8, 8, [*[one] * most, crowd])
    data = dataclasses.replace(
        DATA, images=make_table([record, dataclasses.replace(record, annotations=[])], DATA.categories)
    )
    assert resolve_auto(config_of(num_queries="auto"), data).num_queries == queries
    assert resolve_auto(config_of(num_queries=7), data).num_queries == 7


@pytest.mark.parametrize(("side", "canvas", "stride"), [(6.0, 64, 2), (6.0, 256, 4), (40.0, 64, 4)])
def test_resolve_auto__mask_stride_follows_the_instances_on_the_canvas(side: float, canvas: int, stride: int) -> None:
    """Small objects want fine masks, unless the canvas enlarges them; a head brings its own stride."""
    corner = np.array([[9.0, 9.0], [9 + side, 9.0], [9.0, 9 + side]])
    one = Annotation(1, 0, 3, [corner], False, (9.0, 9.0, side, side), side**2 / 2)
    data = dataclasses.replace(
        DATA, images=make_table([ImageRecord(1, "x", Path("x"), 64, 64, [one])], DATA.categories)
    )
    options: dict[str, Any] = {"mask_stride": "auto", "image_height": canvas, "image_width": canvas}
    assert resolve_auto(config_of(**options), data).mask_stride == stride
    assert resolve_auto(config_of(**options, head="x"), data).mask_stride is None
    empty = dataclasses.replace(DATA, images=make_table([], DATA.categories))
    assert resolve_auto(config_of(**options), empty).mask_stride == 4


def test_build_processor__takes_mean_and_std_of_the_weights(vit_folder: Path) -> None:
    config = config_of(backbone=str(vit_folder))
    processor = build_processor(config, build_model(config, DATA))
    assert processor.image_mean == [0.43, 0.411, 0.296]
    assert processor.size == {"height": 64, "width": 64}
    random = config_of(backbone="tiny")
    assert build_processor(random, build_model(random, DATA)).image_mean == [0.485, 0.456, 0.406]


def test_build_model__says_that_a_pyramid_network_takes_no_neck(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    DINOv3ConvNextModel(small_convnext()).save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger="mask2former_dinov3"):
        model = build_model(config_of(backbone=str(tmp_path), neck="plain"), DATA)
    assert model.config.neck == "none"
    assert "neck: none instead of plain, because a dinov3_convnext is a pyramid itself" in caplog.text


def test_build_model__starts_the_head_from_a_mask2former_folder(vit_folder: Path, tmp_path: Path) -> None:
    theirs = hf_mask2former()
    theirs.save_pretrained(tmp_path)
    model = build_model(config_of(backbone=str(vit_folder), head=str(tmp_path), num_queries=20), DATA)
    assert model.config.num_queries == 20  # other than the checkpoint's 12, so its queries are new
    assert model.config.num_labels == 2
    pixel_decoder = theirs.model.pixel_level_module.decoder
    assert torch.equal(model.head.pixel_decoder.level_embed, pixel_decoder.level_embed)
    vit = DINOv3ViTModel.from_pretrained(vit_folder)
    assert torch.equal(model.backbone.norm.weight, vit.norm.weight)


def test_build_model__goes_on_from_a_model_of_ours(tmp_path: Path) -> None:
    """Classes by name, queries by number, all else as it was; stored in half precision, trained in full."""
    torch.manual_seed(1)
    before = build_model(config_of(backbone="tiny", neck="adapter", num_queries=60, encoder_layers=1), DATA)
    before.half().save_pretrained(tmp_path)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    classes = dataclasses.replace(DATA, categories=(Category(1, "star"), Category(2, "bar")))
    torch.manual_seed(2)
    after = build_model(config_of(head=str(tmp_path), num_queries=80, matching="pixels"), classes)
    assert (after.config.neck, after.config.encoder_layers, after.config.matching) == ("adapter", 1, "pixels")
    assert (after.config.id2label, after.config.category_ids) == ({0: "star", 1: "bar"}, [1, 2])
    assert after.config.backbone_config.hidden_size == before.config.backbone_config.hidden_size
    old, new = before.state_dict(), after.state_dict()
    decoder = "head.transformer_decoder."
    for name in ("weight", "bias"):
        was, now = (state[f"{decoder}class_predictor.{name}"] for state in (old, new))
        assert torch.equal(now[1].half(), was[1])  # bar
        assert torch.equal(now[2].half(), was[2])  # no object
        assert not torch.equal(now[0].half(), was[0]) or name == "bias"
    was, now = (state[f"{decoder}queries_features.weight"] for state in (old, new))
    assert now.shape == (80, 128)
    assert torch.equal(now[:60].half(), was)
    for key, value in new.items():
        assert value.dtype == torch.float32
        assert "class_predictor" in key or "queries_" in key or torch.equal(value.half(), old[key]), key
    assert build_model(config_of(head=str(tmp_path)), DATA).config.num_queries == 60
    assert build_processor(config_of(head=str(tmp_path)), after).image_mean == [0.1, 0.2, 0.3]
    with pytest.raises(ConfigError, match=r"set head to null:\n  query_init: expected learned, got seeds$"):
        build_model(config_of(head=str(tmp_path), query_init="seeds"), DATA)


@pytest.mark.parametrize(("name", "width", "queries"), [("smallplus", 96, 100), ("large", 192, 200)])
def test_build_model__of_the_shipped_recipes_starts_from_the_head_they_name(
    name: str, width: int, queries: int, vit_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The COCO checkpoints' heads in full size: those of Swin-S and Swin-L differ in the channels that they take."""
    swin = {"embed_dim": width, "depths": [1, 1, 1, 1], "num_heads": [width // 32 * 2**stage for stage in range(4)]}
    backbone = SwinConfig(**swin, out_features=["stage1", "stage2", "stage3", "stage4"])
    names = {0: "person", 1: "disc", **{label: f"class {label}" for label in range(2, 80)}}
    torch.manual_seed(0)
    published = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=backbone, num_queries=queries, id2label=names)
    )
    published.save_pretrained(tmp_path)
    recipe = ROOT / f"mask2former-dinov3_{name}_1024_train_args.json"
    assert f"-{'small' if name == 'smallplus' else name}-coco-instance" in json.loads(recipe.read_text())["head"]
    config, _ = load_config(recipe, {"dataset_name": "x", "backbone": str(vit_folder), "head": str(tmp_path)})
    with caplog.at_level(logging.INFO):
        model = build_model(config, DATA)
    own, theirs = model.head.transformer_decoder, published.model.transformer_module
    assert own.queries_features.weight.shape == (queries, 256)
    assert torch.equal(own.queries_features.weight, theirs.queries_features.weight)
    assert torch.equal(own.class_predictor.weight[0], published.class_predictor.weight[1])  # disc
    projection: Any = published.model.pixel_level_module.decoder.input_projections
    projection = projection[0][0]
    assert torch.equal(cast("Any", model.head.pixel_decoder.input_projections)[0][0].weight, projection.weight)
    assert projection.in_channels == 8 * width
    assert f"  queries              {queries} copied, 0 new, 0 unused" in caplog.text
    assert "  classes              1 copied by name, 1 new, 79 unused (new: bar)" in caplog.text
    assert "are not read" not in caplog.text


def test_build_model__refuses_another_network_than_the_published_head(vit_folder: Path, tmp_path: Path) -> None:
    hf_mask2former().save_pretrained(tmp_path)
    message = (
        f"head {tmp_path} has other values for 2 of the options; leave these out, or set head to null:\n"
        "  query_init: expected learned, got seeds\n  mask_stride: expected 4, got 2"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        build_model(config_of(backbone="tiny", head=str(tmp_path), query_init="seeds", mask_stride=2), DATA)


def test_build_model__names_the_option_of_a_head_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "ok.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    expected = "head: expected a model folder (with config.json) or a hub id, USER/NAME, got "
    for head, told in (
        (tmp_path / "none", f"{tmp_path / 'none'}, which does not exist; check the path"),
        (tmp_path / "ok.json", f"the file {tmp_path / 'ok.json'}"),
        (tmp_path / "empty", f"the folder {tmp_path / 'empty'} without config.json"),
    ):
        with pytest.raises(OptionError) as caught:
            build_model(config_of(backbone="tiny", head=str(head)), DATA)
        assert str(caught.value) == expected + told


def test_build_model__leaves_an_error_in_our_network_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ValueError("a fault of this package")

    monkeypatch.setattr(Mask2FormerDinov3ForInstanceSegmentation, "__init__", fail)
    with pytest.raises(ValueError, match=r"^a fault of this package$") as caught:
        build_model(config_of(backbone="tiny"), DATA)
    assert not isinstance(caught.value, UserError)


def test_build_processor__names_the_file_of_wrong_statistics(vit_folder: Path, tmp_path: Path) -> None:
    model = build_model(config_of(backbone=str(vit_folder)), DATA)
    model.name_or_path = str(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mask2former_dinov3"}')
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": ["x"]}')
    message = f"{tmp_path}: preprocessor_config.json: image_mean: expected three numbers, got ['x']"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        build_processor(config_of(head=str(tmp_path)), model)


def test_build_model__refuses_a_head_of_another_kind_or_a_cut_one(vit_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="got a model of type 'dinov3_vit'"):
        build_model(config_of(backbone="tiny", head=str(vit_folder)), DATA)
    hf_mask2former().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if "mask_embedder" not in k}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(CheckpointError, match="expected all weights of the network, got 6 missing weights, "):
        build_model(config_of(backbone="tiny", head=str(tmp_path)), DATA)


def test_build_model__reports_options_that_the_network_refuses() -> None:
    message = "backbone_taps: expected four rising block numbers in 1..4, got [1, 2, 3, 40]"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        build_model(config_of(backbone="tiny", backbone_taps=[1, 2, 3, 40]), DATA)


def test_build_model__says_which_head_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^head: expected a .*nothing-here, which does not exist; check the path$"):
        build_model(config_of(backbone="tiny", head=str(tmp_path / "nothing-here")), DATA)


def test_save_model_folder__carries_dinov3s_licence_and_needs_no_hub(vit_folder: Path, tmp_path: Path) -> None:
    config = config_of(backbone=str(vit_folder))
    model = build_model(config, DATA)
    save_model_folder(model, build_processor(config, model), tmp_path / "best", {"AP": 0.5, "AP50": 0.75})
    assert "DINOv3 License" in (tmp_path / "best" / "DINOV3_LICENSE.md").read_text()
    card = (tmp_path / "best" / "README.md").read_text()
    assert "license_name: dinov3-license" in card
    assert "| AP | 0.5000 |" in card
    assert "disc, bar" in card
    vit_folder.rename(vit_folder.with_name("moved"))  # the folder it came from is gone
    try:
        loaded = Predictor.from_pretrained(tmp_path / "best", "cpu")
    finally:
        vit_folder.with_name("moved").rename(vit_folder)
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(pixel_values).class_queries_logits
        found = loaded.model(pixel_values).class_queries_logits
        assert found is not None
        assert torch.equal(found, expected)


def test_build_processor__saves_how_images_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In both files of the model folder; a run that goes on from it with another range says so."""
    config = config_of(backbone="tiny", value_range="0,4095", page=2, channels="3,2,1")
    model = build_model(config, DATA)
    save_model_folder(model, build_processor(config, model), tmp_path / "best", {"AP": 0.5, "AP50": 0.75})
    assert json.loads((tmp_path / "best" / "config.json").read_text())["value_range"] == "0,4095"
    assert Predictor.from_pretrained(tmp_path / "best", "cpu").processor.read_options == config.read_options
    assert config.read_options == ReadOptions("0,4095", 2, (3, 2, 1))
    build_model(config_of(head=str(tmp_path / "best")), DATA)
    assert "value_range: full, but" in caplog.text


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("value_range", "9,1", 'expected "full"'), ("channels", "0,2", "expected .*channel"), ("page", 0, "page: ")],
)
def test_load_config__refuses_what_cannot_be_read(option: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"{option}: .*{message.removeprefix('page: ')}"):
        load_config(None, {"output_dir": "x", "dataset_name": "y", option: value})


def test_build_model__refuses_a_backbone_of_another_size_than_the_trained_head(
    vit_folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    own = json.loads((model_folder / "config.json").read_text())["backbone_config"]["hidden_size"]
    with pytest.raises(
        ConfigError, match=rf"backbone: expected none, or one with hidden_size {own}, .* got large with"
    ):
        build_model(config_of(backbone="large", head=str(model_folder)), DATA)
    other = json.loads((vit_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(other | {"hidden_size": own + 1}))
    with pytest.raises(ConfigError, match=f"got {tmp_path} with {own + 1}"):
        build_model(config_of(backbone=str(tmp_path), head=str(model_folder)), DATA)
    build_model(config_of(backbone="smallplus", head=str(model_folder)), DATA)  # the default says nothing
