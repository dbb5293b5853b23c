"The transformer has the reference's size, keeps its clips apart, and survives a round trip through its file formats."
import json
from collections import Counter
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
from diffusers.models import attention_dispatch

from javisdit import attention, dit
from javisdit.attention import CrossAttention, PriorModulation, SpatialTemporalSelfAttention, attend, find_backend
from javisdit.checkpoints import from_reference, to_reference
from javisdit.core import PRESETS, ModelConfig, generator, paper, preset, released, tiny
from javisdit.dit import ConditionEmbedder, JavisDiT, clip_facts, draw_drops, stage_of, trainable, trim_text
from javisdit.flow import guided, sample_latents, time_grid
from javisdit.maps import PRIORS, PriorMaps, prior_maps

HERE = Path(__file__).parent
ONSET = 148_764_672     # of the reference's paper layout, used by nothing and not built
ROTARY = 36     # frequencies that the reference counts as a parameter at full size and we compute


def small_model(layout="paper", bi=None, **changes):
    bi = bi or ("global" if layout == "released" else "windows")
    config = replace(tiny().model, **dict(layout=layout, bi=bi, width=32, depth=2, heads=4, video_channels=6, audio_channels=4, text_channels=10, text_tokens=7,
                                          prior_channels=5, prior_tokens=(3, 4), skip="none") | changes)
    model = JavisDiT(**asdict(config))
    g = generator("test", "weights")
    with torch.no_grad():
        for p in model.parameters(): p.copy_(torch.randn(p.shape, generator=g) * (0.3 if p.ndim > 1 else 0.1))
    return model.eval()


def scratch(layout="paper", bi=None, **changes):
    "As training from scratch starts, at the size of `small_model`."
    return small_model(layout, bi, **changes).init_weights("scratch", generator("test", "scratch")).eval()


def inputs(b=3, frames=5, rows=8, seed=0):
    g = generator("test", "inputs", seed)
    draw = lambda *shape: torch.randn(shape, generator=g)
    mask = torch.arange(7) < torch.tensor([7, 3, 5, 1, 4, 2, 7, 6])[:b, None]
    cond = dict(text=draw(b, 7, 10), text_mask=mask, spatial_prior=draw(b, 3, 5), temporal_prior=draw(b, 4, 5), fps=24.0, height=32, width=48,
                video_times=torch.arange(frames) / 6, audio_times=torch.arange(rows) / 25)
    return draw(b, 6, frames, 4, 6), draw(b, 4, rows, 1), torch.rand(b, generator=g) * 1000, cond


def close(a, b, tolerance=1e-5):
    "Equal to `tolerance` of the largest value, or absolutely where that is below 1."
    assert (a - b).abs().max() <= tolerance * max(1, b.abs().max())


def without_prior(cond): return {**cond, "spatial_prior": None, "temporal_prior": None}


USES = ["cross_attention", "addition", "modulation", "none"]
VARIANTS = [("paper", "windows"), ("paper", "seconds"), ("paper", "global"), ("released", "global"), ("released", "windows")]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_on_the_meta_device(name):
    with torch.device("meta"): assert JavisDiT(**asdict(preset(name).model)).config.width == preset(name).model.width


def test_parameter_counts():
    def count(config):
        with torch.device("meta"): return sum(p.numel() for p in JavisDiT(**asdict(config.model)).parameters())
    assert count(released()) + ROTARY == 3_719_730_948
    assert count(paper()) + ROTARY == 3_224_001_156
    assert count(paper()) + ROTARY + ONSET == 3_372_765_828


