"""Dense segmentation against SCLIP's rule in plain words, on maps that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from open_cloc.errors import SampleError, UserError
from open_cloc.evaluation.options import EvaluationConfig
from open_cloc.evaluation.protocols import PROTOCOLS, DenseRules
from open_cloc.evaluation.run import FirstSamples, evaluate
from open_cloc.evaluation.tasks.segmentation import named
from open_cloc.model.cloc import CLOC
from tests.evaluation.tiny_data import Mapped, Samples, with_maps


@pytest.mark.parametrize("protocol", ["", "sclip", "sclip-voc21", "tips"])
def test_numbers_are_those_of_a_confusion_matrix(model: CLOC, samples: Samples, protocol: str) -> None:
    from open_cloc.evaluation.classes import embed_classes
    from open_cloc.evaluation.methods import open_method
    from open_cloc.evaluation.windows import cosines_of

    data, config = with_maps(samples), EvaluationConfig(protocol=protocol, batch_size=4)
    result = evaluate(model, data, "segmentation", config, method="roialign,tokens=csa")
    method = open_method("roialign,tokens=csa", model)
    texts = embed_classes(method, ["red dog", "dog", "blue cat", "green tree", "small house"], config)
    matrix = np.zeros((4, 4))
    with torch.inference_mode():
        for index, sample in enumerate(data):
            truth = data.label_map(index)
            near = cosines_of(method, sample, sample.pixels(), texts, config.rules.dense, 4)  # type: ignore[arg-type]
            found = by_script(near, truth.shape, config.rules.dense)
            np.add.at(matrix, (truth[truth >= 0], found[truth >= 0]), 1)
    right, there, called = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    union = there + called - right
    ious = right[union > 0] / union[union > 0]
    assert result["metrics"]["miou"] == pytest.approx(ious.mean(), abs=1e-9)
    assert result["metrics"]["pixel_acc"] == pytest.approx(right.sum() / matrix.sum(), abs=1e-9)
    assert result["metrics"]["mean_per_class_recall"] == pytest.approx(
        (right[:3] / there[:3]).mean(), abs=1e-9
    )
    protocol_said = result["protocol"]
    assert (protocol_said["num_classes"], protocol_said["num_classes_that_occur"]) == (4, 3)
    assert protocol_said["num_texts"] == 5
    assert protocol_said["num_pixels"] == matrix.sum()


def by_script(near: Tensor, shape: tuple[int, ...], rules: DenseRules) -> np.ndarray:
    """What SCLIP's `postprocess_result` says, in its own order."""
    large = torch.nn.functional.interpolate(near[None], shape, mode="bilinear")[0]
    likely = (rules.scale * large).softmax(0) if rules.average == "cosines" else large
    classes = torch.stack([likely[:2].amax(0), *likely[2:]])
    if rules.least_area:
        called = torch.stack([classes.argmax(0) == number for number in range(1, 4)]).float().sum((1, 2))
        classes[1:] *= (called > rules.least_area * called.sum()).float()[:, None, None]
    found = classes.argmax(0)
    found[classes.amax(0) < rules.background] = 0
    return found.numpy()


def test_places_that_are_like_nothing_are_background() -> None:
    near = torch.tensor([[[0.0]], [[0.02]], [[0.0]]])
    owners = torch.arange(3)
    assert named(near, owners, (2, 2), DenseRules()).unique().tolist() == [1]
    assert named(near, owners, (2, 2), DenseRules(background=0.9)).unique().tolist() == [0]


def test_sclip_drops_what_covers_little() -> None:
    near = torch.zeros(3, 10, 10)
    near[1, :, :9], near[2, :, 9], near[2, 0, :] = 1.0, 1.0, 2.0
    found = named(near, torch.arange(3), (10, 10), DenseRules(least_area=0.3))
    assert found.unique().tolist() == [0, 1]  # class 2 has 19 of 100 places
    assert (named(near, torch.arange(3), (10, 10), DenseRules()) == 2).sum() == 19


