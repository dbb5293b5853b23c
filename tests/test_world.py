"Guards of the world: fixed by hash, exact in its truth, apart in its splits, safe to interrupt."
import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from javisdit.core import paper, tiny
from javisdit.media import read_clip
from javisdit.world import (CAST, COLORS, COLUMNS, GAP, KINDS, LEAD, ROOM, SIDES, SPLITS, TAXONOMY, describe, draw_scene, held_out, label, read_truth, running_clip, third,
                            world_clip, write_world)

CLIP = tiny().clip


def digest(made):
    "First digits of the hashes of uint8 frames and int16 samples."
    samples = np.round(made.clip.audio.astype(np.float64) * 32768).astype("<i2")
    return tuple(hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()[:16] for x in (made.clip.video, samples))


HASHES = json.loads((Path(__file__).parent / "world_hashes.json").read_text())


@pytest.mark.parametrize("name", HASHES)
def test_clip_is_the_same_everywhere(name):
    split, seed, index, size = name.split("-")
    clip = replace(CLIP, height=int(size), width=int(size))
    made = running_clip(clip) if split == "running" else world_clip(int(index), int(seed), split, clip)
    assert [*digest(made), made.caption] == HASHES[name]


def test_clip_does_not_depend_on_others_or_on_size():
    a, b = world_clip(5), world_clip(5, clip=replace(CLIP, height=48, width=80))
    assert b.clip.video.shape == (48, 48, 80, 3)
    assert (a.caption, a.subjects, a.labels) == (b.caption, b.subjects, b.labels)
    assert np.array_equal(a.clip.audio, b.clip.audio)
    assert [(e.onset, e.end) for e in a.events] == [(e.onset, e.end) for e in b.events]


def test_paper_geometry():
    made = world_clip(0, clip=replace(paper().clip, height=60, width=106))
    assert made.clip.video.shape == (102, 60, 106, 3) and made.clip.audio.shape == (68000,)


@pytest.fixture(scope="module")
def scenes():
    return {s: [draw_scene(i, 0, s) for i in range(500 if s == "heldout" else 1500)] for s in SPLITS}


@pytest.fixture(scope="module")
def clips():
    return [world_clip(i) for i in range(60)] + [world_clip(i, 0, "heldout") for i in range(10)]


def test_truth_is_exact_in_sound(clips):
    for c in clips:
        assert c.clip.audio.dtype == c.stems.dtype == np.float32 and c.clip.audio.shape == (CLIP.samples,)
        assert np.array_equal(c.stems.sum(0), c.clip.audio) and np.abs(c.clip.audio).max() < 0.9
        for i in range(len(c.subjects)):
            live, t = np.zeros(CLIP.samples, bool), np.arange(CLIP.samples) / CLIP.sample_rate
            for e in (e for e in c.events if e.subject == i):
                live |= (t >= e.onset) & (t < e.end)
                first = c.stems[i, int(e.onset * CLIP.sample_rate):][:int(0.03 * CLIP.sample_rate)]
                assert np.abs(first).max() > 0.08, e.kind                # loud within 30 ms
            assert not c.stems[i][~live].any()


def test_truth_is_exact_in_picture(clips):
    "Nothing but a falling ball moves outside events; every event on screen changes its box within a frame."
    for c in clips:
        video = c.clip.video.astype(float)
        change = np.abs(np.diff(video, axis=0)).max((1, 2, 3))           # between frame k and k + 1
        quiet = np.ones(CLIP.frames - 1, bool)
        for e in c.events:
            if not e.on_screen: continue
            early = 0.31 if e.kind == "ball" else 0
            quiet[max(0, int((e.onset - early) * CLIP.fps) - 1):int(e.end * CLIP.fps) + 2] = False
            k = int(e.onset * CLIP.fps)
            x0, y0, x1, y1 = np.round(e.boxes[k + 1] * 32).astype(int)
            assert np.abs(video[k + 1] - video[k - 1])[y0:y1, x0:x1].mean() > 4, (e.kind, c.caption)
        assert not change[quiet].any(), c.caption


