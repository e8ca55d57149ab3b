"""Bundles elsewhere: on any filesystem that pyarrow knows (s3://, gs://, file:///).

    <uri>/<id>/...files          as in the store
    <uri>/<id>/manifest.json     written last: without it there is no bundle

`push` and `pull` may be killed and called again: what has arrived whole, by its SHA-256, is not sent again. A pulled
bundle lies in a staging folder until every file has the hash that its manifest, whose hash is its name, says.
Credentials come from the environment of the filesystem (AWS_ACCESS_KEY_ID, ...); those in a URI are never shown.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from rec import artifact, assemble, bundle
from rec.bundle import Bundle
from rec.errors import ArtifactError, ConfigError

_BLOCK = 8 * 2**20
_SECRET = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Environment variables that no message shows."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What a push or a pull did."""

    sent: int
    """Files that were copied, the manifest included."""
    there: int
    """Files that had arrived before."""
    bytes: int
    """Bytes that were copied."""


def push(made: Bundle, uri: str) -> Moved:
    """Copy a verified bundle to `uri`. Raises ArtifactError when it is damaged or the copy fails."""
    bundle.verify(made)
    sent = size = 0
    with _opened(uri) as (remote, base):
        folder = f"{base}/{made.id}"
        for name, entry in sorted(made.files.items()):
            if _remote_hash(remote, f"{folder}/{name}", entry["bytes"]) != entry["sha256"]:
                _upload(made.path / name, remote, f"{folder}/{name}")
                sent, size = sent + 1, size + entry["bytes"]
        manifest, target = made.path / "manifest.json", f"{folder}/manifest.json"
        length = manifest.stat().st_size
        if _remote_hash(remote, target, length) != artifact.hash_file(manifest):
            _upload(manifest, remote, target)
            sent, size = sent + 1, size + length
    return Moved(sent, len(made.files) + 1 - sent, size)


def pull(uri: str, name: str, store: str | Path) -> Moved:
    """Copy bundle `name` from `uri` into a store. Raises ArtifactError when it is not there, or not as it was made."""
    bundle.check_id(name)
    folder = Path(store).resolve() / "bundles"
    staging = folder / f".{name}{bundle.PULLED}"
    try:
        staging.mkdir(parents=True, exist_ok=True)
        with bundle.alone(staging):
            if bundle.sound(store, name):
                moved = Moved(0, 1 + len(bundle.read(store, name).files), 0)
            else:
                moved = _pull(uri, name, staging)
                with bundle.alone(folder):
                    bundle.put(staging, folder / name)
        shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(
            f"bundle {name} cannot be written to {folder} ({error}): see that the folder may be "
            "written to and that its disk has space left; what has arrived is kept for the next try"
        ) from error
    return moved


def _pull(uri: str, name: str, staging: Path) -> Moved:
    """Bring `staging` to hold the whole bundle."""
    sent = size = 0
    with _opened(uri) as (remote, base):
        source = f"{base}/{name}"
        text = _read(remote, f"{source}/manifest.json")
        if text is None:
            raise ArtifactError(f"there is no whole bundle {name} at {shown(uri)}: see what was pushed there")
        if hashlib.sha256(text).hexdigest()[:12] != name:
            raise ArtifactError(f"the manifest of bundle {name} at {shown(uri)} was changed: push it again")
        (staging / "manifest.json").write_bytes(text)
        wanted = bundle.opened(staging, name)
        for file in wanted.files:
            _check_name(file, name)
        for path in [path for path in staging.rglob("*") if path.is_file()]:
            if path.relative_to(staging).as_posix() not in {*wanted.files, "manifest.json"}:
                path.unlink()  # of a copy that was damaged
        for file, entry in sorted(wanted.files.items()):
            target = staging / file
            if not target.is_file() or artifact.hash_file(target) != entry["sha256"]:
                target.parent.mkdir(parents=True, exist_ok=True)
                _download(remote, f"{source}/{file}", target, f"bundle {name} at {shown(uri)}")
                sent, size = sent + 1, size + entry["bytes"]
                if artifact.hash_file(target) != entry["sha256"]:
                    target.unlink()
                    raise ArtifactError(f"{file} of bundle {name} at {shown(uri)} was changed: push it again")
    bundle.verify(wanted)
    return Moved(sent + 1, len(wanted.files) - sent, size + len(text))


def shown(uri: str) -> str:
    """`uri` without user, password and options, which may be secrets."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def _opened(uri: str) -> Iterator[tuple[fs.FileSystem, str]]:
    """The filesystem of `uri` and the path in it; what the filesystem refuses meanwhile becomes an ArtifactError."""
    try:
        remote, base = fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, OSError) as error:
        raise ConfigError(
            f"{shown(uri)} cannot be opened ({type(error).__name__}): name s3://bucket/folder, gs://bucket/folder or "
            "file:///folder"
        ) from None
    try:
        yield remote, base.rstrip("/")
    except _RemoteError as error:
        said = _without_secrets(str(error), uri)
        raise ArtifactError(
            f"{shown(uri)} failed ({said}): see that it is there, that you may read and write it, and that it has "
            "space left; a further try continues"
        ) from None


class _RemoteError(Exception):
    """What the other side refused, on one line."""


def _without_secrets(text: str, uri: str) -> str:
    """`text`, unless it repeats a credential of the URI or of the environment."""
    user = urlsplit(uri).netloc.rpartition("@")[0]
    secrets = [user, *user.split(":", 1), *(os.environ.get(name, "") for name in _SECRET)]
    if "://" in text or any(secret and (secret in text or unquote(secret) in text) for secret in secrets):
        return "its words may hold credentials and are not shown"
    return text


@contextmanager
def _remotely() -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        lines = str(error).splitlines() or [""]
        raise _RemoteError(f"{type(error).__name__}: {lines[0]}") from None


def _remote_hash(remote: fs.FileSystem, path: str, size: int) -> str | None:
    """SHA-256 of the file at `path`; None unless there is one of `size` bytes."""
    with _remotely():
        info = remote.get_file_info(path)
        if info.type != fs.FileType.File or info.size != size:
            return None
        with remote.open_input_stream(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _upload(source: Path, remote: fs.FileSystem, target: str) -> None:
    with source.open("rb") as file, _remotely():
        if not isinstance(remote, fs.S3FileSystem | fs.GcsFileSystem):  # these have no folders
            remote.create_dir(target.rpartition("/")[0], recursive=True)
        with remote.open_output_stream(target) as out:
            while block := file.read(_BLOCK):
                out.write(block)


def _read(remote: fs.FileSystem, path: str) -> bytes | None:
    with _remotely():
        if remote.get_file_info(path).type != fs.FileType.File:
            return None
        with remote.open_input_stream(path) as file:
            return bytes(file.read())


def _download(remote: fs.FileSystem, path: str, target: Path, what: str) -> None:
    """Copy one file; what has arrived when this process is killed has another hash."""
    with _remotely():
        missing = remote.get_file_info(path).type != fs.FileType.File
    if missing:
        raise ArtifactError(f"{what} lacks {PurePosixPath(path).name}: push it again")
    with _remotely():
        source = remote.open_input_stream(path)
    with source, target.open("wb") as file:
        while True:
            with _remotely():
                block = source.read(_BLOCK)
            if not block:
                break
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _check_name(file: str, name: str) -> None:
    """Raise ArtifactError for a file that is none of a bundle's or would lie outside its folder."""
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "\\" in file or path.suffix not in assemble.SUFFIXES:
        raise ArtifactError(f"bundle {name} lists {file!r}, which no bundle has: it was not made by `{bundle.MADE_BY}`")
