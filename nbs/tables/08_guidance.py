"""How strong should the prompt be? The table of chapter 08, from captions of the valid split.

Writes 08_guidance.csv beside this file, a row for each strength of guidance. About four minutes on one core.
"""
import argparse
import csv
from pathlib import Path

from javisdit.sampler import JavisDiTPipeline, evaluate

HERE = Path(__file__).resolve().parent


def row(guidance: float, report) -> dict:
    "A line of the table: counts of clips and events, times in ms, shares in 0..1."
    m, s = report.matched, report.shuffled
    return dict(guidance=guidance, clips=report.clips, heard=report.heard, seen=report.seen, silent=report.silent, still=report.still, own_ms=round(1000 * m.heard_to_seen),
                shuffled_ms=round(1000 * s.heard_to_seen), ratio=round(report.ratio, 2), low=round(report.low, 2), high=round(report.high, 2), f1=round(m.f1, 2), f1_shuffled=round(s.f1, 2))


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="tiny", help="`tiny`, or the folder of a trained model")
    args.add_argument("--captions", type=int, default=128)
    args.add_argument("--strengths", type=float, nargs="+", default=[1, 1.5, 2, 2.5, 3])
    args = args.parse_args()
    pipe, rows = JavisDiTPipeline.from_pretrained(args.model), []
    for g in args.strengths:
        rows.append(row(g, evaluate(pipe, args.captions, split="valid", guidance=g)["generated"]))
        print(rows[-1], flush=True)
    with open(HERE / "08_guidance.csv", "w", newline="") as f:
        table = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
        table.writeheader(), table.writerows(rows)


if __name__ == "__main__": main()
