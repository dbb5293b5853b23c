"Every kind of checkpoint is recognised, read from every kind of file, refused where it does not fit, and converted without loss in little memory."
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import convert_full_size
import parity
import pytest
import torch
from safetensors.torch import load_file, save_file

from javisdit import checkpoints
from javisdit.checkpoints import (JAVISDIT, Kind, ShardWriter, check_shapes, checkpoint_kind, config_from_reference, content_hash, convert, from_reference, infer_config, load_branch,
                                  load_transformer, open_checkpoint, our_shapes, owner, reference_shapes, to_reference)
from javisdit.core import MediaError, generator, released, tiny
from javisdit.dit import JavisDiT

GOLDENS = Path(__file__).parent / "goldens"
CONFIGS = {"released": replace(tiny().model, layout="released", bi="global", skip="none", width=32, depth=2, heads=4, base_size=512),
           "paper": replace(tiny().model, skip="none", width=32, depth=2, heads=4, base_size=512)}
CONFIGS["odd"] = replace(CONFIGS["released"], video_channels=3, video_patch=(2, 1, 2), audio_channels=5, audio_patch=(2, 3), mlp_ratio=3.0, depth=3, heads=2, text_tokens=11)
CONFIGS["odd"] = replace(CONFIGS["odd"], prior_tokens=(5, 5))
CONFIGS["odd paper"] = replace(CONFIGS["odd"], layout="paper", bi="windows", prior_tokens=(3, 3), predict_sigma=True)


