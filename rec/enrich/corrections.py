"""Corrections by people: a file whose values win over given, rule and llm, for ever.

JSONL, one object a line; a line says what a product has under a key, whatever any other source says:

    {"product_id": "A1", "key": "colour", "std": ["dark blue"], "re": ["midnight navy"], "by": "ann"}

`std` and `re` are all values of the key, [] says that it has none, and what is left out stays as it is. `by` and `at`
(ISO 8601 with a zone) are optional. Of several lines on one product, key and kind the latest `at` counts, and a line
without one is the oldest; lines that are equally late and differ are all set aside. `content`, the hash
of the text that the person saw, is optional too: a correction outlives its text, and products whose text is now
another one are counted.

A line that is no such object is an error of the whole file. One that names a key, a value or a product that is not
there is set aside with the reason, and the rest of the file counts; the product may come back, and finds it again.
"""

import codecs
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from rec.dataset import Rejects
from rec.enrich.answers import MAX_RE_PER_KEY, rows
from rec.enrich.attributes import Attribute
from rec.enrich.text import Canonical, clean
from rec.errors import InputError
from rec.vocab.std import StdVocabulary

log = logging.getLogger(__name__)

HUMAN = "human"
"""Source of a corrected value."""
MAX_CHARS = 500
"""Of one RE value; the shop's own may be that long, and accepting them must be possible."""

Kind = Literal["std", "re"]
Values = tuple[str, ...]


class Line(BaseModel):
    """One line of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    product_id: str = Field(min_length=1)
    key: str
    std: list[str] | None = None
    re: list[str] | None = None
    by: str | None = None
    at: AwareDatetime | None = None
    content: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Line":
        if self.std is None and self.re is None:
            raise ValueError("needs std, re or both")
        return self

    def dump(self) -> str:
        """The line as it stands in the file, without the end of line."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), ensure_ascii=False)


@dataclass(slots=True)
class Correction:
    """What people said of one product: key → values, which replace all others of the key."""

    std: dict[str, Values] = field(default_factory=dict)
    re: dict[str, Values] = field(default_factory=dict)
    contents: set[str] = field(default_factory=set)
    """Hashes of the texts that they saw."""

    def apply(self, made: Mapping[str, Any], text: Canonical) -> dict[str, Any]:
        """The row of ENRICHED `made` with these values in place of the others of their keys."""
        return {**made, "std": _replaced(made["std"], self.std, text), "re": _replaced(made["re"], self.re, text)}


def _replaced(now: Sequence[Mapping[str, Any]], stated: Mapping[str, Values], text: Canonical) -> list[dict[str, Any]]:
    human = [Attribute(key, value, HUMAN, text.span(value)) for key, values in stated.items() for value in values]
    return [*rows(human), *(dict(value) for value in now if value["key"] not in stated)]


@dataclass(frozen=True, slots=True)
class _Statement:
    """One kind of one line, brought to the vocabulary."""

    number: int
    line: Line
    key: str
    kind: Kind
    values: Values


class Corrections:
    """A correction file as read against the vocabulary, and what became of its lines."""

    def __init__(self, lines: Mapping[int, Line], vocabulary: StdVocabulary, name: str) -> None:
        """`lines`: by their number in the file, from 1."""
        self.by_product: dict[str, Correction] = {}
        self._name = name
        self._lines = lines
        self._aside: dict[int, str] = {}
        """Number of a line → why it is set aside."""
        self._replaced = 0
        self._missing: set[str] = set()
        self._text_changed = 0
        groups: dict[tuple[str, str, Kind], list[_Statement]] = {}
        for number, line in lines.items():
            try:
                for statement in statements(number, line, vocabulary):
                    groups.setdefault((line.product_id, statement.key, statement.kind), []).append(statement)
            except ValueError as error:
                self._aside[number] = str(error)
        for group in groups.values():
            self._settle(group)

    def _settle(self, group: Sequence[_Statement]) -> None:
        """Take the latest statement on one product, key and kind."""
        stamps = [statement.line.at.timestamp() if statement.line.at else float("-inf") for statement in group]
        latest = [statement for statement, stamp in zip(group, stamps, strict=True) if stamp == max(stamps)]
        first = latest[0]
        if any(set(other.values) != set(first.values) for other in latest):
            numbers = " and ".join(str(statement.number) for statement in latest)
            for statement in latest:
                what = f"{first.kind} {first.key!r}"
                self._aside[statement.number] = f"lines {numbers} differ on {what}: keep one, or give each its at"
            return
        self._replaced += len(group) - len(latest)
        correction = self.by_product.setdefault(first.line.product_id, Correction())
        (correction.std if first.kind == "std" else correction.re)[first.key] = first.values
        if first.line.content is not None:
            correction.contents.add(first.line.content)

    def follow(self, batches: Iterable[pa.Table], rejects: Rejects) -> Iterator[pa.Table]:
        """`batches` of ENRICHED rows as they are; with the last one the lines set aside are in `rejects`."""
        self._missing, self._text_changed = set(self.by_product), 0
        for batch in batches:
            if self.by_product:
                for product_id, content in zip(
                    batch["product_id"].to_pylist(), batch["content_hash"].to_pylist(), strict=True
                ):
                    correction = self.by_product.get(product_id)
                    if correction is not None:
                        self._missing.discard(product_id)
                        self._text_changed += bool(correction.contents - {content})
            yield batch
        for number, line in self._lines.items():
            if line.product_id in self._missing and number not in self._aside:
                self._aside[number] = f"no product {line.product_id!r} in the catalogue now"
        for number, reason in sorted(self._aside.items()):
            record = self._lines[number].model_dump(mode="json", exclude_none=True)
            rejects.add(source=self._name, row=number - 1, reason=reason, record=record)
        if self._aside:
            number, reason = min(self._aside.items())
            where = f"{self._name} line {number}"
            log.warning("corrections: %d lines are set aside, the first: %s: %s", len(self._aside), where, reason)

    def facts(self) -> dict[str, int]:
        """Counts, complete once `follow` is through."""
        return {
            "lines": len(self._lines),
            "products": len(self.by_product) - len(self._missing),
            "replaced": self._replaced,
            "set_aside": len(self._aside),
            "text_changed": self._text_changed,
        }


