"""Which products are asked: budget, sample, and what follows the tagger."""

from collections.abc import Collection

from rec.config import Enrich, Tagger
from rec.enrich.plan import Plan, choose
from rec.enrich.workers import Origin

OWN, LABELS = Origin("model", "1"), Origin("tagger", "abc")
HASHES = [f"{number * 37 % 100:02}" for number in range(60)]
"""Texts of 60 products, none twice, in an order that is not that of their hashes."""


def plan(
    max_calls: int | None = None, *, tagger: bool, imported: Collection[str] = (), there: Collection[str] = ()
) -> Plan:
    """A plan for HASHES and once more the first text; keys are `k` and the hash; product 1 is hostile."""
    hashes = [*HASHES, HASHES[0]]
    enrich = Enrich(max_calls=max_calls, tagger=Tagger(enabled=tagger, sample=20))
    askable = [row != 1 for row in range(len(hashes))]
    return choose(enrich, [OWN], hashes, [f"k{h}" for h in hashes], askable, set(imported), set(there))


def test_without_the_tagger_the_budget_goes_by_product_order() -> None:
    made = plan(3, tagger=False, there={f"k{HASHES[2]}"})
    assert (made.ask, made.cached, made.over_budget) == ([0, 3], 1, 56)
    everything = plan(tagger=False)
    assert everything.ask == [0, *range(2, 60)]
    assert (everything.over_budget, everything.rest) == (0, {})


def test_with_the_tagger_a_sample_by_hash_is_asked_and_the_rest_is_left_to_it() -> None:
    made = plan(tagger=True)
    by_hash = sorted((h, row) for row, h in enumerate(HASHES) if row != 1)
    assert made.ask == made.taught == [row for _, row in by_hash[:20]]
    assert made.rest == {f"k{h}": row for h, row in by_hash[20:]}


def test_imported_answers_are_the_sample_first() -> None:
    made = plan(tagger=True, imported=HASHES[30:45])
    assert len(made.ask) == 5
    assert sorted(made.taught) == sorted([*range(30, 45), *made.ask])
    assert not made.rest.keys() & {f"k{h}" for h in HASHES[30:45]}
    assert plan(tagger=True, imported=HASHES[30:55]).ask == []


def test_after_the_tagger_the_least_sure_are_asked_within_the_budget() -> None:
    before = plan(23, tagger=True)
    keys = list(before.rest)
    unsure = {keys[0]: 0.4, keys[1]: 0.1, keys[2]: 0.3, keys[3]: 0.2, "k of the sample": 0.0}
    after = before.then(LABELS, unsure, there=set())
    assert after.ask == [before.rest[keys[number]] for number in (1, 3, 2)]
    assert (after.over_budget, after.origins) == (1, [OWN, LABELS])


def test_what_a_killed_run_asked_counts_and_changes_nothing_else() -> None:
    first = plan(23, tagger=True)
    keys = list(first.rest)
    unsure = {key: number / 100 for number, key in enumerate(keys)}
    paid = {f"k{h}" for h in HASHES if HASHES.index(h) in first.ask} | set(keys[:2])
    again = plan(23, tagger=True, there=paid)
    assert (again.ask, again.taught, again.rest) == ([], first.taught, first.rest)
    assert again.then(LABELS, unsure, there=paid).ask == [first.rest[keys[2]]]