@pytest.mark.parametrize("config, stage, number", [(released(), 3, 1_315_605_888), (released(), 1, 1_196_481_088), (paper(), 3, 968_640_768 - ONSET)])
def test_a_stage_trains_what_the_reference_trains(config, stage, number):
    with torch.device("meta"): model = JavisDiT(**asdict(config.model))
    assert sum(p.numel() for p in trainable(model, stage).values()) == number
    assert sum(len(trainable(model, s)) for s in (0, 1, 3)) == len(list(model.parameters()))
    for name in trainable(model, 3): assert "prior" in name or ".bi." in name or name.startswith("nine"), name
    for name in trainable(model, 1): assert "audio" in name and "prior" not in name and ".bi." not in name, name
    with pytest.raises(ValueError, match="stage 2"): trainable(model, 2)


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
    extras = {"rope.freqs": torch.ones(4), "temporal_blocks.0.video_onset_proj.fc1.weight": torch.ones(2, 2)}
    back = from_reference(to_reference(model.state_dict(), config, extras), config)
    assert all(torch.equal(v, back.state[k]) for k, v in model.state_dict().items())
    assert back.extras == extras and "rope.freqs" in to_reference(model.state_dict(), config)


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


# --- a prompt by itself and among others ---

@pytest.mark.parametrize("layout, bi", VARIANTS)
@pytest.mark.parametrize("scope", ["sample", "pair"])
def test_a_prompt_alone_and_among_eight(layout, bi, scope):
    "The guided velocity of a prompt differs by at most 1e-5, absolutely, whoever else is in the batch."
    model, (video, audio, t, cond) = scratch(layout, bi), inputs(8)
    def velocity(rows):
        c, n = model.guided(model.conditions(**{k: v[rows] if torch.is_tensor(v) and len(v) == 8 and k not in ("video_times", "audio_times") else v for k, v in cond.items()})), len(t[rows])
        double = lambda x: torch.cat((x[rows], x[rows]))
        return guided(*zip(*((x[:n], x[n:]) for x in model(double(video), double(audio), double(t), c, prior_scope=scope))), guidance=7.0)
    with torch.no_grad():
        together = velocity(slice(0, 8))
        for i in range(8):
            for a, b in zip(velocity(slice(i, i + 1)), together): assert (a - b[i:i + 1]).abs().max() <= 1e-5


# --- once a clip ---

@pytest.mark.parametrize("layout, bi", VARIANTS)
@pytest.mark.parametrize("use", USES)
def test_conditions_are_computed_once_a_clip(layout, bi, use):
    "Kept conditions change no bit, and projections of text and prior run once a clip, never in a step."
    model, (video, audio, t, cond) = small_model(layout, bi, prior_use=use), inputs()
    if use == "none": cond = without_prior(cond)
    calls, layers = Counter(), {name: m.kv if isinstance(m, CrossAttention) else m.proj if isinstance(m, PriorModulation) else m for name, m in model.named_modules()
                                if isinstance(m, (CrossAttention, PriorModulation, ConditionEmbedder))}
    stretches = []
    for name, layer in layers.items(): layer.register_forward_hook(lambda *_, name=name: calls.update([name]))
    stretch, attention.stretch = attention.stretch, lambda *a: stretches.append(a) or stretch(*a)
    try:
        with torch.no_grad():
            kept = model.conditions(**cond)
            assert set(calls) == set(layers) and set(calls.values()) == {1}
            calls.clear()
            first = model(video, audio, t, kept)
            placed = len(stretches)
            steps = [first, *(model(video, audio, t / s, kept) for s in (2, 3))]
            assert not calls and len(stretches) == placed
            assert bool(placed) == (use in ("addition", "modulation"))
            for s, out in zip((1, 2, 3), steps):
                for a, b in zip(out, model(video, audio, t / s, model.conditions(**cond))): assert torch.equal(a, b)
    finally: attention.stretch = stretch


def test_sampling_projects_once():
    model, (video, audio, t, cond) = small_model(), inputs()
    calls = Counter()
    for name, m in model.named_modules():
        if isinstance(m, CrossAttention): m.kv.register_forward_hook(lambda *_, name=name: calls.update([name]))
    sample_latents(model, model.conditions(**cond), (video, audio), time_grid(5), 2.0)
    assert set(calls.values()) == {2}, "once for the prompts, once for the null rows, whatever the steps"


# --- variants of Tables 4 and 5 ---

