"""Artifacts exist whole or not at all, and their fingerprints say exactly what made them."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec import artifact
from rec.errors import ArtifactError

WORK: dict[str, Any] = {"kind": "thing", "version": 1, "inputs": {"a": "1"}, "config": {"x": 1}}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
TREE = st.dictionaries(st.text(max_size=6), JSON, max_size=4)


def _write(target: Path, text: str = "one", **work: Any) -> None:
    with artifact.write(target, **(WORK | work)) as draft:
        (draft.path / "a.txt").write_text(text)
        (draft.path / "deep").mkdir()
        (draft.path / "deep" / "b.txt").write_text("b")
        draft.note(rows=1)


def test_written_artifact_is_found_read_and_verified(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    _write(target)
    manifest = artifact.read(target, kind="thing", version=1, made_by="make it")
    assert manifest.facts == {"rows": 1}
    assert artifact.finished(target, **WORK) == manifest
    artifact.verify(target, manifest)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thing"]


@pytest.mark.parametrize(
    "change", [{"kind": "other"}, {"version": 2}, {"inputs": {"a": "2"}}, {"inputs": {}}, {"config": {"x": 2}}]
)
def test_other_work_is_not_finished(tmp_path: Path, change: dict[str, Any]) -> None:
    target = tmp_path / "thing"
    _write(target)
    assert artifact.finished(target, **(WORK | change)) is None


def test_exception_inside_the_block_leaves_the_old_artifact(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    _write(target, "old")
    before = artifact.peek(target)

    def fail() -> None:
        with artifact.write(target, **WORK) as draft:
            (draft.path / "a.txt").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert artifact.peek(target) == before
    assert (target / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["thing"]


@pytest.mark.parametrize("spoil", ["change", "add", "remove", "rename"])
def test_verify_notices_a_changed_file(tmp_path: Path, spoil: str) -> None:
    target = tmp_path / "thing"
    _write(target)
    manifest = artifact.peek(target)
    assert manifest is not None
    if spoil == "change":
        (target / "a.txt").write_text("two")
    elif spoil == "add":
        (target / "c.txt").write_text("")
    elif spoil == "remove":
        (target / "deep" / "b.txt").unlink()
    else:
        (target / "a.txt").rename(target / "z.txt")
    with pytest.raises(ArtifactError, match="was changed after it was written"):
        artifact.verify(target, manifest)


def test_reader_refuses_nothing_other_and_damaged(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    with pytest.raises(ArtifactError, match="run `make it` first"):
        artifact.read(target, kind="thing", version=1, made_by="make it")
    _write(target)
    with pytest.raises(ArtifactError, match="not thing version 2: run `make it` again"):
        artifact.read(target, kind="thing", version=2, made_by="make it")
    (target / artifact.MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="is damaged"):
        artifact.read(target, kind="thing", version=1, made_by="make it")


def test_a_folder_without_manifest_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    target.mkdir()
    (target / "left over.txt").write_text("?")
    _write(target)
    assert not (target / "left over.txt").exists()


WRITER = """
import sys
from pathlib import Path
from rec import artifact

target, kilobytes = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
for round in range(10_000):
    with artifact.write(target, kind="thing", version=1, inputs={}, config={"round": round}) as draft:
        for part in range(8):
            (draft.path / f"{part}.bin").write_bytes(bytes([round % 251]) * 1024 * kilobytes)
"""


@pytest.mark.parametrize("delay_ms", [3, 11, 29, 67, 113, 181])
def test_sigkill_while_writing_leaves_a_whole_artifact_or_none(tmp_path: Path, delay_ms: int) -> None:
    target = tmp_path / "thing"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(target), "64"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(delay_ms / 1000)
        os.kill(writer.pid, signal.SIGKILL)
    manifest = artifact.peek(target)
    if manifest is not None:
        artifact.verify(target, manifest)
        assert manifest.config["round"] % 251 == (target / "0.bin").read_bytes()[0]
    _write(target)  # the next run cleans up what the killed one left
    assert [p.name for p in tmp_path.iterdir()] == ["thing"]


REPLACER = """
import os, shutil, signal, sys
from pathlib import Path
from rec import artifact

target, step = Path(sys.argv[1]), int(sys.argv[2])
steps = 0

def counted(act):
    def acted(*arguments, **options):
        global steps
        if steps == step:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1
        return act(*arguments, **options)
    return acted

