"Guards of chapters 09a, 09aa and 09ab: distances of sets, events, judges, means, features, I3D, AudioCLIP."
import warnings
from dataclasses import replace

import numpy as np
import parity
import pytest
import torch
from notebooks import ROOT
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, CLIPConfig, CLIPModel, RobertaTokenizer

from javisdit.audioclip import AudioClipEar, AudioClipFeatures, load_audioclip, rescaled
from javisdit.core import MediaError, file_hash
from javisdit.i3d import I3D, I3DFeatures, fvd_frames, letterbox, load_i3d
from javisdit.imagebind import ImageBindText, TextTower
from javisdit.imagebind_av import AudioTower, ImageBind, VisionTower, still_pixels
from javisdit.media import Clip, write_clip
from javisdit.metrics import (ASPECTS, METRICS, ClapFeatures, Extractor, Judged, PictureJudge, auroc, av_align, av_align_reference, bootstrap_mean, by_category, features,
                              flow_trajectory, frechet, frechet_reference, kernel_distance, kernel_distance_reference, linspace_frames, load_picture_judge, load_sound_judge,
                              local_maxima, members, metric, pair_accuracy, score_all, set_floor, set_score, sound_onsets, summarise, weights_hash)
from javisdit.world import running_clip, world_clip

GOLDENS = [ROOT / "tests" / "goldens" / f"eval_{name}" for name in ("avalign.safetensors", "frechet_mmd.safetensors", "preprocess.safetensors", "audioclip_audio.safetensors", "i3d.safetensors", "metric_verification.json")]


@pytest.mark.parametrize("path", GOLDENS, ids=lambda p: p.stem)
def test_parity(path, tmp_path, capsys):
    assert parity.main(["--out", str(tmp_path), str(path)]) == 0, capsys.readouterr().out
    further = path.stem in ("eval_avalign", "eval_frechet_mmd")
    assert {f.name for f in tmp_path.iterdir()} == {path.name} | ({f"{path.stem}.json"} if further else set())


def test_parity_sees_a_wrong_fact(tmp_path, capsys, monkeypatch):
    fixture = parity.read(GOLDENS[1])
    fixture.config["cat_fvd"]["1"][0] *= 1.01
    monkeypatch.setattr(parity, "read", lambda path: fixture)
    assert parity.main(["--out", str(tmp_path), str(GOLDENS[1])]) == 1 and "cat_fvd" in capsys.readouterr().out


def cloud(n=300, d=6, seed=0): return np.random.default_rng(seed).standard_normal((n, d))


# --- sets ---

@pytest.mark.parametrize("distance", [frechet, frechet_reference, kernel_distance])
def test_distances_of_sets_are_sane(distance):
    x, r = cloud(), np.random.default_rng(1)
    same, nearer, farther = distance(x, x), distance(x + 0.3, x), distance(x + 0.6, x)
    assert same < nearer < farther and abs(same) < 0.1                                   # identical sets are best, a larger shift is worse
    assert distance(2 * x, x) > distance(1.3 * x, x) > same                              # so is a larger spread
    assert distance(r.permutation(x + 0.3), r.permutation(x)) == pytest.approx(nearer)   # in any order
    assert distance(x, x + 0.3) == pytest.approx(nearer)                                 # and either way around
    for bad, why in ((x[:1], "at least 2"), (x[:, :3], "same features"), (np.where(x > 2, np.nan, x), "no numbers")):
        with pytest.raises(ValueError, match=why): distance(bad, x)


def test_frechet_is_the_formula():
    "Against a matrix square root, and for fewer clips than numbers."
    from scipy.linalg import sqrtm
    x, y = cloud(50), 1.7 * cloud(80, seed=2) @ np.diag([1, 2, 3, 1, 1, 0.1]) + 0.2
    a, b = np.cov(x.T), np.cov(y.T)
    assert frechet(x, y) == pytest.approx(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real), rel=1e-8)
    x, y = cloud(5, 40), cloud(7, 40, 3)
    xc, yc = x - x.mean(0), y - y.mean(0)
    nuclear = np.linalg.svd(xc @ yc.T, compute_uv=False).sum() / (4 * 6) ** 0.5           # tr (A^1/2 B A^1/2)^1/2 without any d x d matrix
    assert frechet(x, y) == pytest.approx(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T)) + np.trace(np.cov(y.T)) - 2 * nuclear, rel=1e-6)


