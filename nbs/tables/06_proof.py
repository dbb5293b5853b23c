"""The proof of chapter 06a and the prior that ships, from two runs of chapter 06:

    papermill nbs/06_train_prior.ipynb _runs/tiny.ipynb -p out_dir _runs/prior-tiny
    papermill nbs/06_train_prior.ipynb _runs/plain.ipynb -p out_dir _runs/prior-plain -p data _runs/prior-tiny/pairs -p alike 0 -p contrast 0 -p by_moment False -p steps 1500
    python nbs/tables/06_proof.py _runs/prior-tiny _runs/prior-plain

The ruler is laid on clips of the test split, which played no part in any choice. Writes 06_proof.json beside this file, and the
trained networks in half precision into javisdit/weights/tiny_prior.
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from javisdit.core import tiny as preset
from javisdit.heldout import bootstrap
from javisdit.prior import PriorConfig
from javisdit.train_prior import encode_pairs, holds, probe, ruler, score, trained_prior
from javisdit.world import SIDES, draw_scene

HERE = Path(__file__).resolve().parent


def rounded(x):
    "The same, with four digits."
    if isinstance(x, dict): return {k: rounded(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)): return [rounded(v) for v in x]
    return round(float(x), 4) if isinstance(x, float) else x


@torch.no_grad()
def places(parts, pairs, split: str) -> tuple:
    "Spatial embeddings `(n d)` of the clips with one subject, and on which side it is."
    scenes = [draw_scene(i, 0, split, preset().clip.seconds) for i in pairs.ids]
    alone = [k for k, s in enumerate(scenes) if len(s.subjects) == 1 and s.subjects[0].on_screen]
    seen = [parts.va_encoder(pairs.video[k:k + 1, 0].float(), pairs.audio[k:k + 1, 0].float(), *pairs.size).spatial for k in alone]
    return torch.cat(seen).flatten(1).numpy(), np.array([float(SIDES.index(scenes[k].subjects[0].side)) for k in alone])


def proof(run: Path, train, fresh) -> dict:
    "What a run was set to, what the ruler says of it, whether its embeddings show the side, and what its notebook asked the probes."
    about = json.loads((run / "run.json").read_text())
    sizes = PriorConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in about["sizes"].items()})
    parts = trained_prior(run, sizes)
    table, side = ruler(score(parts, fresh), fresh), bootstrap(probe(*places(parts, train, "train"), *places(parts, fresh, "test")))
    return dict(settings=about["train"], prior=about["prior"], clips=len(fresh), table=table, missing=holds(table), embedding_side=side, **json.loads((run / "probes.json").read_text()))


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("tiny", type=Path), args.add_argument("plain", type=Path)
    args.add_argument("--data", type=Path, help="folder of encoded clips; default: the one of the first run")
    args = args.parse_args()
    train, fresh = (encode_pairs(args.data or args.tiny / "pairs", n, preset(), split) for n, split in ((1600, "train"), (200, "test")))
    out = rounded(dict(tiny=proof(args.tiny, train, fresh), plain=proof(args.plain, train, fresh)))
    (HERE / "06_proof.json").write_text(json.dumps(out, indent=1) + "\n")
    folder = HERE.parents[1] / "javisdit" / "weights" / "tiny_prior"
    folder.mkdir(exist_ok=True)
    save_file({k: x.half() for k, x in load_file(args.tiny / "prior_parts.safetensors").items()}, folder / "prior_parts.safetensors")
    print("\n".join(out["tiny"]["missing"]) or "all demands hold")


if __name__ == "__main__": main()
