"Guards of chapters 02a and 03: the reference's numbers, and what must hold for every clip and every draw."
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import parity
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from javisdit.augment import (WAYS, ChangeSpeed, ChangeVolume, InsertSilence, NotOffered, RemoveSource, RepeatAudio, ShiftAudio, ShiftVideo,
                              Source, StallVideo, change_speed, change_volume, draw_audio_shift, draw_repeat, draw_start, insert_silence,
                              make_negatives, mirror, remove_source, repeat_audio, segments, shift_audio, shift_video, stall_video, window_starts)
from javisdit.core import MediaError, rng
from javisdit.media import Clip
from javisdit.pools import FolderSounds, FolderStems, FolderUnpaired, Pools, Sound, Trajectory, WorldUnpaired, world_pools, world_stems
from javisdit.world import world_clip

GOLDENS = Path(__file__).parent / "goldens"
thousand = settings(max_examples=1000, deadline=None, derandomize=True, database=None)
EVERY = [(group, name) for group, ways in WAYS.items() for name in ways]


# --- the reference ---

@pytest.mark.parametrize("name", ["prior_augment_audio", "prior_augment_video"])
def test_parity(name):
    fixture = parity.read(GOLDENS / f"{name}.safetensors")
    ours = parity.compute(fixture)
    assert set(ours) == set(fixture.answers)
    for key, error, tolerance, _, ok in parity.compare(fixture, ours): assert ok, f"{key}: {error} > {tolerance}"
    for key, answer in ours.items():   # a comparison of nothing would always agree
        assert answer.where is None or answer.where.float().mean() > 0.15, key


def test_starts_of_windows_are_the_reference_s():
    path = GOLDENS / "prior_augment_audio.safetensors"
    with safe_open(path, "pt") as f: config = json.loads(f.metadata()["json"])
    waves = load_file(path)
    for case in config["cases"]["random_start"]:
        wave, length = waves[f"in/start_{case['wave']}"].numpy(), int(case["duration"] * config["sr"])
        where = segments(wave)
        ranges = window_starts(where, len(wave), length)
        draws = {name: (args, result) for name, args, result in case["draws"]}
        assert (not where) == case["all_silence"]
        if where: assert [len(ranges)] == draws["choice"][0]
        assert list(ranges[draws["choice"][1] if where else 0]) == draws["randint"][0]


# --- every clip, every draw ---

