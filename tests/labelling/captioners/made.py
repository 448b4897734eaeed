"""Tiny captioning models with random weights, and what their results are compared by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from open_cloc.labelling.recipe import CaptionConfig
from open_cloc.labelling.types import Caption, Failure


def captions_of(captioner: Any, images: list[bytes]) -> list[Caption | Failure]:
    return captioner(images, [()] * len(images))


def texts_of(results: list[Caption | Failure]) -> list[str]:
    return [result.text if isinstance(result, Caption) else f"({result.cause})" for result in results]


# Each ends a sentence: what the limit cuts off is whole sentences, and stays.
WORDS = [f"w{i:02d}." for i in range(60)]

SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]

TEMPLATE = (
    "<s> {% for m in messages %}{{ m['role'] }} {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}w01. w02.{% endif %}"
)


def tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(SPECIALS + WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )


def save_blip(folder: Path) -> None:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor

    tokens = {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BlipConfig(
        text_config={**sizes, **tokens, "vocab_size": 65, "encoder_hidden_size": 32, "hidden_act": "gelu"},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
    )
    save_random(BlipForConditionalGeneration(config), folder)
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def save_encoder_decoder(folder: Path) -> None:
    from transformers import (
        GPT2Config,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
    )

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    vision = ViTConfig(**sizes, image_size=32, patch_size=8)
    text = GPT2Config(
        vocab_size=65, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, text)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    save_random(VisionEncoderDecoderModel(config), folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def save_llava_next(folder: Path) -> None:
    """Large pictures become more tokens, hence prompts have different lengths."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    grids = [[16, 32], [32, 16], [32, 32], [16, 48]]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=16, patch_size=8, projection_dim=32),
        text_config=LlamaConfig(**sizes, vocab_size=65, bos_token_id=1, eos_token_id=2, pad_token_id=0),
        image_token_index=SPECIALS.index("<image>"),
        image_grid_pinpoints=grids,
    )
    model = LlavaNextForConditionalGeneration(config)
    # Of random weights, which token wins depends on the processor's rounding; this one cannot be read back.
    model.generation_config.suppress_tokens = [SPECIALS.index("<image>")]
    save_random(model, folder)
    side = {"height": 16, "width": 16}
    images = LlavaNextImageProcessor(size={"shortest_edge": 16}, crop_size=side, image_grid_pinpoints=grids)
    processor = LlavaNextProcessor(
        images,
        tiny_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)


def save_git(folder: Path) -> None:
    from transformers import CLIPImageProcessor, GitConfig, GitForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    tokens = {"vocab_size": 65, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = GitConfig(vision_config={**sizes, "image_size": 32, "patch_size": 8}, **sizes, **tokens)
    save_random(GitForCausalLM(config), folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    images.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def save_qwen2_vl(folder: Path) -> None:
    """Each picture has as many tokens as its size asks for, and places in two dimensions."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    names = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", *names]})
    image, video, start, end = tokenizer.convert_tokens_to_ids(names)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    tokens = {"vocab_size": 72, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    patches = {"patch_size": 4, "spatial_merge_size": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config={**sizes, **tokens, "num_key_value_heads": 2, "rope_parameters": rope},
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, **patches},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    save_random(Qwen2VLForConditionalGeneration(config), folder)
    pixels = {"shortest_edge": 64, "longest_edge": 1024}
    images = Qwen2VLImageProcessor(patch_size=4, merge_size=2, temporal_patch_size=2, size=pixels)
    template = TEMPLATE.replace("<image> ", "<|vision_start|> <|image_pad|> <|vision_end|> ")
    processor = Qwen2VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=template)
    processor.save_pretrained(folder)


def save_random(model: Any, folder: Path) -> None:
    """Weights large enough that pictures differ in their captions, and that no caption ends at once."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
            elif name.endswith("bias"):
                weight.zero_()
    model.save_pretrained(folder)


LOCAL = {
    "blip": save_blip,
    "git": save_git,
    "vision-encoder-decoder": save_encoder_decoder,
    "llava_next": save_llava_next,
    "qwen2_vl": save_qwen2_vl,
}


def local_config(folder: Path, **changes: Any) -> CaptionConfig:
    return CaptionConfig(
        **{"kind": "local", "weights": str(folder), "max_new_tokens": 8, "prompt": "w05. w06."} | changes
    )


SHAPES = [(24, 16), (64, 16), (16, 64), (40, 40), (7, 5), (1, 1), (90, 30)]