@pytest.mark.parametrize("layout, bi", [("paper", "windows"), ("released", "global"), ("paper", "none"), ("released", "none")])
@pytest.mark.parametrize("use", USES)
def test_variants_keep_the_contract(layout, bi, use, tmp_path):
    model, (video, audio, t, cond) = small_model(layout, bi, prior_use=use), inputs()
    if use == "none":
        with pytest.raises(ValueError, match="takes none"): model.conditions(**cond)
        cond = without_prior(cond)
    with torch.no_grad():
        together = model(video, audio, t, c := model.conditions(**cond))
        for a, b in zip(together, model(video[1:2], audio[1:2], t[1:2], c[1:2])): close(a[1:2], b)
        both = model(video.repeat(2, 1, 1, 1, 1), audio.repeat(2, 1, 1, 1), t.repeat(2), model.guided(c))
        for a, b in zip(both, together): close(a[:3], b)
        if use != "none":
            other = model.conditions(**{**cond, "spatial_prior": cond["spatial_prior"] + 1, "temporal_prior": cond["temporal_prior"] - 1})
            for a, b in zip(together, model(video, audio, t, other)): assert (a - b).abs().max() > 1e-3
        heard = model(video, audio.flip(2), t, c).video
        assert torch.equal(heard, together.video) == (bi == "none")
        if use in ("addition", "modulation"):
            with pytest.raises(ValueError, match="only attention can look"): model(video, audio, t, c, prior_scope="batch")
            model(video, audio, t, c, prior_scope="pair")
        model.save_pretrained(tmp_path)
        for a, b in zip(together, JavisDiT.from_pretrained(tmp_path).eval()(video, audio, t, c)): assert torch.equal(a, b)


@pytest.mark.parametrize("layout", ["paper", "released"])
@pytest.mark.parametrize("tokens", [(0, 0), (1, 1), (16, 16), (16, 32), (32, 16), (32, 32)])
@pytest.mark.parametrize("width", [5, 16])
@pytest.mark.parametrize("use", USES[:3])
def test_prior_of_any_size(layout, tokens, width, use):
    model, (video, audio, t, cond) = small_model(layout, prior_tokens=tokens, prior_channels=width, prior_use=use), inputs()
    given = [torch.randn(3, n, width, generator=generator("prior", n)) for n in tokens]
    cond |= dict(zip(("spatial_prior", "temporal_prior"), given if any(tokens) else (None, None)))
    with torch.no_grad(): assert all(v.isfinite().all() for v in model(video, audio, t, model.conditions(**cond)))
    assert (model.prior is None) == (tokens == (0, 0))


def test_choices_that_do_not_exist():
    for wrong in (dict(prior_use="concat"), dict(bi="sometimes"), dict(layout="square"), dict(skip="some")):
        with pytest.raises(ValueError, match="does not exist: choose one of"): JavisDiT(**{**asdict(tiny().model), **wrong})
    with pytest.raises(ValueError, match="or \\(0, 0\\) for none"): small_model(prior_tokens=(0, 4))


@pytest.mark.parametrize("layout, bi", VARIANTS)
@pytest.mark.parametrize("use", USES)
def test_stage_three_starts_as_the_exact_identity(layout, bi, use):
    "A fresh stage-3 model is, to the bit, the model that has none of the new parts."
    model, (video, audio, t, cond) = small_model(layout, bi, prior_use=use).init_weights("stage3"), inputs()
    cond = cond if use != "none" else without_prior(cond)
    bare = small_model(layout, "none", prior_use="none")
    extra = bare.load_state_dict(model.state_dict(), strict=False)
    assert not extra.missing_keys and all(stage_of(k) == 3 for k in extra.unexpected_keys)
    with torch.no_grad():
        for a, b in zip(model(video, audio, t, model.conditions(**cond)), bare(video, audio, t, bare.conditions(**without_prior(cond)))): assert torch.equal(a, b)


@pytest.mark.parametrize("use", USES[1:3])
def test_variants_get_gradients_from_the_first_step(use):
    model, (video, audio, t, cond) = scratch(prior_use=use), inputs()
    sum(v.square().mean() for v in model(video, audio, t, model.conditions(**cond))).backward()
    new = [p.grad for n, p in model.named_parameters() if ".prior." in n and ("gain" in n or "proj" in n)]
    assert len(new) == 2 * 4 * (1 if use == "addition" else 2) and all(g.abs().max() > 0 for g in new)


