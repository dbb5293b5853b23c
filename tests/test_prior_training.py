"Stage 2: odd sizes, silent clips, long captions, faults, and a stopped run."
import json
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.progress import ProgressCallback
from notebooks import ROOT

from javisdit import train_prior as stage
from javisdit.augment import WAYS, make_negatives
from javisdit.core import rng, tiny
from javisdit.encoders import load_text_encoder
from javisdit.learner import train_steps
from javisdit.losses import contrast_loss, prior_loss
from javisdit.pools import Pools
from javisdit.prior import Negatives, PriorModel, prior_config
from javisdit.train_prior import (TrainPrior, auroc, edited_alike, encode_pairs, fresh_prior, heard_moment, holds, media_ruler, prior_learner, prompts, ruler, score, slots,
                                  staged, told, trained_prior)
from javisdit.world import write_world


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    "Six clips, encoded in two parts."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                              # of long captions: a test below looks at them
        return encode_pairs(tmp_path_factory.mktemp("pairs"), 6, tiny(), "valid", workers=1, part=4)


def learner(pairs, out, **more):
    learn = prior_learner(TrainPrior(steps=4, block=2, batch_size=4, out_dir=str(out), **more), pairs, pairs)
    learn.remove_cb(ProgressCallback)
    return learn


def test_every_way_has_a_counterpart_that_keeps_its_shape():
    seen = set()
    for i in range(24):
        s = staged(i, 3, "train", tiny().clip)
        own, before = s.made.clip, (s.made.clip.video.copy(), s.made.clip.audio.copy())
        broken = make_negatives(own, 2, rng("counterparts", i), s.pools, name=str(i), track=own.audio)
        for x in (x for group in WAYS for x in getattr(broken, group)):
            video, audio, caption = edited_alike(x, s)
            assert video.shape == own.video.shape and video.dtype == np.uint8 and audio.shape == own.audio.shape and np.abs(audio).max() <= 1 and caption
            seen.add(f"{x.group}/{x.way}")
        assert np.array_equal(before[0], own.video) and np.array_equal(before[1], own.audio)          # nothing is changed in place
    assert {f"{g}/{w}" for g, ways in WAYS.items() for w in ways} <= seen


def test_a_scene_in_which_nobody_acts_has_a_caption():
    s = staged(0, 0, "train", tiny().clip)
    assert told(replace(s.scene, events=[])).count("does nothing") == len(s.scene.subjects)


def test_parts_are_joined_in_order_and_kept(pairs, tmp_path):
    assert pairs.ids == list(range(6)) and pairs.video.shape[1] == len(pairs.ways[0]) == slots(2)["moved"][0] + 1
    text = load_text_encoder(tiny())([pairs.captions[5][0]])
    assert torch.allclose(pairs.states[pairs.caption[5, 0]].float(), text.states[0], atol=0.01)           # a caption of the second part
    first = encode_pairs(tmp_path, 2, tiny(), "valid", workers=1, part=2)
    changed = {p: p.stat().st_mtime_ns for p in tmp_path.glob("valid/part-*")}
    again = encode_pairs(tmp_path, 2, tiny(), "valid", workers=1, part=2)
    assert torch.equal(first.video, again.video) and changed == {p: p.stat().st_mtime_ns for p in tmp_path.glob("valid/part-*")}
    with pytest.raises(ValueError, match="holds pairs of other clips"): encode_pairs(tmp_path, 2, tiny(), "valid", n=1, workers=1, part=2)


def test_clips_that_cannot_be_broken_are_counted(tmp_path, monkeypatch):
    real = stage.staged
    def silent(index, *rest):
        s = real(index, *rest)
        if index == 1: s = replace(s, made=replace(s.made, clip=replace(s.made.clip, audio=np.zeros_like(s.made.clip.audio))), pools=Pools())
        return s
    monkeypatch.setattr(stage, "staged", silent)
    pairs = encode_pairs(tmp_path, 3, tiny(), "valid", workers=1, part=3)
    assert pairs.ids == [0, 2] and [i for i, _ in pairs.skipped] == [1] and "silent" in pairs.skipped[0][1]
    assert "1 that could not be broken" in repr(pairs)


def test_one_frame_and_odd_latents_and_no_negatives():
    config = prior_config(tiny())
    model = PriorModel(config)
    belief = model.estimator.distribution(torch.zeros(2, 5, config.text_channels))
    prior = model.estimator.draw(belief, sample=False)
    for frames, steps in ((1, 1), (3, 7)):
        video, audio = torch.randn(2, config.video_channels, frames, 1, 4), torch.randn(2, config.audio_channels, steps, 1)
        embeds = model.va_encoder.contrast(video, audio, Negatives(), 32, 32)
        assert torch.isfinite(prior_loss(prior, belief, embeds, model.discriminator).total)


