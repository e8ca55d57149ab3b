"""Zero-shot tokens: is the mapped row of an RE token near the one that training would have given it?

On H&M articles with the words that an LLM read from their descriptions: a tower is trained without a fifth of the
tokens, and `rec.models.token_map` gives them rows. Then their rows alone are trained by the same loss, the tower fixed,
on the articles that carry them: the later-trained rows. Compared with them are the mapped row, the mean of the trained
rows and a random one.

Rows trained later start where training starts every row, at the mean of their products' texts, which the map reads,
too: the squared distance to them (`zeroshot.distance`, `zeroshot.nearer`) is short by construction, and shorter still
from that start itself, which needs the weights that training began with and is compared as `start`. Rows trained from
zero owe the texts nothing but what the loss asks for, and have not had the steps to grow as long as
the others: of them only the direction is compared (`zeroshot`, cosine).

8,000 articles, 900 tokens, 70 CPU s:

    cosine             mapped .433   mean .012   random .006   start .442    mapped - mean .421 [.392, .453]
    squared distance   mapped .104   mean .988   random 2.06   start .011    mean - mapped .885 [.780, 1.00]

The views hide more than a recipe's. Where every third key and every fifth title token is hidden, an article is found
by its title in 99.6 % of all cases and no row of an RE token has to say anything: two runs that differ in the seed
alone train later rows of cosine .31 (.66 where much is hidden), and the mean is not beaten (-.048 [-.072, -.023]).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from rec.config import Config
from rec.config import ItemTower as Options
from rec.enrich import imports
from rec.evaluate.bootstrap import interval, resampled_means
from rec.models import token_map
from rec.models.item_inputs import IntArray, ItemInputs, Ragged
from rec.models.item_tower import ItemTower, Shape
from rec.models.text_encoder import TextEncoder
from rec.train import contrast, schedule, text_start
from rec.train.item import WARMUP
from rec.vocab.re import ReVocabulary, split_words
from rec.vocab.std import StdVocabulary

ARTICLES, ANSWERS = "hm_articles.parquet", "hm_llm_tokens_dotblossom.parquet"
STD_COLUMNS = {
    "category": "product_type_name",
    "pattern": "graphical_appearance_name",
    "colour": "colour_group_name",
    "gender": "index_group_name",
}
"""Key → column of the articles."""
COUNT = 8_000
"""Articles drawn, no two of one description: about 900 tokens."""
MIN_COUNT = 5
"""Articles that carry a token; a rarer one has no row to speak of."""
HELD_OUT = 0.2
HIDDEN = {"feature_dropout": 0.6, "token_dropout": 0.8}
WIDTH, HEADS = 64, 4
GOALS = {"mean": 0.0, "random": 0.0, "start": None}
EPOCHS, BATCH, RATE = 8, 256, 2e-3

Pairs = list[tuple[str, str]]
Article = tuple[str, Pairs, Pairs]
"""Title, (key, value) of STD, (key, token) of RE."""


def read(folder: Path, std: StdVocabulary, count: int, seed: int) -> list[Article] | None:
    """`count` articles that have LLM answers, drawn by `seed`; None where the files do not lie in `folder`."""
    if not (folder / ARTICLES).is_file() or not (folder / ANSWERS).is_file():
        return None
    table = pq.read_table(folder / ARTICLES, columns=["prod_name", "detail_desc", *STD_COLUMNS.values()])
    first: dict[str, int] = {}
    for row in np.random.default_rng(seed).permutation(table.num_rows).tolist():
        description = table["detail_desc"][row].as_py()
        if description is not None:
            first.setdefault(description, row)
    descriptions = {str(row): description for description, row in first.items()}
    articles: list[Article] = []
    for found in imports.read(folder / ANSWERS, lambda: descriptions):
        article = {name: table[name][int(found.product_id)].as_py() for name in table.column_names}
        articles.append((article["prod_name"] or "", _std(article, std), _re(found.answer.body)))
        if len(articles) == count:
            break
    return articles


def figures(articles: Sequence[Article], encoder: TextEncoder, config: Config) -> dict[str, Any]:
    """Cosines and distances to the later-trained rows with intervals over tokens, and the paired gains (goal 0)."""
    std, seed = StdVocabulary.load(), config.seed
    counts = _counts(articles)
    re = ReVocabulary([], []).grow(counts, MIN_COUNT, std.keys)
    ids = np.arange(re.num_tokens - len(re.tokens), re.num_tokens)
    rng = np.random.default_rng(seed)
    held = np.sort(rng.choice(ids, max(1, int(HELD_OUT * len(ids))), replace=False))
    known = np.setdiff1d(ids, held)
    options = config.item_tower.model_copy(
        update={"width": WIDTH, "heads": HEADS, "inputs": ["std", "re", "title"], "std_width": 0, **HIDDEN}
    )
    titles = _states([title for title, _, _ in articles], encoder, config)
    tower = _tower(std, re, options, encoder.width, seed)
    without = _items(articles, titles, std, re, set(held.tolist()))
    text_start.apply(tower, without, torch.device("cpu"))
    _train(tower, without, options, seed)
    rows = (tower.re_table.weight.detach() - tower.re_start).numpy()
    vectors, _ = _items(articles, titles, std, re, set()).texts_of_tokens(re.num_tokens)
    made = {
        "mapped": token_map.fit(vectors[known], rows[known])(vectors[held]),
        "mean": np.tile(rows[known].mean(0), (len(held), 1)),
        "random": rng.normal(0, rows[known].std(), (len(held), WIDTH)),
    }
    carrying = [place for place, (_, _, pairs) in enumerate(articles) if {re.token_id(t) for _, t in pairs} & set(held)]
    some = [articles[place] for place in carrying], [titles[place] for place in carrying]
    carriers = _items(*some, std, re, set())
    started = _tower(std, re, options, encoder.width, seed)
    text_start.apply(started, _items(articles, titles, std, re, set()), torch.device("cpu"))
    starts = (started.re_table.weight.detach() - started.re_start)[held]
    made["start"] = starts.numpy()
    later = {
        "zero": _later(tower, carriers, held, torch.zeros_like(starts), options, seed + 1),
        "texts": _later(tower, carriers, held, starts, options, seed + 1),
    }
    return _summary(made, later, config)


def _summary(made: dict[str, NDArray[Any]], later: dict[str, NDArray[np.float32]], config: Config) -> dict[str, Any]:
    """Mean and interval of each comparison, over tokens; distances in units of the later rows' mean square."""
    zero, texts = later["zero"], later["texts"]
    square = float((texts**2).sum(1).mean())
    cosine = {name: _cosine(rows, zero) for name, rows in made.items()}
    distance = {name: ((rows - texts) ** 2).sum(1) / square for name, rows in made.items()}
    others = [name for name in made if name != "mapped"]
    columns: dict[str, tuple[NDArray[np.float64], float | None, str]] = {
        **{f"zeroshot.{name}": (values, None, "cosine") for name, values in cosine.items()},
        **{f"zeroshot.mapped.minus.{n}": (cosine["mapped"] - cosine[n], GOALS[n], "difference") for n in others},
        **{f"zeroshot.distance.{name}": (values, None, "squared distance") for name, values in distance.items()},
        **{f"zeroshot.nearer.than.{n}": (distance[n] - distance["mapped"], GOALS[n], "difference") for n in others},
    }
    values = np.stack([values for values, _, _ in columns.values()], axis=1)
    bounds = interval(resampled_means(values, config.evaluate.bootstrap, config.seed))
    return {
        name: {
            "value": round(float(column.mean()), 4),
            "ci95": [round(float(bound), 4) for bound in bounds[:, place]],
            "goal": goal,
            "unit": unit,
        }
        for place, (name, (column, goal, unit)) in enumerate(columns.items())
    }


