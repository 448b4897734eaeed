"""Position embeddings for grids of another size than the tower was trained with."""

from __future__ import annotations

from timm.layers import resample_abs_pos_embed
from torch import Tensor


def resize_positions(embedding: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample a position embedding whose first row belongs to the class token.

    Args:
        embedding: (1 + old rows * old columns, C).
        old: (rows, columns) of the grid it was made for.
        new: (rows, columns) of the grid at hand.

    Returns:
        (1 + new rows * new columns, C); the embedding itself where the grids are equal.
    """
    if tuple(old) == tuple(new):
        return embedding
    return resample_abs_pos_embed(
        embedding[None], new_size=list(new), old_size=list(old), num_prefix_tokens=1, interpolation="bicubic"
    )[0]
