"Guards of chapter 00ca: OpenSora's video codec from a file in the official layout, its clock, streams, tiles and memory."
import json
import subprocess
import sys
import warnings
from dataclasses import replace

import parity
import pytest
import torch
from diffusers import AutoencoderKL
from notebooks import ROOT
from safetensors.torch import save_file

from javisdit.codecs import VideoCodec, load_codecs
from javisdit.core import CodecConfig, MediaError, generator, paper, released, tiny
from javisdit.opensora import OpenSoraCodec, TemporalVAE, load_opensora, opensora_codec

GOLDENS = [*sorted((ROOT / "tests" / "goldens").glob("eval_vae_*"))]
WIDTHS = (32, 32, 64, 64)


@pytest.fixture(scope="module")
def codec():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        spatial = AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=WIDTHS, layers_per_block=2)
        codec = OpenSoraCodec(spatial, TemporalVAE(filters=32, count=2))
    codec.shift += 0.2; codec.scale += 2.5
    return codec.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(codec, tmp_path_factory):
    "A folder as the repository has it."
    folder = tmp_path_factory.mktemp("vae")
    save_file({k.replace("spatial_vae.", "spatial_vae.module."): v.contiguous() for k, v in codec.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("path", GOLDENS, ids=lambda p: p.stem)
def test_parity(path, tmp_path, capsys):
    assert len(GOLDENS) == 2 and parity.main(["--out", str(tmp_path), str(path)]) == 0, capsys.readouterr().out


def test_official_names_and_sizes():
    with torch.device("meta"): state = TemporalVAE().state_dict()
    assert len(state) == 267 and sum(v.numel() for v in state.values()) == 309_687_144
    assert state["encoder.block_res_blocks.3.0.conv3.conv.weight"].shape == (512, 256, 1, 1, 1) and "encoder.block_res_blocks.2.0.conv3.conv.weight" not in state
    assert state["decoder.conv_blocks.2.conv.weight"].shape == (1024, 512, 3, 3, 3) and state["encoder.conv2.conv.bias"].shape == (8,)


def test_loads_the_official_layout(codec, folder):
    again = load_opensora(folder)
    assert isinstance(again, VideoCodec) and not again.training and not any(p.requires_grad for p in again.parameters())
    x = torch.rand(1, 3, 6, 16, 24, generator=generator("load")) * 2 - 1
    assert torch.equal(again.encode(x), codec.encode(x)) and torch.equal(again.decode(again.encode(x), 6), codec.decode(codec.encode(x), 6))
    half = load_opensora(folder, dtype=torch.bfloat16)
    assert half.encode(x).dtype == torch.float32 and (half.encode(x) - codec.encode(x)).abs().max() < 0.1


def test_the_presets_get_it(folder):
    for config in (paper(), released()):
        video, audio = load_codecs(replace(config, codec=replace(config.codec, audio="tiny", audio_channels=16, audio_stride=(4, 64))), video=folder)
        assert isinstance(video, OpenSoraCodec) and video.latent_frames(102) == config.video_latent[1] and audio.clip == config.clip
    with pytest.raises(ValueError, match="change config.codec"): load_codecs(replace(tiny(), codec=replace(tiny().codec, video="opensora")), video=folder)


def test_missing_weights_give_one_clear_message(tmp_path, folder):
    message = r"OpenSora v1.2's video codec \(1.57 GB, Apache-2.0\): download model.safetensors from https://huggingface.co/hpcai-tech/OpenSora-VAE-v1.2 and give their folder"
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(MediaError, match=message): load_opensora(place)
    with pytest.raises(MediaError, match=message): load_codecs(paper())       # nothing is downloaded in tests
    with pytest.raises(ValueError, match="not the weights of OpenSora.* is missing among 1 tensors"): opensora_codec({"a": torch.ones(1)})
    with pytest.raises(ValueError, match="a is left over"): opensora_codec({"a": torch.ones(1), **{k.replace("spatial_vae.", "spatial_vae.module."): v for k, v in load_opensora(folder).state_dict().items()}})


@pytest.mark.parametrize("frames", [1, 2, 4, 16, 17, 18, 21, 34, 40])
def test_every_length(codec, frames):
    x = torch.rand(1, 3, frames, 8, 16, generator=generator("lengths", frames)) * 2 - 1
    z = codec.encode(x)
    assert z.shape == (1, 4, CodecConfig().latent_frames(frames), 1, 2) and codec.decode(z, frames).shape == x.shape
    spans = codec.spans(frames)
    assert spans[0, 0] == 0 and spans[-1, 1] == frames and torch.equal(spans[1:, 0], spans[:-1, 1])    # every picture stands in exactly one
    assert (codec.times(frames, 24).diff() > 0).all()


def decoded_at_once(codec, z, frames):
    x = torch.cat([codec.temporal_vae.decode(part * codec.scale + codec.shift, n) for part, n in zip(z.split(5, 2), (17, frames - 17))], 2) / 0.18215
    return codec.spatial_vae.decode(x.transpose(1, 2).flatten(0, 1)).sample.unflatten(0, (len(z), frames)).transpose(1, 2)


@pytest.mark.parametrize("clips, dtype", [(1, torch.float32), (2, torch.float64)])
def test_chunks_and_batches_equal_plain_decoding(codec, clips, dtype):
    z = torch.randn(clips, 4, 7, 2, 3, generator=generator("plain"), dtype=dtype)
    plain = decoded_at_once(codec.to(dtype), z, 24)
    for codec.batch in (1, 3, 4, 100): assert (torch.cat([*codec.stream(z, 24)], 2) - plain).abs().max() < 1e-5
    codec.batch, _ = 4, codec.float()
    assert torch.equal(codec.decode(z.float(), 24), torch.cat([*codec.stream(z.float(), 24)], 2).clamp(-1, 1))


@pytest.mark.parametrize("tile", [2, 3, 5])
def test_tiles_equal_plain_decoding(codec, tile):
    x = torch.randn(1, 4, 1, 7, 10, generator=generator("tiles"))
    x[..., 5:] += 3                                                             # two halves of other brightness
    double = codec.double()
    plain = double.pictures(x.double())
    double.tile = tile
    tiled = double.pictures(x.double())
    codec.tile, _ = None, codec.float()
    assert (tiled - plain).abs().max() < 1e-5
    assert not [h for m in codec.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]   # nothing is left behind


def test_draws(codec):
    x = torch.rand(2, 3, 5, 16, 16, generator=generator("draws")) * 2 - 1
    a, b, c = (codec.encode(x, generator("draw", k)) for k in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(codec.encode(x), codec.encode(x))


def test_sizes_that_are_no_multiple(codec):
    with pytest.warns(UserWarning, match="pictures are 26 x 18 and are cropped to 24 x 16") as told: z = codec.encode(torch.zeros(1, 3, 1, 26, 18))
    assert len(told) == 1 and z.shape == (1, 4, 1, 3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codec.encode(torch.zeros(1, 3, 1, 24, 16))
    with pytest.raises(ValueError, match="at least 8 x 8: enlarge"): codec.encode(torch.zeros(1, 3, 1, 24, 7))
    with pytest.raises(ValueError, match="4 latent frames for 17 pictures, which have 5"): next(codec.stream(torch.zeros(1, 4, 4, 2, 2), 17))


def row(**what):
    done = subprocess.run([sys.executable, ROOT / "nbs" / "tables" / "00ca_memory.py", "--row", json.dumps(what)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_memory_of_a_stream_is_flat():
    short, long = (row(size="small", task="stream", frames=n)["above_start_mb"] for n in (68, 272))    # from the second chunk on
    assert long <= 1.2 * short, (short, long)
    out = row(size="small", task="decode", frames=272)
    assert out["above_start_mb"] - out["output_mb"] <= 1.2 * short, (short, out)


@pytest.mark.slow
def test_full_size_fits_into_six_gigabytes():
    "17 pictures of 240p there and back, float32, random weights."
    assert row(size="full", task="both", frames=17)["peak_mb"] < 6000
