"""The review page: what it shows, that hostile text stays text, and what its server lets through to the file."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from selectolax.lexbor import LexborHTMLParser

from rec import dataset
from rec.config import Config
from rec.enrich import corrections, review, review_page, review_server
from rec.enrich.answers import Answer
from rec.enrich.attributes import Report
from rec.enrich.corrections import Line
from rec.enrich.finish import enriched_row
from rec.enrich.text import canonical
from rec.errors import ConfigError
from rec.schema import ENRICHED
from rec.vocab.std import StdVocabulary
from tests.enrich.conftest import COATS, write_products

VOCABULARY = StdVocabulary.load()
PORT = 8100
HOST = f"127.0.0.1:{PORT}"
ATTACK = """</div></article><script>alert(1)</script><img src=x onerror=alert(2)>"><svg/onload=alert(3)>'"&lt;b&gt;"""
HOSTILE = {
    "product_id": '"><script>alert(4)</script>',
    "title": f"Coat {ATTACK}",
    "description": f"Warm wool coat. {ATTACK}",
    "attributes": [("colour", [f"red {ATTACK}"]), (ATTACK, ["x"])],
}
ANSWER = Answer("gemma</code><script>alert(5)</script>", "1", "finished", '{"re": {"occasion": ["winter walk"]}}', 1, 1)


@pytest.fixture
def reviewed(coats: Callable[..., Config]) -> Config:
    """A store with COATS, twelve plain shirts and a product made to break the page, all of them enriched."""
    config = coats()
    plain = [{"product_id": f"B{i}", "title": f"Shirt {i}", "description": "Plain cotton shirt."} for i in range(12)]
    products: list[dict[str, Any]] = [*COATS, *plain, HOSTILE]
    write_products(config, products)
    rows = []
    for product in products:
        filled = {"description": None, "html": None, "attributes": None} | product
        text = canonical(filled, config.enrich.max_text_chars)
        answer = ANSWER if product["product_id"] in ("A1", HOSTILE["product_id"]) else None
        rows.append(enriched_row(filled, text, answer, None, VOCABULARY, Report()))
    table = pa.Table.from_pylist(rows, schema=ENRICHED.schema)
    dataset.write(config.at("enriched"), ENRICHED, [table], inputs={}, config={})
    return config


def written(config: Config) -> LexborHTMLParser:
    return LexborHTMLParser(review_page.page("demo", review.draw(config, 50, 0), {}, VOCABULARY, None))


def card_of(tree: LexborHTMLParser, product_id: str) -> Any:
    (found,) = [card for card in tree.css("article") if card.attributes["data-id"] == product_id]
    return found


def test_every_status_is_in_the_sample_and_the_seed_draws_it(reviewed: Config) -> None:
    sample = review.draw(reviewed, 6, 0)
    assert sample.counts == {"quarantined": 2, "partial": 16, "ok": 1}
    assert [item.row["status"] for item in sample.items] == [*["quarantined"] * 2, *["partial"] * 3, "ok"]
    ids = [item.row["product_id"] for item in sample.items]
    assert [item.row["product_id"] for item in review.draw(reviewed, 6, 0).items] == ids
    assert [item.row["product_id"] for item in review.draw(reviewed, 6, 1).items] != ids
    assert len(review.draw(reviewed, 500, 0).items) == 19


@pytest.mark.parametrize(
    ("size", "expected"), [(0, (0, 0, 0)), (1, (1, 0, 0)), (10, (1, 5, 4)), (12, (1, 6, 5)), (99, (1, 20, 5))]
)
def test_strata_share_evenly(size: int, expected: tuple[int, ...]) -> None:
    assert tuple(review.share({"a": 1, "b": 20, "c": 5}, size).values()) == expected


def test_a_card_shows_text_values_sources_evidence_status_and_reason(reviewed: Config) -> None:
    tree = written(reviewed)
    coat = card_of(tree, "A1")
    assert coat.css_first("h2").text() == "Alma Coat"
    assert coat.css_first(".text").text().split("\n")[1] == COATS[0]["description"]
    marks = {mark.attributes["title"]: (mark.text(), mark.attributes["class"]) for mark in coat.css("mark")}
    assert marks["colour: red (given)"] == ("red", "given")
    assert any("occasion: winter walk (llm)" in title and mark[1] == "llm" for title, mark in marks.items())
    assert any("category: coat (rule)" in title and mark[0].endswith(("Coat", "coat")) for title, mark in marks.items())
    (chip,) = coat.css('tr[data-key="occasion"] .re li.llm')
    assert chip.attributes["data-value"] == "winter walk"
    assert "evidence: winter walk" in chip.text()
    asked = card_of(tree, "A3")
    assert asked.css_first(".status").text() == "quarantined"
    assert "Ignore all previous instructions" in asked.css_first(".reason").text()


def test_hostile_text_stays_text(reviewed: Config) -> None:
    for desk in (None, review_page.Desk('t"><script>', "c</code><script>.jsonl")):
        sample = review.draw(reviewed, 50, 0)
        html = review_page.page("demo", sample, {}, VOCABULARY, desk)
        tree = LexborHTMLParser(html)
        hostile = card_of(tree, HOSTILE["product_id"])
        assert hostile.css_first("h2").text() == HOSTILE["title"]
        (script,) = tree.css("script")
        assert '"use strict"' in script.text()
        assert not tree.css("img, svg, iframe, object, link, base, form")
        for node in tree.css("*"):
            assert not [name for name in node.attributes if name.startswith("on")]
            assert not {"src", "href", "style"} & set(node.attributes), "nothing is loaded from elsewhere"


def test_the_policy_allows_the_page_s_own_script_and_style_only(reviewed: Config) -> None:
    tree = written(reviewed)
    policy = tree.css_first("meta[http-equiv]").attributes["content"]
    assert policy.startswith("default-src 'none';")
    for tag in ("script", "style"):
        digest = b64encode(sha256(tree.css_first(tag).text().encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the correction file of the server will be."""
    return tmp_path / "corrections.jsonl"


