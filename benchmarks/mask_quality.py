"""What a better ranking of the results would bring: an oracle, a mask-quality head, IoU-aware class targets.

`head` ranks the results of a trained model again and prints AP, its difference to the model's own ranking with the
interval of a paired bootstrap, and the calibration error (ECE) before and after Platt scaling: by the true IoU of each
mask (what perfect ranking would bring), and by the IoU that a small network predicts from what the frozen model knows
of a query (Mask Scoring R-CNN, arXiv:1903.00241). That network and the scaling are fitted to images of `--fit`, which
the model should not have been trained on. `tune` continues the training of a model, and with `--iou-aware` the
target of a matched query's class is the IoU of its mask (VarifocalNet, arXiv:2008.13367, section 3.2, for a softmax).

    mask_quality.py head runs/x/best --data nuclei --fit nuclei --fit-every 10 --views both --output quality.json
    mask_quality.py tune runs/x/best runs/tuned --data nuclei --images 400 --seed 0 --iou-aware
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning import RECIPE, keep, train_until
from mask2former_dinov3.allocator import keep_freed_memory
from mask2former_dinov3.config.train_config import load_config
from mask2former_dinov3.data.array_types import Bools, Floats, Ints
from mask2former_dinov3.data.coco import CocoData, read_coco
from mask2former_dinov3.data.images import read_image
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.evaluation.bootstrap import LEVEL, draw_resamples, weighted_metrics
from mask2former_dinov3.evaluation.calibration import reliability_of
from mask2former_dinov3.evaluation.calibration_fit import choose_calibration
from mask2former_dinov3.evaluation.coco_files import read_ground_truth, read_results
from mask2former_dinov3.evaluation.matches import Overlaps, match_overlaps, overlaps_of
from mask2former_dinov3.inference.image_processing import Prepared
from mask2former_dinov3.inference.postprocess import MEMORY_BYTES, real_sizes
from mask2former_dinov3.inference.predictor import Predictor, load_network
from mask2former_dinov3.inference.resize_masks import resize_masks
from mask2former_dinov3.inference.score_calibration import UNCHANGED, ScoreCalibration
from mask2former_dinov3.inference.settings import InferenceSettings
from mask2former_dinov3.inference.tiles.part_reader import ImageReader
from mask2former_dinov3.inference.views import VIEWS, Turn, turn, undo_turn
from mask2former_dinov3.instances import Instances
from mask2former_dinov3.model.criterion.loss import Mask2FormerCriterion
from mask2former_dinov3.model.criterion.mask_places import Places, coverage
from mask2former_dinov3.model.criterion.matcher import Matches
from mask2former_dinov3.model.transformer_decoder import QueryPredictions
from mask2former_dinov3.training.build_model import resolve_auto

WIDTH, EPOCHS, BATCH, RATE = 64, 30, 512, 2e-3  # of the mask-quality head
LEAST_CLASS = 0.02  # results with a lower probability of their class do not teach the head
SAMPLES = 200  # of the bootstrap
Row = dict[str, Any]


class Ranked(NamedTuple):
    """Results of some images, not cut by any threshold.

    overlaps: with the model's own scores, D results. images (I,): their numbers. features (D, F) float32. probability,
    certainty (D,): of the class, and the mean sigmoid inside the mask; their product is the model's score. left_out:
    images that are larger than the canvas, which would be predicted in tiles.
    """

    overlaps: Overlaps
    images: Ints
    features: Tensor
    probability: Floats
    certainty: Floats
    left_out: int

    @property
    def own_class(self) -> Bools:
        """Pairs of a result and an object of its class, without crowd regions."""
        o = self.overlaps
        same = o.result_category[o.pair_result] == o.object_category[o.pair_object]
        return np.asarray(same & ~o.crowd[o.pair_object])

    @property
    def best_iou(self) -> Floats:
        """IoU of each result with the object of its class that it overlaps most (D,)."""
        best, mine = np.zeros(len(self.overlaps.score)), self.own_class
        np.maximum.at(best, self.overlaps.pair_result[mine], self.overlaps.pair_iou[mine])
        return best

    @property
    def found_iou(self) -> Floats:
        """IoU of each result with the object that it finds, 0 where it finds none or a better one has it (D,)."""
        return match_overlaps(self.overlaps, 0.5).iou_of


class Queries(NamedTuple):
    """Results of an image with what the model knows of each, D in all."""

    found: Instances
    features: Tensor
    probability: Tensor
    certainty: Floats


@torch.no_grad()
def read_queries(predictor: Predictor, prepared: Prepared, view: Turn) -> Queries:
    """The results of one image as `post_process` makes them, without a threshold; view: how the image is turned."""
    model: Any = predictor.model
    inputs = predictor.processor.collate([turn(prepared, view)]).to(model.device)
    mask = inputs["pixel_mask"]
    outputs = model(pixel_values=inputs["pixel_values"], pixel_mask=mask, output_hidden_states=True)
    states = model.head.transformer_decoder.layernorm(outputs.hidden_states[-1][0])  # (Q, C)
    logits, masks = outputs.class_queries_logits[0], outputs.masks_queries_logits[0]
    probabilities = logits.softmax(-1)  # (Q, K+1)
    classes = probabilities.shape[1] - 1
    best, flat = probabilities[:, :-1].flatten().topk(min(len(logits), probabilities[:, :-1].numel()))
    query, label = flat // classes, flat % classes
    canvas, (real,) = (mask.shape[1], mask.shape[2]), real_sizes(mask)
    [size] = [(int(height), int(width)) for height, width in inputs["original_sizes"]]
    drawn = resize_masks(masks, torch.arange(len(masks)), canvas, real, size, 0.0, MEMORY_BYTES)
    known = torch.cat([states, logits, describe_masks(masks, mask[0])], 1)[query]
    features = torch.cat([known, F.one_hot(label, classes), best.logit(eps=1e-6)[:, None]], 1)
    certainty = drawn.certainty[query.numpy()]
    found = Instances(*size, tuple(drawn.rles[one] for one in query.tolist()), label.numpy(), certainty, None)
    there = np.flatnonzero(drawn.areas[query.numpy()] > 0)
    return Queries(undo_turn(found[there], view), features[there], best[there], certainty[there])


def describe_masks(logits: Tensor, pixel_mask: Tensor) -> Tensor:
    """Numbers of each mask (Q, 10), from its logits (Q, h, w): size, box, how sure and how sharp it is.

    The expected IoU is the sum of probabilities inside the mask over that of all pixels outside plus the mask's area.
    """
    real = F.interpolate(pixel_mask[None, None].float(), size=logits.shape[1:])[0, 0]
    chance = logits.float().sigmoid() * real
    inside = chance > 0.5
    area, soft = inside.sum((1, 2)).float(), chance.sum((1, 2))
    sure = (chance * inside).sum((1, 2))
    unsure = ((chance > 0.3) & (chance < 0.7)).sum((1, 2))
    tall, wide = inside.any(2).sum(1).float(), inside.any(1).sum(1).float()
    edge = (inside[:, 1:] != inside[:, :-1]).sum((1, 2)) + (inside[:, :, 1:] != inside[:, :, :-1]).sum((1, 2))
    least = area.clamp(min=1)
    columns = [sure / least, sure / (area + soft - sure).clamp(min=1e-3), unsure / least, soft / least]
    columns += [least.log(), (tall + 1).log(), (wide + 1).log(), least / (tall * wide).clamp(min=1)]
    columns += [edge / least.sqrt(), (unsure / edge.clamp(min=1)).clamp(max=10)]  # the last: width of the soft edge
    return torch.stack(columns, 1)


def rank(predictor: Predictor, data: CocoData, view: Turn) -> Ranked:
    """The results of all images of `data` that fit on the canvas, seen in one view."""
    settings = predictor.fill(InferenceSettings(0.0))
    entries: list[dict[str, object]] = []
    parts: list[Queries] = []
    ids: list[int] = []
    for record in data.images:
        pixels = read_image(record.path, predictor.processor.read_options)
        prepared = predictor.ready(ImageReader.of(pixels), settings)
        if not isinstance(prepared, Prepared):
            continue
        parts.append(read_queries(predictor, prepared, view))
        found = dataclasses.replace(parts[-1].found, categories=predictor.categories)
        entries += found.to_coco(record.id)
        ids.append(record.id)
    probability = torch.cat([one.probability for one in parts]).double().numpy()
    certainty = np.concatenate([one.certainty for one in parts])
    for entry, score in zip(entries, (probability * certainty).tolist(), strict=True):
        entry["score"] = score
    truth = read_ground_truth(data.annotations, ids)
    overlaps = overlaps_of(truth, read_results(entries, truth), len(entries))
    row, features = overlaps.result_row, torch.cat([one.features for one in parts])
    images = np.array(sorted(truth.sizes))
    left_out = len(data.images) - len(ids)
    return Ranked(overlaps, images, features[row].float(), probability[row], certainty[row], left_out)


def rescore(overlaps: Overlaps, scores: Floats) -> Overlaps:
    """The same results with other scores (D,)."""
    order = np.lexsort((-scores, overlaps.result_image))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    pair = place[overlaps.pair_result]
    by = np.lexsort((overlaps.pair_object, pair))
    return dataclasses.replace(
        overlaps,
        score=scores[order],
        **{
            name: getattr(overlaps, name)[order]
            for name in ("result_row", "result_image", "result_category", "result_area")
        },
        pair_result=pair[by],
        pair_object=overlaps.pair_object[by],
        pair_iou=overlaps.pair_iou[by],
    )


def fit_quality(features: Tensor, target: Tensor, seed: int = 0) -> nn.Module:
    """A perceptron from features (D, F) to the IoU (D,): binary cross entropy with soft targets, some seconds."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm1d(features.shape[1], momentum=None, affine=False)  # its statistics are those of all features
    norm(features)
    net = nn.Sequential(norm.eval(), nn.Linear(features.shape[1], WIDTH), nn.ReLU(), nn.Dropout(0.2))
    net.extend([nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.2), nn.Linear(WIDTH, 1)])
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.05)
    batches = EPOCHS * -(-len(features) // BATCH)
    for step in range(batches):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / batches)
        some = torch.randint(len(features), (BATCH,))
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(net(features[some])[:, 0], target[some]).backward()
        optimizer.step()
    return net.eval()


