"""The stage: bundle a recipe's finished artifacts, load the bundle into Postgres, make it the active one."""

import time
from typing import Any

from rec import bundle, postgres
from rec.config import Config
from rec.index import load, promote


def run(config: Config, *, force: bool = False) -> dict[str, Any]:
    """Publish; a bundle below the recipe's floor is made but neither loaded nor promoted unless `force`."""
    started = time.monotonic()
    known = bundle.names(config.store)
    made = bundle.create(config)
    promote.check_floor(made, force=force)
    url = postgres.url(config.store)
    loaded = load.load(url, made, config.index, config.root)
    before = promote.promote(url, made, force=force)
    return {
        "bundle": made.id,
        "path": str(made.path),
        "rows": made.items,
        "replaced": before if before != made.id else None,
        "ndcg10": made.evaluation.ndcg10,
        "floor": made.evaluation.floor,
        "floor_met": made.evaluation.floor_met,
        "skipped": made.id in known and before == made.id and loaded["skipped"],
        "seconds": round(time.monotonic() - started, 1),
    }


def rollback(config: Config) -> dict[str, Any]:
    """Make the bundle active again that was active before the active one; its folder must still be there."""
    url = postgres.url(config.store, create=False)
    bundle.verify(bundle.read(config.store, promote.previous(url)))
    return {"bundle": promote.rollback(url)}