def statements(number: int, line: Line, vocabulary: StdVocabulary) -> list[_Statement]:
    """What a line says, in the vocabulary's words. Raises ValueError when it names what is not there."""
    key = vocabulary.key_of(line.key)
    if key is None:
        raise ValueError(f"no key {line.key!r} in the vocabulary (it has: {', '.join(vocabulary.keys)})")
    found: list[_Statement] = []
    if line.std is not None:
        names: dict[str, None] = {}
        for raw in line.std:
            normal = vocabulary.normalise(key, raw)
            if normal.unmapped or not normal.values:
                raise ValueError(f"{raw!r} is no std value of {key}: choose one, or put it under re")
            names |= dict.fromkeys(normal.values)
        found.append(_Statement(number, line, key, "std", tuple(names)))
    if line.re is not None:
        values = tuple({cleaned.casefold(): cleaned for cleaned in map(clean, line.re)}.values())
        long = next((value for value in values if not 0 < len(value) <= MAX_CHARS), None)
        if long is not None:
            raise ValueError(f"re value {long[:40]!r} of {key} must have 1 to {MAX_CHARS} characters")
        if len(values) > MAX_RE_PER_KEY:
            raise ValueError(f"{len(values)} re values of {key}: at most {MAX_RE_PER_KEY} are kept of a key")
        found.append(_Statement(number, line, key, "re", values))
    return found


def locate(name: str, folder: str) -> Path:
    """The file of `enrich.corrections`; a relative one lies in the folder of the source."""
    return Path(folder) / name


def parse(content: bytes, path: Path) -> dict[int, Line]:
    """The lines of a file by their number, without empty ones. Raises InputError for one that is no correction."""
    lines = {}
    for number, text in enumerate(content.removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        if not text.strip():
            continue
        try:
            lines[number] = Line.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the line"
            reason = first["msg"].removeprefix("Value error, ")
            raise InputError(
                f"{path} line {number}: {where}: {reason}; correct the line, its form is in rec/enrich/corrections.py"
            ) from None
    return lines


def load(name: str, folder: str, vocabulary: StdVocabulary) -> tuple[Corrections, str | None]:
    """The corrections of `enrich.corrections` and the SHA-256 of the bytes read; none, and None, when it names none."""
    if not name:
        return Corrections({}, vocabulary, ""), None
    path = locate(name, folder)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"correction file {path} cannot be read ({error.strerror}): correct enrich.corrections, "
            "or make an empty file to begin with"
        ) from None
    return Corrections(parse(content, path), vocabulary, path.name), hashlib.sha256(content).hexdigest()


def append(path: Path, lines: Sequence[Line]) -> list[Line]:
    """Add `lines` at the end, all or none, with an `at` later than any in the file; returns them as written.

    Whole files are written and renamed: a kill at any moment leaves the file with all of the lines or with none, and
    two that append wait for each other. Raises InputError when what the file holds now cannot be read.
    """
    path = path.resolve()  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = path.read_bytes() if path.exists() else b""
        latest = [line.at + timedelta(microseconds=1) for line in parse(content, path).values() if line.at]
        stamped = [line.model_copy(update={"at": max([datetime.now(UTC), *latest])}) for line in lines]
        if content and not content.endswith(b"\n"):
            content += b"\n"
        content += b"".join(f"{line.dump()}\n".encode() for line in stamped)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    return stamped
