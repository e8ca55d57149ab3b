"""How much of exact search the index finds: of searches as they are served, and of a bundle's graph before promotion.

Recall of one search is the share of the exact answer that was found, by score: whatever is as near as the last product
of the exact answer counts, so that products with the same vector are no misses (Aumüller et al., ANN-Benchmarks, 2020,
section 3.2). A search belongs to one class:

    category, price, seen    what it filters by, joined by + where it is several; seen: rows to leave out
    stock                    nothing of these, and some product is out of stock
    none                     nothing of these, and every product is in stock
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from rec.bundle import Bundle
from rec.config import Index
from rec.errors import ArtifactError
from rec.index import tables
from rec.index.connections import Connections
from rec.index.search import BROADEST, Filters, Found, VectorIndex

TOLERANCE = 2e-6
"""How far apart two sums of the same products of unit vectors may be, by the order they were added in."""
BREADTHS = (160, 200, 240, 320, 400, 500, 640, 800, BROADEST)
"""Values of hnsw.ef_search that are tried."""
SEEN = 1_000
"""Longest list of seen products that `questions` asks with."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Asked:
    """One search."""

    vector: Floats
    """float32[d]"""
    k: int
    exclude: NDArray[np.int64]
    """int64[E] item rows to leave out."""
    filters: Filters


@dataclass(frozen=True, slots=True)
class Measured:
    """Searches of one class beside exact search."""

    searches: int
    recall: float
    """Mean over the searches."""
    full: float
    """Share of the searches that found as many products as exact search."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """How a bundle's graph is searched."""

    ef_search: int
    """Candidates that a walk looks at."""
    recall: float
    """Mean over vectors of shoppers, without any filter."""


def of(found: Floats, exact: Floats) -> float:
    """Recall of scores float32[F], beside those of exact search float32[E], best first; 1 where E is 0."""
    if not len(exact):
        return 1.0
    return min(float((found >= exact[-1] - TOLERANCE).sum()) / len(exact), 1.0)


def filter_class(asked: Asked, *, sold_out: bool) -> str:
    """The class of a search; `sold_out`: whether some product is out of stock."""
    parts = {
        "category": bool(asked.filters.categories),
        "price": asked.filters.price_min is not None or asked.filters.price_max is not None,
        "seen": len(asked.exclude) > 0,
    }
    return "+".join(name for name, is_so in parts.items() if is_so) or ("stock" if sold_out else "none")


def compare(
    index: VectorIndex, asked: Asked, found: Found, connections: Connections | None = None
) -> tuple[str, float]:
    """Class and recall of a search that was answered, with `connections` other than the index's where they are given.

    Stock or prices that changed since the answer count as misses.
    """
    exact = index.exact(asked.vector, asked.k, exclude=asked.exclude, filters=asked.filters, connections=connections)
    return filter_class(asked, sold_out=index.sold_out(connections)), of(found.scores, exact.scores)


def measure(index: VectorIndex, searches: Iterable[Asked]) -> dict[str, Measured]:
    """Search, and search exactly; by class."""
    seen: dict[str, list[tuple[float, bool]]] = {}
    sold_out = index.sold_out()
    for asked in searches:
        found, exact = (
            ask(asked.vector, asked.k, exclude=asked.exclude, filters=asked.filters)
            for ask in (index.search, index.exact)
        )
        of_class = seen.setdefault(filter_class(asked, sold_out=sold_out), [])
        of_class.append((of(found.scores, exact.scores), len(found.rows) == len(exact.rows)))
    return {
        name: Measured(len(pairs), *(round(float(column), 6) for column in np.mean(pairs, axis=0)))
        for name, pairs in seen.items()
    }