def test_boxes(clips):
    for c in clips:
        for e in c.events:
            assert e.boxes.shape == (CLIP.frames, 4)
            if not e.on_screen: assert np.isnan(e.boxes).all(); continue
            x0, y0, x1, y1 = e.boxes.T
            assert (0 <= x0).all() and (x0 < x1).all() and (x1 <= 1).all() and (0 <= y0).all() and (y0 < y1).all() and (y1 <= 1).all()
            s, centre = c.subjects[e.subject], (x0 + x1) / 2
            assert np.abs(np.median(centre) - s.x) < 0.13
            assert s.side == SIDES[min(int(s.x * 3), 2)]


def test_ball_touches_the_floor_at_its_events():
    made = running_clip()
    bottom = made.events[0].boxes[:, 3]
    hits = [int(e.onset * CLIP.fps) for e in made.events]
    assert all(bottom[h] == bottom.max() for h in hits) and bottom[0] < bottom.max() - 0.2


def test_events(scenes):
    for s in sum(scenes.values(), []):
        onsets = [e.onset for e in s.events]
        assert onsets == sorted(onsets) and 1 <= len(onsets) <= 3 and 1 <= len(s.subjects) <= 3
        assert all(d == 0 or d >= GAP - 2e-4 for d in np.diff(onsets))
        assert all(LEAD - 1e-3 <= e.onset < e.end <= s.seconds and e.end - e.onset > 0.25 for e in s.events)
        assert all(x.on_screen == (x.side != "off") for x in s.subjects) and all(e.on_screen == s.subjects[e.subject].on_screen for e in s.events)
        assert len({x.kind for x in s.subjects}) == len(s.subjects)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_event_times_are_uniform(scenes, split):
    for n in (0, 2):                                                     # all clips; clips with several events
        onsets = np.array([e.onset for s in scenes[split] if len(s.events) >= n for e in s.events])
        counts, _ = np.histogram(onsets, 8, (LEAD, 2 - ROOM))
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 40, counts   # chi-square, 7 degrees of freedom (simultaneous events count twice)


def test_splits_never_overlap(scenes):
    seen = {}
    for split, items in scenes.items():
        for s in items:
            key = repr((s.subjects, [(e.subject, e.onset, e.end) for e in s.events]))
            assert key not in seen, (split, seen[key])
            seen[key] = split


def test_heldout_combinations(scenes):
    cells = {k: {(s.subjects[e.subject].kind, s.subjects[e.subject].side, third(e.onset, s.seconds)) for s in v for e in s.events if e.on_screen} for k, v in scenes.items()}
    held = {(k, s, t) for k in KINDS for s in SIDES for t in range(3) if held_out(k, s, t)}
    assert len(held) == len(KINDS) and len({c[1:] for c in held}) == 9
    assert cells["heldout"] == held
    assert not (cells["train"] | cells["valid"] | cells["test"]) & held
    assert cells["train"] == {(k, s, t) for k in KINDS for s in SIDES for t in range(3)} - held


def test_every_kind_colour_and_category_occurs(scenes):
    train = scenes["train"]
    assert {x.kind for s in train for x in s.subjects} == set(KINDS) == set(CAST)
    assert {x.color for s in train for x in s.subjects} == set(COLORS)
    labels = [label(s) for s in train]
    assert {x["cat0_ind"] for x in labels} == set(range(5)) and {x["cat1_ind"] for x in labels} == {1}
    assert {c for x in labels for c in x["cat2_ind"].split(",")} == set("0123")
    assert {x["cat3_ind"] for x in labels} == {x["cat4_ind"] for x in labels} == {0, 1, 2}
    assert 0.5 < np.mean([x["cat4_ind"] == 0 for x in labels]) < 0.7 and 0.08 < np.mean([x["cat4_ind"] == 2 for x in labels]) < 0.2
    assert sum(map(len, TAXONOMY.values())) == 19


def test_labels_mean_what_they_say(scenes):
    for s in scenes["train"]:
        x, onsets = label(s), [e.onset for e in s.events]
        assert x["cat3_ind"] == (0 if len(onsets) == 1 else 2 if len(set(onsets)) < len(onsets) else 1)
        assert x["cat4_ind"] == (2 if any(not p.on_screen for p in s.subjects) else 0 if len(s.subjects) == 1 else 1)


