"""Where the time of the shop goes (`shop.py start`, all stages in one process) while CLIENTS ask it at once.

per_s, cpu.ms, failed     answers a second, CPU time of all processes for each, and answers other than 200

Beside these figures the profile, under `profile` of the benchmark's JSON object:

processes.KIND.cpu_ms     CPU time for an answer while nothing samples, and `share` of that of all
                          (rec.evaluate.cpu_time)
cpus_busy                 share of the machine's CPU time that they took
gil, wall, alone          samples of the replica's threads (rec.evaluate.stacks): of the one that holds the
                          interpreter's lock, which compiled code lets go of; of those at work on an answer, whether
                          they run or wait; and the same with one client. None of them is CPU time, processes.* is
    .samples              how many
    .at_once              mean number of such threads at a time; of `gil` how much of the time somebody held the lock
    .per_s                answers a second while it was sampled: as far as they are from those without, that disturbs
    .layers, .stages, .threads, .functions
                          shares of the samples
left_out                  what is not there, and why

py-spy samples RATE times a second. It comes with ray[default], and reads another process's memory.
"""

import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from rec import postgres, processes, processors
from rec.config import Config
from rec.errors import RecError
from rec.evaluate import cpu_time, load, serving_speed, stacks
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.load import Answers

CLIENTS = 8
"""At which the shop gives about the most answers a second."""
REPLICA = "ray::ServeReplica:shop:Recommender"
SECONDS, QUICK_SECONDS = 15.0, 3.0
STRETCH_S = 5.0
"""Of load at a time; between two of them nobody asks for a moment."""
PATIENCE_S = 60.0
"""How much longer than it samples py-spy may take."""
RATE = 200
MODES: Mapping[str, tuple[str, int]] = {"gil": ("--gil", CLIENTS), "wall": ("--idle", CLIENTS), "alone": ("--idle", 1)}
"""py-spy's argument and how many ask, by the name of what is sampled. Without an argument it tells threads that run
from those that wait by a state that not every system has: eight threads then seemed to run on two cores."""

log = logging.getLogger(__name__)


class Refused(RecError):
    """py-spy could not sample; the message says why and what to do."""


def measure(
    config: Config, shop: Path, arguments: Sequence[str], *, quick: bool
) -> tuple[Figures, dict[str, Any], dict[str, str]]:
    """Figures, the profile, and by mode the stacks as py-spy wrote them, of a recipe whose bundle is promoted.

    `shop` is jobs/shop.py, `arguments` name the recipe to it. Raises RecError where the shop does not start or gives no
    answer.
    """
    bodies = serving_speed.requests(config)
    store = Path(config.store).resolve()
    seconds = QUICK_SECONDS if quick else SECONDS
    left_out = [] if postgres.given() is None else [f"CPU time of Postgres: {postgres.URL_VARIABLE} names another one"]
    raw: dict[str, str] = {}
    with serving_speed.running(shop, arguments) as url:
        load.closed(url, bodies, clients=CLIENTS, seconds=seconds / 3)  # warm: not counted
        before = cpu_time.spent(store)
        answers = load.closed(url, bodies, clients=CLIENTS, seconds=seconds)
        taken = cpu_time.by_kind(before, cpu_time.spent(store))
        if not len(answers.milliseconds):
            raise RecError(f"the shop gave no answer of status 200 in {seconds:.0f} s, but of {dict(answers.statuses)}")
        profile = _by_process(taken, answers)
        try:
            for mode in MODES:
                profile[mode], raw[mode] = _sampled(mode, _replica(store), url, bodies, seconds)
        except Refused as error:
            log.warning("%s", error)
            left_out.append(str(error))
    figures = {
        "per_s": figure(round(answers.per_second, 1), "requests/s"),
        "cpu.ms": figure(round(1e3 * sum(taken.values()) / len(answers.milliseconds), 2), "ms"),
        "failed": figure(sum(answers.statuses.values()) - len(answers.milliseconds), "answers", goal=0),
    }
    named = {f"{config.name}.serving.profile.{name}": value for name, value in figures.items()}
    return named, {**profile, "left_out": left_out}, raw


def _by_process(taken: Mapping[str, float], answers: Answers) -> dict[str, Any]:
    """CPU seconds by kind of process, for each answer."""
    total = sum(taken.values())
    found = {
        kind: {"cpu_ms": round(1e3 * seconds / len(answers.milliseconds), 3), "share": round(seconds / total, 4)}
        for kind, seconds in taken.items()
        if seconds > 0
    }
    busy = total / answers.seconds / processors.count()
    return {"clients": CLIENTS, "seconds": answers.seconds, "processes": found, "cpus_busy": round(busy, 3)}


def _replica(store: Path) -> psutil.Process:
    found = processes.titled(processes.marked(processes.SHOP, str(store)), REPLICA)
    if not found:
        raise Refused(f"no process of the shop of {store} shows the title {REPLICA}: its stacks are left out")
    return found[0]


def _sampled(
    mode: str, process: psutil.Process, url: str, bodies: Sequence[dict[str, Any]], seconds: float
) -> tuple[dict[str, Any], str]:
    """What py-spy saw of a process under load, and its file. Raises Refused."""
    argument, clients = MODES[mode]
    raw, per_second = recorded(
        process.pid, argument, seconds, lambda: load.closed(url, bodies, clients=clients, seconds=STRETCH_S)
    )
    found = stacks.read(raw)
    if argument == "--idle":
        found = stacks.answering(found)
    samples = sum(stack.samples for stack in found)
    shares = {
        name: {key: round(share, 3) for key, share in shares.items()} for name, shares in stacks.shares(found).items()
    }
    at_once = round(samples / (RATE * seconds), 3)
    return {"samples": samples, "at_once": at_once, "per_s": round(per_second, 1), **shares}, raw


def recorded(pid: int, argument: str, seconds: float, stretch: Callable[[], Answers]) -> tuple[str, float]:
    """What py-spy writes of a process in `seconds`, rounded up, of RATE samples, and answers a second meanwhile.

    `stretch`, a short one of load, is called again and again until py-spy has ended: on a busy machine it takes longer.
    Raises Refused where it is not installed, may not read the process, or does not end.
    """
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    program = shutil.which("py-spy", path=folders)
    if program is None:
        raise Refused("py-spy is not installed, and stacks are left out: `pip install py-spy`")
    with tempfile.TemporaryDirectory() as folder:
        file, log_file = Path(folder) / "stacks", Path(folder) / "log"
        command = [program, "record", "--pid", str(pid), "--format", "raw", "--threads", "--rate", str(RATE)]
        command += ["--duration", str(math.ceil(seconds)), "--output", str(file), argument]
        answered, spent, until = 0, 0.0, time.monotonic() + seconds + PATIENCE_S
        with log_file.open("w") as said, subprocess.Popen(command, stdout=said, stderr=said) as sampling:
            try:
                while sampling.poll() is None and time.monotonic() < until:
                    answers = stretch()
                    answered, spent = answered + len(answers.milliseconds), spent + answers.seconds
            finally:
                if sampling.poll() is None:
                    sampling.kill()
        if sampling.returncode or not file.exists():
            words = " ".join(log_file.read_text(encoding="utf-8", errors="replace").split())
            raise Refused(
                f"py-spy took no stacks of process {pid} ({words[-300:] or 'it did not end'}), and they are left out: "
                "run as root, or let it trace others' processes (`sysctl kernel.yama.ptrace_scope=0`, in a container "
                "the capability SYS_PTRACE)"
            )
        return file.read_text(encoding="utf-8"), answered / max(spent, 1e-9)
