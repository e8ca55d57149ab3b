"""The pgvector index beside the server's own limits and beside other searches of the same vectors, in one run.

copy.rows_per_s      binary COPY as loading does it
copy.over.raw        over COPY of the bytes that the server itself gave for the same rows into an equal table; medians
                     of ROUNDS in turn
build.per_min_core   rows a minute and core of CREATE INDEX, over as many cores as its workers can use
table.bytes          on the disk, per row; what is cached takes as much memory; `index.bytes` is of the HNSW index
ef_search            candidates that a search looks at: what publishing would choose, for queries that are not measured
FILTER.recall        of the K nearest beside exact search over the vectors as the column has them, mean over queries
FILTER.full          share of the queries with K products, or all where fewer pass
FILTER.ms            median of one search
none.recall.float32  beside exact search at full precision; `.rescored`: the best K of 2 K by exact score
clients1.qps         searches without a filter, one after the other; `clients4`: by four threads, `.per_core`: over all
                     cores of this machine
lists.*              what final lists of a recipe whose ranker is trained lose to the walk (`rec.evaluate.list_loss`)
recall95.NAME        ef_search chosen for a recall of ENOUGH, not of `index.recall`; what it finds, and the rates
exact.qps            one after the other in this process on one thread, all compared by torch
faiss.qps            the same with faiss (IndexFlatIP), where it is installed
hnswlib.qps          the same with hnswlib, where it is installed, at the same m, ef_construction and ef, and its recall
over.NAME            clients1.qps over it

FILTER is `none`; `seen`, without the SEEN products nearest to the query; or what a share of the products passes:
`price` and `stock` at random, `category` those nearest to one product, as garments of a category lie together. Client
and server share the cores of this machine, and the server has as much memory as its own settings say.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rec import postgres, processors, retrieval
from rec.config import Config, Index
from rec.evaluate import vector_sets
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.bootstrap import interval, resampled_means
from rec.evaluate.list_loss import Lists
from rec.evaluate.vector_sets import VectorSet
from rec.index import recall, trial
from rec.index.connections import Connections
from rec.index.search import Filters, VectorIndex

K, SEEN = 100, 1_000
SHARES = {"50": 0.5, "10": 0.1, "1": 0.01, "0.1": 0.001}
"""Per cent of the products that pass, as figures are named."""
ROUNDS, CLIENTS = 3, 4
COPY_GOAL, BUILD_GOAL, RECALL_GOAL, QPS_GOAL, P99_GOAL_MS = 0.8, 16_700.0, 0.99, 264.0, 10.0
ENOUGH = 0.95
"""The recall at which the published rates are that QPS_GOAL is taken from."""

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
_NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Work:
    """How much is measured."""

    generated: int
    """Generated vectors."""
    queries: int
    """Distinct queries of each filter."""
    calls: int
    """Searches that are timed."""
    most: int | None = None
    """Rows of the recipe's vectors; None for all."""


FULL, QUICK = Work(1_000_000, 200, 2_000), Work(20_000, 25, 200, most=20_000)


@dataclass(frozen=True, slots=True)
class Filtered:
    """Searches of one kind, and what exact search finds."""

    filters: Filters
    exclude: list[NDArray[np.int64]]
    """Per query."""
    scores: list[Floats]
    """Per query the scores of exact search, best first."""


def measure(config: Config, work: Work, *, alone: bool = False) -> Figures:
    """Figures named RECIPE.NAME and, unless `alone`, generated.NAME, in a database of its own on the server that
    REC_DATABASE_URL names, else on one in a temporary folder."""
    drawn = 2 * work.queries
    sets = {}
    if not alone:
        sets["generated"] = vector_sets.generated(work.generated, drawn, config.item_tower.width, config.seed)
    own = vector_sets.of_recipe(config, drawn, config.seed)
    if own is not None:
        sets[config.name] = VectorSet(own.items[: work.most], own.queries)
    lists = {config.name: Lists.of(config)} if work.most is None else {}
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="rec-index-") as folder:
        try:
            for name, vectors in sets.items():
                log.info("%s: %d vectors", name, len(vectors.items))
                with trial.database(postgres.url(Path(folder) / "store")) as url:
                    resamples, seed = config.evaluate.bootstrap, config.seed
                    found = of_set(url, vectors, config.index, work, resamples, seed, lists.get(name))
                figures |= {f"{name}.{key}": value for key, value in found.items()}
        finally:
            postgres.stop_embedded(Path(folder) / "store")
    return figures


