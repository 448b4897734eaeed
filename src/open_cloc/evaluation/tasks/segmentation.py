"""Dense zero-shot segmentation: a class for each pixel from the image tower's tokens, without training.

Shapes: C classes, Q texts (a class may have several), D shared embedding, H W pixels of a picture.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import SampleError, UserError
from open_cloc.evaluation.batches import read_batches
from open_cloc.evaluation.checked import dense_of
from open_cloc.evaluation.classes import digest_of, embed_classes
from open_cloc.evaluation.intervals import Estimate
from open_cloc.evaluation.method import Method, cleaning_of
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.protocols import DenseRules
from open_cloc.evaluation.task import TaskResult, measured
from open_cloc.evaluation.windows import cosines_of, enlarged

logger = logging.getLogger(__name__)

SEPARATOR = ", "  # between the names of one class
NO_CLASS = -1  # a pixel that does not count
NUMBERS_AT_ONCE = 2**24


def segmentation(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> TaskResult:
    """Name each pixel, and count the overlap with its label map by class.

    A class may have several names, joined by `, `: the likeliest of them counts.

    Raises:
        UserError: If the data set has no label maps, or the method has no embedding for each place.
        SampleError: If a label map is of another size than its picture.
    """
    dense, rules = dense_of(method), config.rules.dense
    if not len(dataset):
        raise UserError("dataset is empty; expected at least one sample")
    if not hasattr(dataset, "label_map"):
        raise UserError("segmentation needs a label map for each picture: open the data as masks:FOLDER,...")
    own, clean = getattr(dataset, "class_names", ()), cleaning_of(method)
    classes = config.classes or own
    names = [[clean(name) for name in given.split(SEPARATOR.strip()) if name.strip()] for given in classes]
    if own and len(names) != len(own):
        raise UserError(
            f"label maps are of {len(own)} classes; got names for {len(names)}: give the data set's own "
            "classes, in their order"
        )
    owners = torch.tensor([number for number, own in enumerate(names) for _ in own])  # (Q,)
    texts, rows = _embed_names(method, names, config)
    counted: list[Tensor] = []  # (3, C) of each picture
    for batch in read_batches(dataset, method.canvas, config):
        for sample in batch.samples:
            pixels = sample.pixels()
            truth = dataset.label_map(len(counted))
            if truth.shape != pixels.shape[:2]:
                sizes = f"{truth.shape[1]} x {truth.shape[0]}, {pixels.shape[1]} x {pixels.shape[0]}"
                raise SampleError(
                    f"label map and picture must be of one size; got {sizes} (sample {sample.key!r})",
                    "label map of another size",
                )
            near = cosines_of(dense, sample, pixels, texts, rules, config.batch_size)
            found = named(near[rows], owners, truth.shape, rules)
            counted.append(_counts(found, torch.from_numpy(truth.astype(np.int64)), len(names)))
    sums = torch.stack(counted, dim=-1).double().flatten(0, 1)  # (3 C, I)
    occurs = sums.unflatten(0, (3, -1))[1].sum(1) > 0
    if not occurs.any():
        raise UserError(f"no pixel of the {len(counted)} label maps is of a class; expected at least one")
    parts = sums.to_sparse().coalesce()
    estimates = {
        "miou": Estimate(parts, _mean_iou),
        "mean_per_class_recall": Estimate(parts, _mean_recall),
        "pixel_acc": Estimate(parts, _pixel_accuracy),
    }
    protocol = {
        "places": "image tokens, each through the tower's own head, alone",
        "averaging": "IoU of each class over all pixels; the mean over classes that occur or are answered",
        "classes": "given" if config.classes else "classes of the data set",
        "num_images": len(counted),
        "num_pixels": int(sums.unflatten(0, (3, -1))[1].sum()),
        "num_classes": len(names),
        "num_classes_that_occur": int(occurs.sum()),
        "num_texts": len(owners),
        "classes_digest": digest_of(", ".join(own) for own in names),
    }
    return measured(estimates, len(counted), protocol)


def _embed_names(
    method: Method, names: Sequence[Sequence[str]], config: EvaluationConfig
) -> tuple[Tensor, list[int]]:
    """The distinct names of all classes, (distinct, D) of unit length, and which each of the Q names is.

    A name of several classes, such as COCO-Object's bed, which its background has too, is each class's own:
    of classes that are exactly as near the first wins.

    Raises:
        UserError: If a class has a name twice.
    """
    for own in names:
        twice = [name for name, count in Counter(own).items() if count > 1]
        if twice:
            raise UserError(f"class {', '.join(own)!r:.80} has the name {twice[0]!r:.80} twice")
    given = [name for own in names for name in own]
    rows = {name: row for row, name in enumerate(dict.fromkeys(given))}
    shared = [name for name, count in Counter(given).items() if count > 1]
    if shared:
        logger.warning(
            "a name is of several classes, of which the first is answered (%d in all): %r",
            len(shared),
            shared[0],
        )
    return embed_classes(method, list(rows), config), [rows[name] for name in given]


def named(near: Tensor, owners: Tensor, size_hw: tuple[int, int], rules: DenseRules) -> Tensor:
    """The class of each pixel (H, W).

    Args:
        near: (Q, h, w) how near each place is to each text, or how likely the text is there.
        owners: (Q,) the class of each text.
        size_hw: (H, W).
        rules: How to choose.
    """
    found = torch.zeros(size_hw, dtype=torch.int64)
    sure = torch.zeros(size_hw)
    dropped: list[int] = []
    for again in (False, True):
        for rows, values in enlarged(near, size_hw, NUMBERS_AT_ONCE):
            if rules.average == "cosines":
                values = (rules.scale * values).softmax(0)
            likely = _of_classes(values, owners)  # (C, rows, W)
            if dropped:
                likely[dropped] = 0
            sure[rows], found[rows] = likely.max(0)
        areas = torch.bincount(found.flatten(), minlength=int(owners.max()) + 1)
        dropped = (1 + (areas[1:] <= rules.least_area * areas[1:].sum()).nonzero()[:, 0]).tolist()
        if again or not rules.least_area or not dropped:
            break
    if rules.background:
        found[sure < rules.background] = 0
    return found


def _of_classes(values: Tensor, owners: Tensor) -> Tensor:
    """Of texts (Q, ...) -> of classes (C, ...): the likeliest text of each."""
    count = int(owners.max()) + 1
    if count == len(owners):
        return values
    places = owners[:, None, None].expand_as(values)
    return values.new_zeros(count, *values.shape[1:]).scatter_reduce(0, places, values, "amax")


def _counts(found: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Pixels that are right, that are of a class, and that are called so: (3, C)."""
    counts = truth != NO_CLASS
    found, truth = found[counts], truth[counts]
    rows = (truth[found == truth], truth, found)
    return torch.stack([torch.bincount(row, minlength=num_classes) for row in rows])


def _mean_iou(sums: Tensor) -> Tensor:
    right, there, called = sums.unflatten(0, (3, -1))
    return (right / (there + called - right)).nanmean(0)


def _mean_recall(sums: Tensor) -> Tensor:
    right, there, _ = sums.unflatten(0, (3, -1))
    return (right / there).nanmean(0)


def _pixel_accuracy(sums: Tensor) -> Tensor:
    right, there, _ = sums.unflatten(0, (3, -1)).sum(1)
    return right / there
