"""Rules of a merchandiser: how files are refused, which rule is the stronger, versions in Postgres, and the job."""

import gc
import json
import sys
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from jobs import rules as job
from rec import cli
from rec.config import Config
from rec.errors import DatabaseError, InputError
from rec.index import rule_versions
from rec.index.connections import Connections
from rec.index.search import Filters
from rec.recommend.chain import Chain
from rec.recommend.facets import Facets
from rec.recommend.request import Answer, Choice, LeftOut, Request
from rec.recommend.rules import Rules, parse
from tests.bundle import tiny

NOW = tiny.START + timedelta(days=20)
SHOPPER = Request(history=(Choice("P0003"), Choice("P0007")), k=20)


def row(product_id: str) -> int:
    """Item row of a product id of the tiny shop."""
    return int(product_id[1:])


def ids(answer: Answer) -> list[str]:
    """Product ids of an answer."""
    return [item["product_id"] for item in answer.items]


def brand(product_id: str) -> str | None:
    """Brand of a product of the tiny shop."""
    return ("Norr", "Haan", None)[row(product_id) % 3]


def under(chain: Chain, source: str, request: Request = SHOPPER, clock: datetime = NOW) -> Answer:
    """The answer under rules that know every name."""
    ruling = chain.rules.compiled(parse(source, "test"))
    assert ruling.unknown == []
    return chain.answer(request, ruling, clock)


