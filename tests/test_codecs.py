"Guards of chapter 00c: what the codecs promise, on clips that they have not seen."
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import javisdit
from javisdit import codecs
from javisdit.codecs import (AudioCodec, TinyAudioCodec, TinyVideoCodec, VideoCodec, as_read, fit_audio, fit_basis, from_strips, javisdit_fit_codecs,
                             load_codecs, read_codecs, refine, save_codecs, start_linear, to_strips)
from javisdit.core import ceil_to, paper, tiny
from javisdit.detect import f1, hear_all, score_events, see_all
from javisdit.media import Clip, from_model, to_model
from javisdit.world import ENLARGE, world_clip

WEIGHTS = Path(javisdit.__file__).parent / "weights"

@pytest.fixture(scope="module")
def both():
    return read_codecs()[:2]

@pytest.fixture(scope="module")
def worlds(): return [world_clip(i, split="test") for i in range(60)]

@pytest.fixture(scope="module")
def clips(worlds): return [as_read(w.clip, ENLARGE) for w in worlds]

@pytest.fixture(scope="module")
def media(clips): return torch.stack([to_model(c.video) for c in clips]), torch.stack([torch.from_numpy(c.audio) for c in clips])

@pytest.fixture(scope="module")
def decoded(both, media):
    (video, audio), (v, a) = both, media
    return video.decode(video.encode(v), v.shape[2]), audio.decode(audio.encode(a), a.shape[1])

def acting(w):
    mask = np.zeros(w.clip.video.shape[:3], bool)
    for e in w.events:
        for i in range(int(e.onset * 24), min(len(mask), int(np.ceil(e.end * 24)))):
            if not e.on_screen or np.isnan(e.boxes[i]).any(): continue
            x0, y0, x1, y1 = np.clip(e.boxes[i], 0, 1) * 32
            mask[i, int(y0):int(np.ceil(y1)), int(x0):int(np.ceil(x1))] = True
    return mask

def test_the_preset_fits(both):
    config, (video, audio) = tiny(), load_codecs(tiny())
    assert isinstance(video, VideoCodec) and isinstance(audio, AudioCodec)
    v, a = torch.zeros(2, 3, config.clip.frames, config.clip.height, config.clip.width), torch.zeros(2, config.clip.samples)
    assert video.encode(v).shape[1:] == config.video_latent and audio.encode(a).shape[1:] == config.audio_latent
    assert video.decode(video.encode(v), config.clip.frames).shape == v.shape and audio.decode(audio.encode(a), config.clip.samples).shape == a.shape

def test_sixteen_times_fewer_numbers(both, media):
    assert media[0].numel() >= 16 * both[0].encode(media[0]).numel()

def test_events_are_still_to_be_seen(worlds, media, decoded):
    boxes = torch.from_numpy(np.stack([acting(w) for w in worlds]))
    error = (decoded[0] - media[0]).pow(2).mean(1)[boxes].mean().item()
    assert 10 * np.log10(4 / error) >= 28

def test_onsets_stay(worlds, decoded):
    after = [Clip(from_model(v), a.numpy()) for v, a in zip(*decoded)]
    times = lambda events: [[e.time for e in x] for x in events]
    visible = [[e.onset for e in w.events if e.on_screen] for w in worlds]
    audible = [[e.onset for e in w.events] for w in worlds]
    assert score_events(times(see_all(after)), visible, 1 / 24).recall >= 0.95
    assert f1(times(hear_all(after)), audible, 0.03) >= 0.95

def test_latents_are_about_one_in_size(both, media):
    for codec, x in zip(both, media):
        z = codec.encode(x)
        assert z.mean().abs() < 0.1 and 0.3 < z.std() < 1.5
        spread = z.transpose(0, 1).flatten(1).std(1)
        assert spread.min() > 0.02 and spread.max() < 10

def test_a_clip_does_not_depend_on_its_batch(both, media, decoded):
    for codec, x, y in zip(both, media, decoded):
        z, n = codec.encode(x[:7]), x.shape[2] if x.ndim == 5 else x.shape[1]
        assert torch.allclose(codec.encode(x[3:4]), z[3:4], rtol=1e-4, atol=1e-5)
        assert torch.allclose(codec.decode(z[3:4], n), y[3:4], rtol=1e-3, atol=1e-3)

def test_equal_latents_give_equal_clips(both, media):
    for codec, x in zip(both, media):
        z, n = codec.encode(x[:2]), 40 if x.ndim == 5 else 16000
        assert torch.equal(codec.decode(z, n), codec.decode(z, n)) and torch.equal(z, codec.encode(x[:2]))