def questions(bundle: Bundle, vectors: Floats, k: int, seed: int) -> list[Asked]:
    """For each of the user vectors float32[U, d] one search of every class that the bundle's products have.

    A category is that of a product drawn at random; a range of prices is between those of two; seen are the SEEN
    nearest products, at most a tenth of all, so that the search has to get past them.
    """
    rng = np.random.default_rng(seed)
    table, items = bundle.products(["category", "price"]), bundle.item_vectors()
    categories = [names for names in table["category"].to_pylist() if names]
    prices = table["price"].drop_null().to_numpy()
    prices = prices[np.isfinite(prices)]
    nothing, made = np.empty(0, np.int64), []
    for vector in vectors:
        made.append(Asked(vector, k, nothing, Filters()))
        if categories:
            names = tuple(categories[rng.integers(len(categories))])
            made.append(Asked(vector, k, nothing, Filters(categories=names)))
        if len(prices):
            low, high = sorted(rng.choice(prices, 2).tolist())
            made.append(Asked(vector, k, nothing, Filters(price_min=low, price_max=high)))
        nearest = np.argsort(-(items @ vector), kind="stable")[: min(SEEN, len(items) // 10)]
        made.append(Asked(vector, k, np.sort(nearest), Filters()))
    return made


def tune(connections: Connections, bundle: str, index: Index, vectors: Floats, k: int) -> Tuned:
    """Find how broad a search of a loaded bundle must be, and have it searched like that from now on.

    That is the least of `index.ef_search` and the BREADTHS above it with which the HNSW index finds `index.recall` for
    the k products nearest to each of the user vectors float32[U, d], without any filter, or the largest of them. It
    needs no products, which come with the promotion.
    """
    walk = sql.SQL("SELECT -(embedding <#> %(vector)s) FROM {} ORDER BY embedding <#> %(vector)s LIMIT %(k)s")
    compare_all = sql.SQL(
        "WITH compared AS MATERIALIZED (SELECT embedding <#> %(vector)s AS distance FROM {})"
        " SELECT -distance FROM compared ORDER BY distance LIMIT %(k)s"
    )
    breadths = [index.ef_search, *(breadth for breadth in BREADTHS if breadth > index.ef_search and index.recall)]
    with connections.use() as connection:
        entry = tables.entry(connection, bundle)
        value = tables.embedding(entry.kind)
        asked = [{"vector": value(vector), "k": k} for vector in vectors]

        def answers(query: sql.SQL) -> list[Floats]:
            statement = query.format(entry.table)
            return [np.array(connection.execute(statement, each).fetchall(), np.float32).ravel() for each in asked]

        exact = answers(compare_all)
        connection.execute("SET LOCAL enable_seqscan = off")  # of few rows, reading all is cheaper to the planner
        for breadth in breadths:
            connection.execute("SELECT set_config('hnsw.ef_search', %s, true)", (str(breadth),))
            recall = float(np.mean([of(*pair) for pair in zip(answers(walk), exact, strict=True)]))
            if recall >= index.recall:
                break
        connection.execute("UPDATE bundles SET ef_search = %s WHERE id = %s", (breadth, bundle))
    return Tuned(breadth, round(recall, 6))


def check_floor(bundle: Bundle, tuned: Tuned | None, index: Index, *, force: bool) -> None:
    """Raise ArtifactError when the recall of a bundle's graph is below `index.min_recall` and `force` is not given."""
    if tuned is None or tuned.recall >= index.min_recall or force:
        return
    remedy = f"publish again with a higher index.recall (now {index.recall:g})"
    if tuned.ef_search >= BROADEST:
        remedy = (
            f"publish again with higher index.m and index.ef_construction (now {index.m} and {index.ef_construction}), "
            "which builds another index"
        )
    raise ArtifactError(
        f"the index of bundle {bundle.id} finds {tuned.recall:.4f} of the {bundle.config.ranker.candidates} nearest "
        f"products with ef_search = {tuned.ef_search}, less than index.min_recall = {index.min_recall:g}, so it is "
        f"not promoted, and stays active if it was: {remedy}, or promote it anyway with --force"
    )


def as_json(found: Mapping[str, Measured]) -> dict[str, dict[str, float]]:
    """JSON values of `measure`."""
    return {name: {"searches": m.searches, "recall": m.recall, "full": m.full} for name, m in found.items()}
