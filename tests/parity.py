"""Compute what our code gives for the reference's fixtures, and compare where answers are present.

    python tests/parity.py --out DIR FILE...

A file is `tests/goldens/README.md`'s kind: weights (`sd/`), inputs (`in/`) and a configuration in its metadata are read,
nothing else. Writes `DIR/<name>.safetensors` (or `.json`). Prints a line a key: name, max abs error, tolerance, ok or FAIL.
Exits non-zero on FAIL, on a key that is neither computed nor excused, and on a family that is not computed yet.
"""
import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from javisdit.attention import BiCrossAttention, make_windows, rotary, rotate
from javisdit.checkpoints import (_join, block_names, branch_only, config_from_reference, copy_to_audio, freeze, from_reference, in_part, reference_names,
                                  to_reference)
from javisdit.core import ClipConfig
from javisdit.dit import (TOKEN_FLAG, ConditionEmbedder, Head, JavisDiT, Level, PriorBlock, StreamBlock, StreamStep, TimestepEmbedder,
                          position_1d, position_2d, replace_rows, sinusoid)
from javisdit.flow import flow_loss, logit_normal, noisify, sample_latents, shift_ratio, shift_times, time_grid, velocity_loss

FAMILIES = {}


class Answer(NamedTuple):
    "What we computed for a key, and which part of it the reference agrees on."
    value: torch.Tensor
    where: torch.Tensor | None = None   # bool, broadcast to value: the part that is compared
    tolerance: float = 1e-5             # absolute, or
    relative: bool = False              # of the largest value, where that is above 1
    row: str = ""                       # number of the deliberate difference, where a part is left out


class Fixture(NamedTuple):
    name: str
    config: dict
    weights: dict
    inputs: dict
    answers: dict


def family(pattern, portable=False, check=None, facts=None):
    """Register the function that computes the files whose names match `pattern`.

    `check`: compares answers that are not tensors, (ours, theirs) -> lines of name, error, tolerance.
    `facts`: computes further answers that stand in the metadata, in its structure.

    `portable`: run where MKL takes its portable code path, as it did where the fixtures were made. Elsewhere its exp differs in the
    last bit for two of the 128 frequencies of a noise level, and a noise level of 1000 makes 3e-5 of that."""
    def register(f):
        FAMILIES[pattern], f.portable, f.check, f.facts = f, portable, check, facts
        return f
    return register


def read(path):
    "A fixture, from a safetensors or JSON file."
    path = Path(path)
    if path.suffix == ".json":
        facts = json.loads(path.read_text())
        if isinstance(facts, list): return Fixture(path.stem, {}, {}, {"cases": facts}, {"cases": facts})
        return Fixture(path.stem, facts.get("config", {}), {}, {k: v for k, v in facts.items() if k == "cases"}, {k: v for k, v in facts.items() if k != "config"})
    parts = {"sd": {}, "sd_src": {}, "in": {}, "out": {}}
    with safe_open(path, "pt") as f:
        meta = f.metadata() or {}
        for key in f.keys():
            kind, rest = key.split("/", 1)
            if rest.startswith("fastpath_"): continue    # for orientation: the reference's fused layer, another GELU
            if kind in ("out_isolated", "grad"): parts["out"][key] = f.get_tensor(key)
            elif kind in parts: parts[kind][key if kind == "out" else rest] = f.get_tensor(key)
    config = json.loads(next((meta[k] for k in ("config", "json", "meta") if k in meta), "{}"))
    if "batches" in config:                              # plans are answers; only their names are asked
        parts["out"]["batches"] = config.pop("batches")
        config["cases"] = list(parts["out"]["batches"])
    return Fixture(path.stem, config, {**parts["sd_src"], **parts["sd"]}, parts["in"], parts["out"])


def fill(module, state, prefix, names=block_names):
    "Load a module of ours from tensors that the reference calls `prefix` + names."
    module.load_state_dict({k: _join(k, [state[prefix + n] for n in names(k)]) for k in module.state_dict()})
    return module.eval()


