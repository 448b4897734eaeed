"""Region recognition, region-text retrieval, and proof that the box matters (METHOD 6).

Shapes: X regions of a data set, R regions of one image, C classes, T distinct texts, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.evaluation.features import (
    REGION_METHODS,
    EvaluationConfig,
    TaskResult,
    autocast,
    batches,
    canvas_boxes,
    choose_method,
    collect_regions,
    embed_boxes,
    encode_batch,
    region_texts,
)
from open_cloc.evaluation.metrics import classification_metrics, recall_at_k, top_matches
from open_cloc.model.cloc import CLOC
from open_cloc.model.embed import METHODS, embed_texts
from open_cloc.texts import clean_text


class Classes(NamedTuple):
    """The names to choose from, and who said so."""

    names: list[str]
    source: str

    def targets(self, texts: Sequence[str]) -> Tensor:
        """Each text's class, (X,).

        Raises:
            UserError: If a text is not a class name.
        """
        index = {name: i for i, name in enumerate(self.names)}
        unknown = [text for text in texts if text not in index]
        if unknown:
            raise UserError(
                f"{unknown[0]!r} is none of the {len(index)} classes ({self.source}); expected every text of "
                "the data set among them"
            )
        return torch.tensor([index[text] for text in texts])


def class_names(dataset: SampleDataset, texts: Sequence[str], config: EvaluationConfig) -> Classes:
    """What a region may be: the config's classes, else the data set's, else its distinct texts."""
    given = config.classes or getattr(dataset, "class_names", ())
    if given:
        names = list(dict.fromkeys(clean_text(name, config.lower_case) for name in given))
        return Classes(names, "given" if config.classes else "categories of the data set")
    return Classes(sorted(set(texts)), "distinct texts of the data set")


def embed_classes(model: CLOC, names: Sequence[str], config: EvaluationConfig) -> Tensor:
    """Class names in their template -> (C, D) of unit length."""
    with autocast(model, config):
        return embed_texts(model, [config.template.replace("{}", name) for name in names])


def group_masks(texts: Sequence[str], config: EvaluationConfig) -> dict[str, Tensor]:
    """Which regions each group of the config holds, by their texts: name -> (X,) bool.

    Raises:
        UserError: If a group holds none.
    """
    masks = {}
    for name, members in config.groups.items():
        cleaned = {clean_text(member, config.lower_case) for member in members}
        masks[name] = torch.tensor([text in cleaned for text in texts])
        if not masks[name].any():
            raise UserError(f"group {name!r} holds no region of the data set; expected at least one")
    return masks


def zeroshot_region_classification(
    model: CLOC, dataset: SampleDataset, config: EvaluationConfig
) -> TaskResult:
    """Name every box: the class whose text is most similar to the region wins."""
    method = choose_method(config, REGION_METHODS, "zeroshot_region_classification")
    regions = collect_regions(model, dataset, config, method)
    classes = class_names(dataset, regions.texts, config)
    targets = classes.targets(regions.texts)
    top = top_matches(regions.features, embed_classes(model, classes.names, config).cpu(), 5)
    metrics = classification_metrics(top, targets)
    protocol: dict[str, object] = {
        "method": method,
        "classes": classes.source,
        "averaging": "acc1, acc5: micro; mean_per_class_recall: macro over classes that occur",
        "num_images": regions.num_images,
        "num_regions": len(targets),
        "num_classes": len(classes.names),
        "num_classes_that_occur": len(targets.unique()),
    }
    for name, mask in group_masks(regions.texts, config).items():
        group = classification_metrics(top[mask], targets[mask])
        metrics |= {f"{key}/{name}": value for key, value in group.items()}
        protocol[f"num_regions/{name}"] = int(mask.sum())
    return TaskResult(metrics, protocol)


def region_retrieval(model: CLOC, dataset: SampleDataset, config: EvaluationConfig) -> TaskResult:
    """Find a region's text among all texts, and a text's region among all regions.

    Texts that repeat are one entry of the text gallery and one query; any region with the same text is right.
    """
    method = choose_method(config, REGION_METHODS, "region_retrieval")
    regions = collect_regions(model, dataset, config, method)
    texts = sorted(set(regions.texts))
    labels = Classes(texts, "").targets(regions.texts)
    with autocast(model, config):
        text_features = embed_texts(model, texts).cpu()
    text_labels = torch.arange(len(texts))
    ks = config.recall_k or (10,)
    to_text = recall_at_k(regions.features, text_features, labels, text_labels, ks)
    to_region = recall_at_k(text_features, regions.features, text_labels, labels, ks)
    metrics = {f"region_to_text_recall@{k}": value for k, value in to_text.items()}
    metrics |= {f"text_to_region_recall@{k}": value for k, value in to_region.items()}
    protocol = {
        "method": method,
        "duplicates": "equal texts are merged; any region of the same text is right",
        "num_images": regions.num_images,
        "num_regions": len(labels),
        "num_texts": len(texts),
    }
    return TaskResult(metrics, protocol)


def prompt_gain(model: CLOC, dataset: SampleDataset, config: EvaluationConfig) -> TaskResult:
    """How far region accuracy falls when the boxes are wrong, on images with at least two different texts.

    Each region is embedded with its own box, with the box of its image's next region of another text, and
    with the whole picture as its box. Also the mean cosine between regions of one image: near 1, the model
    ignores its prompt ("collapse").
    """
    method = choose_method(config, tuple(METHODS), "prompt_gain")
    features, texts, cosines, num_images = _with_wrong_boxes(model, dataset, config, method)
    classes = class_names(dataset, texts, config)
    targets, class_features = classes.targets(texts), embed_classes(model, classes.names, config).cpu()
    true, shuffled, whole = (
        (top_matches(rows, class_features, 1)[:, 0] == targets).double().mean().item() for rows in features
    )
    metrics = {
        "acc1": true,
        "acc1_shuffled_boxes": shuffled,
        "acc1_whole_image": whole,
        "prompt_gain_shuffled_boxes": true - shuffled,
        "prompt_gain_whole_image": true - whole,
        "mean_region_cosine": sum(cosines) / len(cosines),
    }
    protocol = {
        "method": method,
        "classes": classes.source,
        "image_filter": "images with at least two different region texts",
        "num_images": num_images,
        "num_images_used": len(cosines),
        "num_regions": len(texts),
        "num_classes": len(classes.names),
    }
    return TaskResult(metrics, protocol)


def _with_wrong_boxes(
    model: CLOC, dataset: SampleDataset, config: EvaluationConfig, method: str
) -> tuple[list[Tensor], list[str], list[float], int]:
    """Features (X, D) with true, other and whole-image boxes; texts; cosine per image; images read."""
    rows: list[list[Tensor]] = [[], [], []]
    texts: list[str] = []
    cosines: list[float] = []
    num_images = 0
    for batch in batches(dataset, model, config):
        num_images += len(batch.samples)
        state = encode_batch(model, batch, config)
        for i, (sample, geometry) in enumerate(zip(batch.samples, batch.geometries)):
            own_texts = region_texts(sample, config)
            if len(set(own_texts)) < 2:
                continue
            boxes = canvas_boxes(sample, geometry)  # (1, R, 4)
            whole = batch.content_boxes[i].expand_as(boxes)
            image = state.select(slice(i, i + 1))
            for kept, given in zip(rows, (boxes, boxes[:, other_texts(own_texts)], whole)):
                kept.append(embed_boxes(model, image, [given], config, method).cpu())
            texts += own_texts
            cosines.append(_mean_cosine(rows[0][-1]))
    if not texts:
        raise UserError(
            f"prompt_gain needs an image with two different region texts; got none of {num_images}"
        )
    return [torch.cat(kept) for kept in rows], texts, cosines, num_images


def other_texts(texts: Sequence[str]) -> list[int]:
    """For each region, the next one (round the end) whose text differs; there must be one."""
    count = len(texts)

    def following(i: int) -> Iterable[int]:
        return ((i + step) % count for step in range(1, count))

    return [next(j for j in following(i) if texts[j] != texts[i]) for i in range(count)]


def _mean_cosine(features: Tensor) -> float:
    """Mean over pairs of different rows of (R, D) unit vectors, R > 1."""
    count = len(features)
    total = (features @ features.T).sum() - features.square().sum()
    return (total / (count * (count - 1))).item()
