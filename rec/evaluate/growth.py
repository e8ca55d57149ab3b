"""Figures of the benchmark `scale`: what was measured of catalogues of three sizes, how it grows, and what a hundred
times the largest would take on a cluster.

    SIZE.STAGE.seconds    of the job of that stage, a process of its own, as a user starts it
    SIZE.STAGE.peak_gib   of that process and all that it starts, pages that processes share counted in each (an upper
                          bound), the embedded Postgres apart
    SIZE.store.gib        the shop's files, all artifacts, the bundle and the database on disk
    SIZE.states.gib       of these, the text encoder's states
    SIZE.chain.STAGE.p50.ms, SIZE.chain.STAGE.p99.ms
                          of what a stage of the chain, or `total`, takes of a request (rec.evaluate.chain_speed)
    SIZE.chain.STAGE.p50.growth_per_decade, SIZE.chain.STAGE.p99.growth_per_decade
                          the same on that catalogue over that on the one before it, for ten times the products
    STAGE.peak_growth     the peak of the largest catalogue over that of the middle one, of a tenth of its size, or with
                          --quick a quarter
    STAGE.marginal        the time of a further product from the middle to the largest catalogue over that from the
                          smallest to the middle one: 1 where time is linear in rows; left out where the middle one took
                          less than GROWN_S longer than the smallest
    STAGE.marginal.ms, STAGE.marginal.kib
                          time and memory of a further product from the middle to the largest catalogue
    FAR.STAGE.hours       of a catalogue of FAR products on NODES machines of the measured kind; FAR is `100m` where the
                          largest is `1m`
    FAR.hours, FAR.serial.hours
                          of all stages, and of those that one machine does
    FAR.serial.peak_gib   memory of the most demanding of the latter
    FAR.states.gib, FAR.store.gib

Assumed of FAR, and measured by nobody: each stage grows as from the middle to the largest catalogue (an index that no
longer fits the memory is slower); the stages outside SERIAL share their products evenly and lose nothing to it, neither
to gradients that workers exchange nor to reading one file system; towers see each row once
(`rec.evaluate.scale.SETTINGS`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from rec.evaluate.benchmark import Figures, figure

SERIAL = frozenset({"ingest", "candidates", "evaluate", "publish"})
"""Stages that one machine does, whatever the cluster: one process reads the shop's files, makes the tables of sources
and evaluates; a Postgres takes the vectors. (Ray Data shares out the samples of `candidates`; they do not grow.)"""
NODES = 32
FAR_TIMES = 100
PEAK_GOAL_GIB = 20.0
"""On a machine of 24 GiB, which the database and the system share."""
MARGINAL_GOAL = 1.2
GROWN_S = 5.0
P50_GOAL = 1.3


@dataclass(frozen=True, slots=True)
class Taken:
    """What one stage took of one catalogue."""

    seconds: float
    peak_gib: float


class Spent(NamedTuple):
    """Milliseconds of a request within which half, and 99 %, of all have passed a stage."""

    p50: float
    p99: float


Chains = Mapping[str, Mapping[str, Spent]]
"""By size and stage; see `rec.evaluate.chain_speed.stages`."""


@dataclass(frozen=True, slots=True)
class Grown:
    """One catalogue, from its files to its answers."""

    stages: Mapping[str, Taken | None]
    """By stage, in their order; None where it is not known."""
    chain: Mapping[str, Spent]
    """What each stage of the chain takes."""
    store_gib: float
    states_gib: float


def figures(grown: Mapping[str, Grown], sizes: Mapping[str, int]) -> Figures:
    """What each of three sizes took, products/s of the largest, and how time, memory and answers grow."""
    made: Figures = {}
    for size, found in grown.items():
        known = {stage: took for stage, took in found.stages.items() if took is not None}
        for stage, took in known.items():
            made[f"{size}.{stage}.seconds"] = figure(round(took.seconds, 1), "s")
            made[f"{size}.{stage}.peak_gib"] = figure(round(took.peak_gib, 2), "GiB", goal=PEAK_GOAL_GIB)
        if len(known) == len(found.stages):
            made[f"{size}.seconds"] = figure(round(sum(took.seconds for took in known.values()), 1), "s")
        made[f"{size}.store.gib"] = figure(round(found.store_gib, 2), "GiB")
        made[f"{size}.states.gib"] = figure(round(found.states_gib, 3), "GiB")
    names = sorted(sizes, key=sizes.__getitem__)
    small, middle, large = (grown[size] for size in names)
    rows = sorted(sizes.values())
    for stage in large.stages:
        most, between, least = (grown.stages[stage] for grown in (large, middle, small))
        if most is None or between is None or least is None:
            continue
        made[f"{stage}.products_per_s"] = figure(round(rows[2] / most.seconds, 1), "products/s")
        made[f"{stage}.peak_growth"] = figure(round(most.peak_gib / between.peak_gib, 3), "times")
        further = rows[2] - rows[1]
        made[f"{stage}.marginal.ms"] = figure(round((most.seconds - between.seconds) / further * 1e3, 3), "ms")
        made[f"{stage}.marginal.kib"] = figure(round((most.peak_gib - between.peak_gib) / further * 2**20, 2), "KiB")
        earlier = between.seconds - least.seconds
        if earlier >= GROWN_S:
            ratio = (most.seconds - between.seconds) / further / (earlier / (rows[1] - rows[0]))
            made[f"{stage}.marginal"] = figure(round(ratio, 3), "times", goal=MARGINAL_GOAL)
    made |= answers({size: found.chain for size, found in grown.items()}, sizes)
    return made | _far(rows[1], rows[2], middle, large)


def answers(chains: Chains, sizes: Mapping[str, int]) -> Figures:
    """The budget of an answer by stage and size, and how it grows; of stages that take no time to tell it does not."""
    made: Figures = {}
    for size, stages in chains.items():
        for stage, spent in stages.items():
            for name, ms in spent._asdict().items():
                made[f"{size}.chain.{stage}.{name}.ms"] = figure(round(ms, 2), "ms")
    for before, after in pairwise(sorted(chains, key=sizes.__getitem__)):
        decades = math.log10(sizes[after] / sizes[before])
        for stage in [stage for stage in chains[after] if stage in chains[before]]:
            for name, ms in chains[before][stage]._asdict().items():
                if ms > 0:
                    growth = (chains[after][stage]._asdict()[name] / ms) ** (1 / decades)
                    goal = P50_GOAL if (stage, name) == ("total", "p50") else None
                    made[f"{after}.chain.{stage}.{name}.growth_per_decade"] = figure(
                        round(growth, 3), "times", goal=goal
                    )
    return made


def _far(fewer: int, more: int, middle: Grown, large: Grown) -> Figures:
    """What FAR_TIMES the largest catalogue takes: each time by the line through the middle and the largest one, at all
    of its products where one machine does the stage, else at a node's share of them.

    Empty where a stage's time is not known.
    """
    rows = more * FAR_TIMES
    size = f"{rows // 1_000_000}m" if rows >= 1_000_000 else f"{rows // 1_000}k"
    hours: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for stage, most in large.stages.items():
        between = middle.stages[stage]
        if most is None or between is None:
            return {}
        share = rows if stage in SERIAL else rows / NODES
        hours[stage] = _line(fewer, more, between.seconds, most.seconds, share) / 3_600
        peaks[stage] = _line(fewer, more, between.peak_gib, most.peak_gib, rows)
    serial = [stage for stage in hours if stage in SERIAL]
    made = {f"{size}.{stage}.hours": figure(round(value, 2), "hours") for stage, value in hours.items()}
    made[f"{size}.hours"] = figure(round(sum(hours.values()), 1), "hours")
    made[f"{size}.serial.hours"] = figure(round(sum(hours[stage] for stage in serial), 1), "hours")
    if serial:
        made[f"{size}.serial.peak_gib"] = figure(round(max(peaks[stage] for stage in serial), 1), "GiB")
    for name, least, most_gib in (
        ("states", middle.states_gib, large.states_gib),
        ("store", middle.store_gib, large.store_gib),
    ):
        made[f"{size}.{name}.gib"] = figure(round(_line(fewer, more, least, most_gib, rows), 1), "GiB")
    return made


def _line(fewer: int, more: int, at_fewer: float, at_more: float, rows: float) -> float:
    """The value at `rows` of the line through two measured ones; what does not grow stays as it is."""
    return at_more + max(0.0, at_more - at_fewer) / (more - fewer) * (rows - more)