def of_set(
    url: str, vectors: VectorSet, index: Index, work: Work, resamples: int, seed: int, lists: Lists | None = None
) -> Figures:
    """All figures of one set of vectors, in the empty database at a URL: every other query says how broad searches are,
    the others are measured."""
    tuning, vectors = vectors.queries[::2], VectorSet(vectors.items, vectors.queries[1::2])
    figures = _load(url, vectors.items, index)
    places, depths = _places(vectors.items, seed)
    trial.add_products(url, places, depths, {_category(name): share for name, share in SHARES.items()})
    kept = _as_stored(vectors, index)
    connections = Connections(url, size=CLIENTS)
    asked = dict(_filtered(kept, places, depths))
    try:
        enough = index.model_copy(update={"recall": ENOUGH, "ef_search": K})
        tuned = recall.tune(connections, trial.BUNDLE, enough, tuning, K)
        searched = VectorIndex(connections, trial.BUNDLE, index)
        found = {"ef_search": figure(tuned.ef_search, "candidates"), **_rates(searched, vectors.queries, work)}
        found |= _recall("none", searched, vectors.queries, asked["none"], resamples, seed)
        found |= lists.lost(searched, resamples, seed) if lists else {}
        figures |= {f"recall95.{name}": value for name, value in found.items()}
        tuned = recall.tune(connections, trial.BUNDLE, index, tuning, K)
        figures["ef_search"] = figure(tuned.ef_search, "candidates")
        searched = VectorIndex(connections, trial.BUNDLE, index)
        figures |= _speed(searched, vectors, index, work)
        figures |= lists.lost(searched, resamples, seed) if lists else {}
        figures |= _precision(searched, vectors)
        for name, filtered in asked.items():
            figures |= _recall(name, searched, vectors.queries, filtered, resamples, seed)
        for name, share in SHARES.items():
            trial.stock(url, share)
            searched = VectorIndex(connections, trial.BUNDLE, index)  # it remembers for a while how much is in stock
            filtered = Filtered(Filters(), [_NOTHING] * len(kept.queries), _exact(kept, places <= np.float32(share)))
            figures |= _recall(f"stock{name}", searched, vectors.queries, filtered, resamples, seed)
    finally:
        connections.close()
    return figures


def _load(url: str, items: Floats, index: Index) -> Figures:
    rows = len(items)
    took = trial.load(url, [f"P{row:09d}" for row in range(rows)], items, index, ROUNDS)
    cores = min(took.workers + 1, processors.count())
    copy, raw = np.array(took.copy_s), np.array(took.raw_s)
    return {
        "rows": figure(float(rows), "rows"),
        "copy.rows_per_s": figure(round(rows / float(np.median(copy))), "rows/s"),
        "copy.over.raw": figure(round(float(np.median(raw) / np.median(copy)), 3), "times", goal=COPY_GOAL),
        "build.per_min_core": figure(round(rows / took.build_s * 60 / cores), "rows/min", goal=BUILD_GOAL),
        "table.bytes": figure(round(took.table_bytes / rows, 1), "bytes/row"),
        "index.bytes": figure(round(took.index_bytes / rows, 1), "bytes/row"),
    }


def _places(items: Floats, seed: int) -> tuple[Floats, Floats]:
    """float32[N] in (0, 1] at random, and by nearness to one item: a share p of the products is at most p."""
    rng = np.random.default_rng(seed)
    places = (np.arange(1, len(items) + 1) / len(items)).astype(np.float32)
    depths = np.empty_like(places)
    depths[np.argsort(-(items @ items[rng.integers(len(items))]), kind="stable")] = places
    return rng.permutation(places), depths


def _category(name: str) -> str:
    return f"category{name}"


def _as_stored(vectors: VectorSet, index: Index) -> VectorSet:
    """The numbers that Postgres compares."""
    if index.kind == "vector":
        return vectors
    return VectorSet(*(each.astype(np.float16).astype(np.float32) for each in (vectors.items, vectors.queries)))


