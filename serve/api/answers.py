"""What the HTTP API answers otherwise."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from rec.recommend.passage import Outcome


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


class Evidence(BaseModel):
    """An attribute of a product and where it comes from."""

    kind: Literal["std", "re"]
    key: str
    value: str
    source: Literal["human", "given", "rule", "llm", "tagger"] | None
    """Who said so: a person's correction, the shop, a rule that read its text, the language model, a tagger. null: the
    bundle was made before this was kept."""
    evidence: str | None
    """The words of the product that say so; `image:` and hashes where it was read from pictures; null: unknown."""


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
    evidence: list[Evidence] | None
    """STD before RE; null unless asked for."""


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


class Arm(BaseModel):
    """Which part of an experiment a shopper is in."""

    number: int
    """Of the experiment."""
    arm: Literal["control", "treatment"]


class Funnel(BaseModel):
    """How many products were left after each stage."""

    catalogue: int
    candidates: int
    """That retrieval found, and pins of rules that nothing else found."""
    ranked: int
    """Candidates that the ranker ordered; 0: it was left out, or did not answer."""
    shown: int


class Recommendations(BaseModel):
    """The answer to POST /v1/recommend."""

    items: list[Recommended]
    exposure_id: str | None
    """Of this list; send it with the events that follow from it. null: such a list is not logged, as the request
    names a bundle or leaves stages out."""
    bundle: str
    experiment: Arm | None
    """null: none runs, or the shopper is neither a user nor a client."""
    at: datetime
    """The moment that ages of events and products were taken at."""
    degraded: list[str]
    """What the answer did without, as codes (rec/recommend/why.py); `prices_unavailable`: prices are as published."""
    underfilled: bool
    """Fewer than k products pass the filters."""
    rules: AppliedRules | None
    """None: there are none, or the request declined them."""
    funnel: Funnel
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
    degraded: list[str]
    """As in POST /v1/recommend."""


class Nearness(BaseModel):
    """A product in the order of the user vector."""

    rank: int
    """From 1, among all products of the bundle, those that do not pass as well."""
    of: int
    score: float
    """Inner product of user and product vector."""
    last_candidate: float | None
    """Lowest such score of a candidate; null where there is no candidate."""


class Ranking(BaseModel):
    """A candidate in the ranker's order, before rules."""

    rank: int
    """From 1."""
    of: int
    score: float
    probability: float | None
    last_shown: float
    """The score of the k-th best candidate."""


class Explanation(BaseModel):
    """The answer to /v1/explain: the stage that had the last word on a product, and what it went by."""

    product_id: str
    outcome: Outcome
    place: int | None
    """In the list, from 1."""
    excluded_by: list[Literal["rule", "request", "seen"]]
    rules: list[str]
    """Names of the rules that exclude or move the product; where none does, of those that move others before it."""
    nearness: Nearness | None
    """null: unknown product, or no user vector."""
    ranking: Ranking | None
    """null: no candidate."""
    item: Recommended | None
    """The product as shown, with reasons and matched attributes."""
    bundle: str
    degraded: list[str]


class KnownBundle(BaseModel):
    """A bundle whose vectors the database has."""

    bundle: str
    recipe: str
    items: int
    loaded_at: datetime
    state: Literal["active", "treatment", "previous"] | None
    """`treatment`: it is tried beside the active one."""


class RunningExperiment(BaseModel):
    """A bundle that is tried beside the active one (rec/index/experiments.py)."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    control: str
    treatment: str
    share: float
    """Of the shoppers who get the treatment."""
    started_at: datetime


class RefusedBundle(BaseModel):
    """The active bundle, while another one answers."""

    bundle: str
    error: str
    """Why it cannot be served."""


class RulesState(BaseModel):
    """The merchandiser's rules of the bundle that answers."""

    version: int | None
    """null: there are none."""
    inactive: list[str]
    """What they name and the bundle does not have."""
    problem: str | None
    """Why the newest version is not in force; the one before it is."""


class Bundles(BaseModel):
    """The answer to GET /v1/bundles."""

    serving: str
    """The bundle that this replica answers for; it follows `active` within seconds."""
    loaded: list[str]
    """Those that a request to this replica can name: the one that answers, the treatment, the one that answered
    before."""
    refused: RefusedBundle | None
    rules: RulesState
    active: str | None
    previous: str | None
    """The one that was active before, of whatever recipe."""
    experiment: RunningExperiment | None
    known: list[KnownBundle]
    """Newest first."""


class Products(BaseModel):
    """The answer to GET /v1/products."""

    items: list[Product]
    bundle: str


class Health(BaseModel):
    """The answer to GET /healthz."""

    status: Literal["ok"]


class RulesInForce(BaseModel):
    """The same in numbers, for who has no key."""

    version: int | None
    inactive: int
    problem: bool


class Readiness(BaseModel):
    """The answer to GET /readyz."""

    status: Literal["ready"]
    bundle: str
    milliseconds: dict[str, float]
    rules: RulesInForce
    """What they say is told by GET /v1/bundles."""
    refused: str | None
    """The active bundle, while another one answers; null: it answers itself, or is being loaded."""


class Problem(BaseModel):
    """Why there is no answer."""

    error: str
    """A code."""
    message: str
    products: list[str] | None = None
    """Of `unknown_products`: which."""


class Fault(BaseModel):
    """What is wrong with a request."""

    loc: list[str | int]
    """Where: `body`, `query` or `path`, then names of fields and places in lists."""
    msg: str
    type: str
    """A code."""


class Malformed(BaseModel):
    """The answer to a request that is not as the document has it, without what was sent."""

    detail: list[Fault]


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
