"""deepctr-torch is imported without what it does on import."""

import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.slow
def test_importing_makes_no_connection_and_no_thread(repository: Path) -> None:
    found = subprocess.run([sys.executable, "-c", _NO_NETWORK], cwd=repository, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
