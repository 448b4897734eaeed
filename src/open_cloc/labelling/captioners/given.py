"""Keeps a caption that came with the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from open_cloc.labelling.recipe import CaptionConfig
from open_cloc.labelling.types import Caption, Failure


class GivenCaptioner:
    """The first given caption that is not blank, as it is. Attributes as in `types.Captioner`."""

    def __init__(self, config: CaptionConfig, device: str = "cpu") -> None:
        """Nothing of the config matters here."""
        self.provenance: Mapping[str, object] = {"name": "given"}

    def __call__(self, images: Sequence[bytes], captions: Sequence[Sequence[str]]) -> list[Caption | Failure]:
        return [_first(texts) for texts in captions]


def _first(texts: Sequence[str]) -> Caption | Failure:
    for text in texts:
        if text.strip():
            return Caption(text, "given")
    return Failure("no caption", f"{len(texts)} captions were given, none with a text")
