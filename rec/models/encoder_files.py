"""Which files of an encoder in a folder something was made with: replaced files are another encoder.

`rec.models.text_encoder.files` takes the digest; this module is light, for who only compares.
"""

from collections.abc import Mapping
from typing import Any

from rec.errors import ArtifactError

ENCODER_FILES = "encoder_files"
"""What a manifest calls the digest of the files of an encoder in a folder; left out where it is none."""


def stated(made_with: Mapping[str, Any]) -> str | None:
    """The digest of the encoder's files that an artifact's configuration states, at its top or in its branch `text`."""
    digest: str | None = made_with.get(ENCODER_FILES, made_with.get("text", {}).get(ENCODER_FILES))
    return digest


def check(name: object, found: str | None, wanted: str | None, *, encoder: str, reader: str, remedy: str) -> None:
    """Raise ArtifactError when `name` was made with other files in the folder `encoder` than `reader` reads.

    Both state the digest of these files, or None where there is no folder, or where nobody noted them: there is no
    telling that those were the same.
    """
    if found == wanted:
        return
    silent = str(name) if found is None else reader if wanted is None else None
    if silent is not None:
        raise ArtifactError(
            f"{silent} was made by a program that noted no files of the folder text.encoder {encoder!r}, so that "
            f"replaced ones would not show: {remedy}"
        )
    raise ArtifactError(
        f"{name} was made with other files in the folder text.encoder {encoder!r} than {reader} reads: {remedy}"
    )
