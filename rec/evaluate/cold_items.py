"""Products that were hidden from all training: does their content place them where shoppers want them?

A tenth of the products, whole content groups, is hidden from SimCSE and from the pairs of the behaviour stage
(`rec.evaluate.hidden`). Then all products get their vectors, and two things are measured:

    neighbours.r10   of the products of other groups that users chose within WINDOW of all events of a hidden one, the
                     share among its 10 nearest products of other groups; of the at most 10 that can be there
    neighbours.n     the hidden products that were chosen with others, of which that is the mean
    hr10             of the users whose last, held-out choice is a hidden product, the share who have it among the 10
                     nearest to the mean vector of their choices before; all products they did not have are ranked
    hr.n             these users

for the recipe's tower (`full`) and others (`rec.evaluate.cold_towers`), beside the mean states of the frozen text
encoder as they are (`rawtext`) and centred, and random vectors. Intervals of the first are over content groups, whose
products share their text, those of the second over users; differences are paired.

`rec.evaluate.noise` says how far marketing phrases in titles move products. Where a language model answered, three more
towers are trained: without the RE of its answers, without any RE, and without what keys share
(`rec.evaluate.alignment`). Last comes the tower with the other start: `full.minus.choices` is what the start by texts
gives over that by choices, `full.minus.texts` the reverse where the recipe's is by choices.

    re.lift.n10       what RE of answers adds to NDCG@10 of the second ranking, for all users whose last choice has an
                      answer and among such products only: the recipe's tower minus one whose tensors, in training and
                      here, lack these values. STD of answers and the vocabulary are in both
    re.all.lift.n10   the same of all RE, that of the shop and of rules included: minus a tower that reads none
    re.n              these users

A run that was killed goes on: what a tower of the same options learned is not learned again, nor is its placing of the
products done again. The figures until then are in FIGURES, beside the towers, and in the log.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from rec import artifact, dataset, encode, histories
from rec.config import Config, ItemTower
from rec.enrich.answers import LLM, TAGGER
from rec.evaluate import alignment, cold_towers, hidden, metrics, noise, tower_speed
from rec.evaluate import cases as test_cases
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.cases import Cases
from rec.evaluate.cold_towers import APART, FULL, LIFTS, NO_LLM_RE, STARTS, TABLE, TITLE
from rec.evaluate.paired import compared, means
from rec.histories import Histories
from rec.models import item_tower
from rec.models.item_inputs import TEXT_STATES, ItemInputs, text_states_manifest, unit
from rec.models.item_vectors import item_vectors
from rec.retrieval import search
from rec.schema import ATTRIBUTES, ENRICHED, PRODUCTS, TENSORS
from rec.sources import cooccurrence
from rec.train import item
from rec.vocab import tensorize

SHARE = 0.1
"""Of the products that are hidden."""
K, WINDOW = 10, 5
NOISED = (FULL, TITLE)
PLACED = "placed"
"""Artifact beside a tower: where it puts all products of the recipe."""
FIGURES = "figures.json"
"""In the recipe's folder of parts: what the last run measured so far."""
SPEED = "speed.json"
"""The same of a run of speed alone, beside the other."""
QUICK_PRODUCTS, QUICK_EPOCHS, QUICK_BATCH = 3_000, 3, 128

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]
Bools = NDArray[np.bool_]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class World:
    """N products with all their events, and which of them no training saw."""

    h: Histories
    groups: NDArray[np.int64]
    """int64[N] content groups."""
    hidden: Bools
    """bool[N]"""
    answered: Bools
    """bool[N]: a language model answered."""
    cases: Cases
    """Every user's last event."""


def measure(config: Config, *, quick: bool, speed: bool, cold_too: bool = True) -> Figures:
    """Figures of a recipe that went through tensorize and encode; `quick`: of some products, without encode before.

    `speed`: those of `rec.evaluate.tower_speed`, too; these alone where not `cold_too`. After each block those so far
    are in FIGURES, in SPEED where there are no others.
    """
    kept = config.at(hidden.FOLDER) / (FIGURES if cold_too else SPEED)
    kept.parent.mkdir(parents=True, exist_ok=True)
    figures: Figures = {}
    for block, found in _blocks(config, quick=quick, speed=speed, cold_too=cold_too):
        figures |= found
        artifact.write_json(kept, figures)
        log.info("%s: %s", block, json.dumps({name: each["value"] for name, each in found.items()}))
    return figures


