"""What README, operations guide and security page tell a reader to do exists as written."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import bundles, database
from rec import __version__, assemble, config, dataset
from rec.data import ingest
from rec.schema import INTERACTIONS, PRODUCTS, USERS
from tests.bundle import tiny
from tests.cluster.manifests import entrypoints
from tests.project import test_supply

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
GUIDE = (REPOSITORY / "cluster" / "README.md").read_text(encoding="utf-8")
SECURITY = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
AWAY = "# needs a cluster"
"""Mark of a command that no test can run."""


def _blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of every fenced block, indented ones too."""
    return re.findall(r"^ *```(\w+)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)


BLOCKS = _blocks(README)


def commands_of(document: str) -> list[str]:
    """Every command of a document, with the comment behind it."""
    blocks = [text for language, text in _blocks(document) if language == "sh"]
    lines = [line.strip() for text in blocks for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _commands() -> list[str]:
    """Commands that are run here, without comments."""
    lines = [line for document in (README, GUIDE, SECURITY) for line in commands_of(document) if AWAY not in line]
    return [line.split("  #")[0].strip() for line in lines]


def test_readme_has_commands() -> None:
    assert {"make demo", "make test", "make stop"} <= set(_commands())


@pytest.mark.parametrize("command", sorted({c for c in _commands() if c.startswith("make ")}))
def test_make_targets_exist(command: str) -> None:
    done = subprocess.run(
        ["make", "-n", *shlex.split(command)[1:]], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _job(line: str) -> list[str]:
    """The job of a command line, and its arguments; empty where it names none."""
    words = shlex.split(line, comments=True)
    return next((words[at:] for at, word in enumerate(words) if re.fullmatch(r"jobs/\w+\.py", word)), [])


def _refused(options: Mapping[str, Any]) -> bool:
    """Whether the job itself would ask for another number of arguments than its parser took."""
    action, given = options.get("action"), options.get("argument")
    if isinstance(given, list):
        fewest, most = bundles.ARGUMENTS[action]
        return not fewest <= len(given) <= (len(given) if most is None else most)
    if "client" in options:
        return (given is not None) != (action in database.NEEDS)
    if "share" in options:
        return (given is not None and options["share"] is not None) != (action == "start") and action != "report"
    return action in ("check", "apply", "preview") and "file" in options and options["file"] is None


@pytest.mark.slow
def test_every_shown_job_takes_its_arguments(parse: Callable[[Sequence[Sequence[str]]], list[Any]]) -> None:
    """Those that need a cluster and those of the manifests, too: by the job's own parser, and what it asks beyond."""
    lines = [line for document in (README, GUIDE, SECURITY) for line in commands_of(document)] + [
        *entrypoints().values()
    ]
    jobs = sorted({tuple(words) for words in map(_job, lines) if words})
    assert len(jobs) > 50
    for words, (options, said) in zip(jobs, parse(jobs), strict=True):
        assert options is not None, f"{words}: {said}"
        assert not _refused(options), f"{words}: too many or too few arguments"
        if not options["recipe"].endswith(".toml"):
            config.load(options["recipe"], options["overrides"])


@pytest.mark.slow
def test_a_wrong_command_would_be_seen(parse: Callable[[Sequence[Sequence[str]]], list[Any]]) -> None:
    wrong = [
        "bundles.py promte 1",
        "bundles.py --dryrun gc",
        "benchmark.py",
        "shop.py start --port eight",
        "doctor.py 1",
    ]
    for line, (options, said) in zip(wrong, parse([_job(f"python jobs/{line}") for line in wrong]), strict=True):
        assert options is None, line
        assert "error: " in said
    short = [
        "bundles.py promote",
        "bundles.py gc 1",
        "database.py grant",
        "database.py stop now",
        "experiment.py start 1",
    ]
    for line, (options, _) in zip(short, parse([_job(f"python jobs/{line}") for line in short]), strict=True):
        assert _refused(options), line


@pytest.mark.slow
def test_shown_request_is_a_valid_body() -> None:
    from serve.api import RecommendBody

    shown = [shlex.split(c) for c in _commands() if c.startswith("curl") and "-d" in c]
    assert shown, "the README shows no request"
    for words in shown:
        RecommendBody.model_validate_json(words[words.index("-d") + 1])


@pytest.mark.slow
def test_every_command_is_checked_or_marked() -> None:
    """Jobs and targets of make by the tests above; routes, files and the graph that the others name are there."""
    from ray._common.utils import import_attr

    from serve.app import app

    routes = {
        (method.upper(), re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path)))
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    }
    known_extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    for line in _commands():
        words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
        match words:
            case ["make", *_] | ["kubectl", "kustomize", *_]:
                pass
            case ["python", job, *_] | ["ray", "job", "submit", job, *_] if job.startswith("jobs/"):
                pass
            case ["ray", "job", "submit", "--working-dir", ".", "--", "python", job, *_] if job.startswith("jobs/"):
                pass
            case ["curl", *_]:
                (url,) = [word for word in words if "://" in word]
                method = "POST" if "-d" in words else "GET"
                path = "/" + url.split("/", 3)[3].partition("?")[0]
                assert any(method == known and route.fullmatch(path) for known, route in routes), line
            case ["serve", "run", "serve.app:graph" | "serve.app:whole"]:
                pass
            case ["serve", "run", name]:
                assert (REPOSITORY / name).is_file(), line
            case ["pip-audit" | ".venv/bill/bin/cyclonedx-py", *_]:
                assert line in test_supply.shown(), line
            case ["pip", "install", "-c", name, "-e", package]:
                extras = re.fullmatch(r"\.\[([\w,]+)\]", package)
                assert (REPOSITORY / name).is_file(), line
                assert extras is not None, line
                assert set(extras[1].split(",")) <= known_extras, line
            case ["export"]:
                told = dict(each.split("=", 1) for each in shlex.split(line)[1:])
                assert all(name.startswith(("RAY_SERVE_TRACING_", "OTEL_")) for name in told), line
                exporter = told.get("RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH", "rec.tracing:otlp")
                assert callable(import_attr(exporter)), line
            case _:
                raise AssertionError(f"nothing checks this command: {line}")


def test_every_shown_recipe_is_valid(tmp_path: Path) -> None:
    shown = [text for language, text in BLOCKS if language == "toml" and not text.startswith("# rules.toml")]
    assert shown, "the README shows no recipe"
    for text in shown:
        tomllib.loads(text)
        path = tmp_path / "shown.toml"
        path.write_text(text, encoding="utf-8")
        config.load(str(path))


PRODUCTS_CSV = """\
sku,name,text,body_html,price,brand,style,in_stock,published,material,color,category,inseam_cm,chest_cm
A1,Linen shirt,Airy,<p>Washed linen</p>,49.9,Nord,S1,true,2025-01-02,linen,white,shirts,,102
A2,Wool trousers,Warm,,89,,S2,false,2025-02-03T10:00:00Z,wool,,trousers,81.5,
"""
USERS_CSV = """\
customer,height,weight,bust_size
ann,172,64,86
"""
EVENTS_JSONL = """\
{"customer": "ann", "sku": "A1", "type": "view", "time": "2025-03-01T10:00:00Z", "search": "wedding"}
{"customer": "bob", "sku": "A2", "type": "purchase", "time": "2025-03-02T10:00:00Z", "size": "34/32", "fit": "small"}
{"customer": "bob", "sku": "A2", "type": "stare", "time": "2025-03-02T10:00:00Z"}
"""


def test_shown_recipe_reads_a_shop_s_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the recipe's own folder, as the README says; the event that is none is kept aside."""
    (text,) = [text for language, text in BLOCKS if language == "toml" and "[source.columns.products]" in text]
    (tmp_path / "data").mkdir()
    for name, rows in {"products.csv": PRODUCTS_CSV, "users.csv": USERS_CSV, "events.jsonl": EVENTS_JSONL}.items():
        (tmp_path / "data" / name).write_text(rows, encoding="utf-8")
    (tmp_path / "shop.toml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    given = config.load("shop.toml")
    ingest.run(given)
    shirt, trousers = dataset.read(given.at("products"), PRODUCTS).to_pylist()
    assert (shirt["product_id"], shirt["brand"], shirt["currency"], shirt["group_id"]) == ("A1", "Nord", "EUR", "S1")
    assert dict(shirt["attributes"])["material"] == ["linen"]
    assert dict(shirt["measurements"]) == {"chest_cm": 102.0}
    assert (shirt["available"], trousers["available"]) == (True, False)
    ann, bob = dataset.read(given.at("users"), USERS).to_pylist()
    assert (ann["height_cm"], dict(ann["numeric"])) == (172.0, {"bust_size": 86.0})
    assert (bob["user_id"], bob["height_cm"]) == ("bob", None), "users of events are users"
    events = dataset.read(given.at("events"), INTERACTIONS).to_pylist()
    assert [(event["user_id"], event["event"], event["context"]) for event in events] == [
        ("ann", "view", "wedding"),
        ("bob", "purchase", None),
    ]
    assert [(event["size"], event["size_number"], event["fit"]) for event in events] == [
        (None, None, None), ("34/32", 34.0, "small"),
    ]  # fmt: skip
    assert pq.read_table(given.at("events") / "rejected.parquet").num_rows == 1


def test_shown_lines_load_weights_without_this_project(tmp_path: Path) -> None:
    (text,) = [text for language, text in BLOCKS if language == "python"]
    made = assemble.create(tiny.make(tiny.config(tmp_path)))
    shown = ".rec/bundles/8ec63620b4d2"
    assert shown in text
    nearest = np.sort(made.item_vectors() @ made.item_vectors()[0])[-2:-12:-1]
    cosines = "[float(vectors[0] @ vectors[ids.index(name)]) for name in similar]"
    lines = (
        f"import sys\nsys.modules['rec'] = None\n{text.replace(shown, str(made.path))}\n"
        f"print(json.dumps([similar, {cosines}, [len(tower) > 0 for tower in towers.values()]]))"
    )
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    similar, found, towers = json.loads(done.stdout)
    assert len(set(similar)) == 10
    assert towers == [True, True]
    assert made.product_ids()[0] not in similar
    assert found == pytest.approx(nearest.tolist(), abs=1e-6)


@pytest.mark.parametrize("name", ["README.md", "cluster/README.md", "SECURITY.md", "tests/cluster/schemas/README.md"])
def test_links_inside_the_repository_exist(name: str) -> None:
    path = REPOSITORY / name
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert missing == []


def test_every_command_of_the_guide_is_checked_or_marked() -> None:
    """Jobs are checked here, `kubectl kustomize` is run in tests/cluster; all else says that it needs a cluster."""
    lines = commands_of(GUIDE)
    assert len(lines) > 30
    for line in lines:
        here = line.startswith(("python jobs/", "kubectl kustomize cluster/overlays/"))
        assert here != (AWAY in line), line


def test_what_the_guide_s_commands_name_exists() -> None:
    """Folders and files of the repository, versions of operators and tags of the image."""
    for line in commands_of(GUIDE):
        for word in re.findall(r"(?<![\w/-])(?:cluster|jobs|serve)/[\w./-]+", line):
            assert (REPOSITORY / word).exists(), line
        for tag in re.findall(r"shop-rec:([\w.]+)-c", line):
            assert tag == __version__, line
    schemas = (REPOSITORY / "tests" / "cluster" / "schemas" / "README.md").read_text(encoding="utf-8")
    operator = re.search(r"kuberay-operator --version ([\d.]+)", GUIDE)
    postgres = re.search(r"cnpg-([\d.]+)\.yaml", GUIDE)
    assert operator is not None
    assert postgres is not None
    assert f"tag v{operator[1]} |" in schemas
    assert f"tag v{postgres[1]} |" in schemas


def test_what_the_guide_s_tables_name_exists() -> None:
    for word in re.findall(r"`((?:cluster|jobs|serve|tests|rec)/[\w./-]+)`", GUIDE + SECURITY):
        assert any((folder / word).exists() for folder in (REPOSITORY, REPOSITORY / "cluster")), word
    for name in re.findall(r"`(evaluate|enrich|text|index|vocab)\.(\w+)", GUIDE):
        assert name[1] in type(getattr(config.load("demo"), name[0])).model_fields, name
