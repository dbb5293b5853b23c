"Buckets and their sampler: the reference's numbers, faults, and orders that depend on nothing but seed and step."
import json
import pickle
from pathlib import Path

import numpy as np
import parity
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from javisdit.buckets import (SIZES, TIMES, Bucket, Buckets, BucketSampler, ByBucket, ByShape, area, aspects, audio_buckets, first_draws,
                              joint_buckets, reference_order, shape_of)
from javisdit.core import rng
from javisdit.data import Row

GOLDENS = Path(__file__).parent / "goldens"
FILES = [GOLDENS / f"prior_{name}.safetensors" for name in ("bucket", "sampler", "clip", "mel")]


def test_parity(tmp_path, capsys):
    assert parity.main(["--out", str(tmp_path), *map(str, FILES)]) == 0, capsys.readouterr().out
    assert {f.name for f in tmp_path.iterdir()} == {"prior_bucket.safetensors", "prior_sampler.json", "prior_clip.safetensors", "prior_mel.safetensors"}


def test_parity_reads_no_plans(tmp_path, capsys):
    "The plans in the metadata are answers: without them ours are the same, with a wrong one the comparison fails."
    with safe_open(FILES[1], "pt") as f: facts = json.loads(f.metadata()["json"])
    tensors, plans = load_file(FILES[1]), facts.pop("batches")
    save_file(tensors, tmp_path / FILES[1].name, dict(json=json.dumps(facts)))
    assert parity.main(["--out", str(tmp_path / "ours"), str(tmp_path / FILES[1].name)]) == 0
    assert json.loads((tmp_path / "ours" / "prior_sampler.json").read_text())["batches"] == plans
    plans["ws2_drop0_ep1_resume3_rank1"][0].pop()
    save_file(tensors, tmp_path / FILES[1].name, dict(json=json.dumps(facts | dict(batches=plans))))
    assert parity.main(["--out", str(tmp_path / "ours"), str(tmp_path / FILES[1].name)]) == 1 and "FAIL" in capsys.readouterr().out


def test_draws_are_numpys():
    seeds = np.concatenate([rng("draws").integers(0, 2**63, 500), np.arange(100), [2**32 - 1, 2**32, 2**33 + 1]])
    assert np.array_equal(first_draws(seeds), [np.random.default_rng(int(s)).random(2) for s in seeds]) and first_draws(seeds[:0]).shape == (0, 2)


def slow_assign(table, frames, height, width, seed):
    "The rule, clip by clip, with numpy's own generators."
    for name, pixels, sizes, lengths in table.levels:
        if height * width < 0.8 * pixels: continue
        for b in lengths:
            if not table.fits(frames, b.frames): continue
            draw = np.random.default_rng(seed + b.index)
            if b.keep is not None and draw.random() > b.keep: continue
            if draw.random() < b.accept: return Bucket(name, b.frames, min(sizes, key=lambda k: abs(k - height / width)))
            break


@pytest.mark.parametrize("table", [joint_buckets(), joint_buckets(strict=True), audio_buckets(), Buckets({"256": {1: (0.5, 4), 51: ((0.3, 0.6), 2)}, "64x64": {1: (0.9, 8), 17: (1.0, 4)}})])
def test_all_at_once_is_one_by_one(table):
    g, n = rng("assign"), 400
    shapes = np.stack([g.choice([1, 2, 16, 17, 50, 51, 52, 102, 204, 408, 900], n), g.integers(40, 1500, n), g.integers(40, 2500, n)], 1)
    seeds = g.integers(0, 2**40, n)
    assert table.assign_all(shapes, seeds) == [slow_assign(table, *map(int, s), int(seed)) for s, seed in zip(shapes, seeds)]
    assert table.assign(*map(int, shapes[3]), int(seeds[3])) == table.assign_all(shapes, seeds)[3]


def test_tables():
    known = {"144p": 36864, "256": 65536, "240p": 102240, "360p": 230400, "512": 262144, "480p": 409920, "720p": 921600, "1024": 1048576, "1080p": 2073600,
             "2k": 3686400, "2048": 4194304, "2880": 8294400, "4k": 8294400}
    assert {name: area(name) for name in (*SIZES, *TIMES)} == known
    assert aspects("2880")[0.25] == (1408, 5760) and aspects("4k")[0.56] == (2160, 3840) and list(aspects("4k"))[6:8] == [0.62, 0.56] and aspects("2048")[3.11] == (3584, 1152)
    assert area("48x64") == 3072 and Bucket("48x64", 24, 0.75).size == (48, 64)