def _std(article: dict[str, Any], std: StdVocabulary) -> Pairs:
    given = [(key, article[column]) for key, column in STD_COLUMNS.items()]
    return [(key, value) for key, raw in given if raw for value in std.normalise(key, raw).values]


def _re(answer: str) -> Pairs:
    """(key, token) of the words of an answer, each once."""
    found: dict[str, list[str]] = json.loads(answer)["re"]
    words = ((key, word) for key, values in found.items() for value in values for word in split_words(value))
    return list(dict.fromkeys(words))


def _counts(articles: Sequence[Article]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for _, _, pairs in articles:
        for token in {token for _, token in pairs}:
            counts[token] = counts.get(token, 0) + 1
    return counts


def _states(titles: Sequence[str], encoder: TextEncoder, config: Config) -> list[NDArray[np.float16]]:
    return encoder.token_states(encoder.tokenize(titles, config.text.max_tokens), config.text.batch_size)


def _items(
    articles: Sequence[Article],
    titles: Sequence[NDArray[np.float16]],
    std: StdVocabulary,
    re: ReVocabulary,
    hidden: set[int],
) -> ItemInputs:
    """The articles with the token states of their titles, without the RE tokens `hidden`."""
    standard = [[(std.key_id(key), std.id_of(key, value)) for key, value in pairs] for _, pairs, _ in articles]
    open_ = [[(std.key_id(key), re.token_id(token)) for key, token in pairs] for _, _, pairs in articles]
    open_ = [[(key, id) for key, id in pairs if id not in hidden] for pairs in open_]
    return ItemInputs(
        std_key=Ragged.from_lists([[key for key, _ in pairs] for pairs in standard]),
        std_id=Ragged.from_lists([[id for _, id in pairs] for pairs in standard]),
        re_key=Ragged.from_lists([[key for key, _ in pairs] for pairs in open_]),
        re_id=Ragged.from_lists([[id for _, id in pairs] for pairs in open_]),
        groups=np.arange(len(articles)),  # no two have one description
        text_of_item=np.arange(len(articles)),
        state_offsets=np.cumsum([0, *map(len, titles)], dtype=np.int64),
        states=np.concatenate(titles),
    )


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
    tower: ItemTower, items: ItemInputs, held: IntArray, starts: torch.Tensor, options: Options, seed: int
) -> NDArray[np.float32]:
    """Rows float32[len(held), d] of the tokens `held`, trained from `starts` in the trained tower, which stays."""
    tower.requires_grad_(False)
    table = tower.re_table.weight.requires_grad_(True)
    only = torch.zeros(len(table), 1)
    only[held] = 1.0
    with torch.no_grad():
        table[held] = starts
    table.register_hook(lambda grad: grad * only)  # AdamW without decay moves no row whose gradient is always 0
    _train(tower, items, options, seed)
    trained: NDArray[np.float32] = table.detach()[held].clone().numpy()
    return trained


def _train(tower: ItemTower, items: ItemInputs, options: Options, seed: int) -> None:
    """The item tower's contrastive steps in this process."""
    parameters = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)
    tower.train()
    steps = -(-len(items) // BATCH)
    for epoch in range(EPOCHS):
        for step, rows in enumerate(
            np.array_split(np.random.default_rng([seed, epoch]).permutation(len(items)), steps)
        ):
            rate = RATE * schedule.rate(epoch * steps + step, EPOCHS * steps, warmup=WARMUP)
            optimizer.param_groups[0]["lr"] = rate
            rng = np.random.default_rng([seed, epoch, step])
            optimizer.zero_grad()
            contrast.step(tower, contrast.draw(items, rows, tower.shape.num_keys, options, rng), options)
            optimizer.step()
    tower.eval()


def _cosine(made: NDArray[Any], later: NDArray[Any]) -> NDArray[np.float64]:
    norms = np.linalg.norm(made, axis=1) * np.linalg.norm(later, axis=1)
    cosines: NDArray[np.float64] = (made * later).sum(1) / np.maximum(norms, 1e-12)
    return cosines