def _blocks(config: Config, *, quick: bool, speed: bool, cold_too: bool) -> Iterator[tuple[str, Figures]]:
    """Name and figures of each block, what the table of cold items needs first."""
    recipe = config.name.removesuffix("-quick")
    config = _shortened(config) if quick else config
    world = world_of(config)
    seen = seen_of(config, world)
    if cold_too:
        yield from _cold_blocks(recipe, config, world, seen)
    if speed:
        yield "training", tower_speed.training(config, quick=quick)
        yield "encoding", tower_speed.encoding(config, quick=quick)
        yield "exporting", tower_speed.exporting(config, _trained(seen, FULL, config.item_tower))


def _cold_blocks(recipe: str, config: Config, world: World, seen: Config) -> Iterator[tuple[str, Figures]]:
    """Blocks of what is told of products; towers are trained in the store of `seen`."""
    towers = cold_towers.arms(config.item_tower, lift=bool(world.answered[world.cases.targets].any()))
    trained: dict[str, Config] = {}

    def placed(name: str) -> Vectors:
        """Of all products, by the tower `name`, which is trained for that."""
        whole, part = config, seen
        if name == NO_LLM_RE:
            whole = without_answers(config)
            part = seen_of(whole, world)
        trained[name] = _trained(part, name, towers[name])
        return product_vectors(trained[name], whole)

    vectors = {name: placed(name) for name in TABLE if name in towers} | _untrained(config)
    yield "cold", cold(f"cold.{recipe}", world, vectors, config)
    noised = {name: trained[name] for name in NOISED if name in trained}
    yield "noise", noise.measure(f"noise.{recipe}", config, noised, vectors)
    lessened = {name: placed(name) for name in LIFTS if name in towers}
    if lessened:
        yield "lift", lift(world, vectors[FULL], lessened, config)
    if APART in towers:
        apart = _trained(seen, APART, towers[APART])
        yield "keys", alignment.measure(config, *(tower.at(item_tower.KIND) for tower in (trained[FULL], apart)))
    for name in [name for name in STARTS if name in towers]:
        yield "start", cold(f"cold.{recipe}", world, {FULL: vectors[FULL], name: placed(name)}, config)


def _trained(seen: Config, name: str, options: ItemTower) -> Config:
    """The store of the tower `name`, trained on that of `seen`; what it learned before is not learned again."""
    trained = seen.model_copy(update={"name": name, "item_tower": options})
    for made in hidden.DATASETS:
        hidden.link(seen, trained, made)
    log.info("tower %s", name)
    item.run(trained)
    return trained


def _untrained(config: Config) -> dict[str, Vectors]:
    """Vectors of all products that no tower made."""
    text = text_vectors(config)
    drawn = np.random.default_rng(config.seed).standard_normal((len(text), config.item_tower.width))
    return {"rawtext": text, "centred": unit(text - text.mean(0)), "random": unit(drawn.astype(np.float32))}


def seen_of(config: Config, world: World) -> Config:
    """The recipe on the store, written and checked here, that has nothing of the hidden products."""
    seen = hidden.part(config, "seen")
    hidden.write(config, seen, ~world.hidden, world.h, hidden.open_events(world.h, world.hidden))
    ids = dataset.read(config.at("products"), PRODUCTS, ["product_id"])["product_id"]
    hidden.check(seen, ids.filter(pa.array(world.hidden)).combine_chunks())
    return seen


def without_answers(config: Config) -> Config:
    """The recipe on a store whose tensors, cut by the same vocabulary, lack the RE values of answers."""
    part = hidden.part(config, "without-answers")
    for name in ("products", *hidden.AS_THEY_ARE, "events", TEXT_STATES):
        hidden.link(config, part, name)
    source = dataset.read_manifest(config.at("enriched"), ENRICHED).content_hash
    products = dataset.read_manifest(config.at("products"), PRODUCTS).content_hash
    work: dict[str, Any] = {"inputs": {"enriched": source, "products": products}, "config": {"without": f"re of {LLM}"}}
    if artifact.finished(part.at("enriched"), kind=ENRICHED.kind, version=ENRICHED.version, **work) is None:
        ids = dataset.read(config.at("products"), PRODUCTS, ["product_id"])["product_id"]
        rows = dataset.read(config.at("enriched"), ENRICHED)
        rows = rows.filter(pc.is_in(rows["product_id"], value_set=ids.combine_chunks()))  # a quick run has some only
        at = rows.column_names.index("re")
        dataset.write(part.at("enriched"), ENRICHED, [rows.set_column(at, "re", _not_of(rows["re"], LLM))], **work)
    tensorize.place(part, config.at("vocabulary"))
    return part


