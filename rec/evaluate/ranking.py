"""The 0-based rank of each user's target among all items that are candidates for this user.

Items are ordered by falling score, equal scores by ascending row, exactly as `rec.retrieval.search` does.

The ranking is always full: metrics over a sample of the items are not those over all, and may order systems otherwise
(Krichene and Rendle, "On Sampled Metrics for Item Recommendation", KDD 2020). So each function raises ValueError unless
it is given every item of the catalogue that `exclude` is about, and when a target is no candidate itself.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from rec.retrieval import Excluded, forbid, users_per_block

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

NO_GROUP = -2  # differs from the -1 of items without a group


def by_vectors(users: Floats, items: Floats, targets: Ints, exclude: Excluded) -> Ints:
    """int64[U] ranks by inner product of users float32[U, d] and items float32[N, d].

    `exclude[u]` holds the rows that are no candidates for u. Computed in blocks of users, on a GPU where there is one.
    """
    _check_full(len(items), targets, exclude)
    ranks = np.empty(len(users), np.int64)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = torch.from_numpy(np.ascontiguousarray(items, np.float32)).to(device)
    position = torch.arange(len(items), device=device)
    size = users_per_block(len(items))
    for start in range(0, len(users), size):
        stop = min(start + size, len(users))
        asked = torch.from_numpy(np.ascontiguousarray(users[start:stop], np.float32)).to(device)
        block = asked @ table.T  # float32[b, N]
        forbid(block, exclude[start:stop])
        target = torch.from_numpy(targets[start:stop]).to(device)[:, None]
        own = block.gather(1, target)  # float32[b, 1]
        if not bool(torch.isfinite(own).all()):
            user = start + int(torch.isfinite(own).flatten().int().argmin())
            if not (np.isfinite(users[user]).all() and np.isfinite(items[targets[user]]).all()):
                raise ValueError(f"the vector of user {user} or of target {int(targets[user])} is not finite")
            raise _no_candidate(int(targets[user]), user)
        ahead = (block > own) | ((block == own) & (position < target))
        ranks[start:stop] = ahead.sum(dim=1).cpu().numpy()
    return ranks


def by_order(order: Ints, targets: Ints, exclude: Excluded) -> Ints:
    """int64[U] ranks when every user gets the same order int64[N] of item rows, without their excluded ones."""
    place = _places(order, targets, exclude)
    ranks = place[targets]
    for user, (rows, target) in enumerate(zip(exclude, targets.tolist(), strict=True)):
        if target in rows:
            raise _no_candidate(target, user)
        ranks[user] -= (place[rows] < place[target]).sum()
    return ranks


def by_group_then_order(order: Ints, groups: Ints, wanted: Ints, targets: Ints, exclude: Excluded) -> Ints:
    """int64[U] ranks when items of the wanted group come first, both parts in the common order.

    `groups` int64[N] is the group of each item, `wanted` int64[U] the group each user gets first; -1 is none
    of them, which leaves the common order.
    """
    place = _places(order, targets, exclude)
    wanted = np.where(wanted < 0, NO_GROUP, wanted)
    members = {int(group): np.sort(place[groups == group]) for group in np.unique(wanted)}
    ranks = np.empty(len(targets), np.int64)
    for user, (group, target, rows) in enumerate(zip(wanted.tolist(), targets.tolist(), exclude, strict=True)):
        if target in rows:
            raise _no_candidate(target, user)
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


def _places(order: Ints, targets: Ints, exclude: Excluded) -> Ints:
    """int64[N] the place of each item in the order of all."""
    _check_full(len(order), targets, exclude)
    place = np.full(len(order), -1, np.int64)
    place[order] = np.arange(len(order))
    if (place < 0).any():
        raise ValueError(f"item {int(place.argmin())} is not in the order: every item is ranked, once")
    return place


def _check_full(num_items: int, targets: Ints, exclude: Excluded) -> None:
    if num_items != exclude.num_items:
        raise ValueError(
            f"{num_items} items are to be ranked, but the catalogue has {exclude.num_items}: there are no metrics over "
            "a sample here, rank every item"
        )
    if len(targets) and not 0 <= targets.min() <= targets.max() < num_items:
        outside = int(targets[(targets < 0) | (targets >= num_items)][0])
        raise ValueError(f"target {outside} is no row of the {num_items} items: rank the catalogue that it is from")


def _no_candidate(target: int, user: int) -> ValueError:
    return ValueError(
        f"target {target} of user {user} is excluded for this user and has no rank: leave the user out, as "
        "rec.evaluate.cases does"
    )
