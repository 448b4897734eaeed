"""What a run made of its pictures, as counts that add up over shards."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from open_cloc.labelling.types import Picture
from open_cloc.samples import RegionSample

# Phrases kept a shard; a rarer one is not among the most frequent of a run.
TOP_PHRASES = 1000
# Phrases that the sum over shards may hold; past it the rarer half goes.
MOST_PHRASES = 100_000
# Regions with the lowest cycle score that are kept a shard.
WORST = 20
# Messages kept a cause of failure.
EXAMPLES = 3
# Width of a bin of the score and cycle histograms.
BIN = 0.05


def picture_stats(pictures: Iterable[Picture]) -> dict[str, Any]:
    """Counts of what the stages before the filter did."""
    names = ("pictures", "captions_cut", "phrases", "without_phrase", "raw_boxes")
    stats: dict[str, Any] = dict.fromkeys(names, 0)
    failures, examples = Counter[str](), dict[str, list[str]]()
    phrases_dropped, boxes_dropped = Counter[str](), Counter[str]()
    for picture in pictures:
        stats["pictures"] += 1
        if picture.failure is not None:
            failures[picture.failure.cause] += 1
            examples.setdefault(picture.failure.cause, []).append(f"{picture.key}: {picture.failure.message}")
            continue
        stats["captions_cut"] += picture.caption is not None and picture.caption.is_cut
        if picture.phrases is not None:
            stats["phrases"] += len(picture.phrases.kept)
            phrases_dropped.update(picture.phrases.dropped)
            stats["without_phrase"] += not picture.phrases.kept
        if picture.detections is not None:
            stats["raw_boxes"] += len(picture.detections.boxes)
            boxes_dropped.update(picture.detections.dropped)
    return {
        **stats,
        "failures": dict(failures),
        "failure_examples": {cause: messages[:EXAMPLES] for cause, messages in examples.items()},
        "phrases_dropped": dict(phrases_dropped),
        "boxes_dropped": dict(boxes_dropped),
    }


class RegionStats:
    """Counts of what is written, picture by picture, and of the boxes that the filter left out.

    Attributes:
        filtered: Number of boxes left out, by rule.
    """

    def __init__(self) -> None:
        self.written = self.regions = self.without_region = self.given_regions = 0
        self.filtered: Counter[str] = Counter()
        self.histograms: dict[str, Counter[str]] = {
            name: Counter()
            for name in ("regions a picture", "region tokens", "caption tokens", "score", "size", "cycle")
        }
        self.phrases: Counter[str] = Counter()
        self.worst: list[tuple[float, str, str, float]] = []

    def add(self, sample: RegionSample) -> None:
        """Count a sample that is written."""
        self.written += 1
        self.regions += len(sample.regions)
        self.without_region += not sample.regions
        self.histograms["regions a picture"][str(len(sample.regions))] += 1
        if sample.captions:
            self.histograms["caption tokens"][str(count_tokens(sample.captions[0]))] += 1
        for region in sample.regions:
            x1, y1, x2, y2 = region.box
            self.histograms["region tokens"][str(count_tokens(region.text))] += 1
            self.histograms["score"][_bin(region.score)] += 1
            self.histograms["size"][_bin(math.sqrt((x2 - x1) * (y2 - y1)))] += 1
            self.phrases[region.text] += 1
            if region.cycle is not None:
                self.histograms["cycle"][_bin(region.cycle)] += 1
                self.worst.append((round(region.cycle, 4), sample.key, region.text, round(region.score, 4)))
        self.worst = sorted(self.worst)[:WORST]

    def as_json(self) -> dict[str, Any]:
        """The counts, as JSON types."""
        return {
            "filtered": dict(self.filtered),
            "written": self.written,
            "regions": self.regions,
            "without_region": self.without_region,
            "given_regions_replaced": self.given_regions,
            "histograms": {name: dict(sorted(counts.items())) for name, counts in self.histograms.items()},
            "top_phrases": _most_frequent(self.phrases, TOP_PHRASES),
            "worst_cycle": [list(row) for row in self.worst],
        }


class Totals:
    """The counts of shards, added up one after the other; their own tables grow with what differs alone."""

    def __init__(self) -> None:
        self._merged: dict[str, Any] = {}

    def add(self, counts: Mapping[str, Any]) -> None:
        """Add a shard's counts: numbers and tables of numbers are summed, lists are joined."""
        _add_to(self._merged, counts)
        self._cut()

    def as_json(self) -> dict[str, Any]:
        """The sums; they are not to be added to afterwards."""
        return self._merged

    def _cut(self) -> None:
        merged = self._merged
        if "worst_cycle" in merged:
            merged["worst_cycle"] = sorted(merged["worst_cycle"])[:WORST]
        for messages in merged.get("failure_examples", {}).values():
            del messages[EXAMPLES:]
        if len(merged.get("top_phrases", ())) > MOST_PHRASES:
            merged["top_phrases"] = _most_frequent(merged["top_phrases"], MOST_PHRASES // 2)


def merge_stats(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of shards added up, as `Totals` does."""
    totals = Totals()
    for part in parts:
        totals.add(part)
    return totals.as_json()


def mean_of(histogram: Mapping[str, int]) -> float | None:
    """The mean of a histogram's keys; None of an empty one."""
    total = sum(histogram.values())
    return sum(float(key) * count for key, count in histogram.items()) / total if total else None


@lru_cache(maxsize=100_000)
def count_tokens(text: str) -> int:
    """Tokens of CLIP's byte-pair encoding, without start and end, uncut."""
    return len(_tokenizer().encode(text))


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer  # imports all of open_clip: seconds

    return SimpleTokenizer()


def _bin(value: float) -> str:
    """The lower edge of the bin that a value falls into."""
    return f"{math.floor(min(value, 1 - 1e-9) / BIN + 1e-9) * BIN:.2f}"


def _most_frequent(phrases: Mapping[str, int], most: int) -> dict[str, int]:
    return dict(sorted(phrases.items(), key=lambda item: (-item[1], item[0]))[:most])


def _add_to(merged: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Add a table of numbers, lists and tables to another, in place."""
    for name, value in part.items():
        if isinstance(value, Mapping):
            _add_to(merged.setdefault(name, {}), value)
        elif isinstance(value, list):
            merged[name] = merged.get(name, []) + value
        else:
            merged[name] = merged.get(name, 0) + value
