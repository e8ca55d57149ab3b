"""The synthetic shoppers: profiles, events in time order, and the truth about each one's last event.

A shopper's events are planned as (product, context) steps. The second last and the last step go to
products that the shopper has not met before, as leave-one-out evaluation asks; all steps but the last
happen before LAUNCH. The held products of a taste or collection occur in those two steps only, so
that co-occurrence in the training events tells nothing about them: content has to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from rec.data.sample import words
from rec.data.sample.catalogue import LAUNCH, START, Catalogue, Role
from rec.data.sample.draw import Draw

GROUPS = {"re_taste": 90, "title": 90, "size": 84, "launch": 80, "context": 84, "fitted": 96, "background": 96}
"""Shoppers per group. `fitted` shoppers buy several garments cut for their height: from them the rule
of `size` can be learnt; the `size` shoppers' own histories say nothing about it."""

Step = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class Truth:
    """Why a shopper's last event is what it is."""

    group: str
    """A key of GROUPS."""
    rule: str
    """The taste, collection, cut, niche or occasion; for background shoppers their categories."""
    oracle: frozenset[str]
    """All products that the rule allows for the last event, those already met included."""


@dataclass(frozen=True, slots=True)
class Shopper:
    """One user: a row of `users`, rows of `events` in time order, and the truth."""

    user: dict[str, Any]
    events: list[dict[str, Any]]
    truth: Truth


class _Shelves:
    """The catalogue's product ids, by role, and their prices."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.price: dict[str, float] = {row["product_id"]: row["price"] for row in catalogue.products}
        self.everyday = self.ids(lambda role: role.kind in ("re_taste", "title", "plain") and not role.held)
        self.accessories = self.ids(lambda role: role.kind == "accessory")

    def ids(self, chosen: Callable[[Role], bool]) -> list[str]:
        """Ids of the products whose role is chosen, ascending."""
        return self.catalogue.ids(chosen)

    def of(self, kind: str, value: str) -> list[str]:
        """Ids of the products that play one part."""
        return self.ids(lambda role: role.kind == kind and role.value == value)

    def allowed(self, products: Sequence[str], *, held: bool = False, new: bool = False) -> list[str]:
        """Those of `products` that are free for any step, or held for the last two, or new for the last."""
        roles = self.catalogue.roles
        return [i for i in products if roles[i].held == held and roles[i].new == new]


def shoppers(seed: int, catalogue: Catalogue) -> list[Shopper]:
    """All shoppers in user_id order; ids say nothing about the group."""
    draw = Draw(f"synthetic shoppers {seed}")
    shelves = _Shelves(catalogue)
    members = [(group, i) for group, count in GROUPS.items() for i in range(count)]
    made = []
    for number, (group, i) in enumerate(draw.some(members, len(members)), start=1):
        cut = words.CUTS[i % 3] if group in ("size", "fitted") else None
        steps, truth = _PLANS[group](draw, shelves, i)
        user_id = f"U{number:04d}"
        events = _events(draw, user_id, steps, shelves.price)
        made.append(Shopper(_profile(draw, user_id, cut), events, truth))
    return made


def _taste(kind: str, values: Sequence[str]) -> Callable[[Draw, _Shelves, int], tuple[list[Step], Truth]]:
    """Plan for a taste or a collection: nine steps in ten go to products that carry it."""

    def plan(draw: Draw, shelves: _Shelves, i: int) -> tuple[list[Step], Truth]:
        value = values[i % len(values)]
        products = shelves.of(kind, value)
        warm = shelves.allowed(products)
        steps = _history(draw, draw.some(warm, draw.whole(8, len(warm))), noise=shelves.everyday, share=0.1)
        steps += [(product, None) for product in draw.some(shelves.allowed(products, held=True), 2)]
        return steps, Truth(kind, value, frozenset(products))

    return plan


def _size(draw: Draw, shelves: _Shelves, i: int) -> tuple[list[Step], Truth]:
    """A short history of one-size accessories, then legwear cut for the user's height."""
    cut = words.CUTS[i % 3]
    products = shelves.of("size", cut)
    steps: list[Step] = [(product, None) for product in draw.some(shelves.accessories, draw.whole(3, 4))]
    return [*steps, (draw.one(products), draw.one(words.LENGTH_CONTEXTS))], Truth("size", cut, frozenset(products))


def _fitted(draw: Draw, shelves: _Shelves, i: int) -> tuple[list[Step], Truth]:
    """Legwear cut for the user's height, between accessories."""
    cut = words.CUTS[i % 3]
    products = shelves.of("size", cut)
    legwear = draw.some(products, 8)
    steps: list[Step] = [(product, None) for product in draw.some(shelves.accessories, draw.whole(1, 3))]
    for product in legwear[:6]:
        steps.append((product, draw.one(words.LENGTH_CONTEXTS)))
        if draw.chance(0.25):
            steps.append((draw.one(shelves.accessories), None))
    steps += [(product, draw.one(words.LENGTH_CONTEXTS)) for product in legwear[6:]]
    return steps, Truth("fitted", cut, frozenset(products))


