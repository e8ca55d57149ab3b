"""The synthetic garments. `catalogue()` is pure and takes no seed: its texts are frozen, because the
answers that a language model once gave for them are shipped with the package.

Each product has one role, the part it plays in the planted structure; roles do not show in ids.
Categories, colours, genders, fibres, brands and prices are drawn alike for all roles.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from rec.data.sample import words
from rec.data.sample.draw import Draw
from rec.data.sample.text import Garment, write

CATALOGUE_SEED = "synthetic sample catalogue 1"
START = datetime(2025, 3, 3, tzinfo=UTC)
"""First event."""
LAUNCH = START + timedelta(days=49)
"""New arrivals appear on this day; all events but each user's last happen before it."""

WARM, HELD = 11, 5
"""Products per taste or collection that training users touch, and that only held-out events touch."""
STYLES_WITH_CUTS = 10
OLD, NEW = 7, 3
"""Products per niche category: before, and new at LAUNCH."""
PER_OCCASION = 8
PLAIN = 12
"""Products without a part in the structure; each is listed twice under one group_id."""


@dataclass(frozen=True, slots=True)
class Role:
    """The part that a product plays: `kind` and which one of that kind."""

    kind: str
    """re_taste | title | size | accessory | launch | context | plain"""
    value: str
    """The taste, collection, cut, category or occasion."""
    held: bool = False
    """Only held-out events (the last two of a user) may touch it."""
    new: bool = False
    """Launched at LAUNCH, so only last events may touch it."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Rows of the products contract in product_id order, and the role of each."""

    products: list[dict[str, Any]]
    roles: dict[str, Role]

    def ids(self, chosen: Callable[[Role], bool]) -> list[str]:
        """Ids of the products whose role is chosen, ascending."""
        return [row["product_id"] for row in self.products if chosen(self.roles[row["product_id"]])]


@cache
def catalogue() -> Catalogue:
    """The garments; the same on every machine. Callers must not change the rows."""
    draw = Draw(CATALOGUE_SEED)
    made: list[tuple[Role, Garment]] = [
        *_tastes(draw), *_series(draw), *_cuts(draw), *_accessories(draw), *_niches(draw), *_occasions(draw),
        *_plain(draw),
    ]  # fmt: skip
    products, roles = [], {}
    for number, (role, garment) in enumerate(draw.some(made, len(made)), start=1):
        product_id = f"S{number:04d}"
        products.append(row_of(product_id, role, garment, draw))
        roles[product_id] = role
    return Catalogue(products, roles)


def drawn(draw: Draw, category: words.Category, name: str | None = None) -> Garment:
    """A garment of `category` with everything else drawn at random."""
    accessory = category.name[0] in words.ACCESSORIES
    return Garment(
        category=category,
        name=name or draw.one(words.NAMES),
        korean=draw.chance(0.25),
        colour=draw.one(tuple(words.COLOURS)),
        fibre=draw.one(category.fibres),
        season=draw.one(tuple(words.SEASONS)),
        gender=draw.one(tuple(words.GENDERS)),
        fit=None if accessory else draw.one(tuple(words.FITS)),
        sleeve=draw.one(category.sleeves) if category.sleeves else None,
        neck=draw.one(category.necks) if category.necks else None,
        feel=draw.one(words.FEELS),
        detail=draw.one(words.ACCESSORY_DETAILS if accessory else words.DETAILS),
        care=draw.one(words.CARE),
        origin=draw.one(words.ORIGINS),
        variant=draw.whole(0, 2),
        brand=draw.one(words.BRANDS),
    )


def _spread(draw: Draw, categories: Sequence[str], count: int) -> list[words.Category]:
    """`count` common categories, as evenly spread as can be."""
    names: list[str] = []
    while len(names) < count:
        names += draw.some(categories, len(categories))
    return [words.COMMON[name] for name in names[:count]]


def _tastes(draw: Draw) -> list[tuple[Role, Garment]]:
    made = []
    for taste in words.TASTES:
        for i, category in enumerate(_spread(draw, tuple(words.COMMON), WARM + HELD)):
            garment = drawn(draw, category).but(detail=(taste, taste), detail_in_html=i % 2 == 0)
            made.append((Role("re_taste", taste, held=i >= WARM), garment))
    return made


