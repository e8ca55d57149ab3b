#!/usr/bin/env python
"""Bundle a recipe's finished stages, load the vectors into Postgres, and promote the bundle.

python jobs/publish.py --recipe demo
python jobs/publish.py --recipe demo --force       # promote although the evaluation is below the recipe's floor
python jobs/publish.py --recipe demo --rollback    # make the bundle active that was active before
python jobs/publish.py --recipe demo --list        # the bundles of the store, oldest first
python jobs/publish.py --recipe demo --prune       # remove the recipe's bundles but the active and the previous one
"""

import argparse
from collections.abc import Mapping
from typing import Any

from rec import bundle, publish
from rec.cli import main, parser
from rec.config import Config


def run(config: Config, options: argparse.Namespace) -> Mapping[str, Any]:
    """Publish, roll back, prune or list."""
    if options.rollback:
        return publish.rollback(config)
    if options.prune:
        return publish.prune(config)
    if options.list:
        return {"bundles": bundle.names(config.store)}
    return publish.run(config, force=options.force)


if __name__ == "__main__":
    arguments = parser(__doc__ or "")
    action = arguments.add_mutually_exclusive_group()
    action.add_argument("--force", action="store_true", help="promote a bundle that is below the recipe's floor")
    action.add_argument("--rollback", action="store_true", help="make the previously active bundle active again")
    action.add_argument("--prune", action="store_true", help="remove superseded bundles from database and store")
    action.add_argument("--list", action="store_true", help="print the ids of the store's bundles")
    main(run, arguments)
