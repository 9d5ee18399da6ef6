"""Configuration of the network: all that its graph depends on, and nothing about the training run."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import SubConfigSpec

logger = logging.getLogger(__name__)

VIT_PATCH_SIZE = 16  # pixels; also the stride of all maps with the plain neck
COARSEST_STRIDE = 32  # pixels; sides of the input are multiples of it
NORM_GROUPS = 32  # of every group norm of the head
# Mean and std of ImageNet, RGB in 0..1.
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

NECKS = ("pyramid", "adapter", "plain", "none")
QUERY_INITS = ("learned", "seeds")
MASK_PLACES = ("points", "pixels")
BACKBONES = ("dinov3_vit", "dinov3_convnext", "swin")
PYRAMID_STAGES = ("stage1", "stage2", "stage3", "stage4")  # of a Swin or ConvNeXt: strides 4, 8, 16, 32

# Fields of the configuration that hold a count, with the smallest that can be.
COUNTS = {
    "num_queries": 1,
    "feature_size": 1,
    "mask_feature_size": 1,
    "hidden_dim": 1,
    "num_attention_heads": 1,
    "encoder_feedforward_dim": 1,
    "encoder_layers": 0,
    "decoder_layers": 1,
    "dim_feedforward": 1,
    "train_num_points": 1,
}
BACKBONE_COUNTS = (  # of any backbone, at least 1; transformers itself checks only that they are numbers
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels"),
    *("hidden_sizes", "depths", "embed_dim", "num_heads", "window_size"),
)
FACTORS = (  # numbers of 0 or more
    *("seed_weight", "no_object_weight", "class_weight", "mask_weight", "dice_weight"),
    *("oversample_ratio", "importance_sample_ratio", "init_std", "init_xavier_std"),
)

# Shapes of the DINOv3 ViTs (arXiv:2508.10104, table of the model family); `tiny` is added here for training on a CPU.
VIT_SHAPES: dict[str, dict[str, int | str]] = {
    "tiny": {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 3},
    "smallplus": {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "use_gated_mlp": True,
        "hidden_act": "silu",
    },
    "large": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
}

# Fields that a preset changes in the head: the tiny ViT has a smaller head, the others have the published one.
HEAD_SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_dim": 128,
        "feature_size": 128,
        "mask_feature_size": 128,
        "encoder_layers": 2,
        "encoder_feedforward_dim": 512,
        "decoder_layers": 5,
        "dim_feedforward": 512,
    },
    "smallplus": {},
    "large": {"num_queries": 200},
}


def _default_taps(config: Mask2FormerDinov3Config) -> list[int] | None:
    depth = config.backbone_config.num_hidden_layers if _has_vit(config) else None
    return None if depth is None else [max(1, depth * quarter // 4) for quarter in (1, 2, 3, 4)]


def _has_vit(config: Mask2FormerDinov3Config) -> bool:
    return getattr(config.backbone_config, "model_type", None) == BACKBONES[0]


# Fields whose default depends on other fields, so that it is computed when it is read.
DEFAULTS_BY_OTHERS: dict[str, Callable[[Mask2FormerDinov3Config], object]] = {
    "backbone_taps": _default_taps,
    "neck_channels": lambda config: [config.feature_size] * 4 if _has_vit(config) else None,
    "mask_stride": lambda config: config.finest_stride,
    "category_ids": lambda config: list(range(1, (config.num_labels or 0) + 1)),
}


class Mask2FormerDinov3Config(PreTrainedConfig):
    r"""
    Field names are those of `transformers.Mask2FormerConfig` wherever the meaning is the same.

    Args:
        backbone_config: transformers' `DINOv3ViTConfig`, `DINOv3ConvNextConfig` or `SwinConfig`, or its dict. Its
            `num_channels` is the number of channels of the images, 3 for RGB.
        backbone_taps: four block numbers, counted from 1, whose outputs are used (ViT only); default: the blocks at a
            quarter, half, three quarters and the end of the depth. This and the other fields whose default depends on
            other fields (neck_channels, mask_stride, category_ids) are computed whenever they are read, and stored as
            they were given.
        backbone_norm: apply the backbone's final norm to every tap, as in Meta's evaluation
            (`get_intermediate_layers(norm=True)`); models of the original project need False.
        neck: "pyramid" (ViTDet, strides 4, 8, 16, 32), "adapter" (pyramid plus a convolutional stem beside the ViT),
            "plain" (all maps at stride 16) or "none" (for Swin and ConvNeXt, which are pyramids themselves).
        neck_channels: channels of the neck's four output maps; default `feature_size` each.
        query_init: "learned" (published) or "seeds": queries start at the peaks of a dense score and have a spatial
            prior (`query_seeds.QuerySeeds`, `mask_prior.MaskPrior`). seed_weight: weight of that score's loss.
        matching, mask_loss: where masks are compared with their targets: at random "points" (published) or at all
            "pixels" of the mask map; matching compares pixels at the finest feature map's stride.
        mask_stride: pixels of the input per pixel of `masks_queries_logits`: `finest_stride` (default) or half of it.
        label_weights: weight of each label in the class cross entropy, in training only; None: 1 each.
        category_ids: label -> category id in the data set that the model was trained on; default 1..K.
        backbone_source: origin of the backbone's weights (hub id or folder), None for random weights.
        value_range, image_scale: as in `preprocessor_config.json`, which is what readers of images use.
        score_threshold: minimum score of the instances that are reported unless the caller gives one: a number, or
            class name -> number for every class; None: 0.5. score_threshold_source: where it comes from (metric, iou,
            data, images, date). copy_overlap: instances are dropped of which more than this fraction lies in a better
            one of their class; None: none. score_calibration: [scale, shift], scores are reported as
            sigmoid(scale * logit(score) + shift); None: as the network gives them.
        decoder_layers: as in Hugging Face's config: 10 means 9 layers and the initial prediction.

    New classes (`id2label` or `num_labels` set later, or given to `from_pretrained` with `ignore_mismatched_sizes`)
    make the fields that belong to the old ones None: category_ids, class_map, score_threshold and score_calibration; a
    warning names them.
    Raises ValueError, with field, value and remedy, for values that this architecture does not support.
    """

    model_type = "mask2former_dinov3"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "backbone_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="dinov3_vit",
            init_kwargs={**VIT_SHAPES["smallplus"], "num_register_tokens": 4, "pos_embed_rescale": None},
        )
    }
    attribute_map: ClassVar[dict[str, str]] = {"hidden_size": "hidden_dim", "num_hidden_layers": "decoder_layers"}
    keys_to_ignore_at_inference: ClassVar[list[str]] = [  # by Trainer
        *("auxiliary_logits", "loss_dict", "pixel_mask", "hidden_states", "encoder_hidden_states"),
        *("pixel_decoder_hidden_states", "attentions", "cross_attentions"),
    ]

    backbone_config: Any = None  # a PreTrainedConfig once constructed
    backbone_taps: Any = None
    backbone_norm: bool = True
    backbone_source: str | None = None
    neck: str = "pyramid"
    neck_channels: list[int] | tuple[int, ...] | None = None
    category_ids: list[int] | tuple[int, ...] | None = None
    label_weights: list[float] | tuple[float, ...] | None = None
    value_range: str = "full"
    image_scale: Any = "fit"  # or "native", or a factor
    class_map: dict[str, Any] | None = None  # name in the data -> name of the class, None: left out
    score_threshold: Any = None  # a number, or class name -> number
    score_threshold_source: dict[str, Any] | None = None
    copy_overlap: float | None = None
    score_calibration: list[float] | None = None
    feature_size: int = 256
    mask_feature_size: int = 256
    hidden_dim: int = 256
    encoder_feedforward_dim: int = 1024
    activation_function: str = "relu"
    encoder_layers: int = 6
    decoder_layers: int = 10
    num_attention_heads: int = 8
    dim_feedforward: int = 2048
    enforce_input_projection: bool = False
    num_queries: int = 100
    query_init: str = "learned"
    matching: str = "points"
    mask_loss: str = "points"
    seed_weight: float = 2.0
    mask_stride: Any = None
    no_object_weight: float = 0.1
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    train_num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75
    use_auxiliary_loss: bool = True
    init_std: float = 0.02
    init_xavier_std: float = 1.0

    def __post_init__(self, **kwargs: object) -> None:
        if not self.is_remote_code():  # these fields describe code in the folder that was read, not the network
            kwargs = {key: value for key, value in kwargs.items() if key not in ("auto_map", "custom_pipelines")}
        self._check_before_conversion()
        given = self.id2label
        super().__post_init__(**kwargs)
        if given is not None and len(given) != self.num_labels:  # replaced, because num_labels was given too
            self._forget_old_classes()
        self._check_kinds()
        backbone = self.backbone_config
        if isinstance(backbone, PreTrainedConfig) and backbone.model_type in BACKBONES[1:]:
            backbone.out_features = list(PYRAMID_STAGES)  # transformers' default is the last stage only
        self._check()

    def __getattribute__(self, key: str) -> Any:
        value = super().__getattribute__(key)
        return DEFAULTS_BY_OTHERS[key](self) if value is None and key in DEFAULTS_BY_OTHERS else value

    def __setattr__(self, key: str, value: Any) -> None:
        is_change = key == "id2label" and self.__dict__.get("_post_init_done", False)
        if is_change and isinstance(value, Mapping):
            value = {int(label): name for label, name in value.items()}
        super().__setattr__(key, value)
        if is_change and value is not None:
            super().__setattr__("label2id", {name: label for label, name in value.items()})
            self._forget_old_classes()

    def _forget_old_classes(self) -> None:
        """Make None the fields that belong to other classes than those of `id2label`."""
        names = {str(name) for name in self.id2label.values()}
        is_count_new = len(self.category_ids or ()) != self.num_labels
        threshold = self.score_threshold
        old = {
            "category_ids": is_count_new,
            "class_map": not {name for name in (self.class_map or {}).values() if name is not None} <= names,
            "score_threshold": is_count_new or (isinstance(threshold, dict) and set(threshold) != names),
            "score_calibration": is_count_new,
        }
        forgotten = [name for name, is_old in old.items() if is_old and self.__dict__.get(name) is not None]
        for name in forgotten:
            super().__setattr__(name, None)
        if "score_threshold" in forgotten:
            self.score_threshold_source = None
        if forgotten:
            logger.warning(
                "%s: left out, because the classes are now %s", ", ".join(forgotten), ", ".join(sorted(names))
            )

    def _check_before_conversion(self) -> None:
        """Refuse the fields that transformers converts, and cannot."""
        labels, backbone = self.id2label, self.backbone_config
        if labels is not None and not (isinstance(labels, dict) and all(str(label).isdecimal() for label in labels)):
            raise ValueError(f"id2label: expected an object of label numbers and names, got {labels!r}")
        if backbone is not None and not isinstance(backbone, PreTrainedConfig | dict):
            raise ValueError(f"backbone_config: expected an object, got {backbone!r}")
        model_type = backbone.get("model_type", BACKBONES[0]) if isinstance(backbone, dict) else BACKBONES[0]
        if model_type not in BACKBONES:
            raise ValueError(f"backbone_config: expected one of {', '.join(BACKBONES)}, got {model_type!r}")

    def _check_kinds(self) -> None:
        """Refuse values of another kind than the field's, which Python would report without naming the field."""
        model_type = getattr(self.backbone_config, "model_type", None)
        if model_type not in BACKBONES:
            raise ValueError(f"backbone_config: expected one of {', '.join(BACKBONES)}, got {model_type!r}")
        for name, least in COUNTS.items():
            if not _is_count(getattr(self, name), least):
                note = " (the initial prediction)" if name == "decoder_layers" else ""
                raise ValueError(f"{name}: expected {least} or more{note}, a whole number, got {getattr(self, name)!r}")
        for name in FACTORS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"{name}: expected a number of 0 or more, got {value!r}")
        for name in ("backbone_norm", "enforce_input_projection", "use_auxiliary_loss"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: expected true or false, got {getattr(self, name)!r}")
        for name in ("backbone_taps", "neck_channels", "category_ids"):
            value = getattr(self, name)
            least = -(2**63) if name == "category_ids" else 1
            if value is not None and not (isinstance(value, list | tuple) and all(_is_count(x, least) for x in value)):
                raise ValueError(f"{name}: expected a list of {'positive ' * (least == 1)}whole numbers, got {value!r}")
        for field, holder in (("activation_function", self), ("backbone_config.hidden_act", self.backbone_config)):
            value = getattr(holder, field.rpartition(".")[2], "gelu")
            if not isinstance(value, str) or value not in ACT2FN:
                raise ValueError(f"{field}: expected the name of an activation in transformers, got {value!r}")

    def _check(self) -> None:
        model_type = self.backbone_config.model_type
        for name in BACKBONE_COUNTS:
            value = getattr(self.backbone_config, name, 1)
            if not all(_is_count(number, 1) for number in (value if isinstance(value, list | tuple) else [value])):
                raise ValueError(f"backbone_config.{name}: expected at least 1, got {value!r}")
        if self.neck not in NECKS:
            raise ValueError(f"neck: expected one of {', '.join(NECKS)}, got {self.neck!r}")
        is_vit = model_type == "dinov3_vit"
        if is_vit == (self.neck == "none"):
            hint = "use pyramid, adapter or plain" if is_vit else "use none: the backbone is a pyramid itself"
            raise ValueError(f"neck: expected one for a backbone of type {model_type}, got {self.neck!r}; {hint}")
        if is_vit:
            self._check_vit()
        if len(self.category_ids or ()) != self.num_labels:
            raise ValueError(f"category_ids: expected {self.num_labels}, one per label, got {self.category_ids}")
        weights = self.label_weights
        if weights is not None and not (len(weights) == self.num_labels and all(_is_weight(one) for one in weights)):
            raise ValueError(f"label_weights: expected {self.num_labels} numbers above 0, one per label, got {weights}")
        for name in ("feature_size", "hidden_dim"):
            if getattr(self, name) % NORM_GROUPS or getattr(self, name) % self.num_attention_heads:
                raise ValueError(
                    f"{name}: expected a multiple of {NORM_GROUPS} (group norm) and of num_attention_heads="
                    f"{self.num_attention_heads}, got {getattr(self, name)}"
                )
        for name, choices in (("query_init", QUERY_INITS), ("matching", MASK_PLACES), ("mask_loss", MASK_PLACES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected {' or '.join(choices)}, got {getattr(self, name)!r}")
        strides = (self.finest_stride, self.finest_stride // 2)
        if self.mask_stride not in strides:
            raise ValueError(
                f"mask_stride: expected {strides[0]} or {strides[1]} with neck={self.neck!r}, got {self.mask_stride}"
            )

        self._check_thresholds()

    def _check_thresholds(self) -> None:
        """Refuse values of the fields that say which instances are reported."""
        given = self.score_threshold
        names = {str(name) for name in self.id2label.values()}
        if isinstance(given, dict) and set(given) != names:
            raise ValueError(f"score_threshold: expected a number for each of {sorted(names)}, got {sorted(given)}")
        for value in given.values() if isinstance(given, dict) else [given]:
            if value is not None and not _is_fraction(value):
                raise ValueError(f"score_threshold: expected numbers from 0 to 1, got {value!r}")
        source = self.score_threshold_source
        if source is not None and not isinstance(source, dict):
            raise ValueError(f"score_threshold_source: expected an object, got {source!r}")
        if self.copy_overlap is not None and not (_is_fraction(self.copy_overlap) and self.copy_overlap > 0):
            raise ValueError(f"copy_overlap: expected a fraction above 0, up to 1, got {self.copy_overlap!r}")
        calibration = self.score_calibration
        if calibration is not None and not _is_calibration(calibration):
            expected = "[scale, shift], two finite numbers, the first above 0"
            raise ValueError(f"score_calibration: expected {expected}, got {calibration!r}")

    def _check_vit(self) -> None:
        depth, taps = self.backbone_config.num_hidden_layers, list(self.backbone_taps or ())
        if len(taps) != 4 or taps != sorted(taps) or not all(1 <= tap <= depth for tap in taps):
            raise ValueError(f"backbone_taps: expected four rising block numbers in 1..{depth}, got {taps}")
        if len(self.neck_channels or ()) != 4:
            raise ValueError(f"neck_channels: expected four numbers, got {self.neck_channels}")
        patch_size, width = self.backbone_config.patch_size, self.backbone_config.hidden_size
        heads = self.backbone_config.num_attention_heads
        if width % heads:
            raise ValueError(f"backbone_config.num_attention_heads: expected a divisor of {width}, got {heads}")
        if patch_size not in (VIT_PATCH_SIZE, [VIT_PATCH_SIZE] * 2, (VIT_PATCH_SIZE,) * 2):
            raise ValueError(f"backbone_config.patch_size: expected {VIT_PATCH_SIZE}, got {patch_size}")
        if self.neck in ("pyramid", "adapter") and width % (2 * NORM_GROUPS):
            raise ValueError(
                f"backbone_config.hidden_size: expected a multiple of {2 * NORM_GROUPS}, since the pyramid halves it "
                f"before a group norm, got {width}; use neck='plain'"
            )

    @property
    def num_channels(self) -> int:
        """Channels of the images, 3 for RGB: those of the backbone."""
        return int(self.backbone_config.num_channels)

    @property
    def finest_stride(self) -> int:
        """Pixels of the input per pixel of the finest feature map: 16 with the plain neck, otherwise 4."""
        return VIT_PATCH_SIZE if self.neck == "plain" else 4

    @classmethod
    def preset(cls, name: str, **kwargs: object) -> Mask2FormerDinov3Config:
        """A configuration by size: "tiny", "smallplus" or "large"; keyword arguments override its fields.

        Raises ValueError for another name.
        """
        if name not in VIT_SHAPES:
            raise ValueError(f"preset: expected one of {', '.join(VIT_SHAPES)}, got {name!r}")
        backbone = AutoConfig.for_model("dinov3_vit", **VIT_SHAPES[name], num_register_tokens=4, pos_embed_rescale=None)
        return cls(**{"backbone_config": backbone, **HEAD_SHAPES[name], **kwargs})


def threshold_text(score_threshold: float | Mapping[str, float], source: Mapping[str, object] | None) -> str:
    """A stored threshold and its source in words: "0.87 (best F1, IoU 0.5, nuclei/valid, 90 images, 2026-11-30)"."""
    numbers = list(score_threshold.values()) if isinstance(score_threshold, Mapping) else [score_threshold]
    low, high = min(numbers), max(numbers)
    text = f"{low:g}" if low == high else f"{low:g} to {high:g} by class"
    forms = {"metric": "{}", "iou": "IoU {}", "data": "{}", "images": "{} images", "date": "{}"}
    said = [form.format(source[name]) for name, form in forms.items() if source and source.get(name)]
    return text + (f" ({', '.join(said)})" if said else "")


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _is_calibration(value: object) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    are_numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in value)
    return are_numbers and all(map(math.isfinite, value)) and value[0] > 0


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
