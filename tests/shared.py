"What the processes of test_distributed.py run: a tiny training in float64, on one process or on several, from a checkpoint or from nothing."
import shutil
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from torch.distributed.tensor import DTensor

from javisdit.core import generator, tiny
from javisdit.data import Batch
from javisdit.dit import JavisDiT
from javisdit.engines import in_turn, share
from javisdit.learner import Denoiser, FlowCallback, SampleCallback, stage_learner, train_steps
from javisdit.models import save_model
from javisdit.runs import claim_run

STEPS, BLOCK = 20, 10


def config():
    c = tiny()
    return replace(c, model=replace(c.model, width=32, depth=2, heads=2, skip="none"), train=replace(c.train, steps=STEPS, batch_size=4, micro=2, lr=1e-2, warmup=2), sample=replace(c.sample, steps=2))


class Clips:
    "A source of latents that are alike, so that there is something to learn."
    def __init__(self, n, seed, dtype):
        c, g = config(), generator("shared", seed)
        draw = lambda *shape: torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
        near = lambda shape: draw(1, *shape) + 0.1 * draw(n, *shape)
        self.n, self.parts = n, (near(c.video_latent), near(c.audio_latent), draw(n, 6, c.model.text_channels), torch.ones(n, 6, dtype=torch.bool), torch.full((n,), 24.0), torch.full((n,), 32.0), torch.full((n,), 32.0))
    def __len__(self): return self.n
    def batch(self, index): return Batch(*(x[torch.as_tensor(index)] for x in self.parts), torch.as_tensor(index))


def terms(pred, target): return {name: (getattr(pred, name) - v).square().mean() for name, (v, _) in target.items()}


class Watch(Callback):
    "Keeps the loss of each micro batch, and the names of parameters whose gradient is zero."
    order, run_valid = 5, False
    def __init__(self): self.losses, self.still = [], None
    def after_loss(self): self.losses.append(self.loss.item())
    def before_step(self):
        if not self.micro.last or self.learn.step < 2: return
        norm = lambda g: 0.0 if g is None else (g.full_tensor() if isinstance(g, DTensor) else g).norm().item()
        still = {n for n, p in self.learn.bare.named_parameters() if p.requires_grad and not norm(p.grad)}
        self.still = still if self.still is None else self.still & still


def train(folder: Path, engine: str | None, dtype=torch.float64, valid=5, block=BLOCK, stop=STEPS, bad=None, cbs=()) -> dict:
    "Train in `folder` (from what is there) on all processes, or on this one alone, to step `stop`; clip `bad` is not a number. The loss of each step, and the weights."
    torch.set_default_dtype(dtype)
    c = config()
    dit = JavisDiT(**asdict(c.model)).init_weights("scratch", generator(0, "weights"))
    watch, alone = Watch(), engine is None
    export = lambda path: save_model(dit, c, path)
    with nullcontext() if alone else in_turn(): claim_run(folder, c, seed=0)
    source = Clips(16, 1, dtype)
    if bad is not None: source.parts[0][bad] = torch.nan
    learn = stage_learner(Denoiser(dit, c), FlowCallback(c, 0), terms, ("video", "audio"), c, source, Clips(valid, 2, dtype), folder, export, block=block,
                          cbs=[watch, *cbs, *share(engine or "ddp", processes=not alone)], keep=3)
    start, learn.dls[0].stop = learn.step, stop
    with learn.no_bar(), learn.no_logging(): train_steps(learn)
    losses = torch.tensor(watch.losses, dtype=torch.float64).view(stop - start, -1).mean(1)
    if not alone: dist.all_reduce(losses); losses /= learn.world
    weights = torch.cat([(p.full_tensor() if isinstance(p, DTensor) else p).detach().flatten() for p in dit.parameters()])
    pieces = sum(x.nbytes for p in dit.parameters() for x in [p.to_local() if isinstance(p, DTensor) else p])
    return dict(start=start, losses=losses, weights=weights, still=sorted(watch.still or ()), pieces=pieces)


def half(run: Path, to: Path):
    "A run that stopped half way."
    to.mkdir(parents=True)
    for name in ("run.json", f"checkpoints/step-{BLOCK:08d}"): (shutil.copytree if (run / name).is_dir() else shutil.copy)(run / name, (to / name).parent.mkdir(exist_ok=True) or to / name)


def every_way(folder: Path, resume: bool = True) -> dict:
    "One process, DDP, FSDP; then, if asked, each engine from the half-way checkpoint of each other. Called by two processes."
    folder, results, rank = Path(folder), {}, dist.get_rank()
    def done(name, result):
        if rank: return
        results[name] = result
        off = (result["losses"] - results["one"]["losses"][result["start"]:]).abs().max().item()
        print(f"{name}: from step {result['start']}, loss {result['losses'][0]:.4f} to {result['losses'][-1]:.4f}, off by {off:.1e}", flush=True)
    for name, engine in dict(one=None, ddp="ddp", fsdp="fsdp").items():
        if engine is None and rank: continue
        done(name, train(folder / name, engine))
    for source in ("one", "ddp", "fsdp") if resume else ():
        for name, engine in dict(one=None, ddp="ddp", fsdp="fsdp").items():
            to = folder / f"{source}-{name}"
            dist.barrier()
            if rank == 0: half(folder / source, to)
            dist.barrier()
            if engine or not rank: done(to.name, train(to, engine))
    dist.barrier()
    return {f"{name}.{key}": x for name, result in results.items() for key, x in result.items()}


def together(folder: Path) -> dict:
    "What several processes must agree on. Called by two processes: a run with three lives whose blocks end between two rows of the log, a clip that is not a number, samples."
    folder, c, said = Path(folder), config(), {}
    train(folder / "whole", "ddp", torch.float32, block=3, stop=12)
    for stop in (3, 6, 12): train(folder / "broken", "ddp", torch.float32, block=3, stop=stop)
    try: train(folder / "bad", "ddp", torch.float32, bad=5)
    except FloatingPointError as e: said["bad"] = str(e)
    for engine in ("ddp", "fsdp"):
        made = SampleCallback(c, Clips(2, 2, torch.float32), folder / engine, every=2)
        said[engine] = train(folder / engine, engine, torch.float32, block=4, stop=4, cbs=[made])["losses"]
    return said
