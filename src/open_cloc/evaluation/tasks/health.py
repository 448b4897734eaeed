"""Whether region embeddings use their space: signs of collapse that need no right answers.

Shapes: X regions of a data set, R regions of one image, D shared embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.evaluation.collect import collect_regions
from open_cloc.evaluation.method import Method
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.task import TaskResult


def region_health(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> TaskResult:
    """How far apart region embeddings lie from each other and from the texts.

    Raises:
        UserError: If no image has two regions.
    """
    regions = collect_regions(method, dataset, config)
    counts = torch.bincount(regions.image_index, minlength=regions.num_images).tolist()
    features = regions.features.double()
    images = [rows for rows in features.split(counts) if len(rows) > 1]
    if not images:
        raise UserError(f"region_health needs an image with two regions; got none of {regions.num_images}")
    texts = dict.fromkeys(regions.texts)
    known = dict(zip(texts, method.embed_texts(list(texts)).cpu().double()))
    text_features = torch.stack([known[text] for text in regions.texts])  # (X, D)
    metrics = {
        "mean_cosine_in_image": sum(map(mean_cosine, images)) / len(images),
        "mean_cosine": mean_cosine(features),
        "mean_text_cosine": (features * text_features).sum(1).mean().item(),
        "effective_rank": effective_rank(features),
        "modality_gap": (features.mean(0) - text_features.mean(0)).norm().item(),
    }
    protocol = {
        "mean_cosine": "of pairs of different regions; in_image: of one image, then the mean over images",
        "effective_rank": "exp of the entropy of the normalised singular values of the centred embeddings",
        "modality_gap": "distance of the mean region embedding and the mean embedding of the regions' texts",
        "num_images": regions.num_images,
        "num_images_with_two_regions": len(images),
        "num_regions": len(features),
        "num_texts": len(texts),
    }
    return TaskResult(metrics, protocol)


def mean_cosine(features: Tensor) -> float:
    """Mean over pairs of different rows of (R, D) unit vectors, R > 1; near 1, all are the same."""
    count = len(features)
    return ((features.sum(0).square().sum() - features.square().sum()) / (count * (count - 1))).item()


def effective_rank(features: Tensor) -> float:
    """How many directions (X, D) vectors use, each weighted by its share; 1 if they lie on a line.

    Roy and Vetterli, "The effective rank", EUSIPCO 2007.
    """
    centred = features - features.mean(0)
    singular = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0).sqrt()  # (D,)
    shares = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)
    return torch.special.entr(shares).sum().exp().item()