@torch.no_grad()
def apply(net: nn.Module, features: Tensor) -> Floats:
    """The IoU that a head predicts (D,)."""
    return np.asarray(net(features)[:, 0].double().sigmoid().numpy())


def predicted(fit: Sequence[Ranked], scored: Ranked, target: str) -> tuple[Floats, Floats]:
    """The head's numbers of the first of `fit`, each half by a head that was fitted to the other, and of `scored`."""
    wanted = [torch.from_numpy(getattr(one, target)).float() for one in fit]
    teaches = [torch.from_numpy(one.probability >= LEAST_CLASS) for one in fit]
    half = [torch.from_numpy(np.searchsorted(one.images, one.overlaps.result_image) % 2) for one in fit]

    def fitted(of: Sequence[Tensor]) -> nn.Module:
        rows = torch.cat([one.features[chosen] for one, chosen in zip(fit, of, strict=True)])
        return fit_quality(rows, torch.cat([own[chosen] for own, chosen in zip(wanted, of, strict=True)]))

    own = np.zeros(len(wanted[0]))
    for side in (0, 1):
        net = fitted([use & (part != side) for use, part in zip(teaches, half, strict=True)])
        mine = half[0].numpy() == side
        own[mine] = apply(net, fit[0].features[half[0] == side])
    return own, apply(fitted(teaches), scored.features)


