"Guards of found sprites: their onsets, their truth, bad folders, and the ruler's bound on real stamps where there are any."
import csv
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from notebooks import ROOT
from PIL import Image

from javisdit.core import MediaError, tiny
from javisdit.media import read_clip
from javisdit.sprites import (FRESH, LONG, RATE, SHORT, STAMPS, find_licences, find_pairs, licence_names, listen, load_sprites, noun, read_picture, read_recording, shares,
                              shrunk, utterance, write_example, write_sprites)
from javisdit.world import COLUMNS, SPLITS, describe, draw_scene, held_out, label, read_truth, third, world_clip, write_world

CLIP = tiny().clip
REAL = Path(os.environ.get("JAVISDIT_SPRITES", STAMPS))
needs_stamps = pytest.mark.skipif(not REAL.is_dir(), reason="no stamps here: install tuxpaint-stamps-default, or name a folder in JAVISDIT_SPRITES")


def table_script():
    "The script beside the tables, as a module."
    spec = importlib.util.spec_from_file_location("kinds_table", ROOT / "nbs" / "tables" / "00ba_kinds.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


@pytest.fixture
def folder(tmp_path): return write_example(tmp_path / "toys")


@pytest.fixture(scope="module")
def toys(tmp_path_factory): return load_sprites(write_example(tmp_path_factory.mktemp("sprites") / "toys"))


@pytest.fixture(scope="module")
def clips(toys): return [world_clip(i, 0, s, cast=toys.cast) for s in SPLITS for i in range(15)]


def digest(made):
    samples = np.round(made.clip.audio.astype(np.float64) * 32768).astype("<i2")
    return [hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()[:16] for x in (made.clip.video, samples)]


def test_a_clip_is_the_same_everywhere(toys, tmp_path):
    "Of a copy of the folder somewhere else, and whatever was made before."
    again = load_sprites(write_example(tmp_path / "copy"))
    assert again.cast.mark == toys.cast.mark
    for i in (7, 3):
        a, b = world_clip(i, 2, "test", cast=toys.cast), world_clip(i, 2, "test", cast=again.cast)
        assert digest(a) == digest(b) and repr((a.caption, a.subjects, a.labels)) == repr((b.caption, b.subjects, b.labels))


@pytest.mark.parametrize("index, expected", json.loads((Path(__file__).parent / "sprites_hashes.json").read_text()).items())
def test_hashes_of_our_own_sprites(toys, index, expected):
    made = world_clip(int(index), cast=toys.cast)
    assert [*digest(made), made.caption] == expected


def test_truth_is_exact_in_sound(clips):
    t = np.arange(CLIP.samples) / CLIP.sample_rate
    for c in clips:
        assert c.stems.dtype == np.float32 and np.array_equal(c.stems.sum(0), c.clip.audio) and np.abs(c.clip.audio).max() < 0.9
        for i in range(len(c.subjects)):
            live = np.zeros(CLIP.samples, bool)
            for e in (e for e in c.events if e.subject == i):
                live |= (t >= e.onset) & (t < e.end)
                assert np.abs(c.stems[i, int(e.onset * 16000):][:480]).max() > 0.05, e.kind    # audible within 30 ms
            assert not c.stems[i][~live].any()


def test_truth_is_exact_in_picture(clips):
    for c in clips:
        video = c.clip.video.astype(float)
        change, quiet = np.abs(np.diff(video, axis=0)).max((1, 2, 3)), np.ones(CLIP.frames - 1, bool)
        for e in c.events:
            if not e.on_screen: assert np.isnan(e.boxes).all(); continue
            quiet[max(0, int(e.onset * CLIP.fps) - 1):int(e.end * CLIP.fps) + 2] = False
            k = int(e.onset * CLIP.fps)
            x0, y0, x1, y1 = np.round(e.boxes[k + 1] * 32).astype(int)
            assert 0 <= x0 < x1 <= 32 and 0 <= y0 < y1 <= 32
            assert np.abs(video[k + 1] - video[k - 1])[y0:y1, x0:x1].mean() > 8, (e.kind, c.caption)
        assert not change[quiet].any(), c.caption


def test_scenes_do_not_depend_on_size(toys):
    a, b = (world_clip(5, clip=replace(CLIP, height=h, width=w), cast=toys.cast) for h, w in ((32, 32), (96, 160)))
    assert b.clip.video.shape == (48, 96, 160, 3) and np.array_equal(a.clip.audio, b.clip.audio) and a.caption == b.caption
    boxes = [np.nanmean([e.boxes for e in x.events if e.on_screen], (0, 1))[1::2] for x in (a, b)]
    assert np.allclose(*boxes, atol=0.06)                                     # heights; the width has another unit


def test_other_sample_rates(toys):
    fast = world_clip(3, clip=replace(CLIP, sample_rate=24000), cast=toys.cast)
    slow = world_clip(3, cast=toys.cast)
    assert len(fast.clip.audio) == 48000
    onset = lambda c, rate: np.flatnonzero(c.clip.audio)[0] / rate
    assert abs(onset(fast, 24000) - onset(slow, 16000)) < 0.001


def test_splits_do_not_overlap(toys):
    names, seen = list(toys.cast.kinds), {}
    for split in SPLITS:
        for i in range(200):
            s = draw_scene(i, 0, split, cast=toys.cast)
            key = repr((s.subjects, [(e.subject, e.onset, e.end) for e in s.events]))
            assert seen.setdefault(key, split) == split
            held = [held_out(e.kind, s.subjects[e.subject].side, third(e.onset, s.seconds), names) for e in s.events if e.on_screen]
            assert all(held) if split == "heldout" else not any(held)


def test_captions_and_labels(toys):
    for i in range(300):
        s = draw_scene(i, cast=toys.cast)
        text, x = describe(s), label(s)
        assert all(toys.cast.nouns[p.kind] in text.lower() for p in s.subjects), text
        assert "  " not in text and "{" not in text and " ," not in text
        assert x["cat1_ind"] == 1 and x["cat4_ind"] == (2 if any(not p.on_screen for p in s.subjects) else int(len(s.subjects) > 1))
        assert set(x["cat2_ind"].split(",")) == {str(c) for e in s.events for c in toys.cast.kinds[e.kind].sounds}
        assert all(e.end - e.onset <= toys.cast.kinds[e.kind].longest + 1e-4 for e in s.events)


@pytest.mark.parametrize("silence", [0.0, 0.013, 0.5, 2.0])
@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_onsets_are_audible_onsets(silence, noise):
    t = np.arange(8000) / RATE
    tone = np.concatenate([np.zeros(round(silence * RATE)), np.sin(2 * np.pi * 500 * t) * np.exp(-t / 0.2)])
    first, last = utterance(tone + noise * np.random.default_rng(0).normal(size=len(tone)))
    assert abs(first - 1000 * silence) <= 2 and 300 < last - first <= 1000 * LONG


def test_a_second_sound_is_cut_off():
    hit = np.exp(-np.arange(6400) / 1600) * np.sin(np.arange(6400))
    first, last = utterance(np.concatenate([hit, hit, hit]))
    assert first <= 1 and 350 < last <= 400 and FRESH < 20
    assert utterance(np.sin(np.arange(64000)))[1] == 1000 * LONG               # a lasting tone is one sound


def test_recordings_in_any_shape(tmp_path):
    t = np.arange(44100) / 44100
    for name, rate, sound in (("stereo.wav", 44100, np.stack([np.sin(t * 3000)] * 2, 1)), ("odd.ogg", 11127, np.sin(t[:11127] * 9000)), ("flac.flac", 8000, np.sin(t[:8000] * 9000))):
        soundfile.write(tmp_path / name, 0.5 * sound, rate)
        assert abs(len(read_recording(str(tmp_path / name))) - RATE * len(sound) / rate) <= 1
        assert listen(tmp_path / name)[0].seconds == LONG


def test_pictures_in_any_mode(tmp_path):
    pixels = np.zeros((40, 60), np.uint8); pixels[10:30, 5:50] = 200
    for mode in ("L", "P", "RGB", "RGBA", "LA", "1"):
        Image.fromarray(pixels).convert(mode).save(path := tmp_path / f"{mode}.png")
        assert read_picture(str(path)).shape == (40, 60, 4)
    clear = Image.fromarray(np.stack([pixels] * 4, -1)); clear.save(tmp_path / "clear.png")
    assert read_picture(str(tmp_path / "clear.png")).shape == (20, 45, 4)       # cut to what can be seen
    assert np.allclose(shares(45, 7).sum(1), 1) and np.allclose(shares(3, 3), np.eye(3))
    assert shrunk(str(tmp_path / "clear.png"), 500, 500).shape == (20, 45, 4)   # never enlarged


@pytest.mark.parametrize("caption, expected", [("An owl.", "owl"), ("A pair of open scissors.", "pair of open scissors"), ("The Apollo lunar lander module.", "Apollo lunar lander module"),
                                               ("\u201cNo U-Turn\u201d.", "picture of no U-Turn"), ("Hard candy\u2014yum!", "picture of hard candy"), ("A", "picture of a"), ("", "old bell"),
                                               ("We remember those who have died.", "old bell"), ("!?", "old bell")])
def test_nouns(caption, expected): assert noun("music/old-bell_2", caption) == expected


def spoil(folder, what):
    "Makes one sprite of the folder unusable; returns the reason that is expected."
    cat, sound = folder / "animals/cat.png", folder / "animals/cat.wav"
    match what:
        case "cut picture": cat.write_bytes(cat.read_bytes()[:300]); return "cannot be used"
        case "no picture": cat.write_text("not a picture"); return "cannot be used"
        case "empty picture": cat.write_bytes(b""); return "cannot be used"
        case "transparent": Image.new("RGBA", (64, 64)).save(cat); return "shows only 0x0 pixels"
        case "speck": Image.new("RGB", (3, 64)).save(cat); return "shows only 64x3 pixels"
        case "no sound": sound.unlink(); return "no sound beside the picture"
        case "broken sound": sound.write_bytes(b"RIFFabcd"); return "cannot be used"
        case "empty sound": sound.write_bytes(b""); return "cannot be used"
        case "no samples": soundfile.write(sound, np.zeros(0), 8000); return "holds no sound"
        case "silence": soundfile.write(sound, np.zeros(8000), 8000); return "is silent"
        case "click": soundfile.write(sound, np.r_[np.zeros(800), 0.5 * np.ones(160), np.zeros(8000)], 16000); return "sounds for less than"
        case "vector": cat.rename(cat.with_suffix(".svg")); return "a vector drawing"
        case "bad caption": cat.with_suffix(".txt").write_bytes(b"\xff\xfe\xfa"); return "cannot be used"


@pytest.mark.parametrize("what", ["cut picture", "no picture", "empty picture", "transparent", "speck", "no sound", "broken sound", "empty sound", "no samples", "silence", "click",
                                  "vector", "bad caption"])
def test_a_bad_sprite_is_left_out_and_reported(folder, what):
    reason = spoil(folder, what)
    sprites = load_sprites(folder)
    assert len(sprites.found) == 3 and "animals/cat" not in sprites.cast.kinds
    assert any(path.stem == "cat" and reason in why for path, why in sprites.left_out), sprites.left_out
    assert reason.split(" 0x0")[0] in sprites._repr_markdown_()


def test_bad_folders(folder, tmp_path):
    with pytest.raises(MediaError, match="is not a folder: give a folder"): load_sprites(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match="it holds no pictures"): load_sprites(tmp_path / "empty")
    (folder / "vehicles/boat.wav").unlink()
    assert len(load_sprites(folder).found) == 3
    (folder / "instruments/horn.wav").unlink()
    with pytest.raises(MediaError, match="holds 2 usable sprites.*2 no sound beside"): load_sprites(folder)


def test_a_missing_caption_costs_nothing(folder):
    (folder / "animals/cat.txt").unlink()
    assert load_sprites(folder).cast.nouns["animals/cat"] == "cat"
    assert len(find_pairs(folder)[0]) == 5


def test_a_changed_folder_is_another_world(folder, tmp_path):
    out, before = tmp_path / "world", load_sprites(folder)
    write_world(out, 2, cast=before.cast, progress=False)
    assert json.loads((out / "world.json").read_text())["cast"] == before.cast.mark
    write_world(out, 3, cast=load_sprites(folder).cast, progress=False)         # the same folder goes on
    (folder / "notes.md").write_text("not a sprite")
    assert load_sprites(folder).cast.mark == before.cast.mark
    Image.new("RGB", (64, 64), (9, 9, 9)).save(folder / "animals/cat.png")
    with pytest.raises(ValueError, match="another world.*cast"): write_world(out, 3, cast=load_sprites(folder).cast, progress=False)
    with pytest.raises(ValueError, match="another world.*cast"): write_world(out, 3, progress=False)


def test_files(toys, tmp_path):
    rows = list(csv.DictReader(write_world(tmp_path, 60, 1, "valid", workers=2, progress=False, cast=toys.cast).open()))
    assert len(rows) == 60 and tuple(rows[0]) == COLUMNS
    for i in (0, 59):
        made, truth = world_clip(i, 1, "valid", cast=toys.cast), read_truth(tmp_path / rows[i]["truth"])
        assert rows[i]["text"] == made.caption and [(e.kind, e.onset, e.end) for e in truth["events"]] == [(e.kind, e.onset, e.end) for e in made.events]
        assert np.abs(read_clip(rows[i]["path"], size=(32, 32)).video.astype(float) - made.clip.video).mean() < 3
    listed = list(csv.DictReader(write_sprites(toys, tmp_path).open()))
    assert [r["kind"] for r in listed] == list(toys.cast.kinds) and {r["licence"] for r in listed} == {"Apache-2.0"}
    assert (tmp_path / "sprites.licence.txt").read_text() == "Apache-2.0\n"


def test_licences_are_found_where_debian_keeps_them(folder, tmp_path):
    stamps = tmp_path / "usr/share/tuxpaint/stamps"; stamps.mkdir(parents=True)
    note = tmp_path / "usr/share/doc/tuxpaint-stamps-default/copyright"; note.parent.mkdir(parents=True)
    note.write_text("Files: *\nCopyright: somebody\nLicense: GPL-2\n\nLicense: GPL-2\n This is free\n")
    assert find_licences(stamps) == [note] and licence_names([note]) == "GPL-2"
    (folder / "LICENSE").unlink()
    assert licence_names(find_licences(folder)).startswith("unknown")


def test_command(folder, tmp_path):
    script = tmp_path / "javisdit_world"                                      # what pip installs for a console script
    script.write_text("import sys\nfrom javisdit.sprites import javisdit_world\nif __name__ == '__main__': sys.exit(javisdit_world())\n")
    command = lambda *args: subprocess.run([sys.executable, str(script), *map(str, args)], capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS="1"))
    out = tmp_path / "out"
    r = command("--out", out, "--n", 2, "--sprites", folder)
    assert r.returncode == 0 and "4 sprites" in r.stdout and "Apache-2.0" in r.stdout and r.stdout.strip().endswith(str(out / "manifest.csv")), r.stderr
    assert (out / "sprites.csv").exists() and len(list(out.glob("*.mp4"))) == 2
    r = command("--out", tmp_path / "other", "--n", 2, "--sprites", tmp_path / "nowhere")
    assert r.returncode and "is not a folder" in r.stderr and "Traceback" not in r.stderr and not (tmp_path / "other").exists()


