"""What an experiment has shown so far: events per list by arm, their difference, and whether the split is right.

The unit is the shopper: the user, or the client of a list that names no user. Rates are sums over shoppers by sums over
shoppers, of products chosen per list; intervals resample the shoppers of each arm (percentile bootstrap), and the
difference takes both. A product of a list counts once for each kind of event, however often it happened.

The numbers of shoppers are held against the share of the treatment by a chi-square test with one degree of freedom. A p
below MISMATCH says that shoppers got lost on the way in one arm, and that the figures are not to be trusted (sample
ratio mismatch, Fabijan et al. 2019).
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rec import postgres
from rec.config import Config
from rec.errors import DatabaseError
from rec.evaluate.bootstrap import interval, resampled_means
from rec.feedback import attribution
from rec.index import experiments, exposures, live_events, migrations
from rec.index.experiments import ARMS, CONTROL, TREATMENT, Experiment

KINDS = {"clicks": ("view",), "carts": ("cart",), "purchases": ("purchase", "rental")}
"""What is counted, and the events that are it."""
MISMATCH = 0.001
"""p of the split below which an experiment says nothing."""
DIGITS = 6

Floats = NDArray[np.float64]


def run(config: Config, number: int | None = None) -> dict[str, Any]:
    """The report of an experiment of the recipe, by default the newest one."""
    with postgres.session(postgres.url(config.store, create=False)) as connection:
        migrations.migrate(connection)
        found = _chosen(experiments.known(connection, config.name), number, config.name)
        now = datetime.now(UTC)
        shown = exposures.shown(connection, config.name, until=now, experiment=found.number)
        events = live_events.following(connection, config.name, found.started_at, now)
        logged = live_events.in_log(connection, config.name, found.started_at)
    window = timedelta(hours=config.feedback.window_hours)
    arms = by_arm(shown, attribution.once(events, logged), window)
    return {**described(found), **figures(arms, found.share, config.evaluate.bootstrap, config.seed)}


def described(found: Experiment) -> dict[str, Any]:
    """An experiment for a result line."""
    return {
        "experiment": found.number,
        "control": found.control,
        "treatment": found.treatment,
        "share": found.share,
        "started_at": found.started_at.isoformat(),
        "stopped_at": None if found.stopped_at is None else found.stopped_at.isoformat(),
    }


def _chosen(known: list[Experiment], number: int | None, recipe: str) -> Experiment:
    for found in known:
        if number in (None, found.number):
            return found
    what = f"no experiment {number}" if number is not None else "no experiment"
    raise DatabaseError(f"recipe {recipe!r} has {what}: `python jobs/experiment.py list` shows those that there are")


@dataclass(frozen=True, slots=True)
class Arm:
    """The shoppers of one arm."""

    lists: Floats
    """float64[U] lists that each was shown."""
    chosen: Floats
    """float64[U, M] products chosen from them, by KINDS."""


def by_arm(shown: pa.Table, events: pa.Table, window: timedelta) -> dict[str, Arm]:
    """The shoppers of each of ARMS, from the lists of an experiment (exposures.SHOWN) and events (FOLLOWING)."""
    followed = attribution.follow(shown, events, window)
    kinds = events.column("event").to_pylist()
    once = {
        (row, position, metric)
        for row, position, event in zip(
            followed.lists.tolist(), followed.positions.tolist(), followed.events.tolist(), strict=True
        )
        for metric, names in enumerate(KINDS.values())
        if kinds[event] in names
    }
    chosen = np.zeros((shown.num_rows, len(KINDS)))
    for row, _, metric in once:
        chosen[row, metric] += 1
    counts: dict[str, defaultdict[tuple[str | None, str | None], Floats]] = {
        arm: defaultdict(lambda: np.zeros(1 + len(KINDS))) for arm in ARMS
    }
    columns = [shown.column(name).to_pylist() for name in ("arm", "user_id", "client_id")]
    for row, (arm, user_id, client_id) in enumerate(zip(*columns, strict=True)):
        who = (user_id, None) if user_id is not None else (None, client_id)
        counts[arm][who] += [1, *chosen[row]]
    values = {arm: np.array(list(of.values())).reshape(-1, 1 + len(KINDS)) for arm, of in counts.items()}
    return {arm: Arm(found[:, 0], found[:, 1:]) for arm, found in values.items()}


def figures(arms: dict[str, Arm], share: float, resamples: int, seed: int) -> dict[str, Any]:
    """Counts and rates of each arm, `difference` of treatment and control, and the `split`; rates have `ci95`."""
    means = {arm: _resampled(found, resamples, seed + place) for place, (arm, found) in enumerate(arms.items())}
    result: dict[str, Any] = {}
    for arm, found in arms.items():
        result[arm] = {"shoppers": len(found.lists), "lists": int(found.lists.sum())}
        result[arm] |= {name: int(found.chosen[:, metric].sum()) for metric, name in enumerate(KINDS)}
        result[arm]["per_list"] = _each(_rates(found), means[arm])
    gaps: dict[str, Any] = dict.fromkeys(KINDS)
    if all(len(found.lists) for found in arms.values()):
        gap = _rates(arms[TREATMENT]) - _rates(arms[CONTROL])
        gaps = _each(gap, means[TREATMENT] - means[CONTROL])
    shoppers = {arm: len(found.lists) for arm, found in arms.items()}
    return {**result, "difference": gaps, "split": split(shoppers[CONTROL], shoppers[TREATMENT], share)}


def _rates(arm: Arm) -> Floats:
    """float64[M] products chosen per list."""
    return arm.chosen.sum(axis=0) / max(arm.lists.sum(), 1)


def _resampled(arm: Arm, resamples: int, seed: int) -> Floats:
    """float64[resamples, M] rates of shoppers drawn with replacement."""
    if not len(arm.lists):
        return np.zeros((resamples, len(KINDS)))
    means = resampled_means(np.column_stack([arm.lists, arm.chosen]), resamples, seed)
    return means[:, 1:] / means[:, :1]


def _each(values: Floats, resampled: Floats) -> dict[str, Any]:
    bounds = interval(resampled)
    return {
        name: {
            "value": round(float(values[at]), DIGITS),
            "ci95": [round(float(each), DIGITS) for each in bounds[:, at]],
        }
        for at, name in enumerate(KINDS)
    }


def split(control: int, treatment: int, share: float) -> dict[str, Any]:
    """Whether the numbers of shoppers are those of the `share`: chi-square, p, and `mismatch`."""
    total = control + treatment
    expected = np.array([total * (1 - share), total * share])
    square = float(((np.array([control, treatment]) - expected) ** 2 / expected).sum()) if total else 0.0
    p = math.erfc(math.sqrt(square / 2))  # of a chi-square with one degree of freedom
    return {"expected": share, "chi_square": round(square, 4), "p": round(p, DIGITS), "mismatch": p < MISMATCH}
