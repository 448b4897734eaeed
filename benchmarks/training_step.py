"""A CLOC training step against open_clip's CLIP step: python -m benchmarks.training_step

Forward, loss, backward and AdamW of ViT-B/16 with random weights and 8 pictures. The base is CLIP by
open_clip's own modules and loss with captions padded to 77 tokens, as open_clip trains. CLOC adds 4 boxes and
4 phrases a picture to the same towers: region-text and grounding loss. Phrases have 2 to 12 tokens and 30 %
repeat; captions 8 to 47.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from unittest import mock

import open_clip
import torch
import tyro
from torch import Tensor

from benchmarks.timing import kept_for_backward, print_table, ratios, take_turns, verdict, write_json
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.model.prompt_layer import PromptLayer
from open_cloc.model.prompter import PrompterConfig
from open_cloc.objectives import Objectives
from open_cloc.packing import pack_texts
from open_cloc.samples import RegionBatch

CONTEXT, START, END = 77, 49406, 49407
NUM_REGIONS = 4
BASE = "CLIP, open_clip's modules, captions at 77"
BF16 = "mean, bf16 autocast"
BF16_AIM = 0.62  # of the same step in fp32
WORK = {  # kind -> parts of the operations' names
    "matrix products": ("mm", "matmul", "linear"),
    "attention": ("attention",),
    "convolution": ("conv",),
    "GELU": ("gelu", "_GeluSum"),
    "norms": ("norm",),
    "elementwise, optimizer included": (
        "add",
        "mul",
        "div",
        "sub",
        "sqrt",
        "lerp",
        "copy",
        "fill",
        "sum",
        "zero",
    ),
}
AIMS = {  # name -> (time, activations), of the base's
    "mean, phrases trimmed": (1.20, None),
    "mean": (1.10, 1.15),
    "prompt": (1.05, 1.0),
}


@dataclass
class Options:
    """Attributes:
    architecture: open_clip's name.
    batch_size: Pictures.
    rounds: How often each step is timed.
    literal: Time the literal Prompter too.
    """

    architecture: str = "ViT-B-16"
    batch_size: int = 8
    rounds: int = 5
    literal: bool = True


def texts(count: int, shortest: int, longest: int, seed: int) -> Tensor:
    """Random token ids (count, 77) of so many words, framed as open_clip frames them."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.zeros(count, CONTEXT, dtype=torch.int64)
    for row, length in zip(rows, torch.randint(shortest, longest + 1, (count,), generator=draw).tolist()):
        row[0], row[1 + length] = START, END
        row[1 : 1 + length] = torch.randint(300, 40_000, (length,), generator=draw)
    return rows


def make_batch(options: Options, seed: int = 0) -> tuple[RegionBatch, Tensor, Tensor]:
    """A batch as the loader makes it, its captions at full length, and the phrases of all regions."""
    size = options.batch_size
    captions, phrases = texts(size, 8, 47, 2 * seed + 1), texts(size * NUM_REGIONS, 2, 12, 2 * seed + 2)
    repeated = int(0.3 * len(phrases))
    phrases[-repeated:] = phrases[torch.arange(repeated)]
    distinct, row = phrases.unique(dim=0, return_inverse=True)
    lengths = torch.cat([captions, distinct]).argmax(1) + 1
    order = lengths.argsort(stable=True)
    place = order.argsort()
    batch = RegionBatch(
        images=torch.randint(0, 255, (size, 3, 224, 224), dtype=torch.uint8),
        content_boxes=torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(size, 4),
        texts=torch.cat([captions, distinct])[order],
        caption_index=place[:size],
        boxes=torch.rand(size, NUM_REGIONS, 4).sort(-1).values,
        region_text_index=place[size:][row].view(size, NUM_REGIONS),
        region_mask=torch.ones(size, NUM_REGIONS, dtype=torch.bool),
        text_lengths=tuple(lengths[order].tolist()),
        packing=pack_texts(lengths[order].tolist(), CONTEXT),
    )
    return batch, captions, phrases


def captions_at_full_length(batch: RegionBatch) -> RegionBatch:
    """The same with phrases trimmed to the longest of them and captions at 77: a step without bucketing."""
    is_caption = torch.zeros(len(batch.texts), dtype=torch.bool)
    is_caption[batch.caption_index] = True
    longest = max(n for n, caption in zip(batch.text_lengths, is_caption) if not caption)
    order = is_caption.long().argsort(stable=True)  # phrases first
    place = order.argsort()
    return replace(
        batch,
        texts=batch.texts[order],
        text_lengths=tuple(CONTEXT if caption else longest for caption in is_caption[order]),
        packing=None,
        caption_index=place[batch.caption_index],
        region_text_index=place[batch.region_text_index],
    )


