"""The stage on a tiny shop whose ranker has one known weight: what is counted, compared, and written."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rec import artifact, dataset, histories, samples, source_tables
from rec.config import Config, Evaluate, ItemTower, Quotas, Ranker, Source, UserTower
from rec.evaluate import controls
from rec.evaluate.cases import last_events
from rec.evaluate.list_loss import Lists
from rec.evaluate.metrics import ndcg
from rec.evaluate.stage import evaluate, run
from rec.features import items as item_features
from rec.index.search import Filters, Found
from rec.models import fused, user_tower
from rec.models.fused import FusedDeepFM
from rec.models.user_tower import Shape
from rec.retrieval import SOURCES, popular, search
from rec.schema import PRODUCTS, TENSORS
from rec.vocab.std import StdVocabulary
from tests.user_tower.world import NUM_ITEMS, PER_CLUSTER, WIDTH, item_vectors, make, write

CANDIDATES = 12
ALONE = Quotas(item=0, cooccurrence=0)
"""The search by the user vector alone."""


def _shop(store: Path, quotas: Quotas = ALONE, **weights: float) -> Config:
    """All that evaluation reads; the ranker's score is the sum of the named dense fields times their weights."""
    config = Config(
        name="tiny",
        store=str(store),
        source=Source(kind="files"),
        item_tower=ItemTower(width=WIDTH),
        user_tower=UserTower(inputs=["behaviour"], history=8),
        ranker=Ranker(candidates=CANDIDATES, quotas=quotas, hidden=[4]),
        evaluate=Evaluate(cutoffs=[5, 10, CANDIDATES, NUM_ITEMS], bootstrap=200),
    )  # fmt: skip
    root, vocabulary = config.root, StdVocabulary.load(None)
    make(root, num_users=120)
    categories = vocabulary.values("category")
    rows = [
        {
            "product_id": f"p{row:02d}",
            "group": row,
            "std_key": [vocabulary.key_id("category")],
            "std_id": [vocabulary.id_of("category", categories[row // PER_CLUSTER])],
            "re_key": [],
            "re_id": [],
            "title_id": [],
        }
        for row in range(NUM_ITEMS)
    ]
    write(root, TENSORS, rows)
    h = histories.load(root)
    torch.manual_seed(0)
    tower = user_tower.UserTower(
        Shape(WIDTH, 8, 1, 2, 0, 0.0, 0, 0.0, 0, ("behaviour",), "minilm", 0, tuple(h.profile_names), (0.0,), (1.0,))
    )
    with artifact.write(
        root / "user_tower", kind=user_tower.KIND, version=user_tower.VERSION, inputs={}, config={}
    ) as draft:
        tower.save(draft.path, item_vectors())
    source_tables.run(config)
    items = item_features.build(
        dataset.read(root / "products", PRODUCTS),
        dataset.read(root / "tensors", TENSORS),
        vocabulary,
        re_rows=4,
        re_length=2,
        history=8,
        popularity=samples.training_popularity(h),
        profiles=h.profiles,
        profile_names=h.profile_names,
        inputs=("std",),
        vectors=item_vectors(),
    )
    with artifact.write(
        root / "features", kind=item_features.KIND, version=item_features.VERSION, inputs={}, config={}
    ) as draft:
        items.save(draft.path)
    ranker = FusedDeepFM(items.spec, 2, [4])
    ranker.std.fill_(1)
    ranker.low.fill_(-1e9)
    ranker.high.fill_(1e9)
    ranker.top.weight.data.zero_()
    for name, weight in weights.items():
        ranker.linear[list(items.spec.dense).index(name)] = weight
    with artifact.write(root / "ranker", kind=fused.KIND, version=fused.VERSION, inputs={}, config={}) as draft:
        ranker.save(draft.path)
    return config


def _ndcg(report: dict[str, Any], system: str, part: str = "all") -> float:
    return float(report["slices"][part]["figures"][system]["ndcg@10"]["value"])


@pytest.fixture(scope="module")
def by_score(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = _shop(tmp_path_factory.mktemp("score"), score=1.0)
    run(config)
    return config


@pytest.fixture(scope="module")
def report(by_score: Config) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((by_score.at("evaluation") / "report.json").read_text(encoding="utf-8"))
    return found


def test_a_ranker_that_keeps_the_order_gives_retrievals_figures(report: dict[str, Any]) -> None:
    """Cutoffs lie within the candidates, so the two lists agree there; beyond, the final list has missed."""
    figures = report["slices"]["all"]["figures"]
    for metric in ("recall@5", "ndcg@5", "recall@10", "ndcg@10", "recall@12", "ndcg@12"):
        assert figures["final"][metric] == figures["retrieval"][metric]
        assert figures["final"][metric.replace("ndcg", "mrr")] == figures["retrieval"][metric.replace("ndcg", "mrr")]
    beyond = f"mrr@{NUM_ITEMS}"
    assert figures["final"][beyond]["value"] < figures["retrieval"][beyond]["value"]
    assert report["slices"]["all"]["differences"]["retrieval"]["ndcg@10"]["value"] == 0


def test_content_beats_the_controls_and_random_is_chance(report: dict[str, Any]) -> None:
    """Even an untrained tower follows the clusters that its item vectors have."""
    assert _ndcg(report, "retrieval") > _ndcg(report, "popular") > 0
    assert _ndcg(report, "category_popular") > _ndcg(report, "popular")
    recall = report["slices"]["all"]["figures"]["random"]["recall@10"]
    assert recall["ci95"][0] < 10 / (NUM_ITEMS - 6) < recall["ci95"][1] + 0.05


def test_other_users_targets_are_found_no_better_than_popular_ones_are(report: dict[str, Any]) -> None:
    """Shoppers stay in their cluster: the lists are about them, so they find little of what others chose."""
    for system, other in (("final", "shuffled"), ("retrieval", "shuffled_retrieval")):
        assert _ndcg(report, other) < 0.7 * _ndcg(report, system)
        assert report["slices"]["all"]["figures"][other]["ndcg@10"]["ci95"][0] < _ndcg(report, "popular")
    assert "shuffled" not in report["slices"]["warm_items"]["figures"]


def test_lists_and_probabilities_are_reported(report: dict[str, Any]) -> None:
    lists = report["lists@10"]
    assert lists["popular"]["coverage"] < lists["retrieval"]["coverage"] == lists["final"]["coverage"]
    assert lists["popular"]["gini"] > lists["retrieval"]["gini"]
    assert lists["retrieval"]["similarity"]["value"] > lists["popular"]["similarity"]["value"], "one's own cluster"
    found = report["slices"]["all"]["figures"]["final"][f"recall@{CANDIDATES}"]["value"]
    tested = report["users"]["tested"]
    for system in ("final", "retrieval"):
        assert report["calibration"][system]["requests"] == round(found * tested)
        assert report["calibration"][system]["candidates"] == CANDIDATES * report["calibration"][system]["requests"]


def test_a_slice_of_few_users_says_so(report: dict[str, Any]) -> None:
    few = {name: part["few"] for name, part in report["slices"].items()}
    assert (few["all"], few["cold_items"]) == (False, True)


def test_cold_items_have_their_own_slice_where_popular_is_blind(report: dict[str, Any]) -> None:
    parts = {name: part["users"] for name, part in report["slices"].items()}
    assert (
        parts["all"]
        == parts["warm_items"] + parts["cold_items"]
        == sum(parts[n] for n in parts if n.startswith("history"))
    )
    assert parts["warm_items"] == sum(parts[f"popularity:{n}"] for n in range(1, 5))
    assert parts["cold_items"] == 20
    assert (parts["same_moment"], parts["earlier"]) == (0, parts["all"])  # a day lies between two events
    assert parts["cold_users"] == parts["all"]
    assert _ndcg(report, "popular", "cold_items") == 0
    assert report["items"] == {"catalogue": NUM_ITEMS, "with_training_events": NUM_ITEMS - PER_CLUSTER}


def test_the_final_list_reranks_candidates_only(tmp_path: Path, report: dict[str, Any]) -> None:
    """The worst order of the candidates: what retrieval puts first comes last, but the same items are there."""
    worst = evaluate(_shop(tmp_path, score=-1.0))
    assert _ndcg(worst, "retrieval") == _ndcg(report, "retrieval")
    assert _ndcg(worst, "final") < 0.6 * _ndcg(worst, "retrieval")
    figures = worst["slices"]["all"]["figures"]
    assert figures["final"]["recall@12"] == figures["retrieval"]["recall@12"]


def test_the_report_says_where_candidates_come_from(tmp_path: Path, report: dict[str, Any]) -> None:
    """Recall without a source is the recall of a recipe that gives it no quota."""
    alone = report["provenance"]["all"]
    assert alone["sources"]["ann"] == {"candidates": 1, "hits": 1, "hits_alone": 1}
    assert alone["recall"] == pytest.approx(report["slices"]["all"]["figures"]["retrieval"]["recall@12"]["value"])
    both, one = (
        evaluate(_shop(tmp_path / str(item), Quotas(item=item, cooccurrence=0.25), score=1.0)) for item in (0.25, 0)
    )
    warm, cold = both["provenance"]["all"], both["provenance"]["cold_users"]
    assert list(warm["sources"]) == list(SOURCES)
    assert warm["recall"] == both["slices"]["all"]["figures"]["final"]["recall@12"]["value"]
    assert warm["sources"]["item"]["recall_without"] == one["provenance"]["all"]["recall"] != warm["recall"]
    for name in ("item", "cooccurrence"):
        assert 3 / CANDIDATES <= warm["sources"][name]["candidates"] < 1
        assert cold["sources"][name]["candidates"] == 0
    assert warm["sources"]["popular"] == {"candidates": 0, "hits": 0, "hits_alone": 0, "recall_without": warm["recall"]}
    assert cold["sources"]["popular"]["candidates"] >= 0.5
    assert cold["sources"]["popular"]["recall_without"] != cold["recall"]


def test_the_report_is_written_once_with_the_same_bytes(by_score: Config, tmp_path: Path) -> None:
    assert run(by_score)["skipped"]
    again = _shop(tmp_path, score=1.0)
    first = run(again)
    assert first["users"]["tested"] == 120 - first["users"]["left_out_target_seen"]
    for name in ("report.json", "report.html"):
        assert (again.at("evaluation") / name).read_bytes() == (by_score.at("evaluation") / name).read_bytes()


def test_the_page_is_self_contained_and_shows_every_slice(by_score: Config) -> None:
    page = (by_score.at("evaluation") / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "src=" not in page
    assert "<link" not in page
    for heading in (
        "all users",
        "target without training events",
        "history hidden",
        "same-category popular",
        "last known event before the target",
        "targets shuffled",
        "(20 users, too few to say much)",
        "known events",
        "mean predicted probability",
        "Gini",
        "co-occurrence",
        "recall without",
    ):
        assert heading in page
    assert "$" not in page


class Walk:
    """An index that misses the nearest `missed` products, and otherwise finds what exact search does."""

    def __init__(self, missed: int) -> None:
        self._missed = missed

    def search(self, vector: np.ndarray, k: int, *, exclude: np.ndarray, filters: Filters) -> Found:
        rows, scores = search(vector[None], item_vectors(), k + self._missed, [exclude])
        return Found(rows=rows[0, self._missed :], scores=scores[0, self._missed :], path="hnsw", underfilled=False)


def test_what_final_lists_lose_to_a_walk_is_what_it_does_not_find(by_score: Config, report: dict[str, Any]) -> None:
    lists = Lists.of(by_score)
    assert lists is not None
    whole, half, none = (
        {name: each["value"] for name, each in lists.lost(Walk(n), 100, 3).items()} for n in (0, 6, NUM_ITEMS)
    )
    assert (whole["lists.recall"], whole["lists.gain.n10"]) == (1, 0)
    assert whole["lists.n10"] == pytest.approx(_ndcg(report, "final"), abs=1e-4)
    assert half["lists.recall"] == pytest.approx(0.5, abs=0.02)
    assert whole["lists.n10"] > half["lists.n10"] > none["lists.n10"] == none["lists.recall"] == 0
    assert half["lists.gain.n10"] == pytest.approx(half["lists.n10"] - whole["lists.n10"], abs=2e-4)
    assert none["lists.n"] == len(lists.cases)
    assert Lists.of(by_score.model_copy(update={"name": "other"})) is None


def test_controls_count_all_events_but_the_tests(by_score: Config, report: dict[str, Any]) -> None:
    h = histories.load(by_score.root)
    cases = last_events(h, np.full(NUM_ITEMS, -1), history=8, exclude_seen=True, max_users=None, seed=0)
    last = set((h.offsets[1:] - 1).tolist())  # everyone has three events or more
    counts = Counter(item for event, item in enumerate(h.items.tolist()) if event not in last)
    order = sorted(range(NUM_ITEMS), key=lambda row: (-counts[row], row))
    assert controls.popular_order(h).tolist() == order != popular(samples.training_popularity(h)).tolist()
    category = np.arange(NUM_ITEMS) // PER_CLUSTER
    found = controls.ranks(cases, np.array(order), category, 3)
    assert _ndcg(report, "popular") == pytest.approx(ndcg(found["popular"], 10).mean(), abs=1e-6)
    for user in range(0, len(cases), 7):
        kept = [row for row in order if row not in cases.exclude[user]]
        assert kept.index(cases.targets[user]) == found["popular"][user]
        favourite = category[cases.states[user].items[-1]]
        kept.sort(key=lambda row: category[row] != favourite)
        assert kept.index(cases.targets[user]) == found["category_popular"][user]
    unknown = controls.ranks(cases, np.array(order), np.full(NUM_ITEMS, -1), 3)
    assert unknown["category_popular"].tolist() == unknown["popular"].tolist()
