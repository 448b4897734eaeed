"""OmDet-Turbo beside the library's own processor and forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DetrImageProcessor, OmDetTurboProcessor

from tests.labelling.detectors.made import SIZE, detector, picture


def test_omdet_turbo_equals_the_librarys_processor_and_forward_pass(folders: dict[str, Path]) -> None:
    own: Any = detector(folders["omdet-turbo"])
    images = DetrImageProcessor(size={"height": SIZE, "width": SIZE})
    processor = OmDetTurboProcessor(images, own.tokenizer)
    image, phrases = picture((SIZE, SIZE)), ["a red dog", "cat", "two bird on the tree"]
    inputs = processor(image, text=phrases, text_kwargs={"max_length": 16}, return_tensors="pt")
    inputs = {name: torch.as_tensor(value) for name, value in inputs.items()}  # transformers 5.0 leaves lists
    with torch.inference_mode():
        raw = own.raw(inputs["pixel_values"], phrases)
        own._forget_texts()
        output = own.model(**{name: value for name, value in inputs.items() if name != "pixel_mask"})
    torch.testing.assert_close(raw.boxes, output.decoder_coord_logits[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(raw.scores, output.decoder_class_logits[0].sigmoid(), atol=1e-5, rtol=0)
    assert raw.scores.std() > 1e-3
    (found,) = own([image], [phrases])
    order = np.argsort(-raw.scores.amax(1).numpy(), kind="stable")
    np.testing.assert_allclose(found.scores, raw.scores.numpy()[order][: len(found.scores)], atol=1e-4)
