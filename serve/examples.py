"""What the OpenAPI document shows of each route: bodies that the demo shop takes, and answers as it gives them.

The document leaves fields out that are null, so no example of an answer has one.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from fastapi import Depends, Security
from fastapi.security import HTTPBearer

from serve.api import Malformed, Problem
from serve.guard import ELSEWHERE
from serve.limits import json_only
from serve.problems import TOO_SLOW

Examples = dict[str, Any]

BUNDLE = "8ec63620b4d2"
PRODUCT: Mapping[str, Any] = {
    "product_id": "S0012",
    "title": "Linen midi dress in sand",
    "brand": "Norr",
    "price": 89.0,
    "currency": "EUR",
    "snippet": "A loose dress of washed linen for warm days.",
    "attributes": {"category": ["dress"], "colour": ["beige"], "season": ["summer"]},
    "details": {"fabric": ["washed linen"]},
    "evidence": [
        {"kind": "std", "key": "category", "value": "dress", "source": "given", "evidence": "Dress"},
        {"kind": "std", "key": "colour", "value": "beige", "source": "rule", "evidence": "sand"},
        {"kind": "std", "key": "season", "value": "summer", "source": "llm", "evidence": "for warm days"},
        {"kind": "re", "key": "fabric", "value": "washed linen", "source": "llm", "evidence": "washed linen"},
    ],
}
MATCHED = [{"kind": "std", "key": "category", "value": "dress"}]
RECOMMENDED: Mapping[str, Any] = {
    **PRODUCT,
    "score": 1.93,
    "probability": 0.087,
    "retrieval_score": 0.41,
    "sources": ["ann", "item"],
    "reasons": ["similar_to_history", "fits_context"],
    "because": {"product_id": "S0003", "title": "Cotton shirt dress", "cosine": 0.71, "matched": MATCHED},
    "fit": {"size": "38", "small": 0.11, "fit": 0.82, "large": 0.07},
}
EXPOSURE_ID = "019ab0f3-5c1e-7d20-9b1a-3f6f0c2d8e41"
MILLISECONDS = {
    "state": 2.0, "user_tower": 4.1, "retrieval": 3.7, "ranking": 3.1, "rules": 0.0, "explanation": 0.6, "total": 13.5,
}  # fmt: skip

FUNNEL = {"catalogue": 400, "candidates": 100, "ranked": 100, "shown": 1}

RECOMMEND: Examples = {
    "new": {"summary": "A shopper never seen", "value": {}},
    "wish": {
        "summary": "A body, a wish and a price",
        "value": {
            "profile": {"height_cm": 172, "weight_kg": 64},
            "context": "a linen dress for a beach wedding",
            "filters": {"category": ["dress"], "price_max": 120},
            "k": 5,
            "evidence": True,
        },
    },
    "known": {
        "summary": "A stored user who has just signed in, with what is in the cart",
        "value": {
            "user_id": "U0042",
            "client_id": "visit-7f3a",
            "history": ["S0003", {"product_id": "S0007", "event": "cart", "size": "38"}],
            "exclude": ["S0001"],
        },
    },
}
RECOMMENDATIONS: Examples = {
    "items": [RECOMMENDED],
    "exposure_id": EXPOSURE_ID,
    "bundle": BUNDLE,
    "experiment": {"number": 2, "arm": "control"},
    "at": "2026-11-23T08:00:00Z",
    "degraded": [],
    "underfilled": False,
    "rules": {"version": 4, "left_out": [{"product_id": "S0030", "reason": "filtered"}]},
    "funnel": FUNNEL,
    "milliseconds": MILLISECONDS,
}
NEIGHBOURS: Examples = {
    "product": PRODUCT,
    "items": [{**PRODUCT, "product_id": "S0016", "score": 0.83, "matched": MATCHED}],
    "bundle": BUNDLE,
    "degraded": [],
}
EXPLAIN: Examples = {
    "known": {
        "summary": "A stored user with a wish",
        "value": {"product_id": "S0012", "user_id": "U0042", "context": "a linen dress", "k": 5},
    }
}
EXPLANATION: Examples = {
    "product_id": "S0012",
    "outcome": "shown",
    "place": 1,
    "excluded_by": [],
    "rules": ["boost 1"],
    "nearness": {"rank": 31, "of": 400, "score": 0.37, "last_candidate": 0.12},
    "ranking": {"rank": 3, "of": 100, "score": 1.93, "probability": 0.087, "last_shown": 0.2},
    "item": {**RECOMMENDED, "reasons": [*RECOMMENDED["reasons"], "boosted"]},
    "bundle": BUNDLE,
    "degraded": [],
}
EVENTS: Examples = {
    "client": {
        "summary": "Somebody who has not signed in looks at a product of a list",
        "value": {
            "events": [
                {
                    "event_id": "visit-7f3a-1",
                    "client_id": "visit-7f3a",
                    "product_id": "S0003",
                    "exposure_id": EXPOSURE_ID,
                }
            ]
        },
    },
    "user": {
        "summary": "A user bought something, and says how it fits",
        "value": {
            "events": [
                {
                    "event_id": "order-1017-1",
                    "user_id": "U0042",
                    "product_id": "S0007",
                    "event": "purchase",
                    "at": "2026-11-20T17:04:00+01:00",
                    "context": "for the office",
                    "size": "38",
                    "fit": "fit",
                }
            ]
        },
    },
}
TAKEN: Examples = {"stored": ["visit-7f3a-1"], "repeated": ["order-1017-1"], "forgotten": []}
EVENT = {"product_id": "S0007", "event": "purchase", "at": "2026-11-20T16:04:00Z", "size": "38", "fit": "fit"}
STORED_USER: Examples = {
    "user_id": "U0042",
    "profile": {"height_cm": 172.0, "birth_year": 1990.0},
    "events": [EVENT],
    "live_events": [
        {
            **EVENT,
            "event_id": "order-1017-1",
            "context": "for the office",
            "received_at": "2026-11-20T16:04:02Z",
            "exposure_id": EXPOSURE_ID,
            "in_log": True,
        }
    ],
    "exposures": [
        {
            "exposure_id": EXPOSURE_ID,
            "bundle": BUNDLE,
            "experiment": 2,
            "arm": "treatment",
            "user_id": "U0042",
            "client_id": "visit-7f3a",
            "served_at": "2026-11-20T16:01:40Z",
            "at": "2026-11-20T16:01:40Z",
            "context": "for the office",
            "k": 1,
            "degraded": [],
            "products": ["S0007"],
            "scores": [1.93],
            "probabilities": [0.087],
            "retrieval_scores": [0.41],
            "sources": [1],
            "cooccurrence": [0.0],
            "places": [0],
            "retrieved": 100,
            "candidates": ["S0007", "S0012"],
            "candidate_scores": [0.41, 0.37],
            "candidate_sources": [1, 3],
            "history": ["S0003"],
            "history_events": [3],
            "history_ages": [86400.0],
            "profile": {"height_cm": 172.0, "birth_year": 1990.0},
        }
    ],
}
FORGOTTEN: Examples = {"events": 12, "profiles": 1, "live_events": 1, "exposures": 4}
FORGOTTEN_CLIENT: Examples = {"live_events": 3, "exposures": 2}
REFUSED: Examples = {
    "bundle": "77aa3be0c1d9",
    "error": "bundles/77aa3be0c1d9/ranker.safetensors is not what its manifest says",
}
BUNDLES: Examples = {
    "serving": BUNDLE,
    "loaded": [BUNDLE, "0c41d2aa97e5"],
    "refused": REFUSED,
    "rules": {"version": 4, "inactive": [], "problem": "version 5: unknown key 'boots' (did you mean 'boost'?)"},
    "active": BUNDLE,
    "previous": "0c41d2aa97e5",
    "experiment": {
        "number": 2,
        "control": BUNDLE,
        "treatment": "77aa3be0c1d9",
        "share": 0.1,
        "started_at": "2026-11-23T09:00:00Z",
    },
    "known": [
        {"bundle": BUNDLE, "recipe": "demo", "items": 400, "loaded_at": "2026-11-23T07:00:00Z", "state": "active"},
        {
            "bundle": "0c41d2aa97e5",
            "recipe": "demo",
            "items": 398,
            "loaded_at": "2026-11-16T07:00:00Z",
            "state": "previous",
        },
    ],
}
PRODUCTS: Examples = {"items": [PRODUCT], "bundle": BUNDLE}
SHOP: Examples = {
    "recipe": "demo",
    "bundle": BUNDLE,
    "items": 400,
    "categories": ["coat", "dress"],
    "profile_names": ["height_cm", "birth_year"],
    "profile_ranges": {"height_cm": [50, 250], "weight_kg": [20, 300], "birth_year": [1900, 2026]},
    "users": [{"user_id": "U0042", "events": 12, "profile": {"height_cm": 172.0}, "recent": [PRODUCT]}],
}
READY: Examples = {
    "status": "ready",
    "bundle": BUNDLE,
    "milliseconds": MILLISECONDS,
    "rules": {"version": 4, "inactive": 0, "problem": True},
    "refused": REFUSED["bundle"],
}


class Refusal(NamedTuple):
    """What a status means, and the bodies that it comes with."""

    text: str
    bodies: tuple[Examples, ...]
    model: Any = Problem


MALFORMED: Examples = {
    "detail": [
        {"loc": ["body", "k"], "msg": "Input should be less than or equal to 100", "type": "less_than_equal"},
    ]
}
UNKNOWN: Examples = {"error": "unknown_products", "message": "unknown products: P9999", "products": ["P9999"]}
UNAVAILABLE: Examples = {"error": "unavailable", "message": "the recommender cannot answer now; try again"}
OVERLOADED: Examples = {"error": "overloaded", "message": "the request waited 4 s for its turn; try again"}
PROBLEMS: Mapping[int, Refusal] = {
    400: Refusal(
        "The body is no text, or the X-Request-ID has other signs. Of what is no HTTP, or has more than 15 KiB of path "
        "and headers, HAProxy says so, in HTML.",
        ({"error": "request_id", "message": "…"},),
    ),
    401: Refusal(
        "No key, or a wrong one.",
        ({"error": "unauthorized", "message": "send a key as `Authorization: Bearer KEY`"},),
    ),
    403: Refusal(
        "The server's database role may not.",
        ({"error": "not_allowed", "message": "this role may not delete …"},),
    ),
    404: Refusal("Not in the catalogue.", (UNKNOWN,)),
    408: Refusal(
        "The request, or the answer, took too long; of a head HAProxy says so, in HTML, of the answer Ray Serve, in "
        "plain text.",
        ({"error": "body_too_slow", "message": "the body may take 10 s"},),
    ),
    413: Refusal(
        "The body is too large.",
        ({"error": "body_too_large", "message": "the body may have 65536 bytes"},),
    ),
    415: Refusal(
        "The body is not said to be JSON.",
        ({"error": "unsupported_media_type", "message": "send the body as `Content-Type: application/json`"},),
    ),
    421: Refusal(
        "There are no keys, and the Host is another than 127.0.0.1 or localhost.",
        ({"error": "misdirected_request", "message": ELSEWHERE},),
    ),
    422: Refusal("Not as it is described here.", (MALFORMED,), Malformed),
    429: Refusal(
        "More than the key may ask; see Retry-After.",
        ({"error": "too_many_requests", "message": "50 requests a second are allowed"},),
    ),
    503: Refusal(
        "It cannot be answered now; see Retry-After. Of a full queue Ray Serve says so, in plain text.",
        (UNAVAILABLE,),
    ),
}
ANYWHERE = (400, 408, 503)
"""What any route may answer."""
BUT_PROBES = (401, 421, 429)
"""What all but the probes may answer as well."""
WITH_BODY = (413, 415, 422)
"""What a route that takes a body may answer as well."""
BY_OTHERS: Mapping[int, tuple[str, ...]] = {400: ("text/html",), 408: ("text/html", "text/plain"), 503: ("text/plain",)}
"""What HAProxy (HTML, which it can be given no other form of) and Ray Serve (text) may answer by themselves."""
WITH_RETRY_AFTER = (429, 503)
UNKNOWN_EVENT_PRODUCTS: Mapping[int, Refusal] = {
    422: Refusal("Not as it is described here, or not in the catalogue.", (MALFORMED, UNKNOWN), Malformed | Problem),
}
NOTHING_STORED: Mapping[int, Refusal] = {
    404: Refusal(
        "Nothing is stored of this user.", ({"error": "not_found", "message": "nothing is stored of this user"},)
    ),
}
LATE: Mapping[int, Refusal] = {
    503: Refusal(f"{PROBLEMS[503].text} `overloaded`: it waited too long for its turn.", (UNAVAILABLE, OVERLOADED)),
}
"""Of what is due at a time."""
SLOW_SEARCH: Mapping[int, Refusal] = {
    503: Refusal(
        f"{PROBLEMS[503].text} `search_too_slow`: these words may well take as long again.",
        (UNAVAILABLE, {"error": "search_too_slow", "message": TOO_SLOW}),
    ),
}
HEADERS = {"X-Request-ID": {"description": "That of the request, or a new one.", "schema": {"type": "string"}}}
RETRY_AFTER = {"Retry-After": {"description": "Seconds until it may be asked again.", "schema": {"type": "integer"}}}


KEY = HTTPBearer(auto_error=False, description="One of REC_API_KEYS, where there are any; serve/guard.py checks it.")


def described(
    example: Examples,
    *problems: int,
    body: bool = False,
    probe: bool = False,
    own: Mapping[int, Refusal] = MappingProxyType({}),
) -> dict[str, Any]:
    """What a route is declared with: the `example` of its answer, its `problems` and those of all but a probe.

    One that takes a `body` has those of bodies, too, and takes JSON alone. `own`: problems that mean something else
    there than elsewhere.
    """
    responses: dict[int, dict[str, Any]] = {
        200: {"headers": HEADERS, "content": {"application/json": {"example": example}}}
    }
    for status in sorted({*problems, *own, *ANYWHERE, *(WITH_BODY if body else ()), *(() if probe else BUT_PROBES)}):
        refusal = own.get(status, PROBLEMS[status])
        shown = {each.get("error", "malformed"): {"value": each} for each in refusal.bodies}
        content: dict[str, Any] = {"application/json": {"examples": shown}}
        for form in BY_OTHERS.get(status, ()):
            content[form] = {"schema": {"type": "string"}}
        responses[status] = {
            "model": refusal.model,
            "description": refusal.text,
            "headers": HEADERS | (RETRY_AFTER if status in WITH_RETRY_AFTER else {}),
            "content": content,
        }
    if probe:
        return {"responses": responses}
    dependencies = [Security(KEY), *([Depends(json_only)] if body else [])]
    # {} beside the key: where there are no keys nobody needs one
    return {"responses": responses, "dependencies": dependencies, "openapi_extra": {"security": [{}]}}
