"""Whether a product's text addresses the model instead of the customer.

Shops do not tell a language model what to do, so a text that does is set aside whole. It is looked at as it stands and,
where it differs, as it would read with look-alike letters, spelling by digits, encodings and spacing undone; only
the finding is made on those readings, the product's text stays as it is. What asks for something without any of
these words is left to the other fences: the schema, the grounding of values, and the closed vocabulary.
"""

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterator
from html import unescape
from urllib.parse import unquote

_RULES = r"(?:instruction|prompt|rule|guideline|direction|directive|command|constraint)s?"
_WORDS = rf"""
    \b(?:ignore|disregard|forget|override|bypass)\b[^.\n]{{0,40}}\b{_RULES}\b
    | \b(?:stop|don't|do\s+not|never|no\s+longer)\s+(?:follow|obey|heed)(?:ing)?\b
      [^.\n]{{0,30}}\b(?:instruction|prompt)s?\b
    | \bpay\s+no\s+attention\s+to\b[^.\n]{{0,40}}\b{_RULES}\b
    | \b(?:ignore|disregard|forget)\s+(?:everything|anything|all\s+(?:of\s+)?(?:that|this)|what)\b[^.\n]{{0,25}}
      \b(?:above|before|earlier|told|said|previous(?:ly)?)\b
    | \b(?:new|updated|real|actual|secret)\s+(?:instructions?|task|prompt|directives?)\s*[:\uff1a]
    | \byour\s+(?:new\s+|only\s+|real\s+)?(?:task|job|role|instructions?|goal)\s+(?:is|are)\b
    | \b(?:system|developer)\s+(?:prompt|message|instruction|override)s?\b
    | \byou\s+are\s+(?:now\s+)?(?:an?\s+)?(?:\w+\s+)?(?:ai|assistant|language\s+model|chatbot|llm|gpt)\b
    | \byou\s+are\s+(?:now\s+)?(?:DAN|root|admin|jailbroken|unrestricted)\b
    | \b(?:developer|debug|admin|god|jailbreak)\s+mode\s+(?:is\s+)?(?:on|enabled|activated|engaged)\b
    | \b(?:pretend|imagine)\s+(?:to\s+be|that\s+you|you\s+are)\b
    | \bact\s+as\s+(?:an?\s+)?(?:\w+\s+)?(?:ai|assistant|model|bot)\b
    | \b(?:attention|dear|note\s+to|message\s+(?:to|for)|hey|hello)\W+(?:the\s+|any\s+)?
      (?:ai|llm|language\s+model|assistant|chatbot|gpt)\b
    | \b(?:ai|llms?|language\s+models?)(?:\s+(?:models?|assistants?))?\s+
      (?:must|should|shall|has\s+to|have\s+to|reading)\b
    | \b(?:respond|reply|answer|output|return|print|write|say)\s+(?:only\s+)?(?:with|in)?\s*
      (?:the\s+)?(?:following\s+)?json\b
    | \b(?:respond|reply|answer|output)\s+(?:only|exactly|solely|nothing\s+but)\b
    | \b(?:classify|label|tag|categori[sz]e|mark|rate|rank|describe)\s+(?:this|the|every|all|each)\s+
      (?:product|item|garment|text|article|listing)s?\s+(?:as|first|highest)\b
    | \b(?:set|change|write|put|fill)\s+(?:the\s+|every\s+|all\s+|each\s+)?(?:\w+\s+)?
      (?:(?:key|field|attribute|label|value|price)s?|category|categories)\s+(?:to|as|with)\b
    | \b(?:reveal|repeat|print|leak|show|display|output|tell\s+me)\b[^.\n]{{0,30}}
      \b(?:prompt|instructions?|api\s+key|password)\b
    | \b(?:execute|run)\s+(?:the\s+)?(?:following|this)\s+(?:code|command|script|instructions?)\b
    | (?:^|[.!?:]\s)\s*(?:system|assistant|시스템|어시스턴트|系统|助手)\s*[:\uff1a]
    | ^\s*(?:user|human|사용자|用户)\s*[:\uff1a](?:\s*\S+){{4}}
    | (?:이전|앞선|앞의|위|모든|기존|지금까지)의?\s*(?:모든\s*)?(?:지시|명령|지침|프롬프트|규칙|내용)
      [^.\n]{{0,20}}(?:무시|잊|따르지)
    | (?:새로운|새)\s*(?:지시|명령|지침)\s*(?:사항)?\s*[:\uff1a]
    | 시스템\s*(?:프롬프트|메시지|지시|명령) | 프롬프트를\s*(?:보여|알려|출력|공개|반복)
    | (?:당신|너)(?:은|는)\s*(?:이제\s*)?(?:AI|인공지능|챗봇|어시스턴트|언어\s*모델)
    | (?:AI|인공지능|언어\s*모델|챗봇)(?:은|는|에게|야|님)[^.\n]{{0,30}}(?:하라|하세요|하십시오|해라|답하|출력|분류)
    | (?:이|본)\s*(?:상품|제품)(?:을|를)\s*\S+(?:로|라고)\s*(?:분류|표시|출력|답)\S*(?:하라|하세요|하십시오|해라)
    | (?:忽略|无视|忘记|忽視|無視)[^。\n]{{0,12}}(?:指令|指示|提示|规则|說明|说明|要求)
    | (?:系统|系統)(?:提示|消息|指令|訊息) | 你现在是 | 你現在是
    | (?:指示|命令|指令|プロンプト|ルール)[^。\n]{{0,8}}(?:無視|忘れ|従わ) | システム(?:プロンプト|メッセージ)
    | \b(?:ignora|ignore|ignorez|ignoriere|ignorieren|olvida|oublie|oubliez|vergiss|vergessen|esqueça|esquece|dimentica
      |negeer|zignoruj|abaikan)\b[^.\n]{{0,40}}\b(?:instruc|instru[cç]|consigne|anweisung|vorgabe|istruzion|regeln|règles
      |reglas|regole|instructie|instrukcj|arahan)\w*
    | (?:игнорируй|забудь|не\s+обращай)\w*[^.\n]{{0,40}}(?:инструкц|указани|правил|подсказк)
    | (?:تجاهل|انس)\w*[^.\n]{{0,40}}(?:التعليمات|الأوامر|القواعد)
    | (?:bỏ\s+qua|phớt\s+lờ)[^.\n]{{0,30}}(?:hướng\s+dẫn|chỉ\s+dẫn|lệnh)
    | (?:निर्देश|आदेश)[^.\n]{{0,30}}(?:अनदेखा|नज़रअंदाज़|भूल)
    | önceki\s+(?:tüm\s+)?(?:talimat|komut)\w*
"""
_SHAPES = r"""
    \{\s*["'“][^"'”\n]{1,40}["'”]\s*:                                # a JSON object
    | ["'“](?:std|re)(?:\.\w+)?["'”]\s*:
    | <<[0-9a-f]{4,} | \b[0-9a-f]{8}>>
    | ``` | (?<![\d"])\"{3} | (?<![\d'])'{3} | <!\[CDATA\[ | \]\]>
    | [-=*\#~]{3,}\s*(?:end|begin|start|stop)\b
    | \bend\s+of\s+(?:the\s+)?(?:data|text|input|product\s+text|product\s+data|document|context|prompt|description)\b
    | \#{2,}\s*(?:system|instruction|response|assistant|user|human|input|output|task|new)s?\b
    | <\s*/?\s*(?:script|iframe|object|embed|svg|img)\b | \bjavascript\s*: | \bon(?:error|load|click|mouseover)\s*=
"""
_TOKENS = r"""
    <\s*[|｜][^<>\n]{0,40}[|｜]\s*>
    | <\|?\s*/?\s*(?:im_start|im_end|system|assistant|user|human|endoftext|bos|eos|pad|unk|mask|start_of_turn
      |end_of_turn|start_of_image|end_of_image|eot_id|tool_call|tool_response|think|unused\d+|BOS_TOKEN|EOS_TOKEN
      |START_OF_TURN_TOKEN|END_OF_TURN_TOKEN|fim_(?:prefix|middle|suffix))\s*\|?>
    | \[\s*/?\s*(?:INST|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS|SYSTEM_PROMPT|CLS|SEP|MASK|gMASK|multimodal|@BOS@)\s*\]
    | <<\s*/?\s*SYS\s*>> | <{3,} | >{3,}
"""
_STEMS = """
    ignor disregard forget overrid bypass instruct prompt |attention |task| directive |role| |job| |goal|
    |system |developer |you|are| |debug |admin |god|mode |jailbr |pretend |imagine |act|as |ai| |llm language|model
    |assistant |chatbot |gpt| json |respond |reply |answer |output |classif |label |tag| |categori |category|to|
    |category|as| |category|with| |mark| |rate| |rank| |describe| |key |field |attribute |value |price |password |execut
    |script| |code |command |user| |human| olvid oublie vergiss vergessen esquece dimentica negeer abaikan |std |re|
    |end| |begin| |start| |stop| javascript onerror onload onclick onmouseover
"""
_FOREIGN = """
    ai llm gpt assistant chatbot 지시 명령 지침 무시 잊 따르지 프롬프트 메시지 시스템 인공지능 챗봇 어시스턴트
    사용자 언어 분류 표시 출력 답 忽 无视 無視 忘 系统 系統 助手 用户 你现在是 你現在是 従わ システム
    esque игнорир забуд обращай تجاهل انس bỏ|qua phớt|lờ निर्देश आदेश önceki
"""
_STEM = [stem.replace("|", " ") for stem in _STEMS.split()]
_ANYWHERE = [*_STEM, *(stem.replace("|", " ") for stem in _FOREIGN.split())]
_SIGN = re.compile(r"[{}<>\[\]#`]|\"\"\"|'''")
"""A text must have a stem (of an ASCII text: not one of the foreign ones) or a sign to match any of the above."""
_BETWEEN = re.compile(r"[\s!-/:-@\[-`{-~\u2010-\u2027\u3000-\u3011\uff00-\uff0f\uff1a-\uff20]+")
_FLAGS = re.IGNORECASE | re.VERBOSE | re.MULTILINE
_TOKEN = re.compile(_TOKENS, _FLAGS)
_ANY = re.compile(rf"{_WORDS} | {_SHAPES} | {_TOKENS} | </?\s*s\s*>", _FLAGS)
_COMPACT = re.compile(
    r"(?:ignore|disregard|forget)(?:all|any|the|every|your|of|these)*(?:previous|prior|above|earlier|preceding|former)?"
    r"(?:instructions|prompts|rules|guidelines)|systemprompt|(?:이전|모든|기존)(?:의)?(?:모든)?(?:지시|명령|지침|프롬프트)(?:를|을)?(?:모두)?무시"
)
_NOT_LETTERS = re.compile(r"[\W_]+")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")
_HEX = re.compile(r"\b(?:[0-9a-f]{2}[ :]?){16,}\b", re.IGNORECASE)
_ESCAPES = re.compile(r"\\u\{?([0-9a-fA-F]{4,6})\}?|\\x([0-9a-fA-F]{2})")
_COLOURS = re.compile(r"\[\d{0,3}(?:;\d{1,3})*m")
"""What is left of a terminal's control sequence without its control character."""
_DIGITS_WITHIN = re.compile(r"[A-Za-z][013457@$!][A-Za-z]|\b[013457@$!][A-Za-z]{3}")

