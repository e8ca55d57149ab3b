"""Requests that nobody means well with, drawn by hypothesis: any bytes, deep JSON, and bodies and queries of the API's
own shape with a value here and there that is extreme or of another kind.

Most of a request is right, as what is wrong in every field is refused at the first one.
"""

import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

JSON = "application/json"
TYPES = (
    "application/json; charset=utf-16", "application/json;charset=nonsense", "text/json", "text/plain", "text/html",
    "application/x-www-form-urlencoded", "multipart/form-data", "multipart/form-data; boundary=x", "application/xml",
    "application/octet-stream", "application/cbor", "application/", "/", "json", "*/*", ";", "é",
)  # fmt: skip
METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS", "TRACE")
TEXTS = (
    "", " ", "\x00", "a\x00b", "\ud800", "x" * 200, "x" * 201, "x" * 501, "x" * 20_000, "옷" * 500, "😀" * 100,
    "é" * 200, "../../etc/passwd", "a/b", "/", ".", "%00", "%", "\\", "\n", "\r\n", "\x1b[31m", "\u202e", "\ufeff",
    "' OR 1=1 --", "{{7*7}}", "${jndi:x}", "<script>", "NaN", "null", "true", "-1", "0", "1e309", "İ", "ß", "ﬀ",
    "\u0301", "a" + "\u0301" * 99,
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 100, 101, 10**6, -(10**6), 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**400,
    0.5, -0.0, 1e-308, 5e-324, 1e9, 1e10, 3.5e38, 1e308, -1e308, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
TIMES = (
    "2025-01-01T00:00:00Z", "2024-02-29T23:59:59.999999+05:30", "1970-01-01T00:00:00Z", "1969-12-31T23:59:59Z",
    "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999999-23:59",
    "2999-01-01T00:00:00Z", "2025-01-01T00:00:00", "2025-02-30T00:00:00Z", "2025-01-01T24:00:00Z", "2025-01-01", "now",
    "2016-12-31T23:59:60Z", "+275760-09-13T00:00:00Z", "-000001-01-01T00:00:00Z", "", 0, -1, 1e9, 1e18, 1e308, -1e18,
    253402300800,
)  # fmt: skip
EVENTS = ("view", "cart", "purchase", "rental", "rating")
COLUMNS = ("height_cm", "weight_kg", "birth_year", "shoe", "")
BODIES = 4
"""How much oftener than another one an operation with a body is drawn."""
DEEPEST = 32_000
"""Brackets: with those that close them as many bytes as a body may have."""

Json = SearchStrategy[Any]


@dataclass(frozen=True, slots=True)
class Sent:
    """A request, and the operation of the API that it is meant for."""

    operation: str
    """As `POST /v1/events`."""
    method: str
    target: str
    """Path and query, quoted."""
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Known:
    """Names that the shop knows, of which plausible requests are made."""

    products: Sequence[str]
    categories: Sequence[str]
    users: Sequence[str]


def drawn(requests: SearchStrategy[Sent], count: int, number: int) -> list[Sent]:
    """At most `count` requests, the same for a seed `number`, where the same modules are loaded."""
    made: list[Sent] = []

    @seed(number)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(requests)
    def keep(request: Sent) -> None:
        made.append(request)

    keep()
    return made[:count]


def requests(known: Known) -> SearchStrategy[Sent]:
    """Requests for every operation of the API."""
    products = _names(known.products)
    users = _names([*known.users, "nobody"])
    categories = _names(known.categories)
    recommend = _recommend(products, users, categories)
    with_body = {
        "POST /v1/recommend": st.fixed_dictionaries({}, optional=recommend),
        "POST /v1/explain": st.fixed_dictionaries({"product_id": products}, optional=recommend),
        "POST /v1/events": st.fixed_dictionaries({"events": _lists(_live_event(products, users), 101)}),
    }
    evidence = {"evidence": _mostly(st.booleans(), _anything())}
    query = {"exclude": _lists(products, 5), "k": _k(), "rules": _mostly(st.booleans(), _anything())}
    filters = {"category": _lists(categories, 3), "price_min": _numbers(0, 200), "price_max": _numbers(0, 200)}
    limit = {"query": _names(["red dress", "옷"]), "limit": _k()} | evidence
    similar = {"k": _k()} | evidence
    without_body = [
        ("GET /v1/products/{product_id}/similar", products, st.fixed_dictionaries({}, optional=similar)),
        ("GET /v1/explain", st.none(), st.fixed_dictionaries({"product_id": products}, optional=query | filters)),
        ("GET /v1/users/{user_id}", users, st.just({})),
        ("DELETE /v1/users/{user_id}", users, st.just({})),
        ("DELETE /v1/clients/{client_id}", users, st.just({})),
        ("GET /v1/products", st.none(), st.fixed_dictionaries({}, optional=limit)),
        *((f"GET {path}", st.none(), st.just({})) for path in ("/v1/bundles", "/v1/shop", "/healthz", "/readyz")),
    ]
    return st.one_of(
        *(_with_body(operation, shaped) for operation, shaped in with_body.items() for _ in range(BODIES)),
        *(_without_body(operation, name, told) for operation, name, told in without_body),
    )


def _weighed(*parts: tuple[int, Json]) -> Json:
    """Each strategy as often as its weight says; hypothesis' own `one_of` takes the parts of one apart."""
    each = [strategy for weight, strategy in parts for _ in range(weight)]
    return st.integers(0, len(each) - 1).flatmap(each.__getitem__)


def _mostly(right: Json, wrong: Json, of: int = 12) -> Json:
    """`wrong` once in `of` times."""
    return _weighed((of - 1, right), (1, wrong))


def _anything() -> Json:
    """Any JSON."""
    leaf = st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(NUMBERS),
        st.sampled_from(TEXTS),
        st.integers(),
        st.floats(),
        st.text(),
    )
    return st.recursive(leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4))


