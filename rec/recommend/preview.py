"""A dry run of rules: the lists of shoppers before and after, what moved, and what all lists are like together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from rec.evaluate import metrics
from rec.evaluate.bootstrap import interval, resampled_means
from rec.evaluate.diversity import similarity
from rec.index.catalogue import Known
from rec.recommend.chain import Chain
from rec.recommend.request import MAX_HISTORY, Answer, Choice, Request
from rec.recommend.ruling import Ruling

RESAMPLES, SEED, DIGITS = 1_000, 0, 4
BRANDS = 10
"""Brands whose shares are told."""
TITLE = 34
"""Characters of a title in a printed list."""


@dataclass(frozen=True, slots=True)
class Shopper:
    """Whose list is made."""

    name: str
    request: Request
    target: str | None = None
    """The product of their last event, which the request does not tell; None: nothing is held out."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One shopper's list before and after."""

    shopper: Shopper
    before: Answer
    after: Answer


def held_out(chain: Chain, user_id: str, known: Known, k: int) -> Shopper:
    """A stored user just before their last event, which towers and ranker are not trained on."""
    events = [event for event in known.events if chain.shelf.known(event.product_id)]
    told = tuple(Choice(event.product_id, event.event, event.at) for event in events[:-1][-MAX_HISTORY:])
    target = events[-1].product_id if events else None
    return Shopper(user_id, Request(history=told, profile=known.profile, k=k), target)


def compare(
    chain: Chain, before: Ruling | None, after: Ruling, shoppers: Sequence[Shopper], clock: datetime
) -> list[Pair]:
    """Both lists of every shopper, at the same moment."""
    return [
        Pair(
            shopper,
            chain.answer(shopper.request, before, clock),
            chain.answer(shopper.request, after, clock),
        )
        for shopper in shoppers
    ]


def totals(chain: Chain, pairs: Sequence[Pair], k: int) -> dict[str, Any]:
    """What the lists of k are together, `before` and `after`."""
    sides = {"before": [pair.before for pair in pairs], "after": [pair.after for pair in pairs]}
    found: dict[str, Any] = {
        "lists": len(pairs),
        "lists_changed": sum(_ids(pair.before) != _ids(pair.after) for pair in pairs),
        "new_items_per_list": _mean([len(set(_ids(pair.after)) - set(_ids(pair.before))) for pair in pairs]),
        "codes": dict(_codes(pairs)),
        "left_out": dict(Counter(each.product_id for pair in pairs for each in _left_out(pair.after))),
        "similarity": {side: _similarity(chain, answers, k) for side, answers in sides.items()},
        "brands": _brands(sides),
    }
    tested = [pair for pair in pairs if pair.shopper.target is not None]
    if tested:
        found[f"ndcg@{k}"] = _ndcg(tested, k)
    return found


def text(pair: Pair) -> str:
    """Both lists side by side; after each item of the new one, where it stood before and the rules that moved it."""
    old, new = _ids(pair.before), _ids(pair.after)
    moved_by = [[] for _ in new] if pair.after.rules is None else pair.after.rules.moved_by
    lines = [f"{pair.shopper.name}"]
    for place in range(max(len(old), len(new))):
        left = _shown(pair.before, place)
        right = _shown(pair.after, place)
        note = ""
        if place < len(new):
            was = old.index(new[place]) + 1 if new[place] in old else None
            note = "new" if was is None else f"was {was}" if was != place + 1 else ""
            note = ", ".join([*([note] if note else []), *moved_by[place]])
        lines.append(f"{place + 1:>3}  {left:<{TITLE + 12}}  {right:<{TITLE + 12}}  {note}".rstrip())
    lines += [f"     pinned {each.product_id} is left out: {each.reason}" for each in _left_out(pair.after)]
    return "\n".join(lines)


def _ids(answer: Answer) -> list[str]:
    return [item["product_id"] for item in answer.items]


def _left_out(answer: Answer) -> list[Any]:
    return [] if answer.rules is None else list(answer.rules.left_out)


def _shown(answer: Answer, place: int) -> str:
    if place >= len(answer.items):
        return ""
    item = answer.items[place]
    return f"{item['product_id']} {item['title'][:TITLE]}"


def _codes(pairs: Sequence[Pair]) -> Counter[str]:
    """Items of the new lists by the reason code that a rule gave them."""
    rules = ("pinned", "boosted", "buried", "diversified", "over_cap")
    return Counter(code for pair in pairs for item in pair.after.items for code in item["reasons"] if code in rules)


def _similarity(chain: Chain, answers: Sequence[Answer], k: int) -> float | None:
    """Mean cosine of two products of a list; None where no list has two."""
    top = np.full((len(answers), k), -1, np.int64)
    for place, answer in enumerate(answers):
        top[place, : len(answer.items)] = chain.shelf.rows(_ids(answer))
    alike = similarity(top, chain.vectors)
    return _mean(alike[np.isfinite(alike)])


def _brands(sides: dict[str, list[Answer]]) -> dict[str, dict[str, float]]:
    """Shares of all places, of the brands that have most of either side."""
    counts = {
        side: Counter(item["brand"] for answer in answers for item in answer.items if item["brand"])
        for side, answers in sides.items()
    }
    places = {side: sum(len(answer.items) for answer in answers) for side, answers in sides.items()}
    all_brands = counts["before"] + counts["after"]
    most = sorted(all_brands, key=lambda brand: (-all_brands[brand], brand))[:BRANDS]
    return {
        brand: {side: round(counts[side][brand] / max(places[side], 1), DIGITS) for side in sides} for brand in most
    }


def _ndcg(pairs: Sequence[Pair], k: int) -> dict[str, Any]:
    """NDCG of the held-out products, and the paired difference with its 95 % interval over shoppers."""
    values = {}
    for side in ("before", "after"):
        lists = [_ids(getattr(pair, side)) for pair in pairs]
        targets = [pair.shopper.target for pair in pairs]
        ranks = [list_.index(target) if target in list_ else -1 for list_, target in zip(lists, targets, strict=True)]
        values[side] = metrics.ndcg(np.array(ranks, np.int64), k)
    difference = values["after"] - values["before"]
    bounds = interval(resampled_means(difference[:, None], RESAMPLES, SEED))[:, 0]
    return {
        "shoppers": len(pairs),
        **{side: _mean(of) for side, of in values.items()},
        "difference": _mean(difference),
        "ci95": [round(float(bound), DIGITS) for bound in bounds],
    }


def _mean(values: Any) -> float | None:
    return round(float(np.mean(values)), DIGITS) if len(values) else None
