#!/usr/bin/env python
"""Run one benchmark; the last printed line is its JSON object, --html writes the page with plots.

retrieval    retrieval and final list of a recipe (hm unless told otherwise) beside the controls; with --towers the user
             tower alone, with several seeds, beside SASRec and towers without delta, context or profile, and where
             users, products or the latest tenth of time are hidden from all training
extraction   what the enrichment engine, and the tagger that is trained here, read out of OA-Mine titles, and which
             category, pattern and colour they conclude from H&M descriptions; which share of the AI Hub garments'
             attribute values the vocabulary knows, and how near mapped rows of new RE tokens are to trained ones on
             H&M articles; their files lie in source.folder
enrichment   what the enrichment stage adds to the bare engine, how fast it is where every answer is cached, what it
             asks again after SIGKILLs, what hostile texts get out of it, and how wrong --dry-run is; in temporary
             stores, with H&M articles where they lie in source.folder
item-tower   cold items: products hidden from all training, of the recipe and of Beauty (recipe beauty), by the recipe's
             tower, by towers of one input, raw text and random vectors; what RE, RE of answers alone and shared keys
             add where a language model answered; marketing phrases in titles; the tower's other start; Ray Train over
             a bare loop, the exports over the bare models (not with --no-speed, nothing else with --speed-only); a run
             that was killed goes on after its last tower, and its figures until then are in cold_items/figures.json of
             the recipe's folder, those of --speed-only in speed.json
rankers      both rerankers on what retrieval found, with several seeds: what the final list gains, what each group of
             fields and the weight transfer give, scoring and training beside deepctr-torch's own code
serving      how fast the shop answers a recipe's shoppers, by one client and by many, and the same chain in one process
             beside it; with --switches what each of Ray Serve's own gives the graph; with --profile where the time
             goes, by process and by layer of the code. With --html NAME.html the stacks are in NAME.MODE.stacks.txt
gpu          what a GPU gives, also over this machine's processors: training of the item tower with a whole DistilBERT
             under it, of the user tower, and of DLRM with tables of Criteo's shape; weights and inputs are drawn
scale        time and memory of every stage on 10,000, 100,000 and a million synthetic products with ten events each,
             what the chain then takes for an answer, and what a hundred million would take of 32 such machines,
             computed; enrichment from the cache; in stores of their own in `store`, which are removed at the end
             unless --keep says otherwise, and where it goes on when it was killed. With --stores FOLDER only what an
             answer takes on those that lie there, by stage, is asked again
index        the pgvector index on a million generated vectors and on those of the recipe, where it has them: loading,
             size, recall by filter and speed, beside the server's own COPY, exact search, and faiss and
             hnswlib (where they are installed), in a database of its own; and what final lists lose to its recall
drills       the shop under load, as a graph and in one process, while each of its parts is killed or its Postgres
             frozen, while its bundles change, and for --minutes at a steady rate: which answers fail, how long it takes
             to recover, and whether memory or times grow
fuzz         what the shop answers to a hundred thousand wrong requests, drawn by Schemathesis (`pip install
             schemathesis`) and hypothesis: no answer of 500 or above, none missing, no replica lost; in a database of
             its own. What fails is in `failures`, and with --html NAME.html in NAME.failures.jsonl, to be sent again
nodes        the pipeline on three Ray nodes of this machine, of which one is killed in each of enrichment and training;
             the graph under load when a node with replicas dies; and Ray's autoscaler, which brings nodes for a
             training and takes them away after it
"""

import argparse
import json
import logging
import shutil
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

from rec import artifact, bundle, bundles, haproxy, pipeline, publish
from rec.cli import main, parser
from rec.config import Config, load
from rec.data import amazon
from rec.enrich import oamine
from rec.errors import ArtifactError, ConfigError
from rec.evaluate import (
    benchmark,
    closed,
    cold_and_warm,
    cold_items,
    coverage,
    drills,
    enrichment,
    fuzz,
    gpu_speed,
    growth,
    index_speed,
    nodes,
    other_splits,
    ranker_study,
    scale,
    serving_profile,
    serving_speed,
    serving_switches,
    tagging,
    towers,
    user_speed,
    zero_shot,
)
from rec.models import text_encoder, user_tower
from rec.vocab.std import StdVocabulary

QUICK_PRODUCTS = 20_000
QUICK_USERS = 3_000
PREPARING = {"rankers", "serving", "drills", "fuzz", "retrieval"}
"""Benchmarks that make what is missing of the recipe's own artifacts."""

log = logging.getLogger(__name__)


def prepare(config: Config, last: str = "evaluate") -> None:
    """Run every stage up to `last`; what is finished is not done again."""
    stages = pipeline.stages(config)
    names = [stage.name for stage in stages]
    for stage in stages[: names.index(last) + 1]:
        log.info("%s", stage.name)
        stage.run(config)


