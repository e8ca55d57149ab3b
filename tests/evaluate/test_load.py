"""What load on a server is counted as; answers of a server are counted in serve/test_shop.py."""

from rec.evaluate import load
from rec.ports import free


def test_a_server_that_is_not_there_is_told_from_one_that_gives_no_answer() -> None:
    found = load.closed(f"http://127.0.0.1:{free()}/", [{}], clients=1, seconds=0.05)
    assert set(found.statuses) == {load.UNREACHED}
