"""Each planted structure of the sample is found, and by the input that holds it: without that input it is lost."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from rec import config, embed, encode, histories, samples
from rec.config import Config
from rec.data import ingest, sample
from rec.enrich import stage as enrich
from rec.evaluate import cases, ranking
from rec.evaluate.bootstrap import interval, resampled_means
from rec.models import text_encoder, user_tower
from rec.train import item, user
from rec.vocab import tensorize
from tests.train.in_process import data_in_process, in_process

CUTOFF = 10
RESAMPLES = 2_000

ABLATIONS = [
    ("size", ['user_tower.inputs=["behaviour","context"]']),
    ("context", ['user_tower.inputs=["behaviour","profile"]']),
    ("re_taste", ['item_tower.inputs=["std","title"]']),
    ("title", ['item_tower.inputs=["std","re"]']),
]
"""Planted group of shoppers, and the configuration that lacks what shows it."""

SHORTER = ["item_tower.train.epochs=25"]
ONE_CPU = ["text.cpus_per_actor=1"]
"""A second thread waits busily while other tests run."""

Hits = Mapping[str, NDArray[np.float64]]
"""Group → float64[U], 1 where the target of a shopper's last event is among the first CUTOFF retrieved."""


def _hits(given: Config) -> Hits:
    """Train the towers of `given`, unless they are there, and retrieve for each shopper's last event."""
    with in_process(item.loop, user.loop), data_in_process():
        item.run(given)
        embed.run(given)
        user.run(given)
    h = histories.load(given.root)
    test = cases.last_events(
        h,
        samples.created_us(given.root),
        history=given.user_tower.history,
        exclude_seen=given.user_tower.exclude_seen,
        max_users=None,
        seed=given.seed,
    )
    tower = user_tower.load(given.at("user_tower"))
    vectors = load_file(given.at("user_tower") / "item_vectors.safetensors")["item_vectors"]
    said = [state.context for state in test.states]
    contexts = text_encoder.load(given.text).embed(said) * np.array([[text != ""] for text in said], np.float32)
    ranks = ranking.by_vectors(tower.vectors(test.states, contexts), vectors, test.targets, test.exclude)
    truth = sample.generate(given.seed).truth
    groups = np.array([truth[h.user_ids[u]].group for u in test.users])
    return {str(group): (ranks[groups == group] < CUTOFF).astype(np.float64) for group in np.unique(groups)}


@dataclass(frozen=True, slots=True)
class Trained:
    """The full run, and how to run a variant of it in the same store."""

    hits: Hits
    variant: Callable[[list[str]], Hits]


@pytest.fixture(scope="module")
def trained(new_store: Callable[[], Path], ray_local: None) -> Trained:
    """The demo recipe up to the user tower, the item tower trained for less, with the shipped answers alone."""
    common = [f"store={new_store()}", "enrich.max_calls=0", *SHORTER, *ONE_CPU]
    full = config.load("demo", common)
    for stage in (ingest.run, enrich.run, tensorize.run):
        stage(full)
    with data_in_process():
        encode.run(full)
    return Trained(_hits(full), lambda changes: _hits(config.load("demo", [*common, *changes])))


@pytest.mark.long
@pytest.mark.parametrize(("group", "without"), ABLATIONS, ids=[group for group, _ in ABLATIONS])
def test_planted_structure_needs_its_input(trained: Trained, group: str, without: list[str]) -> None:
    full = trained.hits[group]
    low, _ = interval(resampled_means(full[:, None], RESAMPLES, 17))[:, 0]
    ablated = trained.variant(without)[group].mean()
    assert ablated < low, f"{group}: Recall@{CUTOFF} {full.mean():.3f} (from {low:.3f}), without {ablated:.3f}"


@pytest.mark.long
def test_new_products_are_found_by_their_content(trained: Trained) -> None:
    """Launched after training: a random order would have about CUTOFF / 398 of them."""
    assert trained.hits["launch"].mean() > 10 * CUTOFF / 398
