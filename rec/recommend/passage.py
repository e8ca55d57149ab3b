"""What a request became at each stage, and where on that way a product was lost."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np

from rec.index.catalogue import Known
from rec.recommend.request import Encoded, Funnel, LeftOut, Ranked, Request
from rec.recommend.ruling import Arranged, InForce, Ruling
from rec.recommend.shelf import Shelf
from rec.retrieval import Candidates
from rec.state import UserState


@dataclass(frozen=True, slots=True)
class Opening:
    """One request before the stages."""

    request: Request
    at: datetime
    """The moment that ages of events and products are taken at."""
    ruling: Ruling | None
    rules: InForce
    known: Known
    state: UserState
    exclude: np.ndarray
    """int64[E] ascending item rows that are no candidates: seen, of the request, of rules."""
    num_candidates: int
    """How many candidates retrieval is asked for."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One request after all stages; answers and explanations are made of it."""

    began: Opening
    encoded: Encoded | None
    """None: the user tower did not answer."""
    candidates: Candidates
    ranked: Ranked
    """All candidates, best first."""
    arranged: Arranged
    degraded: list[str] = field(default_factory=list)
    """Reason codes of the steps that were done without; see why.py."""

    def left_out(self) -> list[LeftOut]:
        """Pinned products that the list does not have."""
        return self.began.rules.left_out(self.ranked.rows, self.began.exclude, self.began.request.k)

    def funnel(self, catalogue: int) -> Funnel:
        """How many of so many products were left after each stage."""
        ranked = len(self.ranked.rows) if self.ranked.by_ranker else 0
        return Funnel(catalogue, len(self.candidates.rows), ranked, len(self.arranged.ranked.rows))


Outcome = Literal[
    "shown",
    "unknown_product",
    "excluded",
    "unavailable",
    "filtered",
    "not_retrieved",
    "ranked_below",
    "moved_by_rules",
]
"""The stage that had the last word.

    unknown_product   the bundle does not have it
    excluded          no candidate: see `excluded_by`
    unavailable       out of stock
    filtered          it does not pass the filters of the request
    not_retrieved     it passes, and others are nearer: see `nearness`
    ranked_below      a candidate, but not one of the k best: see `ranking`
    moved_by_rules    one of the k best, but rules gave its place to another: see `rules`
    shown             it is in the list: see `place` and `item`
"""


@dataclass(frozen=True, slots=True)
class Nearness:
    """A product in the order of the user vector."""

    rank: int
    """From 1, among all products of the bundle, those that do not pass as well."""
    of: int
    score: float
    """Inner product of user and product vector."""
    last_candidate: float | None
    """Lowest such score of a candidate; None where there is no candidate."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """A candidate in the ranker's order, before rules."""

    rank: int
    """From 1."""
    of: int
    score: float
    probability: float | None
    last_shown: float
    """The score of the k-th best candidate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a product is or is not in a list."""

    product_id: str
    outcome: Outcome
    place: int | None = None
    """In the list, from 1."""
    excluded_by: list[str] = field(default_factory=list)
    """`request`, `rule`, or `seen`: the shopper has it already."""
    rules: list[str] = field(default_factory=list)
    """Names of the rules that exclude or move the product; where none does, of those that move others before it."""
    nearness: Nearness | None = None
    """None: unknown product, or no user vector."""
    ranking: Ranking | None = None
    """None: no candidate."""
    item: dict[str, Any] | None = None
    """The product as shown, with reasons and matched attributes."""


def explanation(
    passage: Passage,
    product_id: str,
    items: list[dict[str, Any]],
    shelf: Shelf,
    vectors: np.ndarray,
    *,
    available: bool,
    passes: bool,
) -> Explanation:
    """Why `product_id` is or is not among the `items` that `passage` ended with.

    `vectors` are the bundle's float32[N, d] unit rows. `available` and `passes` are what the database says of the
    product: that it is in stock, that it passes the filters of the request.
    """
    if not shelf.known(product_id):
        return Explanation(product_id=product_id, outcome="unknown_product")
    row = int(shelf.rows([product_id])[0])
    nearness = _nearness(passage, row, vectors)
    ranking = _ranking(passage, row)
    rules = passage.arranged.bearing.get(row, [])
    for place, item in enumerate(items):
        if item["product_id"] == product_id:
            return Explanation(
                product_id=product_id,
                outcome="shown",
                place=place + 1,
                rules=rules,
                nearness=nearness,
                ranking=ranking,
                item=item,
            )
    excluded_by: list[str] = []
    outcome: Outcome
    began = passage.began
    if row in began.exclude:
        rules = began.rules.excluding(row)
        excluded_by = ["rule"] if rules else []
        excluded_by += ["request"] if product_id in began.request.exclude else []
        outcome, excluded_by = "excluded", excluded_by or ["seen"]
    elif ranking is not None and ranking.rank > began.request.k:
        outcome = "ranked_below"
    elif ranking is not None:
        outcome = "moved_by_rules"
        rules = rules or sorted({name for names in passage.arranged.moved_by for name in names})
    else:
        outcome = "not_retrieved" if passes else "filtered" if available else "unavailable"
    return Explanation(
        product_id=product_id,
        outcome=outcome,
        excluded_by=excluded_by,
        rules=rules,
        nearness=nearness,
        ranking=ranking,
    )


def _nearness(passage: Passage, row: int, vectors: np.ndarray) -> Nearness | None:
    if passage.encoded is None:
        return None
    scores = vectors @ passage.encoded.vector  # float32[N]
    found = passage.candidates.scores
    return Nearness(
        rank=1 + int((scores > scores[row]).sum()),
        of=len(scores),
        score=float(scores[row]),
        last_candidate=float(found.min()) if len(found) else None,
    )


def _ranking(passage: Passage, row: int) -> Ranking | None:
    ranked = passage.ranked
    places = np.flatnonzero(ranked.rows == row)
    if not len(places):
        return None
    at = int(places[0])
    return Ranking(
        rank=at + 1,
        of=len(ranked.rows),
        score=float(ranked.scores[at]),
        probability=None if ranked.probabilities is None else float(ranked.probabilities[at]),
        last_shown=float(ranked.scores[min(passage.began.request.k, len(ranked.rows)) - 1]),
    )