_LIKE_LATIN = str.maketrans(
    "аеорсухіјѕԁһкмтвнгԛԝӏАЕОРСХІЈЅНКМТВαορνικτυεΑΒΕΗΙΚΜΝΟΡΤΥΧΖıɡɑ",
    "aeopcyxijsdhkmtbhrqwlAEOPCXIJSHKMTBaopviktueABEHIKMNOPTYXZiga",
)
_DIGITS = str.maketrans("013457@$!", "oieastasi")


def find(text: str) -> str | None:
    """The words, 80 characters at most, that address the model or imitate its input; None where there are none."""
    for reading in dict.fromkeys(_readings(text)):
        found = _ANY.search(reading) if _may_match(reading) else None
        if found:
            return found.group()[:80].strip()
    compact = _NOT_LETTERS.sub("", _plain(text)).casefold()
    found = _COMPACT.search(compact)
    return found.group()[:80] if found else None


def _may_match(reading: str) -> bool:
    """Whether the slow search may find something: substrings are found ten times as fast."""
    if _SIGN.search(reading):
        return True
    words = f" {_BETWEEN.sub(' ', reading)} ".casefold()
    for stem in _STEM if reading.isascii() else _ANYWHERE:  # noqa: SIM110  # twice as fast as any()
        if stem in words:
            return True
    return False


