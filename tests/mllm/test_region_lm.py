"""A language model that sees: what it reads, what it learns from, and that it answers alone as in company."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import open_cloc
from open_cloc.errors import UserError
from open_cloc.mllm.model import IGNORED, MLLMConfig, RegionLM
from open_cloc.mllm.projectors import place_codes
from open_cloc.mllm.prompt import IMAGE_ID, REGION_ID
from open_cloc.mllm.small import SmallLM, small_language_model
from tests.tiny import picture, tiny_model

TEXTS = [
    "what is in it and that ? where is a dog , a red cat . yes no the first second [0 1 2 3 4 5 6 7 8 9]"
]
SMALL = SmallLM(layers=2, width=32, heads=2, mlp=48)
BOXES = np.array([[0.1, 0.2, 0.6, 0.9], [0.0, 0.0, 0.5, 0.5]])


def build(**config: Any) -> RegionLM:
    lm, tokenizer = small_language_model(TEXTS, SMALL)
    torch.manual_seed(1)
    return RegionLM(tiny_model(), lm, tokenizer, MLLMConfig(bins=10, **config)).eval()


@cache
def model() -> RegionLM:
    """With region tokens; nobody changes it."""
    return build()


def prompts(of: RegionLM) -> list[Any]:
    """Three prompts of two pictures, with two regions, one and none."""
    first, second = of.look([picture(), picture(64, 64, seed=1)])
    return [
        *of.prompts(first, [("what is in <region> and <region> ?", BOXES), ("<region> ?", BOXES[1:])]),
        *of.prompts(second, [("where is a red dog ?", BOXES[:0])]),
    ]


def test_tokens_land_where_the_prompt_has_them() -> None:
    """Written once more, token by token."""
    own = model()
    asked = prompts(own)
    answers = [own.answer_ids("a dog"), own.answer_ids("yes"), own.answer_ids("[1 2 3 1]")]
    given = own.inputs(asked, answers)
    table = own.lm.get_input_embeddings().weight
    places = own.project_place(place_codes((4, 4), torch.device("cpu")))
    longest = 0
    for row, (prompt, answer) in enumerate(zip(asked, answers)):
        expected, labels, region = [], [], 0
        for one in prompt.ids:
            if one == IMAGE_ID:
                for token in range(16):
                    seen = own.project_image(prompt.image_tokens[token]) + places[token]
                    expected.append(seen)
                    labels.append(IGNORED)
                continue
            if one == REGION_ID:
                expected.append(own.project_region(prompt.regions[region]))
                region += 1
            else:
                expected.append(table[one])
            labels.append(IGNORED)
        for one in answer:
            expected.append(table[one])
            labels.append(one)
        assert region == len(prompt.regions)
        size = len(expected)
        longest = max(longest, size)
        torch.testing.assert_close(given.embeddings[row, :size], torch.stack(expected), rtol=0, atol=1e-5)
        assert given.labels[row, :size].tolist() == labels
        assert given.mask[row].tolist() == [1] * size + [0] * (given.mask.shape[1] - size)
        assert (given.labels[row, size:] == IGNORED).all()
    assert given.embeddings.shape == (3, longest, 32)


def test_a_region_token_is_the_prompters_embedding_of_its_box() -> None:
    own = model()
    image = own.look([picture()])[0]
    (prompt,) = own.prompts(image, [("<region> and <region> ?", BOXES)])
    expected = open_cloc.Predictor(own.tower).encode(picture()).embed(BOXES, normalized=True)
    np.testing.assert_allclose(prompt.regions.numpy(), expected, atol=1e-6)
    assert prompt.ids.count(REGION_ID) == 2
    assert prompt.image_tokens.shape == (16, 64)
    assert not prompt.image_tokens.is_inference()


def test_boxes_as_text_lie_on_the_canvas() -> None:
    """A picture of 50 x 90 lies on the middle of a square."""
    own = build(refer="text")
    image = own.look([picture(50, 90)])[0]
    (prompt,) = own.prompts(image, [("what is in <region> ?", np.array([[0.0, 0.0, 1.0, 1.0]]))])
    top = image.geometry.content_box[1]
    assert 0.2 < top < 0.3
    written = own.tokenizer.decode([one for one in prompt.ids if one >= 0])
    assert f"[ 0 {int(10 * top)} 9 {int(10 * (1 - top))} ]" in written
    assert prompt.ids.count(REGION_ID) == 0
    assert prompt.regions.shape == (0, 32)
    back = own.boxes(image, "[ 0 2 9 7 ]")
    assert back.shape == (1, 4)
    np.testing.assert_allclose(back[0], [0.05, 0.0, 0.95, 1.0], atol=0.1)


def test_both_forms_stand_side_by_side() -> None:
    own = build(refer="both")
    image = own.look([picture(64, 64)])[0]
    (prompt,) = own.prompts(image, [("what is in <region> ?", BOXES[:1])])
    at = prompt.ids.index(REGION_ID)
    assert own.tokenizer.decode(prompt.ids[at - 6 : at]) == "[ 1 2 6 9 ]"
    assert len(prompt.regions) == 1


def test_the_loss_is_that_of_the_answers_alone() -> None:
    own = model()
    asked = prompts(own)
    answers = [own.answer_ids(text) for text in ("a dog", "yes", "the first")]
    means = []
    for prompt, answer in zip(asked, answers):
        given = own.inputs([prompt], [answer])
        logits = own.lm(inputs_embeds=given.embeddings).logits[0]
        start = len(logits) - len(answer)
        assert answer[-1] == own.tokenizer.eos_token_id
        losses = [F.cross_entropy(logits[start + i - 1], torch.tensor(one)) for i, one in enumerate(answer)]
        means.append(sum(losses).item() / len(answer))
    assert [len(answer) for answer in answers] == [3, 2, 3]
    assert own(asked, answers).item() == pytest.approx(sum(means) / 3, abs=1e-5)


def test_shared_pictures_give_the_same_loss_and_gradients() -> None:
    own = build()
    asked = prompts(own)
    answers = [own.answer_ids(text) for text in ("a dog", "yes", "the first")]

    def gradients(share: bool) -> tuple[float, torch.Tensor]:
        own.zero_grad()
        loss = own(asked, answers, share)
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in own.parameters() if p.grad is not None])

    plain, shared = gradients(False), gradients(True)
    assert plain[0] == pytest.approx(shared[0], abs=1e-5)
    torch.testing.assert_close(plain[1], shared[1], rtol=0, atol=1e-5)


def test_pictures_are_not_shared_where_prompts_begin_otherwise() -> None:
    """The question stands in front of the picture here, so nothing before it is common."""
    own = build(template="{question} <image>")
    answers = [own.answer_ids(text) for text in ("a dog", "yes", "the first")]
    asked = prompts(own)
    assert own(asked, answers, True).item() == pytest.approx(own(asked, answers, False).item(), abs=1e-6)


def test_the_gradient_reaches_projectors_and_never_the_tower() -> None:
    own = build().train()
    assert not any(module.training for module in own.tower.modules())
    own(prompts(own), [own.answer_ids("yes")] * 3).backward()
    for name, module in own.projectors().items():
        for parameter in module.parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    assert all(p.grad is None and not p.requires_grad for p in own.tower.parameters())
    assert own.lm.get_input_embeddings().weight.grad is not None


def test_an_answer_does_not_depend_on_its_company() -> None:
    """Rows of other lengths beside it are padded in front."""
    own = model()
    asked = prompts(own)
    together = own.generate(asked, 12)
    assert together == [own.generate([prompt], 12)[0] for prompt in asked]
    assert together == own.generate(asked[::-1], 12)[::-1]
    padded = own.inputs(asked, pad_left=True)
    alone = own.inputs(asked[2:], pad_left=True)
    assert padded.mask[2].tolist() == sorted(padded.mask[2].tolist())
    assert padded.mask[2].sum() < padded.mask.shape[1]
    length = int(padded.mask[2].sum())
    torch.testing.assert_close(padded.embeddings[2, -length:], alone.embeddings[0])


def test_generation_takes_the_most_probable_token_each_time() -> None:
    own = model()
    prompt = prompts(own)[0]
    ids: list[int] = []
    for _ in range(6):
        given = own.inputs([prompt], [ids])
        ids.append(int(own.lm(inputs_embeds=given.embeddings).logits[0, -1].argmax()))
        if ids[-1] == own.tokenizer.eos_token_id:
            break
    assert own.generate([prompt], 6) == [own.tokenizer.decode(ids, skip_special_tokens=True)]


def test_gpt2_learns_to_see_too() -> None:
    """Learned position embeddings, and no word of Llama's code."""
    from transformers import GPT2Config, GPT2LMHeadModel

    _, tokenizer = small_language_model(TEXTS, SMALL)
    torch.manual_seed(0)
    lm = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64)
    )
    own = RegionLM(tiny_model(), lm, tokenizer, MLLMConfig(bins=10)).eval()
    asked = prompts(own)
    answers = [own.answer_ids("yes")] * 3
    assert own(asked, answers, True).item() == pytest.approx(own(asked, answers).item(), abs=1e-5)
    assert own.generate(asked, 4) == [own.generate([prompt], 4)[0] for prompt in asked]


