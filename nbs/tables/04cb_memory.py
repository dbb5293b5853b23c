"""Which buckets of the paper's training fit on an 80 GB GPU? Writes 04cb_memory.csv beside this file: GB on each GPU by the plan of chapter 04cb.

Nothing is computed but shapes; about ten minutes on one core. Rows that are there are kept."""
import csv
from dataclasses import replace
from pathlib import Path

from fastcore.script import call_parse

from javisdit.core import paper
from javisdit.memory import memory_plan

SIZES = {"144p": (144, 256), "256": (256, 256), "240p": (240, 426), "360p": (360, 640), "512": (512, 512), "480p": (480, 854), "720p": (720, 1280), "1024": (1024, 1024)}
SMALL = {51: 10, 102: 4, 204: 2, 408: 1}
STAGES = {1: {"144p": {51: 256, 102: 128, 204: 64, 408: 32}},    # frames -> clips on a GPU
          3: {"144p": {51: 16, 102: 12, 204: 6, 408: 3}, "256": SMALL, "240p": SMALL, "360p": {51: 4, 102: 2, 204: 1}, "512": {51: 4, 102: 2, 204: 1},
              "480p": {51: 2, 102: 1}, "720p": {51: 1}, "1024": {51: 1}}}
WAYS = {"ddp": dict(checkpointing=False), "ddp_checkpointing": {}, "fsdp8_checkpointing": dict(engine="fsdp", nproc=8), "fsdp32_checkpointing": dict(engine="fsdp", nproc=32)}
FIELDS = ["stage", "bucket", "frames", "clips", *WAYS]


@call_parse
def main(out: Path = Path(__file__).with_suffix(".csv")):
    "Make the table."
    rows = list(csv.DictReader(out.open())) if out.exists() else []
    done = {(r["stage"], r["bucket"], r["frames"]) for r in rows}
    for stage, buckets in STAGES.items():
        for bucket, lengths in buckets.items():
            for frames, clips in lengths.items():
                if (str(stage), bucket, str(frames)) in done: continue
                height, width = SIZES[bucket]
                config = replace(paper(), clip=replace(paper().clip, height=height, width=width, frames=frames))
                plans = {way: f"{memory_plan(config, stage, clips, **options).total / 1e9:.2f}" for way, options in WAYS.items()}
                rows.append(dict(stage=stage, bucket=bucket, frames=frames, clips=clips, **plans))
                print(rows[-1], flush=True)
                with out.open("w", newline="") as f:
                    writer = csv.DictWriter(f, FIELDS, lineterminator="\n")
                    writer.writeheader(); writer.writerows(rows)
