"""Sanity of every registered metric: equal is best, worse is worse, order does not matter, few clips are said, and no NaN enters a mean.

Each metric of clips judges a ladder of four clips, from perfect to wrong. Networks are replaced by judges of pure colours and tones, so that it is known what they should say;
what the networks themselves do is compared with goldens in `test_metrics.py`."""
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BatchFeature

from javisdit.audioclip import AudioClipEar, AudioClipFeatures
from javisdit.detect import Heard, Seen
from javisdit.i3d import I3D, I3DFeatures
from javisdit.imagebind_av import still_pixels
from javisdit.javisbench import MM_METRICS, PROTOCOLS
from javisdit.media import Clip
from javisdit.metrics import Judged, MelStatistics, PictureJudge, SoundJudge, metric, score_all, set_score, summarise
from javisdit.ruler import load_ruler
from javisdit.truth import COMPOSITES
from javisdit.world import Event, world_clip

REGISTRY = PROTOCOLS["javisbench"]
COLORS, TONES = ("red", "green", "blue"), (400, 1600, 3200)
SETS = {m.name: m for m in (*REGISTRY.values(), *MM_METRICS.values()) if m.of_sets}
WRONG = (0.0, 0.1, 0.2, 0.3)   # how much of a clip is not what it should be: less than the 40 % that JavisScore looks at


# --- judges of which it is known what they should say ---

def mean_color(video): return torch.from_numpy(video.reshape(len(video), -1, 3).mean(1)).float()
def heard_tones(wave, rate): return torch.tensor([float(np.abs(wave @ np.exp(2j * np.pi * f * np.arange(len(wave)) / rate))) / len(wave) for f in TONES])
def named(text): return torch.tensor([float(c in text) for c in COLORS])


class Plain:
    "A `JointEmbedder` of colours, tones and their names."
    name = "plain"
    def frames(self, video, fps): return mean_color(video)
    def videos(self, videos, fps): return torch.stack([mean_color(v).mean(0) for v in videos])
    def sounds(self, waves, rate): return torch.stack([heard_tones(w, rate) for w in waves])
    def texts(self, captions): return torch.stack([named(c) for c in captions])


class Looks(nn.Module):
    "What `PictureJudge` asks of CLIP; a caption's vector is that of a picture of its colour."
    config, device, dtype = SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=77), vision_config=SimpleNamespace(image_size=32)), "cpu", torch.float32
    def get_image_features(self, pixels): return pixels.mean((2, 3))
    def get_text_features(self, ids):
        of = {tuple(PictureJudge(Looks()).tokenizer([c])[0].tolist()): i for i, c in enumerate(COLORS)}
        return still_pixels(pictures(0.0, of[tuple(ids[0].tolist())])[:1], 32).mean((2, 3))


class Listens(nn.Module):
    "What `SoundJudge` asks of CLAP."
    device = "cpu"
    def get_audio_features(self, waves): return torch.stack([heard_tones(w.numpy(), 16000) for w in waves])
    def get_text_features(self, input_ids, **_): return torch.stack([torch.eye(3)[i] for i in input_ids])


class Cuts:
    sampling_rate, max_length_s = 16000, 10
    def __call__(self, waves, **_): return BatchFeature(dict(waves=torch.from_numpy(np.stack(waves))))


def tokens(words, **_): return BatchFeature(dict(input_ids=(ids := torch.tensor([COLORS.index(w) for w in words])), attention_mask=ids))


# --- clips from right to wrong ---

def pictures(wrong, color=0, n=72):
    "Of one colour; at the end of every second, as long as is asked, of another."
    video = np.zeros((n, 8, 8, 3), np.uint8)
    for i in range(n): video[i, ..., (color + (i % 24 >= round(24 * (1 - wrong)))) % 3] = 255
    return video


def tones(wrong, n=48000):
    "One tone with another one mixed in."
    t = np.arange(n) / 16000
    return ((1 - wrong) * np.sin(2 * np.pi * TONES[0] * t) + wrong * np.sin(2 * np.pi * TONES[1] * t)).astype(np.float32) / 2


MODELS = dict(imagebind=Plain(), clip=PictureJudge(Looks()), clap=SoundJudge(Listens(), Cuts(), tokens), ruler=load_ruler())
EVENTS = [Event(0, kind, t, t + 0.3, boxes=np.tile([x - 0.1, 0.4, x + 0.1, 0.6], (48, 1))) for kind, t, x in (("ball", 0.3, 0.3), ("bird", 0.8, 0.5), ("drum", 1.3, 0.7), ("lamp", 1.7, 0.6))]


