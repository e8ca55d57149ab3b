"""What a GPU gives: on a CPU the same steps run, and the machine that has none says so."""

import pytest
import torch

from rec.errors import ConfigError
from rec.evaluate import gpu_speed
from rec.evaluate.benchmark import figure

CPU = torch.device("cpu")


def test_the_steps_are_timed_and_their_work_is_counted() -> None:
    found = gpu_speed.tower(CPU, gpu_speed.SMALL, compiled=False, seed=0)
    assert set(found) == {"items_per_s", "flops_per_item"}, "what only a GPU can say is left out"
    assert found["items_per_s"]["value"] > 0
    # Twice 32 tokens through one layer of 32 wide: forward 2, backward 4 operations per weight and token.
    layer = 4 * 32 * 32 + 2 * 32 * 64
    assert found["flops_per_item"]["value"] * 1e9 > 6 * layer * 2 * gpu_speed.TOKENS
    assert gpu_speed.dlrm(CPU, gpu_speed.SMALL, 0)["rows_per_s"]["value"] > 0
    assert gpu_speed.user(CPU, gpu_speed.SMALL, 0)["windows_per_s"]["value"] > 0


def test_rates_are_set_beside_those_of_the_processors() -> None:
    rates = {"tower.items_per_s": 1e9, "user.windows_per_s": 1e9, "dlrm.rows_per_s": 1e9}
    over = gpu_speed.over_cpu({name: figure(rate, "1/s") for name, rate in rates.items()}, gpu_speed.SMALL, 0)
    assert set(over) == {"tower.over.cpu", "user.over.cpu", "dlrm.over.cpu"}
    assert all(ratio["value"] > 1 for ratio in over.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_so() -> None:
    with pytest.raises(ConfigError, match=r"no GPU that torch can use"):
        gpu_speed.measure(gpu_speed.SMALL, gpu_speed.SMALL, seed=0, quick=True)
