"""Every region read as its whole picture: what a model knows without looking at boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from open_cloc.evaluation.batches import EvaluationBatch
from open_cloc.evaluation.method import Setup
from open_cloc.evaluation.methods.cloc_towers import MethodOfTowers, open_towers


class WholeMethod(MethodOfTowers):
    """The picture's own embedding for each of its boxes."""

    def embed_regions(self, batch: EvaluationBatch, boxes: Sequence[np.ndarray]) -> Tensor:
        """Boxes of each picture of a batch -> (sum of R, D) float32 of unit length."""
        features = self.embed_images(batch)
        return features.repeat_interleave(torch.tensor(list(map(len, boxes)), device=features.device), dim=0)


def open_whole(what: str, setup: Setup) -> WholeMethod:
    """Whole pictures on the setup's model."""
    return WholeMethod(open_towers("whole", what, setup))
