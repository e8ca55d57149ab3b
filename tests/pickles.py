"""Which files Python would unpickle."""

import io
import pickletools
import zipfile
from pathlib import Path

import safetensors
from numpy.lib import format as npy


def is_safetensors(data: bytes) -> bool:
    """Read whole as safetensors, whose first bytes, the length of its header, may spell a pickle's opcodes."""
    try:
        safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return False
    return True


def runs_code(data: bytes) -> bool:
    """Whether Python would find a pickle in it: bare, in torch's zip, or as objects of a numpy array."""
    if zipfile.is_zipfile(io.BytesIO(data)):
        return True
    if data.startswith(npy.MAGIC_PREFIX):
        stream = io.BytesIO(data)
        npy.read_magic(stream)
        return npy.read_array_header_1_0(stream)[2].hasobject
    if is_safetensors(data):
        return False
    try:
        *_, (last, _, _) = pickletools.genops(data)  # reads opcodes, runs none
    except Exception:  # what is no pickle fails in as many ways as there are files
        return False
    return last.name == "STOP"


def found(folder: Path) -> list[Path]:
    """Files below a folder that hold a pickle. Raises AssertionError where there is no file at all."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files, folder
    return [path for path in files if runs_code(path.read_bytes())]
