"""Does the model that ships look up its prior where things happen? The maps and the numbers of chapter 06a.

Asks for the attention to prior tokens on clips of the test split, halfway to noise: with the prior of the clip's own caption, and of
another clip's. Writes 06_maps.json here and ../media/06a_space.png. About five minutes on one core.
"""
import argparse
import json
from pathlib import Path

import numpy as np
import torch

from javisdit.codecs import load_codecs
from javisdit.core import generator
from javisdit.dit import clip_facts
from javisdit.encoders import load_text_encoder
from javisdit.heldout import bootstrap
from javisdit.maps import plot_prior_maps, prior_maps
from javisdit.media import to_model
from javisdit.models import read_model
from javisdit.sampler import JavisDiTPipeline, evaluate, test_scenes
from javisdit.world import running_clip

HERE = Path(__file__).resolve().parent


def active(scene, times, columns: int) -> torch.Tensor:
    "Where something sounds: (t w) bool over latent frames and columns of the picture."
    out = torch.zeros(len(times), columns, dtype=torch.bool)
    for e in scene.events:
        for k, t in enumerate(times.tolist()):
            box = e.boxes[min(int(t * scene.clip.fps), len(e.boxes) - 1)]
            if e.onset <= t <= e.end and np.isfinite(box).all():
                out[k, int(box[0] * columns):max(int(box[0] * columns) + 1, int(np.ceil(box[2] * columns)))] = True
    return out


def looks(trained, scenes, codecs, encoder, level: int, shift: int = 0):
    "Maps of the clips, looking up the mean priors of the captions `shift` places on."
    text = encoder([s.caption for s in scenes])
    order = torch.arange(len(scenes)).roll(-shift)
    prior = trained.prior([scenes[i].caption for i in order], type(text)(text.states[order], text.mask[order]), sample=False)
    cond = trained.dit.conditions(text.states, text.mask, *prior, **clip_facts(trained.config.clip, *codecs))
    clean = codecs[0].encode(torch.stack([to_model(s.clip.video) for s in scenes])), codecs[1].encode(torch.stack([torch.from_numpy(s.clip.audio) for s in scenes]))
    noisy = [(x + torch.randn(x.shape, generator=generator(0, "maps", i))) / 2 for i, x in enumerate(clean)]
    return prior_maps(trained.dit, *noisy, torch.full((len(scenes),), 500.0), cond, level)


def contrast(maps, scenes, times) -> np.ndarray:
    "For each clip: how much more than elsewhere the prior token that is looked at most unevenly is looked at where something sounds."
    found = []
    for m, scene in zip(maps.video_space, scenes):                                     # (k t 1 w)
        m, where = m[:, :, 0], active(scene, times, m.shape[-1])
        if not where.any() or where.all(): continue
        inside, outside = m[:, where].mean(1), m[:, ~where].mean(1)
        found.append(float((inside / outside - 1).abs().max()))
    return np.array(found)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="tiny", help="`tiny`, or the folder of a trained model")
    args.add_argument("--clips", type=int, default=96)
    args = args.parse_args()
    trained = read_model(args.model)
    codecs, encoder, scenes = load_codecs(trained.config), load_text_encoder(trained.config), test_scenes(args.clips, trained.config)
    times = codecs[0].times(trained.config.clip.frames, trained.config.clip.fps)
    result = dict(clips=args.clips, contrast={})
    for level in range(trained.config.model.depth):
        own, other = (contrast(looks(trained, scenes, codecs, encoder, level, shift), scenes, times) for shift in (0, 1))
        result["contrast"][level] = dict(own=bootstrap(own), other=bootstrap(other), difference=bootstrap(own - other))
    pipe = JavisDiTPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    for how in ("sample", "mean", "none"):
        r = evaluate(pipe, args.clips, prior=how)["generated"]
        result[how] = dict(own=r.matched.heard_to_seen, shuffled=r.shuffled.heard_to_seen, ratio=r.ratio, low=r.low, high=r.high, f1=r.matched.f1, heard=r.heard, seen=r.seen)
    (HERE / "06_maps.json").write_text(json.dumps(result, indent=1) + "\n")
    run, level = running_clip(), max(result["contrast"], key=lambda k: result["contrast"][k]["own"][0])
    maps = looks(trained, [run, scenes[0]], codecs, encoder, level)
    plot_prior_maps(maps, run.clip).savefig(HERE.parent / "media" / "06a_space.png", dpi=80)
    print(result["contrast"], {k: result[k] for k in ("sample", "mean", "none")}, sep="\n")


if __name__ == "__main__": main()
