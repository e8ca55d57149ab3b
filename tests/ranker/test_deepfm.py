"""deepctr-torch is imported without what it does on import."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rec.features.compute import RankInputs
from rec.models.deepfm import DeepFM
from tests.ranker import models

_NO_NETWORK = """
import socket, threading

def refuse(*arguments, **options):
    raise AssertionError("the import reached for the network")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
started = []
threading.Thread.start = lambda self: started.append(self)
from rec.models.deepfm import deepctr
assert "deepctr_torch" not in __import__("sys").modules, "importing the adapter imports deepctr-torch"
assert deepctr().__version__ == "0.3.0"
assert not started, started
"""


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("rows", [4, 10, 50], ids=["tables are large", "one is small", "tables are small"])
def test_fewer_lookups_and_products_give_what_deepctr_torch_gives(rows: int, training: bool) -> None:
    model = models.random("deepfm").train(training)
    assert isinstance(model, DeepFM)
    given = models.inputs(np.random.default_rng(3), rows)
    sparse, varlen, dense = models.tensors(given)
    together = torch.cat([sparse.float(), varlen.float(), model.scale(dense)], dim=1)
    found, gradients = [], []
    for forward in (lambda: model(sparse, varlen, dense), lambda: model.net(together)[:, 0]):
        torch.manual_seed(5)  # of dropout
        model.zero_grad()
        found.append(forward())
        found[-1].square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-3)


def test_all_fields_may_be_of_small_tables() -> None:
    spec = dataclasses.replace(models.SPEC, varlen=(), tables={"std": 12, "source": 3})
    model = models.new("deepfm", spec=spec)
    sparse, varlen, dense = models.tensors(models.inputs(np.random.default_rng(3), 50))
    drawn = RankInputs(sparse.numpy(), varlen[:, :0].numpy(), dense.numpy())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
        found = model.eval()(sparse, varlen[:, :0], dense).numpy()
    np.testing.assert_allclose(model.export().score(drawn), found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [4, 10, 50])
def test_rows_that_no_candidate_has_get_no_gradient_to_the_bit(rows: int) -> None:
    model = models.random("deepfm").train()
    assert isinstance(model, DeepFM)
    sparse, varlen, dense = models.tensors(models.inputs(np.random.default_rng(4), rows))
    sparse[:, [0, 2]] = sparse[:, [0, 2]] % 5
    model(sparse, varlen, dense).square().sum().backward()
    gradient = model.table("std").grad
    assert gradient is not None
    assert not gradient[5:].any()
    assert gradient[:5].any()


@pytest.mark.slow
def test_importing_makes_no_connection_and_no_thread(repository: Path) -> None:
    found = subprocess.run([sys.executable, "-c", _NO_NETWORK], cwd=repository, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
