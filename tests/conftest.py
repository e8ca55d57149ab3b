"""Fixtures that the whole suite shares: one Ray session, one embedded Postgres, slow tests last."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rec import allocator

REPOSITORY = Path(__file__).resolve().parent.parent

COSTLY = {"finished", "helps", "collector"}
"""Fixtures of the whole session that take most of a minute: a run of the pipeline, the help of every job, the shop that
is traced."""

LONGEST = [
    "finished",
    "train/test_item_failures.py",
    "enrich/test_openai.py",
    "collector",
    "serve/test_proxied.py",
    "enrich/test_stage.py",
    "pipeline/test_refresh.py",
    "enrich/test_vllm.py",
    "vocab/test_tensorize.py",
    "train/test_ddp.py",
    "train/test_item_stages.py",
    "ranker/test_stages.py",
    "user_tower/test_training.py",
    "enrich/test_tag.py",
    "index/test_full_disk.py",
    "fit/test_training.py",
]
"""Groups of slow tests that take half a minute or more, longest first: two processes that are handed the long ones
first end at about the same time."""

# Before torch is imported: threads that wait for each other do it busily, and the suite's two processes fill two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if find_spec("triton") and not shutil.which(
    "nvidia-smi"
):  # read where a kernel is defined, whoever is first to import it
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A loaded machine is slow, not wrong; and the same commit always tries the same examples.
settings.register_profile("repository", deadline=None, derandomize=True)
settings.load_profile("repository")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: a broken invariant shows within seconds, the slow chain runs after it, longest groups first.

    pytest-xdist keeps in one process what shares costly fixtures: each file, and all that need one of COSTLY.
    """
    groups = {item: _group(item) for item in items}
    items.sort(key=lambda item: (_slow(item), LONGEST.index(groups[item]) if groups[item] in LONGEST else len(LONGEST)))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(f"{groups[item]}-slow" if _slow(item) else groups[item]))


def _slow(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) is not None for name in ("slow", "long"))


def _group(item: pytest.Item) -> str:
    needed = COSTLY.intersection(getattr(item, "fixturenames", ()))
    return min(needed) if needed else f"{item.path.parent.name}/{item.path.name}"


@pytest.fixture(scope="session", autouse=True)
def environment() -> Iterator[None]:
    """The user's own Postgres and Ray are never touched; child processes find the checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("REC_DATABASE_URL", raising=False)
        for name in ("RAY_ADDRESS", *allocator.KEEPING):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def _recording() -> InMemorySpanExporter:
    """Takes the spans of this process, which has one provider for good."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(_recording: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    """The spans that end during a test."""
    _recording.clear()
    yield _recording
    _recording.clear()


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray session of four logical CPUs in this process, ended with the tests."""
    import ray

    from rec import runtime

    runtime.start(4)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def new_store() -> Iterator[Callable[[], Path]]:
    """Makes empty store folders; the embedded Postgres of each is stopped, and the folder removed, with the tests.

    They lie directly in the temporary folder: Unix sockets need short paths, and under root the server runs as
    another user, who may not enter pytest's own folders.
    """
    from rec import postgres

    made: list[Path] = []

    def store() -> Path:
        made.append(Path(tempfile.mkdtemp(prefix="rec-store-")))
        return made[-1]

    yield store
    for folder in made:
        postgres.stop_embedded(folder)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def database_url(new_store: Callable[[], Path]) -> str:
    """URL of an embedded Postgres with pgvector in a folder of its own."""
    from rec import postgres

    return postgres.url(new_store())
