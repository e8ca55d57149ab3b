"""A bundle travels whole or not at all, and goes on where it was interrupted."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from rec import artifact, assemble, bundle, remote
from rec.bundle import Bundle
from rec.errors import ArtifactError, ConfigError
from rec.remote import Moved
from tests.bundle import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle to send."""
    return assemble.create(tiny.make(tiny.config(tmp_path_factory.mktemp("remote"))))


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """Where to send it."""
    return (tmp_path / "far").as_uri()


def size(made: Bundle) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in made.path.rglob("*") if path.is_file())


def test_there_and_back(made: Bundle, uri: str, tmp_path: Path) -> None:
    all_files = len(made.files) + 1
    assert remote.push(made, uri) == Moved(all_files, 0, size(made))
    assert remote.push(made, uri + "/") == Moved(0, all_files, 0)
    assert remote.pull(uri, made.id, tmp_path / "new") == Moved(all_files, 0, size(made))
    got = bundle.read(tmp_path / "new", made.id)
    bundle.verify(got)
    assert (got.path / "manifest.json").read_bytes() == (made.path / "manifest.json").read_bytes()
    assert remote.pull(uri, made.id, tmp_path / "new") == Moved(0, all_files, 0)
    assert [path.name for path in got.path.parent.iterdir()] == [made.id]


def test_a_damaged_bundle_in_the_store_is_replaced(made: Bundle, uri: str, tmp_path: Path) -> None:
    remote.push(made, uri)
    remote.pull(uri, made.id, tmp_path)
    (tmp_path / "bundles" / made.id / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"config[.]json of bundle .* was changed"):
        remote.push(bundle.read(tmp_path, made.id), uri)
    assert remote.pull(uri, made.id, tmp_path).sent == len(made.files) + 1
    bundle.verify(bundle.read(tmp_path, made.id))
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == [made.id]


KILLED = """
import os, sys
from pathlib import Path
from rec import bundle, remote
store, name, uri, verb = sys.argv[1:]
work = "_upload" if verb == "push" else "_download"
real, done = getattr(remote, work), []

def dies_at_the_fifth(*arguments):
    if len(done) == 4:
        target = Path(arguments[2])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"the first half")
        os.kill(os.getpid(), 9)
    done.append(real(*arguments))

setattr(remote, work, dies_at_the_fifth)
remote.push(bundle.read(store, name), uri) if verb == "push" else remote.pull(uri, name, store)
"""


def killed(*arguments: str) -> None:
    """A process that is killed when it is half-way through its fifth file."""
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert done.returncode == -9


def test_what_was_killed_is_no_bundle_and_goes_on(made: Bundle, uri: str, tmp_path: Path) -> None:
    store, here = tmp_path / "new", made.path.parent.parent
    killed(str(here), made.id, uri, "push")
    with pytest.raises(ArtifactError, match=rf"there is no whole bundle {made.id} at file:///"):
        remote.pull(uri, made.id, store)
    assert bundle.names(store) == []
    assert remote.push(made, uri).there == 4
    killed(str(store), made.id, uri, "pull")
    assert bundle.names(store) == []
    assert remote.pull(uri, made.id, store).there == 4
    bundle.verify(bundle.read(store, made.id))


@pytest.mark.parametrize("name", ["ranker/ranker.safetensors", "manifest.json"])
def test_what_was_changed_over_there_is_refused(made: Bundle, uri: str, tmp_path: Path, name: str) -> None:
    remote.push(made, uri)
    path = tmp_path / "far" / made.id / name
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    what = "the manifest of bundle" if name == "manifest.json" else f"{name} of bundle"
    with pytest.raises(ArtifactError, match=rf"{what} .* was changed: push it again"):
        remote.pull(uri, made.id, tmp_path / "new")
    assert bundle.names(tmp_path / "new") == []
    path.unlink()
    with pytest.raises(ArtifactError, match=r"(no whole bundle|lacks ranker[.]safetensors)"):
        remote.pull(uri, made.id, tmp_path / "new")
    remote.push(made, uri)
    remote.pull(uri, made.id, tmp_path / "new")
    bundle.verify(bundle.read(tmp_path / "new", made.id))


