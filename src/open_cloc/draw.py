"""Draw regions on pictures, and many pictures on one sheet."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from open_cloc import fonts
from open_cloc.canvas import Geometry
from open_cloc.errors import ExistingFileError, UserError
from open_cloc.files import write_whole
from open_cloc.masks import Mask
from open_cloc.samples import Region, RegionSample
from open_cloc.texts import sound_text

# Dark enough for white text, far apart in hue.
COLOURS = (
    (200, 30, 45),
    (20, 110, 200),
    (15, 125, 50),
    (150, 50, 170),
    (190, 90, 0),
    (0, 120, 125),
    (110, 80, 50),
    (200, 40, 130),
    (70, 75, 190),
    (100, 105, 0),
)

MARGIN = 8
TINT = 0.45  # of a region's colour over what its outline covers

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # of pictures that are written
MADE_BY = "open-cloc"  # stands in the pictures that we write
SOFTWARE = 0x0131  # where EXIF has the program that made a picture


def check_output(path: Path, inputs: Sequence[Path] = ()) -> None:
    """Refuse a place for a picture before the work that makes it.

    A picture that is there already is replaced only if it was drawn here before.

    Args:
        path: Where the picture is to go.
        inputs: Files that are read.

    Raises:
        UserError: If the suffix is of no format that is written, or the place is one of the inputs.
        ExistingFileError: If something else is there.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"output must end in {', '.join(SUFFIXES)}; got {path}")
    if any(path.exists() and file.exists() and path.samefile(file) for file in inputs):
        raise UserError(f"output must not be the picture that is read; got {path}")
    if path.is_symlink() or (path.exists() and not _is_drawn(path)):
        raise ExistingFileError(f"output is there already, and was not drawn here; got {path}")


def _is_drawn(path: Path) -> bool:
    try:
        with path.open("rb") as stream, Image.open(stream, formats=("PNG", "JPEG", "WEBP")) as picture:
            return picture.getexif().get(SOFTWARE) == MADE_BY
    except (OSError, ValueError, SyntaxError):  # no picture, or a broken one
        return False


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Write a picture, whole or not at all, in the format of its suffix; it says who made it.

    Args:
        path: Ends in one of `SUFFIXES`.
        pixels: (H, W, 3) uint8.

    Raises:
        ExistingFileError: If something else is there; see `check_output`.
        OSError: If it cannot be written.
    """
    check_output(path)
    exif = Image.Exif()
    exif[SOFTWARE] = MADE_BY
    encoded = io.BytesIO()  # Pillow's errors of writing into a file do not say what the system said
    Image.fromarray(pixels).save(encoded, Image.registered_extensions()[path.suffix.lower()], exif=exif)
    with write_whole(path) as part:
        part.write_bytes(encoded.getvalue())


def draw_regions(
    pixels: np.ndarray, regions: Sequence[Region], *, show_scores: bool = False, font_size: int | None = None
) -> np.ndarray:
    """Draw boxes with their texts, and tint what outlines cover; equal texts share a colour.

    Args:
        pixels: (H, W, 3) uint8; left as it is.
        regions: Regions with boxes normalised to this picture. Large ones are drawn first, so that none is
            hidden.
        show_scores: Write each score behind its text.
        font_size: Height of the texts in pixels; follows the picture's size unless given.

    Returns:
        (H, W, 3) uint8.
    """
    picture = Image.fromarray(_tinted(pixels, regions))
    draw = ImageDraw.Draw(picture)
    height, width = pixels.shape[:2]
    size = font_size or max(10, min(height, width) // 28)
    thickness = max(1, size // 6)
    for region in sorted(regions, key=_area, reverse=True):
        x1, y1, x2, y2 = (round(c * s) for c, s in zip(region.box, (width, height, width, height)))
        corners = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
        draw.rectangle(corners, outline=_colour(region.text), width=thickness)
    for region in sorted(regions, key=_area, reverse=True):  # texts over all boxes
        text = f"{region.text} {region.score:.2f}" if show_scores else region.text
        position = (round(region.box[0] * width), round(region.box[1] * height))
        _draw_label(draw, position, text, _colour(region.text), size, (width, height))
    return np.asarray(picture)


def contact_sheet(samples: Sequence[RegionSample], columns: int | None = None, tile: int = 384) -> np.ndarray:
    """Lay samples out in a grid, each with its regions drawn and its key and first caption below.

    Args:
        samples: The samples, at least one.
        columns: Tiles in a row; about as many as rows unless given.
        tile: Width and height of a tile's picture in pixels.

    Returns:
        (sheet height, sheet width, 3) uint8.

    Raises:
        UserError: If there are no samples, or a picture cannot be read.
    """
    if not samples:
        raise UserError("a contact sheet needs at least one sample")
    columns = columns or int(np.ceil(np.sqrt(len(samples))))
    font_size = max(11, tile // 28)
    strip = 3 * font_size
    step_x, step_y = tile + MARGIN, tile + strip + MARGIN
    rows = -(-len(samples) // columns)
    sheet = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for number, sample in enumerate(samples):
        x, y = MARGIN + number % columns * step_x, MARGIN + number // columns * step_y
        sheet.paste(Image.fromarray(_tile(sample, tile, font_size)), (x, y))
        caption = sample.captions[0] if sample.captions else ""
        for line, text in enumerate((sample.key, caption)):
            shown = shorten(text, font_size, tile)
            fonts.write(draw, (x, y + tile + 2 + line * int(1.3 * font_size)), shown, "black", font_size)
    return np.asarray(sheet)


def shorten(text: str, font_size: int, width: int) -> str:
    """The text on one line, cut with an ellipsis where it is wider than so many pixels."""
    text = " ".join(sound_text(text).split())
    is_long = len(text) > width  # no character is narrower than a pixel
    text = text[:width]
    if not is_long and fonts.length(text, font_size) <= width:
        return text
    while text and fonts.length(text + "…", font_size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _tile(sample: RegionSample, tile: int, font_size: int) -> np.ndarray:
    """A sample's picture fitted into a square, with its regions."""
    pixels = sample.pixels()
    geometry = Geometry.fit(pixels.shape[:2], (tile, tile))
    boxes = geometry.to_canvas(np.array([region.box for region in sample.regions], float).reshape(-1, 4))
    regions = [
        Region(tuple(box), r.text, r.score, mask=_on_canvas(r.mask, geometry))
        for box, r in zip(boxes.tolist(), sample.regions)
    ]
    return draw_regions(geometry.draw(pixels, fill=(238, 238, 238)), regions, font_size=font_size)


