"""What every kind of prompt promises: shapes, finite gradients, and that a prompt knows of no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from open_cloc.model.prompter import Prompter, PrompterConfig
from open_cloc.model.prompts import PROMPTS, PromptedImage, PromptTokens

WIDTH, EMBED, GRID = 16, 8, (3, 4)

# (B, R, ...) for 2 images and 3 prompts: each kind needs a line.
GIVEN = {
    "box": torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.2, 0.1, 0.9, 0.8], [0.5, 0.0, 1.0, 0.4]]]).expand(
        2, -1, -1
    ),
    "text": torch.randn(2, 3, EMBED, generator=torch.Generator().manual_seed(0)),
    "points": torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(1)),
    "boxes": torch.rand(2, 3, 2, 4, generator=torch.Generator().manual_seed(2))
    .sort(-1)
    .values[..., [0, 1, 2, 3]],
    "mask": torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0)) > 0.7,
}

CONFIGS = {
    "paper": PrompterConfig(),
    "prior": PrompterConfig(
        readout="prompt", patch_positions=True, box_prior=True, box_content="none", pooled_residual=True
    ),
    "narrow": PrompterConfig(readout="prompt", width=8),
    "roialign": PrompterConfig(regions="roialign"),
}

every_kind = pytest.mark.parametrize("kind", PROMPTS)
every_config = pytest.mark.parametrize("name", CONFIGS)


def prompter_of(name: str) -> Prompter:
    """With every parameter moved away from its start."""
    prompter = Prompter(WIDTH, EMBED, CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in prompter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return prompter


def image_of(prompter: Prompter, tokens: Tensor | None = None) -> PromptedImage:
    if tokens is None:
        tokens = torch.randn(2, GRID[0] * GRID[1], WIDTH, generator=torch.Generator().manual_seed(5))
    return prompter.prepare(tokens, GRID)


@every_kind
@every_config
def test_tokens_have_their_shapes(kind: str, name: str) -> None:
    prompter = prompter_of(name)
    tokens = prompter.prompts[kind](GIVEN[kind], image_of(prompter), prompter.prompts)
    assert isinstance(tokens, PromptTokens)
    width = CONFIGS[name].width or WIDTH
    assert tokens.ask.ndim == 4
    assert (tokens.ask.shape[:2], tokens.ask.shape[3]) == ((2, 3), width)
    assert tokens.content is None or tokens.content.shape == tokens.ask.shape
    assert tokens.pooled is None or tokens.pooled.shape == (2, 3, WIDTH)
    if tokens.coverage is not None:
        assert tokens.coverage.shape == (2, 3, GRID[0] * GRID[1])
        assert ((tokens.coverage >= 0) & (tokens.coverage <= 1)).all()


@every_kind
@every_config
def test_embeddings_and_their_gradients_are_finite(kind: str, name: str) -> None:
    prompter = prompter_of(name)
    tokens = torch.randn(2, GRID[0] * GRID[1], WIDTH, requires_grad=True)
    embedding = prompter.embed(image_of(prompter, tokens), {kind: GIVEN[kind]})
    assert embedding.shape == (2, 3, EMBED)
    embedding.square().sum().backward()
    gradients = [tokens.grad, *(parameter.grad for parameter in prompter.parameters())]
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)
    assert tokens.grad is not None
    assert tokens.grad.abs().max() > 0


@every_kind
@every_config
def test_prompts_know_nothing_of_each_other(kind: str, name: str) -> None:
    prompter = prompter_of(name)
    image = image_of(prompter)
    together = prompter.embed(image, {kind: GIVEN[kind]})
    for i in range(2):
        one = slice(i, i + 1)
        for r in range(3):
            alone = prompter.embed(image.select(one), {kind: GIVEN[kind][one, r : r + 1]})
            torch.testing.assert_close(alone[0, 0], together[i, r], rtol=1e-4, atol=1e-5)


@every_kind
@every_config
def test_no_prompts_give_no_embeddings(kind: str, name: str) -> None:
    prompter = prompter_of(name)
    assert prompter.embed(image_of(prompter), {kind: GIVEN[kind][:, :0]}).shape == (2, 0, EMBED)


@every_config
def test_several_kinds_follow_one_another(name: str) -> None:
    prompter = prompter_of(name)
    image = image_of(prompter)
    together = prompter.embed(image, GIVEN)
    alone = [prompter.embed(image, {kind: given}) for kind, given in GIVEN.items()]
    # Products of other shapes round otherwise.
    torch.testing.assert_close(together, torch.cat(alone, dim=1), rtol=1e-5, atol=1e-6)


def test_unknown_kinds_are_named() -> None:
    prompter = prompter_of("paper")
    with pytest.raises(ValueError, match="unknown kind of prompt 'scent'; expected one of box, text"):
        prompter.embed(image_of(prompter), {"scent": GIVEN["box"]})
    with pytest.raises(ValueError, match="no prompts"):
        prompter.embed(image_of(prompter), {})


@every_kind
def test_the_page_of_the_model_names_it(kind: str) -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "model.md"
    assert f"| `{kind}` |" in page.read_text(encoding="utf-8").partition("## Prompts")[2]
