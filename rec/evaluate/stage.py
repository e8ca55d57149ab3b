"""The stage: evaluate retrieval and the final list on each user's last event, beside the controls.

Every item that is a candidate is ranked: no sampled negatives. The slice `cold_users` asks again for some of
the users with their history hidden, so that only context and profile are known. `shuffled` and `shuffled_retrieval` are
final list and retrieval asked for other users' targets, over all users.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from rec import artifact, dataset, histories, samples
from rec.artifact import Manifest
from rec.config import Config
from rec.data import sample
from rec.evaluate import calibration, controls, diversity, ranking, report, slices
from rec.evaluate import cases as test_cases
from rec.evaluate.cases import Cases
from rec.evaluate.figures import slice_figures
from rec.evaluate.metrics import MISSED
from rec.evaluate.systems import TOP, Answers, Recommender, Retrieval, first, places
from rec.features import items as item_features
from rec.features.items import ItemFeatures
from rec.histories import Histories
from rec.models import fused, user_tower
from rec.models.user_vectors import UserVectors
from rec.schema import INTERACTIONS, PRODUCTS, USERS
from rec.schema import vectors as vectors_of
from rec.sources import tables
from rec.train.user import item_vectors

KIND = "evaluation"
VERSION = 4
MADE_BY = "python jobs/evaluate.py"
COLD_USERS = 2_000
"""Users who are asked for again with their history hidden."""

Ints = NDArray[np.int64]


def run(config: Config) -> dict[str, Any]:
    """Write the `evaluation` artifact (report.json, report.html); does nothing when that is done already."""
    target = config.at(KIND)
    inputs = {
        "vectors": dataset.read_manifest(config.at("vectors"), vectors_of(config.item_tower.width)).content_hash,
        "products": dataset.read_manifest(config.at("products"), PRODUCTS).content_hash,
        "users": dataset.read_manifest(config.at("users"), USERS).content_hash,
        "events": dataset.read_manifest(config.at("events"), INTERACTIONS).content_hash,
        "user_tower": user_tower.manifest(config.at("user_tower")).content_hash,
        "sources": tables.manifest(config.at("sources")).content_hash,
        "features": item_features.manifest(config.at("features")).content_hash,
        "ranker": artifact.read(
            config.at("ranker"), kind=fused.KIND, version=fused.VERSION, made_by="python jobs/train_ranker.py"
        ).content_hash,
    }
    made_by = {
        "evaluate": config.evaluate.identity(),
        "candidates": config.ranker.candidates,
        "quotas": config.ranker.quotas.identity(),
        "history": config.user_tower.history,
        "exclude_seen": config.user_tower.exclude_seen,
        "text": config.text.identity(),
        "source": config.source.kind,
        "seed": config.seed,
    }
    done = artifact.finished(target, kind=KIND, version=VERSION, inputs=inputs, config=made_by)
    if done is not None:
        return _facts(target, done) | {"skipped": True}
    started = time.monotonic()
    found = evaluate(config)
    with artifact.write(target, kind=KIND, version=VERSION, inputs=inputs, config=made_by) as draft:
        artifact.write_json(draft.path / "report.json", found)
        (draft.path / "report.html").write_text(report.page(found), encoding="utf-8")
        draft.note(users=found["users"], **_headline(found))
    manifest = artifact.read(target, kind=KIND, version=VERSION, made_by=MADE_BY)
    return _facts(target, manifest) | {"seconds": round(time.monotonic() - started, 1)}


def evaluate(config: Config) -> dict[str, Any]:
    """The report of a recipe whose ranker is trained, as JSON values."""
    h = histories.load(config.root)
    counts = samples.training_popularity(h)
    options = config.evaluate
    cases = test_cases.of_recipe(config, h, max_users=options.max_users)
    recommender = recommender_of(config, h)
    category, order = _categories(recommender.items), controls.popular_order(h)
    answers = recommender.answer(cases, "final lists")
    ranks = {"retrieval": answers.retrieval, "final": answers.final}
    ranks |= controls.ranks(cases, order, category, config.seed)
    shuffled = _shuffled(recommender, cases, answers, config.seed)
    groups = _planted(config, h, cases)
    figures = {
        name: slice_figures(
            {system: r[rows] for system, r in (ranks | shuffled if name == "all" else ranks).items()},
            options.cutoffs,
            options.bootstrap,
            config.seed,
        )
        for name, rows in slices.of(cases, counts, groups).items()
    }
    figures["cold_users"], cold_provenance = _cold_users(config, recommender, order, category, cases)
    return {
        "recipe": config.name,
        "seed": config.seed,
        "items": {"catalogue": h.num_items, "with_training_events": int((counts > 0).sum())},
        "users": cases.counts,
        "candidates": config.ranker.candidates,
        "exclude_seen": config.user_tower.exclude_seen,
        "cutoffs": options.cutoffs,
        "popularity_quartiles": slices.quartile_bounds(counts),
        f"lists@{TOP}": _lists(config, cases, answers, order),
        "calibration": _calibration(config, cases, answers),
        "provenance": {"all": answers.provenance, "cold_users": cold_provenance},
        "slices": figures,
    }


def retrieval_of(config: Config, item_vectors: NDArray[np.float32]) -> Retrieval:
    """Retrieval of a recipe that went through candidates."""
    return Retrieval(
        vectors=UserVectors(user_tower.load(config.at("user_tower")), config.text),
        items=item_vectors,
        sources=tables.load(config.at("sources")),
        num_candidates=config.ranker.candidates,
        quotas=config.ranker.quotas,
    )


def recommender_of(config: Config, h: Histories) -> Recommender:
    """The whole chain of a recipe whose ranker is trained."""
    vectors = load_file(config.at("user_tower") / "item_vectors.safetensors")["item_vectors"]
    items = item_features.load(config.at("features"), vectors)
    ranker = fused.load(config.at("ranker"), items.spec)
    return Recommender(retrieval_of(config, vectors), items, ranker, samples.past_popularity(h))


def _shuffled(recommender: Recommender, cases: Cases, answers: Answers, seed: int) -> dict[str, Ints]:
    """int64[U] ranks of other users' targets, MISSED for the few users who could be given none."""
    dealt, kept = controls.shuffled(cases, seed)
    final, retrieval = (np.full(len(cases), MISSED, np.int64) for _ in range(2))
    final[kept] = places([answers.reranked[user].rows for user in kept], dealt.targets)
    retrieval[kept] = ranking.by_vectors(answers.vectors[kept], recommender.items.vectors, dealt.targets, dealt.exclude)
    return {"shuffled": final, "shuffled_retrieval": retrieval}


