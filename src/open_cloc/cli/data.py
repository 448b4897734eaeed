"""`open-cloc data convert | check | show`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from open_cloc.cli.parse import check_result_file, parse_command
from open_cloc.cli.screen import say
from open_cloc.data.annotations import SampleDataset
from open_cloc.data.bad_samples import BadSample, BadSamples, listed, problem_of, read_usable, tell_opening
from open_cloc.data.check import check_dataset, format_report
from open_cloc.data.readers import CONVERTED, guess_spec, open_reader
from open_cloc.data.shards.convert import convert_dataset
from open_cloc.draw import check_output, contact_sheet, write_picture
from open_cloc.errors import UserError
from open_cloc.files import write_json
from open_cloc.samples import RegionSample
from open_cloc.shown import hide_secrets

Source = Annotated[
    str,
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="PATH|FORMAT:PATH", help="A path whose format is recognised, or FORMAT:PATH[,name=value...]."
    ),
]


def convert(
    source: Source,
    out: tyro.conf.Positional[Path],
    samples_per_shard: int = 1000,
    max_side: int = 0,
    max_bad_fraction: float = 0.0,
    resume: bool = False,
    workers: int = 0,
) -> int:
    """Write a dataset as webdataset tar shards.

    Args:
        out: New or empty folder.
        samples_per_shard: Samples per tar.
        max_side: Make pictures with a longer side smaller, as JPEG of quality 90; 0 keeps all as they are.
            The model's image size or a little more makes loading several times as fast.
        max_bad_fraction: Share of unusable samples and entries to leave out; past it nothing is written.
        resume: Go on where an earlier, stopped conversion of the same data ended.
        workers: Processes that read and encode; 0 does it in this one. The shards are the same.
    """
    if not 0 <= max_bad_fraction <= 1:
        raise UserError(f"--max-bad-fraction must be in [0, 1]; got {max_bad_fraction}")
    dataset = open_source(source, converting=True)
    is_checked = guess_spec(source).partition(":")[0] not in CONVERTED
    tell_opening(dataset, source, max_bad_fraction, "--max-bad-fraction leaves them out", is_checked)
    with _progress(len(dataset), "images") as bar:
        count, causes = convert_dataset(
            dataset,
            out,
            samples_per_shard,
            max_side=max_side,
            max_bad_fraction=max_bad_fraction,
            resume=resume,
            workers=workers,
            progress=bar.update,
        )
    left_out = _left_out(causes + _causes_of(dataset))
    say(f"wrote {count} samples in {-(-count // samples_per_shard)} shards to {out}{left_out}")
    return 0


def check(
    source: Source,
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    num: int | None = None,
) -> int:
    """Report wrong or suspicious boxes, duplicates, empty texts, counts; exit 1 on errors.

    Args:
        json_out: Also write the report there.
        num: Look only at so many samples, evenly spaced.
    """
    check_result_file(json_out, ("source", "counts", "errors", "warnings"))
    dataset = open_source(source)
    indices = _evenly(len(dataset), num)
    with _progress(len(indices), "images") as bar:
        report = check_dataset(dataset, indices, bar.update)
    if json_out is not None:
        write_json(json_out, hide_secrets({"source": source, **asdict(report)}))
    say(format_report(report))
    return 1 if report.errors else 0


def show(
    source: Source,
    out: tyro.conf.Positional[Path],
    num: int = 16,
    columns: int | None = None,
    tile: int = 384,
) -> int:
    """Draw a contact sheet: pictures with their boxes, phrases and captions.

    Args:
        out: The picture to write, .png or .jpg.
        num: Samples to show, evenly spaced.
        columns: Pictures in a row.
        tile: Side of each picture in pixels.
    """
    check_output(out)
    dataset = open_source(source)
    tell_opening(dataset, source)
    skipped, causes = BadSamples(max_fraction=1), _causes_of(dataset)
    samples = list(_usable(dataset, _evenly(len(dataset), num), skipped, causes))
    if not samples:
        raise UserError(f"no sample can be drawn: {skipped.first}")
    write_picture(out, contact_sheet(samples, columns, tile))
    say(f"drew {len(samples)} of {len(dataset)} samples on {out}{_left_out(causes)}")
    return 0


def main(argv: Sequence[str]) -> int:
    """Run one of the three commands; returns the exit code."""
    commands: dict[str, Callable[..., int]] = {"convert": convert, "check": check, "show": show}
    return parse_command(commands, argv, "open-cloc data", __doc__ or "")()


def open_source(text: str, converting: bool = False) -> SampleDataset:
    """Open a bare path or FORMAT:PATH, saying what a bare path was taken for; see `open_reader`."""
    spec = guess_spec(text)
    if spec != text:
        say(f"reading {text} as {spec.partition(':')[0]}", to_errors=True)
    return open_reader(spec, converting)


def _left_out(causes: Counter[str]) -> str:
    """What was left out, for the end of a sentence."""
    return f"; left out {sum(causes.values())} ({listed(causes)})" if causes else ""


def _causes_of(dataset: SampleDataset) -> Counter[str]:
    """Broken entries that belong to no sample, by cause."""
    return Counter(problem.cause for problem in getattr(dataset, "problems", ()))


def _usable(
    dataset: SampleDataset, indices: Iterable[int], skipped: BadSamples, causes: Counter[str]
) -> Iterator[RegionSample]:
    """What can be used of samples.

    Args:
        dataset: The samples.
        indices: Which of them.
        skipped: Counts those of which anything is wrong; too many raise.
        causes: Counts everything that is wrong.
    """
    for index in indices:
        sample, problems = read_usable(dataset, index)
        if sample is not None:
            try:
                sample.pixels()
            except Exception as error:  # whatever Pillow's decoders stumble over
                sample, problems = None, [problem_of(error, f"sample number {index}")]
        causes.update(problem.cause for problem in problems)
        skipped.add(int(not problems), [BadSample(*problem, last_draw=False) for problem in problems[:1]])
        if sample is not None:
            yield sample


def _evenly(length: int, num: int | None) -> list[int]:
    """At most `num` indices below `length`, evenly spaced."""
    if num is not None and num < 1:
        raise UserError(f"--num must be at least 1; got {num}")
    if num is None or num >= length:
        return list(range(length))
    return np.linspace(0, length - 1, num).round().astype(int).tolist()


def _progress(total: int, unit: str) -> tqdm:
    """A bar on a terminal, silence in a log."""
    return tqdm(total=total, unit=f" {unit}", disable=None, leave=False)
