"""The loader: determinism, resume, region draws, bad samples; worker-count independence."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, get_worker_info

from open_cloc.data.augment import AugmentConfig
from open_cloc.data.bad_samples import BadSample, BadSamples, is_surely_above
from open_cloc.data.collate import LoaderConfig
from open_cloc.data.loader import RegionLoader
from open_cloc.data.mixture import Mixture
from open_cloc.data.shards.read import ShardDataset
from open_cloc.data.shards.remote import open_shards
from open_cloc.data.shards.write import write_shards
from open_cloc.evaluation.batches import evaluation_batches
from open_cloc.samples import Region, RegionBatch, RegionSample
from open_cloc.texts import TextCleaning


@dataclass(frozen=True)
class Canvas:
    image_size: tuple[int, int] = (32, 32)
    resize_mode: str = "longest"
    interpolation: str = "bilinear"
    fill: tuple[int, int, int] = (7, 8, 9)


class Tokenize:
    """One token a character, padded to the longest: texts can be read back."""

    clean = TextCleaning()

    def __call__(self, texts: list[str]) -> torch.Tensor:
        width = max(1, *map(len, texts))
        return torch.tensor([[*map(ord, text), *[0] * (width - len(text))] for text in texts])

    def lengths(self, token_ids: torch.Tensor) -> torch.Tensor:
        return (token_ids > 0).sum(1)


tokenize = Tokenize()


def read_back(row: torch.Tensor) -> str:
    return "".join(chr(token) for token in row.tolist() if token)


def sample(number: int, num_regions: int = 6) -> RegionSample:
    rng = np.random.default_rng(number)
    height, width = rng.integers(20, 60, 2)
    corners = np.sort(rng.uniform(0, 1, (num_regions, 2, 2)), axis=1)
    corners[:, 1] = np.minimum(corners[:, 1] + 0.2, 1)  # nothing too small
    corners[:, 0] = np.minimum(corners[:, 0], 0.7)
    regions = tuple(
        Region(tuple(box.reshape(4).tolist()), f"Thing {number} {i}") for i, box in enumerate(corners)
    )
    pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    return RegionSample(f"s{number}", pixels, (f"caption {number} a", f"caption {number} b"), regions)


DATA = [sample(number, num_regions=number % 7) for number in range(21)]
CONFIG = LoaderConfig(num_regions=3, workers=0, augment=AugmentConfig(0.5, 0.6))


def load(
    data=DATA, config: LoaderConfig = CONFIG, *args, batch_size: int = 4, **options
) -> list[RegionBatch]:  # type: ignore[no-untyped-def]
    return list(RegionLoader(data, Canvas(), tokenize, config, *args, batch_size=batch_size, **options))


def assert_same(left: list[RegionBatch], right: list[RegionBatch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right):
        for name, value in vars(a).items():
            other = getattr(b, name)
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


def test_shapes_types_and_masks() -> None:
    for batch in load():
        assert batch.images.shape == (4, 3, 32, 32)
        assert batch.images.dtype == torch.uint8
        assert batch.boxes.shape == (4, 3, 4)
        assert batch.boxes.dtype == torch.float32
        assert batch.region_mask.shape == batch.region_text_index.shape == (4, 3)
        assert (batch.boxes[~batch.region_mask] == 0).all()
        assert (batch.region_text_index[~batch.region_mask] == 0).all()
        real = batch.boxes[batch.region_mask]
        assert (real[:, 2:] > real[:, :2]).all()


def test_boxes_and_texts_are_those_of_the_sample_and_its_picture() -> None:
    config = replace(CONFIG, augment=AugmentConfig())
    samples = {s.key: s for s in DATA}
    for batch in load(config=config, num_samples=60):
        for i, key in enumerate(batch.keys):
            truth = {region.text.lower(): region.box for region in samples[key].regions}
            assert int(batch.region_mask[i].sum()) == min(3, len(truth))
            x1, y1, x2, y2 = batch.content_boxes[i].tolist()
            drawn = batch.region_text_index[i][batch.region_mask[i]]
            assert len(set(drawn.tolist())) == len(drawn)  # without replacement
            for row, box in zip(drawn, batch.boxes[i]):
                source = np.array(truth[read_back(batch.texts[row])])
                mapped = source * np.array([x2 - x1, y2 - y1] * 2) + np.array([x1, y1] * 2)
                np.testing.assert_allclose(box.numpy(), mapped, atol=1e-6)
            assert read_back(batch.texts[batch.caption_index[i]]) in samples[key].captions


def test_each_epoch_visits_every_sample_once_in_a_new_order() -> None:
    keys = [key for batch in load(num_samples=84, config=CONFIG, batch_size=7) for key in batch.keys]
    epochs = [keys[begin : begin + 21] for begin in range(0, 84, 21)]
    assert all(sorted(epoch) == sorted(s.key for s in DATA) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    in_order = load(config=replace(CONFIG, shuffle=False), batch_size=7)
    assert [key for batch in in_order for key in batch.keys] == [s.key for s in DATA]


def test_regions_and_captions_are_drawn_anew_each_epoch() -> None:
    data = [sample(3, num_regions=20)]
    batches = load(data, replace(CONFIG, augment=AugmentConfig()), num_samples=40, batch_size=1)
    texts = [[read_back(b.texts[row]) for row in b.region_text_index[0]] for b in batches]
    assert len({tuple(sorted(drawn)) for drawn in texts}) > 20
    assert len({text for drawn in texts for text in drawn}) == 20
    assert {read_back(b.texts[b.caption_index[0]]) for b in batches} == {"caption 3 a", "caption 3 b"}


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(workers: int) -> None:
    assert_same(load(num_samples=44), load(config=replace(CONFIG, workers=workers), num_samples=44))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [4, 24, 40, 44])
def test_resume_equals_the_tail_of_an_undisturbed_run(start: int, workers: int) -> None:
    whole = load(num_samples=44)
    tail = load(config=replace(CONFIG, workers=workers), num_samples=44, start_sample=start)
    assert_same(whole[start // 4 :], tail)


def test_ranks_share_the_global_batch_without_overlap() -> None:
    whole = load(num_samples=40)
    half = CONFIG
    ranks = [load(config=half, num_samples=40, rank=rank, world_size=2, batch_size=2) for rank in range(2)]
    for one, left, right in zip(whole, *ranks):
        assert one.keys == left.keys + right.keys
        assert torch.equal(one.images, torch.cat([left.images, right.images]))
        assert torch.equal(one.boxes, torch.cat([left.boxes, right.boxes]))


def test_starting_workers_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load(config=replace(CONFIG, workers=1))
    assert torch.equal(torch.rand(1), expected)


def test_texts_are_encoded_once_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    region = Region((0, 0, 1, 1), "A  red\nMug")
    data = [replace(sample(i), captions=("a red mug",), regions=(region,) * 5) for i in range(4)]
    (batch,) = load(data)
    assert [read_back(row) for row in batch.texts] == ["a red mug"]
    assert (batch.region_mask.sum(1) == 3).all()
    monkeypatch.setattr(tokenize, "clean", TextCleaning(lower_case=False))
    (kept,) = load(data)
    assert {read_back(row) for row in kept.texts} == {"a red mug", "A red Mug"}


def test_texts_come_shortest_first_with_their_lengths() -> None:
    for batch in load():
        words = [read_back(row) for row in batch.texts]
        assert batch.text_lengths == tuple(map(len, words))
        assert list(batch.text_lengths) == sorted(batch.text_lengths)
        assert (batch.region_text_index[~batch.region_mask] == 0).all()
    assert len(set(batch.text_lengths)) > 1


def test_pictures_without_regions_or_captions_are_ordinary() -> None:
    bare = [replace(sample(i), captions=("", "  "), regions=()) for i in range(4)]
    (batch,) = load(bare)
    assert not batch.region_mask.any()
    assert (batch.caption_index == -1).all()
    assert batch.texts.shape[0] == 1
    mixed: ConcatDataset = ConcatDataset([DATA, bare])  # type: ignore[list-item, arg-type]
    assert sum(len(b.keys) for b in load(mixed, CONFIG, batch_size=5)) == 25


def test_captions_from_regions_only_where_there_is_none() -> None:
    regions = tuple(Region((0, 0, 1, 1), text) for text in ("Cat", "dog", "cat", ""))
    data = [replace(sample(0), captions=(), regions=regions), replace(sample(1), captions=("own",))]
    config = replace(CONFIG, shuffle=False, caption_from_regions=True)
    (batch,) = load(data, config, batch_size=2)
    assert [read_back(batch.texts[row]) for row in batch.caption_index] == ["cat, dog", "own"]


def test_small_invisible_and_wordless_regions_are_not_drawn() -> None:
    regions = (
        Region((0.0, 0.0, 1.0, 1.0), "all"),
        Region((0.5, 0.5, 0.501, 0.501), "speck"),
        Region((0.1, 0.1, 0.9, 0.9), " "),
    )
    data = [replace(sample(0), regions=regions)]
    (batch,) = load(data, replace(CONFIG, augment=AugmentConfig()), batch_size=1)
    assert batch.region_mask.tolist() == [[True, False, False]]


def test_a_crop_drops_hidden_regions_and_clips_the_others() -> None:
    regions = (Region((0.0, 0.0, 0.1, 0.1), "corner"), Region((0.3, 0.3, 0.7, 0.7), "middle"))
    data = [replace(sample(0), regions=regions)]
    config = replace(CONFIG, augment=AugmentConfig(min_crop_scale=0.5, min_visible=0.9))
    batches = load(data, config, num_samples=50, batch_size=1)
    seen = Counter(read_back(b.texts[row]) for b in batches for row in b.region_text_index[b.region_mask])
    assert 0 < seen["corner"] < 50
    assert seen["corner"] < seen["middle"]
    for batch in batches:
        low, high = batch.content_boxes[0, :2], batch.content_boxes[0, 2:]
        real = batch.boxes[batch.region_mask]
        areas = (real[:, 2:] - real[:, :2]).prod(1) / (high - low).prod()
        assert (areas >= 0.01 * 0.9 * 0.95).all()  # the corner's share only grows in a crop, unless it is cut
        assert (real[:, :2] >= low - 1e-6).all()
        assert (real[:, 2:] <= high + 1e-6).all()


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


class Broken:
    """100 samples, some of which fail in their own way."""

    def __init__(self, failures: dict[int, str]) -> None:
        self.failures = failures

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> RegionSample:
        good = sample(index, 2)
        match self.failures.get(index):
            case "schema":
                raise ValueError(f"regions must be a list (00000.tar, key {good.key})")
            case "cut":
                return replace(good, image=jpeg(good.pixels())[:200])
            case "missing":
                return replace(good, image=Path("/nowhere/x.jpg"))
            case "pixels":
                return replace(good, regions=(Region((3, 4, 50, 60), "pixel box"),))
        return good


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_counted_and_replaced(workers: int) -> None:
    data = Broken({3: "schema", 50: "cut", 51: "missing", 99: "pixels"})
    config = replace(CONFIG, workers=workers, max_bad_fraction=0.08)
    batches = load(data, config, batch_size=10)
    total: Counter[str] = Counter()
    for batch in batches:
        total.update(batch.bad)
    # A replacement may itself be one of the four, hence "at least".
    assert set(total) == {
        "unusable sample",
        "undecodable picture",
        "missing picture",
        "box outside the picture",
    }
    keys = [key for batch in batches for key in batch.keys]
    assert len(keys) == 100
    assert not {"s3", "s50", "s51", "s99"} & set(keys)
    assert_same(batches, load(data, replace(config, workers=2 - workers), batch_size=10))


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_stop_the_run_and_are_named(workers: int) -> None:
    data = Broken(dict.fromkeys(range(0, 100, 10), "cut"))
    with pytest.raises(ValueError) as caught:
        load(data, replace(CONFIG, workers=workers), batch_size=10)
    message = str(caught.value)
    assert "samples are bad (undecodable picture:" in message
    assert "max_bad_fraction=0.01" in message
    assert "image of sample 's" in message
    assert "Traceback" not in message


def test_wholly_bad_data_stops_instead_of_looping() -> None:
    data = Broken(dict.fromkeys(range(100), "missing"))
    message = (
        r"16 of the first 16 samples are bad \(missing picture: 16\), all replacements of one of them too;"
    )
    with pytest.raises(ValueError, match=message):
        load(data, replace(CONFIG, max_bad_fraction=1.0))


def test_the_limit_is_passed_once_the_share_is_surely_above_it() -> None:
    """By the tails of binomials, added up slowly."""

    def tail(bad: int, tried: int, share: float) -> float:
        return sum(comb(tried, k) * share**k * (1 - share) ** (tried - k) for k in range(bad, tried + 1))

    for tried in (1, 10, 100, 400):
        for share in (0.001, 0.01, 0.2):
            past = [bad for bad in range(tried + 1) if is_surely_above(bad, tried, share)]
            assert past == list(range(past[0], tried + 1)) if past else True
            assert all(tail(bad, tried, share) < 1e-4 for bad in past[:3])
            if past and past[0] > 1:  # nor much later than must be
                assert tail(past[0] - 1, tried, share) > 0.8e-4
    assert is_surely_above(1, 10**9, 0.0)
    assert not is_surely_above(0, 0, 0.0)
    assert not is_surely_above(50, 50, 1.0)
    assert is_surely_above(220, 10_000, 0.01)
    assert not is_surely_above(120, 10_000, 0.01)


def test_many_ranks_with_a_tenth_of_the_allowed_share_go_on() -> None:
    """Each by itself would soon find two bad ones among its first few; together they know better."""
    rng = np.random.default_rng(0)
    share, ranks = 0.01, 1000
    tried, bad = 0, 0
    limit = BadSamples(share)
    for _ in range(300):  # steps of 32 images a rank
        tried += ranks * 32
        bad += int(rng.binomial(ranks * 32, share / 10))
        assert not limit.is_past(bad, tried)
    assert limit.is_past(int(2 * share * tried), tried)


def test_of_a_known_number_the_limit_is_a_share_of_all() -> None:
    limit = BadSamples(0.1, total=1000)
    for _ in range(100):
        limit.add(0, [BadSample("cut", "k1", False)])
    with pytest.raises(ValueError, match=r"101 of the first 101 samples are bad \(cut: 101\), past max_bad"):
        limit.add(0, [BadSample("cut", "k1", False)])


def test_counts_of_an_earlier_part_of_the_run_count() -> None:
    data = Broken(dict.fromkeys(range(0, 100, 10), "cut"))
    tally = BadSamples(0.15)
    tally.go_on_from(2000, 430)
    with pytest.raises(
        ValueError, match=r"43\d of the first 20\d\d samples are bad \(earlier in the run: 430"
    ):
        load(data, CONFIG, batch_size=10, tally=tally)


def test_nothing_bad_is_allowed_where_the_fraction_is_zero() -> None:
    with pytest.raises(ValueError, match="past max_bad_fraction=0;"):
        load(Broken({5: "schema"}), replace(CONFIG, max_bad_fraction=0.0), batch_size=10)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_sample_in_order(workers: int) -> None:
    batches = list(evaluation_batches(DATA, Canvas(), batch_size=8, workers=workers))
    assert [len(batch.images) for batch in batches] == [8, 8, 5]
    assert [s.key for batch in batches for s in batch.samples] == [s.key for s in DATA]
    for samples, images, content_boxes, geometries in batches:
        for s, picture, content, geometry in zip(samples, images, content_boxes, geometries):
            drawn = geometry.draw(s.pixels(), (7, 8, 9), "bilinear")
            assert torch.equal(picture, torch.from_numpy(drawn).permute(2, 0, 1))
            assert content.tolist() == pytest.approx(geometry.content_box)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("kind", "error"), [("cut", ValueError), ("missing", FileNotFoundError)])
def test_evaluation_never_skips(kind: str, error: type[Exception], workers: int) -> None:
    with pytest.raises(error, match="image of sample 's42'") as caught:
        list(evaluation_batches(Broken({42: kind}), Canvas(), batch_size=8, workers=workers))
    assert "Traceback" not in str(caught.value)


class Hanging:
    """21 samples, one of which is never read, or ends the process that reads it."""

    def __init__(self, index: int, end: Callable[[], object]) -> None:
        self.index, self.end = index, end

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, index: int) -> RegionSample:
        if index == self.index and get_worker_info() is not None:
            self.end()
        return DATA[index]


@pytest.fixture
def quick_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gives a hung worker so many seconds to end by itself."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)


def test_a_hung_worker_is_named(quick_end: None) -> None:
    config = replace(CONFIG, workers=2, shuffle=False, timeout=1.0)
    loader = iter(RegionLoader(Hanging(14, lambda: time.sleep(60)), Canvas(), tokenize, config, batch_size=4))
    assert [len(next(loader).keys) for _ in range(3)] == [4, 4, 4]
    message = (
        r"^data worker 1 \(process \d+\) has given no batch for 1 s while it reads sample number 14: look at "
        r"the storage and that sample, or raise loader\.timeout$"
    )
    with pytest.raises(TimeoutError, match=message) as caught:  # batch 3, samples 12 to 15, is worker 1's
        next(loader)
    assert "Traceback" not in str(caught.value)


def test_a_worker_that_dies_is_told_in_one_sentence(quick_end: None) -> None:
    config = replace(CONFIG, workers=1, shuffle=False)
    data = Hanging(6, lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ChildProcessError, match=r"^data worker \(pid.* \d+\).*: often for lack of memory"):
        load(data, config)


def remote_mixture(folder: Path) -> Mixture:
    """Remote shards with regions, and twice as many pictures with captions only."""
    if not (folder / "out").exists():
        write_shards([sample(number) for number in range(30)], folder / "out", 4)
    shards = open_shards(f"file://{folder}/out", cache=folder / "cache")
    bare = [replace(sample(number), key=f"bare{number}", regions=()) for number in range(11)]
    return Mixture([shards, bare], [1, 2])  # type: ignore[list-item]


def test_a_remote_mixture_resumes_exactly_with_any_workers_and_ranks(tmp_path: Path) -> None:
    config = replace(CONFIG, shuffle_shards=2)
    whole = load(remote_mixture(tmp_path), config, num_samples=120)
    keys = [key for batch in whole for key in batch.keys]
    assert sum(key.startswith("bare") for key in keys) == 80
    for begin in range(0, 108, 12):  # in any stretch, not only in the whole
        assert 7 <= sum(key.startswith("bare") for key in keys[begin : begin + 12]) <= 9
    more = replace(config, workers=2)  # 8 shards, windows of 2: fewer shards at hand than readers
    assert_same(whole[13:], load(remote_mixture(tmp_path), more, num_samples=120, start_sample=52))
    half = replace(config, workers=1)
    ranks = [
        load(
            remote_mixture(tmp_path),
            half,
            num_samples=120,
            start_sample=40,
            rank=rank,
            world_size=2,
            batch_size=2,
        )
        for rank in range(2)
    ]
    assert len(ranks[0]) == len(ranks[1]) == 20
    assert [left.keys + right.keys for left, right in zip(*ranks)] == [batch.keys for batch in whole[10:]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_remote_shard_is_counted_and_replaced(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("open_cloc.data.shards.cache.time.sleep", lambda seconds: None)
    write_shards([sample(number) for number in range(200)], tmp_path / "out", 4)
    tar = tmp_path / "out/00007.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    data = open_shards(f"file://{tmp_path}/out", cache=tmp_path / "cache")
    config = replace(CONFIG, workers=workers, shuffle_shards=5, max_bad_fraction=0.05)
    batches = load(data, config, batch_size=10)
    bad = sum((Counter(batch.bad) for batch in batches), Counter())
    assert set(bad) == {"unreadable shard"}
    assert bad["unreadable shard"] >= 4
    keys = [key for batch in batches for key in batch.keys]
    assert len(keys) == 200
    assert not {"s28", "s29", "s30", "s31"} & set(keys)
    with pytest.raises(
        ValueError, match=r"unreadable shard: \d+.*shard cannot be fetched after 6 attempts: broken"
    ):
        load(data, replace(config, max_bad_fraction=0.001), batch_size=10)


def resident_bytes(pid: int | None) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_stays_flat_over_ten_epochs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (128, 128, 3), dtype=np.uint8) for _ in range(64)]
    regions = DATA[6].regions
    write_shards(
        [RegionSample(f"k{i}", p, ("a",), regions) for i, p in enumerate(pictures)], tmp_path / "o", 8
    )
    data = Mixture(
        [ShardDataset(f"{tmp_path}/o"), open_shards(f"file://{tmp_path}/o", tmp_path / "c")], [1, 1]
    )
    config = replace(CONFIG, workers=2, shuffle_shards=2)
    used = []
    for number, _ in enumerate(
        RegionLoader(data, Canvas(), tokenize, config, num_samples=10 * len(data), batch_size=8)
    ):
        if (number + 1) % 16 == 0:  # one epoch
            processes = [None, *(process.pid for process in multiprocessing.active_children())]
            assert len(processes) == 3
            used.append([resident_bytes(pid or os.getpid()) for pid in processes])
    growth = np.array(used[-1]) - np.array(used[1])
    # Nine epochs decode 57 MB of pictures; keeping even a tenth of it, or of the encoded bytes, would show.
    assert (growth < 4e6).all(), growth


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        load(batch_size=0)
    with pytest.raises(ValueError, match=r"max_bad_fraction must lie in \[0, 1\]; got 2"):
        LoaderConfig(max_bad_fraction=2)
    with pytest.raises(ValueError, match="dataset is empty"):
        load([])
    with pytest.raises(ValueError, match="at least one batch of 64; got 21"):
        load(config=LoaderConfig(workers=0), batch_size=64)
