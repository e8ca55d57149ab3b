"""Artifacts: folders that exist whole or not at all.

Every stage writes one folder. Files go to a staging folder beside the target; `_manifest.json` is
written last and the staging folder is renamed into place. A folder without a manifest is not an
artifact, so a job killed at any moment leaves either the old artifact, the new one, or, where there
was none, none. Between moving the old one aside and the new one in, the target is missing: whoever
looks for it next puts the old one back.
The content hash covers the bytes of every file; equal inputs and configuration give equal hashes, but for vectors
that a store kept from before (`rec.embed`).
"""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rec.errors import ArtifactError

MANIFEST = "_manifest.json"
LOCK = ".lock"
"""File in a folder of artifacts that the job writing to it holds locked; it says which one that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What `_manifest.json` says of its folder."""

    kind: str
    """What the folder holds, e.g. `products` or `item_tower`."""
    version: int
    """Version of the kind's schema; a reader refuses another one."""
    content_hash: str
    """SHA-256 over the names and bytes of all files."""
    inputs: Mapping[str, str]
    """Content hash of every input artifact, by name."""
    config: Mapping[str, Any]
    """The branch of the configuration that made this artifact."""
    facts: Mapping[str, Any]
    """Counts and other facts of the run, such as `rows` and `rejected`."""

    @property
    def fingerprint(self) -> str:
        """Identity of the work: equal fingerprints mean that redoing the stage is pointless."""
        return fingerprint(kind=self.kind, version=self.version, inputs=self.inputs, config=self.config)


def fingerprint(*, kind: str, version: int, inputs: Mapping[str, str], config: Mapping[str, Any]) -> str:
    """SHA-256 of everything that determines a stage's output."""
    text = json.dumps([kind, version, dict(inputs), dict(config)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def run_name(kind: str, *, version: int, inputs: Mapping[str, str], config: Mapping[str, Any]) -> str:
    """Name of what a stage keeps while it makes an artifact: the same work, and no other, finds it again."""
    return f"{kind}-{fingerprint(kind=kind, version=version, inputs=inputs, config=config)[:16]}"


def sweep_runs(runs: Path, kind: str, keep: Collection[str] = ()) -> None:
    """Remove from `runs` what all runs of `kind` keep there, but for the folders that `keep` names.

    At a stage's start these are what killed runs of other work left, at its end those of the artifact.
    """
    for folder in runs.glob(f"{kind}-*"):
        if folder.name not in keep:
            shutil.rmtree(folder, ignore_errors=True)


class Busy(ArtifactError):
    """Another job writes artifacts there."""


@contextmanager
def alone(folder: Path, lock: str = LOCK) -> Iterator[None]:
    """Let one job at a time write artifacts to `folder`, on whichever machine: two would undo each other's work.

    The lock goes with the process, however it ends. It is on the file `lock`, which stays there: NFS shows other
    machines no locks of folders. Raises Busy when another job has it, ArtifactError when `folder` cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / lock).open("a+", encoding="utf-8")
    except OSError as error:
        raise ArtifactError(
            f"{folder} cannot be written to ({error}): let this user write there, or name another folder with "
            "--set store=FOLDER"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            other = file.read().strip() or "another job"
            raise Busy(f"{other} is writing to {folder}: wait until it ends, or end it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(folder: Path) -> str:
    """SHA-256 over (relative name, SHA-256 of bytes) of all files but the manifest, in name order."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{hash_file(path)}\n".encode())
    return digest.hexdigest()


class Draft:
    """A folder being written. Put files under `path`; record facts with `note`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = {}

    def note(self, **facts: Any) -> None:
        """Add facts (JSON values) to the manifest."""
        self.facts.update(facts)


@contextmanager
def write(
    target: Path, *, kind: str, version: int, inputs: Mapping[str, str], config: Mapping[str, Any]
) -> Iterator[Draft]:
    """Write the artifact `target` atomically; an exception inside the block leaves `target` as it was."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target)
    staging = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
    staging.mkdir()
    draft = Draft(staging)
    try:
        yield draft
        manifest = {
            "kind": kind,
            "version": version,
            "content_hash": hash_folder(staging),
            "inputs": dict(inputs),
            "config": dict(config),
            "facts": draft.facts,
        }
        write_json(staging / MANIFEST, manifest)
        _replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def sweep(target: Path) -> None:
    """Remove what killed writers of `target` left beside it; what they left in its place is put there first.

    The caller is its only writer.
    """
    _recover(target)
    for stale in (*target.parent.glob(f".{target.name}.*.tmp"), *_set_aside(target)):
        shutil.rmtree(stale, ignore_errors=True)


def _replace(staging: Path, target: Path) -> None:
    """Rename `staging` to `target`, and remove what was there."""
    while True:
        with suppress(FileNotFoundError):
            os.rename(target, target.parent / f".{target.name}.{uuid.uuid4().hex}.old")
        try:
            os.rename(staging, target)
            break
        except OSError:
            if not target.exists():
                raise
            # A reader came between the renames and put the old one back: move it aside once more.
    for old in _set_aside(target):
        shutil.rmtree(old, ignore_errors=True)


def link(source: Path, target: Path) -> None:
    """Give a finished file another name, in a folder that is made where it is missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a filesystem without links
        shutil.copyfile(source, target)


def _set_aside(target: Path) -> list[Path]:
    """What a writer moved out of the way of `target` and did not remove."""
    return sorted(target.parent.glob(f".{target.name}.*.old"))


def _recover(target: Path) -> None:
    """Put back the artifact that a killed writer moved aside, when nothing took its place."""
    if target.exists():
        return
    for old in _set_aside(target):
        if (old / MANIFEST).is_file():
            with suppress(OSError):  # its writer is alive and was faster, or another reader was
                os.rename(old, target)
            return


def write_json(path: Path, value: Any) -> None:
    """Write JSON through a temporary file, flushed to disk and renamed."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read(target: Path, *, kind: str, version: int, made_by: str) -> Manifest:
    """Read and check the manifest of `target`.

    `made_by` is the command that makes such an artifact; it appears in the error.
    Raises ArtifactError when the folder, its manifest, its kind or its version is not as asked.
    """
    found = peek(target)
    if found is None:
        raise ArtifactError(f"{target} holds no finished {kind}: run `{made_by}` first")
    if found.kind != kind or found.version != version:
        raise ArtifactError(
            f"{target} holds {found.kind} version {found.version}, not {kind} version {version}: run `{made_by}` again"
        )
    return found


def peek(target: Path) -> Manifest | None:
    """The manifest of `target`, or None when there is no finished artifact."""
    _recover(target)
    path = target / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): remove {target} and run its job again") from error


def finished(
    target: Path, *, kind: str, version: int, inputs: Mapping[str, str], config: Mapping[str, Any]
) -> Manifest | None:
    """The manifest of `target` when it was made by exactly this work, else None: the stage has to run."""
    found = peek(target)
    wanted = fingerprint(kind=kind, version=version, inputs=inputs, config=config)
    return found if found is not None and found.fingerprint == wanted else None


def verify(target: Path, manifest: Manifest) -> None:
    """Raise ArtifactError when a file of `target` no longer has the bytes that the manifest hashed."""
    if hash_folder(target) != manifest.content_hash:
        raise ArtifactError(f"{target} was changed after it was written: remove it and run its job again")
