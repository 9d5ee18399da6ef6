"""Where queries start, and the ellipse that they add to their masks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former_dinov3.model.criterion.mask_places import coverage
from mask2former_dinov3.model.criterion.seed_loss import heat_map, seed_loss
from mask2former_dinov3.model.kernels.deformable_attention import STEPS_PER_PIXEL
from mask2former_dinov3.model.mask_prior import UNIT, MaskPrior, place_channels, prior_logits
from mask2former_dinov3.model.pixel_decoder import reference_points
from mask2former_dinov3.model.query_seeds import find_peaks
from support.models import labels, padded_mask, small_model


@pytest.mark.parametrize("stride", [2, 4, 16, 32])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_coverage__is_the_mean_over_blocks(dtype: torch.dtype, stride: int) -> None:
    masks = [(torch.rand(count, 64, 96) > 0.4).to(dtype) for count in (3, 0, 1)]
    masks[0][0] = 1  # sums of whole blocks must not overflow
    found = coverage(masks, 64 // stride, 96 // stride)
    assert found.shape == (3, 3, 64 // stride, 96 // stride)
    for image, own in zip(masks, found, strict=True):
        expected = F.avg_pool2d(image[None].float(), stride)[0] if len(image) else own[:0]
        torch.testing.assert_close(own[: len(image)], expected)
        assert not own[len(image) :].any()


def test_heat_map__is_one_at_one_place_inside_each_instance() -> None:
    masks = torch.zeros(3, 32, 32)
    masks[0, 2:7, 2:7] = 1  # its centre: (4, 4)
    ring = torch.zeros(15, 15)
    ring[0], ring[-1], ring[:, 0], ring[:, -1] = 1, 1, 1, 1
    masks[1, 15:30, 15:30] = ring  # its centre lies outside
    masks[2, 1, 30] = 0.3  # smaller than a pixel
    heat = heat_map(masks)
    assert (heat == 1).sum() == 3
    assert heat[4, 4] == 1
    assert heat[1, 30] == 1
    assert (heat * (ring_place := masks[1])).max() == 1
    assert not heat[ring_place.bool().logical_not() & (masks.sum(0) == 0)].any()  # nothing beside the instances
    spread = 25 / math.pi / 16  # a quarter of the radius of a disc of 25 pixels, squared
    assert float(heat[4, 5]) == pytest.approx(math.exp(-1 / (2 * max(spread, 1 / 16))), abs=1e-6)
    assert not heat_map(masks[:0]).any()


def test_seed_loss__is_cornernets_focal_loss() -> None:
    logits, valid = torch.randn(2, 5, 6, dtype=torch.float64), torch.rand(2, 5, 6) > 0.2
    target = torch.rand(2, 5, 6, dtype=torch.float64)
    target[0, 1, 2] = target[1, 3, 4] = 1
    valid[0, 1, 2] = True
    expected = 0.0
    for score, goal, real in zip(logits.flatten().tolist(), target.flatten().tolist(), valid.flatten(), strict=True):
        p = 1 / (1 + math.exp(-score))
        at_seed, elsewhere = -((1 - p) ** 2) * math.log(p), -((1 - goal) ** 4) * p**2 * math.log(1 - p)
        expected += (at_seed if goal == 1 else elsewhere) if real else 0.0
    assert float(seed_loss(logits, target, valid)) == pytest.approx(expected, rel=1e-9)


def test_peaks__come_first_then_the_highest_others_then_padding() -> None:
    logits = torch.zeros(1, 4, 6) - 5
    logits[0, 1, 1], logits[0, 1, 2], logits[0, 3, 4] = 3.0, 2.9, 1.0  # the second is beside the first: no peak
    valid = torch.ones(1, 4, 6, dtype=torch.bool)
    valid[:, :, 5] = False
    logits[0, 0, 5] = 9.0
    found = find_peaks(logits, valid, 30)[0].tolist()
    assert found[:2] == [7, 22]
    assert len(found) == 30
    assert set(found) == set(range(24))
    assert {index % 6 for index in found[20:24]} == {5}


@torch.no_grad()
def drawn(prior: MaskPrior, queries: Tensor, places: Tensor) -> Tensor:
    """The prior's logits on a map of 24 x 32 pixels at stride 4, (B, Q, 24, 32)."""
    channels = place_channels(24, 32, 4, queries.device)
    logits: Tensor = prior_logits(prior(queries, places), channels.flatten(1)).unflatten(2, (24, 32))
    return logits


