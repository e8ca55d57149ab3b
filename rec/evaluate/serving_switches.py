"""What Ray Serve's switches give the graph with a process for each stage (`shop.py start --apart --proxy serve`).

switch.NAME.p50.over.base    median time of an answer for one client, over that without the switch: below one is faster
switch.NAME.per_s.over.base  answers a second for MANY clients at once, over those without the switch
switch.again.*               a second start without any: as far as it is from one, figures are noise
failed                       answers other than 200 of all

Each start is asked in turn with `serve.fused`, by short stretches, as a machine is not always as fast: what is set in
relation are medians of the relation to fused. The shop that most run, with all stages in one process, sends nothing
through a handle, so that of these only the loop of the ingress's code could change it (`code_apart`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rec import processes
from rec.config import Config
from rec.evaluate import load, serving_speed
from rec.evaluate.benchmark import Figures, figure

SWITCHES: Mapping[str, Mapping[str, str]] = {
    "again": {},
    "grpc": {"RAY_SERVE_USE_GRPC_BY_DEFAULT": "1"},
    "router_on_loop": {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"},
    "code_apart": {processes.LOOP_APART: "1"},
    "throughput": {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"},
}
"""Environment of the shop by name. `throughput` is grpc, router_on_loop, logs by blocks, and (not here, where the
proxy's port is asked) replicas that listen themselves."""
MANY = 8
STRETCHES, QUICK_STRETCHES = 20, 3
STRETCH_S = 2.0


def measure(config: Config, shop: Path, arguments: Sequence[str], *, quick: bool) -> Figures:
    """All figures of a recipe whose bundle is promoted; `shop` is jobs/shop.py, `arguments` name the recipe to it.

    Raises RecError where a server does not start.
    """
    bodies = serving_speed.requests(config)
    stretches = QUICK_STRETCHES if quick else STRETCHES
    found, failures = {}, 0
    for name, environment in {"base": {}, **SWITCHES}.items():
        with (
            serving_speed.running(shop, arguments, "--apart", "--proxy", "serve", environment=environment) as url,
            serving_speed.fused(config, shop.parent.parent) as beside,
        ):
            found[name], failed = _over_fused(url, beside, bodies, stretches)
        failures += failed
    figures = {}
    for name in SWITCHES:
        for what, value in found[name].items():
            figures[f"switch.{name}.{what}.over.base"] = figure(round(value / found["base"][what], 3), "times")
    figures["failed"] = figure(failures, "answers", goal=0)
    return {f"{config.name}.serving.{name}": value for name, value in figures.items()}


def _over_fused(
    url: str, beside: str, bodies: Sequence[dict[str, Any]], stretches: int
) -> tuple[dict[str, float], int]:
    """Medians of time and rate at `url` over those at `beside`, and how many answers of both failed."""
    ratios: dict[str, list[float]] = {"p50": [], "per_s": []}
    failures = 0
    for each in (url, beside):
        load.closed(each, bodies, clients=2, seconds=STRETCH_S)  # warm: not counted
    for stretch in range(stretches):
        order = (url, beside) if stretch % 2 else (beside, url)
        one = {each: load.closed(each, bodies, clients=1, seconds=STRETCH_S) for each in order}
        many = {each: load.closed(each, bodies, clients=MANY, seconds=STRETCH_S) for each in order}
        ratios["p50"].append(one[url].percentile(50) / one[beside].percentile(50))
        ratios["per_s"].append(many[url].per_second / many[beside].per_second)
        for answers in (*one.values(), *many.values()):
            failures += sum(answers.statuses.values()) - len(answers.milliseconds)
    return {what: float(np.median(values)) for what, values in ratios.items()}, failures
