"""Generated scenes: coloured glyphs on muted backgrounds, with exact boxes and captions; nothing to download.

The glyphs are pictographs of the DejaVu Sans font that ships with matplotlib, named by short forms of their
Unicode names ("a red umbrella"). Every scene follows from (seed, split, index) alone, so that any process may
draw any of them. Some colour-glyph pairs never occur in training: they test whether a model composes a colour
and a glyph that it has only seen apart.

Shape legend: H W pixels of the scene (equal), h w pixels of one object's mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from open_cloc.data.samples import Region, RegionSample


class Glyph(NamedTuple):
    """A character of the font and the noun that a person would use for it."""

    character: str
    name: str


class Colour(NamedTuple):
    """A colour name with the RGB that is drawn on dark and on light backgrounds."""

    name: str
    on_dark: tuple[int, int, int]
    on_light: tuple[int, int, int]


# Chosen by looking at all pictographs of the font at 18 pixels: solid shapes first, near-duplicates left out.
# Any prefix is a vocabulary; the first 24 are told apart most easily, those with thin lines come last.
GLYPHS = (
    Glyph("\u2602", "umbrella"),
    Glyph("\u2605", "star"),
    Glyph("\u2665", "heart"),
    Glyph("\u2693", "anchor"),
    Glyph("\u2708", "airplane"),
    Glyph("\u260e", "telephone"),
    Glyph("\u2699", "gear"),
    Glyph("\u2709", "envelope"),
    Glyph("\u2702", "pair of scissors"),
    Glyph("\u2600", "sun"),
    Glyph("\u2601", "cloud"),
    Glyph("\u2691", "flag"),
    Glyph("\u265b", "crown"),
    Glyph("\u265e", "chess knight"),
    Glyph("\u2620", "skull"),
    Glyph("\u27a1", "arrow"),
    Glyph("\u266c", "music note"),
    Glyph("\u2744", "snowflake"),
    Glyph("\u262f", "yin yang"),
    Glyph("\u261b", "pointing hand"),
    Glyph("\u26a1", "lightning bolt"),
    Glyph("\u2714", "check mark"),
    Glyph("\u265c", "chess rook"),
    Glyph("\u2660", "spade"),
    Glyph("\u270e", "pencil"),
    Glyph("\u263b", "smiley"),
    Glyph("\u2618", "shamrock"),
    Glyph("\u262a", "crescent moon"),
    Glyph("\u2646", "trident"),
    Glyph("\u2302", "house"),
    Glyph("\u273f", "flower"),
    Glyph("\u2692", "pair of hammers"),
    Glyph("?", "question mark"),
    Glyph("\u267b", "recycling symbol"),
    Glyph("\u262e", "peace symbol"),
    Glyph("\u2666", "diamond"),
    Glyph("\u2615", "cup"),
    Glyph("\U0001f431", "cat"),
    Glyph("\u267f", "wheelchair"),
    Glyph("\u2603", "snowman"),
)

# The first six lie a sixth of the hue circle apart; orange and purple fall between two of them.
COLOURS = (
    Colour("red", (238, 40, 40), (205, 15, 25)),
    Colour("blue", (70, 115, 255), (25, 60, 215)),
    Colour("green", (60, 205, 75), (15, 140, 45)),
    Colour("yellow", (250, 225, 50), (238, 205, 0)),
    Colour("pink", (255, 105, 190), (240, 50, 150)),
    Colour("cyan", (65, 220, 230), (0, 175, 195)),
    Colour("orange", (255, 135, 20), (235, 100, 0)),
    Colour("purple", (160, 80, 235), (110, 30, 165)),
)

SPLITS = {"train": 0, "val": 1, "test": 2}  # the number enters the seed: do not renumber
CAPTION_TEMPLATES = ("{}", "a picture of {}", "a scene with {}", "there is {}")

DARK_LEVELS = (22.0, 88.0)  # grey levels of dark and light backgrounds; nothing between, for contrast
LIGHT_LEVELS = (188.0, 238.0)
TINT = 14.0  # backgrounds: largest distance of a channel from grey
JITTER = 10.0  # objects: largest distance of a channel from the named colour
NUM_SIZES = 16
ANGLES = (-12, -6, 0, 6, 12)
FONT_PIXELS = 256
INK_GAIN = 1.4  # thickens lines thinner than a pixel, whose colour would fade into the background
MIN_INK = 0.15  # fainter pixels are left out, so that a box never ends at ink that nobody can see
NUM_PLACES = 40  # tries for one object, and then for a whole layout


@dataclass(frozen=True)
class SceneConfig:
    """What the scenes look like. Two equal configs give the same scenes.

    Attributes:
        image_size: Height and width in pixels.
        num_glyphs: Length of the prefix of `GLYPHS` in use.
        num_colours: Length of the prefix of `COLOURS` in use.
        min_objects: Fewest objects in a scene.
        max_objects: Most objects in a scene.
        min_object_size: Shortest long side of an object, as a fraction of the image.
        max_object_size: Longest long side; crowded scenes fall back to smaller ones.
        max_overlap: Largest share of the smaller of two boxes that the other may cover.
        backgrounds: Keys of `BACKGROUNDS`, drawn with equal chance.
        held_out_fraction: Share of colour-glyph pairs that never occur in training.
        held_out_share: Share of the objects of val and test that are drawn from the held-out pairs.
        seed: Chooses the held-out pairs and every scene.

    Raises:
        ValueError: On a value out of range or values that do not fit together.
    """

    image_size: int = 64
    num_glyphs: int = 24
    num_colours: int = 6
    min_objects: int = 2
    max_objects: int = 5
    min_object_size: float = 0.22
    max_object_size: float = 0.45
    max_overlap: float = 0.1
    backgrounds: tuple[str, ...] = ("flat", "gradient", "noise", "stripes")
    held_out_fraction: float = 0.15
    held_out_share: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("image_size", 32, 1024),
            ("num_glyphs", 2, len(GLYPHS)),
            ("num_colours", 2, len(COLOURS)),
            ("min_objects", 1, self.max_objects),
            ("max_objects", 1, 20),
            ("min_object_size", 0.05, self.max_object_size),
            ("max_object_size", 0.05, 1.0),
            ("max_overlap", 0.0, 1.0),
            ("held_out_fraction", 0.0, 1.0),
            ("held_out_share", 0.0, 0.9),
            ("seed", 0, 2**63),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"scenes: {name} must be in [{low}, {high}]; got {value}")
        self._check_backgrounds()
        self._check_room()
        self._check_seen_pairs()

    def _check_backgrounds(self) -> None:
        unknown = [name for name in self.backgrounds if name not in BACKGROUNDS]
        if unknown or not self.backgrounds:
            got = ", ".join(unknown) or "none"
            raise ValueError(f"scenes: backgrounds must be some of {', '.join(BACKGROUNDS)}; got {got}")

    def _check_room(self) -> None:
        covered = self.max_objects * self.min_object_size**2
        if covered > 0.4:  # random placing jams near 0.55
            raise ValueError(
                f"scenes: {self.max_objects} objects of at least {self.min_object_size:g} of the image cover "
                f"{covered:.2f} of it; expected at most 0.4: lower max_objects or min_object_size"
            )

    def _check_seen_pairs(self) -> None:
        held_out = self.num_held_out
        seen = self.num_glyphs * self.num_colours - held_out
        colours_left = self.num_colours - math.ceil(held_out / self.num_glyphs)
        glyphs_left = self.num_glyphs - math.ceil(held_out / self.num_colours)
        if min(colours_left, glyphs_left) < 2 or seen < self.max_objects:
            raise ValueError(
                f"scenes: held_out_fraction={self.held_out_fraction:g} leaves {seen} of "
                f"{self.num_glyphs} x {self.num_colours} pairs for training; expected at least 2 colours for "
                f"each glyph, 2 glyphs for each colour and {self.max_objects} pairs for a scene"
            )

    @property
    def num_held_out(self) -> int:
        """Number of colour-glyph pairs kept out of training."""
        return round(self.held_out_fraction * self.num_glyphs * self.num_colours)


@dataclass(frozen=True)
class Vocabulary:
    """The words of a config's scenes.

    Attributes:
        glyphs: Nouns, in the order of `GLYPHS`.
        colours: Colour names, in the order of `COLOURS`.
        phrases: One for each colour-glyph pair; glyph by glyph, colours innermost.
    """

    glyphs: tuple[str, ...]
    colours: tuple[str, ...]
    phrases: tuple[str, ...]


def phrase_of(colour: str, glyph: str) -> str:
    """Name a colour-glyph pair: "a red umbrella", "an orange star"."""
    article = "an" if colour[0] in "aeiou" else "a"
    if glyph.startswith("pair of "):
        return f"a pair of {colour} {glyph.removeprefix('pair of ')}"
    return f"{article} {colour} {glyph}"


def vocabulary(config: SceneConfig) -> Vocabulary:
    """List the words that the scenes of a config can use, held-out pairs included."""
    glyphs = tuple(glyph.name for glyph in GLYPHS[: config.num_glyphs])
    colours = tuple(colour.name for colour in COLOURS[: config.num_colours])
    phrases = tuple(phrase_of(colour, glyph) for glyph in glyphs for colour in colours)
    return Vocabulary(glyphs, colours, phrases)


def held_out_pairs(config: SceneConfig) -> frozenset[tuple[str, str]]:
    """Return the (colour, glyph) names that never occur in training.

    The pairs lie on diagonals of the glyph-by-colour table, rows and columns shuffled by the seed, so that
    all glyphs, and all colours, lose the same number of pairs to within one.
    """
    return frozenset((COLOURS[c].name, GLYPHS[g].name) for g, c in _held_out_indices(config))


def held_out_phrases(config: SceneConfig) -> frozenset[str]:
    """Return the phrases of the held-out pairs."""
    return frozenset(phrase_of(colour, glyph) for colour, glyph in held_out_pairs(config))


def _held_out_indices(config: SceneConfig) -> list[tuple[int, int]]:
    rng = np.random.default_rng([config.seed, len(SPLITS)])
    glyphs = rng.permutation(config.num_glyphs).tolist()
    colours = rng.permutation(config.num_colours).tolist()
    # Walk down the diagonal; where it would meet its own start, step to the next one.
    period = math.lcm(len(glyphs), len(colours))
    return [
        (glyphs[k % len(glyphs)], colours[(k + k // period) % len(colours)])
        for k in range(config.num_held_out)
    ]


@lru_cache(maxsize=len(GLYPHS) * len(ANGLES))
def _large_glyph(character: str, angle: int) -> Image.Image:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = ImageFont.truetype(str(path), FONT_PIXELS, layout_engine=ImageFont.Layout.BASIC)
    canvas = Image.new("L", (2 * FONT_PIXELS, 2 * FONT_PIXELS))
    ImageDraw.Draw(canvas).text((FONT_PIXELS // 2, FONT_PIXELS // 4), character, font=font, fill=255)
    upright = canvas.crop(canvas.getbbox())
    turned = upright.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    return turned.crop(turned.getbbox())


@lru_cache(maxsize=len(GLYPHS) * NUM_SIZES * len(ANGLES))
def glyph_mask(character: str, size: int, angle: int) -> np.ndarray:
    """Render a glyph with antialiasing, cropped to its ink.

    Args:
        character: One character of DejaVu Sans.
        size: Long side in pixels.
        angle: Degrees anticlockwise.

    Returns:
        (h, w, 1) float32 opacity in [0, 1], read-only; each border row and column holds visible ink.
    """
    glyph = _large_glyph(character, angle)
    scale = size / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    small = glyph.resize((width, height), Image.Resampling.BOX)
    ink = np.minimum(np.asarray(small, dtype=np.float32) * (INK_GAIN / 255), 1)  # (h, w)
    ink[ink < MIN_INK] = 0
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    mask = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, None].copy()
    mask.setflags(write=False)
    return mask


@lru_cache(maxsize=8)
def _ramp(size: int) -> np.ndarray:
    return ((np.arange(size) + 0.5) / size).astype(np.float32)


def _slope(rng: np.random.Generator, size: int) -> tuple[np.ndarray, float]:
    """A plane that rises in a random direction, (H, W) from 0, and its highest value."""
    angle = 2 * math.pi * rng.random()
    across, down = math.cos(angle), math.sin(angle)
    ramp = _ramp(size)
    rows = (ramp if down > 0 else 1 - ramp) * np.float32(abs(down))
    columns = (ramp if across > 0 else 1 - ramp) * np.float32(abs(across))
    return rows[:, None] + columns, abs(down) + abs(across)


def _flat(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.full((1, 1), rng.random(), dtype=np.float32)


def _gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    plane, highest = _slope(rng, size)
    return plane * np.float32(1 / highest)


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    plane, _ = _slope(rng, size)
    plane *= np.float32(4 + 8 * rng.random())  # stripes along a side
    plane -= np.floor(plane)
    return np.clip(np.abs(plane * 4 - 2) - 0.5, 0, 1)  # a square wave with soft edges


@lru_cache(maxsize=32)
def _interpolation(size: int, knots: int) -> np.ndarray:
    """(H, knots) weights that stretch a row of knots over the image."""
    place = _ramp(size) * (knots - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(knots))).astype(np.float32)


def _noise(rng: np.random.Generator, size: int) -> np.ndarray:
    weights = _interpolation(size, 3 + int(6 * rng.random()))
    knots = rng.random((weights.shape[1],) * 2, dtype=np.float32)
    return weights @ knots @ weights.T


# Each returns where a scene's background lies between its two colours: (H, W), or (1, 1), in [0, 1].
BACKGROUNDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "flat": _flat,
    "gradient": _gradient,
    "noise": _noise,
    "stripes": _stripes,
}


class SceneObject(NamedTuple):
    """One glyph in a scene.

    Attributes:
        glyph: Row of `GLYPHS`.
        colour: Row of `COLOURS`.
        rgb: (3,) float32, the colour as drawn.
        x: Left edge of the mask in pixels.
        y: Top edge of the mask in pixels.
        mask: (h, w, 1) float32 opacity.
    """

    glyph: int
    colour: int
    rgb: np.ndarray
    x: int
    y: int
    mask: np.ndarray

    @property
    def phrase(self) -> str:
        """What the object is called."""
        return phrase_of(COLOURS[self.colour].name, GLYPHS[self.glyph].name)

    @property
    def box_px(self) -> tuple[int, int, int, int]:
        """Tight `xyxy` around the ink, in pixels."""
        height, width, _ = self.mask.shape
        return self.x, self.y, self.x + width, self.y + height


class Scene(NamedTuple):
    """A scene before it is drawn.

    Attributes:
        background: (H, W, 3) float32.
        objects: Drawn in this order.
    """

    background: np.ndarray
    objects: tuple[SceneObject, ...]

    def image(self) -> np.ndarray:
        """Draw the scene: (H, W, 3) uint8."""
        half = np.float32(0.5)  # the cast truncates: with half a level more it rounds
        canvas = self.background + half
        for item in self.objects:
            x1, y1, x2, y2 = item.box_px
            under = canvas[y1:y2, x1:x2]
            under += item.mask * (item.rgb + half - under)
        return canvas.astype(np.uint8)


class SceneDataset:
    """Scenes by index; equal for equal (config, split, index), whatever was asked before.

    Args:
        config: What the scenes look like.
        split: `train` never holds a held-out pair; `val` and `test` mix seen and held-out pairs.
        num_samples: Length. Scene `i` does not depend on it.

    Raises:
        ValueError: On an unknown split or a negative length.
    """

    def __init__(self, config: SceneConfig, split: str, num_samples: int) -> None:
        if split not in SPLITS:
            raise ValueError(f"scenes: unknown split {split!r}; expected one of {', '.join(SPLITS)}")
        if num_samples < 0:
            raise ValueError(f"scenes: num_samples must be 0 or more; got {num_samples}")
        self.config = config
        self.split = split
        self.num_samples = num_samples
        self._held_out = _held_out_indices(config)
        held_out = set(self._held_out)
        self._seen_colours = [
            [c for c in range(config.num_colours) if (g, c) not in held_out] for g in range(config.num_glyphs)
        ]
        self._held_out_set = held_out
        self._held_out_share = config.held_out_share if self._held_out and split != "train" else 0.0
        low, high = config.min_object_size * config.image_size, config.max_object_size * config.image_size
        self._sizes = [round(low + (high - low) * k / (NUM_SIZES - 1)) for k in range(NUM_SIZES)]

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> RegionSample:
        """Draw scene `index`.

        `metadata["held_out"]` tells for each region whether its pair was kept out of training.

        Raises:
            IndexError: If the index is not in [0, len).
        """
        rng = self._rng(index)
        scene = self._scene(rng)
        size = self.config.image_size
        phrases = [item.phrase for item in scene.objects]
        regions = tuple(
            Region(_scaled(item.box_px, size), phrase, 1.0, "scenes")
            for item, phrase in zip(scene.objects, phrases)
        )
        metadata = {"held_out": [(item.glyph, item.colour) in self._held_out_set for item in scene.objects]}
        key = f"{self.split}-{index:07d}"
        return RegionSample(key, scene.image(), (_caption(rng, phrases),), regions, metadata)

    def scene(self, index: int) -> Scene:
        """Return the parts that scene `index` is drawn from."""
        return self._scene(self._rng(index))

    def _rng(self, index: int) -> np.random.Generator:
        if not 0 <= index < self.num_samples:
            raise IndexError(f"scene {index} of {self.num_samples}")
        return np.random.default_rng([self.config.seed, SPLITS[self.split], index])

    def _scene(self, rng: np.random.Generator) -> Scene:
        config = self.config
        on_light = rng.random() < 0.5
        background = _background(rng, config, LIGHT_LEVELS if on_light else DARK_LEVELS)
        pairs = self._pairs(rng, _integer(rng, config.min_objects, config.max_objects))
        objects = []
        for (glyph, colour), (x, y, mask) in zip(pairs, self._layout(rng, [glyph for glyph, _ in pairs])):
            named = COLOURS[colour].on_light if on_light else COLOURS[colour].on_dark
            rgb = np.clip(named + JITTER * (2 * rng.random(3) - 1), 0, 255).astype(np.float32)  # (3,)
            objects.append(SceneObject(glyph, colour, rgb, x, y, mask))
        return Scene(background, tuple(objects))

    def _pairs(self, rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
        """Draw distinct (glyph, colour) pairs: a phrase names one object of its scene."""
        pairs: list[tuple[int, int]] = []
        while len(pairs) < count:
            if rng.random() < self._held_out_share:
                pair = self._held_out[_integer(rng, 0, len(self._held_out) - 1)]
            else:
                glyph = _integer(rng, 0, self.config.num_glyphs - 1)
                colours = self._seen_colours[glyph]
                pair = glyph, colours[_integer(rng, 0, len(colours) - 1)]
            if pair not in pairs:
                pairs.append(pair)
        return pairs

    def _layout(self, rng: np.random.Generator, glyphs: list[int]) -> list[tuple[int, int, np.ndarray]]:
        """Find a size and a place for each glyph: (x, y, mask)."""
        for _ in range(NUM_PLACES):
            boxes: list[tuple[int, int, int, int]] = []
            placed = []
            for glyph in glyphs:
                found = self._place(rng, GLYPHS[glyph].character, boxes)
                if found is None:
                    break
                x, y, mask = found
                boxes.append((x, y, x + mask.shape[1], y + mask.shape[0]))
                placed.append(found)
            else:
                return placed
        raise RuntimeError(f"no room for {len(glyphs)} objects in {NUM_PLACES} layouts of {self.config}")

    def _place(
        self, rng: np.random.Generator, character: str, boxes: list[tuple[int, int, int, int]]
    ) -> tuple[int, int, np.ndarray] | None:
        image_size, max_overlap = self.config.image_size, self.config.max_overlap
        largest: float = rng.random() * NUM_SIZES
        angle = ANGLES[_integer(rng, 0, len(ANGLES) - 1)]
        for _ in range(NUM_PLACES):
            mask = glyph_mask(character, self._sizes[int(largest)], angle)
            height, width, _ = mask.shape
            x, y = _integer(rng, 0, image_size - width), _integer(rng, 0, image_size - height)
            box = (x, y, x + width, y + height)
            if all(_overlap(box, other) <= max_overlap for other in boxes):
                return x, y, mask
            largest *= 0.9
        return None


def _integer(rng: np.random.Generator, low: int, high: int) -> int:
    """Uniform in [low, high]; `rng.integers` takes ten times as long for a single number."""
    return low + int(rng.random() * (high - low + 1))


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Share of the smaller box that the other covers."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _scaled(box_px: tuple[int, int, int, int], size: int) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box_px
    return x1 / size, y1 / size, x2 / size, y2 / size


def _background(rng: np.random.Generator, config: SceneConfig, levels: tuple[float, float]) -> np.ndarray:
    """(H, W, 3) float32 between two near-grey colours of similar lightness."""
    low, high = levels
    draws = rng.random(8)
    greys = low + (high - low) * draws[:2]
    first, second = (greys[:, None] + TINT * (2 * draws[2:].reshape(2, 3) - 1)).astype(np.float32)  # (3,)
    size = config.image_size
    kind = config.backgrounds[_integer(rng, 0, len(config.backgrounds) - 1)]
    share = BACKGROUNDS[kind](rng, size)[..., None]  # (H, W, 1)
    return np.broadcast_to(first + share * (second - first), (size, size, 3))


def _caption(rng: np.random.Generator, phrases: list[str]) -> str:
    """Name the objects in random order; of three or more, now and then one is left out."""
    order = [phrases[i] for i in np.argsort(rng.random(len(phrases)))]
    if len(order) > 2 and rng.random() < 0.2:
        order.pop()
    text = order[0] if len(order) == 1 else f"{', '.join(order[:-1])} and {order[-1]}"
    return CAPTION_TEMPLATES[_integer(rng, 0, len(CAPTION_TEMPLATES) - 1)].format(text)


def open_scenes(path: str, **options: Any) -> SceneDataset:
    """Open scenes by a short text, such as `val` or `val,num_samples=500,image_size=96`.

    Args:
        path: A split, then any `name=value` of `SceneConfig` or `num_samples` (1000 unless told);
            `backgrounds` are joined by `+`.
        options: The same names; they win over those in the path.

    Raises:
        ValueError: On an unknown split or option, or a value that does not parse.
    """
    split, *texts = (part.strip() for part in path.split(","))
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"scenes: options must be name=value; got {text!r} in {path!r}")
        settings[name.strip()] = value.strip()
    settings.update(options)
    num_samples = _parse("num_samples", settings.pop("num_samples", 1000), 0)
    defaults = {f.name: f.default for f in fields(SceneConfig)}
    unknown = [name for name in settings if name not in defaults]
    if unknown:
        expected = ", ".join(["num_samples", *defaults])
        raise ValueError(f"scenes: unknown option {unknown[0]!r}; expected one of {expected}")
    parsed = {name: _parse(name, value, defaults[name]) for name, value in settings.items()}
    return SceneDataset(SceneConfig(**parsed), split, num_samples)


def _parse(name: str, value: Any, like: Any) -> Any:
    """Turn the text of an option into the type of its default; other types pass through."""
    if not isinstance(value, str):
        return value
    if isinstance(like, tuple):
        return tuple(value.split("+"))
    try:
        return type(like)(value)
    except ValueError:
        raise ValueError(f"scenes: {name} must be {type(like).__name__}; got {value!r}") from None
