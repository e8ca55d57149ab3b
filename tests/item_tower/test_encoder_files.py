"""Replaced files of an encoder are another encoder, and files that nobody noted may have been replaced."""

from pathlib import Path

import pyarrow as pa
import pytest

from rec import artifact, dataset
from rec.errors import ArtifactError
from rec.models.item_inputs import TEXT_STATES, TEXT_STATES_VERSION, check_texts
from rec.schema import TENSORS


@pytest.mark.parametrize(
    ("tensors", "states", "wanted", "refused"),
    [
        (None, None, None, None),
        ("a", "a", "a", None),
        ("a", "b", "a", "text_states was made with other files in the folder text.encoder 'folder' than the tower"),
        ("a", "a", "b", "tensors was made with other files"),
        ("a", "a", None, "^the tower was made by a program that noted no files of the folder text.encoder 'folder'"),
        (None, None, "a", "tensors was made by a program that noted no files"),
        ("a", None, "a", "text_states was made by a program that noted no files"),
    ],
)
def test_texts_are_those_of_the_files_that_the_reader_was_made_with(
    tmp_path: Path, tensors: str | None, states: str | None, wanted: str | None, refused: str | None
) -> None:
    def made_with(digest: str | None) -> dict[str, str]:
        return {"encoder": "folder"} | ({} if digest is None else {"encoder_files": digest})

    none = pa.Table.from_pylist([], TENSORS.schema)
    dataset.write(tmp_path / "tensors", TENSORS, [none], inputs={}, config={"text": made_with(tensors)})
    work = {"kind": TEXT_STATES, "version": TEXT_STATES_VERSION, "inputs": {}}
    with artifact.write(tmp_path / "text_states", **work, config=made_with(states)):
        pass

    def check() -> None:
        folders = tmp_path / "tensors", tmp_path / "text_states"
        check_texts(*folders, encoder="folder", layers_above=0, reader="the tower", files=wanted)

    if refused is None:
        check()
    else:
        with pytest.raises(ArtifactError, match=refused):
            check()
