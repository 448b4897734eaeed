"""A data set small enough to be measured in milliseconds, and irregular enough to catch mistakes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from open_cloc.samples import Region, RegionSample, Text

SIZES = [(40, 70), (64, 64), (90, 30), (33, 65), (20, 20)]
NAMES = ("red dog", "blue cat", "green tree", "small house", "old car", "white cup", "Tall Man")


WITH_TEXTS = ("referring", "fine_grained")  # tasks that ask for further texts of regions
WITH_MENTIONS = ("grounding",)  # tasks some of whose protocols ask for mentions
WITH_MAPS = ("segmentation",)  # tasks that ask for label maps


class Samples(list[RegionSample]):
    """The smallest data set there can be."""

    class_names: tuple[str, ...] = ()
    num_crowds = 0


def make_samples() -> Samples:
    """9 pictures of five sizes, 0 to 4 regions each, some texts twice in a picture."""
    rng = np.random.default_rng(0)
    made = Samples()
    for i in range(9):
        corners = rng.uniform(0, 0.6, (i % 5, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(0.1, 0.4, corners.shape)], 1)
        texts = [NAMES[j] for j in rng.integers(len(NAMES), size=len(boxes))]
        if len(texts) == 4:
            texts[3] = texts[0]
        regions = tuple(Region(tuple(box.tolist()), text) for box, text in zip(boxes, texts))
        pixels = rng.integers(0, 256, (*SIZES[i % 5], 3), dtype=np.uint8)
        made.append(RegionSample(f"s{i}", pixels, (f"a {NAMES[i % 7]}",), regions))
    return made


def with_texts(samples: Iterable[RegionSample]) -> Samples:
    """The samples with an expression and a wrong sentence for each region, and a detection in each."""
    texts = (Text("the one", "referring", "ref 1, 0"), Text("not this", "negative"))
    found = Region((0.1, 0.1, 0.9, 0.9), "object", source="detection", texts=texts[1:])
    return Samples(
        replace(s, regions=(*(replace(r, texts=texts) for r in s.regions), *([found] * bool(s.regions))))
        for s in samples
    )


def mentioned(samples: Iterable[RegionSample]) -> Samples:
    """Each text is mentioned once in its picture."""
    return Samples(
        replace(s, regions=tuple(replace(r, texts=(Text(r.text, "mention", r.text),)) for r in s.regions))
        for s in samples
    )


def suited(samples: Samples, task: str) -> Samples:
    """The samples with what a task asks for."""
    if task in WITH_TEXTS:
        return with_texts(samples)
    if task in WITH_MENTIONS:
        return mentioned(samples)
    return with_maps(samples) if task in WITH_MAPS else samples


def method_for(task: str, method: str = "") -> str:
    """The method, or the one that a task needs."""
    return "roialign" if task in WITH_MAPS else method


class Mapped(Samples):
    """Pictures with a label map each."""

    class_names = ("red dog, dog", "blue cat", "green tree", "small house")

    def label_map(self, index: int) -> np.ndarray:
        shape = self[index].pixels().shape[:2]
        found = np.random.default_rng(index).integers(-1, 3, shape)  # no small house anywhere
        found[: shape[0] // 2] = index % 3
        return found


def with_maps(samples: Iterable[RegionSample]) -> Mapped:
    """The samples' pictures, each with a label map."""
    return Mapped(replace(sample, captions=(), regions=()) for sample in samples)
