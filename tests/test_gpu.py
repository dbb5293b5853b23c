"What a GPU computes is what the CPU computes; training, sampling and the memory plan on one."
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from javisdit.attention import KERNELS, find_backend
from javisdit.bench import bench_config, bench_train, random_model
from javisdit.core import generator, tiny
from javisdit.data import Latents
from javisdit.dit import JavisDiT
from javisdit.learner import flow_learner, train_steps
from javisdit.memory import memory_plan
from javisdit.sampler import JavisDiTPipeline

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]


def draws(config, n, seed):
    "Latents, text states and priors of `n` clips, drawn on the CPU."
    g, m = generator("gpu", seed), config.model
    draw = lambda *shape: torch.randn(n, *shape, generator=g)
    return draw(*config.video_latent), draw(*config.audio_latent), draw(m.text_tokens, m.text_channels), [draw(k, m.prior_channels) for k in m.prior_tokens]


def velocity(model, config, inputs):
    video, audio, text, prior = inputs
    put = lambda x: x.to(model.device, model.dtype)
    facts = dict(fps=config.clip.fps, height=config.clip.height, width=config.clip.width)
    with torch.no_grad():
        cond = model.conditions(put(text), None, *map(put, prior), **facts)
        return model(put(video), put(audio), torch.full((len(video),), 500.0, device=model.device), cond)


def far(a, b): return float((a.float().cpu() - b.float().cpu()).norm() / b.float().norm())


@pytest.mark.parametrize("name", ["paper", "released"])
def test_a_step_is_that_of_the_cpu(name):
    config = bench_config(name, width=288, depth=2, geometry="144p")
    model, inputs = random_model(config), draws(config, 2, 0)
    exact = velocity(model, config, inputs)
    for a, b in zip(velocity(model.cuda(), config, inputs), exact): assert far(a, b) < 1e-4
    model.to(torch.bfloat16)
    for backend in KERNELS:
        try: find_backend(backend)
        except RuntimeError as e: print(backend, e); continue
        model.set_attention_backend(backend)
        off = [far(a, b) for a, b in zip(velocity(model, config, inputs), exact)]
        print(name, backend, off)
        assert max(off) < 0.03, backend


def test_compiled_is_eager():
    config = bench_config("paper", width=144, depth=2, geometry="144p")
    model, inputs = random_model(config, device="cuda"), draws(config, 1, 0)
    exact = [x.cpu() for x in velocity(model, config, inputs)]
    model.compile(dynamic=False)
    for a, b in zip(velocity(model, config, inputs), exact): assert far(a, b) < 1e-3


def latents(config, n, seed):
    video, audio, text, _ = draws(config, n, seed)
    names = [str(i) for i in range(n)]
    return Latents(video, audio, text, torch.ones(text.shape[:2], dtype=torch.bool), names, names, torch.full((n,), config.clip.fps), (config.clip.height, config.clip.width))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_stops_and_goes_on(tmp_path, precision):
    "A run that is cut in two is the run in one piece, to rounding: kernels on a GPU add in any order."
    config = tiny()
    config = replace(config, train=replace(config.train, steps=30, warmup=5, precision=precision, masks="paper"))
    def learner(folder, steps=30):
        c = replace(config, train=replace(config.train, steps=steps))
        dit = JavisDiT(**asdict(c.model)).init_weights("scratch", generator(0, "weights"))
        return flow_learner(dit, c, latents(c, 64, 0), latents(c, 8, 1), folder, block=10)
    whole = learner(tmp_path / "whole")
    with whole.no_bar(): train_steps(whole)
    cut = learner(tmp_path / "cut")
    cut.dls[0].stop = 20
    with cut.no_bar(): train_steps(cut)
    again = learner(tmp_path / "cut")
    assert again.step == 20 and next(again.bare.parameters()).is_cuda
    with again.no_bar(): train_steps(again)
    for a, b in zip(whole.bare.state_dict().values(), again.bare.state_dict().values()): assert far(a, b.cpu()) < 2e-2


def test_the_same_clip_as_on_the_cpu():
    here, there = (JavisDiTPipeline.from_pretrained("tiny").to(d) for d in ("cpu", "cuda"))
    a, b = (pipe("a red ball bounces twice on the left", seed=3)[0] for pipe in (here, there))
    assert np.abs(a.video.astype(int) - b.video.astype(int)).mean() < 2 and np.corrcoef(a.audio, b.audio)[0, 1] > 0.98


@pytest.mark.parametrize("clips", [1, 4])
def test_the_memory_plan(clips):
    config = bench_config("paper", width=576, depth=14, geometry="240p")
    report, plan = bench_train(config, 3, clips, repeats=1), memory_plan(config, 3, clips)
    planned = plan.total - plan.average                     # no average is kept here
    print(clips, report.memory["train"] / 1e9, planned / 1e9, vars(plan))
    assert report.memory["train"] == pytest.approx(planned, rel=0.15)
