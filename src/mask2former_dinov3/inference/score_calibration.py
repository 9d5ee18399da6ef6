"""Calibrated scores: a result with a score of 0.8 is right in 80 of 100 cases, as far as an evaluation could tell."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from ..data.array_types import Floats


class ScoreCalibration(NamedTuple):
    """The map from scores of the network to reported scores: sigmoid(scale * logit(score) + shift).

    It rises, so the order of results and their AP stay as they are. Scaling of probabilities with two parameters:
    Platt 1999, "Probabilistic Outputs for Support Vector Machines"; with scale alone it is the temperature scaling of
    arXiv:1706.04599, section 4.2, which leaves 0.5 where it is and so cannot fix scores that are all too high.
    """

    scale: float = 1.0
    shift: float = 0.0

    def apply(self, scores: npt.ArrayLike) -> Floats:
        """Reported scores of network scores, any shape, in 0..1; 0 and 1 stay."""
        given = np.asarray(scores, dtype=np.float64)
        return given if self == UNCHANGED else np.asarray(expit(self.scale * logit(given) + self.shift))

    def undo(self, scores: npt.ArrayLike) -> Floats:
        """Network scores of reported scores."""
        given = np.asarray(scores, dtype=np.float64)
        return given if self == UNCHANGED else np.asarray(expit((logit(given) - self.shift) / self.scale))

    def then(self, other: ScoreCalibration) -> ScoreCalibration:
        """This map, and `other` of what comes out of it."""
        return ScoreCalibration(self.scale * other.scale, self.shift * other.scale + other.shift)


UNCHANGED = ScoreCalibration()
