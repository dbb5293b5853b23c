"Guards of chapters 02 and 04: the prior, its parts, its losses, and the names of others."
import json
import math

import parity
import pytest
import torch
from notebooks import ROOT
from safetensors import safe_open
from safetensors.torch import save_file

from javisdit.core import PRESETS, config_from_dict, config_to_dict, generator, preset, released
from javisdit.losses import branch_loss, disc_loss, kl_loss, onset_loss, prior_loss, token_loss, va_loss
from javisdit.prior import (Gaussian, Negatives, PriorConfig, PriorEstimator, PriorModel, VAEncoder, load_estimator, load_prior, pair_rows,
                            prior_config, prior_config_from_reference, prior_from_reference, prior_shapes, prior_to_reference, stretch)

GOLDENS = [p for p in sorted((ROOT / "tests" / "goldens").glob("prior_*.safetensors")) if p.stem.split("_")[1] in ("stib", "va", "losses", "total")]
SMALL = PriorConfig(text_channels=24, tokens=(3, 5), channels=16, width=32, depth=(1, 2), video_patch=(1, 2, 2))


def draw(*shape, seed=0): return torch.randn(*shape, generator=generator("test_prior", seed, shape))


@pytest.fixture(scope="module")
def model(): return PriorModel(SMALL).eval().requires_grad_(False)


# --- parity ---

@pytest.mark.parametrize("path", GOLDENS, ids=lambda p: p.stem)
def test_parity(path, tmp_path, capsys):
    assert parity.main(["--out", str(tmp_path), str(path)]) == 0, capsys.readouterr().out
    assert len(GOLDENS) == 7


@pytest.mark.parametrize("path", GOLDENS, ids=lambda p: p.stem)
def test_parity_needs_no_answers(path, tmp_path):
    "Weights, inputs and sizes are enough: nothing else of a fixture is read."
    with safe_open(path, "pt") as f:
        tensors, meta = {k: f.get_tensor(k) for k in f.keys() if k.split("/")[0] in ("sd", "in")}, json.loads(f.metadata()["json"])
        wanted = {k for k in f.keys() if k.split("/")[0] in ("out", "grad") and "fastpath" not in k}
    save_file(tensors, tmp_path / path.name, {"json": json.dumps({"config": meta["config"]})})
    assert parity.main(["--out", str(tmp_path / "ours"), str(tmp_path / path.name)]) == 0
    with safe_open(tmp_path / "ours" / path.name, "pt") as f: assert wanted <= set(f.keys())


def test_parity_fails_on_a_wrong_answer(tmp_path, capsys):
    source = next(p for p in GOLDENS if p.stem == "prior_losses")
    with safe_open(source, "pt") as f: tensors, meta = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
    tensors["out/temporal_grad_prior"] += 1e-3
    save_file(tensors, tmp_path / source.name, meta)
    assert parity.main(["--out", str(tmp_path / "ours"), str(tmp_path / source.name)]) == 1
    assert "temporal_grad_prior" in next(line for line in capsys.readouterr().out.splitlines() if "FAIL" in line)


# --- sizes ---

def test_sizes():
    count = lambda m: sum(p.numel() for p in m.parameters())
    with torch.device("meta"): model = PriorModel(PriorConfig())
    assert (count(model), count(model.estimator), count(model.discriminator)) == (30_650_945, 30_116_608, 66_369)
    assert (count(model.va_encoder.video_embed), count(model.va_encoder.audio_embed), count(model.va_encoder.spatial)) == (2_176, 4_224, 230_784)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_prior(name):
    config = preset(name)
    p = prior_config(config)
    with torch.device("meta"): model = PriorModel(p)
    assert model.estimator.queries.shape == (sum(config.model.prior_tokens), p.width) and p.channels == config.model.prior_channels
    assert config_from_dict(json.loads(json.dumps(config_to_dict(p))), PriorConfig) == p


def test_weights_are_reproducible():
    a, b = PriorModel(SMALL).state_dict(), PriorModel(SMALL).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a) and all(x.isfinite().all() for x in a.values())


# --- estimator ---

