"""Titles, descriptions and HTML of the synthetic garments, in English and Korean.

About fifty words a product, so that a small language model on a CPU reads one in seconds. The title
holds the model or collection name, the colour and the category; details, feel and occasion are in the
description; fit, care and origin only in the HTML.
"""

from dataclasses import dataclass, replace
from typing import Any

from rec.data.sample import words
from rec.data.sample.words import Category, Pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Garment:
    """What is true of a garment; keys of `rec.data.sample.words` where a word has two languages."""

    category: Category
    name: str
    korean: bool
    colour: str
    fibre: str
    season: str
    gender: str
    fit: str | None
    sleeve: str | None
    neck: str | None
    feel: Pair
    detail: Pair
    care: Pair
    origin: Pair
    variant: int
    """Which of three wordings."""
    brand: str
    detail_in_html: bool = False
    """The detail is repeated in the HTML."""
    cut: str | None = None
    occasion: Pair | None = None
    group_id: str | None = None

    def but(self, **changes: Any) -> "Garment":
        """The same garment with some things changed."""
        return replace(self, **changes)


def write(garment: Garment) -> dict[str, str]:
    """`title`, `description` and `html` of the garment."""
    title, description, bullets = _korean(garment) if garment.korean else _english(garment)
    items = "".join(f"<li>{bullet}</li>" for bullet in bullets)
    return {"title": title, "description": description, "html": f'<div class="info"><ul>{items}</ul></div>'}


def _english(garment: Garment) -> tuple[str, str, list[str]]:
    noun, detail = garment.category.name[0], garment.detail[0]
    title = f"{garment.name} {noun.title()} {garment.colour.title()}"
    made = f"{garment.feel[0]} {garment.fibre} {noun}"
    if garment.sleeve and garment.neck:
        made += f" with {garment.sleeve} and a {garment.neck}"
    if detail in words.TASTES and " " not in detail:
        told = (f"The look is {detail}.", f"A true {detail} piece.", f"Designed with a {detail} mood.")
    else:
        bare = detail.removeprefix("a ").removeprefix("an ")
        told = (f"Finished with {detail}.", f"It comes with {detail}.", f"Note the {bare}.")
    worn = (
        f"Easy to wear in {garment.season}.",
        f"A good choice for {garment.season}.",
        f"Made for {garment.season} days.",
    )
    sentences = [f"{made}.", told[garment.variant], worn[garment.variant]]
    bullets = []
    if garment.occasion:
        sentences.append(f"Perfect for a {garment.occasion[0]}.")
    if garment.cut:
        sentences.append(f"This is the {garment.cut} length.")
        bullets.append(f"Leg length: {garment.cut}")
    if garment.fit:
        bullets.append(f"Fit: {garment.fit}")
    if garment.detail_in_html:
        bullets.append(f"Highlight: {detail}")
    return title, " ".join(sentences), [*bullets, garment.care[0], garment.origin[0]]


def _korean(garment: Garment) -> tuple[str, str, list[str]]:
    noun, detail = garment.category.name[1], garment.detail[1]
    title = f"{garment.name} {noun} {words.COLOURS[garment.colour]}"
    made = f"{garment.feel[1]} {words.FIBRES[garment.fibre]} 소재의 {noun}입니다."
    if garment.sleeve and garment.neck:
        made += f" {words.SLEEVES[garment.sleeve]}, {words.NECKS[garment.neck]} 디자인입니다."
    told = (f"{detail} 포인트가 특징입니다.", f"{detail} 디테일을 더했습니다.", f"{detail} 감성을 담았습니다.")
    season = words.SEASONS[garment.season]
    worn = (f"{season}에 입기 좋아요.", f"{season} 시즌에 추천합니다.", f"{season}을 위한 옷입니다.")
    sentences = [made, told[garment.variant], worn[garment.variant]]
    bullets = []
    if garment.occasion:
        sentences.append(f"{garment.occasion[1]}에 잘 어울립니다.")
    if garment.cut:
        cut = words.CUTS_KO[garment.cut]
        sentences.append(f"{cut} 기장({garment.cut}) 상품입니다.")
        bullets.append(f"다리 기장: {cut}")
    if garment.fit:
        bullets.append(f"핏: {words.FITS[garment.fit]}")
    if garment.detail_in_html:
        bullets.append(f"포인트: {detail}")
    return title, " ".join(sentences), [*bullets, garment.care[1], garment.origin[1]]
