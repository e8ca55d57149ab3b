"""What happens to a request before and after the stages: the same for a chain in one process and for the Serve graph.

Whoever holds a Front sends the request through the stages in its own way: `known` and `begin`, then user tower,
retrieval and ranker, then the rules' `arrange` with `prices`, then `items` and `freshen`. `known`, `prices` and
`freshen` ask the database.
"""

from datetime import datetime
from typing import Any

import numpy as np

from rec.bundle import Bundle
from rec.index.catalogue import Catalogue, Known
from rec.index.connections import Connections
from rec.recommend.fitting import Fitter
from rec.recommend.passage import Opening, Passage
from rec.recommend.request import Request
from rec.recommend.resolve import STORED_EVENTS, Resolver, moment
from rec.recommend.rulebook import RuleBook
from rec.recommend.ruling import NOTHING, InForce, Ruling
from rec.recommend.shelf import Shelf
from rec.recommend.why import Explainer

NOBODY = Known([], {})


class Front:
    """One bundle's products, what is known of its users, and the merchandiser's rules."""

    def __init__(self, bundle: Bundle, connections: Connections) -> None:
        self.bundle = bundle
        self.shelf = Shelf(bundle)
        self.catalogue = Catalogue(connections, bundle.recipe)
        self.resolver = Resolver(bundle, self.shelf)
        self.explainer = Explainer(bundle, self.shelf)
        self.vectors = self.explainer.vectors
        """float32[N, d] unit rows."""
        self.fitter = Fitter(bundle, self.shelf)
        self.rules = RuleBook(connections, bundle, self.shelf, self.vectors)

    def known(self, request: Request) -> Known:
        """What the database knows of whoever asks and is `named`."""
        return self.catalogue.known(request.user_id, STORED_EVENTS, request.client_id)

    def begin(self, request: Request, known: Known, ruling: Ruling | None, now: datetime) -> Opening:
        """The request as the stages take it, under the rules given. Raises UnknownProducts."""
        at = moment(self.bundle, now)
        ruling = ruling if request.rules else None
        rules = standing(ruling, now)
        state, exclude = self.resolver.resolve(request, known, at)
        num_candidates = max(self.bundle.config.ranker.candidates, request.k)
        return Opening(request, at, ruling, rules, known, state, np.union1d(exclude, rules.exclude), num_candidates)

    def prices(self, rows: np.ndarray) -> np.ndarray:
        """float32[n] prices of item rows as the database has them, nan where there is none."""
        names = [self.shelf.product_id(row) for row in rows.tolist()]
        live = self.catalogue.live(names)
        # None, of the database or because it does not have the product, becomes nan
        return np.array([live.get(name, {}).get("price") for name in names], np.float32)

    def published_prices(self, rows: np.ndarray) -> np.ndarray:
        """float32[n] prices of item rows as the bundle has them, nan where there is none."""
        return np.array([self.shelf.card(row)["price"] for row in rows.tolist()], np.float32)

    def items(self, passage: Passage) -> list[dict[str, Any]]:
        """The item dictionaries of an answer: products, reasons, those of rules last, and fit."""
        began, arranged = passage.began, passage.arranged
        items = self.explainer.explain(arranged.ranked, began.state, passage.encoded, passage.degraded)
        for item, codes in zip(items, arranged.codes, strict=True):
            item["reasons"] += codes
        self.fitter.add(items, began.request, began.known)
        if began.request.evidence:
            self.cite(items)
        return items

    def cite(self, items: list[dict[str, Any]]) -> None:
        """Put where each attribute comes from into item dictionaries, in place."""
        for item in items:
            (row,) = self.shelf.rows([item["product_id"]]).tolist()
            item["evidence"] = self.shelf.evidence(row)

    def freshen(self, items: list[dict[str, Any]]) -> None:
        """Put the database's price into item dictionaries, in place."""
        live = self.catalogue.live([str(item["product_id"]) for item in items])
        for item in items:
            now = live.get(str(item["product_id"]), {})
            item.update({name: now[name] for name in ("price", "currency") if name in now})


def standing(ruling: Ruling | None, now: datetime) -> InForce:
    """The rules that hold at a moment."""
    return NOTHING if ruling is None else ruling.in_force(now)


def microseconds(at: datetime) -> int:
    """UTC microseconds since 1970."""
    return round(at.timestamp() * 1e6)