def test_the_reference_kernel_distance_is_blind_to_means():
    x = cloud()
    assert kernel_distance_reference(x + 5, x) == pytest.approx(kernel_distance_reference(x, x)) and kernel_distance(x + 5, x) > 100


def test_few_clips_are_said():
    x, y = cloud(20, 30), cloud(24, 30, 1)
    with pytest.warns(UserWarning, match=r"20 clips for 30 features: .* \(12 clips each\) are .* apart already"): few = set_score(frechet, x, y, draws=10)
    assert few.low <= few.value <= few.high and few.floor > 0 and (few.half, few.fake, few.real) == (12, 20, 24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        many = set_score(frechet, cloud(), cloud(seed=1), draws=10)
    assert many.floor < few.floor and set_score(frechet, cloud(), cloud(seed=1), draws=10) == many
    assert np.isnan(set_floor(frechet, x[:3], 20)[0])


# --- events ---

def test_events_one_to_one():
    r = np.random.default_rng(0)
    for _ in range(50):
        a, v = r.uniform(0, 2, r.integers(0, 8)).tolist(), r.uniform(0, 2, r.integers(0, 8)).tolist()
        score = av_align(a, v, 8.0)
        assert 0 <= score <= 1 and score == pytest.approx(av_align(v, a, 8.0)) == pytest.approx(av_align(a[::-1], v, 8.0))
        if a: assert av_align(a, a, 8.0) == 1
    assert av_align_reference([1.0, 1.05, 1.1], [1.05], 10.0) > 2.9 and av_align([1.0, 1.05, 1.1], [1.05], 10.0) == pytest.approx(1 / 3)
    assert local_maxima([0, 1, 0, 2, 2, 1, 3], 4.0) == [0.25] and local_maxima([1.0], 4.0) == [] and flow_trajectory(np.zeros((1, 8, 8, 3), np.uint8)).tolist() == [0]


def test_flow_without_opencv(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ImportError, match=r"javisdit\[eval\]"): flow_trajectory(running_clip().clip.video)


# --- judges ---

@pytest.fixture(scope="module")
def tower():
    "ImageBind with random weights: enough to be asked."
    with torch.random.fork_rng():
        torch.manual_seed(1)
        sizes = dict(width=24, depth=1, out=8)
        return ImageBind(VisionTower(heads=4, **sizes), AudioTower(heads=3, **sizes), ImageBindText(TextTower(heads=4, **sizes)), name="random")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    "A tiny CLIP in the official format."
    layers = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    CLIPModel(CLIPConfig(text_config=layers, vision_config=layers | dict(image_size=224, patch_size=32), projection_dim=8)).save_pretrained(path := tmp_path_factory.mktemp("clip"))
    return path


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory):
    "A tiny CLAP in the official format, with its tokeniser."
    path = tmp_path_factory.mktemp("clap")
    text = dict(vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_hidden_size=8)
    audio = dict(hidden_size=16, patch_embeds_hidden_size=8, depths=[1, 1], num_attention_heads=[1, 1], num_hidden_layers=2, spec_size=256, window_size=4, num_classes=3)
    ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=8)).save_pretrained(path)
    ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad").save_pretrained(path)
    letters = "<s> <pad> </s> <unk> <mask>".split() + list("abcdefghijklmnopqrstuvwxyzĠ")
    RobertaTokenizer(vocab={c: i for i, c in enumerate(letters)}, merges=[], model_max_length=77).save_pretrained(path)
    return path