def _lists(config: Config, cases: Cases, answers: Answers, order: Ints) -> dict[str, Any]:
    """Coverage and diversity of the first TOP items of every system that makes lists."""
    frozen = item_vectors(config.root, config.item_tower.width)
    tops = {
        "final": answers.final_top,
        "retrieval": answers.retrieval_top,
        "popular": first(controls.popular_lists(order, cases.exclude, TOP)),
    }
    return {name: diversity.figures(top, frozen, config.evaluate.bootstrap, config.seed) for name, top in tops.items()}


def _calibration(config: Config, cases: Cases, answers: Answers) -> dict[str, Any]:
    """Of the ranker's probabilities, and of the softmax of retrieval's scores at the temperature of its loss, over the
    same candidates."""
    temperature, options = np.float32(config.user_tower.temperature), config.evaluate
    chances: dict[str, tuple[list[calibration.Probabilities], Ints]] = {
        "final": ([each.probabilities for each in answers.reranked], answers.final),
        "retrieval": (
            [calibration.softmax(each.scores / temperature) for each in answers.found],
            places([each.rows for each in answers.found], cases.targets),
        ),
    }
    return {
        name: calibration.figures(values, hits, options.bootstrap, config.seed)
        for name, (values, hits) in chances.items()
    }


def _categories(items: ItemFeatures) -> Ints:
    """int64[N] STD id of each item's category, -1 where unknown or when STD is not in use."""
    if "category" not in items.keys:
        return np.full(len(items.std), -1, np.int64)
    column = items.keys.index("category")
    ids = items.std[:, column].astype(np.int64)
    return np.where(ids == items.unknown[column], -1, ids)


def _planted(config: Config, h: Histories, cases: Cases) -> dict[str, Ints]:
    """Slices of the synthetic sample's groups; none for other sources."""
    if config.source.kind != "sample":
        return {}
    truth = {user_id: truth.group for user_id, truth in sample.generate(config.seed).truth.items()}
    return slices.planted(cases, h.user_ids, truth)


def _cold_users(
    config: Config, recommender: Recommender, order: Ints, category: Ints, cases: Cases
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and provenance for a seeded draw of the cases with their histories hidden."""
    rows = np.arange(len(cases))
    if len(rows) > COLD_USERS:
        rows = np.sort(np.random.default_rng(config.seed).choice(rows, COLD_USERS, replace=False))
    hidden = cases.part(rows).without_histories()
    answers = recommender.answer(hidden, "final lists of cold users")
    ranks = {"retrieval": answers.retrieval, "final": answers.final}
    ranks |= controls.ranks(hidden, order, category, config.seed)
    figures = slice_figures(ranks, config.evaluate.cutoffs, config.evaluate.bootstrap, config.seed)
    return figures, answers.provenance


def _headline(found: dict[str, Any]) -> dict[str, Any]:
    """Each system's NDCG at the first cutoff of 10 or more, over all users."""
    cutoff = min((k for k in found["cutoffs"] if k >= 10), default=max(found["cutoffs"]))
    figures = found["slices"]["all"]["figures"]
    return {f"ndcg@{cutoff}": {system: values[f"ndcg@{cutoff}"] for system, values in figures.items()}}


def _facts(target: Path, manifest: Manifest) -> dict[str, Any]:
    return {"stage": "evaluate", "artifact": str(target), **manifest.facts}
