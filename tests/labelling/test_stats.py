"""Counts that add up over shards."""

from __future__ import annotations

import json

import numpy as np
import pytest

from open_cloc.labelling.stats import RegionStats, Totals, count_tokens, mean_of, merge_stats, picture_stats
from open_cloc.labelling.types import Detections, Failure, Phrase, Phrases, Picture
from open_cloc.samples import Region, RegionSample


def sample(key: str, *cycles: float) -> RegionSample:
    """A sample with a region of each cycle score."""
    regions = [Region((0.0, 0.0, 0.5, 0.5), "a dog", 0.3, "t", None, cycle) for cycle in cycles]
    return RegionSample(key, b"", captions=("a dog on a mat",), regions=tuple(regions))


def counted(*samples: RegionSample) -> dict:
    stats = RegionStats()
    for each in samples:
        stats.add(each)
    return stats.as_json()


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    samples = [sample("a", 0.5, -0.2), sample("b"), sample("c", 0.9)]
    whole = counted(*samples)
    assert merge_stats([counted(samples[0]), counted(*samples[1:])]) == whole
    assert json.loads(json.dumps(whole)) == whole
    assert (whole["written"], whole["regions"], whole["without_region"]) == (3, 3, 1)
    assert whole["histograms"]["regions a picture"] == {"0": 1, "1": 1, "2": 1}
    assert whole["histograms"]["size"] == {"0.50": 3}
    assert whole["top_phrases"] == {"a dog": 3}
    assert whole["worst_cycle"][0] == [-0.2, "a", "a dog", 0.3]


def test_pictures_are_counted_by_what_became_of_them() -> None:
    found = Detections(np.zeros((2, 4), np.float32), np.zeros((2, 1), np.float32), {"empty": 3})
    stats = picture_stats(
        [
            *(Picture(i, f"p{i}", failure=Failure("unreadable picture", "cut off")) for i in range(5)),
            Picture(5, "p5", phrases=Phrases((Phrase("dog", 0, 3),), {"duplicate": 2}), detections=found),
            Picture(6, "p6", phrases=Phrases(())),
        ]
    )
    assert (stats["pictures"], stats["phrases"], stats["without_phrase"], stats["raw_boxes"]) == (7, 1, 1, 2)
    assert stats["failures"] == {"unreadable picture": 5}
    assert stats["failure_examples"]["unreadable picture"] == [f"p{i}: cut off" for i in range(3)]
    assert (stats["phrases_dropped"], stats["boxes_dropped"]) == ({"duplicate": 2}, {"empty": 3})


def test_the_mean_of_a_histogram() -> None:
    assert mean_of({"0": 1, "3": 2}) == 2
    assert mean_of({}) is None


def test_tokens_are_counted_without_start_and_end() -> None:
    assert count_tokens("a dog") == 2


def test_sums_grow_in_place_and_hold_the_most_frequent_phrases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("open_cloc.labelling.stats.MOST_PHRASES", 6)
    totals = Totals()
    part = counted(sample("a", 0.5))
    totals.add(part)
    phrases, bins = totals.as_json()["top_phrases"], totals.as_json()["histograms"]["size"]
    for number in range(20):
        totals.add(part | {"top_phrases": {"a dog": 1, f"rare {number}": 1}})
    assert totals.as_json()["histograms"]["size"] is bins  # no copy for each shard
    assert bins == {"0.50": 21}
    merged = totals.as_json()["top_phrases"]
    assert merged["a dog"] == 21
    assert len(merged) <= 6
    assert phrases["a dog"] >= 1
    assert part["top_phrases"] == {"a dog": 1}  # what was added stays as it was
