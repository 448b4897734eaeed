"""What a picture is asked for: texts, each with the regions that it means."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from open_cloc.data.readers.flickr30k import MENTION
from open_cloc.evaluation.collect import region_texts
from open_cloc.evaluation.method import Method, cleaning_of
from open_cloc.samples import RegionSample


class Query(NamedTuple):
    """A text, and the rows of its picture's regions that it means."""

    text: str
    regions: list[int]


def role_queries(sample: RegionSample, role: str, clean: Callable[[str], str]) -> list[Query]:
    """A picture's texts of a role, in order; those of equal source and words are one, which means them all.

    Args:
        sample: The picture.
        role: The role of the texts.
        clean: Gives a text as it is to be read.
    """
    found: dict[tuple[str, str], Query] = {}
    for row, region in enumerate(sample.regions):
        for text in region.texts:
            if text.role == role:
                found.setdefault((text.source, text.text), Query(clean(text.text), [])).regions.append(row)
    return list(found.values())


def mentions_of(sample: RegionSample, method: Method) -> list[Query]:
    """Each mention of a phrase, which means the boxes of its own thing; empty where the data tell none."""
    return role_queries(sample, MENTION, cleaning_of(method))


def phrases_of(sample: RegionSample, method: Method) -> list[Query]:
    """Each distinct text of a picture's regions, which means all regions of that text."""
    found: dict[str, Query] = {}
    for row, text in enumerate(region_texts(sample, method)):
        found.setdefault(text, Query(text, [])).regions.append(row)
    return list(found.values())
