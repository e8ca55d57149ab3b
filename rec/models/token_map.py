"""Rows for RE tokens that a tower was not trained on: a linear map of what the text encoder says of their products.

A token's vector is the mean of the frozen encoder's vectors of the texts of the products that carry it. The bare word
tells little: in a tower whose rows started at nearly zero its vector explains 3 % of their variance, left out one by
one, the titles 37 % (8,000 H&M articles).

The map is ridge regression from the trained tokens' vectors to their rows, which started from these vectors, too
(`rec.train.text_start`), less what was drawn of the rows, which would only be noise to it. How strong the ridge is,
leave-one-out error decides, which the singular values give without fitting again. The same tokens and rows give the
same map: nothing is drawn. `rec.evaluate.zero_shot` measures it.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from rec.errors import ArtifactError
from rec.models.item_inputs import ItemInputs
from rec.models.item_tower import ItemTower
from rec.vocab.re import ReVocabulary
from rec.vocab.std import StdVocabulary

FloatArray = NDArray[np.float32]

STRENGTHS = np.logspace(-3, 2, 21)
"""Ridges tried, in units of the mean squared singular value."""


@dataclass(frozen=True, slots=True)
class TokenMap:
    """x → row + (x - text) @ weight."""

    text: FloatArray  # float32[w], mean of the tokens' vectors
    row: FloatArray  # float32[d], mean of the rows
    weight: FloatArray  # float32[w, d]

    def __call__(self, vectors: FloatArray) -> FloatArray:
        """Rows float32[n, d] of tokens whose vectors are float32[n, w]."""
        made: FloatArray = (self.row + (vectors - self.text) @ self.weight).astype(np.float32)
        return made


def fit(vectors: FloatArray, rows: FloatArray) -> TokenMap:
    """The map of n >= 1 trained tokens: `vectors` float32[n, w] of their texts, `rows` float32[n, d] of the table.

    One token, or tokens whose vectors are all alike, give the mean row for every token.
    """
    text, row = vectors.mean(0, dtype=np.float64), rows.mean(0, dtype=np.float64)
    u, s, vt = np.linalg.svd(vectors - text, full_matrices=False)  # [n, r], [r], [r, w]
    kept = s > 1e-6 * max(float(s.max(initial=0.0)), 1.0)
    if not kept.any():
        return _float(text, row, np.zeros((vectors.shape[1], rows.shape[1])))
    u, s, vt = u[:, kept], s[kept], vt[kept]
    centred = rows - row  # [n, d]
    told = u.T @ centred  # [r, d]
    errors = []
    for ridge in STRENGTHS * np.mean(s**2):
        shrunk = s**2 / (s**2 + ridge)  # [r]
        leverage = 1 / len(rows) + u**2 @ shrunk  # [n], the share of a row's fit that is its own
        left = (centred - u @ (shrunk[:, None] * told)) / np.maximum(1 - leverage, 1e-6)[:, None]
        errors.append(float(np.mean(left**2)))
    ridge = STRENGTHS[int(np.argmin(errors))] * np.mean(s**2)
    return _float(text, row, vt.T @ ((s / (s**2 + ridge))[:, None] * told))


def grown(tower: ItemTower, std: StdVocabulary, re: ReVocabulary, items: ItemInputs) -> ItemTower:
    """`tower`, or where the vocabularies have grown since its training, one with rows for what came, in eval mode.

    That they have only grown is for the caller to know (`rec.models.known_ids`); here they are counted.
    A new RE token has the row mapped from the texts of the `items` that carry it, a new STD value the row of its
    key's unknown. All else is as it was.
    """
    shape = replace(tower.shape, num_std_ids=std.num_ids, num_re_tokens=re.num_tokens)
    if shape == tower.shape:
        return tower
    if shape.num_std_ids < tower.shape.num_std_ids or shape.num_re_tokens < tower.shape.num_re_tokens:
        raise ArtifactError(
            f"the item tower knows {tower.shape.num_re_tokens} RE and {tower.shape.num_std_ids} STD ids, the "
            f"vocabulary {re.num_tokens} and {std.num_ids}: it is of another vocabulary, run "
            "`python jobs/pretrain.py` again"
        )
    weights = tower.state_dict()
    start = weights["re_start"]
    weights["re_table.weight"] = _with_tokens(weights["re_table.weight"], start, re, items)
    weights["re_start"] = torch.cat([start, start.new_zeros(re.num_tokens - len(start), start.shape[1])])
    weights["std_table.weight"] = _with_values(weights["std_table.weight"], std)
    made = ItemTower(shape)
    made.load_state_dict(weights)
    return made.eval()


def _with_tokens(rows: torch.Tensor, start: torch.Tensor, re: ReVocabulary, items: ItemInputs) -> torch.Tensor:
    """The RE table with mapped rows for its newest tokens; those of the unknown token where none was trained."""
    first = re.num_tokens - len(re.tokens)
    if len(rows) == re.num_tokens:
        return rows
    if len(rows) == first:
        return torch.cat([rows, rows[-1:].expand(len(re.tokens), -1)])
    vectors, carried = items.texts_of_tokens(re.num_tokens)
    trained = np.arange(first, len(rows))
    if carried[trained].any():  # one that no item carries any more would only be noise
        trained = trained[carried[trained] > 0]
    mapped = fit(vectors[trained], (rows - start).numpy()[trained])(vectors[len(rows) :])
    return torch.cat([rows, torch.from_numpy(mapped)])


def _with_values(rows: torch.Tensor, std: StdVocabulary) -> torch.Tensor:
    """The STD table with the row of their key's unknown for its newest values."""
    known = {std.id_of(key, value): std.unknown_id(key) for key in std.keys for value in std.values(key)}
    new = [known[id] for id in range(len(rows), std.num_ids)]
    return torch.cat([rows, rows[new]])


def _float(text: NDArray[np.float64], row: NDArray[np.float64], weight: NDArray[np.float64]) -> TokenMap:
    return TokenMap(text.astype(np.float32), row.astype(np.float32), weight.astype(np.float32))
