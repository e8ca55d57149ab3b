"""The STD vocabulary: ids that never change, words that mean one value, and what is found in free text."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec.errors import ConfigError
from rec.vocab import std, words
from rec.vocab.std import StdVocabulary
from tests.vocab.names import names

VOCABULARY = StdVocabulary.load()
IDS_OF_FASHION_1 = "f4e4572471d4133cb8f4879a8387196eeceab431a05d9905d4bf323c13265426"
"""SHA-256 over `id key value` of the 516 ids that the first version gave."""

ASKED = {"fashion-1": "9a600dec9ce8d77af44a3a657f5b383de948d74adaa92b9c68ec9e7b794e2717"}
"""Version of what a model is shown → SHA-256 over `key: values`. A change of it needs a new version in `asked`."""

KFASHION = {
    "category": "코트 재킷 점퍼 패딩 베스트 가디건 짚업 탑 블라우스 티셔츠 니트웨어 "
    "셔츠 브라탑 후드티 청바지 팬츠 스커트 레깅스 래깅스 조거팬츠 드레스 점프수트",
    "colour": "블랙 화이트 그레이 레드 핑크 오렌지 베이지 브라운 옐로우 그린 카키 민트 블루 네이비 "
    "스카이블루 퍼플 라벤더 와인 네온 골드 실버",
    "length": "크롭 노멀 하프 롱 미니 니렝스 미디 발목 맥시",
    "sleeve": "없음 민소매 반팔 캡 7부소매 긴팔",
    "neck": "라운드넥 유넥 브이넥 홀터넥 오프숄더 원_숄더 스퀘어넥 노카라 후드 터틀넥 "
    "보트넥 스위트하트 없음 셔츠칼라 보우칼라 세일러칼라 숄칼라 폴로칼라 피터팬칼라 너치드칼라 차이나칼라 테일러드칼라 "
    "밴드칼라",
    "fit": "노멀 루즈 오버사이즈 스키니 와이드 타이트 벨보텀",
    "pattern": "페이즐리 하트 지그재그 깅엄 하운즈_투스 도트 레터링 믹스 뱀피 해골 체크 무지 "
    "카무플라쥬 그라데이션 스트라이프 호피 아가일 그래픽 지브라 타이다이 플로럴",
    "style": "클래식 프레피 로맨틱 히피 웨스턴 오리엔탈 모던 아방가르드 컨트리 리조트 "
    "스포티 레트로 키치/키덜트 힙합 펑크 밀리터리 스트리트 페미닌",
}
"""Words of AI Hub's K-Fashion labels that one field of them says of one key (`_` for a space)."""

SMALL = """
version = "t-1"
next_id = 6
[keys.colour]
id = 1
unknown = 1
[keys.colour.values]
red = {{ id = 2, en = ["scarlet"] }}
blue = {{ id = 3{blue} }}
[keys.fit]
id = {fit_id}
unknown = 4
[keys.fit.values]
slim = {{ id = {slim_id} }}
"""

HM = {
    "product_type_name": "category",
    "graphical_appearance_name": "pattern",
    "colour_group_name": "colour",
    "index_group_name": "gender",
}
AIHUB = {
    "category": "category",
    "season": "season",
    "fiber_composition": "fibre",
    "elasticity": "elasticity",
    "transparency": "transparency",
    "isfleece": "lining",
    "color": "colour",
    "top_length_type": "length",
    "sleeve_length_type": "sleeve",
    "topneck_color_design": "neck",
    "topsleeve_design": "sleeve_design",
    "gender": "gender",
    "pants_silhouette": "fit",
    "skirt_design": "silhouette",
}


def test_ids_once_given_never_change() -> None:
    lines = [" ".join((str(id), *names(VOCABULARY)[id])) for id in range(1, 517)]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == IDS_OF_FASHION_1


def test_what_a_model_is_shown_changes_only_with_the_version_of_it() -> None:
    shown = [f"{key}: {VOCABULARY.values(key)}" for key in VOCABULARY.keys if VOCABULARY.inferable(key)]
    assert ASKED[VOCABULARY.asked] == hashlib.sha256("\n".join(shown).encode()).hexdigest()


def test_an_id_of_an_older_file_that_is_gone_or_another_is_named() -> None:
    older = StdVocabulary.parse(SMALL.format(blue="", fit_id=2, slim_id=5), "older")
    more = SMALL.format(blue="", fit_id=2, slim_id=5).replace("next_id = 6", "next_id = 7") + "tall = { id = 6 }\n"
    StdVocabulary.parse(more, "newer").check_keeps(older, "older")
    swapped = SMALL.format(blue="", fit_id=2, slim_id=3).replace("blue = { id = 3", "blue = { id = 5")
    with pytest.raises(ConfigError, match=r"colour 'blue' \(id 3\) of older"):
        StdVocabulary.parse(swapped, "newer").check_keeps(older, "older")
    renamed = SMALL.format(blue="", fit_id=2, slim_id=5).replace("slim", "narrow")
    with pytest.raises(ConfigError, match=r"fit 'slim' \(id 5\) of older"):
        StdVocabulary.parse(renamed, "newer").check_keeps(older, "older")
    with pytest.raises(ConfigError, match="key 'fit' of older"):
        StdVocabulary.parse(more.replace("keys.fit", "keys.cut"), "newer").check_keeps(older, "older")


