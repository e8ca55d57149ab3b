#!/usr/bin/env python
"""The bundles of a store: list, verify, repair, compare, make active, roll back, collect garbage, push and pull.

    python jobs/bundles.py list
    python jobs/bundles.py verify                       # every byte of all bundles, and their vectors in the database
    python jobs/bundles.py verify 8ec63620b4d2          # of one
    python jobs/bundles.py repair 8ec63620b4d2          # its vectors in the database, where verify finds them damaged
    python jobs/bundles.py diff 8ec63620b4d2 1f0c2a9e77b3
    python jobs/bundles.py promote 8ec63620b4d2         # --force: although it is below a floor of its recipe
    python jobs/bundles.py rollback                     # make the bundle active that was active before
    python jobs/bundles.py recall                       # what the active one's index finds of exact search, by filter
    python jobs/bundles.py gc --dry-run                 # what gc would remove: all but the active and the previous one
    python jobs/bundles.py push s3://shop/bundles       # the active one; or: push URI ID
    python jobs/bundles.py pull s3://shop/bundles 8ec63620b4d2

URIs are those of pyarrow's filesystems: s3://bucket/folder (also ?endpoint_override=host:port for a server that is
compatible with S3), gs://bucket/folder, file:///folder. Credentials come from the environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS) or from the machine's role.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rec import bundle, bundle_diff, bundles, publish, remote
from rec.cli import main, parser
from rec.config import Config
from rec.errors import ConfigError

ARGUMENTS = {
    "list": (0, 0),
    "verify": (0, None),
    "repair": (0, None),
    "diff": (2, 2),
    "promote": (1, 1),
    "rollback": (0, 0),
    "recall": (0, 0),
    "gc": (0, 0),
    "push": (1, 2),
    "pull": (2, 2),
}
"""Fewest and most arguments of each action."""


def run(config: Config, options: argparse.Namespace) -> Mapping[str, Any]:
    """Do what the action says."""
    given = options.argument
    fewest, most = ARGUMENTS[options.action]
    if len(given) < fewest or (most is not None and len(given) > most):
        raise ConfigError(f"`{options.action}` takes other arguments: see `python jobs/bundles.py --help`")
    match options.action:
        case "list":
            return {"bundles": bundles.overview(config)}
        case "verify":
            return {"verified": bundles.verify(config, given)}
        case "repair":
            return publish.repair(config, given)
        case "diff":
            return bundle_diff.diff(*(bundle.read(config.store, name) for name in given))
        case "promote":
            return publish.activate(config, given[0], force=options.force)
        case "rollback":
            return publish.rollback(config)
        case "recall":
            return publish.measure_recall(config, bundles.active(config))
        case "gc":
            return bundles.collect(config, dry_run=options.dry_run)
        case "push":
            name = given[1] if len(given) > 1 else bundles.active(config)
            moved = remote.push(bundle.read(config.store, name), given[0])
        case _:
            name = given[1]
            moved = remote.pull(given[0], name, config.store)
    return {"bundle": name, "uri": remote.shown(given[0]), **asdict(moved)}


if __name__ == "__main__":
    arguments = parser(__doc__ or "")
    arguments.add_argument("action", choices=tuple(ARGUMENTS))
    arguments.add_argument("argument", nargs="*", help="ids of bundles, or a URI and an id")
    arguments.add_argument("--force", action="store_true", help="promote a bundle that is below a floor of its recipe")
    arguments.add_argument("--dry-run", action="store_true", help="gc: say what would be removed, and remove nothing")
    main(run, arguments)