def said(late=0.0, aside=0.0, others=0, swapped=0):
    "What a witness heard and saw of the true events: in time and place or not, some kinds exchanged for others, some times exchanged."
    kinds = [e.kind for e in EVENTS]
    kinds = kinds[:swapped][::-1] + kinds[swapped:]
    kinds = ["frog"] * others + kinds[others:]
    heard = [Heard(e.onset + late, k, 1.0) for e, k in zip(EVENTS, kinds)]
    return heard, [Seen(e.onset + late, k, (e.boxes[0, 0] + e.boxes[0, 2]) / 2 + aside, 0.5, 1.0) for e, k in zip(EVENTS, kinds)]


def of_truth(values, **changes):
    "Clips of which a witness says something worse each time; `sync` keeps what is seen as it is."
    out = []
    for v in values:
        j = Judged(world_clip(0).clip, {}, truth=EVENTS)
        j.found = said(**{k: x * v for k, x in changes.items() if k != "sync"})
        if "sync" in changes: j.found = said(late=v)[0], said()[1]
        out.append(j)
    return out


def met(values):
    "Clips in which so many of ten events are heard when they are seen."
    out = []
    for wrong in values:
        j, times = Judged(world_clip(0).clip, {}), np.arange(10) / 2
        j.__dict__["events"] = (times + 0.2 * (np.arange(10) < 10 * wrong)).tolist(), times.tolist()
        out.append(j)
    return out


def shown_(values): return [Judged(Clip(pictures(w), tones(0.0), 24.0), MODELS, "red") for w in values]
def sounding(values): return [Judged(Clip(pictures(0.0), tones(w), 24.0), MODELS, "red") for w in values]


def late_world(values):
    "A clip of the world whose sound comes late."
    c = world_clip(0, split="valid").clip
    return [Judged(replace(c, audio=np.roll(c.audio, round(v * c.sample_rate))), MODELS) for v in values]


LATE = (0.0, 0.05, 0.1, 0.2)
LADDERS = {   # metric -> (clips from best to worst, value of the best)
    **{n: (lambda: shown_(WRONG), 1.0) for n in ("tv_ib", "av_ib", "avhscore", "javisscore", "clip")},
    **{n: (lambda: sounding(WRONG), 1.0) for n in ("ta_ib", "clap")},
    **{n: (lambda: met(WRONG), 1.0) for n in ("av_align", "av_align_reference")},
    "moment_score": (lambda: late_world((0.0, 0.1, 0.2, 0.4)), 1.0),
    "sync_ms": (lambda: of_truth(LATE, sync=1), 0.0), "heard_error_ms": (lambda: of_truth(LATE, late=1), 0.0), "seen_error_ms": (lambda: of_truth(LATE, late=1), 0.0),
    "heard_kind": (lambda: of_truth(range(4), others=1), 1.0), "seen_kind": (lambda: of_truth(range(4), others=1), 1.0),
    "heard_order": (lambda: of_truth((0, 2, 3, 4), swapped=1), 1.0), "place_error": (lambda: of_truth(LATE, aside=1), 0.0)}


def test_no_metric_is_forgotten():
    assert set(LADDERS) | set(SETS) | {"cavp"} == set(REGISTRY) | set(MM_METRICS)
    none = score_all(["cavp"], shown_(WRONG))["cavp"]
    assert none.n == 0 and len(none.excluded) == 4 and np.isnan(none.mean)              # it never gives a number


@pytest.mark.parametrize("name", LADDERS)
def test_equal_is_best_and_worse_is_worse(name):
    m, (clips, best) = REGISTRY[name], LADDERS[name]
    values = [m.score(j) for j in clips()]
    assert values[0] == pytest.approx(best, abs=1e-4)
    assert np.all(np.diff(values) < -1e-3 if m.better == "higher" else np.diff(values) > 1e-3), values


@pytest.mark.parametrize("name", LADDERS)
def test_order_few_and_nan(name):
    m, clips = REGISTRY[name], LADDERS[name][0]()
    whole, turned, one = (score_all([m], part)[name] for part in (clips, clips[::-1], clips[:1]))
    assert turned.mean == pytest.approx(whole.mean) and whole.n == 4 and np.isfinite([whole.low, whole.high]).all()
    assert one.n == 1 and np.isnan([one.low, one.high]).all()                            # of one clip nothing is known about others
    broken = replace(m, score=lambda j: m.score(j) if j is not clips[2] else float("nan"))
    mixed = score_all([broken], clips)[name]
    assert mixed.mean == pytest.approx(summarise(name, [v for i, v in enumerate(whole.values) if i != 2]).mean) and (mixed.n, list(mixed.excluded)) == (3, [2])