# --- the transformer ---

def layout_of(fixture):
    "The layout that a fixture's model has."
    return "paper" if "VASTDiT3_2" in fixture.config.get("architecture", "") or "_paper_" in fixture.name else "released"


def build(fixture, part="joint"):
    "The fixture's model, or one branch of it, and its config."
    config = config_from_reference(fixture.config["config"], layout_of(fixture))
    model = JavisDiT(**vars(config))
    if part != "joint": branch_only(model, part)
    model.load_state_dict(from_reference(fixture.weights, config, part).state)
    return model.eval(), config


def conditions(model, x):
    "What the model is told about the clips of a fixture; a prior that is not there is the null one."
    b = len(x["video"])
    mask = None if x.get("mask") is None else x["mask"].repeat(b // len(x["mask"]), 1)
    return model.conditions(x["y"].squeeze(1), mask, x.get("spatial_prior"), x.get("temporal_prior"), fps=x["fps"], height=x["height"], width=x["width"])


def given_frames(config, x, masks=("x_mask", "ax_mask")):
    "`(generated, where)`: the masks that our model takes, one flag a latent row, and the latent rows whose tokens are generated."
    generated = [None if x.get(k) is None else x[k].bool() for k in masks]
    if generated[0] is None: return generated, [None, None]
    t, patch = x["video"].shape[2], config.video_patch[0]
    if generated[0].shape[1] != t: generated[0] = generated[0].repeat_interleave(patch, 1)[:, :t]
    flags = [TOKEN_FLAG[config.layout](g, p).repeat_interleave(p, 1)[:, :g.shape[1]] for g, p in zip(generated, (patch, config.audio_patch[0]))]
    return generated, [flags[0][:, None, :, None, None], flags[1][:, None, :, None]]


@family(r"dit_(paper_)?joint_.*", portable=True)
def joint(fixture):
    "Full forward: `out/` with the batch sharing its priors, `out_isolated/` each sample by itself."
    (model, config), x = build(fixture), fixture.inputs
    cond, (generated, where) = conditions(model, x), given_frames(config, x)
    run = lambda scope: model.output(x["video"], x["audio"], x["timestep"], cond, *generated, prior_scope=scope, window_padding="attend")
    scopes = {"out": "batch", "out_isolated": "sample"} if len(x["video"]) > 1 else {"out": "batch"}
    return {f"{key}/{name}": Answer(value, w, row="2" if w is not None else "")
            for key, scope in scopes.items() for name, value, w in zip(("video", "audio"), run(scope), where)}


@family(r"dit_cfg_sample(_\w+)?", portable=True)
def cfg_sample(fixture):
    "A guided trajectory, free or with given frames: the last latents, the latents before each step, outputs of the first and the last step."
    (model, config), x, c, out = build(fixture), fixture.inputs, fixture.config, {}
    b, steps = len(x["video"]), c["steps"]
    clip = ClipConfig(height=int(x["height"][0]), width=int(x["width"][0]), frames=int(x["num_frames"][0]))
    times = time_grid(steps, shift_ratio(clip, "reference" if c["use_timestep_transform"] else "none"))
    generated, where = given_frames(config, x, ("cond_mask/video", "cond_mask/audio"))
    for key, scope in {"out": "batch", "out_isolated": "sample"}.items():
        outputs, states = [], [(x["video"], x["audio"])]
        def output(*args, whole=model.output): outputs.append(whole(*args)); return outputs[-1]
        with patch.object(model, "output", output):
            final = sample_latents(model, conditions(model, x), states[0], times, c["cfg_scale"], lambda i, t, z: states.append(z), generated, prior_scope=scope, window_padding="attend")
        tolerance = dict(tolerance=1e-4, relative=True)
        out[f"{key}/t_per_step"] = Answer(1000 * times[:-1, None].repeat(1, b), tolerance=1e-4, relative=True)
        for n, name in enumerate(("video", "audio")):
            out[f"{key}/{name}"] = Answer(final[n], **tolerance)
            out |= {f"{key}/step{i}/z_in/{name}": Answer(states[i][n], **tolerance) for i in range(steps)}
            part = None if where[n] is None else where[n].repeat(2, *[1] * (where[n].ndim - 1))
            out |= {f"{key}/step{i}/model_out/{name}": Answer(outputs[i][n], part, row="2" if part is not None else "", **tolerance) for i in (0, steps - 1)}
    return out


# --- the flow, and the losses of stages 1 and 3 ---

def bf16(x): return torch.tensor(float(x), dtype=torch.bfloat16).item()


def rounded_ratio(case):
    "The shift where sizes are bf16 numbers, as they were in the reference's bf16 runs; ours are whole numbers."
    area, frames = bf16(bf16(case["height"]) * bf16(case["width"])), int(bf16(case["num_frames"]))
    square, still = ClipConfig(height=512, width=512, frames=frames), ClipConfig(height=area, width=1, frames=1)
    return bf16(bf16(shift_ratio(still)) * bf16(shift_ratio(square)))


@family(r"dit_rf_timestep")
def rf_timestep(fixture):
    "Shifted noise levels of several sizes, of step grids, a logit-normal draw, a noised latent."
    c, x, out = fixture.config, fixture.inputs, {}
    ratios = [shift_ratio(ClipConfig(height=case["height"], width=case["width"], frames=case["num_frames"])) for case in c["cases"]]
    for i, (case, ratio) in enumerate(zip(c["cases"], ratios)):
        skip = dict(where=torch.tensor(False), row="5") if 1 < case["num_frames"] < 17 else {}
        out[f"case{i}"] = Answer(1000 * shift_times(x["t"] / 1000, ratio), relative=True, **skip)
        out |= {f"{k}_case{i}": Answer(1000 * shift_times(x[k] / 1000, ratio), relative=True, **skip) for k in x if k.startswith("grid")}
        out[f"case{i}_bf16_meta"] = Answer(1000 * shift_times(x["t"] / 1000, rounded_ratio(case)), relative=True, **skip)
    with patch("torch.randn", lambda n, **_: x["normal_draw"]): out["logit_normal_t01"] = Answer(logit_normal(len(x["normal_draw"]), torch.Generator()))
    out["add_noise"] = Answer(noisify(x["x"], x["n"], x["tt"] / 1000)[0])
    return {f"out/{k}": v for k, v in out.items()}


def counted(losses):
    "Rows whose loss is not of a clip with every frame given, and what is said of them."
    rows = ~losses.isnan()
    return (None, "") if rows.all() else (rows, "3")


@family(r"dit_rf_loss")
def rf_loss(fixture):
    "Noised latents and losses, plain, masked, of audio alone."
    x, out = fixture.inputs, {}
    for i, case in enumerate(fixture.config["cases"]):
        t, losses = x[f"case{i}/t"] / 1000, {}
        for name in ("video", "audio"):
            mask = x.get(f"case{i}/mask/{name}")
            noisy, target = noisify(x[f"x_start/{name}"], x[f"noise/{name}"], t, mask)
            out[f"case{i}/x_t/{name}"] = Answer(noisy)
            if name == "video" and case["audio_only"]: continue
            losses[name] = velocity_loss(x[f"case{i}/pred/{name}"][:, :target.shape[1]], target, mask)
            rows, row = counted(losses[name])
            out[f"case{i}/loss_{name}"] = Answer(torch.nanmean(losses[name])[None], None if rows is None else torch.tensor(False), row=row)
        total = sum(losses.values())
        out[f"case{i}/loss"] = Answer(sum(v.nan_to_num() for v in losses.values()), *counted(total)[:1], row=counted(total)[1])
    return {f"out/{k}": v for k, v in out.items()}


@torch.enable_grad()
def loss_and_grads(fixture, stage, part, scope, streams):
    "Per-clip losses of noised latents, and gradients of what a stage trains."
    (model, config), x = build(fixture, part), fixture.inputs
    generated, _ = given_frames(config, x)
    noised = [noisify(x[k], x[f"noise/{k}"], x["timestep"] / 1000, g) for k, g in zip(("video", "audio"), generated)]
    outputs = freeze(model, stage).output(*(z for z, _ in noised), x["timestep"], conditions(model, x), *generated, prior_scope=scope, window_padding="attend")
    velocities = [(o[:, :v.shape[1]], v, g) for o, (_, v), g in zip(outputs, noised, generated)]
    losses = {k: velocity_loss(*v) for k, v in zip(("video", "audio"), velocities) if k in streams}
    flow_loss(*(losses[k].nan_to_num() if k in losses else torch.zeros(1) for k in ("video", "audio"))).backward()      # deviation 3: the reference counts such clips
    grads = to_reference({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters() if p.requires_grad}, config, part=part)
    del grads["rope.freqs"]                                              # a formula's result here, so it has no gradient
    total, (rows, row) = sum(v.nan_to_num() for v in losses.values()), counted(sum(losses.values()))
    out = {"out/loss_per_sample": Answer(total, rows, row=row), "out/grad_l2": Answer(torch.stack([grads[n].norm() for n in sorted(grads)]), relative=True)}
    out |= {f"out/loss_{k}": Answer(torch.nanmean(v)[None], None if counted(v)[0] is None else torch.tensor(False), row=counted(v)[1]) for k, v in losses.items()}
    return out | {f"out/grad/{n}": Answer(g, relative=True) for n, g in grads.items()}


@family(r"dit_stage1_audio", portable=True)
def stage1_audio(fixture):
    "The audio branch alone on the latents as they are, then its loss, and gradients of what stage 1 trains."
    (model, _), x = build(fixture, "audio"), fixture.inputs
    outputs = model.output(x["video"], x["audio"], x["timestep"], conditions(model, x))
    return {**{f"out/{k}": Answer(v) for k, v in zip(("video", "audio"), outputs)}, **loss_and_grads(fixture, 1, "audio", "sample", ("audio",))}


@family(r"dit_stage3_grad", portable=True)
def stage3_grad(fixture): return loss_and_grads(fixture, 3, "joint", "batch", ("video", "audio"))


@family(r"dit_stage1_init")
def stage1_init(fixture):
    "A stage-1 checkpoint before training, without what is drawn at random: OpenSora's weights, and their copies in the audio branch."
    config = config_from_reference(fixture.config["config"])
    state, extras = from_reference(fixture.weights, config, "video")
    start = {n: v for n, v in copy_to_audio(state).items() if in_part(n, "audio")}
    return {f"out/{k}": Answer(v, tolerance=0) for k, v in to_reference(start, config, extras, "audio").items()}


# --- parts of the transformer ---

@family(r"dit_blocks")
def blocks(fixture):
    "Stream, prior and final blocks, plain and with given frames, priors shared by the batch or not."
    c, x, sd = fixture.config, fixture.inputs, fixture.weights
    d, heads, t = c["hidden"], c["heads"], c["T"]
    ratio = len(sd["spatial.mlp.fc1.bias"]) / d
    tokens, generated = x["x"].unflatten(1, (t, -1)), x["x_mask"].bool()
    lens = x["y_lens"].tolist()
    text = torch.nn.utils.rnn.pad_sequence(x["y"][0].split(lens), batch_first=True)
    mask = (torch.arange(text.shape[1]) < x["y_lens"][:, None])[:, None, None]
    rope = rotary(torch.arange(t), d // heads)
    def choose(a, b, k, masked):
        now, given = (z.unflatten(-1, (k, -1))[:, None] for z in (a, b))
        return torch.where(generated[:, :, None, None], now, given) if masked else now
    out, where = {}, generated.repeat_interleave(tokens.shape[2], 1)[..., None]
    for masked in (False, True):
        end = "_masked" if masked else ""
        level = Level(None, choose(x["t6"], x["t6_zero"], 6, masked), choose(x["t9"], x["t9_zero"], 9, masked))
        step = StreamStep(level, rope, mask, 1)
        for name, axis in (("spatial", "space"), ("temporal", "time")):
            block = fill(StreamBlock(d, heads, ratio, f"{name}.attn.q_norm.weight" in sd, axis, prior=False), sd, f"{name}.")
            out[f"out/{name}{end}"] = Answer(block(tokens, block.keys(text), step).flatten(1, 2))
        block = fill(PriorBlock(d, heads, ratio), sd, "prior.")
        keys = block.keys(x["spatial_prior"], x["temporal_prior"])
        for suffix, share in (("", len(tokens)), ("_isolated", 1)):
            out[f"out/prior{end}{suffix}"] = Answer(block(tokens, keys, step._replace(share=share)).flatten(1, 2))
        head = fill(Head(d, len(sd["final.linear.bias"])), sd, "final.", lambda k: (k.replace("proj", "linear").replace("table", "scale_shift_table"),))
        y = head(tokens, choose(x["final_t"], x["final_t0"], 1, masked)).flatten(1, 2)
        out[f"out/final{end}"] = Answer(y, where if masked else None, row="2" if masked else "")
    return out


def bi(weights, prefix, block_prefix, width, heads, form):
    "The attention and the gains of a bidirectional block."
    attention = fill(BiCrossAttention(width, heads, form), weights, prefix, lambda k: tuple(n.split(".", 1)[1] for n in block_names("attention." + k)))
    return attention, weights[block_prefix + "gamma_m1"], weights[block_prefix + "gamma_m2"]


def ln(x): return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)


@family(r"dit_bicross")
def bicross(fixture):
    "Global bidirectional attention, bare and as a block."
    c, sd, (x1, x2) = fixture.config, fixture.weights, (fixture.inputs[k].unsqueeze(2) for k in ("x1", "x2"))
    heads = c["num_heads"] * c["m1_dim"] // c["embed_dim"]
    attention, g1, g2 = bi(sd, "attn.", "block.", c["m1_dim"], heads, "global")
    (y1, y2), (u1, u2) = attention(x1, x2), attention(ln(x1), ln(x2))
    values = {"y1": y1, "y2": y2, "block_x1": x1 + g1 * u1, "block_x2": x2 + g2 * u2}
    return {f"out/{k}": Answer(v.squeeze(2)) for k, v in values.items()}


@family(r"dit_paper_bicross")
def paper_bicross(fixture):
    "Bidirectional attention in windows, with the reference's attended padding."
    c, out = fixture.config, {}
    attention, g1, g2 = bi(fixture.weights, "cross_attn.", "", c["hidden"], c["num_heads_of_model"], "windows")
    for i, case in enumerate(c["cases"]):
        x1, x2 = fixture.inputs[f"case{i}/x1"].unflatten(1, (case["T"], -1)), fixture.inputs[f"case{i}/x2"].unflatten(1, (case["R"], -1))
        windows = make_windows(case["T"], case["R"], "attend")
        u1, u2 = attention(ln(x1), ln(x2), windows)
        padding = (~windows.real).repeat_interleave(case["M"], 1).expand(len(x1), -1, -1)
        values = {"x1": (x1 + g1 * u1).flatten(1, 2), "x2": (x2 + g2 * u2).flatten(1, 2), "window_padding": padding}
        out.update({f"out/case{i}/{k}": Answer(v) for k, v in values.items()})
    return out


@family(r"dit_posemb_rope", portable=True)
def positions(fixture):
    "Position tables, rotation, number embedders, RMS norm, condition embedder with forced drops."
    c, x, sd, out = fixture.config, fixture.inputs, fixture.weights, {}
    for i, case in enumerate(c["pos2d_cases"]):
        out[f"pos2d/case{i}"] = position_2d(case["h"], case["w"], c["pos2d_dim"], torch.tensor([case["scale"]]), case["base_size"])
    for n in (3, 5, 16): out[f"pos1d/len{n}"] = position_1d(torch.arange(n), c["pos1d_dim"])[None]
    e = c["rope"]["head_dim"]
    out["rope_freqs"] = 10000.0 ** (-torch.arange(0, e, 2).float() / e)
    out["rope_y"] = rotate(x["rope_x"].transpose(1, 2), rotary(torch.arange(x["rope_x"].shape[2]), e)).transpose(1, 2)
    out["timestep_freq"] = sinusoid(x["t"], c["timestep_freq_dim"])
    for name, key, module in (("time", "t", "t_embedder"), ("fps", "fps", "fps_embedder")):
        embed = TimestepEmbedder(len(sd[f"{module}.mlp.2.bias"]), c["timestep_freq_dim"])
        out[module] = fill(embed, sd, "", lambda k: reference_names(f"{name}.{k}", "released"))(x[key])
    out["rms_y"] = torch.nn.functional.rms_norm(x["rms_x"], x["rms_x"].shape[-1:], sd["rms.weight"], 1e-6)
    tokens, channels = sd["caption.y_embedding"].shape
    embed = ConditionEmbedder(channels, tokens, len(sd["caption.y_proj.fc2.bias"]))
    fill(embed, sd, "", lambda k: (reference_names(f"video_text.{k}", "released")[0].replace("y_embedder", "caption"),))
    caption = x["caption"].squeeze(1)
    out["caption_keep"] = embed(caption)[:, None]
    out["caption_drop"] = embed(replace_rows(caption, embed.null, x["force_drop"] == 1))[:, None]
    return {f"out/{k}": Answer(v) for k, v in out.items()}


@family(r"dit_init_facts")
def init_facts(fixture):
    "Which tensors are zero at construction, and the spread of all, under the reference's names."
    config = config_from_reference(fixture.config, "released")
    state = to_reference(JavisDiT(**vars(config)).state_dict(), config)
    facts = lambda v: [v.float().mean().item(), v.float().std(unbiased=False).item() if v.numel() > 1 else 0.0, v.abs().max().item()]
    return {"zero": [k for k, v in state.items() if not v.any()], "mean_std_absmax": {k: facts(v) for k, v in state.items()},
            "numel": {k: v.numel() for k, v in state.items()}}


def check_init_facts(ours, theirs):
    "Deviation 7: zero where the reference is, and beyond it only biases of new modules; spreads of large tensors within 10 %."
    new = re.compile(r"(audio_|ax_embedder|st_|va_cross|video_st_).*bias$")
    lines = [("zero", float(len(set(theirs["zero"]) - set(ours["zero"]))), 0.0)]
    lines.append(("zero beyond", float(sum(not new.match(k) for k in set(ours["zero"]) - set(theirs["zero"]))), 0.0))
    off = {k: abs(ours["mean_std_absmax"][k][1] / s - 1) for k, (_, s, _) in theirs["mean_std_absmax"].items()
           if s and ours["numel"].get(k, 0) >= 1000 and ours["mean_std_absmax"][k][1]}
    return lines + [("spread", max(off.values()), 0.1)]


# --- running and comparing ---

def find(name):
    "The function that computes a fixture, or None where its family is not computed yet."
    return next((f for pattern, f in FAMILIES.items() if re.fullmatch(pattern, name)), None)


def compute(fixture):
    "What our code gives for a fixture: answers by key."
    with torch.no_grad(): return find(fixture.name)(fixture)


def error(ours, theirs):
    "Largest absolute difference of the part that is compared; infinite where shapes differ or a number is not finite."
    value = ours.value
    if value.shape != theirs.shape: return float("inf")
    off = (value.double() - theirs.double()).abs().nan_to_num(float("inf"))
    if ours.relative: off = off / max(1, theirs.double().abs().max().item())
    if ours.where is not None: off = off[ours.where.expand_as(off)]
    return off.max().item() if off.numel() else 0.0


def in_tensors(ours): return isinstance(ours, dict) and isinstance(next(iter(ours.values())), Answer)


def compare(fixture, ours):
    "A line a key: name, error, tolerance, ok."
    if in_tensors(ours):
        lines = [(k, error(ours[k], v) if k in ours else None, ours[k].tolerance if k in ours else None, ours[k].row if k in ours else "")
                 for k, v in fixture.answers.items()]
        return [(k, e, t, row, e is not None and e <= t) for k, e, t, row in lines]
    if check := find(fixture.name).check: return [(k, e, t, "", e <= t) for k, e, t in check(ours, fixture.answers["cases"] if [*fixture.answers] == ["cases"] else fixture.answers)]
    return [(k, e, t, "7", e <= t) for k, e, t in check_init_facts(ours, fixture.answers)]


def leaves(x):
    "All numbers of a nested structure, in order."
    if isinstance(x, dict): x = [v for _, v in sorted(x.items())]
    return [n for v in x for n in leaves(v)] if isinstance(x, list) else [x] if isinstance(x, (int, float)) else []


def compare_facts(fixture, facts):
    "A line a key of further answers that the metadata has; relative, 2e-4: a category has few clips, and the reference's float32 is at its worst there."
    for k in facts.keys() & fixture.config.keys():
        (a, b), gap = (leaves(facts[k]), leaves(fixture.config[k])), float("inf")
        if len(a) == len(b): gap = max((abs(p - q) / max(1, abs(q)) for p, q in zip(a, b)), default=0.0)
        yield k, gap, 2e-4, "", gap <= 2e-4


def write(fixture, ours, out):
    "Store our answers under the reference's names."
    if isinstance(ours, list): (out / f"{fixture.name}.json").write_text(json.dumps(ours))
    elif in_tensors(ours):
        save_file({k: a.value.detach().contiguous().clone() for k, a in ours.items()}, out / f"{fixture.name}.safetensors")
    else: (out / f"{fixture.name}.json").write_text(json.dumps({"config": fixture.config, **{k: v for k, v in ours.items() if k != "numel"}}, indent=0))


def main(argv=None):
    "Run the files given; the exit status."
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, required=True, help="folder for our answers")
    args.add_argument("files", nargs="+", type=Path, help="fixtures")
    args, bad = args.parse_args(argv), 0
    args.out.mkdir(parents=True, exist_ok=True)
    elsewhere = [p for p in args.files if getattr(find(p.stem), "portable", False) and "MKL_CBWR" not in os.environ]
    if elsewhere: bad += subprocess.call([sys.executable, __file__, "--out", args.out, *elsewhere], env={**os.environ, "MKL_CBWR": "COMPATIBLE"})
    for path in args.files:
        if path in elsewhere: continue
        if find(path.stem) is None:
            print(f"{path.stem}: not computed yet")
            bad += 1
            continue
        fixture = read(path)
        ours = compute(fixture)
        write(fixture, ours, args.out)
        if not fixture.answers: print(f"{fixture.name}: computed, no answers to compare")
        lines = [*compare(fixture, ours)] if fixture.answers else []
        if further := find(path.stem).facts:
            (args.out / f"{fixture.name}.json").write_text(json.dumps(facts := further(fixture)))
            lines += compare_facts(fixture, facts)
        for key, off, tolerance, row, ok in lines:
            note = f" (deviation {row}: the part that is meant to agree)" if row else ""
            print(f"{fixture.name} {key} {'not computed' if off is None else f'{off:.2e} {tolerance:.0e}'} {'ok' if ok else 'FAIL'}{note}")
            bad += not ok
    return int(bad > 0)


import parity_augment  # noqa: E402, F401  registers its families; it imports what is defined above
import parity_conditional  # noqa: E402, F401
import parity_data  # noqa: E402, F401
import parity_masks  # noqa: E402, F401
import parity_codecs  # noqa: E402, F401
import parity_prior  # noqa: E402, F401
import parity_ruler  # noqa: E402, F401

if __name__ == "__main__":
    import parity   # the copy that the other modules register with
    sys.exit(parity.main())
