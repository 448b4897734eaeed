"""Samples that cannot be used: counted by cause, and the run stopped when they are too many.

Whatever fails between reading a sample and using it is that sample's fault, also in worker processes: a data
set of millions may hold anything.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from open_cloc.data.annotations import Problem, SampleDataset, clean_sample, sound_part
from open_cloc.data.mixture import Mixture
from open_cloc.errors import SampleError, UserError
from open_cloc.samples import RegionSample
from open_cloc.shown import without_secrets

logger = logging.getLogger(__name__)

MIN_TRIED = 100  # one bad sample among the first few is no measure of the fraction
CHANCE = 1e-4  # at most, that so many are bad where their share is just the limit


def problem_of(error: Exception, where: str = "") -> Problem:
    """What an error says of the sample that it comes from.

    Args:
        error: Anything that was raised while the sample was read.
        where: Which sample it is, for errors that do not say it.
    """
    if isinstance(error, UserError):
        return Problem(error.cause if isinstance(error, SampleError) else "unusable sample", str(error))
    kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
    message = f"{kind}{error} ({where})" if where else f"{kind}{error}"
    return Problem("missing file" if isinstance(error, FileNotFoundError) else "unusable sample", message)


def read_usable(dataset: SampleDataset, index: int) -> tuple[RegionSample | None, list[Problem]]:
    """What can be used of a sample, None if nothing, and everything that is wrong with it. Never raises.

    Args:
        dataset: Any dataset; of one whose reader keeps raw boxes, a wrong entry costs only itself.
        index: Number of the sample.
    """
    try:
        while isinstance(dataset, Mixture):
            dataset, index = dataset.locate(index)
        if hasattr(dataset, "raw"):
            return sound_part(dataset.raw(index))
        return clean_sample(dataset[index]), []
    except Exception as error:  # a reader from elsewhere, or data of any shape
        return None, [problem_of(error, f"sample number {index}")]


class BadSample(NamedTuple):
    """Why a sample could not be used; `last_draw` where no replacement was found either."""

    cause: str
    message: str
    last_draw: bool


class BadSamples:
    """Counts samples that cannot be used and stops the run when they are too many.

    Of a data set that is gone through once, the limit is a share of all its samples. Of a run without a known
    end, or of many ranks that see other samples each, it is passed once the share is surely above it.

    Attributes:
        tried: Samples that were tried.
        causes: Bad ones by cause.
        first: What was wrong with the first.
    """

    def __init__(self, max_fraction: float, total: int | None = None) -> None:
        """Count from nothing.

        Args:
            max_fraction: Share of bad samples past which the run stops.
            total: Number of samples that will be tried; None where nobody knows.
        """
        self.max_fraction, self.total = max_fraction, total
        self.tried = 0
        self.causes: Counter[str] = Counter()
        self.first = ""

    @property
    def num_bad(self) -> int:
        return self.causes.total()

    def go_on_from(self, tried: int, bad: int) -> None:
        """Count on from what an earlier part of the run has counted."""
        self.tried += tried
        self.causes.update({"earlier in the run": bad} if bad else {})

    def add(self, good: int, bad: Sequence[BadSample]) -> None:
        """Count as `count` does, and stop where they are too many.

        Raises:
            UserError: If the share of bad ones is past the limit, or one could not be replaced.
        """
        self.count(good, bad)
        if self.is_past(self.num_bad, self.tried):
            raise self.refusal()

    def count(self, good: int, bad: Sequence[BadSample]) -> None:
        """Count the samples that a batch took, and those that it could not take, or not whole.

        Args:
            good: Number of samples without a fault.
            bad: The others.

        Raises:
            UserError: If one could not be replaced.
        """
        self.tried += good + len(bad)
        for sample in bad:
            if sample.cause not in self.causes:
                logger.warning("%s: %s", sample.cause, sample.message)
            self.first = self.first or sample.message
            self.causes[sample.cause] += 1
        if bad and bad[-1].last_draw:
            raise self.refusal("all replacements of one of them too")

    def is_past(self, bad: int, tried: int) -> bool:
        """Whether so many bad ones of so many are too many."""
        if self.total is None:
            return is_surely_above(bad, tried, self.max_fraction)
        return bad > self.max_fraction * max(self.total, MIN_TRIED)

    def refusal(self, reason: str = "") -> UserError:
        """The error that stops the run.

        Args:
            reason: Why; the limit unless given.
        """
        reason = reason or f"past max_bad_fraction={self.max_fraction:g}"
        return UserError(
            f"{self.num_bad} of the first {self.tried} samples are bad ({listed(self.causes)}), {reason}; "
            f"the first one: {self.first}"
        )

    @classmethod
    def joined(cls, tallies: Sequence[BadSamples]) -> BadSamples:
        """What several ranks have counted together."""
        whole = cls(tallies[0].max_fraction, tallies[0].total)
        for tally in tallies:
            whole.tried += tally.tried
            whole.causes.update(tally.causes)
            whole.first = whole.first or tally.first
        return whole


def is_surely_above(bad: int, tried: int, limit: float) -> bool:
    """Whether the share of bad samples, of which some were tried, is above a limit without much doubt.

    With a share of just the limit, so many bad ones, or more, would come with a chance under `CHANCE`. So a
    tenth of the limit never stops a run, however many ranks try, and twice the limit soon does.
    """
    if bad <= limit * tried:
        return False
    if limit <= 0:
        return True
    log_chance = (  # of exactly so many, by the binomial distribution
        math.lgamma(tried + 1)
        - math.lgamma(bad + 1)
        - math.lgamma(tried - bad + 1)
        + bad * math.log(limit)
        + (tried - bad) * math.log1p(-limit)
    )
    # That of one more is smaller by this factor, of two more by less than its square, ...
    factor = (tried - bad) / (bad + 1) * limit / (1 - limit)
    return log_chance - math.log1p(-factor) < math.log(CHANCE)


def tell_opening(
    dataset: SampleDataset,
    where: str,
    max_bad_fraction: float | None = None,
    advice: str = "max_bad_fraction leaves them out",
    is_checked: bool = True,
) -> None:
    """Say once what a reader left out and what was wrong with entries that belong to no sample.

    Args:
        dataset: Opened just now; of a mixture, each source is told.
        where: What the user called it.
        max_bad_fraction: Largest share of such entries among the samples; None where they are only told.
        advice: What to say of this limit.
        is_checked: `data check` opens the data set as well, and lists them.

    Raises:
        UserError: If there are more of them.
    """
    if isinstance(dataset, Mixture):
        for number, source in enumerate(dataset.sources):
            tell_opening(source, f"{where}, data set {number}", max_bad_fraction, advice, is_checked)
        return
    where = without_secrets(where)
    left_out: Mapping[str, int] = getattr(dataset, "left_out", {})
    if left_out:
        logger.warning("%s: not used: %s", where, listed(left_out))
    problems: Sequence[Problem] = getattr(dataset, "problems", ())
    if not problems:
        return
    causes = listed(Counter(problem.cause for problem in problems))
    broken = "1 entry is" if len(problems) == 1 else f"{len(problems)} entries are"
    # One entry may be worth many samples, as a broken tar is.
    lost: int = getattr(dataset, "lost", 0)
    cost = f", which costs about {lost} samples" if lost else ""
    message = f"{where}: {broken} broken ({causes}){cost}; the first one: {problems[0].message}"
    num_bad = max(len(problems), lost)
    if max_bad_fraction is not None and num_bad > max_bad_fraction * max(len(dataset), MIN_TRIED):
        listing = "`open-cloc data check` lists all, " if is_checked else ""
        raise UserError(f"{message}; {listing}{advice}")
    logger.warning("%s", message)


def listed(counts: Mapping[str, int]) -> str:
    """Counts as `name: count, ...`, the most common first."""
    return ", ".join(f"{name}: {count}" for name, count in Counter(counts).most_common())
