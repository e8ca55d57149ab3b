"""Bodies of the HTTP API: what is accepted, with its limits, and what is answered."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from rec import profile
from rec.histories import BODY
from rec.index.search import Filters
from rec.recommend.request import MAX_CONTEXT_CHARS, MAX_HISTORY, MAX_K, Choice, Request
from rec.sizes import MAX_SIZE_CHARS

MAX_BODY_BYTES = 64 * 1024
MAX_EXCLUDE = 1_000
MAX_PROFILE_COLUMNS = 64

Text = StringConstraints(pattern="^[^\\x00]*$")  # Postgres stores no NUL
Id = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern="^[^\\x00]*$")]
Number = Annotated[float, Field(allow_inf_nan=False)]
Price = Annotated[Number, Field(ge=0, le=1e9)]
"""Well within float32, which prices are stored as."""


def profile_ranges() -> dict[str, tuple[float, float]]:
    """Lowest and highest value of the columns that a body bounds; other profile columns are any finite number."""
    return profile.ranges(datetime.now(UTC).year)


class Body(BaseModel):
    """Part of a request; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Event(Body):
    """A product of the history."""

    product_id: Id
    event: Literal["view", "cart", "purchase", "rental", "rating"] = "view"
    at: AwareDatetime | None = None
    """When it happened; leave out for "recently", after all that is stored of the user."""
    size: Annotated[str, StringConstraints(min_length=1, max_length=MAX_SIZE_CHARS, pattern="^[^\\x00]*$")] | None = (
        None
    )
    """What size it was in, as the shop writes it."""
    fit: Literal["small", "fit", "large"] | None = None
    """How it fitted."""


class FilterBody(Body):
    """What a product must be."""

    category: list[Id] = Field(default=[], max_length=20)
    """Any of these categories."""
    price_min: Price | None = None
    price_max: Price | None = None

    @model_validator(mode="after")
    def _ordered(self) -> "FilterBody":
        if self.price_min is not None and self.price_max is not None and self.price_min > self.price_max:
            raise ValueError("price_min is above price_max")
        return self


class RecommendBody(Body):
    """A request for recommendations; every part is optional."""

    user_id: Id | None = None
    """Whose stored history and profile to use; an unknown id is a new user."""
    history: list[Id | Event] = Field(default=[], max_length=MAX_HISTORY)
    """Products chosen so far, oldest first; follows what is stored of the user."""
    context: Annotated[str, Text] = Field(default="", max_length=MAX_CONTEXT_CHARS)
    """What the shopper is looking for, in their own words."""
    profile: dict[Id, Number] = Field(default={}, max_length=MAX_PROFILE_COLUMNS)
    """height_cm, weight_kg, birth_year, and further columns of the recipe; wins over what is stored."""
    filters: FilterBody = FilterBody()
    k: int = Field(default=10, ge=1, le=MAX_K)
    exclude: list[Id] = Field(default=[], max_length=MAX_EXCLUDE)
    """Products that must not be recommended."""
    rules: bool = True
    """Whether the merchandiser's rules apply; false shows the list without them."""

    def request(self) -> Request:
        """The request as the recommender takes it."""
        return Request(
            user_id=self.user_id,
            history=tuple(
                Choice(told) if isinstance(told, str) else Choice(**told.model_dump()) for told in self.history
            ),
            context=self.context,
            profile=dict(self.profile),
            filters=Filters(
                categories=tuple(self.filters.category),
                price_min=self.filters.price_min,
                price_max=self.filters.price_max,
            ),
            k=self.k,
            exclude=tuple(self.exclude),
            rules=self.rules,
        )


def profile_problem(given: dict[str, float], names: list[str]) -> tuple[str, str] | None:
    """(column, what is wrong with it) of the first bad profile column, given the columns that the models read."""
    ranges = profile_ranges()
    for name, value in given.items():
        if name not in BODY and name not in names:
            return name, f"unknown profile column (known: {', '.join(dict.fromkeys([*BODY, *names]))})"
        low, high = ranges.get(name, (-float("inf"), float("inf")))
        if not low <= value <= high:
            return name, f"{value:g} must lie between {low:g} and {high:g}"
    return None


class Matched(BaseModel):
    """An attribute that two products share."""

    kind: Literal["std", "re"]
    key: str
    value: str


class Cause(BaseModel):
    """The product of the history that is nearest to a recommended one."""

    product_id: str
    title: str
    cosine: float
    matched: list[Matched]


class Product(BaseModel):
    """A product as shown."""

    product_id: str
    title: str
    brand: str | None
    price: float | None
    currency: str | None
    snippet: str
    attributes: dict[str, list[str]]
    """STD values by key."""
    details: dict[str, list[str]]
    """RE values by key."""


class Fitted(BaseModel):
    """The size of a product to take, and the chances that it is too small, fits, is too large."""

    size: str
    small: float
    fit: float
    large: float


class Recommended(Product):
    """A recommended product and why."""

    score: float
    """Higher is better; comparable within one answer only. Rules may put an item above one of a higher score."""
    probability: float | None
    """That it is the shopper's next choice, given that this is one of the candidates; null without the ranker."""
    retrieval_score: float
    """Inner product of user and product vector."""
    sources: list[Literal["ann", "item", "cooccurrence", "popular"]]
    """All that found it: the user vector's neighbours, those of the last products of the history, what others had
    together with these, what is popular among shoppers alike. Empty: a rule alone brought it in."""
    reasons: list[str]
    """Codes; see rec/recommend/why.py."""
    because: Cause | None
    fit: Fitted | None
    """null where the shop foretells no fit, or knows neither body nor earlier sizes of the shopper."""


class PinLeftOut(BaseModel):
    """A pinned product that the list does not have."""

    model_config = ConfigDict(from_attributes=True)

    product_id: str
    reason: Literal["excluded", "filtered"]
    """`excluded`: by the request, by a rule, or because the shopper has it; `filtered`: the request's filters do not
    let it pass, or it is out of stock."""


class AppliedRules(BaseModel):
    """The merchandiser's rules that arranged a list."""

    version: int
    left_out: list[PinLeftOut]


class Recommendations(BaseModel):
    """The answer to POST /v1/recommend."""

    items: list[Recommended]
    bundle: str
    at: datetime
    """The moment that ages of events and products were taken at."""
    underfilled: bool
    """Fewer than k products pass the filters."""
    rules: AppliedRules | None
    """None: there are none, or the request declined them."""
    milliseconds: dict[str, float]


class Neighbour(Product):
    """A product near another one."""

    score: float
    """Cosine."""
    matched: list[Matched]


class Neighbours(BaseModel):
    """The answer to GET /v1/products/{id}/similar."""

    product: Product
    items: list[Neighbour]
    bundle: str


class Products(BaseModel):
    """The answer to GET /v1/products."""

    items: list[Product]
    bundle: str


class Shopper(BaseModel):
    """A stored user of the synthetic catalogue."""

    user_id: str
    events: int
    profile: dict[str, float]
    recent: list[Product]
    """Latest first."""


class ShopFacts(BaseModel):
    """What the demo page needs to start."""

    recipe: str
    bundle: str
    items: int
    categories: list[str]
    profile_names: list[str]
    profile_ranges: dict[str, tuple[float, float]]
    """Lowest and highest value of the columns that have any."""
    users: list[Shopper]
    """Synthetic shoppers to try; empty for catalogues of real people."""
