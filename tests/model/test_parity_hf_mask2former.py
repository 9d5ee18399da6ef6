"""Same small random weights in Hugging Face's Swin Mask2Former and in ours: same logits, matching and losses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mask2former_dinov3.model import transformer_decoder
from mask2former_dinov3.model.transformer_decoder import attention_mask
from mask2former_dinov3.weights import from_mask2former
from support.models import TOLERANCE, hf_mask2former


def made_labels(sizes: list[int], height: int, width: int) -> tuple[list[Tensor], list[Tensor]]:
    """Rectangles, `sizes[b]` of them on image b."""
    generator = torch.Generator().manual_seed(1)
    masks, classes = [], []
    for count in sizes:
        mask = torch.zeros(count, height, width, dtype=torch.uint8)
        for instance in mask:
            top, left = (int(torch.randint(0, n // 2, (), generator=generator)) for n in (height, width))
            instance[top : top + height // 3, left : left + width // 4] = 1
        masks.append(mask)
        classes.append(torch.randint(0, 4, (count,), generator=generator))
    return masks, classes


def fixed_rand(*size: int, device: Any = None) -> Tensor:
    """Stands in for torch.rand: the same points for every mask of the same request."""
    count, points, xy = size
    generator = torch.Generator().manual_seed(points)
    return torch.empty(1, points, xy).uniform_(generator=generator).expand(count, -1, -1).to(device).clone()


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (128, 64), (96, 160)])
def test_from_mask2former__gives_the_same_logits(size: tuple[int, int]) -> None:
    theirs = hf_mask2former()
    ours = from_mask2former(theirs).eval()
    pixel_values = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = theirs(pixel_values, output_auxiliary_logits=True)
        got = ours(pixel_values, output_auxiliary_logits=True)
    assert expected.class_queries_logits.std() > 0.1, "weights too tame to prove anything"
    torch.testing.assert_close(got.class_queries_logits, expected.class_queries_logits, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(got.masks_queries_logits, expected.masks_queries_logits, atol=TOLERANCE, rtol=0)
    assert len(got.auxiliary_logits) == len(expected.auxiliary_logits) == 4
    for mine, hf in zip(got.auxiliary_logits, expected.auxiliary_logits, strict=True):
        torch.testing.assert_close(mine["masks_queries_logits"], hf["masks_queries_logits"], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(mine["class_queries_logits"], hf["class_queries_logits"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("sizes", [[3, 5], [0, 2], [1, 15]], ids=["usual", "one-empty", "more-than-queries"])
def test_criterion__gives_the_same_matching_and_losses(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = hf_mask2former()
    ours = from_mask2former(theirs).eval()
    pixel_values = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    masks, classes = made_labels(sizes, 64, 96)
    their_matches: list[list[tuple[Tensor, Tensor]]] = []
    match: Callable[..., Any] = theirs.criterion.matcher.forward

    def recording(*args: Any, **kwargs: Any) -> Any:
        their_matches.append(match(*args, **kwargs))
        return their_matches[-1]

    monkeypatch.setattr(theirs.criterion.matcher, "forward", recording)
    monkeypatch.setattr(torch, "rand", fixed_rand)
    with torch.no_grad():
        expected = theirs(pixel_values, mask_labels=[m.float() for m in masks], class_labels=classes)
    expected_dict = theirs.get_loss_dict(
        expected.masks_queries_logits, expected.class_queries_logits, [m.float() for m in masks], classes, None
    )
    ours.criterion.rand = fixed_rand
    our_matches: list[Any] = []
    matcher = ours.criterion.matcher

    def recording_ours(*args: Any) -> Any:
        our_matches.append(matcher(*args))
        return our_matches[-1]

    monkeypatch.setattr(ours.criterion, "matcher", recording_ours)
    got = ours(pixel_values, mask_labels=masks, class_labels=classes)

    layers = [*our_matches[0][-1:], *our_matches[0][:-1]]  # Hugging Face matches the last layer first
    for mine, hf in zip(layers, their_matches[:5], strict=True):
        for (queries, instances), (hf_queries, hf_instances) in zip(mine, hf, strict=True):
            assert queries.tolist() == hf_queries.tolist()
            assert instances.tolist() == hf_instances.tolist()
    assert len(got.loss_dict) == 15
    for name, value in expected_dict.items():
        torch.testing.assert_close(got.loss_dict[name], value, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(got.loss, expected.loss.squeeze(), atol=TOLERANCE, rtol=TOLERANCE)


def test_from_mask2former__at_1024_every_layer_is_the_same_behind_the_same_attention_and_matching(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At this size some logit is always so close to 0 that rounding decides what a query sees, and whom it answers for.

    So what Hugging Face's model decided there is put into ours; all numbers in between are compared.
    """
    theirs = hf_mask2former()
    ours = from_mask2former(theirs).eval()
    pixel_values = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(4))
    masks, classes = made_labels([7], 1024, 1024)
    blocked: list[Tensor] = []  # (B * heads, Q, S) of every decoder layer
    matches: list[Any] = []
    match: Callable[..., Any] = theirs.criterion.matcher.forward
    for layer in theirs.model.transformer_module.decoder.layers:
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: blocked.append(kwargs["encoder_attention_mask"]), with_kwargs=True
        )

    def recording(*args: Any, **kwargs: Any) -> Any:
        matches.append(match(*args, **kwargs))
        return matches[-1]

    monkeypatch.setattr(theirs.criterion.matcher, "forward", recording)
    monkeypatch.setattr(torch, "rand", fixed_rand)
    with torch.no_grad():
        expected = theirs(
            pixel_values,
            mask_labels=[m.float() for m in masks],
            class_labels=classes,
            output_hidden_states=True,
            output_auxiliary_logits=True,
        )
        expected_losses = theirs.get_loss_dict(
            expected.masks_queries_logits,
            expected.class_queries_logits,
            [m.float() for m in masks],
            classes,
            expected.auxiliary_logits,
        )
    theirs_of = iter(blocked[:4])
    seen: list[Tensor] = []

    def injected(mask_logits: Tensor, valid: Tensor) -> Tensor:
        seen.append(attention_mask(mask_logits, valid))
        return ~next(theirs_of)[:: ours.config.num_attention_heads].bool()

    monkeypatch.setattr(transformer_decoder, "attention_mask", injected)
    in_our_order = [*matches[1:5], matches[0]]  # Hugging Face matches the last layer first
    monkeypatch.setattr(ours.criterion, "matcher", lambda *_: in_our_order)
    ours.criterion.rand = fixed_rand
    memories: list[Tensor] = []
    ours.head.pixel_decoder.register_forward_hook(lambda _, args, output: memories.extend(output[2]))
    with torch.no_grad():
        got = ours(pixel_values, mask_labels=masks, class_labels=classes, output_auxiliary_logits=True)

    close = partial(torch.testing.assert_close, atol=TOLERANCE, rtol=0)
    for mine, hf in zip(memories, expected.pixel_decoder_hidden_states, strict=True):
        close(mine, hf)
    for mine, hf in zip(got.auxiliary_logits, expected.auxiliary_logits, strict=True):
        close(mine["masks_queries_logits"], hf["masks_queries_logits"])
        close(mine["class_queries_logits"], hf["class_queries_logits"])
    close(got.masks_queries_logits, expected.masks_queries_logits)
    close(got.class_queries_logits, expected.class_queries_logits)
    for mine, hf in zip(seen, blocked, strict=False):
        assert (mine == hf[:: ours.config.num_attention_heads].bool()).float().mean() < 1e-4, "more than rounding"
    for name, value in expected_losses.items():
        torch.testing.assert_close(got.loss_dict[name], value, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("setting", "value"), [("pre_norm", True), ("dropout", 0.1), ("common_stride", 8)], ids=lambda v: str(v)
)
def test_from_mask2former__refuses_by_name(setting: str, value: object) -> None:
    theirs = hf_mask2former()
    setattr(theirs.config, setting, value)
    with pytest.raises(ValueError, match=setting):
        from_mask2former(theirs)


def test_from_mask2former__lists_keys_it_does_not_know() -> None:
    theirs = hf_mask2former()
    theirs.surprise = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"surprise\.weight"):
        from_mask2former(theirs)


def test_from_mask2former__takes_the_head_onto_another_backbone() -> None:
    from transformers import DINOv3ViTConfig

    theirs = hf_mask2former()
    vit = DINOv3ViTConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2)
    ours = from_mask2former(theirs, backbone_config=vit, id2label={0: "cell"}, label2id={"cell": 0})
    assert ours.config.neck == "pyramid"
    assert ours.config.neck_channels == [32, 64, 128, 256]
    assert ours.head.transformer_decoder.class_predictor.out_features == 2
    for mine, hf in zip(
        ours.head.pixel_decoder.input_projections.parameters(),
        theirs.model.pixel_level_module.decoder.input_projections.parameters(),
        strict=True,
    ):
        assert torch.equal(mine, hf)