@pytest.mark.parametrize("key", KFASHION)
def test_every_word_of_kfashion_maps(key: str) -> None:
    for word in KFASHION[key].split():
        found = VOCABULARY.normalise(key, word.replace("_", " "))
        assert found.values, word
        assert not found.unmapped, word
        assert "unknown" not in found.values, word


def test_every_id_names_one_value_and_back() -> None:
    seen = {VOCABULARY.unknown_id(key) for key in VOCABULARY.keys}
    for key in VOCABULARY.keys:
        for value in VOCABULARY.values(key):
            id = VOCABULARY.id_of(key, value)
            assert id not in seen
            seen.add(id)
    assert seen == set(range(1, VOCABULARY.num_ids))
    assert [VOCABULARY.key_id(key) for key in VOCABULARY.keys] == list(range(1, VOCABULARY.num_keys))


def test_every_key_has_its_own_unknown() -> None:
    unknown = [VOCABULARY.id_of(key, "unknown") for key in VOCABULARY.keys]
    assert len(set(unknown)) == len(VOCABULARY.keys)
    assert unknown == [VOCABULARY.unknown_id(key) for key in VOCABULARY.keys]


def test_only_moods_and_occasions_may_be_inferred() -> None:
    assert [key for key in VOCABULARY.keys if VOCABULARY.inferable(key)] == ["occasion", "vibe", "style"]


@pytest.mark.parametrize("key", VOCABULARY.keys)
def test_a_canonical_value_means_itself(key: str) -> None:
    for value in VOCABULARY.values(key):
        assert VOCABULARY.normalise(key, value.upper()).values == [value]


@pytest.mark.parametrize(
    ("key", "raw", "values", "unmapped"),
    [
        ("gender", "man,woman", ["men", "women"], []),
        ("season", "spring&fall", ["spring", "autumn"], []),
        ("season", "봄, 가을", ["spring", "autumn"], []),
        ("colour", "Orenge", ["orange"], []),
        ("neck", "sweethaert neck", ["sweetheart neck"], []),
        ("category", "Leggings/Tights", ["leggings"], []),
        ("category", "Earring", ["earrings"], []),
        ("fibre", "60% Cotton, 40% polyester", ["cotton", "polyester"], []),
        ("fibre", "80% wool 20% nylon", ["wool", "polyamide"], []),
        ("fibre", "면 95%, 스판덱스 5%", ["cotton", "elastane"], []),
        ("fibre", "unobtainium, COTTON", ["cotton"], ["unobtainium"]),
        ("category", "Unknown", ["unknown"], []),
        ("neck", "Ｖ－ｎｅｃｋ", ["v-neck"], []),
        ("colour", "  ", [], []),
        ("colour", "red, Red, rouge, rouge", ["red"], ["rouge"]),
    ],
)
def test_raw_values_become_canonical_and_nothing_is_lost(
    key: str, raw: str, values: list[str], unmapped: list[str]
) -> None:
    found = VOCABULARY.normalise(key, raw)
    assert (found.values, found.unmapped) == (values, unmapped)


@pytest.mark.parametrize(
    ("key", "text", "found"),
    [
        ("category", "Shirts and a T‑shirt, no sweatshirting", [("shirt", "Shirts"), ("t-shirt", "T‑shirt")]),
        ("category", "A shirt dress", [("dress", "shirt dress")]),
        ("colour", "dark blue or blue", [("dark blue", "dark blue"), ("blue", "blue")]),
        ("lining", "Unlined.", [("unlined", "Unlined")]),
        ("fabric", "in CRÊPE weave", [("crêpe", "CRÊPE weave")]),
        ("category", "린넨셔츠를 입은", [("shirt", "셔츠")]),
        ("gender", "여성용 원피스", [("women", "여성용")]),
        ("fibre", "면의 촉감", [("cotton", "면")]),
        ("fibre", "면접 볼 때", []),
        ("neck", "깊은 V넥으로", [("v-neck", "V넥")]),
        ("fibre", "데님cotton소재", [("cotton", "cotton")]),
        ("fibre", "TENCEL™ Lyocell", [("lyocell", "TENCEL™ Lyocell")]),
        ("closure", "it ties in", [("tie fastening", "ties")]),
        ("category", "it ties and you watch", []),
        ("length", "long sleeves", []),
    ],
)
def test_free_text_is_searched_for_whole_words(key: str, text: str, found: list[tuple[str, str]]) -> None:
    assert VOCABULARY.find(key, text) == found


