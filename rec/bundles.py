"""The bundles of a store and what the database says of them: list, verify, collect garbage."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

from rec import artifact, bundle, postgres
from rec.bundle import Bundle
from rec.config import Config
from rec.errors import ArtifactError, DatabaseError, RecError
from rec.index import check, promote, status

log = logging.getLogger(__name__)


def overview(config: Config) -> list[dict[str, Any]]:
    """Every bundle of the store, of all recipes, oldest first; `state` is active, treatment (of an
    experiment that runs), previous (rollback's) or None."""
    states = _states(config)
    found = []
    for name in bundle.names(config.store):
        try:
            found.append({**_described(bundle.read(config.store, name)), "state": states.get(name)})
        except ArtifactError as error:
            found.append({"bundle": name, "problem": str(error), "state": states.get(name)})
    return found


def active(config: Config) -> str:
    """Id of the active bundle."""
    with postgres.session(postgres.url(config.store, create=False)) as connection:
        return promote.active(connection)


def active_bundle(config: Config) -> Bundle:
    """The active bundle, of whichever recipe."""
    return bundle.read(config.store, active(config))


def _described(made: Bundle) -> dict[str, Any]:
    manifest = (made.path / "manifest.json").stat()
    return {
        "bundle": made.id,
        "recipe": made.recipe,
        "made": datetime.fromtimestamp(manifest.st_mtime, UTC).isoformat(timespec="seconds"),
        "items": made.items,
        "ndcg10": made.evaluation.ndcg10,
        "floor": made.evaluation.floor,
        "bytes": manifest.st_size + sum(entry["bytes"] for entry in made.files.values()),
    }


def _states(config: Config) -> dict[str, str]:
    """active, treatment or previous, by bundle id; empty where there is no database."""
    try:
        with postgres.session(postgres.url(config.store, create=False)) as connection:
            name = promote.active(connection)
            earlier, served = promote.before(connection), promote.serving(connection)
    except DatabaseError as error:
        log.warning("which bundle is active is not known: %s", error)
        return {}
    states = {} if earlier is None else {earlier: "previous"}
    return {**states, **dict.fromkeys(served, "treatment"), name: "active"}


def verify(config: Config, names: Sequence[str]) -> list[dict[str, Any]]:
    """Check every byte of the bundles `names`, by default all of the store, and their vectors in the database.

    Raises ArtifactError that names the first problem of each bundle that has one.
    """
    url = status.find(config.store)
    results, problems = [], []
    for name in names or bundle.names(config.store):
        try:
            made = bundle.read(config.store, name)
            bundle.verify(made)
            digest = None if url is None else check.check(url, made)
        except RecError as error:
            problems.append(str(error))
        else:
            results.append(
                {
                    "bundle": name,
                    "files": len(made.files),
                    "bytes": sum(entry["bytes"] for entry in made.files.values()),
                    "vectors": digest,  # None: not loaded
                }
            )
    if problems:
        raise ArtifactError("; ".join(problems))
    return results


def collect(config: Config, *, dry_run: bool = False) -> dict[str, Any]:
    """Remove the recipe's bundles but the active one, the one to roll back to and one that is tried, from database and
    store.

    What killed processes left in the store goes as well, and so do vectors in the database that belong to no bundle.
    Raises artifact.Busy while a job writes artifacts of the recipe.
    """
    url = postgres.url(config.store, create=False)
    # a job that is about to promote a bundle of the recipe has loaded one that nothing says is needed
    with nullcontext() if dry_run else artifact.alone(config.root):
        pruned = promote.prune(url, config.name, dry_run=dry_run)
        return {
            "kept": pruned.kept,
            "dropped": pruned.dropped,
            "removed": bundle.prune(config.store, config.name, pruned.kept, dry_run=dry_run),
            "leftovers": bundle.leftovers(config.store, dry_run=dry_run),
            "dry_run": dry_run,
        }
