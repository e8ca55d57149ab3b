"""What rerankers add to retrieval, on the last event of every user, each model trained with several seeds.

    deepfm, dlrm        the recipe's ranker as either model
    random              the recipe's model whose tables start at random instead of from the item tower
    without-GROUP       the recipe's model where the fields of a group (`rec.features.spec.GROUPS`) tell nothing

A user's figure is the mean over the seeds; NDCG and recall count a target that was not retrieved as missed. Intervals
are over users, differences are paired. `transfer.*` are the recipe's model less its random start: after its best epoch,
and after few steps on users that nothing was trained on (`transfer.stepN`).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rec import histories, samples
from rec.config import Config
from rec.evaluate import cases as test_cases
from rec.evaluate import metrics, ranker_speed, ranking
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.cases import Cases
from rec.evaluate.paired import means
from rec.evaluate.stage import retrieval_of
from rec.features import requests
from rec.features.compute import RankInputs
from rec.features.items import ItemFeatures
from rec.features.requests import Requests
from rec.features.spec import GROUPS, Spec, group_of
from rec.histories import Histories
from rec.models.fused import Fused
from rec.train import ranker
from rec.train.contest import Contest
from rec.train.listwise import target_ranks
from rec.train.ranking_step import Training, batch, update

MODELS = ("deepfm", "dlrm")
STEPS = (0, 10, 30, 100, 300)
"""Optimizer steps after which a random start is compared with a transferred one."""
K = 10
FOLDER = "rankers"
GOALS = {"beauty.r10": 0.105, "beauty.n10": 0.061}
"""Of Beauty's final list; the best published model of ids alone has .104 and .060."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class World:
    """A recipe's requests for training, and for the test those whose target was retrieved."""

    config: Config
    items: ItemFeatures
    data: Requests
    train: Ints
    """Requests that train."""
    held: Ints
    """Requests that choose the epoch."""
    test: Requests
    retrieved: NDArray[np.bool_]
    """bool[U] which test users `test` has a request of."""
    retrieval: Ints
    """int64[U] rank of the target by the user vector."""

    def ranks(self, scorer: Fused, blank: frozenset[str] = frozenset()) -> Ints:
        """int64[U] rank of the target in the final list, MISSED where it was not retrieved."""
        test = blanked(self.test, self.items.spec, blank)
        found = ranker.score(scorer, test, np.arange(len(test)))
        ranks = np.full(len(self.retrieved), metrics.MISSED)
        ranks[self.retrieved] = target_ranks(found.scores, found.counts, found.labels)
        return ranks


@dataclass(frozen=True)
class Trained:
    """A ranker at its best epoch, and how it got there."""

    scorer: Fused
    by_step: dict[int, Floats]
    """NDCG@10 float64[H] of each held-out request after so many steps."""
    epoch: int


def measure(config: Config, seeds: Sequence[int], *, groups: bool) -> Figures:
    """Figures of a recipe that went through candidates; with `groups` also each group of fields left out."""
    world = prepare(config)
    prefix = config.name.removesuffix("-quick")
    others = [name for name in MODELS if name != config.ranker.model]
    variants: dict[str, tuple[Config, frozenset[str]]] = {config.ranker.model: (config, frozenset())}
    variants |= {name: (_with(config, model=name), frozenset()) for name in others}
    if config.ranker.transfer != "none":
        variants["random"] = (_with(config, transfer="none", freeze_steps=0), frozenset())
    if groups:
        present = {group_of(name) for name in world.items.spec.names}
        variants |= {f"without-{name}": (config, frozenset([name])) for name in GROUPS if name in present}
    ranks: dict[str, list[Ints]] = {}
    steps: dict[str, list[dict[int, Floats]]] = {}
    for name, (chosen, blank) in variants.items():
        for seed in seeds if not blank else seeds[:1]:
            made = trained(world, chosen.model_copy(update={"seed": seed}), blank)
            log.info("%s, seed %d: best epoch %d", name, seed, made.epoch)
            ranks.setdefault(name, []).append(world.ranks(made.scorer, blank))
            steps.setdefault(name, []).append(made.by_step)
    figures = _lists(world, ranks, prefix)
    for name in MODELS:
        model, _ = ranker.fresh(_with(config, model=name), world.items, world.data, world.train)
        figures |= ranker_speed.measure(model, world.data, config.ranker, f"{prefix}.{name}")
    if "random" in steps:
        figures |= _starts(steps[config.ranker.model], steps["random"], config, prefix)
    return figures


def prepare(config: Config) -> World:
    """Features of all training and test requests, on disk in the recipe's folder."""
    h = histories.load(config.root)
    folder = config.at(FOLDER)
    items = ranker.features(config, h)
    ranker.prepare(folder / "train", config, h, items)
    train, held = ranker.parts(folder / "train")
    cases = test_cases.of_recipe(config, h, max_users=config.evaluate.max_users)
    retrieved, retrieval = _test(folder / "test", config, h, items, cases)
    data, test = (requests.open_requests(folder / name) for name in ("train", "test"))
    return World(config, items, data, train, held, test, retrieved, retrieval)


