"""Does a form of bidirectional attention learn synchrony? The table of chapter 01c.

For each form the tiny preset is trained by chapter 07 (papermill) and clips for captions of the test split are generated
and measured as in chapter 08. Writes 01c_clocks.csv beside this file, a row a form, after each form. What is there is kept:
a stopped training goes on where it was, a measured run is not measured again. About a quarter of an hour a form on one core.
"""
import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

from javisdit.dit import CLOCKS
from javisdit.sampler import JavisDiTPipeline, evaluate

HERE = Path(__file__).resolve().parent
FIELDS = ("heard_to_seen", "seen_to_heard", "heard_within", "seen_within", "f1")


def train(form: str, out: Path, shared: Path, steps: int, seed: int):
    "Run chapter 07 in `out`; clips and latents are the same for all forms and lie in `shared`."
    for name in ("world", "latents"):
        (shared / name).mkdir(parents=True, exist_ok=True)
        out.mkdir(exist_ok=True)
        if not (out / name).exists(): (out / name).symlink_to(shared / name)
    settings = dict(preset="tiny", bi=form, steps=steps, seed=seed, out_dir=out)
    subprocess.run([sys.executable, "-m", "papermill", "--no-progress-bar", HERE.parent / "07_train_joint.ipynb", out / "07.ipynb",
                    *(word for key, value in settings.items() for word in ("-p", key, str(value)))], check=True)


def measure(out: Path, captions: int, seed: int) -> dict:
    "Synchrony of generated clips, and held-out losses of chapter 07."
    result, losses = evaluate(JavisDiTPipeline.from_pretrained(out), captions, seed), json.loads((out / "heldout.json").read_text())
    return dict(generated=result["generated"].to_dict(), real=result["real"].to_dict(), losses={k: v["model"] for k, v in losses.items()})


def row(form: str, report: dict, **more) -> dict:
    "A line of the table; times in seconds, shares in 0..1."
    pairs = {f"{key}_{side}": round(report[part][key], 4) for key in FIELDS for side, part in (("own", "matched"), ("shuffled", "shuffled"))}
    return dict(form=form, clips=report["clips"], heard=report["heard"], seen=report["seen"], silent=report["silent"], still=report["still"], **pairs,
                **{key: round(report[key], 3) for key in ("ratio", "low", "high")}, **more)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--runs", type=Path, default=Path("_runs/clocks"), help="folder of the trainings")
    args.add_argument("--steps", type=int, default=800)
    args.add_argument("--captions", type=int, default=64, help="clips to generate and measure, a form")
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--forms", nargs="+", default=["windows", "global", "seconds", "none"], choices=list(CLOCKS))
    args, rows = args.parse_args(), []
    for form in args.forms:
        out, name = args.runs.resolve() / form, f"sync_{args.captions}_{args.seed}.json"
        if not (out / name).exists():
            train(form, out, args.runs.resolve() / "shared", args.steps, args.seed)
            (out / name).write_text(json.dumps(measure(out, args.captions, args.seed), indent=1))
        result = json.loads((out / name).read_text())
        if not rows: rows.append(row("real clips", result["real"], steps="", video_loss="", audio_loss=""))
        rows.append(row(form, result["generated"], steps=args.steps, **{f"{k}_loss": round(v, 4) for k, v in result["losses"].items()}))
        with open(HERE / "01c_clocks.csv", "w", newline="") as f:
            table = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
            table.writeheader(), table.writerows(rows)
        print(rows[-1], flush=True)


if __name__ == "__main__": main()
