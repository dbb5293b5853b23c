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

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from javisdit.attention import BiCrossAttention, make_windows, rotary, rotate
from javisdit.checkpoints import _join, block_names, config_from_reference, from_reference, reference_names, to_reference
from javisdit.dit import (TOKEN_FLAG, ConditionEmbedder, Head, JavisDiT, Level, PriorBlock, StreamBlock, StreamStep, TimestepEmbedder,
                          position_1d, position_2d, replace_rows, sinusoid)

FAMILIES = {}


class Answer(NamedTuple):
    "What we computed for a key, and which part of it the reference agrees on."
    value: torch.Tensor
    where: torch.Tensor | None = None   # bool, broadcast to value: the part that is compared
    tolerance: float = 1e-5             # absolute
    row: str = ""                       # number of the deliberate difference, where a part is left out


class Fixture(NamedTuple):
    name: str
    config: dict
    weights: dict
    inputs: dict
    answers: dict


def family(pattern, portable=False, check=None):
    """Register the function that computes the files whose names match `pattern`.

    `check`: compares answers that are not tensors, (ours, theirs) -> lines of name, error, tolerance.

    `portable`: run where MKL takes its portable code path, as it did where the fixtures were made. Elsewhere its exp differs in the
    last bit for two of the 128 frequencies of a noise level, and a noise level of 1000 makes 3e-5 of that."""
    def register(f):
        FAMILIES[pattern], f.portable, f.check = f, portable, check
        return f
    return register


def read(path):
    "A fixture, from a safetensors or JSON file."
    path = Path(path)
    if path.suffix == ".json":
        facts = json.loads(path.read_text())
        if isinstance(facts, list): return Fixture(path.stem, {}, {}, {"cases": facts}, {"cases": facts})
        return Fixture(path.stem, facts.get("config", {}), {}, {}, {k: v for k, v in facts.items() if k != "config"})
    parts = {"sd": {}, "sd_src": {}, "in": {}, "out": {}}
    with safe_open(path, "pt") as f:
        meta = f.metadata() or {}
        for key in f.keys():
            kind, rest = key.split("/", 1)
            if rest.startswith("fastpath_"): continue    # for orientation: the reference's fused layer, another GELU
            if kind in ("out_isolated", "grad"): parts["out"][key] = f.get_tensor(key)
            elif kind in parts: parts[kind][key if kind == "out" else rest] = f.get_tensor(key)
    config = json.loads(next((meta[k] for k in ("config", "json", "meta") if k in meta), "{}"))
    return Fixture(path.stem, config, {**parts["sd_src"], **parts["sd"]}, parts["in"], parts["out"])


def fill(module, state, prefix, names=block_names):
    "Load a module of ours from tensors that the reference calls `prefix` + names."
    module.load_state_dict({k: _join(k, [state[prefix + n] for n in names(k)]) for k in module.state_dict()})
    return module.eval()


# --- the transformer ---

@family(r"dit_(paper_)?joint_.*", portable=True)
def joint(fixture):
    "Full forward: `out/` with the batch sharing its priors, `out_isolated/` each sample by itself."
    layout = "paper" if "VASTDiT3_2" in fixture.config.get("architecture", "") or "_paper_" in fixture.name else "released"
    config, x = config_from_reference(fixture.config["config"], layout), fixture.inputs
    model = JavisDiT(**vars(config))
    model.load_state_dict(from_reference(fixture.weights, config).state)
    text, b = x["y"].squeeze(1), len(x["video"])
    mask = None if x.get("mask") is None else x["mask"].repeat(b // len(x["mask"]), 1)
    cond = model.conditions(text, mask, x["spatial_prior"], x["temporal_prior"], fps=x["fps"], height=x["height"], width=x["width"])
    generated = [None if x.get(k) is None else x[k].bool() for k in ("x_mask", "ax_mask")]
    if generated[0] is not None: generated[0] = generated[0].repeat_interleave(config.video_patch[0], 1)[:, :x["video"].shape[2]]
    run = lambda scope: model.output(x["video"], x["audio"], x["timestep"], cond, *generated, prior_scope=scope, window_padding="attend")
    where = [None, None]
    if generated[0] is not None:
        audio = TOKEN_FLAG[layout](generated[1], config.audio_patch[0]).repeat_interleave(config.audio_patch[0], 1)
        where = [generated[0][:, None, :, None, None], audio[:, None, :, None]]
    scopes = {"out": "batch", "out_isolated": "sample"} if b > 1 else {"out": "batch"}
    return {f"{key}/{name}": Answer(value, w, row="2" if w is not None else "")
            for key, scope in scopes.items() for name, value, w in zip(("video", "audio"), run(scope), where)}


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
    if ours.where is not None: off = off[ours.where.expand_as(off)]
    return off.max().item() if off.numel() else 0.0


def in_tensors(ours): return isinstance(ours, dict) and isinstance(next(iter(ours.values())), Answer)


def compare(fixture, ours):
    "A line a key: name, error, tolerance, ok."
    if in_tensors(ours):
        lines = [(k, error(ours[k], v) if k in ours else None, ours[k].tolerance if k in ours else None, ours[k].row if k in ours else "")
                 for k, v in fixture.answers.items()]
        return [(k, e, t, row, e is not None and e <= t) for k, e, t, row in lines]
    if check := find(fixture.name).check: return [(k, e, t, "", e <= t) for k, e, t in check(ours, fixture.answers.get("cases", fixture.answers))]
    return [(k, e, t, "7", e <= t) for k, e, t in check_init_facts(ours, fixture.answers)]


def write(fixture, ours, out):
    "Store our answers under the reference's names."
    if isinstance(ours, list): (out / f"{fixture.name}.json").write_text(json.dumps(ours))
    elif in_tensors(ours):
        save_file({k: a.value.contiguous() for k, a in ours.items()}, out / f"{fixture.name}.safetensors")
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
        for key, off, tolerance, row, ok in compare(fixture, ours) if fixture.answers else ():
            note = f" (deviation {row}: the part that is meant to agree)" if row else ""
            print(f"{fixture.name} {key} {'not computed' if off is None else f'{off:.2e} {tolerance:.0e}'} {'ok' if ok else 'FAIL'}{note}")
            bad += not ok
    return int(bad > 0)


import parity_prior  # noqa: E402, F401  registers its families; it imports what is defined above

if __name__ == "__main__":
    import parity   # the copy that the other modules register with
    sys.exit(parity.main())
