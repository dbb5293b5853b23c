"The transformer has the reference's size, keeps its clips apart, and survives a round trip through its file formats."
from dataclasses import asdict, replace

import pytest
import torch

from javisdit.checkpoints import from_reference, to_reference
from javisdit.core import PRESETS, generator, paper, preset, released, tiny
from javisdit.dit import JavisDiT, draw_drops, trim_text

ROTARY = 36     # frequencies that the reference counts as a parameter at full size and we compute


def small_model(layout="paper", bi=None, **changes):
    bi = bi or ("global" if layout == "released" else "windows")
    config = replace(tiny().model, layout=layout, bi=bi, width=32, depth=2, heads=4, video_channels=6, audio_channels=4, text_channels=10, text_tokens=7,
                     prior_channels=5, prior_tokens=(3, 4), **dict(skip="none") | changes)
    model = JavisDiT(**asdict(config))
    g = generator("test", "weights")
    with torch.no_grad():
        for p in model.parameters(): p.copy_(torch.randn(p.shape, generator=g) * (0.3 if p.ndim > 1 else 0.1))
    return model.eval()


def inputs(b=3, frames=5, rows=8, seed=0):
    g = generator("test", "inputs", seed)
    draw = lambda *shape: torch.randn(shape, generator=g)
    mask = torch.arange(7) < torch.tensor([7, 3, 5, 1])[:b, None]
    cond = dict(text=draw(b, 7, 10), text_mask=mask, spatial_prior=draw(b, 3, 5), temporal_prior=draw(b, 4, 5), fps=24.0, height=32, width=48,
                video_times=torch.arange(frames) / 6, audio_times=torch.arange(rows) / 25)
    return draw(b, 6, frames, 4, 6), draw(b, 4, rows, 1), torch.rand(b, generator=g) * 1000, cond


def close(a, b, tolerance=1e-5):
    "Equal to `tolerance` of the largest value, or absolutely where that is below 1."
    assert (a - b).abs().max() <= tolerance * max(1, b.abs().max())


VARIANTS = [("paper", "windows"), ("paper", "seconds"), ("paper", "global"), ("released", "global"), ("released", "windows")]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_on_the_meta_device(name):
    with torch.device("meta"): assert JavisDiT(**asdict(preset(name).model)).config.width == preset(name).model.width


def test_parameter_counts():
    def count(config):
        with torch.device("meta"): return sum(p.numel() for p in JavisDiT(**asdict(config.model)).parameters())
    assert count(released()) + ROTARY == 3_719_730_948
    assert count(paper()) + ROTARY == 3_224_001_156


@pytest.mark.parametrize("layout, bi", VARIANTS)
def test_a_clip_does_not_depend_on_its_batch(layout, bi):
    model, (video, audio, t, cond) = small_model(layout, bi), inputs()
    with torch.no_grad():
        together = model(video, audio, t, c := model.conditions(**cond))
        for i in range(3):
            alone = model(video[i:i + 1], audio[i:i + 1], t[i:i + 1], c[i:i + 1])
            for a, b in zip(together, alone): close(a[i:i + 1], b)


@pytest.mark.parametrize("layout, bi", VARIANTS)
def test_guided_conditions_are_the_two_halves(layout, bi):
    model, (video, audio, t, cond) = small_model(layout, bi), inputs()
    everything = torch.ones(3, dtype=torch.bool)
    with torch.no_grad():
        c = model.conditions(**cond)
        null = model.conditions(**cond, drop=type(draw_drops(3, 0.5, generator(0)))(everything, everything, everything))
        both = model(video.repeat(2, 1, 1, 1, 1), audio.repeat(2, 1, 1, 1), t.repeat(2), model.guided(c))
        for half, expected in zip((slice(0, 3), slice(3, 6)), (model(video, audio, t, c), model(video, audio, t, null))):
            for a, b in zip(both, expected): close(a[half], b)


