"""A base model of autodistill, which labels folders of pictures for a detector to learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from open_cloc.config import require
from open_cloc.errors import UserError
from open_cloc.inference.predictor import load

EXTRA = "autodistill"
require("roboflow", EXTRA)  # autodistill imports it and does not ask for it
DetectionBaseModel: Any = require("autodistill.detection", EXTRA).DetectionBaseModel


@dataclass
class OpenCLOC(DetectionBaseModel):
    """Finds each prompt of an ontology once in a picture; `label(folder)` is autodistill's own.

        model = OpenCLOC(CaptionOntology({"a blue mug": "mug"}), weights="path/to/model", min_score=0.25)
        model.label("photos", extension=".jpg")

    Attributes:
        ontology: autodistill's `CaptionOntology`: prompts to look for, and the class of each.
        weights: Model folder or hub id.
        min_score: Leave out boxes that match their prompt less than this cosine. None keeps all: then every
            picture has a box for every prompt.
        device: Where to compute; None takes a GPU if there is one.
    """

    ontology: Any
    weights: str
    min_score: float | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        """Load the model.

        Raises:
            UserError: If there is no ontology, or no model.
        """
        if not hasattr(self.ontology, "prompts"):
            got = type(self.ontology).__name__
            raise UserError(f"ontology must be a CaptionOntology({{prompt: class}}); got {got}")
        self._predictor = load(self.weights, self.device)

    def predict(self, input: str | np.ndarray | Image.Image) -> Any:
        """Find the prompts in a picture.

        Args:
            input: A path, a PIL image, or an (H, W, 3) uint8 array in OpenCV's order, BGR, as autodistill and
                its slicer hand it over.

        Returns:
            `supervision.Detections` as `Predictor.detections` gives them; `class_id` counts the ontology's
            classes, and of prompts that share a class all have the first one's.

        Raises:
            UserError: If it is no picture.
        """
        found = self._predictor.detections(input, self.ontology.prompts(), min_score=self.min_score, bgr=True)
        classes = self.ontology.classes()
        names = [classes[place] for place in found.class_id]
        found.class_id = np.array([classes.index(name) for name in names], dtype=int)
        found.data["class_name"] = np.array(names, dtype=str)
        return found
