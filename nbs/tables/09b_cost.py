"""What `javisdit_score` costs: processor time and peak memory for more and more clips, each row in a process of its own. Writes 09b_cost.csv.

Rows `new`: so many different clips of the world, none scored before. Rows `again`: so many files that are links to eight of the fifty clips, scored before, so that what
remains is what grows with the number of clips: their records, the means, the report. All metrics that need no download, with the offline ruler. A few minutes on one core.
"""
import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from javisdit.javisbench import score_folder
from javisdit.world import write_world

TABLE = Path(__file__).with_suffix(".csv")
ROWS = [("new", 50), ("new", 150), ("again", 1000), ("again", 10_000)]


def folder_of(task, n, work):
    "So many clips: of a world, or links to the first eight of fifty."
    folder = work / f"{task}_{n}"
    if task == "new": write_world(folder, n, split="test", workers=1, progress=False)
    else:
        few = folder_of("new", 50, work)
        folder.mkdir(exist_ok=True)
        for i in range(n):
            if not (link := folder / f"{i:05d}.mp4").exists(): os.link(few / f"{i % 8:06d}.mp4", link)
    return folder


def measure(task, n, work):
    "Processor time and peak memory of one report."
    folder, real = folder_of(task, n, work), folder_of("new", 8, work)
    out = work / f"scores_{50 if task == 'again' else n}"
    torch.set_num_threads(1)
    used, start, before = os.times(), time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = score_folder(folder, out, reference=real, embedder="ruler")
    now, peak = os.times(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return dict(task=task, clips=report["clips"], metrics=len(report["metrics"]), processor_s=round(now.user + now.system - used.user - used.system, 1), wall_s=round(time.perf_counter() - start, 1),
                before_mb=round(before / 1e3), peak_mb=round(peak / 1e3), report_kb=round((out / "report.html").stat().st_size / 1e3))


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--work", type=Path, default=Path("_runs/09b_cost"), help="folder for clips and reports")
    args.add_argument("--row", help="one row, as JSON: [task, clips]")
    args = args.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.row: return print(json.dumps(measure(*json.loads(args.row), args.work)))
    rows = list(csv.DictReader(TABLE.open())) if TABLE.exists() else []
    for task, n in ROWS:
        if any((r["task"], r["clips"]) == (task, str(n)) for r in rows): continue
        done = subprocess.run([sys.executable, __file__, "--work", args.work, "--row", json.dumps([task, n])], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
        with TABLE.open("w", newline="") as f:
            table = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
            table.writeheader(); table.writerows(rows)


if __name__ == "__main__": main()
