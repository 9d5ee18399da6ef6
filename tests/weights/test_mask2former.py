"""Trained heads and whole models of others: the original project's give the same logits, classes go by their names."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mask2former_dinov3.errors import ConfigError
from mask2former_dinov3.model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
from mask2former_dinov3.training.build_model import build_model, build_processor
from mask2former_dinov3.weights import from_mask2former
from mask2former_dinov3.weights.mask2former import load_trained_model, rebuild, to_mask2former
from support.models import (
    DATA,
    TOLERANCE,
    config_of,
    hf_mask2former,
    named,
    original_model,
    saved,
)


@pytest.mark.parametrize("old_names", [True, False], ids=["transformers4", "transformers5"])
@pytest.mark.parametrize("pyramid", [True, False], ids=["pyramid", "plain"])
def test_load_trained_model__the_original_projects_models_give_the_same_logits(
    tmp_path: Path, pyramid: bool, old_names: bool
) -> None:
    theirs = original_model(pyramid)
    found = load_trained_model(str(saved(theirs, tmp_path / "theirs", old_names)))
    ours, table = rebuild(found)
    config = ours.config
    assert (config.neck, config.backbone_norm) == ("pyramid" if pyramid else "plain", False)
    assert config.id2label == {0: "bar", 1: "star", 2: "disc"}
    assert "all" in table.splitlines()[0]
    assert "new tensors" not in table
    pixel_values = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, got = theirs(pixel_values), ours.eval()(pixel_values)
    assert expected.class_queries_logits.std() > 0.1, "weights too tame to prove anything"
    torch.testing.assert_close(got.class_queries_logits, expected.class_queries_logits, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(got.masks_queries_logits, expected.masks_queries_logits, atol=TOLERANCE, rtol=0)


def test_build_model__goes_on_from_a_model_of_the_original_project(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved(original_model(True), tmp_path / "theirs", old_names=True)
    config = config_of(head=str(folder), num_queries=20)
    with caplog.at_level(logging.INFO, logger="mask2former_dinov3"):
        model = build_model(config, DATA)  # disc and bar
    assert model.config.num_queries == 20
    assert model.config.backbone_config.hidden_size == 64
    assert build_processor(config, model).image_mean == [0.1, 0.2, 0.3]
    told = caplog.text
    assert "queries              12 copied, 8 new, 0 unused" in told
    assert "classes              2 copied by name, 0 new, 1 unused" in told
    own, theirs = model.state_dict(), load_file(folder / "model.safetensors")
    for name in ("weight", "bias"):
        now = own[f"head.transformer_decoder.class_predictor.{name}"]
        assert torch.equal(now, theirs[f"class_predictor.{name}"][[2, 0, 3]])  # disc, bar, no object
    with pytest.raises(ConfigError, match="neck: expected pyramid, got plain"):
        build_model(config_of(head=str(folder), neck="plain"), DATA)


def test_build_model__classes_of_a_published_head_go_by_their_names(tmp_path: Path) -> None:
    theirs = hf_mask2former(**named("cat", "bar"))
    theirs.save_pretrained(tmp_path)
    model = build_model(config_of(backbone="tiny", head=str(tmp_path), num_queries=8), DATA)
    now, was = model.head.transformer_decoder, theirs.class_predictor
    assert torch.equal(now.class_predictor.weight[1], was.weight[1])  # bar
    assert torch.equal(now.class_predictor.weight[2], was.weight[2])  # no object
    assert not torch.equal(now.class_predictor.weight[0], was.weight[0])  # a disc is no cat
    queries = theirs.model.transformer_module.queries_features.weight
    assert torch.equal(now.queries_features.weight, queries[:8])


def test_build_model__swin_and_head_of_one_published_model_belong_together(tmp_path: Path) -> None:
    """The exchange this project is about: the same configuration with a Swin instead of a DINOv3."""
    theirs = hf_mask2former()
    theirs.save_pretrained(tmp_path)
    model = build_model(config_of(backbone=str(tmp_path), head=str(tmp_path), neck="none", num_queries=12), DATA)
    encoder = theirs.model.pixel_level_module.encoder.state_dict()
    assert all(torch.equal(model.backbone.state_dict()[key], x) for key, x in encoder.items())
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(pixel_values).masks_queries_logits
        torch.testing.assert_close(model.eval()(pixel_values).masks_queries_logits, expected, atol=TOLERANCE, rtol=0)


def test_build_model__a_model_of_ours_on_a_pyramid_network_is_gone_on_with(tmp_path: Path) -> None:
    """Not taken for a published head, whose backbone is given up."""
    before = from_mask2former(hf_mask2former())
    before.save_pretrained(tmp_path)
    after = build_model(config_of(head=str(tmp_path), neck="none", num_queries=12), DATA)
    for key, tensor in before.state_dict().items():
        assert "class_predictor" in key or torch.equal(after.state_dict()[key], tensor), key


def test_to_mask2former__is_the_way_back() -> None:
    theirs = hf_mask2former()
    back = to_mask2former(from_mask2former(theirs))
    assert back.state_dict().keys() == theirs.state_dict().keys()
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor), key
    with pytest.raises(ValueError, match="got one with a dinov3_vit"):
        to_mask2former(Mask2FormerDinov3ForInstanceSegmentation(Mask2FormerDinov3Config.preset("tiny")))
