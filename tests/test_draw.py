"""Regions on pictures, and many pictures on one sheet."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from open_cloc.draw import SUFFIXES, check_output, contact_sheet, draw_regions, shorten, write_picture
from open_cloc.masks import Mask
from open_cloc.samples import Region, RegionSample

REGIONS = (Region((0.1, 0.1, 0.5, 0.6), "a red mug"), Region((0.2, 0.4, 0.9, 0.8), "mug"))


def test_boxes_are_drawn_where_they_are() -> None:
    pixels = np.full((100, 200, 3), 255, np.uint8)
    before = pixels.copy()
    drawn = draw_regions(pixels, [Region((0.25, 0.4, 0.75, 0.9), "")])
    np.testing.assert_array_equal(pixels, before)
    changed = (drawn != 255).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (50, 40, 150, 90)
    assert not changed[50:80, 60:140].any()  # an outline, not a filled box


def test_outlines_are_tinted() -> None:
    pixels = np.full((100, 200, 3), 255, np.uint8)
    covered = np.zeros((50, 100), bool)  # on a grid of half the size
    covered[25:40, 30:60] = True
    region = Region((0.25, 0.4, 0.75, 0.9), "", mask=Mask.of(covered))
    plain, drawn = (draw_regions(pixels, [r]) for r in (replace(region, mask=None), region))
    changed = (plain != drawn).any(-1)
    assert changed[52:78, 62:118].all()
    assert not changed[:50].any()
    assert not changed[:, 120:].any()
    assert (drawn[60, 80] > drawn[40, 100]).any()  # a tint of the colour of its box
    tile = contact_sheet([RegionSample("a", pixels, regions=(region,))], tile=100)[8:108, 8:108]
    bare = contact_sheet([RegionSample("a", pixels, regions=(replace(region, mask=None),))], tile=100)
    changed = (tile != bare[8:108, 8:108]).any(-1)
    assert changed[52:64, 32:58].all()
    assert not changed[:50].any()


def test_texts_colours_and_scores() -> None:
    pixels = np.full((100, 200, 3), 255, np.uint8)
    boxes = ((0.1, 0.3, 0.3, 0.9), (0.6, 0.3, 0.9, 0.9))
    same = draw_regions(pixels, [Region(box, "cat") for box in boxes])
    assert same[60, 20].tolist() == same[60, 120].tolist()
    plain = draw_regions(pixels, [Region(boxes[0], "cat", 0.5)])
    scored = draw_regions(pixels, [Region(boxes[0], "cat", 0.5)], show_scores=True)
    assert (plain != scored).any()
    assert (scored != 255).any(-1)[:30].any()  # the label stands above its box
    tiny = draw_regions(np.zeros((3, 3, 3), np.uint8), [Region((0, 0, 1, 1), "a long phrase")])
    assert tiny.shape == (3, 3, 3)


def test_contact_sheet_layout_and_long_captions() -> None:
    pixels = np.zeros((50, 100, 3), np.uint8)
    samples = [RegionSample(f"s{i}", pixels, ("word " * 100,), REGIONS) for i in range(5)]
    sheet = contact_sheet(samples, columns=2, tile=100)
    assert sheet.shape[1] == 2 * 108 + 8
    assert sheet.shape[0] == 3 * (100 + 3 * 11 + 8) + 8
    assert (sheet[-100:, 116 + 8 :] == 255).all()  # the sixth place is empty
    assert shorten("short", 12, 400) == "short"
    assert shorten("word " * 100, 12, 100).endswith("…")
    with pytest.raises(ValueError, match="at least one sample"):
        contact_sheet([])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_picture_is_replaced_only_by_who_drew_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    pixels = np.full((20, 30, 3), 200, np.uint8)
    write_picture(path, pixels)
    write_picture(path, pixels // 2)
    with Image.open(path) as drawn:
        assert np.asarray(drawn).mean() == pytest.approx(100, abs=1)
    for content in (b"", b"a text", png_of_somebody_else()):
        path.write_bytes(content)
        with pytest.raises(FileExistsError, match="is there already, and was not drawn here"):
            write_picture(path, pixels)
        assert path.read_bytes() == content
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_picture_takes_no_links_and_folders_place(tmp_path: Path) -> None:
    write_picture(tmp_path / "theirs.png", np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "link.png").symlink_to(tmp_path / "theirs.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.png").mkdir()
    for name in ("link.png", "gone.png", "folder.png"):
        with pytest.raises(FileExistsError, match="is there already"):
            check_output(tmp_path / name)
    check_output(tmp_path / "theirs.png")
    check_output(tmp_path / "new" / "a.webp")


def png_of_somebody_else() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()
