"""Retrieval by the user tower alone, beside towers that lack a part of it, each trained with several seeds.

    as_is      the recipe's user tower
    text       without what it learns per item: vectors are functions of content alone (where the recipe learns any)
    sasrec     without content: a vector per item that starts at random (`user_tower.content`), and as Kang and McAuley
               (2018) set it for sparse data: two blocks, dropout one half
    no-NAME    without the input NAME (context, profile), where the data has it
    popular    the order by training events

The recipe's tower with the recipe's seed is the one of its pipeline. All rank the whole catalogue for every user's
last event. A user's figure is the mean over the seeds; intervals are over users, differences are paired, and `spread`
is the standard deviation of the figure over the seeds. What seeds change is in no interval.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rec import histories
from rec.config import Config, UserTower
from rec.evaluate import cases as test_cases
from rec.evaluate import controls, hidden, metrics, ranking
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.cases import Cases
from rec.evaluate.paired import compared
from rec.histories import Histories
from rec.models import user_tower
from rec.models.user_vectors import UserVectors
from rec.train import user

AS_IS = "as_is"
FOLDER = "towers"
"""Of the towers, in the recipe's own folder."""
DATASETS = ("products", "users", "events", "vectors")
K = 10
GOALS = {"beauty.as_is.r10": 0.098, "beauty.as_is.n10": 0.0565}
"""The highest published figures of a tower over a frozen sentence encoder together with one of ids; over the encoder
alone, as the recipe is, they are .0937 and .0479."""

SASREC = {"content": False, "adapter": 0, "semantics": 0, "convolution": 0, "layers": 2, "dropout": 0.5}

log = logging.getLogger(__name__)


def measure(config: Config, seeds: Sequence[int], control_seeds: Sequence[int]) -> Figures:
    """Figures of a recipe that went through embed; towers beside the recipe's are trained with `control_seeds`."""
    prefix = config.name.removesuffix("-quick")
    h = histories.load(config.root)
    cases = test_cases.of_recipe(config, h, max_users=config.evaluate.max_users)
    figures: Figures = {}
    found: dict[str, list[NDArray[np.int64]]] = {}
    for name, options in variants(config.user_tower, h).items():
        for seed in seeds if name == AS_IS else control_seeds:
            log.info("user tower %s, seed %d", name, seed)
            ranks, facts = _trained(config, f"{name}-{seed}", options, seed, cases)
            found.setdefault(name, []).append(ranks)
            if "seconds" in facts:
                figures[f"{prefix}.{name}.{seed}.minutes"] = figure(round(facts["seconds"] / 60, 2), "minutes")
            figures[f"{prefix}.{name}.{seed}.epochs"] = figure(facts["epochs"], "epochs")
    found["popular"] = [ranking.by_order(controls.popular_order(h), cases.targets, cases.exclude)]
    every = np.arange(len(cases))
    for short, metric in (("r10", metrics.recall), ("n10", metrics.ndcg)):
        by_seed = {name: np.stack([metric(ranks, K) for ranks in made]) for name, made in found.items()}
        values = np.stack([each.mean(axis=0) for each in by_seed.values()], axis=1)
        figures |= compared(
            f"{prefix}.{{}}.{short}", list(by_seed), values, every, config.evaluate.bootstrap, config.seed, ours=AS_IS
        )
        for name, each in by_seed.items():
            if len(each) > 1:
                spread = float(each.mean(axis=1).std(ddof=1))
                figures[f"{prefix}.{name}.{short}.spread"] = figure(round(spread, 5), "ratio")
    for name, goal in GOALS.items():
        if name in figures:
            figures[name]["goal"] = goal
    return figures


def variants(options: UserTower, h: Histories) -> dict[str, UserTower]:
    """The towers to train, by name."""
    made = {AS_IS: options}
    if options.delta_norm:
        made["text"] = options.model_copy(update={"delta_norm": 0.0})
    made["sasrec"] = options.model_copy(update=SASREC)
    has = {"context": any(h.contexts), "profile": bool(h.profile_names)}
    for name in ("context", "profile"):
        if has[name] and name in options.inputs and len(options.inputs) > 1:
            left = [other for other in options.inputs if other != name]
            made[f"no-{name}"] = options.model_copy(update={"inputs": left})
    return made


def _trained(
    config: Config, name: str, options: UserTower, seed: int, cases: Cases
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Ranks int64[U] of the targets by one tower, and what its stage says."""
    trained = config
    if (options, seed) != (config.user_tower, config.seed):
        store = str(config.at(FOLDER))
        trained = config.model_copy(update={"store": store, "name": name, "user_tower": options, "seed": seed})
        for part in (*DATASETS, *(["tensors"] if options.semantics else [])):
            hidden.link(config, trained, part)
    started = time.monotonic()
    facts = user.run(trained)
    log.info("%s: %.0f s", name, time.monotonic() - started)
    tower = user_tower.load(trained.at(user_tower.KIND))
    vectors = UserVectors(tower, config.text)(cases.states)
    return ranking.by_vectors(vectors, tower.item_vectors.numpy(), cases.targets, cases.exclude), facts
