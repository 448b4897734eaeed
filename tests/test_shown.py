"""What is shown of texts from elsewhere: no secrets of URLs, nothing that moves a terminal."""

from __future__ import annotations

import pytest

from open_cloc.shown import printable, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a red mug\n\tand a spoon", "a red mug\n\tand a spoon"),
        ("кружка ☕ 家族 👨\u200d👩\u200d👧 é\u3000x", "кружка ☕ 家族 👨\u200d👩\u200d👧 é\u3000x"),
        ("\x1b]0;owned\x07 mug", "\\x1b]0;owned\\x07 mug"),
        ("gone\r\x1b[2Jhere", "gone\\r\\x1b[2Jhere"),
        ("csi \x9b31m", "csi \\x9b31m"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("half \ud83d", "half \\ud83d"),
    ],
)
def test_control_characters_are_shown_as_text(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("coco:val/instances.json", "coco:val/instances.json"),
        ("is this a?b#c", "is this a?b#c"),
        ("https://me:hunter2@host/0.tar", "https://***@host/0.tar"),
        ("https://me:hun@ter2@host/0.tar", "https://***@host/0.tar"),
        ("s3://key:hunter2@bucket/{0..9}.tar,cache=here", "s3://***@bucket/{0..9}.tar,cache=here"),
        ("https://host/0.tar?sig=hunter2&x=1,2,cache=here", "https://host/0.tar,cache=here"),
        ("https://host/a,b/0.tar?sig=hunter2", "https://host/a,b/0.tar"),
        ("https://a/0.tar?s=hunter2::https://u:hunter2@b/1.tar", "https://a/0.tar::https://***@b/1.tar"),
        ("no such file: https:/u:hunter2@h/a.csv", "no such file: https:/***@h/a.csv"),
        ("coco:/me@home/val.json", "coco:/me@home/val.json"),
        ("hf://datasets/me/set@main/0.tar", "hf://datasets/me/set@main/0.tar"),
        ("cannot be read (https://host/0.tar#hunter2)", "cannot be read (https://host/0.tar)"),
        ("shards:pipe:curl -u me:hunter2 https://h/0.tar?x=hunter2", "shards:pipe:curl ... https://h/0.tar"),
        ("pipe:cat a.tar", "pipe:cat a.tar"),
        ("reads pipe:curl -u me:hunter2 x", "reads pipe:curl ..."),
        ("shards:pipe: curl -u me:hunter2 x", "shards:pipe:curl ..."),
        ("broken pipe: of a worker that died", "broken pipe: of a worker that died"),
        ("pipe:", "pipe:"),
    ],
)
def test_secrets_of_urls_are_not_shown(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown
    assert "hunter2" not in shown
