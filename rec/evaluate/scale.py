"""How time and memory of the stages grow with the catalogue: synthetic garments, ten events on each and a tenth as
many shoppers as events, through the jobs themselves to a promoted bundle, which then answers.

    SIZE.STAGE.seconds    of the job of that stage, a process of its own, as a user starts it
    SIZE.STAGE.peak_gib   of that process and all that it starts, pages that processes share counted in each (an upper
                          bound), the embedded Postgres apart
    SIZE.store.gib        the shop's files, all artifacts, the bundle and the database on disk
    SIZE.chain.STAGE.ms   median of what a stage of the chain takes of a request (rec.evaluate.chain_speed)
    STAGE.peak_growth     the peak of the largest catalogue over that of the middle one, of a tenth of its size
    STAGE.marginal        the time of a further product from the middle to the largest catalogue over that from the
                          smallest to the middle one: 1 where time is linear in rows; left out where the middle one took
                          less than GROWN_S longer than the smallest
    p50.growth_per_decade the median of a whole request on the largest catalogue over that on the middle one

Every answer of the language model is in the cache. The towers see each row once, and the ranker and the evaluation draw
a number of users that does not grow (SETTINGS): what else a shop trains is its own choice. Where the benchmark was
killed it goes on after the last finished stage; what the stage took that it was killed in is then not known and left
out.
"""

import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq

from rec import dataset, postgres
from rec.artifact import write_json
from rec.config import Config, load
from rec.data.sample.many import write_shop
from rec.enrich import cache, engine
from rec.enrich.answers import Answer
from rec.enrich.backfill import edition
from rec.enrich.prompt import Body
from rec.enrich.text import shown
from rec.enrich.workers import COLUMNS
from rec.errors import ArtifactError, RecError
from rec.evaluate import chain_speed
from rec.evaluate.benchmark import Figures, figure, refuse_others
from rec.log import bar
from rec.memory import PeakMemory
from rec.schema import PRODUCTS
from rec.vocab.std import StdVocabulary

SIZES = {"10k": 10_000, "100k": 100_000, "1m": 1_000_000}
QUICK_SIZES = {"500": 500, "2k": 2_000, "8k": 8_000}
PEAK_GOAL_GIB = 20.0
"""On a machine of 24 GiB, which the database and the system share."""
MARGINAL_GOAL = 1.2
GROWN_S = 5.0
P50_GOAL = 1.3
MAX_DETAILS, MAX_WORDS = 2, 4
"""Phrases of a text that its made-up answer sorts, and the words of one."""
SETTINGS = """
[item_tower.train]
epochs = 1
batch_size = 512

[user_tower.train]
epochs = 1
batch_size = 512

[ranker]
max_users = 20_000

[evaluate]
max_users = 5_000
"""
TAKEN = "taken.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Taken:
    """What one stage took of one catalogue."""

    seconds: float
    peak_gib: float


@dataclass(frozen=True, slots=True)
class Grown:
    """One catalogue, from its files to its answers."""

    stages: Mapping[str, Taken | None]
    """By stage, in their order; None where it is not known."""
    chain_ms: Mapping[str, float]
    """See `rec.evaluate.chain_speed.stages`."""
    store_gib: float


def measure(
    jobs: Path, folder: Path, stages: Callable[[Config], Sequence[str]], sizes: Mapping[str, int], seed: int
) -> dict[str, Grown]:
    """Run the `stages` of a recipe, each `jobs`/STAGE.py, on catalogues of these sizes in `folder`, and leave it there.

    Raises ConfigError where the jobs would work on another database or cluster than the folder's own: a promotion would
    take the place of what is served.
    """
    refuse_others("promotes bundles of made-up shops")
    return {name: _measured(jobs, folder / name, stages, rows, seed) for name, rows in sizes.items()}


def figures(grown: Mapping[str, Grown], sizes: Mapping[str, int]) -> Figures:
    """What each size took, products/s of the largest, and how time, memory and answers grow over three sizes."""
    made: Figures = {}
    for size, found in grown.items():
        known = {stage: took for stage, took in found.stages.items() if took is not None}
        for stage, took in known.items():
            made[f"{size}.{stage}.seconds"] = figure(round(took.seconds, 1), "s")
            made[f"{size}.{stage}.peak_gib"] = figure(round(took.peak_gib, 2), "GiB", goal=PEAK_GOAL_GIB)
        if len(known) == len(found.stages):
            made[f"{size}.seconds"] = figure(round(sum(took.seconds for took in known.values()), 1), "s")
        made[f"{size}.store.gib"] = figure(round(found.store_gib, 2), "GiB")
        for stage, ms in found.chain_ms.items():
            made[f"{size}.chain.{stage}.ms"] = figure(round(ms, 2), "ms")
    small, middle, large = (grown[size] for size in sorted(sizes, key=sizes.__getitem__))
    rows = sorted(sizes.values())
    for stage in large.stages:
        most, between, least = (grown.stages[stage] for grown in (large, middle, small))
        if most is None or between is None or least is None:
            continue
        made[f"{stage}.products_per_s"] = figure(round(rows[2] / most.seconds, 1), "products/s")
        made[f"{stage}.peak_growth"] = figure(round(most.peak_gib / between.peak_gib, 3), "times")
        earlier = between.seconds - least.seconds
        if earlier >= GROWN_S:
            ratio = (most.seconds - between.seconds) / (rows[2] - rows[1]) / (earlier / (rows[1] - rows[0]))
            made[f"{stage}.marginal"] = figure(round(ratio, 3), "times", goal=MARGINAL_GOAL)
    growth = large.chain_ms["total"] / middle.chain_ms["total"]
    made["p50.growth_per_decade"] = figure(round(growth, 3), "times", goal=P50_GOAL)
    return made


