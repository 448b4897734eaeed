"""A method whose every answer is looked at before a task sees it.

A feature that is not finite, or of no length, is no answer, yet ranking it gives one: the first classes of
the list, and an accuracy of 1 where these are right. All tasks and all methods go through here, those from
elsewhere too, and here the name of the sample is still known.

Shapes: B images, R regions of one image, P phrases of one image, T texts, D shared embedding.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from open_cloc.canvas import CanvasConfig
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.method import (
    DenseMethod,
    FoundBoxes,
    GroundingMethod,
    Method,
    cleaning_of,
    logit_scale_of,
)
from open_cloc.samples import RegionSample
from open_cloc.texts import TextCleaning

LENGTH_TOLERANCE = 0.01  # rows may have been of 16 bits


class CheckedMethod:
    """A method; see `Method`.

    Args:
        method: Whose answers are looked at.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        self._seen: dict[str, bytes] = {}  # what is annotated in each sample by its key, in their order
        self._seconds, self._regions = 0.0, 0
        self.folders = Counter[str]()  # regions by the folder that their pictures' names say

    def seen(self) -> dict[str, str]:
        """What runs over the same samples share, 16 hexadecimal digits each.

        `images` of their names in order, `annotations` of their boxes and texts.
        """
        names = "\0".join(self._seen).encode("utf-8", "surrogatepass")
        return {"images": _digest(names), "annotations": _digest(b"".join(self._seen.values()))}

    @property
    def seconds_per_region(self) -> float | None:
        """Time of the method for each region, its picture's pass included; None where there was none."""
        return self._seconds / self._regions if self._regions else None

    def _see(self, batch: EvaluationBatch) -> None:
        for sample in batch.samples:
            if sample.key not in self._seen:
                self._seen[sample.key] = _annotated(sample)
                self.folders[_folder_of(sample)] += len(sample.regions)

    @property
    def canvas(self) -> CanvasConfig:
        return self.method.canvas

    @property
    def cleaning(self) -> TextCleaning:
        return cleaning_of(self.method)

    @property
    def logit_scale(self) -> float | None:
        return logit_scale_of(self.method)

    def describe(self) -> dict[str, Any]:
        """What made the numbers, as plain JSON."""
        return self.method.describe()

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (T, D) float32 of unit length."""
        return require_unit(self.method.embed_texts(texts), [f"text {text!r}" for text in texts])

    def embed_images(self, batch: EvaluationBatch) -> Tensor:
        """Whole pictures of a batch -> (B, D) float32 of unit length."""
        self._see(batch)
        names = [f"the picture of sample {sample.key!r}" for sample in batch.samples]
        return require_unit(self.method.embed_images(batch), names)

    def embed_regions(self, batch: EvaluationBatch, boxes: Sequence[np.ndarray]) -> Tensor:
        """Boxes of each picture of a batch -> (sum of R, D) float32 of unit length, picture by picture."""
        self._see(batch)
        names = [
            f"region {row} of sample {sample.key!r}"
            for sample, own in zip(batch.samples, boxes)
            for row in range(len(own))
        ]
        started = time.perf_counter()
        features = require_unit(self.method.embed_regions(batch, boxes), names)  # which waits for a device
        self._seconds += time.perf_counter() - started
        self._regions += len(features)
        return features


class CheckedGroundingMethod(CheckedMethod):
    """A method that finds phrases as well; see `GroundingMethod`."""

    method: GroundingMethod

    def describe_grounding(self) -> dict[str, Any]:
        """How boxes are found, as plain JSON."""
        return self.method.describe_grounding()

    def ground(self, batch: EvaluationBatch, phrases: Sequence[Sequence[str]]) -> FoundBoxes:
        """The best box for each phrase of each picture of a batch."""
        self._see(batch)
        found = self.method.ground(batch, phrases)
        names = [
            f"phrase {phrase!r} of sample {sample.key!r}"
            for sample, own in zip(batch.samples, phrases)
            for phrase in own
        ]
        answers = torch.cat([found.boxes.float(), found.scores.float()[:, None]], dim=1)  # (P, 5)
        _require(answers, names, answers.isfinite().all(1), "box and score", "is not finite")
        if found.further is not None:
            rows = found.further.flatten(1)
            _require(rows, names, ~rows.isinf().any(1), "a further box", "is not finite")
        return found


def _folder_of(sample: RegionSample) -> str:
    """The folder that the picture's name begins with, as LVIS's do; empty where none is told."""
    name = sample.metadata.get("file_name")
    return name.rpartition("/")[0] if isinstance(name, str) else ""


def _annotated(sample: RegionSample) -> bytes:
    """What equal boxes with equal texts share; boxes to a millionth, as far as files keep them."""
    boxes = np.array([region.box for region in sample.regions], np.float64)
    texts = [*sample.captions, "", *(region.text for region in sample.regions)]
    with_roles = [*sample.texts, *(text for region in sample.regions for text in region.texts)]
    texts += [f"{text.role}\0{text.text}" for text in with_roles]
    return _digest(boxes.round(6).tobytes() + "\0".join(texts).encode("utf-8", "surrogatepass")).encode()


def _digest(what: bytes) -> str:
    return hashlib.blake2b(what, digest_size=8).hexdigest()


def checked(method: Method) -> CheckedMethod:
    """The same method, its answers looked at."""
    return CheckedGroundingMethod(method) if isinstance(method, GroundingMethod) else CheckedMethod(method)


def dense_of(method: Method) -> DenseMethod:
    """The same method as one that tells what is at each place of a picture, its answers looked at.

    Raises:
        UserError: If it cannot.
    """
    own = method.method if isinstance(method, CheckedMethod) else method
    if not isinstance(own, DenseMethod):
        able = (
            "roialign, of a ViT also with tokens=value, value_block or csa, and of a CLIP of transformers by "
            "--weights folder:PATH; fgclip; tipsv2"
        )
        raise UserError(
            f"method {own.describe()['method']} has no embedding for each place; those that do: {able}"
        )
    return _CheckedDense(own, method if isinstance(method, CheckedMethod) else CheckedMethod(own))


class _CheckedDense(CheckedMethod):
    """A method whose answers for places are looked at as well.

    Args:
        method: Whose answers they are.
        seen_by: Who counts the samples.
    """

    method: DenseMethod

    def __init__(self, method: DenseMethod, seen_by: CheckedMethod) -> None:
        super().__init__(method)
        self.seen_by = seen_by

    @property
    def patch_hw(self) -> tuple[int, int] | None:
        """Of the method, which then takes pictures of any size; None for one that does not."""
        return getattr(self.method, "patch_hw", None)

    def embed_tokens(self, batch: EvaluationBatch) -> Tensor:
        """Pictures of a batch -> (B, rows, columns, D) of unit length."""
        self.seen_by._see(batch)
        tokens = self.method.embed_tokens(batch)
        names = [f"a place of sample {sample.key!r}" for sample in batch.samples]
        each = tokens.shape[1] * tokens.shape[2]
        require_unit(tokens.flatten(0, 2), [name for name in names for _ in range(each)])
        return tokens


def require_unit(features: Tensor, names: Sequence[str]) -> Tensor:
    """Features (X, D), if each row is finite and of unit length.

    Args:
        features: What a method gives.
        names: What each row is of.

    Raises:
        UserError: Names the first row that is not.
    """
    lengths = features.float().norm(dim=-1) if features.numel() else features.new_ones(len(features))
    _require(features, names, lengths.isfinite(), "feature", "is not finite")
    good = (lengths - 1).abs() <= LENGTH_TOLERANCE
    _require(features, names, good, "feature", "is not of unit length")
    return features


def _require(answers: Tensor, names: Sequence[str], good: Tensor, what: str, wrong: str) -> None:
    if len(answers) != len(names):
        raise UserError(f"the method gives {len(answers)} answers; expected {len(names)}, one for each")
    if not good.all():
        row = int((~good).int().argmax())
        got = ", ".join(f"{value:g}" for value in answers[row][:3].tolist())
        raise UserError(
            f"{what} of {names[row]} {wrong}: got {got}, ... ({int((~good).sum())} of {len(names)} asked for "
            "together); the weights are damaged, or do not suit the precision"
        )
