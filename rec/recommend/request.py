"""What is asked of the recommender and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np

from rec.index.search import Filters

MAX_K = 100
MAX_HISTORY = 200
MAX_CONTEXT_CHARS = 500
Spared = Literal["user_tower", "ranking"]
"""Stages that a list can do without: it is then what is popular, or in the order of retrieval."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A product that the shopper chose, told with the request."""

    product_id: str
    event: str = "view"
    at: datetime | None = None
    """None: not told; see `resolve.UNDATED_STEP`."""
    size: str | None = None
    """What size it was in, as the shop writes it; read by the fit head alone."""
    fit: str | None = None
    """How it fitted, one of `rec.sizes.FITS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; every part is optional."""

    user_id: str | None = None
    client_id: str | None = None
    """An anonymous shopper, whose live events count beside those of the user."""
    history: tuple[Choice, ...] = ()
    """Oldest first; follows what is stored of the user."""
    context: str = ""
    profile: Mapping[str, float] = field(default_factory=dict)
    """Values by column name; they win over stored ones."""
    filters: Filters = field(default_factory=Filters)
    k: int = 10
    exclude: tuple[str, ...] = ()
    """Product ids that must not be recommended."""
    rules: bool = True
    """Whether the merchandiser's rules apply."""
    without: frozenset[Spared] = frozenset()
    """Stages that are left out, to see what they give."""
    evidence: bool = False
    """Whether products say where each of their attributes comes from."""

    @property
    def named(self) -> bool:
        """Whether whoever asks says who they are."""
        return self.user_id is not None or self.client_id is not None


@dataclass(frozen=True, slots=True)
class Encoded:
    """A user vector, and the same without each input that was given."""

    vector: np.ndarray  # float32[d] unit
    without: Mapping[str, np.ndarray]
    """Input name (`context`, `profile`) → float32[d] unit vector of the same state without it."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """The k best candidates, best first."""

    rows: np.ndarray  # int64[k]
    scores: np.ndarray  # float32[k] ranker logits, or retrieval scores where the ranker did not answer
    retrieval_scores: np.ndarray  # float32[k]
    sources: np.ndarray  # int64[k] bits of rec.retrieval.SOURCES
    probabilities: np.ndarray | None
    """float32[k] that each is the next choice, given the list of all candidates; None without the ranker."""

    @property
    def by_ranker(self) -> bool:
        """Whether the ranker answered."""
        return self.probabilities is not None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A pinned product that the list does not have."""

    product_id: str
    reason: Literal["excluded", "filtered"]
    """`excluded`: by the request, by a rule, or because the shopper has it; `filtered`: the request's filters do not
    let it pass, or it is out of stock."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What rules did to a list."""

    version: int
    left_out: list[LeftOut]
    moved_by: list[list[str]]
    """By item, the names of the rules that its reason codes come from."""


@dataclass(frozen=True, slots=True)
class Funnel:
    """How many products were left after each stage."""

    catalogue: int
    candidates: int
    """That retrieval found, and pins of rules that nothing else found."""
    ranked: int
    """Candidates that the ranker ordered; 0: it was left out, or did not answer."""
    shown: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request."""

    items: list[dict[str, Any]]
    bundle: str
    at: datetime
    """The moment that ages of events and products were taken at."""
    underfilled: bool
    """Fewer than k products pass the filters."""
    rules: Applied | None
    """None: no rules apply."""
    funnel: Funnel
    milliseconds: Mapping[str, float]
    """By stage."""
