"The ruler of the project: does it find what happens, and nothing else?"
import ast
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import javisdit.detect as detect
from javisdit.core import rng, tiny
from javisdit.detect import (Listener, derangement, errors, f1, fit_detector, hear_all, hear_events, load_detectors, make_examples, match_events,
                             see_all, see_events, sound_step, sync_of_times, sync_report, times, truth_rows)
from javisdit.media import Clip, from_model, read_clip, to_model, write_clip
from javisdit.world import KINDS, world_clip

FRAME = 1 / 24

def truth(worlds):
    rows = [truth_rows(0, w, list(KINDS)) for w in worlds]
    return rows, [[r[2] for r in s] for s, _ in rows], [[r[2] for r in h] for _, h in rows]

def delayed(c, seconds):
    n = round(seconds * c.sample_rate)
    return Clip(c.video, np.concatenate([np.zeros(n, np.float32), c.audio])[:len(c.audio)], c.fps, c.sample_rate)

@pytest.fixture(scope="module")
def worlds(): return [world_clip(i, split="test") for i in range(100)]

@pytest.fixture(scope="module")
def through_mp4(tmp_path_factory):
    path = tmp_path_factory.mktemp("mp4") / "clip.mp4"
    def there_and_back(clip):
        write_clip(clip, path)
        return read_clip(path)
    return there_and_back

@pytest.fixture(scope="module")
def clips(worlds, through_mp4): return [through_mp4(w.clip) for w in worlds]

def check(worlds, clips, bar=0.95):
    "F1 by time alone, and by time, kind and place together."
    rows, true_seen, true_heard = truth(worlds)
    seen, heard = see_all(clips), hear_all(clips)
    assert f1(times(seen), true_seen, 2 * FRAME) >= bar
    assert f1(times(heard), true_heard, 0.05) >= bar
    hits = total = 0
    for events, (true, _) in zip(seen, rows):
        total += len(events) + len(true)
        for k, kind in enumerate(KINDS):
            e, t = [e for e in events if e.kind == kind], [r for r in true if r[1] == k]
            pairs = match_events([x.time for x in e], [r[2] for r in t], 2 * FRAME)
            hits += sum(np.hypot(e[i].x - t[j][3], e[i].y - t[j][4]) < 0.15 for i, j in pairs)
    assert 2 * hits / total >= bar
    hits = sum(len(match_events([e.time for e in events if e.kind == kind], [r[2] for r in true if r[1] == k], 0.05))
               for events, (_, true) in zip(heard, rows) for k, kind in enumerate(KINDS))
    assert 2 * hits / (sum(map(len, heard)) + sum(map(len, true_heard))) >= bar
    assert abs(np.median(errors(times(seen), true_seen))) < 0.005
    assert abs(np.median(errors(times(heard), true_heard))) < 0.005

def test_finds_events_after_mp4(worlds, clips): check(worlds, clips)

def test_finds_events_after_codecs(worlds, clips, through_mp4):
    codecs = pytest.importorskip("javisdit.codecs")
    video, audio = codecs.load_codecs(tiny())
    def lossy(c):
        x, wave = to_model(c.video)[None], torch.from_numpy(c.audio)[None]
        with torch.no_grad():
            return Clip(from_model(video.decode(video.encode(x), x.shape[2])[0]), audio.decode(audio.encode(wave), wave.shape[-1])[0].numpy(), c.fps, c.sample_rate)
    check(worlds[:50], [through_mp4(lossy(c)) for c in clips[:50]])

def test_held_out_combinations(through_mp4):
    worlds = [world_clip(i, split="heldout") for i in range(40)]
    check(worlds, [through_mp4(w.clip) for w in worlds], 0.93)

def test_larger_pictures_and_other_rates():
    clip = replace(tiny().clip, height=64, width=64)
    worlds = [world_clip(i, split="test", clip=clip) for i in range(30)]
    check(worlds, [w.clip for w in worlds], 0.93)
    faster = replace(tiny().clip, fps=30.0, frames=60, sample_rate=24000)
    worlds = [world_clip(i, split="test", clip=faster) for i in range(20)]
    _, true_seen, true_heard = truth(worlds)
    assert f1(times(see_all([w.clip for w in worlds])), true_seen, 2 * FRAME) > 0.9
    assert f1(times(hear_all([w.clip for w in worlds])), true_heard, 0.05) > 0.9

def test_delayed_sound_is_heard_later_and_seen_at_the_same_time(clips):
    some = clips[:40]
    late = [delayed(c, 0.1) for c in some]
    heard, later = hear_all(some), hear_all(late)
    moved = errors(times(later), [[e.time + 0.1 for e in h] for h in heard], 0.05)
    assert abs(np.median(moved)) < 0.003 and len(moved) >= 0.9 * sum(map(len, heard)) - 2
    assert see_all(some) == see_all(late)

def test_swapped_sound_is_worse(worlds, clips):
    visible = [c for c, w in zip(clips, worlds) if all(e.on_screen for e in w.events)]
    own = sync_report(visible)
    swapped = sync_report([replace(c, audio=visible[i].audio) for c, i in zip(visible, derangement(len(visible), 0))])
    assert own.high < 0.2 and own.matched.heard_within > 0.95 and own.matched.heard_to_seen < FRAME / 2
    assert swapped.low > 0.6 and swapped.matched.heard_within < 0.5

