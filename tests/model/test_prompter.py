"""The Prompter against a literal transformer layer, and what each of its variants promises."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from open_cloc.boxes import grid_cells, overlap_fraction
from open_cloc.model import gelu_sum
from open_cloc.model import prompter as prompter_module
from open_cloc.model.prompt_layer import PromptLayer
from open_cloc.model.prompter import Prompter, PrompterConfig
from open_cloc.model.prompts import PromptedImage
from open_cloc.model.prompts.box import BoxPrompt, PositionCode, pool_boxes
from open_cloc.model.prompts.text import TextPrompt
from open_cloc.objectives import region_text_loss

WIDTH, EMBED, GRID = 16, 8, (3, 4)
BOXES = torch.tensor(
    [
        [[0.0, 0.0, 0.5, 0.5], [0.2, 0.1, 0.9, 0.8], [0.0, 0.0, 1.0, 1.0]],
        [[0.6, 0.6, 0.7, 0.7], [0.1, 0.3, 0.4, 1.0], [0.5, 0.0, 1.0, 0.4]],
    ]
)  # (B, R, 4)
# The picture fills the left three of four columns of the second image.
MASK = torch.stack([torch.ones(12, dtype=torch.bool), torch.arange(12) % 4 < 3])

VARIANTS = [
    PrompterConfig(
        readout=readout,  # type: ignore[arg-type]
        patch_positions=positions,
        box_prior=prior,
        box_content=content,  # type: ignore[arg-type]
        pooled_residual=pooled,
    )
    for readout, positions, prior, content, pooled in itertools.product(
        ("mean", "prompt"), (False, True), (False, True), ("code", "none"), (False, True)
    )
]


def _name(config: PrompterConfig) -> str:
    flags = [config.readout, config.box_content]
    flags += ["positions"] * config.patch_positions + ["prior"] * config.box_prior
    flags += ["pooled"] * config.pooled_residual
    return "-".join(flags)


all_variants = pytest.mark.parametrize("config", VARIANTS, ids=_name)


def _prompter(config: PrompterConfig) -> Prompter:
    """With every parameter moved away from its start, so that none of them hides behind a zero or a one."""
    prompter = Prompter(WIDTH, EMBED, config).eval()
    with torch.no_grad():
        for parameter in prompter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return prompter


def _tokens() -> Tensor:
    return torch.randn(2, GRID[0] * GRID[1], WIDTH, generator=torch.Generator().manual_seed(5))


# --- the literal layer ----------------------------------------------------------------------------


def _literal_layer(
    p: Prompter, tokens: Tensor, cells: Tensor, ask: Tensor | None, content: Tensor, prior: Tensor | None
) -> Tensor:
    """One image, one prompt through a pre-norm layer, the prompt's K tokens in front of the N image tokens.

    Args:
        p: Whose weights.
        tokens: (N, C) of the image.
        cells: (N, 4) where they stand.
        ask: (K, C) what the prompt adds to its query and key, if that is not its content.
        content: (K, C).
        prior: (N,) added to the logits from prompt to image.

    Returns:
        (C,) after the pooling and the final norm.
    """
    k = len(content)
    x = torch.cat([content, tokens])  # (K + N, C)
    normed = F.layer_norm(x, (WIDTH,), p.layer.norm1.weight, p.layer.norm1.bias)
    placed = normed.clone()
    if ask is not None:
        placed[:k] = F.layer_norm(content + ask, (WIDTH,), p.layer.norm1.weight, p.layer.norm1.bias)
    if p.config.patch_positions:
        placed[k:] += p.prompts["box"].position((cells[:, :2] + cells[:, 2:]) / 2)
    q = F.linear(placed, p.layer.query.weight, p.layer.query.bias)
    key = F.linear(placed, p.layer.key.weight, p.layer.key.bias)
    v = F.linear(normed, p.layer.value.weight, p.layer.value.bias)
    bias = torch.zeros(len(x), len(x))
    if prior is not None:
        bias[:k, k:] = prior
    attended = F.scaled_dot_product_attention(q[None], key[None], v[None], attn_mask=bias[None])[0]
    x = x + F.linear(attended, p.layer.out.weight, p.layer.out.bias)
    normed = F.layer_norm(x, (WIDTH,), p.layer.norm2.weight, p.layer.norm2.bias)
    first, last = p.layer.fc1, p.layer.fc2
    x = x + F.linear(F.gelu(F.linear(normed, first.weight, first.bias)), last.weight, last.bias)
    pooled = (x if p.config.readout == "mean" else x[:k]).mean(0)
    return F.layer_norm(pooled, (WIDTH,), p.norm_out.weight, p.norm_out.bias)


def _literal_box(p: Prompter, tokens: Tensor, cells: Tensor, box: Tensor) -> Tensor:
    """A region's embedding (D,) from the (N, C) tokens of the picture, without those of padding."""
    angles = 2 * math.pi * (2 * box.view(2, 2) - 1) @ p.prompts["box"].position.frequencies
    code = torch.cat([angles.sin(), angles.cos()], -1) + p.prompts["box"].corner
    overlap = overlap_fraction(box[None], cells)[0]
    prior = None
    if p.config.box_prior:
        prior = F.softplus(p.prior_weight) / math.log(2) * torch.log(overlap + p.prior_log_eps.exp())
    ask = None if p.config.box_content == "code" else code
    content = code if p.config.box_content == "code" else p.box_token.expand(2, -1)
    embedding = F.linear(_literal_layer(p, tokens, cells, ask, content, prior), p.project.weight)
    if p.config.pooled_residual:
        mean = overlap / overlap.sum().clamp(min=1e-6) @ tokens
        embedding = embedding + F.linear(mean, p.project_pooled.weight)
    return embedding


