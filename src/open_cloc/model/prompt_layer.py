"""The Prompter's transformer layer: one pre-norm layer with one head, as in the paper, and two read-outs.

The `mean` read-out averages the outputs of all tokens. Done literally, every image token goes through the
layer once more for each prompt. It factors exactly, because in a single pre-norm layer an image token's
query, key and value do not depend on the prompt. For image token i and the K tokens of a prompt:

1. A softmax over image and prompt keys is a blend: `share_i` times the softmax over the image's keys alone,
   plus `weight_ik` times each prompt token's value.
2. The output projection is linear, so the token becomes `x_i + share_i n_i + sum_k weight_ik u_k`, in which
   `x`, `n` are the image's and `u` the prompt's.
3. LayerNorm and the MLP's first matrix are linear but for the norm's scale `r_i`, a quadratic form of
   products of `x`, `n`, `u`: the hidden layer is `gelu(r_i (X_i + share_i N_i + sum_k weight_ik U_k) + b)`.
4. The mean over tokens commutes with the MLP's second matrix.

What is left per prompt and image token is elementwise (`gelu_sum.py`).

Shapes: B images, R prompts per image, N image tokens, K tokens per prompt, C width, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from open_cloc.model.gelu_sum import gelu_sum

T = TypeVar("T")


@dataclass(frozen=True)
class MeanTerms:
    """What the factored `mean` read-out needs of an image.

    Attributes:
        log_sum: (B, N) log of the softmax's denominator over the image's keys alone.
        residual: (B, N, C) `x`: the token plus the output projection's bias.
        attended: (B, N, C) `n`: attention over the image's keys alone, projected.
        residual_hidden: (B, N, H) `X`: `residual` through LayerNorm's linear part and the MLP's first matrix.
        attended_hidden: (B, N, H) `N`: `attended` through the same.
        moments: (B, N, 3) over C: variance of `residual`, covariance of the two, variance of `attended`.
    """

    log_sum: Tensor
    residual: Tensor
    attended: Tensor
    residual_hidden: Tensor
    attended_hidden: Tensor
    moments: Tensor


@dataclass(frozen=True)
class ImageTerms:
    """What the layer needs of an image, computed once and shared by all of its prompts.

    Attributes:
        tokens: (B, N, C) image tokens as they enter the layer.
        queries: (B, N, C) their queries, or None where only prompts ask.
        keys: (B, N, C) their keys.
        values: (B, N, C) their values.
        mask: (B, N) True for tokens that see the picture, False for padding.
        mean: What the factored `mean` read-out needs; None where the read-out is another or literal.
    """

    tokens: Tensor
    queries: Tensor | None
    keys: Tensor
    values: Tensor
    mask: Tensor
    mean: MeanTerms | None


@dataclass(frozen=True)
class Prompts:
    """Prompt tokens in the layer, each (B, R, K, C): what they carry, and their query, key and value."""

    content: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor


def select(terms: T, index: Tensor | slice) -> T:
    """The same terms for some of the images: every tensor of a dataclass indexed along its first axis."""
    if isinstance(terms, Tensor):
        return terms[index]  # type: ignore[return-value]
    if not is_dataclass(terms) or isinstance(terms, type):
        return terms
    return replace(terms, **{f.name: select(getattr(terms, f.name), index) for f in fields(terms)})


def join(terms: Sequence[T]) -> T:
    """The terms of several groups of images as those of one group, `select` turned around."""
    first = terms[0]
    if isinstance(first, Tensor):
        return torch.cat(terms)  # type: ignore[arg-type, return-value]
    if not is_dataclass(first) or isinstance(first, type):
        return first
    names = [field.name for field in fields(first)]
    return replace(first, **{name: join([getattr(own, name) for own in terms]) for name in names})


class PromptLayer(nn.Module):
    """One pre-norm transformer layer with one head, pooled over all outputs or over the prompt's.

    Args:
        width: Width C of the tokens.
        mlp_ratio: Hidden width of the MLP over C, H / C.
        dropout: Chance that a number of the attention's or the MLP's output is dropped in training. It does
            not commute with the factoring: the `mean` read-out then takes the literal form.
        readout: What is pooled: all outputs (`mean`), or the prompt tokens' (`prompt`).
    """

    def __init__(self, width: int, mlp_ratio: float, dropout: float, readout: str) -> None:
        super().__init__()
        hidden = int(mlp_ratio * width)
        self.readout = readout
        self.scale = width**-0.5
        self.norm1 = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def prepare(self, tokens: Tensor, mask: Tensor, positions: Tensor | None = None) -> ImageTerms:
        """Do once per image all that does not depend on the prompt.

        Args:
            tokens: (B, N, C) image tokens.
            mask: (B, N) True where a token sees the picture.
            positions: (N, C) codes of the tokens' places, added to what makes queries and keys.
        """
        normed = self.norm1(tokens)  # (B, N, C)
        placed = normed if positions is None else normed + positions.to(normed.dtype)
        queries = self.query(placed) if self.readout == "mean" else None
        terms = ImageTerms(tokens, queries, self.key(placed), self.value(normed), mask, None)
        if queries is None or (self.training and self.dropout.p > 0):
            return terms
        return replace(terms, mean=self._mean_terms(terms, queries))

    def forward(self, image: ImageTerms, ask: Tensor, content: Tensor, prior: Tensor | None) -> Tensor:
        """Run prompts and pool: (B, R, K, C) -> (B, R, C).

        Args:
            image: What `prepare` made of the image.
            ask: (B, R, K, C) what the prompt tokens put into their query and key, beside their content; the
                same tensor as `content` where a token asks with what it carries.
            content: (B, R, K, C) what the prompt tokens carry into their value and the residual.
            prior: (B, R, N) bias of the attention logits from prompt to patch; None for none.
        """
        normed = self.norm1(content)
        placed = normed if ask is content else self.norm1(content + ask)
        prompts = Prompts(content, self.query(placed), self.key(placed), self.value(normed))
        if self.readout == "prompt":
            return self._read_prompts(image, prompts, prior)
        if image.mean is None:
            return self._read_mean_literally(image, prompts, prior)
        return self._read_mean(image, image.mean, prompts, prior)

    # --- prompt read-out ---

    def _read_prompts(self, image: ImageTerms, prompts: Prompts, prior: Tensor | None) -> Tensor:
        """Prompt tokens are the only queries: image keys and values serve every prompt."""
        own = self._attend_from_prompts(image, prompts, prior)  # (B, R, K, C)
        return own.mean(-2) + self.dropout(self.fc2(self._hidden(own).mean(-2)))  # the mean commutes with fc2

    def _attend_from_prompts(self, image: ImageTerms, prompts: Prompts, prior: Tensor | None) -> Tensor:
        """The prompt tokens after attention, residual included: (B, R, K, C)."""
        to_image = torch.einsum("brkc,bnc->brkn", prompts.queries, image.keys) * self.scale
        if prior is not None:
            to_image = to_image + prior[:, :, None].to(to_image.dtype)
        to_image = to_image.masked_fill(~image.mask[:, None, None], -torch.inf)
        to_prompt = prompts.queries @ prompts.keys.transpose(-1, -2) * self.scale  # (B, R, K, K)
        weights = torch.cat([to_image, to_prompt], dim=-1).softmax(-1)
        num_tokens = image.keys.shape[1]
        attended = torch.einsum("brkn,bnc->brkc", weights[..., :num_tokens], image.values)
        # Products of K x K matrices are too small for a library of matrix products.
        from_prompt = weights[..., num_tokens:, None] * prompts.values[..., None, :, :]  # (B, R, K, K, C)
        attended = attended + from_prompt.sum(-2).to(attended.dtype)
        return prompts.content + self.dropout(self.out(attended))

    def _hidden(self, tokens: Tensor) -> Tensor:
        """The MLP's hidden layer: (..., C) -> (..., H)."""
        return F.gelu(self.fc1(self.norm2(tokens)))

    # --- mean read-out ---

    def _read_mean_literally(self, image: ImageTerms, prompts: Prompts, prior: Tensor | None) -> Tensor:
        """Every token is a query and every output is averaged, as the paper describes it."""
        assert image.queries is not None
        between = torch.einsum("bnc,bmc->bnm", image.queries, image.keys) * self.scale  # (B, N, N)
        between = between.masked_fill(~image.mask[:, None], -torch.inf)
        between = between[:, None].expand(-1, prompts.keys.shape[1], -1, -1)  # (B, R, N, N)
        to_prompt = torch.einsum("bnc,brkc->brnk", image.queries, prompts.keys) * self.scale
        weights = torch.cat([between, to_prompt], dim=-1).softmax(-1)  # (B, R, N, N + K)
        num_tokens = image.keys.shape[1]
        attended = torch.einsum("brnm,bmc->brnc", weights[..., :num_tokens], image.values)
        attended = attended + weights[..., num_tokens:] @ prompts.values
        from_image = image.tokens[:, None] + self.dropout(self.out(attended))
        hidden = torch.cat([from_image, self._attend_from_prompts(image, prompts, prior)], dim=2)
        hidden = hidden + self.dropout(self.fc2(self._hidden(hidden)))  # (B, R, N + K, C)
        kept = F.pad(image.mask, (0, prompts.keys.shape[2]), value=True)[:, None, :, None]
        return (hidden * kept).sum(2) / kept.sum(2)

    def _mean_terms(self, image: ImageTerms, queries: Tensor) -> MeanTerms:
        between = torch.einsum("bnc,bmc->bnm", queries, image.keys) * self.scale  # (B, N, N)
        between = _precise(between).masked_fill(~image.mask[:, None], -torch.inf)
        attended = F.linear(between.softmax(-1).to(image.values.dtype) @ image.values, self.out.weight)
        residual = image.tokens + self.out.bias
        # bfloat16 is good enough for products, not for the differences that make a variance.
        x, n = _centred(residual), _centred(attended)
        moments = torch.stack([(x * x).mean(-1), (x * n).mean(-1), (n * n).mean(-1)], dim=-1)
        hidden = self._to_hidden(x), self._to_hidden(n)
        return MeanTerms(between.logsumexp(-1), residual, attended, *hidden, moments)

    def _to_hidden(self, centred: Tensor) -> Tensor:
        """(..., C) less its mean -> (..., H): LayerNorm's gain and the MLP's first matrix."""
        return F.linear(centred * self.norm2.weight, self.fc1.weight)

    def _read_mean(
        self, image: ImageTerms, mean: MeanTerms, prompts: Prompts, prior: Tensor | None
    ) -> Tensor:
        """Equal to `_read_mean_literally`; see the top of this file."""
        assert image.queries is not None
        values = F.linear(prompts.values, self.out.weight)  # (B, R, K, C)
        share, weights = self._blend(mean, image.queries, prompts.keys)  # (B, R, N), (B, R, N, K)
        deviation = self._deviation(mean, values, share, weights)  # (B, R, N)
        hidden = gelu_sum(
            mean.residual_hidden,
            mean.attended_hidden,
            self._to_hidden(_centred(values)),
            share / deviation,
            weights / deviation[..., None],
            1 / deviation,
            self.fc1(self.norm2.bias),
            image.mask,
        )  # (B, R, H)
        kept = image.mask.to(share.dtype)[:, None]  # (B, 1, N)
        total = (image.mask[..., None] * mean.residual).sum(1, keepdim=True)
        total = total + (kept * share).to(mean.attended.dtype) @ mean.attended  # (B, R, C)
        total = total + torch.einsum("brnk,brkc->brc", (kept[..., None] * weights).to(values.dtype), values)
        own = self._attend_from_prompts(image, prompts, prior)  # (B, R, K, C)
        hidden = hidden + self._hidden(own).sum(2)
        count = kept.sum(-1, keepdim=True) + own.shape[2]
        return (total + own.sum(2)) / count + self.fc2(hidden / count)

    def _blend(self, mean: MeanTerms, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """How an image token's attention divides between the image and each prompt token."""
        to_prompt = _precise(torch.einsum("bnc,brkc->brnk", queries, keys) * self.scale)  # (B, R, N, K)
        of_image = mean.log_sum[:, None]
        log_sum = torch.logaddexp(of_image, to_prompt.logsumexp(-1))
        return (of_image - log_sum).exp(), (to_prompt - log_sum[..., None]).exp()

    def _deviation(self, mean: MeanTerms, values: Tensor, share: Tensor, weights: Tensor) -> Tensor:
        """(B, R, N) LayerNorm's denominator of an image token after attention, from products alone."""
        width = values.shape[-1]
        with torch.autocast(values.device.type, enabled=False):
            centred = _centred(values)
            with_residual = torch.einsum("bnc,brkc->brnk", _precise(mean.residual), centred) / width
            with_attended = torch.einsum("bnc,brkc->brnk", _precise(mean.attended), centred) / width
            among = centred @ centred.transpose(-1, -2) / width  # (B, R, K, K)
            own, cross, other = mean.moments[:, None].unbind(-1)  # (B, 1, N)
            variance = own + 2 * share * cross + share.square() * other
            mixed = with_residual + share[..., None] * with_attended
            variance = variance + (weights * (2 * mixed + weights @ among)).sum(-1)
        return (variance + self.norm2.eps).sqrt()


def _precise(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _centred(tensor: Tensor) -> Tensor:
    """(..., C) minus its mean over C, at least float32."""
    tensor = _precise(tensor)
    return tensor - tensor.mean(-1, keepdim=True)
