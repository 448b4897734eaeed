"""Whether region embeddings use their space: signs of collapse that need no right answers.

Shapes: X regions of a data set, R regions of one image, D shared embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.evaluation.collect import collect_regions
from open_cloc.evaluation.intervals import Estimate, linear_around, mean_over
from open_cloc.evaluation.method import Method
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.task import TaskResult, measured
from open_cloc.evaluation.tasks.prompt_gain import prompt_gain

RANK_TOLERANCE = 1e-12  # of the largest square: below it a direction is rounding


def health(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> TaskResult:
    """All signs of a run's health: `region_health`, and how far the box matters by `prompt_gain`.

    Raises:
        UserError: As these two.
    """
    parts = {"region_health": region_health, "prompt_gain": prompt_gain}
    found = {name: task(method, dataset, config) for name, task in parts.items()}
    shared = ("num_images", "intervals", "classes", "classes_digest")
    first = found["region_health"].protocol | {
        name: found["prompt_gain"].protocol[name] for name in ("classes", "classes_digest")
    }
    return TaskResult(
        {name: value for part in found.values() for name, value in part.metrics.items()},
        {name: part.protocol for name, part in found.items()}
        | {name: first[name] for name in shared if name in first},
        {name: ends for part in found.values() for name, ends in part.intervals.items()},
        {name: draws for part in found.values() for name, draws in part.draws.items()},
    )


def region_health(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> TaskResult:
    """How far apart region embeddings lie from each other and from the texts.

    Raises:
        UserError: If no image has two regions.
    """
    regions = collect_regions(method, dataset, config)
    counts = torch.bincount(regions.image_index, minlength=regions.num_images).tolist()
    features = regions.features.double()
    several = [rows for rows in features.split(counts) if len(rows) > 1]
    if not several:
        raise UserError(f"region_health needs an image with two regions; got none of {regions.num_images}")
    texts = dict.fromkeys(regions.texts)
    known = dict(zip(texts, method.embed_texts(list(texts)).cpu().double()))
    text_features = torch.stack([known[text] for text in regions.texts])  # (X, D)
    images, num_images = regions.image_index, regions.num_images
    cosines = torch.tensor([mean_cosine(rows)[0] for rows in several], dtype=torch.float64)
    of_several = torch.tensor(counts).gt(1).nonzero()[:, 0]

    def smooth(found: tuple[float, Tensor], least: float) -> Estimate:
        return linear_around(*found, images, num_images, least)

    estimates = {
        "mean_cosine_in_image": mean_over(cosines, of_several, num_images),
        "mean_cosine": smooth(mean_cosine(features), -1.0),
        "mean_text_cosine": mean_over((features * text_features).sum(1), images, num_images),
        "effective_rank": smooth(effective_rank(features), 1.0),
        "modality_gap": smooth(modality_gap(features, text_features), 0.0),
        "repeated_text_share": mean_over(_is_repeated(regions.texts), images, num_images),
    }
    protocol = {
        "mean_cosine": "of pairs of different regions; in_image: of one image, then the mean over images",
        "effective_rank": "exp of the entropy of the normalised singular values of the centred embeddings",
        "modality_gap": "distance of the mean region embedding and the mean embedding of the regions' texts",
        "repeated_text_share": "regions whose text another region of the data set has",
        "num_images": num_images,
        "num_images_with_two_regions": len(several),
        "num_regions": len(features),
        "num_texts": len(texts),
    }
    return measured(estimates, num_images, protocol)


def _is_repeated(texts: Sequence[str]) -> Tensor:
    """(X,) 1 for a text that stands there more than once."""
    counts = Counter(texts)
    return torch.tensor([float(counts[text] > 1) for text in texts])


def mean_cosine(features: Tensor) -> tuple[float, Tensor]:
    """Mean over pairs of different rows of (R, D) unit vectors, R > 1; near 1, all are the same.

    Returns:
        The mean, and its derivative by the weight of each row, (R,).
    """
    count = len(features)
    total, squares = features.sum(0), features.square().sum(1)  # (D,), (R,)
    pairs = count * (count - 1)
    mean = (total.square().sum() - squares.sum()) / pairs
    return mean.item(), (2 * (features @ total) - 2 * squares - mean * 2 * (count - 1)) / pairs


def effective_rank(features: Tensor) -> tuple[float, Tensor]:
    """How many directions (X, D) vectors use, each weighted by its share; 1 if they lie on a line.

    Roy and Vetterli, "The effective rank", EUSIPCO 2007.

    Returns:
        The rank, and its derivative by the weight of each row, (X,).
    """
    centred = features - features.mean(0)
    squares, directions = torch.linalg.eigh(centred.T @ centred)  # (D,), (D, D)
    used = squares > squares[-1].clamp(min=torch.finfo(squares.dtype).tiny) * RANK_TOLERANCE
    singular = squares[used].sqrt()
    shares = singular / singular.sum()
    entropy = torch.special.entr(shares).sum()
    rank = entropy.exp()
    # d rank / d share of the scatter in each direction, times what each row adds to the scatter there.
    slopes = -rank * (shares.log() + entropy) / singular.sum() / (2 * singular)
    return rank.item(), (centred @ directions[:, used]).square() @ slopes


def modality_gap(features: Tensor, texts: Tensor) -> tuple[float, Tensor]:
    """Distance of the mean (X, D) region and the mean (X, D) text.

    Returns:
        The distance, and its derivative by the weight of each row, (X,).
    """
    apart = features - texts
    mean = apart.mean(0)
    gap = mean.norm()
    direction = mean / gap.clamp(min=torch.finfo(gap.dtype).tiny)
    return gap.item(), (apart - mean) @ direction / len(apart)
