"""Answers reused key by key when a vocabulary or a prompt changes.

A question has a part for each key: what a model is shown for this key alone. An edition is a question as a prompt
version and a vocabulary version ask it, known by the fingerprints of its parts. Where an answer to the present edition
is missing, the answer of the same model to the same text in an older edition is good for every part with the same
fingerprint: only the others are asked, in a short prompt, and both are kept together as the answer to the present
edition.

Editions that were ever asked are in the database, those of shipped answers in `editions.toml`. Two that show the same
are one, whatever their versions are called: a new name alone asks nothing.
"""

import hashlib
import json
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache as once
from importlib import resources

from pydantic import ValidationError

from rec.enrich import cache
from rec.enrich.answers import Answer
from rec.enrich.prompt import RE_PREFIX, SEEN_PREFIX, STD_PREFIX, Body, Form
from rec.errors import ConfigError
from rec.vocab.std import StdVocabulary


@dataclass(frozen=True, slots=True)
class Edition:
    """A question about any product."""

    prompt_version: str
    vocab_version: str
    """Version of what the vocabulary shows a model, `StdVocabulary.asked`."""
    parts: Mapping[str, str]
    """Name of a part → fingerprint."""

    def key(self, content_hash: str, model: str) -> str:
        """Key in the cache of the model's answer to a text."""
        return cache.answer_key(content_hash, model, self.prompt_version, self.vocab_version)

    def missing(self, older: "Edition") -> list[str]:
        """Parts that an answer in an `older` edition leaves to be asked."""
        return [name for name, fingerprint in self.parts.items() if older.parts.get(name) != fingerprint]


@dataclass(frozen=True, slots=True)
class Kept:
    """What is still good of an older answer."""

    answer: Answer
    """Its body holds no key but those that are still good."""
    missing: tuple[str, ...]
    """Parts of the present edition that it lacks."""


def edition(form: Form, vocabulary: StdVocabulary) -> Edition:
    """The present edition, by the name of a shipped one that shows the same.

    Raises ConfigError where a shipped edition of its name shows another thing.
    """
    now = Edition(form.version, vocabulary.asked, fingerprints(form, vocabulary))
    shipped = _shipped()
    same = next((e for e in shipped if e.parts == now.parts), None)
    if same is not None:
        return same
    for other in shipped:
        _check_name(now, other)
    return now


def fingerprints(form: Form, vocabulary: StdVocabulary) -> dict[str, str]:
    """Fingerprint of each part of a question: of what it shows, and of what all parts share."""
    frame = form.frame.encode()
    return {
        name: hashlib.sha256(frame + b"\0" + shown.encode()).hexdigest()[:12]
        for name, shown in form.parts(vocabulary).items()
    }


class Backfill:
    """Finds what older answers of a model leave to be asked in the present edition."""

    def __init__(self, model: str, now: Edition, editions: Iterable[Edition]) -> None:
        self.model = model
        self.now = now
        shared = [e for e in editions if e.parts != now.parts and len(now.missing(e)) < len(now.parts)]
        self.older: Sequence[Edition] = sorted(shared, key=lambda e: len(now.missing(e)))
        """Editions that share parts with the present one, those that share most first."""

    def find(self, connection: cache.Connection, content_hashes: Collection[str], max_tokens: int) -> dict[str, Kept]:
        """What is good of the best older answer to each text that has one."""
        found: dict[str, Kept] = {}
        for older in self.older:
            keys = {older.key(h, self.model): h for h in content_hashes if h not in found}
            missing = self.now.missing(older)
            good = self.now.parts.keys() - set(missing)
            for key, answer in cache.fetch(connection, list(keys), max_tokens).items():
                body = _only(answer, good)
                if answer.state == "finished" and body is not None:
                    found[keys[key]] = Kept(replace(answer, body=body.dump()), tuple(missing))
        return found

    def merged(self, kept: Kept, asked: Collection[str], new: Answer | None) -> Answer:
        """The answer to the present edition: what was kept, and the `new` answer's values of the parts `asked`.

        A new answer that cannot be read (the token budget cut it) adds nothing, and leaves the state that it has. The
        tokens are those of both, but for a cut answer: by its own tokens it is asked again under a larger budget.
        """
        if new is None:
            return replace(kept.answer, prompt_version=self.now.prompt_version)
        old, more = Body.model_validate_json(kept.answer.body), _only(new, asked) or Body()
        cut = new.state == "cut"
        seen_before = bool(old.seen) and not more.seen
        return replace(
            new,
            body=Body(re=old.re | more.re, std=old.std | more.std, seen=old.seen | more.seen).dump(),
            tokens_in=new.tokens_in + (0 if cut else kept.answer.tokens_in),
            tokens_out=new.tokens_out + (0 if cut else kept.answer.tokens_out),
            images=kept.answer.images if seen_before else new.images,
        )


def prepare(connection: cache.Connection, model: str, form: Form, vocabulary: StdVocabulary) -> Backfill:
    """Make the tables, note the present edition before it is asked, and load.

    Raises ConfigError where the database knows the edition's name for another.
    """
    cache.prepare(connection)
    now = edition(form, vocabulary)
    for other in _registered(connection):
        _check_name(now, other)
    connection.execute(
        "INSERT INTO llm_editions (prompt_version, vocab_version, parts) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        (now.prompt_version, now.vocab_version, json.dumps(now.parts)),
    )
    return load(connection, model, form, vocabulary)


def load(connection: cache.Connection, model: str, form: Form, vocabulary: StdVocabulary) -> Backfill:
    """With the editions that are shipped and those that the database knows."""
    return Backfill(model, edition(form, vocabulary), [*_shipped(), *_registered(connection)])


def _registered(connection: cache.Connection) -> list[Edition]:
    rows = connection.execute(
        "SELECT prompt_version, vocab_version, parts FROM llm_editions ORDER BY prompt_version, vocab_version"
    )
    return [Edition(prompt_version, vocab_version, parts) for prompt_version, vocab_version, parts in rows]


@once
def _shipped() -> tuple[Edition, ...]:
    text = (resources.files("rec.enrich") / "editions.toml").read_text(encoding="utf-8")
    return tuple(Edition(**entry) for entry in tomllib.loads(text)["editions"])


def _check_name(now: Edition, other: Edition) -> None:
    if (now.prompt_version, now.vocab_version) != (other.prompt_version, other.vocab_version):
        return
    changed = sorted({*now.missing(other), *other.missing(now)})
    if changed:
        raise ConfigError(
            f"what a model is shown for {', '.join(changed)} changed, but prompt {now.prompt_version!r} and vocabulary "
            f"{now.vocab_version!r} were asked before: give a new `asked` to the vocabulary, or a new version to the "
            "prompt"
        )


def _only(answer: Answer, parts: Collection[str]) -> Body | None:
    """The body with the keys of these parts alone; None when it is none."""
    try:
        body = Body.model_validate_json(answer.body)
    except ValidationError:
        return None
    return Body(
        re={key: values for key, values in body.re.items() if RE_PREFIX + key in parts},
        std={key: values for key, values in body.std.items() if STD_PREFIX + key in parts},
        seen={key: values for key, values in body.seen.items() if SEEN_PREFIX + key in parts},
    )