def _measured(jobs: Path, folder: Path, stages: Callable[[Config], Sequence[str]], rows: int, seed: int) -> Grown:
    """What a catalogue takes, with what an earlier run has measured of it in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe, note = folder / "scale.toml", folder / TAKEN
    if not recipe.exists():  # it is written last
        write_shop(folder, "scale", rows, seed, SETTINGS)
    arguments = ["--recipe", str(recipe), "--set", f"store={folder}"]
    config = load(str(recipe), [f"store={folder}"])
    taken = _noted(note, config)
    names = stages(config)
    try:
        for stage in [name for name in names if taken.get(name) is None]:
            killed = stage in taken
            if stage == "enrich":
                _answer(config)
            log.info("%d products: %s", rows, stage)
            _note(note, config, taken | {stage: None})
            took = _job(jobs / f"{stage}.py", arguments)
            taken[stage] = None if killed else took
            if killed:
                log.warning("%d products: %s had been killed, and what it takes is not known", rows, stage)
            _note(note, config, taken)
        chain_ms = chain_speed.stages(config)
    finally:
        postgres.stop_embedded(folder)
    used = sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return Grown({stage: taken[stage] for stage in names}, chain_ms, used / 2**30)


def _note(note: Path, config: Config, taken: Mapping[str, Taken | None]) -> None:
    told = {stage: None if took is None else asdict(took) for stage, took in taken.items()}
    write_json(note, {"config": config.model_dump(mode="json"), "taken": told})


def _noted(note: Path, config: Config) -> dict[str, Taken | None]:
    """What an earlier run noted. Raises ArtifactError where it was of other options."""
    if not note.exists():
        return {}
    told = json.loads(note.read_text(encoding="utf-8"))
    if told["config"] != config.model_dump(mode="json"):
        raise ArtifactError(f"{note.parent} was begun with other options: remove it and begin again")
    return {stage: None if took is None else Taken(**took) for stage, took in told["taken"].items()}


def _job(job: Path, arguments: list[str]) -> Taken:
    """Run a job to its end. Raises RecError when it fails, or asks a model."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as written:
        running = subprocess.Popen(
            [sys.executable, str(job), *arguments], stdout=subprocess.PIPE, stderr=written, text=True
        )
        with PeakMemory(running.pid).watch() as peak:
            printed, _ = running.communicate()
        seconds = time.monotonic() - started
        written.seek(0)
        if running.returncode:
            raise RecError(f"{job.name} failed, see the end of its log: {' '.join(written.read()[-1_000:].split())}")
    if json.loads(printed.splitlines()[-1]).get("live_calls"):
        raise RecError(
            f"{job.name} asked the model although every answer was given: run the benchmark on a clean store"
        )
    return Taken(seconds, peak.bytes / 2**30)


def _answer(config: Config) -> None:
    """Put an answer to every product into the cache: phrases of its text, as the configured model might give them."""
    with postgres.connect(postgres.url(config.store), autocommit=True) as connection:
        cache.prepare(connection)
        cache.put(connection, _answers(config))


def _answers(config: Config) -> Iterator[tuple[str, Answer]]:
    now = edition(engine.form(config.enrich), StdVocabulary.load(None))
    products = pq.ParquetFile(dataset.part(config.at("products"), PRODUCTS))
    total = products.metadata.num_rows
    with bar(total=total, what=f"answers to {total} garments") as done:
        for batch in products.iter_batches(columns=COLUMNS):
            for row in batch.to_pylist():
                text = shown(row, config.enrich, tame=True)
                phrases = [" ".join(run[:MAX_WORDS]) for run in text.runs if len(run) > 1][:MAX_DETAILS]
                body = Body(re={"detail": phrases} if phrases else {}).dump()
                answer = Answer(config.enrich.model, now.prompt_version, "finished", body, 300, 40)
                yield now.key(text.subject, config.enrich.model), answer
            done.update(batch.num_rows)
