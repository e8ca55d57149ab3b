"""Zero-shot tokens: is the mapped row of an RE token near the one that training would have given it?

On AI Hub garments with RE words: a tower is trained without a fifth of the tokens, and `rec.models.token_map` gives
them rows. Then their rows alone are trained, from zero, the tower fixed, on the garments that carry them: the
later-trained rows. Compared is the cosine to them of the mapped row, of the mean of the trained rows and of a random
one. On all 6,425 garments (60 s): mapped .116, mean .113, random -.017; mapped - mean .003 [-.005, .011]. The map is no
better than the mean there: twins are told apart by any rows that differ, so a row holds little of its word's meaning.
Neither smaller rows at the start nor rows that start from the words' vectors changed that.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from rec.config import ItemTower as Options
from rec.evaluate.bootstrap import interval, resampled_means
from rec.models import token_map
from rec.models.item_inputs import IntArray, ItemInputs, Ragged
from rec.models.item_tower import ItemTower, Shape
from rec.models.text_encoder import TextEncoder
from rec.train.item import contrast
from rec.vocab.re import ReVocabulary, split_words
from rec.vocab.std import StdVocabulary

RE_KEYS = {
    "category": "category",
    "season": "season",
    "fit.vibe": "fit",
    "silhouette.shape": "silhouette",
    "length.feeling": "length",
    "fabric.feature": "fabric",
    "structural.geometry": "detail",
}
"""Name in `re_json` → key."""
MIN_COUNT = 5
"""Garments that carry a token; a rarer one has no row to speak of."""
HELD_OUT = 0.2
WIDTH, HEADS = 64, 4
EPOCHS, BATCH, RATE = 8, 256, 2e-3
Pairs = list[tuple[str, str]]


def figures(table: pa.Table, encoder: TextEncoder, options: Options, seed: int, resamples: int) -> dict[str, Any]:
    """Cosines to the later-trained rows with intervals over tokens, and the paired gains, whose goal is above 0."""
    std, vocabulary = StdVocabulary.load(), ReVocabulary([], [])
    garments = [(_std(row, std), _re(row)) for row in table.to_pylist() if row["re_json"]]
    counts = _counts(garments)
    vocabulary = vocabulary.grow(counts, MIN_COUNT, std.keys)
    ids = np.arange(vocabulary.num_tokens - len(vocabulary.tokens), vocabulary.num_tokens)
    rng = np.random.default_rng(seed)
    held = np.sort(rng.choice(ids, max(1, int(HELD_OUT * len(ids))), replace=False))
    known = np.setdiff1d(ids, held)
    options = options.model_copy(update={"width": WIDTH, "heads": HEADS, "inputs": ["std", "re"]})
    tower = _tower(std, vocabulary, options, encoder.width, seed)
    _train(tower, _items(garments, std, vocabulary, encoder.width, set(held.tolist())), options, seed)
    vectors = encoder.embed(vocabulary.tokens)
    start = int(ids[0])
    rows = tower.re_table.weight.detach().numpy().copy()
    mapped = token_map.fit(vectors[known - start], rows[known])(vectors[held - start])
    later = _later(tower, garments, std, vocabulary, held, options, seed)
    spread = float(rows[known].std())
    others = {"mean": np.tile(rows[known].mean(0), (len(held), 1)), "random": rng.normal(0, spread, mapped.shape)}
    cosines = {name: _cosine(made, later) for name, made in {"mapped": mapped, **others}.items()}
    columns: dict[str, tuple[NDArray[np.float64], float | None, str]] = {
        f"zeroshot.{name}": (values, None, "cosine") for name, values in cosines.items()
    }
    columns |= {
        f"zeroshot.mapped.minus.{name}": (cosines["mapped"] - cosines[name], 0.0, "difference") for name in others
    }
    values = np.stack([values for values, _, _ in columns.values()], axis=1)
    bounds = interval(resampled_means(values, resamples, seed))
    return {
        name: {
            "value": round(float(column.mean()), 4),
            "ci95": [round(float(bound), 4) for bound in bounds[:, place]],
            "goal": goal,
            "unit": unit,
        }
        for place, (name, (column, goal, unit)) in enumerate(columns.items())
    }


def _std(row: dict[str, Any], std: StdVocabulary) -> Pairs:
    named = [(std.key_of(name), raw) for name, raw in row.items() if isinstance(raw, str)]
    return [(key, value) for key, raw in named if key is not None for value in std.normalise(key, raw).values]


def _re(row: dict[str, Any]) -> Pairs:
    """(key, token) of the words of `re_json`, each once."""
    found: dict[tuple[str, str], None] = {}
    for name, value in json.loads(row["re_json"]).items():
        for text in value.values() if isinstance(value, dict) else [value]:
            found |= dict.fromkeys((RE_KEYS[name], word) for word in split_words(str(text)))
    return list(found)


def _counts(garments: list[tuple[Pairs, Pairs]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for _, pairs in garments:
        for token in {token for _, token in pairs}:
            counts[token] = counts.get(token, 0) + 1
    return counts


def _items(
    garments: list[tuple[Pairs, Pairs]], std: StdVocabulary, re: ReVocabulary, text_width: int, hidden: set[int]
) -> ItemInputs:
    """The garments without titles, and without the RE tokens `hidden`."""
    standard = [[(std.key_id(key), std.id_of(key, value)) for key, value in pairs] for pairs, _ in garments]
    open_ = [[(std.key_id(key), re.token_id(token)) for key, token in pairs] for _, pairs in garments]
    open_ = [[(key, id) for key, id in pairs if id not in hidden] for pairs in open_]
    alike: dict[tuple[Any, ...], int] = {}
    seen = [(tuple(sorted(a)), tuple(sorted(b))) for a, b in zip(standard, open_, strict=True)]
    return ItemInputs(
        std_key=_ragged([[key for key, _ in pairs] for pairs in standard]),
        std_id=_ragged([[id for _, id in pairs] for pairs in standard]),
        re_key=_ragged([[key for key, _ in pairs] for pairs in open_]),
        re_id=_ragged([[id for _, id in pairs] for pairs in open_]),
        groups=np.array([alike.setdefault(key, len(alike)) for key in seen]),
        text_of_item=np.zeros(len(garments), dtype=np.int64),
        state_offsets=np.zeros(2, dtype=np.int64),
        states=np.empty((0, text_width), dtype=np.float16),
    )


def _ragged(lists: list[list[int]]) -> Ragged:
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    return Ragged(np.array([value for row in lists for value in row], dtype=np.int64), offsets)


def _tower(std: StdVocabulary, re: ReVocabulary, options: Options, text_width: int, seed: int) -> ItemTower:
    torch.manual_seed(seed)
    return ItemTower(
        Shape(
            num_keys=std.num_keys,
            num_std_ids=std.num_ids,
            num_re_tokens=re.num_tokens,
            text_width=text_width,
            text_encoder="none",
            width=options.width,
            heads=options.heads,
            dropout=options.dropout,
            inputs=tuple(options.inputs),
        )
    )


def _later(
    tower: ItemTower,
    garments: list[tuple[Pairs, Pairs]],
    std: StdVocabulary,
    re: ReVocabulary,
    held: IntArray,
    options: Options,
    seed: int,
) -> NDArray[np.float32]:
    """Rows float32[len(held), d] of the tokens `held`, trained from zero in the trained tower, which stays as it is."""
    tokens = {re.tokens[id - (re.num_tokens - len(re.tokens))] for id in held.tolist()}
    carrying = [garment for garment in garments if any(token in tokens for _, token in garment[1])]
    tower.requires_grad_(False)
    table = tower.re_table.weight.requires_grad_(True)
    only = torch.zeros(len(table), 1)
    only[held] = 1.0
    with torch.no_grad():
        table[held] = 0.0
    table.register_hook(lambda grad: grad * only)  # AdamW without decay moves no row whose gradient is always 0
    _train(tower, _items(carrying, std, re, tower.shape.text_width, set()), options, seed + 1)
    trained: NDArray[np.float32] = table.detach()[held].numpy()
    return trained


def _train(tower: ItemTower, items: ItemInputs, options: Options, seed: int) -> None:
    """The item tower's contrastive steps in this process."""
    parameters = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    tower.train()
    for epoch in range(EPOCHS):
        order = np.random.default_rng([seed, epoch]).permutation(len(items))
        for step in range(-(-len(order) // BATCH)):
            rows = order[step * BATCH : (step + 1) * BATCH]
            if len(rows) < 2:
                continue
            rng = np.random.default_rng([seed, epoch, step])
            loss, _ = contrast(tower, items, rows, tower.shape.num_keys, options, rng)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    tower.eval()


def _cosine(made: NDArray[Any], later: NDArray[Any]) -> NDArray[np.float64]:
    norms = np.linalg.norm(made, axis=1) * np.linalg.norm(later, axis=1)
    cosines: NDArray[np.float64] = (made * later).sum(1) / np.maximum(norms, 1e-12)
    return cosines
