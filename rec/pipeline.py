"""All stages in order, in one process, continuing after the last finished one.

Each stage decides by itself whether its output is already there (`rec.artifact.finished`), so a pipeline that was
killed at any moment is continued by starting it again and ends with the same bytes as an undisturbed run.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rec import doctor, embed, encode, publish, refresh, samples
from rec.config import Config
from rec.data import ingest
from rec.enrich import stage as enrich
from rec.evaluate import stage as evaluate
from rec.feedback import samples as feedback
from rec.memory import PeakMemory
from rec.train import fit, item, ranker, user
from rec.vocab import tensorize

log = logging.getLogger(__name__)

Run = Callable[[Config], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: its name, and its entry, which skips itself when its output is there."""

    name: str
    run: Run
    wanted: Callable[[Config], bool] = lambda config: True
    """Whether the recipe has the stage."""


STAGES = (
    Stage("ingest", ingest.run),
    Stage("enrich", enrich.run),
    Stage("tensorize", tensorize.run),
    Stage("encode", encode.run),
    Stage("pretrain", item.run),
    Stage("embed", embed.run),
    Stage("train_user", user.run),
    Stage("candidates", samples.run),
    Stage("exposures", feedback.run, wanted=lambda config: config.feedback.train),
    Stage("train_ranker", ranker.run),
    Stage("train_fit", fit.run, wanted=lambda config: config.fit.enabled),
    Stage("evaluate", evaluate.run),
    Stage("publish", publish.run),
)
"""The whole chain, in order; each stage is also a job of the same name."""


def stages(config: Config) -> list[Stage]:
    """Those that the recipe has."""
    return [stage for stage in STAGES if stage.wanted(config)]


def run(config: Config) -> dict[str, Any]:
    """Run all stages of the recipe; returns the bundle, what of prices and stock changed meanwhile, the evaluation's
    headline, seconds by stage and peak memory.

    Raises what a stage raises; the stages before it stay finished. Raises ConfigError or DatabaseError before any work
    when there is too little room or memory, a cluster or database that is named does not let this job in, or a GPU is
    asked for that there is not (`doctor.before_work`).
    """
    doctor.before_work(config)
    results: dict[str, Mapping[str, Any]] = {}
    seconds: dict[str, float] = {}
    with PeakMemory().watch() as peak:
        chosen = stages(config)
        for number, stage in enumerate(chosen, 1):
            label = f"stage {number}/{len(chosen)} {stage.name}"
            log.info("%s: start", label)
            started = time.monotonic()
            results[stage.name] = stage.run(config)
            seconds[stage.name] = round(time.monotonic() - started, 1)
            log.info("%s: %s", label, _line(results[stage.name], seconds[stage.name]))
        stock = refresh.prices_and_stock(config)  # hours may have passed since ingest read them
    return {
        "bundle": results["publish"]["bundle"],
        "stock": stock,
        "evaluation": {name: value for name, value in results["evaluate"].items() if name.startswith("ndcg@")},
        "report": str(config.at("evaluation") / "report.html"),
        "seconds": seconds,
        "skipped": [name for name, result in results.items() if result.get("skipped")],
        "peak_mib": round(peak.bytes / 2**20),
    }


def _line(result: Mapping[str, Any], seconds: float) -> str:
    counts = [
        f"{name} {result[name]:,}" for name in ("rows", "rejected", "encoded", "embedded", "kept") if name in result
    ]
    state = "was there already" if result.get("skipped") else f"done in {seconds:.1f} s"
    return ", ".join([state, *counts])
