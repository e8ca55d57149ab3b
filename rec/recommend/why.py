"""Why each item is there: reason codes, the product of the history that is nearest to it, attributes both share.

similar_to_history   the nearest product of the history is at least NEAR by cosine
fits_context         what the shopper said raised the item's retrieval score by at least RAISED
fits_profile         the shopper's profile did
chosen_together      others chose it together with the last products of the history
popular              it is one of the popular products
near_shopper         none of these: its vector is near the shopper's
for_anyone           nothing is known of the shopper: it is near where the user tower starts

By the degradation ladder, on every item of such an answer:

history_unavailable      what is stored of the shopper could not be read; the list is for what the request says
user_tower_unavailable   there is no user vector; the list is what is popular in the shopper's segment
ann_unavailable          the index did not answer; the list comes from exact search, by stock and prices as published
ranker_unavailable       the ranker did not answer; the list is in retrieval order

By rules (rec/recommend/rules.py), after these:

pinned               a rule put it at its place
boosted              a rule raised its relevance
buried               a rule puts it after all others
diversified          it is less like what stands above it than a product of higher relevance that comes later
over_cap             a cap is exceeded, because no other product was left
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from rec.bundle import Bundle
from rec.recommend.request import Encoded, Ranked
from rec.recommend.shelf import Shelf
from rec.retrieval import SOURCES
from rec.state import UserState
from rec.vocab.re import split_words
from rec.vocab.std import UNKNOWN

NEAR = 0.3
RAISED = 0.02


class Explainer:
    """Item dictionaries of an answer, for one bundle."""

    def __init__(self, bundle: Bundle, shelf: Shelf) -> None:
        self.vectors = bundle.item_vectors()
        """float32[N, d] unit rows."""
        self._shelf = shelf

    def explain(
        self, ranked: Ranked, state: UserState, encoded: Encoded | None, degraded: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """One dictionary per ranked item, in order; `encoded` is None where the user tower did not answer."""
        vectors = self.vectors[ranked.rows]  # float32[k, d]
        cosine = vectors @ self.vectors[state.items].T  # float32[k, H]
        raised: dict[str, np.ndarray] = {}
        if encoded is not None:
            raised = {name: vectors @ (encoded.vector - other) for name, other in encoded.without.items()}
        unknown = state.cold and not raised
        causes = _causes(cosine)
        items = []
        for at, row in enumerate(ranked.rows.tolist()):
            card = self._shelf.card(row)
            cause = None
            if not state.cold:
                cause = _cause(card, self._shelf.card(int(state.items[causes[at]])), cosine[at, causes[at]])
            sources = [source for place, source in enumerate(SOURCES) if ranked.sources[at] >> place & 1]
            reasons = ["similar_to_history"] if cause is not None and cause["cosine"] >= NEAR else []
            reasons += [f"fits_{name}" for name, by in raised.items() if by[at] >= RAISED]
            reasons += ["chosen_together"] if "cooccurrence" in sources else []
            reasons += ["popular"] if "popular" in sources else []
            if not reasons and sources:  # what only a pin brought in is near nobody
                reasons = ["for_anyone" if unknown else "near_shopper"]
            reasons += degraded
            items.append(
                {
                    **shown(card),
                    "score": float(ranked.scores[at]),
                    "probability": None if ranked.probabilities is None else float(ranked.probabilities[at]),
                    "retrieval_score": float(ranked.retrieval_scores[at]),
                    "sources": sources,
                    "reasons": reasons,
                    "because": cause,
                }
            )
        return items

    def similar(self, rows: np.ndarray, scores: np.ndarray, to: int) -> list[dict[str, Any]]:
        """Neighbours `rows` int64[k] of the item row `to` with their cosines and what they share with it."""
        cause = self._shelf.card(to)
        items = []
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            card = self._shelf.card(row)
            items.append({**shown(card), "score": score, "matched": matched(card, cause)})
        return items


def _causes(cosine: np.ndarray) -> np.ndarray:
    """int64[k] places in the history of the product nearest to each item, the newest of equals; none without one.

    `cosine` is float32[k, H].
    """
    count = cosine.shape[1]
    return count - 1 - cosine[:, ::-1].argmax(axis=1) if count else np.empty(0, np.int64)


def _cause(card: dict[str, Any], cause: dict[str, Any], cosine: float) -> dict[str, Any]:
    return {
        "product_id": cause["product_id"],
        "title": cause["title"],
        "cosine": float(cosine),
        "matched": matched(card, cause),
    }


def matched(card: dict[str, Any], cause: dict[str, Any]) -> list[dict[str, str]]:
    """STD values that both products have, and RE values of `card` that share a word with one of `cause`."""
    found = [
        {"kind": "std", "key": key, "value": value}
        for key, values in card["std"].items()
        for value in values
        if value != UNKNOWN and value in cause["std"].get(key, ())
    ]
    for key, values in card["re"].items():
        theirs = [_words(value) for value in cause["re"].get(key, ())]
        found += [
            {"kind": "re", "key": key, "value": value}
            for value in values
            if any(not _words(value).isdisjoint(words) for words in theirs)
        ]
    return found


@lru_cache(maxsize=65_536)  # catalogues repeat their words
def _words(value: str) -> frozenset[str]:
    return frozenset(split_words(value))


def shown(card: dict[str, Any]) -> dict[str, Any]:
    """The part of a card that answers carry."""
    return {
        "product_id": card["product_id"],
        "title": card["title"],
        "brand": card["brand"],
        "price": card["price"],
        "currency": card["currency"],
        "snippet": card["snippet"],
        "attributes": card["std"],
        "details": card["re"],
        "evidence": None,  # `Front.cite`
    }
