"The count is what PyTorch counts, the emulation is the reference's result, and the command says what it measured."
import json
import math
from dataclasses import replace

import pytest
import torch

from javisdit.attention import PriorCrossAttention
from javisdit.bench import (DataReport, StepReport, alternate, bench_config, bench_step, clips_eaten, javisdit_bench, moving_clip, random_inputs,
                            random_model, repeated_prior, step_flops)
from javisdit.media import write_clip


def small(name="released", **changes):
    config = bench_config(name, width=144, depth=1, geometry="144p")
    return replace(config, clip=replace(config.clip, height=32, width=48, frames=17), model=replace(config.model, text_channels=8, text_tokens=5, **changes))


@pytest.mark.parametrize("geometry, tflop, more", [("240p", 82.9, 87), ("720p", 397.7, 3223)])
def test_the_full_size(geometry, tflop, more):
    config = bench_config(geometry=geometry)
    ours, theirs = (sum(step_flops(config, share=share, repeated=share == 2).values()) / 1e12 for share in (1, 2))
    assert ours == pytest.approx(tflop, rel=0.01) and theirs - ours == pytest.approx(more, rel=0.01)


@pytest.mark.parametrize("name", ["released", "paper"])
def test_repeated_keys_are_prior_scope_batch(name):
    config = small(name)
    model = random_model(config)
    with torch.no_grad():
        video, audio, cond = random_inputs(model, config, clips=3)
        run = lambda **options: model(video, audio, torch.tensor([900.0, 500.0, 20.0]), cond, **options)
        batch, sample = run(prior_scope="batch"), run()
        with repeated_prior(model): copied = run()
        for a, b, c in zip(batch, copied, sample):
            assert (a - b).abs().max() < 1e-4 * a.abs().max() < (a - c).abs().max()
    assert not any("forward" in vars(m) for m in model.modules() if isinstance(m, PriorCrossAttention))


def test_turns_alternate_and_the_first_does_not_count():
    calls = []
    seen = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == list("ababab") and set(seen) == {"a", "b"} and all(seconds > 0 for seconds, _ in seen.values())


def test_a_report():
    report = bench_step(small(), emulate_reference=True, repeats=1)
    assert report.flops["repeated"] > report.flops["ours"] == sum(step_flops(small()).values())
    text = str(report)
    assert "32" in text and "ours takes" in text and "float32" in text and StepReport(**json.loads(json.dumps(vars(report)))) == report
    assert sum(step_flops(small(), rows=1).values()) == bench_step(small(), guidance=False, repeats=1, dtype=torch.bfloat16).flops["ours"]


def test_command(capsys, tmp_path):
    javisdit_bench(["step", "--preset", "tiny", "--geometry=preset", "--repeats", "1", "--no-guidance", "--emulate-reference", "--out", str(tmp_path / "a.json")])
    assert "no guidance" in capsys.readouterr().out and set(json.loads((tmp_path / "a.json").read_text())["seconds"]) == {"ours", "repeated"}
    for argv, message in ((["step", "--geometry", "8k"], "choose one of 144p"), (["step", "--dtype", "int3"], "choose one of float32"), (["step", "--width", "100"], "choose a multiple of 144")):
        with pytest.raises(SystemExit, match=message): javisdit_bench(argv)
    with pytest.raises(SystemExit): javisdit_bench(["step", "--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in ("--emulate_reference", "--no_guidance", "--geometry", "random weights"))
    with pytest.raises(SystemExit): javisdit_bench(["read"])


@pytest.mark.gpu
def test_on_a_gpu():
    report = bench_step(bench_config(geometry="240p"), torch.bfloat16, "cuda", repeats=3)
    assert report.memory["ours"] < 12e9


def test_what_gpus_eat():
    config = bench_config(geometry="240p")
    assert clips_eaten(config) == pytest.approx(8 * 0.4 * 989e12 / (3 * 41.4e12), rel=0.01)
    assert clips_eaten(config, gpus=32) == 4 * clips_eaten(config) == pytest.approx(8 * clips_eaten(config, mfu=0.2))


def test_reading(capsys, tmp_path):
    write_clip(moving_clip(32, 48, 2.5), tmp_path / "a.mp4")
    options = ["data", "--preset", "tiny", "--geometry", "preset", "--seconds", "0.05", "--batches", "3"]
    javisdit_bench([*options, "--media", str(tmp_path / "a.mp4"), "--out", str(tmp_path / "a.json")])
    report, text = DataReport(**json.loads((tmp_path / "a.json").read_text())), capsys.readouterr().out
    assert list(report.work) == ["video file a.mp4", "cache"] and report.work["cache"] < report.work["video file a.mp4"]
    assert report.cores("cache") == math.ceil(report.eaten * report.work["cache"]) and "cores needed" in text and "3 batches from the cache" in text
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:900])
    with pytest.raises(SystemExit, match="b.mp4"): javisdit_bench([*options, "--media", str(tmp_path / "b.mp4")])
