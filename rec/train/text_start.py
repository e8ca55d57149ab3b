"""Where the item tower starts: title, RE and STD rows in one space, that of the products' texts, whitened.

A text's vector is the mean of its token states. Whitening turns the vectors of a catalogue into ones without the
directions that all of them share, so that their inner products tell them apart (Su, Cao, Liu, Ou, "Whitening Sentence
Representations for Better Semantics and Faster Retrieval", 2021, arXiv 2103.15316):

    y = (t / |t| - mean) U (eigenvalues + their sum / n)^(-1/2) V

What is added is the noise that n products leave in a direction: few products, whitened without it, would each be as
far from every other as they can be. V keeps d directions of y: those of most variance, or, where pairs of products that
the same users chose are given, those in which partners are most alike. They are the first eigenvectors of

    (m E[(y_i - c)(y_j - c)'] + PRIOR diag(eigenvalues / the largest)) / (m + PRIOR)

over m pairs (i, j) and their symmetric ones, c the mean of what is in pairs, without which what is popular would be
alike: the covariance of partners where the catalogue is white, drawn to the directions of most variance the fewer the
pairs are. It is a map of texts and learns nothing of single products, so it holds for
those that nobody chose yet. To the drawn row of an id the mean y of the products that carry it is added, the
less of it the fewer they are; what was drawn tells ids apart whose products are alike.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from rec.errors import ArtifactError
from rec.models.item_inputs import IntArray, ItemInputs
from rec.models.item_tower import ItemTower, present_mean
from rec.train.copurchase import Pairs
from rec.train.eigen import leading

SAMPLE = 50_000
"""Products, evenly spread over the catalogue, whose texts give the covariance."""
BLOCK = 256
PRIOR = 10_000
"""Pairs that texts' variance counts as."""
PAIRS_AT_ONCE = 65_536
RARE = 10
"""Of an id with n products, n / (n + RARE) of their mean is added to its row."""

Floats = NDArray[np.float32]


@torch.no_grad()
def apply(tower: ItemTower, items: ItemInputs, device: torch.device, pairs: Pairs | None = None) -> None:
    """Let the tables and the title's projection of an untrained tower on the CPU start from the texts of `items`.

    With `pairs` in the directions in which products that the same users chose are alike. A tower that reads no titles
    stays as it was drawn, and so does one whose texts all say the same, or nothing.
    `device` is where layers of the text encoder that the tower holds are run. Raises ArtifactError where what the
    encoder says of a text is no finite number: each product that shares an id with it would start from none.
    """
    if not tower.shape.reads_titles:
        return
    vectors = _final_means(tower, items, device)  # float32[D, w]
    lengths = np.linalg.norm(vectors, axis=1)
    unread = np.flatnonzero(~np.isfinite(lengths[items.text_of_item]))
    if len(unread):
        row = int(unread[0])
        raise ArtifactError(
            f"the text states of product {row} of tensors, counted from 0, hold numbers that are not finite: look at "
            "its text, or encode with another text.encoder (`python jobs/encode.py`)"
        )
    said = lengths > 0
    carriers = np.flatnonzero(said[items.text_of_item])
    if len(carriers) == 0:
        return
    sample = carriers[np.linspace(0, len(carriers) - 1, min(SAMPLE, len(carriers))).astype(np.int64)]
    vectors /= np.maximum(lengths, 1e-12)[:, None]  # in place: large catalogues have a gibibyte here
    width = tower.shape.width
    found = whitening(vectors[items.text_of_item[sample]], width if pairs is None else items.text_width)
    if found is None:
        return
    centre, weight = found
    if pairs is not None:
        weight = weight @ _chosen(vectors, items, pairs, found, width)
    placed = (vectors @ weight - centre @ weight) * said[:, None].astype(np.float32)  # float32[D, d]
    length = float(lengths[items.text_of_item[sample]].mean())
    tower.title.weight.copy_(torch.from_numpy(weight.T / length))
    tower.title.bias.copy_(torch.from_numpy(-centre @ weight))
    tower.std_table.weight.add_(_added(*items.means_by_id("std", tower.shape.num_std_ids, placed)))
    tower.re_table.weight.add_(_added(*items.means_by_id("re", tower.shape.num_re_tokens, placed)))


