"""AI Hub's garments: `의류 통합 데이터` (kind `aihub`) and `K-Fashion 이미지` (kind `kfashion`), official JSON files.

    aihub     one garment an object, or lists of them; English keys, flat or nested, an optional `metadata.` before
              them; several values joined by commas; lengths in cm as strings, `0.0` where none was taken
    kfashion  one photograph a file, Korean keys; every labelled garment of it is a product: `100026-top`

All `*.json` below the folder are read, in the order of their paths. Words stay AI Hub's own; the vocabulary maps
them. Both sets have neither titles nor events: a title is made of colour and category, events are none. A file that
is no JSON and a record without a garment are refused with the reason.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rec import artifact
from rec.data.clean import Raw
from rec.data.files import table
from rec.dataset import Rejects
from rec.errors import InputError

BATCH_ROWS = 10_000
Row = dict[str, Any]

_PREFIXES = ("metadata.", "clothes.")
_LENGTH = re.compile(r"\..*(?:length|size|width)$")
"""A measured column, `top.front_length`; `top.length_type` is an attribute."""

_LABELS = ("데이터셋 정보", "데이터셋 상세설명", "라벨링")
_GARMENTS = {"아우터": "outer", "상의": "top", "하의": "bottom", "원피스": "onepiece"}
_FIELDS = {
    "카테고리": "category", "색상": "colour", "서브색상": "colour", "기장": "length", "소매기장": "sleeve",
    "넥라인": "neck", "옷깃": "neck", "핏": "fit", "프린트": "pattern", "소재": "fibre", "디테일": "detail",
    "스타일": "style", "서브스타일": "style",
}  # fmt: skip
_WORDS = {
    "소재": {
        "fabric": "코듀로이 데님 저지 트위드 벨벳 헤어_니트 니트 레이스 메시 플리스 네오프렌 자카드 시폰 우븐",
        "pattern": "시퀸/글리터",
        "lining": "패딩",
        "silhouette": "페플럼",
        "sleeve_design": "퍼프",
    },
    "디테일": {
        "closure": "단추 지퍼 집업 버클 스트링 레이스업 더블브레스티드 싱글브레스티드",
        "sleeve_design": "드롭숄더 퍼프",
        "silhouette": "플레어 페플럼 드롭웨이스트 비대칭",
        "pattern": "자수 스팽글 글리터 디스트로이드",
        "fabric": "레이스 니트꽈배기 니트꽈베기",
        "lining": "퀼팅 퀄팅",
    },
    "스타일": {"vibe": "섹시 소피스트케이티드", "gender": "젠더리스"},
}
_WORDS["서브스타일"] = _WORDS["스타일"]
_ATTRIBUTE = {
    (field, word.replace("_", " ")): attribute
    for field, attributes in _WORDS.items()
    for attribute, words in attributes.items()
    for word in words.split()
}
"""(field, word) → attribute, where K-Fashion files words of several attributes under one field."""
_NOTHING = {"기타", ""}


def files(folder: Path) -> list[Path]:
    """The JSON files below `folder` by path; InputError when there are none."""
    found = sorted(folder.rglob("*.json")) if folder.is_dir() else []
    if not found:
        raise InputError(f"{folder} holds no *.json: set source.folder to the folder of AI Hub's unpacked label files")
    return found


def content_hash(folder: Path) -> str:
    """Hash over the paths and contents of the JSON files."""
    whole = hashlib.sha256()
    for path in files(folder):
        whole.update(f"{path.relative_to(folder).as_posix()}\0{artifact.hash_file(path)}\n".encode())
    return whole.hexdigest()


def garments(folder: Path, rejects: Rejects) -> Iterator[Raw]:
    """Raw products of `의류 통합 데이터`."""
    yield from _products(folder, rejects, _garment)


def photographs(folder: Path, rejects: Rejects) -> Iterator[Raw]:
    """Raw products of `K-Fashion 이미지`."""
    yield from _products(folder, rejects, _photograph)


def _products(folder: Path, rejects: Rejects, rows_of: Callable[[Row, str], list[Row]]) -> Iterator[Raw]:
    """Batches of the products that `rows_of` finds in each record (record, its file's name without ending)."""
    rows: list[Row] = []
    start = 0
    for path in files(folder):
        name = path.relative_to(folder).as_posix()
        for position, record in enumerate(_records(path)):
            try:
                if not isinstance(record, dict):
                    raise _NoGarment("the file or list entry is no JSON object")
                rows += rows_of(record, path.stem)
            except _NoGarment as error:
                kept = record if isinstance(record, dict) else {"text": str(record)[:1_000]}
                rejects.add(source=name, row=position, reason=str(error), record=kept)
        if len(rows) >= BATCH_ROWS:
            yield _raw(folder, start, rows)
            start += len(rows)
            rows = []
    if rows:
        yield _raw(folder, start, rows)


class _NoGarment(Exception):
    """A record that holds no product; the message is the reason."""


def _records(path: Path) -> list[Any]:
    """The records of a file; what is no JSON is one record, its text."""
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return [text]
    return found if isinstance(found, list) else [found]


def _raw(folder: Path, start: int, rows: list[Row]) -> Raw:
    columns = dict.fromkeys(column for row in rows for column in row)
    return Raw(folder.name, np.arange(start, start + len(rows)), table(rows, list(columns)))


def _garment(record: Row, name: str) -> list[Row]:
    """The one product of a record of `의류 통합 데이터`."""
    data = record.get("feature_data")
    fields = dict(_flat(data.get("clothes", data) if isinstance(data, dict) else record))
    product_id = record.get("product_id", fields.pop("product_id", name))
    category = fields.get("category")
    if not isinstance(category, str) or not category.strip():
        raise _NoGarment("the record has no category")
    row: Row = {"product_id": product_id, "title": _title(str(fields.get("color") or ""), category)}
    for field, value in fields.items():
        if value in (None, ""):
            continue
        if not _LENGTH.search(field):
            row[f"attributes.{field}"] = [part.strip() for part in str(value).split(",")]
        elif str(value).strip() not in ("0", "0.0", "0.00"):
            row[f"measurements.{field}"] = value
    return [row]


def _flat(fields: Row, before: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested objects, without the prefixes that mean nothing."""
    for key, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            name = f"{before}{key}"
            for prefix in _PREFIXES:
                name = name.removeprefix(prefix)
            yield name, value


def _title(colour: str, category: str) -> str:
    """`Red, Black t-shirt` of the colours and `02top_02t-shirt`; `03-1onepiece(dress)` is a dress."""
    noun = re.sub(r"^[\d-]+", "", category.strip().rpartition("_")[2])
    inside = re.search(r"\((.+)\)", noun)
    colours = ", ".join(part.strip() for part in colour.split(",") if part.strip())
    return f"{colours} {inside.group(1) if inside else noun}".strip()


def _photograph(record: Row, name: str) -> list[Row]:
    """One product per labelled garment of a K-Fashion photograph; the style is the whole outfit's."""
    labels: Any = record
    for key in _LABELS:
        labels = labels.get(key) if isinstance(labels, dict) else None
    if not isinstance(labels, dict):
        raise _NoGarment(f"the record has no {' / '.join(_LABELS)}")
    image = record.get("이미지 정보")
    image_id = image.get("이미지 식별자", name) if isinstance(image, dict) else name
    outfit = _attributes([style for style in _list(labels.get("스타일")) if isinstance(style, dict)])
    rows = []
    for korean, part in _GARMENTS.items():
        worn = [garment for garment in _list(labels.get(korean)) if isinstance(garment, dict) and garment]
        for number, garment in enumerate(worn, start=1):
            title = [word for field in ("색상", "카테고리") if (word := str(garment.get(field) or "").strip())]
            title += [] if garment.get("카테고리") else [korean]
            row: Row = {
                "product_id": f"{image_id}-{part}" + (f"-{number}" if number > 1 else ""),
                "title": " ".join(title),
            }
            found = _attributes([garment])
            for attribute in dict.fromkeys([*found, *outfit]):
                values = [*found.get(attribute, []), *outfit.get(attribute, [])]
                row[f"attributes.{attribute}"] = list(dict.fromkeys(values))
            rows.append(row)
    if not rows:
        raise _NoGarment("no garment of the photograph is labelled")
    return rows


def _attributes(labels: list[Row]) -> dict[str, list[str]]:
    """Attribute → words of some labels; a word that says `nothing in particular` is left out."""
    found: dict[str, list[str]] = {}
    for label in labels:
        for field, attribute in _FIELDS.items():
            for value in _list(label.get(field)):
                word = str(value).strip()
                if value is not None and word not in _NOTHING:
                    found.setdefault(_ATTRIBUTE.get((field, word), attribute), []).append(word)
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
