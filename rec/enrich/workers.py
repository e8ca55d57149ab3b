"""What runs on Ray Data's workers: plain functions and classes over Arrow batches, callable without Ray."""

import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rec import postgres
from rec.config import Enrich
from rec.enrich import backfill, cache, engine
from rec.enrich.answers import SHORT, Answer
from rec.enrich.attributes import Report, from_rules, from_shop
from rec.enrich.backfill import Kept
from rec.enrich.completion import REPAIR_BYTES, Completion
from rec.enrich.pace import Pace
from rec.enrich.places import NOTHING, Choice, Pictures, Taken
from rec.enrich.prompt import SEEN_PREFIX, STD_PREFIX, Form, Question
from rec.enrich.text import Canonical, given, shown
from rec.errors import EndpointError, EngineError
from rec.vocab.std import StdVocabulary

COLUMNS = ["product_id", "title", "description", "html", "image_urls", "attributes"]
"""Columns of `products` that enrichment reads."""

ASKED = pa.schema([("key", pa.string()), ("failure", pa.string()), ("unpaid", pa.bool_())])

BATCH_ROWS = 512
"""Products that are cut, hashed or finished at once."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who answered which prompt."""

    model: str
    prompt_version: str


def read(groups: pa.Table, path: str) -> pa.Table:
    """COLUMNS of the row groups of the parquet file `path` whose numbers are in column `id`."""
    return pq.ParquetFile(path).read_row_groups(groups["id"].to_pylist(), columns=COLUMNS)


def scan(batch: pa.Table, enrich: Enrich) -> pa.Table:
    """product_id, what an answer about the product is found by, and whether a model may be asked."""
    texts = [shown(row, enrich) for row in batch.to_pylist()]
    return pa.table(
        {
            "product_id": batch["product_id"],
            "subject": [text.subject for text in texts],
            "askable": [text.askable for text in texts],
        }
    )


def question(
    row: dict[str, Any],
    text: Canonical,
    vocabulary: StdVocabulary,
    form: Form,
    missing: Collection[str] | None = None,
    images: bool = False,
) -> Question | None:
    """What a model is asked about a product: shop and rules leave it the rest.

    `missing`: the parts that an older answer lacks, None without one. `images`: it is shown some. None when nothing is
    left to ask.
    """
    shop, _ = from_shop(given(row), vocabulary, Report())
    rules, _ = from_rules(text, vocabulary)
    known = {a.evidence.casefold() for a in rules if a.evidence}
    filled = {a.key for a in (*shop, *rules)}
    whole = unfilled(form.parts(vocabulary), filled, images)
    wanted = [part for part in whole if missing is None or part in missing]
    if not wanted:
        return None
    return replace(form.ask(text, vocabulary, filled, known, wanted), share=len(wanted) / len(whole))


def unfilled(parts: Collection[str], filled: Collection[str], images: bool) -> list[str]:
    """The parts of a question that are asked where shop and rules filled these STD keys, with images or without."""
    known = {prefix + key for key in filled for prefix in (STD_PREFIX, SEEN_PREFIX)}
    return [part for part in parts if part not in known and (images or not part.startswith(SEEN_PREFIX))]


def weight(enrich: Enrich, images: int) -> int:
    """Bytes of prompt that so many images count for, where tokens are estimated from bytes."""
    return round(images * enrich.images.tokens_per_image / engine.prior(enrich).tokens_per_byte)


def cost(enrich: Enrich, tokens_in: float, tokens_out: float) -> float:
    """Money for so many tokens."""
    return (tokens_in * enrich.price_in + tokens_out * enrich.price_out) / 1e6


@dataclass(frozen=True, slots=True)
class Opened:
    """A product that is to be asked, its money put aside."""

    key: str
    subject: str
    question: Question
    kept: Kept | None
    most: float
    """Money that is put aside."""


