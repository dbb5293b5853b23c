"""The proof of chapter 06a and the prior that ships, from two runs of chapter 06:

    papermill nbs/06_train_prior.ipynb _runs/tiny.ipynb -p out_dir _runs/prior-tiny
    papermill nbs/06_train_prior.ipynb _runs/plain.ipynb -p out_dir _runs/prior-plain -p data _runs/prior-tiny/pairs -p alike 0 -p others 0 -p by_moment False -p steps 1500
    python nbs/tables/06_proof.py _runs/prior-tiny _runs/prior-plain

Writes 06_proof.json beside this file, and the trained networks in half precision into javisdit/weights/tiny_prior.
"""
import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from javisdit.train_prior import Interval, holds

HERE = Path(__file__).resolve().parent


def rounded(x):
    "The same, with four digits."
    if isinstance(x, dict): return {k: rounded(v) for k, v in x.items()}
    if isinstance(x, list): return [rounded(v) for v in x]
    return round(x, 4) if isinstance(x, float) else x


def main(tiny: Path, plain: Path):
    out = {}
    for name, run in (("tiny", tiny), ("plain", plain)):
        table = json.loads((run / "proof.json").read_text())
        intervals = {k: {kind: Interval(*x) for kind, x in row.items() if x} for k, row in table.items()}
        out[name] = dict(settings=json.loads((run / "run.json").read_text())["train"], table=table, missing=holds(intervals), **json.loads((run / "probes.json").read_text()))
    (HERE / "06_proof.json").write_text(json.dumps(rounded(out), indent=1) + "\n")
    folder = HERE.parents[1] / "javisdit" / "weights" / "tiny_prior"
    folder.mkdir(exist_ok=True)
    save_file({k: x.half() for k, x in load_file(tiny / "prior_parts.safetensors").items()}, folder / "prior_parts.safetensors")
    print(json.dumps(out["tiny"]["missing"]) if out["tiny"]["missing"] else "all demands hold")


if __name__ == "__main__": main(*map(Path, sys.argv[1:]))
