"Guards of chapters 00db and 09: ImageBind's eye and ear, their front ends, JavisScore and AVHScore."
from dataclasses import replace

import numpy as np
import parity
import pytest
import torch
import torch.nn.functional as F
from notebooks import ROOT

from javisdit.core import MediaError
from javisdit.imagebind import ImageBindText, TextTower
from javisdit.imagebind_av import (AudioTower, ImageBind, JointEmbedder, VisionTower, at_rate, av_tower, frames_shown, kaldi_mel, load_imagebind, sound_mels, still_pixels,
                                   stretches, video_pixels)
from javisdit.javisscore import avh_score, cut, javis_score, plot_score, score_clip
from javisdit.media import Clip
from javisdit.world import running_clip

GOLDENS = [ROOT / "tests" / "goldens" / f"eval_{name}.safetensors" for name in ("javisscore", "imagebind_audio", "imagebind_image", "imagebind_video")]


@pytest.mark.parametrize("path", GOLDENS, ids=lambda p: p.stem)
def test_parity(path, tmp_path, capsys):
    assert parity.main(["--out", str(tmp_path), str(path)]) == 0, capsys.readouterr().out


def test_parity_needs_no_answers():
    "Results that stand in the metadata are not read."
    fixture = parity.read(GOLDENS[0])
    given = ("n_frames", "n_audio_samples", "fps", "window_size_s", "window_overlap_s")
    config = {"topk_min": fixture.config["topk_min"], "cases": {n: {k: c[k] for k in given} for n, c in fixture.config["cases"].items()}}
    ours = parity.compute(fixture._replace(config=config, answers={}))
    assert set(ours) == set(fixture.answers) and all(e <= t for _, e, t, _, _ in parity.compare(fixture, ours))


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        sizes = dict(width=24, depth=2, out=8)
        return ImageBind(VisionTower(heads=4, **sizes), AudioTower(heads=3, **sizes), ImageBindText(TextTower(heads=4, **sizes)), batch_size=7, name="random")


def test_official_names_and_shapes():
    "Every tensor of both towers under the names of imagebind_huge.pth."
    with torch.device("meta"): towers = dict(vision=VisionTower(), audio=AudioTower())
    shapes = {k: tuple(v.shape) for t in towers.values() for k, v in t.state_dict().items()}
    assert len(shapes) == 392 + 177 and sum(p.numel() for p in towers["vision"].parameters()) == 632_829_440
    assert shapes["modality_preprocessors.vision.rgbt_stem.proj.1.weight"] == (1280, 3, 2, 14, 14) and shapes["modality_trunks.vision.pre_transformer_layer.0.weight"] == (1280,)
    assert shapes["modality_preprocessors.audio.rgbt_stem.proj.weight"] == (768, 1, 16, 16) and shapes["modality_trunks.audio.blocks.11.attn.bias_k"] == (1, 1, 768)
    assert shapes["modality_postprocessors.audio.1.log_logit_scale"] == () and shapes["modality_heads.vision.2.weight"] == (1024, 1280)


