"""SPARC's fine-grained loss against loops."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from open_cloc.objectives.sparc import gather_patches, sparse_alignment_losses

SCALE = torch.tensor([7.0], dtype=torch.float64)


def slow(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """One picture's patches (N, D) and its caption's tokens (T, D) -> its loss."""
    patches, tokens = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    groups = []
    for token in tokens:
        similar = torch.stack([token @ patch for patch in patches])
        similar = (similar - similar.min()) / (similar.max() - similar.min())
        weights = torch.stack([s if s >= 1 / len(patches) else 0 * s for s in similar])
        weights = weights / weights.sum()
        groups.append(F.normalize(sum(w * patch for w, patch in zip(weights, patches)), dim=-1))
    losses = []
    for row in range(len(tokens)):
        to_text = torch.stack([scale * groups[row] @ token for token in tokens]).flatten()
        to_image = torch.stack([scale * group @ tokens[row] for group in groups]).flatten()
        losses.append((to_text.logsumexp(0) + to_image.logsumexp(0)) / 2 - to_text[row])
    return torch.stack(losses).mean()


def test_value_and_gradients_equal_loops() -> None:
    counts = [(6, 4), (3, 1), (5, 0)]  # patches, tokens
    image = torch.randn(3, 6, 8, dtype=torch.float64, requires_grad=True)
    text = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    image_mask = torch.arange(6) < torch.tensor([[n] for n, _ in counts])
    text_mask = torch.arange(5) < torch.tensor([[t] for _, t in counts])
    got = sparse_alignment_losses(image, text, SCALE, image_mask=image_mask, text_mask=text_mask)
    expected = [slow(image[i, :n], text[i, :t], SCALE) for i, (n, t) in enumerate(counts) if t]
    torch.testing.assert_close(got, torch.stack([*expected, torch.zeros((), dtype=torch.float64)]))
    grads = torch.autograd.grad(got.sum(), (image, text))
    for one, other in zip(grads, torch.autograd.grad(sum(expected), (image, text))):
        torch.testing.assert_close(one, other)
        assert one.abs().sum() > 0


def test_padding_and_weak_patches_have_no_weight() -> None:
    patches = torch.eye(4)[None]
    token = F.normalize(torch.tensor([[[1.0, 0.9, 0.05, 5.0]]]), dim=-1)
    mask = torch.tensor([[True, True, True, False]])
    found = gather_patches(token, patches, mask)
    assert found[0, 0, 3] == 0
    assert found[0, 0, 2] == 0  # below 1 / N after stretching
    torch.testing.assert_close(found.sum(), torch.tensor(1.0))
