"""Named protocols: what each fixes, and numbers that equal the script that it is called after."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from open_cloc.canvas import CanvasConfig
from open_cloc.cli.main import main
from open_cloc.data.readers import open_reader
from open_cloc.errors import UserError
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.protocols import PROTOCOLS
from open_cloc.evaluation.run import evaluate, result_table
from open_cloc.model.cloc import CLOC
from open_cloc.texts import TextCleaning
from tests.data.readers.made import write_lvis
from tests.evaluation.tiny_data import NAMES, Samples, method_for, suited

TASK = "zeroshot_region_classification"


class Seen:
    """A method of random features, coarse enough that classes tie; it remembers the texts."""

    canvas = CanvasConfig(image_size=(16, 16))

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.draw = np.random.default_rng(0)

    def describe(self) -> dict[str, Any]:
        return {"method": "seen", "model": "none", "pretrained": ""}

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        self.texts += texts
        rows = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=6) for text in texts]
        return F.normalize(torch.tensor(np.array(rows), dtype=torch.float32), dim=-1)

    def embed_images(self, batch: Any) -> Tensor:
        return self._rows(len(batch.samples))

    def embed_regions(self, batch: Any, boxes: Sequence[np.ndarray]) -> Tensor:
        return self._rows(sum(map(len, boxes)))

    def _rows(self, count: int) -> Tensor:
        return F.normalize(torch.tensor(self.draw.normal(size=(count, 6)), dtype=torch.float32), dim=-1)


def test_fgclip_is_ten_lines_of_its_script(samples: Samples) -> None:
    """80 templates, lower-cased once written out; normalise, mean, normalise; top 1 over boxes."""
    samples.class_names = NAMES
    method = Seen()
    result = evaluate(method, samples, TASK, EvaluationConfig(protocol="fgclip"))
    again = Seen()
    boxes = F.normalize(
        torch.cat([again.embed_regions(None, [np.zeros((len(s.regions), 4))]) for s in samples]), dim=-1
    )
    classes = []
    for name in NAMES:
        texts = [template(name.lower()).lower() for template in OPENAI_IMAGENET_TEMPLATES]
        features = again.embed_texts(texts)
        features = features / features.norm(dim=-1, keepdim=True)
        mean = features.mean(0)
        classes.append(mean / mean.norm())
    logits = boxes @ torch.stack(classes).T
    names = [name.lower() for name in NAMES]
    targets = torch.tensor([names.index(r.text.lower()) for s in samples for r in s.regions])
    assert result["metrics"]["acc1"] == pytest.approx((logits.argmax(1) == targets).float().mean().item())
    top5 = (logits.topk(5, dim=1).indices == targets[:, None]).any(1).float().mean().item()
    assert result["metrics"]["acc5"] == pytest.approx(top5)
    assert len(set(method.texts)) == 80 * len(NAMES)
    assert all(text == text.lower() for text in method.texts)
    assert result["protocol"]["name"] == "fgclip"
    assert result["protocol"]["rules"]["source"].startswith("FG-CLIP")


def test_templates_may_be_mixed() -> None:
    own = EvaluationConfig(templates=("a {}", "openai-imagenet")).rules.texts_of("mug")
    assert own == ["a mug", *(template("mug") for template in OPENAI_IMAGENET_TEMPLATES)]


def test_names_are_bare_in_the_papers_protocol(model: CLOC, samples: Samples) -> None:
    samples.class_names = NAMES
    plain = evaluate(model, samples, TASK)
    named = evaluate(model, samples, TASK, EvaluationConfig(protocol="cloc"))
    assert named["metrics"] == plain["metrics"]
    assert (named["protocol"]["name"], plain["protocol"]["name"]) == ("cloc", "")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_each_protocol_runs_the_tasks_that_it_is_for(model: CLOC, samples: Samples, name: str) -> None:
    for task, metric in PROTOCOLS[name].metrics.items():
        config, data = EvaluationConfig(protocol=name), suited(samples, task)
        data.class_groups = {"thing": NAMES}  # type: ignore[attr-defined]
        result = evaluate(model, data, task, config, method=method_for(task))
        # Of groups of classes, as a data set has them that knows some.
        assert metric.partition("/")[0] in result["metrics"]
        assert result_table(result).endswith(f"under the protocol {name} are of: {PROTOCOLS[name].subset}")
        json.dumps(result)


def test_a_protocol_is_not_for_every_task(model: CLOC, samples: Samples) -> None:
    with pytest.raises(UserError, match="fgclip is for zeroshot_region_classification; for grounding there"):
        evaluate(model, samples, "grounding", EvaluationConfig(protocol="fgclip"), method="ranked")


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """Two pictures, three boxes, one of a crowd."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / f"{name}.jpg")
    annotations = [
        {"id": n, "image_id": 1 + n % 2, "category_id": 1 + n % 2, "bbox": [1, 2, 10, 12], "iscrowd": crowd}
        for n, crowd in enumerate((0, 1, 0))
    ]
    document = {
        "images": [{"id": n, "file_name": f"{name}.jpg"} for n, name in ((1, "a"), (2, "b"))],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(document))
    return tmp_path / "instances.json"


