"""How large everything is: as the aims say on a GPU, and small enough for a CPU to run every row once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """Attributes:
    towers: The base model.
    batch_size: Its pictures a step.
    large_towers: A larger one.
    large_batch_size: Its pictures a step.
    pairs: Sizes of the region loss.
    wide: Rows of one rank, and texts of the world.
    width: Of pairs.
    pictures: Pictures with boxes.
    boxes: Boxes of each.
    batches: Batches of other texts.
    shard_samples: Pictures that `open-cloc train` reads.
    train_steps: Its steps.
    demo_samples: Scenes that each of the demo's models sees.
    rounds: Of each measurement.
    """

    towers: str | Mapping[str, Any] = "open_clip:ViT-B-16"
    batch_size: int = 256
    large_towers: str | Mapping[str, Any] = "open_clip:ViT-L-14"
    large_batch_size: int = 128
    pairs: tuple[int, ...] = (2048, 8192, 32768)
    wide: tuple[int, int] = (1024, 131_072)
    width: int = 512
    pictures: int = 64
    boxes: int = 100
    batches: int = 12
    shard_samples: int = 3072
    train_steps: int = 60
    demo_samples: int = 64_000
    rounds: int = 7


FULL = Sizes()

TINY: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"width": 32, "heads": 2, "layers": 2},
}

DRY = Sizes(
    towers=TINY,
    batch_size=8,
    large_towers=TINY,
    large_batch_size=4,
    pairs=(64, 128),
    wide=(32, 256),
    width=32,
    pictures=2,
    boxes=5,
    batches=2,
    shard_samples=32,
    train_steps=4,
    demo_samples=256,
    rounds=1,
)
