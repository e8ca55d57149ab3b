"""Processes of this machine that belong to one thing that runs, such as a shop."""

import psutil

SHOP = "REC_SHOP"
"""Environment variable of the processes of jobs/shop.py's shop; its value is the store's path."""
LOOP_APART = "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"
"""Variable of Serve: 1 where a replica's code has another loop than the one that receives requests."""


def marked(variable: str, value: str) -> list[psutil.Process]:
    """Living processes whose environment says `variable`=`value`, and their descendants, Postgres' servers aside.

    A Ray process that shows a title of its own has overwritten its environment; the raylet above it has not. An
    embedded Postgres outlives what started it and is stopped by its own means.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(variable) == value:
                found |= {each.pid: each for each in [process, *process.children(recursive=True)]}
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):  # gone, or another user's
            continue
    return [process for process in found.values() if _alive(process)]


def titled(processes: list[psutil.Process], title: str) -> list[psutil.Process]:
    """Those whose title begins with `title`."""
    found = []
    for process in processes:
        try:
            line = process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if line and line[0].startswith(title):
            found.append(process)
    return found


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.name() != "postgres"
    except psutil.NoSuchProcess:
        return False
