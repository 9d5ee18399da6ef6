"""The fit of a score calibration to an evaluation, and whether it holds on images that it has not seen.

D results, I images.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit, xlog1py, xlogy

from ..data.array_types import Bools, Floats, Ints
from ..data.coco_types import CalibrationNumbers, CocoResult
from ..inference.score_calibration import UNCHANGED, ScoreCalibration
from .bootstrap import LEVEL
from .calibration import reliability_of
from .matches import Overlaps, ResultMatches
from .operating_point import FEWEST_IMAGES, RESAMPLES, draw_weights

FOLDS = 5  # parts of the images; each is judged by the map that the others give
FEWEST_OF_EACH = 20  # right results, and wrong ones, below which nothing is fitted
_SMALLEST = 1e-7  # scores nearer to 0 or 1 count as this near


def choose_calibration(overlaps: Overlaps, matches: ResultMatches) -> CalibrationNumbers:
    """The map of scores with the highest likelihood of what is right and wrong, judged by cross-validation.

    It helps if the mean loss (negative log-likelihood) of the results, with the map of other images, is lower than
    without a map in 97.5 % of the resamples of the images. Results in crowd regions do not count. Nothing is fitted to
    few images or results, nor to scores outside of 0..1.
    """
    counted = ~matches.ignored
    score = np.clip(overlaps.score[counted], _SMALLEST, 1 - _SMALLEST)
    right = matches.right[counted]
    images, image = np.unique(overlaps.result_image[counted], return_inverse=True)
    before = reliability_of(overlaps.score[counted], right)[0]
    nothing = CalibrationNumbers(
        scale=1.0, shift=0.0, error=before, mapped=before, helps=False, why="", applied=False, before=None
    )
    hits, misses = int(right.sum()), int((~right).sum())
    if bool(((overlaps.score < 0) | (overlaps.score > 1)).any()):
        return {**nothing, "why": "they are not in 0 to 1"}
    if len(images) < FEWEST_IMAGES:
        return {**nothing, "why": f"{len(images)} images are too few to calibrate them; {FEWEST_IMAGES} are the least"}
    if min(hits, misses) < FEWEST_OF_EACH:
        few = f"{hits} right and {misses} wrong results are too few to calibrate them; {FEWEST_OF_EACH} are the least"
        return {**nothing, "why": few}
    mapped = _map_by_others(score, right, image, len(images))
    gain = np.bincount(image, _loss(score, right) - _loss(mapped, right), len(images))
    count = np.bincount(image, minlength=len(images))
    gains = np.concatenate([(drawn @ gain) / (drawn @ count) for drawn in draw_weights(len(images), RESAMPLES, 0)])
    found, helps = _fit(score, right), bool(np.quantile(gains, (1 - LEVEL) / 2) > 0)
    return CalibrationNumbers(
        scale=round(found.scale, 6),
        shift=round(found.shift, 6),
        error=before,
        mapped=reliability_of(mapped, right)[0],
        helps=helps,
        why="" if helps else "calibration does not make them better on other images, beyond noise",
        applied=False,
        before=None,
    )


def calibration_in(numbers: CalibrationNumbers | None) -> ScoreCalibration:
    """The map of an evaluation, if it helps. numbers: None in evaluations of earlier versions."""
    return ScoreCalibration(numbers["scale"], numbers["shift"]) if numbers and numbers["helps"] else UNCHANGED


def calibrate_results(results: list[CocoResult], numbers: CalibrationNumbers | None) -> list[CocoResult]:
    """Results with the scores after the map that was applied in their evaluation; as they are where none was."""
    if numbers is None or not numbers["applied"]:
        return results
    scores = calibration_in(numbers).apply([result["score"] for result in results]).astype(np.float32)
    return [CocoResult(**{**result, "score": score}) for result, score in zip(results, scores.tolist(), strict=True)]


def _map_by_others(score: Floats, right: Bools, image: Ints, images: int) -> Floats:
    """Scores (D,) after the map that was fitted on the other parts of the images. image (D,): 0..I-1."""
    part = np.random.default_rng(0).permutation(images)[image] % FOLDS
    mapped = score.copy()
    for number in range(FOLDS):
        mine = part == number
        mapped[mine] = _fit(score[~mine], right[~mine]).apply(score[mine])
    return mapped


def _fit(score: Floats, right: Bools) -> ScoreCalibration:
    """The map of the highest likelihood; its targets are a little inside of 0 and 1, as in Platt 1999, section 2.2.

    So it stays finite where the scores of right and wrong results do not overlap. The scale stays above 0.
    """
    logits = logit(score)
    hits = int(right.sum())
    target = np.where(right, (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2))

    def loss(parameters: Floats) -> tuple[float, Floats]:
        scale = np.exp(parameters[0])
        mapped = np.clip(expit(scale * logits + parameters[1]), 1e-12, 1 - 1e-12)
        slope = mapped - target
        value = -(xlogy(target, mapped) + xlog1py(1 - target, -mapped)).mean()
        return float(value), np.array([(slope * logits).mean() * scale, slope.mean()])

    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-5, 5), (-30, 30)])
    return ScoreCalibration(float(np.exp(found.x[0])), float(found.x[1]))


def _loss(score: Floats, right: Bools) -> Floats:
    """The negative log-likelihood of each result (D,)."""
    chance = np.clip(np.where(right, score, 1 - score), 1e-12, 1.0)
    return np.asarray(-np.log(chance))
