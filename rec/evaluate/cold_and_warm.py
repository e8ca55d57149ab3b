"""Products that nobody chose yet and all others in one ranking: what each side costs the other.

The split stands in for the temporal one of "Let It Go? Not Quite" (RecSys 2025), since Beauty's data have the order of
a user's events and no times: a tenth of the products, whole content groups drawn by seed, is hidden from every training
as if launched later (`rec.evaluate.hidden`), with all its events. The test is every user's last event; its target is
cold where the product was hidden and warm where not, and all products that the user did not have are ranked, cold and
warm together. Hidden products that a user had before are part of the history, as they would be once launched.

    tower      the recipe's user tower, trained without the hidden products
    delta      the same without adapter: frozen content and a bounded vector per item, as in the paper
    content    the mean text vector of the user's history against text vectors, as the encoder gives them
    centred    the same less the mean of all texts
"""

import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rec import embed
from rec.config import Config, UserTower
from rec.evaluate import hidden, metrics, ranking
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.bootstrap import interval, resampled_means
from rec.evaluate.cold_items import K, World, next_ranks, product_vectors, seen_of, text_vectors, world_of
from rec.evaluate.paired import compared
from rec.models import latent_semantics, user_tower
from rec.models.item_inputs import unit
from rec.models.user_vectors import UserVectors
from rec.train import item, user

TOWER, DELTA, CONTENT = "tower", "delta", "content"

log = logging.getLogger(__name__)


def measure(config: Config) -> Figures:
    """HR@10 of cold and of warm targets by every system, of a recipe that went through encode.

    `NAME.cold.over.content` and `NAME.warm.over.delta` are ratios to what is to be kept: goal 1.
    """
    prefix = config.name.removesuffix("-quick")
    world = world_of(config)
    seen = seen_of(config, world)
    items = seen.model_copy(update={"name": "full"})  # the item tower of `rec.evaluate.cold_items`
    for part in hidden.DATASETS:
        hidden.link(seen, items, part)
    item.run(items)
    embed.run(items)
    placed = product_vectors(items, config)
    bound = config.user_tower.delta_norm or UserTower().delta_norm
    alone = {"adapter": 0, "semantics": 0, "delta_norm": bound}
    towers = {TOWER: config.user_tower, DELTA: config.user_tower.model_copy(update=alone)}
    ranks = {name: _ranks(config, items, name, options, world, placed) for name, options in towers.items()}
    text = text_vectors(config)
    every = np.arange(len(world.cases))
    ranks |= {
        name: next_ranks(vectors, world.cases, every)
        for name, vectors in ((CONTENT, text), ("centred", unit(text - text.mean(0))))
    }
    hits = np.stack([metrics.recall(found, K) for found in ranks.values()], axis=1)
    cold = world.hidden[world.cases.targets]
    figures: Figures = {}
    options, names = config.evaluate, list(ranks)
    sides = {"cold": cold, "warm": ~cold, "all": cold | ~cold}
    for empty in [side for side, rows in sides.items() if not rows.any()]:
        log.warning("no user's last choice is %s: those figures are left out", empty)
        del sides[empty]
    for side, rows in sides.items():
        figures |= compared(
            f"{prefix}.{side}.{{}}.hr{K}",
            names,
            hits[rows],
            np.arange(rows.sum()),
            options.bootstrap,
            config.seed,
            ours=TOWER,
        )
    for side, other in (("cold", CONTENT), ("warm", DELTA)):
        if side not in sides:
            continue
        pair = hits[sides[side]][:, [names.index(TOWER), names.index(other)]]
        figures[f"{prefix}.{side}.over.{other}"] = _ratio(pair, options.bootstrap, config.seed)
    return figures


def _ratio(pair: NDArray[np.float64], resamples: int, seed: int) -> dict[str, Any]:
    """The mean of the first column of float64[U, 2] over that of the second."""
    drawn = resampled_means(pair, resamples, seed)
    low, high = interval((drawn[:, 0] / np.maximum(drawn[:, 1], 1e-9))[:, None])[:, 0].round(3).tolist()
    value = pair[:, 0].mean() / max(pair[:, 1].mean(), 1e-9)
    return figure(round(float(value), 3), "ratio of rates", [low, high], 1.0)


def _ranks(
    whole: Config, items: Config, name: str, options: UserTower, world: World, placed: NDArray[np.float32]
) -> NDArray[np.int64]:
    """int64[U] ranks by a user tower trained on the vectors that the store of `items` has.

    `placed` float32[N, d] is where its item tower puts all products of `whole`, the hidden ones as well.
    """
    trained = items.model_copy(update={"name": f"user-{name}", "user_tower": options})
    for part in (*hidden.DATASETS, "vectors"):
        hidden.link(items, trained, part)
    log.info("%s", trained.name)
    user.run(trained)
    tower = user_tower.load(trained.at(user_tower.KIND))
    semantics = latent_semantics.load(trained.at(user_tower.KIND))
    if semantics is not None:
        placed = latent_semantics.beside(placed, semantics(latent_semantics.counts(whole.at("tensors"))))
    with torch.inference_mode():
        vectors = tower.adapt(torch.from_numpy(placed)).numpy().copy()
    vectors[~world.hidden] = tower.item_vectors.numpy()
    users = UserVectors(tower.attach(vectors), items.text)(world.cases.states)
    return ranking.by_vectors(users, vectors, world.cases.targets, world.cases.exclude)
