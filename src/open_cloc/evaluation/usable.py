"""What of a data set can be used, where an evaluation is allowed to leave the rest out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from open_cloc.data.annotations import Problem, SampleDataset
from open_cloc.data.bad_samples import BadSample, BadSamples, problem_of, read_usable
from open_cloc.errors import UserError
from open_cloc.samples import RegionSample

# What a data set says of itself, and a part of it says as well.
OF_WHOLE = ("class_names", "class_groups", "left_out", "problems", "crowds", "num_crowds")

OF_CAPTIONS = {"zeroshot_retrieval"}  # tasks that need them


class UsableSamples:
    """The samples that can be used, without their wrong entries; all else about the data set stays.

    Each is read and its picture decoded once beforehand, since a count that changed on the way would be that
    of another data set.

    Attributes:
        causes: Why samples or entries of them were left out, with counts.
    """

    is_a_part = True

    def __init__(self, dataset: SampleDataset, max_bad_fraction: float, task: str = "") -> None:
        """Look at each.

        Args:
            dataset: Samples by number.
            max_bad_fraction: Share of them that may be left out, or lose entries.
            task: Name of the task that they are for, where that needs captions.

        Raises:
            UserError: If more are bad, or none is left.
        """
        self.dataset, self.causes = dataset, Counter[str]()
        bad, kept = BadSamples(max_bad_fraction, total=len(dataset)), []
        for index in tqdm(range(len(dataset)), desc="looking at samples", leave=False, disable=None):
            is_usable, problems = _look(dataset, index, needs_captions=task in OF_CAPTIONS)
            self.causes.update(problem.cause for problem in problems)
            bad.add(not problems, [BadSample(p.cause, p.message, False) for p in problems[:1]])
            if is_usable:
                kept.append(index)
        if not kept:
            raise UserError(f"no sample can be used; the first: {bad.first}")
        self.kept = np.array(kept)

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> RegionSample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        sample, problems = read_usable(self.dataset, int(self.kept[index]))
        if sample is None:
            raise UserError(f"the data have changed while they were read: {problems[0].message}")
        return sample

    def __getattr__(self, name: str) -> Any:
        if name in OF_WHOLE:
            return getattr(self.dataset, name)
        if name == "label_map":
            whole: Callable[[int], np.ndarray] = self.dataset.label_map  # type: ignore[attr-defined]
            return lambda index: whole(int(self.kept[index]))
        raise AttributeError(name)


def _look(dataset: SampleDataset, index: int, needs_captions: bool) -> tuple[bool, list[Problem]]:
    """Whether a sample can be used, and everything that is wrong with it."""
    sample, problems = read_usable(dataset, index)
    if sample is None:
        return False, problems
    try:
        sample.pixels()
    except Exception as error:  # a decoder's, of any kind
        return False, [*problems, problem_of(error, f"sample number {index}")]
    if needs_captions and not (sample.captions and all(map(str.strip, sample.captions))):
        lacking = Problem("no caption", f"sample {sample.key!r} has no caption, or a blank one")
        return False, [*problems, lacking]
    return True, problems