def find_token(markup: str) -> str | None:
    """A control token of a chat template in raw HTML, where a parser would take it for a tag; else None."""
    found = _TOKEN.search(markup)
    return found.group()[:80] if found else None


def _readings(text: str) -> Iterator[str]:
    """The text, and what it says with one layer of disguise undone."""
    yield text
    plain = _plain(text)
    yield plain
    if _DIGITS_WITHIN.search(plain):
        yield plain.translate(_DIGITS)
    if "[" in text:
        yield _COLOURS.sub("", plain)
    if "&" in text:
        yield unescape(unescape(text))
    if "%" in text:
        yield unquote(text)
    if "\\" in text:
        yield _ESCAPES.sub(lambda found: _character(found.group(1) or found.group(2)), text)
    for blob in _BASE64.findall(text):
        yield _decoded(blob)
    for blob in _HEX.findall(text):
        yield bytes.fromhex(re.sub(r"[ :]", "", blob)).decode("utf-8", "replace")


def _plain(text: str) -> str:
    """Compatibility forms, accents and look-alikes of Latin letters as the letters."""
    if text.isascii():
        return text
    wide = unicodedata.normalize("NFKD", text)
    kept = "".join(c for c in wide if not unicodedata.combining(c) and unicodedata.category(c) != "Mn")
    return unicodedata.normalize("NFC", kept).translate(_LIKE_LATIN)


def _character(code: str) -> str:
    number = int(code, 16)
    return chr(number) if number < 0x110000 else ""


def _decoded(blob: str) -> str:
    body = blob.rstrip("=").replace("-", "+").replace("_", "/")
    body = body[: len(body) - (len(body) % 4 == 1)]
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4)).decode("utf-8", "replace")
    except binascii.Error:
        return ""
