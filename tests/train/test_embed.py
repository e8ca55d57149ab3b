"""What embed refuses before it starts anything."""

from pathlib import Path

import pytest

from rec import artifact, embed
from rec.errors import ArtifactError
from tests.item_tower import catalogue, untrained


def test_a_tower_of_another_width_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = catalogue.shop(tmp_path, 8)
    untrained.write(tree, 0)
    wider = tree.model_copy(update={"item_tower": tree.item_tower.model_copy(update={"width": 64})})
    monkeypatch.setattr(embed.runtime, "start", lambda *_: pytest.fail("Ray is started"))
    said = (
        rf"the item tower in {tree.at('item_tower')} makes vectors of 32 numbers, but item_tower\.width is 64: run "
        r"`python jobs/pretrain\.py` again, or give the option that it was trained with"
    )
    with pytest.raises(ArtifactError, match=said):
        embed.run(wider)
    assert artifact.peek(wider.at("vectors")) is None
