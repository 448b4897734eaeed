"""Whether region embeddings use their space: signs of collapse that need no right answers.

Shapes: X regions of a data set, R regions of one image, D shared embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.evaluation.collect import collect_regions
from open_cloc.evaluation.intervals import Estimate, linear_around, mean_over
from open_cloc.evaluation.method import Method
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.task import TaskResult, measured

RANK_TOLERANCE = 1e-12  # of the largest square: below it a direction is rounding


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

    def smooth(found: tuple[float, Tensor]) -> Estimate:
        return linear_around(*found, images, num_images)

    estimates = {
        "mean_cosine_in_image": mean_over(cosines, of_several, num_images),
        "mean_cosine": smooth(mean_cosine(features)),
        "mean_text_cosine": mean_over((features * text_features).sum(1), images, num_images),
        "effective_rank": smooth(effective_rank(features)),
        "modality_gap": smooth(modality_gap(features, text_features)),
    }
    protocol = {
        "mean_cosine": "of pairs of different regions; in_image: of one image, then the mean over images",
        "effective_rank": "exp of the entropy of the normalised singular values of the centred embeddings",
        "modality_gap": "distance of the mean region embedding and the mean embedding of the regions' texts",
        "num_images": num_images,
        "num_images_with_two_regions": len(several),
        "num_regions": len(features),
        "num_texts": len(texts),
    }
    return measured(estimates, num_images, protocol)


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
