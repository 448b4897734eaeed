"""Captioners: the given text, a server on loopback, and tiny local models with random weights."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caption_server import Reply, Server, answer, error, picture_in
from PIL import Image

from open_cloc.labelling.captioners import open_captioner
from open_cloc.labelling.captioners.pictures import data_url, decoded
from open_cloc.labelling.recipe import CaptionConfig
from open_cloc.labelling.types import Caption, Failure

KEY = "sk-very-secret-1234"


def encoded(number: int = 0, picture_format: str = "PNG", size: tuple[int, int] = (24, 16)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, picture_format)
    return buffer.getvalue()


def captions_of(captioner: Any, images: list[bytes]) -> list[Caption | Failure]:
    return captioner(images, [()] * len(images))


def texts_of(results: list[Caption | Failure]) -> list[str]:
    return [result.text if isinstance(result, Caption) else f"({result.cause})" for result in results]


# --- given ----------------------------------------------------------------------------------------


def test_given_takes_the_first_that_is_not_blank() -> None:
    captioner = open_captioner(CaptionConfig())
    results = captioner([b""] * 3, [["", " \n", " a mug ", "b"], [], [" "]])
    assert results[0] == Caption(" a mug ", "given")
    assert [result.cause for result in results[1:] if isinstance(result, Failure)] == ["no caption"] * 2
    assert captioner.provenance == {"name": "given"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "gpt"}, r"caption\.kind must be given, local, server or package\.module:Name; got 'gpt'"),
        ({"kind": "no.such:Thing"}, "no captioner at 'no.such:Thing'"),
        ({"requests": 0}, r"caption\.requests must be at least 1; got 0"),
        ({"retries": -1}, r"caption\.retries must be at least 0; got -1"),
        ({"max_new_tokens": 0}, r"caption\.max_new_tokens must be at least 1; got 0"),
        ({"timeout": 0.0}, r"caption\.timeout must be more than 0 seconds"),
        (
            {"kind": "server", "url": "localhost:8000/v1"},
            r"caption\.url must be like http://localhost:8000/v1",
        ),
        ({"kind": "server", "url": "http://localhost:port/v1"}, r"caption\.url must be a URL"),
    ],
)
def test_wrong_configs_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_captioner(replace(CaptionConfig(), **changes))


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture_format", ["JPEG", "PNG", "WEBP"])
def test_known_formats_are_sent_as_they_are(picture_format: str) -> None:
    image = encoded(1, picture_format)
    head, _, body = data_url(image).partition(",")
    assert head == f"data:image/{picture_format.lower()};base64"
    assert base64.b64decode(body) == image


@pytest.mark.parametrize("picture_format", ["BMP", "TIFF", "GIF"])
def test_others_are_sent_as_png(picture_format: str) -> None:
    image = encoded(1, picture_format)
    head, _, body = data_url(image).partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as sent:
        np.testing.assert_array_equal(np.asarray(sent), np.asarray(decoded(image)))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("image", [b"", b"no picture", encoded(1, "TIFF")[:40], encoded(1)[:30]])
def test_unreadable_pictures_have_a_cause_and_a_stable_message(image: bytes) -> None:
    for read in (data_url, decoded):
        result = read(image)
        if read is data_url and image.startswith(b"\x89PNG"):
            continue  # the server may judge a damaged PNG
        assert isinstance(result, Failure)
        assert result.cause == "unreadable picture"
        assert "0x" not in result.message


def test_a_picture_of_too_many_pixels_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    image = encoded(1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for result in (data_url(image), decoded(image)):
        assert isinstance(result, Failure)
        assert result.cause == "unreadable picture"


# --- a server -------------------------------------------------------------------------------------


class Sleeps(list):
    """Remembers how long it was asked to wait, and does not."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)
        await asyncio.sleep(0)


@contextmanager
def serving(
    reply: Callable[[int, dict[str, Any]], Reply], **changes: Any
) -> Iterator[tuple[Server, Any, Sleeps]]:
    """A server, a captioner of it, and the waits of its back-off."""
    pytest.importorskip("httpx")
    from open_cloc.labelling.captioners.server import ServerCaptioner

    server = Server(reply)
    sleeps = Sleeps()
    config = CaptionConfig(kind="server", model="m", url=server.url, api_key_env="TEST_CAPTION_KEY")
    captioner = None
    try:
        captioner = ServerCaptioner(replace(config, **changes), sleep=sleeps)
        yield server, captioner, sleeps
    finally:
        if captioner is not None:
            captioner.close()
        server.close()