def rankings(fit: Sequence[Ranked], scored: Ranked, *, head: bool) -> Iterator[tuple[str, Floats | None, Floats]]:
    """Name, scores of the first of `fit` (None: nothing to calibrate), scores of `scored`; the model's own first."""
    first = fit[0]
    yield "the model's own: class x mask certainty", first.overlaps.score, scored.overlaps.score
    yield "class alone", first.probability, scored.probability
    if not head:
        return
    yield "oracle: true IoU", None, scored.best_iou
    yield "oracle: own score x true IoU", None, scored.overlaps.score * scored.best_iou
    yield "oracle: true IoU of what finds an object, else 0", None, scored.found_iou
    own, theirs = predicted(fit, scored, "best_iou")
    yield "head: class x predicted IoU", first.probability * own, scored.probability * theirs
    yield "head: own score x predicted IoU", first.overlaps.score * own, scored.overlaps.score * theirs
    own, theirs = predicted(fit, scored, "found_iou")
    yield "head: predicted IoU of what finds an object", own, theirs
    mixed = [
        (score * quality) ** 0.5 for score, quality in ((first.overlaps.score, own), (scored.overlaps.score, theirs))
    ]
    yield "head: geometric mean of that and the own score", mixed[0], mixed[1]


def calibration_errors(fit: Overlaps, scored: Overlaps) -> tuple[float, float]:
    """ECE at IoU 0.5 as it is, and after the Platt scaling that is fitted to `fit`."""
    matches = match_overlaps(scored, 0.5)
    counted = ~matches.ignored
    score, right = scored.score[counted], matches.right[counted]
    numbers = choose_calibration(fit, match_overlaps(fit, 0.5))
    platt = ScoreCalibration(numbers["scale"], numbers["shift"])
    mapped = float("nan") if platt == UNCHANGED else reliability_of(platt.apply(score), right)[0]
    return reliability_of(score, right)[0], mapped