@all_variants
def test_boxes_equal_the_literal_layer(config: PrompterConfig) -> None:
    prompter, tokens, cells = _prompter(config), _tokens(), grid_cells(GRID)
    got = prompter.embed(prompter.prepare(tokens, GRID, MASK), {"box": BOXES})
    assert got.shape == (2, 3, EMBED)
    for i, r in itertools.product(range(2), range(3)):
        expected = _literal_box(prompter, tokens[i, MASK[i]], cells[MASK[i]], BOXES[i, r])
        torch.testing.assert_close(got[i, r], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("readout", ["mean", "prompt"])
@pytest.mark.parametrize("positions", [False, True])
def test_grounding_equals_the_literal_layer(readout: str, positions: bool) -> None:
    """And the box prior, which is about boxes, leaves phrases alone."""
    config = PrompterConfig(readout=readout, patch_positions=positions, box_prior=True)  # type: ignore[arg-type]
    prompter, tokens, cells = _prompter(config), _tokens(), grid_cells(GRID)
    texts = torch.randn(2, 3, EMBED)
    got = prompter.ground(prompter.prepare(tokens, GRID, MASK), {"text": texts})
    for i, r in itertools.product(range(2), range(3)):
        unit = texts[i, r] / texts[i, r].norm()
        prompt = prompter.prompts["text"].project(unit * EMBED**0.5)[None]
        pooled = _literal_layer(prompter, tokens[i, MASK[i]], cells[MASK[i]], None, prompt, None)
        cx, cy, w, h = prompter.box_head(pooled).sigmoid().tolist()
        expected = torch.tensor([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
        torch.testing.assert_close(got[i, r], expected, rtol=1e-4, atol=1e-5)


# --- the factored mean read-out -----------------------------------------------------------------------


def _value_and_gradients(prompter: Prompter, tokens: Tensor, texts: Tensor) -> dict[str, Tensor]:
    """Of a loss that sees every output with its own weight."""
    tokens, texts = tokens.clone().requires_grad_(), texts.clone().requires_grad_()
    image = prompter.prepare(tokens, GRID, MASK)
    out = {
        "regions": prompter.embed(image, {"box": BOXES.double()}),
        "grounded": prompter.ground(image, {"text": texts}),
    }
    prompter.zero_grad()
    sum((torch.linspace(-1, 1, x.numel()).view_as(x) * x).sum() for x in out.values()).backward()
    gradients = {name: p.grad for name, p in prompter.named_parameters() if p.grad is not None}
    return {**out, "tokens": tokens.grad, "texts": texts.grad, **gradients}  # type: ignore[dict-item]


@pytest.mark.parametrize("tile", [1, 3 * 4 * WIDTH, 10**6])
@pytest.mark.parametrize("config", [c for c in VARIANTS if c.readout == "mean"], ids=_name)
def test_factored_mean_equals_the_literal_form(
    config: PrompterConfig, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In value and every gradient."""
    monkeypatch.setitem(gelu_sum.TILE_ELEMENTS, "cpu", tile)
    prompter, tokens, texts = (
        _prompter(config).double(),
        _tokens().double(),
        torch.randn(2, 3, EMBED).double(),
    )
    factored = _value_and_gradients(prompter, tokens, texts)
    with monkeypatch.context() as patch:
        patch.setattr(PromptLayer, "_mean_terms", lambda *_: None)
        literal = _value_and_gradients(prompter, tokens, texts)
    assert factored.keys() == literal.keys()
    for name, expected in literal.items():
        torch.testing.assert_close(factored[name], expected, rtol=1e-9, atol=1e-12, msg=name)


def test_factored_mean_is_close_in_bfloat16() -> None:
    """As close to float32 as the literal form is."""
    prompter, tokens = _prompter(PrompterConfig()), _tokens()
    exact = prompter.embed(prompter.prepare(tokens, GRID, MASK), {"box": BOXES})
    with torch.autocast("cpu", torch.bfloat16):
        got = prompter.embed(prompter.prepare(tokens, GRID, MASK), {"box": BOXES}).float()
    assert 0 < (got - exact).abs().max() < 0.03 * exact.abs().max()


def test_gelu_sums_are_float32_under_autocast() -> None:
    """Forward, and backward where it runs under autocast too."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(2, 9, 16), (2, 9, 16), (2, 3, 2, 16), (2, 3, 9), (2, 3, 9, 2), (2, 3, 9), (16,)]
    mask = torch.arange(9).expand(2, 9) < 7
    results = []
    for enabled in (False, True):
        inputs = [torch.randn(shape, generator=draw.manual_seed(i)) for i, shape in enumerate(shapes)]
        inputs = [x.requires_grad_() for x in inputs]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            total = gelu_sum.gelu_sum(*inputs, mask)
            total.square().sum().backward()
        results.append([total, *(x.grad for x in inputs)])
    for expected, got in zip(*results):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


class LargestTensor(TorchDispatchMode):
    """Notes how many elements the largest tensor had that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            # Expanded views hold no memory of their own.
            if isinstance(tensor, Tensor) and tensor.numel():
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_memory_does_not_hold_every_token_of_every_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither forward nor backward makes a (B, R, N, H) tensor, nor (B, R, N, C)."""
    monkeypatch.setitem(gelu_sum.TILE_ELEMENTS, "cpu", 12 * 4 * WIDTH)  # one prompt of one image
    prompter = _prompter(PrompterConfig(box_prior=True))
    boxes = BOXES[:, :1].repeat(1, 200, 1)
    with LargestTensor() as seen:
        prompter.embed(prompter.prepare(_tokens(), GRID, MASK), {"box": boxes}).sum().backward()
    assert seen.largest < 2 * 200 * 12 * WIDTH


@pytest.mark.parametrize("kind", ["box", "text"])
@pytest.mark.parametrize("readout", ["mean", "prompt"])
def test_inference_memory_does_not_grow_with_the_prompts(
    readout: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompter_module, "PROMPTS_AT_ONCE", 50)
    monkeypatch.setitem(gelu_sum.TILE_ELEMENTS, "cpu", 12 * 4 * WIDTH)  # one prompt of one image
    prompter = _prompter(PrompterConfig(readout=readout, box_prior=True))  # type: ignore[arg-type]
    image = prompter.prepare(_tokens(), GRID, MASK)
    prompt = BOXES[:, :1] if kind == "box" else torch.randn(2, 1, EMBED)
    run = prompter.embed if kind == "box" else prompter.ground
    some, many = (prompt.expand(2, count, -1) for count in (50, 1000))
    largest = []
    with torch.no_grad():
        for prompts in (some, many):
            with LargestTensor() as seen:
                got = run(image, {kind: prompts})
            largest.append(seen.largest - got.numel())
        torch.testing.assert_close(got[:, :50], run(image, {kind: some}))
    assert largest[1] <= largest[0]


# --- invariances ----------------------------------------------------------------------------------


@all_variants
def test_masked_tokens_reach_nothing(config: PrompterConfig) -> None:
    prompter, tokens, texts = _prompter(config), _tokens(), torch.randn(2, 3, EMBED)
    other = tokens.masked_fill(~MASK[..., None], 50.0)
    assert not torch.equal(other, tokens)
    one, two = (prompter.prepare(x, GRID, MASK) for x in (tokens, other))
    torch.testing.assert_close(prompter.embed(one, {"box": BOXES}), prompter.embed(two, {"box": BOXES}))
    torch.testing.assert_close(prompter.ground(one, {"text": texts}), prompter.ground(two, {"text": texts}))
    unmasked = prompter.prepare(other, GRID)
    change = prompter.embed(unmasked, {"box": BOXES}) - prompter.embed(one, {"box": BOXES})
    assert change[1].abs().max() > 1e-3


@all_variants
def test_a_region_does_not_depend_on_the_others(config: PrompterConfig) -> None:
    """Neither on other regions of its image nor on other images of the batch."""
    prompter, tokens, texts = _prompter(config), _tokens(), torch.randn(2, 3, EMBED)
    image = prompter.prepare(tokens, GRID, MASK)
    regions, grounded = prompter.embed(image, {"box": BOXES}), prompter.ground(image, {"text": texts})
    for i in range(2):
        alone = image.select(slice(i, i + 1))
        fresh = prompter.prepare(tokens[i : i + 1], GRID, MASK[i : i + 1])
        for r in range(3):
            for state in (alone, fresh):
                one = prompter.embed(state, {"box": BOXES[i : i + 1, r : r + 1]})
                torch.testing.assert_close(one[0, 0], regions[i, r], rtol=1e-4, atol=1e-5)
                one = prompter.ground(state, {"text": texts[i : i + 1, r : r + 1]})
                torch.testing.assert_close(one[0, 0], grounded[i, r], rtol=1e-4, atol=1e-5)


@all_variants
def test_no_prompt_gives_no_output(config: PrompterConfig) -> None:
    prompter = _prompter(config)
    image = prompter.prepare(_tokens(), GRID)
    assert prompter.embed(image, {"box": BOXES[:, :0]}).shape == (2, 0, EMBED)
    assert prompter.ground(image, {"text": torch.zeros(2, 0, EMBED)}).shape == (2, 0, 4)


@all_variants
def test_an_image_that_is_all_padding_stays_finite(config: PrompterConfig) -> None:
    prompter = _prompter(config)
    image = prompter.prepare(_tokens(), GRID, torch.zeros(2, 12, dtype=torch.bool))
    assert prompter.embed(image, {"box": BOXES}).isfinite().all()


# --- options --------------------------------------------------------------------------------------


def test_a_strong_prior_attends_only_under_the_box() -> None:
    prompter, tokens = _prompter(PrompterConfig(readout="prompt", box_prior=True)), _tokens()
    prompter.prior_log_eps.data.fill_(math.log(1e-9))
    prompter.prior_weight.data.fill_(20.0)
    box = torch.tensor([[[0.0, 0.0, 0.5, 1 / 3]]]).expand(2, 1, 4)  # exactly tokens 0 and 1
    got = prompter.embed(prompter.prepare(tokens, GRID), {"box": box})
    outside = tokens.clone()
    outside[:, 2:] = torch.randn(2, 10, WIDTH)
    torch.testing.assert_close(prompter.embed(prompter.prepare(outside, GRID), {"box": box}), got)
    inside = tokens.clone()
    inside[:, 0] = torch.randn(2, WIDTH)
    changed = prompter.embed(prompter.prepare(inside, GRID), {"box": box})
    assert (changed - got).abs().max() > 1e-3


def test_the_prior_starts_as_log_overlap() -> None:
    prompter = Prompter(WIDTH, EMBED, PrompterConfig(box_prior=True))
    assert float(F.softplus(prompter.prior_weight.detach()) / math.log(2)) == pytest.approx(1)
    assert float(prompter.prior_log_eps.detach().exp()) == pytest.approx(0.01)


def test_patch_positions_change_the_answer() -> None:
    """Moving tokens about matters only when patches know where they are."""
    order = torch.randperm(12)
    tokens = _tokens()
    for positions in (False, True):
        config = PrompterConfig(readout="prompt", patch_positions=positions)
        prompter = _prompter(config)
        got, moved = (
            prompter.embed(prompter.prepare(x, GRID), {"box": BOXES}) for x in (tokens, tokens[:, order])
        )
        assert bool((got - moved).abs().max() > 1e-3) is positions


def test_pooled_residual_starts_as_the_mean_under_the_box() -> None:
    config = PrompterConfig(readout="prompt", box_content="none", box_prior=True, pooled_residual=True)
    prompter = Prompter(WIDTH, EMBED, config)
    tokens, box = _tokens(), torch.tensor([[[0.25, 0.0, 0.75, 2 / 3]]]).expand(2, 1, 4)
    got = prompter.embed(prompter.prepare(tokens, GRID), {"box": box})
    mean = tokens.view(2, *GRID, WIDTH)[:, :2, 1:3].mean((1, 2))
    torch.testing.assert_close(got[:, 0], prompter.project_pooled(mean))


def test_boxes_that_cover_nothing_have_tame_gradients() -> None:
    """An empty box, and one that lies in the padding."""
    prompter = Prompter(WIDTH, EMBED, PrompterConfig(readout="prompt", box_prior=True, pooled_residual=True))
    boxes = torch.tensor([[0.3, 0.3, 0.3, 0.3], [0.8, 0.1, 0.9, 0.2], [0.0, 0.0, 0.5, 0.5]]).expand(2, 3, 4)
    regions = prompter.embed(prompter.prepare(_tokens(), GRID, MASK), {"box": boxes})
    region_text_loss(regions, torch.randn(2, 3, EMBED), torch.tensor([14.0])).backward()
    largest = max(float(p.grad.abs().max()) for p in prompter.parameters() if p.grad is not None)
    assert largest < 1000


def test_a_narrower_layer_equals_the_layer_on_narrowed_tokens() -> None:
    config = PrompterConfig(readout="prompt", box_prior=True, width=WIDTH // 2)
    narrow = Prompter(WIDTH, EMBED, config).eval()
    same = Prompter(WIDTH // 2, EMBED, PrompterConfig(readout="prompt", box_prior=True)).eval()
    state = {k: v for k, v in narrow.state_dict().items() if not k.startswith("enter.")}
    same.load_state_dict(state)
    tokens = _tokens()
    expected = same.embed(same.prepare(narrow.enter(tokens), GRID, MASK), {"box": BOXES})
    torch.testing.assert_close(narrow.embed(narrow.prepare(tokens, GRID, MASK), {"box": BOXES}), expected)


def test_roialign_regions_equal_torchvision() -> None:
    prompter, tokens = _prompter(PrompterConfig(regions="roialign")), _tokens()
    feature_map = tokens.transpose(1, 2).reshape(2, WIDTH, *GRID)
    index = torch.arange(2.0).repeat_interleave(3)[:, None]
    rois = torch.cat([index, BOXES.reshape(6, 4) * torch.tensor([4.0, 3.0, 4.0, 3.0])], dim=1)
    expected = torchvision.ops.roi_align(feature_map, rois, (7, 7), aligned=True)  # (6, C, 7, 7)
    torch.testing.assert_close(
        pool_boxes(tokens, GRID, BOXES), expected.flatten(2).transpose(1, 2).unflatten(0, (2, 3))
    )
    got = prompter.embed(prompter.prepare(tokens, GRID), {"box": BOXES})
    torch.testing.assert_close(got, prompter.project_pooled(expected.mean((2, 3))).unflatten(0, (2, 3)))
    assert pool_boxes(tokens, GRID, BOXES[:, :0]).shape == (2, 0, 49, WIDTH)


def test_grounded_boxes_are_ordered_and_finite() -> None:
    prompter = _prompter(PrompterConfig())
    with torch.no_grad():
        prompter.box_head[2].weight.mul_(30)  # far into the sigmoid's flat ends
    boxes = prompter.ground(prompter.prepare(_tokens(), GRID), {"text": torch.randn(2, 500, EMBED)})
    assert boxes.isfinite().all()
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    assert ((centres >= 0) & (centres <= 1)).all()


def test_unknown_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"unknown prompter.readout 'max'; expected one of mean, prompt"):
        PrompterConfig(readout="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="even width; got 15"):
        PositionCode(15)


# --- prompts --------------------------------------------------------------------------------------


def test_box_codes_keep_float32_under_autocast() -> None:
    """bfloat16 would round coordinates to 1 / 256 of the image before they are multiplied by 2 pi f."""
    prompt = BoxPrompt(WIDTH, EMBED, PrompterConfig()).code
    expected = prompt(BOXES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = prompt(BOXES)
    torch.testing.assert_close(got.float(), expected)


def test_corners_are_told_apart() -> None:
    prompt = BoxPrompt(WIDTH, EMBED, PrompterConfig()).code
    assert prompt(BOXES).shape == (2, 3, 2, WIDTH)
    point = prompt(torch.tensor([[[0.3, 0.3, 0.3, 0.3]]]))[0, 0]
    assert not torch.allclose(point[0], point[1])


def test_text_prompts_do_not_depend_on_length() -> None:
    prompt, texts = TextPrompt(WIDTH, EMBED, PrompterConfig()).code, torch.randn(2, 3, EMBED)
    assert prompt(texts).shape == (2, 3, 1, WIDTH)
    torch.testing.assert_close(prompt(texts), prompt(40 * texts))


# --- learning -------------------------------------------------------------------------------------

# The same for every key, so that the softmax takes it out again.
NEVER = {"layer.key.bias"}
# What gets no gradient in the very first step, because it stands behind a projection that starts at zero.
BEHIND_ZERO = {"prompts.box.corner", "box_token", "prior_weight", "prior_log_eps"}


def _names_without_gradient(prompter: Prompter) -> set[str]:
    image = prompter.prepare(_tokens().requires_grad_(), GRID, MASK)
    loss = prompter.embed(image, {"box": BOXES}).square().sum()
    loss = loss + prompter.ground(image, {"text": torch.randn(2, 3, EMBED)}).square().sum()
    loss.backward()
    for name, parameter in prompter.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    return {n for n, p in prompter.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-12} - NEVER


@all_variants
def test_every_parameter_learns(config: PrompterConfig) -> None:
    assert _names_without_gradient(_prompter(config)) == set()


@all_variants
def test_every_parameter_learns_from_the_start(config: PrompterConfig) -> None:
    silent = _names_without_gradient(Prompter(WIDTH, EMBED, config))
    if not config.pooled_residual:
        assert silent == set()
        return
    assert silent <= BEHIND_ZERO


def test_roialign_regions_leave_the_box_prompt_alone() -> None:
    assert _names_without_gradient(_prompter(PrompterConfig(regions="roialign"))) == {
        "prompts.box.corner",
        "project.weight",
    }


def test_layer_drop_leaves_some_regions_with_pooling_alone() -> None:
    config = PrompterConfig(readout="prompt", box_prior=True, pooled_residual=True, layer_drop=0.5)
    prompter = _prompter(config)
    boxes = BOXES.repeat(1, 50, 1)
    image = prompter.prepare(_tokens(), GRID)
    full = prompter.embed(image, {"box": boxes})
    with torch.no_grad():
        weight = prompter.project.weight.clone()
        prompter.project.weight.zero_()
        pooled = prompter.embed(image, {"box": boxes})
        prompter.project.weight.copy_(weight)
    prompter.train()
    got = prompter.embed(image, {"box": boxes})
    dropped = torch.isclose(got, pooled, atol=1e-6).all(-1)
    doubled = torch.isclose(got, 2 * full - pooled, atol=1e-5).all(-1)  # so that the mean is the whole
    assert (dropped ^ doubled).all()
    assert 0.3 < dropped.float().mean() < 0.7


def test_dropout_only_acts_in_training() -> None:
    prompter = _prompter(PrompterConfig(dropout=0.5))
    image: PromptedImage = prompter.prepare(_tokens(), GRID)
    assert torch.equal(prompter.embed(image, {"box": BOXES}), prompter.embed(image, {"box": BOXES}))
    prompter.train()
    assert not torch.equal(prompter.embed(image, {"box": BOXES}), prompter.embed(image, {"box": BOXES}))
