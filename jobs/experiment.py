#!/usr/bin/env python
"""Try a bundle beside the active one on a share of the shoppers, and see what they chose. Servers follow in seconds.

    python jobs/experiment.py start 1f0c2a9e77b3 --share 10    # percent of the shoppers get this bundle
    python jobs/experiment.py report                           # what was chosen per list in each arm; or: report NUMBER
    python jobs/experiment.py list                             # all experiments of the recipe, newest first
    python jobs/experiment.py stop                             # the active bundle answers everybody again

A bundle is verified and loaded before it is tried, and has to reach the floors of its recipe (--force: not). While an
experiment runs no other bundle becomes active: promotion and rollback are refused until it is stopped. A shopper is a
user, or a client where no user is named; those who are neither get the active bundle and count in no arm.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from rec import postgres, publish
from rec.cli import main, parser
from rec.config import Config
from rec.errors import ConfigError
from rec.feedback import report
from rec.feedback.report import described
from rec.index import experiments, migrations


def run(config: Config, options: argparse.Namespace) -> Mapping[str, Any]:
    """Do what the action says."""
    match options.action:
        case "start":
            if options.argument is None or options.share is None or not 0 < options.share < 100:
                raise ConfigError("`start` needs the id of a bundle and --share PERCENT, above 0 and below 100")
            share = options.share / 100
            return described(publish.try_out(config, options.argument, share, force=options.force))
        case "stop":
            return described(experiments.stop(postgres.url(config.store, create=False), config.name))
        case "list":
            with postgres.session(postgres.url(config.store, create=False)) as connection:
                migrations.migrate(connection)
                return {"experiments": [described(each) for each in experiments.known(connection, config.name)]}
        case _:
            return report.run(config, _number(options.argument))


def _number(given: str | None) -> int | None:
    if given is not None and not given.isdecimal():
        raise ConfigError(f"`report` takes the number of an experiment, not {given!r}: see `list`")
    return None if given is None else int(given)


if __name__ == "__main__":
    arguments = parser(__doc__ or "")
    arguments.add_argument("action", choices=("start", "report", "list", "stop"))
    arguments.add_argument("argument", nargs="?", help="start: id of a bundle; report: number of an experiment")
    arguments.add_argument("--share", type=float, metavar="PERCENT", help="start: of the shoppers who get the bundle")
    arguments.add_argument("--force", action="store_true", help="start: a bundle that is below a floor of its recipe")
    main(run, arguments)