@pytest.fixture
def desk(reviewed: Config, file: Path) -> review_server.Review:
    """A review of all products."""
    return review_server.Review("demo", review.draw(reviewed, 50, 0), VOCABULARY, file)


@pytest.fixture
def client(desk: review_server.Review) -> TestClient:
    """The page's own way to the server."""
    headers = {"origin": f"http://{HOST}", "x-review-token": desk.token, "content-type": "application/json"}
    return TestClient(review_server.application(desk, PORT), base_url=f"http://{HOST}", headers=headers)


def body(*lines: dict[str, Any], product_id: str = "A1") -> str:
    return json.dumps({"product_id": product_id, "by": "ann", "lines": list(lines)})


RED = {"key": "colour", "std": ["navy"]}


def test_what_is_stated_is_in_the_file_and_on_the_page(
    client: TestClient, desk: review_server.Review, file: Path
) -> None:
    answer = client.post("/corrections", content=body(RED, {"key": "fit", "std": [], "re": ["wide"]}))
    assert answer.status_code == 200
    assert answer.json()["written"] == 2
    first, second = corrections.parse(file.read_bytes(), file).values()
    assert (first.product_id, first.key, first.std, first.re, first.by) == ("A1", "colour", ["navy"], None, "ann")
    assert (second.std, second.re) == ([], ["wide"])
    assert first.at is not None
    for html in (answer.json()["card"], client.get("/", params={"token": desk.token}).text):
        coat = card_of(LexborHTMLParser(html), "A1")
        assert [li.attributes["data-value"] for li in coat.css('tr[data-key="colour"] li.human')] == ["dark blue"]
        assert "3 corrected" in coat.css_first(".meta").text()
    client.post("/corrections", content=body({"key": "colour", "std": ["green"]}))
    coat = card_of(LexborHTMLParser(client.get("/", params={"token": desk.token}).text), "A1")
    colours = [li.attributes["data-value"] for li in coat.css('tr[data-key="colour"] li')]
    assert colours == ["green"], "the later statement counts"


def test_everything_shown_can_be_accepted(client: TestClient, reviewed: Config, file: Path) -> None:
    """Accept sends what the card shows; the values stay the same and are a person's from then on."""
    for card in written(reviewed).css("article"):
        shown = {
            row.attributes["data-key"]: {
                kind: [li.attributes["data-value"] for li in row.css(f".{kind} li")] or None for kind in ("std", "re")
            }
            for row in card.css("tr")
        }
        sent = [{"key": key, **values} for key, values in shown.items()]
        answer = client.post("/corrections", content=body(*sent, product_id=card.attributes["data-id"]))
        assert answer.status_code == 200, answer.text
        fresh = LexborHTMLParser(answer.json()["card"])
        chips = fresh.css("li")
        assert chips
        assert all("human" in (li.attributes["class"] or "") for li in chips)
        assert sorted(li.attributes["data-value"] for li in chips) == sorted(
            li.attributes["data-value"] for li in card.css("li")
        )


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": f"http://localhost:{PORT}"}, 403),
        ({"origin": ""}, 403),
        ({"x-review-token": "guess"}, 403),
        ({"x-review-token": ""}, 403),
        ({"x-review-token": "é"}, 403),
        ({"host": "evil.example"}, 403),
        ({"host": f"evil.example:{PORT}", "origin": f"http://evil.example:{PORT}"}, 403),
        ({"host": "127.0.0.1:1", "origin": "http://127.0.0.1:1"}, 403),
        ({"content-type": "text/plain"}, 415),
    ],
)
def test_nobody_else_writes(client: TestClient, file: Path, headers: dict[str, str], status: int) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    assert client.post("/corrections", content=body(RED), headers=encoded).status_code == status
    assert not file.exists()