def _tinted(pixels: np.ndarray, regions: Sequence[Region]) -> np.ndarray:
    """Pixels (H, W, 3) with the regions' colours where their outlines are."""
    tinted = pixels
    for region in sorted(regions, key=_area, reverse=True):
        if region.mask is not None:
            whole = Geometry.fit(pixels.shape[:2], pixels.shape[:2])
            share = TINT * whole.masks_to_canvas(region.mask.pixels()[None])[0, ..., None]
            tinted = (tinted * (1 - share) + np.array(_colour(region.text)) * share).astype(np.uint8)
    return tinted


def _on_canvas(mask: Mask | None, geometry: Geometry) -> Mask | None:
    return None if mask is None else Mask.of(geometry.masks_to_canvas(mask.pixels()[None])[0] > 0.5)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    colour: tuple[int, int, int],
    size: int,
    picture: tuple[int, int],
) -> None:
    """Write on a coloured ground above a box's top left corner, or just inside where there is no room."""
    width, height = picture
    text = shorten(text, size, width - 4)
    if not text:
        return
    length = int(fonts.length(text, size))
    x = max(0, min(corner[0], width - length - 4))
    line = int(1.25 * size)
    y = corner[1] - line if corner[1] >= line else min(corner[1], max(0, height - line))
    ground = (x, y, x + length + 4, y + line)
    draw.rectangle(ground, fill=colour)
    fonts.write(draw, (x + 2, y + line // 2), text, "white", size, anchor="lm")


def _colour(text: str) -> tuple[int, int, int]:
    return COLOURS[zlib.crc32(text.encode("utf-8", "surrogatepass")) % len(COLOURS)]


def _area(region: Region) -> float:
    x1, y1, x2, y2 = region.box
    return (x2 - x1) * (y2 - y1)