def _names(known: Sequence[str]) -> Json:
    right = st.sampled_from(list(known) or ["none"])
    return _mostly(right, st.one_of(st.sampled_from(TEXTS), st.text(max_size=250), _anything()))


def _numbers(low: float, high: float) -> Json:
    return _mostly(st.floats(low, high), st.sampled_from(NUMBERS) | _anything())


def _k() -> Json:
    return _mostly(st.integers(1, 100), st.sampled_from(NUMBERS) | _anything(), of=6)


def _lists(each: Json, most: int) -> Json:
    """Mostly a few, sometimes as many as are allowed and some more: one drawn list, repeated."""
    few = st.lists(each, min_size=1, max_size=3)
    many = st.tuples(few, st.sampled_from((0, most - 1, most, most + 1))).map(
        lambda both: (both[0] * both[1])[: both[1]]
    )
    return _mostly(few, many | _anything(), of=8)


def _choice(products: Json) -> dict[str, Json]:
    """Optional fields of an event, of whichever kind."""
    return {
        "event": _mostly(st.sampled_from(EVENTS), _anything()),
        "at": _mostly(st.integers(0, 2**31).map(_moment), st.sampled_from(TIMES), of=3),
        "size": _mostly(st.sampled_from(("38", "M", "34/32")), st.sampled_from(TEXTS) | _anything()),
        "fit": _mostly(st.sampled_from(("small", "fit", "large")), _anything()),
    }


def _live_event(products: Json, users: Json) -> Json:
    fields = _choice(products) | {
        "context": _names(["a red dress"]),
        "exposure_id": _mostly(st.uuids().map(str), _anything()),
    }
    return st.one_of(
        *(
            st.fixed_dictionaries(
                {"event_id": _mostly(st.uuids().map(str), _names(["again"])), "product_id": products, who: users},
                optional=fields,
            )
            for who in ("user_id", "client_id")
        ),
        _anything(),
    )


