"""Region recognition and region-text retrieval.

Shapes: X regions of a data set, C classes, T distinct texts, D shared embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.evaluation.classes import (
    Classes,
    class_groups,
    class_names,
    embed_classes,
    group_masks,
)
from open_cloc.evaluation.collect import RegionFeatures, collect_regions
from open_cloc.evaluation.intervals import BINS, calibration_error, mean_over, mean_over_classes
from open_cloc.evaluation.method import Method, logit_scale_of
from open_cloc.evaluation.metrics import (
    TIES,
    Ranks,
    classification_estimates,
    confidences,
    find_own_ranks,
    find_ranks,
    rank_classes,
    recall_estimates,
)
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.task import TaskResult, measured

ANY_AREA = (0.0, 0.0)
# COCO's, by the area of a box in pixels.
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
# Readings of texts that repeat -> what is right, for the protocol.
RIGHT = {
    "own": "every region against every region's text; its own alone is right",
    "any": "every region against every region's text; an equal text is right too",
    "merge": "equal texts are one entry and one query; any region of the text is right",
}


def zeroshot_region_classification(
    method: Method, dataset: SampleDataset, config: EvaluationConfig
) -> TaskResult:
    """Name every box: the class whose text is most similar to the region wins."""
    every = collect_regions(method, dataset, config)
    regions = _of_areas(every, config.rules.areas)
    classes = class_names(method, dataset, every.texts, config)
    targets = classes.targets(regions.texts)
    class_features = embed_classes(method, classes.names, config)
    ranks = rank_classes(regions.features, class_features, targets)
    images, num_images, num_classes = regions.image_index, regions.num_images, len(classes.names)
    estimates = classification_estimates(ranks, num_classes, targets, images, num_images)
    scale = logit_scale_of(method)
    if scale is not None:
        sure = confidences(regions.features, class_features, scale)
        estimates["calibration_error"] = calibration_error(sure, ranks.hits(1), images, num_images)
    protocol: dict[str, object] = {
        "classes": classes.source,
        "averaging": "acc1, acc5: micro; mean_per_class_recall: macro over classes that occur",
        "ties": TIES,
        "sizes": "small below 32 x 32 pixels of the picture, large from 96 x 96 on; areas of boxes",
        "logit_scale": scale,
        "calibration": f"likeliest class's probability in {BINS} bins of equal width; less is better",
        "num_images": num_images,
        "num_regions": len(targets),
        **({"num_other_areas": len(every.texts) - len(targets)} if config.rules.areas != ANY_AREA else {}),
        "num_classes": num_classes,
        "num_classes_that_occur": len(targets.unique()),
        "classes_digest": classes.digest,
    }
    sizes = {name: (regions.areas >= low) & (regions.areas < high) for name, (low, high) in SIZES.items()}
    for name, mask in sizes.items():
        if mask.any():
            protocol[f"num_regions/{name}"] = int(mask.sum())
            estimates[f"acc1/{name}"] = mean_over(ranks.of(mask).hits(1), images[mask], num_images)
    for name, members in class_groups(method, dataset, classes.names).items():
        mask = torch.isin(targets, torch.tensor(members))
        if mask.any():
            protocol[f"num_regions/{name}"] = int(mask.sum())
            own = mean_over_classes(ranks.of(mask).hits(1), targets[mask], images[mask], num_images)
            estimates[f"mean_per_class_recall/{name}"] = own
    for name, mask in group_masks(method, regions.texts, config).items():
        group = classification_estimates(ranks.of(mask), num_classes, targets[mask], images[mask], num_images)
        estimates |= {f"{key}/{name}": estimate for key, estimate in group.items()}
        protocol[f"num_regions/{name}"] = int(mask.sum())
    return measured(estimates, num_images, protocol)


def _of_areas(regions: RegionFeatures, limits: tuple[float, float]) -> RegionFeatures:
    """The regions whose boxes have an area in pixels within limits, of which 0 is none.

    Raises:
        UserError: If there is none.
    """
    least, most = limits
    kept = (regions.areas >= least) & ((regions.areas <= most) | (most == 0))
    if not kept.any():
        raise UserError(f"no box has {least:g} to {most:g} pixels, which the protocol asks for")
    texts = [text for text, is_kept in zip(regions.texts, kept.tolist()) if is_kept]
    return RegionFeatures(
        regions.features[kept], texts, regions.image_index[kept], regions.areas[kept], regions.num_images
    )


def region_retrieval(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> TaskResult:
    """Find a region's text among all texts, and a text's region among all regions.

    What a text that repeats is, an entry of its own or not, and which answer to it is right, the config says.
    """
    regions = collect_regions(method, dataset, config)
    texts = sorted(set(regions.texts))
    labels = Classes(texts, "").targets(regions.texts)
    text_features = method.embed_texts(texts).cpu()
    rules = config.rules
    ks = rules.recall_k or (10,)
    to_text, to_region, weights = _ranks(regions.features, text_features, labels, rules.duplicates)
    images, num_images = regions.image_index, regions.num_images
    estimates = recall_estimates("region_to_text", to_text, ks, images, num_images)
    estimates |= recall_estimates("text_to_region", to_region, ks, images, num_images, weights)
    protocol = {
        "duplicates": rules.duplicates,
        "right": RIGHT[rules.duplicates],
        "ties": TIES,
        "num_images": num_images,
        "num_regions": len(labels),
        "num_texts": len(texts) if rules.duplicates == "merge" else len(labels),
        "num_distinct_texts": len(texts),
    }
    return measured(estimates, num_images, protocol)


def _ranks(regions: Tensor, texts: Tensor, labels: Tensor, duplicates: str) -> tuple[Ranks, Ranks, Tensor]:
    """Ranks of each region's text and of each text's region, and what each of the latter counts: X of all.

    Equal texts have equal features: each is compared once, whatever the reading.

    Args:
        regions: (X, D).
        texts: (T, D) of the distinct texts.
        labels: (X,) each region's text.
        duplicates: As in the config.
    """
    counts = torch.bincount(labels, minlength=len(texts))
    own, merge = duplicates == "own", duplicates == "merge"
    names = torch.arange(len(texts))
    copies = None if merge else counts
    to_text = find_ranks(regions, texts, labels, names, copies=copies, own_copy=own)
    if own:
        return to_text, find_own_ranks(texts, regions, labels), torch.ones(len(labels))
    of_texts = find_ranks(texts, regions, names, labels)
    # A merged text is one query; each of its regions has an equal share in it.
    weights = 1 / counts[labels].double() if merge else torch.ones(len(labels))
    return to_text, of_texts.of(labels), weights
