"""The words of the synthetic catalogue: what its garments are called, made of and good for.

English and Korean stand side by side as (English, Korean). The planted words come first; each occurs
in the products' texts exactly where `rec.data.sample` says, and nowhere else.
"""

from dataclasses import dataclass

Pair = tuple[str, str]

TASTES = ("gorpcore", "reflective trim", "recycled ocean yarn", "sashiko stitching", "beeswax finish", "brass snaps")
"""Phrases that occur in descriptions and HTML only; written in English in Korean texts too."""

SERIES = ("Aurora", "Harbor", "Juniper", "Solstice", "Meridian", "Falcon")
"""Collection names that occur in titles only."""

CUTS = ("petite", "regular", "tall")
"""Leg lengths of the same style; the user's height decides."""
CUTS_KO = {"petite": "쁘띠", "regular": "레귤러", "tall": "톨"}
INSEAM_CM = {"petite": 67.0, "regular": 76.0, "tall": 86.0}
HEIGHT_CM = {"petite": (148.0, 160.0), "regular": (164.0, 175.0), "tall": (180.0, 194.0)}


@dataclass(frozen=True, slots=True)
class Occasion:
    """Something to dress for: what the products say of it, what users type, what fits it."""

    name: Pair
    asked: tuple[str, ...]
    categories: tuple[str, ...]


OCCASIONS = (
    Occasion(
        ("wedding guest", "결혼식 하객"),
        ("wedding guest", "something to wear to my cousin's wedding", "결혼식 하객룩"),
        ("dress", "blouse", "skirt", "shirt", "jacket", "trousers"),
    ),
    Occasion(
        ("hiking trip", "등산"),
        ("hiking trip", "a weekend of hiking in the mountains", "등산 갈 때 입을 옷"),
        ("jacket", "trousers", "t-shirt", "shorts", "leggings", "sweatshirt"),
    ),
    Occasion(
        ("job interview", "면접"),
        ("job interview", "first interview at a bank", "면접 복장"),
        ("shirt", "blouse", "trousers", "skirt", "jacket", "coat"),
    ),
    Occasion(
        ("beach holiday", "해변 휴가"),
        ("beach holiday", "a week at the beach", "해변 휴가 옷"),
        ("shorts", "dress", "t-shirt", "shirt", "skirt", "blouse"),
    ),
    Occasion(
        ("yoga class", "요가 수업"),
        ("yoga class", "yoga twice a week", "요가복"),
        ("leggings", "t-shirt", "sweatshirt", "shorts", "hoodie", "cardigan"),
    ),
    Occasion(
        ("ski weekend", "스키 여행"),
        ("ski weekend", "skiing with friends", "스키장 옷"),
        ("sweater", "jacket", "leggings", "hoodie", "coat", "sweatshirt"),
    ),
)

LENGTH_CONTEXTS = ("trousers in my length", "jeans that fit my height", "내 키에 맞는 바지")
OTHER_CONTEXTS = ("just browsing", "gift idea", "세일 구경")


@dataclass(frozen=True, slots=True)
class Category:
    """A kind of garment: names, typical price in USD, fibres, and which parts it has."""

    name: Pair
    price: float
    fibres: tuple[str, ...]
    sleeves: tuple[str, ...] = ()
    necks: tuple[str, ...] = ()
    legs: bool = False
    """Has an inseam."""


_LONG, _SHORT, _NONE = "long sleeves", "short sleeves", "no sleeves"
_ROUND, _V, _HIGH, _COLLAR, _HOOD = "crew neck", "v-neck", "turtleneck", "collar", "hood"


def _category(
    english: str,
    korean: str,
    price: float,
    fibres: str,
    sleeves: tuple[str, ...] = (),
    necks: tuple[str, ...] = (),
    *,
    legs: bool = False,
) -> tuple[str, Category]:
    return english, Category((english, korean), price, tuple(fibres.split()), sleeves, necks, legs)


COMMON = dict(
    [
        _category("t-shirt", "티셔츠", 19, "cotton viscose linen", (_LONG, _SHORT), (_ROUND, _V)),
        _category("shirt", "셔츠", 39, "cotton linen", (_LONG, _SHORT), (_COLLAR,)),
        _category("blouse", "블라우스", 42, "silk viscose polyester", (_LONG, _SHORT, _NONE), (_ROUND, _V, _COLLAR)),
        _category("sweater", "스웨터", 59, "wool cashmere cotton", (_LONG,), (_ROUND, _V, _HIGH)),
        _category("cardigan", "가디건", 62, "wool cashmere cotton", (_LONG, _SHORT), (_ROUND, _V)),
        _category("hoodie", "후드티", 49, "cotton polyester", (_LONG,), (_HOOD,)),
        _category("sweatshirt", "맨투맨", 45, "cotton polyester", (_LONG,), (_ROUND, _HIGH)),
        _category("jacket", "재킷", 99, "nylon polyester cotton", (_LONG,), (_COLLAR, _HOOD)),
        _category("coat", "코트", 149, "wool cashmere polyester", (_LONG,), (_COLLAR, _HOOD)),
        _category("dress", "원피스", 69, "viscose silk linen cotton", (_LONG, _SHORT, _NONE), (_ROUND, _V, _HIGH)),
        _category("skirt", "스커트", 45, "polyester wool linen"),
        _category("jeans", "청바지", 65, "cotton", legs=True),
        _category("trousers", "슬랙스", 59, "wool cotton linen polyester", legs=True),
        _category("shorts", "반바지", 35, "cotton linen nylon"),
        _category("leggings", "레깅스", 29, "nylon polyester", legs=True),
    ]
)
ACCESSORIES = dict(
    [
        _category("scarf", "스카프", 29, "wool cashmere silk"),
        _category("beanie", "비니", 19, "wool cotton"),
        _category("belt", "벨트", 25, "leather cotton"),
        _category("bag", "가방", 79, "leather nylon cotton"),
        _category("socks", "양말", 9, "cotton wool"),
        _category("gloves", "장갑", 24, "wool leather"),
    ]
)
NICHE = dict(
    [
        _category("jumpsuit", "점프수트", 75, "cotton viscose linen"),
        _category("swimsuit", "수영복", 39, "nylon polyester"),
        _category("pyjamas", "파자마", 42, "cotton silk"),
        _category("vest", "조끼", 49, "wool nylon polyester"),
        _category("raincoat", "레인코트", 89, "nylon polyester"),
        _category("robe", "가운", 55, "cotton silk"),
        _category("overalls", "멜빵바지", 72, "cotton"),
        _category("poncho", "판초", 65, "wool cashmere"),
    ]
)

