"""How fast one process draws scenes: `python benchmarks/scenes.py [--seconds 3] [--json PATH]`.

Prints a table and the same numbers as JSON. "first 1000" includes rendering the glyph masks, which each
process does once; "steady" is what a data worker gives after that.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

from open_cloc.data.scenes.dataset import SceneDataset
from open_cloc.data.scenes.glyphs import glyph_mask
from open_cloc.data.scenes.vocabulary import SceneConfig

IMAGE_SIZES = (64, 96)


def measure(image_size: int, seconds: float) -> dict[str, float]:
    """Draw the first 1000 scenes with cold caches, then time scenes for about `seconds`."""
    dataset = SceneDataset(SceneConfig(image_size=image_size), "train", 10**9)
    glyph_mask.cache_clear()
    start = time.perf_counter()
    for index in range(1000):
        dataset[index]
    first = time.perf_counter() - start

    num_scenes, num_objects = 0, 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        num_objects += len(dataset[1000 + num_scenes].regions)
        num_scenes += 1
    return {
        "image_size": image_size,
        "first_1000_seconds": round(first, 3),
        "images_per_second": round(num_scenes / elapsed, 1),
        "milliseconds_per_image": round(1000 * elapsed / num_scenes, 4),
        "objects_per_image": round(num_objects / num_scenes, 2),
    }


def main() -> None:
    """Measure each image size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each image size")
    parser.add_argument("--json", type=Path, help="also write the JSON here")
    args = parser.parse_args()

    rows = [measure(image_size, args.seconds) for image_size in IMAGE_SIZES]
    print("pixels  images/s  ms/image  objects/image  first 1000 (s)")
    for row in rows:
        print(
            f"{row['image_size']:6d}  {row['images_per_second']:8.0f}  {row['milliseconds_per_image']:8.3f}  "
            f"{row['objects_per_image']:13.2f}  {row['first_1000_seconds']:14.2f}"
        )
    text = json.dumps({"benchmark": "scenes", "python": platform.python_version(), "results": rows})
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
