"""What jobs and the shop are given as secrets is in nothing that they write: output, store, Postgres, Ray's logs."""

import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psycopg
import pytest

from rec import api_keys, ports, postgres
from rec.enrich import openai
from tests.enrich.endpoint import Response, sensible, serve

TOKEN_VARIABLE, TOLD = "RAY_AUTH_TOKEN", "TOLD"
TELL = f"""
import os, ray
from rec import runtime
runtime.start(1)
ray.get(ray.remote(lambda: print(os.environ["{TOLD}"])).remote())
"""
"""A job that does log what its environment holds."""


@pytest.fixture
def sessions() -> Iterator[Path]:
    """A folder for Ray's sessions: Ray puts Unix sockets into it, whose paths have to be short."""
    made = Path(tempfile.mkdtemp(prefix="ray"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def holders(values: Mapping[str, str], said: Mapping[str, bytes], *folders: Path) -> set[tuple[str, str]]:
    """(name of a value, what it was found in), of what was printed and every file below the folders."""
    found = {(name, where) for where, data in said.items() for name, value in values.items() if value.encode() in data}
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        found |= {(name, str(path)) for name, value in values.items() if value.encode() in data}
    return found


@pytest.mark.slow
@pytest.mark.long
def test_jobs_and_shop_write_none_of_their_secrets(
    recipe: Path,
    repository: Path,
    sessions: Path,
    tmp_path: Path,
    new_store: Callable[[], Path],
    environment_of_jobs: dict[str, str],
) -> None:
    store = new_store()
    variables = (postgres.URL_VARIABLE, openai.KEY_VARIABLE, api_keys.KEYS_VARIABLE, TOKEN_VARIABLE)
    hidden = {name: secrets.token_hex(32) for name in variables}
    url = psycopg.conninfo.make_conninfo(postgres.url(store), password=hidden[postgres.URL_VARIABLE])
    environment = environment_of_jobs | hidden
    environment |= {postgres.URL_VARIABLE: url, "RAY_AUTH_MODE": "token", "RAY_TMPDIR": str(sessions)}
    said: dict[str, bytes] = {}

    def run(*command: str, **more: str) -> bytes:
        words = [sys.executable, *command]
        done = subprocess.run(words, cwd=repository, env=environment | more, capture_output=True, check=False)
        said[f"stdout of {command}"], said[f"stderr of {command}"] = done.stdout, done.stderr
        assert done.returncode == 0, done.stderr[-3_000:].decode()
        return done.stdout

    def job(name: str, *arguments: str) -> bytes:
        return run(f"jobs/{name}.py", *arguments, "--recipe", str(recipe), "--set", f"store={store}")

    with serve(lambda number, asked: sensible(number, asked) if number else Response(500)) as endpoint:
        options = ('enrich.engine="openai"', 'enrich.model="m"', f'enrich.base_url="{endpoint.url}"')
        job("pipeline", *(word for each in options for word in ("--set", each)))
    assert endpoint.keys == {f"Bearer {hidden[openai.KEY_VARIABLE]}"}
    job("database", "backup", str(store / "kept.dump"))
    job("database", "status")
    try:
        shop = json.loads(job("shop", "start", "--port", str(ports.free())))
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{shop['url']}v1/products/nobody/similar", timeout=60)
    finally:
        job("shop", "stop")
    run("-c", TELL, **{TOLD: (told := secrets.token_hex(32))})

    postgres.stop_embedded(store)  # all is in its files
    logs = [path for path in sessions.rglob("logs/*") if path.is_file() and path.stat().st_size]
    assert len({path.parent for path in logs}) == 3, "pipeline, shop, and who tells"
    assert len(logs) > 20
    assert list(store.glob("bundles/*/*"))
    found = holders(hidden | {TOLD: told}, said, store, sessions)
    assert any("/logs/" in where for name, where in found if name == TOLD), "what a worker says is not searched"
    assert {(name, where) for name, where in found if name != TOLD} == set()
