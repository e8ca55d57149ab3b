"""Words as vocabularies compare them, and how many of them are found in free text at once.

Latin words are found as whole words, `-`, `/` and space being the same. Korean joins words and particles
to one token, so a Korean word is found at the start of a token whatever follows (여성용), or at its end but
for a particle (린넨셔츠를); a word of one syllable only when it is the whole token but for a particle (면의).
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache

_HANGUL = re.compile("[가-힣]")
_NOT_WORD = re.compile(r"[\W_]+")
_LETTERS = re.compile(r"[^\W_]+")
_RUN = re.compile(r"\S+|\s+")
_PARTICLE = "(?:은|는|이|가|을|를|의|과|와|도|로|으로|에|에서|만|인|용|형|소재|혼방)?"
_BEFORE_LATIN, _AFTER_LATIN = r"(?<![^\W_가-힣])", r"(?![^\W_가-힣])"  # Korean may touch a Latin word: cotton소재
_BEFORE, _AFTER = r"(?<![^\W_])", r"(?![^\W_])"
_SEPARATOR = r"[\s/_.&'’‐–—−\-]{1,2}"

LONGEST_KEPT = 100
"""Characters of a text whose folding is remembered; what shops say is mostly the same few words."""

Trie = dict[str, "Trie"]
_END = ""


def fold(text: str) -> str:
    """NFKC, casefold, anything but letters and digits as one space; Korean text without spaces. Idempotent."""
    return _fold_word(text) if len(text) <= LONGEST_KEPT else _fold(text)


def _fold(text: str) -> str:
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = _NOT_WORD.sub(" ", plain).strip()
    return folded.replace(" ", "") if _HANGUL.search(folded) else folded


_fold_word = lru_cache(maxsize=16_384)(_fold)


def plural(noun: str) -> str:
    """English plural of a folded noun by rule; a noun in -s, like `boots`, stays."""
    if noun.endswith(("ss", "x", "z", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2:-1] not in tuple("aeiou "):
        return f"{noun[:-1]}ies"
    return noun if noun.endswith("s") else f"{noun}s"


class Finder:
    """Finds any of many words in free text; an expression is compiled for the first text that needs it."""

    def __init__(self, words: Iterable[str]) -> None:
        latin: set[str] = set()
        korean: set[str] = set()
        for word in words:
            spaced = _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", word).casefold()).strip()
            (korean if _HANGUL.search(spaced) else latin).add(spaced)
        self._rests: dict[str, list[frozenset[str]]] = {}
        for word in sorted(latin):
            first, *rest = word.split(" ")
            self._rests.setdefault(first, []).append(frozenset(rest))
        self._in_latin, self._in_korean = latin, korean

    @cached_property
    def _latin(self) -> re.Pattern[str] | None:
        latin = self._in_latin
        return re.compile(rf"\b{_expression(latin, _SEPARATOR)}\b") if latin else None

    @cached_property
    def _mixed(self) -> re.Pattern[str] | None:
        latin = self._in_latin
        return re.compile(f"{_BEFORE_LATIN}{_expression(latin, _SEPARATOR)}{_AFTER_LATIN}") if latin else None

    @cached_property
    def _korean(self) -> re.Pattern[str] | None:
        syllables = {word for word in self._in_korean if len(word) == 1}
        parts = []
        if longer := self._in_korean - syllables:
            any_korean = _expression(longer, r"\s?")
            parts += [f"{_BEFORE}{any_korean}", f"{any_korean}(?={_PARTICLE}{_AFTER})"]
        if syllables:
            parts.append(f"{_BEFORE}{_expression(syllables, '')}(?={_PARTICLE}{_AFTER})")
        return re.compile("|".join(parts)) if parts else None

    @property
    def latin(self) -> Iterator[tuple[str, frozenset[str]]]:
        """First part and other parts of each Latin word: what a text without any Korean must have for one of them."""
        return ((first, rest) for first, rests in self._rests.items() for rest in rests)

    def spans(self, prepared: str) -> list[tuple[int, int]]:
        """Spans of the words found in text made by `searchable`, in text order; each folds to a word given.

        Of words of one script that begin at one place the longest is found, and they do not overlap.
        """
        there = latin_words(prepared)
        if there is not None:
            return [] if self._latin is None else self._latin_spans(prepared, there, self._latin)
        patterns = [pattern for pattern in (self._mixed, self._korean) if pattern is not None]
        return sorted(match.span() for pattern in patterns for match in pattern.finditer(prepared))

    def _latin_spans(self, prepared: str, there: frozenset[str], latin: re.Pattern[str]) -> list[tuple[int, int]]:
        """What `latin.finditer` finds, five times as fast: looked at only where the first part of a word stands."""
        starts: list[int] = []
        for first in there & self._rests.keys():
            if any(rest <= there for rest in self._rests[first]):
                start = prepared.find(first)
                while start >= 0:
                    starts.append(start)
                    start = prepared.find(first, start + 1)
        found: list[tuple[int, int]] = []
        end = 0
        for start in sorted(starts):
            match = latin.match(prepared, start) if start >= end else None
            if match:
                end = match.end()
                found.append((start, end))
        return found


@lru_cache(maxsize=4)
def latin_words(prepared: str) -> frozenset[str] | None:
    """The words of a text; None where any is Korean."""
    return None if _HANGUL.search(prepared) else frozenset(_LETTERS.findall(prepared))


def _expression(words: set[str], separator: str) -> str:
    """The words as one prefix tree, so that matching does not slow down with their number."""
    root: Trie = {}
    for word in sorted(words):
        node = root
        for character in word:
            node = node.setdefault(character, {})
        node[_END] = {}
    return _branch(root, separator)


def _branch(node: Trie, separator: str) -> str:
    ways = [
        (separator if character == " " else re.escape(character)) + _branch(rest, separator)
        for character, rest in node.items()
        if character != _END
    ]
    if not ways:
        return ""
    return f"(?:{'|'.join(ways)}){'?' if _END in node else ''}"


@lru_cache(maxsize=4)
def searchable(text: str) -> tuple[str, list[tuple[int, int]] | None]:
    """(text in NFKC and casefold, span in `text` of each of its characters; None when positions are equal).

    Where normalising changes the length of a word, its characters have the span of the whole word.
    """
    if text.isascii():
        return text.lower(), None
    made: list[str] = []
    spans: list[tuple[int, int]] = []
    for run in _RUN.finditer(text):
        plain = unicodedata.normalize("NFKC", run.group()).casefold()
        start, end = run.span()
        made.append(plain)
        if len(plain) == end - start:
            spans += [(place, place + 1) for place in range(start, end)]
        else:
            spans += [(start, end)] * len(plain)
    return "".join(made), spans
