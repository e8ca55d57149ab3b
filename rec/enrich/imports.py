"""Answers produced elsewhere, brought into the cache.

JSONL, one object a line, keyed by product id:

    {"product_id": "A1", "model": "gpt-x", "re": {"fibre": ["100% cashmere"]}, "std": {"season": ["winter"]}}

An answer that also carries `prompt_version`, `vocab_version` and `content_hash` (as `jobs/enrich.py --export` writes)
is one that this project's own prompt got: it is imported only while those three still fit the product, and
then counts as if asked. Any other answer belongs to the text that its product has now, whatever it was given for;
its values are grounded in that text when they are used. Products of the same text share an answer: of two in one
file the first counts.

The parquet of LLM tokens on H&M descriptions (columns `detail_desc`, CAT, MAT, DET, FIT, FNC, SPC, COL, CTX) is
joined on the description; its origin is `dotblossom`. The column LOC (front, back, cuffs) says where on a
garment something is, which no key asks: it is left out.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from rec.artifact import hash_file
from rec.enrich.answers import Answer
from rec.enrich.places import Pictures
from rec.enrich.prompt import Body
from rec.enrich.text import clean
from rec.errors import InputError

SAMPLE = "sample"
"""Name in `enrich.answers` of the answers shipped with the sample catalogue."""

_DOTBLOSSOM = {
    "CAT": "category",
    "MAT": "fibre",
    "DET": "detail",
    "FIT": "fit",
    "FNC": "detail",
    "SPC": "detail",
    "COL": "colour",
    "CTX": "occasion",
}


class Line(BaseModel):
    """One line of a JSONL file of answers."""

    model_config = ConfigDict(extra="forbid")

    product_id: str
    model: str
    re: dict[str, list[str]] = {}
    std: dict[str, list[str]] = {}
    seen: dict[str, list[str]] = {}
    images: Pictures | None = None
    content_hash: str | None = None
    prompt_version: str | None = None
    vocab_version: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, slots=True)
class Imported:
    """An answer, and what it was given for."""

    product_id: str
    answer: Answer
    content_hash: str | None
    vocab_version: str | None
    """None: the answer was given for no text or vocabulary in particular."""


def locate(name: str, folder: str) -> Path:
    """File of an entry of `enrich.answers`; relative ones lie in the folder of the source."""
    path = Path(__file__).parent.parent / "data" / "sample" / "answers.jsonl" if name == SAMPLE else Path(folder) / name
    if not path.is_file():
        raise InputError(f"answers file {path} does not exist: correct enrich.answers, or set it to [] to go without")
    return path


def read(path: Path, descriptions: Callable[[], Mapping[str, str]]) -> Iterator[Imported]:
    """The answers of one file. `descriptions`: reads product id → description, for files that are keyed by it.

    The prompt version of answers of other programs is `imported-` and the start of the file's SHA-256, so that a
    corrected file replaces what an earlier one said.
    """
    version = f"imported-{hash_file(path)[:12]}"
    return _dotblossom(path, version, descriptions()) if path.suffix == ".parquet" else _jsonl(path, version)


def _jsonl(path: Path, version: str) -> Iterator[Imported]:
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                line = Line.model_validate_json(text)  # bytes that are not UTF-8 are an error of the line
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"]) or "the line"
                raise InputError(f"{path} line {number}: {where}: {first['msg']}; see rec/enrich/imports.py") from None
            body = Body(re=line.re, std=line.std, seen=line.seen).dump()
            tokens = (line.tokens_in, line.tokens_out)
            images = line.images.model_dump_json() if line.images else None
            answer = Answer(line.model, line.prompt_version or version, "finished", body, *tokens, images)
            yield Imported(line.product_id, answer, line.content_hash, line.vocab_version)


def line(product_id: str, answer: Answer, content_hash: str, vocab_version: str) -> dict[str, Any]:
    """The JSONL object of one answer of this project's own prompt; `content_hash` is that of what it is about."""
    return {
        "product_id": product_id,
        "model": answer.model,
        "prompt_version": answer.prompt_version,
        "vocab_version": vocab_version,
        "content_hash": content_hash,
        **Body.model_validate_json(answer.body).fields(),
        **({} if answer.images is None else {"images": json.loads(answer.images)}),
        "tokens_in": answer.tokens_in,
        "tokens_out": answer.tokens_out,
    }


def _dotblossom(path: Path, version: str, descriptions: Mapping[str, str]) -> Iterator[Imported]:
    try:
        schema = pq.read_schema(path)
        missing = [name for name in ("detail_desc", *_DOTBLOSSOM) if name not in schema.names]
        if missing:
            raise InputError(f"{path} has no column {missing[0]!r}: a parquet of answers must be the H&M token file")
        table = pq.read_table(path, schema=_dotblossom_schema())
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be read as the H&M token file ({reason}): correct enrich.answers") from error
    bodies: dict[str, str] = {}
    for row in table.to_pylist():
        if row["detail_desc"] is None:
            continue
        values: dict[str, list[str]] = {}
        for column, key in _DOTBLOSSOM.items():
            values.setdefault(key, []).extend(value for value in row[column] or [] if value is not None)
        body = Body(re={key: list(dict.fromkeys(found)) for key, found in values.items() if found})
        bodies.setdefault(clean(row["detail_desc"]), body.dump())
    for product_id, description in descriptions.items():
        found = bodies.get(clean(description))
        if found is not None:
            yield Imported(product_id, Answer("dotblossom", version, "finished", found, 0, 0), None, None)


def _dotblossom_schema() -> pa.Schema:
    return pa.schema([("detail_desc", pa.string()), *((name, pa.list_(pa.string())) for name in _DOTBLOSSOM)])