def test_nothing_happens(worlds):
    r, n = rng("nothing"), 60
    held = [np.repeat(w.clip.video[[r.integers(48)]], 48, 0) for w in worlds[:n]]
    grain = [(v + r.normal(0, 8, v.shape)).clip(0, 255).astype(np.uint8) for v in held]
    noise = [r.integers(0, 256, v.shape).astype(np.uint8) for v in held]
    black = [np.zeros_like(held[0])]
    for videos in (held, grain, noise, black): assert sum(map(len, see_all([Clip(v, None) for v in videos]))) <= 0.05 * n
    t = np.arange(32000) / 16000
    waves = dict(silence=[0 * t], hiss=[r.normal(0, 0.1, 32000) for _ in range(n)], faint=[r.normal(0, 1e-4, 32000) for _ in range(n)],
                 tone=[0.3 * np.sin(2 * np.pi * f * t) for f in r.uniform(100, 4000, n)])
    for sound in waves.values(): assert sum(map(len, hear_all([Clip(None, w.astype(np.float32)) for w in sound]))) <= 0.05 * n

def test_clips_do_not_depend_on_their_batch(clips):
    mixed = [clips[0], Clip(clips[1].video[:30], clips[1].audio[:20000]), *clips[2:6]]
    for together, c in zip(zip(see_all(mixed), hear_all(mixed)), mixed):
        for a, b in zip(together, (see_events(c.video, c.fps), hear_events(c.audio, c.sample_rate))):
            assert [(e.kind, round(e.time, 3)) for e in a] == [(e.kind, round(e.time, 3)) for e in b]

def test_very_short_clips():
    for n in (1, 2, 5): assert see_events(np.zeros((n, 32, 32, 3), np.uint8), 24) == []
    assert hear_events(np.zeros(100, np.float32), 16000) == []
    assert see_all([Clip(None, None)]) == hear_all([Clip(None, None)]) == [[]]

def brute(a, b, tolerance):
    best = (0, 0.0)
    for n in range(1, min(len(a), len(b)) + 1):
        for i, j in itertools.product(itertools.combinations(range(len(a)), n), itertools.permutations(range(len(b)), n)):
            gaps = [abs(a[p] - b[q]) for p, q in zip(i, j)]
            if max(gaps) <= tolerance: best = max(best, (n, -sum(gaps)))
    return best

def test_matching_is_optimal_and_one_to_one():
    r = rng("matching")
    for _ in range(200):
        a, b = r.random(r.integers(0, 6)), r.random(r.integers(0, 5))
        pairs = match_events(a, b, 0.15)
        assert all(len({p[side] for p in pairs}) == len(pairs) for side in (0, 1))
        assert np.allclose((len(pairs), -sum(abs(a[i] - b[j]) for i, j in pairs)), brute(a, b, 0.15))

def test_sync_of_times_counts_misses_and_knows_chance():
    r = rng("sync")
    heard = [sorted(r.random(2) * 2) for _ in range(200)]
    same = sync_of_times(heard, [[t + 0.03 for t in h] for h in heard])
    assert np.isclose(same.matched.heard_to_seen, 0.03) and same.matched.heard_within == 1 and same.ratio < 0.2
    unrelated = sync_of_times(heard, [sorted(r.random(2) * 2) for _ in heard])
    assert unrelated.low < 1 < unrelated.high
    empty = sync_of_times([[0.5], [], [0.7]], [[0.5], [1.0], []])
    assert (empty.silent, empty.still, empty.heard, empty.seen) == (1, 1, 2, 2)
    assert np.isclose(empty.matched.heard_within, 1 / 3) and empty.matched.heard_to_seen == 0
    assert sync_of_times(heard, heard, seed=3) == sync_of_times(heard, heard, seed=3)
    assert "Ratio" in same._repr_markdown_() and same.to_dict()["matched"]["f1"] == 1
    with pytest.raises(ValueError, match="fewer than 2"): sync_of_times([[0.1]], [[0.1]])

def test_nothing_found_anywhere_is_reported_not_raised():
    r = sync_of_times([[], []], [[], []])
    assert r.silent == r.still == 2 and r.matched.heard_within == 0 and np.isnan(r.ratio)

def test_only_the_fit_command_knows_the_world():
    tree = ast.parse(open(detect.__file__).read())
    imports = lambda node: [n for n in ast.walk(node) if isinstance(n, ast.ImportFrom) and "world" in (n.module or "")]
    command = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "javisdit_fit_detectors")
    assert len(imports(tree)) == len(imports(command)) == 1

def test_interrupted_fit_goes_on_as_if_nothing_happened(tmp_path):
    examples = make_examples((world_clip(i) for i in range(32)), list(KINDS))
    def fit(checkpoint, note):
        torch.manual_seed(0)
        net = Listener(len(KINDS))
        return fit_detector(net, sound_step(net, examples), 32, 3, checkpoint, note=note)
    def stop(text):
        if text.startswith("pass 2"): raise KeyboardInterrupt
    whole = fit(tmp_path / "whole.pt", print)
    with pytest.raises(KeyboardInterrupt): fit(tmp_path / "cut.pt", stop)
    resumed = fit(tmp_path / "cut.pt", print)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()): assert torch.allclose(a, b, atol=1e-6)

def test_weights_are_small_and_saved_as_loaded(tmp_path):
    d = load_detectors()
    d.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").stat().st_size < 1.5e6
    again = load_detectors(str(tmp_path / "again.safetensors"))
    assert (again.kinds, again.threshold, again.bias) == (d.kinds, d.threshold, d.bias) and tuple(again.kinds) == KINDS