def _not_of(column: pa.ChunkedArray, source: str) -> pa.Array:
    """The lists of an ATTRIBUTES column without the values of one source."""
    lists = column.combine_chunks()
    values = lists.flatten()
    kept = pc.not_equal(pc.struct_field(values, "source"), source)
    owners = pc.list_parent_indices(lists).filter(kept).to_numpy()
    ends = np.cumsum(np.bincount(owners, minlength=len(lists)))
    return pa.ListArray.from_arrays(pa.array([0, *ends], pa.int32()), values.filter(kept), type=ATTRIBUTES)


def _shortened(config: Config) -> Config:
    """The recipe on a part of its products, encoded here, with fewer and smaller steps."""
    less = config.item_tower.model_dump()
    for run in (less["train"], less["behaviour"]):
        run["epochs"] = min(run["epochs"], QUICK_EPOCHS)
        run["batch_size"] = min(run["batch_size"], QUICK_BATCH)
    part = hidden.part(config, "part").model_copy(update={"item_tower": ItemTower.model_validate(less)})
    h, groups = histories.load(config.root), _groups(config)
    kept = hidden.bought_first(groups, h, QUICK_PRODUCTS, config.seed)
    hidden.write(config, part, kept, h, kept[h.items])
    hidden.link(config, part, "enriched")
    encode.run(part)
    return part


def world_of(config: Config) -> World:
    """The products of a recipe that went through tensorize, a tenth of them drawn to be hidden."""
    h, groups = histories.load(config.root), _groups(config)
    made = dataset.read(config.at("enriched"), ENRICHED, ["product_id", "model"])
    by_model = pc.fill_null(pc.not_equal(made["model"], TAGGER), False)
    answered = made.filter(by_model)["product_id"].combine_chunks()
    ids = dataset.read(config.at("products"), PRODUCTS, ["product_id"])["product_id"]
    cases = test_cases.of_recipe(config, h, max_users=None)
    return World(
        h, groups, hidden.draw(groups, SHARE, config.seed), pc.is_in(ids, value_set=answered).to_numpy(), cases
    )


def _groups(config: Config) -> NDArray[np.int64]:
    column = dataset.read(config.at("tensors"), TENSORS, ["group"])["group"]
    return column.to_numpy().astype(np.int64)


def product_vectors(trained: Config, whole: Config) -> Vectors:
    """float32[N, d] of all products of `whole` by the tower that `trained` has; kept beside it."""
    work: dict[str, Any] = {
        "kind": PLACED,
        "version": 1,
        "inputs": {
            "item_tower": item_tower.manifest(trained.at(item_tower.KIND)).content_hash,
            "tensors": dataset.read_manifest(whole.at("tensors"), TENSORS).content_hash,
            "text_states": text_states_manifest(whole.at(TEXT_STATES)).content_hash,
        },
        "config": {},
    }
    file = trained.at(PLACED) / "vectors.npy"
    if artifact.finished(file.parent, **work) is None:
        device = torch.device("cuda" if trained.item_tower.train.use_gpu else "cpu")
        tower = item_tower.load(trained.at(item_tower.KIND)).to(device)
        items = item_tower.inputs_of(tower.shape, whole.at("tensors"), whole.at(TEXT_STATES))
        with artifact.write(file.parent, **work) as draft:
            np.save(draft.path / file.name, item_vectors(tower, items), allow_pickle=False)
    vectors: Vectors = np.load(file, allow_pickle=False)
    return vectors


def text_vectors(config: Config) -> Vectors:
    """float32[N, w] of all products by the whole text encoder, also where the tower has its last layers."""
    states = config
    if config.item_tower.layers_above_states:
        frozen = config.item_tower.model_copy(update={"text": "frozen"})
        states = hidden.part(config, "final-states").model_copy(update={"item_tower": frozen})
        hidden.link(config, states, "tensors")
        encode.run(states)
    return ItemInputs.load(config.at("tensors"), states.at(TEXT_STATES)).text_vectors()