def shortened(config: Config) -> Config:
    """The same recipe on less: fewer products, users and epochs, in artifacts of its own."""
    less = config.model_dump()
    less["name"] = f"{config.name}-quick"
    less["source"]["limit"] = min(config.source.limit or QUICK_PRODUCTS, QUICK_PRODUCTS)
    less["evaluate"]["max_users"] = min(config.evaluate.max_users or QUICK_USERS, QUICK_USERS)
    less["ranker"]["max_users"] = min(config.ranker.max_users or QUICK_USERS, QUICK_USERS)
    for part, epochs in (("item_tower", 1), ("user_tower", 5), ("ranker", 2)):
        less[part]["train"]["epochs"] = min(less[part]["train"]["epochs"], epochs)
    return Config.model_validate(less)


def another(config: Config) -> str:
    """Id of a bundle of the recipe unlike the active one; where there is none, one whose ranker trains less is made."""
    active = bundles.active_bundle(config)
    for name in bundle.names(config.store):
        with suppress(ArtifactError):  # of another version
            found = bundle.read(config.store, name)
            if found.recipe == config.name and found.evaluation.ndcg10 != active.evaluation.ndcg10:
                return name
    train = config.ranker.train.model_copy(update={"epochs": max(1, config.ranker.train.epochs // 2)})
    less = config.model_copy(update={"ranker": config.ranker.model_copy(update={"train": train, "patience": 0})})
    try:
        prepare(less, "evaluate")
        return publish.run(less, force=True)["bundle"]
    finally:
        prepare(config, "evaluate")
        publish.run(config, force=True)


def cold(options: argparse.Namespace) -> benchmark.Figures:
    """Cold items of the recipe and, unless told otherwise, of Beauty, each with the options of the command line.

    Raises Busy before any work where another job writes to the artifacts of one of them.
    """
    measured: dict[str, Config] = {}
    for recipe in dict.fromkeys((options.recipe, *([] if options.alone or options.speed_only else ["beauty"]))):
        chosen = load(recipe, options.overrides)
        if recipe != options.recipe and not amazon.lies_in(Path(chosen.source.folder)):
            log.warning("Beauty's files lie not in source.folder %r: cold.beauty is left out", chosen.source.folder)
            continue
        if options.quick:
            chosen = shortened(chosen).model_copy(update={"item_tower": chosen.item_tower})
        measured[recipe] = chosen
    figures: benchmark.Figures = {}
    with ExitStack() as locks:
        for root in dict.fromkeys(chosen.root for chosen in measured.values()):
            locks.enter_context(artifact.alone(root))
        for recipe, chosen in measured.items():
            prepare(chosen, "tensorize" if options.quick else "encode")
            figures |= cold_items.measure(
                chosen,
                quick=options.quick,
                cold_too=not options.speed_only,
                speed=recipe == options.recipe and not options.no_speed,
            )
    return figures


def covered(config: Config) -> tuple[benchmark.Figures, dict[str, Any]]:
    """STD coverage of the AI Hub garments, and the values not covered; nothing without their file."""
    garments = coverage.read(Path(config.source.folder))
    if garments is None:
        log.warning("%s lies not in source.folder %r: std.coverage is left out", coverage.FILE, config.source.folder)
        return {}, {}
    found = coverage.measure(garments, StdVocabulary.load())
    return coverage.figures(found), {"unmapped": coverage.unmapped(found)}


def new_tokens(config: Config) -> benchmark.Figures:
    """Zero-shot tokens of H&M articles; nothing without their files."""
    folder = Path(config.source.folder)
    articles = zero_shot.read(folder, StdVocabulary.load(), zero_shot.COUNT, config.seed)
    if articles is None:
        log.warning(
            "%s and %s lie not in source.folder %r: zeroshot is left out",
            zero_shot.ARTICLES,
            zero_shot.ANSWERS,
            config.source.folder,
        )
        return {}
    return zero_shot.figures(articles, text_encoder.load(config.text), config)


def concluded(config: Config, *, quick: bool) -> benchmark.Figures:
    """Closed-vocabulary accuracy on H&M descriptions; nothing without their file."""
    std = StdVocabulary.load()
    found = closed.read(Path(config.source.folder), std)
    if found is None:
        log.warning("%s lies not in source.folder %r: hm is left out", zero_shot.ARTICLES, config.source.folder)
        return {}
    return closed.figures(*found, std, config, closed.QUICK if quick else closed.FULL)


def tagged(config: Config, options: argparse.Namespace, llm_seconds_per_title: float) -> benchmark.Figures:
    """The tagger, trained here, on the same titles' split as the engine."""
    seconds = tagging.QUICK_SECONDS if options.quick else tagging.SECONDS
    path = Path(config.source.folder) / oamine.FILE
    found = tagging.measure(path, config.text, test=options.test_split, seconds=seconds)
    return tagging.figures(found, llm_seconds_per_title, resamples=config.evaluate.bootstrap, seed=config.seed)


def evaluated(config: Config) -> benchmark.Figures:
    """What the pipeline's evaluation found, and what the user tower costs."""
    tower = user_tower.load(config.at(user_tower.KIND))
    return benchmark.retrieval(config) | user_speed.measure(tower, config.evaluate.bootstrap, config.seed)


def _names(config: Config) -> list[str]:
    """The stages of a recipe."""
    return [stage.name for stage in pipeline.stages(config)]


def _scale(config: Config, options: argparse.Namespace) -> Path:
    """Where `scale` has its stores until its figures are told."""
    return Path(config.store).resolve() / f"scale-{'quick' if options.quick else 'full'}-{config.seed}"


def _named(options: argparse.Namespace, config: Config) -> list[str]:
    """Arguments by which another job has the store and the recipe's name of `config`."""
    told = [argument for setting in options.overrides for argument in ("--set", setting)]
    return ["--recipe", options.recipe, *told, "--set", f"name={config.name}"]


def _rates(options: argparse.Namespace) -> dict[str, float]:
    """Requests a second of each way in which the shop is drilled."""
    rates = {"apart": options.apart_rate or options.rate / 2, "whole": options.rate}
    wanted = [way for way in rates if getattr(options, way)] or list(rates)
    return {way: rates[way] for way in wanted}


def _chosen(config: Config, options: argparse.Namespace) -> Config:
    """The recipe whose artifacts a benchmark has made where they are missing."""
    return shortened(config) if options.quick and options.name != "fuzz" else config


def run(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    """Take the figures of one benchmark; `retrieval` runs the pipeline up to the evaluation where that is not done.

    Raises Busy before any work where another job writes to artifacts that are to be made.
    """
    page = Path(options.html) if options.html else None
    if page is not None and not page.resolve().parent.is_dir():
        raise ConfigError(
            f"--html {options.html!r}: the folder {page.resolve().parent} does not exist: create it first"
        )
    if options.seeds < 1:
        raise ConfigError(f"--seeds {options.seeds}: everything is trained at least once")
    if options.control_seeds < 0:
        raise ConfigError(f"--control-seeds {options.control_seeds}: there are none below zero")
    for name in ("minutes", "rate", "apart_rate"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} {value:g}: it has to be above zero")
    alone = artifact.alone(_chosen(config, options).root) if options.name in PREPARING else nullcontext()
    with alone:
        return _measured(config, options, page)


def _measured(config: Config, options: argparse.Namespace, page: Path | None) -> dict[str, Any]:
    lists: dict[str, Any] = {}
    stacks: dict[str, str] = {}
    if options.name == "extraction":
        figures, lists = covered(config)
        figures |= new_tokens(config)
        figures |= concluded(config, quick=options.quick)
        figures |= benchmark.extraction(config, quick=options.quick, test=options.test_split)
        figures |= tagged(config, options, figures["oamine.llm.seconds_per_title"]["value"])
    elif options.name == "item-tower":
        figures = cold(options)
    elif options.name == "rankers":
        chosen = _chosen(config, options)
        prepare(chosen, "candidates")
        figures = ranker_study.measure(chosen, range(options.seeds), groups=not options.quick)
    elif options.name == "serving":
        chosen = _chosen(config, options)
        prepare(chosen, "publish")
        shop, named = Path(__file__).with_name("shop.py"), _named(options, chosen)
        if options.profile:
            figures, lists["profile"], stacks = serving_profile.measure(chosen, shop, named, quick=options.quick)
        else:
            measure = serving_switches.measure if options.switches else serving_speed.measure
            figures = measure(chosen, shop, named, quick=options.quick)
    elif options.name == "gpu":
        figures = gpu_speed.measure(gpu_speed.FULL, gpu_speed.ON_CPU, seed=config.seed, quick=options.quick)
    elif options.name == "scale":
        sizes = scale.QUICK_SIZES if options.quick else scale.SIZES
        if options.stores:
            figures = growth.answers(scale.ask(Path(options.stores), sizes), sizes)
        else:
            grown = scale.measure(Path(__file__).parent, _scale(config, options), _names, sizes, config.seed)
            figures = growth.figures(grown, sizes)
    elif options.name == "nodes":
        figures = nodes.measure(
            Path(__file__).parent, options.recipe, options.overrides, serve_s=15.0 if options.quick else 60.0
        )
    elif options.name == "drills":
        chosen = _chosen(config, options)
        prepare(chosen, "publish")
        figures, lists = drills.measure(
            chosen,
            Path(__file__).with_name("shop.py"),
            _named(options, chosen),
            another(chosen),
            rates=_rates(options),
            minutes=min(options.minutes, 1.0) if options.quick else options.minutes,
            proxy=options.proxy,
        )
    elif options.name == "fuzz":
        prepare(config, "evaluate")
        figures, lists["failures"] = fuzz.measure(
            config,
            Path(__file__).with_name("shop.py"),
            _named(options, config),
            requests=fuzz.QUICK_REQUESTS if options.quick else fuzz.REQUESTS,
        )
    elif options.name == "index":
        work = index_speed.QUICK if options.quick else index_speed.FULL
        figures = index_speed.measure(config, work, alone=options.alone)
    elif options.name == "enrichment":
        figures = enrichment.measure(config, Path(__file__).with_name("enrich.py"), quick=options.quick)
    else:
        chosen = _chosen(config, options)
        prepare(chosen, "embed" if options.towers else "evaluate")
        if options.towers:
            controls = range(options.control_seeds or options.seeds)
            seeds = list(dict.fromkeys([chosen.seed, *range(options.seeds)]))[: options.seeds]
            figures = towers.measure(chosen, seeds, controls) | other_splits.measure(chosen)
            figures |= cold_and_warm.measure(chosen)
        else:
            figures = evaluated(chosen)
    result = {**benchmark.envelope(options.name, figures, quick=options.quick), **lists}
    if page is not None:
        page.write_text(benchmark.page(result), encoding="utf-8")
        if "failures" in lists:
            lines = "".join(f"{json.dumps(each)}\n" for each in lists["failures"])
            page.with_suffix(".failures.jsonl").write_text(lines, encoding="utf-8")
        for mode, raw in stacks.items():
            page.with_suffix(f".{mode}.stacks.txt").write_text(raw, encoding="utf-8")
    if options.name == "scale" and not options.keep and not options.stores:
        shutil.rmtree(_scale(config, options))
    return result


if __name__ == "__main__":
    arguments = parser(__doc__ or "")
    names = [
        "retrieval",
        "extraction",
        "enrichment",
        "item-tower",
        "rankers",
        "serving",
        "gpu",
        "scale",
        "index",
        "nodes",
        "drills",
        "fuzz",
    ]
    arguments.add_argument("name", choices=names, help="the benchmark")
    arguments.add_argument("--quick", action="store_true", help="the same code on less work, within ten minutes")
    arguments.add_argument("--html", metavar="FILE", help="write the page with plots to FILE")
    arguments.add_argument(
        "--test-split", action="store_true", help="extraction: ask the titles of the test split, for a final figure"
    )
    arguments.add_argument(
        "--towers", action="store_true", help="retrieval: the user tower alone, beside towers that lack a part of it"
    )
    instead = arguments.add_mutually_exclusive_group()
    instead.add_argument(
        "--switches", action="store_true", help="serving: what each of Ray Serve's switches gives the graph"
    )
    instead.add_argument(
        "--profile", action="store_true", help="serving: CPU time by process, and samples of the replica by layer"
    )
    arguments.add_argument(
        "--seeds", type=int, default=3, help="retrieval --towers, rankers: trainings of each (default 3)"
    )
    arguments.add_argument(
        "--control-seeds",
        type=int,
        default=0,
        help="retrieval --towers: trainings of each tower beside the recipe's (default: as many)",
    )
    arguments.add_argument("--keep", action="store_true", help="scale: leave its stores where they are")
    arguments.add_argument(
        "--stores", metavar="FOLDER", help="scale: only ask the stores of each size in FOLDER, and build nothing"
    )
    arguments.add_argument(
        "--alone", action="store_true", help="item-tower, index: the recipe alone, without Beauty or generated vectors"
    )
    timed = arguments.add_mutually_exclusive_group()
    timed.add_argument(
        "--no-speed", action="store_true", help="item-tower: without the speeds of Ray Train and of the exports"
    )
    timed.add_argument(
        "--speed-only", action="store_true", help="item-tower: nothing but these speeds, of the recipe alone"
    )
    arguments.add_argument("--minutes", type=float, default=10.0, help="drills: length of the steady load (default 10)")
    arguments.add_argument(
        "--rate", type=float, default=50.0, help="drills: requests a second of the shop in one process (default 50)"
    )
    arguments.add_argument(
        "--apart-rate", type=float, help="drills: requests a second of the graph (default: half of --rate)"
    )
    arguments.add_argument("--apart", action="store_true", help="drills: the graph alone, without the soak")
    arguments.add_argument("--whole", action="store_true", help="drills: the shop in one process alone")
    arguments.add_argument(
        "--proxy",
        choices=(haproxy.HAPROXY, haproxy.SERVE),
        help="drills: what hands requests to the replicas, and is killed (default: HAProxy where it is there)",
    )
    arguments.set_defaults(recipe="hm")
    main(run, arguments)
