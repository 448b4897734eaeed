"""What boxes cost beyond the image pass, for a batch of pictures with many boxes each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.clock import take_turns
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.embed import embed_regions
from open_cloc.model.prompter import PrompterConfig
from open_cloc.model.prompts.box import pool_boxes
from open_cloc.model.towers import image_tower_of
from open_cloc.precision import computing_in


@torch.inference_mode()
def measure_boxes(
    towers: str | Mapping[str, Any], pictures: int, boxes: int, device: torch.device, rounds: int
) -> dict[str, float]:
    """Milliseconds of the image pass, of each read-out, and of RoIAlign."""
    given = torch.rand(pictures, boxes, 4, device=device).sort(-1).values
    return {
        name: time
        for readout in ("mean", "prompt")
        for name, time in _measure(build(towers, readout, device), readout, given, rounds).items()
    }


def build(towers: str | Mapping[str, Any], readout: str, device: torch.device) -> CLOC:
    torch.manual_seed(0)
    config = ModelConfig(towers=towers, prompter=PrompterConfig(readout=readout))  # type: ignore[arg-type]
    return build_model(config).to(device).eval()


def _measure(model: CLOC, readout: str, given: Tensor, rounds: int) -> dict[str, float]:
    device, (height, width) = model.device, model.preprocess.image_size
    images = torch.randint(0, 255, (len(given), 3, height, width), dtype=torch.uint8, device=device)
    tower = image_tower_of(model.clip.visual)
    with computing_in("bf16", device):
        state = model.encode_image(images)
        runs: dict[str, Callable[[], object]] = {
            "image pass": lambda: tower.encode(model.normalize_pixels(images)),
            readout: lambda: embed_regions(model, state, {"box": given}),
            "RoIAlign": lambda: pool_boxes(state.image_tokens, state.grid_size, given),
        }
        return take_turns(runs, device, rounds)