def test_a_context_that_is_too_short() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    _, tokenizer = small_language_model(TEXTS, SMALL)
    torch.manual_seed(0)
    lm = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=26)
    )
    own = RegionLM(tiny_model(), lm, tokenizer, MLLMConfig(bins=10)).eval()
    asked = prompts(own)
    (text,) = own.generate(asked[1:2], 64)
    assert len(text.split()) <= 26 - 16 - len(asked[1].ids) + 1
    with pytest.raises(UserError, match="take 27 tokens; the language model reads 26"):
        own.generate([asked[0]._replace(ids=[*asked[0].ids, *[5] * 3])])
    for share in (True, False):
        with pytest.raises(UserError, match="the language model reads 26"):
            own(asked[1:2], [[5] * 20], share)


def test_a_tokenizer_without_a_pad_token() -> None:
    own = build()
    expected = own.generate(prompts(own), 8)
    own.tokenizer.pad_token = None
    own.lm.config.pad_token_id = own.lm.generation_config.pad_token_id = None
    assert own.tokenizer.pad_token_id is None
    assert own.generate(prompts(own), 8) == expected


def test_no_prompts_no_answers() -> None:
    assert model().generate([]) == []


def test_language_models_that_cannot_see() -> None:
    lm, tokenizer = small_language_model(TEXTS, SMALL)
    tower = tiny_model()

    class Blind(torch.nn.Module):
        def get_input_embeddings(self) -> Any:
            raise NotImplementedError

    class Reader(torch.nn.Module):
        def get_input_embeddings(self) -> Any:
            return torch.nn.Embedding(4, 8)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids

    with pytest.raises(UserError, match="Blind has no input embeddings"):
        RegionLM(tower, Blind(), tokenizer)
    with pytest.raises(UserError, match="Reader reads no embeddings"):
        RegionLM(tower, Reader(), tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="has no end-of-text token"):
        RegionLM(tower, lm, tokenizer)


