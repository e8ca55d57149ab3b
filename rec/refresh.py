"""Bring what is served up to date with the shop's files, without training: prices, stock, and products that are new.

Prices and stock change in the database and count in the next answer; a product that is no longer in the files is out of
stock. New products go through enrichment and the towers of the active bundle, as they are, and become a bundle that
extends it (`rec.additions`), which servers take over as any other. Texts and attributes of products that the active
bundle has already stay as they are until the next training, and so do events.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rec import additions, artifact, bundle, bundles, dataset, encode, postgres, publish
from rec.bundle import Bundle
from rec.config import Config
from rec.data import ingest
from rec.dataset import Rejects
from rec.enrich import stage as enrich
from rec.errors import ArtifactError
from rec.index import experiments, load, migrations, promote, stock, tables
from rec.index.stock import Changed, TooManyLost
from rec.schema import PRODUCTS
from rec.vocab import tensorize

MOST_LOST = 0.2
"""A larger share of the stock does not end between two refreshes: the file was not written to its end."""
SUPERSEDED_S = 3_600.0
"""How long a bundle stays that a refresh has put another one in the place of: servers may still load it."""
NOTHING_UNKNOWN: Mapping[str, Mapping[str, int]] = {"std": {}, "re": {}}
"""What tensorize.unknown says of no products."""
FOLDER = "refresh"
"""Of the datasets of new products, in the recipe's own folder."""

log = logging.getLogger(__name__)


def run(config: Config, *, force: bool = False) -> dict[str, Any]:
    """Refresh; returns what changed, and by key the new products of which the vocabulary lacks something: the models
    read that as the key's unknown, until the next training.

    Prices and stock wait for nobody. While another job writes artifacts of the recipe new products wait, which is said,
    and the next refresh adds them.

    Raises ArtifactError where the active bundle is of another recipe, TooManyLost where more than MOST_LOST of the
    products in stock would no longer be and `force` is not given.
    """
    started = time.monotonic()
    url = postgres.url(config.store, create=False)
    base = _active(config)
    seen, rejects = ingest.catalogue(config)
    changed = _take_over(config, url, seen, rejects, force=force)
    new = seen.filter(pc.invert(pc.is_in(seen["product_id"], value_set=pa.array(base.product_ids()))))
    log.info("%d products, %d of them new; %s", seen.num_rows, new.num_rows, asdict(changed))
    made, waiting, unknown = base, 0, NOTHING_UNKNOWN
    if new.num_rows:
        with postgres.session(url) as connection:
            experiments.refuse_running(connection)
        additions.check(base)
        try:
            with artifact.alone(config.root):
                made, unknown = _add(config, base, url, new, seen)
        except artifact.Busy as error:
            waiting = new.num_rows
            log.warning("%d new products wait: %s", waiting, error)
    return {
        "bundle": made.id,
        "extends": made.extends,
        "added": made.items - base.items,
        "waiting": waiting,
        "unknown": unknown,
        "products": seen.num_rows,
        "rejected": len(rejects),
        **asdict(changed),
        "seconds": round(time.monotonic() - started, 1),
    }


def prices_and_stock(config: Config) -> Mapping[str, int]:
    """Take these over alone, unless too much of the stock would be lost, which is said."""
    seen, rejects = ingest.catalogue(config)
    try:
        return asdict(_take_over(config, postgres.url(config.store), seen, rejects, force=False))
    except TooManyLost as error:
        log.warning("prices and stock are those of the time of ingest: %s", error)
        return {}


def _active(config: Config) -> Bundle:
    base = bundles.active_bundle(config)
    if base.recipe != config.name:
        raise ArtifactError(
            f"the active bundle {base.id} is of recipe {base.recipe!r}, not {config.name!r}: refresh with --recipe "
            f"{base.recipe}, or publish {config.name!r} first"
        )
    bundle.verify(base)
    return base


def _take_over(config: Config, url: str, seen: pa.Table, rejects: Rejects, *, force: bool) -> Changed:
    refused = ""
    if len(rejects):
        place = config.at(FOLDER) / dataset.REFUSED
        place.parent.mkdir(parents=True, exist_ok=True)
        rejects.save(place)
        refused = f"; {len(rejects)} rows of it are refused, the first one because {rejects.first_reason}: see {place}"
        log.warning("products%s", refused)
    with postgres.session(url) as connection:
        migrations.migrate(connection)
        try:
            return stock.update(connection, config.name, seen, most_lost=1.0 if force else MOST_LOST)
        except TooManyLost as error:
            raise TooManyLost(
                f"{error}{refused}. See that the file is whole, or take it as it is with --force"
            ) from None


def _add(
    config: Config, base: Bundle, url: str, new: pa.Table, seen: pa.Table
) -> tuple[Bundle, Mapping[str, Mapping[str, int]]]:
    """The active bundle from now on, with the products `new` as well, and how many of these its vocabulary lacks
    something of (tensorize.unknown)."""
    part = _part(config, base)
    dataset.write(part.at("products"), PRODUCTS, [new], inputs={"base": base.id}, config={})
    enrich.run(part)
    tensorize.place(part, base.folder("vocabulary"))
    unknown = tensorize.unknown(part, base.folder("vocabulary"))
    encode.run(part)
    made = additions.make(base, part, seen)
    load.vectors(url, made, config.index)
    with postgres.session(url) as connection:
        untuned = tables.entry(connection, made.id).ef_search is None
    if untuned:  # as of a bundle that was so small that all searches were exact
        publish.tune(config, made)
    # its figures are those of the active one, whatever they are
    promote.promote(url, made, config.root, force=True, expected=base.id)
    with postgres.session(url) as connection, tables.switching(connection):
        old = promote.superseded(connection, config.name, [base.id], SUPERSEDED_S)
        bundle.remove(config.store, old)  # first: what a killed refresh leaves in the database the next one finds
        promote.forget(connection, old)
    return made, unknown


def _part(config: Config, base: Bundle) -> Config:
    """The recipe of the new products: models as the bundle has them; sources, enrichment and machines as they are
    configured. There are too few to teach a tagger by: the model is asked."""
    trained = base.config
    text = trained.text.model_copy(update={name: getattr(config.text, name) for name in trained.text.aside})
    tagger = config.enrich.tagger.model_copy(update={"enabled": False})
    return trained.model_copy(
        update={
            "name": f"{config.name}/{FOLDER}",
            "store": config.store,
            "cpus": config.cpus,
            "source": config.source,
            "enrich": config.enrich.model_copy(update={"tagger": tagger}),
            "text": text,
        }
    )