@pytest.mark.parametrize("file", ["../../outside.json", "/tmp/outside.json", "ranker/run.py", "..\\outside.json"])
def test_a_manifest_names_no_file_outside_or_of_another_kind(made: Bundle, uri: str, tmp_path: Path, file: str) -> None:
    manifest = json.loads((made.path / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][file] = {"sha256": hashlib.sha256(b"{}").hexdigest(), "bytes": 2}
    artifact.write_json(tmp_path / "manifest.json", manifest)
    name = artifact.hash_file(tmp_path / "manifest.json")[:12]
    shutil.copytree(made.path, tmp_path / "far" / name)
    shutil.copy(tmp_path / "manifest.json", tmp_path / "far" / name)
    with pytest.raises(ArtifactError, match=r"lists .*, which no bundle has"):
        remote.pull(uri, name, tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").rglob("*.json")} == {"manifest.json"}
    assert bundle.names(tmp_path / "new") == []


@pytest.mark.parametrize("name", ["", "..", "../../x", "ABCDEF012345", "*"])
def test_what_is_no_id_becomes_no_path(uri: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="is no bundle id"):
        remote.pull(uri, name, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAEXAMPLE:hunter2@bucket/x?endpoint_override=127.0.0.1:1&scheme=http&region=eu-west-1&token=hunter3",
        "s3://AKIAEXAMPLE:hunter2@bucket/x?nonsense=hunter3",
        "ftp://shop:hunter2@host/x",
        "hunter2",
        "far/away?hunter2",
    ],
)
def test_an_error_shows_no_credentials(made: Bundle, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises((ArtifactError, ConfigError)) as raised:
        remote.push(made, uri)
    for secret in ("AKIAEXAMPLE", "hunter3", *(["hunter2"] if "@" in uri or "?" in uri else [])):
        assert secret not in str(raised.value)


def test_a_full_disk_leaves_no_bundle_and_the_next_try_goes_on(made: Bundle, uri: str, tmp_path: Path) -> None:
    """A limit on the size of a file stands for a disk that is full: the write fails half-way."""
    remote.push(made, uri)
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from rec import remote; from rec.errors import ArtifactError\n"
        "try: remote.pull(*sys.argv[1:])\n"
        "except ArtifactError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, uri, made.id, str(tmp_path / "new")], capture_output=True, text=True, check=True
    )
    assert f"bundle {made.id} cannot be written" in done.stdout, done.stderr
    assert "its disk has space left" in done.stdout
    assert bundle.names(tmp_path / "new") == []
    assert remote.pull(uri, made.id, tmp_path / "new").there > 0
    bundle.verify(bundle.read(tmp_path / "new", made.id))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a server that is compatible with S3, where one is installed."""
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"{host}:{port}"
    running.stop()


def test_s3_there_and_back(made: Bundle, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    fs.S3FileSystem(endpoint_override=s3, scheme="http", allow_bucket_creation=True).create_dir("shop")
    there_and_back(made, f"s3://shop/bundles?endpoint_override={s3}&scheme=http&region=us-east-1", tmp_path)


def there_and_back(made: Bundle, uri: str, tmp_path: Path) -> None:
    """Push, push again, pull two at once."""
    assert remote.push(made, uri).sent == len(made.files) + 1
    assert remote.push(made, uri).sent == 0
    found: list[Any] = []
    both = [
        threading.Thread(target=lambda: found.append(remote.pull(uri, made.id, tmp_path / "new"))) for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sorted(moved.sent for moved in found) == [0, len(made.files) + 1]
    bundle.verify(bundle.read(tmp_path / "new", made.id))
    with pytest.raises(ArtifactError, match="no whole bundle 0123456789ab"):
        remote.pull(uri, "0123456789ab", tmp_path / "new")