def test_what_cannot_be_segmented_is_refused(model: CLOC, samples: Samples) -> None:
    with pytest.raises(UserError, match="no embedding for each place; those that do: roialign"):
        evaluate(model, with_maps(samples), "segmentation", method="prompter")
    with pytest.raises(UserError, match="label maps are of 4 classes; got names for 2"):
        evaluate(model, with_maps(samples), "segmentation", EvaluationConfig(classes=("a", "b")))
    doubled = with_maps(samples)
    doubled.class_names = ("red dog, dog, red dog", "dog", "cat", "tree")
    with pytest.raises(UserError, match="class 'red dog, dog, red dog' has the name 'red dog' twice"):
        evaluate(model, doubled, "segmentation")
    with pytest.raises(UserError, match="needs a label map for each picture: open the data as masks:"):
        evaluate(model, samples, "segmentation", method="roialign")

    class Other(Mapped):
        def label_map(self, index: int) -> np.ndarray:
            return np.zeros((3, 4), np.int64)

    with pytest.raises(SampleError, match=r"one size; got 4 x 3, 70 x 40 \(sample 's0'\)"):
        evaluate(model, Other(with_maps(samples)), "segmentation", method="roialign")

    class Empty(Mapped):
        def label_map(self, index: int) -> np.ndarray:
            return super().label_map(index) * 0 - 1

    with pytest.raises(UserError, match="no pixel of the 9 label maps is of a class"):
        evaluate(model, Empty(with_maps(samples)), "segmentation", method="roialign")


def test_the_result_says_how_tokens_were_read(model: CLOC, samples: Samples) -> None:
    """And without a method, the one that knows places is taken."""
    plain = evaluate(model, with_maps(samples), "segmentation")["protocol"]
    assert (plain["method"], plain["tokens"]) == ("roialign", "last")
    read = evaluate(model, with_maps(samples), "segmentation", method="roialign,tokens=csa")["protocol"]
    assert (read["method"], read["tokens"]) == ("roialign,tokens=csa", "csa")
    spaced = with_maps(samples)
    spaced.class_names = ("red dog, dog, ", " blue cat", "green tree,", "small house")
    again = evaluate(model, spaced, "segmentation")
    assert again["metrics"] == evaluate(model, with_maps(samples), "segmentation")["metrics"]


def test_the_first_pictures_keep_their_maps(model: CLOC, samples: Samples) -> None:
    data = with_maps(samples)
    some = evaluate(model, FirstSamples(data, 3), "segmentation", method="roialign")
    alone = evaluate(model, Mapped(data[:3]), "segmentation", method="roialign")
    assert some["metrics"] == alone["metrics"]


def test_protocols_say_what_their_scripts_set() -> None:
    assert PROTOCOLS["sclip"].dense == DenseRules(1.5, 0.5, 40.0, "cosines", interpolation="bilinear")
    assert PROTOCOLS["sclip-stuff"].dense == DenseRules(2.0, interpolation="bilinear")
    assert PROTOCOLS["tips"].dense.average == "probabilities"
    assert len(PROTOCOLS["tips"].templates) == 9


def test_a_name_of_two_classes_is_the_firsts(
    model: CLOC, samples: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    """COCO-Object's class file has `bed` among the background's names and as a class."""
    told = with_maps(samples)
    told.class_names = ("red dog, dog", "blue cat", "dog", "small house")
    config = EvaluationConfig(protocol="sclip-background")
    found = evaluate(model, told, "segmentation", config)
    assert "a name is of several classes, of which the first is answered (1 in all): 'dog'" in caplog.text
    assert (found["protocol"]["num_texts"], found["protocol"]["num_classes"]) == (5, 4)
    near = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    rows, owners = [0, 1, 2, 1, 3], torch.tensor([0, 0, 1, 2, 3])
    chosen = named(near[rows], owners, (9, 15), DenseRules())
    assert 2 not in chosen
    assert {0, 1, 3} == set(chosen.unique().tolist())
