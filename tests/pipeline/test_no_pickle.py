"""Nothing that the pipeline writes is a pickle, whatever its name: a file that is only read as data can run nothing."""

import io
import json
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.pickles import runs_code
from tests.pipeline.conftest import Finished

SUFFIXES = {".json", ".parquet", ".safetensors", ".npy", ".html", ".toml", ".jsonl"}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_recognised(protocol: int) -> None:
    assert runs_code(pickle.dumps({"weights": [1.0, 2.0]}, protocol))


def test_other_files_that_hold_pickles_are_recognised() -> None:
    saved, array, plain = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"weights": torch.ones(2)}, saved)
    np.save(array, np.array([{}], dtype=object), allow_pickle=True)
    np.save(plain, np.ones(2))
    assert runs_code(saved.getvalue())
    assert runs_code(array.getvalue())
    assert not runs_code(plain.getvalue())
    assert not runs_code(json.dumps({"weights": [1.0]}).encode())


def test_a_length_of_safetensors_that_spells_opcodes_is_no_pickle() -> None:
    data = safetensors.torch.save({"a." + "w" * 1306: torch.zeros(1)})
    *_, (last, _, _) = pickletools.genops(data)
    assert last.name == "STOP", "a pickle machine reads this file's head to an end"
    assert not runs_code(data)


@pytest.mark.slow
def test_no_file_of_a_finished_store_is_a_pickle(finished: Finished) -> None:
    store = Path(finished.config.store)
    files = [p for p in store.rglob("*") if p.is_file() and "postgres" not in p.relative_to(store).parts]
    assert len(files) > 40
    assert {path.suffix for path in files} <= SUFFIXES
    assert [path for path in files if runs_code(path.read_bytes())] == []