@pytest.mark.parametrize("config, words", [({}, "is empty"), ({"9p": {51: (1, 1)}}, "'9p' is not known"), ({"144p": {51: (-0.1, 1)}}, "probabilities"), ({"144p": {51: ((1, 2), 1)}}, "probabilities"),
                                           ({"144p": {51: (1, 0)}}, "at least one clip")])
def test_tables_with_mistakes(config, words):
    with pytest.raises(ValueError, match=words): Buckets(config)


def test_lengths_are_counted_at_the_training_rate():
    row = lambda n, fps, h=72, w=128, path="x": Row(path, "", "0", n, fps, h, w)
    assert shape_of(row(51, 24.0)) == (51, 72, 128) and shape_of(row(128, 60.0)) == (51, 72, 128) and shape_of(row(63, 30000 / 1001)) == (50, 72, 128)
    assert shape_of(row(100, 24.0, None, None, None)) == (100, 720, 1280) and shape_of(row(None, None)) is None and shape_of(row(9, 24.0, None, None)) is None


ROWS = [Row("x", "", str(i), int(t), 24.0, *hw) for i, (t, hw) in enumerate(zip(rng("rows").choice([30, 60, 110, 240], 300), [(144, 256), (240, 426), (256, 144)] * 100))]
TABLE = {"144p": {51: (1.0, 4), 102: ((1.0, 0.5), 3)}, "240p": {51: ((0.5), 3)}}


def test_a_step_needs_no_history():
    make = lambda **kw: BucketSampler(ROWS, ByBucket(Buckets(TABLE)), **{"seed": 1, "micro": 3, **kw})
    sampler = make()
    run = [sampler(i) for i in range(3 * sampler.steps)]
    for i in rng("steps").permutation(len(run))[:12]: assert make()(int(i)) == run[i] == sampler(int(i)) == pickle.loads(pickle.dumps(sampler))(int(i))
    assert make(seed=2)(0) != run[0] and run[:sampler.steps] != run[sampler.steps:2 * sampler.steps]
    for step in run:
        assert len(step) == 3 and all(len({s[1:] for s in batch}) == 1 for batch in step)
        assert all(Buckets(TABLE).batch[("240p" if 240 in b[0][2:] else "144p", b[0].frames)] == len(b) for b in step)
    assert all(ROWS[s.row].num_frames >= s.frames for step in run for b in step for s in b)
    single = make(micro=1)
    assert [b for step in run[:sampler.steps] for b in step] == [single(i)[0] for i in range(3 * sampler.steps)]


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("order", [None, reference_order])
def test_reports_add_up(fill, order):
    sampler = BucketSampler(ROWS[:97], ByBucket(Buckets(TABLE)), seed=3, micro=2, fill=fill, **(dict(order=order) if order else {}))
    for epoch in (0, 1, 5):
        report, used = sampler.report(epoch), {s.row for b in sampler.plan(epoch)[:sampler.steps * 2] for s in b}
        assert len(used) + sum(report.unused.values()) == report.total == 97 and report.unused["too short"] == sum(r.num_frames < 51 for r in ROWS[:97])
        assert str(report).startswith(f"epoch {epoch} uses {len(used)} of 97 clips")
        if not fill: assert report.unused["left over"] >= sum(clips - batch * n for _, clips, batch, n in report.buckets) - report.unused["after the last step"]


def test_too_few_clips_are_explained():
    with pytest.raises(ValueError, match="(?s)fill 0 batches, a step needs 2.*144p 51 0.56 has 2, a batch needs 4"):
        BucketSampler([Row("x", "", str(i), 51, 24.0, 144, 256) for i in range(2)], ByBucket(Buckets({"144p": {51: (1.0, 4)}})), micro=2)
    small = BucketSampler([Row("x", "", str(i), 51, 24.0, 144, 256) for i in range(2)], ByBucket(Buckets({"144p": {51: (1.0, 5)}})), fill=True)
    assert sorted(s.row for s in small(0)[0]) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])


def test_cached_shapes_stay_apart():
    shapes = [(4, 3, 2, 2)] * 7 + [(4, 5, 2, 2)] * 4
    sampler = BucketSampler(shapes, ByShape(2), seed=0, micro=2)
    assert sampler.steps == 2 and all(len({shapes[i] for i in b}) == 1 for step in range(4) for b in sampler(step)) and sampler.report().unused["left over"] == 1
