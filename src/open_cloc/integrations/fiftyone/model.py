"""A model of FiftyOne whose embeddings of all boxes come from one pass of a picture.

Shapes: H W pixels, R boxes, n pictures or prompts, D shared embedding.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from open_cloc.config import require
from open_cloc.errors import UserError
from open_cloc.inference.encoded import EncodedImage
from open_cloc.inference.predictor import Predictor
from open_cloc.inference.predictor import load as load_predictor

EXTRA = "fiftyone"
fol: Any = require("fiftyone.core.labels", EXTRA)
fom: Any = require("fiftyone.core.models", EXTRA)
Model: Any = fom.Model
SamplesMixin: Any = fom.SamplesMixin
EmbeddingsMixin: Any = fom.EmbeddingsMixin
PromptMixin: Any = fom.PromptMixin

# The field that FiftyOne's own importers write.
BOXES = "ground_truth"


def load(
    weights: str, boxes: str = BOXES, classes: Sequence[str] = (), device: str | None = None
) -> OpenCLOC:
    """Load a model for FiftyOne.

    Args:
        weights: Model folder or hub id.
        boxes: Field of `Detections` whose boxes are embedded, unless `apply_model(boxes=)` names another.
        classes: Names to choose from; none keeps the boxes' own labels.
        device: Where to compute; None takes a GPU if there is one.

    Raises:
        UserError: If there is no model.
    """
    return OpenCLOC(load_predictor(weights, device), boxes, classes)


OPTIONS = tuple(inspect.signature(load).parameters)


class OpenCLOC(Model, SamplesMixin, EmbeddingsMixin, PromptMixin):
    """Embeds, and names if told to, the boxes of each sample; embeds whole pictures and prompts.

        dataset.apply_model(model, label_field="regions", boxes="ground_truth")

    `compute_patch_embeddings` cuts the boxes out instead, one pass a box, and the model does not see what is
    around them.

    Attributes:
        predictor: What looks at pictures.
        classes: Names to choose from.
    """

    # What FiftyOne asks of its models before it uses them.
    media_type = "image"
    has_logits = False
    has_embeddings = True
    can_embed_prompts = True
    ragged_batches = False
    transforms = None
    preprocess = False
    config = None

    def __init__(self, predictor: Predictor, boxes: str = BOXES, classes: Sequence[str] = ()) -> None:
        if isinstance(classes, str):
            raise UserError(f"classes must be a list of strings; got {classes!r:.60}")
        self.predictor, self.classes = predictor, list(classes)
        self._boxes = boxes
        self._fields: dict[str, str] = {}

    @property
    def needs_fields(self) -> dict[str, str]:
        """The field of each thing that the model wants of a sample; `apply_model` sets it."""
        return {"boxes": self._boxes} | self._fields

    @needs_fields.setter
    def needs_fields(self, fields: dict[str, str]) -> None:
        unknown = sorted(set(fields) - {"boxes"})
        if unknown:
            raise UserError(f"the model needs the field 'boxes' alone; got {unknown[0]!r}")
        self._fields = dict(fields)

    def predict(self, arg: np.ndarray, sample: Any = None) -> Any:
        """A picture (H, W, 3) uint8 and its sample -> `Detections`, each with an `embedding` (D,).

        Raises:
            UserError: If there is no sample, its field holds no boxes, or one of them is wrong.
        """
        return self._regions(self.predictor.encode(arg), sample)

    def predict_all(self, args: Iterable[np.ndarray], samples: Iterable[Any] | None = None) -> list[Any]:
        """Pictures, through the tower together, and their samples -> `Detections` each; see `predict`."""
        images = self.predictor.encode(list(args))
        return [
            self._regions(image, sample)
            for image, sample in zip(images, [None] * len(images) if samples is None else samples)
        ]

    def embed(self, arg: np.ndarray) -> np.ndarray:
        """A picture (H, W, 3) uint8 -> (D,) of unit length."""
        return self.predictor.encode(arg).embed()

    def embed_all(self, args: Iterable[np.ndarray]) -> np.ndarray:
        """Pictures, through the tower together -> (n, D)."""
        return np.stack([image.embed() for image in self.predictor.encode(list(args))])

    def embed_prompt(self, arg: str) -> np.ndarray:
        """A text -> (D,) of unit length."""
        return self.predictor.encode_text([arg])[0]

    def embed_prompts(self, args: Iterable[str]) -> np.ndarray:
        """Texts -> (n, D)."""
        return self.predictor.encode_text(list(args))

    def _regions(self, image: EncodedImage, sample: Any) -> Any:
        """The sample's boxes with their embeddings, and their names where there are classes."""
        given = self._detections_of(sample)
        if not given:
            return fol.Detections()
        boxes = np.array([detection.bounding_box for detection in given])
        form: Any = {"box_format": "xywh", "normalized": True}
        made = [detection.copy() for detection in given]
        for detection, feature in zip(made, image.embed(boxes, **form)):
            detection.embedding = feature
        if self.classes:
            for detection, named in zip(made, image.classify(self.classes, boxes, top_k=1, **form)):
                detection.label, detection.confidence = named.labels[0]
        return fol.Detections(detections=made)

    def _detections_of(self, sample: Any) -> list[Any]:
        field = self.needs_fields["boxes"]
        if sample is None:
            raise UserError("boxes are a sample's: use dataset.apply_model(model, boxes=FIELD)")
        try:
            found = sample[field]
        except (KeyError, AttributeError):
            raise UserError(f"a sample has no field {field!r}: name that of its boxes by boxes=") from None
        if found is None:
            return []
        if isinstance(found, fol.Detection):
            return [found]
        if not isinstance(found, fol.Detections):
            got = type(found).__name__
            raise UserError(f"boxes must be in a field of Detections; {field!r} has {got}")
        return list(found.detections)
