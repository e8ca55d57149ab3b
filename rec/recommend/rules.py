"""What a merchandiser may say about lists, as a TOML file: `Rules`, and how it is read.

Order of precedence, the stronger first; where two rules disagree about a product, the stronger one holds:

1. the request: its filters and exclusions, what the shopper has already, and what is out of stock
2. `exclude`    the product is never recommended, nor shown as a neighbour of another one
3. `pin`        the product stands at its position
4. `caps`       at most so many products of one value in a list; pins count, and stay when there are too many of them
5. `bury`       the product comes after all others that the caps allow
6. `diversity`  maximal marginal relevance: what is like a product above it moves down
7. `boost`      the product's relevance is raised
8. the ranker's score

A boost is weaker than diversity because it changes one of the two numbers that diversity weighs. Caps are stronger than
bury because a cap says how a whole list looks. A list is never left short by caps: when every candidate left is over a
cap, the rest of the list is filled with these (`over_cap`), the buried ones last.

Relevance is the ranker's score scaled to 0 (the worst candidate of the request) .. 1 (the best), so that amounts mean
the same for every ranker and bundle. The rules arrange what the recommender found for the shopper, `ranker.candidates`
products; only a pin brings in another one.
"""

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from rec.errors import InputError
from rec.recommend.request import MAX_K

MAX_BYTES = 256 * 1024
"""Longest file."""
MAX_RULES = 200
"""Most rules of one kind."""

Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern="^[^\\x00]*$")]
Names = Annotated[list[Name], Field(min_length=1, max_length=1_000)]
Price = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class _Rule(_Part):
    """A rule with a name and a time."""

    name: Name | None = None
    """What previews call it."""
    start: AwareDatetime | None = Field(default=None, alias="from")
    """First moment of the rule; None: it has begun."""
    until: AwareDatetime | None = None
    """First moment after it; None: it does not end."""

    @model_validator(mode="after")
    def _lasts(self) -> Self:
        if self.start is not None and self.until is not None and self.start >= self.until:
            raise ValueError(f"from ({self.start.isoformat()}) must be before until ({self.until.isoformat()})")
        return self

    def in_force(self, at: datetime) -> bool:
        """Whether the rule holds at a moment."""
        return (self.start is None or self.start <= at) and (self.until is None or at < self.until)

    def overlaps(self, other: "_Rule") -> bool:
        """Whether there is a moment at which both hold."""
        return not any(
            one.until is not None and two.start is not None and one.until <= two.start
            for one, two in ((self, other), (other, self))
        )


class Exclude(_Rule):
    """Products that are never recommended: those that have one of the values of every field given."""

    products: Names | None = None
    """Product ids."""
    brand: Names | None = None
    category: Names | None = None
    attributes: dict[Name, Names] = Field(default={}, max_length=20)
    """Values by STD key."""

    @model_validator(mode="after")
    def _selects(self) -> Self:
        fields = SELECTORS[type(self).__name__]
        if all(getattr(self, name) in (None, {}) for name in fields):
            raise ValueError(f"names no products: give one of {', '.join(fields)}")
        return self

    def values(self) -> Iterator[tuple[str, list[str]]]:
        """(key, values) of brand, category and attributes."""
        given = [("brand", self.brand), ("category", self.category), *self.attributes.items()]
        yield from ((key, values) for key, values in given if values is not None)


