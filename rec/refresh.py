"""Bring what is served up to date with the shop's files, without training: prices, stock, and products that are new.

Prices and stock change in the database and count in the next answer; a product that is no longer in the files is out of
stock. New products go through enrichment and the towers of the active bundle, as they are, and become a bundle that
extends it (`rec.additions`), which servers take over as any other. Texts and attributes of products that the active
bundle has already stay as they are until the next training, and so do events.
"""

import logging
import time
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rec import additions, bundle, dataset, encode, postgres
from rec.bundle import Bundle
from rec.config import Config
from rec.data import ingest
from rec.enrich import stage as enrich
from rec.errors import ArtifactError
from rec.index import experiments, load, migrations, promote, stock, tables
from rec.schema import PRODUCTS
from rec.vocab import tensorize

MOST_GONE = 0.2
"""A larger share of the stock does not end between two refreshes: the file was not written to its end."""
FOLDER = "refresh"
"""Of the datasets of new products, in the recipe's own folder."""

log = logging.getLogger(__name__)


def run(config: Config, *, force: bool = False) -> dict[str, Any]:
    """Refresh; returns what changed.

    Raises ArtifactError where the active bundle is of another recipe, InputError where the source lacks more than
    MOST_GONE of the products in stock and `force` is not given.
    """
    started = time.monotonic()
    url = postgres.url(config.store, create=False)
    base = _active(config, url)
    seen, rejects = ingest.catalogue(config)
    with postgres.session(url) as connection:
        migrations.migrate(connection)
        changed = stock.update(connection, config.name, seen, most_gone=1.0 if force else MOST_GONE)
    new = seen.filter(pc.invert(pc.is_in(seen["product_id"], value_set=pa.array(base.product_ids()))))
    log.info("%d products, %d of them new; %s", seen.num_rows, new.num_rows, asdict(changed))
    made = _add(config, base, url, new, seen, rejects) if new.num_rows else base
    return {
        "bundle": made.id,
        "extends": made.extends,
        "added": new.num_rows,
        "products": seen.num_rows,
        "rejected": len(rejects),
        **asdict(changed),
        "seconds": round(time.monotonic() - started, 1),
    }


def _active(config: Config, url: str) -> Bundle:
    with postgres.session(url) as connection:
        base = bundle.read(config.store, promote.active(connection))
    if base.recipe != config.name:
        raise ArtifactError(
            f"the active bundle {base.id} is of recipe {base.recipe!r}, not {config.name!r}: refresh with --recipe "
            f"{base.recipe}, or publish {config.name!r} first"
        )
    bundle.verify(base)
    return base


def _add(config: Config, base: Bundle, url: str, new: pa.Table, seen: pa.Table, rejects: dataset.Rejects) -> Bundle:
    """The active bundle from now on, with the products `new` as well."""
    with postgres.session(url) as connection:
        experiments.refuse_running(connection)  # before the work, not after it
    part = _part(config, base)
    work: dict[str, Any] = {"inputs": {"base": base.id}, "config": {}}
    dataset.write(part.at("products"), PRODUCTS, [new], **work, rejects=rejects)
    enrich.run(part)
    tensorize.place(part, base.folder("vocabulary"))
    encode.run(part)
    made = additions.make(base, part, seen)
    load.vectors(url, made, config.index)
    promote.promote(url, made, config.root, force=True)  # its figures are those of the active one
    with postgres.session(url) as connection, tables.switching(connection):
        superseded = promote.supersede(connection, config.name, [base.id])
    bundle.remove(config.store, superseded)
    return made


def _part(config: Config, base: Bundle) -> Config:
    """The recipe of the new products: models as the bundle has them, sources and enrichment as they are configured."""
    own = {name: getattr(config, name) for name in ("store", "cpus", "source", "enrich")}
    return base.config.model_copy(update={**own, "name": f"{config.name}/{FOLDER}"})
