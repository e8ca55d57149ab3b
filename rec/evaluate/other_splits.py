"""The user tower by other splits than leave-one-out, each trained in a store without the tests, beside popular lists.

cold-users   a tenth of the users, of whom context and profile are known and no event
temporal     what users chose next after the moment that has LAST of all events behind it
"""

import logging

import numpy as np

from rec import embed, histories, samples
from rec.config import Config
from rec.evaluate import metrics, ranking, splits
from rec.evaluate.benchmark import Figures
from rec.evaluate.paired import compared
from rec.evaluate.splits import Holdout
from rec.histories import Histories
from rec.models import user_tower
from rec.models.user_vectors import UserVectors
from rec.retrieval import popular, popularity
from rec.train import item, user

SHARE, LAST = 0.1, 0.1
K = 10

log = logging.getLogger(__name__)


def measure(config: Config) -> Figures:
    """NDCG@10 and HR@10 of the tower and of the most popular products of its training events, by each split."""
    h = histories.load(config.root)
    prefix = config.name.removesuffix("-quick")
    figures: Figures = {}
    for name, split in holdouts(h, config.seed).items():
        log.info("split %s", name)
        figures |= _of(f"{prefix}.{name}", config, name, h, split)
    return figures


def holdouts(h: Histories, seed: int) -> dict[str, Holdout]:
    """The splits that the data allow: cold users where anything else is known of users, temporal where times differ."""
    made = {}
    if any(h.contexts) or h.profile_names:
        made["cold-users"] = splits.cold_users(h, SHARE, seed)
    firsts = h.at[h.offsets[:-1][np.diff(h.offsets) > 0]]
    cut = int(np.quantile(h.at, 1 - LAST, method="higher"))
    if h.at.min() < cut and len(np.unique(firsts)) > 1:  # were all first events at one moment, times would be an order
        made["temporal"] = splits.temporal(h, cut)
    return made


def _of(prefix: str, config: Config, name: str, h: Histories, split: Holdout) -> Figures:
    options = config.user_tower
    cases = splits.asked(
        h,
        split,
        samples.created_us(config.root),
        history=options.history,
        exclude_seen=options.exclude_seen,
        max_users=config.evaluate.max_users,
        seed=config.seed,
    )
    trained = splits.write(config, name, h, split)
    if config.item_tower.reads_choices:
        item.run(trained)
        embed.run(trained)
    user.run(trained)
    tower = user_tower.load(trained.at(user_tower.KIND))
    vectors = UserVectors(tower, config.text)(cases.states)
    order = popular(popularity(h.items[split.training], h.num_items))
    ranks = {
        "tower": ranking.by_vectors(vectors, tower.item_vectors.numpy(), cases.targets, cases.exclude),
        "popular": ranking.by_order(order, cases.targets, cases.exclude),
    }
    figures: Figures = {}
    for short, metric in (("hr10", metrics.recall), ("n10", metrics.ndcg)):
        values = np.stack([metric(found, K) for found in ranks.values()], axis=1)
        every = np.arange(len(cases))
        figures |= compared(
            f"{prefix}.{{}}.{short}",
            list(ranks),
            values,
            every,
            config.evaluate.bootstrap,
            config.seed,
            ours="tower",
        )
    return figures
