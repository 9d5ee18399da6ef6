"""Post-processing: the contract's score, masks where they belong, memory within the budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former_dinov3.errors import CheckpointError, OptionError
from mask2former_dinov3.inference import postprocess, resize_masks
from mask2former_dinov3.inference.settings import InferenceSettings
from mask2former_dinov3.instances import Instances, Unreported


def post_process(
    class_logits: Tensor, mask_logits: Tensor, target_sizes: Any, pixel_mask: Tensor | None = None, **options: Any
) -> list[Instances]:
    """`postprocess.post_process` with the settings as keywords, and no threshold by default."""
    names = {"threshold", "max_detections", "copy_overlap"} & options.keys()
    settings = InferenceSettings(**{"threshold": 0.0, **{name: options.pop(name) for name in names}})
    return postprocess.post_process(class_logits, mask_logits, target_sizes, pixel_mask, settings=settings, **options)


def logits(
    queries: int = 6, classes: int = 3, size: tuple[int, int] = (16, 24), batch: int = 2
) -> tuple[Tensor, Tensor]:
    """Random class logits (B, Q, K+1) and smooth mask logits (B, Q, h', w')."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch, queries, 4, 6, generator=generator) * 4
    masks = F.interpolate(coarse, size, mode="bicubic", align_corners=False)
    return torch.randn(batch, queries, classes + 1, generator=generator), masks


def reference(
    class_logits: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    canvas: tuple[int, int],
    real: tuple[int, int],
    top: int,
) -> list[tuple[float, int, np.ndarray[Any, Any]]]:
    """The contract's words, one query and class after another, for one image: (score, label, mask), best first."""
    probabilities = class_logits.softmax(-1)[:, :-1]
    pairs = [(float(p), query, label) for query, row in enumerate(probabilities) for label, p in enumerate(row)]
    found = []
    for probability, query, label in sorted(pairs, reverse=True)[:top]:
        mask = F.interpolate(mask_logits[None, query : query + 1], canvas, mode="bilinear", align_corners=False)
        mask = F.interpolate(mask[:, :, : real[0], : real[1]], size, mode="bilinear", align_corners=False)[0, 0]
        if (mask > 0).any():
            found.append((probability * float(mask.sigmoid()[mask > 0].mean()), label, (mask > 0).numpy()))
    return sorted(found, key=lambda one: -one[0])


@pytest.mark.parametrize("max_detections", [4, 100])
def test_post_process__is_what_the_contract_says(max_detections: int) -> None:
    class_logits, mask_logits = logits()
    sizes, reals = [(50, 70), (201, 88)], [(64, 90), (64, 28)]
    pixel_mask = torch.zeros(2, 64, 96)
    for mask, real in zip(pixel_mask, reals, strict=True):
        mask[: real[0], : real[1]] = 1
    found = post_process(class_logits, mask_logits, sizes, pixel_mask, max_detections=max_detections)
    for index, instances in enumerate(found):
        expected = reference(
            class_logits[index], mask_logits[index], sizes[index], (64, 96), reals[index], max_detections
        )
        assert len(instances) == len(expected) <= max_detections
        assert (instances.height, instances.width) == sizes[index]
        np.testing.assert_allclose(instances.scores, [one[0] for one in expected], atol=1e-6)
        np.testing.assert_array_equal(instances.labels, [one[1] for one in expected])
        np.testing.assert_array_equal(instances.masks, np.stack([one[2] for one in expected]))


def test_post_process__one_query_can_be_kept_for_several_classes_and_is_made_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class_logits = torch.tensor([[[2.0, 1.9, -9.0, 0.0], [0.0, -9.0, -9.0, 0.0]]])
    mask_logits = torch.ones(1, 2, 8, 8)
    made: list[list[int]] = []

    def recorded(logits: Tensor, queries: Tensor, *rest: Any) -> resize_masks.Masks:
        made.append(queries.tolist())
        return resize_masks.resize_masks(logits, queries, *rest)

    monkeypatch.setattr(postprocess, "resize_masks", recorded)
    (found,) = post_process(class_logits, mask_logits, [(20, 20)], max_detections=3)
    assert found.labels.tolist() == [0, 0, 1] or found.labels.tolist() == [0, 1, 0]
    assert made == [[0, 1]]


@pytest.mark.parametrize("memory_bytes", [1, 100_000, 10**9])
def test_post_process__gives_the_same_for_every_memory_budget(memory_bytes: int) -> None:
    class_logits, mask_logits = logits(queries=20)
    (one, two) = post_process(class_logits, mask_logits, [(61, 90)] * 2, memory_bytes=memory_bytes)
    (first, second) = post_process(class_logits, mask_logits, [(61, 90)] * 2)
    for found, expected in ((one, first), (two, second)):
        assert found.rles == expected.rles
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)


