"""CPU time of a shop's processes by kind: those of Ray and Serve, the proxy, the embedded Postgres, and this process,
which sends the load."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from rec import postgres, processes

LOAD = "load generator"
ROLES = (
    "archiver",
    "autovacuum launcher",
    "autovacuum worker",
    "background writer",
    "checkpointer",
    "io worker",
    "logger",
    "logical replication launcher",
    "parallel worker",
    "startup",
    "walwriter",
)
"""What Postgres's own processes call themselves; the others are of clients."""

Spent = Mapping[psutil.Process, tuple[str, float]]
"""Kind and CPU seconds since its start, by process."""


def kind(command: Sequence[str]) -> str:
    """What a process with this command line, or title in its place, is."""
    line = " ".join(command).strip()
    if line.startswith("ray::"):
        return line.removeprefix("ray::").partition("(")[0].partition(".")[0]
    if line.startswith("postgres: "):
        role = line.removeprefix("postgres: ")
        return f"postgres {next((name for name in ROLES if role.startswith(name)), 'client')}"
    if line.startswith("ray-dashboard"):
        return "dashboard"
    if "-c" in command:  # a program that is given as text, as Python's own of multiprocessing
        return Path(command[0]).stem
    words = [Path(word).stem for word in command if not word.startswith("-")]
    program = words[0] if words else "unknown"
    if program == "postgres":
        return "postgres postmaster"
    return words[1] if program.startswith("python") and len(words) > 1 else program


def spent(store: Path) -> Spent:
    """Of all processes of the shop of `store`, its embedded Postgres and this process."""
    own = os.times()  # first: the look itself is nobody's load
    server = postgres.server(store)
    family = [*processes.marked(processes.SHOP, str(store)), *([] if server is None else _tree(server))]
    found = {}
    for process in family:
        try:
            times = process.cpu_times()
            found[process] = kind(process.cmdline()), times.user + times.system
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended
            continue
    return {**found, psutil.Process(): (LOAD, own.user + own.system)}


def _tree(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def by_kind(before: Spent, after: Spent) -> dict[str, float]:
    """CPU seconds between two looks, the most first; what a process spent that is no longer there is not known."""
    seconds: dict[str, float] = {}
    for process, (name, until) in after.items():
        _, since = before.get(process, (name, 0.0))
        seconds[name] = seconds.get(name, 0.0) + until - since
    return dict(sorted(seconds.items(), key=lambda each: -each[1]))