class Asking:
    """All of asking but the model: what is asked about a product, what it may cost, and the commit of its answer."""

    def __init__(self, enrich: Enrich, database_url: str, run_id: str, pace: Pace | None) -> None:
        self._enrich = enrich
        self._run_id = run_id
        self._pace = pace
        self._vocabulary = StdVocabulary.load(None)
        self._form = engine.form(enrich)
        with postgres.session(database_url, autocommit=True) as connection:
            self._backfill = backfill.load(connection, enrich.model, self._form, self._vocabulary)

    def key(self, text: Canonical) -> str:
        """Key of the answer about a text and its images."""
        return self._backfill.now.key(text.subject, self._enrich.model)

    def kept(self, connection: cache.Connection, subject: str) -> Kept | None:
        """What is still good of an older answer about the same."""
        return self._backfill.find(connection, [subject], self._enrich.max_output_tokens).get(subject)

    def open(
        self, connection: cache.Connection, row: dict[str, Any], text: Canonical, wait: bool = True
    ) -> Opened | dict[str, Any]:
        """What to ask about a product, or its row of ASKED when there is nothing to ask or no money left for it.

        `wait`: for calls in flight, which may give money back.
        """
        key = self.key(text)
        if cache.known(connection, [key], self._enrich.max_output_tokens):
            return {"key": key}
        kept = self.kept(connection, text.subject)
        images = len(text.images.urls)
        asked = question(row, text, self._vocabulary, self._form, kept.missing if kept else None, images > 0)
        if asked is None:
            assert kept is not None
            cache.put(connection, [(key, self._backfill.merged(kept, (), None))])
            return {"key": key}
        most = self._most(asked.prompt_bytes, images if asked.sees else 0)
        if self._pace is not None and not self._pace.admit(most, wait):
            return {"key": key, "unpaid": True}
        return Opened(key, text.subject, asked, kept, most)

    def settle(self, most: float, raw: Completion | None) -> None:
        """Give back what of `most` was not spent on an answer; None is a call that failed."""
        if self._pace is not None:
            self._pace.settle(most, cost(self._enrich, raw.tokens_in, raw.tokens_out) if raw else 0.0)

    def commit(
        self,
        connection: cache.Connection,
        key: str,
        kept: Kept | None,
        raw: Completion,
        call: cache.Call,
        once: bool = False,
        taken: Taken = NOTHING,
    ) -> bool:
        """Put the answer into the cache, and the call for it into the ledger.

        `taken`: the images that it is about. `once`: but not where this very answer is already, for Ray repeats the
        batch of an actor that died. Returns whether it was put there.
        """
        answer = self._answer(raw, kept, taken)
        if once and cache.fetch(connection, [key], self._enrich.max_output_tokens).get(key) == answer:
            return False
        cache.pay(connection, self._run_id, key, answer, call)
        return True

    def _most(self, prompt_bytes: int, images: int) -> float:
        """Money that a call can cost: a token is at least one byte, and a repair sends prompt and answer once more."""
        longest = self._enrich.max_output_tokens
        prompt = prompt_bytes + images * self._enrich.images.tokens_per_image
        return cost(self._enrich, 2 * prompt + longest + REPAIR_BYTES, 2 * longest)

    def seeing(
        self, connection: cache.Connection, row: dict[str, Any], text: Canonical, opened: Opened, taken: Taken
    ) -> Question | None:
        """What to ask of an opened product now that its images were read; None when nothing better can be asked."""
        if taken.pictures is None or not text.images.urls:
            return opened.question
        there = cache.fetch(connection, [opened.key], self._enrich.max_output_tokens).get(opened.key)
        if there is not None and there.state == SHORT:
            if taken.waiting:
                return None
            if (
                Pictures.model_validate_json(there.images or "{}").sent == taken.pictures.sent
            ):  # asked like this already
                images = taken.pictures.model_dump_json()
                cache.put(connection, [(opened.key, replace(there, state="finished", images=images))])
                return None
        if taken.jpegs:
            return opened.question
        if not text.text:  # nothing to conclude anything from
            return None
        kept = opened.kept
        asked = question(row, text, self._vocabulary, self._form, kept.missing if kept else None)
        if asked is None:
            assert kept is not None
            answer = self._backfill.merged(kept, (), None)
            cache.put(connection, [(opened.key, replace(answer, state=SHORT if taken.waiting else answer.state))])
        return asked

    def _answer(self, raw: Completion, kept: Kept | None, taken: Taken) -> Answer:
        """The answer to the whole question, of which a part may be known from before."""
        state = "cut" if not raw.finished else SHORT if taken.waiting else "finished"
        images = taken.pictures.model_dump_json() if taken.pictures else None
        wanted = kept.missing if kept else None
        body = self._form.body(raw.text, wanted)
        version = self._backfill.now.prompt_version
        answer = Answer(self._enrich.model, version, state, body, raw.tokens_in, raw.tokens_out, images)
        return answer if kept is None else self._backfill.merged(kept, kept.missing, answer)