def test_post_process__holds_no_more_pixels_than_the_budget_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    class_logits, mask_logits = logits(queries=50, batch=1)
    made: list[int] = []
    borders_of_blocks = resize_masks.borders_of_blocks

    def recorded(inside: Any, *rest: Any) -> Any:
        made.append(inside.size)
        return borders_of_blocks(inside, *rest)

    monkeypatch.setattr(resize_masks, "borders_of_blocks", recorded)
    budget = 4_000_000
    post_process(class_logits, mask_logits, [(300, 400)], max_detections=150, memory_bytes=budget)
    assert len(made) > 2
    assert max(made) * 4 < budget  # a float32 each


def test_post_process__masks_lie_where_the_object_is() -> None:
    """A step at canvas column 40 of 96 (of which 80 are real) is at column 100 of an image 200 wide."""
    columns = torch.arange(24.0) * 4 + 2  # centres of the mask's pixels on the canvas
    mask_logits = (columns - 40).expand(1, 1, 16, 24)
    pixel_mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    pixel_mask[:, :60, :80] = True
    (found,) = post_process(torch.tensor([[[9.0, -9.0]]]), mask_logits, [(150, 200)], pixel_mask)
    assert found.boxes.tolist() == [[100, 0, 200, 150]]


def test_post_process__drops_empty_masks_and_those_under_the_threshold() -> None:
    class_logits = torch.tensor([[[3.0, 0.0], [2.0, 0.0], [0.5, 0.0]]])
    mask_logits = torch.stack([torch.full((8, 8), -1.0), torch.full((8, 8), 0.4), torch.full((8, 8), 9.0)])[None]
    (everything,) = post_process(class_logits, mask_logits, [(16, 16)])
    assert len(everything) == 2
    # 0.881 * 0.599 = 0.527 and 0.622 * 1.0 = 0.622: the surer class has the less sure mask.
    np.testing.assert_allclose(everything.scores, [0.6224, 0.5273], atol=1e-4)
    (sure,) = post_process(class_logits, mask_logits, [(16, 16)], threshold=0.6)
    assert len(sure) == 1
    (none,) = post_process(class_logits, mask_logits, [(16, 16)], threshold=0.99)
    assert len(none) == 0
    assert none.masks.shape == (0, 16, 16)


def test_post_process__mask_threshold_moves_the_edge() -> None:
    mask_logits = torch.linspace(-4, 4, 32).expand(1, 1, 8, 32)
    areas = [
        int(post_process(torch.zeros(1, 1, 2), mask_logits, [(32, 128)], mask_threshold=level)[0].areas[0])
        for level in (0.1, 0.5, 0.9, 0)
    ]
    assert areas[0] > areas[1] > areas[2]
    assert areas[1] == 32 * 64
    assert areas[3] == 32 * 128  # every pixel
    assert len(post_process(torch.zeros(1, 1, 2), mask_logits, [(32, 128)], mask_threshold=1)[0]) == 0


def test_post_process__half_precision_logits_and_gradients_are_no_obstacle() -> None:
    class_logits, mask_logits = logits()
    (expected, _) = post_process(class_logits, mask_logits, [(40, 60)] * 2)
    (found, _) = post_process(class_logits.bfloat16().requires_grad_(), mask_logits.requires_grad_(), [(40, 60)] * 2)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-2)
    assert mask_logits.grad is None


def test_post_process__is_float32_under_autocast_as_well() -> None:
    class_logits, mask_logits = logits()
    expected = post_process(class_logits, mask_logits, [(40, 60)] * 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = post_process(class_logits, mask_logits, [(40, 60)] * 2)
    for one, other in zip(found, expected, strict=True):
        assert one.rles == other.rles
        np.testing.assert_array_equal(one.scores, other.scores)


def test_post_process__leaves_the_logits_alone() -> None:
    class_logits, mask_logits = logits()
    before = class_logits.clone(), mask_logits.clone()
    post_process(class_logits, mask_logits, [(64, 96)] * 2)
    post_process(class_logits, mask_logits, [(16, 24)] * 2, torch.ones(2, 16, 24))
    assert torch.equal(class_logits, before[0])
    assert torch.equal(mask_logits, before[1])


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"class_queries_logits": torch.zeros(6, 4)}, ValueError, "class_queries_logits"),
        ({"masks_queries_logits": torch.zeros(2, 3, 16, 24)}, ValueError, "masks_queries_logits"),
        ({"target_sizes": [(10, 10)]}, ValueError, "target_sizes: expected 2"),
        ({"target_sizes": [(0, 5), (5, 5)]}, ValueError, "target_sizes"),
        ({"pixel_mask": torch.ones(1, 64, 96)}, ValueError, "pixel_mask: expected"),
        ({"pixel_mask": torch.zeros(2, 64, 96)}, ValueError, "top left"),
        ({"pixel_mask": torch.ones(2, 64, 96).tril()}, ValueError, "top left"),
        ({"max_detections": 0}, OptionError, "max_detections: expected a whole number above 0, got 0"),
        ({"mask_threshold": 1.1}, OptionError, "mask_threshold: expected a probability from 0 to 1, got 1.1"),
        (
            {"class_queries_logits": torch.full((2, 6, 4), float("nan"))},
            CheckpointError,
            "class_queries_logits: expected finite numbers, got NaN or infinity; the model's weights are damaged",
        ),
        (
            {"masks_queries_logits": torch.full((2, 6, 16, 24), float("inf"))},
            CheckpointError,
            "masks_queries_logits: expected finite numbers, got NaN or infinity; .* the range of torch.float32",
        ),
    ],
)
def test_post_process__says_what_is_wrong(changed: dict[str, Any], error: type[ValueError], message: str) -> None:
    class_logits, mask_logits = logits()
    sound = {"class_queries_logits": class_logits, "masks_queries_logits": mask_logits, "target_sizes": [(10, 10)] * 2}
    given = {**sound, **changed}
    with pytest.raises(error, match=message) as caught:
        post_process(given.pop("class_queries_logits"), given.pop("masks_queries_logits"), **given)
    assert type(caught.value) is error


