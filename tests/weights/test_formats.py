"""Every published size of DINOv3 is known by its names and shapes; features are those of the origin's weights."""

from __future__ import annotations

import pytest
import torch
from transformers import DINOv3ConvNextBackbone, DINOv3ViTModel

from mask2former_dinov3.model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
from mask2former_dinov3.model.backbone import tapped_maps
from mask2former_dinov3.weights.formats import ORIGIN_FORMATS, from_origin, recognise_format, size_name, to_origin
from support.origins import NAMES, as_timm, convnext_stages, meta_state, small_state, vit_blocks

SIZES = {
    "vits16": "ViT-S/16",
    "vits16plus": "ViT-S+/16",
    "vitb16": "ViT-B/16",
    "vitl16": "ViT-L/16",
    "vith16plus": "ViT-H+/16",
    "vit7b16": "ViT-7B/16",
    "small": "ViT-S/16",
    "small_plus": "ViT-S+/16",
    "base": "ViT-B/16",
    "large": "ViT-L/16",
    "huge_plus": "ViT-H+/16",
    "7b": "ViT-7B/16",
}
# Of the paper's table (arXiv:2508.10104): parameters in millions, and heads.
PAPER = {
    "ViT-S/16": (21, 6),
    "ViT-S+/16": (29, 6),
    "ViT-B/16": (86, 12),
    "ViT-L/16": (300, 16),
    "ViT-H+/16": (840, 20),
    "ViT-7B/16": (6716, 32),
    "ConvNeXt Tiny": (29, None),
    "ConvNeXt Small": (50, None),
    "ConvNeXt Base": (89, None),
    "ConvNeXt Large": (198, None),
}


def expected_size(name: str) -> str:
    short = name.split(" ")[1].removeprefix("dinov3_").removesuffix("_qkvb")
    if short.startswith("convnext_"):
        return f"ConvNeXt {short.removeprefix('convnext_').title()}"
    return SIZES[short.removeprefix("vit_").removesuffix("_patch16_dinov3")]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_from_origin__knows_every_published_size(name: str) -> None:
    """On the meta device, so that the 7B takes no memory."""
    state = meta_state(name)
    assert recognise_format(state).name.lower().startswith(name.split(" ")[0])
    config, converted = from_origin(state)
    size = expected_size(name)
    assert size_name(config) == size
    millions, heads = PAPER[size]
    assert sum(tensor.numel() for tensor in converted.values()) / 1e6 == pytest.approx(millions, rel=0.05)
    if heads is not None:
        assert config.num_attention_heads == heads
        assert config.use_gated_mlp == (size in ("ViT-S+/16", "ViT-H+/16", "ViT-7B/16"))
        assert config.query_bias == ("qkvb" in name or (name.startswith("meta") and size != "ViT-7B/16"))