def test_picture_judge(clip_folder):
    judge, clip = load_picture_judge(clip_folder), running_clip().clip
    whole = judge.score(clip.video, "a red ball")
    assert -1 <= whole <= 1 and judge.score(clip.video[:1], "a red ball") != whole
    image = judge.model.get_image_features(still_pixels(clip.video[:1])).pooler_output
    text = judge.model.get_text_features(judge.tokenizer(["a red ball"])).pooler_output
    assert judge.score(clip.video[:1], "a red ball") == pytest.approx(torch.cosine_similarity(image, text).item(), abs=1e-5)
    assert isinstance(judge, PictureJudge) and linspace_frames(102, 24).tolist()[:4] == [0, 4, 9, 13] and linspace_frames(1, 3).tolist() == [0, 0, 0]


def test_sound_judge_is_the_same_each_time(clap_folder):
    judge = load_sound_judge(clap_folder)
    wave = np.random.default_rng(0).standard_normal(12 * 16000).astype(np.float32) / 9
    assert judge.score(wave, 16000, "a drum") == judge.score(wave, 16000, "a drum")        # twelve seconds, no random crop
    short = judge.sound(wave[:32000], 16000)
    assert short.shape == (8,) and -1 <= judge.score(wave[:32000], 16000, "a bell") <= 1
    row = ClapFeatures(judge)
    assert isinstance(row, Extractor) and torch.equal(row(Clip(None, wave[:32000])), short)
    with pytest.raises(ValueError, match="has no sound"): row(running_clip().clip.__class__(running_clip().clip.video, None))


def test_every_metric_of_clips_through_the_registry(tower, clip_folder, clap_folder):
    models = {"imagebind": tower, "clip": load_picture_judge(clip_folder), "clap": load_sound_judge(clap_folder)}
    names, clips = [m.name for m in METRICS.values() if not m.of_sets], [world_clip(i) for i in range(2)]
    judged = [Judged(w.clip, models, w.caption) for w in clips] + [Judged(clips[0].clip, models)] + [Judged(replace(clips[0].clip, audio=None), models, "a drum")]
    out = score_all(names, judged)
    assert set(out) == set(names) and {n for n, s in out.items() if s.n == 0} == {"cavp"} and len(out["cavp"].excluded) == 4
    for n in ("tv_ib", "clip"): assert set(out[n].excluded) == {2} and "no caption" in out[n].excluded[2]
    for n in ("av_ib", "javisscore", "avhscore", "av_align"): assert set(out[n].excluded) == {3}, n
    for n in ("ta_ib", "clap"): assert set(out[n].excluded) == {2, 3}
    assert all(np.isfinite([s.mean, s.low, s.high]).all() for n, s in out.items() if s.n > 1)
    back = score_all(names, judged[::-1])
    assert all(back[n].mean == pytest.approx(out[n].mean, abs=1e-5, nan_ok=True) for n in names)               # order does not matter


def test_each_thing_is_encoded_once(tower, monkeypatch):
    calls, plain = [], ImageBind._encode
    monkeypatch.setattr(ImageBind, "_encode", lambda self, kind, items, prepare: calls.append((kind, len(items))) or plain(self, kind, items, prepare))
    w = world_clip(3)
    score_all(["av_ib", "javisscore", "avhscore", "tv_ib", "ta_ib"], [Judged(w.clip, {"imagebind": tower}, w.caption)])
    assert sorted(calls) == [("audio", 2), ("vision", 15), ("vision", 48)]


def test_equal_vectors_are_the_best_there_is():
    "Of every cosine metric: an embedder that sees and hears the same thing gives 1."
    class Same:
        name = "same"
        def frames(self, video, fps): return torch.ones(len(video), 4)
        def videos(self, videos, fps): return torch.ones(len(videos), 4)
        def sounds(self, waves, rate): return 20 * torch.ones(len(waves), 4)
        def texts(self, captions): return 7 * torch.ones(len(captions), 4)
    w = world_clip(0)
    out = score_all(["tv_ib", "ta_ib", "av_ib", "javisscore", "avhscore"], [Judged(w.clip, {"imagebind": Same()}, w.caption)])
    assert all(s.mean == pytest.approx(1) for s in out.values())


