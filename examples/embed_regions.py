"""Embed boxes of pictures and keep the embeddings in one file.

    python examples/embed_regions.py runs/demo/cloc/model boxes.json embeddings.npz

`boxes.json` names the boxes of each picture, in pixels, x1 y1 x2 y2: {"photo.jpg": [[10, 20, 200, 180]]}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import open_cloc

PICTURES_AT_ONCE = 16


def main(weights: str, boxes_file: str, output: str) -> None:
    """Write the embeddings of all boxes, (boxes, D) of unit length, with the picture and box of each."""
    boxes: dict[str, list[list[float]]] = json.loads(Path(boxes_file).read_text(encoding="utf-8"))
    predictor = open_cloc.load(weights)
    names = list(boxes)
    rows: list[np.ndarray] = []
    for start in range(0, len(names), PICTURES_AT_ONCE):
        batch = names[start : start + PICTURES_AT_ONCE]
        for name, image in zip(batch, predictor.encode(batch)):
            rows.append(image.embed(boxes=boxes[name]))
    np.savez(
        output,
        embeddings=np.concatenate(rows),
        pictures=[name for name in names for _ in boxes[name]],
        boxes=np.concatenate([np.reshape(boxes[name], (-1, 4)) for name in names]),
    )
    print(f"{sum(map(len, rows))} boxes of {len(names)} pictures written to {output}")


if __name__ == "__main__":
    main(*sys.argv[1:])