@pytest.mark.parametrize("neck", ["plain", "pyramid", "adapter"])
@pytest.mark.parametrize("size", ["vits16", "vits16plus", "vitb16", "vitl16", "vith16plus", "vit7b16"])
def test_necks__fit_every_size_of_vit(size: str, neck: str) -> None:
    backbone_config, converted = from_origin(meta_state(f"meta dinov3_{size}"))
    with torch.device("meta"):
        config = Mask2FormerDinov3Config(backbone_config=backbone_config, neck=neck)
        model = Mask2FormerDinov3ForInstanceSegmentation(config)
        maps = model.feature_maps(torch.empty(1, 3, 64, 96))
    assert model.backbone.state_dict().keys() == converted.keys()
    strides = (16, 16, 16, 16) if neck == "plain" else (4, 8, 16, 32)
    assert [x.shape for x in maps] == [(1, 256, 64 // s, 96 // s) for s in strides]
    depth = backbone_config.num_hidden_layers
    assert config.backbone_taps == [depth // 4, depth // 2, depth * 3 // 4, depth]


@pytest.mark.parametrize("name", ["meta dinov3_vits16", "meta dinov3_vits16plus"])
def test_from_origin__a_vit_gives_the_features_of_metas_weights(name: str) -> None:
    state = small_state(name)
    config, converted = from_origin(state)
    vit = DINOv3ViTModel(config).eval()
    vit.load_state_dict(converted)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    expected = vit_blocks(state, images)
    assert expected[-1].std() > 0.5, "weights too tame to prove anything"
    taps = Mask2FormerDinov3Config(backbone_config=config, backbone_norm=False, backbone_taps=[1, 1, 2, 2])
    with torch.no_grad():
        maps = tapped_maps(vit, taps, images)
    for got, want in zip(maps, [expected[0], expected[0], expected[1], expected[1]], strict=True):
        torch.testing.assert_close(got.flatten(2).transpose(1, 2), want, atol=1e-5, rtol=1e-5)


def test_from_origin__a_convnext_gives_the_features_of_metas_weights() -> None:
    state = small_state("meta dinov3_convnext_tiny")
    config, converted = from_origin(state)
    config.out_features = ["stage1", "stage2", "stage3", "stage4"]
    network = DINOv3ConvNextBackbone(config).eval()
    network.load_state_dict({key: x for key, x in converted.items() if not key.startswith("layer_norm.")})
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = network(images).feature_maps
    for got, want in zip(maps, convnext_stages(state, images), strict=True):
        assert want.std() > 0.1
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["dinov3_vits16", "dinov3_vits16plus", "dinov3_convnext_tiny"])
def test_from_origin__timms_weights_are_metas(name: str) -> None:
    state = small_state(f"meta {name}")
    config, converted = from_origin(state)
    timms_config, timms = from_origin(as_timm(state))
    if "vit" in name:
        assert not timms.pop("embeddings.mask_token").any()  # pretraining only
        converted.pop("embeddings.mask_token")
    assert converted.keys() == timms.keys()
    for key, tensor in converted.items():
        assert torch.equal(tensor, timms[key]), key
    assert config.to_dict() == timms_config.to_dict()


def test_from_origin__timm_without_biases_is_a_network_without_them() -> None:
    config, converted = from_origin(small_state("timm vit_small_plus_patch16_dinov3"))
    assert not config.query_bias
    assert not config.value_bias
    assert not any("q_proj.bias" in key or "v_proj.bias" in key for key in converted)


@pytest.mark.parametrize(
    "name",
    [
        *("meta dinov3_vits16", "meta dinov3_vits16plus", "meta dinov3_convnext_tiny", "timm convnext_tiny"),
        *("timm vit_small_patch16_dinov3", "timm vit_small_plus_patch16_dinov3_qkvb"),
    ],
)
def test_to_origin__is_the_way_back(name: str) -> None:
    state = small_state(name)
    for key in [key for key in state if key.endswith("qkv.bias")]:
        state[key] *= state[f"{key}_mask"]  # the key's share counts for nothing
    config, converted = from_origin(state)
    written = to_origin(recognise_format(state), config, converted)
    assert written.keys() == state.keys()
    for key, tensor in state.items():
        torch.testing.assert_close(written[key], tensor, msg=key, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["timm vit_small_patch16_dinov3", "timm vit_7b_patch16_dinov3"])
def test_to_origin__what_timm_leaves_out_is_there_for_meta(name: str) -> None:
    """timm has no zero biases, no mask token and no untied norm; Meta's code loads strictly and wants them."""
    meta = "meta dinov3_vits16" if "small" in name else "meta dinov3_vit7b16"
    config, converted = from_origin(small_state(name) if "small" in name else meta_state(name))
    if "7b" in name:
        converted = {key: torch.empty_like(x, device="meta") for key, x in converted.items()}
    written = to_origin(next(one for one in ORIGIN_FORMATS if one.name == "Meta's DINOv3 ViT"), config, converted)
    expected = small_state(meta) if "small" in name else meta_state(meta)
    assert {key: x.shape for key, x in written.items()} == {key: x.shape for key, x in expected.items()}


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (
            lambda s: s.pop("blocks.1.norm2.weight"),
            r"all weights of .*ViT of 2 blocks.*, got 1 missing: model\.layer\.1\.norm2\.weight",
        ),
        (lambda s: s.update({"head.weight": torch.zeros(2, 2)}), r"1 surplus: head\.weight"),
        (lambda s: s.update({"norm.bias": torch.zeros(3)}), r"of another shape: norm\.bias \(3,\) instead of \(64,\)"),
        (
            lambda s: s.update({"rope_embed.periods": torch.arange(1.0, 17)}),
            r"expected DINOv3's rotary periods \(base 100\) \[1\.0, ",
        ),
        (
            lambda s: s["blocks.0.attn.qkv.bias_mask"].fill_(1),
            r"blocks\.0\.attn\.qkv\.bias: expected no bias of the keys, got one",
        ),
        (lambda s: s.update({"pos_embed": torch.zeros(1, 2, 64)}), "got a ViT with position embeddings"),
        (lambda s: s.clear(), r"got other weights \(0 tensors: none, …\)"),
    ],
)
def test_from_origin__says_what_does_not_fit(broken: object, told: str) -> None:
    state = small_state("meta dinov3_vits16plus")
    assert callable(broken)
    broken(state)
    with pytest.raises(ValueError, match=told):
        from_origin(state)


def test_from_origin__equals_timms_own_code() -> None:
    pytest.importorskip("torchvision", reason="timm's models import torchvision")
    timm = pytest.importorskip("timm", reason="timm is no dependency: its code is only compared with")
    theirs = timm.create_model("vit_small_plus_patch16_dinov3_qkvb", pretrained=False, num_classes=0).eval()
    config, converted = from_origin(theirs.state_dict())
    vit = DINOv3ViTModel(config).eval()
    vit.load_state_dict(converted)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(vit(images).last_hidden_state, theirs.forward_features(images), atol=1e-4, rtol=1e-4)
