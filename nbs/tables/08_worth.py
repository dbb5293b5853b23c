"""What is each part of the shipped model worth? The table of chapter 08, on captions of combinations (kind, side, time) that training never saw.

Clips are generated for captions of a split and heard and seen by the detectors of chapter 00bb; a clip in which nothing is
found counts as a miss. Then one thing is left out at a time, and then something is given (chapter 08a). Writes 08_worth.csv (of another
split than `heldout` 08_worth_SPLIT.csv) beside this file, a row after each; rows that are there are kept. About two minutes a row on one
core.
"""
import argparse
import copy
import csv
from pathlib import Path

import numpy as np

from javisdit.conditional import cascade, condition
from javisdit.detect import hear_all, see_all, sync_report
from javisdit.dit import Apart
from javisdit.heldout import bootstrap
from javisdit.sampler import JavisDiTPipeline, test_scenes, through_codecs
from javisdit.truth import place_of
from javisdit.world import PLACES, SPLITS

HERE = Path(__file__).resolve().parent


def apart(pipe):
    "The pipeline without attention between the streams."
    pipe = copy.deepcopy(pipe)
    for block in [m for m in pipe.transformer.blocks.modules() if hasattr(m, "bi")]: block.bi = Apart()
    return pipe


def ways(pipe, scenes) -> dict:
    "Name -> function that makes the clips."
    texts, clips = [s.caption for s in scenes], [s.clip for s in scenes]
    given = lambda mode, source=clips: lambda: pipe(texts, given=condition(pipe, mode, source))
    first = lambda what: lambda: [x for i in range(0, len(texts), 16) for x in cascade(pipe, texts[i:i + 16], what, i)]
    return {"real clips, through the codecs": lambda: through_codecs(pipe, clips), "as shipped": lambda: pipe(texts),
            "without guidance": lambda: pipe(texts, guidance=1.0), "without the prior": lambda: pipe(texts, prior="none"), "prior: its mean": lambda: pipe(texts, prior="mean"),
            "without attention between the streams": lambda: apart(pipe)(texts), "video first, then its sound": first("video"), "sound first, then its video": first("audio"),
            **{mode: given(mode) for mode in ("video-to-audio", "audio-to-video", "image", "image+audio", "extend")},
            "interpolate": lambda: pipe(texts, given=condition(pipe, "interpolate", [(c, c) for c in clips]))}


def share(right: list) -> str:
    "Share of those that are right, with its interval, and how many were asked."
    if not right: return ""
    mean, low, high = bootstrap(np.array(right, float))
    return f"{mean:.2f} ({low:.2f} to {high:.2f}) of {len(right)}"


def names_side(scene) -> bool:
    "Does the caption say where its first event is?"
    said, side = scene.caption.lower().replace("in the middle of the clip", ""), scene.subjects[scene.events[0].subject].side
    return any(words in said for words in PLACES[side])


def one_after_the_other(events: list) -> list:
    "Kinds in their order, if each is over before the next begins, which captions then say; else nothing."
    kinds = list(dict.fromkeys(e.kind for e in events))
    spans = [[e.onset for e in events if e.kind == k] for k in kinds]
    return kinds if all(a[-1] < b[0] for a, b in zip(spans, spans[1:])) and len(kinds) > 1 else []


def row(name: str, scenes: list, clips: list) -> dict:
    "A line of the table."
    heard, seen, report, gap, kind, side, order = hear_all(clips), see_all(clips), sync_report(clips), [], [], [], []
    for scene, h, s in zip(scenes, heard, seen):
        h, events = sorted(h, key=lambda e: e.time), sorted(scene.events, key=lambda e: e.onset)
        if len(events) == 1:
            gap.append(1000 * min((abs(a.time - b.time) for a in h for b in s), default=np.inf))
            kind.append({e.kind for e in h} == {events[0].kind})
            if names_side(scene): side.append(any(abs(e.x - place_of(events[0], scene.clip.fps)) < 1 / 6 for e in s))
        if kinds := one_after_the_other(events): order.append(list(dict.fromkeys(e.kind for e in h)) == kinds)
    m = report.matched
    return dict(way=name, clips=len(clips), silent=report.silent, still=report.still, own_ms=round(1000 * m.heard_to_seen), shuffled_ms=round(1000 * report.shuffled.heard_to_seen),
                ratio=f"{report.ratio:.2f} ({report.low:.2f} to {report.high:.2f})", f1=round(m.f1, 2), one_event_ms=f"{np.median(gap):.0f} of {len(gap)}",
                one_event_missed=int(np.isinf(gap).sum()), right_kind=share(kind), right_side=share(side), right_order=share(order))


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="tiny", help="`tiny`, or the folder of a trained model")
    args.add_argument("--captions", type=int, default=200)
    args.add_argument("--split", default="heldout", choices=SPLITS[1:], help="of the world (chapter 00b)")
    args.add_argument("--ways", nargs="+", help="only these (default: all)")
    args.add_argument("--out", type=Path, help="table (default: beside this file)")
    args = args.parse_args()
    args.out = args.out or HERE / ("08_worth.csv" if args.split == "heldout" else f"08_worth_{args.split}.csv")
    pipe = JavisDiTPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    scenes = test_scenes(args.captions, pipe.settings, split=args.split)
    rows = list(csv.DictReader(args.out.open())) if args.out.exists() else []
    for name, make in ways(pipe, scenes).items():
        if args.ways and name not in args.ways or any(r["way"] == name for r in rows): continue
        rows.append(row(name, scenes, make()))
        print(rows[-1], flush=True)
        with args.out.open("w", newline="") as f:
            table = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
            table.writeheader(), table.writerows(rows)


if __name__ == "__main__": main()