def any_clip(r, t, h, w, n, loud):
    "Noise in pictures and sound; the sound is silent here and there, or all of it."
    wave = r.uniform(-1, 1, n) * loud * (r.random(1 + n // 20) < 0.5).repeat(20)[:n]
    return Clip(r.integers(0, 256, (t, h, w, 3), dtype=np.uint8), wave.astype(np.float32), 24.0, 200)


def any_pools(r, n):
    "A pool of each kind with one member of random form."
    t, h, w = r.integers(1, 16, 3)
    boxes = np.concatenate([r.uniform(0, 30, (t, 2)), np.tile(r.uniform(0, 20, 2), (t, 1))], 1)
    guest = Trajectory(r.integers(0, 256, (t, h, w, 3), dtype=np.uint8), r.random((t, h, w)) < 0.6, boxes, np.ones(t, bool), (40, 50))
    sound = Sound(r.uniform(-1, 1, r.integers(1, 300)).astype(np.float32), 200, None, "noise")
    first = int(r.integers(n))
    stem = Sound(r.uniform(-1, 1, n).astype(np.float32), 200, ((first, int(r.integers(first, n)) + 1),), "stem")

    class One(list): lengths, names = [t], ["noise"]
    return Pools(One([guest]), One([sound]), {"clip": [stem]}, {"clip": sound})


numbers = dict(seed=st.integers(0, 2 ** 32 - 1), t=st.integers(1, 24), h=st.integers(1, 14), w=st.integers(1, 14), n=st.integers(1, 300),
               loud=st.sampled_from([0.0, 0.05, 0.5, 1.0]))


def unharmed(before, base, broken, length=None):
    "The input is as it was; the result is new, as long, of its kind, and within bounds."
    assert np.array_equal(before, base) and not np.shares_memory(base, broken)
    assert broken.dtype == base.dtype and broken.shape == (length or len(base), *base.shape[1:])
    assert broken.dtype == np.uint8 or np.abs(broken).max() <= 1                   # not true of NaN either


def test_any_draw_of_any_clip():
    "A thousand clips, and a draw of every way for each."
    done = {way: 0 for way in EVERY}

    @thousand
    @given(**numbers)
    def check(seed, t, h, w, n, loud):
        r = np.random.default_rng(seed)
        clip, pools = any_clip(r, t, h, w, n, loud), any_pools(r, n)
        track = np.concatenate([clip.audio, r.uniform(-1, 1, r.integers(300))]).astype(np.float32)
        for group, name in EVERY: done[group, name] += survives(WAYS[group][name], Source(clip, pools, "clip", track, 0), group, seed)

    check()
    assert min(done.values()) > 500, f"so many of 1000 clips could be broken: {done}"


def survives(way, source, group, seed):
    "Draw twice, apply once (pictures also as numbers in [-1, 1]); False where this way is not offered for this clip."
    base = source.clip.video if group.startswith("video") else source.track if way.of == "track" else source.clip.audio
    before = base.copy()
    try: drawn = way.draw(source, np.random.default_rng(seed))
    except NotOffered: return False
    assert drawn == way.draw(source, np.random.default_rng(seed))
    unharmed(before, base, way.apply(base, drawn), len(source.clip.audio) if group.startswith("audio") else None)
    if group.startswith("video"): unharmed(before / 127.5 - 1, real := base / 127.5 - 1, way.apply(real, drawn))
    return True


@thousand
@given(**numbers)
def test_any_parameters(seed, t, h, w, n, loud):
    "Parameters that nobody would draw: windows past the end, gaps longer than the clip."
    r = np.random.default_rng(seed)
    clip, start, length, gap = any_clip(r, t, h, w, n, loud), int(r.integers(n)), int(r.integers(1, 2 * n + 1)), int(r.integers(2 * n))
    picture, held = int(r.integers(t)), int(r.integers(1, 2 * t + 1))
    stem, curve = r.uniform(-1, 1, n).astype(np.float32), str(r.choice(["sine", "cosine", "rise", "fall"]))
    for apply, drawn, base in ((shift_video, ShiftVideo(held), clip.video), (stall_video, StallVideo(picture, held), clip.video),
                               (lambda v, _: mirror(v), None, clip.video), (remove_source, RemoveSource(start, length, "", stem), clip.audio),
                               (change_volume, ChangeVolume(start, length, curve, float(r.uniform(0.5, 9))), clip.audio),
                               (shift_audio, ShiftAudio(start, n), clip.audio), (insert_silence, InsertSilence(start, length), clip.audio),
                               (repeat_audio, RepeatAudio(start, length, gap), clip.audio),
                               (change_speed, ChangeSpeed(start, length, float(r.choice([0.5, 2]))), clip.audio)):
        before = base.copy()
        unharmed(before, base, apply(base, drawn))


@thousand
@given(**numbers)
def test_a_window_lies_in_the_clip_and_touches_sound(seed, t, h, w, n, loud):
    r = np.random.default_rng(seed)
    wave = any_clip(r, t, 1, 1, n, loud).audio
    length, where = int(r.integers(1, n + 1)), segments(wave)
    start = draw_start(where, n, length, r)
    assert 0 <= start <= n - length
    assert not where or any(a < start + length and b > start for a, b in where)
    p = draw_repeat(wave, r, 200)
    assert p.start + 2 * p.length + p.gap <= n or n == 1                          # the repetition fits


@thousand
@given(seed=st.integers(0, 2 ** 32 - 1), total=st.integers(1, 4000), share=st.floats(0, 1), place=st.floats(0, 1))
def test_sound_moves_by_a_tenth_of_a_second_or_more(seed, total, share, place):
    length = max(1, int(share * total))
    start, track = int(place * (total - length)), np.arange(total, dtype=np.float32)
    try: p = draw_audio_shift(track, np.random.default_rng(seed), start, length, 1000)
    except NotOffered: assert total < 200
    else:
        away = abs(p.start - start)
        assert min(away, total - away if p.start + length > total else away) >= 100
        assert np.array_equal(shift_audio(track, p), track.take(range(p.start, p.start + length), mode="wrap"))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(**numbers)
def test_negatives_of_any_clip(seed, t, h, w, n, loud):
    "Four groups of two, or one error that names the group."
    r = np.random.default_rng(seed)
    clip, pools = any_clip(r, t, h, w, n, loud), any_pools(r, n)
    before = clip.video.copy(), clip.audio.copy()
    try: made = make_negatives(clip, 2, rng(seed), pools, name="clip")
    except ValueError as e: assert "negative (" in str(e) and (t == 1 or not clip.audio.any() or not segments(clip.audio)), e
    else:
        for group in WAYS:
            was, base = (before[0], clip.video) if group.startswith("video") else (before[1], clip.audio)
            for x in getattr(made, group): unharmed(was, base, x.broken)
        assert sum(x.way == "unpaired" for x in made.audio_spatial + made.audio_temporal) <= 1
    assert np.array_equal(before[0], clip.video) and np.array_equal(before[1], clip.audio)


# --- the mix, and folders with faults ---

def test_the_mix_is_uniform():
    made = world_clip(12)                                                          # stems, sound and motion: all ways are possible
    counts = {group: {} for group in WAYS}
    for i in range(400):
        found = make_negatives(made.clip, 1, rng("mix", i), replace(world_pools(), trajectories=Quick()), name="12")
        for group in WAYS:
            way = getattr(found, group)[0].way
            counts[group][way] = counts[group].get(way, 0) + 1 / 400
    easy = counts["audio_spatial"].pop("unpaired"), counts["audio_temporal"].pop("unpaired")
    assert abs(easy[0] - 0.5) < 0.1 and abs(easy[1] - 0.25) < 0.08
    for group, ways in counts.items():
        assert set(ways) == set(WAYS[group])
        for share in ways.values(): assert abs(share / sum(ways.values()) - 1 / len(ways)) < 0.1, counts


class Quick:
    "One small trajectory."
    lengths = [48]
    def __getitem__(self, i): return Trajectory(np.zeros((48, 4, 4, 3), np.uint8), np.ones((48, 4, 4), bool), np.tile([3, 3, 4, 4], (48, 1)), np.ones(48, bool), (32, 32))


def test_equal_generators_give_equal_negatives_of_either_kind():
    made = world_clip(3)
    for fresh in (lambda: rng(1), lambda: torch.Generator().manual_seed(1)):
        a, b = (make_negatives(made.clip, 2, fresh(), world_pools(), name="3") for _ in range(2))
        for group in WAYS: assert all(np.array_equal(x.broken, y.broken) for x, y in zip(getattr(a, group), getattr(b, group)))
        assert len({x.broken.tobytes() for group in WAYS for x in getattr(a, group)}) == 8
    g = rng(1)
    first, second = (make_negatives(made.clip, 1, g, world_pools(), name="3") for _ in range(2))
    assert any(not np.array_equal(getattr(first, k)[0].broken, getattr(second, k)[0].broken) for k in WAYS)


def test_a_broken_file_is_passed_over_and_counted(tmp_path):
    made = world_clip(12)
    for i, stem in enumerate(world_stems(made)): soundfile.write(tmp_path / f"12.wav__sep__000_{i:03d}_x{i}.wav", stem.wave, 16000)
    (tmp_path / "12.wav.json").write_text(json.dumps({"x0_000_000": [[900, 30]]}))
    (tmp_path / "12.wav").write_bytes(b"RIFF nonsense")
    pools = Pools(None, FolderSounds(tmp_path), FolderStems(tmp_path), FolderUnpaired(tmp_path))
    found = [make_negatives(made.clip, 1, rng(i), pools, name="12") for i in range(20)]
    why = [str(e) for x in found for _, _, e in x.passed_over]
    assert sum("12.wav: is not a media file" in e for e in why) >= 20              # the easy sound, every time
    assert any("ends before it begins" in e for e in why)
    assert {x.audio_spatial[0].way for x in found} == {"volume"}                   # nothing else is left
    with pytest.raises(MediaError, match="12.wav.json"): FolderStems(tmp_path).get("12")


def test_empty_pools_are_passed_over_and_counted():
    class Empty: names, lengths = (), ()
    made = world_clip(12)
    found = [make_negatives(made.clip, 1, rng(i), Pools(Empty(), Empty(), {}, {}), name="12") for i in range(20)]
    assert {x.video_spatial[0].way for x in found} == {"mask"} and {x.audio_spatial[0].way for x in found} == {"volume"}
    why = {way: str(e) for x in found for _, way, e in x.passed_over}
    assert set(why) == {"trajectory", "add", "remove"} and "empty" in why["trajectory"]
    assert not make_negatives(made.clip, 1, rng(0)).passed_over                    # what is not wanted is not missed


def test_a_clip_is_cut_from_its_file_and_so_are_its_stems():
    made, start = world_clip(12), 4000
    clip = Clip(made.clip.video[6:30], made.clip.audio[start:start + 16000])
    for i in range(40):
        found = make_negatives(clip, 1, rng(i), Pools(stems={"12": world_stems(made)}), name="12", track=made.clip.audio, start=start)
        negative = found.audio_spatial[0]
        if negative.way != "remove": continue
        p, k = negative.drawn, [s.name for s in world_stems(made)].index(negative.drawn.name)
        rest = (made.clip.audio - made.stems[k])[start:start + 16000]
        assert np.allclose(negative.broken[p.start:p.start + p.length], rest[p.start:p.start + p.length], atol=1e-4)
        assert len(found.audio_temporal[0].broken) == 16000


def test_easy_sound_has_the_length_of_the_clip():
    made, pool = world_clip(12), WorldUnpaired()
    loud = made.clip.audio[np.flatnonzero(made.clip.audio)[0]:]
    for n in (1000, 32000, 50000):
        clip = Clip(made.clip.video, np.resize(loud, n))
        found = [make_negatives(clip, 1, rng(i), Pools(unpaired=pool), name="12").audio_spatial[0] for i in range(12)]
        assert {"unpaired"} < {x.way for x in found} and all(len(x.broken) == n for x in found)
