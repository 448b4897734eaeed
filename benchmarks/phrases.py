"""Encoding region phrases: python -m benchmarks.phrases

A step's 256 phrases of 2 to 12 tokens, 30 % of them repeated, through the text tower of ViT-B/16 (12 layers,
width 512): padded to 77 tokens as CLIP code does, against each distinct phrase once, several in a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import tyro
from torch import Tensor

from benchmarks.timing import print_table, ratios, take_turns, verdict, write_json
from benchmarks.training_step import texts
from open_cloc.model.cloc import CLOC
from open_cloc.model.create import ModelConfig, build_model
from open_cloc.packing import pack_texts

PADDED, TRIMMED, OURS = "padded to 77", "cut to the longest", "distinct, packed"
AIM = 0.10


@dataclass
class Options:
    """Attributes:
    count: Phrases.
    rounds: How often each is timed.
    """

    count: int = 256
    rounds: int = 5


@torch.inference_mode()
def main(options: Options) -> None:
    """Print and write time over padding's, and the largest difference between the features."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model(ModelConfig(towers="ViT-B-16")).eval()
    phrases = texts(options.count, 2, 12, seed=2)
    repeated = int(0.3 * len(phrases))
    phrases[-repeated:] = phrases[torch.arange(repeated)]
    longest = int(phrases.argmax(1).max()) + 1
    runs = {
        PADDED: lambda: model.encode_text(phrases),
        TRIMMED: lambda: model.encode_text(phrases[:, :longest]),
        OURS: lambda: encode_distinct(model, phrases),
    }
    expected = runs[PADDED]()
    difference = ((runs[OURS]() - expected).norm() / expected.norm()).item()
    rows = ratios(take_turns(runs, options.rounds), PADDED)
    print_table(rows)
    aims = [
        verdict("phrase encoding, distinct and packed, over padding to 77", rows[OURS]["ratio"], AIM),
        verdict("phrase encoding, relative difference", difference, 1e-6),
    ]
    print(write_json("phrases", {"rows": rows, "aims": aims}))


def encode_distinct(model: CLOC, phrases: Tensor) -> Tensor:
    """What `CLOC.forward` does; finding and sorting the distinct phrases, which is the loader's, included."""
    distinct, row = phrases.unique(dim=0, return_inverse=True)
    lengths = distinct.argmax(1) + 1
    order = lengths.argsort(stable=True)
    sorted_lengths = tuple(lengths[order].tolist())
    batch: Any = SimpleNamespace(
        texts=distinct[order],
        text_lengths=sorted_lengths,
        packing=pack_texts(sorted_lengths, phrases.shape[1]),
    )
    return model.encode_distinct_texts(batch)[order.argsort()][row]


if __name__ == "__main__":
    main(tyro.cli(Options))