class Bury(Exclude):
    """Products that come after all others. Prices are those of now; a product without one is in no range."""

    price_min: Price | None = None
    """Lowest price, inclusive."""
    price_max: Price | None = None
    """Highest price, inclusive."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.price_min is not None and self.price_max is not None and self.price_min > self.price_max:
            raise ValueError(f"price_min ({self.price_min:g}) is above price_max ({self.price_max:g})")
        return self


class Boost(Bury):
    """Products whose relevance is raised; several boosts of one product add up."""

    amount: float = Field(gt=0, le=1, allow_inf_nan=False)
    """Added to the relevance; 1 lifts the worst candidate to where the best was."""


class Pin(_Rule):
    """A product at a place of the list, whether it was found for the shopper or not."""

    product: Name
    """Product id."""
    position: int = Field(ge=1, le=MAX_K)
    """1 is the top. In a shorter list the pin does not hold; where there are too few products it comes last."""


SELECTORS = {
    kind.__name__: [name for name in kind.model_fields if name not in {"name", "start", "until", "amount"}]
    for kind in (Exclude, Bury, Boost)
}
"""Fields that select products, by kind of rule."""


class Rules(_Part):
    """All rules of a catalogue. See the module for their order of precedence."""

    diversity: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    """Weight w of maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998): the next product is the one of the
    largest (1 - w) * relevance - w * (largest cosine of its vector to one already in the list). 0 turns it off."""
    caps: dict[Name, Annotated[int, Field(ge=1, le=MAX_K)]] = Field(default={}, max_length=20)
    """Most products of one value in a list, by `brand`, `group_id`, `category` or another STD key. A product with
    several values counts for each of them; one without a value is not limited."""
    boost: list[Boost] = Field(default=[], max_length=MAX_RULES)
    bury: list[Bury] = Field(default=[], max_length=MAX_RULES)
    exclude: list[Exclude] = Field(default=[], max_length=MAX_RULES)
    pin: list[Pin] = Field(default=[], max_length=MAX_RULES)

    @model_validator(mode="after")
    def _pins_agree(self) -> Self:
        for number, one in enumerate(self.pin):
            for other in self.pin[:number]:
                same = {"position": one.position == other.position, "product": one.product == other.product}
                if any(same.values()) and one.overlaps(other):
                    field = next(name for name, equal in same.items() if equal)
                    raise ValueError(f"two pins have {field} {getattr(one, field)!r} at the same time: remove one")
        return self

    def named(self) -> Iterator[tuple[str, Exclude | Pin]]:
        """Every rule with a window and what to call it, as `boost 2 (linen weeks)`."""
        kinds: dict[str, Sequence[Exclude | Pin]] = {
            "exclude": self.exclude,
            "pin": self.pin,
            "bury": self.bury,
            "boost": self.boost,
        }
        for kind, rules in kinds.items():
            for number, rule in enumerate(rules, 1):
                yield f"{kind} {number}" + (f" ({rule.name})" if rule.name else ""), rule


def parse(text: str, origin: str) -> Rules:
    """The rules of TOML text; `origin` names it in errors. Raises InputError that names the first thing wrong."""
    if len(text.encode()) > MAX_BYTES:
        raise InputError(
            f"rules {origin}: longer than {MAX_BYTES} bytes: name brands or categories instead of products"
        )
    try:
        return Rules.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"rules {origin} are not TOML: {error}") from None
    except ValidationError as error:
        raise InputError(f"rules {origin}: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part + 1) if isinstance(part, int) else part for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"unknown field {where!r}{nearest(str(first['loc'][-1]), _fields(first['loc']))}"
    if first["type"] == "value_error":
        return f"{where}: {message}" if where else message
    if first["type"] == "timezone_aware":
        return f"{where}: {first['input']} names no time zone: write it as 2026-06-01T00:00:00Z"
    return f"{where}: {message}" + ("" if first["type"] == "missing" else f" (got {_shortened(first['input'])})")


def _fields(where: tuple[int | str, ...]) -> list[str]:
    """Names that may stand where an unknown one stood, as the file has them."""
    kinds: dict[int | str, type[_Part]] = {"boost": Boost, "bury": Bury, "exclude": Exclude, "pin": Pin}
    fields = (kinds.get(where[0], Rules) if len(where) > 1 else Rules).model_fields
    return [field.alias or name for name, field in fields.items()]


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """What an error says of names near to an unknown one; of all known ones, where these are few and none is near."""
    names = sorted(known)
    folded = {each.casefold(): each for each in names}
    near = [folded[each] for each in difflib.get_close_matches(name.casefold(), folded, 3, cutoff=0.6)]
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f" (known: {', '.join(names)})" if len(names) <= 20 else ""