def test_a_caption_that_is_too_long_says_so_and_works():
    encoder = load_text_encoder(tiny())
    with pytest.warns(UserWarning, match="longer than 48 tokens"): text = encoder(["a red ball bounces and " * 30])
    assert PriorModel(prior_config(tiny())).estimator(text.states, text.mask, sample=False).spatial.isfinite().all()


def test_a_resumed_run_equals_an_uninterrupted_one(pairs, tmp_path):
    train_steps(learner(pairs, tmp_path / "whole"))
    class Stop(Callback):
        "Somebody pulls the plug in the third step."
        order = 200
        def after_batch(self):
            if self.training and self.learn.step == 3: raise CancelFitException()
    stopped = learner(pairs, tmp_path / "stopped")
    stopped.add_cb(Stop())
    train_steps(stopped)
    resumed = learner(pairs, tmp_path / "stopped")
    assert resumed.step == 2
    train_steps(resumed)
    whole, again = (trained_prior(tmp_path / name, prior_config(tiny())).state_dict() for name in ("whole", "stopped"))
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    with pytest.raises(ValueError, match="other settings"): learner(pairs, tmp_path / "whole", alike=0.0)


def test_terms_and_extras_change_the_objective(pairs, tmp_path):
    rows = {}
    for name, more in dict(all={}, hinge=dict(terms=""), plain=dict(alike=0.0, contrast=0.0, by_moment=False)).items():
        train_steps(learner(pairs, tmp_path / name, **more))
        rows[name] = [r for r in map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines()) if "valid_loss" in r][0]
    hinge, plain = rows["hinge"], rows["plain"]
    assert plain["valid_alike"] == 0 < rows["all"]["valid_alike"]
    total = sum(plain[f"valid_{b}_{t}"] for b in ("spatial", "temporal") for t in ("token", "disc", "l2", "va")) + 1e-6 * plain["valid_kl"]
    assert plain["valid_loss"] == pytest.approx(total, rel=1e-5)
    more = sum(w * hinge[f"valid_{name}"] for name, w in TrainPrior().extras.items() if name != "terms")
    assert hinge["valid_loss"] == pytest.approx(sum(hinge[f"valid_{b}_token"] for b in ("spatial", "temporal")) + more + 1e-6 * hinge["valid_kl"], rel=1e-5)


def test_neighbours_read_alike_and_are_somebody_else(pairs):
    texts = [row[0] for row in pairs.captions]
    assert pairs.near.shape == (6, 5) and all(sorted([i, *row]) == list(range(6)) for i, row in enumerate(pairs.near.tolist()))
    few = replace(pairs, captions=[["a red ball on the left"], ["a red ball on the right"], ["a red ball on the left"], ["two birds sing"]], video=pairs.video[:4],
                  states=torch.tensor([[[1.0, 0.1]], [[1.0, 0.3]], [[0.0, 1.0]]]), mask=torch.ones(3, 1, dtype=torch.bool), caption=torch.tensor([[0], [1], [0], [2]]))
    assert few.near[:, 0].tolist() == [1, 0, 1, 1]                                    # not the clip with the same caption
    assert len(set(texts)) == 6


def test_contrast_is_for_tokens_that_differ():
    e = torch.eye(12).view(3, 4, 12)
    right, more = contrast_loss(e, e), torch.randn(5, 4, 12, generator=torch.Generator().manual_seed(0))
    assert right < contrast_loss(e, e, more) < contrast_loss(e.mean(1, keepdim=True).expand_as(e), e, more)
    assert contrast_loss(e.mean((0, 1)).expand_as(e), e) == pytest.approx(np.log(12), rel=1e-5)      # all alike: a guess
    assert contrast_loss(3 * e, e) == pytest.approx(float(right), rel=1e-5)                          # length is free


