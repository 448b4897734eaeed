"""What the check of a dataset finds, and what it makes of boxes in another format."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from open_cloc.data.check import check_dataset, format_report
from open_cloc.data.readers import open_reader
from open_cloc.samples import Region, RegionSample
from tests.data.readers.made import annotation, coco_document, write_coco


def jpeg(seed: int, size: tuple[int, int] = (100, 50)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def sample(number: int, **changes: Any) -> RegionSample:
    regions = (Region((0.1, 0.1, 0.5, 0.6), "a red mug"), Region((0.2, 0.4, 0.9, 0.8), "mug"))
    return replace(RegionSample(f"s{number}", jpeg(number), ("a caption",), regions), **changes)


def test_sound_data_has_neither_errors_nor_warnings() -> None:
    report = check_dataset([sample(i) for i in range(4)])
    assert report.counts == {
        "images": 4,
        "captions": 4,
        "regions": 8,
        "images_without_captions": 0,
        "images_without_regions": 0,
    }
    assert (report.errors, report.warnings) == ({}, {})
    assert report.top_phrases == [("a red mug", 4), ("mug", 4)]
    assert report.histograms["regions per image"] == {"2-4": 4}
    assert report.histograms["box area"] == {"10-50 %": 8}
    assert report.histograms["words per region text"] == {"3-5": 4, "1": 4}


def test_every_kind_of_problem_is_counted_and_located() -> None:
    cut = sample(3).image[:300]  # type: ignore[index]
    data = [
        sample(0, captions=(), regions=()),
        sample(0, key="twin", captions=(" ",)),
        sample(2, image=Path("/nowhere/x.jpg")),
        sample(3, image=cut),
        sample(4, regions=(Region((0.1, 0.1, 0.5, 0.6), ""), Region((0.1, 0.1, 0.1, 0.6), "thin"))),
        sample(5, regions=(Region((0.5, 0.1, 0.2, 0.6), "a"), Region((0.1, 0.1, 1.5, 0.6), "b"))),
        sample(6, regions=(Region((0.1, 0.1, 0.101, 0.2), "speck"),)),
        sample(7, regions=(Region((0.1, 0.1, 0.5, 0.5), "x"),) * 2),
        sample(8, regions=(Region((float("nan"), 0.1, 0.5, 0.5), "x"),)),
    ]
    report = check_dataset(data)
    errors = {cause: finding.count for cause, finding in report.errors.items()}
    assert errors == {
        "missing picture": 1,
        "undecodable picture": 1,
        "empty region text": 1,
        "box inverted": 1,
        "box outside the picture": 1,
        "box not finite": 1,
    }
    warnings = {cause: finding.count for cause, finding in report.warnings.items()}
    assert warnings == {
        "repeated picture": 1,
        "empty caption": 1,
        "box without area": 1,
        "tiny box": 1,
        "repeated box with the same text": 1,
    }
    assert report.warnings["repeated picture"].examples == ["key 'twin' is the same picture as 's0'"]
    assert "sample 's5', region 1" in report.errors["box outside the picture"].examples[0]
    assert report.counts["images_without_captions"] == 2
    assert report.counts["images_without_regions"] == 1
    text = format_report(report)
    assert text.endswith("6 errors, 5 warnings")
    assert "ERROR: box inverted: 1\n  box is inverted: got [0.5, 0.1, 0.2, 0.6]" in text


def test_entries_that_no_reader_could_use_are_listed(tmp_path: Path) -> None:
    """Those of a sample, and those of none; and what the reader left out."""
    write_coco(tmp_path, coco_document(annotations=[annotation(None), annotation([0, 0, 9, 9], image_id=5)]))
    (tmp_path / "images/a.jpg").unlink()
    report = check_dataset(open_reader(str(tmp_path)))
    errors = {cause: finding.count for cause, finding in report.errors.items()}
    assert errors == {"unknown image_id": 1, "broken annotation": 1, "missing picture": 1}
    assert "annotation 912: bbox [x, y, w, h] must be 4 numbers; got null" in str(report.errors)
    text = format_report(check_dataset(open_reader(str(tmp_path)), [1]))
    assert "warning: not used: annotation ids" not in text
    assert "ERROR: unknown image_id: 1" in text


def test_a_pixel_outside_is_rounding_to_the_check_as_well() -> None:
    near = sample(0, image=np.zeros((50, 100, 3), np.uint8), regions=(Region((0.2, 0.2, 1.009, 1), "mug"),))
    assert check_dataset([near]).errors == {}
