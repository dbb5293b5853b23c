"""Which loss does what? The ablation of paper Tab. A6, and of what the tiny recipe adds, on the world: the tables of chapter 06.

    python nbs/tables/06_ablation.py --jobs 16

Each run trains stage 2 at `tiny` from one shared folder of broken and encoded clips (made first, if it is missing), and is measured on
held-out clips and captions. Writes 06_ablation.csv beside this file after each run; rows of other runs that are there stay. What is in
the folder is kept: a stopped training goes on where it was, a measured run is not measured again. Two minutes a run on one core.

The runs are independent: `--jobs` shares them among processes, `--share 0/2` and `--share 1/2` between two machines with a folder each;
`--merge OTHER.csv` puts the rows that the other machine wrote into this table.
"""
import argparse
import csv
import json
import multiprocessing
import os
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
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
TABLE = HERE / "06_ablation.csv"
RECIPE = {}                                                     # of the preset
PAPER = dict(by_moment=False, alike=0.0, contrast=0.0)
RUNS = {   # terms of Tab. A6 with the tiny recipe; then the paper's objective, and what the recipe adds to it, one after the other
    "hinge": dict(terms=""), "hinge + disc": dict(terms="disc"), "hinge + disc + va": dict(terms="disc,va"), "hinge + disc + l2": dict(terms="disc,l2"), "all": {},
    "plain": PAPER, "plain, by moment": PAPER | dict(by_moment=True), "plain, by moment, alike": dict(contrast=0.0), "plain, by moment, contrast": dict(alike=0.0)}


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


def read(*tables: Path) -> dict:
    "(run, seed) -> row; later tables win."
    return {(r["run"], int(r["seed"])): r for t in tables if t.exists() for r in csv.DictReader(t.open(newline=""))}


def write(rows: dict):
    "The rows in the order of `RUNS`."
    rows = [rows[k] for k in sorted(rows, key=lambda k: (list(RUNS).index(k[0]), k[1]))]
    with open(TABLE, "w", newline="") as f:
        table = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
        table.writeheader(), table.writerows(rows)


def pairs(folder: Path, workers: int) -> list: return [encode_pairs(folder / "pairs", n, tiny(), split, workers=workers) for n, split in ((1600, "train"), (200, "valid"))]


@lru_cache
def shared(folder: Path) -> tuple:
    "Clips and prompts, read once a process."
    encoder, config = load_text_encoder(tiny()), tiny()
    return *pairs(folder, 1), {split: (asked := prompts(n, split, config.clip), encoder(asked.captions)) for split, n in (("train", 2000), ("valid", 400))}


def one(name: str, seed: int, steps: int, folder: Path) -> dict:
    "Train and measure a run, unless that was done."
    done = folder / f"seed{seed}" / f"{'_'.join(name.split())}.json"
    if not done.exists():
        torch.set_num_threads(1)
        warnings.filterwarnings("ignore", message=".*lose their end")
        train, valid, text = shared(folder)
        start, p = time.time(), TrainPrior(steps=steps, seed=seed, block=250, out_dir=str(done.with_suffix("")), **RECIPE | RUNS[name])
        learn = prior_learner(p, train, valid)
        learn.remove_cb(ProgressCallback)
        train_steps(learn)
        done.write_text(json.dumps(dict(run=name, seed=seed, steps=steps, seconds=round(time.time() - start), **{k: round(v, 4) for k, v in measure(p, valid, text).items()})))
    return json.loads(done.read_text())


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--folder", type=Path, default=Path("_runs/ablation"), help="of clips and trainings")
    args.add_argument("--steps", type=int, default=500)
    args.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME", help=f"some of: {'; '.join(RUNS)}")
    args.add_argument("--share", default="0/1", help="i/k: every k-th run, from the i-th on")
    args.add_argument("--jobs", type=int, default=1, help="runs at a time, a core each")
    args.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that encode clips, if they are not there yet")
    args.add_argument("--merge", type=Path, nargs="+", help="tables of other machines: put them into this one, and run nothing")
    args = args.parse_args()
    if args.merge: return write(read(TABLE, *args.merge))
    folder, (first, every) = args.folder.resolve(), map(int, args.share.split("/"))
    pairs(folder, args.workers)
    todo = [(n, s, args.steps, folder) for s in args.seeds for n in args.runs][first::every]
    with ProcessPoolExecutor(min(args.jobs, len(todo)), multiprocessing.get_context("spawn")) as pool:
        for job in as_completed([pool.submit(one, *x) for x in todo]):
            row = job.result()
            write(read(TABLE) | {(row["run"], row["seed"]): row})
            print(row, flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*lose their end")
    main()