def test_a_missing_model_is_named():
    out = score_all(["av_ib"], [Judged(running_clip().clip, {})])["av_ib"]
    assert out.n == 0 and "no 'imagebind' among the models" in out.excluded[0]
    with pytest.raises(ValueError, match="does not exist: choose"): metric("fid")
    with pytest.raises(ValueError, match="fvd compare sets"): score_all(["fvd"], [])
    assert all(m.better in ("higher", "lower") and m.protocol and m.needs for m in METRICS.values())


def test_av_align_moves_the_right_way():
    "A shift makes it worse, and so does a blur in time."
    world = [world_clip(i, split="valid").clip for i in range(24)]
    mean = lambda change: score_all(["av_align"], [Judged(change(c), {}) for c in world])["av_align"].mean
    blur = lambda c: replace(c, video=np.stack([c.video[max(i - 2, 0):i + 3].mean(0) for i in range(len(c.video))]).astype(np.uint8))
    assert mean(lambda c: c) > max(mean(lambda c: replace(c, audio=np.roll(c.audio, 8000))), mean(blur))
    assert sound_onsets(np.zeros(16000, np.float32), 16000) == []


# --- means ---

def test_no_nan_enters_a_mean():
    s = summarise("x", [1.0, np.nan, 3, None, np.inf, ValueError("broken"), MediaError("a.mp4", "is damaged", "replace it")])
    assert (s.mean, s.n, set(s.excluded)) == (2.0, 2, {1, 3, 4, 5, 6}) and "5 of 7 left out" in repr(s) and "a.mp4" in s.excluded[6] and s.values[1] is None
    none = summarise("x", [None])
    assert np.isnan(none.mean) and none.n == 0 and np.isnan(bootstrap_mean([1.0])[0])
    low, high = bootstrap_mean(np.random.default_rng(0).standard_normal(400))
    assert low < 0 < high and high - low == pytest.approx(4 / 20, rel=0.2) and bootstrap_mean([1, 2, 3]) == bootstrap_mean([1, 2, 3])


def test_verification_counts_ties():
    r = np.random.default_rng(0)
    labels, scores = r.integers(0, 2, 60), r.integers(0, 5, 60)
    right, wrong = scores[labels == 1], scores[labels == 0]
    assert auroc(labels, scores) == pytest.approx(np.mean([(a > b) + (a == b) / 2 for a in right for b in wrong]))
    assert pair_accuracy([1, 1, 0], [(0, 1), (1, 2), (2, 0)]) == (pytest.approx(1 / 3), 0.5, pytest.approx(1 / 3))
    for bad in (lambda: auroc([0, 0], [1, 2]), lambda: pair_accuracy([1, 2], [])):
        with pytest.raises(ValueError): bad()


def test_categories():
    assert members([0, "1,2", "0,2"], 4) == [[0, 2], [1], [1, 2], []] and [len(v) for v in ASPECTS.values()] == [5, 3, 5, 3, 3]
    out = by_category(lambda rows: float(len(rows)), [0, "1,2", "0,2"], 4)
    assert out[0] == 2 and out[2] == 2 and np.isnan([out[1], out[3]]).all()


# --- features ---

class Loudness:
    name, protocol, fingerprint, sample_rate = "loudness", "mean absolute value", "1", 16000
    def __call__(self, clip): return torch.tensor([np.abs(clip.audio).mean(), len(clip.audio)])


class Colour(Loudness):
    name, protocol, sample_rate = "colour", "mean colour", None
    def __call__(self, clip): return torch.from_numpy(clip.video.reshape(-1, 3).mean(0))


