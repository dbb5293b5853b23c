"""The tables of chapter 09c: is a metric of synchrony higher for clips in step than for what becomes of them?

Writes 09c_scores.csv, 09c_shift.csv, 09c_sweep.csv and 09c_truth.csv beside this file; goes on where it stopped (rows are kept in _runs/verify).
Worlds: `nine`, all kinds of the split `test`; `unseen`, the three kinds that the ruler's moments have never met; `stamps`, sprites from a folder (--sprites, Debian's
package tuxpaint-stamps-default), which nothing in the ruler has ever met; `video`, real films (--films). About six minutes on one free core.
"""
import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from javisdit.augment import AddSource, AddTrajectory, MaskCells
from javisdit.core import rng, tiny
from javisdit.javisscore import Windows, cosine, cut
from javisdit.media import Clip, read_clip
from javisdit.pools import Pools
from javisdit.ruler import RATE, WHEN_KINDS, load_ruler
from javisdit.sprites import load_sprites
from javisdit.train_prior import ALIKE, Staged, joined
from javisdit.verify import GROUPS, ClipSounds, Item, Judges, judged_rows, measured, mixed, partners, read_rows, solo_of, world_items, write_rows
from javisdit.world import KINDS, NINE, SIDES, Event, Scene, Subject, play, render

HERE, CLIP = Path(__file__).resolve().parent, replace(tiny().clip, frames=102)   # 4.25 s, as the paper's


def part_of(cast, names):
    "A cast of some of its kinds."
    return replace(cast, kinds={k: cast.kinds[k] for k in names})


def seen_in(scene): return all(s.on_screen for s in scene.subjects)


# ---- controls: the same edit on both sides ----

def seen_too(drawn, s):
    "Pictures in which the added sound has its source, at a side that is free."
    who = next(x for x in s.pools.sounds.who if f"{x.color} {x.kind}" == drawn.name)
    free = [x for x in SIDES if x not in {o.side for o in s.scene.subjects}] or SIDES
    side, onset = free[rng("guest", *s.scene.key, drawn.start).integers(len(free))], drawn.start / CLIP.sample_rate
    guest = Subject(who.kind, who.color, 0.16, side, dict(left=0.2, middle=0.5, right=0.8)[side])
    return render(joined(s.scene, guest, [Event(0, who.kind, onset, onset + len(drawn.sound) / CLIP.sample_rate)]), CLIP)


def heard_too(drawn, s):
    "Sound with what the pasted subject was heard to do."
    first, n = drawn.used[0], len(drawn.used)
    guest, events = solo_of(s.scene.cast, drawn.index, 0, CLIP)
    own = play(Scene([guest], events, CLIP.seconds, ("guest", drawn.index), s.scene.cast), CLIP)[0][round(first * s.per_picture):round((first + n) * s.per_picture)]
    wave, start = s.made.clip.audio.copy(), round(drawn.start * s.per_picture)
    wave[start:start + len(own)] += own[:len(wave) - start]
    return wave.clip(-1, 1)


@dataclass
class Made:
    "What chapter 06's controls ask of a made clip."
    clip: Clip


def alike(partner, item):
    "The clip of a partner with its other side changed in the same way; None where there is no such thing."
    if partner.group not in GROUPS[:4] or item.scene is None: return None
    s = Staged(0, item.scene, Made(item.clip), CLIP, item.pools)
    if isinstance(partner.drawn, AddSource): return replace(partner.clip, video=seen_too(partner.drawn, s))
    if isinstance(partner.drawn, AddTrajectory): return replace(partner.clip, audio=heard_too(partner.drawn, s))
    other = ALIKE[type(partner.drawn)](partner.drawn, s)[0]
    if isinstance(partner.drawn, MaskCells): return replace(item.clip, video=other)
    return replace(partner.clip, **{"audio" if partner.group.startswith("video") else "video": other})


# ---- the four tables ----

def rounded(row): return {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()}


def kept(path, make):
    "Rows of `make(done)`, written item by item; items that are there already are not made again."
    rows = read_rows(path) if path.exists() else []
    for more in make({r["item"] for r in rows}):
        rows += more
        write_rows(path, rows)
    return rows


