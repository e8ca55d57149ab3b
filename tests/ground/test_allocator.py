"""What a worker frees it gets back without asking the system; nobody else is changed."""

import os
import platform
import subprocess
import sys

import pytest
import ray

from rec import allocator

FAULTS = """
import resource, threading

def use():
    for _ in range(3):
        b"x" * 2**25
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        b"x" * 2**25
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=use)  # Ray Train's loops run in one
thread.start()
thread.join()
"""


def _faults() -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    return int(done.stdout)


NEW = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not allocator.supported(), reason="another allocator than glibc's of today"
)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that was told nothing of memory."""
    for name in allocator.KEEPING:
        monkeypatch.delenv(name, raising=False)


@NEW
def test_blocks_that_are_used_again_cost_no_page_faults() -> None:
    pages = 10 * 2**25 // os.sysconf("SC_PAGE_SIZE")
    assert _faults() > pages / 2
    with allocator.keeping():
        assert _faults() < pages / 20


def test_the_environment_is_as_before_and_a_setting_in_it_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    before = dict(os.environ)
    with allocator.keeping():
        assert allocator.KEEPING.items() <= os.environ.items()
    assert dict(os.environ) == before
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    _adds_nothing()


def test_an_old_glibc_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, version, told in [("glibc", "2.31", False), ("glibc", "2.36", True), ("musl", "1.2.5", True)]:
        monkeypatch.setattr(platform, "libc_ver", lambda given=(name, version): given)
        with allocator.keeping():
            assert (os.environ.keys() >= allocator.KEEPING.keys()) == told, (name, version)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    _adds_nothing()


def _adds_nothing() -> None:
    before = dict(os.environ)
    with allocator.keeping():
        assert dict(os.environ) == before
    assert dict(os.environ) == before


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
@NEW
def test_workers_of_a_ray_that_a_job_starts_are_told() -> None:
    told = ray.remote(lambda: {name: os.environ.get(name) for name in allocator.KEEPING})
    assert ray.get(told.remote()) == allocator.KEEPING