def test_features_are_kept_by_content(tmp_path):
    paths = [tmp_path / f"{i}.mp4" for i in range(3)]
    for i, p in enumerate(paths): write_clip(world_clip(i).clip, p)
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    first = features([*paths, tmp_path / "bad.mp4", tmp_path / "none.mp4"], Loudness(), tmp_path / "cache")
    assert first.rows.shape == (3, 2) and first.computed == 3 and len(first.excluded) == 2 and first.paths == [str(p) for p in paths]
    paths[0] = paths[0].rename(tmp_path / "other.mp4")
    again = features(paths, Loudness(), tmp_path / "cache")
    assert again.computed == 0 and np.array_equal(again.rows, first.rows)                   # renamed: the same
    write_clip(world_clip(7).clip, paths[1])
    assert features(paths, Loudness(), tmp_path / "cache").computed == 1                    # another content
    louder = Loudness(); louder.fingerprint = "2"
    assert features(paths, louder, tmp_path / "cache").computed == 3                        # other weights
    assert features(paths, Colour(), tmp_path / "cache").rows.shape == (3, 3)
    assert features([], Loudness(), tmp_path).rows.shape == (0, 0) and file_hash(paths[1]) != file_hash(paths[0])


def test_features_that_are_no_numbers_are_left_out(tmp_path):
    class Nan(Colour):
        def __call__(self, clip): return torch.tensor([float("nan")])
    write_clip(world_clip(0).clip, tmp_path / "a.mp4")
    out = features([tmp_path / "a.mp4"], Nan(), tmp_path / "cache")
    assert not len(out.rows) and "no numbers" in [*out.excluded.values()][0] and not [*tmp_path.glob("cache/**/*.npy")]


def test_weights_hash():
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert weights_hash(a) == weights_hash(a) != weights_hash(b)
    b.load_state_dict(a.state_dict())
    assert weights_hash(a) == weights_hash(b)


# --- networks ---

def test_i3d(tmp_path):
    with torch.device("meta"): net = I3D()
    state, expected = net.state_dict(), parity.read(GOLDENS[4]).config["i3d_keys"]
    assert {k: list(v.shape) for k, v in state.items()} == expected
    for size in ((3, 20, 20), (3, 17, 90), (3, 90, 17), (1, 1, 500)):
        assert letterbox(np.zeros((*size, 3), np.uint8)).shape == (size[0], 3, 224, 224)
    white = fvd_frames(np.full((2, 8, 16, 3), 255, np.uint8))
    assert white.shape == (24, 3, 224, 224) and white[0, 0, 112, 112] == 255 and white[0, 0, 0, 0] == 0
    assert set(fvd_frames(np.zeros((2, 8, 16, 3), np.uint8), reference=True).unique().tolist()) == {127}
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not I3D's weights"): load_i3d(tmp_path / "other.pt")
    with pytest.raises(MediaError, match="download"): load_i3d(tmp_path / "none.pt")


def test_the_two_inputs_of_i3d_have_two_names():
    net = I3D()
    ours, reference = I3DFeatures(net), I3DFeatures(net, reference=True)
    assert (ours.name, reference.name) == (METRICS["fvd"].features, METRICS["fvd_reference"].features) and ours.protocol != reference.protocol


def test_audioclip(tmp_path):
    with torch.device("meta"): net = AudioClipEar()
    expected = parity.read(GOLDENS[3]).config["keys"]
    shapes = {k: list(v.shape) for k, v in net.state_dict().items()}
    assert expected.items() <= shapes.items() and {k for k in shapes.keys() - expected.keys() if not k.startswith("layer")} == set() and len(shapes) == 370
    ear = AudioClipEar()
    torch.save({f"audio.{k}": v for k, v in ear.state_dict().items()} | {"visual.a": torch.ones(2)}, tmp_path / "all.pt")
    row = AudioClipFeatures(load_audioclip(tmp_path / "all.pt"), seconds=1.0)
    wave = np.random.default_rng(0).standard_normal(24000).astype(np.float32) / 9
    assert torch.equal(row(Clip(None, wave)), row(Clip(None, wave[:16000]))) and row(Clip(None, wave[:500])).isfinite().all()
    assert row.name == METRICS["fad_audioclip_x1e4"].features and rescaled(torch.zeros(1)).abs() < 2e-5
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not AudioCLIP"): load_audioclip(tmp_path / "other.pt")
    with pytest.raises(MediaError, match="download"): load_audioclip(tmp_path / "none.pt")