def scores(items, judges):
    "Rows of an item, its partners and its controls."
    def make(done):
        for rows in judged_rows(items, judges, 0, frozenset(done)):
            i, item = rows[0]["index"], items[rows[0]["index"]]
            for p in partners(items, i) if rows[0]["group"] != "skipped" else []:
                if (both := alike(p, item)) is not None:
                    rows.append(dict(item=item.name, index=i, group=f"alike_{p.group}", way=p.way, **judges.score(both)))
            judges.forget()
            yield [rounded(r) for r in rows]
    return make


def shifted(items, judges, names, steps=5, step=0.1):
    "Scores of clips whose sound is moved, round the end."
    def make(done):
        for item in (x for x in items if x.name not in done):
            moved = {by: replace(item.clip, audio=np.roll(item.clip.audio, round(by * step * item.clip.sample_rate))) for by in range(-steps, steps + 1)}
            yield [dict(item=item.name, shift=f"{by * step:.1f}", **rounded(judges.score(clip, names))) for by, clip in moved.items()]
            judges.forget()
    return make


def sweep(world, items, ruler):
    "AUROC and pair accuracy of JavisScore on the paper's mix for many windows, overlaps and shares."
    rules = [(0.5, 0.25), (1.0, 0.5), (1.0, 0.75), (2.0, 1.0), (2.0, 1.5), (2.0, 1.75), (3.0, 2.0), (4.0, 3.5)]
    shares, own, others, source = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0), {}, {}, []
    def curve(frames, wave, rule):
        found = cut(len(frames), len(wave), CLIP.fps, Windows(*rule))
        cosines = [cosine(frames[slice(*s.frames)], a).sort().values for s, a in zip(found, ruler.sounds([wave[slice(*s.samples)] for s in found], RATE))]
        return [float(np.mean([c[:max(1, int(share * len(c)))].mean() for c in cosines])) for share in shares]
    for i, item in enumerate(items):
        frames = ruler.frames(item.clip.video, CLIP.fps)
        chosen = [p for p in partners(items, i) if p.group in mixed(i)]
        for rule in rules:
            own.setdefault(rule, []).append(curve(frames, item.clip.audio, rule))
            for p in chosen: others.setdefault(rule, []).append(curve(ruler.frames(p.clip.video, CLIP.fps) if p.group.startswith("video") else frames, p.clip.audio, rule))
        source += [i] * len(chosen)
    for rule in rules:
        for k, share in enumerate(shares):
            m = measured(np.array(own[rule])[:, k], np.array(others[rule])[:, k], source)
            yield dict(world=world, window=rule[0], overlap=rule[1], share=share, **rounded(m._asdict()))


# ---- what is truly worse ----

def played(scene, key): return play(replace(scene, key=(*scene.key, key)), CLIP).sum(0)

def all_late(scene, r):
    "All sounds late or early by the same up to 1 s; error in seconds."
    by = r.uniform(-1, 1)
    return np.roll(play(scene, CLIP).sum(0), round(by * RATE)), abs(by)

def each_late(scene, r):
    "Each sound early or late by its own amount; mean error in seconds."
    onsets = [float(np.clip(e.onset + r.uniform(-1, 1) * w, 0, CLIP.seconds - 0.3)) for w in [r.uniform(0, 1)] for e in scene.events]
    events = [replace(e, onset=t, end=min(t + e.end - e.onset, CLIP.seconds)) for e, t in zip(scene.events, onsets)]
    return played(replace(scene, events=events), "late"), float(np.mean([abs(t - e.onset) for e, t in zip(scene.events, onsets)]))

def other_kind(scene, r):
    "Some sounds are those of other kinds, at the right times; share of them."
    kinds, wrong = list(scene.cast.kinds), r.random(len(scene.events)) < r.choice([0, 0.5, 1])
    subjects, events = list(scene.subjects), []
    for e, w in zip(scene.events, wrong):
        if w:
            k = r.choice([k for k in kinds if k != e.kind])
            subjects.append(replace(scene.subjects[e.subject], kind=k, color=str(r.choice(scene.cast.kinds[k].colors))))
            e = replace(e, subject=len(subjects) - 1, kind=k, end=min(e.onset + min(max(0.4, e.end - e.onset), scene.cast.kinds[k].longest), CLIP.seconds))
        events.append(e)
    return played(replace(scene, subjects=subjects, events=events), "kind"), float(wrong.mean())

