"""Fixtures that several areas share: towers small enough to be built and run in a few milliseconds."""

from __future__ import annotations

import gc
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# By itself 15, and other tests leave Ray's workers no time.
os.environ.setdefault("RAY_worker_niceness", "0")
# By itself a second, and the next run's workers import everything anew.
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "120000")
# Without a GPU, kernels run in Triton's interpreter, which is chosen when Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
torch.set_num_threads(1)

# Modules that share a Ray cluster.
ON_RAY = tuple(f"tests/labelling/test_{name}.py" for name in ("actors", "cluster", "pipeline"))
# Modules that start many processes, longest first: one that starts last runs alone at the end.
LONG = (
    *ON_RAY,
    *(f"tests/training/test_{name}.py" for name in ("parallelize", "checkpoint", "loop", "terms")),
    "tests/cli/test_demo.py",
    "tests/contracts/test_detectors.py",
    "tests/test_docs.py",
    "tests/cli/test_main.py",
    "tests/training/test_compile.py",
)


def module_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {module: place for place, module in enumerate(LONG)}
    items.sort(key=lambda item: places.get(module_of(item.nodeid), len(LONG)))


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector need not look through all of it after every few tests."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """A module of tests stays in one process, and so do all that share a Ray cluster: both start but once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = module_of(nodeid)
            return ON_RAY[0] if module in ON_RAY else module

    config.option.loadscopereorder = False  # modules of many tests are not those that take long
    return ByModule(config, log)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPEN_CLOC_CACHE", str(tmp_path_factory.getbasetemp() / "open_cloc_cache"))


@pytest.fixture
def tiny_model_cfg() -> dict[str, Any]:
    """open_clip's config of a two-layer ViT of 4 x 4 patches and a two-layer text tower."""
    return {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
        "text_cfg": {"width": 32, "heads": 2, "layers": 2, "context_length": 16},
    }


@pytest.fixture(scope="session")
def text_tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer BERT with weights and a word-piece tokenizer, made offline."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("hf") / "tiny_bert"
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "dog",
        "cat",
        "two",
        "red",
        "small",
        "on",
        "mat",
    ]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
        )
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def hf_clip(tmp_path_factory: pytest.TempPathFactory, text_tower: Path) -> Path:
    """Folder of a random two-layer CLIP of transformers, with its image processor and a tokenizer."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path_factory.mktemp("hf") / "tiny_clip"
    tokenizer = AutoTokenizer.from_pretrained(text_tower)
    ends = {
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = size | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    vision = size | {"image_size": 32, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        CLIPModel(config).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def fgclip(tmp_path_factory: pytest.TempPathFactory, hf_clip: Path) -> Path:
    """Folder of a random FG-CLIP: a CLIP of transformers with its tensors beside, and names of its code."""
    from safetensors.torch import load_file, save_file
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("hf") / "tiny_fgclip"
    shutil.copytree(hf_clip, folder)
    config = CLIPConfig.from_pretrained(hf_clip)
    config.text_config.max_position_embeddings = 77
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = CLIPModel(config)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder)
        state = load_file(folder / "model.safetensors")
        state["text_filip_projection.weight"] = 0.3 * torch.randn(24, 32)
        for name in ("ori", "res"):
            state[f"text_model.embeddings.position_embedding_{name}.weight"] = torch.randn(248, 32)
        for name in ("finegraind", "hardneg"):
            state[f"logit_scale_{name}"] = torch.tensor(2.0)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    named = {
        "AutoConfig": "modeling_fgclip.FGCLIPConfig",
        "AutoModelForCausalLM": "modeling_fgclip.FGCLIPModel",
    }
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"architectures": ["FGCLIPModel"], "auto_map": named})
    )
    return folder


@pytest.fixture(scope="session")
def tipsv2(tmp_path_factory: pytest.TempPathFactory, text_tower: Path) -> Path:
    """Folder of a random two-layer TIPSv2 with its image processor and a tokenizer."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "Tipsv2Model"):
        pytest.skip("this version of transformers has no TIPSv2")
    folder = tmp_path_factory.mktemp("hf") / "tiny_tips"
    tokenizer = transformers.AutoTokenizer.from_pretrained(text_tower)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = size | {"intermediate_size": 64, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    vision = size | {"mlp_ratio": 2, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        config = transformers.Tipsv2Config(text_config=text, vision_config=vision)
        transformers.Tipsv2Model(config).save_pretrained(folder)
    transformers.Tipsv2ImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def owlv2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer OWLv2 with its image processor and a tokenizer."""
    from transformers import Owlv2ImageProcessor

    from tests.labelling.detectors.made import SIZE, make_owl

    folder = make_owl(tmp_path_factory.mktemp("hf") / "tiny_owl", "owlv2")
    Owlv2ImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder
