"""Rules as they apply to one bundle: values found among its products, and lists arranged by what is in force."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from rec.recommend.arrange import Cap, arrange
from rec.recommend.facets import Facets
from rec.recommend.request import LeftOut, Ranked
from rec.recommend.rules import Bury, Exclude, Pin, Rules, nearest
from rec.recommend.shelf import Shelf

NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Unknown:
    """A name that rules use and no product of the bundle has."""

    rule: str
    kind: str
    """`product`, `key`, or the key that the name should be a value of."""
    name: str

    def __str__(self) -> str:
        what = {"product": "there is no product", "key": "no product has an attribute"}
        return f"{self.rule}: {what.get(self.kind, f'no product has {self.kind}')} {self.name!r}"


@dataclass(frozen=True, slots=True)
class Arranged:
    """A list after the rules."""

    ranked: Ranked
    """The k items."""
    codes: list[list[str]]
    """Reason codes that the rules add, by item; see rec/recommend/why.py."""
    moved_by: list[list[str]]
    """Names of the rules that an item owes these codes to."""


@dataclass(frozen=True, slots=True)
class _Selection:
    """The products of one selecting rule."""

    name: str
    mask: NDArray[np.bool_]  # bool[N]
    price_min: float | None
    price_max: float | None
    amount: float

    @property
    def priced(self) -> bool:
        return self.price_min is not None or self.price_max is not None

    def of(self, rows: NDArray[np.int64], prices: NDArray[np.float32] | None) -> NDArray[np.bool_]:
        """bool[n] which item rows it selects, at `prices` float32[n]."""
        found = self.mask[rows]
        if prices is not None:  # nan, a product without a price, is in no range
            found &= True if self.price_min is None else prices >= np.float32(self.price_min)
            found &= True if self.price_max is None else prices <= np.float32(self.price_max)
        return found


@dataclass(frozen=True, slots=True)
class InForce:
    """The rules of one moment."""

    exclude: NDArray[np.int64]
    """int64[E] ascending item rows that are never shown."""
    _pins: Mapping[int, tuple[int, str, str]]  # place -> (item row, product id, name of the rule)
    _buries: list[_Selection]
    _boosts: list[_Selection]
    _caps: list[tuple[NDArray[np.int32], int]]  # (int32[N, W], most)
    _diversity: float
    _vectors: NDArray[np.float32]  # float32[N, d] unit rows

    @property
    def needs_prices(self) -> bool:
        """Whether a rule asks for the live prices of the candidates."""
        return any(each.priced for each in (*self._buries, *self._boosts))

    def pinned(self, k: int) -> NDArray[np.int64]:
        """int64[P] item rows that have a place in a list of k."""
        return np.array([row for place, (row, _, _) in self._pins.items() if place < k], np.int64)

    def left_out(self, candidates: NDArray[np.int64], exclude: NDArray[np.int64], k: int) -> list[LeftOut]:
        """The products pinned in a list of k that are not among its candidates, given the rows that were excluded."""
        return [
            LeftOut(product_id, "excluded" if row in exclude else "filtered")
            for place, (row, product_id, _) in sorted(self._pins.items())
            if place < k and row not in candidates
        ]

    def arrange(self, ranked: Ranked, k: int, prices: NDArray[np.float32] | None = None) -> Arranged:
        """The k items that the rules make of all candidates of a request, which `ranked` has best first.

        `prices` are float32[n], nan where unknown; they must be given where `needs_prices`.
        """
        rows = ranked.rows
        at = {int(row): place for place, row in enumerate(rows.tolist())}
        pins = {place: at[row] for place, (row, _, _) in self._pins.items() if place < k and row in at}
        free = np.ones(len(rows), bool)
        free[list(pins.values())] = False
        relevance = _relevance(ranked, free)
        codes: list[list[str]] = [[] for _ in rows]
        moved_by: list[list[str]] = [[] for _ in rows]
        for place, candidate in pins.items():
            codes[candidate], moved_by[candidate] = ["pinned"], [self._pins[place][2]]
        buried = np.zeros(len(rows), bool)
        for code, selections in (("boosted", self._boosts), ("buried", self._buries)):
            for selection in selections:
                mine = selection.of(rows, prices if selection.priced else None) & free
                relevance += selection.amount * mine
                buried |= mine & (code == "buried")
                for candidate in np.flatnonzero(mine).tolist():
                    codes[candidate] += [] if code in codes[candidate] else [code]
                    moved_by[candidate].append(selection.name)
        order = arrange(
            relevance,
            self._vectors[rows] if self._diversity else self._vectors,
            k=k,
            diversity=self._diversity,
            pins=pins,
            buried=buried,
            caps=[Cap(values[rows], most) for values, most in self._caps],
        )
        for marks, code, name in (
            (order.diversified, "diversified", "diversity"),
            (order.over_cap, "over_cap", "caps"),
        ):
            for candidate in order.places[marks].tolist():
                codes[candidate].append(code)
                moved_by[candidate].append(name)
        chosen = order.places
        return Arranged(
            Ranked(
                rows=rows[chosen],
                scores=ranked.scores[chosen],
                retrieval_scores=ranked.retrieval_scores[chosen],
                sources=ranked.sources[chosen],
                probabilities=None if ranked.probabilities is None else ranked.probabilities[chosen],
            ),
            [codes[candidate] for candidate in chosen.tolist()],
            [moved_by[candidate] for candidate in chosen.tolist()],
        )


NOTHING = InForce(NO_ROWS, {}, [], [], [], 0.0, np.empty((0, 0), np.float32))
"""No rules: lists stay as the ranker has them."""


def _relevance(ranked: Ranked, free: NDArray[np.bool_]) -> NDArray[np.float64]:
    """float64[n]: scores scaled to 0 .. 1 over the candidates that are `free`.

    Where the ranker did not answer, by place in the order of retrieval, which is not always that of its scores.
    """
    size = len(ranked.rows)
    values = ranked.scores.astype(np.float64) if ranked.by_ranker else -np.arange(size, dtype=np.float64)
    inside = values[free]
    spread = float(np.ptp(inside)) if len(inside) else 0.0
    return (values - inside.min()) / spread if spread else np.zeros(size)


class Ruling:
    """Rules compiled for one bundle; the values that it does not have are listed, and hold nothing up."""

    def __init__(
        self, rules: Rules, facets: Facets, shelf: Shelf, vectors: NDArray[np.float32], number: int = 0
    ) -> None:
        """`vectors` are the bundle's float32[N, d] unit rows, `number` the version of the rules."""
        self.rules, self.number = rules, number
        self.unknown: list[Unknown] = []
        """What the rules name and the bundle does not have."""
        self._shelf, self._facets, self._vectors = shelf, facets, vectors
        self._caps = [
            (facets.of(key)[1], most) for key, most in rules.caps.items() if self._known("caps", "key", [key])
        ]
        self._named = list(rules.named())
        self._selections: dict[str, _Selection] = {}
        self._rows: dict[str, int] = {}
        for name, rule in self._named:
            if isinstance(rule, Exclude):
                self._selections[name] = self._selection(name, rule)
            elif self._known(name, "product", [rule.product]):
                self._rows[name] = int(shelf.rows([rule.product])[0])
        self._latest: tuple[tuple[bool, ...], InForce] | None = None

    def selected(self) -> dict[str, int]:
        """By name of a rule, how many products it selects, whatever they cost."""
        chosen = {name: int(selection.mask.sum()) for name, selection in self._selections.items()}
        return {name: chosen.get(name, int(name in self._rows)) for name, _ in self._named}

    def in_force(self, at: datetime) -> InForce:
        """The rules that hold at a moment; made anew only when one begins or ends."""
        flags = tuple(rule.in_force(at) for _, rule in self._named)
        latest = self._latest
        if latest is None or latest[0] != flags:
            standing = [named for named, holds in zip(self._named, flags, strict=True) if holds]
            latest = self._latest = flags, self._made(standing)
        return latest[1]

    def _made(self, standing: list[tuple[str, Exclude | Pin]]) -> InForce:
        excluded = np.zeros(len(self._shelf), bool)
        buries: list[_Selection] = []
        boosts: list[_Selection] = []
        pins = {}
        for name, rule in standing:
            if isinstance(rule, Pin):
                if name in self._rows:
                    pins[rule.position - 1] = (self._rows[name], rule.product, name)
            elif isinstance(rule, Bury):
                (boosts if self._selections[name].amount else buries).append(self._selections[name])
            else:
                excluded |= self._selections[name].mask
        return InForce(np.flatnonzero(excluded), pins, buries, boosts, self._caps, self.rules.diversity, self._vectors)

    def _selection(self, name: str, rule: Exclude) -> _Selection:
        mask = np.ones(len(self._shelf), bool)
        if rule.products is not None:
            self._known(name, "product", rule.products)
            mine = np.zeros(len(self._shelf), bool)
            mine[self._shelf.rows([each for each in rule.products if self._shelf.known(each)])] = True
            mask &= mine
        for key, values in rule.values():
            if self._known(name, "key", [key]):
                self._known(name, key, values)
                mask &= self._facets.having(key, values)
            else:
                mask[:] = False
        low, high = (rule.price_min, rule.price_max) if isinstance(rule, Bury) else (None, None)
        return _Selection(name, mask, low, high, getattr(rule, "amount", 0.0))

    def _known(self, where: str, kind: str, names: Iterable[str]) -> bool:
        """Whether the bundle has all `names` of a kind; notes those it lacks."""
        there = set(self._names(kind)) if kind != "product" else None
        missing = [name for name in names if not (self._shelf.known(name) if there is None else name in there)]
        self.unknown += [Unknown(where, kind, name) for name in missing]
        return not missing

    def _names(self, kind: str) -> list[str]:
        """All there are of a kind."""
        if kind == "product":
            return self._shelf.product_ids
        return self._facets.keys if kind == "key" else self._facets.of(kind)[0]

    def advice(self, unknown: Unknown) -> str:
        """What is unknown, and the nearest names there are; compares with all of them, so it takes a while."""
        return f"{unknown}{nearest(unknown.name, self._names(unknown.kind))}"
