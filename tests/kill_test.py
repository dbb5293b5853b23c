"""Kills a small training with `kill -9` again and again; in the end it must be the run that was never touched, bit for bit.

    python tests/kill_test.py --kills 20 --torn 5
    python tests/kill_test.py --launch "python -m torch.distributed.run --nproc_per_node 2"    # what starts a life; it is given this file
    python tests/kill_test.py --life DIR                                                      # one life, as the launch command runs it

Without `--launch` a life is a fork of this process, which has imported everything and computed nothing."""
import argparse
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from javisdit.core import generator, tiny
from javisdit.data import Latents
from javisdit.dit import JavisDiT
from javisdit.flow import read_log
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
    "One life of the run in `out`."
    random.seed(0); np.random.seed(0); torch.manual_seed(0)      # nothing here uses them, but checkpoints keep them: they must come back
    learn = small_learner(out, **options)
    with learn.no_bar(), learn.no_logging(): train_steps(learn)
    return learn


def start(out, launch=None):
    "Starts a life in a process group of its own; returns its process id."
    if launch: return subprocess.Popen([*shlex.split(launch), __file__, "--life", str(out)], start_new_session=True).pid
    if child := os.fork(): return child
    try:
        os.setsid()
        train(out)
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
    finally: os._exit(1)


def ended(pid, wait=False):
    "Exit status of a process, None while it runs."
    found, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def kill_group(pid):
    try: os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError: os.kill(pid, signal.SIGKILL)      # not yet a group of its own
    ended(pid, wait=True)


def parts(out): return [p.name for p in Path(out, "checkpoints").glob(".step-*.part")]
def finished(out): return {p.name for p in Path(out, "checkpoints").glob("step-*")}


def life(out, launch, after, delay, in_checkpoint):
    """Lets a life run and kills it `delay` seconds after it has finished `after` checkpoints (and begun another, if `in_checkpoint`).

    Returns what it left half written, or None if it reached its end."""
    before, pid, due = finished(out), start(out, launch), None
    while due is None or time.monotonic() < due:
        if (code := ended(pid)) is not None:
            if code: raise SystemExit(f"a life of the run ended with exit code {code}")
            return None
        if due is None and len(finished(out) - before) >= after and (parts(out) or not in_checkpoint): due = time.monotonic() + delay
        time.sleep(0.001)
    kill_group(pid)
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
    state = torch.load(newest_checkpoint(Path(out, "checkpoints")) / "state.pt", weights_only=True)
    model = {p.name: p.read_bytes() for p in Path(out, "model").iterdir()}
    return dict(rows=rows, lines=lines, model=model, **leaves(state, "state"))


def differences(a, b):
    "What differs between two outcomes, by name."
    same = lambda x, y: torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
    return [k for k in a | b if k not in a or k not in b or not same(a[k], b[k])]


def main(kills=20, torn=5, launch=None, seed=0):
    "Kills lives until there were `kills`, at least `torn` of them inside a checkpoint; every run that reached its end is compared."
    rng, done, inside, runs = random.Random(seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        if code := ended(start(whole := Path(folder, "whole"), launch), wait=True): raise SystemExit(f"the run that nobody touches ended with exit code {code}")
        block, truth = (time.monotonic() - began) / (CONFIG.train.steps / BLOCK), outcome(whole)
        print(f"untouched: {len(truth['rows'])} rows, {block:.2f} s a block of {BLOCK} steps", flush=True)
        while done < kills or inside < torn:
            runs, out = runs + 1, Path(folder, f"killed-{runs}")
            while True:
                more, aim = done < kills or inside < torn, inside < torn and rng.random() < 0.5
                delay = rng.uniform(0, 0.005) if aim else rng.uniform(0, 2 * block)
                left = life(out, launch, rng.choice((0, 1, 1)) if more else 10**6, delay, aim)
                if left is None: break
                done, inside = done + 1, inside + bool(left)
                print(f"kill {done}: {'inside a checkpoint, ' + left[0] if left else 'between checkpoints'}", flush=True)
            if bad := differences(truth, outcome(out)): raise SystemExit(f"run {runs} differs from the untouched one in {', '.join(bad[:10])}")
            print(f"run {runs} reached its end and equals the untouched one: {len(truth)} values", flush=True)
    print(f"{done} kills, {inside} inside a checkpoint, {runs} runs, all equal bit for bit")


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--kills", type=int, default=20)
    ask.add_argument("--torn", type=int, default=5, help="at least so many inside a checkpoint")
    ask.add_argument("--launch", help="command that starts a life")
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--life", help="run one life in this folder")
    given = vars(ask.parse_args())
    torch.set_num_threads(1)
    if out := given.pop("life"): train(out)
    else: sys.exit(main(**given))
