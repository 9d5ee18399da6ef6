"""The verb `convert`: between the origins and back, and models of other projects into folders that predict."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Mask2FormerForUniversalSegmentation

from mask2former_dinov3.cli import main
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.model.configuration import IMAGENET
from mask2former_dinov3.weights.backbones import SATELLITE, load_backbone, pixel_statistics
from support.models import hf_mask2former, original_model, saved
from support.origins import as_timm, meta_state, small_state


def run(*words: object) -> int:
    return main(["convert", *map(str, words)])


@pytest.mark.parametrize("name", ["dinov3_vits16plus", "dinov3_convnext_tiny"])
def test_convert__a_backbone_comes_back_the_same_from_every_format(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small weights have no name at Meta or timm, so the size is said to be the published one."""
    size = "ViT-S+/16" if "vit" in name else "ConvNeXt Tiny"
    monkeypatch.setattr("mask2former_dinov3.export.convert.size_name", lambda _: size)
    source = tmp_path / f"{name}_pretrain_sat493m-12345678.pth"
    torch.save(small_state(f"meta {name}"), source)
    expected = load_backbone(str(source)).state_dict()
    last: Path = source
    for number, form in enumerate(("transformers", "timm", "meta", "transformers")):
        assert run(last, "--output", tmp_path / f"{number}", "--to", form) == 0
        last = tmp_path / f"{number}"
        assert (last / "DINOV3_LICENSE.md").is_file()
        assert pixel_statistics(str(last)) == SATELLITE, form
        loaded = load_backbone(str(last))
        for key, tensor in expected.items():
            assert "mask_token" in key or torch.equal(loaded.state_dict()[key], tensor), (form, key)
        if form == "meta":
            written = torch.load(next(last.glob("*.pth")), weights_only=True)
            assert written.keys() == small_state(f"meta {name}").keys()
            assert next(last.glob("*.pth")).name.startswith(f"{name}_pretrain_sat493m-")
        if form == "timm":
            told = json.loads((last / "config.json").read_text())["architecture"]
            assert told == ("vit_small_plus_patch16_dinov3_qkvb" if "vit" in name else "convnext_tiny")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():  # the final norm came along, though no feature map needs it
        first, again = (AutoModel.from_pretrained(tmp_path / f"{n}").eval()(images).last_hidden_state for n in (0, 3))
    torch.testing.assert_close(again, first)


def test_convert__timms_folder_without_biases_stays_without_them(tmp_path: Path) -> None:
    save_file(small_state("timm vit_small_patch16_dinov3"), tmp_path / "model.safetensors")
    assert run(tmp_path / "model.safetensors", "--output", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["query_bias"] is False
    assert pixel_statistics(str(tmp_path / "out")) == IMAGENET


@pytest.mark.parametrize("pyramid", [True, False], ids=["pyramid", "plain"])
def test_convert__a_model_of_the_original_project_predicts_as_ours(tmp_path: Path, pyramid: bool) -> None:
    theirs = saved(original_model(pyramid), tmp_path / "theirs", old_names=True)
    assert run(theirs, "--output", tmp_path / "ours") == 0
    assert "DINOv3 License" in (tmp_path / "ours" / "README.md").read_text()
    predictor = Predictor.from_pretrained(tmp_path / "ours", "cpu")
    assert predictor.processor.size == {"height": 64, "width": 96}
    assert predictor.processor.image_mean == [0.1, 0.2, 0.3]
    assert predictor.categories == ((1, "bar"), (2, "star"), (3, "disc"))
    found = predictor(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8), threshold=0.0)
    assert found.masks.shape[1:] == (50, 70)


def test_convert__a_model_of_ours_gets_its_code(tmp_path: Path, model_folder: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    (model / "README.md").write_text("what is known of its training")
    (model / "optimizer.pt").write_text("of a checkpoint")
    assert run(model, "--output", tmp_path / "out", "--with-code") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("what is known of its training\n")
    assert card.count("trust_remote_code=True") == 1
    assert not (tmp_path / "out" / "optimizer.pt").exists()
    before, after = (load_file(folder / "model.safetensors") for folder in (model_folder, tmp_path / "out"))
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert (tmp_path / "out" / "modeling.py").is_file()
    assert "auto_map" in json.loads((tmp_path / "out" / "config.json").read_text())
    assert Predictor.from_pretrained(tmp_path / "out", "cpu").categories == ((3, "disc"), (7, "bar"))


def test_convert__mask2former_there_and_back(tmp_path: Path) -> None:
    hf_mask2former().save_pretrained(tmp_path / "theirs")
    assert run(tmp_path / "theirs", "--output", tmp_path / "ours") == 0
    assert not (tmp_path / "ours" / "DINOV3_LICENSE.md").exists()  # a Swin
    assert run(tmp_path / "ours", "--output", tmp_path / "back", "--to", "transformers") == 0
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "back"))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.equal(after[key], tensor), key
    assert Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "back").config.num_queries == 12


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["nothing/here.pth"],
            r"expected a folder, a file of weights or a hub id .*, got nothing/here\.pth",
        ),
        (
            ["WEIGHTS", "--to", "mask2former-dinov3"],
            "expected one of transformers, timm, meta for a backbone, got mask2former-dinov3; to get a model",
        ),
        (
            ["WEIGHTS", "--to", "timm"],
            r"expected one of DINOv3's models .* which has no name at Meta or timm",
        ),
        (["MODEL", "--to", "timm"], "expected transformers or mask2former-dinov3 for a Mask2Former, got timm"),
        (["MODEL", "--output", "FULL"], "expected a new or empty folder, got .*, which holds files"),
        (
            ["MODEL"],
            "expected a model of another project, got .*, a model folder of this package; copy it",
        ),
        (["WEIGHTS", "--with-code"], "expected a Mask2Former, since only a model folder carries code, got a backbone"),
        (["CUT"], r"2 missing: model\.layer\.1\.norm2\.bias, model\.layer\.1\.norm2\.weight"),
    ],
)
def test_convert__says_what_it_cannot_do_and_leaves_nothing(
    tmp_path: Path, words: list[str], told: str, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = small_state("meta dinov3_vits16plus")
    torch.save(state, tmp_path / "weights.pth")
    torch.save({k: x for k, x in state.items() if "1.norm2" not in k}, tmp_path / "cut.pth")
    places = {"WEIGHTS": tmp_path / "weights.pth", "CUT": tmp_path / "cut.pth", "MODEL": model_folder, "FULL": tmp_path}
    given = [str(places.get(word, word)) for word in words]
    if "--output" not in given:
        given += ["--output", str(tmp_path / "out")]
    assert run(*given) == 1
    message = capsys.readouterr().err
    assert re.search(told, message), message
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()


def test_meta_state__is_what_torch_saves() -> None:
    """The fixture of shapes is sound: all of one block, and more than one block."""
    keys = meta_state("meta dinov3_vitl16").keys()
    assert {key.split(".")[1] for key in keys if key.startswith("blocks.")} == {str(n) for n in range(24)}
    assert as_timm(small_state("meta dinov3_vits16")).keys() == small_state("timm vit_small_patch16_dinov3_qkvb").keys()
