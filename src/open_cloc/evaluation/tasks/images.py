"""Whole-image zero-shot classification and image-text retrieval, as CLIP_benchmark defines them.

Shapes: X images of a data set, T captions, C classes, D shared embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from open_cloc.data.annotations import SampleDataset
from open_cloc.errors import UserError
from open_cloc.evaluation.classes import Classes, class_names, embed_classes
from open_cloc.evaluation.collect import collect_images
from open_cloc.evaluation.method import Method, cleaning_of
from open_cloc.evaluation.metrics import (
    TIES,
    TIES_LAST,
    classification_estimates,
    find_ranks,
    rank_classes,
    recall_estimates,
)
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.task import TaskResult, measured
from open_cloc.samples import RegionSample


def zeroshot_classification(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> TaskResult:
    """Name every image: the class whose text is most similar to it wins."""
    features, samples, _ = collect_images(method, dataset, config)
    classes, labels = _classes(method, dataset, samples, config)
    targets = classes.targets(labels)
    ranks = rank_classes(features, embed_classes(method, classes.names, config), targets)
    protocol = {
        "classes": classes.source,
        "averaging": "acc1, acc5: micro; mean_per_class_recall: macro over classes that occur",
        "ties": TIES,
        "num_images": len(samples),
        "num_classes": len(classes.names),
        "classes_digest": classes.digest,
    }
    images = torch.arange(len(samples))
    estimates = classification_estimates(ranks, len(classes.names), targets, images, len(samples))
    return measured(estimates, len(samples), protocol)


def _classes(
    method: Method, dataset: SampleDataset, samples: Sequence[RegionSample], config: EvaluationConfig
) -> tuple[Classes, list[str]]:
    """What a picture may be, and what each is: the config's classes, else the data set's, else the labels.

    Where captions stand for labels, the data set's names may be those of its regions: they count only if all
    labels are among them.

    Raises:
        UserError: If a picture has no label, or the model reads two names of the data set as one.
    """
    labels, clean = [label_of(sample, method) for sample in samples], cleaning_of(method)
    own = () if config.classes else tuple(dict.fromkeys(getattr(dataset, "class_names", ())))
    names = set(map(clean, own))
    are_labels = all("label" in sample.metadata for sample in samples) or names.issuperset(labels)
    if not config.classes and not (own and are_labels):
        return Classes(sorted(set(labels)), "distinct labels"), labels
    if len(names) < len(own):
        read = dict[str, str]()
        one, other = next((read[clean(n)], n) for n in own if read.setdefault(clean(n), n) != n)
        raise UserError(
            f"classes {one!r} and {other!r} of the data set are the same to this model, whose pictures would "
            "be of one class: name one of them otherwise"
        )
    return class_names(method, dataset, labels, config), labels


def label_of(sample: RegionSample, method: Method) -> str:
    """An image's class: `metadata["label"]`, or else its only caption.

    Raises:
        UserError: If there is neither.
    """
    label = sample.metadata.get("label")
    if label is None and len(sample.captions) == 1:
        label = sample.captions[0]
    if not isinstance(label, str) or not label.strip():
        raise UserError(
            f"zeroshot_classification needs metadata['label'] or exactly one caption, the class name; got "
            f"{label!r} and {len(sample.captions)} captions in sample {sample.key!r}; class_folders:PATH "
            "opens a folder of pictures for each class"
        )
    return cleaning_of(method)(label)


def zeroshot_retrieval(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> TaskResult:
    """Find each caption's image among all images, and any caption of each image among all captions.

    Samples of one picture, such as the rows of a table with a caption each, are one image with all captions:
    else the others' captions, which are as right, would count as wrong.
    """
    features, samples, pictures = collect_images(method, dataset, config)
    captions = [captions_of(sample, method, config.rules.lower_case) for sample in samples]
    text_features = method.embed_texts([text for texts in captions for text in texts]).cpu()
    text_labels = pictures.repeat_interleave(torch.tensor([len(texts) for texts in captions]))
    num_images = int(pictures.max()) + 1
    image_labels = torch.arange(num_images)
    features = features[np.unique(pictures, return_index=True)[1]]
    ks = config.rules.recall_k or (1, 5, 10)
    last = config.rules.ties == "last"
    to_image = find_ranks(text_features, features, text_labels, image_labels, last_wins=last)
    to_text = find_ranks(features, text_features, image_labels, text_labels, last_wins=last)
    estimates = recall_estimates("image_retrieval", to_image, ks, text_labels, num_images)
    estimates |= recall_estimates("text_retrieval", to_text, ks, image_labels, num_images)
    protocol = {
        "hits": "a caption's own image; any of an image's own captions",
        "ties": TIES_LAST if last else TIES,
        "equal_pictures": "one image with the captions of all",
        "num_samples": len(samples),
        "num_images": num_images,
        "num_captions": len(text_labels),
    }
    return measured(estimates, num_images, protocol)


def captions_of(sample: RegionSample, method: Method, lower_case: bool = False) -> list[str]:
    """Cleaned captions of a sample; lower-cased where the protocol says so, whatever the model reads.

    Raises:
        UserError: If there is none, or one is empty.
    """
    given = [text.lower() for text in sample.captions] if lower_case else sample.captions
    texts = list(map(cleaning_of(method), given))
    if not texts or not all(texts):
        raise UserError(f"zeroshot_retrieval needs captions; got {texts} in sample {sample.key!r}")
    return texts