def test_a_language_model_without_a_cache_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    own = build()
    real = own.lm.forward

    def without(*args: Any, inputs_embeds: Any = None, use_cache: Any = None, **kwargs: Any) -> Any:
        return real(*args, inputs_embeds=inputs_embeds, use_cache=False, **kwargs)

    monkeypatch.setattr(own.lm, "forward", without)
    asked = prompts(own)
    with pytest.raises(UserError, match="keeps no keys and values to share"):
        own(asked, [own.answer_ids("yes")] * 3, True)
    assert own(asked, [own.answer_ids("yes")] * 3).isfinite()


@pytest.mark.parametrize(
    ("question", "boxes", "said"),
    [
        ("what is in <region> ?", BOXES, "one <region> for each box; got 1 of them and 2 boxes"),
        ("what is there ?", BOXES[:1], "got 0 of them and 1 boxes"),
        ("<image> is in <region> ?", BOXES[:1], "must say <image> once; got 2 times"),
        ("<region> ?", np.array([[0.2, 0.2, 1.4, 0.5]]), "must lie inside"),
        ("<region> ?", np.array([[0.8, 0.2, 0.4, 0.5]]), "must have x1 < x2"),
    ],
)
@pytest.mark.parametrize("refer", ["tokens", "text"])
def test_prompts_that_do_not_fit(question: str, boxes: np.ndarray, said: str, refer: str) -> None:
    own = model() if refer == "tokens" else build(refer="text")
    with pytest.raises(UserError, match=said):
        own.prompts(own.look([picture()])[0], [(question, boxes)])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"refer": "points"}, "refer must be tokens, text, both"),
        ({"bins": 1}, "bins must lie in"),
        ({"template": "{question}"}, "once each"),
        ({"template": "<image>"}, "once each"),
    ],
)
def test_configs_that_make_no_sense(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        MLLMConfig(**config)


def test_asking_in_pixels() -> None:
    """All kinds of pointing at once, and boxes of the answer in the picture's own pixels."""
    own = model()
    mask = np.zeros((50, 90), bool)
    mask[10:20, 30:60] = True
    places = [[5, 5, 40, 30], [45, 25], [[10, 10], [30, 40], [20, 20]], mask]
    reply = own.ask(picture(), "<region> <region> <region> <region> ?", places, max_new_tokens=5)
    assert len(reply.text.split()) <= 5
    assert isinstance(reply.boxes, list)


def test_boxes_of_an_answer_are_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    own = build()
    monkeypatch.setattr(own, "generate", lambda prompts, longest: ["it is at [ 0 2 4 7 ] and [9 9 1 1]"])
    ((x1, y1, x2, y2),) = own.ask(picture(50, 90), "where is a dog ?").boxes
    assert (x1, x2) == pytest.approx((0.05 * 90, 0.45 * 90))
    # Its 50 pixels lie on 36 of the canvas, which begin 14 pixels down.
    assert (y1, y2) == pytest.approx(((0.25 * 64 - 14) * 50 / 36, (0.75 * 64 - 14) * 50 / 36))
