"""Trains the tiny model that ships, by the chapters of the stages: from nothing to a folder that `JavisDiTPipeline.from_pretrained` reads.

    python nbs/tables/08_tiny.py RUNS            # about two hours on one core; what is there is kept, so it may be stopped
    python nbs/tables/08_tiny.py RUNS --ship     # puts the model in half precision into the package, and its log beside this file

Stage 2 is chapter 06 at its defaults; its result ships as well and is taken from the package. (How far the weights in the package went
this way, and what was different on it, stands in their card, javisdit/weights/tiny/README.md.)
"""
import argparse
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from javisdit.models import save_half

HERE = Path(__file__).resolve().parent
PRIOR = files("javisdit") / "weights" / "tiny_prior" / "prior_parts.safetensors"
ALL = dict(batch_size=32, lr=1.5e-3, precision="bfloat16", block=500)
RUNS = {   # run -> its notebook, runs that it takes up, numbers
    "video": ("04d_train_video", {}, dict(clips=12000)),
    "audio": ("05_train_audio", dict(data="video", video="video"), {}),
    "joint": ("07_train_joint", dict(data="video", video="video", audio="audio"), dict(prior=PRIOR)),
    "all": ("07_train_joint", dict(data="video", init="joint"), dict(steps=4000, **ALL)),
    "tiny": ("07_train_joint", dict(data="video", init="all"), dict(steps=4200, shift=5.0, **ALL)),
}


def train(name: str, runs: Path):
    "One stage, unless it is there."
    notebook, before, numbers = RUNS[name]
    if (runs / name / "heldout.json").exists(): return
    given = {**{k: runs / v for k, v in before.items()}, **numbers, "out_dir": runs / name}
    flags = [x for k, v in given.items() for x in ("-p", k, str(v))]
    subprocess.run([sys.executable, "-m", "papermill", "--no-progress-bar", HERE.parent / f"{notebook}.ipynb", runs / f"{name}.ipynb", *flags], check=True)


def ship(run: Path):
    "Weights and settings into the package; of the log, every hundredth step and all held-out losses."
    save_half(run, files("javisdit") / "weights" / "tiny")
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    kept = [r for r in log if "valid_video" in r or "lr" in r and r["step"] % 100 == 0]
    (HERE / "08_tiny.jsonl").write_text("".join(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in r.items()}) + "\n" for r in kept))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of all runs")
    parser.add_argument("--ship", action="store_true", help="only put the finished model into the package")
    args = parser.parse_args()
    runs = args.runs.resolve()
    if args.ship: return ship(runs / "tiny")
    runs.mkdir(parents=True, exist_ok=True)
    for name in RUNS: train(name, runs)


if __name__ == "__main__": main()