def test_embeds_each_thing_as_if_alone(model):
    r = np.random.default_rng(0)
    video, waves = r.integers(0, 256, (17, 30, 44, 3), dtype=np.uint8), [r.standard_normal(n).astype(np.float32) / 9 for n in (16000, 32000, 50000, 800)]
    assert isinstance(model, JointEmbedder) and not any(p.requires_grad for p in model.parameters()) and not model.train().training
    frames, sounds = model.frames(video, 24.0), model.sounds(waves, 16000)
    assert frames.shape == (17, 8) and sounds.shape == (4, 8) and frames.dtype == torch.float32
    torch.testing.assert_close(frames, torch.cat([model.frames(video[i:i + 1], 24.0) for i in range(17)]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sounds, torch.cat([model.sounds([w], 16000) for w in waves]), rtol=1e-4, atol=1e-4)
    three = torch.stack([model.audio(m[None])[0] for m in sound_mels(waves[2])])
    torch.testing.assert_close(sounds[2], three.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.videos([video], [24.0])[0], model.vision(video_pixels(video, 24.0)[None])[0], rtol=1e-4, atol=1e-5)
    assert model.frames(video[:0], 24.0).shape == (0, 8) and model.sounds([], 16000).shape == (0, 8) and model.texts(["a", "b"]).shape == (2, 8)


def test_files(model, tmp_path):
    state = {k: v for t in (model.vision, model.audio, model.text.tower) for k, v in t.state_dict().items()}
    torch.save(state | {"modality_trunks.imu.blocks.0.norm_1.weight": torch.ones(2)}, tmp_path / "all.pth")
    again = load_imagebind(tmp_path / "all.pth", heads=(4, 3, 4))
    video = np.zeros((2, 20, 20, 3), np.uint8)
    assert again.name == "all" and torch.equal(again.frames(video, 8.0), model.frames(video, 8.0)) and torch.equal(again.texts(["a drum"]), model.texts(["a drum"]))
    half = load_imagebind(tmp_path / "all.pth", ("audio",), heads=(4, 3, 4))
    with pytest.raises(ValueError, match="no vision tower: load it with"): half.frames(video, 8.0)
    with pytest.raises(ValueError, match="no text tower"): half.texts(["a"])
    with pytest.raises(MediaError, match="download https://dl.fbaipublicfiles.com"): load_imagebind(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="missing: modality_preprocessors.audio"): av_tower(AudioTower, model.vision.state_dict(), 3)
    with pytest.raises(ValueError, match="blocks.1.mlp.fc2.bias"): av_tower(AudioTower, {k: v for k, v in state.items() if "1.mlp.fc2.bias" not in k}, 3)


def test_front_ends_on_odd_sizes():
    for size in ((1, 20, 20), (3, 17, 90), (5, 90, 17), (2, 224, 225)):
        video = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        assert still_pixels(video).shape == (size[0], 3, 224, 224) and video_pixels(video, 24.0).shape == (15, 3, 2, 224, 224)
    assert frames_shown(1, 24.0) == [(0, 0)] * 5 and frames_shown(240, 29.97)[-1][1] == 239
    assert [float(a) for a, _ in stretches(4.25, 3)] == [0, 1.125, 2.25] and [float(a) for a, _ in stretches(1.0, 5)] == [0] * 5
    with pytest.raises(ValueError, match="positions"): VisionTower(24, 1, 4, 8)(torch.zeros(1, 3, 112, 112))


def test_the_ear_leaves_sound_as_it_is():
    wave = np.random.default_rng(0).standard_normal((2, 60000)).astype(np.float32) + 0.5
    kept = wave.copy()
    mels = sound_mels(wave)
    assert np.array_equal(wave, kept) and mels.shape == (3, 1, 128, 204) and sound_mels(wave[0, :32000]).shape == (1, 1, 128, 204)
    first = wave[:, :32000] - torch.from_numpy(wave[:, :32000]).mean().item()
    torch.testing.assert_close(mels[0], kaldi_mel(torch.from_numpy(first[0])), rtol=1e-4, atol=1e-4)
    sound_mels(wave, reference_inplace=True)
    assert not np.array_equal(wave, kept)
    assert torch.allclose(sound_mels(np.zeros(8000, np.float32))[0, 0, :, 60:], torch.tensor(4.268 / 9.138))   # what is not there is zero before the shift
    with pytest.raises(ValueError, match="at least 400"): sound_mels(np.zeros(399, np.float32))


@pytest.mark.parametrize("n, samples, fps", [(102, 68000, 24.0), (1, 16000, 24.0), (500, 40000, 29.97), (49, 32001, 24.0), (47, 160000, 24.0), (301, 160000, 30.0), (90, 160000, 7.5), (7, 160000, 1.0)])
def test_windows_cover_the_shorter_stream(n, samples, fps):
    found, size = cut(n, samples, fps), int(2 * fps)
    assert found[0] == ((0, n), (0, samples)) or all(b - a == size and d - c == 32000 for (a, b), (c, d) in found)
    assert all(0 <= a < b <= n and 0 <= c < d <= samples for (a, b), (c, d) in found) and len(set(found)) == len(found)
    assert found[-1].frames[1] == n or found[-1].samples[1] == samples


def test_formulas_against_a_plain_loop():
    g = torch.Generator().manual_seed(3)
    v, a, found = torch.randn(131, 5, generator=g), torch.randn(9, 5, generator=g), cut(131, 96000, 24.0)
    a = a[:len(found)]
    scores = []
    for (start, end), sound in zip((s.frames for s in found), a):
        values = sorted(F.cosine_similarity(f, sound, dim=0).item() for f in v[start:end])
        scores.append(sum(values[:19]) / 19)
    assert javis_score(v, a, found).score == pytest.approx(sum(scores) / len(scores), abs=1e-6)
    assert avh_score(v, a[0]) == pytest.approx(np.mean([F.cosine_similarity(f, a[0], dim=0).item() for f in v]), abs=1e-6)
    assert javis_score(0 * v, a, found).score == 0.0                                              # nothing agrees with nothing


class Dummy:
    "Mean colour and loudness: enough to be called."
    name = "dummy"
    def __init__(self): self.calls = []
    def frames(self, video, fps): self.calls.append(len(video)); return torch.from_numpy(video.reshape(len(video), -1, 3).mean(1)).float()
    def sounds(self, waves, rate): self.calls.append([len(w) for w in waves]); return torch.tensor([[1.0, float(np.abs(w).mean()), 0.1] for w in waves])


def test_each_frame_and_window_is_embedded_once():
    dummy = Dummy()
    r = np.random.default_rng(0)
    score_clip(Clip(r.integers(0, 256, (102, 8, 8, 3), dtype=np.uint8), r.standard_normal(68000).astype(np.float32), 24.0), dummy)
    assert dummy.calls == [[68000] + 6 * [32000], 102]


def test_clips_as_they_come():
    clip, dummy = running_clip().clip, Dummy()
    for odd in (replace(clip, video=clip.video[:1]), replace(clip, audio=clip.audio[:500]), clip.resample(sample_rate=44100), clip.resample(fps=5.0)):
        score = score_clip(odd, dummy)
        assert np.isfinite([score.javis, score.avh]).all() and len(score.found) == 1 and "dummy" in repr(score)
    assert plot_score(score_clip(clip, dummy), clip)._repr_png_()[:4] == b"\x89PNG"
    for missing in (dict(video=None), dict(audio=None), dict(audio=clip.audio[:0])):
        with pytest.raises(ValueError, match="a score needs pictures and sound"): score_clip(replace(clip, **missing), dummy)
    assert len(at_rate(clip.audio, 16000, 8000)) == 16000
