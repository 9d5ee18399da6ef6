"""The model: backbone, neck, head (pixel decoder and transformer decoder) and criterion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .backbone import backbone_blocks, build_backbone, grad_mode, tapped_maps, unreachable_parameters
from .configuration import COARSEST_STRIDE, Mask2FormerDinov3Config
from .criterion.loss import Mask2FormerCriterion
from .kernels.deformable_attention import MultiScaleDeformableAttention
from .labels import Labels, convert_labels
from .mask_prior import MaskPrior
from .necks import AdapterNeck, PlainNeck, SimpleFeaturePyramid
from .padding import real_pixels
from .pixel_decoder import PixelDecoder, PixelDecoderLayer
from .query_seeds import SEED_PRIOR, QuerySeeds
from .transformer_decoder import DecoderLayer, MaskEmbedder, QueryPredictions, QueryStates, TransformerDecoder

# B batch, C channels of the images, H and W input size, Q queries, K classes, N instances of one image, T predictions

HiddenStatesWanted = bool | int | list[int]  # all, none, or those of some numbers, negative ones from the end


@dataclass
class Mask2FormerDinov3Output(ModelOutput):
    """Output of the model.

    loss: scalar, the sum of `loss_dict`, if labels were given. class_queries_logits (B, Q, K+1), last class "no
    object". masks_queries_logits (B, Q, H/s, W/s) with s = `config.mask_stride`; None in training unless requested.
    auxiliary_logits: on request, the same two of every earlier layer, first layer first. pixel_mask: as given to the
    model; post-processing needs it to remove the padding.
    With `output_hidden_states`: hidden_states, T x (B, Q, C), the queries before the first decoder layer and after
    each; encoder_hidden_states, the maps that the head takes, finest first; pixel_decoder_hidden_states, the three
    memories, coarsest first. With `output_attentions`, of every decoder layer: attentions (B, A, Q, Q), of the queries
    to each other; cross_attentions (B, A, Q, S), to the S pixels of a memory.
    """

    loss: Tensor | None = None
    class_queries_logits: Tensor | None = None
    masks_queries_logits: Tensor | None = None
    auxiliary_logits: list[dict[str, Tensor]] | None = None
    loss_dict: dict[str, Tensor] | None = None
    pixel_mask: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    pixel_decoder_hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None

    @property
    def transformer_decoder_hidden_states(self) -> tuple[Tensor | None, ...] | None:
        """The name of `hidden_states` in the output of Hugging Face's Mask2Former."""
        return self.hidden_states


class Mask2FormerHead(nn.Module):
    """Pixel decoder and transformer decoder: four feature maps in, classes and masks of the queries out."""

    def __init__(self, config: Mask2FormerDinov3Config, in_channels: list[int]) -> None:
        super().__init__()
        self.pixel_decoder = PixelDecoder(config, in_channels)
        self.transformer_decoder = TransformerDecoder(config)

    def predict(
        self, feature_maps: list[Tensor], pixel_mask: Tensor | None = None, states: QueryStates | None = None
    ) -> QueryPredictions:
        """Predictions of all layers, masks in factored form. states: filled if given. The others as in `forward`."""
        valid = [real_pixels(x, pixel_mask) for x in feature_maps]
        mask_features, fine, memories = self.pixel_decoder(list(feature_maps), valid)
        predictions: QueryPredictions = self.transformer_decoder(mask_features, fine, memories, valid[:-5:-1], states)
        return predictions

    def forward(
        self, feature_maps: list[Tensor], pixel_mask: Tensor | None = None, output_auxiliary_logits: bool = False
    ) -> Mask2FormerDinov3Output:
        """Class and mask logits.

        feature_maps: maps (B, C_i, h_i, w_i) at strides 4, 8, 16, 32, before them the detail map of an adapter neck at
        stride 2 if masks have that stride; pixel_mask (B, H, W), 1 on real pixels.
        """
        return dense_output(self.predict(feature_maps, pixel_mask), auxiliary=output_auxiliary_logits)


