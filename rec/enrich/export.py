"""Answers of the cache as JSONL, for import elsewhere (`rec.enrich.imports`)."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from rec import dataset, postgres
from rec.config import Config
from rec.enrich import backfill, cache, catalogue, engine, imports
from rec.schema import PRODUCTS
from rec.vocab.std import StdVocabulary


def export(config: Config, path: Path, created_before: datetime | None = None) -> dict[str, Any]:
    """Write the answers of the configured model as JSONL in product order, for import elsewhere.

    Answers that the token budget cut are left out, and so are products not `created_before` that time, if it is given.
    """
    ids, hashes, _ = catalogue.scanned(catalogue.placed(config))
    created = dataset.read(config.at("products"), PRODUCTS, ["created_at"])["created_at"].to_pylist()
    now = backfill.edition(engine.form(config.enrich), StdVocabulary.load(None))
    keys = [now.key(h, config.enrich.model) for h in hashes]
    with postgres.session(postgres.url(config.store), autocommit=True) as connection:
        cache.prepare(connection)
        found = cache.fetch(connection, keys, config.enrich.max_output_tokens)
    written = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for product_id, key, content_hash, at in zip(ids, keys, hashes, created, strict=True):
            answer = found.get(key)
            if answer is None or answer.state != "finished":
                continue
            if created_before is not None and (at is None or at >= created_before):
                continue
            line = imports.line(product_id, answer, content_hash, now.vocab_version)
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            written += 1
    temporary.replace(path)
    return {"answers": str(path), "written": written, "products": len(ids)}
