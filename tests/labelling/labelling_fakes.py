"""Stages for tests of the labelling pipeline, which Ray's workers import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from open_cloc.data.scenes.vocabulary import COLOURS
from open_cloc.labelling.recipe import CaptionConfig, DetectorConfig
from open_cloc.labelling.types import Caption, Detections, Failure

NEAR = 60  # distance of colours, of channels up to 255


class PatientCaptioner:
    """Says again what was given; from its third batch on, only once the detector has been called.

    It waits for two minutes at most, and leaves a line in `calls` of its `weights` folder for each batch.
    """

    def __init__(self, config: CaptionConfig, device: str) -> None:
        self.log = Path(config.weights) / "calls"
        self.provenance = {"name": "patient"}

    def __call__(self, images: Sequence[bytes], given: Sequence[Sequence[str]]) -> list[Caption | Failure]:
        with self.log.open("a") as log:
            log.write("captions\n")
        deadline = time.monotonic() + 120
        while set(lines := self.log.read_text().splitlines()) == {"captions"} and len(lines) > 2:
            if time.monotonic() > deadline:
                raise TimeoutError("no detector")
            time.sleep(0.05)
        return [Caption(texts[0], "patient") for texts in given]


class ColourDetector:
    """Finds 'a red umbrella' as whatever is red. The folder in `weights` says how it misbehaves.

    A file `slow` makes each batch take a while; `die` kills the process once, `die always` each time; `raise`
    raises its content.
    A file `version` makes it another one. Each call leaves a line in `calls`.
    """

    def __init__(self, config: DetectorConfig, device: str) -> None:
        self.folder = Path(config.weights)
        version = self.folder / "version"
        self.provenance = {"name": "colour", "near": NEAR, "version": version.exists()}

    def __call__(
        self, images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]
    ) -> list[Detections | Failure]:
        with (self.folder / "calls").open("a") as log:
            log.write(f"{len(images)}\n")
        if (self.folder / "slow").exists():
            time.sleep(0.2)
        if (self.folder / "raise").exists():
            raise RuntimeError((self.folder / "raise").read_text())
        if (self.folder / "die always").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if (self.folder / "die").exists():
            (self.folder / "die").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return [detect(image, texts) for image, texts in zip(images, phrases)]


def detect(image: np.ndarray, texts: Sequence[str]) -> Detections:
    """A box around all pixels of each phrase's colour; its score is how much of the box they fill."""
    boxes, scores = [], []
    for column, text in enumerate(texts):
        found = [colour for colour in COLOURS if colour.name in text.split()]
        if not found:
            continue
        away = [np.abs(image.astype(int) - rgb).max(-1) for rgb in found[0][1:]]
        rows, columns = np.nonzero(np.minimum(*away) < NEAR)
        if not len(rows):
            continue
        height, width = image.shape[:2]
        y1, y2, x1, x2 = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        boxes.append((x1 / width, y1 / height, x2 / width, y2 / height))
        row = np.zeros(len(texts))
        row[column] = len(rows) / ((y2 - y1) * (x2 - x1))
        scores.append(row)
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(count, 4), np.array(scores, np.float32).reshape(count, len(texts))
    )
