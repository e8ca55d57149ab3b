"""How long the chain of a recipe's active bundle takes in this process, by stage: no server and no HTTP around it."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from rec import bundles, postgres
from rec.config import Config
from rec.evaluate.serving_speed import requests
from rec.index.connections import Connections
from rec.recommend.chain import Chain
from rec.recommend.request import Choice, Request

COUNT, WARM_UP = 400, 50


def stages(config: Config) -> dict[str, float]:
    """Median milliseconds of each stage and of the `total`, on one thread, and the total's 99th percentile as `p99`.

    Requests are those of `rec.evaluate.serving_speed`, one after the other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    connections = Connections(postgres.url(config.store), size=1)
    try:
        chain = Chain(bundles.active_bundle(config), connections)
        answers = [chain.recommend(request) for request in _asked(requests(config)[: COUNT + WARM_UP])]
    finally:
        connections.close()
        torch.set_num_threads(threads)
    taken: list[Mapping[str, float]] = [answer.milliseconds for answer in answers[WARM_UP:]]
    medians = {stage: float(np.median([times[stage] for times in taken])) for stage in taken[0]}
    return medians | {"p99": float(np.percentile([times["total"] for times in taken], 99))}


def _asked(bodies: Iterable[Mapping[str, Any]]) -> list[Request]:
    return [
        Request(user_id=body.get("user_id"), history=tuple(map(Choice, body.get("history", ()))), k=body["k"])
        for body in bodies
    ]
