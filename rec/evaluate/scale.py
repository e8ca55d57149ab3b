"""How time and memory of the stages grow with the catalogue: synthetic garments, ten events on each and a tenth as
many shoppers as events, through the jobs themselves to a promoted bundle, which then answers.

The figures are those of `rec.evaluate.growth`.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
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
from rec.errors import ArtifactError, ConfigError, RecError
from rec.evaluate import chain_speed
from rec.evaluate.benchmark import refuse_others
from rec.evaluate.growth import Chains, Grown, Taken
from rec.log import bar
from rec.memory import PeakMemory
from rec.models.item_inputs import TEXT_STATES
from rec.schema import PRODUCTS
from rec.vocab.std import StdVocabulary

SIZES = {"10k": 10_000, "100k": 100_000, "1m": 1_000_000}
QUICK_SIZES = {"500": 500, "2k": 2_000, "8k": 8_000}
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
RECIPE, TAKEN = "scale.toml", "taken.json"

log = logging.getLogger(__name__)


def measure(
    jobs: Path, folder: Path, stages: Callable[[Config], Sequence[str]], sizes: Mapping[str, int], seed: int
) -> dict[str, Grown]:
    """Run the `stages` of a recipe, each `jobs`/STAGE.py, on catalogues of these sizes in `folder`, and leave it there.

    Raises ConfigError where the jobs would work on another database or cluster than the folder's own: a promotion would
    take the place of what is served.
    """
    refuse_others("promotes bundles of made-up shops")
    return {name: _measured(jobs, folder / name, stages, rows, seed) for name, rows in sizes.items()}


def ask(folder: Path, sizes: Iterable[str]) -> Chains:
    """What an answer takes on the catalogues that an earlier run has left in `folder`, asked in turn as they are.

    Raises ConfigError where one of them is not there, and as `measure`.
    """
    refuse_others("asks stores of their own")
    stores = {size: folder.resolve() / size for size in sizes}
    for store in stores.values():
        if not (store / RECIPE).is_file():
            raise ConfigError(f"{store} has no {RECIPE}: name the folder where `scale --keep` left its stores")
    idle = [store for store in stores.values() if postgres.running(store) is None]
    try:
        return chain_speed.in_turn(
            {size: load(str(store / RECIPE), [f"store={store}"]) for size, store in stores.items()}
        )
    finally:
        for store in idle:
            postgres.stop_embedded(store)


def _measured(jobs: Path, folder: Path, stages: Callable[[Config], Sequence[str]], rows: int, seed: int) -> Grown:
    """What a catalogue takes, with what an earlier run has measured of it in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe, note = folder / RECIPE, folder / TAKEN
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
        chain = chain_speed.stages(config)
    finally:
        postgres.stop_embedded(folder)
    stages_taken = {stage: taken[stage] for stage in names}
    return Grown(stages_taken, chain, _gib(folder), _gib(config.at(TEXT_STATES)))


def _gib(folder: Path) -> float:
    """Of all files below a folder; 0 where there is none."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink()) / 2**30


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
