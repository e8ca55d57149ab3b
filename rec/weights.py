"""What is not safetensors is no weights: the error that a reader of the format raises, said as one of ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from rec.errors import ArtifactError


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """Around the reading of a safetensors file, which runs nothing of it. Raises ArtifactError where it is none."""
    try:
        yield path
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{path} is no safetensors file, or not all of one ({error}): remove its folder and run its job again"
        ) from error
