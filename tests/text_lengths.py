"""Lengths of texts as a run's batches have them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from open_cloc.data.scenes.dataset import open_scenes
from open_cloc.model.cloc import CLOC

CONTEXT = 77


def batches_of_lengths(model_cfg: Mapping[str, Any], count: int = 500) -> Iterator[list[int]]:
    """Of batches of scenes, ascending: phrases that come again, and captions of many lengths."""
    cfg = {**model_cfg, "text_cfg": {**model_cfg["text_cfg"], "context_length": CONTEXT}}
    read = CLOC(cfg).tokenize
    scenes = open_scenes("train", image_size=32, num_samples=400)
    texts = [
        (scene.captions[0], *(region.text for region in scene.regions))
        for scene in map(scenes.__getitem__, range(400))
    ]
    tokens = {text: read.num_tokens(text) for own in texts for text in own}
    draw = random.Random(0)
    for _ in range(count):
        distinct = {text for own in draw.choices(texts, k=64) for text in (own[0], *draw.sample(own[1:], 1))}
        # Captions as people write them, shorter and longer.
        yield sorted(
            min(CONTEXT, max(4, tokens[text] + draw.randint(-6, 30) * (tokens[text] > 12)))
            for text in distinct
        )