def test_crowds_count_where_the_script_counts_them(crowded: Path) -> None:
    plain, with_crowds = f"coco:{crowded}", f"coco:{crowded},crowds=true"
    assert sum(len(sample.regions) for sample in open_reader(plain)) == 2
    assert sum(len(sample.regions) for sample in open_reader(with_crowds)) == 3
    fgclip, paper = EvaluationConfig(protocol="fgclip"), EvaluationConfig(protocol="cloc")
    counted = evaluate(Seen(), with_crowds, TASK, fgclip)
    assert counted["protocol"]["num_regions"] == 3
    left = evaluate(Seen(), plain, TASK, paper)
    assert left["protocol"]["num_regions"] == 2
    assert left["protocol"]["left_out_by_reader"] == {"crowd annotations": 1}
    with pytest.raises(UserError, match="protocol fgclip counts crowds: open the data with ,crowds=true"):
        evaluate(Seen(), plain, TASK, fgclip)
    with pytest.raises(UserError, match="protocol cloc leaves out crowds: open the data with ,crowds=false"):
        evaluate(Seen(), with_crowds, TASK, paper)
    assert evaluate(Seen(), with_crowds, TASK)["protocol"]["num_regions"] == 3


def test_the_command_knows_protocols(crowded: Path, tmp_path: Path, capsys: Any) -> None:
    argv = ["eval", TASK, "--data", f"coco:{crowded}", "--weights", "w", "--protocol"]
    assert main([*argv, "fgclp"]) == 2
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.parametrize(("protocol", "as_written"), [("fgclip-long", False), ("clip", True)])
def test_captions_are_lower_cased_where_the_script_does_it(
    samples: Samples, protocol: str, as_written: bool
) -> None:
    """Also for a model that reads capitals."""
    method: Any = Seen()
    method.cleaning = TextCleaning(lower_case=False)
    data = Samples(replace(sample, captions=(f"A Dog {sample.key}",)) for sample in samples)
    result = evaluate(method, data, "zeroshot_retrieval", EvaluationConfig(protocol=protocol))
    assert all(text.startswith("A Dog" if as_written else "a dog") for text in method.texts)
    ks = {name.partition("@")[2] for name in result["metrics"]}
    assert ks == ({"1", "5", "10"} if as_written else {"1"})


def test_shards_say_what_their_source_said(crowded: Path, tmp_path: Path) -> None:
    """Class names that do not occur, and whether crowds are among the boxes; so numbers stay the same."""
    for name, crowds in (("with", "true"), ("without", "false")):
        assert main(["data", "convert", f"coco:{crowded},crowds={crowds}", str(tmp_path / name)]) == 0
    fgclip, paper = EvaluationConfig(protocol="fgclip"), EvaluationConfig(protocol="cloc")
    direct = evaluate(Seen(), f"coco:{crowded},crowds=true", TASK, fgclip)
    shards = evaluate(Seen(), f"shards:{tmp_path / 'with'}", TASK, fgclip)
    assert shards["metrics"] == direct["metrics"]
    assert shards["protocol"]["num_classes"] == direct["protocol"]["num_classes"] == 2
    assert sum(region.crowd for s in open_reader(f"shards:{tmp_path / 'with'}") for region in s.regions) == 1
    with pytest.raises(UserError, match="protocol fgclip counts crowds: open the data with"):
        evaluate(Seen(), f"shards:{tmp_path / 'without'}", TASK, fgclip)
    with pytest.raises(UserError, match="protocol cloc leaves out crowds"):
        evaluate(Seen(), f"shards:{tmp_path / 'with'}", TASK, paper)
    (tmp_path / "with" / "dataset.json").unlink()
    with pytest.raises(UserError, match="these data do not say whether they have some"):
        evaluate(Seen(), f"shards:{tmp_path / 'with'}", TASK, fgclip)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "must be a table"),
        ('{"class_names": "cat"}', "class_names must be a list"),
        ('{"class_names": [1]}', "class names must be text"),
        ('{"class_groups": {"thing": "cat"}}', "class group 'thing' must be a list"),
        ('{"num_crowds": true}', "num_crowds must be a int"),
    ],
)
def test_a_broken_dataset_file_is_named(crowded: Path, tmp_path: Path, content: str, told: str) -> None:
    assert main(["data", "convert", f"coco:{crowded}", str(tmp_path / "out")]) == 0
    (tmp_path / "out" / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=told):
        open_reader(f"shards:{tmp_path / 'out'}")


def test_a_quoted_group_must_be_there(model: CLOC, samples: Samples) -> None:
    with pytest.raises(UserError, match=r"quotes mean_per_class_recall/thing.*open them as panoptic:PATH"):
        evaluate(model, samples, TASK, EvaluationConfig(protocol="clipself"))


def test_what_is_no_protocol_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"os.path:join is no open_cloc.evaluation.protocols.Protocol but function"
    ):
        EvaluationConfig(protocol="os.path:join")


def test_a_result_holds_no_rule_that_was_not_followed(model: CLOC, samples: Samples) -> None:
    config = EvaluationConfig(templates=("a {}",), recall_k=(3,), duplicates="any")
    rules = evaluate(model, samples, "region_retrieval", config)["protocol"]["rules"]
    assert (rules["templates"], rules["recall_k"], rules["duplicates"]) == (["{}"], [3], "any")
    plain = evaluate(model, samples, "region_health", config)["protocol"]["rules"]
    assert (plain["templates"], plain["recall_k"], plain["duplicates"]) == (["{}"], [], "own")


def test_what_the_script_would_have_skipped_is_counted(tmp_path: Path) -> None:
    """LVIS's val pictures lie in two folders of COCO, of which FG-CLIP's script is given one."""
    found = evaluate(Seen(), f"lvis:{write_lvis(tmp_path)}", TASK, EvaluationConfig(protocol="fgclip"))
    assert found["protocol"]["num_regions"] == 2
    assert found["protocol"]["num_regions_that_the_script_skips"] == 1
    assert "num_regions_that_the_script_skips" not in evaluate(Seen(), f"lvis:{tmp_path}", TASK)["protocol"]
