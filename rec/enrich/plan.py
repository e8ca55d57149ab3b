"""Which products are asked, from what is known of all of them: a pure function of hashes and budget."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from rec.config import Enrich
from rec.enrich.workers import Origin


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run has to do."""

    origins: list[Origin]
    """Where answers come from, the preferred first: imports, the engine's own, the tagger."""
    ask: list[int]
    """Rows of products to ask, identical texts once."""
    keys: list[str]
    """Keys of the model's own answers to all texts, each once, and of those older ones that are partly good."""
    cached: int
    """Products whose answer was in the cache."""
    over_budget: int
    """Products left unasked by `max_calls`; with the tagger, texts that it is unsure of."""
    taught: list[int]
    """Rows of products whose answers teach the tagger."""
    rest: dict[str, int]
    """Key → first row of each text that has no imported answer and was not chosen to be asked."""
    left: int
    """Calls of `max_calls` that are left."""
    unasked: frozenset[str] = frozenset()
    """Ids of products that no model may be asked about: their text is hostile, or they have none."""

    def then(self, labels: Origin, unsure: Mapping[str, float], there: Set[str]) -> "Plan":
        """What is to do after the tagger: `unsure` is key → confidence, `there` are the keys of these with an answer.

        The least sure are asked first; those with an answer count, for an earlier run of this work may have asked.
        """
        worst = sorted((key for key in unsure if key in self.rest), key=lambda key: (unsure[key], key))
        ask = [self.rest[key] for key in worst[: self.left] if key not in there]
        over = sum(key not in there for key in worst[self.left :])
        return replace(self, origins=[*self.origins, labels], ask=ask, over_budget=over)


def choose(
    enrich: Enrich,
    origins: list[Origin],
    hashes: Sequence[str],
    keys: Sequence[str],
    askable: Sequence[bool],
    imported: Set[str],
    there: Set[str],
) -> Plan:
    """The plan for products in product order.

    `hashes`: of their texts; `keys`: of the model's own answers; `askable`: whether a model may be asked; `imported`:
    hashes of texts with an imported answer; `there`: keys whose answer is in the cache.
    """
    most = len(hashes) if enrich.max_calls is None else enrich.max_calls
    order: Sequence[int] = range(len(hashes))
    budget = most
    if enrich.tagger.enabled:
        order = sorted(order, key=hashes.__getitem__)  # a random sample, and the same one in every run
        budget = min(most, max(0, enrich.tagger.sample - len(imported)))
    cached = over_budget = 0
    allowed: set[str] = set()
    rest: dict[str, int] = {}
    taught: list[int] = []
    ask: list[int] = []
    for row in order:
        content_hash, key = hashes[row], keys[row]
        if content_hash in imported or key in there:
            cached += 1
        if not askable[row] or key in allowed:
            continue
        if content_hash in imported:
            taught.append(row)
        elif len(allowed) >= budget:
            over_budget += key not in there
            rest.setdefault(key, row)
        else:
            allowed.add(key)
            taught.append(row)
            if key not in there:
                ask.append(row)
    return Plan(
        origins,
        ask,
        sorted(set(keys)),
        cached,
        over_budget,
        taught[: enrich.tagger.sample] if enrich.tagger.enabled else [],
        rest,
        most - len(allowed),
    )