def test_train_and_eval_agree(model):
    states = draw(2, 9, 24)
    for depth in ((1, 2), (4, 4)):
        estimator = PriorEstimator(24, (3, 5), 16, 32, depth=depth).requires_grad_(False)
        for mask in (None, torch.arange(9) < torch.tensor([[9], [4]])):
            a, b = estimator.train().distribution(states, mask), estimator.eval().distribution(states, mask)
            assert torch.allclose(a.mean, b.mean, atol=1e-5) and torch.allclose(a.logvar, b.logvar, atol=1e-5)


def test_decoder_activation():
    relu, gelu = (PriorEstimator(24, (3, 5), 16, 32, depth=(1, 1), decoder_activation=k) for k in ("relu", "gelu"))
    gelu.load_state_dict(relu.state_dict())
    assert not torch.allclose(relu.distribution(draw(1, 4, 24)).mean, gelu.distribution(draw(1, 4, 24)).mean)
    with pytest.raises(ValueError, match="'elu' does not exist: choose gelu, relu"): PriorEstimator(decoder_activation="elu")


def test_draws(model):
    e, states = model.estimator, draw(3, 7, 24)
    assert torch.equal(e(states, generator=generator(1)).temporal, e(states, generator=generator(1)).temporal)
    belief = e.distribution(states)
    rows = e.draw(belief, [generator(i) for i in range(3)])
    for i in range(3): assert torch.equal(e.draw(Gaussian(belief.mean[i:i + 1], belief.logvar[i:i + 1]), [generator(i)]).spatial[0], rows.spatial[i])
    assert torch.equal(torch.cat(e(states, sample=False), 1), belief.mean)
    many = torch.stack([torch.cat(e.draw(belief, generator(i)), 1) for i in range(400)])
    assert (many.mean(0) - belief.mean).abs().max() < 5 * (belief.std / 20).max() and (many.std(0) / belief.std).sub(1).abs().max() < 0.25
    with pytest.raises(ValueError, match="pass generator="): e(states)
    assert PriorEstimator(24, (3, 5), 16, 32, depth=(1, 1), sampling=False)(states).spatial.shape == (3, 3, 16)   # nothing to draw: no generator needed


def test_padding_is_not_read(model):
    states = draw(1, 9, 24)
    mask = torch.arange(9)[None] < 5
    a, b = model.estimator.distribution(states, mask), model.estimator.distribution(torch.where(mask[..., None], states, 99.0), mask)
    assert torch.equal(a.mean, b.mean) and torch.allclose(a.mean, model.estimator.distribution(states[:, :5]).mean, atol=1e-5)


def test_saves_as_diffusers_does(model, tmp_path):
    model.estimator.save_pretrained(tmp_path)
    again = PriorEstimator.from_pretrained(tmp_path)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.estimator.state_dict().items())
    assert torch.allclose(again(draw(1, 5, 24), sample=False).spatial, model.estimator(draw(1, 5, 24), sample=False).spatial, atol=1e-5)


# --- VA-encoder ---

@pytest.mark.parametrize("t,h,w,r,m", [(1, 2, 2, 2, 2), (1, 1, 1, 1, 1), (3, 5, 7, 9, 5), (15, 6, 6, 28, 16), (5, 2, 9, 1, 16)])
def test_any_size(model, t, h, w, r, m):
    out = model.va_encoder(draw(2, 4, t, h, w), draw(2, 8, r, m), 64, 96)
    assert out.spatial.shape == (2, 3, 16) and out.temporal.shape == (2, 5, 16) and all(x.isfinite().all() for x in out)


def test_silence_and_darkness_are_clips(model):
    out = model.va_encoder(torch.zeros(1, 4, 3, 4, 4), torch.zeros(1, 8, 6, 4), 32, 32)
    assert all(x.isfinite().all() for x in out)