def _filtered(kept: VectorSet, places: Floats, depths: Floats) -> Iterator[tuple[str, Filtered]]:
    everything = np.ones(len(kept.items), bool)
    nobody = [_NOTHING] * len(kept.queries)
    yield "none", Filtered(Filters(), nobody, _exact(kept, everything))
    nearest, _ = retrieval.search(kept.queries, kept.items, min(SEEN, len(kept.items) // 10))
    seen = [np.sort(rows) for rows in nearest]
    yield "seen", Filtered(Filters(), seen, _exact(kept, everything, seen))
    for name, share in SHARES.items():
        cheap, inside = places <= np.float32(share), depths <= np.float32(share)
        yield f"price{name}", Filtered(Filters(price_max=share), nobody, _exact(kept, cheap))
        yield f"category{name}", Filtered(Filters(categories=(_category(name),)), nobody, _exact(kept, inside))


def _exact(kept: VectorSet, passing: NDArray[np.bool_], exclude: list[NDArray[np.int64]] | None = None) -> list[Floats]:
    """Per query the scores of the K best items of the mask bool[N], fewer where fewer are left."""
    _, scores = retrieval.search(kept.queries, kept.items[passing], K, exclude)
    return [row[np.isfinite(row)] for row in scores]


def _recall(name: str, index: VectorIndex, queries: Floats, asked: Filtered, resamples: int, seed: int) -> Figures:
    found, times = [], []
    for query, exclude, exact in zip(queries, asked.exclude, asked.scores, strict=True):
        started = time.perf_counter()
        answer = index.search(query, K, exclude=exclude, filters=asked.filters)
        times.append(1e3 * (time.perf_counter() - started))
        found.append((recall.of(answer.scores, exact), len(answer.rows) == len(exact)))
    values = np.array(found, np.float64)
    low, high = interval(resampled_means(values[:, :1], resamples, seed))[:, 0].round(4).tolist()
    return {
        f"{name}.recall": figure(round(float(values[:, 0].mean()), 4), "ratio", [low, high], RECALL_GOAL),
        f"{name}.full": figure(round(float(values[:, 1].mean()), 4), "ratio", goal=1.0),
        f"{name}.ms": figure(round(float(np.median(times)), 2), "ms"),
    }


def _precision(index: VectorIndex, vectors: VectorSet) -> Figures:
    """What the column's precision costs, and what exact scores of twice as many win back."""
    plain, rescored = [], []
    exact = _exact(vectors, np.ones(len(vectors.items), bool))
    for query, truth in zip(vectors.queries, exact, strict=True):
        rows = index.search(query, 2 * K, exclude=_NOTHING, filters=Filters()).rows
        scores = vectors.items[rows] @ query
        plain.append(recall.of(scores[:K], truth))
        rescored.append(recall.of(-np.sort(-scores)[:K], truth))
    return {
        "none.recall.float32": figure(round(float(np.mean(plain)), 4), "ratio"),
        "none.recall.float32.rescored": figure(round(float(np.mean(rescored)), 4), "ratio"),
    }


def _rates(index: VectorIndex, queries: Floats, work: Work) -> Figures:
    """How fast searches without a filter are, by one client and by several."""
    calls = [queries[call % len(queries)] for call in range(work.calls)]

    def search(query: Floats) -> object:
        return index.search(query, K, exclude=_NOTHING, filters=Filters())

    for query in queries:  # what the index has on the disk is read once
        search(query)
    times = _times(search, calls)
    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(search, calls))
    together = work.calls / (time.perf_counter() - started)
    return {
        "clients1.qps": figure(round(1e3 / float(times.mean()), 1), "queries/s"),
        "clients1.p50.ms": figure(round(float(np.median(times)), 2), "ms"),
        "clients1.p99.ms": figure(round(float(np.percentile(times, 99)), 2), "ms", goal=P99_GOAL_MS),
        f"clients{CLIENTS}.qps": figure(round(together, 1), "queries/s"),
        f"clients{CLIENTS}.qps.per_core": figure(round(together / processors.count(), 1), "queries/s", goal=QPS_GOAL),
    }


def _speed(index: VectorIndex, vectors: VectorSet, options: Index, work: Work) -> Figures:
    """`_rates`, and beside them those of other searches of the same vectors."""
    figures = _rates(index, vectors.queries, work)
    rate, queries = figures["clients1.qps"]["value"], list(vectors.queries[: work.queries])
    for name, other in _others(vectors, options, index.ef_search):
        rate_of = 1e3 / float(_times(other, queries).mean())
        figures[f"{name}.qps"] = figure(round(rate_of, 1), "queries/s")
        figures[f"over.{name}"] = figure(round(rate / rate_of, 3), "times")
        if name == "hnswlib":
            truth = _exact(vectors, np.ones(len(vectors.items), bool))
            found = [recall.of(other(query), exact) for query, exact in zip(vectors.queries, truth, strict=True)]
            figures[f"{name}.recall"] = figure(round(float(np.mean(found)), 4), "ratio")
    return figures


def _others(vectors: VectorSet, options: Index, ef_search: int) -> Iterator[tuple[str, Callable[[Floats], Floats]]]:
    """Searches in this process, of one thread, that give scores, best first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield "exact", lambda query: retrieval.search(query[None], vectors.items, K)[1][0]
    finally:
        torch.set_num_threads(threads)
    width = vectors.items.shape[1]
    if _installed("faiss"):
        import faiss

        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            flat = faiss.IndexFlatIP(width)
            flat.add(vectors.items)
            yield "faiss", lambda query: flat.search(query[None], K)[0][0]
            del flat
        finally:
            faiss.omp_set_num_threads(threads)
    if not _installed("hnswlib"):
        return
    import hnswlib

    graph = hnswlib.Index(space="ip", dim=width)
    graph.init_index(len(vectors.items), ef_construction=options.ef_construction, M=options.m)
    graph.add_items(vectors.items)
    graph.set_ef(max(ef_search, K))
    yield "hnswlib", lambda query: 1 - graph.knn_query(query[None], k=K, num_threads=1)[1][0]  # of distances


def _installed(package: str) -> bool:
    found = find_spec(package) is not None
    if not found:
        log.warning("%s is not installed: its figures are left out", package)
    return found


def _times(work: Callable[[Floats], object], queries: list[Floats]) -> NDArray[np.float64]:
    """Milliseconds of each call."""
    times = []
    for query in queries:
        started = time.perf_counter()
        work(query)
        times.append(1e3 * (time.perf_counter() - started))
    return np.array(times)
