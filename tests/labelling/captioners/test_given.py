"""The captions that came with the pictures."""

from __future__ import annotations

from open_cloc.labelling.captioners import open_captioner
from open_cloc.labelling.recipe import CaptionConfig
from open_cloc.labelling.types import Caption, Failure


def test_given_takes_the_first_that_is_not_blank() -> None:
    captioner = open_captioner(CaptionConfig())
    results = captioner([b""] * 3, [["", " \n", " a mug ", "b"], [], [" "]])
    assert results[0] == Caption(" a mug ", "given")
    assert [result.cause for result in results[1:] if isinstance(result, Failure)] == ["no caption"] * 2
    assert captioner.provenance == {"name": "given"}
