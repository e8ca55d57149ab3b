"""Sampled stacks of a server's process, as `py-spy record --format raw --threads` writes them, put together: which
layer, stage, thread and function the samples are of.

A line is the frames from the outermost to the innermost, `FUNCTION (FILE:LINE)`, the first of them the thread, and how
often they were seen. A sample belongs to the layer of its innermost frame that has one: numpy and most of the standard
library have none, and count for whoever calls them. Compiled code has no frames, so that it counts for its caller, too.

torch, ray       these packages
psycopg          psycopg, its pool and pgvector
psycopg.wait     of these, what waits for Postgres; of a thread that holds the interpreter's lock it is the compiled
                 code there, which sends statements and takes answers. A thread whose answer has come, and that waits
                 for that lock, is still there: with many at work on few cores it says too much
pool.wait        waiting for one of the connections
json             reading and writing JSON
http             FastAPI, Starlette, uvicorn, their parser and event loop
combining.wait   a request that waits for the pass through a model in which others are (serve/combining.py)
ours.STAGE       this project's own lines within a stage; those outside are ours.MODULE
other            without a layer
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

PACKAGES = {
    "torch": "torch",
    "ray": "ray",
    "psycopg": "psycopg",
    "psycopg_pool": "psycopg",
    "pgvector": "psycopg",
    "json": "json",
    "fastapi": "http",
    "starlette": "http",
    "uvicorn": "http",
    "h11": "http",
    "anyio": "http",
    "pydantic": "http",
    "asyncio": "http",
    "selectors.py": "http",
    "rec": "ours",
    "serve": "ours",
}
"""Layer by the first part of a file's path, which py-spy tells from the folder of packages on."""
COMPILED = {"written (serve/answering.py)": "json", "Watched._bounded (rec/index/connections.py)": "psycopg"}
"""Layer of functions that hand to compiled code what is another layer's."""
STAGES = {
    "Fallible.known (serve/fallible.py)": "state",
    "Front.begin (rec/recommend/front.py)": "state",
    "Fallible.encode (serve/fallible.py)": "user_tower",
    "Fallible.retrieve (serve/fallible.py)": "retrieval",
    "Fallible.rank (serve/fallible.py)": "ranking",
    "Fallible.prices (serve/fallible.py)": "rules",
    "InForce.arrange (rec/recommend/ruling.py)": "rules",
    "listed (rec/recommend/walk.py)": "explanation",
}
"""Stage of all that a function calls, as an answer's `milliseconds` name them."""
ANSWER = "Answering._recommend (serve/answering.py)"
"""The function within which a thread is at work on an answer."""
OUTSIDE = "outside"
"""Instead of a stage: no answer, or what is before, between and after its stages."""
MOST_FUNCTIONS = 20

_FRAME = re.compile(r"(.*) \((.*?)(?::\d+)?\)")
_THREAD = re.compile(r"thread \([^)]*\)(?:: (.*))?")
_NUMBER = re.compile(r"[-_]?\d+")


class Stack(NamedTuple):
    """One kind of sample."""

    thread: str
    """Its name without numbers: those of a pool have one."""
    frames: tuple[str, ...]
    """`FUNCTION (FILE)`, the outermost first."""
    samples: int


def read(raw: str) -> list[Stack]:
    """The stacks of a file. Raises ValueError where a line ends in no number."""
    return [_stack(line) for line in raw.splitlines() if line.strip()]


def _stack(line: str) -> Stack:
    path, _, samples = line.rpartition(" ")
    thread, *frames = path.split(";")
    named = _THREAD.fullmatch(thread)
    name = _NUMBER.sub("", (named[1] if named else thread) or "") or "unnamed"
    return Stack(name, tuple(map(_without_line, frames)), int(samples))


def _without_line(frame: str) -> str:
    found = _FRAME.fullmatch(frame)
    return f"{found[1]} ({found[2]})" if found else frame


def _file(frame: str) -> str:
    found = _FRAME.fullmatch(frame)
    return found[2] if found else ""


def answering(stacks: Sequence[Stack]) -> list[Stack]:
    """Those of threads that are at work on an answer."""
    return [stack for stack in stacks if ANSWER in stack.frames]


def stage(stack: Stack) -> str:
    """Of the outermost frame that has one, else OUTSIDE."""
    return next((STAGES[frame] for frame in stack.frames if frame in STAGES), OUTSIDE)


def layer(stack: Stack) -> str:
    """Of the innermost frame that has one."""
    for frame in reversed(stack.frames):
        file = _file(frame)
        found = COMPILED.get(frame) or PACKAGES.get(file.partition("/")[0])
        if found is None:
            continue
        waits = _waits(stack.frames[-1])
        if waits and found == "psycopg":
            return "pool.wait" if file.startswith("psycopg_pool/") else "psycopg.wait"
        if waits and file == "serve/combining.py":
            return "combining.wait"
        if found == "ours":
            within = stage(stack)
            return f"ours.{PurePosixPath(file).stem if within == OUTSIDE else within}"
        return found
    return "other"


def _waits(frame: str) -> bool:
    return frame.partition(" (")[0].rpartition(".")[2] == "wait"


def shares(stacks: Sequence[Stack]) -> dict[str, dict[str, float]]:
    """Shares of all samples by `layers`, `stages`, `threads`, which sum to 1 each, and by the MOST_FUNCTIONS innermost
    `functions`; the largest first. Empty without samples."""
    keys: Mapping[str, Callable[[Stack], str]] = {
        "layers": layer,
        "stages": stage,
        "threads": lambda stack: stack.thread,
        "functions": lambda stack: stack.frames[-1] if stack.frames else "unnamed",
    }
    return {what: _shares(stacks, key, MOST_FUNCTIONS if what == "functions" else None) for what, key in keys.items()}


def _shares(stacks: Sequence[Stack], key: Callable[[Stack], str], most: int | None) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for stack in stacks:
        counts[key(stack)] += stack.samples
    total = counts.total()
    return {name: samples / total for name, samples in counts.most_common(most)}