def measure(fit: Sequence[Ranked], scored: Ranked, classes: int, *, head: bool) -> Iterator[Row]:
    """A row for each ranking of the results of `scored`; intervals are those of a paired bootstrap over the images."""
    drawn = np.concatenate([np.ones((1, len(scored.images)), np.int32), draw_resamples(len(scored.images), SAMPLES, 0)])
    plain: Floats | None = None
    for name, own, scores in rankings(fit, scored, head=head):
        new = rescore(scored.overlaps, np.clip(scores, 0, 1))
        values, _ = weighted_metrics(new, scored.images, classes, drawn, with_sizes=False)
        plain = values["AP"] if plain is None else plain
        row: Row = {"ranking": name, **{key: float(one[0]) for key, one in values.items()}}
        gain = values["AP"] - plain
        low, high = np.quantile(gain[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        row |= {"gain": float(gain[0]), "gain_low": float(low), "gain_high": float(high)}
        if own is not None:
            row["ece"], row["ece_platt"] = calibration_errors(rescore(fit[0].overlaps, np.clip(own, 0, 1)), new)
        yield row


class IouAwareCriterion(Mask2FormerCriterion):
    """The target of a matched query is the IoU of its mask for the class, the rest for "no object"."""

    def match(
        self, predictions: QueryPredictions, mask_labels: list[Tensor], class_labels: list[Tensor], places: Places
    ) -> Matches:
        """As published; the IoU of the matched masks is kept for `class_losses`."""
        matches = super().match(predictions, mask_labels, class_labels, places)
        with torch.no_grad():
            features = predictions.mask_features
            self.quality = torch.cat(
                [
                    pair_iou(predictions.mask_embeddings[layer, image], features[image], mask_labels[image], *pairs)
                    for layer, images in enumerate(matches)
                    for image, pairs in enumerate(images)
                ]
            )
        return matches

    def class_losses(self, class_logits: Tensor, class_labels: list[Tensor], matches: Matches) -> Tensor:
        """Cross entropy with soft targets, summed over the queries of each layer, (T,)."""
        target = class_logits.new_zeros(class_logits.shape)
        target[..., -1] = self.config.no_object_weight
        start = 0
        for layer, images in enumerate(matches):
            for image, (own, instances) in enumerate(images):
                quality = self.quality[start : start + len(own)]
                start += len(own)
                target[layer, image, own, -1] = 1 - quality
                target[layer, image, own, class_labels[image][instances]] = quality
        return -(target * class_logits.log_softmax(-1)).sum((1, 2, 3))


def pair_iou(embeddings: Tensor, features: Tensor, masks: Tensor, queries: Tensor, instances: Tensor) -> Tensor:
    """IoU of the masks of some queries with their instances, at the stride of the features, (M,)."""
    drawn = torch.einsum("me,ehw->mhw", embeddings[queries], features) > 0
    wanted = coverage([masks[instances]], *features.shape[1:])[0] > 0.5 if len(instances) else drawn
    both, either = (drawn & wanted).sum((1, 2)), (drawn | wanted).sum((1, 2))
    return both / either.clamp(min=1)


def take(data: CocoData, every: int) -> CocoData:
    return dataclasses.replace(data, images=data.images[::every])


def run_head(args: argparse.Namespace) -> None:
    model, processor = load_network(args.model, "cpu")
    predictor = Predictor(model, processor)
    source = take(read_coco(find_splits(args.fit or args.data)[0]["train"]), args.fit_every)
    fit = [rank(predictor, source, view) for view in VIEWS[args.views]]
    scored = rank(predictor, read_coco(find_splits(args.data)[0]["valid"]), Turn())
    print(
        f"{len(scored.images)} images scored, {scored.left_out} larger than the canvas left out; fitted to "
        f"{len(fit[0].images)} images in {len(fit)} views, {fit[0].left_out} left out"
    )
    told = {"data": args.name or args.data.name, "images": len(scored.images), "fit_images": len(fit[0].images)}
    for row in measure(fit, scored, model.config.num_labels, head=not args.plain):
        print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}))
        if args.output:
            keep(args.output, {**told, "views": args.views, "model": args.label, **row})