# --- what computes attention, and what is stored ---

def test_backends_of_this_machine():
    model, (video, audio, t, cond) = small_model(), inputs()
    run = lambda: model(video, audio, t, model.conditions(**cond)).video
    with torch.no_grad():
        sdpa = run()
        model.set_attention_backend("math")
        close(run(), sdpa)
        model.reset_attention_backend()
        assert torch.equal(run(), sdpa)
    with pytest.raises(ValueError, match="choose one of sdpa, math, cudnn, flash"): model.set_attention_backend("xformers")
    if not torch.cuda.is_available():
        for name in ("flash", "cudnn"):
            with pytest.raises(RuntimeError, match=f"attention backend '{name}'"): model.set_attention_backend(name)


@pytest.mark.parametrize("layout, bi", VARIANTS)
def test_flash_gets_what_has_no_mask(layout, bi, monkeypatch):
    "Stand-in for the package: routing, not the kernel. An attention with a mask must not reach it; the numbers stay."
    def flash_attn_func(q, k, v, **kw):
        assert kw["causal"] is False and kw["softmax_scale"] is None and q.dtype == torch.bfloat16
        reached.append(q.shape)
        return torch.nn.functional.scaled_dot_product_attention(*(z.transpose(1, 2).float() for z in (q, k, v))).transpose(1, 2).to(q.dtype)      # as `attend` does on a CPU
    monkeypatch.setattr(attention_dispatch, "flash_attn_func", flash_attn_func)
    monkeypatch.setattr(attention_dispatch, "_CAN_USE_FLASH_ATTN", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model, (video, audio, t, cond), reached = small_model(layout, bi).to(torch.bfloat16), inputs(), []
    with torch.no_grad():
        c = model.conditions(**cond)
        plain = model(video, audio, t, c)
        masked = []
        monkeypatch.setattr(attention, "dispatch_attention_fn", lambda *a, attn_mask=None, backend=None: masked.append((attn_mask is not None, backend.value)) or
                            attention_dispatch.dispatch_attention_fn(*a, attn_mask=attn_mask, backend=backend))
        model.set_attention_backend("flash")
        for a, b in zip(plain, model(video, audio, t, c)): assert torch.equal(a, b)
    assert set(masked) == {(True, "native"), (False, "flash")} and len(reached) == masked.count((False, "flash"))
    with pytest.raises(ValueError, match="needs bfloat16 or float16"): model.float()(video, audio, t, model.conditions(**cond))
    assert find_backend("flash").kernel == attention_dispatch.AttentionBackendName.FLASH


def test_config_holds_the_architecture_only(tmp_path):
    model = small_model().to(torch.bfloat16)
    model.set_attention_backend("math")
    model.enable_gradient_checkpointing()
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert {k for k in stored if not k.startswith("_")} == {f.name for f in fields(ModelConfig)}
    assert {k for k in stored if k.startswith("_")} <= {"_class_name", "_diffusers_version", "_name_or_path"}
    words = json.dumps(stored).lower()
    assert not [w for w in ("float", "dtype", "cpu", "cuda", "device", "backend", "math", "sdpa", "flash", "checkpointing", "scope") if w in words]
    again = JavisDiT.from_pretrained(tmp_path)
    assert all(m.backend.name == "sdpa" for m in again.modules() if hasattr(m, "backend")) and not again.gradient_checkpointing


@pytest.mark.parametrize("how", [dict(), dict(torch_dtype=torch.bfloat16), dict(device_map={"": "cpu"}), dict(low_cpu_mem_usage=False)])
def test_sharded_files(how, tmp_path):
    model, (video, audio, t, cond) = small_model(), inputs()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 3 and (tmp_path / "diffusion_pytorch_model.safetensors.index.json").exists()
    again = JavisDiT.from_pretrained(tmp_path, **how).eval()
    assert again.dtype == how.get("torch_dtype", torch.float32) and again.device.type == "cpu"
    expected = model.to(again.dtype)
    with torch.no_grad():
        for a, b in zip(expected(video, audio, t, expected.conditions(**cond)), again(video, audio, t, again.conditions(**cond))): assert torch.equal(a, b)


def test_drops_come_from_their_generator():
    a, b, c = (torch.stack(draw_drops(64, 0.5, generator("drops", i))) for i in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and a.device.type == "cpu" and a.dtype == torch.bool
    assert not torch.stack(draw_drops(64, 0.0, generator(0))).any() and torch.stack(draw_drops(64, 1.0, generator(0))).all()


def test_sigma_is_optional():
    for sigma in (True, False):
        model, (video, audio, t, cond) = small_model(predict_sigma=sigma), inputs()
        with torch.no_grad():
            v, out = model(video, audio, t, c := model.conditions(**cond)), model.output(video, audio, t, c)
        for x, y, z in zip(v, out, (video, audio)):
            assert x.shape == z.shape and y.shape[1] == (2 if sigma else 1) * z.shape[1] and torch.equal(x, y[:, :z.shape[1]])


# --- times and maps ---

def test_codecs_tell_the_model_the_time():
    from javisdit.codecs import load_codecs
    from javisdit.learner import Denoiser
    config = replace(tiny(), model=replace(tiny().model, bi="seconds", depth=1))
    facts = clip_facts(config.clip, *load_codecs(config))
    assert facts["video_times"].shape == config.video_latent[1:2] and facts["audio_times"].shape == config.audio_latent[1:2]
    model = JavisDiT(**asdict(config.model)).init_weights("scratch", generator(0)).eval()
    video, audio, text, t = torch.randn(1, *config.video_latent), torch.randn(1, *config.audio_latent), torch.randn(1, 5, 384), torch.tensor([0.5])
    with torch.no_grad():
        told = Denoiser(model, config)(video, audio, t, text, torch.ones(1, 5, dtype=torch.bool))
        late = model(video, audio, 1000 * t, model.conditions(text, torch.ones(1, 5), **{**facts, "audio_times": facts["audio_times"] + 0.2}))
    assert (told.video - late.video).abs().max() > 1e-4, "a sound 0.2 s later is another sound"


@pytest.mark.parametrize("layout, bi", VARIANTS)
@pytest.mark.parametrize("scope", ["sample", "pair", "batch"])
def test_maps_are_the_softmax_of_the_projections(layout, bi, scope):
    "Against a softmax of what hooks hear at the layers that project queries and keys."
    model, (video, audio, t, cond) = scratch(layout, bi), inputs(2)
    heard = {}
    for i, block in enumerate(model.blocks):
        for path in PRIORS[layout]:
            for part in ("q", "kv"): block.get_submodule(path).get_submodule(part).register_forward_hook(lambda m, a, y, key=(i, path, part): heard.setdefault(key, []).append(y))
    with torch.no_grad(): c = model.guided(model.conditions(**cond))
    args = video.repeat(2, 1, 1, 1, 1), audio.repeat(2, 1, 1, 1), t.repeat(2), c
    for i in range(2):
        for layer in [k for k in heard if k[2] == "q"]: del heard[layer]
        maps = prior_maps(model, *args, block=i, prior_scope=scope)
        for path, m in zip(PRIORS[layout], maps):
            q = heard[i, path, "q"][-1].unflatten(-1, (4, -1))                                               # (4 n h e), of the model's own call
            conditioned, null = heard[i, path, "kv"]
            k = torch.cat((conditioned, null.expand_as(conditioned)))[..., :32].unflatten(-1, (4, -1))       # (4 k h e)
            see = {"sample": lambda r: [r], "pair": lambda r: [r % 2, r % 2 + 2], "batch": lambda r: range(4)}[scope]
            for row in range(4):
                keys = torch.cat([k[r] for r in see(row)])
                weights = (torch.einsum("n h e, k h e -> h k n", q[row], keys) / q.shape[-1] ** 0.5).softmax(1).mean(0)
                torch.testing.assert_close(m[row].flatten(1), weights, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(m.sum(1), torch.ones_like(m[:, 0]), atol=1e-5, rtol=0)
    assert not [m for m in model.modules() if m._forward_pre_hooks]
    assert maps.video_space.shape[2:] == (5, 4, 6) and maps.audio_space.shape[2:] == (4, 1)


def test_maps_say_what_they_cannot_draw():
    model, (video, audio, t, cond) = small_model(prior_use="addition"), inputs()
    with pytest.raises(ValueError, match="no attention to draw"): prior_maps(model, video, audio, t, model.conditions(**cond))
    with pytest.raises(ValueError, match="block 2 of 2"): prior_maps(small_model(), video, audio, t, None, block=2)
    assert len(PriorMaps._fields) == 4


# --- precision ---

def test_autocast_on_the_cpu():
    "Attention goes through float32 there: outputs stay in bfloat16, and gradients agree with those of float32."
    model, (video, audio, t, cond) = awake("paper", "windows"), inputs()
    def gradients():
        model.zero_grad()
        out = model(video, audio, t, model.conditions(**cond))
        sum(x.float().square().mean() for x in (out.video, out.audio)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    exact = gradients()
    with torch.autocast("cpu", torch.bfloat16): half = gradients()
    assert (exact - half).norm() < 0.03 * exact.norm()
    q, k, v = (torch.randn(2, 5, 2, 8, dtype=torch.bfloat16) for _ in range(3))
    assert attend(q, k, v).dtype == torch.bfloat16 and torch.equal(attend(q, k, v), attend(q.float(), k.float(), v.float()).bfloat16())

@pytest.mark.slow
@pytest.mark.parametrize("layout, bi", [("paper", "windows"), ("paper", "seconds"), ("released", "global")])
def test_autocast_at_full_depth(layout, bi):
    model, (video, audio, t, cond) = scratch(layout, bi, depth=28, width=64), inputs(2, 8, 16)
    with torch.no_grad():
        exact = model(video, audio, t, model.conditions(**cond))
        with torch.autocast("cpu", torch.bfloat16): half = model(video, audio, t, model.conditions(**cond))
    for a, b in zip(exact, half):
        off = ((a - b).norm() / a.norm()).item()
        print(f"{layout} {bi}: bf16 autocast at depth 28 is {off:.2%} off")
        assert off <= 0.02


def rounded_rotary(positions, dim, theta=10000.0):
    "`rotary` with frequencies and positions in bfloat16, as in a model whose tables are cast with its weights."
    speeds = (theta ** (-torch.arange(0, dim, 2).float() / dim)).bfloat16()
    angles = (positions.bfloat16()[..., None, None] * speeds).float()
    return torch.polar(torch.ones_like(angles), angles)


def awake(layout, bi):
    """28 levels whose attention over time is selective and counts, as after training.

    A fresh model's is nearly even and adds little: there the tables' rounding moves the answer by 0.01 % and drowns in that of the weights."""
    model = scratch(layout, bi, depth=28, width=64)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, SpatialTemporalSelfAttention):
                m.qk_gain.fill_(2)
                if m.axis == "time": m.out.weight.mul_((10 * 28) ** 0.5)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("layout, bi", [("paper", "windows"), ("paper", "seconds"), ("released", "global")])
def test_fp32_tables_in_a_bf16_model(layout, bi, monkeypatch):
    "128 latent frames: a model in bfloat16 errs less with tables in float32 than with rounded ones."
    half, (video, audio, t, cond) = awake(layout, bi).to(torch.bfloat16), inputs(2, 128, 256)
    model = awake(layout, bi)
    model.load_state_dict({k: v.float() for k, v in half.state_dict().items()})                   # the same weights: only computing differs
    run = lambda m: m(video[..., :2, :2], audio, t, m.conditions(**cond))
    with torch.no_grad():
        exact, ours = run(model), run(half)
        monkeypatch.setattr(dit, "rotary", rounded_rotary)
        theirs = run(half)
    for stream, e, a, b in zip(("video", "audio"), exact, ours, theirs):
        off = [((e - x).norm() / e.norm()).item() for x in (a, b)]
        print(f"{layout} {bi} {stream}: pure bf16 is {off[0]:.2%} off with fp32 tables, {off[1]:.2%} with rounded ones")
        assert off[0] < off[1]