def test_what_the_server_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_CAPTION_KEY", f" {KEY}\n")
    images = [encoded(0, "JPEG"), encoded(1, "PNG"), encoded(2, "WEBP")]
    with serving(lambda n, body: answer(" A red\nmug. "), prompt="Say.", max_new_tokens=7) as (
        server,
        captioner,
        _,
    ):
        results = captioner(images, [["old"], [], []])
        assert results == [Caption("A red mug.", "server m")] * 3
        assert {picture_in(body) for body in server.requests} == set(images)
        for body in server.requests:
            assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 7)
            parts = body["messages"][0]["content"]
            assert [part.get("text") for part in parts] == [None, "Say."]
            assert "old" not in json.dumps(body)
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
        provenance = captioner.provenance
        assert provenance["server_model"] == "org/m"
        assert (provenance["model"], provenance["prompt"], provenance["url"]) == ("m", "Say.", server.url)
        assert KEY not in json.dumps(provenance)
        assert captioner([], []) == []


def test_requests_run_together_but_never_too_many_and_answers_keep_their_order() -> None:
    images = [encoded(i) for i in range(24)]
    number_of = {image: i for i, image in enumerate(images)}
    together = threading.Barrier(4, timeout=10)

    def reply(n: int, body: dict[str, Any]) -> Reply:
        number = number_of[picture_in(body)]
        if n % 24 < 4:
            together.wait()  # passes only if four run at once, the second time from both threads
        time.sleep(0.03 * ((number * 7) % 4))
        return answer(f"picture {number}")

    with serving(reply, requests=4) as (server, captioner, _):
        assert texts_of(captions_of(captioner, images)) == [f"picture {i}" for i in range(24)]
        assert server.most == 4
        server.most = 0
        both = [threading.Thread(target=captions_of, args=(captioner, images[half::2])) for half in (0, 1)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert server.most == 4
        assert len(server.requests) == 48


def test_it_works_where_an_event_loop_runs() -> None:
    async def main(captioner: Any) -> list[Any]:
        return captions_of(captioner, [encoded(1)])

    with serving(lambda n, body: answer("fine")) as (_, captioner, _):
        assert texts_of(asyncio.run(main(captioner))) == ["fine"]


@pytest.mark.parametrize("trouble", [error(500), error(503), error(408), error(429), (0, {}, b"")])
def test_trouble_that_passes_is_waited_for(trouble: Reply) -> None:
    with serving(lambda n, body: trouble if n < 3 else answer("fine")) as (server, captioner, sleeps):
        assert texts_of(captions_of(captioner, [encoded(1)])) == ["fine"]
        assert len(server.requests) == 4
        assert [0.5 <= wait / 2**i <= 1 for i, wait in enumerate(sleeps)] == [True] * 3
        first = list(sleeps)
        server.requests.clear()
        sleeps.clear()
        captions_of(captioner, [encoded(1)])
        assert sleeps == first  # the jitter comes from the picture
        server.requests.clear()
        sleeps.clear()
        captions_of(captioner, [encoded(2)])
        assert sleeps != first


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [("7", 7, 7), ("0", 0.5, 1), ("nan", 0.5, 1), ("soon", 0.5, 1), ("99999", 600, 600), ("date", 25, 31)],
)
def test_retry_after_is_honoured(header: str, low: float, high: float) -> None:
    def reply(n: int, body: dict[str, Any]) -> Reply:
        value = formatdate(time.time() + 30, usegmt=True) if header == "date" else header
        return error(429, Retry_After=value) if n == 0 else answer("fine")

    with serving(reply) as (_, captioner, sleeps):
        assert texts_of(captions_of(captioner, [encoded(1)])) == ["fine"]
        assert len(sleeps) == 1
        assert low <= sleeps[0] <= high


def test_a_server_that_stays_busy_stops_the_run() -> None:
    with serving(lambda n, body: error(429, "slow down"), retries=2) as (server, captioner, _):
        with pytest.raises(
            ConnectionError, match=r"answered 429: slow down; lower caption\.requests .*\(tried 3"
        ):
            captions_of(captioner, [encoded(1)])
        assert len(server.requests) == 3


