"""TrainConfig and load_config: order of sources, checks, and messages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mask2former_dinov3.config.option_help import format_options
from mask2former_dinov3.config.presets import HUB_BACKBONES, PRESETS, SPLIT_OPTIONS
from mask2former_dinov3.config.train_config import TrainConfig, load_config
from mask2former_dinov3.errors import ConfigError
from mask2former_dinov3.model.configuration import VIT_SHAPES, Mask2FormerDinov3Config
from mask2former_dinov3.version import MODEL_TYPE
from support.paths import ROOT

RECIPES = sorted([*ROOT.glob("mask2former*_args.json"), *ROOT.glob("src/mask2former_dinov3/sample/*_args.json")])
REQUIRED = {"output_dir": "out", "dataset_name": "data"}


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def faults(**options: Any) -> list[str]:
    """The lines of the error for these options, without the heading of several."""
    with pytest.raises(ConfigError) as error:
        load_config(None, {**REQUIRED, **options})
    lines = str(error.value).splitlines()
    return lines if len(lines) == 1 else [line.strip() for line in lines[1:]]


def test_load_config__order_is_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {**REQUIRED, "learning_rate": 2e-4, "seed": 1})
    config, _ = load_config(path, ["--seed", "2"])
    assert (config.weight_decay, config.learning_rate, config.seed) == (0.05, 2e-4, 2)


def test_load_config__flags_take_dashes_equals_signs_and_bare_switches() -> None:
    words = [
        "--output-dir",
        "out",
        "--dataset_name=data",
        "--freeze_backbone",
        "--with-tracking",
        "false",
        "--seed",
        "3",
    ]
    config, _ = load_config(None, words)
    assert config.output_dir == "out"
    assert config.freeze_backbone is True
    assert config.with_tracking is False
    assert config.seed == 3


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_load_config__every_recipe_can_be_given_on_the_command_line(recipe: Path) -> None:
    """Flags are text; each must arrive as the value that the file holds."""
    values = {**json.loads(recipe.read_text(encoding="utf-8")), **REQUIRED}
    words = [word for key, value in values.items() for word in (f"--{key}", "null" if value is None else str(value))]
    assert load_config(None, words)[0] == load_config(None, values)[0]


def test_load_config__none_clears_what_can_be_null_and_is_a_word_elsewhere() -> None:
    words = ["--output_dir", "o", "--dataset_name", "d", "--max_grad_norm", "none", "--neck", "none", "--flip", "none"]
    words += ["--mask_stride", "none", "--mixed_precision", "null"]
    config, _ = load_config(None, words)
    assert (config.max_grad_norm, config.mask_stride, config.mixed_precision) == (None, None, None)
    assert config.neck == "none"
    assert config.flip == "none"


def test_load_config__all_errors_in_one_message_with_the_nearest_key(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.json", {**REQUIRED, "learning_rte": 1e-4, "image_height": 1000, "scale_min": 3})
    with pytest.raises(ConfigError) as error:
        load_config(path, ["--seed", "x", "--max-detection=3", "--num_querys", "3", "word"])
    assert str(error.value).splitlines() == [
        f"7 errors in {path} and on the command line",
        "  learning_rte: unknown key; nearest is learning_rate",
        "  word: expected --key value, got no option",
        "  --max-detection: unknown option; nearest is --max-detections",
        "  --num_querys: unknown option; nearest is --num_queries",
        '  --seed: expected a whole number, got "x"',
        "  image_height: expected a multiple of 16, got 1000; 992 and 1008 are the nearest",
        "  scale_min: expected at most the value of scale_max (2.0), got 3.0",
    ]


def test_load_config__flags_are_named_as_typed_and_keys_with_their_file(tmp_path: Path) -> None:
    path = write(tmp_path / "good.json", {**REQUIRED, "neck": "plain"})
    for flags, message in (
        (["--image-width", "8"], "--image-width: expected a multiple of 16, got 8; 16 is the nearest"),
        (["--image_width=8"], "--image_width: expected a multiple of 16, got 8; 16 is the nearest"),
        (
            ["--mask-stride", "2"],
            "--mask-stride: expected null with neck plain, whose feature maps have stride 16, got 2; set it to null, "
            "or neck to pyramid",
        ),
        (["--scale-max", "0.05"], f"{path}: scale_min: expected at most the value of --scale-max (0.05), got 0.1"),
        (
            ["--model", "models/resnet.py"],
            "--model: expected a file name with vitsmallplus or vitlarge, with or without _pyramid, got "
            '"models/resnet.py"; give --backbone and --neck instead',
        ),
        (["--learning-rate"], "--learning-rate: expected a value, got none"),
        (["--output-dir"], "--output-dir: expected a value, got none"),
        (["--output-dir", ""], "--output-dir: expected a value, got none"),
    ):
        with pytest.raises(ConfigError) as error:
            load_config(path, flags)
        assert str(error.value).startswith(message)
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path / "bad.json", {**REQUIRED, "seed": -1}), ["--neck", "pyramid"])
    assert str(error.value) == f"{tmp_path / 'bad.json'}: seed: expected a whole number of at least 0, got -1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": True}, "learning_rate: expected a number or a string, got true"),
        ({"learning_rate": "fast"}, 'learning_rate: expected a number, got "fast"'),
        ({"learning_rate": float("nan")}, "learning_rate: expected a finite number, got NaN"),
        ({"num_train_epochs": 1.5}, "num_train_epochs: expected a whole number, got 1.5"),
        ({"num_train_epochs": 0}, "num_train_epochs: expected a whole number above 0, got 0"),
        ({"max_grad_norm": -1}, "max_grad_norm: expected a number above 0 or null, got -1"),
        ({"image_width": 8}, "image_width: expected a multiple of 16, got 8; 16 is the nearest"),
        ({"neck": "fpn"}, 'neck: expected one of pyramid, adapter, plain or none, got "fpn"'),
        ({"metric_for_best_model": "loss"}, "metric_for_best_model: expected one of AP, AP50"),
        ({"report_to": "tensorbord"}, "report_to: expected one of all, aim"),
        ({"with_tracking": "maybe"}, 'with_tracking: expected true or false, got "maybe"'),
        ({"backbone": ""}, "backbone: expected a value, got none"),
        ({"learning_rate": "\u0661"}, 'learning_rate: expected a number, got "\u0661"'),
        ({"backbone": 3}, "backbone: expected a string, got 3"),
        ({"checkpointing_steps": "often"}, 'checkpointing_steps: expected a whole number above 0, "epoch", or null'),
        ({"num_queries": 0}, 'num_queries: expected a whole number from 1 to 100,000, or "auto", got 0'),
        (
            {"num_queries": 10**12},
            'num_queries: expected a whole number from 1 to 100,000, or "auto", got 1000000000000',
        ),
        ({"num_queries": "all"}, 'num_queries: expected a whole number from 1 to 100,000, or "auto", got "all"'),
        (
            {"seed": 2**64 - 1},
            "seed: expected a whole number of at most 1,000,000,000,000,000,000, got 184467440737095516",
        ),
        ({"learning_rate": 1e300}, "learning_rate: expected a number of at most 1,000,000,000, got 1e+300"),
        (
            {"max_train_steps": 10**30},
            "max_train_steps: expected a whole number of at most 1,000,000,000 or null, got 1",
        ),
        ({"image_height": 1_600_000_000}, "image_height: expected at most 65,536 pixels, got 1600000000"),
        ({"checkpointing_steps": 0}, 'checkpointing_steps: expected a whole number above 0, "epoch", or null'),
        (
            {"dataset_name": None},
            "dataset_name: expected the folder of a COCO data set, got none; give it, or train_annotations and "
            "train_images",
        ),
        ({"dataset_name": None, "train_images": "x"}, "dataset_name: expected the folder of a COCO data set, got none"),
        (
            {"dataset_name": "path/to/your/coco_dataset"},
            'dataset_name: expected the folder of your COCO data set, got the placeholder "path/to/your/coco_dataset"',
        ),
        (
            {"mask_stride": 2, "neck": "plain"},
            "mask_stride: expected null with neck plain, whose feature maps have stride 16, got 2; set it to null, or",
        ),
        ({"mask_stride": 8}, "mask_stride: expected one of 2, 4, auto or null, got 8"),
        ({"mask_loss": "boxes"}, 'mask_loss: expected one of points or pixels, got "boxes"'),
        ({"frozen_blocks": -1}, "frozen_blocks: expected a whole number of at least 0, got -1"),
        ({"layer_decay": 0}, "layer_decay: expected a number above 0, got 0"),
        ({"layer_decay": 1.1}, "layer_decay: expected a number of at most 1, got 1.1"),
        ({"lora_targets": "q_proj,,"}, 'lora_targets: expected names of layers such as q_proj,v_proj, got "q_proj,,"'),
        ({"lora_targets": [1]}, "lora_targets: expected names of layers such as q_proj,v_proj, got [1]"),
        (
            {"frozen_blocks": 2, "freeze_backbone": True},
            "frozen_blocks: expected 0 with freeze_backbone true, which freezes the whole backbone, got 2; set "
            "freeze_backbone to false or null",
        ),
        ({"layer_decay": 0.8, "freeze_backbone": True}, "layer_decay: expected 1 with freeze_backbone true, which"),
        (
            {"lora_rank": 4, "frozen_blocks": 2},
            "frozen_blocks: expected 0 with lora_rank 4, which freezes the backbone's weights, got 2; use one of the",
        ),
        ({"lora_rank": 4, "layer_decay": 0.8}, "layer_decay: expected 1 with lora_rank 4, which freezes the"),
        (
            {"lora_rank": 4, "freeze_backbone": False},
            "lora_rank: expected 0 with freeze_backbone false: adapters are trained on frozen weights, got 4; set it",
        ),
        ({"lora_alpha": 4}, "lora_alpha: expected null without lora_rank, got 4; set lora_rank as well"),
        ({"scale_min": 3}, "scale_min: expected at most the value of scale_max (2.0), got 3.0"),
        ({"valid_split": 1}, "valid_split: expected a number below 1, got 1"),
        (
            {"model": "models/resnet.py"},
            "model: expected a file name with vitsmallplus or vitlarge, with or without _pyramid, got "
            '"models/resnet.py"; give backbone and neck instead',
        ),
    ],
)
def test_load_config__refuses_with_the_key_and_the_reason(options: dict[str, Any], message: str) -> None:
    assert any(line.startswith(message) for line in faults(**options)), faults(**options)


@pytest.mark.parametrize("given", ["q_proj,o_proj", " q_proj, o_proj", ["q_proj", "o_proj"]])
def test_train_config__lora_targets_forms(given: object) -> None:
    assert load_config(None, {**REQUIRED, "lora_targets": given})[0].lora_targets == "q_proj,o_proj"


def test_load_config__valid_images_without_annotations_name_what_is_missing() -> None:
    lines = faults(dataset_name=None, train_annotations="a.json", valid_images="images")
    assert lines == ["valid_annotations: expected a COCO JSON file, since valid_images is given, got none"]


def test_load_config__without_anything_says_what_is_required() -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, [])
    assert str(error.value).splitlines() == [
        "2 errors on the command line",
        "  --output-dir: expected the folder of the run, got none",
        "  --dataset-name: expected the folder of a COCO data set, got none; give it, or --train-annotations and "
        "--train-images",
    ]
    with pytest.raises(ConfigError, match=r"^2 errors in the options\n  output_dir: expected the folder of the run"):
        load_config(None, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"seed": 1,}', r"expected a JSON object of options, got invalid JSON \(line 1, column"),
        (b"[1, 2]", "expected a JSON object of options, got a list"),
        (b'{"seed": 1, "seed": 2}', "keys given twice: seed"),
        (b"\xff{}", "expected a JSON object of options, got bytes that are not text"),
    ],
)
def test_load_config__broken_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)


def test_load_config__missing_file_and_folder_are_named(tmp_path: Path) -> None:
    for path, got in ((tmp_path / "none.json", "no such file"), (tmp_path, "a folder")):
        with pytest.raises(ConfigError) as error:
            load_config(path)
        assert str(error.value) == f"{path}: expected a JSON object of options, got {got}"


def test_load_config__a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(REQUIRED), encoding="utf-8-sig")
    assert load_config(tmp_path / "a.json")[0].output_dir == "out"


def test_train_config__taps_as_a_list_or_with_commas() -> None:
    for given in ([3, 6, 9, 12], "3,6,9,12"):
        assert load_config(None, {**REQUIRED, "backbone_taps": given})[0].backbone_taps == [3, 6, 9, 12]
    words = ["--output_dir", "o", "--dataset_name", "d", "--backbone_taps", "1,1,2,2"]
    assert load_config(None, words)[0].backbone_taps == [1, 1, 2, 2]
    rising = "backbone_taps: expected four block numbers in increasing order"
    for wrong, told in (
        ("1,2,3", rising),
        ([4, 3, 2, 1], rising),
        ("a,b,c,d", "backbone_taps: expected four block numbers such as 3,6,9,12, or null, got"),
    ):
        with pytest.raises(ConfigError, match=told):
            load_config(None, {**REQUIRED, "backbone_taps": wrong})
    with pytest.raises(ConfigError, match=r"backbone_taps: expected null with neck none: only a ViT has blocks"):
        load_config(None, {**REQUIRED, "backbone_taps": [1, 2, 3, 4], "neck": "none"})


@pytest.mark.parametrize(("given", "steps"), [("200", 200), (200, 200), ("epoch", "epoch"), (None, None)])
def test_train_config__checkpointing_steps_forms(given: object, steps: object) -> None:
    config, _ = load_config(None, {**REQUIRED, "checkpointing_steps": given})
    assert config.checkpointing_steps == steps


def test_train_config__resolved_config_can_be_fed_back_without_the_token(tmp_path: Path) -> None:
    config, _ = load_config(None, {**REQUIRED, "hub_token": "secret", "max_train_steps": 7, "freeze_backbone": False})
    dumped = config.model_dump(mode="json")
    assert "hub_token" not in dumped
    assert "secret" not in repr(config)
    again, notes = load_config(write(tmp_path / "train_config.json", dumped))
    assert again == config.model_copy(update={"hub_token": None})
    assert not [note for note in notes if "ignored" in note]


def test_train_config__home_is_expanded_and_empty_paths_are_null() -> None:
    config, _ = load_config(None, {"output_dir": "~/runs", "dataset_name": "~/data", "resume_from_checkpoint": ""})
    assert config.output_dir == str(Path.home() / "runs")
    assert config.dataset_name == str(Path.home() / "data")
    assert config.resume_from_checkpoint is None


def test_train_config__direct_construction_checks_too() -> None:
    with pytest.raises(ValidationError, match="scale_max"):
        TrainConfig(output_dir="out", dataset_name="data", scale_min=3)


@pytest.mark.parametrize(
    ("file", "backbone", "neck"),
    [
        ("models/mask2former_dinov3_vitsmallplus_pyramid.py", HUB_BACKBONES["smallplus"], "pyramid"),
        ("models/mask2former_dinov3_vitsmallplus.py", HUB_BACKBONES["smallplus"], "plain"),
        ("models\\mask2former_dinov3_vitlarge.py", HUB_BACKBONES["large"], "plain"),
        ("mask2former_dinov3_vitlarge_pyramid.py", HUB_BACKBONES["large"], "pyramid"),
    ],
)
def test_translate_old_options__model_file_becomes_backbone_and_neck(file: str, backbone: str, neck: str) -> None:
    config, notes = load_config(None, {**REQUIRED, "model": file})
    assert (config.backbone, config.neck, config.backbone_norm) == (backbone, neck, False)
    assert any(note.startswith("model:") for note in notes)


def test_translate_old_options__explicit_options_win_over_old_ones() -> None:
    old = {"model": "models/mask2former_dinov3_vitlarge.py", "neck": "pyramid", "model_name_or_path": "a", "head": "b"}
    config, notes = load_config(None, {**REQUIRED, **old})
    assert (config.neck, config.head) == ("pyramid", "b")
    assert "model_name_or_path: ignored; head='b' is given" in notes


def test_translate_old_options__file_of_the_first_scripts_loads_with_notes(tmp_path: Path) -> None:
    content = {
        "model_name_or_path": "facebook/mask2former-swin-small-coco-instance",
        "dataset_name": "data",
        "output_dir": "out",
        "do_reduce_labels": True,
        "trust_remote_code": False,
        "cache_dir": None,
        "image_height": 1024,
        "image_width": 1024,
        "num_train_epochs": 50,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "polynomial",
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "dataloader_num_workers": 4,
        "checkpointing_steps": "200",
        "push_to_hub": False,
    }
    config, notes = load_config(write(tmp_path / "old.json", content))
    assert config.head == "facebook/mask2former-swin-small-coco-instance"
    assert config.checkpointing_steps == 200
    said = {note.split(":")[0] for note in notes}
    assert said == {"do_reduce_labels", "trust_remote_code", "cache_dir", "model_name_or_path", "backbone"}


def test_load_config__random_weights_are_noted() -> None:
    _, notes = load_config(None, {**REQUIRED, "backbone": "large", "freeze_backbone": True})
    assert notes == [
        f"backbone: large starts from random weights; DINOv3's weights for it are {HUB_BACKBONES['large']}",
        "freeze_backbone: with true the random weights stay random; set it to false or null",
    ]
    assert load_config(None, {**REQUIRED, "backbone": HUB_BACKBONES["large"]})[1] == []
    _, notes = load_config(None, {**REQUIRED, "backbone": "large", "lora_rank": 8})
    assert notes[1] == "lora_rank: 8 trains adapters only, so the random weights stay random; set it to 0"


def test_presets__are_those_of_the_network() -> None:
    """`config` may not import the model, which defines the shapes."""
    assert tuple(VIT_SHAPES) == PRESETS
    assert HUB_BACKBONES.keys() < VIT_SHAPES.keys()
    assert Mask2FormerDinov3Config.model_type == MODEL_TYPE
    assert set(SPLIT_OPTIONS) < set(TrainConfig.model_fields)


def test_format_options__shows_topic_choices_and_default_of_every_option() -> None:
    text = format_options()
    for name in TrainConfig.model_fields:
        assert f"  --{name.replace('_', '-')} " in text
    assert text.count("(default:") + text.count("(required)") == len(TrainConfig.model_fields)
    for line in ("the run:", "  --neck {pyramid,adapter,plain,none}", "  --checkpointing-steps {N,epoch,null}"):
        assert f"{line}\n" in text


def test_load_config__refuses_a_hub_token_that_a_tracker_records(tmp_path: Path) -> None:
    """Trackers store the command line: the token would be published with the run."""
    words = ["--output-dir", "run", "--dataset-name", "data", "--hub-token", "hf_secret", "--report-to"]
    message = (
        "--hub-token: expected a token that no tracker sees, got one on the command line, which wandb may record with "
        "the run; set HF_TOKEN, or give it in the JSON file"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        load_config(None, [*words, "wandb"])
    for harmless in ([*words, "tensorboard"], [*words, "wandb", "--with-tracking", "false"]):
        assert load_config(None, harmless)[0].hub_token == "hf_secret"
    file = tmp_path / "options.json"
    file.write_text(json.dumps({"hub_token": "hf_secret"}))
    assert load_config(file, [*words[:4], "--report-to", "wandb"])[0].hub_token == "hf_secret"
