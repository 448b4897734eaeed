"""What gradient accumulation costs and saves: python -m benchmarks.accumulation

Forward, loss and backward of one batch and of the same batch in parts (GradCache), region losses included, in
turn. Aims for four parts: at most 1.25 times the time and 0.30 of the activations of one big batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import tyro
from torch import Tensor

from benchmarks.timing import print_table, ratios, take_turns, verdict, write_json
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.prompter import PrompterConfig
from open_cloc.objectives import Objectives
from open_cloc.samples import RegionBatch
from open_cloc.training.accumulate import Forward, split_batch

AIMS = {"time": 1.25, "activations": 0.30, "gradient error": 1e-6}
WORDS = ("red", "green", "blue", "tall", "old", "round", "dog", "cat", "car", "tree", "house", "boat", "road")


@dataclass
class Options:
    """Attributes:
    architecture: open_clip's name.
    batch_size: Pictures.
    num_regions: Regions a picture.
    parts: Into how many the batch is cut.
    rounds: How often each is timed.
    """

    architecture: str = "ViT-S-16"
    batch_size: int = 64
    num_regions: int = 4
    parts: int = 4
    rounds: int = 3


def make_batch(model: CLOC, options: Options, seed: int = 0) -> RegionBatch:
    """Random pictures, captions of nine words and phrases of three."""
    draw = torch.Generator().manual_seed(seed)
    batch, regions = options.batch_size, options.num_regions

    def text(length: int) -> str:
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=draw).tolist())

    texts = list(dict.fromkeys([text(9) for _ in range(batch)] + [text(3) for _ in range(batch * regions)]))
    phrases = torch.randint(batch, len(texts), (batch, regions), generator=draw)
    corners = torch.rand(batch, regions, 2, 2, generator=draw).sort(2).values
    return RegionBatch(
        images=torch.randint(
            0, 255, (batch, 3, *model.preprocess.image_size), dtype=torch.uint8, generator=draw
        ),
        content_boxes=torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(batch, 4),
        texts=model.tokenize(texts),
        caption_index=torch.arange(batch),
        boxes=corners.flatten(2),
        region_text_index=phrases,
        region_mask=torch.ones(batch, regions, dtype=torch.bool),
        region_text_ids=phrases,
    )


def backward(model: CLOC, batch: RegionBatch, parts: int) -> None:
    """Gradients of the total loss."""
    model.zero_grad()
    objectives = Objectives()
    forward = Forward(model, split_batch(batch, parts), objectives.needs, None, "fp32", (0, 0, 0))
    features = forward.features()
    objectives(features)["total"].backward()
    forward.backward(features)


class Alive:
    """The most bytes that autograd held at one time; each storage counts once, parameters not at all."""

    def __init__(self, model: CLOC) -> None:
        self.parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.holders: dict[int, int] = {}
        self.alive = self.peak = 0

    def pack(self, tensor: Tensor) -> Kept:
        return Kept(self, tensor)


class Kept:
    """A tensor that autograd holds."""

    def __init__(self, count: Alive, tensor: Tensor) -> None:
        self.count, self.tensor = count, tensor
        storage = tensor.untyped_storage()
        self.key, self.size = storage.data_ptr(), storage.nbytes()
        if self.key in count.parameters:
            return
        if not count.holders.get(self.key):
            count.alive += self.size
            count.peak = max(count.peak, count.alive)
        count.holders[self.key] = count.holders.get(self.key, 0) + 1

    def __del__(self) -> None:
        if self.key in self.count.parameters:
            return
        self.count.holders[self.key] -= 1
        if not self.count.holders[self.key]:
            self.count.alive -= self.size


def activations(model: CLOC, batch: RegionBatch, parts: int) -> int:
    """Bytes of activations held at the worst moment."""
    count = Alive(model)
    with torch.autograd.graph.saved_tensors_hooks(count.pack, lambda kept: kept.tensor):
        backward(model, batch, parts)
    return count.peak


def gradient_error(model: CLOC, batch: RegionBatch, parts: int) -> float:
    """Largest error of a parameter's gradient: of the whole gradient's norm, the logit scale's of its own."""
    made: list[dict[str, Tensor]] = []
    for count in (1, parts):
        backward(model, batch, count)
        made.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    whole, in_parts = made
    norm = torch.stack([gradient.norm() for gradient in whole.values()]).norm()
    errors = {name: ((gradient - in_parts[name]).norm() / norm).item() for name, gradient in whole.items()}
    scale = "clip.logit_scale"
    errors[scale] = ((whole[scale] - in_parts[scale]) / whole[scale]).abs().item()
    return max(errors.values())


def main(options: Options) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    prompter = PrompterConfig(readout="prompt", box_prior=True)
    model = build_model(ModelConfig(towers=options.architecture, prompter=prompter))
    batch = make_batch(model, options)
    names = {1: "one batch", options.parts: f"{options.parts} parts"}
    seconds = take_turns(
        {name: partial(backward, model, batch, parts) for parts, name in names.items()}, options.rounds
    )
    rows = ratios(seconds, names[1])
    held = {name: activations(model, batch, parts) for parts, name in names.items()}
    for name, row in rows.items():
        row |= {"MB held": held[name] / 2**20, "held ratio": held[name] / held[names[1]]}
    print_table(rows)
    error = gradient_error(model, batch, options.parts)
    in_parts = rows[names[options.parts]]
    got = {"time": in_parts["ratio"], "activations": in_parts["held ratio"], "gradient error": error}
    aims = [verdict(f"accumulation in {options.parts}, {what}", got[what], AIMS[what]) for what in AIMS]
    print(write_json("accumulation", {"options": vars(options), "rows": rows, "aims": aims}))


if __name__ == "__main__":
    main(tyro.cli(Options))