def test_one_picture_that_breaks_the_server_is_a_failure_and_all_stop_the_run() -> None:
    poison = encoded(3)
    images = [encoded(i) for i in range(5)]

    def reply(n: int, body: dict[str, Any]) -> Reply:
        return error(500, "out of memory") if picture_in(body) == poison else answer("fine")

    with serving(reply, retries=1) as (server, captioner, _):
        results = captions_of(captioner, images)
        assert texts_of(results) == ["fine"] * 3 + ["(server error)", "fine"]
        assert "answered 500: out of memory (tried 2 times)" in results[3][1]
        assert texts_of(captions_of(captioner, [poison])) == ["(server error)"]  # others have been answered
        server.reply = lambda n, body: error(502, "bad gateway")
        with pytest.raises(ConnectionError, match=r"failed on all 5 pictures of a batch.*502: bad gateway"):
            captions_of(captioner, images)


def test_a_server_that_stalls_times_out() -> None:
    slow = encoded(0)
    images = [slow, encoded(1)]

    def reply(n: int, body: dict[str, Any]) -> Reply:
        if picture_in(body) == slow:
            server.stall()
        return answer("fine")

    with serving(reply, timeout=0.3, retries=1) as (server, captioner, _):
        start = time.perf_counter()
        assert texts_of(captions_of(captioner, images)) == ["(server timed out)", "fine"]
        assert 0.6 <= time.perf_counter() - start < 5
        assert len(server.requests) == 3
        with pytest.raises(ConnectionError, match=r"failed on all 2 pictures.*gave no answer in 0\.3 s"):
            captions_of(captioner, [slow, slow])


def test_a_trickle_of_bytes_times_out_too() -> None:
    with serving(lambda n, body: answer("fine"), timeout=0.4, retries=0) as (server, captioner, _):
        assert texts_of(captions_of(captioner, [encoded(1)])) == ["fine"]
        server.trickle = 0.05  # a byte well within any limit between bytes
        start = time.perf_counter()
        assert texts_of(captions_of(captioner, [encoded(1)])) == ["(server timed out)"]
        assert time.perf_counter() - start < 3


def test_a_server_that_is_not_there_is_named() -> None:
    pytest.importorskip("httpx")
    from open_cloc.labelling.captioners.server import ServerCaptioner

    server = Server(lambda n, body: answer("x"))
    server.close()
    sleeps = Sleeps()
    config = CaptionConfig(kind="server", model="m", url=server.url, retries=2)
    with pytest.raises(ConnectionError) as caught:
        ServerCaptioner(config, sleep=sleeps)
    message = str(caught.value)
    assert f"no server answers at {server.url}/models" in message
    assert "(tried 3 times); start a server" in message
    assert len(sleeps) == 2


def test_a_server_that_goes_away_stops_the_run() -> None:
    with serving(lambda n, body: answer("fine"), retries=1) as (server, captioner, _):
        captions_of(captioner, [encoded(1)])
        server.http.shutdown()
        server.http.server_close()
        captioner._run(captioner._client._transport.aclose())  # the server's end of open connections lives on
        with pytest.raises(
            ConnectionError, match=r"no server answers at .*/chat/completions.*\(tried 2 times\)"
        ):
            captions_of(captioner, [encoded(1), encoded(2)])
        server.http.shutdown = lambda: None  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "set the environment variable TEST_CAPTION_KEY to the server's key"),
        (403, "set the environment variable TEST_CAPTION_KEY to a key that may use this model"),
        (404, r"check caption\.url \(up to /v1\) and caption\.model='m'"),
        (301, r"check caption\.url"),
    ],
)
def test_what_no_repetition_helps_stops_the_run_at_once(
    status: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_CAPTION_KEY", KEY)
    with serving(lambda n, body: error(status, f"not with\n{KEY}!")) as (server, captioner, sleeps):
        with pytest.raises(ValueError, match=rf"answered {status}: not with \*\*\*!; {advice}") as caught:
            captions_of(captioner, [encoded(1)])
        assert KEY not in str(caught.value)
        assert f"{server.url}/chat/completions" in str(caught.value)
        assert len(server.requests) == 1
        assert sleeps == []


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_picture_is_a_failure(status: int) -> None:
    bad = encoded(1)

    def reply(n: int, body: dict[str, Any]) -> Reply:
        return error(status, "too large") if picture_in(body) == bad else answer("fine")

    with serving(reply) as (server, captioner, sleeps):
        results = captions_of(captioner, [encoded(0), bad, b"no picture"])
        assert texts_of(results) == ["fine", "(refused by server)", "(unreadable picture)"]
        assert f"answered {status}: too large" in results[1][1]
        assert len(server.requests) == 2
        assert sleeps == []


@pytest.mark.parametrize(
    "reply",
    [
        (200, {}, b"<html>"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"message": {}}]}'),
        (200, {}, b'{"choices": [{"message": null}]}'),
        (200, {}, b"[]"),
        (200, {}, b"\xff\xfe\x00"),
        (200, {"Content_Encoding": "gzip"}, b"no gzip"),
        answer(""),
        answer(" \n"),
        answer(None),
        answer([{"type": "text"}]),
    ],
)
def test_unusable_answers_are_asked_for_once_more(reply: Reply) -> None:
    broken = "Content_Encoding" in reply[1]  # says the transport, hence counts with dropped connections
    with serving(lambda n, body: reply if n else answer("fine"), retries=1 if broken else 5) as (
        server,
        captioner,
        _,
    ):
        captions_of(captioner, [encoded(1)])
        server.requests.clear()
        server.reply = lambda n, body: reply
        cause = "server error" if broken else "unusable answer"
        assert texts_of(captions_of(captioner, [encoded(1)])) == [f"({cause})"]
        assert len(server.requests) == 2
        server.requests.clear()
        server.reply = lambda n, body: answer("fine") if n else reply
        assert texts_of(captions_of(captioner, [encoded(1)])) == ["fine"]