def reference_state(config, part="joint", dtype=torch.float32):
    "A checkpoint as others save it: every tensor of its own, with the onset projections of the paper layout."
    g = generator("test", "checkpoint")
    draw = lambda *shape: torch.randn(shape, generator=g).to(dtype)
    onset = {f"temporal_blocks.{i}.{s}_onset_proj.{fc}.{kind}": draw(*[config.width] * (2 if kind == "weight" else 1))
             for i in range(config.depth) for s in ("video", "audio") for fc in ("fc1", "fc2") for kind in ("weight", "bias")}
    return {**{n: draw(*s) for n, s in reference_shapes(config, part).items()}, "rope.freqs": draw(config.width // config.heads // 2), **(onset if (config.layout, part) == ("paper", "joint") else {})}


def write_shards(state, folder, size=100_000):
    folder.mkdir()
    writer = ShardWriter(folder, "model", size)
    for name, x in state.items(): writer.add(name, x)
    writer.close()
    return folder


def equal(a, b): return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


# --- what a file is ---

@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_inferred(name):
    assert infer_config(reference_shapes(CONFIGS[name])) == CONFIGS[name]


@pytest.mark.parametrize("name", sorted(p.name for p in GOLDENS.glob("dit_*joint*")))
def test_config_of_the_fixtures_is_inferred(name):
    fixture = parity.read(GOLDENS / name)
    config = config_from_reference(fixture.config["config"], "paper" if "paper" in name else "released")
    assert infer_config({k: tuple(v.shape) for k, v in fixture.weights.items()}, prior_tokens=config.prior_tokens) == config


def test_what_cannot_be_inferred_is_asked_for():
    config = CONFIGS["released"]
    plain = reference_shapes(replace(config, qk_norm=False))
    with pytest.raises(ValueError, match="pass heads="): infer_config(plain)
    assert infer_config(plain, heads=4) == replace(config, qk_norm=False)
    with pytest.raises(ValueError, match=r"pass prior_tokens=\(spatial, temporal\)"): infer_config(reference_shapes(replace(config, prior_tokens=(3, 4))))
    with pytest.raises(ValueError, match="size of the model is unknown"): infer_config({n: s for n, s in plain.items() if "attn" not in n and "t_embedder" not in n})


@pytest.mark.parametrize("name, part", [("released", "joint"), ("odd paper", "joint"), ("odd", "audio"), ("paper", "video")])
def test_any_broken_tensor_is_in_the_list(name, part):
    "Whichever tensor is missing or has another shape: the error names it, and no other but where two tell a size and disagree."
    config = CONFIGS[name]
    shapes = {k: tuple(v) for k, v in reference_shapes(config, part).items()}
    told = {} if part == "joint" else dict(layout=config.layout, bi=config.bi)
    if part == "video": told |= dict(audio_channels=config.audio_channels)
    some = [n for n in shapes if "blocks" not in n or "_blocks.1" in n][::2]
    for gone in some:
        for broken in ({n: s for n, s in shapes.items() if n != gone}, {**shapes, gone: (*shapes[gone][:-1], shapes[gone][-1] + 5)}):
            with pytest.raises(ValueError) as error: check_shapes(broken, reference_shapes(infer_config(broken, **told), part), "x")
            other = gone.replace("y_embedding", "y_proj.fc1.weight"), gone.replace("y_proj.fc1.weight", "y_embedding")
            lines = str(error.value).splitlines()[1:]
            assert any(n in line for line in lines for n in other) and (len(lines) == 1 or gone.endswith("x_embedder.proj.weight")), str(error.value)


def test_every_tensor_has_one_owner():
    for config in CONFIGS.values():
        parts = {part: set(our_shapes(config, part)) for part in ("joint", "audio", "video")}
        assert parts["audio"] < parts["joint"] and parts["video"] < parts["joint"]
        assert {owner(n) for n in parts["video"]} == {"video"} and {owner(n) for n in parts["audio"]} == {"video", "audio"}
        assert {n for n in parts["joint"] if owner(n) == "joint"} == parts["joint"] - parts["audio"] - parts["video"]


def test_a_stage_1_file_of_the_reference_is_recognised():
    weights = {k.removeprefix("sd/"): v for k, v in load_file(GOLDENS / "dit_stage1_audio.safetensors").items() if k.startswith("sd/")}
    assert checkpoint_kind(weights) == Kind("reference", "audio", None)
    for layout in ("released", "paper"):
        config = infer_config({k: tuple(v.shape) for k, v in weights.items()}, layout=layout)
        state, extras = from_reference(weights, config, "audio")
        assert set(extras) == {"rope.freqs"} and equal(to_reference(state, config, extras, "audio"), weights)


# --- files ---

@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("part", ["joint", "audio", "video"])
def test_there_and_back(name, part, tmp_path):
    config, state = CONFIGS[name], reference_state(CONFIGS[name], part, torch.bfloat16)
    source = write_shards(state, tmp_path / "theirs")
    told = {} if part == "joint" else asdict(config)
    opened = convert(source, tmp_path / "ours", shard_bytes=50_000, **told)
    assert opened.kind.part == part and opened.config == config
    convert(tmp_path / "ours", tmp_path / "back", "reference")
    assert content_hash(source) == content_hash(tmp_path / "back")
    assert open_checkpoint(tmp_path / "back", **({} if part == "joint" else told)).config == config, "config.json says what shapes do not"
    again = {n: x for f in (tmp_path / "back").glob("*.safetensors") for n, x in load_file(f).items()}
    assert equal(again, state)
    if part == "joint": assert JavisDiT.from_pretrained(tmp_path / "ours").config.depth == config.depth


def test_all_kinds_of_files_give_the_same(tmp_path):
    config, state = CONFIGS["released"], reference_state(CONFIGS["released"])
    files = [write_shards(state, tmp_path / "shards"), tmp_path / "one.safetensors", tmp_path / "ema.pt", tmp_path / "old.bin", tmp_path / "wrapped.pt"]
    save_file(state, files[1])
    torch.save(state, files[2])
    torch.save(state, files[3], _use_new_zipfile_serialization=False)
    torch.save({"ema": {f"module.{k}": v for k, v in state.items()}, "step": 7}, files[4])
    files += [files[0] / "model.safetensors.index.json", write_shards(state, tmp_path / "whole", 10**9)]
    assert len(list(files[0].glob("*.safetensors"))) > 3
    expected = from_reference(state, config).state
    for file in files: assert equal(load_transformer(file).state_dict(), expected), file
    assert load_transformer(files[1], torch.bfloat16).dtype == torch.bfloat16


class Evil:
    def __reduce__(self): return os.system, ("true",)


def test_bad_files_say_what_is_wrong(tmp_path):
    state = reference_state(CONFIGS["released"])
    whole = tmp_path / "whole.safetensors"
    save_file(state, whole)
    def fails(name, match, make):
        path = tmp_path / name
        make(path)
        with pytest.raises(MediaError, match=match): open_checkpoint(path)
    fails("evil.pt", "would run code", lambda p: torch.save({"w": torch.zeros(1), "x": Evil()}, p))
    fails("empty.pt", "holds no state dict", lambda p: torch.save({"step": 1}, p))
    fails("noise.pt", "cannot be read|would run code", lambda p: p.write_bytes(b"noise" * 100))
    fails("cut.safetensors", "is cut off after", lambda p: p.write_bytes(whole.read_bytes()[:-100]))
    fails("noise.safetensors", "is not a safetensors file", lambda p: p.write_bytes(b"noise" * 100))
    fails("other.ckpt", "unknown ending", lambda p: p.write_bytes(b""))
    fails("absent.pt", "does not exist", lambda p: None)
    fails("nothing", "holds no weights", lambda p: p.mkdir())
    fails("two", "holds 2 checkpoints .*name the file", lambda p: (p.mkdir(), save_file(state, p / "a.safetensors"), save_file(state, p / "b.safetensors")))
    fails("gap", "names 1 file that are not there|names 1 file", lambda p: (write_shards(state, p), next(p.glob("*-00002-*")).unlink()))
    with pytest.raises(ValueError, match="not a transformer"): save_file({"w": torch.zeros(1)}, tmp_path / "other.safetensors"); open_checkpoint(tmp_path / "other.safetensors")
    ours = tmp_path / "ours.safetensors"
    save_file(from_reference(state, CONFIGS["released"]).state, ours)
    with pytest.raises(MediaError, match="no config.json"): open_checkpoint(ours)
    assert open_checkpoint(ours, **asdict(CONFIGS["released"])).kind == Kind("ours", "joint", "released")


def test_a_public_name_offline_says_what_to_do(monkeypatch):
    monkeypatch.setattr(checkpoints, "snapshot_download", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("offline")))
    with pytest.raises(MediaError, match="connect once"): open_checkpoint(JAVISDIT)


def test_nothing_is_loaded_half(tmp_path):
    config, state = CONFIGS["released"], reference_state(CONFIGS["released"], "video")
    model = JavisDiT(**asdict(config))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    broken = {**state, "final_layer.linear.bias": torch.zeros(3), "who.knows": torch.zeros(2)}
    del broken["spatial_blocks.1.mlp.fc2.weight"]
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(ValueError) as error: load_branch(model, tmp_path / "broken.safetensors")
    for line in ("missing: spatial_blocks.1.mlp.fc2.weight, expected (32, 128)", "unexpected: who.knows, (2,)", "final_layer.linear.bias"): assert line in str(error.value)
    assert equal(before, model.state_dict())


def test_branches_are_laid_into_a_model(tmp_path):
    for name, layout in (("released", "released"), ("paper", "paper")):
        config, states = CONFIGS[name], {part: reference_state(CONFIGS[name], part) for part in ("audio", "video")}
        model = JavisDiT(**asdict(config))
        joint = {n: v.clone() for n, v in model.state_dict().items() if owner(n) == "joint"}
        for part, state in states.items():
            save_file(state, file := tmp_path / f"{name}-{part}.safetensors")
            assert set(load_branch(model, file)) == set(our_shapes(config, part))
        own = model.state_dict()
        for n, v in from_reference(states["video"], config, "video").state.items(): assert torch.equal(own[n], v)
        for n, v in from_reference(states["audio"], config, "audio").state.items(): assert owner(n) == "video" or torch.equal(own[n], v)
        assert all(torch.equal(own[n], v) for n, v in joint.items())
        with pytest.raises(ValueError, match="branch alone"): load_transformer(tmp_path / f"{name}-video.safetensors")


def test_check_lists_shapes_by_name():
    with pytest.raises(ValueError) as error: check_shapes({"a": (1, 2), "c": (3,)}, {"a": (2, 1), "b": (4,)}, "a test")
    assert str(error.value).splitlines() == ["the checkpoint does not fit a test (3 tensors):", "missing: b, expected (4,)", "shape (1, 2), expected (2, 1): a", "unexpected: c, (3,)"]


# --- conversion ---

def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    source = write_shards(reference_state(CONFIGS["released"]), tmp_path / "theirs")
    calls = []
    def fails(self, name, tensor, add=ShardWriter.add):
        if len(calls) == 40: raise KeyboardInterrupt
        calls.append(name); add(self, name, tensor)
    monkeypatch.setattr(ShardWriter, "add", fails)
    with pytest.raises(KeyboardInterrupt): convert(source, tmp_path / "ours", shard_bytes=10_000)
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"]


def test_types(tmp_path):
    source = write_shards(reference_state(CONFIGS["released"]), tmp_path / "theirs")
    convert(source, tmp_path / "half", dtype=torch.bfloat16)
    assert {v.dtype for f in (tmp_path / "half").glob("*.safetensors") for v in load_file(f).values()} == {torch.bfloat16}


def test_command(tmp_path):
    source = write_shards(reference_state(CONFIGS["released"]), tmp_path / "theirs")
    script = tmp_path / "javisdit_convert"                               # what pip installs for a console script
    script.write_text("import sys\nfrom javisdit.checkpoints import javisdit_convert\nif __name__ == '__main__': sys.exit(javisdit_convert())\n")
    run = lambda *a: subprocess.run([sys.executable, *map(str, (script, *a))], capture_output=True, text=True)
    done = run(source, tmp_path / "ours", "--dtype", "bfloat16")
    assert done.returncode == 0 and "joint, released layout, width 32, depth 2, 4 heads" in done.stdout, done.stderr
    assert "%" in done.stderr, "no progress bar"
    again = run(source, tmp_path / "ours")
    assert again.returncode == 1 and "exists already" in again.stderr and "Traceback" not in again.stderr
    assert "choose float32" in run(source, tmp_path / "x", "--dtype", "int4").stderr
    text = run("--help").stdout
    assert all(word in text for word in ("--to", "--dtype", "--shard_gb", "--heads", "without loading it whole"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read where Linux tells it")
def test_a_tenth_of_the_full_size(tmp_path):
    "Peak memory of a process that converts does not grow with the model; the hash survives."
    config = replace(released().model, depth=3)
    result = convert_full_size.round_trip(config, tmp_path, 200_000_000)
    assert 0.09 < result["parameters"] / 3_719_730_948 < 0.12
    assert max(result["peak_there"], result["peak_back"]) < 3e9


def test_full_size_counts():
    shapes = reference_shapes(released().model)
    assert sum(math.prod(s) for n, s in shapes.items() if not n.endswith("y_embedding")) + 36 == 3_719_730_948
    assert json.loads(json.dumps(checkpoints.config_to_reference(released().model)))["hidden_size"] == 1152
