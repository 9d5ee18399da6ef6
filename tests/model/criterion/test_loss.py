"""Points, matching costs and normalisers against their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mask2former_dinov3.model import loss_normalizers
from mask2former_dinov3.model.criterion import loss as loss_module
from mask2former_dinov3.model.criterion import matcher as matcher_module
from mask2former_dinov3.model.criterion import point_sampling as points_module
from mask2former_dinov3.model.criterion.mask_places import Pixels, Points
from mask2former_dinov3.model.criterion.matcher import Matches, pairwise_costs
from mask2former_dinov3.model.criterion.point_sampling import (
    choose_points,
    sample_features,
    sample_targets,
    spread_to_features,
)
from mask2former_dinov3.model.kernels import weighted_bags as bags
from support.models import labels, padded_mask, small_model


def on_a_grid(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Bilinear values by grid_sample: maps (B, C, H, W), points (B, P, 2) -> (B, C, P)."""
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_sample_targets__equals_grid_sample(dtype: torch.dtype) -> None:
    masks = (torch.rand(5, 13, 9) > 0.5).to(dtype)
    points = torch.rand(400, 2) * 1.2 - 0.1  # some outside
    expected = on_a_grid(masks[None].float(), points[None])[0]
    torch.testing.assert_close(sample_targets([masks], points[None])[0], expected, atol=1e-5, rtol=0)
    assert sample_targets([masks[:0]], points[None]).shape == (1, 0, 400)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_sample_features__equals_grid_sample_with_its_gradient(
    memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(points_module, "POINTS_AT_ONCE", 100)
    monkeypatch.setattr(bags, "ROWS_AT_ONCE", 50)
    features = torch.randn(2, 6, 13, 9).contiguous(memory_format=memory_format).requires_grad_()
    points = torch.rand(2, 450, 2) * 1.2 - 0.1
    expected = on_a_grid(features, points).transpose(1, 2)
    got = sample_features(features.detach(), points)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    grad = torch.randn_like(expected)
    (theirs,) = torch.autograd.grad(expected, features, grad)
    torch.testing.assert_close(spread_to_features(grad, points, 13, 9), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("few_pixels", [False, True])
@pytest.mark.parametrize("masks", [3, 0])
def test_mask_sampler__equals_grid_sample_of_dense_logits(
    few_pixels: bool, masks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever product comes first; gradients of two calls add up."""
    monkeypatch.setattr(points_module, "POINTS_AT_ONCE", 100)
    monkeypatch.setattr(bags, "ROWS_AT_ONCE", 50)
    features = torch.randn(2, 6, 13, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    points = torch.rand(2, 240 if few_pixels else 130, 2)
    sampler = points_module.mask_sampler(features.detach(), points)
    assert isinstance(sampler, points_module._PixelsFirst) is few_pixels
    expected = torch.zeros_like(features)
    for rows in torch.randn(2, 2, masks, 6):
        rows.requires_grad_()
        logits = on_a_grid(torch.einsum("gme,gehw->gmhw", rows, features), points)
        torch.testing.assert_close(sampler.logits(rows.detach()), logits, atol=1e-5, rtol=0)
        grad = torch.randn_like(logits)
        of_features, of_rows = torch.autograd.grad(logits, [features, rows], grad)
        torch.testing.assert_close(sampler.backward(grad, rows.detach()), of_rows, atol=1e-4, rtol=0)
        expected += of_features
    torch.testing.assert_close(sampler.grad_features(), expected, atol=1e-4, rtol=0)


def test_choose_points__keeps_the_least_certain_and_all_of_the_rest() -> None:
    logits = torch.randn(3, 500)
    columns = choose_points(logits, 400, 100)
    assert columns.shape == (3, 200)
    for row, chosen in zip(logits, columns, strict=True):
        expected = row[:400].abs().argsort()[:100].tolist()
        assert set(chosen.tolist()) == {*expected, *range(400, 500)}
    assert choose_points(logits, 400, 400).shape == (3, 500)
    assert choose_points(logits, 400, 0).tolist() == [list(range(400, 500))] * 3
    rising = torch.arange(1.0, 4001).expand(2, -1)  # a sample of them tells little about their order
    for logits in (rising, rising.flip(1), torch.cat([rising[:, :2000] ** 9, torch.zeros(2, 2000)], dim=1)):
        kept = logits.gather(1, choose_points(logits, 4000, 1000))
        assert torch.equal(kept.sort().values, logits.sort().values[:, :1000])
    for same in (torch.zeros(2, 500), torch.full((2, 500), float("nan"))):  # equal ones: any of them
        assert all(len(set(row)) == 200 for row in choose_points(same, 400, 100).tolist())


def test_criterion__reads_real_pixels_only() -> None:
    """Noise in the padding of the mask features and of the targets changes no loss."""
    model = small_model().eval()
    pixel_mask, batch = padded_mask(2, 64, 96, (48, 64)), labels([2, 3])
    with torch.no_grad():
        predictions = model.head.predict(model.feature_maps(torch.randn(2, 3, 64, 96)), pixel_mask)
    padding = torch.zeros(2, 16, 24, dtype=torch.bool)
    padding[:, 13:] = True  # one cell of margin: a point at the last real pixel is interpolated with the next cell
    padding[:, :, 17:] = True
    noisy = torch.where(padding[:, None], torch.randn_like(predictions.mask_features) * 100, predictions.mask_features)
    noisy_masks = [masks.clone() for masks in batch["mask_labels"]]
    for noisy_mask in noisy_masks:
        noisy_mask[:, 49:] ^= 1
        noisy_mask[:, :, 65:] ^= 1
    results = []
    for features, masks in ((predictions.mask_features, batch["mask_labels"]), (noisy, noisy_masks)):
        torch.manual_seed(0)
        results.append(
            model.criterion(predictions._replace(mask_features=features), masks, batch["class_labels"], pixel_mask)
        )
    assert results[0] == results[1]


@pytest.mark.parametrize("mask_loss", ["points", "pixels"])
@pytest.mark.parametrize("together", [False, True])
def test_criterion__gradients_equal_those_of_the_plain_form(
    together: bool, mask_loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses with a backward pass of their own, against torch's operations and autograd on the same points; image
    by image and layer by layer as on a CPU, and three layers of all images together as on a GPU.
    """

    def parts(device: torch.device, count: int, elements: int) -> list[slice]:
        return [slice(0, 3), slice(3, count)] if count > 3 else [slice(0, count)]

    if together:
        for module in (loss_module, matcher_module):
            monkeypatch.setattr(module, "split_work", parts)
    model = small_model(mask_loss=mask_loss, matching=mask_loss).eval()
    batch = labels([4, 9, 0])  # more instances than queries on the second image, none on the third
    pixel_values = torch.randn(3, 3, 64, 96)

    def gradients() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model.zero_grad()
        loss_dict = model(pixel_values, **batch).loss_dict
        sum((index + 1) * value for index, value in enumerate(loss_dict.values())).backward()  # weights all different
        found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        return {"losses": torch.stack(list(loss_dict.values())).detach(), **found}

    ours = gradients()
    monkeypatch.setattr(loss_module._MaskLosses, "apply", plain_mask_losses)
    plain = gradients()
    assert ours.keys() == plain.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, plain[name], atol=1e-4, rtol=1e-4)


def plain_mask_losses(
    embeddings: torch.Tensor,
    features: torch.Tensor,
    places: Points | Pixels,
    mask_labels: list[torch.Tensor],
    matches: Matches,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in torch's own operations, from dense logits, grid_sample and area interpolation."""
    sums = []
    for layer, images in enumerate(matches):
        cross_entropy, dice = embeddings.new_zeros(()), embeddings.new_zeros(())
        for image, (queries, instances) in enumerate(images):
            if not len(queries):
                continue
            dense = torch.einsum("qe,ehw->qhw", embeddings[layer, image, queries], features[image])
            masks = mask_labels[image][instances].float()
            if isinstance(places, Points):
                points = places.points[image][None]
                logits = on_a_grid(dense[None], points)[0]
                columns = choose_points(logits.detach(), places.candidates, places.uncertain)
                target, values = on_a_grid(masks[None], points)[0].gather(1, columns), logits.gather(1, columns)
            else:
                real = torch.ones(features.shape[2:], dtype=torch.bool)
                if places.padding is not None:
                    real = ~places.padding[image]
                shrunk = F.interpolate(masks[None], size=features.shape[2:], mode="area")[0]
                target, values = shrunk[:, real], dense[:, real]
            cross_entropy = cross_entropy + F.binary_cross_entropy_with_logits(values, target) * len(queries)
            p = values.sigmoid()
            dice = dice + (1 - (2 * (p * target).sum(1) + 1) / (p.sum(1) + target.sum(1) + 1)).sum()
        sums.append(torch.stack((cross_entropy, dice)))
    both = torch.stack(sums)
    return both[:, 0], both[:, 1]


def test_pairwise_costs__equal_their_definition() -> None:
    logits, targets = torch.randn(2, 3, 50), torch.rand(4, 50)
    cross_entropy, dice = pairwise_costs(logits, targets, torch.tensor([50.0, 50.0]))
    for layer in range(2):
        for query in range(3):
            for instance in range(4):
                x, t = logits[layer, query], targets[instance]
                expected = F.binary_cross_entropy_with_logits(x, t)
                torch.testing.assert_close(cross_entropy[layer, query, instance], expected, atol=1e-5, rtol=0)
                p = x.sigmoid()
                expected = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
                torch.testing.assert_close(dice[layer, query, instance], expected, atol=1e-5, rtol=0)


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


def test_class_losses__label_weights_multiply_the_terms_of_their_class() -> None:
    """Against torch's weighted cross entropy; the divisor stays, so a class alone in a batch keeps its weight."""
    model = small_model(label_weights=[0.5, 1.0, 20.0]).eval()
    logits, classes = torch.randn(2, 1, 7, 4), [torch.tensor([2, 0])]
    pairs = (torch.tensor([5, 1]), torch.tensor([0, 1]))
    losses = model.criterion.class_losses(logits, classes, [[pairs], [pairs]])
    targets = torch.tensor([3, 0, 3, 3, 3, 2, 3])
    weight = torch.tensor([0.5, 1.0, 20.0, 0.1])
    for layer in range(2):
        torch.testing.assert_close(losses[layer], F.cross_entropy(logits[layer, 0], targets, weight, reduction="sum"))
    assert loss_normalizers(classes, 7, 0.1).tolist() == pytest.approx([2, 2 + 0.1 * 5])


def test_criterion__not_finite_predictions_do_not_stop_the_matching() -> None:
    model = small_model().eval()
    with torch.no_grad():
        model.head.transformer_decoder.class_predictor.bias[0] = float("nan")
    loss = model(torch.randn(1, 3, 64, 96), **labels([2])).loss
    assert torch.isnan(loss)  # training reports it with the image ids
