"""How long the chain of a recipe's active bundle takes in this process, by stage: no server and no HTTP around it."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from rec import bundles, postgres
from rec.config import Config
from rec.evaluate.growth import Spent
from rec.evaluate.serving_speed import requests
from rec.index.connections import Connections
from rec.recommend.chain import Chain
from rec.recommend.request import Choice, Request

COUNT, WARM_UP = 1_000, 50
ROUNDS = 5
"""Parts of COUNT, between which the other chains are asked."""


def stages(config: Config) -> dict[str, Spent]:
    """What each stage and the `total` take of a request, on one thread, with the index read ahead.

    Requests are those of `rec.evaluate.serving_speed`, one after the other.
    """
    (found,) = in_turn({config.name: config}).values()
    return found


def in_turn(configs: Mapping[str, Config]) -> dict[str, dict[str, Spent]]:
    """`stages` of several, asked in turn, as a machine is not always as fast. Raises what opening a bundle raises."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ExitStack() as opened:
            chains = {name: _opened(config, opened) for name, config in configs.items()}
            asked = {name: _asked(requests(config)[: COUNT + WARM_UP]) for name, config in configs.items()}
            for name, chain in chains.items():
                _times(chain, asked[name][:WARM_UP])
            taken: dict[str, list[Mapping[str, float]]] = {name: [] for name in configs}
            for turn in range(ROUNDS):
                for name, chain in chains.items():
                    taken[name] += _times(chain, asked[name][WARM_UP + turn :: ROUNDS])
    finally:
        torch.set_num_threads(threads)
    return {name: _spent(times) for name, times in taken.items()}


def _opened(config: Config, opened: ExitStack) -> Chain:
    connections = Connections(postgres.url(config.store, create=False), size=1)
    opened.callback(connections.close)
    chain = Chain(bundles.active_bundle(config), connections)
    chain.read_ahead()
    return chain


def _times(chain: Chain, asked: Iterable[Request]) -> list[Mapping[str, float]]:
    return [chain.recommend(request).milliseconds for request in asked]


def _spent(times: list[Mapping[str, float]]) -> dict[str, Spent]:
    by_stage = {stage: np.percentile([each[stage] for each in times], (50, 99)) for stage in times[0]}
    return {stage: Spent(float(p50), float(p99)) for stage, (p50, p99) in by_stage.items()}


def _asked(bodies: Iterable[Mapping[str, Any]]) -> list[Request]:
    return [
        Request(user_id=body.get("user_id"), history=tuple(map(Choice, body.get("history", ()))), k=body["k"])
        for body in bodies
    ]