def test_captions(scenes):
    text = [describe(s) for s in scenes["train"]]
    assert len(set(text)) > 0.8 * len(text)
    for s, t in zip(scenes["train"], text):
        assert all(f"{x.color} {x.kind}" in t.lower() for x in s.subjects), t
        assert "  " not in t and "{" not in t and " ," not in t and t == t.strip(), t
        assert len(t.split()) < 48, t
        if len(s.subjects) == 1:                                         # never a wrong side
            assert not any(f" {w} side" in t or f"the {w}" in t for w in {"left", "right"} - {s.subjects[0].side}), t


def test_bare_prompts_are_in_distribution(scenes):
    "Prompts like `a red ball bounces twice on the left` are captions that the world itself gives."
    bare = [t for t in map(describe, scenes["train"]) if re.fullmatch(r"a \w+ \w+ \w+ twice on the (left|right)", t)]
    assert len(bare) >= 5, bare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    write_world(out, 12, seed=1, split="valid", workers=1, progress=False)
    return out


def test_files(folder):
    rows = list(csv.DictReader(open(folder / "manifest.csv")))
    assert len(rows) == 12 and tuple(rows[0]) == COLUMNS
    for i in (0, 7):
        made, row, truth = world_clip(i, 1, "valid"), rows[i], read_truth(folder / rows[i]["truth"])
        assert row["text"] == made.caption == truth["caption"] and truth["subjects"][0].kind == made.subjects[0].kind
        assert np.allclose(truth["events"][0].boxes, made.events[0].boxes, atol=1e-4, equal_nan=True)
        back = read_clip(row["path"], size=made.clip.video.shape[1:3])
        assert (int(row["height"]), int(row["width"])) == read_clip(row["path"]).video.shape[1:3]
        assert np.abs(back.video.astype(float) - made.clip.video).mean() < 3
        assert all(row[f"cat{k}_ind"] == str(made.labels[f"cat{k}_ind"]) for k in range(5))


def test_writing_resumes(folder):
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.mp4")}
    (folder / "000003.mp4").write_bytes((folder / "000003.mp4").read_bytes()[:500])      # cut short
    (folder / "truth" / "000005.json").unlink()
    write_world(folder, 14, seed=1, split="valid", workers=1, progress=False)
    after = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.mp4")}
    assert {n for n in after if after[n] != before.get(n)} == {"000003.mp4", "000005.mp4", "000012.mp4", "000013.mp4"}
    assert len(list(csv.DictReader(open(folder / "manifest.csv")))) == 14 and not list(folder.rglob("*.part"))


def test_files_do_not_depend_on_workers(folder, tmp_path):
    write_world(tmp_path, 100, seed=1, split="valid", workers=2, progress=False)
    for i in (0, 7): assert (tmp_path / f"{i:06d}.mp4").read_bytes() == (folder / f"{i:06d}.mp4").read_bytes()


def test_another_world_is_not_mixed_in(folder):
    with pytest.raises(ValueError, match="another world.*seed"): write_world(folder, 3, seed=2, split="valid")


@pytest.mark.parametrize("bad, message", [(dict(n=0), "at least one"), (dict(n=5, seed=-1), "seed is -1"), (dict(n=5, split="dev"), "choose one of train"), (dict(n=5, workers=0), "at least 1")])
def test_nonsense_is_refused(bad, message, tmp_path):
    with pytest.raises(ValueError, match=message): write_world(tmp_path, **bad)


def test_too_short_a_clip():
    with pytest.raises(ValueError, match="longer clip"): world_clip(0, clip=replace(CLIP, frames=12))


def test_command(tmp_path):
    script, out = tmp_path / "javisdit_world", tmp_path / "out"          # what pip installs for a console script
    script.write_text("import sys\nfrom javisdit.sprites import javisdit_world\nif __name__ == '__main__': sys.exit(javisdit_world())\n")
    command = lambda *args: subprocess.run([sys.executable, str(script), *args], capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS="1"))
    r = command("--out", str(out), "--n", "2", "--split", "heldout")
    assert r.returncode == 0 and r.stdout.strip() == str(out / "manifest.csv"), r.stderr
    assert "folder for clips" in command("--help").stdout
    r = command("--out", str(out), "--n", "0")
    assert r.returncode and "at least one clip" in r.stderr and "Traceback" not in r.stderr
