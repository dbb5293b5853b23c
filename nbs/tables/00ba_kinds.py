"""Do worlds of real sprites keep what the procedural world promises? Writes 00ba_kinds.csv and 00ba_worlds.csv.

Every clip is written as mp4 and read back before the detectors of chapter 00bb, which were fitted to the nine procedural kinds alone, look at it.
Needs a folder of sprites (Debian's package tuxpaint-stamps-default). About 10 minutes on one core; clips that are written already are kept."""
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from fastcore.script import call_parse
from scipy.optimize import linear_sum_assignment

from javisdit.codecs import load_codecs
from javisdit.core import tiny
from javisdit.detect import errors, hear_all, score_events, see_all, sync_of_times, times
from javisdit.media import Clip, from_model, read_clip, to_model
from javisdit.sprites import STAMPS, category, load_sprites
from javisdit.world import read_truth, write_world

HERE, FRAME = Path(__file__).parent, 1 / 24


def moments(events, within=0.1):
    "Times of events; those that lie closer together than `within` seconds are one, the surest of them."
    kept = []
    for e in sorted(events, key=lambda e: -e.score):
        if all(abs(e.time - t) > within for t in kept): kept.append(e.time)
    return sorted(kept)


def place(event, fps):
    "Middle of the box of an event just after its onset; NaN if it cannot be seen."
    x0, y0, x1, y1 = event.boxes[min(int(event.onset * fps) + 1, len(event.boxes) - 1)]
    return (x0 + x1) / 2, (y0 + y1) / 2


def in_place(seen, truth, fps, near=0.15):
    "F1 of what is seen at the right time (two frames) and at the right place (15 % of the picture)."
    hits = total = 0
    for found, t in zip(seen, truth):
        true = [e for e in t["events"] if e.on_screen]
        total += len(found) + len(true)
        if not found or not true: continue
        x, y = np.array([place(e, fps) for e in true]).T
        gap = np.hypot(np.subtract.outer([e.x for e in found], x), np.subtract.outer([e.y for e in found], y))
        good = (gap < near) & (np.abs(np.subtract.outer([e.time for e in found], [e.onset for e in true])) < 2 * FRAME + 1e-9)
        hits += good[linear_sum_assignment(good, maximize=True)].sum()                             # one to one
    return 2 * hits / total


def measure(seen, heard, truth):
    "What is seen and heard beside what is true: times, a list per clip; and the F1 of what is seen in its place."
    onsets = [[e.onset for e in t["events"] if e.on_screen] for t in truth]
    sounds = [sorted({e.onset for e in t["events"]}) for t in truth]           # sounds that begin at the same time are one
    return times(seen), onsets, [moments(h) for h in heard], sounds, in_place(seen, truth, tiny().clip.fps)


def row_of_world(name, seen, heard, truth):
    "One line of 00ba_worlds.csv."
    seen, onsets, heard, sounds, placed = measure(seen, heard, truth)
    s, h = score_events(seen, onsets, 2 * FRAME), score_events(heard, sounds, 0.05)
    own = [i for i, t in enumerate(truth) if all(e.on_screen for e in t["events"])]                # everything that sounds is in the picture
    sync = sync_of_times([heard[i] for i in own], [seen[i] for i in own])
    late = lambda found, true: f"{1e3 * np.median(np.abs(errors(found, true))):.1f}"
    return dict(world=name, clips=len(truth), seen_precision=f"{s.precision:.3f}", seen_recall=f"{s.recall:.3f}", f1_seen=f"{s.f1:.3f}", f1_seen_in_place=f"{placed:.3f}",
                heard_precision=f"{h.precision:.3f}", heard_recall=f"{h.recall:.3f}", f1_heard=f"{h.f1:.3f}", seen_error_ms=late(seen, onsets), heard_error_ms=late(heard, sounds),
                own_ms=f"{1e3 * sync.matched.heard_to_seen:.1f}", shuffled_ms=f"{1e3 * sync.shuffled.heard_to_seen:.1f}",
                own_within_100_ms=f"{sync.matched.heard_within:.3f}", shuffled_within_100_ms=f"{sync.shuffled.heard_within:.3f}",
                ratio=f"{sync.ratio:.3f}", ratio_low=f"{sync.low:.3f}", ratio_high=f"{sync.high:.3f}")