def test_wrong_latents_are_named(model):
    va = model.va_encoder
    for bad in (draw(1, 4, 0, 4, 4), draw(1, 3, 2, 4, 4), draw(4, 2, 4, 4)):
        with pytest.raises(ValueError, match=r"video latent is \(.*expected \(b, c, t, h, w\) with 4 channels"): va(bad, draw(1, 8, 6, 4), 32, 32)
    for bad in (draw(1, 8, 0, 4), draw(1, 7, 6, 4), draw(1, 8, 6)):
        with pytest.raises(ValueError, match=r"audio latent is \(.*expected \(b, c, t, m\) with 8 channels"): va(draw(1, 4, 2, 4, 4), bad, 32, 32)
    with pytest.raises(ValueError, match="18 channels: a multiple of 4"): VAEncoder(channels=18)


def test_every_clip_has_its_own_scale(model):
    video, audio, sizes = draw(2, 4, 2, 4, 4), draw(2, 8, 4, 4), torch.tensor([64, 512])
    both = model.va_encoder(video, audio, sizes, sizes)
    for i in range(2):
        alone = model.va_encoder(video[i:i + 1], audio[i:i + 1], int(sizes[i]), int(sizes[i]))
        assert torch.allclose(alone.spatial[0], both.spatial[i], atol=1e-5)


def test_contrast_is_pair_by_pair(model):
    va, video, audio = model.va_encoder, draw(2, 4, 2, 4, 4), draw(2, 8, 4, 4)
    nv, na = draw(2, 3, 4, 2, 4, 4, seed=1), draw(2, 2, 8, 4, 4, seed=2)
    out = va.contrast(video, audio, Negatives(video_temporal=nv, audio_temporal=na, audio_spatial=na[:, :1]), 32, 32)
    assert out.spatial.shape == (2, 2, 3, 16) and out.temporal.shape == (2, 6, 5, 16)
    pairs = [(video, audio), *((video, na[:, i]) for i in range(2)), *((nv[:, i], audio) for i in range(3))]
    for i, pair in enumerate(pairs): assert torch.allclose(va(*pair, 32, 32).temporal, out.temporal[:, i], atol=1e-5)
    assert pair_rows(0, 0) == ([0], [0])


def test_stretch():
    x = draw(2, 7, 3, 4)
    assert torch.equal(stretch(x, 7, 1), x) and stretch(x, 5, 2).shape == (2, 7, 5, 4) and torch.allclose(stretch(torch.ones(1, 3, 2, 1), 9, 1), torch.ones(1, 9, 2, 1))


# --- losses ---

def test_no_negatives(model):
    prior, embeds = draw(2, 3, 16).requires_grad_(), draw(2, 1, 3, 16).requires_grad_()
    loss = branch_loss(prior, embeds, model.discriminator(prior, embeds))
    loss.total.backward()
    assert loss.va == 0 and all(x.isfinite() for x in loss) and prior.grad.isfinite().all() and embeds.grad.isfinite().all()


def test_zero_vectors_have_finite_gradients(model):
    prior, embeds = torch.zeros(1, 3, 16, requires_grad=True), torch.zeros(1, 2, 3, 16, requires_grad=True)
    branch_loss(prior, embeds, model.discriminator(prior, embeds)).total.backward()
    assert prior.grad.isfinite().all() and embeds.grad.isfinite().all()