def cold(prefix: str, world: World, vectors: dict[str, Vectors], config: Config) -> Figures:
    """Both measures of every system of `vectors`, and what `full` has more than each other."""
    rows, chosen = chosen_with(world)
    near = np.stack([neighbours(made, world.groups, rows, chosen) for made in vectors.values()], axis=1)
    users = np.flatnonzero(world.hidden[world.cases.targets])
    ranks = [next_ranks(made, world.cases, users) for made in vectors.values()]
    hits = np.stack([metrics.recall(found, K) for found in ranks], axis=1)
    names, options = list(vectors), config.evaluate
    cluster = _drawn_together(world, rows)
    figures = {f"{prefix}.neighbours.n": figure(len(rows), "products"), f"{prefix}.hr.n": figure(len(users), "users")}
    figures |= compared(
        f"{prefix}.{{}}.neighbours.r{K}", names, near, cluster, options.bootstrap, config.seed, ours=FULL
    )
    return figures | compared(
        f"{prefix}.{{}}.hr{K}", names, hits, _sought(world, users), options.bootstrap, config.seed, ours=FULL
    )


def _drawn_together(world: World, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[n] what a bootstrap draws together: products of the same content."""
    return np.unique(world.groups[rows], return_inverse=True)[1]


def _sought(world: World, users: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[U] the same of users: those who chose the same product next find it or miss it together."""
    return _drawn_together(world, world.cases.targets[users])


def lift(world: World, full: Vectors, lessened: dict[str, Vectors], config: Config) -> Figures:
    """`re.lift.n10` and so on (`LIFTS`): NDCG@10 of `full` minus that of others, among answered products; goal 0."""
    place = np.where(world.answered, np.cumsum(world.answered) - 1, -1)
    users = np.flatnonzero(world.answered[world.cases.targets])
    own, *others = [metrics.ndcg(next_ranks(made, world.cases, users, place), K) for made in (full, *lessened.values())]
    labels: list[tuple[str, str, float | None]] = [(f"re.with.n{K}", "ratio", None)]
    labels += [(f"{LIFTS[name]}.without.n{K}", "ratio", None) for name in lessened]
    labels += [(f"{LIFTS[name]}.lift.n{K}", "difference", 0.0) for name in lessened]
    values = np.stack([own, *others, *(own - other for other in others)], axis=1)
    found = means(values, _sought(world, users), config.evaluate.bootstrap, config.seed)
    return {"re.n": figure(len(users), "users")} | {
        label: figure(value, unit, bounds, goal)
        for (label, unit, goal), (value, bounds) in zip(labels, found, strict=True)
    }


def chosen_with(world: World) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hidden products that were chosen together with others, int64[Q], and the codes q * N + i of those, ascending."""
    count = len(world.groups)
    first, second, _ = cooccurrence.together(world.h, np.ones(len(world.h.items), bool), world.groups, WINDOW)
    codes = np.concatenate([first * count + second, second * count + first])
    codes = np.sort(codes[world.hidden[codes // count]])
    return np.unique(codes // count), codes


def neighbours(
    vectors: Vectors, groups: NDArray[np.int64], rows: NDArray[np.int64], chosen: NDArray[np.int64]
) -> Floats:
    """float64[Q] share of what was chosen with each of `rows` (see `chosen_with`) among its K nearest products."""
    count = len(groups)
    order = np.argsort(groups, kind="stable")
    starts, ends = (np.searchsorted(groups[order], groups[rows], side) for side in ("left", "right"))
    own = [np.sort(order[start:end]) for start, end in zip(starts, ends, strict=True)]
    found, _ = search(vectors[rows], vectors, K, own)
    hits = (np.isin(rows[:, None] * count + found, chosen) & (found >= 0)).sum(axis=1)
    known = np.searchsorted(chosen, (rows + 1) * count) - np.searchsorted(chosen, rows * count)
    shares: Floats = hits / np.minimum(known, K)
    return shares


def next_ranks(
    vectors: Vectors, cases: Cases, users: NDArray[np.int64], place: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """int64[len(users)] rank of each user's last choice by the mean vector of those before, or MISSED.

    `place` int64[N] gives the places of the products to rank, -1 for none; without it all are.
    """
    place = np.arange(len(vectors)) if place is None else place
    means = np.stack([vectors[cases.states[user].items].mean(axis=0) for user in users])
    exclude = [place[rows] for rows in cases.exclude.part(users)[:]]
    found, _ = search(means, vectors[place >= 0], K, [rows[rows >= 0] for rows in exclude])
    hit = found == place[cases.targets[users], None]  # bool[U, K]
    return np.where(hit.any(axis=1), hit.argmax(axis=1), metrics.MISSED)