def test_models_of_the_server() -> None:
    def listing(*entries: dict[str, str]) -> Reply:
        return 200, {}, json.dumps({"data": list(entries)}).encode()

    pytest.importorskip("httpx")
    from open_cloc.labelling.captioners.server import ServerCaptioner

    server = Server(lambda n, body: answer(body["model"]))
    config = CaptionConfig(kind="server", url=server.url.replace("//", "//user:word@") + "/")

    def opened(**changes: Any) -> ServerCaptioner:
        return ServerCaptioner(replace(config, **changes), sleep=Sleeps())

    captioner = opened()  # the only one needs no name
    assert texts_of(captions_of(captioner, [encoded(1)])) == ["m"]
    assert captioner.provenance["url"] == server.url
    captioner.close()
    captioner.close()
    server.models = listing({"id": "a"}, {"id": "b"})
    with pytest.raises(ValueError, match=rf"caption\.model must name a model of {server.url}; it has a, b"):
        opened()
    for reply in (error(404), error(500), (200, {}, b"<html>"), (200, {}, b"[1]"), (0, {}, b"")):
        server.models = reply if reply[0] else error(503)
        captioner = opened(model="x", retries=1)  # what it does not tell is not needed
        assert captioner.provenance["server_model"] is None
        captioner.close()
    server.models = error(401, "who are you")
    with pytest.raises(ValueError, match=r"/models answered 401: who are you; set the environment variable"):
        opened(model="x")
    server.close()


def test_a_key_that_no_header_can_hold_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk schlüssel")
    with pytest.raises(ValueError, match="the key in the environment variable OPENAI_API_KEY") as caught:
        open_captioner(CaptionConfig(kind="server", model="m"))
    assert "schlüssel" not in str(caught.value)


# --- local models ---------------------------------------------------------------------------------

WORDS = [f"w{i}" for i in range(60)]
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
TEMPLATE = (
    "<s> {% for m in messages %}{{ m['role'] }} {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}w1 w2{% endif %}"
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
    save_random(LlavaNextForConditionalGeneration(config), folder)
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


@pytest.fixture(scope="module")
def local_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in LOCAL}
    for name, save in LOCAL.items():
        save(folders[name])
    return folders


def local_config(folder: Path, **changes: Any) -> CaptionConfig:
    return CaptionConfig(
        **{"kind": "local", "model": str(folder), "max_new_tokens": 8, "prompt": "w5 w6"} | changes
    )


SHAPES = [(24, 16), (64, 16), (16, 64), (40, 40), (7, 5), (1, 1), (90, 30)]


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
    assert alone[0] == Caption(texts[0], f"local {local_models[name]}")
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
    for prompt in ("w5 w6", "w40 w41 w42"):
        captioner = open_captioner(local_config(folder, prompt=prompt))
        assert captioner.provenance["prompt"] == f"<s> user <image> {prompt} w1 w2"
        expected = []
        for image in images:
            text = f"<s> user <image> {prompt} w1 w2"
            inputs = processor(
                images=decoded(image), text=text, return_tensors="pt", add_special_tokens=False
            )
            asked = inputs["input_ids"].shape[1]
            assert (inputs["input_ids"] == 1).sum() == 1  # one start of text
            for _ in range(8):
                logits = model(**inputs, use_cache=False).logits[0, -1]
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
    import shutil

    from safetensors.torch import load_file, save_file

    with pytest.raises(ValueError, match=r"caption\.model must be a folder or hub name"):
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
