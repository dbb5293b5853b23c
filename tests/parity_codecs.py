"""Families of `parity.py` about the paper's frozen codecs and captions: both stages of the video codec, the audio codec with its vocoder, cleaning."""
from unittest.mock import patch

import torch
from diffusers import AutoencoderKL
from parity import Answer, family
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from javisdit.audioldm import AudioLDM2Codec
from javisdit.core import ClipConfig, ceil_to
from javisdit.media import log_mel, mel_basis
from javisdit.opensora import TemporalVAE, draw, opensora_codec
from javisdit.t5 import add_suffix, clean_caption, merge_prompt, split_prompt

TIGHT = dict(tolerance=1e-4, relative=True)
TEMPORAL = dict(in_out_channels="channels", latent_embed_dim="latent", embed_dim="embed", filters="filters", num_res_blocks="count",
                channel_multipliers="multipliers", temporal_downsample="halve", num_groups="groups")


def cases(inputs):
    "Inputs by case: `T17/x` becomes `{'T17': {'x': ...}}`."
    out = {}
    for key, value in inputs.items(): out.setdefault(key.split("/")[0], {})[key.split("/", 1)[1]] = value
    return out


def given(*noises):
    "In place of `torch.randn`: these, one after the other."
    noises = iter(noises)
    def randn(shape, **_):
        noise = next(noises)
        assert noise.shape == shape, (noise.shape, shape)
        return noise
    return patch("torch.randn", randn)


@family(r"eval_vae_temporal.*")
def temporal(fixture):
    "The posterior, a draw with given noise, and what its mean decodes to."
    vae, out = TemporalVAE(**{TEMPORAL[k]: v for k, v in fixture.config.items()}), {}
    vae.load_state_dict(fixture.weights)
    for name, x in cases(fixture.inputs).items():
        mean, logvar = vae.eval().encode(x["x"])
        with given(x["noise"]): sample = draw(mean, logvar, torch.Generator())
        values = dict(mean=mean, logvar=logvar, sample=sample, decoded_from_mean=vae.decode(mean, x["x"].shape[2]))
        out |= {f"out/{name}/{k}": Answer(v, **TIGHT) for k, v in values.items()}
    return out


@family(r"eval_vae_pipeline.*")
def pipeline(fixture):
    "Latents drawn with given noise, and the pictures they decode to."
    c, out = fixture.config, {}
    codec = opensora_codec(fixture.weights, (c["spatial_config"]["norm_num_groups"], c["temporal_config"]["num_groups"]), chunk=c["micro_frame_size"], batch=c["micro_batch_size"])
    for name, x in cases(fixture.inputs).items():
        with given(x["spatial_noise"], x["temporal_noise"]): z = codec.encode(x["x"], torch.Generator())
        out |= {f"out/{name}/z": Answer(z, **TIGHT), f"out/{name}/decoded": Answer(torch.cat([*codec.stream(z, x["x"].shape[2])], 2), **TIGHT)}
    return out


@family(r"eval_audio_vae.*")
def audio(fixture):
    "Log-mel, posterior, a draw with given noise, and the way back to a waveform."
    c, sd, tolerance = fixture.config, fixture.weights, dict(tolerance=2e-5)
    vae, vocoder = AutoencoderKL(**c["vae_config"]), SpeechT5HifiGan(SpeechT5HifiGanConfig(**c["vocoder_config"]))
    for name, part in (("vae.", vae), ("vocoder.", vocoder)): part.load_state_dict({k.removeprefix(name): v for k, v in sd.items() if k.startswith(name)}, strict=False)
    codec = AudioLDM2Codec(vae, vocoder, ClipConfig(mel_pad="zero"))
    out = {"out/mel_basis": Answer(mel_basis(16000, 1024, 64), **tolerance)}
    for name, x in cases(fixture.inputs).items():
        wave, rows = x["waveform"][None], ceil_to(int(c["runs"][name]["duration"] * 100), 32)
        mel = log_mel(wave, codec.clip, frames=rows)
        scale = vae.config.scaling_factor
        with given(x["noise"]): z = codec.from_mel(mel, torch.Generator())
        restored = codec.to_mel(z)
        values = dict(posterior_mean=codec.from_mel(mel) / scale, latent=z, mel_recon=restored[:, None], waveform=codec.to_wave(restored, wave.shape[1]))
        out |= {f"out/{name}/log_mel": Answer(mel, **tolerance), **{f"out/{name}/{k}": Answer(v, **TIGHT) for k, v in values.items()}}
    return out


@family(r"eval_text_cleaning.*", check=lambda ours, theirs: check_text(ours, theirs))
def text(fixture):
    "Captions cleaned once, twice or not at all, scores appended, loop prompts taken apart and put together."
    facts = fixture.answers
    cleaned = [dict(i=c["i"], once=clean_caption(c["i"], 1), out=clean_caption(c["i"]), off=clean_caption(c["i"], 0)) for c in facts["cases"]]
    return {"cases": cleaned, "append_score": [scored(c) for c in facts.get("append_score", ())], "split_merge": [loop(c["i"]) for c in facts.get("split_merge", ())]}


def scored(case):
    "The fixture's arguments, as the suffixes that we append."
    names = dict(aes="aesthetic score: {:.1f}.", flow="motion score: {:.1f}.", camera_motion="camera motion: {}.")
    prompt = add_suffix(case["i"], *(text.format(case["kw"][k]) for k, text in names.items() if case["kw"].get(k) is not None))
    return {**{k: case[k] for k in ("i", "kw")}, "out": prompt, "cleaned": clean_caption(prompt)}


def loop(prompt):
    texts, starts = split_prompt(prompt)
    return dict(i=prompt, split=[texts, starts], merged=merge_prompt(texts, starts))


def check_text(ours, theirs):
    "Strings that differ, a line a case."
    for part in ("cases", "append_score", "split_merge"):
        for a, b in zip(ours[part], theirs.get(part, ())):
            for key in b: yield f"{part}/{b['i'][:24]!r}/{key}", float(a[key] != b[key]), 0.0