@given(st.sampled_from(VOCABULARY.keys), st.text(max_size=60))
def test_what_is_found_stands_in_the_text(key: str, text: str) -> None:
    for value, span in VOCABULARY.find(key, text):
        assert span in text
        assert value in VOCABULARY.values(key)


WORDS = [value for key in VOCABULARY.keys for value in VOCABULARY.values(key)]


@given(st.lists(st.sampled_from(WORDS) | st.sampled_from(["면 100%", "여성용", "ties", "-"]) | st.text(max_size=8)))
def test_all_keys_at_once_find_what_each_finds(pieces: list[str]) -> None:
    text = " ".join(pieces)
    each = [(key, value, span) for key in VOCABULARY.keys for value, span in VOCABULARY.find(key, text)]
    assert VOCABULARY.find_all(text) == each


@given(st.data())
def test_a_word_of_the_vocabulary_is_found_between_others(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(["colour", "fibre", "fabric", "season", "pattern"]))
    value = data.draw(st.sampled_from([v for v in VOCABULARY.values(key) if VOCABULARY.find(key, v)]))
    cased = data.draw(st.sampled_from([str.upper, str.title, str.lower]))
    assert (value, cased(value)) in VOCABULARY.find(key, f"Zq {cased(value)}, zq.")


@given(st.text())
def test_folding_twice_is_folding_once(text: str) -> None:
    assert words.fold(words.fold(text)) == words.fold(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SMALL.format(blue="", fit_id=2, slim_id=3), "id 3 is used by"),
        (SMALL.format(blue="", fit_id=2, slim_id=9), "id 9 is not in"),
        (SMALL.format(blue="", fit_id=1, slim_id=5), "ids of keys"),
        (SMALL.format(blue="", fit_id=2, slim_id=5).replace("red = { id = 2", "# red = { id = 2"), "id 2 is missing"),
        (SMALL.format(blue="", fit_id=2, slim_id=5) + "slim = { id = 5 }\n", "not TOML"),
        (SMALL.format(blue=', en = ["Scarlet"]', fit_id=2, slim_id=5), "'scarlet' means 'red' and 'blue'"),
        (SMALL.format(blue=', en = ["!"]', fit_id=2, slim_id=5), "empty word"),
        (SMALL.format(blue=', alias = ["azure"]', fit_id=2, slim_id=5), "alias"),
        (SMALL.format(blue="", fit_id=2, slim_id=5).replace("slim", "unknown"), "has a value 'unknown'"),
        (SMALL.format(blue="", fit_id=2, slim_id=5).replace("id = 1\n", "id = 1\nnames = ['fit']\n"), "names the keys"),
        ("version = ", "not TOML"),
        ("", "version"),
    ],
)
def test_an_unsound_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "std.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(says)):
        StdVocabulary.load(path)


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "std.toml"
    path.write_text(SMALL.format(blue="", fit_id=2, slim_id=5), encoding="utf-8")
    found = StdVocabulary.load(path)
    assert (found.version, found.keys, found.num_keys, found.num_ids) == ("t-1", ["colour", "fit"], 3, 6)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read"):
        StdVocabulary.load(tmp_path / "nowhere.toml")


def test_the_copy_in_an_artifact_is_the_same_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "std.toml"
    path.write_text(std.shipped(), encoding="utf-8")
    copy = StdVocabulary.load(path)
    assert names(copy) == names(VOCABULARY)


@pytest.fixture
def distinct(repository: Path) -> Callable[[str, str], list[str]]:
    """Distinct values of a column of a shared data file; skips where the files are not there."""

    def read(file: str, column: str) -> list[str]:
        path = repository.parent / "shared" / "data" / file
        if not path.exists():
            pytest.skip(f"../shared/data/{file} is not here: coverage of it is not tested")
        return pc.unique(pq.read_table(path, columns=[column]).column(column).drop_null()).to_pylist()

    return read


@pytest.mark.parametrize(("column", "key"), HM.items())
def test_every_word_of_hm_maps(distinct: Callable[[str, str], list[str]], column: str, key: str) -> None:
    assert VOCABULARY.key_of(column) == key
    for raw in distinct("hm_articles.parquet", column):
        found = VOCABULARY.normalise(key, raw)
        assert len(found.values) == 1, raw
        assert not found.unmapped, raw
        assert (found.values == ["unknown"]) == (raw == "Unknown")


@pytest.mark.parametrize(("column", "key"), AIHUB.items())
def test_every_word_of_aihub_maps(distinct: Callable[[str, str], list[str]], column: str, key: str) -> None:
    assert VOCABULARY.key_of(column) == key
    for raw in distinct("aihub_std_re_dotblossom.parquet", column):
        found = VOCABULARY.normalise(key, raw)
        parts = {part.strip().casefold() for joined in raw.split(",") for part in joined.split("&")}
        assert not found.unmapped, raw
        assert len(found.values) == len(parts), raw
        assert "unknown" not in found.values, raw
