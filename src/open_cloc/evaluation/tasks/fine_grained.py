"""Fine-grained recognition (FG-OVD): a box's sentence against others that are nearly right.

Shapes: X regions of a data set, T sentences of one region, D shared embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from open_cloc.data.annotations import SampleDataset
from open_cloc.data.readers.fg_ovd import NEGATIVE
from open_cloc.errors import UserError
from open_cloc.evaluation.batches import read_batches
from open_cloc.evaluation.intervals import mean_over
from open_cloc.evaluation.method import Method, cleaning_of
from open_cloc.evaluation.metrics import TIES_SHARE
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.task import TaskResult, measured
from open_cloc.samples import RegionSample

TIES_HIT = "the right sentence wins"


def fine_grained(method: Method, dataset: SampleDataset, config: EvaluationConfig) -> TaskResult:
    """Choose each region's sentence among its own and those of the role `negative`.

    Raises:
        UserError: If a region has no sentence that is wrong, or there is no region.
    """
    rules = config.rules
    hits: list[float] = []
    counts: list[int] = []
    num_sentences = 0
    for batch in read_batches(dataset, method.canvas, config):
        sentences = [_sentences(sample, method, rules.lower_case) for sample in batch.samples]
        counts += map(len, sentences)
        flat = [text for own in sentences for texts in own for text in texts]
        num_sentences += len(flat)
        if not flat:
            continue
        regions = method.embed_regions(batch, batch.boxes).cpu()
        texts = method.embed_texts(flat).cpu().split([len(texts) for own in sentences for texts in own])
        hits += [_hit(region, own, rules.ties == "hit") for region, own in zip(regions, texts)]
    if not hits:
        raise UserError(f"dataset has no regions in its {len(counts)} images; expected at least one")
    images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    protocol = {
        "averaging": "micro over regions",
        "ties": TIES_HIT if rules.ties == "hit" else TIES_SHARE,
        "num_images": len(counts),
        "num_regions": len(hits),
        "num_sentences": num_sentences,
    }
    return measured({"acc1": mean_over(torch.tensor(hits), images, len(counts))}, len(counts), protocol)


def _sentences(sample: RegionSample, method: Method, lower_case: bool) -> list[list[str]]:
    """The sentences of each region, the right one first, as the method reads texts."""
    clean = cleaning_of(method)
    found = []
    for row, region in enumerate(sample.regions):
        wrong = [text.text for text in region.texts if text.role == NEGATIVE]
        if not wrong:
            raise UserError(
                f"fine_grained needs texts of the role {NEGATIVE!r}; region {row} of sample {sample.key!r} "
                "has none; finehard:FILE,negatives=true leaves such regions out and counts them"
            )
        found.append([clean(text.lower() if lower_case else text) for text in (region.text, *wrong)])
    return found


def _hit(region: Tensor, texts: Tensor, ties_hit: bool) -> float:
    """Whether the first of some texts (T, D) is nearest to a region (D,)."""
    scores = (texts * region).sum(1)  # row by row alike, so that equal texts tie to the bit
    best = scores == scores.max()
    if ties_hit:
        return float(best[0])
    return float(best[0]) / int(best.sum())