def test_own_media(tmp_path):
    write_world(tmp_path / "media", 6, seed=3, split="train", workers=1, clip=tiny().clip)
    p = TrainPrior(data=str(tmp_path / "media"), steps=2, block=2, batch_size=2, valid=2, negatives=1, workers=1, out_dir=str(tmp_path / "run"))
    assert p.media and p.extras["alike"] == 0
    train, valid = stage.pair_data(p)
    assert (len(train), len(valid)) == (4, 2) and train.batch([0]).audio_temporal.shape[:2] == (1, 1)
    learn = prior_learner(p, train, valid)
    learn.remove_cb(ProgressCallback)
    train_steps(learn)
    assert [r for r in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines()) if "valid_loss" in r][0]["valid_alike"] == 0
    table = media_ruler(trained_prior(p.folder, p.sizes), valid)
    assert list(table) == list(WAYS) and all(0 <= x["broken"].value <= 1 for x in table.values())
    again = TrainPrior(data=str(tmp_path / "run" / "pairs"), valid=2, negatives=1)                     # the cache that the run made
    assert [len(x) for x in stage.pair_data(again)] == [4, 2]
    with pytest.raises(ValueError, match="holds 1 negatives of each group, 2 are wanted"): stage.pair_data(TrainPrior(data=again.data, valid=2))
    with pytest.raises(ValueError, match="only the world can be rendered again"): TrainPrior(data=again.data, alike=1.0)


def test_the_ruler_sees_what_it_should(pairs):
    n, s = len(pairs), pairs.video.shape[1]
    fair = score(fresh_prior(prior_config(tiny()), 0), pairs)
    assert fair.own.shape == (n, 2) and fair.broken.shape == (n, s, 2) and np.allclose(fair.own, fair.alike[:, 0], atol=1e-5)
    assert holds(ruler(fair, pairs))                                                                   # untrained: something is missing
    low = np.full_like(fair.broken, -1)
    perfect = fair._replace(own=np.ones((n, 2)) + np.arange(n)[:, None] / 100, broken=low, sound=np.full((n, 2), -1), shuffled=np.full((n, 2), -1),
                            alike=np.ones((n, s, 2)) + np.arange(n)[:, None, None] / 100)
    assert holds(ruler(perfect, pairs)) == []
    traces = perfect._replace(alike=low)
    assert [x for x in holds(ruler(traces, pairs)) if "edited alike" in x]                             # a network that sees traces only is caught


def test_intervals_cover_and_shrink():
    r = rng("intervals")
    few, many = (auroc(r.normal(1, 1, n), r.normal(0, 1, (n, 2))) for n in (20, 400))
    assert many.low < 0.76 < many.high and many.high - many.low < few.high - few.low                   # two normals one deviation apart: 0.76


def test_prompts_tell_the_truth():
    asked = prompts(60, "valid", tiny().clip)
    for caption, side, onset in zip(asked.captions, asked.side, asked.onset):
        if side == 0: assert "right" not in caption.split("right away")[0].replace("bright", "") or "right away" in caption
        if "seconds" in caption and not np.isnan(onset): assert 0 <= onset < 2


def test_moments_of_a_sound_that_changed(): assert heard_moment(stage.RepeatAudio(0, 8000, 8000), np.array([0.25, 0.75, 1.25]), 2.0, 16000) == pytest.approx([0.25, 0.5, 0.25])


@pytest.mark.parametrize("wrong, words", [(dict(steps=0), "steps = 0: a positive number"), (dict(terms="hinge"), "hinge is not one of disc, l2, va"), (dict(preset="huge"), "huge"),
                                          (dict(batch_size=64), "cannot fill a batch of 64")])
def test_wrong_parameters_are_named(wrong, words, pairs, tmp_path):
    with pytest.raises(ValueError, match=words): prior_learner(TrainPrior(out_dir=str(tmp_path / "run"), **wrong), pairs, pairs)


def test_the_papers_settings():
    for name, warmup in (("paper", 1000), ("released", 0)):
        p = TrainPrior(preset=name)
        assert (p.config.train.lr, p.config.train.warmup, p.config.train.ema, p.sizes.by_moment) == (1e-5, warmup, 0.0, False)
        assert p.extras == dict(alike=0.0, contrast=0.0, terms=["disc", "l2", "va"])


def test_the_shipped_prior_tells_a_clip_from_a_late_one(pairs):
    table = ruler(score(stage.shipped_prior(), pairs), pairs)
    assert table["video_temporal"]["broken"].value > 0.75 and table["moved/temporal"]["broken"].value > 0.75


@pytest.mark.slow
def test_headless_from_another_folder(tmp_path):
    flags = [x for k, v in dict(preset="tiny", steps=4, block=2, batch_size=4, clips=6, valid=6, workers=1, out_dir="run").items() for x in ("-p", k, str(v))]
    done = subprocess.run([sys.executable, "-m", "papermill", str(ROOT / "nbs" / "06_train_prior.ipynb"), "out.ipynb", *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "prior" / "config.json").exists() and (tmp_path / "run" / "proof.json").exists()
