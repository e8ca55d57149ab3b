"""Calibration of a trained ranker on requests that it did not train on, and what its probabilities are worth there.

Temperature and bias of `rec.models.probability` minimise the logloss of all candidates. The figures are of the requests
that both were fitted on: two numbers on hundreds of lists.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from rec.evaluate import calibration
from rec.evaluate.classes import auc, gauc, logloss
from rec.models.probability import log_odds
from rec.train.listwise import rectangle

LOWEST = -1e9
"""Score of what only fills a row: it has no share in a softmax, and unlike minus infinity it has a gradient."""
STEPS = 100
DIGITS = 5


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of B requests, one after the other."""

    scores: NDArray[np.float32]
    """float32[T]"""
    counts: NDArray[np.int64]
    """int64[B] candidates of each."""
    labels: NDArray[np.int64]
    """int64[B] position of the target within its request."""

    def probabilities(self, temperature: float = 1.0, bias: float = 0.0) -> NDArray[np.float64]:
        """float64[T] of every candidate."""
        rows = rectangle(torch.from_numpy(self.scores).double(), torch.from_numpy(self.counts), LOWEST)
        odds = log_odds(rows, torch.tensor([temperature]), torch.tensor([bias]))
        real = torch.arange(rows.shape[1]) < torch.from_numpy(self.counts)[:, None]
        found: NDArray[np.float64] = torch.sigmoid(odds)[real].numpy()
        return found

    @property
    def targets(self) -> NDArray[np.bool_]:
        """bool[T] which candidate is its request's target."""
        found = np.zeros(len(self.scores), bool)
        found[np.cumsum(self.counts) - self.counts + self.labels] = True
        return found


def fit(given: Scored) -> tuple[float, float]:
    """Temperature, above 0, and bias; 1 and 0 where nothing better was found."""
    counts, target = torch.from_numpy(given.counts), torch.from_numpy(given.targets).double()
    rows = rectangle(torch.from_numpy(given.scores).double(), counts, LOWEST)
    real = torch.arange(rows.shape[1]) < counts[:, None]
    log_temperature = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([log_temperature, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(log_odds(rows, log_temperature.exp(), bias)[real], target)

    def closure() -> torch.Tensor:
        search.zero_grad()
        value = loss()
        value.backward()
        return value

    before = loss().item()
    search.step(closure)
    return (log_temperature.exp().item(), bias.item()) if loss().item() < before else (1.0, 0.0)


def figures(given: Scored, temperature: float, bias: float) -> dict[str, Any]:
    """AUC of the probabilities, GAUC, and logloss and ECE without calibration (`before`) and with it (`after`)."""
    targets, chances = given.targets, given.probabilities(temperature, bias)
    both = {"before": given.probabilities(), "after": chances}
    grouped = gauc(given.scores, targets, given.counts)
    return {
        "auc": _rounded(auc(chances, targets)),
        "gauc": _rounded(grouped.value),
        "gauc_skipped": grouped.skipped,
        "temperature": round(temperature, DIGITS),
        "bias": round(bias, DIGITS),
        "logloss": {name: _rounded(logloss(values, targets)) for name, values in both.items()},
        "ece": {name: _rounded(calibration.ece(values, targets)) for name, values in both.items()},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
