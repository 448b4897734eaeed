"""Tiny local models: batches, prompts, what they cannot do, wrong folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from open_cloc.labelling.captioners import open_captioner
from open_cloc.labelling.captioners.pictures import decoded
from open_cloc.labelling.recipe import CaptionConfig
from open_cloc.labelling.types import Caption, Failure
from tests.labelling.captioners.made import LOCAL, SHAPES, SPECIALS, captions_of, local_config, texts_of
from tests.labelling.made import encoded


@pytest.fixture(scope="module")
def local_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in LOCAL}
    for name, save in LOCAL.items():
        save(folders[name])
    return folders


@pytest.mark.parametrize("name", LOCAL)
def test_a_local_caption_does_not_depend_on_its_batch(name: str, local_models: dict[str, Path]) -> None:
    captioner = open_captioner(local_config(local_models[name]))
    images = [encoded(i, "PNG", size) for i, size in enumerate(SHAPES)]
    alone = [result for image in images for result in captions_of(captioner, [image])]
    texts = texts_of(alone)
    assert len(set(texts)) > len(texts) // 2, texts  # else nothing is shown below
    assert all(1 <= len(text.split()) <= 8 for text in texts)
    assert captions_of(captioner, images[:4]) == alone[:4]
    assert captions_of(captioner, images[::-1]) == alone[::-1]
    with_broken = captions_of(captioner, [images[0], b"no picture", images[1]])
    assert texts_of(with_broken) == [texts[0], "(unreadable picture)", texts[1]]
    assert alone[0][:2] == (texts[0], f"local {local_models[name]}")
    assert captions_of(captioner, [b""])[0][0] == "unreadable picture"
    json.dumps(captioner.provenance)


def test_a_chat_model_is_asked_the_prompt_and_answers_greedily(
    local_models: dict[str, Path],
) -> None:
    """Against choosing the likeliest token by hand, one forward pass of everything for each."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = local_models["llava_next"]
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    images = [encoded(i, "PNG", size) for i, size in enumerate(SHAPES[:3])]
    for prompt in ("w05. w06.", "w40. w41. w42."):
        captioner = open_captioner(local_config(folder, prompt=prompt))
        assert captioner.provenance["prompt"] == f"<s> user <image> {prompt} w01. w02."
        expected = []
        for image in images:
            text = f"<s> user <image> {prompt} w01. w02."
            inputs = processor(
                images=decoded(image), text=text, return_tensors="pt", add_special_tokens=False
            )
            asked = inputs["input_ids"].shape[1]
            assert (inputs["input_ids"] == 1).sum() == 1  # one start of text
            for _ in range(8):
                logits = model(**inputs, use_cache=False).logits[0, -1]
                logits[SPECIALS.index("<image>")] = -torch.inf
                token = logits.argmax().view(1, 1)
                inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
                if token == 2:
                    break
            answer = inputs["input_ids"][0, asked:]
            expected.append(processor.tokenizer.decode(answer, skip_special_tokens=True))
        assert texts_of(captions_of(captioner, images)) == expected
    assert open_captioner(local_config(local_models["blip"])).provenance["prompt"] is None


def test_what_a_local_model_cannot_do_is_a_failure(local_models: dict[str, Path]) -> None:
    captioner: Any = open_captioner(local_config(local_models["qwen2_vl"]))
    images = [encoded(0), encoded(1, "PNG", (603, 3)), encoded(2, "PNG", (64, 16))]
    first, narrow, last = captions_of(captioner, images)
    assert narrow == Failure("refused by model", "absolute aspect ratio must be smaller than 200, got 201.0")
    assert captions_of(captioner, [images[0], images[2]]) == [first, last]
    assert "" not in texts_of([first, last])
    captioner._model.lm_head.weight.data.zero_()
    captioner._model.lm_head.weight.data[2] = 1  # the end of text, or all alike: padding
    assert texts_of(captions_of(captioner, [encoded(0)])) == ["(empty caption)"]


def test_wrong_local_models_are_named(local_models: dict[str, Path], tmp_path: Path) -> None:

    from safetensors.torch import load_file, save_file

    with pytest.raises(ValueError, match=r"caption\.weights must be a folder or hub id"):
        open_captioner(CaptionConfig(kind="local"))
    with pytest.raises(FileNotFoundError, match="absent"):
        open_captioner(local_config(tmp_path / "absent"))
    folder = tmp_path / "model"
    shutil.copytree(local_models["blip"], folder)
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "query" in name)
    save_file(
        {name: w for name, w in weights.items() if name != lost},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match=f"lacks 1 tensors of its model, such as {lost}"):
        open_captioner(local_config(folder))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"holds no \.safetensors"):
        open_captioner(local_config(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "owlv2"}))
    with pytest.raises(ValueError, match="type 'owlv2', which is no image-to-text model of transformers"):
        open_captioner(local_config(folder))


def test_answers_of_local_chat_models_are_read_as_those_of_servers(
    local_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "<think>a mug?</think>Sure! Here is a caption: A mug."
    chat: Any = open_captioner(local_config(local_models["llava_next"]))
    plain: Any = open_captioner(local_config(local_models["blip"]))
    for captioner in (chat, plain):
        monkeypatch.setattr(captioner._tokenizer, "batch_decode", lambda tokens, **options: [said])
    assert texts_of(captions_of(chat, [encoded(0)])) == ["A mug."]
    assert texts_of(captions_of(plain, [encoded(0)])) == [
        "<think>a mug?</think>Sure! Here is a caption: A mug."
    ]
    monkeypatch.setattr(
        chat._tokenizer, "batch_decode", lambda tokens, **options: ["I'm sorry, but I can't."]
    )
    assert texts_of(captions_of(chat, [encoded(0)])) == ["(captioner refused)"]


def test_answers_that_reach_the_limit_are_counted_as_cut(local_models: dict[str, Path]) -> None:
    captioner: Any = open_captioner(local_config(local_models["llava_next"], max_new_tokens=2))
    (result,) = captions_of(captioner, [encoded(0)])
    assert isinstance(result, Caption)
    assert result.is_cut
    captioner._model.generation_config.eos_token_id = list(range(65))  # whatever it says is an end
    (result,) = captions_of(captioner, [encoded(0)])
    assert not (isinstance(result, Caption) and result.is_cut)