def other_order(scene, r):
    "Two subjects have each other's sounds, or their own: 1 or 0; None for a single subject."
    who = sorted({e.subject for e in scene.events})
    if len(who) < 2: return None
    swap = bool(r.random() < 0.5)
    to = {who[0]: who[1], who[1]: who[0]} if swap else {}
    events = [replace(e, subject=to.get(e.subject, e.subject), kind=scene.subjects[to.get(e.subject, e.subject)].kind) for e in scene.events]
    return played(replace(scene, events=events), "order"), float(swap)

def unheard(scene, r):
    "Some events are not heard; share of them."
    gone = r.random(len(scene.events)) < r.choice([0, 0.5, 1])
    return played(replace(scene, events=[e for e, g in zip(scene.events, gone) if not g]), "gone"), float(gone.mean())

TRUTHS = dict(shift=all_late, onsets=each_late, kind=other_kind, order=other_order, unheard=unheard)

def truths(items, judges):
    "Scores of clips whose sound is truly worse by a known amount."
    def make(done):
        for item in (x for x in items if x.name not in done):
            rows = []
            for name, worse in TRUTHS.items():
                if (made := worse(item.scene, rng("truth", item.name, name))) is None: continue
                rows.append(dict(item=item.name, truth=name, error=f"{made[1]:.4f}", **rounded(judges.score(replace(item.clip, audio=made[0])))))
            judges.forget()
            if rows: yield rows
    return make


def films(paths, seconds=1.0):
    "Pieces of real films that do not overlap."
    items = []
    for path in paths:
        clip, k = read_clip(path, size=(64, 112)), 0
        while (k + 1) * seconds <= clip.seconds:
            piece, k = clip.crop(k * seconds, seconds), k + 1
            if np.ptp(piece.audio): items.append(Item(f"{Path(path).stem}-{k - 1}", piece))
    return [replace(x, pools=Pools(sounds=ClipSounds(items))) for x in items]


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--n", type=int, default=64, help="clips of each world")
    args.add_argument("--single", type=int, default=200, help="clips with a single event, to be shifted")
    args.add_argument("--sprites", default="", help="folder of sprites")
    args.add_argument("--films", nargs="*", default=[], help="real films with sound")
    args.add_argument("--out", type=Path, default=Path("_runs/verify"))
    args = args.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    ruler, unseen = load_ruler(), part_of(NINE, [k for k in KINDS if k not in WHEN_KINDS])
    judges = Judges(ruler, ruler)
    one = lambda s: len(s.events) == 1 and seen_in(s)
    def worlds():
        yield "unseen", lambda n, **kw: world_items(n, CLIP, unseen, **kw)
        if args.sprites:
            cast = load_sprites(args.sprites).cast
            yield "stamps", lambda n, **kw: world_items(n, CLIP, cast, **kw)
        yield "nine", lambda n, **kw: world_items(n, CLIP, NINE, **kw)
    tables = dict(scores=[], shift=[], truth=[])
    for world, make in worlds():
        parts = dict(scores=("scores", lambda: scores(make(args.n), judges)))
        if world == "unseen":
            parts["moments"] = "shift", lambda: shifted(make(args.single, wanted=one), judges, ("moments", "av_align"))
            parts["javis"] = "shift", lambda: shifted(make(args.single // 4, wanted=one), judges, ("javisscore", "avhscore"))
        if world == "nine": parts["truth"] = "truth", lambda: truths(make(args.n, wanted=seen_in), judges)
        for part, (table, rows) in parts.items():
            tables[table] += [dict(world=world, **r) for r in kept(args.out / f"{part}_{world}.csv", rows())]
            write_rows(HERE / f"09c_{table}.csv", tables[table])
            print(world, part, len(tables[table]), flush=True)
    swept = [r for world, make in worlds() if world != "unseen" for r in sweep(world, make(args.n * 5 // 8), ruler)]
    if args.films:
        items = films(args.films)
        tables["scores"] += [dict(world="film", **r) for r in kept(args.out / "scores_film.csv", scores(items, judges))]
        tables["shift"] += [dict(world="film", **r) for r in kept(args.out / "shift_film.csv", shifted(items, judges, Judges.names))]
        for table in ("scores", "shift"): write_rows(HERE / f"09c_{table}.csv", tables[table])
    write_rows(HERE / "09c_sweep.csv", swept)


if __name__ == "__main__": main()
