"""Which loss does what? The ablation of paper Tab. A6, and of what the tiny recipe adds, on the world: the tables of chapter 06.

Each run trains stage 2 at `tiny` from one shared folder of broken and encoded clips, and is measured on held-out clips and captions.
Writes 06_ablation.csv beside this file after each run. What is there is kept: a stopped training goes on where it was, a measured
run is not measured again. Two minutes a run on one core; `--share 0/2` and `--share 1/2` halve the runs between two processes.
"""
import argparse
import csv
import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from fastai.callback.progress import ProgressCallback

from javisdit.augment import WAYS
from javisdit.core import tiny
from javisdit.encoders import load_text_encoder
from javisdit.learner import train_steps
from javisdit.train_prior import TrainPrior, encode_pairs, prior_learner, probe_table, prompts, readers, ruler, score, trained_prior

HERE = Path(__file__).resolve().parent
RECIPE = dict(alike=1.0)
PAPER = dict(by_moment=False, alike=0.0, others=0.0)
RUNS = {   # terms of Tab. A6 with the tiny recipe; then the paper's objective, and what the recipe adds to it, one after the other
    "hinge": dict(terms=""), "hinge + disc": dict(terms="disc"), "hinge + disc + va": dict(terms="disc,va"), "hinge + disc + l2": dict(terms="disc,l2"), "all": {},
    "plain": PAPER, "plain, by moment": PAPER | dict(by_moment=True), "plain, by moment, alike": dict(others=0.0)}


def measure(p: TrainPrior, valid, text: dict) -> dict:
    "AUROC of each group, its control and the probes of a trained run, as plain numbers."
    parts = trained_prior(p.folder, p.sizes)
    table = ruler(score(parts, valid), valid)
    seen, held = ({"prior": readers(parts.estimator, text[split][1])["prior"]} for split in ("train", "valid"))
    probes = probe_table(text["train"][0], seen, text["valid"][0], held)
    groups = {g: table[g]["broken"].value for g in WAYS}
    return dict(**groups, mean=float(np.mean([*groups.values()])), **{f"{g}_alike": table[g]["alike"].value for g in WAYS}, moved=table["moved/temporal"]["broken"].value,
                moved_spatial=table["moved/spatial"]["broken"].value, caption_spatial=table["caption/spatial"]["drop"].value, caption_temporal=table["caption/temporal"]["drop"].value,
                **{f"probe_{q}": x["prior"].value for q, x in probes.items()})


def write(folder: Path):
    "The table of all runs that were measured."
    rows = [json.loads(f.read_text()) for name in RUNS for f in sorted(folder.glob(f"*/{'_'.join(name.split())}.json"))]
    with open(HERE / "06_ablation.csv", "w", newline="") as f:
        table = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
        table.writeheader(), table.writerows(rows)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--runs", type=Path, default=Path("_runs/ablation"), help="folder of clips and trainings")
    args.add_argument("--steps", type=int, default=600)
    args.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args.add_argument("--share", default="0/1", help="i/k: every k-th run, from the i-th on")
    args = args.parse_args()
    torch.set_num_threads(1)
    folder, (first, every) = args.runs.resolve(), map(int, args.share.split("/"))
    train, valid = (encode_pairs(folder / "pairs", n, tiny(), split) for n, split in ((1600, "train"), (200, "valid")))
    encoder = load_text_encoder(tiny())
    text = {split: (asked := prompts(n, split, tiny().clip), encoder(asked.captions)) for split, n in (("train", 2000), ("valid", 400))}
    for seed, name in [(s, n) for s in args.seeds for n in RUNS][first::every]:
        done = folder / f"seed{seed}" / f"{'_'.join(name.split())}.json"
        if not done.exists():
            start, p = time.time(), TrainPrior(steps=args.steps, seed=seed, block=200, out_dir=str(done.with_suffix("")), **RECIPE | RUNS[name])
            learn = prior_learner(p, train, valid)
            learn.remove_cb(ProgressCallback)
            train_steps(learn)
            row = dict(run=name, seed=seed, steps=args.steps, seconds=round(time.time() - start), **{k: round(v, 4) for k, v in measure(p, valid, text).items()})
            done.write_text(json.dumps(row))
            print(row, flush=True)
        write(folder)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*lose their end")
    main()