@pytest.mark.parametrize(("token", "host"), [("", HOST), ("guess", HOST), (None, "evil.example")])
def test_nobody_else_reads(client: TestClient, desk: review_server.Review, token: str | None, host: str) -> None:
    answer = client.get("/", params={"token": desk.token if token is None else token}, headers={"host": host})
    assert answer.status_code == 403
    assert desk.token not in answer.text


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (body({"key": "flavour", "std": ["red"]}), 422, "no key 'flavour'"),
        (body({"key": "colour", "std": ["Orenge-ish"]}), 422, "'Orenge-ish' is no std value"),
        (body(RED, {"key": "colour", "std": ["vanilla"]}), 422, "'vanilla'"),
        (body(RED, {"key": "color", "std": ["red"]}), 422, "stated twice"),
        (body({"key": "colour"}), 422, "needs std, re or both"),
        (body(), 422, "at least 1"),
        (body(RED, product_id="A9"), 422, "'A9' is not on this page"),
        ("no JSON", 422, "Invalid JSON"),
        (body(RED).replace('"by"', '"sudo": 1, "by"'), 422, "not permitted"),
        (" " * (review_server.MAX_BODY + 1), 413, "more than"),
    ],
)
def test_what_is_not_sound_is_refused_whole(
    client: TestClient, file: Path, content: str, status: int, message: str
) -> None:
    answer = client.post("/corrections", content=content)
    assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text
    assert not file.exists()


def test_a_file_that_somebody_broke_is_left_as_it_is(client: TestClient, file: Path) -> None:
    file.write_text("broken\n", encoding="utf-8")
    answer = client.post("/corrections", content=body(RED))
    assert answer.status_code == 409
    assert "line 1" in answer.json()["error"]
    assert file.read_text(encoding="utf-8") == "broken\n"


def test_appending_keeps_what_is_there_and_comes_last(file: Path) -> None:
    file.write_text(
        '{"product_id": "A", "key": "fit", "std": ["loose"], "at": "2999-01-01T00:00:00Z"}', encoding="utf-8"
    )
    file.chmod(0o640)
    corrections.append(file, [Line(product_id="A", key="fit", std=["slim"])])
    old, new = corrections.parse(file.read_bytes(), file).values()
    assert old.at is not None
    assert new.at is not None
    assert new.at > old.at
    assert file.stat().st_mode & 0o777 == 0o640


APPEND = """
import sys
from pathlib import Path
from rec.enrich.corrections import Line, append

for batch in range(10_000):
    append(Path(sys.argv[1]), [Line(product_id=f"P{batch}", key="fit", re=["x" * 500] * 8) for part in range(3)])
    print(batch, flush=True)
"""


def test_a_kill_leaves_whole_statements(file: Path) -> None:
    """Batches of three lines of 4 kB; whatever was reported is there, and no batch is there in part."""
    with subprocess.Popen([sys.executable, "-c", APPEND, str(file)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        reported = -1
        while reported < 20:
            reported = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        reported = max([reported, *map(int, writer.stdout.read().split())])
    lines = [line.product_id for line in corrections.parse(file.read_bytes(), file).values()]
    assert len(lines) % 3 == 0
    assert lines == [f"P{batch}" for batch in range(len(lines) // 3) for _ in range(3)]
    assert len(lines) // 3 in (reported + 1, reported + 2)
    corrections.append(file, [Line(product_id="after", key="fit", re=["x"])])


@pytest.mark.slow
def test_the_job_writes_a_page_and_serves_one(reviewed: Config, repository: Path, tmp_path: Path, file: Path) -> None:
    command = [sys.executable, "jobs/review.py", "--set", f"store={tmp_path}", "--sample", "6"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["products"] == 6
    assert len(LexborHTMLParser(Path(result["page"]).read_text(encoding="utf-8")).css("article")) == 6

    nowhere = subprocess.run([*command, "--serve", "0"], cwd=repository, capture_output=True, text=True, check=False)
    assert nowhere.returncode == 2
    assert "enrich.corrections names no file" in nowhere.stderr

    command += ["--serve", "0", "--set", f"enrich.corrections={file}"]
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            found = re.match(r"(http://127\.0\.0\.1:\d+)/\?token=(\S+)", server.stderr.readline())
            assert found
            origin, token = found.groups()
            request = urllib.request.Request(
                f"{origin}/corrections",
                data=body(RED, product_id="A3").encode(),
                headers={"Content-Type": "application/json", "X-Review-Token": token, "Origin": origin},
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert json.load(answer)["written"] == 1
            server.send_signal(signal.SIGINT)
            out, _ = server.communicate(timeout=30)
        finally:
            server.kill()
    assert server.returncode == 0
    assert json.loads(out)["corrections"] == str(file)
    assert [line.std for line in corrections.parse(file.read_bytes(), file).values()] == [["navy"]]


def test_a_port_that_is_taken_is_named() -> None:
    with review_server.listen(0) as taken, pytest.raises(ConfigError, match=r"port \d+ on 127\.0\.0\.1 cannot be had"):
        review_server.listen(taken.getsockname()[1])
    with pytest.raises(ConfigError, match="port 99999"):
        review_server.listen(99_999)
