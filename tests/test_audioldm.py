"Guards of chapter 00cb: AudioLDM2's audio codec from a folder in the official layout."
from dataclasses import replace

import parity
import pytest
import torch
from diffusers import AutoencoderKL
from notebooks import ROOT
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from javisdit.audioldm import AudioLDM2Codec, load_audioldm2
from javisdit.codecs import AudioCodec, load_codecs
from javisdit.core import ClipConfig, MediaError, generator, paper, released, tiny

VOCODER = dict(model_in_dim=64, upsample_rates=[5, 4, 2, 2, 2], upsample_kernel_sizes=[16, 16, 8, 4, 4], upsample_initial_channel=32, normalize_before=False)


@pytest.fixture(scope="module")
def parts():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        vae = AutoencoderKL(in_channels=1, out_channels=1, latent_channels=8, down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
                            block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4, scaling_factor=0.4110932946205139)
        return vae, SpeechT5HifiGan(SpeechT5HifiGanConfig(**VOCODER))


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    "A folder as the repository has it, with a part that is not ours."
    folder = tmp_path_factory.mktemp("audioldm2")
    for part, name in zip(parts, ("vae", "vocoder")): part.save_pretrained(folder / name)
    (folder / "unet").mkdir(), (folder / "unet" / "config.json").write_text("not even JSON")
    return folder


@pytest.fixture(scope="module")
def codec(parts): return AudioLDM2Codec(*parts)


def test_parity(tmp_path, capsys):
    path = ROOT / "tests" / "goldens" / "eval_audio_vae.safetensors"
    assert parity.main(["--out", str(tmp_path), str(path)]) == 0, capsys.readouterr().out


def test_loads_the_official_layout(codec, folder):
    again, wave = load_audioldm2(folder), torch.randn(2, 5000, generator=generator("wave")).clamp(-1, 1)
    assert isinstance(again, AudioCodec) and not again.train().training and not any(p.requires_grad for p in again.parameters())
    assert (again.channels, again.stride, again.vae.config.scaling_factor) == (8, (4, 4), 0.4110932946205139)
    assert torch.equal(again.encode(wave), codec.encode(wave)) and torch.allclose(again.decode(again.encode(wave), 5000), codec.decode(codec.encode(wave), 5000), atol=1e-6)
    half = load_audioldm2(folder, dtype=torch.bfloat16)
    assert half.encode(wave).dtype == half.decode(half.encode(wave), 5000).dtype == torch.float32


def test_the_presets_get_it(folder):
    for config in (paper(), released()):
        t = tiny()
        mixed = replace(config, codec=replace(t.codec, audio="audioldm2", audio_channels=8, audio_stride=(4, 4)))
        _, audio = load_codecs(mixed, audio=folder)
        assert isinstance(audio, AudioLDM2Codec) and audio.clip.mel_pad == config.clip.mel_pad
        z = audio.encode(torch.zeros(1, config.clip.samples))
        assert z.shape[1:] == config.audio_latent and audio.decode(z, config.clip.samples).shape == (1, config.clip.samples)


def test_missing_weights_give_one_clear_message(folder, tmp_path):
    message = r"AudioLDM2's audio codec and vocoder \(0.44 GB, CC BY-NC-SA 4.0 \(not for commercial use\)\): download vae/config.json, .* from https://huggingface.co/cvssp/audioldm2"
    with pytest.raises(MediaError, match=message): load_audioldm2(tmp_path)
    (tmp_path / "vae").mkdir()
    for p in (folder / "vae").iterdir(): (tmp_path / "vae" / p.name).write_bytes(p.read_bytes())
    with pytest.raises(MediaError, match="lacks vocoder/config.json, vocoder/"): load_audioldm2(tmp_path)
    with pytest.raises(MediaError, match=message): load_audioldm2()           # nothing is downloaded in tests


@pytest.mark.parametrize("samples", [1, 159, 5119, 5120, 5121, 16000, 34000])
def test_lengths(codec, samples):
    z = codec.encode(torch.ones(1, samples))
    assert z.shape[2] % 8 == 0 and z.shape[2] * 4 * 160 > samples - 160 and len(codec.times(samples)) == z.shape[2]
    out = codec.decode(z, samples)
    assert out.shape == (1, samples) and out.isfinite().all() and out.abs().max() <= 1


def test_draws_and_level(codec):
    wave = torch.randn(1, 4000, generator=generator("draw")).clamp(-1, 1)
    a, b, c = (codec.encode(wave, generator("draw", k)) for k in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.allclose(codec.encode(wave), codec.encode(wave / 10), atol=1e-3)


def test_rates_must_fit(parts):
    with pytest.raises(ValueError, match="16000, 160, 64.*change config.clip"): AudioLDM2Codec(*parts, ClipConfig(n_mels=80))
