"""The item towers that `rec.evaluate.cold_items` compares, in the order in which they are trained.

    full              the recipe's
    std, re, title    of one input, which all numbers say
    simcse            without the behaviour stage, where the recipe has one
    mixed             without numbers of STD alone (`item_tower.std_width`), where the recipe has them
    no-llm-re, no-re  without the RE of a language model's answers, and without any RE
    apart             without what keys share
    choices           the recipe's with the other start (`item_tower.start`); `texts` where the recipe's is `choices`

The first six make up the table, so a run that is cut short has that.
"""

from typing import Any

from rec.config import ItemTower

FULL, TITLE = "full", "title"
MIXED = "mixed"
NO_LLM_RE, NO_RE, APART = "no-llm-re", "no-re", "apart"
CHOICES, TEXTS = "choices", "texts"
TABLE = (FULL, "std", "re", TITLE, "simcse", MIXED)
LIFTS = {NO_LLM_RE: "re", NO_RE: "re.all"}
"""Towers that lack RE, and the name of what the recipe's has more."""
STARTS = (CHOICES, TEXTS)


def arms(options: ItemTower, *, lift: bool) -> dict[str, ItemTower]:
    """Options of the towers by name; `lift`: those that tell what answers give, too."""

    def other(**changed: Any) -> ItemTower:
        tower = options.model_copy(update=changed)
        if len(tower.inputs) == 1:
            tower = tower.model_copy(update={"std_width": 0})
        # without titles there is one start; that it has one name keeps what was learned when the recipe's changes
        return tower if TITLE in tower.inputs else tower.model_copy(update={"start": TEXTS})

    towers = {FULL: options, **{name: other(inputs=[name]) for name in ("std", "re", TITLE)}}
    if options.behaviour.epochs:
        towers["simcse"] = other(behaviour=options.behaviour.model_copy(update={"epochs": 0}))
    if options.std_width:
        towers[MIXED] = other(std_width=0)
    if lift and "re" in options.inputs:
        towers[NO_LLM_RE] = other()
        if len(options.inputs) > 1:
            towers[NO_RE] = other(inputs=[name for name in options.inputs if name != "re"])
    if lift and {"std", "re"} <= {*options.inputs}:
        towers[APART] = other(shared_keys=False)
    if TITLE in options.inputs:
        start = TEXTS if options.start == CHOICES else CHOICES
        towers[start] = other(start=start)
    return towers
