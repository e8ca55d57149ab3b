"""STD vocabulary: a closed set of (key, value) in one id space, read from a TOML file whose ids never change.

The shipped file is `fashion.toml`; its head explains the fields. Loading checks that ids and words are unique.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from rec.errors import ConfigError
from rec.vocab import words
from rec.vocab.words import fold

UNKNOWN = "unknown"
"""Name of every key's own unknown value."""

_MISSING = {fold(word) for word in (UNKNOWN, "undefined", "n/a", "not specified", "nan", "null", "미상", "알 수 없음")}
_MANY = re.compile(r"[,;|\n、，；]+")
_JOINED = re.compile(r"[/&+·]|\band\b|\s\d+(?:[.,]\d+)?\s*%", re.IGNORECASE)
_SHARE = re.compile(r"\d+(?:[.,]\d+)?\s*%")


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    id: int
    en: list[str] = []
    ko: list[str] = []
    given: list[str] = []
    quiet: bool = False


class _Key(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    id: int
    unknown: int
    inferable: bool = False
    plural: bool = False
    names: list[str] = []
    values: dict[str, _Value]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    version: str
    asked: str | None = None
    next_id: int
    keys: dict[str, _Key]


@dataclass(frozen=True, slots=True)
class Normalised:
    """A raw value brought to the vocabulary."""

    values: list[str]
    """Canonical values, each once, in the order they were found; `unknown` where the raw value says so itself."""
    unmapped: list[str]
    """Parts of the raw value that are no value of the key, as they were."""


class StdVocabulary:
    """The fixed vocabulary. Keys have ids 1..num_keys, (key, value) pairs 1..num_ids - 1, 0 is padding."""

    def __init__(self, file: _File, origin: str) -> None:
        _check_ids(file, origin)
        self.version = file.version
        """Changes when keys or values come; aliases may come within a version."""
        self.asked = file.asked or file.version
        """Version of what a model is shown, the inferable keys and their values: what it said stays good as long."""
        self.keys: list[str] = sorted(file.keys, key=lambda name: file.keys[name].id)
        """Key names in the order of their ids."""
        self.num_keys = 1 + max(key.id for key in file.keys.values())
        """Rows of a table over keys, padding included."""
        self.num_ids = file.next_id
        """Rows of a table over (key, value) ids, padding included."""
        self._keys = file.keys
        self._key_of = _key_names(file, origin)
        self._words = {name: _words(name, key, origin) for name, key in file.keys.items()}
        self._finders = {name: words.Finder(_searched(key)) for name, key in file.keys.items()}
        self._latin: dict[str, list[tuple[frozenset[str], str]]] = {}
        for name, finder in self._finders.items():
            for first, rest in finder.latin:
                self._latin.setdefault(first, []).append((rest, name))

    @staticmethod
    def load(path: Path | None = None) -> "StdVocabulary":
        """The vocabulary of a TOML file, by default the shipped one. Raises ConfigError when it is not sound."""
        if path is None:
            return StdVocabulary.parse(shipped(), "fashion.toml")
        try:
            return StdVocabulary.parse(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"vocabulary file {path} cannot be read: {error}") from error

    @staticmethod
    def parse(text: str, origin: str) -> "StdVocabulary":
        """The vocabulary of TOML text; `origin` names it in errors."""
        try:
            return StdVocabulary(_File.model_validate(tomllib.loads(text)), origin)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"vocabulary {origin} is not TOML: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(f"vocabulary {origin}: {where}: {first['msg']}") from None

    def check_keeps(self, older: "StdVocabulary", origin: str) -> None:
        """Raise ConfigError unless every id of `older`, which `origin` holds, means here what it means there."""
        for key in older.keys:
            if key not in self._keys or self.key_id(key) != older.key_id(key):
                raise ConfigError(f"the vocabulary lacks key {key!r} of {origin}, or gives it another id: put it back")
            for value in (UNKNOWN, *older.values(key)):
                id = older.id_of(key, value)
                if (value != UNKNOWN and value not in self._keys[key].values) or self.id_of(key, value) != id:
                    raise ConfigError(
                        f"the vocabulary lacks {key} {value!r} (id {id}) of {origin}, or gives it another id: put it "
                        "back; ids never change, a value that is no longer wanted stays"
                    )

    def key_id(self, key: str) -> int:
        """1-based id of a key."""
        return self._keys[key].id

    def unknown_id(self, key: str) -> int:
        """Id of "has a value, but none of these" under `key`."""
        return self._keys[key].unknown

    def id_of(self, key: str, value: str) -> int:
        """Id of a canonical value or of `unknown`; KeyError for anything else."""
        return self._keys[key].unknown if value == UNKNOWN else self._keys[key].values[value].id

    def values(self, key: str) -> list[str]:
        """Canonical values of a key in file order, without `unknown`."""
        return list(self._keys[key].values)

    def inferable(self, key: str) -> bool:
        """Whether a model may conclude the key's value from the whole text."""
        return self._keys[key].inferable

    def key_of(self, name: str) -> str | None:
        """The key that a shop's attribute name means, or None."""
        return self._key_of.get(fold(name))

    def normalise(self, key: str, raw: str) -> Normalised:
        """Bring a raw value to canonical ones: as a whole, else split at commas, else at `/`, `&` and `and`."""
        found: dict[str, None] = {}
        unmapped: dict[str, None] = {}
        for part in [raw] if self._value(key, raw) else _MANY.split(raw):
            value = self._value(key, part)
            for piece in [part] if value else _JOINED.split(part):
                value = self._value(key, piece)
                if value is not None:
                    found[value] = None
                elif fold(piece):
                    unmapped[piece.strip()] = None
        return Normalised(list(found), list(unmapped))

    def find(self, key: str, text: str) -> list[tuple[str, str]]:
        """(value, the words of `text` that say it) of each value that the free text names, each once, in text order."""
        prepared, places = words.searchable(text)
        found: dict[str, str] = {}
        for start, end in self._finders[key].spans(prepared):
            value = self._words[key][fold(prepared[start:end])]
            if places is not None:
                start, end = places[start][0], places[end - 1][1]
            found.setdefault(value, text[start:end])
        return list(found.items())

    def find_all(self, text: str) -> list[tuple[str, str, str]]:
        """(key, value, words) of what `find` finds under each key, in the order of the keys.

        Most keys have no word in a text: only those are asked of which all parts of a word stand there.
        """
        there = words.latin_words(words.searchable(text)[0])
        asked = self.keys
        if there is not None:
            some = {key for first in there & self._latin.keys() for rest, key in self._latin[first] if rest <= there}
            asked = [key for key in self.keys if key in some]
        return [(key, value, span) for key in asked for value, span in self.find(key, text)]

    def _value(self, key: str, raw: str) -> str | None:
        word = fold(_SHARE.sub(" ", raw))
        found = self._words[key].get(word)
        return UNKNOWN if found is None and word in _MISSING else found


def shipped() -> str:
    """Text of the shipped vocabulary file."""
    return (resources.files("rec.vocab") / "fashion.toml").read_text(encoding="utf-8")


def _searched(key: _Key) -> list[str]:
    """The words that free text is searched for."""
    found: list[str] = []
    for name, value in key.values.items():
        found += value.en if value.quiet else [name, *value.en]
        found += value.ko
    return found + [words.plural(fold(word)) for word in found if key.plural and fold(word).isascii()]


def _words(name: str, key: _Key, origin: str) -> Mapping[str, str]:
    """Folded word → canonical value; plurals only where no value claims the word."""
    owner: dict[str, str] = {}
    for value, entry in key.values.items():
        for word in dict.fromkeys(map(fold, [value, *entry.en, *entry.ko, *entry.given])):
            if not word:
                raise ConfigError(f"vocabulary {origin}: {name} {value!r} has an empty word: remove it")
            if owner.setdefault(word, value) != value:
                raise ConfigError(
                    f"vocabulary {origin}: {name}: {word!r} means {owner[word]!r} and {value!r}: keep one"
                )
    if key.plural:
        for word, value in list(owner.items()):
            if word.isascii():
                owner.setdefault(words.plural(word), value)
    return owner


def _key_names(file: _File, origin: str) -> Mapping[str, str]:
    owner: dict[str, str] = {}
    for key, entry in file.keys.items():
        for name in dict.fromkeys(map(fold, [key, *entry.names])):
            if owner.setdefault(name, key) != key:
                raise ConfigError(f"vocabulary {origin}: {name!r} names the keys {owner[name]!r} and {key!r}: keep one")
    return owner


def _check_ids(file: _File, origin: str) -> None:
    """Ids are 1..next_id - 1, each once, key ids are 1..n, no value is called `unknown`."""
    if not file.keys:
        raise ConfigError(f"vocabulary {origin} has no keys")
    if sorted(key.id for key in file.keys.values()) != list(range(1, len(file.keys) + 1)):
        raise ConfigError(f"vocabulary {origin}: ids of keys must be 1 to {len(file.keys)}, each once")
    owner: dict[int, str] = {}
    for name, key in file.keys.items():
        if UNKNOWN in key.values:
            raise ConfigError(f"vocabulary {origin}: {name} has a value {UNKNOWN!r}: the key's own unknown id is that")
        for value, id in {UNKNOWN: key.unknown, **{value: entry.id for value, entry in key.values.items()}}.items():
            if not 1 <= id < file.next_id:
                raise ConfigError(f"vocabulary {origin}: {name} {value!r}: id {id} is not in 1..next_id - 1")
            if id in owner:
                raise ConfigError(f"vocabulary {origin}: id {id} is used by {owner[id]} and {name} {value!r}")
            owner[id] = f"{name} {value!r}"
    removed = sorted(set(range(1, file.next_id)) - owner.keys())
    if removed:
        raise ConfigError(
            f"vocabulary {origin}: id {removed[0]} is missing: ids are never removed, put its value back "
            "(a value that is no longer wanted stays)"
        )