def _recommend(products: Json, users: Json, categories: Json) -> dict[str, Json]:
    event = st.fixed_dictionaries({"product_id": products}, optional=_choice(products))
    prices = {name: _numbers(0, 200) for name in ("price_min", "price_max")}
    profile = st.dictionaries(st.sampled_from(COLUMNS[:3]), _numbers(50, 200), max_size=3)
    return {
        "user_id": users,
        "client_id": users,
        "history": _mostly(_lists(products | event, 200), _anything()),
        "context": _names(["a red dress for a wedding", "비 오는 날 코트"]),
        "profile": _mostly(profile, st.dictionaries(st.sampled_from(COLUMNS) | st.text(), _anything()) | _anything()),
        "filters": _mostly(
            st.fixed_dictionaries({}, optional={"category": _lists(categories, 20), **prices}), _anything()
        ),
        "k": _k(),
        "exclude": _mostly(_lists(products, 1_000), _anything()),
        "rules": _mostly(st.booleans(), _anything()),
        "without": _mostly(st.lists(st.sampled_from(("user_tower", "ranking")), max_size=2), _anything()),
        "evidence": _mostly(st.booleans(), _anything()),
        "bundle": _mostly(st.none(), st.sampled_from(TEXTS) | _anything()),
        "unknown": _anything(),
    }


def _with_body(operation: str, shaped: Json) -> SearchStrategy[Sent]:
    method, path = operation.split()
    written = _mostly(shaped, _anything() | _deep_in(shaped), of=10).map(_written)
    bodies = _weighed((6, written), (2, _spoilt(shaped)), (1, _deep()), (1, st.binary(max_size=300)))
    return st.builds(
        lambda method, body, headers, told: Sent(operation, method, path + told, headers, body),
        _mostly(st.just(method), st.sampled_from(METHODS), of=40),
        bodies,
        _headers(JSON),
        _mostly(st.just(""), _any_query(), of=20),
    )


def _without_body(operation: str, name: Json, told: Json) -> SearchStrategy[Sent]:
    method, path = operation.split()

    def made(method: str, name: Any, told: Any, more: str, headers: dict[str, str]) -> Sent:
        query = _query(told)
        joined = "&".join(filter(None, [query, more.removeprefix("?")]))
        where = re.sub(r"{\w+}", lambda _: _quoted(name), path)
        return Sent(operation, method, where + ("?" + joined if joined else ""), headers, b"")

    return st.builds(
        made,
        _mostly(st.just(method), st.sampled_from(METHODS), of=40),
        name,
        told,
        _mostly(st.just(""), _any_query(), of=20),
        _headers(None),
    )


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _written(value: Any) -> bytes:
    return json.dumps(value).encode()


def _quoted(name: Any) -> str:
    return quote((name if isinstance(name, str) else json.dumps(name)).encode("utf-8", "surrogatepass"), safe="")


def _query(told: Any) -> str:
    if not isinstance(told, dict):
        return _quoted(told)
    pairs = [(name, each) for name, value in told.items() for each in (value if isinstance(value, list) else [value])]
    return "&".join(
        f"{_quoted(name)}={_quoted(each if isinstance(each, str) else json.dumps(each))}" for name, each in pairs
    )[:6_000]


def _any_query() -> SearchStrategy[str]:
    """Any bytes, as a query."""
    names = st.sampled_from(("k", "query", "limit", "product_id", "x"))
    return st.one_of(
        st.binary(max_size=40).map(lambda raw: "?" + quote(raw, safe="")),
        st.dictionaries(names, st.binary(max_size=20)).map(lambda told: "?" + urlencode(told)),
        st.sampled_from(("?", "?&&&", "?=", "?%", "?%zz", "?k=1&k=2", "?k", "?k[]=1", "?" + "x=1&" * 500)),
    )


