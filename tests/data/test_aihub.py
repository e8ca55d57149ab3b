"""AI Hub's adapters: the official JSON forms of one garment give one product, and nothing malformed is lost."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rec import dataset
from rec.config import Config, load
from rec.data import ingest
from rec.enrich.attributes import Report, from_shop
from rec.errors import InputError
from rec.schema import PRODUCTS
from rec.vocab.std import StdVocabulary

Row = dict[str, Any]
ROWS: list[Row] = [
    {
        "product_id": 7292,
        "category": "04bottom_02skirt",
        "season": "spring&fall",
        "fiber_composition": "protein fiber Others,Nylon",
        "color": "Black,White",
        "top_length_type": "long",
        "skirt_design": "H-line",
        "skirt.length": "65.0",
        "skirt.hip_size": "0.0",
    },
    {
        "product_id": 12,
        "category": "03-1onepiece(dress)",
        "color": "Orenge",
        "gender": "woman",
        "top.front_length": "90.5",
    },
]
KFASHION: Row = {
    "이미지 정보": {"이미지 식별자": 100026, "이미지 파일명": "100026.jpg", "이미지 높이": 800, "이미지 너비": 800},
    "데이터셋 정보": {
        "파일 번호": 100026,
        "데이터셋 상세설명": {
            "렉트좌표": {"아우터": [{}], "하의": [{"X좌표": 321.06}], "원피스": [{}], "상의": [{"X좌표": 260.1}]},
            "라벨링": {
                "스타일": [{"스타일": "로맨틱", "서브스타일": "섹시"}],
                "아우터": [{}],
                "하의": [
                    {
                        "기장": "니렝스",
                        "색상": "화이트",
                        "서브색상": "실버",
                        "카테고리": "스커트",
                        "소재": ["레이스", "면"],
                    }
                ],
                "원피스": [{}],
                "상의": [
                    {
                        "색상": "네온",
                        "카테고리": "블라우스",
                        "옷깃": "보우칼라",
                        "소매기장": "캡",
                        "넥라인": "브이넥",
                        "핏": "루즈",
                        "프린트": ["하운즈 투스"],
                        "디테일": ["단추", "퍼프", "포켓"],
                    }
                ],
            },
        },
    },
}  # fmt: skip


def _config(folder: Path, store: Path, kind: str) -> Config:
    return load("demo", [f"source.kind={kind}", f'source.folder="{folder}"', f'store="{store}"'])


def _products(folder: Path, store: Path, kind: str = "aihub") -> tuple[list[Row], Row]:
    made = _config(folder, store, kind)
    facts = ingest.run(made)
    return dataset.read(made.at("products"), PRODUCTS).to_pylist(), facts


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _lists(folder: Path, rows: list[Row]) -> None:
    """Lists of records with the garment under `feature_data.clothes`, lengths with their `metadata.` prefix."""
    for half in (0, 1):
        records = []
        for row in rows[half::2]:
            clothes = {(f"metadata.{k}" if "." in k else k): v for k, v in row.items() if k != "product_id"}
            feature = {"clothes": clothes, "reinforced_feature_value": {}}
            records.append({"product_id": row["product_id"], "feature_data": feature})
        _write(folder / "labels" / f"{half}.json", records)


def _one_a_file(folder: Path, rows: list[Row]) -> None:
    """Flat objects, one a file, named by the file."""
    for row in rows:
        _write(folder / f"{row['product_id']}.json", {k: v for k, v in row.items() if k != "product_id"})


def _nested(folder: Path, rows: list[Row]) -> None:
    """One list of objects with `metadata` and the parts of the garment as objects."""
    records = []
    for row in rows:
        metadata: Row = {}
        for key, value in row.items():
            part, _, rest = key.rpartition(".")
            (metadata.setdefault(part, {}) if part else metadata)[rest] = value
        records.append({"product_id": metadata.pop("product_id"), "metadata": metadata})
    _write(folder / "all.json", records)


FORMS = [_lists, _one_a_file, _nested]


@pytest.mark.parametrize("form", FORMS)
def test_every_official_form_gives_the_same_products(tmp_path: Path, form: Any) -> None:
    form(tmp_path / "in", ROWS)
    products, facts = _products(tmp_path / "in", tmp_path / "store")
    assert facts["products"] == {"rows": 2, "rejected": 0}
    assert (facts["events"]["rows"], facts["users"]["rows"]) == (0, 0)
    dress, skirt = products
    assert (dress["product_id"], dress["title"], skirt["title"]) == ("12", "Orenge dress", "Black, White skirt")
    assert dict(skirt["attributes"]) == {
        "category": ["04bottom_02skirt"], "season": ["spring&fall"], "color": ["Black", "White"],
        "fiber_composition": ["protein fiber Others", "Nylon"], "top_length_type": ["long"], "skirt_design": ["H-line"],
    }  # fmt: skip
    assert dict(skirt["measurements"]) == {"skirt.length": 65.0}
    assert dict(dress["measurements"]) == {"top.front_length": 90.5}


def test_the_real_garments_written_back_give_the_same_products(tmp_path: Path, repository: Path) -> None:
    path = repository.parent / "shared" / "data" / "aihub_std_re_dotblossom.parquet"
    if not path.is_file():
        pytest.skip("../shared/data/aihub_std_re_dotblossom.parquet is not here: real garments are not written back")
    rows = []
    for found in pq.read_table(path).to_pylist()[::90]:
        lengths = json.loads(found.pop("measurements_json"))
        found.pop("re_json")
        rows.append({k: v for k, v in found.items() if v is not None} | lengths)
    made = []
    for form in FORMS:
        form(tmp_path / form.__name__, rows)
        products, facts = _products(tmp_path / form.__name__, tmp_path / f"{form.__name__}-store")
        assert facts["products"] == {"rows": len(rows), "rejected": 0}
        made.append(products)
    assert made[0] == made[1] == made[2]
    by_id = {row["product_id"]: row for row in made[0]}
    vocabulary, report = StdVocabulary.load(), Report()
    for row in rows:
        product = by_id[str(row["product_id"])]
        given = {k: v.split(",") for k, v in row.items() if "." not in k and k != "product_id"}
        assert dict(product["attributes"]) == given
        taken = {k: float(v) for k, v in row.items() if "." in k and float(v)}
        assert dict(product["measurements"]) == pytest.approx(taken)
        from_shop(dict(product["attributes"]), vocabulary, report)
    assert not report.unmapped
    assert not report.unknown_keys


def test_a_photograph_gives_a_product_per_garment_in_vocabulary_words(tmp_path: Path) -> None:
    _write(tmp_path / "in" / "로맨틱" / "100026.json", KFASHION)
    products, facts = _products(tmp_path / "in", tmp_path / "store", "kfashion")
    assert facts["products"] == {"rows": 2, "rejected": 0}
    assert [(row["product_id"], row["title"]) for row in products] == [
        ("100026-bottom", "화이트 스커트"),
        ("100026-top", "네온 블라우스"),
    ]
    report = Report()
    std = [
        {(a.key, a.value) for a in from_shop(dict(p["attributes"]), StdVocabulary.load(), report)[0]} for p in products
    ]
    outfit = {("style", "romantic style"), ("vibe", "sexy")}
    assert std[0] == outfit | {
        ("category", "skirt"), ("colour", "white"), ("colour", "silver"), ("length", "knee length"),
        ("fabric", "lace fabric"), ("fibre", "cotton"),
    }  # fmt: skip
    assert std[1] == outfit | {
        ("category", "blouse"), ("colour", "neon"), ("neck", "bow collar"), ("neck", "v-neck"),
        ("sleeve", "cap sleeve"), ("fit", "loose"), ("pattern", "check"), ("closure", "button"),
        ("sleeve_design", "puff sleeve"), ("detail", "pockets"),
    }  # fmt: skip
    assert not report.unmapped
    assert not report.unknown_keys


def test_two_tops_of_a_photograph_are_two_products(tmp_path: Path) -> None:
    record = json.loads(json.dumps(KFASHION))
    labels = record["데이터셋 정보"]["데이터셋 상세설명"]["라벨링"]
    labels["상의"].append({"색상": "블랙"})
    _write(tmp_path / "in" / "1.json", record)
    products, _ = _products(tmp_path / "in", tmp_path / "store", "kfashion")
    assert {row["product_id"]: row["title"] for row in products}["100026-top-2"] == "블랙 상의"


def test_malformed_records_are_counted_and_kept_aside(tmp_path: Path) -> None:
    _lists(tmp_path / "in", ROWS)
    _write(tmp_path / "in" / "a.json", [{"product_id": 1, "color": "Red"}, "garment", {**ROWS[0], "skirt.length": "x"}])
    (tmp_path / "in" / "b.json").write_text('{"product_id": 1,', encoding="utf-8")
    products, facts = _products(tmp_path / "in", tmp_path / "store")
    assert facts["products"] == {"rows": 2, "rejected": 4}
    assert len(products) == 2
    rejected = pq.read_table(tmp_path / "store" / "demo" / "products" / "rejected.parquet").to_pylist()
    assert {(row["source"], row["reason"]) for row in rejected} == {
        ("a.json", "the record has no category"),
        ("a.json", "the file or list entry is no JSON object"),
        ("b.json", "the file or list entry is no JSON object"),
        ("in", "measurements.skirt.length 'x' is not a length in cm"),
    }


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"이미지 정보": {}}, "the record has no 데이터셋 정보 / 데이터셋 상세설명 / 라벨링"),
        (
            {"데이터셋 정보": {"데이터셋 상세설명": {"라벨링": {"스타일": [{}], "상의": [{}]}}}},
            "no garment of the photograph is labelled",
        ),
    ],
)
def test_a_photograph_without_garments_is_kept_aside(tmp_path: Path, record: Row, reason: str) -> None:
    _write(tmp_path / "in" / "1.json", KFASHION)
    _write(tmp_path / "in" / "2.json", record)
    _, facts = _products(tmp_path / "in", tmp_path / "store", "kfashion")
    assert facts["products"] == {"rows": 2, "rejected": 1}
    found = pq.read_table(tmp_path / "store" / "demo" / "products" / "rejected.parquet").to_pylist()
    assert [(row["source"], row["reason"]) for row in found] == [("2.json", reason)]


@pytest.mark.parametrize("kind", ["aihub", "kfashion"])
def test_a_folder_without_label_files_is_named(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=r"holds no \*\.json: set source\.folder"):
        ingest.run(_config(tmp_path / "nowhere", tmp_path / "store", kind))