def _series(draw: Draw) -> list[tuple[Role, Garment]]:
    made = []
    for series in words.SERIES:
        for i, category in enumerate(_spread(draw, tuple(words.COMMON), WARM + HELD)):
            made.append((Role("title", series, held=i >= WARM), drawn(draw, category, series)))
    return made


def _cuts(draw: Draw) -> list[tuple[Role, Garment]]:
    """Legwear in three cuts. A cut is a product of its own (no shared group_id): who it fits differs."""
    legwear = [words.COMMON[name] for name in ("jeans", "trousers", "leggings")]
    made = []
    for i in range(STYLES_WITH_CUTS):
        style = drawn(draw, legwear[i % 3])
        for cut in words.CUTS:
            made.append((Role("size", cut), style.but(cut=cut, fit=None)))
    return made


def _accessories(draw: Draw) -> list[tuple[Role, Garment]]:
    return [
        (Role("accessory", name), drawn(draw, category).but(gender="unisex"))
        for name, category in words.ACCESSORIES.items()
        for _ in range(4)
    ]


def _niches(draw: Draw) -> list[tuple[Role, Garment]]:
    return [
        (Role("launch", name, new=i >= OLD), drawn(draw, category))
        for name, category in words.NICHE.items()
        for i in range(OLD + NEW)
    ]


def _occasions(draw: Draw) -> list[tuple[Role, Garment]]:
    return [
        (Role("context", occasion.name[0]), drawn(draw, category).but(occasion=occasion.name))
        for occasion in words.OCCASIONS
        for category in _spread(draw, occasion.categories, PER_OCCASION)
    ]


def _plain(draw: Draw) -> list[tuple[Role, Garment]]:
    made = []
    for i, category in enumerate(_spread(draw, tuple(words.COMMON), PLAIN)):
        garment = drawn(draw, category).but(group_id=f"G{i:02d}")
        made += [(Role("plain", category.name[0]), garment)] * 2
    return made


def row_of(product_id: str, role: Role, garment: Garment, draw: Draw) -> dict[str, Any]:
    """The product as a row of the contract `products`."""
    category = garment.category
    measurements: dict[str, float] = {}
    if category.legs:
        measurements["inseam"] = round(words.INSEAM_CM[garment.cut or "regular"] + draw.between(-1.5, 1.5), 1)
    elif category.sleeves:
        measurements["length"] = round(draw.between(58, 72) * (1.6 if category.name[0] in ("coat", "dress") else 1), 1)
        measurements["chest"] = round(draw.between(46, 62), 1)
    created_at = LAUNCH if role.new else START - timedelta(days=draw.whole(20, 300))
    return {
        "product_id": product_id,
        **write(garment),
        "image_urls": [],
        "attributes": _given(garment, draw),
        "measurements": measurements,
        "price": round(category.price * draw.between(0.7, 1.5), 2),
        "currency": "USD",
        "brand": garment.brand,
        "group_id": garment.group_id,
        "available": True,
        "created_at": created_at + timedelta(hours=draw.whole(0, 20)),
    }


def _given(garment: Garment, draw: Draw) -> dict[str, list[str]]:
    """Attributes in the shop's own words: some missing, some misspelt, some joined by commas."""
    language = 1 if garment.korean else 0

    def word(english: str, korean: str) -> str:
        if garment.korean:
            return korean
        return words.DIRTY.get(english, english) if draw.chance(0.15) else english

    given: dict[str, list[str]] = {}
    if draw.chance(0.9):
        given["category"] = [garment.category.name[language]]
    if draw.chance(0.85):
        given["colour"] = [word(garment.colour, words.COLOURS[garment.colour])]
    if draw.chance(0.8):
        given["gender"] = [word(garment.gender, words.GENDERS[garment.gender])]
    if draw.chance(0.3):
        other = draw.one([season for season in words.SEASONS if season != garment.season])
        both = ((garment.season, words.SEASONS[garment.season]), (other, words.SEASONS[other]))
        given["season"] = [", ".join(pair[language] for pair in both)]
    if garment.cut:
        given["fit"] = [garment.cut]
    return given
