"""Pictures a second of the labelling pipeline: python -m benchmarks.labelling

Against the loop that one writes first: one picture at a time through transformers' zero-shot detection
pipeline, with the same tiny OWLv2 (random weights), pictures and phrases. Beside it each stage alone: as many
processes as the pipeline has actors for it, each with one thread and no Ray. Wall time, from the first result
to the last, since the pipeline is several processes; what it takes to start is told apart.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import tyro
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    PreTrainedTokenizerFast,
    pipeline,
)

from benchmarks.timing import print_table, verdict, write_json
from open_cloc.canvas import resize
from open_cloc.data.scenes.dataset import SceneDataset
from open_cloc.data.scenes.vocabulary import SceneConfig, vocabulary
from open_cloc.data.shards.write import write_shards
from open_cloc.labelling import actors
from open_cloc.labelling.actors import Actors, labelled_batches, plan_actors
from open_cloc.labelling.cluster import connected
from open_cloc.labelling.recipe import DetectorConfig, LabelRecipe, LabelRunConfig, PhraseConfig
from open_cloc.labelling.source import plan_units, read_batches
from open_cloc.labelling.stages import CaptionStage, DetectStage, PhraseStage, Stage
from open_cloc.labelling.types import Batch, Detections
from open_cloc.samples import RegionSample

SIZE_HW = (360, 480)  # of the pictures
MAX_TOKENS = 16
FAKE_RATE = 50.0  # pictures a second of a GPU: OWLv2-large on an H100, roughly


@dataclass
class Options:
    """Attributes:
    pictures: How many.
    loop_pictures: How many of them the loop gets.
    rounds: How often everything is timed, in turns; the median counts.
    side: Of OWLv2's square input.
    spacy_model: Tagger: an installed pipeline, or a folder.
    """

    pictures: int = 384
    loop_pictures: int = 12
    rounds: int = 3
    side: int = 384
    spacy_model: str = "en_core_web_sm"


def make_detector(folder: Path, side: int) -> None:
    """A small OWLv2 with random weights and a tokenizer of whole words, as a folder that loads."""
    words = sorted({word for phrase in vocabulary(SceneConfig()).phrases for word in phrase.split()})
    names = ["!", "[UNK]", *words, "<start>", "<end>"]
    ids = {name: row for row, name in enumerate(names)}
    own = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(name, ids[name]) for name in ("<start>", "<end>")]
    own.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=own,
        unk_token="[UNK]",
        eos_token="<end>",
        pad_token="!",
        model_max_length=MAX_TOKENS,
    )
    tokenizer.save_pretrained(folder)
    layers = {"num_hidden_layers": 4, "num_attention_heads": 3}
    text = {"vocab_size": len(names), "hidden_size": 96, "intermediate_size": 384, **layers}
    text |= {"max_position_embeddings": MAX_TOKENS, "pad_token_id": 0}
    text |= {"bos_token_id": ids["<start>"], "eos_token_id": ids["<end>"]}
    vision = {"hidden_size": 192, "intermediate_size": 768, "image_size": side, "patch_size": 16, **layers}
    torch.manual_seed(0)
    Owlv2ForObjectDetection(
        Owlv2Config(text_config=text, vision_config=vision, projection_dim=96)
    ).save_pretrained(folder)
    Owlv2ImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)


def make_pictures(folder: Path, count: int) -> None:
    scenes = SceneDataset(SceneConfig(), "val", count)

    def enlarged(index: int) -> RegionSample:
        sample = scenes[index]
        return RegionSample(sample.key, resize(sample.pixels(), SIZE_HW), sample.captions)

    write_shards(map(enlarged, range(count)), folder, samples_per_shard=64, array_format="jpg")


def loop_rate(folder: Path, batches: list[Batch], count: int) -> float:
    """Pictures a second of the obvious loop; phrases and pixels are handed to it."""
    detect = pipeline(
        "zero-shot-object-detection",
        model=Owlv2ForObjectDetection.from_pretrained(folder),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder),
        image_processor=Owlv2ImageProcessor.from_pretrained(folder),
        device="cpu",
    )
    pictures = [p for batch in batches for p in batch.pictures][: count + 1]
    started = 0.0
    for number, picture in enumerate(pictures):
        if number == 1:  # the first one warms up
            started = time.perf_counter()
        image = Image.fromarray(RegionSample(picture.key, picture.image).pixels())
        assert picture.phrases is not None
        detect(image, candidate_labels=[phrase.text for phrase in picture.phrases.kept], threshold=0.02)
    return (len(pictures) - 1) / (time.perf_counter() - started)


def stage_process(make: Callable[[], Stage], batches: list[Batch], ready: Any, seconds: Any) -> None:
    """Run a stage over batches once all processes are ready."""
    torch.set_num_threads(1)
    stage = make()
    stage(batches[0])
    ready.wait()
    started = time.perf_counter()
    for batch in batches:
        stage(batch)
    seconds.put(time.perf_counter() - started)


def stage_rate(make: Callable[[], Stage], batches: list[Batch], processes: int) -> float:
    """Pictures a second of a stage alone, in so many processes at a time."""
    context = multiprocessing.get_context("spawn")
    ready, seconds = context.Barrier(processes), context.Queue()
    parts = [batches[i::processes] for i in range(processes)]
    running = [context.Process(target=stage_process, args=(make, part, ready, seconds)) for part in parts]
    for process in running:
        process.start()
    slowest = max(seconds.get() for _ in running)
    for process in running:
        process.join()
    return sum(len(batch.pictures) for batch in batches) / slowest


class FakeGpu:
    """A detector that sleeps as long as a GPU would compute, and notes when it did."""

    def __init__(self, config: DetectorConfig, device: Any) -> None:
        self.provenance = {"name": "fake GPU"}
        self.notes = Path(config.weights)

    def __call__(self, images: Any, phrases: Any) -> list[Detections]:
        started = time.perf_counter()
        time.sleep(len(images) / FAKE_RATE)
        with self.notes.open("a") as file:
            file.write(f"{started} {time.perf_counter()}\n")
        return [
            Detections(np.zeros((0, 4), np.float32), np.zeros((0, len(own)), np.float32)) for own in phrases
        ]


def fake_gpu_busy(recipe: LabelRecipe, source: str, notes: Path) -> float:
    """Share of the time in which a GPU of `FAKE_RATE` pictures a second would compute."""
    detect = DetectorConfig(kind="benchmarks.labelling:FakeGpu", weights=str(notes))
    cpus = os.cpu_count() or 1

    def planned(recipe: LabelRecipe, *cluster: object) -> list[Actors]:
        """As for a machine with one GPU, on this one without."""
        made = plan_actors(recipe, {"CPU": cpus, "GPU": 1})
        return [
            Actors(
                [(stage, tuple("cpu" if a == "cuda" else a for a in given)) for stage, given in own.steps],
                own.processes,
                {name: value for name, value in own.resources.items() if name != "num_gpus"},
            )
            for own in made
        ]

    with mock.patch.object(actors, "plan_actors", planned):
        for _ in labelled_batches(plan_units(source, 1000), replace(recipe, detect=detect)):
            pass
    times = [tuple(map(float, line.split())) for line in notes.read_text().splitlines()][1:]  # it warms up
    return sum(end - start for start, end in times) / (times[-1][1] - times[0][0])


def pipeline_rate(recipe: LabelRecipe, source: str) -> tuple[float, float]:
    """Pictures a second after the first batch, and seconds until then."""
    units = plan_units(source, 1000)
    started = time.perf_counter()
    first = last = 0.0
    count = 0
    for batch in labelled_batches(units, recipe):
        last = time.perf_counter()
        first = first or last
        assert isinstance(batch, Batch)
        count += len(batch.pictures) if last > first else 0
    return count / (last - first), first - started


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name, connected(""):
        folder = Path(name)
        make_detector(folder / "owlv2", options.side)
        make_pictures(folder / "in", options.pictures)
        recipe = LabelRecipe(
            "benchmark",
            phrases=PhraseConfig(spacy_model=options.spacy_model),
            detect=DetectorConfig(weights=str(folder / "owlv2")),
            run=LabelRunConfig(batch_size=8),
        )
        source = f"shards:{folder / 'in'}"
        captions = partial(CaptionStage, recipe.caption, "cpu")
        phrases = partial(PhraseStage, recipe.phrases)
        detect = partial(DetectStage, recipe.detect, "", "cpu")
        started = time.perf_counter()
        read = [batch for unit in plan_units(source, 1000) for batch in read_batches(unit, 8)]
        reading = options.pictures / (time.perf_counter() - started)
        captioned = list(map(captions(), read))
        phrased = list(map(phrases(), captioned))
        found: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            rate, start = pipeline_rate(recipe, source)
            row = {
                "pipeline": rate,
                "pipeline, seconds to start": start,
                "read": reading,
                "phrases alone, 1 process": stage_rate(phrases, captioned, 1),
                f"detect alone, {cores} processes": stage_rate(detect, phrased, cores),
                "loop": loop_rate(folder / "owlv2", phrased, options.loop_pictures),
            }
            for what, value in row.items():
                found.setdefault(what, []).append(value)
        busy = fake_gpu_busy(recipe, source, folder / "notes")
    rates = {what: statistics.median(values) for what, values in found.items()}
    spread = {what: max(values) / min(values) for what, values in found.items()}
    print_table({what: {"pictures/s": rates[what], "spread": spread[what]} for what in rates})
    slowest = min(value for what, value in rates.items() if "alone" in what)
    per_picture = float(np.mean([len(p.phrases.kept) for b in phrased for p in b.pictures if p.phrases]))
    aims = [
        verdict("pipeline over the obvious loop", rates["pipeline"] / rates["loop"], 3.0, least=True),
        verdict("pipeline over the slowest stage alone", rates["pipeline"] / slowest, 0.9, least=True),
        verdict(f"share of time that a GPU of {FAKE_RATE:g} pictures/s is busy", busy, 0.95, least=True),
    ]
    result = {"options": asdict(options), "rates": rates, "spread": spread, "phrases": per_picture}
    print(write_json("labelling", {**result, "aims": aims}))


if __name__ == "__main__":
    main()
