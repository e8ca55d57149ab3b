"""Contracts: the Arrow schema of every dataset, with meaning, unit and nullability.

All ids are strings chosen by the shop. Times are UTC microseconds. A dataset's version rises when its
columns or their meaning change; readers refuse other versions.
"""

from dataclasses import dataclass

import pyarrow as pa

STRINGS = pa.list_(pa.field("item", pa.string(), nullable=False))
INTS = pa.list_(pa.field("item", pa.int32(), nullable=False))
FLOATS = pa.list_(pa.field("item", pa.float32(), nullable=False))
TIME = pa.timestamp("us", tz="UTC")

ATTRIBUTE = pa.struct(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("value", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # human | given | rule | llm | tagger
        pa.field("evidence", pa.string()),  # the span of the product's text that supports it, or image:<hashes>
    ]
)
ATTRIBUTES = pa.list_(pa.field("item", ATTRIBUTE, nullable=False))

EVENTS = ("view", "cart", "purchase", "rental", "rating")
"""The kinds of interaction, in the order of their embedding ids (1-based; 0 is padding)."""


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


@dataclass(frozen=True, slots=True)
class Contract:
    """Name, version and columns of one dataset, and the command that makes it."""

    kind: str
    version: int
    schema: pa.Schema
    made_by: str


PRODUCTS = Contract(
    "products",
    1,
    pa.schema(
        [
            _required("product_id", pa.string()),
            _required("title", pa.string()),
            pa.field("description", pa.string()),
            pa.field("html", pa.string()),
            pa.field("image_urls", STRINGS),
            pa.field("attributes", pa.map_(pa.string(), STRINGS)),  # given by the shop, in its own words
            pa.field("measurements", pa.map_(pa.string(), pa.float32())),  # cm
            pa.field("price", pa.float32()),  # in `currency`
            pa.field("currency", pa.string()),  # ISO 4217
            pa.field("brand", pa.string()),
            pa.field("group_id", pa.string()),  # same style in another size or re-listing; null: on its own
            _required("available", pa.bool_()),
            pa.field("created_at", TIME),
        ]
    ),
    "python jobs/ingest.py",
)

USERS = Contract(
    "users",
    1,
    pa.schema(
        [
            _required("user_id", pa.string()),
            pa.field("height_cm", pa.float32()),
            pa.field("weight_kg", pa.float32()),
            pa.field("birth_year", pa.int32()),
            pa.field("numeric", pa.map_(pa.string(), pa.float32())),  # any further profile column
        ]
    ),
    "python jobs/ingest.py",
)

INTERACTIONS = Contract(
    "events",
    2,
    pa.schema(
        [
            _required("user_id", pa.string()),
            _required("product_id", pa.string()),
            _required("event", pa.string()),  # one of EVENTS
            _required("at", TIME),
            pa.field("value", pa.float32()),  # price paid, or rating
            pa.field("context", pa.string()),  # free text: cart note, search, occasion
            pa.field("size", pa.string()),  # of the garment, as the shop writes it
            pa.field("size_number", pa.float32()),  # rec.sizes.number of it
            pa.field("fit", pa.string()),  # one of rec.sizes.FITS, told after the event
        ]
    ),  # sorted by (user_id, at), ties in the source's order
    "python jobs/ingest.py",
)

ENRICHED = Contract(
    "enriched",
    1,
    pa.schema(
        [
            _required("product_id", pa.string()),
            _required("std", ATTRIBUTES),  # key and value are vocabulary names
            _required("re", ATTRIBUTES),  # the same keys, open values
            _required("status", pa.string()),  # ok | partial | invalid | refused | quarantined
            pa.field("reason", pa.string()),
            pa.field("model", pa.string()),  # null when no LLM answered
            pa.field("prompt_version", pa.string()),
            _required("vocab_version", pa.string()),
            _required("tokens_in", pa.int32()),
            _required("tokens_out", pa.int32()),
            _required("content_hash", pa.string()),  # SHA-256 of the canonical product text
        ]
    ),
    "python jobs/enrich.py",
)

TENSORS = Contract(
    "tensors",
    2,
    pa.schema(
        [
            _required("product_id", pa.string()),
            _required("group", pa.int32()),  # content group: products that must not be each other's negatives
            _required("std_key", INTS),
            _required("std_id", INTS),
            _required("re_key", INTS),
            _required("re_id", INTS),
            _required("title_id", INTS),  # token ids of the text encoder's tokenizer
        ]
    ),
    "python jobs/tensorize.py",
)


DIGEST_BYTES = 16


def vectors(width: int) -> Contract:
    """Contract of item vectors of `width` floats, L2-normalised."""
    return Contract(
        "vectors",
        2,
        pa.schema(
            [
                _required("product_id", pa.string()),
                _required("vector", pa.list_(pa.float32(), width)),
                _required("inputs", pa.binary(DIGEST_BYTES)),  # digest of what the tower read of the product
            ]
        ),
        "python jobs/embed.py",
    )


SAMPLES = Contract(
    "samples",
    2,
    pa.schema(
        [
            _required("user_id", pa.string()),
            _required("at", TIME),  # of the target event: features see what was known just before it
            _required("label", pa.int32()),  # position of the target among the candidates
            _required("rows", INTS),  # item rows of the candidates in retrieval order
            _required("scores", FLOATS),  # retrieval scores
            _required("sources", INTS),  # bits of rec.retrieval.SOURCES
            _required("cooccurrence", FLOATS),  # scores, 0: not found
        ]
    ),  # one row per user, ascending; users whose target was not retrieved are left out
    "python jobs/candidates.py",
)

EXPOSURES = Contract(
    "exposures",
    1,
    pa.schema(
        [
            _required("exposure_id", pa.string()),  # of the list
            pa.field("user_id", pa.string()),  # null: nobody who had signed in
            _required("at", TIME),  # that ages are taken at, as when the list was made
            _required("label", pa.int32()),  # which of the products below was chosen
            _required("rows", INTS),  # item rows of the chosen product and those shown and not chosen
            _required("positions", INTS),  # of each in the list, from 1
            _required("places", INTS),  # of each among the candidates, from 0, ascending
            _required("scores", FLOATS),  # retrieval scores as served
            _required("sources", INTS),  # bits of rec.retrieval.SOURCES as served
            _required("cooccurrence", FLOATS),  # scores as served
            _required("retrieved", pa.int32()),  # how many candidates there were
            _required("best", pa.float32()),  # highest retrieval score among them
            _required("history", INTS),  # item rows of the shopper's events as served, oldest first
            _required("history_events", INTS),  # kinds, 1-based positions in EVENTS
            _required("history_ages", FLOATS),  # seconds
            _required("context", pa.string()),
            _required("profile", pa.map_(pa.string(), pa.float32())),
        ]
    ),  # one row per chosen product of a list, in the order of the lists
    "python jobs/exposures.py",
)

REJECTED = pa.schema(
    [
        _required("source", pa.string()),  # file or stage
        pa.field("row", pa.int64()),  # 0-based position in the source
        _required("reason", pa.string()),
        _required("record", pa.string()),  # the row as JSON, capped
    ]
)
