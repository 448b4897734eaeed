"""One unit's files: raw detections with their mark, then the labelled shard with its mark.

    raw/00000_pictures.parquet, raw/00000_boxes.parquet, raw/00000.json
    00000.tar, 00000_index.npz, 00000_stats.json, 00000_label.json

A mark is written last, so that where it exists all else is whole. Nothing in these files tells time: the same
input gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from open_cloc.data.shards.write import Storage, write_shard
from open_cloc.errors import UserError
from open_cloc.labelling.filter import select_regions
from open_cloc.labelling.provenance import downstream, software, upstream
from open_cloc.labelling.raw import raw_files, read_raw, write_raw
from open_cloc.labelling.recipe import LabelRecipe
from open_cloc.labelling.source import Unit
from open_cloc.labelling.stats import RegionStats, picture_stats
from open_cloc.labelling.types import Picture
from open_cloc.samples import Region, RegionSample

RUN_FILE = "label.json"  # of the output folder: what the run is

REPORT_FILES = ("report.html", "report.json", "sheet.jpg")

RAW = "raw"


def raw_mark(output: Path, unit: str) -> Path:
    return output / RAW / f"{unit}.json"


def label_mark(output: Path, unit: str) -> Path:
    return output / f"{unit}_label.json"


def read_mark(path: Path) -> dict[str, Any] | None:
    """A mark's content, None where there is none.

    Raises:
        UserError: If it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"mark is not JSON: {error} ({path}); delete it to make its shard again") from None


def write_json(path: Path, document: Any) -> None:
    """Write JSON under a name that appears when all is written."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def save_raw(
    output: Path, unit: Unit, pictures: Sequence[Picture], made_by: dict[str, Any], recipe: LabelRecipe
) -> None:
    """Write a unit's raw detections and their mark."""
    folder = output / RAW
    folder.mkdir(parents=True, exist_ok=True)
    write_raw(folder, unit.name, pictures)
    mark = {
        "unit": {"spec": unit.spec, "start": unit.start, "stop": unit.stop},
        "recipe": upstream(recipe),
        "made_by": made_by,
        "software": software(),
    }
    write_json(raw_mark(output, unit.name), mark)


def save_shard(output: Path, unit: Unit, recipe: LabelRecipe) -> dict[str, Any]:
    """Filter a unit's raw detections and write the shard; returns its counts.

    Raises:
        UserError: If a picture that was read before cannot be read any more.
    """
    certificate = read_mark(raw_mark(output, unit.name))
    assert certificate is not None, unit
    tar = output / f"{unit.name}.tar"
    _remove_shard(output, unit.name)
    pictures = list(read_raw(output / RAW, unit.name))
    stats, filtered = RegionStats(), dict[str, int]()
    good = [picture for picture in pictures if picture.failure is None]
    if good:
        write_shard(_samples(unit, good, recipe, stats, filtered), tar, Storage())
    counts = {**picture_stats(pictures), "filtered": filtered, **stats.as_json()}
    write_json(
        label_mark(output, unit.name),
        {
            **certificate,
            "name": recipe.name,
            "recipe": certificate["recipe"] | downstream(recipe),
            "counts": counts,
        },
    )
    return counts


def remove_run(output: Path, units: Sequence[str]) -> None:
    """Remove a run's files, and nothing else that lies in its folder.

    Marks go before what they vouch for, and what makes the folder a run goes last: it can be removed again.
    """
    for unit in units:
        _remove_shard(output, unit)
        for path in (raw_mark(output, unit), *raw_files(output / RAW, unit)):
            path.unlink(missing_ok=True)
    for name in ("sizes.json", *REPORT_FILES, RUN_FILE):
        (output / name).unlink(missing_ok=True)


def _remove_shard(output: Path, unit: str) -> None:
    """Remove a labelled shard, its mark first."""
    for name in (f"{unit}_label.json", f"{unit}.tar", f"{unit}_stats.json", f"{unit}_index.npz"):
        (output / name).unlink(missing_ok=True)


def _samples(
    unit: Unit, pictures: Sequence[Picture], recipe: LabelRecipe, stats: RegionStats, filtered: dict[str, int]
) -> Iterator[RegionSample]:
    dataset, _ = unit.samples()
    source = Path(recipe.detect.weights).name or recipe.detect.kind
    for picture in pictures:
        given = dataset[picture.index]
        regions = tuple(_regions(picture, recipe, source, filtered))
        assert picture.caption is not None
        others = [text for text in given.captions if text != picture.caption.text]
        sample = RegionSample(
            key=given.key,
            image=given.image,
            captions=(picture.caption.text, *others),
            regions=regions,
            metadata={
                **given.metadata,
                "caption_sources": [picture.caption.source, *("given" for _ in others)],
            },
        )
        stats.given_regions += len(given.regions)
        stats.add(sample)
        yield sample


def _regions(
    picture: Picture, recipe: LabelRecipe, source: str, filtered: dict[str, int]
) -> Iterator[Region]:
    found, phrases = picture.detections, picture.phrases
    assert found is not None
    assert phrases is not None
    kept = select_regions(found, picture.cycle, recipe.filter)
    for rule, count in kept.dropped.items():
        filtered[rule] = filtered.get(rule, 0) + count
    for box, column in zip(kept.boxes.tolist(), kept.phrases.tolist()):
        phrase = phrases.kept[column]
        x1, y1, x2, y2 = (round(side, 6) for side in found.boxes[box].tolist())
        cycle = None if picture.cycle is None else round(float(picture.cycle[box]), 6)
        score = round(float(found.scores[box, column]), 6)
        yield Region((x1, y1, x2, y2), phrase.text, score, source, (phrase.start, phrase.end), cycle)
