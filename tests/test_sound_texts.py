"""Texts from elsewhere as they can be written, drawn and tokenized."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_cloc.texts import blank_markup, sound_text


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("&quot;Red mug&quot; &amp; a chair", '"Red mug" & a chair'),
        ("<b>Red mug</b> on a <a href='x'>table</a><br/>", " Red mug  on a  table  "),
        ("half \ud83d of it", "half  of it"),
        ("\ud83d\ude00 whole", "\U0001f600 whole"),
        ("a\0b", "a b"),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07mug", "red mug"),
        ("&amp;lt;b&amp;gt;bold", " bold"),
        ("right \u202e to left", "right   to left"),
        ("a < b & c <3 <person> AT&T", "a < b & c <3 <person> AT&T"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468\u200d\U0001f469\u200d\U0001f467"),
    ],
)
def test_what_has_no_place_in_a_text_is_taken_out(text: str, sound: str) -> None:
    assert sound_text(text) == sound


@given(st.text(st.characters(), max_size=60))
def test_any_text_can_be_written_afterwards(text: str) -> None:
    sound = sound_text(text)
    assert json.loads(json.dumps(sound, ensure_ascii=False).encode()) == sound
    assert "\0" not in sound
    assert "\x1b" not in sound


@pytest.mark.parametrize(
    ("text", "blank"),
    [
        ("a &quot;mug&quot;", "a       mug      "),
        ("<b>a</b> mug", "   a     mug"),
        ("a mug &amp", "a mug     "),
        ("a mug <a href='x", "a mug           "),
        ("AT&T, a < b, <person>, R&D", "AT&T, a < b, <person>, R&D"),
    ],
)
def test_markup_is_blanked_where_it_stands(text: str, blank: str) -> None:
    assert blank_markup(text) == blank
    assert len(blank) == len(text)
