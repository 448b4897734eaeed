"""Samples that cannot be used: counted by cause, and the run stopped when they are too many."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from open_cloc.errors import UserError

logger = logging.getLogger(__name__)

MIN_TRIED = 100  # one bad sample among the first few is no measure of the fraction


class BadSample(NamedTuple):
    """Why a sample could not be used; `last_draw` where no replacement was found either."""

    cause: str
    message: str
    last_draw: bool


class BadSamples:
    """Counts samples that cannot be used and stops the run when they are too many."""

    def __init__(self, max_fraction: float) -> None:
        """Count from nothing.

        Args:
            max_fraction: Share of bad samples past which the run stops.
        """
        self.max_fraction = max_fraction
        self.tried = 0
        self.causes: Counter[str] = Counter()
        self.first = ""

    def add(self, good: int, bad: Sequence[BadSample]) -> None:
        """Count the samples that a batch took, and those that it could not take.

        Args:
            good: Number of samples that could be used.
            bad: The others.

        Raises:
            UserError: If the share of bad ones is past the limit, or one could not be replaced.
        """
        self.tried += good + len(bad)
        for sample in bad:
            if sample.cause not in self.causes:
                logger.warning("%s: %s", sample.cause, sample.message)
            self.first = self.first or sample.message
            self.causes[sample.cause] += 1
        total = self.causes.total()
        hopeless = bool(bad) and bad[-1].last_draw
        too_many = total > self.max_fraction * max(self.tried, MIN_TRIED)
        if hopeless or too_many:
            causes = ", ".join(f"{cause}: {count}" for cause, count in self.causes.most_common())
            limit = f"past max_bad_fraction={self.max_fraction:g}"
            raise UserError(
                f"{total} of the first {self.tried} samples are bad ({causes}), "
                f"{limit if too_many else 'all replacements of one of them too'}; the first one: {self.first}"
            )
