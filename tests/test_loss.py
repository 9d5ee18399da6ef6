"""Points, matching costs and normalisers against their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mask2former_dinov3.model import loss_normalizers
from mask2former_dinov3.model.deformable_attention import deformable_attention
from mask2former_dinov3.model.matcher import pairwise_costs
from mask2former_dinov3.model.points import choose_points, sample_logits, sample_targets
from test_modeling import labels, padded_mask, small_model


def test_sample_targets__equals_grid_sample() -> None:
    masks = (torch.rand(5, 13, 9) > 0.5).to(torch.uint8)
    points = torch.rand(5, 400, 2) * 1.2 - 0.1  # some outside
    expected = sample_logits(masks[:, None].float(), points)[:, 0]
    torch.testing.assert_close(sample_targets(masks, points), expected, atol=1e-5, rtol=0)
    shared = sample_targets(masks, points[0])
    torch.testing.assert_close(shared[0], expected[0], atol=1e-5, rtol=0)
    assert sample_targets(masks[:0], points[0]).shape == (0, 400)


def test_choose_points__keeps_the_least_certain_and_stays_on_real_pixels() -> None:
    """Logits rise from left to right through 0 at x = 0.25: the uncertain points gather there."""
    logits = (torch.linspace(0, 1, 64) - 0.25).expand(2, 32, 64) * 10
    extent = torch.tensor([[0.5, 1.0], [0.5, 0.25]])
    torch.manual_seed(0)
    points = choose_points(logits, extent, 400, 3.0, 0.75, torch.rand)
    assert points.shape == (2, 400, 2)
    assert (points <= extent[:, None]).all()
    assert ((points[:, :300, 0] - 0.25).abs() < 0.13).all()
    assert points[:, 300:, 0].std() > 0.1  # the rest is anywhere


def test_pairwise_costs__equal_their_definition() -> None:
    logits, targets = torch.randn(2, 3, 50), torch.rand(4, 50)
    cross_entropy, dice = pairwise_costs(logits, targets)
    for layer in range(2):
        for query in range(3):
            for instance in range(4):
                x, t = logits[layer, query], targets[instance]
                expected = F.binary_cross_entropy_with_logits(x, t)
                torch.testing.assert_close(cross_entropy[layer, query, instance], expected, atol=1e-5, rtol=0)
                p = x.sigmoid()
                expected = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
                torch.testing.assert_close(dice[layer, query, instance], expected, atol=1e-5, rtol=0)


def test_deformable_attention__by_hand() -> None:
    """One head, one point, weight 1: a sample at a pixel's centre is the pixel, between two their mean, outside 0."""
    value = torch.arange(6.0).view(1, 6, 1, 1)  # one level of 2 x 3: 0 1 2 / 3 4 5
    locations = torch.tensor([[0.5, 0.25], [1 / 3, 0.25], [2.0, 0.5]]).view(1, 3, 1, 1, 1, 2)
    output = deformable_attention(value, [(2, 3)], locations, torch.ones(1, 3, 1, 1, 1))
    torch.testing.assert_close(output.flatten(), torch.tensor([1.0, 0.5, 0.0]), atol=1e-6, rtol=0)


def test_normalizers__two_halves_make_the_whole() -> None:
    """Losses of single images, divided by the sums over the batch, add up to the loss of the batch: what makes
    processes and accumulation steps equal to one big batch, an image without instances included."""
    model = small_model().eval()

    def same_points(*size: int, device: object = None) -> torch.Tensor:
        generator = torch.Generator().manual_seed(size[1])
        return torch.empty(1, *size[1:]).uniform_(generator=generator).expand(size[0], -1, -1)

    model.criterion.rand = same_points
    pixel_values, pixel_mask, batch = torch.randn(2, 3, 64, 96), padded_mask(2, 64, 96, (64, 80)), labels([0, 4])
    whole = model(pixel_values, pixel_mask=pixel_mask, **batch).loss
    total = torch.stack([loss_normalizers([classes], 7, 0.1) for classes in batch["class_labels"]]).sum(0)
    assert total.tolist() == pytest.approx([4, 4 + 0.1 * 3 + 0.1 * 7])
    parts = [
        model(
            pixel_values[i : i + 1],
            [batch["mask_labels"][i]],
            [batch["class_labels"][i]],
            pixel_mask[i : i + 1],
            normalizers=total,
        ).loss
        for i in range(2)
    ]
    torch.testing.assert_close(sum(parts), whole, atol=1e-4, rtol=0)


def test_criterion__not_finite_predictions_do_not_stop_the_matching() -> None:
    model = small_model().eval()
    with torch.no_grad():
        model.head.transformer_decoder.class_predictor.bias[0] = float("nan")
    loss = model(torch.randn(1, 3, 64, 96), **labels([2])).loss
    assert torch.isnan(loss)  # training reports it with the image ids