def build_steps(options: Options) -> dict[str, tuple[Callable[[], object], CLOC]]:
    """The competitors: a step to run, and its model."""
    batch, captions, phrases = make_batch(options)
    every_text = replace(
        batch,
        texts=torch.cat([captions, phrases]),
        text_lengths=(),
        packing=None,
        caption_index=torch.arange(len(captions)),
        region_text_index=len(captions) + torch.arange(len(phrases)).view_as(batch.region_text_index),
    )
    models = {readout: build(options, readout) for readout in ("mean", "prompt")}
    steps = {
        BASE: (clip_step(models["mean"], batch.images, captions), models["mean"]),
        "mean, phrases trimmed": (cloc_step(models["mean"], captions_at_full_length(batch)), models["mean"]),
        "mean": (cloc_step(models["mean"], batch), models["mean"]),
        "prompt": (cloc_step(models["prompt"], batch), models["prompt"]),
        BF16: (cloc_step(models["mean"], batch, bf16=True), models["mean"]),
    }
    if options.literal:
        steps["literal mean, every phrase at 77"] = (
            cloc_step(models["mean"], every_text, literal=True),
            models["mean"],
        )
    return steps


def build(options: Options, readout: str) -> CLOC:
    """The paper's model with one of the two read-outs."""
    torch.manual_seed(0)
    prompter = PrompterConfig(readout=readout)  # type: ignore[arg-type]
    return build_model(ModelConfig(towers=options.architecture, prompter=prompter)).train()


def clip_step(model: CLOC, images: Tensor, captions: Tensor) -> Callable[[], object]:
    """open_clip's: its modules and its loss."""
    loss, optimizer = open_clip.ClipLoss(), torch.optim.AdamW(model.clip.parameters(), lr=1e-6)

    def step() -> None:
        image, text, scale = model.clip(model.normalize_pixels(images), captions)
        optimizer.zero_grad()
        loss(image, text, scale).backward()
        optimizer.step()

    return step


def cloc_step(
    model: CLOC, batch: RegionBatch, literal: bool = False, bf16: bool = False
) -> Callable[[], object]:
    """Ours; `literal` recomputes every image token for every prompt, as the paper describes it."""
    optimizer, objectives = torch.optim.AdamW(model.parameters(), lr=1e-6), Objectives()

    def step() -> None:
        with ExitStack() as stack:
            if literal:
                stack.enter_context(mock.patch.object(PromptLayer, "_mean_terms", return_value=None))
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                features = model(batch)
            optimizer.zero_grad()
            objectives(features)["total"].backward()
            optimizer.step()

    return step


def where_time_goes(step: Callable[[], object]) -> dict[str, float]:
    """Share of a step's CPU time by kind of work, from torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    own: dict[str, float] = {}
    for event in profiler.key_averages():
        kind = next((kind for kind, words in WORK.items() if any(w in event.key for w in words)), "the rest")
        own[kind] = own.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(own.values())
    return {kind: own[kind] / total for kind in sorted(own, key=lambda kind: -own[kind])}


def main(options: Options) -> None:
    """Print and write time and activations, each over the CLIP step's."""
    torch.set_num_threads(1)
    steps = build_steps(options)
    rows = ratios(take_turns({name: step for name, (step, _) in steps.items()}, options.rounds), BASE)
    for name, (step, model) in steps.items():
        rows[name]["kept_mb"] = kept_for_backward(step, model) / 2**20
        rows[name]["kept_ratio"] = rows[name]["kept_mb"] / rows[BASE]["kept_mb"]
    print_table(rows)
    shares = {name: where_time_goes(steps[name][0]) for name in (BASE, "mean")}
    for name, kinds in shares.items():
        print(f"{name}: " + ", ".join(f"{kind} {share:.1%}" for kind, share in kinds.items()))
    aims = []
    for name, (time_aim, kept_aim) in AIMS.items():
        aims.append(verdict(f"CLOC step, {name}, over the CLIP step", rows[name]["ratio"], time_aim))
        if kept_aim:
            kept = rows[name]["kept_ratio"]
            aims.append(verdict(f"CLOC step, {name}, activations over the CLIP step's", kept, kept_aim))
    bf16 = rows[BF16]["seconds"] / rows["mean"]["seconds"]
    aims.append(verdict("CLOC step, bf16 autocast over fp32", bf16, BF16_AIM))
    print(
        write_json(
            "training_step", {"batch_size": options.batch_size, "rows": rows, "shares": shares, "aims": aims}
        )
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
