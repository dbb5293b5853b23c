"Our code gives the reference's numbers, for the fixtures kept here and for others of the same families."
from dataclasses import replace
from pathlib import Path

import parity
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from javisdit.checkpoints import config_to_reference, our_shapes, owner, reference_names, reference_shapes
from javisdit.core import ModelConfig, generator

GOLDENS = Path(__file__).parent / "goldens"
FILES = sorted(GOLDENS.glob("dit_*"))


def test_parity(tmp_path, capsys):
    assert len(FILES) >= 21
    assert parity.main(["--out", str(tmp_path), *map(str, FILES)]) == 0, capsys.readouterr().out
    assert {f.name for f in tmp_path.iterdir()} == {f.name for f in FILES}


def test_every_family_but_one_is_computed():
    families = {"bicross", "blocks", "cfg_sample", "cfg_sample_xcond", "init_facts", "joint_plain", "mask_train", "paper_bicross", "paper_joint_odd", "posemb_rope", "rf_loss", "rf_timestep", "stage1_audio", "stage1_init", "stage3_grad"}
    assert all(parity.find(f"dit_{name}") for name in families)


def without_answers(path, folder):
    "A copy of a fixture that holds weights, inputs and config, no answers."
    with safe_open(path, "pt") as f:
        save_file({k: f.get_tensor(k) for k in f.keys() if k.split("/")[0] in ("sd", "sd_src", "in")}, folder / path.name, f.metadata())
    return folder / path.name


def test_parity_needs_no_answers(tmp_path):
    names = [f for f in FILES if f.suffix == ".safetensors" and not parity.find(f.stem).portable] + [GOLDENS / "dit_stage1_audio.safetensors"]
    files = [without_answers(f, tmp_path) for f in names]
    assert parity.main(["--out", str(tmp_path / "ours"), *map(str, files)]) == 0
    for f, source in zip(files, names):
        ours, theirs = load_file(tmp_path / "ours" / f.name), parity.read(source).answers
        assert set(theirs) <= set(ours) and all(ours[k].shape == v.shape for k, v in theirs.items())


def test_parity_fails_on_a_wrong_answer(tmp_path, capsys):
    tensors = load_file(source := GOLDENS / "dit_paper_bicross.safetensors")
    with safe_open(source, "pt") as f: save_file({**tensors, "out/case0/x1": tensors["out/case0/x1"] + 1e-3}, tmp_path / source.name, f.metadata())
    assert parity.main(["--out", str(tmp_path / "ours"), str(tmp_path / source.name)]) == 1 and "FAIL" in capsys.readouterr().out


def test_parity_says_what_it_cannot_do(tmp_path, capsys):
    (tmp_path / "unheard_of.json").write_text("{}")
    assert parity.main(["--out", str(tmp_path / "out"), str(tmp_path / "unheard_of.json")]) == 1
    assert "not computed yet" in capsys.readouterr().out


# --- fixtures of other sizes ---

OTHER = ModelConfig(layout="released", bi="global", width=48, depth=3, heads=6, mlp_ratio=2.0, video_channels=3, video_patch=(2, 1, 2), audio_channels=5, audio_patch=(2, 3),
                    text_channels=9, text_tokens=6, prior_channels=7, prior_tokens=(2, 5), predict_sigma=True)
PLAIN = replace(OTHER, width=24, heads=2, depth=1, qk_norm=False, video_patch=(1, 2, 1), audio_patch=(4, 1))
PAPER = replace(OTHER, layout="paper", bi="windows")


def fixture(config, family, part="joint", b=3, seed=0, **extra):
    "A fixture of another size, as the reference would have saved it, without answers."
    g = generator("test", family, seed)
    draw = lambda *shape: torch.randn(shape, generator=g)
    weights = {n: draw(*s) * (s[-1] ** -0.5 if len(s) > 1 else 0.2) for n, s in reference_shapes(config, part).items()}
    t, r = 2 * config.video_patch[0] + 1, 3 * config.audio_patch[0]
    flags = lambda n: torch.rand(b, n, generator=g) < 0.6
    x = dict(video=draw(b, config.video_channels, t, 4, 6), audio=draw(b, config.audio_channels, r, 2 * config.audio_patch[1]), timestep=torch.rand(b, generator=g) * 1000,
             y=draw(b, 1, config.text_tokens, config.text_channels), mask=(torch.arange(config.text_tokens) < torch.tensor([4, 6, 1])[:b, None]).long(),
             fps=torch.full((b,), 16.0), height=torch.full((b,), 144.0), width=torch.full((b,), 256.0), num_frames=torch.full((b,), 34.0))
    if part == "joint": x |= dict(spatial_prior=draw(b, config.prior_tokens[0], config.prior_channels), temporal_prior=draw(b, config.prior_tokens[1], config.prior_channels))
    if extra.pop("noise", False): x |= {f"noise/{k}": draw(*x[k].shape) for k in ("video", "audio")}
    if extra.pop("masked", False): x |= dict(x_mask=flags(t), ax_mask=flags(r))
    if extra.pop("given", False): x |= {"cond_mask/video": flags(t).float(), "cond_mask/audio": flags(r).float()}
    return parity.Fixture(family, {"config": config_to_reference(config), **extra}, weights, x, {})