class Ask:
    """An actor with the engine: asks about each product that has no answer yet and commits the answer.

    As many products at once as the engine takes. A call that fails is no answer: it goes on as a row of its key and
    the reason, and the next run asks again. A product that the budget does not pay for goes on as `unpaid`.
    """

    def __init__(
        self,
        enrich: Enrich,
        database_url: str,
        run_id: str,
        pace: Pace | None = None,
        key: str = "",
    ) -> None:
        """`key`: of the endpoint."""
        self._enrich = enrich
        self._database_url = database_url
        self._asking = Asking(enrich, database_url, run_id, pace)
        self._engine = engine.load(enrich, pace, key)
        self._take: Callable[[Choice], Taken] = lambda _: NOTHING
        if enrich.images.max_images:
            from rec.enrich.images import Images  # Pillow and an HTTP client, which no other work needs

            self._take = Images(enrich.images).take
        self._threads = ThreadPoolExecutor(engine.concurrency(enrich))
        self._local = threading.local()
        self._fault: EndpointError | None = None

    @postgres.refusals()
    def __call__(self, batch: pa.Table) -> pa.Table:
        """A row of ASKED for each product; `failure` is null where there is an answer now."""
        try:
            return pa.Table.from_pylist(list(self._threads.map(self._ask, batch.to_pylist())), schema=ASKED)
        except EndpointError as error:
            self._fault = error
            self._threads.shutdown(cancel_futures=True)  # what is in flight is still paid for and kept
            raise
        except (RuntimeError, CancelledError):
            if self._fault is None:
                raise
            raise self._fault from None  # another batch met it, and ended the threads under this one

    def _connection(self) -> cache.Connection:
        """One per thread: the lock of an answer belongs to a connection."""
        if not hasattr(self._local, "connection"):
            self._local.connection = postgres.connect(self._database_url, autocommit=True)
        connection: cache.Connection = self._local.connection
        return connection

    def _ask(self, row: dict[str, Any]) -> dict[str, Any]:
        text = shown(row, self._enrich)
        key = self._asking.key(text)
        connection = self._connection()
        # The worker of a killed run outlives its driver by seconds and may be asking the same.
        with cache.alone(connection, key):
            opened = self._asking.open(connection, row, text)
            if not isinstance(opened, Opened):
                return opened
            raw = None
            try:
                taken = self._take(text.images) if opened.question.sees else NOTHING
                asked = self._asking.seeing(connection, row, text, opened, taken)
                if asked is None:
                    return {"key": key}
                started = time.monotonic()
                raw = self._engine.complete(asked.prompt, asked.schema, self._enrich.max_output_tokens, taken.jpegs)
                seconds = time.monotonic() - started
            except EndpointError:
                raise
            except EngineError as error:
                return {"key": key, "failure": str(error)[:300]}
            finally:
                self._asking.settle(opened.most, raw)
            size = asked.prompt_bytes + weight(self._enrich, len(taken.jpegs))
            call = cache.Call(raw.tokens_in, raw.tokens_out, seconds, size, round(asked.share, 4))
            self._asking.commit(connection, key, opened.kept, raw, call, taken=taken)
        return {"key": key}


def weigh(batch: pa.Table, enrich: Enrich, database_url: str) -> pa.Table:
    """`prompt_bytes` of what a model would be asked about each product, images included, and its `share` of a whole.

    Both are 0 where an older answer leaves nothing to ask.
    """
    vocabulary, form = StdVocabulary.load(None), engine.form(enrich)
    rows = batch.to_pylist()
    texts = [shown(row, enrich) for row in rows]
    with postgres.session(database_url, autocommit=True) as connection:
        older = backfill.load(connection, enrich.model, form, vocabulary)
        found = older.find(connection, [text.subject for text in texts], enrich.max_output_tokens)
    prompt_bytes, shares = [], []
    for row, text in zip(rows, texts, strict=True):
        kept, images = found.get(text.subject), len(text.images.urls)
        asked = question(row, text, vocabulary, form, kept.missing if kept else None, images > 0)
        prompt_bytes.append(asked.prompt_bytes + weight(enrich, images if asked.sees else 0) if asked else 0)
        shares.append(asked.share if asked else 0.0)
    return pa.table({"prompt_bytes": pa.array(prompt_bytes, pa.int64()), "share": pa.array(shares, pa.float64())})
