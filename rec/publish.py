"""The stage: bundle a recipe's finished artifacts, load the bundle into Postgres, make it the active one."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rec import assemble, bundle, postgres, queries
from rec.bundle import Bundle
from rec.config import Config
from rec.errors import ArtifactError, RecError
from rec.index import experiments, load, migrations, promote, recall
from rec.index import repair as repairing
from rec.index.connections import Connections
from rec.index.experiments import Experiment
from rec.index.promote import Promoted
from rec.index.recall import Tuned
from rec.index.search import VectorIndex

log = logging.getLogger(__name__)

QUERIES = 100
"""Shoppers whose vectors try an index."""


def run(config: Config, *, force: bool = False) -> dict[str, Any]:
    """Publish; a bundle below a floor of the recipe is made but not promoted unless `force`.

    Where the active bundle is the same with more products (`rec.refresh`) it stays, unless `force`.
    """
    started = time.monotonic()
    known = bundle.names(config.store)
    made = assemble.create(config)
    extension = None if force else _extension(config, made)
    if extension is not None:
        log.info("bundle %s is active, which has the products of refreshes besides those of %s", extension.id, made.id)
        made, force = extension, True
    put = _put(config, made, force=force)
    return {
        "bundle": made.id,
        "path": str(made.path),
        "rows": made.items,
        "replaced": put.replaced,
        "ndcg10": made.evaluation.ndcg10,
        "floor": made.evaluation.floor,
        "floor_met": made.evaluation.floor_met,
        **_found(put.tuned),
        "skipped": made.id in known and put.done.before == made.id and not put.loaded and not put.done.reloaded,
        "seconds": round(time.monotonic() - started, 1),
    }


def _extension(config: Config, made: Bundle) -> Bundle | None:
    """The active bundle, if it is `made` and more products."""
    with postgres.session(postgres.url(config.store)) as connection:
        migrations.migrate(connection)
        name = promote.found_active(connection)
    if name is None or name == made.id or name not in bundle.names(config.store):
        return None
    found = bundle.read(config.store, name)
    return found if found.root == made.id else None


def rollback(config: Config) -> dict[str, Any]:
    """Make the recipe's bundle active again that was active before the active one; its folder must still be there."""
    url = postgres.url(config.store, create=False)
    name = promote.previous(url, config.name)
    bundle.verify(bundle.read(config.store, name))
    promote.rollback(url, config.name, name)
    return {"bundle": name}


def activate(config: Config, name: str, *, force: bool = False) -> dict[str, Any]:
    """Make a bundle of the store active, whoever made it: verified, loaded if need be, above its floor or by force."""
    made = _named(config, name)
    put = _put(config, made, force=force)
    return {
        "bundle": name,
        "replaced": put.replaced,
        "loaded": put.loaded,
        "floor_met": made.evaluation.floor_met,
        **_found(put.tuned),
    }


def try_out(config: Config, name: str, share: float, *, force: bool = False) -> Experiment:
    """Start an experiment with a bundle of the store beside the active one: verified and loaded as for `activate`."""
    made = _named(config, name)
    promote.check_floor(made, force=force)
    _load(config, made, force=force)
    return experiments.start(postgres.url(config.store), config.name, name, share)


def measure_recall(config: Config, name: str) -> dict[str, Any]:
    """Recall of a promoted bundle of the store by class of filter: searches as they are served, beside exact ones."""
    made = bundle.read(config.store, name)
    vectors, vectors_of = queries.drawn(made, QUERIES, config.seed)
    asked = recall.questions(made, vectors, made.config.ranker.candidates, config.seed)
    connections = Connections(postgres.url(config.store, create=False), size=1)
    try:
        found = recall.measure(VectorIndex(connections, name, made.config.index), asked)
    finally:
        connections.close()
    return {
        "bundle": name,
        "vectors_of": vectors_of,
        "k": made.config.ranker.candidates,
        "recall": recall.as_json(found),
    }


def repair(config: Config, names: Sequence[str]) -> dict[str, Any]:
    """Rebuild the tables that have not the vectors of the bundles `names`, by default of all those of the recipe.

    Servers answer meanwhile. Bundles that share a table are repaired together, tuned and held to the floor of recall as
    by a publish. Raises ArtifactError that names the first problem of each bundle that could not be repaired or is
    below the floor, and those that were repaired.
    """
    url, problems = postgres.url(config.store, create=False), list[str]()
    repaired, done = list[dict[str, Any]](), list[str]()
    for name in names or bundle.names(config.store):
        try:
            if not names and bundle.read(config.store, name).recipe != config.name:
                continue
            made = _named(config, name)
            rebuilt = repairing.repair(url, config.store, made, config.index)
        except RecError as error:
            problems.append(str(error))
            continue
        if rebuilt is not None:
            tuned = {each.id: _tuned_again(config, each, problems) for each in rebuilt.bundles}
            log.info("rebuilt the vectors of %s", ", ".join(tuned))
            done += tuned
            repaired.append({"found": rebuilt.found, "rows": rebuilt.rows, "bundles": tuned})
    if problems:
        raise ArtifactError("; ".join([*problems, *([f"repaired: {', '.join(done)}"] if done else [])]))
    return {"repaired": repaired}


def _tuned_again(config: Config, made: Bundle, problems: list[str]) -> dict[str, Any]:
    """What a bundle needs of the index that was rebuilt; what is wrong with that joins the `problems`."""
    tuned = None
    try:
        tuned = tune(config, made)
        recall.check_floor(made, tuned, config.index, force=False)
    except RecError as error:
        problems.append(f"the vectors of bundle {made.id} are repaired, but {error}")
    return _found(tuned)


def _named(config: Config, name: str) -> Bundle:
    """The verified bundle of the recipe."""
    made = bundle.read(config.store, name)
    if made.recipe != config.name:
        raise ArtifactError(f"bundle {name} is of recipe {made.recipe!r}, not {config.name!r}: name it with --recipe")
    bundle.verify(made)
    return made


@dataclass(frozen=True, slots=True)
class _Put:
    """What became of a bundle."""

    loaded: bool
    tuned: Tuned | None
    """None: every search of all products is exact."""
    done: Promoted
    replaced: str | None


def _put(config: Config, made: Bundle, *, force: bool) -> _Put:
    """Load the bundle if need be and make it the active one, if it reaches its floors or by `force`."""
    promote.check_floor(made, force=force)
    loaded, tuned = _load(config, made, force=force)
    done = promote.promote(postgres.url(config.store), made, config.root, force=force)
    return _Put(loaded, tuned, done, done.before if done.before != made.id else None)


def _load(config: Config, made: Bundle, *, force: bool) -> tuple[bool, Tuned | None]:
    """Load the vectors if need be; whether that was done, and what the index finds, if that is enough or by `force`."""
    loaded = load.vectors(postgres.url(config.store), made, config.index)
    tuned = tune(config, made)
    recall.check_floor(made, tuned, config.index, force=force)
    return loaded, tuned


def _found(tuned: Tuned | None) -> dict[str, Any]:
    return {"recall": None, "ef_search": None} if tuned is None else asdict(tuned)


def tune(config: Config, made: Bundle) -> Tuned | None:
    """Have a loaded bundle searched as broadly as its shoppers need; None where every search is exact."""
    if made.items <= made.config.index.exact_up_to(made.items):
        return None
    vectors, _ = queries.drawn(made, QUERIES, config.seed)
    connections = Connections(postgres.url(config.store), size=1)
    try:
        return recall.tune(connections, made.id, config.index, vectors, made.config.ranker.candidates)
    finally:
        connections.close()
