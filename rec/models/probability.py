"""From the scores of one list to probabilities: that a candidate is the next choice, given that one of the list is.

The softmax of a list has log-odds l_i = s_i / T - log sum_{j != i} exp(s_j / T). Temperature T (Guo et al., "On
Calibration of Modern Neural Networks", ICML 2017) says how sure the scores are, bias b (Platt 1999) how often a
candidate is chosen at all:

    p_i = sigmoid(l_i + b)

T = 1, b = 0 is the softmax itself, and for any T > 0 and b the order is that of the scores. `rec.train.calibrate` fits
both.
"""

import torch
from torch import Tensor

SURE = -1e-12
"""Largest log-probability of the softmax whose odds are told apart: a list of one candidate has this one's."""


def log_odds(scores: Tensor, temperature: Tensor, bias: Tensor) -> Tensor:
    """l + b, float64 of the shape of scores float[..., K]; a list shorter than K is filled with very low scores."""
    log_chance = torch.log_softmax(scores.double() / temperature.double(), dim=-1).clamp(max=SURE)
    return log_chance - torch.log(-torch.expm1(log_chance)) + bias.double()