def rows_of_kinds(sprites, seen, heard, truth):
    "Lines of 00ba_kinds.csv: each kind in the clips that it has to itself."
    seen, onsets, heard, sounds, _ = measure(seen, heard, truth)
    alone = {k: [i for i, t in enumerate(truth) if [s.kind for s in t["subjects"]] == [k]] for k in sprites.cast.kinds}
    late = lambda found, true: f"{1e3 * np.median(np.abs(e)):.1f}" if len(e := errors(found, true)) else ""
    for kind, picked in alone.items():
        if not picked: continue
        a, b, c, d = ([x[i] for i in picked] for x in (seen, onsets, heard, sounds))
        yield dict(kind=kind, category=category(kind) or "other", sounds_ms=round(1e3 * sprites.cast.kinds[kind].longest), clips=len(picked), events=sum(map(len, d)),
                   f1_seen=f"{score_events(a, b, 2 * FRAME).f1:.3f}", f1_heard=f"{score_events(c, d, 0.05).f1:.3f}", seen_error_ms=late(a, b), heard_error_ms=late(c, d))


def through_codecs(clips):
    "What the codecs of the preset `tiny` (chapter 00c), fitted to the nine procedural kinds, leave of clips."
    video, audio = load_codecs(tiny())
    def lossy(c):
        x, wave = to_model(c.video)[None], torch.from_numpy(c.audio)[None]
        with torch.no_grad():
            return Clip(from_model(video.decode(video.encode(x), x.shape[2])[0]), audio.decode(audio.encode(wave), wave.shape[-1])[0].numpy(), c.fps, c.sample_rate)
    return [lossy(c) for c in clips]


def world(out, n, split, cast=None, size=32, codecs=False):
    "A world that is written and read back: what is seen, what is heard, what is true, a list per clip."
    rows = list(csv.DictReader(write_world(out, n, 0, split, 1, replace(tiny().clip, height=size, width=size), cast=cast).open()))
    seen, heard = [], []
    for i in range(0, n, 100):
        clips = [read_clip(out / r["relpath"], size=(32, 32) if codecs else None) for r in rows[i:i + 100]]
        if codecs: clips = through_codecs(clips)
        seen += see_all(clips); heard += hear_all(clips)
    return seen, heard, [read_truth(out / r["truth"]) for r in rows]


def write(name, rows):
    "A table beside this script."
    with (HERE / name).open("w", newline="") as f:
        table = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
        table.writeheader(); table.writerows(rows)


@call_parse
def main(
    sprites: Path = STAMPS,             # folder of pictures with sounds
    n: int = 1500,                      # clips for the table of kinds
    out: Path = Path("_runs/sprites"),  # folder for the worlds
):
    "Write 00ba_kinds.csv and 00ba_worlds.csv; run again to go on."
    torch.set_num_threads(1)
    real = load_sprites(sprites)
    seen, heard, truth = world(out / "test", n, "test", real.cast)
    write("00ba_kinds.csv", list(rows_of_kinds(real, seen, heard, truth)))
    rows = [row_of_world("nine drawn kinds", *world(out / "nine", 300, "test")), row_of_world("stamps", seen[:1000], heard[:1000], truth[:1000]),
            row_of_world("stamps, held-out combinations", *world(out / "heldout", 200, "heldout", real.cast)),
            row_of_world("stamps, 64 x 64", *world(out / "large", 150, "test", real.cast, 64)),
            row_of_world("stamps, through the codecs", *world(out / "test", 200, "test", real.cast, codecs=True))]
    write("00ba_worlds.csv", rows)
    for r in rows: print(r)
