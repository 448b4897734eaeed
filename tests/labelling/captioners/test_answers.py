"""What chat models answer: the caption in it, or what it is instead."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_cloc.labelling.captioners.answers import CUT, EMPTY, REFUSED, Answer, is_refusal, read_answer
from open_cloc.labelling.types import Failure

GOOD = "A red block on a wall."


@pytest.mark.parametrize(
    "reasoned",
    [
        f"<think>\nThe user wants a caption. A dog? No.\n</think>\n\n{GOOD}",
        f"The user wants a caption. First I look.\n</think>\n{GOOD}",
        f"<thinking>hm</thinking>{GOOD}",
        f"<Reasoning type='long'>hm</Reasoning> {GOOD}",
        f"[THINK]hm[/THINK]{GOOD}",
        f"hm [/think] {GOOD}",
        f"◁think▷hm◁/think▷{GOOD}",
        f"<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>{GOOD}<|END_RESPONSE|>",
        f"<|begin_of_thought|>hm<|end_of_thought|> {GOOD}",
        f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>{GOOD}<|return|>",
        f"analysisThe user wants it.assistantfinal{GOOD}",
        f"<seed:think>hm</seed:think>{GOOD}",
        f"<unused94>thought\nhm<unused95>{GOOD}",
        f"<think>a</think> no <think>b</think> {GOOD}",
        f"{GOOD} <think>was that right? yes</think>",
        f"<think>hm</think><answer>{GOOD}</answer>",
        f"<think>hm</think><|begin_of_box|>{GOOD}<|end_of_box|>",
    ],
)
def test_reasoning_is_taken_off(reasoned: str) -> None:
    assert read_answer(reasoned) == Answer(GOOD)


@pytest.mark.parametrize(
    "wrapped",
    [
        f"```\n{GOOD}\n```",
        f"```text\n{GOOD}\n```",
        f"Sure! Here is a caption for the image:\n\n```markdown\n{GOOD}\n```\nLet me know if it fits.",
        f"``` {GOOD} ```",
        f'"{GOOD}"',
        f"“{GOOD}”",
        f"«{GOOD}»",
        f"Here is a caption: {GOOD}",
        f'Here\'s a detailed description of the picture:\n\n"{GOOD}"',
        f"Caption: {GOOD}",
        f"**Caption:** {GOOD}",
        f"**Image description**: {GOOD}",
        f"### Caption\n{GOOD}".replace("### Caption\n", "### Caption: "),
        f"Certainly! {GOOD}",
        "A **red block** on a wall.",
        json.dumps({"caption": GOOD}),
        f"```json\n{json.dumps({'caption': GOOD, 'tags': ['red']})}\n```",
        json.dumps([{"description": GOOD}]),
        f"{GOOD}<|im_end|>",
        f"{GOOD}</s>",
        f"  {GOOD}\n",
        "A <b>red</b> block on a wall.".replace("<b>", "").replace("</b>", ""),
    ],
)
def test_what_stands_around_a_caption_is_taken_off(wrapped: str) -> None:
    assert read_answer(wrapped) == Answer(GOOD)


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": GOOD}],
        [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": GOOD}],
        [{"type": "text", "text": "A red block"}, {"type": "text", "text": " on a wall."}],
        [{"type": "output_text", "text": GOOD, "annotations": []}],
        {"type": "text", "text": GOOD},
        ["A red block ", "on a wall."],
    ],
)
def test_parts_are_joined(content: Any) -> None:
    assert read_answer(content) == Answer(GOOD)


@pytest.mark.parametrize(
    "refusal",
    [
        "I'm sorry, but I can't assist with that.",
        "I’m sorry, I can’t help with identifying people.",
        "Sorry, I cannot describe this image.",
        "I cannot fulfill this request.",
        "I can't see any image.",
        "I'm unable to view images.",
        "I am not able to process pictures.",
        "I do not have the ability to see pictures.",
        "I don't see an image attached.",
        "As an AI language model, I cannot view pictures.",
        "I apologize, but this image could not be processed.",
        "Unfortunately, I cannot do that.",
        "There is no image attached.",
        "No image was provided.",
        "Please upload the image again.",
        "It seems that the image was not attached to your message.",
        "\"I'm sorry, but I can't help.\"",
        "<think>hm</think>I won't describe this.",
        "抱歉，我无法描述这张图片。",
        "Lo siento, no puedo ayudar con eso.",
        "Es tut mir leid, ich kann das nicht.",
        "申し訳ありませんが、お手伝いできません。",
        "Sorry.",
    ],
)
def test_refusals_are_failures_of_their_own(refusal: str) -> None:
    found = read_answer(refusal)
    assert isinstance(found, Failure), found
    assert found.cause == REFUSED


@pytest.mark.parametrize(
    "caption",
    [
        'A sign that says "Sorry, we are closed".',
        '"Sorry, we are closed" is written on a door.',
        "There is no picture on the wall, only a nail.",
        "I see a red mug on a table.",
        "Please do not touch, says a sign beside a vase.",
        "Sorrel horses on a field.",
        "Here is a picture of a dog: it is brown.",
        "Ein roter Block an einer Wand.",
        "一个红色方块在墙上。",
        "Two dogs: one is black, one is white.",
        "A 'stop' sign.",
        "Great white shark: a portrait.",
    ],
)
def test_captions_stay_as_they_are(caption: str) -> None:
    assert read_answer(caption) == Answer(caption)
    assert not is_refusal(caption)


def test_the_words_of_a_server_for_a_refusal() -> None:
    assert read_answer(None, refusal="I can't help") == Failure(REFUSED, "I can't help")
    parts = [{"type": "refusal", "refusal": "not this one"}]
    assert read_answer(parts) == Failure(REFUSED, "not this one")


def test_what_was_cut_off_is_kept_in_whole_sentences() -> None:
    assert read_answer(f"{GOOD} Beside it a woo", is_cut=True) == Answer(GOOD, True)
    assert read_answer(GOOD, is_cut=True) == Answer(GOOD, True)
    assert read_answer("红色方块在墙上。旁边有", is_cut=True) == Answer("红色方块在墙上。", True)
    for text in ("A red block on a wall beside a woo", "<think>The user wants", "", "A church of St. Ma"):
        found = read_answer(text, is_cut=True)
        assert isinstance(found, Failure)
        assert found.cause == CUT


@pytest.mark.parametrize(
    "content", ["", " \n", None, [], {}, "...", "<think>hm</think>", [{"type": "image"}], 5, "```\n\n```"]
)
def test_nothing_is_no_caption(content: Any) -> None:
    found = read_answer(content)
    assert isinstance(found, Failure)
    assert found.cause == EMPTY


PIECES = (
    "<think>",
    "</think>",
    "```",
    "\n",
    '"',
    "{",
    "}",
    "Here is a caption:",
    "mug",
    "\ud83d",
    "*",
    "[",
    ".",
)


@given(st.one_of(st.text(st.characters(), max_size=60), st.lists(st.sampled_from(PIECES)).map("".join)))
@settings(max_examples=200, deadline=None)
def test_any_text_is_read(text: str) -> None:
    for is_cut in (False, True):
        found = read_answer(text, is_cut)
        assert "\n" not in found[0] + str(found[1])
        assert (found[0] + str(found[1])).encode()
        if isinstance(found, Answer):
            assert any(character.isalnum() for character in found.text)


def test_long_texts_are_read_in_no_time() -> None:
    for piece in (
        "<think>",
        "</think>",
        "```\n",
        '"',
        "*_ ",
        "Sure, ",
        "the caption ",
        "#",
        "<|a|>",
        "word ",
    ):
        read_answer(piece * 50_000)
