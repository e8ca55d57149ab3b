"""Product text as the model sees it: one canonical form, its hash, its fence, and the words that ground a value.

Product text is data, never instruction. HTML, in descriptions too, goes through a real parser and loses what it hides;
control and invisible characters are removed, the length is capped, and the prompt encloses it in a fence that depends
on the content, so that no text can contain its own fence. Nothing named by a URL in the text is fetched; images are
those of the product's own list, from places that the recipe allows (`rec.enrich.places`).
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from selectolax.lexbor import LexborHTMLParser

from rec.config import Enrich
from rec.enrich.hostile import find, find_token
from rec.enrich.places import NO_IMAGES, Choice, choose

_BLOCK_TAGS = "p, li, br, div, tr, td, th, h1, h2, h3, h4, h5, h6, dt, dd, section, ul, ol, table"
_HIDDEN_TAGS = [
    "script", "style", "noscript", "template", "iframe", "object", "svg", "head", "title", "textarea", "select",
    "button", "audio", "video", "canvas", "math", "dialog",
]  # fmt: skip
_HIDDEN = "[hidden], [aria-hidden=true], [style]"
"""Elements that may be there for programs only; of those with a style, the ones that it hides."""
_HIDING = re.compile(
    r"(?:display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse)|(?:opacity|font-size|max-height|height|width)\s*:\s*0(?![.\d]*[1-9])"
    r"|(?:left|top|text-indent)\s*:\s*-\d{3,}|color\s*:\s*(?:#f{3,8}\b|white|transparent))",
    re.IGNORECASE,
)
_MARKUP = re.compile(
    r"<!--|</?(?:a|b|br|div|em|font|h[1-6]|i|img|li|ol|p|script|span|strong|style|table|tbody|td|th|tr|u|ul)\b[^<>]*>",
    re.IGNORECASE,
)
"""What shows that a description is HTML."""
_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"\w+(?:[-'’/.&]\w+)*%?")
_CLAUSE_END = re.compile(r"[^\w\s%'’/&+°-]|[.](?=\s|$)|\n|\s[-–—]\s")

MAX_PHRASE_WORDS = 4
"""Words of the longest phrase that is offered to the model or taken by rule."""

_STOP = """
    a an and are as at be but by for from in into is it its made no not of on or our over per so than that the
    their these this those to true under up was we when which while with without you your all any can has have made
    comes choice days designed easy ideal features featuring finished good great look made note perfect piece really
    style very wear wearing worn 및 와 과 의 를 을 이 가 은 는 에 로 으로 도 그 더 위한 위해 있는 있어 있습니다 합니다
    입니다 입기 좋아요 좋습니다 옷입니다 제품입니다 상품입니다 특징입니다 추천합니다 더했습니다 담았습니다 디자인입니다
    어울립니다 잘 포인트가 디테일을 감성을 소재의 시즌에 상품
"""
STOP_WORDS = frozenset(_STOP.split())
"""Words that are part of no phrase: function words and the filler of shop texts."""

_CARE_OR_ORIGIN = re.compile(
    r"\b(?:wash(?:ing|able)?|dry[ -]?clean|bleach|tumble dry|iron|made in)\b|세탁|드라이클리닝|다림질|제조|원산지",
    re.IGNORECASE,
)
"""Clauses on how to wash a garment and where it was sewn: no key asks for either."""


@dataclass(frozen=True)
class Canonical:
    """A product's text: title, description, stripped HTML and given attributes, one per line, no line twice."""

    text: str
    body: str
    """The description and HTML part of `text`; the title where there is nothing else. Phrases come from here:
    the item tower reads titles itself, and a collection's name is no attribute."""
    hostile: str | None
    """The words that try to instruct the model, else None."""
    images: Choice = NO_IMAGES
    """The images that go with it."""

    @property
    def askable(self) -> bool:
        """Whether a model may be asked: there is a text or an image, and the text is not hostile."""
        return self.hostile is None and bool(self.text or self.images.urls)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @cached_property
    def subject(self) -> str:
        """What an answer is found by: the text, with the names of its images if it has any."""
        return self.images.subject(self.content_hash)

    @cached_property
    def fence(self) -> str:
        """Delimiter around the text in the prompt: unpredictable without the text, and not contained in it."""
        return hashlib.sha256(f"fence\0{self.text}".encode()).hexdigest()[:8]

    @cached_property
    def _words(self) -> tuple[str, list[int], list[tuple[int, int]]]:
        """Casefolded words joined by single spaces; start of each word in that string; its span in `text`."""
        starts, spans, parts, at = [], [], [], 1
        for match in _WORD.finditer(self.text):
            word = match.group().casefold()
            starts.append(at)
            spans.append(match.span())
            parts.append(word)
            at += len(word) + 1
        return f" {' '.join(parts)} ", starts, spans

    def span(self, value: str) -> str | None:
        """The piece of the text with the same words in the same order as `value`, case and punctuation aside."""
        wanted = [match.group().casefold() for match in _WORD.finditer(value)]
        if not wanted:
            return None
        joined, starts, spans = self._words
        at = joined.find(f" {' '.join(wanted)} ")
        if at < 0:
            return None
        first = starts.index(at + 1)
        return self.text[spans[first][0] : spans[first + len(wanted) - 1][1]]

    @cached_property
    def phrases(self) -> list[str]:
        """1..MAX_PHRASE_WORDS successive words of a run."""
        found: dict[str, None] = {}
        for run in self.runs:
            for first in range(len(run)):
                for last in range(first, min(first + MAX_PHRASE_WORDS, len(run))):
                    found[" ".join(run[first : last + 1])] = None
        return list(found)

    @cached_property
    def runs(self) -> list[list[str]]:
        """Longest runs of words without a stop word within a clause of the body: roughly its noun phrases.

        Of a line `label: value` only the value counts, and clauses on care and origin do not.
        """
        told = "\n".join(labelled[1] if (labelled := _labelled(line)) else line for line in self.body.split("\n"))
        runs: list[list[str]] = []
        for clause in _CLAUSE_END.split(told):
            if not _CARE_OR_ORIGIN.search(clause):
                run: list[str] = []
                for word in clause.split():
                    if word.casefold() not in STOP_WORDS:
                        run.append(word)
                    elif run:
                        runs.append(run)
                        run = []
                if run:
                    runs.append(run)
        return runs

    def labelled(self) -> Iterator[tuple[str, str]]:
        """(label, value) of each line of the body of the form `label: value`."""
        for line in self.body.split("\n"):
            if labelled := _labelled(line):
                yield labelled