FIBRES = {
    "cotton": "면", "linen": "리넨", "wool": "울", "cashmere": "캐시미어", "silk": "실크", "viscose": "레이온",
    "polyester": "폴리에스터", "nylon": "나일론", "leather": "가죽",
}  # fmt: skip
COLOURS = {
    "black": "블랙", "white": "화이트", "navy": "네이비", "grey": "그레이", "beige": "베이지", "brown": "브라운",
    "green": "그린", "blue": "블루", "red": "레드", "pink": "핑크", "yellow": "옐로우", "orange": "오렌지",
}  # fmt: skip
SEASONS = {"spring": "봄", "summer": "여름", "autumn": "가을", "winter": "겨울"}
GENDERS = {"women": "여성", "men": "남성", "unisex": "남녀공용"}
SLEEVES = {_LONG: "긴소매", _SHORT: "반소매", _NONE: "민소매"}
NECKS = {_ROUND: "라운드넥", _V: "브이넥", _HIGH: "터틀넥", _COLLAR: "카라넥", _HOOD: "후드넥"}
FITS = {"relaxed": "릴랙스드", "slim": "슬림", "oversized": "오버사이즈", "loose": "루즈"}

DIRTY = {
    "women": "woman", "men": "Man", "unisex": "man/woman", "orange": "Orenge", "grey": "Gray ", "navy": "NAVY",
    "beige": "biege",
}  # fmt: skip
"""How the shop's own attribute columns misspell things, now and then."""

FEELS: tuple[Pair, ...] = (
    ("Soft", "부드러운"), ("Light", "가벼운"), ("Warm", "따뜻한"), ("Crisp", "산뜻한"), ("Airy", "시원한"),
    ("Sturdy", "튼튼한"), ("Smooth", "매끄러운"), ("Stretchy", "신축성 좋은"),
)  # fmt: skip
DETAILS: tuple[Pair, ...] = (
    ("side slits", "옆트임"), ("ribbed edges", "시보리 마감"), ("two deep pockets", "깊은 주머니 두 개"),
    ("double seams", "이중 박음질"), ("a curved hem", "곡선 밑단"), ("contrast piping", "배색 파이핑"),
    ("a hidden zip", "히든 지퍼"), ("welt pockets", "웰트 포켓"), ("gathered sides", "셔링 옆선"),
    ("a pleated back", "뒤 주름"), ("an inner drawcord", "안쪽 스트링"), ("flat seams", "플랫 심"),
    ("laser-cut edges", "레이저 컷 마감"), ("a scalloped edge", "스캘럽 마감"), ("toggle ties", "토글 끈"),
    ("tonal panels", "톤온톤 패널"), ("a brushed inside", "기모 안감"), ("raw edges", "로우 엣지"),
    ("a woven label", "우븐 라벨"), ("lattice cut-outs", "격자 컷아웃"),
)  # fmt: skip
ACCESSORY_DETAILS: tuple[Pair, ...] = (
    ("a woven label", "우븐 라벨"), ("a gift pouch", "선물 파우치"), ("a ribbed texture", "골지 짜임"),
    ("contrast tips", "배색 끝단"), ("a small logo", "작은 로고"), ("rolled edges", "말아 박은 끝단"),
)  # fmt: skip
CARE: tuple[Pair, ...] = (
    ("Machine wash at 30 °C", "30도 기계 세탁"), ("Hand wash cold", "찬물 손세탁"), ("Dry clean only", "드라이클리닝"),
)  # fmt: skip
ORIGINS: tuple[Pair, ...] = (
    ("Made in Portugal", "포르투갈 제조"), ("Made in Korea", "대한민국 제조"), ("Made in Italy", "이탈리아 제조"),
    ("Made in Vietnam", "베트남 제조"),
)  # fmt: skip
NAMES = (
    "Otis", "Nell", "Ines", "Bram", "Cleo", "Dara", "Edie", "Finn", "Greta", "Hugo", "Kaia", "Jonas",
    "Lena", "Milo", "Nora", "Petra", "Quinn", "Sven", "Thea", "Vera", "Wim", "Yara", "Zeno", "Alma",
)  # fmt: skip
"""Model names in titles that mean nothing; each is about as frequent as a collection name."""
BRANDS = ("Northfold", "Lumen & Co", "Hanok Atelier", "Pale Field", "Studio Onda", "Grain")