def test_post_process__each_class_has_its_own_threshold() -> None:
    """A class with a low threshold is not displaced by results of others below theirs, however small the limit."""
    class_logits, mask_logits = logits(queries=12)
    every = post_process(class_logits, mask_logits, [(64, 96)] * 2, max_detections=36)
    least = np.array([0.9, 0.15, 1.0], np.float32)
    found = post_process(class_logits, mask_logits, [(64, 96)] * 2, threshold=(0.9, 0.15, 1.0), max_detections=36)
    for whole, some in zip(every, found, strict=True):
        wanted = whole[whole.scores >= least[whole.labels]]
        assert some.scores.tolist() == wanted.scores.tolist()
        assert some.labels.tolist() == wanted.labels.tolist() == [1] * len(some)
    few = post_process(class_logits, mask_logits, [(64, 96)] * 2, threshold=(0.9, 0.15, 1.0), max_detections=2)
    assert [len(one) for one in few] == [2, 2]
    assert whole.labels[:2].tolist() != [1, 1]


def test_post_process__images_may_have_settings_of_their_own() -> None:
    class_logits, mask_logits = logits()
    asked = [InferenceSettings(0.3, 100), InferenceSettings((0.0, 0.2, 1.0), 3)]
    found = postprocess.post_process(class_logits, mask_logits, [(64, 96)] * 2, settings=asked)
    for index, (one, settings) in enumerate(zip(found, asked, strict=True)):
        rows = slice(index, index + 1)
        (alone,) = postprocess.post_process(class_logits[rows], mask_logits[rows], [(64, 96)], settings=settings)
        assert one.scores.tolist() == alone.scores.tolist()
        assert one.left_out == alone.left_out
    with pytest.raises(ValueError, match="zip"):
        postprocess.post_process(class_logits, mask_logits, [(64, 96)] * 2, settings=asked[:1])


def test_post_process__without_a_limit_it_is_the_number_of_queries() -> None:
    class_logits, mask_logits = logits(queries=6)
    found = postprocess.post_process(class_logits, mask_logits, [(64, 96)] * 2, settings=InferenceSettings(0.0))
    every = post_process(class_logits, mask_logits, [(64, 96)] * 2, max_detections=100)
    assert [len(one) for one in found] == [6, 6]
    assert [len(one) for one in every] == [18, 18]
    assert [one.left_out.limit for one in found] == [12, 12]
    assert [one.left_out.limit for one in every] == [0, 0]


def test_post_process__says_what_is_left_out() -> None:
    class_logits, mask_logits = logits(queries=6)
    best = torch.tensor([[9.0, 0, 0, 0]]).expand(2, 6, 4)
    (found, _) = post_process(best, mask_logits, [(64, 96)] * 2, threshold=0.5)
    assert found.left_out == Unreported(full=1)  # each query is an instance: there may be more objects
    (found, _) = post_process(best, mask_logits, [(64, 96)] * 2, threshold=0.5, max_detections=4)
    assert found.left_out == Unreported(limit=2)
    every, _ = post_process(class_logits, mask_logits, [(64, 96)] * 2)
    (found, _) = post_process(class_logits, mask_logits, [(64, 96)] * 2, threshold=0.99)
    assert not len(found)
    assert found.left_out == Unreported(best_score=float(every.scores.max()))
    same = mask_logits[:, :1].expand(2, 6, 16, 24)
    (found, _) = post_process(best, same, [(64, 96)] * 2, threshold=0.5, copy_overlap=0.9)
    assert found.left_out == Unreported(full=1, copies=5)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        ((0.5, 0.5), "threshold: expected 3 thresholds, one per class, got 2"),
        ({"a": 0.5}, "threshold: expected thresholds in the order of the labels, got by name; use settings.for_model"),
    ],
)
def test_post_process__refuses_thresholds_that_are_not_those_of_the_labels(threshold: Any, message: str) -> None:
    with pytest.raises(OptionError, match=f"^{message}$"):
        post_process(*logits(), [(64, 96)] * 2, threshold=threshold)
