"""Convert weights: backbones between transformers, timm and Meta, and Mask2Formers to and from model folders."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils.logging import disable_progress_bar

from ..atomic_files import write_folder
from ..canvas import PATCH_SIZE
from ..errors import CheckpointError, OptionError
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor
from ..json_files import read_json_object
from ..model import Mask2FormerDinov3Config
from ..model_folder.bundled_code import write_code
from ..model_folder.folder import save_model_folder
from ..model_folder.hub import RUN_FILES
from ..model_folder.licence import LICENCE_TEXT, LICENSE_FILE
from ..weights.backbones import SATELLITE, load_backbone, load_whole_state, pixel_statistics
from ..weights.files import save_tensors
from ..weights.formats import META_CONVNEXT, META_VIT, TIMM_CONVNEXT, TIMM_VIT, WHOLE, size_name, to_origin
from ..weights.loading import find_file, is_path, read_source_json
from ..weights.mask2former import load_trained_model, rebuild, to_mask2former

MODEL_FOLDER = "mask2former-dinov3"
TARGET_FORMATS = ("transformers", "timm", "meta", MODEL_FOLDER)
# Size -> name in Meta's torch hub, name in timm's registry.
ORIGIN_NAMES = {
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
    """Convert a backbone or a Mask2Former, and write the result into a folder; returns one line about it.

    source: a local folder, a file of weights, or a hub id, as the options `backbone` and `head` of training take it.
    to: one of TARGET_FORMATS. A DINOv3 backbone becomes one of transformers (default), timm or Meta. A Mask2Former of
    Hugging Face or of the original project becomes a model folder of this package (default), with_code one that carries
    its code. A model of this package that has a Swin becomes Hugging Face's (`transformers`). Raises OptionError for a
    conversion that does not exist or an `output` that holds files, CheckpointError or HubError for a source that cannot
    be read.
    """
    if to is not None and to not in TARGET_FORMATS:
        raise OptionError("to", f"one of {', '.join(TARGET_FORMATS)}", to)
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise OptionError("output", "a new or empty folder", f"{output}, which holds files")
    if is_path(source) and not Path(source).exists():
        raise OptionError(
            "source", "a folder, a file of weights or a hub id (USER/NAME)", f"{source}, which does not exist"
        )
    disable_progress_bar()  # of transformers, for every file it reads and writes
    model_type = _model_type(source, token)
    is_ours = model_type == Mask2FormerDinov3Config.model_type
    if is_ours or model_type == "mask2former":
        return _convert_model(source, output, to or MODEL_FOLDER, is_ours, with_code, token)
    if with_code:
        raise OptionError("with_code", "a Mask2Former, since only a model folder carries code", f"a backbone, {source}")
    return _convert_backbone(source, output, to or "transformers", token)


def _convert_backbone(source: str, output: Path, to: str, token: str | None) -> str:
    if to == MODEL_FOLDER:
        advice = f"to get a model, train one with {source} as its backbone"
        raise OptionError("to", f"one of {', '.join(TARGET_FORMATS[:-1])} for a backbone", to, advice)
    model = load_backbone(source, token)
    config = model.config
    parameters = f"{sum(x.numel() for x in model.parameters()) / 1e6:.1f} M parameters"
    if config.model_type not in ("dinov3_vit", "dinov3_convnext"):
        raise OptionError("source", "a DINOv3 backbone", f"{source}, a {config.model_type} with {parameters}")
    statistics = pixel_statistics(source, token)
    state = load_whole_state(source, model, token)
    write: dict[str, Callable[..., None]] = {
        "transformers": _write_transformers,
        "timm": _write_timm,
        "meta": _write_meta,
    }
    with write_folder(output) as folder:
        write[to](folder, config, state, *statistics)
        _copy_access(folder)
        shutil.copyfile(LICENCE_TEXT, folder / LICENSE_FILE)
    what = f"{source}: DINOv3 {size_name(config)}, {parameters}"
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
    """Write the files that timm has on the hub; `timm.create_model("local-dir:FOLDER")` reads them."""
    is_vit = config.model_type == "dinov3_vit"
    name = _origin_names(config)[1] + ("_qkvb" if is_vit and config.query_bias else "")
    if name == "vit_7b_patch16_dinov3_qkvb":
        raise OptionError("source", "a network that timm has", "a ViT-7B with biases of queries and values")
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
    """Write one file, named as Meta's: `NAME_pretrain_DATA-HASH.pth`.

    `torch.hub.load(..., NAME, weights=FILE)` reads it.
    """
    written = to_origin(META_VIT if config.model_type == "dinov3_vit" else META_CONVNEXT, config, state)
    digest = hashlib.sha256()
    for key in sorted(written):
        digest.update(written[key].numpy().tobytes())
    data = "sat493m" if (mean, std) == SATELLITE else "lvd1689m"
    save_tensors(written, folder / f"{_origin_names(config)[0]}_pretrain_{data}-{digest.hexdigest()[:8]}.pth")


def _convert_model(source: str, output: Path, to: str, is_ours: bool, with_code: bool, token: str | None) -> str:
    model, _ = rebuild(load_trained_model(source, token))
    config = model.config
    kind = (
        f"{source}: Mask2Former, {config.backbone_config.model_type}, neck {config.neck}, {config.num_labels} classes"
    )
    if to == MODEL_FOLDER and is_ours and Path(source).is_dir():
        return f"{kind}; {_copy_with_code(Path(source), output, with_code)}"
    if to == MODEL_FOLDER:
        own = Mask2FormerDinov3ImageProcessor.from_pretrained(source, token=token) if is_ours else None
        save_model_folder(model, own or _processor(source, token), output, {}, with_code=with_code)
        return f"{kind}; now a model folder of {MODEL_FOLDER}"
    if with_code:
        raise OptionError("with_code", f"the format {MODEL_FOLDER}, since only a model folder carries code", to)
    if to != "transformers":
        raise OptionError("to", f"transformers or {MODEL_FOLDER} for a Mask2Former", to)
    theirs = to_mask2former(model)
    mean, std = pixel_statistics(source, token)
    with write_folder(output) as folder:
        theirs.save_pretrained(folder)
        _copy_access(folder)
        size = _processor(source, token).size
        stored = {"image_processor_type": "Mask2FormerImageProcessor", "size": size, "ignore_index": 255}
        _write_json(folder / "preprocessor_config.json", {**stored, "image_mean": mean, "image_std": std})
    return f"{kind}; now Hugging Face's Mask2FormerForUniversalSegmentation"


def _copy_with_code(source: Path, output: Path, with_code: bool) -> str:
    """Copy a model folder with all files about its training, and add the code."""
    if not with_code:
        advice = "copy it with its code, or convert one with a Swin to transformers"
        raise OptionError("source", "a model of another project", f"{source}, a model folder of this package", advice)
    with write_folder(output) as folder:
        for file in source.iterdir():
            if file.is_file() and file.name not in RUN_FILES:
                shutil.copyfile(file, folder / file.name)
        write_code(folder)
    return "copied, with its code"


def _processor(source: str, token: str | None) -> Mask2FormerDinov3ImageProcessor:
    """The image processor for the canvas, mean and std stored beside the weights.

    A canvas that is not fixed (`shortest_edge`) becomes 1024 x 1024; sides are rounded up to multiples of 16.
    """
    file = find_file(source, "preprocessor_config.json", token)
    size = None if file is None else read_json_object(file, raises=CheckpointError).get("size")
    canvas = None
    if isinstance(size, dict) and all(isinstance(size.get(side), int) for side in ("height", "width")):
        canvas = {side: -(-size[side] // PATCH_SIZE) * PATCH_SIZE for side in ("height", "width")}
    mean, std = pixel_statistics(source, token)
    return Mask2FormerDinov3ImageProcessor(size=canvas, image_mean=mean, image_std=std)


def _model_type(source: str, token: str | None) -> str | None:
    """The model type in config.json; None for a bare file or a folder without it, which loading then reports."""
    path = Path(source)
    if is_path(source) and not (path / "config.json").is_file():
        return None
    found = read_source_json(source, "config.json", token).get("model_type")
    return found if isinstance(found, str) else None


def _origin_names(config: PreTrainedConfig) -> tuple[str, str]:
    """The names of a network at Meta and timm. Raises OptionError for a network that has none."""
    size = size_name(config)
    if size not in ORIGIN_NAMES:
        got = f"a {size}, which has no name at Meta or timm"
        raise OptionError("source", f"one of DINOv3's models ({', '.join(ORIGIN_NAMES)})", got)
    return ORIGIN_NAMES[size]


def _width(config: PreTrainedConfig) -> int:
    return int(config.hidden_size if config.model_type == "dinov3_vit" else config.hidden_sizes[-1])


def _copy_access(folder: Path) -> None:
    """Give the weights the access rights of their config; safetensors grants access to the owner only."""
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", file)


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
