"""Kills a small training with `kill -9` again and again; in the end it must be the run that was never touched, bit for bit.

    python tests/kill_test.py --kills 20 --torn 5            # one process
    python tests/kill_test.py --nproc 2                      # two, under DDP; all of them die, or one of them
    python tests/kill_test.py --nproc 2 --launch             # the same, started by the launcher of chapter 04c

Without `--launch` the processes of a life are forks of this one, which has imported everything and computed nothing."""
import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from threading import Thread

import numpy as np
import torch
import torch.distributed as dist

from javisdit.core import generator, tiny
from javisdit.data import Latents
from javisdit.dit import JavisDiT
from javisdit.engines import share
from javisdit.flow import read_log
from javisdit.launch import RankError, launch
from javisdit.learner import flow_learner, train_steps
from javisdit.runs import newest_checkpoint

BASE = tiny()
CONFIG = replace(BASE, clip=replace(BASE.clip, frames=16), model=replace(BASE.model, width=32, depth=1, heads=2, text_channels=16, text_tokens=4),
                 train=replace(BASE.train, steps=48, warmup=4, batch_size=4, micro=2))
BLOCK = 6
SPEED = {"steps_per_second", "clips_per_second"}   # what a log says of the machine, not of the run


def latents(n, seed, config=CONFIG):
    "Clips of random numbers."
    g = generator(seed, "kill test")
    return Latents(video=torch.randn(n, *config.video_latent, generator=g), audio=torch.randn(n, *config.audio_latent, generator=g),
                   text=torch.randn(n, config.model.text_tokens, config.model.text_channels, generator=g), text_mask=torch.ones(n, config.model.text_tokens, dtype=torch.bool),
                   captions=[""] * n, ids=[f"clip {i}" for i in range(n)], fps=torch.full((n,), config.clip.fps))


def small_learner(out, config=CONFIG, source=None, **options):
    "A learner of the run in `out`."
    dit = JavisDiT(**asdict(config.model)).init_weights("scratch", generator(0))
    return flow_learner(dit, config, source or latents(16, 0), latents(8, 1), out, block=BLOCK, **options)


def train(out, **options):
    "One life of the run in `out`, in this process and those it has met."
    random.seed(0); np.random.seed(0); torch.manual_seed(0)      # nothing here uses them, but checkpoints keep them: they must come back
    if dist.is_initialized(): options["cbs"] = [*options.get("cbs", ()), *share()]
    learn = small_learner(out, **options)
    if not learn.rank: begun(out).touch()
    with learn.no_bar(), learn.no_logging(): train_steps(learn)
    return learn


def begun(out): return Path(f"{out}.begun")                       # there while a life trains


class Forks:
    "A life whose processes are forks of this one."
    def __init__(self, out, nproc):
        Path(f"{out}.meet").unlink(missing_ok=True)
        self.codes = {self.fork(out, rank, nproc): None for rank in range(nproc)}
    def fork(self, out, rank, nproc):
        if child := os.fork(): return child
        try:
            if nproc > 1: dist.init_process_group("gloo", init_method=f"file://{out}.meet", rank=rank, world_size=nproc)
            train(out)
            os._exit(0)
        except BaseException:
            import traceback
            if nproc == 1: traceback.print_exc()                 # of several, those whose fellow was killed have something to say
        finally: os._exit(1)
    def pids(self): return [pid for pid, code in self.codes.items() if code is None]
    def ended(self, wait=False):
        "Whether all have ended; one that fails takes the others with it."
        for pid in self.pids():
            found, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
            if found: self.codes[pid] = os.waitstatus_to_exitcode(status)
        return not self.pids()
    def failure(self): return any(self.codes.values()) and f"exit codes {[*self.codes.values()]}"


class Launched:
    "A life whose processes were started by `launch`."
    def __init__(self, out, nproc):
        self.folder, self.error = Path(f"{out}.launch"), None
        shutil.rmtree(self.folder, ignore_errors=True)
        self.thread = Thread(target=self.run, args=(out, nproc))
        self.thread.start()
    def run(self, out, nproc):
        cell = "import sys, torch\nsys.path.insert(0, tests)\ntorch.set_num_threads(1)\nfrom kill_test import train\ntrain(out)"
        try: launch(cell, nproc, dict(tests=str(Path(__file__).parent), out=str(out)), folder=self.folder, timeout=900, grace=5)
        except (RankError, TimeoutError) as e: self.error = e
    def pids(self): return [int(p.read_text()) for p in sorted(self.folder.glob("rank-*.pid"))]
    def ended(self, wait=False):
        if wait: self.thread.join()
        return not self.thread.is_alive()
    def failure(self): return self.error


