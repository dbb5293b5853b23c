"""The model that ships, from nothing: stage 2 of chapter 06, then stages 0, 1 and 3 of chapters 04d, 05 and 07, then all weights together.

What is there is kept, so that recipes can be run side by side and one after the other. `--seconds` replaces the numbers of steps
below by as many as this machine takes in that time. The last four train all weights from scratch, with one form of attention
between the streams each: rows of the table of chapter 08.

    python nbs/tables/08_tiny.py encode RUNS --workers 16      # the world, written and encoded once
    python nbs/tables/08_tiny.py prior RUNS --workers 16
    python nbs/tables/08_tiny.py staged RUNS
    python nbs/tables/08_tiny.py windows RUNS                  # or seconds, global, none
"""
import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from javisdit.stages import stage_data
from javisdit.train_audio import TrainAudio, run as run_audio
from javisdit.train_joint import TrainJoint, run as run_joint
from javisdit.train_prior import TrainPrior, run as run_prior
from javisdit.train_video import TrainVideo, run as run_video

CLIPS, FORMS = 12000, ("windows", "seconds", "global", "none")
STEPS = dict(video=4000, audio=1200, joint=1500, all=4000, form=8000)


def there(path: Path) -> Path:
    "Waits for what another recipe is making."
    while not path.exists(): time.sleep(1)
    return path


def measured(run, p, seconds: float) -> int:
    "How many steps this machine takes in that time."
    with tempfile.TemporaryDirectory() as folder:
        run(replace(p, steps=60, block=60, out_dir=folder))
        log = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return max(100, int(seconds * [r["steps_per_second"] for r in log if "steps_per_second" in r][-1]) // 50 * 50)


def recipe(name: str, runs: Path) -> list:
    "(part, what runs it, its parameters) one after the other; the parameters are made when their turn comes."
    out = lambda part: str(runs / part)
    one = dict(data=out("world"), batch_size=128, lr=2e-3, block=500)
    joint = lambda **more: TrainJoint(**{**one, "masks": "paper", **more}, prior=str(there(runs / "prior" / "done").parent))
    if name == "staged": return [
        ("video", run_video, lambda: TrainVideo(**one, out_dir=out("video"))),
        ("audio", run_audio, lambda: TrainAudio(**one, out_dir=out("audio"), video=out("video"))),
        ("joint", run_joint, lambda: joint(out_dir=out("joint"), video=out("video"), audio=out("audio"))),
        ("all", run_joint, lambda: joint(out_dir=out("tiny"), init=out("joint"), lr=1e-3))]
    return [("form", run_joint, lambda: joint(out_dir=out(name), bi=name, batch_size=64))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=("encode", "prior", "staged", *FORMS))
    parser.add_argument("runs", type=Path, help="folder of all runs")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, help="of all steps together; default: the steps above")
    a = parser.parse_args()
    if a.recipe == "encode": return print(*map(len, stage_data(TrainVideo(clips=CLIPS, out_dir=str(a.runs / "world"), workers=a.workers))), "clips")
    if a.recipe == "prior":
        print(run_prior(TrainPrior(clips=3200, steps=1500, out_dir=str(a.runs / "prior"), workers=a.workers)))
        return (a.runs / "prior" / "done").touch()
    parts = recipe(a.recipe, a.runs)
    for part, run, make in parts:
        p = make()
        steps = measured(run, p, a.seconds * STEPS[part] / sum(STEPS[k] for k, *_ in parts)) if a.seconds else STEPS[part]
        print(part, steps, "steps", run(replace(p, steps=steps)), flush=True)


if __name__ == "__main__": main()
