"""Region recognition and region-text retrieval.

Shapes: X regions of a data set, C classes, T distinct texts, D shared embedding.
"""

from __future__ import annotations

import torch

from open_cloc.data.annotations import SampleDataset
from open_cloc.evaluation.classes import Classes, class_names, embed_classes, group_masks
from open_cloc.evaluation.collect import collect_regions
from open_cloc.evaluation.method import Method
from open_cloc.evaluation.metrics import classification_metrics, recall_at_k, top_matches
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.task import TaskResult


def zeroshot_region_classification(
    method: Method, dataset: SampleDataset, config: EvaluationConfig
) -> TaskResult:
    """Name every box: the class whose text is most similar to the region wins."""
    regions = collect_regions(method, dataset, config)
    classes = class_names(dataset, regions.texts, config)
    targets = classes.targets(regions.texts)
    top = top_matches(regions.features, embed_classes(method, classes.names, config).cpu(), 5)
    metrics = classification_metrics(top, targets)
    protocol: dict[str, object] = {
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


def region_retrieval(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> TaskResult:
    """Find a region's text among all texts, and a text's region among all regions.

    Texts that repeat are one entry of the text gallery and one query; any region with the same text is right.
    """
    regions = collect_regions(method, dataset, config)
    texts = sorted(set(regions.texts))
    labels = Classes(texts, "").targets(regions.texts)
    text_features = method.embed_texts(texts).cpu()
    text_labels = torch.arange(len(texts))
    ks = config.recall_k or (10,)
    to_text = recall_at_k(regions.features, text_features, labels, text_labels, ks)
    to_region = recall_at_k(text_features, regions.features, text_labels, labels, ks)
    metrics = {f"region_to_text_recall@{k}": value for k, value in to_text.items()}
    metrics |= {f"text_to_region_recall@{k}": value for k, value in to_region.items()}
    protocol = {
        "duplicates": "equal texts are merged; any region of the same text is right",
        "num_images": regions.num_images,
        "num_regions": len(labels),
        "num_texts": len(texts),
    }
    return TaskResult(metrics, protocol)