def test_a_judge_that_says_nan_is_left_out():
    "Not only a mean: the NaN comes out of the embedder, through JavisScore and its kin."
    class Blind(Plain):
        def frames(self, video, fps): return mean_color(video) * torch.nan
    blind = Judged(Clip(pictures(0.0), tones(0.0), 24.0), MODELS | dict(imagebind=Blind()), "red")
    for name, s in score_all(["javisscore", "avhscore"], [*shown_(WRONG), blind]).items():
        assert (s.n, list(s.excluded)) == (4, [4]) and np.isfinite(s.mean), name


# --- sets ---

def cloud(n=200, d=6, seed=0): return np.random.default_rng(seed).standard_normal((n, d))


@pytest.mark.parametrize("name", SETS)
def test_distances_of_the_registry(name):
    m, x, r = SETS[name], cloud(), np.random.default_rng(1)
    assert m.better == "lower"
    same, wider, widest = (m.score(s * x, x) for s in (1.0, 1.3, 2.0))
    assert same < wider < widest and same <= 1e-3 * widest                               # KVD is unbiased, so that of a set with itself may be below zero
    assert m.score(r.permutation(1.3 * x), r.permutation(x)) == pytest.approx(wider, rel=1e-6)
    near, far = (m.score(x + by, x) for by in (0.3, 0.6))
    if name == "kvd_reference": assert near == pytest.approx(far)                        # blind to means: stated in its protocol
    else: assert same < near < far
    with pytest.raises(ValueError, match="at least 2"): m.score(x[:1], x)
    with pytest.raises(ValueError, match="no numbers"): m.score(np.where(x > 2, np.nan, x), x)
    with pytest.warns(UserWarning, match=r"12 clips for 40 features: .* is too large by .* are .* apart already"): set_score(m.score, cloud(12, 40), cloud(12, 40, 1), draws=4)


def test_ten_thousand_clips_are_not_squared_in_memory():
    import tracemalloc
    x, y = cloud(3000, 8), cloud(3000, 8, 1)
    tracemalloc.start()
    blocks = metric("kvd").score(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    k = lambda a, b: (a @ b.T / 8 + 1) ** 3
    own = lambda a: (k(a, a).sum() - np.trace(k(a, a))) / (3000 * 2999)
    assert blocks == pytest.approx(own(x) + own(y) - 2 * k(x, y).mean(), rel=1e-8, abs=1e-10)
    assert peak < 8 * 3000 * 3000 / 2                                                    # half of one matrix of all pairs


def test_composites():
    for c in COMPOSITES:
        good, bad = (1.0, 2.0) if c.better == "lower" else (0.3, 0.1)
        at = lambda v: c(dict.fromkeys(c.weights, v))
        assert (at(bad) > at(good)) == (c.better == "lower")
        with pytest.raises(ValueError, match="needs"): c(dict.fromkeys(c.weights, np.nan))


def test_blur_and_noise_move_features():
    "Real clips through an extractor: the farther from what they were, the farther the sets."
    waves = [world_clip(i, split="valid").clip.audio for i in range(12)]
    rows = lambda level: torch.stack([MelStatistics()(Clip(None, w + level * np.random.default_rng(i).standard_normal(len(w)).astype(np.float32))) for i, w in enumerate(waves)]).numpy()
    at = [metric("fd_mel").score(rows(level), rows(0.0)) for level in (0.0, 0.001, 0.01, 0.1)]
    assert at[0] == pytest.approx(0, abs=1e-3) and sorted(at) == at


@pytest.mark.slow
def test_blur_and_noise_move_networks():
    "FVD by I3D and FAD by AudioCLIP, both with random weights: even those see that a blur grows."
    from scipy.ndimage import gaussian_filter
    with torch.random.fork_rng():
        torch.manual_seed(0)
        see, hear = I3DFeatures(I3D()), AudioClipFeatures(AudioClipEar())
    clips = [world_clip(i, split="valid").clip for i in range(3)]
    blurred = lambda c, s: replace(c, video=gaussian_filter(c.video, (0, s, s, 0)))
    noisy = lambda c, s: replace(c, audio=c.audio + np.float32(s) * np.random.default_rng(0).standard_normal(len(c.audio)).astype(np.float32))
    for name, extract, harm, levels in (("fvd", see, blurred, (0, 1, 4)), ("fad_audioclip_x1e4", hear, noisy, (0, 0.01, 0.1))):
        sets = [np.stack([extract(harm(c, s)).numpy() for c in clips]) for s in levels]
        at = [metric(name).score(s, sets[0]) for s in sets]
        assert at[0] == pytest.approx(0, abs=1e-3) and sorted(at) == at and at[1] > at[0], (name, at)