def rows(f, i):
    "The same fixture with clip `i` alone."
    return f._replace(inputs={k: v[i:i + 1] for k, v in f.inputs.items()})


def values(answers, prefix):
    return {k.removeprefix(prefix): a.value for k, a in answers.items() if k.startswith(prefix)}


@pytest.mark.parametrize("config, family", [(OTHER, "dit_joint_other"), (PLAIN, "dit_joint_plain_norms"), (PAPER, "dit_paper_joint_other")])
@pytest.mark.parametrize("masked", [False, True])
def test_other_sizes_forward(config, family, masked):
    f = fixture(config, family, masked=masked)
    alone = values(parity.compute(f), "out_isolated/")
    for i in range(3):
        for k, v in values(parity.compute(rows(f, i)), "out/").items(): torch.testing.assert_close(v, alone[k][i:i + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [OTHER, PLAIN])
@pytest.mark.parametrize("given", [False, True])
def test_other_sizes_guided(config, given):
    f = fixture(config, "dit_cfg_sample_xcond", b=2, given=given, steps=3, cfg_scale=3.0, use_timestep_transform=not given)
    ours = parity.compute(f)
    assert {"out/video", "out/audio", "out/step2/model_out/video", "out/step1/z_in/audio", "out_isolated/t_per_step"} <= set(ours)
    alone = values(ours, "out_isolated/")
    for i in range(2):
        one = values(parity.compute(rows(f, i)), "out_isolated/")
        for k in ("video", "audio"):
            torch.testing.assert_close(one[k], alone[k][i:i + 1], rtol=1e-3, atol=1e-3)
            if given: assert torch.equal((f.inputs[k] == alone[k]).flatten(3).all(3).all(1), f.inputs[f"cond_mask/{k}"] == 0)


@pytest.mark.parametrize("config, family, stage, part", [(OTHER, "dit_stage3_grad", 3, "joint"), (PLAIN, "dit_stage3_grad", 3, "joint"), (OTHER, "dit_stage1_audio", 1, "audio"), (PAPER, "dit_paper_stage3", 3, "joint")])
def test_other_sizes_gradients(config, family, stage, part):
    "Gradients of exactly what a stage trains, equal to a difference of losses."
    f = fixture(config, family, part, noise=True, masked=stage == 3)
    if stage == 3: f.inputs["x_mask"][1] = False                         # a clip with every frame given
    run = lambda f: parity.loss_and_grads(f, stage, part, "batch", ("video", "audio") if stage == 3 else ("audio",))
    ours = run(f)
    grads = values(ours, "out/grad/")
    kind = {1: "audio", 3: "joint"}[stage]
    assert set(grads) == {n for k in our_shapes(config, part) if owner(k) == kind and not k.endswith("null") for n in reference_names(k, config.layout, part)}
    assert len(ours["out/grad_l2"].value) == len(grads) and all(g.isfinite().all() for g in grads.values())
    name = max(grads, key=lambda n: grads[n].norm())
    step = 1e-2 * grads[name] / grads[name].norm()
    loss = lambda sign: run(f._replace(weights={**f.weights, name: f.weights[name] + sign * step}))["out/loss_per_sample"].value.mean()
    torch.testing.assert_close((loss(1) - loss(-1)) / 2e-2, grads[name].norm(), rtol=2e-2, atol=1e-4)


def test_other_sizes_stage1_init():
    config = replace(OTHER, depth=2)
    shapes = {n: torch.randn(s) for n, s in reference_shapes(config, "video").items()} | {"rope.freqs": torch.randn(4)}
    ours = values(parity.compute(parity.Fixture("dit_stage1_init", {"config": config_to_reference(config)}, shapes, {}, {})), "out/")
    new = {"ax_embedder.proj.weight", "ax_embedder.proj.bias", "audio_final_layer.scale_shift_table", "audio_final_layer.linear.weight", "audio_final_layer.linear.bias"}
    assert set(ours) == {*reference_shapes(config, "audio"), "rope.freqs"} - new
    assert torch.equal(ours["audio_temporal_blocks.1.attn.q_norm.weight"], shapes["temporal_blocks.1.attn.q_norm.weight"])


def test_metadata_answers_are_never_read():
    for f in FILES:
        read = parity.read(f)
        told = {k: v for k, v in read.config.items() if k not in ("trainable", "grad_l2_order", "source_of", "state_dict_keys", "trainable_without_grad", "not_from_source", "zero_after_init")}
        cases = [{k: v for k, v in case.items() if k not in ("ratio", "effective_latent_frames")} for case in told.get("cases", ())]
        if "stage" in f.stem or "rf_" in f.stem: assert parity.compute(read._replace(config={**told, **({"cases": cases} if cases else {})}, answers={}))
