"""Splits into training events and held-out tests, and stores that hold the training events alone.

    leave-one-out   each user's last event is the test: `rec.histories.leave_one_out`, what every stage keeps to
    temporal        one moment cuts all histories: training is all before it, the test each user's next new choice
    cold users      a seeded share of the users has no training event at all and is asked by profile and context alone
    cold items      whole content groups have no training event at all: `rec.evaluate.hidden`
    substitute      cold items and each user's last event, cold and warm targets in one ranking, for data with the order
                    of a user's events but no times, where no moment cuts all users: `rec.evaluate.cold_and_warm`

A store of `write` has no test in it, so no training code has to be trusted to leave any out. The stages that train
there keep to leave-one-out within it: the tower sees all but the last two events of a user with three or more, the
ranker the second last as well. They train on somewhat less than a split allows, never on more.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rec import dataset
from rec.config import Config
from rec.errors import ArtifactError, ConfigError
from rec.evaluate import cases, hidden
from rec.evaluate.cases import Cases
from rec.histories import Histories
from rec.schema import INTERACTIONS, PRODUCTS
from rec.train.sequences import first_time

FOLDER = "splits"
"""Of the stores, in the recipe's own folder."""

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Holdout:
    """Which of E events may train, which are tests, and what else the training events promise to be without."""

    training: Bools
    """bool[E]"""
    tests: Ints
    """int64[T] events, ascending, at most one of a user."""
    cut_us: int | None
    """UTC microseconds from which on there is no training event; None where no moment cuts."""
    cold_users: Ints
    """User indices without any training event."""


def temporal(h: Histories, cut_us: int) -> Holdout:
    """Training: all events before `cut_us`, UTC microseconds. Test: the first event from then on with an item that the
    user did not have before; its history is all before it, as a server would know it.

    Raises ConfigError where the cut leaves nothing to train or nothing to test.
    """
    training = h.at < cut_us
    new = np.flatnonzero(first_time(h) & ~training)
    _, first = np.unique(np.searchsorted(h.offsets, new, side="right"), return_index=True)
    if not training.any() or not len(new):
        lacking = "before" if not training.any() else "new to its user from then on"
        raise ConfigError(
            f"the cut at {cut_us} leaves no event {lacking}: choose one between {int(h.at.min(initial=cut_us))} and "
            f"{int(h.at.max(initial=cut_us))} (UTC microseconds)"
        )
    return Holdout(training, new[first], cut_us, np.empty(0, np.int64))


def cold_users(h: Histories, share: float, seed: int) -> Holdout:
    """Training: all events of the users who are not drawn. Test: the last event of the `share` who are.

    Profiles are no events: those of all users stay in the store. Raises ConfigError where nobody is drawn, or all are.
    """
    active = np.flatnonzero(np.diff(h.offsets))
    count = round(share * len(active))
    if not 0 < count < len(active):
        raise ConfigError(
            f"a share of {share} makes {count} of {len(active)} users with events cold: choose one between 0 and 1 "
            "that leaves some of both"
        )
    drawn = np.sort(np.random.default_rng(seed).choice(active, count, replace=False))
    training = ~np.isin(np.repeat(np.arange(len(h.user_ids)), np.diff(h.offsets)), drawn)
    return Holdout(training, h.offsets[drawn + 1] - 1, None, drawn)


def asked(
    h: Histories,
    split: Holdout,
    created_us: Ints,
    *,
    history: int,
    exclude_seen: bool,
    max_users: int | None,
    seed: int,
) -> Cases:
    """The tests of `split`, see `rec.evaluate.cases`; of cold users nothing is known to have been seen, either."""
    cold = len(split.cold_users) > 0
    made = cases.at_events(
        h,
        split.tests,
        created_us,
        history=history,
        exclude_seen=exclude_seen and not cold,
        max_users=max_users,
        seed=seed,
    )
    return made.without_histories() if cold else made


def write(config: Config, name: str, h: Histories, split: Holdout) -> Config:
    """The recipe, gone through embed, on a store of its own with all products and the training events alone; checked.

    Its item vectors are those of `config` where events had no part in them, neither by a behaviour stage nor at the
    start; otherwise the item tower is to be trained in the new store as well.
    """
    target = config.model_copy(update={"store": str(config.at(FOLDER)), "name": name})
    hidden.write(config, target, np.ones(h.num_items, bool), h, split.training)
    if not config.item_tower.reads_choices:
        hidden.link(config, target, "vectors")
    elif target.at("vectors").is_symlink():  # of a recipe that reads no events: these vectors are not from this split
        target.at("vectors").unlink()
    check(target, h, split)
    return target


def check(target: Config, h: Histories, split: Holdout) -> None:
    """Raise ArtifactError when the store of `target` holds an event that `split` of `h` keeps from training."""
    events = dataset.read(target.at("events"), INTERACTIONS, ["user_id", "product_id", "at"])
    at = events["at"].cast(pa.int64()).to_numpy()
    users = pa.array(h.user_ids, pa.string())
    cold = pc.is_in(events["user_id"], value_set=users.take(pa.array(split.cold_users))).to_numpy()
    leaks = {"of cold users": cold, "that are tests": _tests_among(target, events, at, h, split)}
    if split.cut_us is not None:
        leaks[f"at or after the cut at {split.cut_us}"] = at >= split.cut_us
    for what, rows in leaks.items():
        if rows.any():
            user, product = (events[name][int(rows.argmax())].as_py() for name in ("user_id", "product_id"))
            raise ArtifactError(
                f"{target.at('events')} has {int(rows.sum())} events {what}, such as that of user {user!r} on product "
                f"{product!r}: remove {target.root} and write the split again"
            )


def _tests_among(target: Config, events: pa.Table, at: Ints, h: Histories, split: Holdout) -> Bools:
    """bool[R]: rows of the store that are tests, by user, product and time."""
    ids = dataset.read(target.at("products"), PRODUCTS, ["product_id"])["product_id"].to_pylist()
    owners = np.searchsorted(h.offsets, split.tests, side="right") - 1
    tests = {
        (h.user_ids[user], ids[item], moment)
        for user, item, moment in zip(
            owners.tolist(), h.items[split.tests].tolist(), h.at[split.tests].tolist(), strict=True
        )
    }
    rows = zip(events["user_id"].to_pylist(), events["product_id"].to_pylist(), at.tolist(), strict=True)
    return np.fromiter((row in tests for row in rows), bool, len(at))
