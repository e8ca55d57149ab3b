"""Index, what is learned of served lists, and evaluation."""

import math
from typing import Annotated, Literal

from pydantic import Field

from rec.config.branch import Branch

EXACT = 46.0
"""See `Index.exact_up_to`."""


class Index(Branch):
    """pgvector table and search."""

    kind: Literal["vector", "halfvec"] = "halfvec"
    """Column type of item vectors: 2 bytes (`halfvec`) or 4 bytes (`vector`) per number."""
    m: int = Field(default=16, ge=4, le=100)
    """HNSW: links per node."""
    ef_construction: int = Field(default=400, ge=8, le=1000)
    """HNSW: candidates looked at while building."""
    ef_search: int = Field(default=160, ge=10, le=1000)
    """HNSW: candidates looked at while searching, at least: see `recall`."""
    recall: float = Field(default=0.99, ge=0, le=1)
    """A bundle is searched with as large an `ef_search` as it takes to find this much of exact search, for vectors of
    its shoppers, as far as 1,000 is enough; 0: with `ef_search` as it is. `jobs/bundles.py promote` takes another one
    for the same index; servers that have the bundle already keep theirs until they start again."""
    exact_rows: int | None = Field(default=None, ge=0)
    """When at most this many products pass the filters, by a sample of them, they are all compared; unset: as many as
    take no longer than a walk through the index (`exact_up_to`). So they are where a walk finds too few."""
    build_workers: int | None = Field(default=None, ge=0)
    """Parallel workers of CREATE INDEX beside its leader; unset: max_parallel_maintenance_workers of the server, one
    less than the processors in the store's own. The server's other limits hold too."""
    build_memory_mb: int = Field(default=2_048, ge=64)
    """Most memory that CREATE INDEX may take (maintenance_work_mem); a graph that does not fit builds slowly."""
    min_recall: float = Field(default=0.95, ge=0, le=1)
    """A bundle whose index finds less than this of exact search, for vectors of its shoppers, is not promoted without
    --force."""
    recall_sample: float = Field(default=0.01, ge=0, le=1)
    """Share of a server's answers from the HNSW index that it compares with exact search afterwards; 0 for none."""

    def exact_up_to(self, items: int) -> int:
        """Products passing the filters up to which those of a catalogue of `items` are all compared.

        That takes a time that grows with how many pass, s of N; a walk until enough pass grows with N / s. So both are
        alike where s is as the root of N: at 105,542 x 128 at 15,000 (at 11,000 a walk takes 32 ms, all of them 16), at
        a million at 46,000.
        """
        return round(EXACT * math.sqrt(items)) if self.exact_rows is None else self.exact_rows


class Feedback(Branch):
    """What servers log of the lists that they serve, and what the ranker learns from it."""

    share: float = Field(default=1.0, ge=0, le=1)
    """Share of the answers to `POST /v1/recommend` that a server logs; 0 for none. REC_LISTS of the server wins."""
    candidates: int = Field(default=100, ge=2)
    """Most candidates that are logged with a list, in the order of retrieval; what was shown is logged in any case."""
    train: bool = False
    """Train the ranker on logged lists of which something was chosen, beside the samples of the shop's log."""
    window_hours: float = Field(default=24.0, gt=0, le=24 * 30)
    """How long after a list an event that names no list is taken to follow from it."""


class Evaluate(Branch):
    """Evaluation of retrieval and final list."""

    aside = frozenset({"floor_ndcg10"})

    cutoffs: list[Annotated[int, Field(ge=1)]] = Field(default=[5, 10, 100], min_length=1)
    """k of the reported Recall, NDCG and MRR; the floor and the benchmarks read those of 10."""
    bootstrap: int = Field(default=1_000, ge=100)
    """Bootstrap resamples over users."""
    max_users: int | None = Field(default=None, ge=1)
    """Cap on evaluated users, drawn by seed."""
    floor_ndcg10: float = Field(default=0.0, ge=0, le=1)
    """A bundle whose final list is below this NDCG@10 is not promoted without --force."""