def codes(answer: Answer, code: str) -> list[str]:
    """Products with a reason code."""
    return [item["product_id"] for item in answer.items if code in item["reasons"]]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("diversity = ", "not TOML"),
        ("diversity = 1.5", r"diversity: .*less than or equal to 1 \(got 1.5\)"),
        ("diversity = true", "diversity: .*valid number"),
        ("diversty = 0.3", "unknown field 'diversty'; did you mean 'diversity'"),
        ("[caps]\nbrand = 0", r"caps.brand: .*\(got 0\)"),
        ("[[boost]]\namount = 0.2", "boost.1: names no products: give one of products, brand, category"),
        ("[[boost]]\nbrand = ['Norr']", "boost.1.amount: Field required"),
        ("[[boost]]\nbrand = ['Norr']\namount = nan", "boost.1.amount"),
        ("[[bury]]\nbrnd = ['Norr']", "unknown field 'bury.1.brnd'; did you mean 'brand'"),
        ("[[bury]]\nbrand = 'Norr'", "bury.1.brand: .*valid list"),
        ("[[bury]]\nprice_min = 5\nprice_max = 1", r"price_min \(5\) is above price_max \(1\)"),
        ("[[exclude]]\nprice_max = 5", "unknown field 'exclude.1.price_max'"),
        ("[[pin]]\nproduct = 'P0001'\nposition = 101", "pin.1.position"),
        ("[[pin]]\nproduct = 'P0001'\nposition = 1\nfrom = 2026-01-01T00:00:00", "pin.1.from: .*no time zone"),
        (
            "[[pin]]\nproduct = 'P0001'\nposition = 1\nfrom = 2026-02-01T00:00:00Z\nuntil = 2026-01-01T00:00:00Z",
            "must be before until",
        ),
        (
            "[[pin]]\nproduct = 'P0001'\nposition = 1\n[[pin]]\nproduct = 'P0002'\nposition = 1",
            "two pins have position 1 at the same time",
        ),
        ("x = '" + 300_000 * "x" + "'", "longer than 262144 bytes"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(source: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse(source, "rules.toml")


def test_pins_one_after_the_other_may_share_a_place() -> None:
    first = "[[pin]]\nproduct = 'P0001'\nposition = 1\nuntil = 2026-02-01T00:00:00Z\n"
    assert len(parse(first + "[[pin]]\nproduct = 'P0002'\nposition = 1\nfrom = 2026-02-01T00:00:00Z", "x").pin) == 2


def test_what_rules_name_goes_with_its_bundle(chain: Chain) -> None:
    facets = Facets(chain.bundle)
    assert facets.of("colour") is facets.of("colour"), "looked up once"
    gone = weakref.ref(facets)
    del facets
    gc.collect()
    assert gone() is None


def test_no_rules_change_nothing(chain: Chain) -> None:
    plain = chain.answer(SHOPPER, None, NOW)
    assert under(chain, "diversity = 0").items == plain.items
    assert plain.rules is None


def test_each_rule_does_what_it_says(chain: Chain) -> None:
    plain = ids(chain.answer(SHOPPER, None, NOW))
    pinned = under(chain, "[[pin]]\nproduct = 'P0012'\nposition = 3")
    assert ids(pinned)[2] == "P0012"
    assert codes(pinned, "pinned") == ["P0012"]
    assert [name for name in ids(pinned) if name != "P0012"] == [name for name in plain if name != "P0012"][:19]
    excluded = under(chain, "[[exclude]]\nbrand = ['Norr']\n[[exclude]]\nattributes = {colour = ['red']}")
    assert len(ids(excluded)) == 20, "others take their places"
    assert not [name for name in ids(excluded) if brand(name) == "Norr" or tiny.colour(row(name)) == "red"]
    capped = under(chain, "[caps]\nbrand = 3\ncolour = 5")
    kept = [name for name in ids(capped) if name not in codes(capped, "over_cap")]
    assert max(sum(brand(name) == each for name in kept) for each in ("Norr", "Haan")) <= 3
    assert max(sum(tiny.colour(row(name)) == each for name in kept) for each in tiny.COLOURS) <= 5
    of_styles = [tiny.group_id(row(name)) for name in plain]
    assert len([style for style in of_styles if style]) > len({style for style in of_styles if style}) + 2
    styles = under(chain, "[caps]\ngroup_id = 1")
    shown = [tiny.group_id(row(name)) for name in ids(styles) if name not in codes(styles, "over_cap")]
    assert len([style for style in shown if style]) == len({style for style in shown if style})
    assert None in shown, "what is on its own is not limited"
    boosted = under(chain, "[[boost]]\ncategory = ['coat']\namount = 1.0")
    coats = [tiny.category(row(name)) == "coat" for name in ids(boosted)]
    assert sum(coats) > sum(tiny.category(row(name)) == "coat" for name in plain)
    assert codes(boosted, "boosted") == [name for name, coat in zip(ids(boosted), coats, strict=True) if coat]
    varied = under(chain, "diversity = 0.5")
    assert codes(varied, "diversified")
    assert set(ids(varied)) != set(plain)
    buried = under(chain, "[[bury]]\nprice_max = 60", Request(k=60))
    prices = [item["price"] <= 60 for item in buried.items]
    assert any(prices)
    assert prices == sorted(prices), "cheap ones come last"


def test_the_stronger_rule_holds(chain: Chain) -> None:
    everything = (
        "[caps]\nbrand = 1\n[[bury]]\nproducts = ['P0012']\n[[exclude]]\nproducts = ['P0030']\n"
        "[[pin]]\nproduct = 'P0012'\nposition = 1\n[[pin]]\nproduct = 'P0030'\nposition = 2\n"
        "[[pin]]\nproduct = 'P0006'\nposition = 4\n[[boost]]\nproducts = ['P0012', 'P0030']\namount = 1.0\n"
    )
    found = under(chain, everything)
    assert ids(found)[0] == "P0012", "pin over bury"
    assert "P0030" not in ids(found), "exclude over pin and boost"
    assert found.rules is not None
    assert found.rules.left_out == [LeftOut("P0030", "excluded")]
    assert ids(found)[3] == "P0006", "pin over cap"
    assert brand("P0006") == brand("P0012") == "Norr"
    free = [name for name in ids(found) if name not in ("P0012", "P0006", *codes(found, "over_cap"))]
    assert "Norr" not in map(brand, free), "pins count for caps"
    capped = under(chain, "[caps]\nbrand = 2\n[[bury]]\nbrand = ['Haan']", Request(k=40))
    over = ids(capped).index(codes(capped, "over_cap")[0])
    assert [brand(name) for name in ids(capped)[:over]].count("Haan") == 2, "caps over bury"
    away = under(chain, "[[bury]]\nbrand = ['Norr']\n[[boost]]\nbrand = ['Norr']\namount = 1.0", Request(k=60))
    norr = [brand(name) == "Norr" for name in ids(away)]
    assert norr == sorted(norr), "bury over boost"


@pytest.mark.parametrize(
    ("request_", "product", "reason"),
    [
        (Request(exclude=("P0012",)), "P0012", "excluded"),
        (Request(history=(Choice("P0012"),)), "P0012", "excluded"),
        (Request(filters=Filters(categories=("coat",))), "P0012", "filtered"),
        (Request(), "P0009", "filtered"),  # out of stock
    ],
)
def test_what_a_request_forbids_is_not_pinned_and_that_is_said(
    chain: Chain, request_: Request, product: str, reason: str
) -> None:
    found = under(chain, f"[[pin]]\nproduct = '{product}'\nposition = 1", request_)
    assert product not in ids(found)
    assert found.rules is not None
    assert found.rules.left_out == [LeftOut(product, reason)]  # type: ignore[arg-type]


def test_a_pin_brings_in_what_nothing_found(chain: Chain) -> None:
    seen = Request(history=(Choice("P0003"),), k=60)
    missing = next(
        name
        for name in map(tiny.product_id, range(tiny.ITEMS))
        if row(name) % 10 != 9 and name not in [*ids(chain.answer(seen, None, NOW)), "P0003"]
    )
    found = under(chain, f"[[pin]]\nproduct = '{missing}'\nposition = 5", seen)
    assert ids(found)[4] == missing
    assert found.items[4]["sources"] == []
    assert not {"near_shopper", "for_anyone"} & set(found.items[4]["reasons"])
    assert found.items[4]["reasons"][-1] == "pinned"
    assert found.rules is not None
    assert found.rules.moved_by[4] == ["pin 1"]


def test_a_campaign_begins_and_ends(chain: Chain) -> None:
    source = "[[pin]]\nproduct = 'P0012'\nposition = 1\nfrom = 2025-04-01T00:00:00Z\nuntil = 2025-04-02T00:00:00Z"
    at = [datetime(2025, 4, 1, tzinfo=UTC) + timedelta(days=1) * day for day in (-1e-6, 0, 0.5, 1)]
    ruling = chain.rules.compiled(parse(source, "test"))
    pins = [ids(chain.answer(SHOPPER, ruling, moment))[0] == "P0012" for moment in at]
    assert pins == [False, True, True, False]


def test_what_a_bundle_lacks_holds_nothing_up_and_is_listed(chain: Chain) -> None:
    source = (
        "[caps]\nbrnd = 2\n[[exclude]]\nbrand = ['Norr', 'Gone']\n"
        "[[boost]]\nattributes = {shade = ['red']}\namount = 1.0\n[[pin]]\nproduct = 'P9999'\nposition = 1"
    )
    ruling = chain.rules.compiled(parse(source, "test"))
    assert [(unknown.kind, unknown.name) for unknown in ruling.unknown] == [
        ("key", "brnd"),
        ("brand", "Gone"),
        ("product", "P9999"),
        ("key", "shade"),
    ]
    assert "did you mean 'brand'?" in ruling.advice(ruling.unknown[0])
    found = chain.answer(SHOPPER, ruling, NOW)
    assert "Norr" not in map(brand, ids(found))
    assert not codes(found, "boosted")


@pytest.fixture
def ruled(published: Config, chain: Chain, tmp_path: Path) -> Iterator[Path]:
    """A file for rules; when the test ends none are in force."""
    yield tmp_path / "rules.toml"
    run(published, "clear")
    chain.rules.refresh()


def run(recipe: Config, *arguments: str) -> dict[str, Any]:
    """What jobs/rules.py answers."""
    return dict(job.run(recipe, job.arguments().parse_args(arguments)))


def test_a_chain_follows_what_the_job_applies(
    published: Config, chain: Chain, ruled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ids(chain.answer(SHOPPER, None, NOW))
    monkeypatch.setattr("rec.recommend.chain.RULES_S", 3_600.0)
    chain.rules.refresh()
    answers = {}
    for product in ("P0012", "P0030"):
        ruled.write_text(f"[[pin]]\nproduct = '{product}'\nposition = 1\n", encoding="utf-8")
        answers[product] = run(published, "apply", str(ruled))["version"]
    assert ids(chain.recommend(SHOPPER, NOW)) == plain, "looked at a moment ago"
    monkeypatch.setattr("rec.recommend.chain.RULES_S", 0.0)
    found = chain.recommend(SHOPPER, NOW)
    assert ids(found)[0] == "P0030"
    assert found.rules is not None
    assert found.rules.version == answers["P0030"]
    assert chain.rules.state() == {"version": answers["P0030"], "inactive": [], "problem": None}
    assert run(published, "show")["earlier"][0] == answers["P0012"]
    assert run(published, "show", "--out", str(ruled))["rules"] == ruled.read_text(encoding="utf-8")
    assert run(published, "revert") == {"version": answers["P0012"]}
    assert ids(chain.recommend(SHOPPER, NOW))[0] == "P0012"
    run(published, "clear")
    assert ids(chain.recommend(SHOPPER, NOW)) == plain
    assert run(published, "show")["rules"] == ""
    run(published, "revert")
    assert ids(chain.recommend(SHOPPER, NOW))[0] == "P0012"
    assert ids(chain.recommend(Request(history=SHOPPER.history, k=20, rules=False), NOW)) == plain


def test_rules_of_a_newer_program_leave_those_before_in_force(published: Config, chain: Chain, ruled: Path) -> None:
    ruled.write_text("[[pin]]\nproduct = 'P0012'\nposition = 1\n", encoding="utf-8")
    version = run(published, "apply", str(ruled))["version"]
    chain.rules.refresh()
    rule_versions.apply(job.Desk.of(published).url, published.name, "[[teleport]]")
    chain.rules.refresh()
    state = chain.rules.state()
    assert state["version"] == version
    assert "teleport" in state["problem"]
    assert ids(chain.answer(SHOPPER, chain.rules.ruling, NOW))[0] == "P0012"


def test_unknown_names_are_refused_with_the_nearest(published: Config, ruled: Path) -> None:
    ruled.write_text("[caps]\nbrnad = 2\n[[bury]]\nbrand = ['Nor']\n[[pin]]\nproduct = 'P012'\nposition = 1\n")
    before = run(published, "show")
    for action in ("check", "apply", "preview"):
        with pytest.raises(InputError) as refused:
            run(published, action, str(ruled))
        for said in ("'brnad'; did you mean 'brand'", "'Nor'; did you mean 'Norr'", "'P012'; did you mean 'P0"):
            assert said in str(refused.value)
    assert run(published, "show") == before


def test_a_preview_shows_what_would_change_and_changes_nothing(
    published: Config, ruled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ruled.write_text(
        "diversity = 0.4\n[caps]\nbrand = 4\n[[pin]]\nname = 'spring'\nproduct = 'P0012'\nposition = 2\n"
        "[[pin]]\nproduct = 'P0009'\nposition = 5\n"
    )
    before = run(published, "show")
    totals = run(published, "preview", str(ruled), "--users", "5", "--k", "10")
    assert run(published, "show") == before
    assert totals["lists"] == totals["lists_changed"] == totals["ndcg@10"]["shoppers"] == 5
    assert totals["codes"]["pinned"] <= 5
    assert totals["left_out"]["P0009"] == 5
    assert totals["similarity"]["after"] < totals["similarity"]["before"]
    assert totals["brands"]["Norr"]["after"] <= 0.5
    assert set(totals["ndcg@10"]) == {"shoppers", "before", "after", "difference", "ci95"}
    printed = capsys.readouterr().err
    assert "pin 1 (spring)" in printed
    assert "pinned P0009 is left out: filtered" in printed
    one = run(published, "preview", str(ruled), "--history", "P0003", "--history", "P0004")
    assert one["lists"] == 1
    assert "ndcg@10" not in one


def test_versions_come_and_go_one_catalogue_apart_from_another(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS rule_versions")
        connection.execute("CREATE DATABASE rule_versions")
    url = psycopg.conninfo.make_conninfo(database_url, dbname="rule_versions")
    assert rule_versions.apply(url, "demo", "diversity = 0.1").number == 1
    assert rule_versions.apply(url, "other", "").number == 2
    connections = Connections(url, size=1)
    found = rule_versions.in_force(connections, "demo")
    assert found is not None
    assert found.source == "diversity = 0.1"
    assert rule_versions.revert(url, "demo") is None
    assert rule_versions.in_force(connections, "demo") is None
    with pytest.raises(DatabaseError, match="no rules to revert"):
        rule_versions.revert(url, "demo")
    connections.close()


def test_the_job_prints_one_line(
    published: Config, ruled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ruled.write_text("[[boost]]\ncategory = ['coat']\namount = 0.3\n")
    options = ["--set", f"store={published.store}", "--set", f"name={published.name}"]
    monkeypatch.setattr(sys, "argv", ["rules.py", "check", str(ruled), *options])
    cli.main(job.run, job.arguments())
    assert json.loads(capsys.readouterr().out)["products"] == {"boost 1": tiny.ITEMS // 4}
    monkeypatch.setattr(sys, "argv", ["rules.py", "show", str(ruled), *options])
    with pytest.raises(SystemExit):
        cli.main(job.run, job.arguments())
    assert "show takes no file" in capsys.readouterr().err


def test_the_readme_s_rules_are_rules(chain: Chain, repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    (shown,) = [part.split("```")[0] for part in text.split("```toml\n")[1:] if part.startswith("# rules.toml")]
    found = parse(shown, "README.md")
    assert all(getattr(found, kind) for kind in Rules.model_fields)
    answer = chain.answer(SHOPPER, chain.rules.compiled(found), datetime(2026, 6, 2, tzinfo=UTC))
    assert len(answer.items) == SHOPPER.k
