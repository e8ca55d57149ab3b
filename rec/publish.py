"""The stage: bundle a recipe's finished artifacts, load the bundle into Postgres, make it the active one."""

import time
from typing import Any

from rec import assemble, bundle, postgres
from rec.config import Config
from rec.errors import ArtifactError
from rec.index import load, promote


def run(config: Config, *, force: bool = False) -> dict[str, Any]:
    """Publish; a bundle below the recipe's floor is made but neither loaded nor promoted unless `force`."""
    started = time.monotonic()
    known = bundle.names(config.store)
    made = assemble.create(config)
    promote.check_floor(made, force=force)
    url = postgres.url(config.store)
    loaded = load.vectors(url, made, config.index)
    done = promote.promote(url, made, config.root, force=force)
    return {
        "bundle": made.id,
        "path": str(made.path),
        "rows": made.items,
        "replaced": done.before if done.before != made.id else None,
        "ndcg10": made.evaluation.ndcg10,
        "floor": made.evaluation.floor,
        "floor_met": made.evaluation.floor_met,
        "skipped": made.id in known and done.before == made.id and not loaded and not done.reloaded,
        "seconds": round(time.monotonic() - started, 1),
    }


def rollback(config: Config) -> dict[str, Any]:
    """Make the recipe's bundle active again that was active before the active one; its folder must still be there."""
    url = postgres.url(config.store, create=False)
    name = promote.previous(url, config.name)
    bundle.verify(bundle.read(config.store, name))
    promote.rollback(url, config.name, name)
    return {"bundle": name}


def activate(config: Config, name: str, *, force: bool = False) -> dict[str, Any]:
    """Make a bundle of the store active, whoever made it: verified, loaded if need be, above its floor or by force."""
    made = bundle.read(config.store, name)
    if made.recipe != config.name:
        raise ArtifactError(f"bundle {name} is of recipe {made.recipe!r}, not {config.name!r}: name it with --recipe")
    bundle.verify(made)
    promote.check_floor(made, force=force)
    url = postgres.url(config.store)
    loaded = load.vectors(url, made, config.index)
    done = promote.promote(url, made, config.root, force=force)
    return {
        "bundle": name,
        "replaced": done.before if done.before != name else None,
        "loaded": loaded,
        "floor_met": made.evaluation.floor_met,
    }