def kill(pids):
    for pid in pids:
        try: os.kill(pid, signal.SIGKILL)
        except ProcessLookupError: pass


def parts(out): return [p.name for p in Path(out, "checkpoints").glob(".step-*.part")]
def finished(out): return {p.name for p in Path(out, "checkpoints").glob("step-*")}


def life(out, start, after, delay, in_checkpoint, one):
    """Lets a life run and kills it (all its processes, or number `one`) `delay` seconds after it has finished `after` checkpoints (and begun another, if `in_checkpoint`).

    Returns what it left half written, or None if it reached its end."""
    begun(out).unlink(missing_ok=True)
    before, run, due = finished(out), start(out), None
    while due is None or time.monotonic() < due:
        if run.ended():
            if run.failure(): raise SystemExit(f"a life of the run failed: {run.failure()}")
            return None
        if due is None and begun(out).exists() and len(finished(out) - before) >= after and (parts(out) or not in_checkpoint): due = time.monotonic() + delay
        time.sleep(0.001)
    kill(run.pids() if one is None else run.pids()[one:][:1])
    run.ended(wait=True)
    return parts(out)


def leaves(tree, path=""):
    "Names and values of nested containers."
    if isinstance(tree, dict): items = tree.items()
    elif isinstance(tree, (list, tuple)): items = enumerate(tree)
    else: return {path: tree}
    return {k: v for name, x in items for k, v in leaves(x, f"{path}/{name}").items()}


def outcome(out):
    "The log without speeds, and everything in the last checkpoint and in the exported model."
    rows = [{k: v for k, v in r.items() if k not in SPEED} for r in read_log(Path(out, "log.jsonl"))]
    lines = len(Path(out, "log.jsonl").read_text().splitlines())
    newest = newest_checkpoint(Path(out, "checkpoints"))
    states = {p.name: torch.load(p, weights_only=True) for p in newest.glob("*.pt")}
    model = {p.name: p.read_bytes() for p in Path(out, "model").iterdir()}
    return dict(rows=rows, lines=lines, model=model, **leaves(states, "state"))


def differences(a, b):
    "What differs between two outcomes, by name."
    same = lambda x, y: torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
    return [k for k in a | b if k not in a or k not in b or not same(a[k], b[k])]


def main(kills=20, torn=5, nproc=1, launch=False, seed=0):
    "Kills lives until there were `kills`, at least `torn` of them inside a checkpoint; every run that reached its end is compared."
    rng, done, inside, runs, start = random.Random(seed), 0, 0, 0, lambda out: (Launched if launch else Forks)(out, nproc)
    with tempfile.TemporaryDirectory() as folder:
        began, whole = time.monotonic(), Path(folder, "whole")
        if life(whole, start, 10**6, 0, False, None) is not None: raise SystemExit("the run that nobody touches was killed")
        block, truth = (time.time() - begun(whole).stat().st_mtime) / (CONFIG.train.steps / BLOCK), outcome(whole)
        print(f"untouched, {nproc} process{'es' * (nproc > 1)}: {len(truth['rows'])} rows, {block:.2f} s a block of {BLOCK} steps", flush=True)
        while done < kills or inside < torn:
            runs, out = runs + 1, Path(folder, f"killed-{runs}")
            while True:
                more, aim = done < kills or inside < torn, inside < torn and rng.random() < 0.5
                delay = rng.uniform(0, 0.005) if aim else rng.uniform(0, 2 * block)
                one = rng.randrange(nproc) if nproc > 1 and not aim and rng.random() < 0.5 else None
                left = life(out, start, rng.choice((0, 1, 1)) if more else 10**6, delay, aim, one)
                if left is None: break
                done, inside = done + 1, inside + bool(left)
                print(f"kill {done}{'' if one is None else f' of rank {one} alone'}: {'inside a checkpoint, ' + left[0] if left else 'between checkpoints'}", flush=True)
            if bad := differences(truth, outcome(out)): raise SystemExit(f"run {runs} differs from the untouched one in {', '.join(bad[:10])}")
            print(f"run {runs} reached its end and equals the untouched one: {len(truth)} values", flush=True)
    print(f"{done} kills, {inside} inside a checkpoint, {runs} runs, {time.monotonic() - began:.0f} s, all equal bit for bit")


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--kills", type=int, default=20)
    ask.add_argument("--torn", type=int, default=5, help="at least so many inside a checkpoint")
    ask.add_argument("--nproc", type=int, default=1, help="processes of a life")
    ask.add_argument("--launch", action="store_true", help="start lives by javisdit.launch")
    ask.add_argument("--seed", type=int, default=0)
    torch.set_num_threads(1)
    sys.exit(main(**vars(ask.parse_args())))