with artifact.write(target, kind="thing", version=1, inputs={}, config={}) as draft:
    (draft.path / "a.txt").write_text("new")
    os.rename, shutil.rmtree = counted(os.rename), counted(shutil.rmtree)
"""


@pytest.mark.parametrize("next_use", ["peek", "write"])
@pytest.mark.parametrize(
    ("step", "left"), [(0, "old"), (1, "old"), (2, "new")], ids=["before", "between the renames", "before clearing up"]
)
def test_sigkill_while_replacing_keeps_the_old_artifact_or_the_new(
    tmp_path: Path, step: int, left: str, next_use: str
) -> None:
    target = tmp_path / "thing"
    _write(target, "old")
    killed = subprocess.run([sys.executable, "-c", REPLACER, str(target), str(step)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert target.exists() == (step != 1)
    if next_use == "peek":
        manifest = artifact.peek(target)
        assert manifest is not None
        artifact.verify(target, manifest)
        assert (target / "a.txt").read_text() == left
    else:
        with pytest.raises(OSError, match="disk full"), artifact.write(target, **WORK):
            raise OSError("disk full")
        assert (target / "a.txt").read_text() == left
    _write(target, "newest")
    assert (target / "a.txt").read_text() == "newest"
    assert [p.name for p in tmp_path.iterdir()] == ["thing"]


def test_a_reader_between_the_renames_does_not_stop_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "thing"
    _write(target, "old")
    rename, met = os.rename, []

    def watched(source: Path, to: Path) -> None:
        rename(source, to)
        if source == target and not met:
            met.append(artifact.peek(target))

    monkeypatch.setattr(os, "rename", watched)
    _write(target, "new")
    assert met != [None]
    assert (target / "a.txt").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["thing"]


@given(config=TREE, inputs=st.dictionaries(st.text(max_size=6), st.text(max_size=6), max_size=3))
def test_fingerprint_ignores_key_order_and_survives_json(config: dict[str, Any], inputs: dict[str, str]) -> None:
    made = artifact.fingerprint(kind="k", version=1, inputs=inputs, config=config)
    turned = dict(reversed(list(config.items())))
    assert made == artifact.fingerprint(kind="k", version=1, inputs=dict(reversed(inputs.items())), config=turned)
    stored = json.loads(json.dumps(config))
    assert made == artifact.fingerprint(kind="k", version=1, inputs=inputs, config=stored)


@given(one=TREE, two=TREE)
def test_different_work_has_different_fingerprints(one: dict[str, Any], two: dict[str, Any]) -> None:
    def of(config: dict[str, Any]) -> str:
        return artifact.fingerprint(kind="k", version=1, inputs={}, config=config)

    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    assert (of(one) == of(two)) == same


NAMES = st.lists(st.sampled_from(["a", "b", "ab", "c/d", "c/e"]), unique=True, min_size=1)


@settings(max_examples=40)
@given(names=NAMES, contents=st.lists(st.binary(max_size=6), min_size=5, max_size=5))
def test_folder_hash_depends_on_names_and_bytes_only(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], contents: list[bytes]
) -> None:
    root = tmp_path_factory.mktemp("hash")
    files = dict(zip(names, contents, strict=False))

    def put(folder: Path, order: list[str]) -> str:
        for name in order:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[name])
        return artifact.hash_folder(folder)

    made = put(root / "one", names)
    assert made == put(root / "two", names[::-1])
    (root / "two" / names[0]).write_bytes(files[names[0]] + b"!")
    assert made != artifact.hash_folder(root / "two")
    shutil.rmtree(root)


HOLDER = """
import sys
from pathlib import Path
from rec import artifact
with artifact.alone(Path(sys.argv[1])):
    print("has it", flush=True)
    sys.stdin.read()
"""


def test_one_job_at_a_time_writes_to_a_folder_until_it_ends_or_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "store" / "demo"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"has it\n"
        with pytest.raises(ArtifactError, match=f"^process {holder.pid} on .* is writing to {folder}: wait until it"):
            artifact.alone(folder).__enter__()
        with artifact.alone(tmp_path / "store" / "other"):
            pass
        os.kill(holder.pid, signal.SIGKILL)
    for _ in range(2):
        with artifact.alone(folder):
            assert (folder / artifact.LOCK).read_text().startswith(f"process {os.getpid()} on ")


def test_a_store_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"file/demo cannot be written to .*: let this user write there, or name"):
        artifact.alone(tmp_path / "file" / "demo").__enter__()
