"""The 0-based rank of each user's target among all items that are candidates for this user.

Items are ordered by falling score, equal scores by ascending row, exactly as `rec.retrieval.search` does.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from rec.retrieval import forbid, users_per_block

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

NO_GROUP = -2  # differs from the -1 of items without a group


def by_vectors(users: Floats, items: Floats, targets: Ints, exclude: Sequence[Ints]) -> Ints:
    """int64[U] ranks by inner product of users float32[U, d] and items float32[N, d].

    `exclude[u]` holds the rows that are no candidates for u; the target is not among them.
    """
    ranks = np.empty(len(users), np.int64)
    table = torch.from_numpy(np.ascontiguousarray(items, np.float32))
    position = torch.arange(len(items))
    size = users_per_block(len(items))
    for start in range(0, len(users), size):
        stop = min(start + size, len(users))
        block = torch.from_numpy(np.ascontiguousarray(users[start:stop], np.float32)) @ table.T  # float32[b, N]
        forbid(block, exclude[start:stop])
        target = torch.from_numpy(targets[start:stop])[:, None]
        own = block.gather(1, target)  # float32[b, 1]
        ahead = (block > own) | ((block == own) & (position < target))
        ranks[start:stop] = ahead.sum(dim=1).numpy()
    return ranks


def by_order(order: Ints, targets: Ints, exclude: Sequence[Ints]) -> Ints:
    """int64[U] ranks when every user gets the same order int64[N] of item rows, without their excluded ones."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    ahead = [int((place[rows] < place[target]).sum()) for rows, target in zip(exclude, targets, strict=True)]
    return place[targets] - np.array(ahead, np.int64)


def by_group_then_order(order: Ints, groups: Ints, wanted: Ints, targets: Ints, exclude: Sequence[Ints]) -> Ints:
    """int64[U] ranks when items of the wanted group come first, both parts in the common order.

    `groups` int64[N] is the group of each item, `wanted` int64[U] the group each user gets first; -1 is none
    of them, which leaves the common order.
    """
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    wanted = np.where(wanted < 0, NO_GROUP, wanted)
    members = {int(group): np.sort(place[groups == group]) for group in np.unique(wanted)}
    ranks = np.empty(len(targets), np.int64)
    for user, (group, target, rows) in enumerate(zip(wanted.tolist(), targets.tolist(), exclude, strict=True)):
        inside = members[group]
        in_group = groups[rows] == group
        before = int(np.searchsorted(inside, place[target]))
        if groups[target] == group:
            ranks[user] = before - int((place[rows[in_group]] < place[target]).sum())
        else:
            first = len(inside) - int(in_group.sum())
            outside = int(place[target]) - before
            ranks[user] = first + outside - int((place[rows[~in_group]] < place[target]).sum())
    return ranks