def test_mask_prior__is_the_ellipse_that_it_says() -> None:
    torch.manual_seed(0)
    prior = MaskPrior(8)
    torch.nn.init.normal_(prior.shape.weight, std=0.3)
    queries, places = torch.randn(2, 5, 8), torch.rand(2, 5, 2) * torch.tensor([128.0, 96.0])
    found = drawn(prior, queries, places)
    for image in range(2):
        for query in range(5):
            step_x, step_y, scale_x, scale_y, shear, strength = (
                prior.shape(queries[image, query]).detach().double().tolist()
            )
            lower = torch.tensor([[math.exp(scale_x), 0.0], [shear, math.exp(scale_y)]], dtype=torch.float64)
            center = places[image, query].double() / UNIT + torch.tensor([step_x, step_y])
            for row, column in ((0, 0), (11, 17), (23, 31)):
                p = (torch.tensor([column, row]) + 0.5).double() * 4 / UNIT
                expected = (1 + strength) * (1 - float((lower @ (p - center)).square().sum()))
                assert float(found[image, query, row, column]) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_mask_prior__starts_as_a_disc_of_one_patch_of_radius_in_bf16_too() -> None:
    prior = MaskPrior(8)
    torch.nn.init.zeros_(prior.shape.weight)
    torch.nn.init.zeros_(prior.shape.bias)
    with torch.autocast("cpu", torch.bfloat16):
        found = drawn(prior, torch.randn(1, 1, 8), torch.tensor([[[66.0, 50.0]]]))
    assert found.dtype == torch.float32
    y, x = torch.meshgrid(torch.arange(24) * 4 + 2.0, torch.arange(32) * 4 + 2.0, indexing="ij")
    inside = ((x - 66) ** 2 + (y - 50) ** 2) < 16**2
    assert torch.equal(found[0, 0] > 0, inside)
    assert float(found.max()) == pytest.approx(1.0, abs=1e-4)


def test_decoder__queries_of_seeds_know_their_place() -> None:
    """An untrained model's masks are blobs around its seeds, other places for other images, none on padding."""
    model = small_model("seeds").eval()
    pixel_mask = padded_mask(2, 128, 128, (128, 64))
    with torch.no_grad():
        predictions = model.head.predict(model.feature_maps(torch.randn(2, 3, 128, 128)), pixel_mask)
    assert predictions.seed_logits is not None
    assert predictions.seed_logits.shape == (2, 32, 32)
    assert predictions.prior_embeddings is not None
    assert predictions.prior_features is not None
    assert predictions.mask_features.shape[2:] == predictions.prior_features.shape[1:] == (64, 64)
    prior = torch.einsum("bqe,ehw->bqhw", predictions.prior_embeddings[-1], predictions.prior_features)
    at = prior.flatten(2).argmax(2)
    assert (at % 64 < 33).all()  # real pixels are the left half, one pixel for the rounding
    assert all(len(set(image.tolist())) > 3 for image in at)
    assert not torch.equal(at[0], at[1])


def test_criterion__the_score_is_trained_directly() -> None:
    model = small_model("seeds").train()
    losses = model(torch.randn(2, 3, 64, 96), **labels([3, 0])).loss_dict
    assert {name for name in losses if name.startswith("loss_seed")} == {"loss_seed"}
    losses["loss_seed"].backward()
    score = [p.grad for name, p in model.named_parameters() if "seeds.score" in name]
    assert len(score) == 4
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in score)
    assert all(p.grad is None for name, p in model.named_parameters() if "seeds.features" in name)


def test_mask_prior__drawn_for_an_export_is_the_product_of_factors() -> None:
    torch.manual_seed(0)
    prior = MaskPrior(8).double()
    queries = torch.randn(2, 5, 8, dtype=torch.float64)
    doubled = (2 * torch.randint(0, 24, (2, 5, 2)) + 1) * 4
    factors = place_channels(32, 40, 2, queries.device).double()
    expected = prior_logits(prior(queries, doubled / 2), factors.flatten(1)).view(2, 5, 32, 40)
    torch.testing.assert_close(prior.draw(queries, doubled, (32, 40), 2), expected)


def test_reference_points__in_whole_units_are_those_in_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(3, 5), (6, 10), (120, 200)]
    real = torch.tensor([[[5, 3], [10, 6], [200, 120]], [[2, 3], [3, 5], [57, 99]]])  # (width, height)
    expected = reference_points(real, shapes, 2, 4)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    whole = reference_points(real, shapes, 2, 4)
    assert whole.dtype == torch.int64
    assert int(whole.max()) < 2**31
    torch.testing.assert_close(whole / STEPS_PER_PIXEL, expected, atol=1.01 / STEPS_PER_PIXEL, rtol=1e-6)
