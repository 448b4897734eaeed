"""Contrastive losses over pairs of rows and columns, pure functions of features.

Shapes: B images of this rank, G images of the world, R regions per image (padded), n rows of this rank, D
shared embedding. Every function normalises its features, computes in float32 or wider whatever autocast says,
and returns a scalar that is zero and differentiable when no pair counts. With one process G is B; else the
text side and its mask are the world's, and `world` says where this rank's rows stand.

Small batches take the dense form. Where the matrix would be too large, the fused form makes a tile after the
other in kernels of Triton, and the tiled form in PyTorch where Triton does not run. All compute the same, all
make exact products whatever the user lets TF32 do, and but for the tiled form none waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from open_cloc.devices import runs_triton
from open_cloc.errors import UserError
from open_cloc.objectives.pairs.dense import DensePairs, dense_pairs
from open_cloc.objectives.pairs.fused import FusedPairs, fused_pairs
from open_cloc.objectives.pairs.tiled import TiledPairs, tiled_pairs
from open_cloc.samples import ALONE, Features, World

CONFLICT_THRESHOLD = 0.9  # of the paper's filter


# Up to this many pairs the dense form is taken, about 5 floats a pair: on CPUs as long as it is as fast, on
# accelerators where starting a few kernels is all that it costs, or where no other form is fast.
DENSE_PAIRS = {"cpu": 2**21, "triton": 2**22, "other": 2**26}


# The cosine of a text with itself is 1 up to rounding: filters above this may keep equal texts apart.
EQUAL_TEXTS = 0.999


Pairs = DensePairs | FusedPairs | TiledPairs


def find_pairs(
    features: Tensor,
    text_features: Tensor,
    mask: Tensor | None = None,
    threshold: float | None = None,
    text_ids: Tensor | None = None,
    *,
    world: World = ALONE,
) -> Pairs:
    """The block of the pair matrix that this rank computes: its rows by the world's columns.

    Args:
        features: (B, ..., D).
        text_features: (G, ..., D).
        mask: (G, ...) True for the pairs that count; all by default.
        threshold: Conflict filter; None or above 1 keeps all pairs.
        text_ids: (G, ...) int64, equal where texts are.
        world: Where this rank's images stand among the world's.

    Raises:
        UserError: If shapes do not fit each other.
    """
    mask = _checked_mask(features, text_features, mask, world)
    if text_ids is not None and text_ids.shape != mask.shape:
        raise UserError(f"text ids must be {tuple(mask.shape)}; got {tuple(text_ids.shape)}")
    rows, texts = features.flatten(0, -2), text_features.flatten(0, -2)
    first = world.first * features.shape[1:-1].numel()
    if threshold is not None and threshold > 1:
        threshold = None
    with torch.autocast(rows.device.type, enabled=False):
        if len(rows) * len(texts) <= most_dense_pairs(rows.device):
            return dense_pairs(rows, texts, mask.flatten(), first, threshold)
        copies_conflict = threshold is not None and threshold <= EQUAL_TEXTS
        ids = text_ids.flatten() if text_ids is not None and copies_conflict else None
        is_single = torch.promote_types(rows.dtype, torch.float32) == torch.float32
        form = fused_pairs if is_single and runs_triton(rows.device) else tiled_pairs
        return form(rows, texts, mask.flatten(), first, threshold, ids)


def most_dense_pairs(device: torch.device) -> int:
    """Pairs up to which the dense form is taken on a device."""
    if device.type == "cpu":
        return DENSE_PAIRS["cpu"]
    return DENSE_PAIRS["triton" if runs_triton(device) else "other"]


def _checked_mask(features: Tensor, text_features: Tensor, mask: Tensor | None, world: World) -> Tensor:
    """The mask, or one that is True everywhere."""
    spare = len(text_features) - world.first - len(features)
    if features.shape[1:] != text_features.shape[1:] or spare < 0 or (world is ALONE and spare):
        raise UserError(
            f"features and text features must pair up; got {tuple(features.shape)} and "
            f"{tuple(text_features.shape)}"
        )
    if mask is None:
        mask = torch.ones(text_features.shape[:-1], dtype=torch.bool, device=features.device)
    if mask.shape != text_features.shape[:-1]:
        raise UserError(f"mask must be {tuple(text_features.shape[:-1])}; got {tuple(mask.shape)}")
    return mask


def softmax_loss(pairs: Pairs, logit_scale: Tensor, world: World = ALONE) -> Tensor:
    """Mean over the world's pairs of both directions' cross-entropy, a scalar.

    -log(exp(p) / (exp(p) + sum of exp(negatives))) = softplus(logsumexp(negatives) - p): nothing cancels when
    the loss is small.
    """
    with torch.autocast(pairs.left.device.type, enabled=False):
        scale = logit_scale.to(_work_dtype(pairs))
        positive, rows, columns = pairs.logsumexps(scale)  # (n,), (n,), (columns,)
        rest = len(pairs.mask) - pairs.first - len(positive)
        placed = F.pad(positive, (pairs.first, rest))  # the world's positives, but for other ranks'
        # One sum over ranks for both: each column's exponentials, and the positives of all.
        top = world.max(columns.detach())
        both = world.sum(torch.cat([(columns - top).exp(), placed]))
        columns = top + both[: len(columns)].log()
        positives = both[len(top) :]
        to_region = _softplus(columns[pairs.text_index] - positives).masked_fill(~pairs.mask, 0.0).sum()
        to_text = _softplus(rows - positive).masked_fill(~pairs.row_mask, 0.0).sum()
        return (world.sum(to_text) + to_region) / 2 / pairs.mask.sum().clamp(min=1)


def sigmoid_loss(pairs: Pairs, logit_scale: Tensor, logit_bias: Tensor, world: World = ALONE) -> Tensor:
    """Mean over the world's pairs of the binary losses against all texts, a scalar."""
    with torch.autocast(pairs.left.device.type, enabled=False):
        scale, bias = (x.to(_work_dtype(pairs)) for x in (logit_scale, logit_bias))
        positive, negatives = pairs.softplus_sums(scale, bias)  # (n,), (n,)
        losses = negatives - F.logsigmoid(positive + bias)
        return world.sum(losses.masked_fill(~pairs.row_mask, 0.0).sum()) / pairs.mask.sum().clamp(min=1)