def _labelled(line: str) -> tuple[str, str] | None:
    label, colon, value = line.partition(": ")
    return (label.strip(), value.strip()) if colon and value.strip() and len(label.split()) <= 3 else None


def clean(text: str) -> str:
    """NFC, no control or invisible characters, white space collapsed to single spaces."""
    composed = unicodedata.normalize("NFC", text)
    if not composed.isprintable():
        composed = "".join(c if c.isprintable() or c.isspace() else "" for c in composed)
    return _SPACE.sub(" ", composed).strip()


def strip_html(html: str) -> str:
    """The visible text of an HTML fragment, one line per block."""
    if not html:
        return ""
    tree = LexborHTMLParser(html)
    tree.strip_tags(_HIDDEN_TAGS)
    for node in tree.css(_HIDDEN):
        style = node.attributes.get("style")
        if style is None or "hidden" in node.attributes or "aria-hidden" in node.attributes or _HIDING.search(style):
            node.decompose()
    if tree.body is None:
        return ""
    for node in tree.css(_BLOCK_TAGS):
        node.insert_before("\n")
        node.insert_after("\n")
    return tree.body.text(separator="")


def canonical(product: Mapping[str, Any], max_chars: int, tame: bool = False) -> Canonical:
    """Canonical text of a row of `products`; text beyond `max_chars` characters is cut at a word.

    `tame`: it was looked at before, and is not hostile; half of the time is for that look.
    """
    title = clean(product["title"])
    description, html = product["description"] or "", product["html"] or ""
    told = strip_html(description).split("\n") if _MARKUP.search(description) else [description]
    pieces = [*told, *strip_html(html).split("\n")]
    lines = dict.fromkeys(line for piece in pieces if (line := clean(piece)) and line != title)
    shop = [clean(f"{key}: {', '.join(values)}") for key, values in given(product).items()]
    hostile = None
    if not tame:
        hostile = find("\n".join([title, *lines, *shop])) or find_token(html) or find_token(description)
    body = _cap("\n".join(lines), max_chars)
    text = _cap("\n".join(part for part in (title, body, *shop) if part), max_chars)
    return Canonical(text, body or title, hostile)


def shown(product: Mapping[str, Any], enrich: Enrich, tame: bool = False) -> Canonical:
    """What a model is shown of a row of `products`: its canonical text, and which of its images.

    `tame`: see `canonical`.
    """
    text = canonical(product, enrich.max_text_chars, tame)
    images = enrich.images
    return replace(text, images=choose(product["image_urls"], images)) if images.max_images else text


def _cap(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    cut = text[: max_chars + 1]
    return cut[: max(cut.rfind(" "), cut.rfind("\n"), max_chars // 2)]


def given(product: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """The attributes the shop gave, by name; Arrow maps arrive as pairs or as a dict."""
    pairs = product["attributes"] or {}
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    return {key: [value for value in values or () if value] for key, values in sorted(items)}
