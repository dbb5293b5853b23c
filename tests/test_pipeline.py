"Guards of chapters 07a and 08: a generator assembled from every repository in its official layout, saved, and read again; parts that take turns."
import json

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from test_audioldm import VOCODER
from test_opensora import WIDTHS
from test_t5 import tokenizer_files
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig, T5Config, T5EncoderModel

from javisdit.audioldm import AudioLDM2Codec
from javisdit.checkpoints import convert
from javisdit.conditional import condition, shaped
from javisdit.core import MediaError
from javisdit.dit import JavisDiT
from javisdit.imagebind import TextTower
from javisdit.opensora import OpenSoraCodec, TemporalVAE
from javisdit.prior import CONFIG_NAMES, PriorConfig, PriorModel, prior_to_reference
from javisdit.sampler import JavisDiTPipeline
from javisdit.t5 import T5

SIZES = dict(layout="released", bi="global", width=64, depth=1, heads=4, text_channels=32, text_tokens=40, prior_channels=16, prior_tokens=(4, 4))
PRIOR = PriorConfig(text_channels=64, tokens=(4, 4), channels=16, width=32, depth=(1, 1))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    "Small random weights in the layout of all repositories."
    root = tmp_path_factory.mktemp("hub")
    with torch.random.fork_rng():
        torch.manual_seed(11)
        dit = JavisDiT(**SIZES)
        for p in dit.parameters(): p.data += 0.05 * torch.randn_like(p)      # what is zero at first hides the rest
        dit.save_pretrained(root / "ours")
        convert(root / "ours", root / "transformer", to="reference")
        vae = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=WIDTHS)
        codec = OpenSoraCodec(AutoencoderKL(**vae), TemporalVAE(filters=32, count=1))
        (root / "video_codec").mkdir()
        save_file({k.replace("spatial_vae.", "spatial_vae.module."): v.contiguous() for k, v in codec.state_dict().items() if k not in ("shift", "scale")} | dict(shift=codec.shift, scale=codec.scale + 1), root / "video_codec" / "model.safetensors")
        audio = AutoencoderKL(in_channels=1, out_channels=1, latent_channels=8, down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(8, 8, 16), norm_num_groups=4)
        for name, part in dict(vae=audio, vocoder=SpeechT5HifiGan(SpeechT5HifiGanConfig(**VOCODER))).items(): part.save_pretrained(root / "audio_codec" / name)
        (root / "text_encoder").mkdir(), tokenizer_files(root / "text_encoder")
        t5 = T5EncoderModel(T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu"))
        t5.config.save_pretrained(root / "text_encoder"), torch.save(t5.state_dict(), root / "text_encoder" / "pytorch_model.bin")
        tower = {f"text_encoder.{k}": v.clone() for k, v in TextTower(64, 1, 16, 32, 49408, 77).state_dict().items()}
        (root / "prior").mkdir()
        save_file({k: v.contiguous().clone() for k, v in prior_to_reference(PriorModel(PRIOR).state_dict(), PRIOR, tower).items()}, root / "prior" / "model.safetensors")
    settings = {theirs: getattr(PRIOR, ours) for ours, theirs in CONFIG_NAMES.items()}
    (root / "prior" / "config.json").write_text(json.dumps(dict(settings, spatial_token_num=4, temporal_token_num=4, num_encoder_layers=1, num_decoder_layers=1)))
    return {name: root / name for name in ("transformer", "video_codec", "audio_codec", "text_encoder", "prior")}


def small(pipe):
    pipe.set_progress_bar_config(disable=True)
    return shaped(pipe, 21 / 24, 16, 24)


@pytest.fixture(scope="module")
def released(places): return small(JavisDiTPipeline.from_pretrained("released", **places))


def test_the_official_layout_of_every_repository(released):
    c = released.settings
    assert (c.model.width, c.model.prior_tokens, c.sample.suffix, c.clip.mel_pad) == (64, (4, 4), "aesthetic score: 6.5.", "zero")
    assert (type(released.video_codec), type(released.audio_codec), type(released.text_encoder)) == (OpenSoraCodec, AudioLDM2Codec, T5) and not released.prior.encoder.tokenizer.keep_end
    clip, = released("a drum is struck", steps=2)
    assert clip.video.shape == (21, 16, 24, 3) and clip.audio.shape == (14000,)
    other = released("a lamp flashes", steps=2, output="latents")
    assert not torch.equal(other[0], released("a lamp flashes", steps=2, prior="none", output="latents")[0])


def test_prompts_are_cleaned_and_end_with_the_score(released):
    seen = []
    hook = released.text_encoder.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    other = released.prior.encoder.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    try: released("A <b>Drum</b>", steps=1, output="latents")
    finally: hook.remove(), other.remove()
    assert seen == [["a drum aesthetic score: 6.5."]] * 2


def test_saved_and_read_again(released, tmp_path):
    released.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == "JavisDiTPipeline" and index["transformer"] == ["javisdit.dit", "JavisDiT"]
    again = JavisDiTPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert again.settings == released.settings and again.prior.encoder.tokenizer.keep_end == released.prior.encoder.tokenizer.keep_end
    for a, b in zip(again("a drum", steps=2, output="latents"), released("a drum", steps=2, output="latents")): assert torch.equal(a, b)


def test_every_place_can_be_replaced(places, tmp_path):
    with pytest.raises(ValueError, match="no part is called vae"): JavisDiTPipeline.from_pretrained("released", vae=".")
    for name in ("video_codec", "audio_codec", "text_encoder", "prior", "transformer"):
        with pytest.raises((MediaError, ValueError), match="lacks|holds"): JavisDiTPipeline.from_pretrained("released", **{**places, name: tmp_path})
    without = JavisDiTPipeline.from_pretrained("released", **{**places, "prior": "none"}, torch_dtype=torch.bfloat16)
    assert without.prior is None and without.transformer.dtype == torch.bfloat16
    clip, = small(without)("a drum", steps=1)
    assert clip.video.shape == (21, 16, 24, 3)


def test_parts_take_turns(places):
    pipe, there = small(JavisDiTPipeline.from_pretrained("released", **places)), []
    for name in ("transformer", "video_codec", "audio_codec", "text_encoder", "prior"):
        part = getattr(pipe, name)
        part.to = lambda device, name=name: there.append((name, str(device)))
    pipe.enable_model_cpu_offload(device="cpu")
    there.clear()
    pipe("a drum", steps=1)
    moves = [[n for n, _ in there[i:i + 5]] for i in range(0, len(there), 5)]
    assert [set(m[-2 if i != 1 else -1:]) for i, m in enumerate(moves)] == [{"text_encoder", "prior"}, {"transformer"}, {"video_codec", "audio_codec"}]   # who leaves goes first


def test_saved_single_stream_and_tiny(tmp_path):
    pipe = JavisDiTPipeline.from_pretrained("tiny")
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "tiny")
    again = JavisDiTPipeline.from_pretrained(tmp_path / "tiny")
    again.set_progress_bar_config(disable=True)
    for a, b in zip(pipe("a ball", steps=1, output="latents"), again("a ball", steps=1, output="latents")): assert torch.equal(a, b)
    assert (again("a ball", steps=1)[0].video == pipe("a ball", steps=1)[0].video).all()
    with pytest.raises(ValueError, match="cannot be replaced"): JavisDiTPipeline.from_pretrained("tiny", text_encoder=tmp_path)


def test_modes_with_chunks(released):
    "OpenSora's codec encodes chunks of 17 pictures: the end of a clip is kept in whole chunks."
    long = shaped(released, 34 / 24, 16, 24)
    clip, = long("a drum", steps=1)
    given = condition(long, "extend", clip)
    assert [int((s == 0).sum()) for _, s in given.streams] == [5, int(17 / 24 * 25) - 1]
    for x, (z, s) in zip(long("a drum", steps=1, given=given, output="latents"), given.streams): assert torch.equal(x[:, :, s[0] == 0], z[:, :, s[0] == 0])
    assert int((condition(long, "image", clip).video_share == 0).sum()) == 1
    with pytest.raises(ValueError, match="end inside a latent frame.*steps of 17 pictures"): condition(released, "extend", clip)
    with pytest.raises(ValueError, match="steps of 0.7083 s, up to 0.7083 s"): condition(long, "extend", clip, seconds=0.5)
