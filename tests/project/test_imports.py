"""Importing does nothing: no network, no thread, no logging set up, no file written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rec.doctor import SLOW_IMPORT

REPOSITORY = Path(__file__).resolve().parents[2]

PROBE = """
import importlib, importlib.util, json, logging, pkgutil, sys, threading

calls = []

def audit(event, details):
    if event in ("socket.connect", "socket.getaddrinfo"):
        calls.append(f"{event} {details[1:]!r}")

sys.addaudithook(audit)
import numpy, pandas, pyarrow, ray, torch, transformers  # what these do at import is not ours
calls.clear()
threads, handlers = threading.active_count(), list(logging.getLogger().handlers)
import rec
names = [m.name for m in pkgutil.walk_packages(rec.__path__, "rec.")]
if importlib.util.find_spec("triton") is None:  # it comes with torch for GPUs alone
    names.remove("rec.models.packed_attention")
for name in names:
    importlib.import_module(name)
print(json.dumps({
    "modules": len(names), "calls": calls, "threads": threading.active_count() - threads,
    "handlers": len(logging.getLogger().handlers) - len(handlers), "ray": ray.is_initialized(),
    "loaded": list(sys.modules),
}))
"""


@pytest.mark.slow
def test_importing_every_module_does_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen.pop("modules") > 20
    assert SLOW_IMPORT not in seen.pop("loaded"), f"every process of Ray waits for it: pip uninstall {SLOW_IMPORT}"
    assert seen == {"calls": [], "threads": 0, "handlers": 0, "ray": False}
    assert list(tmp_path.iterdir()) == []
