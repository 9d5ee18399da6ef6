"""Weights in other formats: backbones of transformers, timm and Meta, and Mask2Formers as models of ours."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils.logging import disable_progress_bar

from ..atomic_files import write_folder
from ..errors import CheckpointError
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..json_files import read_json_object
from ..model import Mask2FormerDinov3Config
from ..model_folder.bundled_code import write_code
from ..model_folder.folder import save_model_folder
from ..model_folder.hub import RUN_FILES
from ..model_folder.licence import LICENCE_TEXT, LICENSE_FILE
from ..weights.backbones import SATELLITE, load_backbone, load_whole_state, pixel_statistics
from ..weights.formats import META_CONVNEXT, META_VIT, TIMM_CONVNEXT, TIMM_VIT, WHOLE, size_name, to_origin
from ..weights.loading import find_file, is_path, read_source_json
from ..weights.mask2former import load_trained_model, rebuild, to_mask2former

logger = logging.getLogger(__name__)
OURS = "mask2former-dinov3"
FORMATS = ("transformers", "timm", "meta", OURS)
# Names of the networks at their origins: Meta's torch hub, timm's registry.
NAMES = {
    "ViT-S/16": ("dinov3_vits16", "vit_small_patch16_dinov3"),
    "ViT-S+/16": ("dinov3_vits16plus", "vit_small_plus_patch16_dinov3"),
    "ViT-B/16": ("dinov3_vitb16", "vit_base_patch16_dinov3"),
    "ViT-L/16": ("dinov3_vitl16", "vit_large_patch16_dinov3"),
    "ViT-H+/16": ("dinov3_vith16plus", "vit_huge_plus_patch16_dinov3"),
    "ViT-7B/16": ("dinov3_vit7b16", "vit_7b_patch16_dinov3"),
    **{
        f"ConvNeXt {size}": (f"dinov3_convnext_{size.lower()}", f"convnext_{size.lower()}")
        for size in ("Tiny", "Small", "Base", "Large")
    },
}


def convert(
    source: str, output: Path, to: str | None = None, *, with_code: bool = False, token: str | None = None
) -> str:
    """Convert what `source` is, a backbone or a Mask2Former, into a folder; returns a line that says what was done.

    source: whatever `backbone` and `head` take. A DINOv3 backbone becomes one of transformers (default), timm or Meta.
    A Mask2Former of Hugging Face or of the original project becomes a model of ours (default), with_code one that
    carries its code; one of ours on a Swin becomes Hugging Face's (`transformers`). Raises ValueError when the source
    cannot be read or has no such form, CheckpointError when `output` holds files already.
    """
    if to is not None and to not in FORMATS:
        raise ValueError(f"to: expected one of {', '.join(FORMATS)}, got {to!r}")
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise CheckpointError(f"{output}: holds files already; choose another folder for the result")
    disable_progress_bar()  # of transformers, for every file it reads and writes
    model_type = _model_type(source, token)
    is_ours = model_type == Mask2FormerDinov3Config.model_type
    if is_ours or model_type == "mask2former":
        return _convert_model(source, output, to or OURS, is_ours, with_code, token)
    if with_code:
        raise ValueError(f"with_code: {source} is no Mask2Former, and only a model of ours carries its code")
    return _convert_backbone(source, output, to or "transformers", token)


def _convert_backbone(source: str, output: Path, to: str, token: str | None) -> str:
    model = load_backbone(source, token)
    config = model.config
    what = f"{source}: {config.model_type}, {sum(x.numel() for x in model.parameters()) / 1e6:.1f} M parameters"
    if to == OURS:
        raise ValueError(f"{what}, is a backbone, and no model yet: train one with --backbone {source}")
    if config.model_type not in ("dinov3_vit", "dinov3_convnext"):
        raise ValueError(f"{what}, is no DINOv3; only those have the formats of {to}")
    what = f"{source}: DINOv3 {size_name(config)}, {sum(x.numel() for x in model.parameters()) / 1e6:.1f} M parameters"
    statistics = pixel_statistics(source, token)
    state = load_whole_state(source, model, token)
    write: dict[str, Callable[..., None]] = {
        "transformers": _write_transformers,
        "timm": _write_timm,
        "meta": _write_meta,
    }
    with write_folder(output) as folder:
        write[to](folder, config, state, *statistics)
        _readable(folder)
        shutil.copyfile(LICENCE_TEXT, folder / LICENSE_FILE)
    return f"{what}; now in the format of {to}, under Meta's DINOv3 License ({LICENSE_FILE})"


def _write_transformers(
    folder: Path, config: PreTrainedConfig, state: dict[str, Tensor], mean: list[float], std: list[float]
) -> None:
    whole = WHOLE[config.model_type](config)
    whole.load_state_dict(state)
    whole.save_pretrained(folder)
    stored = {"image_processor_type": "DINOv3ViTImageProcessorFast", "do_resize": True, "do_rescale": True}
    stored |= {"do_normalize": True, "size": {"height": 224, "width": 224}, "resample": 2}
    _write_json(folder / "preprocessor_config.json", {**stored, "image_mean": mean, "image_std": std})


def _write_timm(
    folder: Path, config: PreTrainedConfig, state: dict[str, Tensor], mean: list[float], std: list[float]
) -> None:
    """As on the hub; `timm.create_model("local-dir:FOLDER")` reads it."""
    is_vit = config.model_type == "dinov3_vit"
    name = _name(config)[1] + ("_qkvb" if is_vit and config.query_bias else "")
    if name == "vit_7b_patch16_dinov3_qkvb":
        raise ValueError("timm has no ViT-7B with biases of queries and values")
    save_file(to_origin(TIMM_VIT if is_vit else TIMM_CONVNEXT, config, state), folder / "model.safetensors")
    stored = {"num_classes": 0, "mean": mean, "std": std, "license": "dinov3-license"}
    stored |= {"input_size": [3, 256, 256] if is_vit else [3, 224, 224], "interpolation": "bicubic", "crop_pct": 1.0}
    stored |= {"first_conv": "patch_embed.proj" if is_vit else "stem.0", "classifier": "head" if is_vit else "head.fc"}
    _write_json(
        folder / "config.json",
        {"architecture": name, "num_classes": 0, "num_features": _width(config), "pretrained_cfg": stored},
    )


def _write_meta(
    folder: Path, config: PreTrainedConfig, state: dict[str, Tensor], mean: list[float], std: list[float]
) -> None:
    """As Meta names its files, `NAME_pretrain_DATA-HASH.pth`; `torch.hub.load(..., NAME, weights=FILE)` reads it."""
    written = to_origin(META_VIT if config.model_type == "dinov3_vit" else META_CONVNEXT, config, state)
    digest = hashlib.sha256()
    for key in sorted(written):
        digest.update(written[key].numpy().tobytes())
    data = "sat493m" if (mean, std) == SATELLITE else "lvd1689m"
    torch.save(written, folder / f"{_name(config)[0]}_pretrain_{data}-{digest.hexdigest()[:8]}.pth")


def _convert_model(source: str, output: Path, to: str, is_ours: bool, with_code: bool, token: str | None) -> str:
    model, _ = rebuild(load_trained_model(source, token))
    config = model.config
    kind = (
        f"{source}: Mask2Former, {config.backbone_config.model_type}, neck {config.neck}, {config.num_labels} classes"
    )
    if to == OURS and is_ours and Path(source).is_dir():
        return f"{kind}; {_copy_with_code(Path(source), output, with_code)}"
    if to == OURS:
        save_model_folder(model, _processor(source, token), output, {}, with_code=with_code)
        return f"{kind}; now a model folder of ours"
    if with_code:
        raise ValueError(f"{kind}: with_code is for a model folder of ours")
    if to != "transformers":
        raise ValueError(f"{kind}: has no form of {to}, which knows backbones only")
    theirs = to_mask2former(model)
    mean, std = pixel_statistics(source, token)
    with write_folder(output) as folder:
        theirs.save_pretrained(folder)
        _readable(folder)
        size = _processor(source, token).size
        stored = {"image_processor_type": "Mask2FormerImageProcessor", "size": size, "ignore_index": 255}
        _write_json(folder / "preprocessor_config.json", {**stored, "image_mean": mean, "image_std": std})
    return f"{kind}; now Hugging Face's Mask2FormerForUniversalSegmentation"


def _copy_with_code(source: Path, output: Path, with_code: bool) -> str:
    """A model folder of ours with all that it says of its training, and the code beside it."""
    if not with_code:
        raise ValueError(
            f"{source}: is a model of ours already; give --with-code, or --to transformers for one on a Swin"
        )
    with write_folder(output) as folder:
        for file in source.iterdir():
            if file.is_file() and file.name not in RUN_FILES:
                shutil.copyfile(file, folder / file.name)
        write_code(folder)
    return "copied, with its code"


def _processor(source: str, token: str | None) -> Mask2FormerDinov3ImageProcessor:
    """Canvas, mean and std as stored beside the weights; a canvas that was never fixed becomes 1024 x 1024."""
    file = find_file(source, "preprocessor_config.json", token)
    stored = {} if file is None else read_json_object(file, raises=CheckpointError)
    size = stored.get("size") or {}
    fixed = {"height", "width"} <= size.keys()
    canvas = {side: -(-int(size[side]) // 16) * 16 for side in ("height", "width")} if fixed else None
    mean, std = pixel_statistics(source, token)
    return Mask2FormerDinov3ImageProcessor(size=canvas, image_mean=mean, image_std=std)


def _model_type(source: str, token: str | None) -> str | None:
    """As config.json says; None for a bare file or a folder without one: what is wrong with it shows in loading."""
    path = Path(source)
    if is_path(source) and not (path / "config.json").is_file():
        return None
    return cast("str | None", read_source_json(source, "config.json", token).get("model_type"))


def _name(config: PreTrainedConfig) -> tuple[str, str]:
    """At Meta and at timm. Raises ValueError for a network that has no name there."""
    size = size_name(config)
    if size not in NAMES:
        raise ValueError(f"a {size} is none of DINOv3's models ({', '.join(NAMES)}), so it has no name at Meta or timm")
    return NAMES[size]


def _width(config: PreTrainedConfig) -> int:
    return int(config.hidden_size if config.model_type == "dinov3_vit" else config.hidden_sizes[-1])


def _readable(folder: Path) -> None:
    """safetensors gives the owner alone access; weights are no more secret than their config."""
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", file)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