def _headers(content_type: str | None) -> SearchStrategy[dict[str, str]]:
    latin = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40).map(str.strip)
    more = st.fixed_dictionaries(
        {},
        optional={
            "Content-Encoding": st.sampled_from(("gzip", "br", "identity", "nonsense")),
            "Accept": st.sampled_from(("text/html", "*/*", "", ";", "application/json;q=2")),
            "Accept-Encoding": st.sampled_from(("", "identity;q=0", "gzip", "*;q=0")),
            "Authorization": latin,
            "X-Request-ID": latin,
            "Origin": st.sampled_from(("null", "https://evil.example", "x")),
            "Range": st.sampled_from(("bytes=0-0", "bytes=-1", "x")),
            "If-None-Match": latin,
            "Cookie": latin,
            "traceparent": st.sampled_from(("00-" + "0" * 32 + "-" + "0" * 16 + "-01", "00-x", "ff-" + "1" * 32)),
        },
    )
    types = _weighed((8, st.sampled_from(TYPES).map(lambda each: {"Content-Type": each})), (1, st.just({})))
    right: SearchStrategy[dict[str, str]] = st.just({} if content_type is None else {"Content-Type": content_type})
    return st.builds(
        lambda first, second: first | second, _mostly(right, types, of=10), _mostly(st.just({}), more, of=10)
    )


def _spoilt(shaped: Json) -> SearchStrategy[bytes]:
    """A body of the right shape, written in a wrong way."""
    text = shaped.map(lambda value: json.dumps(value, ensure_ascii=False))
    written = text.map(lambda each: each.encode("utf-8", "surrogatepass"))

    def flipped(raw: bytes, at: int, byte: int) -> bytes:
        at %= max(len(raw), 1)
        return raw[:at] + bytes([byte]) + raw[at + 1 :]

    return st.one_of(
        st.builds(flipped, written, st.integers(0, 10_000), st.integers(0, 255)),
        st.builds(lambda raw, end: raw[: len(raw) * end // 100], written, st.integers(0, 99)),
        st.builds(
            lambda each, code: each.encode(code, "replace"), text, st.sampled_from(("utf-16", "utf-32", "latin-1"))
        ),
        st.builds(lambda raw, count: raw + b" " * count, written, st.sampled_from((1_000, 60_000, 70_000, 1_000_000))),
        written.map(lambda raw: b"\xef\xbb\xbf" + raw),
        written.map(lambda raw: raw * 2),
        written.map(lambda raw: raw[:-1] + b"," + raw[1:]),  # every field twice
        written.map(lambda raw: gzip.compress(raw, mtime=0)),
    )


def _deep() -> SearchStrategy[bytes]:
    """Brackets within brackets, as a body or the value of a field, whether or not they are closed."""
    fields = ("history", "context", "profile", "filters", "events", "exclude", "k", "user_id")

    def nested(count: int, both: tuple[bytes, bytes], field: str | None, closed: bool) -> bytes:
        opening, closing = both
        count = min(count, 2 * DEEPEST // len(opening + closing))
        inner = opening * count + (b"0" + closing * count if closed else b"")
        return inner if field is None else b'{"' + field.encode() + b'": ' + inner + b"}"

    return st.builds(
        nested,
        st.sampled_from((10, 200, 1_000, 5_000, DEEPEST)) | st.integers(1, DEEPEST),
        st.sampled_from(((b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]"))),
        st.none() | st.sampled_from(fields),
        st.booleans(),
    )


def _deep_in(shaped: Json) -> Json:
    """A body of the right shape with lists in lists for one of its fields, as deep as json writes."""

    def put(value: Any, depth: int, at: int) -> Any:
        inner: Any = 0
        for _ in range(depth):
            inner = [inner]
        names = sorted(value)
        return {**value, names[at % len(names)]: inner} if names else inner

    return st.builds(put, shaped, st.integers(1, 200), st.integers(0, 20))