def run_tune(args: argparse.Namespace) -> None:
    train = read_coco(find_splits(args.data)[0]["train"])
    if args.hold_back:
        kept = [place for place in range(len(train.images)) if place % args.hold_back]
        train = dataclasses.replace(train, images=train.images.take(kept))
    given = {"output_dir": "unused", "dataset_name": str(args.data), "seed": args.seed, "head": str(args.model)}
    options = dict(word.split("=", 1) for word in args.set)
    config, _ = load_config(args.config, given | options)
    config = resolve_auto(config, train)
    criterion = IouAwareCriterion if args.iou_aware else Mask2FormerCriterion
    for spent, model, processor in train_until("ours", config, train, "images", [args.images], "cpu", criterion):
        model.save_pretrained(args.tuned)
        processor.save_pretrained(args.tuned)
        print(json.dumps(spent))


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    head, tune = verbs.add_parser("head"), verbs.add_parser("tune")
    for verb, function in ((head, run_head), (tune, run_tune)):
        verb.set_defaults(run=function)
        verb.add_argument("model", type=Path)
        verb.add_argument("--data", type=Path, required=True, help="the folder of a data set")
    head.add_argument("--fit", type=Path, help="its training images fit the head and the scaling; default: --data")
    head.add_argument("--fit-every", type=int, default=1, help="every so many of them")
    head.add_argument("--views", choices=list(VIEWS), default="none", help="in which they are seen")
    head.add_argument("--plain", action="store_true", help="only the model's own ranking")
    head.add_argument("--name", help="of the data, in the rows")
    head.add_argument("--label", default="as trained", help="of the model, in the rows")
    head.add_argument("--output", type=Path, help="add the rows to this JSON file")
    tune.add_argument("tuned", type=Path, help="the folder of the tuned model")
    tune.add_argument("--images", type=int, default=400, help="to be seen")
    tune.add_argument("--hold-back", type=int, default=0, help="every so many training images are left out")
    tune.add_argument("--seed", type=int, default=0)
    tune.add_argument("--iou-aware", action="store_true")
    tune.add_argument("--config", type=Path, default=RECIPE, help="recipe")
    tune.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="options that differ from the recipe")
    args = parser.parse_args(argv)
    keep_freed_memory()
    args.run(args)


if __name__ == "__main__":
    main(sys.argv[1:])