def test_our_own_sprites_are_seen_and_heard(toys, tmp_path):
    "The ruler of chapter 00bb, which knows nine other kinds, finds them after mp4."
    script = table_script()
    row = script.row_of_world("toys", *script.world(tmp_path, 60, "test", toys.cast))
    assert float(row["f1_seen"]) >= 0.95 and float(row["f1_heard"]) >= 0.95, row


@needs_stamps
@pytest.mark.slow
def test_real_sprites_are_seen_and_heard(tmp_path):
    sprites, script = load_sprites(REAL), table_script()
    assert len(sprites.found) >= 90 and all(k.longest >= SHORT for k in sprites.cast.kinds.values())
    row = script.row_of_world("stamps", *script.world(tmp_path, 400, "test", sprites.cast))
    assert float(row["f1_seen"]) >= 0.95 and float(row["f1_seen_in_place"]) >= 0.95 and float(row["f1_heard"]) >= 0.95, row
    assert float(row["seen_error_ms"]) < 10 and float(row["heard_error_ms"]) < 5 and float(row["ratio_high"]) < 0.2, row


@needs_stamps
@pytest.mark.slow
def test_truth_of_real_sprites(tmp_path):
    cast = load_sprites(REAL).cast
    made = [world_clip(i, 4, cast=cast) for i in range(60)]
    test_truth_is_exact_in_sound(made)
    test_truth_is_exact_in_picture(made)