@pytest.mark.parametrize("layout", ["paper", "released"])
def test_prior_scopes(layout):
    model, (video, audio, t, cond) = small_model(layout), inputs()
    run = lambda c, scope, rows=slice(None): model(video[rows], audio[rows], t[rows], c, prior_scope=scope).video
    with torch.no_grad():
        c = model.conditions(**cond)
        assert torch.equal(run(c, "sample"), run(c, "pair")), "without guidance a pair is a sample"
        assert (run(c, "sample") - run(c, "batch")).abs().max() > 1e-3
        one = slice(0, 1)
        close(run(c[one], "batch", one), run(c[one], "sample", one))
        double = lambda c: model(video[:len(c) // 2].repeat(2, 1, 1, 1, 1), audio[:len(c) // 2].repeat(2, 1, 1, 1), t[:len(c) // 2].repeat(2), c, prior_scope="pair").video
        pair, alone = double(model.guided(c)), double(model.guided(c[one]))
        close(pair[[0, 3]], alone)
        both = model(video[:1].repeat(2, 1, 1, 1, 1), audio[:1].repeat(2, 1, 1, 1), t[:1].repeat(2), model.guided(c[one]), prior_scope="batch").video
        close(alone, both)
    with pytest.raises(ValueError, match="prior_scope"): run(c, "everyone")


@pytest.mark.parametrize("layout, bi", VARIANTS)
def test_save_and_load(layout, bi, tmp_path):
    model, (video, audio, t, cond) = small_model(layout, bi), inputs()
    model.save_pretrained(tmp_path)
    again = JavisDiT.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        for a, b in zip(model(video, audio, t, model.conditions(**cond)), again(video, audio, t, again.conditions(**cond))): assert torch.equal(a, b)


@pytest.mark.parametrize("layout", ["paper", "released"])
@pytest.mark.parametrize("changes", [{}, dict(qk_norm=False), dict(predict_sigma=True), dict(video_patch=(2, 2, 1), audio_patch=(4, 1)), dict(mlp_ratio=3.0)])
def test_reference_names_round_trip(layout, changes):
    model = small_model(layout, **changes)
    config = replace(tiny().model, **{k: v for k, v in model.config.items() if not k.startswith("_")})
    extras = {"temporal_blocks.0.video_onset_proj.fc1.weight": torch.ones(2, 2)}
    back = from_reference(to_reference(model.state_dict(), config, extras), config)
    assert all(torch.equal(v, back.state[k]) for k, v in model.state_dict().items())
    assert set(back.extras) == {"rope.freqs", *extras}


@pytest.mark.parametrize("layout, bi", VARIANTS)
def test_every_weight_gets_a_gradient_from_scratch(layout, bi):
    model, (video, audio, t, cond) = small_model(layout, bi).init_weights("scratch"), inputs()
    v = model(video, audio, t, model.conditions(**cond))
    (v.video.square().mean() + v.audio.square().mean()).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("layout, bi", VARIANTS)
def test_gradient_checkpointing_changes_nothing(layout, bi):
    model, (video, audio, t, cond) = small_model(layout, bi), inputs()
    def grads():
        model.zero_grad()
        model(video, audio, t, model.conditions(**cond)).video.square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]
    plain = grads()
    model.enable_gradient_checkpointing()
    for a, b in zip(plain, grads()): torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout, bi", VARIANTS)
def test_runs_in_bfloat16(layout, bi):
    model, (video, audio, t, cond) = small_model(layout, bi), inputs()
    with torch.no_grad():
        exact = model(video, audio, t, model.conditions(**cond)).video
        half = model.to(torch.bfloat16)(video, audio, t, model.conditions(**cond)).video
    assert half.dtype == video.dtype and (half - exact).norm() < 0.1 * exact.norm()


def test_bad_inputs_say_what_is_wrong():
    model, (video, audio, t, cond) = small_model(), inputs()
    c = model.conditions(**cond)
    with pytest.raises(ValueError, match="does not divide into patches"): model(video, audio[:, :, :7], t, c)
    with pytest.raises(ValueError, match="conditions of 3 clips"): model(video[:1], audio[:1], t, c)
    with pytest.raises(ValueError, match="channels"): model(video[:, :2], audio, t, c)
    with pytest.raises(ValueError, match="one prior without the other"): model.conditions(**{**cond, "temporal_prior": None})
    with pytest.raises(ValueError, match="at most 7 tokens"): model.conditions(**{**cond, "text": torch.zeros(3, 9, 10)})
    with pytest.raises(ValueError, match="video_times"): small_model(bi="seconds")(video, audio, t, model.conditions(**{**cond, "video_times": None}))
    with pytest.raises(ValueError, match="bi 'sometimes'"): small_model(bi="sometimes")


def test_trimmed_text_gives_the_same():
    model, (video, audio, t, cond) = small_model(), inputs()
    long = {**cond, "text_mask": torch.arange(7) < torch.tensor([4, 3, 1])[:, None]}
    text, mask = trim_text(long["text"], long["text_mask"])
    assert text.shape[1] == 4
    with torch.no_grad(): close(model(video, audio, t, model.conditions(**{**long, "text": text, "text_mask": mask})).video, model(video, audio, t, model.conditions(**long)).video)
