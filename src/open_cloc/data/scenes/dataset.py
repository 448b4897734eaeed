"""Generated scenes: coloured glyphs on muted backgrounds, with exact boxes and captions; nothing to download.

The glyphs are pictographs of the DejaVu Sans font that ships with matplotlib, named by short forms of their
Unicode names ("a red umbrella"). Every scene follows from (seed, split, index) alone, so that any process may
draw any of them. Some colour-glyph pairs never occur in training: they test whether a model composes a colour
and a glyph that it has only seen apart.

Shape legend: H W pixels of the scene (equal), h w pixels of one object's mask.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from open_cloc.data.scenes.backgrounds import DARK_LEVELS, LIGHT_LEVELS, draw_background, random_integer
from open_cloc.data.scenes.glyphs import ANGLES, NUM_SIZES, glyph_mask
from open_cloc.data.scenes.vocabulary import (
    COLOURS,
    GLYPHS,
    NUM_PLACES,
    SPLITS,
    SceneConfig,
    held_out_indices,
    phrase_of,
)
from open_cloc.errors import UserError
from open_cloc.samples import Region, RegionSample

CAPTION_TEMPLATES = ("{}", "a picture of {}", "a scene with {}", "there is {}")

JITTER = 10.0  # objects: largest distance of a channel from the named colour


class SceneObject(NamedTuple):
    """One glyph in a scene.

    Attributes:
        glyph: The glyph, as a row of `GLYPHS`.
        colour: The named colour, as a row of `COLOURS`.
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
        objects: What stands on it, drawn in this order.
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
        num_samples: Number of scenes. What scene `i` looks like does not depend on it.

    Raises:
        UserError: On an unknown split or a negative length.
    """

    def __init__(self, config: SceneConfig, split: str, num_samples: int) -> None:
        if split not in SPLITS:
            raise UserError(f"scenes: unknown split {split!r}; expected one of {', '.join(SPLITS)}")
        if num_samples < 0:
            raise UserError(f"scenes: num_samples must be 0 or more; got {num_samples}")
        self.config = config
        self.split = split
        self.num_samples = num_samples
        self._held_out = held_out_indices(config)
        self._held_out_set = held_out = set(self._held_out)
        self._seen_colours = [
            [c for c in range(config.num_colours) if (g, c) not in held_out] for g in range(config.num_glyphs)
        ]
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
        levels = LIGHT_LEVELS if on_light else DARK_LEVELS
        background = draw_background(rng, config.image_size, config.backgrounds, levels)
        pairs = self._pairs(rng, random_integer(rng, config.min_objects, config.max_objects))
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
                pair = self._held_out[random_integer(rng, 0, len(self._held_out) - 1)]
            else:
                glyph = random_integer(rng, 0, self.config.num_glyphs - 1)
                colours = self._seen_colours[glyph]
                pair = glyph, colours[random_integer(rng, 0, len(colours) - 1)]
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
        """Find a size and a place for one glyph beside boxes in pixels: (x, y, mask), or None."""
        image_size, max_overlap = self.config.image_size, self.config.max_overlap
        largest: float = rng.random() * NUM_SIZES
        angle = ANGLES[random_integer(rng, 0, len(ANGLES) - 1)]
        for _ in range(NUM_PLACES):
            mask = glyph_mask(character, self._sizes[int(largest)], angle)
            height, width, _ = mask.shape
            x, y = random_integer(rng, 0, image_size - width), random_integer(rng, 0, image_size - height)
            box = (x, y, x + width, y + height)
            if all(_overlap(box, other) <= max_overlap for other in boxes):
                return x, y, mask
            largest *= 0.9
        return None


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Share of the smaller box that the other covers."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _scaled(box_px: tuple[int, int, int, int], size: int) -> tuple[float, float, float, float]:
    """A box of a square picture of so many pixels, normalised."""
    x1, y1, x2, y2 = box_px
    return x1 / size, y1 / size, x2 / size, y2 / size


def _caption(rng: np.random.Generator, phrases: list[str]) -> str:
    """Name the objects in random order; of three or more, now and then one is left out."""
    order = [phrases[i] for i in np.argsort(rng.random(len(phrases)))]
    if len(order) > 2 and rng.random() < 0.2:
        order.pop()
    text = order[0] if len(order) == 1 else f"{', '.join(order[:-1])} and {order[-1]}"
    return CAPTION_TEMPLATES[random_integer(rng, 0, len(CAPTION_TEMPLATES) - 1)].format(text)


def recognises(text: str) -> bool:
    """Never: scenes lie nowhere; `scenes:train` asks for them."""
    return False


def open_scenes(path: str, **options: Any) -> SceneDataset:
    """Open scenes by a short text, such as `val` or `val,num_samples=500,image_size=96`.

    Args:
        path: A split, then any `name=value` of `SceneConfig` or `num_samples` (1000 unless told);
            `backgrounds` are joined by `+`.
        **options: The same by name; they win over those in the path.

    Raises:
        UserError: On an unknown split or option, or a value that does not parse.
    """
    split, *texts = (part.strip() for part in path.split(","))
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"scenes: options must be name=value; got {text!r} in {path!r}")
        settings[name.strip()] = value.strip()
    settings.update(options)
    num_samples = _parse("num_samples", settings.pop("num_samples", 1000), 0)
    defaults = {f.name: f.default for f in fields(SceneConfig)}
    unknown = [name for name in settings if name not in defaults]
    if unknown:
        expected = ", ".join(["num_samples", *defaults])
        raise UserError(f"scenes: unknown option {unknown[0]!r}; expected one of {expected}")
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
        raise UserError(f"scenes: {name} must be {type(like).__name__}; got {value!r}") from None