@torch.no_grad()
def filtered_share(pairs: Pairs, world: World = ALONE) -> Tensor:
    """Share of the pairs of different real regions that the conflict filter leaves out; a scalar."""
    count = pairs.mask.sum()
    return world.sum(pairs.num_filtered.float()) / (count * (count - 1)).clamp(min=1)


def _softplus(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=40)  # the default, 20, would cost float64 its digits


def _work_dtype(pairs: Pairs) -> torch.dtype:
    return torch.promote_types(pairs.left.dtype, torch.float32)


# --- what objectives over pairs share ----------------------------------------------------------------

FORMS = ("softmax", "sigmoid")


def check_form(form: str) -> str:
    """The form of a contrastive loss, if it is one.

    Raises:
        UserError: If it is not.
    """
    if form not in FORMS:
        raise UserError(f"unknown contrastive loss {form!r}; expected one of {', '.join(FORMS)}")
    return form


def bias_of(form: str) -> frozenset[str]:
    """What a form needs beside the logit scale."""
    return frozenset({"logit_bias"} if form == "sigmoid" else ())


def contrast(pairs: Pairs, features: Features, form: str) -> Tensor:
    """The loss of pairs with the model's own scale, and bias where the form needs one.

    Raises:
        UserError: If it needs one and the model has none.
    """
    (scale,) = features.take("logit_scale")
    if form == "softmax":
        return softmax_loss(pairs, scale, features.world)
    if features.logit_bias is None:
        raise UserError("the sigmoid losses need a model with a logit bias: set model.sigmoid")
    return sigmoid_loss(pairs, scale, features.logit_bias, features.world)