def _test(
    folder: Path, config: Config, h: Histories, items: ItemFeatures, cases: Cases
) -> tuple[NDArray[np.bool_], Ints]:
    """Write the requests whose target was retrieved; returns which these are, and all ranks by the user vector."""
    source = retrieval_of(config, items.vectors)
    vectors, ann = source.search(cases)
    found = source.merged(cases, vectors, ann)
    retrieval = ranking.by_vectors(vectors, items.vectors, cases.targets, cases.exclude)
    places = [np.flatnonzero(each.rows == target) for each, target in zip(found, cases.targets, strict=True)]
    kept = np.array([len(place) > 0 for place in places], bool)
    rows = np.flatnonzero(kept)
    labels = np.array([places[row][0] for row in rows], np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    states, lists = [cases.states[row] for row in rows], [found[row] for row in rows]
    requests.write(folder, items, states, lists, cases.at[rows], labels, samples.past_popularity(h))
    return kept, retrieval


def trained(world: World, config: Config, blank: frozenset[str] = frozenset()) -> Trained:
    """One ranker, by the steps of the stage in this process."""
    options = config.ranker
    data = blanked(world.data, world.items.spec, blank)
    model, _ = ranker.fresh(config, world.items, data, world.train)
    contest = Contest(Training(model, options.pointwise, len(data.rows) / len(data)))
    optimizer = contest.current.optimizer(options.train.learning_rate, options.train.weight_decay)
    torch.manual_seed(config.seed)
    rng, device = np.random.default_rng(config.seed), torch.device("cpu")
    size = ranker.requests_per_step(data, options)
    by_step: dict[int, Floats] = {}
    step = 0

    def judged() -> Floats:
        found = ranker.score(model.export(), data, world.held)
        return metrics.ndcg(target_ranks(found.scores, found.counts, found.labels), K)

    for epoch in range(options.train.epochs + 1):
        contest.judge(float(judged().mean()), epoch)
        if epoch == options.train.epochs or contest.stale(epoch, options.patience):
            break
        contest.train()
        order = rng.permutation(len(world.train))
        uniform = rng.random(len(order)) if options.negatives else None
        for start in range(0, len(order), size):
            if step in STEPS:
                by_step[step] = judged()
            rows = order[start : start + size]
            drawn = None if uniform is None else uniform[rows]
            frozen = ranker.transferred(model) if step < options.freeze_steps else []
            update(contest, optimizer, batch(data, world.train[rows], options.negatives, drawn).to(device), frozen)
            step += 1
        contest.eval()
    return Trained(contest.winner().model.export(), by_step, int(contest.best_epoch))


@dataclass(frozen=True, slots=True)
class Blanked(Requests):
    """Requests where some fields tell nothing: id 0, no tokens, or 0 for every candidate."""

    sparse_columns: tuple[int, ...]
    varlen_columns: tuple[int, ...]
    dense_columns: tuple[int, ...]

    def at(self, where: Ints) -> RankInputs:
        """RankInputs of the rows at positions `where`."""
        inputs = Requests.at(self, where)
        for array, columns in (
            (inputs.sparse, self.sparse_columns),
            (inputs.varlen, self.varlen_columns),
            (inputs.dense, self.dense_columns),
        ):
            array[:, list(columns)] = 0
        return inputs


def blanked(data: Requests, spec: Spec, groups: frozenset[str]) -> Requests:
    """The requests, without what the fields of `groups` say."""
    if not groups:
        return data
    varlen = [field.name for field in spec.varlen for _ in range(field.length)]
    columns = [
        tuple(column for column, name in enumerate(names) if group_of(name) in groups)
        for names in ([field.name for field in spec.sparse], varlen, spec.dense)
    ]
    arrays = {name: getattr(data, name) for name in Requests.__slots__}
    return Blanked(**arrays, sparse_columns=columns[0], varlen_columns=columns[1], dense_columns=columns[2])


def _with(config: Config, **options: object) -> Config:
    return config.model_copy(update={"ranker": config.ranker.model_copy(update=options)})


def _lists(world: World, ranks: dict[str, list[Ints]], prefix: str) -> Figures:
    """Recall and NDCG of the lists, what they have more than retrieval, and what a group of fields gives."""
    config = world.config
    every = np.arange(len(world.retrieval))
    ours = config.ranker.model
    figures: Figures = {}
    for short, metric in (("r10", metrics.recall), ("n10", metrics.ndcg)):
        values = {name: np.mean([metric(each, K) for each in made], axis=0) for name, made in ranks.items()}
        values["retrieval"] = metric(world.retrieval, K)
        columns = dict(values)
        for name in MODELS:
            columns[f"{name}.lift"] = values[name] - values["retrieval"]
        columns |= {
            name.replace("without-", "gain."): values[ours] - values[name] for name in values if "without-" in name
        }
        if "random" in values:
            columns["transfer.lift"] = values[ours] - values["random"]
        made = means(np.column_stack(list(columns.values())), every, config.evaluate.bootstrap, config.seed)
        for name, (value, bounds) in zip(columns, made, strict=True):
            difference = name.endswith(".lift") or name.startswith("gain.")
            goal = 0.0 if name.endswith(".lift") else GOALS.get(f"{prefix}.{short}") if name in MODELS else None
            unit = "difference" if difference else "ratio"
            figures[f"{prefix}.{name}.{short}"] = figure(value, unit, bounds, goal)
    return figures


def _starts(ours: list[dict[int, Floats]], random: list[dict[int, Floats]], config: Config, prefix: str) -> Figures:
    """What the transferred start has more than the random one after few steps."""
    figures: Figures = {}
    for step in [step for step in STEPS if step in ours[0]]:
        gain = np.mean([one[step] - two[step] for one, two in zip(ours, random, strict=True)], axis=0)
        value, bounds = means(gain[:, None], np.arange(len(gain)), config.evaluate.bootstrap, config.seed)[0]
        figures[f"{prefix}.transfer.step{step}.lift.n10"] = figure(value, "difference", bounds)
    return figures
