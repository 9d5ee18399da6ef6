"""From configuration to model: backbones and heads from local folders, and what a saved folder then carries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DINOv3ViTModel

from mask2former_dinov3.checkpoint import save_model_folder
from mask2former_dinov3.config import load_config
from mask2former_dinov3.data.coco import Category, CocoData
from mask2former_dinov3.errors import CheckpointError
from mask2former_dinov3.model_building import build_model, build_processor
from mask2former_dinov3.predict import Predictor
from test_backbone import randomised, small_vit
from test_parity_hf_mask2former import hf_mask2former

DATA = CocoData(Path("none.json"), (Category(3, "disc"), Category(7, "bar")), [])


def config_of(**options: Any) -> Any:
    settings = {"dataset_name": "x", "output_dir": "y", "image_height": 64, "image_width": 64, **options}
    return load_config(None, settings)[0]


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


def test_build_processor__takes_mean_and_std_of_the_weights(vit_folder: Path) -> None:
    config = config_of(backbone=str(vit_folder))
    processor = build_processor(config, build_model(config, DATA))
    assert processor.image_mean == [0.43, 0.411, 0.296]
    assert processor.size == {"height": 64, "width": 64}
    random = config_of(backbone="tiny")
    assert build_processor(random, build_model(random, DATA)).image_mean == [0.485, 0.456, 0.406]


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


def test_build_model__refuses_a_head_of_another_kind_or_a_cut_one(vit_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="got a model of type 'dinov3_vit'"):
        build_model(config_of(backbone="tiny", head=str(vit_folder)), DATA)
    hf_mask2former().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if "mask_embedder" not in k}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(CheckpointError, match="6 weights are missing"):
        build_model(config_of(backbone="tiny", head=str(tmp_path)), DATA)


def test_build_model__says_which_head_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing-here.*expected a Hugging Face Mask2Former"):
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
        assert torch.equal(loaded.model(pixel_values).class_queries_logits, expected)