def whitening(vectors: Floats, width: int) -> tuple[Floats, Floats] | None:
    """(mean float32[w], weight float32[w, width]) of `vectors` float32[n, w]; None where they are all alike.

    Where there are fewer than `width` directions of variance, the last columns are zero.
    """
    centre = vectors.mean(0, dtype=np.float64)
    centred = vectors - centre
    values, directions = np.linalg.eigh(centred.T @ centred / len(vectors))  # ascending
    noise = values.sum() / len(vectors)
    values, directions = leading(values, directions, width)
    if values.max(initial=0.0) < 1e-12:
        return None
    told = values > 1e-9 * values.max()  # along the others the texts do not differ, but those of later products may
    directions *= told
    weight = np.zeros((vectors.shape[1], width), dtype=np.float32)
    weight[:, : len(values)] = directions / np.sqrt(np.maximum(values, 0.0) + noise)
    return centre.astype(np.float32), weight


def _chosen(vectors: Floats, items: ItemInputs, pairs: Pairs, found: tuple[Floats, Floats], width: int) -> Floats:
    """V float32[w, width] for texts `vectors` float32[D, w] and what whitens them whole; see the module."""
    centre, weight = found
    sides = [items.text_of_item[side] for side in (pairs.first, pairs.second)]  # int64[P] texts
    there = np.einsum("dw,dw->d", vectors, vectors) > 0  # bool[D]
    said = np.flatnonzero(there[sides[0]] & there[sides[1]])
    share = (pairs.share[said] / max(pairs.share[said].sum(), 1e-12) * len(said)).astype(np.float32)
    spread, mean = np.zeros((len(centre),) * 2), np.zeros(len(centre))
    for start in range(0, len(said), PAIRS_AT_ONCE):
        part = said[start : start + PAIRS_AT_ONCE]
        first, second = (vectors[side[part]] - centre for side in sides)
        weights = share[start : start + PAIRS_AT_ONCE]
        spread += (first * weights[:, None]).T @ second
        mean += weights @ (first + second) / 2 / len(said)
    together = weight.T @ ((spread + spread.T) / 2 - len(said) * np.outer(mean, mean)) @ weight
    lengths = (weight.astype(np.float64) ** 2).sum(0)  # 1 / eigenvalue; 0 where none was told
    variance = np.where(lengths > 0, lengths[0] / np.maximum(lengths, lengths[0]), 0.0)
    _, directions = leading(*np.linalg.eigh((together + PRIOR * np.diag(variance)) / (len(said) + PRIOR)), width)
    chosen = np.zeros((len(centre), width), np.float32)
    chosen[:, : directions.shape[1]] = directions
    return chosen


def _added(means: Floats, carried: IntArray) -> torch.Tensor:
    """float32[count, d] of ids with these means and numbers of products; padding is carried by none and stays zero."""
    return torch.from_numpy(means * (carried / (carried + RARE))[:, None].astype(np.float32))


def _final_means(tower: ItemTower, items: ItemInputs, device: torch.device) -> Floats:
    """Mean of the encoder's last states of each text, float32[D, w]; blank is zero."""
    if tower.text is None or tower.shape.layers_above_states == 0:
        return items.text_means()
    means = np.zeros((int(items.text_of_item.max(initial=-1)) + 1, items.text_width), dtype=np.float32)
    texts, first = np.unique(items.text_of_item, return_index=True)
    training = tower.text.training
    tower.text.eval().to(device)
    for start in range(0, len(texts), BLOCK):
        batch = items.batch(first[start : start + BLOCK]).to(device)
        states = tower.text(batch.title, batch.title_mask)  # float32[B, T, w]
        means[texts[start : start + BLOCK]] = present_mean(states, batch.title_mask).cpu().numpy()
    tower.text.train(training).cpu()
    return means
