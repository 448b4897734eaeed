"""What a chat model answers, as a caption: the answer alone, or why it is none.

Models think aloud, wrap their answers in marks and courtesies, are cut off, or refuse. A server's answers and
a local model's are read alike.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from open_cloc.labelling.types import Failure
from open_cloc.texts import sound_text

CUT, REFUSED, EMPTY = "caption cut off", "captioner refused", "empty caption"
SHOWN = 120  # characters of an answer that a message repeats


class Answer(NamedTuple):
    """A caption that a model wrote.

    Attributes:
        text: The caption on one line.
        is_cut: Whether the model was stopped; the text is what it had said in whole sentences.
    """

    text: str
    is_cut: bool = False


# --- reasoning ------------------------------------------------------------------------------------------

_THOUGHTS = "think|thinking|thought|thoughts|reasoning|reason|reflection|analysis|scratchpad|begin_of_thought"
_OPEN = (
    rf"<(?:seed:)?(?:{_THOUGHTS})(?:\s[^<>]*)?>|\[(?:THINK|THINKING|REASONING)\]|◁think▷|<\|START_THINKING\|>"
    r"|<\|begin_of_thought\|>|<\|channel\|?>\s*(?:analysis|commentary|thought)\s*(?:<\|message\|>)?|<unused94>"
)
_CLOSE = (
    rf"</(?:seed:)?(?:{_THOUGHTS})\s*>|\[/(?:THINK|THINKING|REASONING)\]|◁/think▷|<\|END_THINKING\|>"
    r"|<\|end_of_thought\|>|<\|channel\|?>\s*final\s*<\|message\|>|<channel\|>|<unused95>"
)
_OPENING, _CLOSING = re.compile(_OPEN, re.IGNORECASE), re.compile(_CLOSE, re.IGNORECASE)
# What is left of such marks where special tokens were taken out: `analysisThe user ...assistantfinalA mug`.
_BARE = re.compile(r"\Aanalysis.*assistant\s?final", re.DOTALL)

# Marks around the answer proper, and those of chat templates that were not taken out.
_ANSWER = re.compile(
    r"<answer>(.*?)(?:</answer>|$)|<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|$)"
    r"|<\|START_RESPONSE\|>(.*?)(?:<\|END_RESPONSE\|>|$)",
    re.IGNORECASE | re.DOTALL,
)
_TEMPLATE = re.compile(
    r"<\|[A-Za-z_]{1,24}\|>|</?s>|<(?:eos|bos|pad|end_of_turn|start_of_turn|end_of_utterance)>"
)


def _without_reasoning(text: str) -> str:
    """What comes after the last closing mark, or before the first opening one where nothing comes after."""
    text = _BARE.sub("", text)
    closed = [match.end() for match in _CLOSING.finditer(text)]
    after = text[closed[-1] :] if closed else ""
    rest = after if after.strip() else text
    opened = _OPENING.search(rest)
    if opened:
        return rest[: opened.start()]
    return after if closed else text


# --- wrapping -------------------------------------------------------------------------------------------

_FENCE = re.compile(r"(?:```|~~~)[ \t]*[\w+-]*[ \t]*\n(.*?)(?:\n[ \t]*(?:```|~~~)|$)", re.DOTALL)
_INLINE_FENCE = re.compile(r"^```\s*(.*?)\s*```$", re.DOTALL)
_QUOTES = {
    '"': '"',
    "'": "'",
    "“": "”",
    "‘": "’",
    "«": "»",
    "„": "“",
    "「": "」",
    "『": "』",
    "`": "`",
    "*": "*",
}
_KEYS = ("caption", "description", "text", "answer", "alt_text", "content")
# Courtesies before the caption, each ending in a colon: `Sure! Here is a detailed caption of the image:`.
_COURTESY = re.compile(
    r"""^(?:\W*(?:sure|certainly|of\ course|absolutely|okay|ok|great|yes)\b[^\n:]{0,40}?[,.!:—–-]+\s*)?
    (?:[*_\#\s]*(?:
        (?:here(?:'s|’s|\ is|\ are)|this\ is|below\ is|the\ following\ is)\b[^\n:.]{0,80}?
         \b(?:captions?|descriptions?|answer|response|alt[\ -]?text|summary|sentence)\b[^\n:.]{0,60}
        |(?:(?:image|picture|photo|the|a|an|possible|suggested|short|detailed|brief|final|alt)[\ -]+){0,4}
         (?:caption|description|answer|response|alt[\ -]?text|summary)(?:\ (?:of|for)\ the\ \w+)?
    )[*_\s]*[:：][*_\s]*)+""",
    re.IGNORECASE | re.VERBOSE,
)
_SURE = re.compile(
    r"^(?:sure|certainly|of course|absolutely)(?:!|,? here (?:it is|you go)[.!:]?)\s+(?=\S)", re.I
)
_HEADING = re.compile(r"^\s{0,3}#{1,6}\s+", re.MULTILINE)
_EMPHASIS = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", re.DOTALL)


def _unwrapped(text: str) -> str:
    """The text without fences, courtesies, quotes and emphasis around it, as often as they are nested."""
    for _ in range(6):
        before = text
        fenced = _FENCE.search(text) or _INLINE_FENCE.match(text)
        text = (fenced[1] if fenced and fenced[1].strip() else text).strip()
        text = _of_json(text)
        text = _EMPHASIS.sub(r"\2", _HEADING.sub("", text)).strip()
        text = _without_courtesy(text)
        if len(text) > 2 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
            text = text[1:-1].strip()
        if text == before:
            break
    return text


def _without_courtesy(text: str) -> str:
    for pattern in (_COURTESY, _SURE):
        rest = pattern.sub("", text, count=1).strip()
        text = rest or text
    return text


def _of_json(text: str) -> str:
    """The caption of an answer that is JSON: `{"caption": "..."}`, `["..."]` or `"..."`."""
    if text[:1] not in ("{", "[", '"') or text[-1:] not in ("}", "]", '"'):
        return text
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    if isinstance(document, dict):
        named = [document[key] for key in _KEYS if isinstance(document.get(key), str)]
        texts = named or [value for value in document.values() if isinstance(value, str)]
        document = texts[0] if len(texts) == 1 or named else None
    return document.strip() if isinstance(document, str) else text


# --- refusals -------------------------------------------------------------------------------------------

_PICTURE = "(?:image|picture|photo|content|request|file|url|link)"
_APOLOGY = "(?:(?:i(?:'m| am) )?(?:so |very |really )?sorry|(?:my )?apologies|i apologi[sz]e|unfortunately)"
_UNABLE = (
    "(?:can ?not|can't|(?: ?am|'m) (?:unable|not able|not allowed|afraid i can't)|won't|could ?n[o']t"
    "|do(?:n't| not) (?:see|have|feel comfortable|think i can)|must decline|decline to|was(?:n't| not) able)"
)
# Beginnings of answers, in plain words; what is no word may be any space or mark.
_REFUSALS = (
    rf"{_APOLOGY}\W+(?:(?:but|however|that|as an? ai[^.]{{0,60}}?)\W+)*"
    rf"(?:i\b|for the\b|there(?:'s| is| was) no\b|(?:this|the|no) {_PICTURE})",
    rf"{_APOLOGY}\W*$",
    rf"i ?{_UNABLE}\b",
    "as an? (?:ai|artificial intelligence|large language|language model)\\b",
    rf"(?:there is|there's|i see) no {_PICTURE}\s*(?:$|[.,]|to\b|attached|provided|here\b|in your)",
    rf"no {_PICTURE} (?:was|is|has been) (?:provided|attached|given|shared|uploaded)",
    rf"(?:please|kindly|could you please) (?:provide|upload|attach|share|send)\b[^.]{{0,40}}\b{_PICTURE}",
    rf"it (?:seems|looks|appears)[^.]{{0,30}} {_PICTURE} [^.]{{0,40}}(?:attach|upload|provid|load|includ)",
    rf"(?:this|the) {_PICTURE} (?:violates|goes against|may violate)",
    # Other languages.
    "lo siento|no puedo|désolée?\\b|je suis désolée?|je ne peux pas|(?:es )?tut mir leid",
    "ich kann (?:dir|das|diese)",
    "mi dispiace|non posso|desculpe|(?:acho que )?não posso|sinto muito|извините|к сожалению, я|я не могу",
    "很?抱歉|对不起|對不起|我无法|我無法|我不能|申し訳|すみません|죄송",
)
_REFUSAL = re.compile(rf"[\s*_>#-]*(?:{'|'.join(_REFUSALS)})", re.IGNORECASE)


def is_refusal(text: str) -> bool:
    """Whether an answer begins as models do that will not, or cannot, describe a picture."""
    return _REFUSAL.match(text.replace("’", "'")) is not None


# --- the whole ------------------------------------------------------------------------------------------

# Not after a short word, as in `St.`
_SENTENCE_END = re.compile(r"(?:(?<=\w\w\w)\.|[!?…])[\"'”’»)\]]*(?=\s|$)|[。！？][」』”]*")


def read_answer(content: Any, is_cut: bool = False, refusal: Any = None) -> Answer | Failure:
    """The caption in a model's answer.

    Args:
        content: The answer as a text or, as some servers give it, in parts.
        is_cut: Whether the model was stopped because its answer was long enough.
        refusal: What a server calls the refusal of its model.

    Returns:
        The caption, or a failure whose cause says what the answer is instead.
    """
    text, refused = _text_of(content)
    if refusal or refused:
        return Failure(REFUSED, _short(str(refusal or refused)))
    answered = _without_reasoning(text)
    found = _ANSWER.search(answered)
    if found:
        answered = next(group for group in found.groups() if group is not None)
    caption = _one_line(sound_text(_unwrapped(_TEMPLATE.sub(" ", answered))))
    if is_refusal(caption):
        return Failure(REFUSED, _short(caption))
    if is_cut:
        ends = [match.end() for match in _SENTENCE_END.finditer(caption)]
        if not ends:
            return Failure(CUT, f"no whole sentence within caption.max_new_tokens (it began: {_short(text)})")
        caption = caption[: ends[-1]]
    if not any(character.isalnum() for character in caption):
        return Failure(EMPTY, f"nothing but reasoning: {_short(text)}" if text.strip() else "no text")
    return Answer(caption, is_cut)


def _text_of(content: Any) -> tuple[str, str]:
    """The text of an answer, its parts joined, and the refusal among them."""
    if isinstance(content, str):
        return content, ""
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return "", ""
    texts, refused = [], ""
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind == "refusal":
            refused = str(part.get("refusal") or "refused")
        elif kind in ("text", "output_text") and isinstance(text, str):
            texts.append(text)
    return "".join(texts), refused


def _short(text: str) -> str:
    line = _one_line(sound_text(text))
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}..."


def _one_line(text: str) -> str:
    return " ".join(text.split())
