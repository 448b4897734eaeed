"""Image tokens that keep their place: the last block of any ViT read in another way, without training.

The last block of a CLIP mixes all tokens into what the class token needs, and a token says less of its own
place than before. Three ways round it are common:

- `value`: the block's values alone, through its output projection (MaskCLIP, arXiv 2112.01071);
- `value_block`: values in place of what attention mixes, and the block's other parts as they are (TIPS);
- `csa`: attention of tokens to what has like queries, and like keys, in place of queries to keys (SCLIP,
  arXiv 2312.01597).

SCLIP knows no rotary positions. Here queries and keys are compared as the block itself compares them, turned
by their places: what is like and near counts for more than what is like and far.

Shapes: B images, N image tokens, P tokens before them (the class token), C tower width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor

from open_cloc.errors import UserError
from open_cloc.model.towers.last_block import Parts, parts_of

Readout = Literal["last", "value", "value_block", "csa"]


class Caught:
    """What came into the last block; empty until the tower has run."""

    def __init__(self, last: Parts) -> None:
        self._last = last
        self._came: list[tuple[Tensor, Tensor | None]] = []

    def tokens(self, readout: Readout) -> Tensor:
        """The tokens read so: (B, N, C), after the tower's last norm where that stands before its pooling.

        Raises:
            UserError: If `csa` is asked of attention that knows places by a table, which it has no place for.
        """
        last, (x, rope) = self._last, self._came[-1]
        queries, keys, values = last.queries_keys_values(x, rope)
        if readout == "csa":
            if last.is_biased:
                raise UserError(
                    "csa has no place for the table of relative places that this tower's attention adds; "
                    "take tokens=value or value_block"
                )
            values = (_alike(queries) + _alike(keys)) @ values  # (B, H, P + N, P + N) @ (B, H, P + N, c)
        projected = last.project(_joined(values), x)
        x = projected if readout == "value" else last.rest(x, projected)
        return last.norm(x)[:, last.prefix :]


@contextmanager
def last_block(visual: Any) -> Iterator[Caught]:
    """Keep what comes into the last block while a tower runs.

    Args:
        visual: An image tower of open_clip.

    Raises:
        UserError: If it is no ViT whose blocks are known.
    """
    last = parts_of(visual)
    caught = Caught(last)
    hook = last.block.register_forward_pre_hook(
        lambda module, given, named: caught._came.append((given[0], named.get("rope"))), with_kwargs=True
    )
    try:
        yield caught
    finally:
        hook.remove()


def _joined(heads: Tensor) -> Tensor:
    """(B, H, T, C / H) -> (B, T, C)."""
    return heads.transpose(1, 2).flatten(2)


def _alike(x: Tensor) -> Tensor:
    """How much tokens (B, H, T, c) attend to what is like themselves: (B, H, T, T)."""
    return (x @ x.transpose(-2, -1) * x.shape[-1] ** -0.5).softmax(-1)