@pytest.mark.parametrize("frames, height, width", [(1, 32, 8), (3, 32, 32), (48, 64, 64), (51, 32, 40)])
def test_any_length_and_multiples_of_a_strip(both, frames, height, width):
    x = torch.rand(2, 3, frames, height, width) * 2 - 1
    z = both[0].encode(x)
    assert z.shape == (2, both[0].channels, -(-frames // 4), height // 32, width // 8)
    y = both[0].decode(z, frames)
    assert y.shape == x.shape and y.abs().max() <= 1

def test_filling_repeats_the_last_picture(both, media):
    v = media[0][:2, :, :46]
    assert torch.equal(both[0].encode(v), both[0].encode(torch.cat([v, v[:, :, -1:], v[:, :, -1:]], 2)))

def test_rows_of_strips_are_independent(both, media):
    a, b = media[0][:1], media[0][1:2]
    z = both[0].encode(torch.cat([a, b], 3))
    assert torch.allclose(z[:, :, :, :1], both[0].encode(a), atol=1e-4) and torch.allclose(z[:, :, :, 1:], both[0].encode(b), atol=1e-4)

def test_strips_there_and_back():
    x = torch.randn(2, 3, 8, 32, 24)
    for stride in ((4, 32, 8), (4, 8, 8), (1, 16, 4)): assert torch.equal(from_strips(to_strips(x, stride), stride), x)

def test_wrong_size_says_what_to_do(both):
    with pytest.raises(ValueError, match="pictures are 24 x 32, the codec needs multiples of 32 x 8: resize or crop"):
        both[0].encode(torch.zeros(1, 3, 4, 24, 32))

def test_times(both):
    video, audio = both
    assert video.times(48, 24).tolist() == pytest.approx([(4 * i + 2) / 24 for i in range(12)])
    assert video.times(49, 24)[-1] == pytest.approx(48.5 / 24) and len(video.times(1, 24)) == 1
    t = audio.times(32000)
    assert len(t) == 50 and t[0] == pytest.approx(0.015) and torch.allclose(t.diff(), torch.tensor(0.04))

@pytest.mark.parametrize("samples", [1, 1600, 15999, 32000, 34000])
def test_sound_of_any_length(both, samples):
    wave = torch.randn(2, samples).clamp(-1, 1)
    z = both[1].encode(wave)
    assert z.shape == (2, 16, ceil_to(max(samples // 160, 1), 8) // 4, 1)
    out = both[1].decode(z, samples)
    assert out.shape == wave.shape and out.isfinite().all() and out.abs().max() <= 0.7001

def test_silence_stays_silent(both):
    assert both[1].decode(both[1].encode(torch.zeros(1, 32000)), 32000).abs().max() < 1e-3

def test_wild_latents_are_no_accident(both):
    "A model that goes astray gives noise, not a crash or a number that cannot be written to a file."
    for z in (torch.full((1, 16, 50, 1), 20.0), torch.randn(1, 16, 50, 1) * 10):
        out = both[1].decode(z, 32000)
        assert out.isfinite().all() and out.abs().max() <= 1
    assert both[0].decode(torch.randn(1, 192, 12, 1, 4) * 10, 48).abs().max() <= 1

def test_level_is_divided_out(both, media):
    assert torch.allclose(both[1].encode(media[1][:3]), both[1].encode(media[1][:3] * 0.2), atol=0.02)

def test_frozen(both):
    for codec in both: assert not any(p.requires_grad for p in codec.parameters()) and not codec.training

def test_errors():
    c = tiny()
    with pytest.raises(ValueError, match="OpenSora v1.2's video codec .1.57 GB, Apache-2.0.: download"): load_codecs(paper(), video="/nowhere")
    with pytest.raises(ValueError, match="'vq' does not exist: choose 'tiny' or 'audioldm2'"): load_codecs(replace(c, codec=replace(c.codec, audio="vq")))
    with pytest.raises(ValueError, match="change config.codec"): load_codecs(replace(c, codec=replace(c.codec, video_channels=7)))

def test_size_on_disk():
    assert sum(p.stat().st_size for p in WEIGHTS.iterdir()) <= 4e6

def test_saved_is_loaded(both, tmp_path, media):
    save_codecs(tmp_path / "x.safetensors", *both, n=1)
    *again, made = read_codecs(tmp_path / "x.safetensors")
    assert made == dict(n=1)
    for old, new, x in zip(both, again, media):
        assert torch.allclose(old.encode(x[:2]), new.encode(x[:2]), atol=1e-4)

def test_the_shipped_file_says_how_it_was_made():
    made = read_codecs()[2]
    assert made["code"] == codecs.code_version(), "the fit's code changed since: run javisdit_fit_codecs"
    assert set(made) == {"n", "seed", "steps", "code", "torch"}

def test_fit_again(tmp_path):
    "The command, on few clips: it runs, and it gives the same again."
    for name in "ab": javisdit_fit_codecs(tmp_path / name, n=12, steps=4)
    (va, aa, made), (vb, ab, _) = read_codecs(tmp_path / "a"), read_codecs(tmp_path / "b")
    assert made["n"] == 12 and re.fullmatch("[0-9a-f]{12}", made["code"])
    for old, new in ((va, vb), (aa, ab)):
        for k, v in old.state_dict().items(): assert torch.equal(v, new.state_dict()[k]), k

def test_networks_start_at_the_linear_codec_and_improve_on_it(media):
    codec = TinyVideoCodec(channels=24, stride=(4, 32, 8), kept=64, width=32)
    videos = (media[0][:24] * 127.5 + 127.5).round().byte()
    with torch.no_grad():
        x = fit_basis(codec, videos)
        start_linear(codec)
        assert torch.allclose(codec.restore(codec.compress(x))[:, :24], x[:, :24], atol=1e-5)
        assert (codec.restore(codec.compress(x))[:, 24:] == 0).all()
        before = (codec.decode(codec.encode(media[0][:24]), 48) - media[0][:24]).pow(2).mean()
    refine(codec, x, steps=60, batch=8)
    after = (codec.decode(codec.encode(media[0][:24]), 48) - media[0][:24]).pow(2).mean()
    assert after < before

def test_audio_fit_is_the_best_linear_one(media):
    "No other 16 directions keep more of the log-mel patches: the error is the sum of the eigenvalues left out."
    codec = TinyAudioCodec()
    fit_audio(codec, media[1][:20])
    mel = codec.mel(media[1][:20])
    rows = mel.reshape(-1, 4 * 64)
    left = torch.linalg.eigvalsh(torch.cov(rows.T, correction=0).double())[:-16].sum()
    x = (rows - codec.mean) @ codec.basis.T @ codec.basis + codec.mean
    assert (x - rows).pow(2).sum(1).mean().item() == pytest.approx(left.item(), rel=1e-3)
