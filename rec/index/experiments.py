"""Experiments: two bundles serve at once, each to its own part of the shoppers. Rows come and end; none is removed.

The control is the active bundle, the treatment another one of its catalogue. At most one experiment runs, and while it
does no other bundle becomes active (promote.py). Who gets which is a matter of a hash: the same shopper always gets the
same bundle, on whichever server, and another salt in the next experiment.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection

from rec import postgres
from rec.errors import DatabaseError
from rec.index import migrations, tables

CONTROL, TREATMENT = ARMS = ("control", "treatment")
"""The active bundle, and the one that is tried."""

_COLUMNS = "number, catalogue, control, treatment, share, salt, started_at, stopped_at"


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment as it was started."""

    number: int
    catalogue: str
    control: str
    """Id of the bundle that was active."""
    treatment: str
    """Id of the bundle that is tried."""
    share: float
    """Of the shoppers who get the treatment."""
    salt: str
    started_at: datetime
    stopped_at: datetime | None

    def arm(self, user_id: str | None, client_id: str | None) -> str | None:
        """One of ARMS, by the user or, without one, by the client; None for a shopper who is neither.

        The first 8 bytes of SHA-256 over salt, kind and id, as a fraction of 2^64, are below `share` or not.
        """
        if user_id is None and client_id is None:
            return None
        who = f"client\0{client_id}" if user_id is None else f"user\0{user_id}"
        digest = hashlib.sha256(f"{self.salt}\0{who}".encode()).digest()
        return TREATMENT if int.from_bytes(digest[:8]) < self.share * 2**64 else CONTROL


def start(database_url: str, catalogue: str, treatment: str, share: float) -> Experiment:
    """Try the bundle `treatment`, whose vectors are loaded, on a `share` in (0, 1) of the shoppers of `catalogue`.

    Raises DatabaseError when an experiment runs, when the active bundle is of another catalogue or is the treatment, or
    when the treatment is not in the database.
    """
    with postgres.session(database_url) as connection:
        migrations.migrate(connection)
        with tables.switching(connection):
            refuse_running(connection)
            of = dict(connection.execute("SELECT id, catalogue FROM bundles").fetchall())
            active = connection.execute("SELECT bundle FROM active_bundle").fetchone()
            if active is None or of[active[0]] != catalogue:
                raise DatabaseError(
                    f"no bundle of recipe {catalogue!r} is active: publish one to try another against it"
                )
            if of.get(treatment) != catalogue:
                raise DatabaseError(f"bundle {treatment} of recipe {catalogue!r} is not in the database")
            if treatment == active[0]:
                raise DatabaseError(f"bundle {treatment} is the active one: name another one to try against it")
            row = connection.execute(
                "INSERT INTO experiments (catalogue, control, treatment, share, salt) VALUES (%s, %s, %s, %s, %s)"
                f" RETURNING {_COLUMNS}",
                (catalogue, active[0], treatment, share, secrets.token_hex(8)),
            ).fetchone()
    assert row is not None
    return Experiment(*row)


def stop(database_url: str, catalogue: str) -> Experiment:
    """End the running experiment of `catalogue`: the active bundle answers everybody. DatabaseError when none runs."""
    with postgres.session(database_url) as connection:
        migrations.migrate(connection)
        with tables.switching(connection):
            row = connection.execute(
                "UPDATE experiments SET stopped_at = now() WHERE stopped_at IS NULL AND catalogue = %s"
                f" RETURNING {_COLUMNS}",
                (catalogue,),
            ).fetchone()
    if row is None:
        raise DatabaseError(f"no experiment of recipe {catalogue!r} runs, so there is none to stop")
    return Experiment(*row)


def running(connection: Connection[Any]) -> Experiment | None:
    """The experiment that runs."""
    row = connection.execute(f"SELECT {_COLUMNS} FROM experiments WHERE stopped_at IS NULL").fetchone()
    return None if row is None else Experiment(*row)


def known(connection: Connection[Any], catalogue: str) -> list[Experiment]:
    """All experiments of a catalogue, newest first."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM experiments WHERE catalogue = %s ORDER BY number DESC", (catalogue,)
    ).fetchall()
    return [Experiment(*row) for row in rows]


def refuse_running(connection: Connection[Any]) -> None:
    """Raise DatabaseError while an experiment runs."""
    found = running(connection)
    if found is not None:
        raise DatabaseError(
            f"experiment {found.number} runs: bundle {found.treatment} against the active one, {found.control}; stop "
            f"it first with `python jobs/experiment.py stop --recipe {found.catalogue}`"
        )
