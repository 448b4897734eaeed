"""What a data set leaves out and what is wrong with it, told once, and decided where there is too much."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import pytest

from open_cloc.data.annotations import Problem
from open_cloc.data.bad_samples import tell_opening
from open_cloc.data.mixture import Mixture
from open_cloc.errors import UserError
from open_cloc.samples import RegionSample


class Opened:
    """A data set of 100 samples that knows of broken entries and of what it left out."""

    def __init__(self, num_problems: int = 0, **left_out: int) -> None:
        self.problems = [Problem("broken row", f"row {number} is broken") for number in range(num_problems)]
        self.left_out = Counter(left_out)

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> RegionSample:
        return RegionSample(str(index), b"")


def told(caplog: pytest.LogCaptureFixture, *arguments: Any) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        tell_opening(*arguments)
    return [record.getMessage() for record in caplog.records]


def test_everything_is_told_in_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, Opened(), "coco:x") == []
    assert told(caplog, Opened(2, crowds=3, others=5), "coco:x") == [
        "coco:x: not used: others: 5, crowds: 3",
        "coco:x: 2 entries are broken (broken row: 2); the first one: row 0 is broken",
    ]
    assert told(caplog, Opened(1), "s3://me:secret@bucket/x")[0].startswith("s3://***@bucket/x: 1 entry is")


def test_a_mixture_tells_of_each_of_its_parts(caplog: pytest.LogCaptureFixture) -> None:
    mixture = Mixture([Opened(crowds=1), Opened(1)])
    lines = told(caplog, mixture, "mine", 0.5)
    assert [line.partition(":")[0] for line in lines] == ["mine, data set 0", "mine, data set 1"]
    with pytest.raises(UserError, match="mine, data set 1: 1 entry is broken"):
        tell_opening(mixture, "mine", 0)


@pytest.mark.parametrize(("limit", "passes"), [(None, True), (0.02, True), (0.01, False), (0.0, False)])
def test_a_limit_decides(limit: float | None, passes: bool, caplog: pytest.LogCaptureFixture) -> None:
    if passes:
        assert len(told(caplog, Opened(2), "x", limit)) == 1
        return
    with pytest.raises(UserError, match=r"2 entries .* `open-cloc data check` lists all, and so on"):
        tell_opening(Opened(2), "x", limit, "and so on")


def test_datasets_from_elsewhere_need_not_know_anything(caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, [RegionSample("a", b"")], "x", 0) == []
