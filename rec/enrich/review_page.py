"""The review page: one self-contained HTML file of a sample, readable without a server and writable with one.

Product text is data here as well: everything is escaped, and the page's own Content-Security-Policy names the hashes
of its one script and one style sheet, so that nothing else of it could run or load anything.
"""

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from itertools import pairwise
from string import Template
from typing import Any

from rec.enrich.answers import LLM, TAGGER
from rec.enrich.corrections import HUMAN, Correction
from rec.enrich.review import Item, Sample
from rec.enrich.text import clean
from rec.vocab.std import UNKNOWN, StdVocabulary

_SOURCES = (LLM, TAGGER, HUMAN, "rule", "given")
"""Of several values with the same evidence the first one's source gives the mark its look."""
_CODE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Desk:
    """Where a served page sends what is stated."""

    token: str
    file: str
    """Name of the correction file."""


def page(
    recipe: str, sample: Sample, human: Mapping[str, Correction], vocabulary: StdVocabulary, desk: Desk | None
) -> str:
    """HTML of the sample, with the values of the correction file in place. Without a `desk` it is to be read only."""
    cards = [card(item, human.get(item.row["product_id"]), vocabulary, desk) for item in sample.items]
    drawn = [item.row["status"] for item in sample.items]
    counts = ", ".join(f"{drawn.count(status)} of {count:,} {status}" for status, count in sample.counts.items())
    template = (resources.files("rec.enrich") / "review.html").read_text(encoding="utf-8")
    hashes = {name: _hash(code) for name, code in _CODE.findall(template)}
    return Template(template).substitute(
        policy=f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'",
        recipe=escape(recipe),
        counts=escape(counts),
        how=_how(desk),
        token=escape(desk.token if desk else ""),
        lists=_lists(vocabulary) if desk else "",
        cards="\n".join(cards) or "<p>There are no products.</p>",
    )


def _hash(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


def _how(desk: Desk | None) -> str:
    if desk is None:
        return "<p>To accept or edit values, start the job with <code>--serve 8100</code>.</p>"
    return (
        "<p>Accept fixes the values of a product as they are, Edit changes them; both add lines to "
        f"<code>{escape(desk.file)}</code>, which win over every other source from the next <code>jobs/enrich.py</code>"
        ' on.</p><label>Your name, for the file <input id="by" maxlength="100" autocomplete="name"></label>'
    )


def _lists(vocabulary: StdVocabulary) -> str:
    """Of each key, the STD values to choose from."""
    lists = []
    for key in vocabulary.keys:
        options = "".join(f'<option value="{escape(value)}">' for value in (*vocabulary.values(key), UNKNOWN))
        lists.append(f'<datalist id="std-{escape(key)}" data-key="{escape(key)}">{options}</datalist>')
    return "\n".join(lists)


def card(item: Item, human: Correction | None, vocabulary: StdVocabulary, desk: Desk | None) -> str:
    """One product."""
    row = human.apply(item.row, item.text) if human else item.row
    attributes = [*row["std"], *row["re"]]
    by = f" · {escape(row['model'])}" if row["model"] else ""
    told = f'<p class="reason">{escape(row["reason"])}</p>' if row["reason"] else ""
    if item.text.content_hash != row["content_hash"]:
        told += '<p class="reason">The text has changed since it was enriched: run jobs/enrich.py again.</p>'
    done = f'<span class="done">{len(human.std) + len(human.re)} corrected</span>' if human else ""
    keys = [key for key in vocabulary.keys if any(a["key"] == key for a in attributes)]
    rows = "".join(_key_row(key, row) for key in keys)
    buttons = ""
    if desk is not None:
        accept = '<button type="button" data-do="accept">Accept</button>' if rows else ""
        buttons = (
            f'<div class="acts">{accept}<button type="button" data-do="edit">Edit</button>'
            '<p role="status" class="said"></p></div>'
        )
    return (
        f'<article data-id="{escape(row["product_id"])}"{" data-done" if human else ""}>'
        f'<h2 dir="auto">{escape(item.title)}</h2>'
        f'<p class="meta"><span class="status {escape(row["status"])}">{escape(row["status"])}</span> '
        f"<code>{escape(row['product_id'])}</code>{by} {done}</p>{told}"
        f'<div class="text" dir="auto">{_marked(item.text.text, attributes)}</div>'
        f'<table><caption class="vh">Values by key</caption><tbody>{rows}</tbody></table>{buttons}</article>'
    )


def _key_row(key: str, row: Mapping[str, Any]) -> str:
    cells = "".join(
        f'<ul class="{kind}" aria-label="{kind.upper()} values" data-kind="{kind}">'
        f"{''.join(_chip(a) for a in row[kind] if a['key'] == key)}</ul>"
        for kind in ("std", "re")
    )
    return f'<tr data-key="{escape(key)}"><th scope="row">{escape(key)}</th><td>{cells}</td></tr>'


def _chip(attribute: Mapping[str, Any]) -> str:
    evidence = attribute["evidence"]
    said = f'<span class="vh">, evidence: {escape(evidence)}</span>' if evidence else ""
    bare = "" if evidence else " bare"
    return (
        f'<li class="{escape(attribute["source"])}{bare}" data-value="{escape(attribute["value"])}">'
        f"<bdi>{escape(attribute['value'])}</bdi> <small>{escape(attribute['source'])}</small>{said}</li>"
    )


def _marked(text: str, attributes: Sequence[Mapping[str, Any]]) -> str:
    """The escaped text with the evidence of each value in a mark that names the values."""
    spans = [(span, a) for a in attributes if a["evidence"] and (span := _place(text, a))]
    edges = sorted({0, len(text), *(edge for (start, end), _ in spans for edge in (start, end))})
    return "".join(_pieces(text, spans, edges))


def _pieces(
    text: str, spans: Sequence[tuple[tuple[int, int], Mapping[str, Any]]], edges: Sequence[int]
) -> Iterator[str]:
    for start, end in pairwise(edges):
        over = [a for (first, last), a in spans if first <= start and end <= last]
        piece = escape(text[start:end])
        if over:
            source = min((a["source"] for a in over), key=_SOURCES.index)
            names = "; ".join(dict.fromkeys(f"{a['key']}: {a['value']} ({a['source']})" for a in over))
            piece = f'<mark class="{source}" title="{escape(names)}">{piece}</mark>'
        yield piece


def _place(text: str, attribute: Mapping[str, Any]) -> tuple[int, int] | None:
    """Where the evidence stands: as whole words if it can be; what the shop gave stands at the end of the text."""
    said = attribute["evidence"]
    evidence = said if said in text else clean(said)  # the shop's own words are cleaned in the text
    if not evidence:
        return None
    whole = [m.start() for m in re.finditer(rf"(?<!\w){re.escape(evidence)}(?!\w)", text)]
    if attribute["source"] == "given":
        start = whole[-1] if whole else text.rfind(evidence)
    else:
        start = whole[0] if whole else text.find(evidence)
    return (start, start + len(evidence)) if start >= 0 else None
