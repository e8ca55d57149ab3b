#!/usr/bin/env python
"""The database: start, stop, upgrade the embedded server, migrate, back up, restore, let a role read, forget, expire.

    python jobs/database.py status                # version, size, which bundle is active
    python jobs/database.py start                 # the embedded server of the store; jobs start it by themselves
    python jobs/database.py stop
    python jobs/database.py url                   # for psql and the like; only of the embedded server
    python jobs/database.py upgrade               # the embedded server, to the installed major version of Postgres
    python jobs/database.py migrate               # bring the tables up to this program's version; jobs do it, too
    python jobs/database.py backup shop.dump      # everything, in pg_dump's custom format
    python jobs/database.py restore shop.dump     # into an empty database
    python jobs/database.py grant shop_reader     # let a role read what a server needs, add events and lists
    python jobs/database.py grant shop_reader --forget    # and delete the data of users, as DELETE /v1/users/{id} does
    python jobs/database.py forget u0042 --recipe shop.toml    # delete a user's events, lists and profile, for good
    python jobs/database.py forget visit-7f3a --client --recipe shop.toml    # events and lists of an anonymous client
    python jobs/database.py expire    # delete live events, lists and notes of deleted clients of 90 days ago

REC_DATABASE_URL names another server; then start, stop, url and upgrade have nothing to do. A user who is forgotten
goes out of the recipe's datasets as well, and stays in the files they were read from until the shop removes them there:
no ingest takes them from these. Then run jobs/pipeline.py: a publish refuses models that were made of the datasets
before.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rec import artifact, backup, postgres, upgrade
from rec.cli import main, parser
from rec.config import Config
from rec.data import forgotten
from rec.errors import ArtifactError, ConfigError, DatabaseError
from rec.index import forget, migrations, retention, roles, status

NEEDS = {"backup": "FILE", "restore": "FILE", "grant": "ROLE", "forget": "USER"}
"""Actions with an argument, and what it is."""


def run(config: Config, options: argparse.Namespace) -> Mapping[str, Any]:
    """Do what the action says."""
    match options.action:
        case "status":
            return _status(config)
        case "start":
            _only_embedded("start")
            postgres.url(config.store)
            return {"running": True}
        case "stop":
            _only_embedded("stop")
            return {"stopped": postgres.stop_embedded(config.store)}
        case "url":
            _only_embedded("url")
            return {"url": postgres.url(config.store, create=False)}
        case "upgrade":
            _only_embedded("upgrade")
            done = upgrade.upgrade(config.store)
            if done is None:
                return {"upgraded": False, "version": postgres.embedded_major(config.store)}
            return {"upgraded": True, **asdict(done)}
        case "migrate":
            with postgres.session(postgres.url(config.store)) as connection:
                before, after = migrations.migrate(connection)
            return {"before": before, "version": after}
        case "backup":
            file = Path(_argument(options))
            return {"file": str(file), "bytes": backup.backup(postgres.own_url(config.store), file)}
        case "restore":
            return {"tables": backup.restore(postgres.url(config.store), Path(_argument(options)))}
        case "grant":
            role = _argument(options)
            url = postgres.url(config.store, create=False)
            return {"role": role, "tables": roles.grant(url, role, forget=options.forget), "forget": options.forget}
        case "expire":
            with postgres.session(postgres.url(config.store, create=False)) as connection:
                migrations.require(connection)
                return retention.expire(connection)
        case _:
            whom, url = _argument(options), postgres.url(config.store, create=False)
            if options.client:
                return {"recipe": config.name, **asdict(forget.forget_client(url, config.name, whom))}
            return {"recipe": config.name, **asdict(forget.forget(url, config.name, whom)), **_take_out(config)}


def _take_out(config: Config) -> Mapping[str, Any]:
    """Take whoever was forgotten out of the recipe's datasets; else say which have them, why, and what to do.

    They are out of the database already, and who reads an error alone would not know it.
    """
    if not config.root.is_dir():
        return {"datasets": {}}
    remedy = "run this command again, or `python jobs/pipeline.py`"
    try:
        gone = forgotten.read(config)
    except DatabaseError as error:
        return {"because": str(error), "remedy": remedy}
    try:
        with artifact.alone(config.root):
            return {"datasets": forgotten.take_out(config, gone)}
    except (ArtifactError, OSError) as error:
        held, unread = forgotten.held_in(config, gone)
        if unread:
            remedy = f"remove or restore what is `not_read`, then {remedy}"
        return {"still_in": held, **({"not_read": unread} if unread else {}), "because": str(error), "remedy": remedy}


def _status(config: Config) -> Mapping[str, Any]:
    given = postgres.given()
    if given is None and postgres.running(config.store) is None:
        return {"server": "embedded", "running": False, "made_by": postgres.embedded_major(config.store)}
    found = status.status(postgres.url(config.store, create=False))
    return {"server": "embedded" if given is None else postgres.URL_VARIABLE, "running": True, **found}


def _only_embedded(action: str) -> None:
    if postgres.given() is not None:
        raise ConfigError(
            f"`{action}` is for the embedded server, and {postgres.URL_VARIABLE} names another one: unset it"
        )


def _argument(options: argparse.Namespace) -> str:
    """The one argument of the action."""
    if options.argument is None:
        raise ConfigError(f"`{options.action}` needs a {NEEDS[options.action]}: see `python jobs/database.py --help`")
    return str(options.argument)


if __name__ == "__main__":
    arguments = parser(__doc__ or "")
    arguments.add_argument("action", choices=("status", "start", "stop", "url", "upgrade", "migrate", "expire", *NEEDS))
    arguments.add_argument("argument", nargs="?", help="file, role or user of the last four")
    arguments.add_argument("--client", action="store_true", help="forget: the id is that of an anonymous client")
    arguments.add_argument("--forget", action="store_true", help="grant: the role may delete the data of users, too")
    main(run, arguments)
