"""One sentence against others, against a slow reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from open_cloc.errors import UserError
from open_cloc.evaluation.collect import collect_regions
from open_cloc.evaluation.methods import open_method
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.run import evaluate
from open_cloc.model.cloc import CLOC
from open_cloc.samples import Text
from tests.evaluation.tiny_data import NAMES, Samples


def with_negatives(samples: Samples, count: int = 3) -> Samples:
    made = Samples()
    for sample in samples:
        regions = []
        for region in sample.regions:
            others = [name for name in NAMES if name.lower() != region.text.lower()][:count]
            regions.append(replace(region, texts=tuple(Text(name, "negative") for name in others)))
        made.append(replace(sample, regions=tuple(regions)))
    return made


def test_it_is_the_slow_reference(model: CLOC, samples: Samples) -> None:
    data = with_negatives(samples)
    result = evaluate(model, data, "fine_grained")
    method = open_method("prompter", model)
    with torch.inference_mode():
        features = iter(collect_regions(method, data, EvaluationConfig()).features)
        hits = []
        for sample in data:
            for region in sample.regions:
                row = next(features)
                texts = [region.text, *(text.text for text in region.texts)]
                scores = [float(method.embed_texts([text.lower()])[0] @ row) for text in texts]
                hits.append(scores[0] == max(scores))
    assert result["metrics"]["acc1"] == pytest.approx(sum(hits) / len(hits))
    assert 0 < result["metrics"]["acc1"] < 1
    assert result["protocol"]["num_sentences"] == 4 * len(hits)


def test_ties_are_shared_or_won_as_the_protocol_says(model: CLOC, samples: Samples) -> None:
    data = Samples(
        replace(s, regions=tuple(replace(r, texts=(Text(r.text, "negative"),)) for r in s.regions))
        for s in samples
    )
    shared = evaluate(model, data, "fine_grained")
    assert shared["metrics"]["acc1"] == 0.5
    won = evaluate(model, data, "fine_grained", EvaluationConfig(protocol="fgclip-fgovd"))
    assert won["metrics"]["acc1"] == 1.0
    assert won["protocol"]["ties"] == "the right sentence wins"


def test_a_region_without_wrong_sentences_is_refused(model: CLOC, samples: Samples) -> None:
    with pytest.raises(UserError, match=r"texts of the role 'negative'; region 0 of sample 's1' has none"):
        evaluate(model, samples, "fine_grained")
