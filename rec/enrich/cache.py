"""The answer cache and the call ledger, both in Postgres.

An answer is found by the hash of what determines it: the canonical product text, the model, the prompt version
and the version of what the vocabulary shows a model. It is committed before its row is emitted, together with the
ledger's entry of the call that paid for it, so that a job killed at any moment neither repeats a call nor loses
count of one.

Which keys of an answer to an older prompt or vocabulary are still good is worked out by `rec.enrich.backfill`.

An answer that the token budget cut is of use only while the budget is not raised: then it counts as absent, and
the next one takes its place. One that lacks an image which may be had later (SHORT) is used, but counts as absent when
it is worked out what to ask. Calls that failed leave nothing here.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import datetime

import psycopg
from psycopg.rows import TupleRow

from rec.enrich.answers import SHORT, Answer

Connection = psycopg.Connection[TupleRow]

_LOCK = 0x7265635F6C6C6D  # "rec_llm": one process at a time makes the tables
_BATCH = 10_000

_TABLES = """
CREATE TABLE IF NOT EXISTS llm_answers (
    key text PRIMARY KEY,
    model text NOT NULL,
    prompt_version text NOT NULL,
    state text NOT NULL,
    body text NOT NULL,
    tokens_in integer NOT NULL,
    tokens_out integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS llm_calls (
    run_id text NOT NULL,
    key text NOT NULL,
    model text NOT NULL,
    tokens_in integer NOT NULL,
    tokens_out integer NOT NULL,
    seconds real NOT NULL,
    called_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE llm_calls ADD COLUMN IF NOT EXISTS prompt_version text;
ALTER TABLE llm_calls ADD COLUMN IF NOT EXISTS prompt_bytes integer;
ALTER TABLE llm_calls ADD COLUMN IF NOT EXISTS share real;
ALTER TABLE llm_answers ADD COLUMN IF NOT EXISTS images text;
CREATE TABLE IF NOT EXISTS llm_editions (
    prompt_version text NOT NULL,
    vocab_version text NOT NULL,
    parts jsonb NOT NULL,
    PRIMARY KEY (prompt_version, vocab_version)
)
"""

_COLUMNS = "model, prompt_version, state, body, tokens_in, tokens_out, images"
_THERE = "key = ANY(%s) AND (state = 'finished' OR (state = 'cut' AND tokens_out >= %s))"
_USABLE = f"key = ANY(%s) AND (state IN ('finished', '{SHORT}') OR (state = 'cut' AND tokens_out >= %s))"
_REPLACE = """
ON CONFLICT (key) DO UPDATE SET
    state = excluded.state, body = excluded.body, tokens_in = excluded.tokens_in, tokens_out = excluded.tokens_out,
    created_at = excluded.created_at, images = excluded.images
"""

_SUMS = (
    "SELECT count(*), coalesce(sum(tokens_in), 0), coalesce(sum(tokens_out), 0), coalesce(sum(seconds), 0) "
    "FROM llm_calls"
)


@dataclass(frozen=True, slots=True)
class Usage:
    """What the ledger says of one run."""

    calls: int
    tokens_in: int
    tokens_out: int
    seconds: float


def answer_key(content_hash: str, model: str, prompt_version: str, vocab_version: str) -> str:
    """SHA-256 of all that determines an answer."""
    text = json.dumps([content_hash, model, prompt_version, vocab_version], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def prepare(connection: Connection) -> None:
    """Make the tables when they are not there."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        for statement in _TABLES.split(";"):
            connection.execute(statement.encode())


def known(connection: Connection, keys: Sequence[str], max_tokens: int) -> set[str]:
    """Which of `keys` have an answer that a budget of `max_tokens` would not have made longer."""
    found: set[str] = set()
    for start in range(0, len(keys), _BATCH):
        batch = list(keys[start : start + _BATCH])
        rows = connection.execute(f"SELECT key FROM llm_answers WHERE {_THERE}", (batch, max_tokens))
        found.update(row[0] for row in rows)
    return found


def fetch(connection: Connection, keys: Sequence[str], max_tokens: int) -> dict[str, Answer]:
    """The answers of the `keys` that are known, and SHORT ones."""
    rows = connection.execute(f"SELECT key, {_COLUMNS} FROM llm_answers WHERE {_USABLE}", (list(keys), max_tokens))
    return {row[0]: Answer(*row[1:]) for row in rows}


def put(connection: Connection, entries: Iterable[tuple[str, Answer]]) -> int:
    """Add answers, one a key, in bulk; one that is there already stays, unless it is cut. Returns how many came."""
    with connection.transaction():
        connection.execute("CREATE TEMPORARY TABLE incoming (LIKE llm_answers INCLUDING DEFAULTS) ON COMMIT DROP")
        with connection.cursor().copy(f"COPY incoming (key, {_COLUMNS}) FROM STDIN") as copy:
            for key, answer in entries:
                copy.write_row((key, *astuple(answer)))
        added = connection.execute(
            f"INSERT INTO llm_answers SELECT * FROM incoming {_REPLACE} WHERE llm_answers.state <> 'finished'"
        )
    return added.rowcount


def forget(connection: Connection, model: str, but: str) -> None:
    """Drop answers of `model` to all prompt versions `but` one, unless they are of today: a run may be using these."""
    connection.execute(
        "DELETE FROM llm_answers WHERE model = %s AND prompt_version <> %s AND created_at < now() - interval '1 day'",
        (model, but),
    )


@contextmanager
def alone(connection: Connection, key: str) -> Iterator[None]:
    """Hold the answer `key`: whoever else wants it waits, and the server lets go when the connection ends."""
    connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (key,))
    try:
        yield
    finally:
        connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", (key,))


@dataclass(frozen=True, slots=True)
class Call:
    """What the ledger notes of a call that was answered."""

    tokens_in: int
    tokens_out: int
    seconds: float
    prompt_bytes: int | None = None
    """With what its images weigh (`rec.enrich.workers.weight`)."""
    share: float = 1.0
    """Of the parts of a whole question, how many were asked."""


def pay(connection: Connection, run_id: str, key: str, answer: Answer, call: Call) -> None:
    """Commit one live answer, in place of one that was cut, and the ledger's entry of the `call` for it together.

    One statement: a process that is killed between the arrival of an answer and its commit loses what was paid for.
    The connection commits by itself.
    """
    connection.execute(
        "WITH entry AS ("
        "INSERT INTO llm_calls "
        "(run_id, key, model, prompt_version, tokens_in, tokens_out, seconds, prompt_bytes, share) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)) "
        f"INSERT INTO llm_answers (key, {_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s) {_REPLACE}",
        (run_id, key, answer.model, answer.prompt_version, *astuple(call), key, *astuple(answer)),
    )


def usage(connection: Connection, run_id: str) -> Usage:
    """Calls, tokens and engine seconds of a run."""
    row = connection.execute(f"{_SUMS} WHERE run_id = %s", (run_id,)).fetchone()
    assert row is not None
    return Usage(*row)


def spent(connection: Connection, keys: Sequence[str]) -> Usage:
    """Calls, tokens and engine seconds that the answers to `keys` cost in all runs."""
    total = Usage(0, 0, 0, 0.0)
    for start in range(0, len(keys), _BATCH):
        row = connection.execute(f"{_SUMS} WHERE key = ANY(%s)", (list(keys[start : start + _BATCH]),)).fetchone()
        assert row is not None
        total = Usage(*(a + b for a, b in zip(astuple(total), row, strict=True)))
    return total


@dataclass(frozen=True, slots=True)
class Called:
    """An entry of the ledger."""

    key: str
    at: datetime
    """When it was committed, the clock being the server's."""
    tokens_in: int
    tokens_out: int
    seconds: float


def called(connection: Connection) -> list[Called]:
    """The whole ledger, in order."""
    rows = connection.execute("SELECT key, called_at, tokens_in, tokens_out, seconds FROM llm_calls ORDER BY called_at")
    return [Called(*row) for row in rows]


@dataclass(frozen=True, slots=True)
class Habit:
    """What the latest calls of a model and prompt came to."""

    calls: int
    tokens_per_byte: float
    """Prompt tokens for a byte of the prompt's UTF-8."""
    tokens_out: float
    """Mean length of an answer to a whole question."""


def habit(connection: Connection, model: str, prompt_version: str, latest: int = 500) -> Habit | None:
    """The habit of the `latest` calls, or None when there was none."""
    row = connection.execute(
        "SELECT count(*), sum(tokens_in)::float8 / sum(prompt_bytes), "
        "sum(tokens_out)::float8 / sum(coalesce(share, 1)) FROM ("
        "SELECT tokens_in, tokens_out, prompt_bytes, share FROM llm_calls "
        "WHERE model = %s AND prompt_version = %s AND prompt_bytes > 0 ORDER BY called_at DESC LIMIT %s) AS latest",
        (model, prompt_version, latest),
    ).fetchone()
    assert row is not None
    return Habit(*row) if row[0] else None
