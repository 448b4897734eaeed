"""What region embeddings cost beyond the image pass, in ViT forwards: python -m benchmarks.region_embeddings

ViT-B/16 at 224 px with random weights (time does not depend on them), one image, one thread. Crops are so
many pictures more through the same tower; `literal` is the paper's Prompter as it is written down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
import tyro

from benchmarks.timing import PeakMemory, print_table, ratios, take_turns, verdict, write_json
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.prompt_layer import PromptLayer
from open_cloc.model.prompter import Prompter, PrompterConfig
from open_cloc.model.prompts.box import pool_boxes

IMAGE = "image pass (1 ViT forward)"
AIMS = {"mean": 0.60, "prompt": 0.10}  # of 100 boxes


@dataclass
class Options:
    """Attributes:
    counts: Numbers of boxes.
    rounds: How often each is timed.
    crops: Time crops up to so many boxes.
    literal: Time the literal form up to so many boxes.
    """

    counts: tuple[int, ...] = (1, 4, 10, 100, 1000)
    rounds: int = 5
    crops: int = 4
    literal: int = 100


def build(readout: str) -> CLOC:
    """ViT-B/16 with the paper's Prompter, read out one way or the other."""
    torch.manual_seed(0)
    config = ModelConfig(towers="ViT-B-16", prompter=PrompterConfig(readout=readout))  # type: ignore[arg-type]
    return build_model(config).eval()


@torch.inference_mode()
def measure(options: Options) -> list[dict]:
    """A row of ratios per number of boxes."""
    models = {readout: build(readout) for readout in ("mean", "prompt")}
    visual = models["mean"].clip.visual
    image = torch.randn(1, 3, 224, 224)
    tokens = torch.randn(1, 196, 768)
    results = []
    for count in options.counts:
        boxes = torch.rand(1, count, 4).sort(-1).values
        runs: dict[str, Callable[[], object]] = {IMAGE: partial(visual, image)}
        for name, model in models.items():
            runs[name] = partial(embed, model.prompter, tokens, boxes)
        runs["RoIAlign 7 x 7"] = partial(roi_align, tokens, boxes)
        if count <= options.literal:
            runs["literal mean"] = partial(literal, models["mean"], tokens, boxes)
        if count <= options.crops:
            runs["crops"] = partial(visual, torch.randn(count, 3, 224, 224))
        rows = ratios(take_turns(runs, options.rounds), IMAGE)
        for name in models:
            with PeakMemory() as memory:
                runs[name]()
            rows[name]["peak_mb"] = memory.peak / 2**20
        print(f"\n{count} boxes")
        print_table({name: {k: row[k] for k in ("seconds", "spread", "ratio")} for name, row in rows.items()})
        results.append({"boxes": count, "rows": rows})
    return results


def embed(prompter: Prompter, tokens: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Embeddings of boxes as the Prompter makes them."""
    return prompter.embed(prompter.prepare(tokens, (14, 14)), {"box": boxes})


def roi_align(tokens: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """What RoIAlign takes for the same."""
    return pool_boxes(tokens, (14, 14), boxes).mean(2)


def literal(model: CLOC, tokens: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Every image token through the layer for every box, ten boxes at a time."""
    with mock.patch.object(PromptLayer, "_mean_terms", return_value=None):
        image = model.prompter.prepare(tokens, (14, 14))
        return torch.cat(
            [model.prompter.embed(image, {"box": part}) for part in boxes.split(10, dim=1)], dim=1
        )


def main(options: Options) -> None:
    """Print tables, write JSON, and say whether the aims are met."""
    torch.set_num_threads(1)
    results = measure(options)
    aims = [
        verdict(f"100 boxes, {name}, in ViT forwards", row["rows"][name]["ratio"], aim)
        for row in results
        if row["boxes"] == 100
        for name, aim in AIMS.items()
    ]
    print(write_json("region_embeddings", {"results": results, "aims": aims}))


if __name__ == "__main__":
    main(tyro.cli(Options))