def _launch(draw: Draw, shelves: _Shelves, i: int) -> tuple[list[Step], Truth]:
    """A niche category; the last product is new."""
    niche = list(words.NICHE)[i % len(words.NICHE)]
    products = shelves.of("launch", niche)
    *met, target = draw.some(shelves.allowed(products), draw.whole(5, 6))
    steps = _history(draw, [*met, *draw.some(met, 3)], noise=shelves.everyday, share=0.05)
    steps += [(target, None), (draw.one(shelves.allowed(products, new=True)), None)]
    return steps, Truth("launch", niche, frozenset(products))


def _context(draw: Draw, shelves: _Shelves, i: int) -> tuple[list[Step], Truth]:
    """Every occasion is as likely as another at each step, whatever came before."""
    steps: list[Step] = []
    used: set[str] = set()
    count = draw.whole(9, 12)
    for step in range(count):
        if step < count - 2 and draw.chance(0.3):
            steps.append((draw.one(shelves.everyday), None))
            continue
        last = step == count - 1
        occasion = words.OCCASIONS[i % len(words.OCCASIONS)] if last else draw.one(words.OCCASIONS)
        free = [product for product in shelves.of("context", occasion.name[0]) if product not in used]
        steps.append((draw.one(free), draw.one(occasion.asked)))
        used.add(steps[-1][0])
    return steps, Truth("context", occasion.name[0], frozenset(shelves.of("context", occasion.name[0])))


def _background(draw: Draw, shelves: _Shelves, i: int) -> tuple[list[Step], Truth]:
    """Two categories the user likes, and much noise."""
    liked = draw.some(tuple(words.COMMON), 2)
    rows = {row["product_id"]: row for row in shelves.catalogue.products}
    nouns = {words.COMMON[name].name[language].casefold() for name in liked for language in (0, 1)}
    products = [
        i
        for i in shelves.ids(lambda role: role.kind in ("re_taste", "title", "plain", "context"))
        if any(noun in rows[i]["title"].casefold() for noun in nouns)
    ]
    warm = shelves.allowed(products)
    steps = _history(draw, [draw.one(warm) for _ in range(draw.whole(8, 12))], noise=shelves.everyday, share=0.25)
    steps = [(product, draw.one(words.OTHER_CONTEXTS) if draw.chance(0.1) else None) for product, _ in steps]
    met = {product for product, _ in steps}
    steps += [(product, None) for product in draw.some([product for product in products if product not in met], 2)]
    return steps, Truth("background", " ".join(liked), frozenset(products))


_PLANS: dict[str, Callable[[Draw, _Shelves, int], tuple[list[Step], Truth]]] = {
    "re_taste": _taste("re_taste", words.TASTES),
    "title": _taste("title", words.SERIES),
    "size": _size,
    "launch": _launch,
    "context": _context,
    "fitted": _fitted,
    "background": _background,
}


def _history(draw: Draw, products: Sequence[str], *, noise: Sequence[str], share: float) -> list[Step]:
    """One step per product, and a `share` of further steps to random ones between them."""
    steps: list[Step] = []
    for product in products:
        steps.append((product, None))
        if draw.chance(share):
            steps.append((draw.one(noise), None))
    return steps


def _events(draw: Draw, user_id: str, steps: list[Step], price: dict[str, float]) -> list[dict[str, Any]]:
    """The steps as rows of the contract `events`, at strictly rising times, the last one after LAUNCH."""
    before = int((LAUNCH - START).total_seconds())
    gap = before // len(steps)
    times: list[datetime] = [
        START + timedelta(seconds=position * gap + draw.whole(0, gap - 1)) for position in range(len(steps) - 1)
    ]
    times.append(LAUNCH + timedelta(days=1, seconds=draw.whole(0, 6 * 86_400)))
    rows = []
    for (product_id, context), at in zip(steps, times, strict=True):
        event = draw.one(("view", "view", "cart", "purchase"))
        rows.append(
            {
                "user_id": user_id,
                "product_id": product_id,
                "event": event,
                "at": at,
                "value": price[product_id] if event == "purchase" else None,
                "context": context,
            }
        )
    return rows


def _profile(draw: Draw, user_id: str, cut: str | None) -> dict[str, Any]:
    """A row of the contract `users`. Height and weight are known wherever a cut depends on the height."""
    height = draw.between(*words.HEIGHT_CM[cut or draw.one(words.CUTS)])
    weight = (height / 100) ** 2 * draw.between(19, 29)
    known = cut is not None or draw.chance(0.7)
    return {
        "user_id": user_id,
        "height_cm": round(height, 1) if known else None,
        "weight_kg": round(weight, 1) if known and draw.chance(0.9) else None,
        "birth_year": draw.whole(1955, 2006) if draw.chance(0.8) else None,
        "numeric": {},
    }
