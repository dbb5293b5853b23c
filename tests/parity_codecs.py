"""Families of `parity.py` about the paper's frozen codecs and captions: both stages of the video codec, the audio codec with its vocoder, cleaning."""
from unittest.mock import patch

import torch
from parity import Answer, family

from javisdit.opensora import TemporalVAE, draw, opensora_codec

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