def dense_output(predictions: QueryPredictions, masks: bool = True, auxiliary: bool = False) -> Mask2FormerDinov3Output:
    """Multiply out the masks of the last layer (masks) and of the earlier ones (auxiliary)."""
    earlier = range(len(predictions.class_logits) - 1) if auxiliary else ()
    return Mask2FormerDinov3Output(
        class_queries_logits=predictions.class_logits[-1],
        masks_queries_logits=predictions.mask_logits(-1) if masks else None,
        auxiliary_logits=[
            {
                "class_queries_logits": predictions.class_logits[layer],
                "masks_queries_logits": predictions.mask_logits(layer),
            }
            for layer in earlier
        ]
        or None,
    )


class Mask2FormerDinov3PreTrainedModel(PreTrainedModel):
    """Loading, saving, and initial weights of all modules but the backbone, which transformers initialises."""

    config_class = Mask2FormerDinov3Config
    config: Mask2FormerDinov3Config
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _supports_sdpa = True
    _no_split_modules = ("DecoderLayer", "PixelDecoderLayer", "AdapterNeck", "QuerySeeds")
    supports_gradient_checkpointing = True  # by `activation_checkpointing_enable()`: each block is computed twice

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the reference implementation (facebookresearch/Mask2Former, modeling/)."""
        if isinstance(module, MultiScaleDeformableAttention):
            _init_deformable(module)
        elif isinstance(module, DecoderLayer | PixelDecoderLayer):
            for name, parameter in module.named_parameters():
                if parameter.dim() > 1 and "sampling_offsets" not in name and "attention_weights" not in name:
                    init.xavier_uniform_(parameter, gain=self.config.init_xavier_std)
        elif isinstance(module, PixelDecoder):
            init.normal_(module.level_embed, std=1.0)
            for submodule in module.modules():
                if isinstance(submodule, nn.Conv2d):
                    init.xavier_uniform_(submodule.weight)
                    if submodule.bias is not None:
                        init.zeros_(submodule.bias)
        elif isinstance(module, MaskEmbedder):
            for layer in module:
                if isinstance(layer, nn.Linear):  # torch's default for linear layers
                    init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
                    bound = 1 / math.sqrt(layer.in_features)
                    init.uniform_(layer.bias, -bound, bound)
        elif isinstance(module, QuerySeeds):
            init.constant_(module.score[-1].bias, -math.log(1 / SEED_PRIOR - 1))
        elif isinstance(module, MaskPrior):
            init.zeros_(module.shape.weight)
            init.zeros_(module.shape.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=1.0)
        else:
            super()._init_weights(module)


def _init_deformable(module: MultiScaleDeformableAttention) -> None:
    """Point p of head a starts p pixels away in direction a (Deformable DETR, appendix A.4), with equal weights."""
    init.zeros_(module.sampling_offsets.weight)
    theta = torch.arange(module.num_heads) * (2 * math.pi / module.num_heads)
    direction = torch.stack((theta.cos(), theta.sin()), dim=-1)  # (A, 2)
    direction = direction / direction.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, module.num_points + 1.0)
    offsets = direction[:, None, None] * steps[:, None]  # (A, 1, P, 2)
    init.copy_(module.sampling_offsets.bias, offsets.expand(-1, module.num_levels, -1, -1).flatten())
    init.zeros_(module.attention_weights.weight)
    init.zeros_(module.attention_weights.bias)
    init.xavier_uniform_(module.value_proj.weight)
    init.zeros_(module.value_proj.bias)
    init.xavier_uniform_(module.output_proj.weight)
    init.zeros_(module.output_proj.bias)


class Mask2FormerDinov3ForInstanceSegmentation(Mask2FormerDinov3PreTrainedModel):
    """Images in, a fixed number of scored masks out.

    `backbone` is the pretrained network only; `neck` makes a pyramid of its maps; `head` is pixel decoder and
    transformer decoder.
    """

    def __init__(self, config: Mask2FormerDinov3Config) -> None:
        super().__init__(config)
        self.backbone = build_backbone(config)
        if config.neck == "none":
            self.neck: nn.Module = nn.Identity()
            channels = list(self.backbone.channels)
        else:
            width, channels = config.backbone_config.hidden_size, list(config.neck_channels or ())
            if config.neck == "adapter":
                detail = config.mask_stride < config.finest_stride
                self.neck = AdapterNeck(width, channels, detail, config.num_channels)
                channels = self.neck.channels
            else:
                self.neck = (SimpleFeaturePyramid if config.neck == "pyramid" else PlainNeck)(width, channels)
        self.head = Mask2FormerHead(config, channels)
        self.criterion = Mask2FormerCriterion(config)
        self._kept_in_eval: list[nn.Module] = []
        self._exempt_unreachable()
        self.post_init()

    def _exempt_unreachable(self) -> None:
        for parameter in unreachable_parameters(self.backbone, self.config):
            parameter.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, *args: object, **kwargs: object) -> Any:
        """As transformers' own, but parameters that never get a gradient stay frozen (see `unreachable_parameters`)."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a pair with `output_loading_info`
        model._exempt_unreachable()
        return loaded

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """As torch's own, but also accepts the names that `save_pretrained` gives to the backbone's weights.

        transformers' Trainer loads its checkpoints by this method, and would not restore the backbone otherwise.
        """
        names = list(self.state_dict())
        stored = revert_weight_conversion(self, {name: torch.tensor(index) for index, name in enumerate(names)})
        name_of = {key: names[int(index)] for key, index in stored.items()}
        if any(name_of.get(key, key) != key for key in state_dict):
            state_dict = {name_of.get(key, key): value for key, value in state_dict.items()}
        loaded: _IncompatibleKeys = super().load_state_dict(state_dict, strict=strict, assign=assign)
        return loaded

    @property
    def device(self) -> torch.device:
        """Of the weights; where accelerate offloads them, of the computation."""
        found: torch.device = super().device
        hooks = (getattr(module, "_hf_hook", None) for module in self.modules()) if found.type == "meta" else ()
        places = (getattr(hook, "execution_device", None) for hook in hooks)
        return next((torch.device(place) for place in places if place is not None), found)

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's embedding of patches."""
        embeddings: nn.Module = self.backbone.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's embedding of patches."""
        self.backbone.set_input_embeddings(value)

    def freeze_backbone(self, frozen_blocks: int | None = None) -> None:
        """Freeze the backbone, or its embeddings and first `frozen_blocks` blocks (see `backbone_blocks`).

        Frozen modules stay in `eval()` under `train()`, because in training mode DINOv3 jitters its positions and drops
        paths. Raises ValueError for more blocks than the backbone has.
        """
        modules: list[nn.Module] = [self.backbone]
        if frozen_blocks is not None:
            parts = backbone_blocks(self.backbone)
            depth = len(parts) - 2
            if not 0 <= frozen_blocks <= depth:
                raise ValueError(f"frozen_blocks: expected 0 to {depth}, the backbone's blocks, got {frozen_blocks}")
            modules = [module for part in parts[: frozen_blocks + 1] for module in part]
        for module in modules:
            module.requires_grad_(False)
            module.eval()
        self._kept_in_eval = modules

    def train(self, mode: bool = True) -> Mask2FormerDinov3ForInstanceSegmentation:
        """As in torch, but modules frozen by `freeze_backbone` stay in `eval()`."""
        super().train(mode)
        for module in self._kept_in_eval:
            module.eval()
        return self

    def feature_maps(self, pixel_values: Tensor) -> list[Tensor]:
        """The maps that the head takes, finest first."""
        with grad_mode(self.backbone):
            maps = tapped_maps(self.backbone, self.config, pixel_values)
        return list(self.neck(maps, pixel_values) if isinstance(self.neck, AdapterNeck) else self.neck(maps))

    def predict(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        output_masks: bool = True,
        output_auxiliary_logits: bool = False,
        output_hidden_states: HiddenStatesWanted = False,
        output_attentions: bool = False,
    ) -> tuple[QueryPredictions, Mask2FormerDinov3Output]:
        """Predictions and the requested logits and states. Under `torch.compile` this is one graph."""
        wants_states = output_hidden_states is not False
        states = QueryStates(output_attentions) if wants_states or output_attentions else None
        maps = self.feature_maps(pixel_values.to(self.dtype))
        predictions = self.head.predict(maps, pixel_mask, states)
        output = dense_output(predictions, output_masks, output_auxiliary_logits)
        if states is not None and wants_states:
            output.hidden_states = _select_states(states.queries, output_hidden_states)
            output.encoder_hidden_states, output.pixel_decoder_hidden_states = tuple(maps), tuple(states.memories)
        if states is not None and output_attentions:
            output.attentions, output.cross_attentions = tuple(states.attentions), tuple(states.cross_attentions)
        return predictions, output

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        pixel_values: Tensor,
        mask_labels: Labels | None = None,
        class_labels: Labels | None = None,
        pixel_mask: Tensor | None = None,
        normalizers: Tensor | None = None,
        output_masks: bool | None = None,
        output_auxiliary_logits: bool = False,
        original_sizes: object = None,
        output_hidden_states: HiddenStatesWanted | None = None,
        output_attentions: bool | None = None,
    ) -> Mask2FormerDinov3Output:
        """pixel_values (B, C, H, W), normalised; pixel_mask (B, H, W), 1 on real pixels (top left), 0 on padding.

        C is `config.num_channels`; values of another type are converted to that of the model.
        mask_labels: B tensors (N, H, W), class_labels: B tensors (N,), or both stacked, see `labels.convert_labels`.
        normalizers: see `loss.loss_normalizers`; by default those of this batch. output_masks: compute dense masks;
        default: always, except in training mode with labels. original_sizes: ignored, so that
        `model(**processor(images))` works. output_hidden_states, output_attentions, return_dict (False for a tuple
        without what is None): as in transformers, by default those of the configuration.
        Raises ValueError for another C, and for sizes that are not multiples of 32.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states or False
        if output_attentions is None:
            output_attentions = self.config.output_attentions or False
        if output_masks is None:
            output_masks = not (self.training and mask_labels is not None)
        options = (output_masks, output_auxiliary_logits, output_hidden_states, output_attentions)
        if mask_labels is None and class_labels is None:
            _check_images(pixel_values, pixel_mask, self.config.num_channels)
            _, output = self.predict(pixel_values, pixel_mask, *options)
            output.pixel_mask = pixel_mask
            return output
        labels = {"mask_labels": mask_labels, "class_labels": class_labels, "normalizers": normalizers}
        labelled: Mask2FormerDinov3Output = self._forward_with_labels(pixel_values, pixel_mask, options, **labels)
        return labelled

    # A method of its own, so that torch.compile compiles `predict` but not what depends on the labels, which it would
    # compile again for every number of instances.
    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    def _forward_with_labels(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None,
        options: tuple[bool, bool, HiddenStatesWanted, bool],
        *,
        mask_labels: Labels | None,
        class_labels: Labels | None,
        normalizers: Tensor | None,
    ) -> Mask2FormerDinov3Output:
        _check_images(pixel_values, pixel_mask, self.config.num_channels)
        masks, classes = convert_labels(mask_labels, class_labels, self.config.num_labels, pixel_values)
        predictions, output = self.predict(pixel_values, pixel_mask, *options)
        output.loss_dict = self.criterion(predictions, masks, classes, pixel_mask, normalizers)
        output.loss = torch.stack(list(output.loss_dict.values())).sum()
        output.move_to_end("loss", last=False)  # libraries take the first element of a tuple for the loss
        output.pixel_mask = pixel_mask
        return output


def _select_states(states: list[Tensor], wanted: HiddenStatesWanted) -> tuple[Tensor | None, ...]:
    """The states; of numbers only the ones wanted, None instead of the others, as transformers does."""
    if isinstance(wanted, bool):
        return tuple(states)
    count = len(states)
    kept = {number % count for number in ([wanted] if isinstance(wanted, int) else wanted) if -count <= number < count}
    return tuple(state if number in kept else None for number, state in enumerate(states))


def _check_images(pixel_values: Tensor, pixel_mask: Tensor | None, channels: int) -> None:
    """Raise ValueError for shapes that would otherwise fail deep inside, or not at all."""
    if pixel_values.shape[1] != channels:
        raise ValueError(f"pixel_values: expected {channels} channels, got {pixel_values.shape[1]}")
    height, width = pixel_values.shape[2:]
    for name, size in (("height", height), ("width", width)):
        if size % COARSEST_STRIDE or size == 0:
            below = size // COARSEST_STRIDE * COARSEST_STRIDE
            good = f"{below} and {below + COARSEST_STRIDE} are" if below else f"{COARSEST_STRIDE} is"
            raise ValueError(
                f"pixel_values: expected a {name} that is a multiple of {COARSEST_STRIDE}, got {size}; {good} the "
                f"nearest. Mask2FormerDinov3ImageProcessor pads images of any size"
            )
    if pixel_mask is not None and pixel_mask.shape != (len(pixel_values), height, width):
        raise ValueError(
            f"pixel_mask: expected shape {(len(pixel_values), height, width)}, got {tuple(pixel_mask.shape)}"
        )
