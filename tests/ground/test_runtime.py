"""Starting Ray: once more when it fails, then one sentence with a remedy."""

from typing import Any

import pytest
import ray

from rec import runtime
from rec.errors import ConfigError


class Starts:
    """Stands in for `ray.init`: fails `failures` times, as Ray does on a machine that is too busy."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **options: Any) -> None:
        self.calls.append(options)
        if len(self.calls) <= self.failures:
            raise Exception("The current node timed out during startup.\nThis could happen.")


def _starts(patch: pytest.MonkeyPatch, failures: int) -> Starts:
    made = Starts(failures)
    patch.setattr(ray, "init", made)
    patch.setattr(ray, "shutdown", lambda: None)
    patch.setattr(ray, "is_initialized", lambda: False)
    return made


def test_a_failed_start_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = _starts(monkeypatch, 1)
    runtime.start(3)
    assert [options["num_cpus"] for options in starts.calls] == [3, 3]


@pytest.mark.parametrize(("address", "remedy"), [("", "lower cpus"), ("10.0.0.1:6379", "RAY_ADDRESS=10.0.0.1:6379")])
def test_a_start_that_fails_twice_is_one_sentence(monkeypatch: pytest.MonkeyPatch, address: str, remedy: str) -> None:
    starts = _starts(monkeypatch, 9)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=remedy) as failed:
        runtime.start(3)
    assert "The current node timed out during startup. This could happen." in str(failed.value)
    assert "\n" not in str(failed.value)
    assert len(starts.calls) == 2