def test_every_part_gets_a_gradient():
    model = PriorModel(SMALL)
    belief = model.estimator.distribution(draw(2, 6, 24))
    embeds = model.va_encoder.contrast(draw(2, 4, 2, 4, 4), draw(2, 8, 4, 4), Negatives(video_spatial=draw(2, 1, 4, 2, 4, 4, seed=1), audio_temporal=draw(2, 1, 8, 4, 4, seed=1)), 32, 32)
    prior_loss(model.estimator.draw(belief, generator(0)), belief, embeds, model.discriminator).total.backward()
    assert not [k for k, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_extremes():
    e = draw(1, 2, 3, 4)
    assert disc_loss(torch.tensor([[80.0, -80.0]])) < 1e-30 and math.isclose(disc_loss(torch.zeros(3, 2)), math.log(2), rel_tol=1e-6)
    assert torch.isclose(token_loss(-e[:, 0], e[:, :1]), torch.tensor(1.0)) and torch.isclose(va_loss(torch.stack([e[:, 0], -e[:, 0]], 1)), torch.tensor(0.0), atol=1e-6)
    assert kl_loss(Gaussian(torch.ones(1, 2, 3), None)) == 0
    with pytest.raises(ValueError, match=r"prior \(1, 3, 4\), embeddings \(1, 2, 2, 4\)"): branch_loss(e[:, 0], e[:, :, :2], torch.zeros(1, 2))


@pytest.mark.parametrize("length", [1, 4, 5, 9, 10, 64])
def test_onset_labels_of_any_length(length):
    onsets = torch.zeros(1, length)
    onsets[:, -1] = 1
    perfect = torch.full((1, 5, 1), -30.0)
    if length >= 10:
        perfect[:, -1] = 30
        assert onset_loss(perfect, onsets) < 1e-6      # the last token holds the last moment
    assert onset_loss(perfect, onsets).isfinite()


# --- names of others ---

@pytest.mark.parametrize("config", [SMALL, PriorConfig(text_channels=8, width=16, depth=(1, 1), channels=8, heads=2, va_heads=2, sampling=False, onset=True, qk_norm=False)])
def test_there_and_back(config, tmp_path):
    model, tower = PriorModel(config).eval(), {"text_encoder.modality_heads.text.proj.0.bias": torch.ones(2)}
    theirs = prior_to_reference(model.state_dict(), config, tower)
    back = prior_from_reference(theirs, config)
    assert all(torch.equal(back.state[k], v) for k, v in model.state_dict().items()) and back.extras.keys() == tower.keys()
    without = {k: v for k, v in theirs.items() if k not in tower}
    for name, state in (("with", theirs), ("without", without), ("text_side", {k: v for k, v in without.items() if not k.startswith(("va_", "video_", "audio_", "discr"))}), ("ours", model.state_dict())):
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / f"{name}.safetensors")
        estimator = load_estimator(tmp_path / f"{name}.safetensors", config)
        assert all(torch.equal(v, model.estimator.state_dict()[k]) for k, v in estimator.state_dict().items()) and not estimator.training
        if name != "text_side": load_prior(tmp_path / f"{name}.safetensors", config)
    with pytest.raises(ValueError, match="missing: video_embedder.proj.weight"): load_prior(tmp_path / "text_side.safetensors", config)


def test_problems_are_all_named():
    theirs = prior_to_reference(PriorModel(SMALL).state_dict(), SMALL)
    theirs["out_proj.bias"], theirs["surprise"] = torch.ones(3), torch.ones(1)
    del theirs["temporal_query_emb"]
    with pytest.raises(ValueError) as e: prior_from_reference(theirs, SMALL)
    for line in ("missing: temporal_query_emb, expected (1, 5, 32)", "shape (3,), expected (32,): out_proj.bias", "unexpected: surprise"): assert line in str(e.value)


def test_reference_shapes():
    theirs = {n: tuple(s) for _, parts in prior_shapes(PriorConfig()).values() for n, s in parts.items()}
    assert theirs["spatial_query_emb"] == (1, 32, 512) and theirs["in_proj.weight"] == (512, 1024) and theirs["out_proj.weight"] == (256, 512)
    assert theirs["prior_extractor.decoder.layers.3.multihead_attn.in_proj_weight"] == (1536, 512) and theirs["discriminator.cls_token"] == (1, 1, 128)
    assert theirs["video_embedder.proj.weight"] == (128, 4, 1, 2, 2) and theirs["audio_embedder.weight"] == (128, 8, 2, 2)
    assert theirs["discriminator.attn.q_norm.weight"] == (32,) and theirs["va_temporal_encoder.cross_attn.values_m2_proj.weight"] == (128, 128)


def test_reference_config():
    known = dict(text_emb_dim=40, spatial_token_num=8, temporal_token_num=6, hidden_size=32, out_dim=16, nhead=2, num_encoder_layers=3, num_decoder_layers=1, apply_sampling=False, pred_onset=True)
    p = prior_config_from_reference(known)
    assert (p.tokens, p.depth, p.width, p.channels, p.heads, p.sampling, p.onset) == ((8, 6), (3, 1), 32, 16, 2, False, True)
    assert prior_config_from_reference({}) == PriorConfig() == prior_config(released())
