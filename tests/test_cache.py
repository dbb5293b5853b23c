"A cache is what raw media gives, whoever wrote it and however often it was interrupted; damaged files are named, all of them and no others."
import json
import errno
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import PARTS, VideoBlocks, Words, moving

import javisdit.cache as cache_module
import javisdit.data as data_module
from javisdit.augment import WAYS
from javisdit.buckets import BucketSampler, Buckets, ByBucket, ByShape, read_buckets
from javisdit.cache import CachedLatents, Encoder, MediaSource, bucket_keys, javisdit_cache, open_source, unused, write_cache, write_together
from javisdit.core import MediaError, own_device, rng, tiny
from javisdit.data import ClipDataset, Latents, fingerprint, read_manifest
from javisdit.dit import JavisDiT
from javisdit.learner import flow_learner, train_steps
from javisdit.media import write_clip
from javisdit.pools import world_pools

CONFIG = tiny()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Seven good clips of different lengths, the last without pictures, and one damaged."
    d = tmp_path_factory.mktemp("clips")
    for i, seconds in enumerate((2, 2, 3, 2.5, 4, 2)): write_clip(moving(i, seconds), d / f"{i}.mp4")
    (d / "6.mp4").write_bytes((d / "4.mp4").read_bytes()[:9000])
    (d / "manifest.csv").write_text("path,text\n" + "".join(f"{i}.mp4,clip number {i}\n" for i in range(7)))
    return d


def encoder(folder, rows=None, parts=PARTS, negatives=0, pools=None, **kw):
    data = ClipDataset(read_manifest(folder / "manifest.csv") if rows is None else rows, kw.pop("clip", CONFIG.clip), **kw)
    return Encoder(data, CONFIG, parts, negatives, *[pools] * (pools is not None))


def equal(a, b): return type(a) is type(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- what is in it

def test_clips_with_one_caption_share_a_shard(folder, tmp_path):
    rows = [replace(r, text="the same") for r in read_manifest(folder / "manifest.csv")[:3]]
    kept = write_cache(encoder(folder, rows), tmp_path, progress=False)
    assert len(kept) == 3 and list(kept.captions) == ["the same"] * 3


@pytest.mark.parametrize("options", [dict(), dict(seed=3), dict(start="middle"), dict(pictures=False), dict(negatives=2, pools=world_pools()), dict(negatives=1)])
@pytest.mark.parametrize("tar", [False, True])
def test_a_cache_is_what_raw_media_gives(folder, tmp_path, options, tar):
    made = encoder(folder, **options)
    kept, raw = write_cache(made, tmp_path, shard=3, tar=tar, progress=False), MediaSource(made)
    bad = [] if options.get("pictures") is False else ["6"]                # its sound may well be whole
    assert [s.id for s in kept.report.skipped] == bad or not bad
    raw.expect([1, 4])
    for keys in ([0, 1, 2], [4], [5, 3, 3]): assert equal(raw.batch(keys), kept.batch(keys))
    b = kept.batch([2, 0])
    assert b.video.dtype == b.audio.dtype == b.text.dtype == torch.float32 and b.text.shape[1] == Words.tokens and b.index.tolist() == [2, 0]
    assert [hasattr(b, g) for g in WAYS] == [bool(options.get("negatives"))] * 4
    other = write_cache(encoder(folder, **options), tmp_path, shard=3, tar=tar, workers=0, progress=False)     # nothing to do
    assert equal(other.batch([2, 0]), b)


def test_several_shapes(folder, tmp_path):
    keys = [(0, 48, 32, 32), (2, 24, 16, 24), (4, 24, 16, 24), (1, 48, 32, 32), (6, 24, 16, 24)]
    made = encoder(folder)
    kept, raw = write_cache(made, tmp_path, keys, shard=2, progress=False), MediaSource(made)
    assert kept.shapes == [k[1:] for k in keys[:4]] and kept.ids == ["0", "2", "4", "1"]
    assert torch.equal(kept.batch([1, 2]).video, raw.batch(keys[1:3]).video) and kept.batch([1]).height.tolist() == [16.0]
    for source, wanted in ((kept, [0, 1]), (raw, keys[:2])):
        with pytest.raises(ValueError, match="their shapes differ"): source.batch(wanted)


def test_buckets(folder, tmp_path):
    "Clips are kept at the sizes of their buckets, and batches of equal shapes are made of both sources."
    rows = read_manifest(folder / "manifest.csv")
    (tmp_path / "table.json").write_text(json.dumps({"32x32": {"72": [1.0, 1]}, "16x24": {"48": [1.0, 2]}}))
    keys, unused = bucket_keys(rows, read_buckets(tmp_path / "table.json"))
    assert keys == [(0, 48, 16, 24), (1, 48, 16, 24), (2, 72, 32, 32), (3, 48, 16, 24), (4, 72, 32, 32), (5, 48, 16, 24)] and unused == {"unreadable": [6]}
    made = encoder(folder)
    kept, raw = write_cache(made, tmp_path / "cache", keys, progress=False), MediaSource(made)
    sampler, table = BucketSampler(kept.shapes, ByShape(2)), Buckets({"32x32": {72: (1.0, 2)}, "16x24": {48: (1.0, 2)}})
    assert sampler.steps == 3
    for step in range(3):
        places, = sampler(step)
        assert torch.equal(kept.batch(places).video, raw.batch([keys[i] for i in places]).video)
    for samples in (BucketSampler(rows, ByBucket(table))(step)[0] for step in range(3)):
        assert torch.equal(raw.batch(samples).audio, kept.batch([keys.index(tuple(k)) for k in samples]).audio)


def test_parts_of_a_source(folder, tmp_path):
    made = encoder(folder)
    kept, raw = write_cache(made, tmp_path, shard=3, progress=False), MediaSource(made).checked(progress=False)
    assert len(kept) == len(raw) == 6 and str(kept.report) == str(raw.report)
    a, b = kept.select([5, 1, 0]).select([1, 0]), raw.select([5, 1, 0]).select([1, 0])
    assert a.ids == ["1", "5"] and equal(a.batch([0, 1]), b.batch([0, 1]))
    memory = kept.load()
    assert isinstance(memory, Latents) and memory.captions == kept.captions == [f"clip number {i}" for i in range(6)] and memory.ids == kept.ids
    assert equal(memory.batch(list(range(6))), kept.batch(range(6)))


def test_webdataset_reads_the_tars(folder, tmp_path):
    wds = pytest.importorskip("webdataset")
    kept = write_cache(encoder(folder), tmp_path, tar=True, progress=False)
    seen = list(wds.WebDataset(str(next(tmp_path.glob("*.tar"))), shardshuffle=False).decode())
    assert len(seen) == len(kept) == 6
    for i, sample in enumerate(seen):
        entry = kept.entry(i)
        assert sample["json"]["text"] == entry.text and tuple(sample["json"]["shape"]) == entry.shape
        for name, x in entry.tensors.items(): assert np.array_equal(sample[f"{name}.npy"], x.numpy())


# ---- who writes it

def test_processes_share_the_work(folder, tmp_path):
    one = write_cache(encoder(folder), tmp_path / "one", shard=2, progress=False)
    for rank in (2, 0): assert write_cache(encoder(folder), tmp_path / "three", rank=rank, world=3, shard=2, progress=False) is None
    with pytest.raises(MediaError, match="is not a complete cache"): CachedLatents(tmp_path / "three")
    three = write_cache(encoder(folder), tmp_path / "three", rank=1, world=3, shard=2, progress=False)
    assert equal(one.batch(range(6)), three.batch(range(6))) and {p.name: p.read_bytes() for p in (tmp_path / "one").iterdir()} == {p.name: p.read_bytes() for p in (tmp_path / "three").iterdir()}
    with pytest.raises(ValueError, match="process 3 of 3 does not exist"): write_cache(encoder(folder), tmp_path / "x", rank=3, world=3)


def command(folder, *args, **env):
    "The command as its script of the same name starts it."
    (script := folder / "command.py").write_text("from javisdit.cache import javisdit_cache\nif __name__ == '__main__': javisdit_cache()\n")
    return subprocess.Popen([sys.executable, script, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | env)


def test_processes_are_started_for_what_is_missing(folder, tmp_path, monkeypatch):
    make = partial(encoder, folder)
    one, started = write_cache(make(), tmp_path / "one", shard=1, progress=False), []
    monkeypatch.setattr(cache_module, "in_processes", lambda n, work: started.append(n) or [work(rank, n) for rank in range(n)])
    assert equal(write_together(make, tmp_path / "two", 2, shard=1, progress=False).batch(range(6)), one.batch(range(6)))
    write_together(make, tmp_path / "two", 2, shard=1, progress=False)          # all is there
    write_together(make, tmp_path / "three", 2, shard=4, progress=False)        # too little to share
    assert started == [2]
    with pytest.raises(ValueError, match="is a cache of something else"): write_together(partial(encoder, folder, seed=1), tmp_path / "two", progress=False)


def test_captions_are_read_once(folder, tmp_path, monkeypatch):
    kept, reads = write_cache(encoder(folder), tmp_path, shard=2, progress=False), []
    monkeypatch.setattr(cache_module.Shard, "__getitem__", lambda self, i: reads.append(i))
    assert kept.captions == [f"clip number {i}" for i in range(6)] and kept.captions is kept.captions and not reads
    assert kept.select([4, 1]).captions == ["clip number 4", "clip number 1"]


def test_the_command_in_two_processes_and_killed(folder, tmp_path):
    "Killed once with -9 in the middle; then two processes, as torchrun would start them, finish it."
    args = folder / "manifest.csv", tmp_path / "cache", "--shard", 1, "--workers", 1
    dying = command(tmp_path, *args)
    while not list((tmp_path / "cache").glob("shard-*.safetensors")) and dying.poll() is None: time.sleep(0.02)
    dying.send_signal(signal.SIGKILL)
    dying.communicate()
    early = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("shard-*.safetensors")}
    assert 0 < len(early) < 7 and not (tmp_path / "cache" / "index.json").exists()
    said = []
    for rank in "0", "1":
        done = command(tmp_path, *args, RANK=rank, WORLD_SIZE="2", LOCAL_RANK=rank)
        said.append("".join(done.communicate()))
        assert done.returncode == 0, said[-1]
    assert "process 0 of 2 is done, others are not" in said[0] and "1 of 7 clips were skipped:\n  6: " in said[1]
    assert all((tmp_path / "cache" / name).stat().st_mtime_ns == t for name, t in early.items()) and not list((tmp_path / "cache").glob("*.part"))
    javisdit_cache(folder, tmp_path / "whole", shard=1)
    assert equal(CachedLatents(tmp_path / "cache").batch(range(6)), CachedLatents(tmp_path / "whole").batch(range(6)))


@pytest.mark.slow
def test_the_command_starts_processes(folder, tmp_path):
    done = command(tmp_path, folder / "manifest.csv", tmp_path / "cache", "--shard", 2, "--processes", 2)
    out = "".join(done.communicate())
    assert done.returncode == 0 and "CachedLatents(6 clips in 3 shards" in out, out


def test_each_process_has_its_gpu(folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(cache_module, "Encoder", lambda *args: seen.append(args[-1])); monkeypatch.setattr(cache_module, "write_cache", lambda *args, **kw: None)
    monkeypatch.setattr(cache_module, "in_processes", lambda n, work: [work(rank, n) for rank in range(n)])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    javisdit_cache(folder, tmp_path, processes=3, device="cuda")
    monkeypatch.setenv("LOCAL_RANK", "1")
    javisdit_cache(folder, tmp_path, rank=2, world=4, device="cuda")            # as torchrun says it
    javisdit_cache(folder, tmp_path, rank=2, world=4)
    assert seen == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cpu"] and own_device("cuda:5", 0) == "cuda:5"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SystemExit, match="no GPU can be used here"): javisdit_cache(folder, tmp_path, device="cuda")


# ---- what it refuses, and what it takes in

class OtherWords(Words): tokens = 4


@pytest.mark.parametrize("change, words", [
    (dict(parts=(VideoBlocks(1.5), *PARTS[1:])), "video_codec has other weights or settings"),
    (dict(parts=(PARTS[0], PARTS[1], OtherWords())), "text_encoder has other weights or settings"),
    (dict(clip=replace(CONFIG.clip, frames=40)), "clip.frames was 48 and is 40"),
    (dict(clip=replace(CONFIG.clip, sample_rate=8000)), "clip.sample_rate was 16000 and is 8000"),
    (dict(start="first", seed=2), "seed was 0 and is 2; start was 'random' and is 'first'"),
    (dict(multiple=16), "multiple was 8 and is 16"), (dict(pictures=False), "pictures was True and is False"),
    (dict(negatives=1), "negatives was 0 and is 1")])
def test_another_cache_is_refused(folder, tmp_path, change, words):
    write_cache(encoder(folder, start="random"), tmp_path, progress=False)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="is a cache of something else") as e: write_cache(encoder(folder, **change), tmp_path, progress=False)
    assert words in str(e.value) and {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


def test_other_pools_or_reading_code_are_refused(folder, tmp_path, monkeypatch):
    write_cache(encoder(folder, negatives=1, pools=world_pools(seed=0)), tmp_path, progress=False)
    with pytest.raises(ValueError, match="pools.trajectories was"): write_cache(encoder(folder, negatives=1, pools=world_pools(seed=1)), tmp_path)
    monkeypatch.setattr(cache_module, "PREPROCESSING", 99)
    with pytest.raises(ValueError, match="preprocessing was 1 and is 99"): write_cache(encoder(folder, negatives=1, pools=world_pools(seed=0)), tmp_path)


def test_rows_come_go_and_change(folder, tmp_path):
    rows, reads = read_manifest(folder / "manifest.csv"), []
    class Counting(Encoder):
        def read(self, key): reads.append(self.dataset.rows[key].id); return super().read(key)
    write = lambda rows: (reads.clear(), write_cache(Counting(ClipDataset(rows, CONFIG.clip), CONFIG, PARTS), tmp_path, shard=2, progress=False))[1]
    first = write(rows[:4])
    more = write(rows)
    assert reads == ["4", "5", "6"] and equal(more.batch(range(4)), first.batch(range(4))) and [s.id for s in more.report.skipped] == ["6"]
    again = write([rows[6], *rows[1:6], replace(rows[0], text="another caption")])
    assert reads == ["0"] and again.ids == ["1", "2", "3", "4", "5", "0"] and again.captions[5] == "another caption"     # the bad file is not read again
    assert [s.index for s in again.report.skipped] == [0]
    os.utime(folder / "3.mp4", (7, 7))
    write(read_manifest(folder / "manifest.csv"))
    assert reads == ["3"]                                                               # the shard with the first caption was still there
    assert unused(tmp_path)
    for p in unused(tmp_path): p.unlink()
    assert len(write(rows).batch(range(6)).index) == 6


def test_a_cache_that_is_damaged_says_so(folder, tmp_path):
    kept = write_cache(encoder(folder), tmp_path, shard=2, progress=False)
    path = max(tmp_path.glob("shard-*"), key=lambda p: p.stat().st_size)        # one holds no clip, only a reason
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MediaError, match="is not a shard of a cache.*delete it and run javisdit_cache again"): CachedLatents(tmp_path).load()
    path.unlink()
    assert equal(write_cache(encoder(folder), tmp_path, shard=2, progress=False).batch(range(6)), kept.batch(range(6)))


# ---- files that cannot be read

def test_a_disk_that_fails_for_a_moment_is_asked_again(folder, monkeypatch):
    rows, failures = read_manifest(folder / "manifest.csv"), []
    real = data_module.read_sample
    def shaky(row, *args, **kw):
        if len(failures) < times:
            failures.append(row.id)
            raise MediaError(row.path, "cannot be used", "x") from OSError(code, "disk")
        return real(row, *args, **kw)
    monkeypatch.setattr(data_module, "read_sample", shaky)
    for code, times, good in ((errno.EIO, 2, True), (errno.EIO, 3, False), (errno.ENOENT, 1, False)):
        failures.clear()
        source = MediaSource(Encoder(ClipDataset(rows[:1], CONFIG.clip, retry=(0, 0)), CONFIG, PARTS), limit=1.0)
        if good: assert len(source.batch([0]).index) == 1 and not source.report.skipped
        else:
            with pytest.raises(MediaError, match="not one of 1 clips"): source.batch([0])
        assert len(failures) == times


def test_a_file_that_could_not_be_reached_is_tried_again_later(folder, tmp_path, monkeypatch):
    "In the next batch that wants it, and in the next run of a cache; a file that is bad is read once."
    rows, reads, gone = read_manifest(folder / "manifest.csv")[4:], [], {"4"}
    real = ClipDataset.read
    def shaky(self, row, *shape):
        reads.append(row.id)
        if row.id in gone: raise MediaError(row.path, "cannot be used", "x") from OSError(errno.ESTALE, "the server is away")
        return real(self, row, *shape)
    monkeypatch.setattr(ClipDataset, "read", shaky)
    made = Encoder(ClipDataset(rows, CONFIG.clip, retry=()), CONFIG, PARTS)
    source = MediaSource(made, limit=1.0)
    assert source.batch([0]).index.tolist() == [1] == source.batch([0]).index.tolist() and [s.id for s in source.report.skipped] == ["4"]
    assert reads.count("4") == 2
    source.batch([2]); source.expect([2, 2]); source.batch([2])                 # 6 is damaged
    assert reads.count("6") == 1 and not source.waiting
    write = lambda: write_cache(Encoder(ClipDataset(rows, CONFIG.clip, retry=()), CONFIG, PARTS), tmp_path, shard=3, limit=1.0, progress=False)
    assert write().ids == ["5"]
    gone.clear(); reads.clear()
    assert write().ids == ["4", "5"] and reads == ["4"]                         # nothing else was read again
    assert [s.id for s in write().report.skipped] == ["6"] and source.batch([0]).index.tolist() == [0]


def test_an_idle_process_leaves_its_neighbours_shard_alone(folder, tmp_path, monkeypatch):
    "What killed processes left is taken away by one that is alone, or when no shard is tried again."
    rows, gone, real = read_manifest(folder / "manifest.csv")[:3], {"0"}, ClipDataset.read
    def shaky(self, row, *shape):
        if row.id in gone: raise MediaError(row.path, "cannot be used", "x") from OSError(errno.ESTALE, "the server is away")
        return real(self, row, *shape)
    monkeypatch.setattr(ClipDataset, "read", shaky)
    write = lambda rank, world=2: write_cache(Encoder(ClipDataset(rows, CONFIG.clip, retry=()), CONFIG, PARTS), tmp_path, rank=rank, world=world, shard=1, limit=1.0, progress=False)
    part = tmp_path / ".shard-0.safetensors.part"
    write(0); part.touch()
    assert write(1).ids == ["1", "2"] and part.exists()                         # process 0 may try its first clip again
    write(0, world=1)
    assert not part.exists()
    part.touch(); gone.clear()
    assert write(0).ids == ["0", "1", "2"] and not part.exists()


def test_too_many_bad_files_stop_the_run(folder, tmp_path):
    rows = read_manifest(folder / "manifest.csv")
    rows = [rows[0], *[replace(rows[6], id=f"bad {i}") for i in range(3)]]
    with pytest.raises(MediaError, match="more than 50% of 4 clips cannot be used"): write_cache(encoder(folder, rows), tmp_path / "a", shard=1, progress=False)
    with pytest.raises(MediaError, match="more than 50% of 4 clips cannot be used"): MediaSource(encoder(folder, rows)).batch([1])
    with pytest.raises(MediaError, match="more than 50%"): MediaSource(encoder(folder, rows)).checked(progress=False)
    with pytest.raises(MediaError, match="not one of 3 clips"): write_cache(encoder(folder, rows[1:]), tmp_path / "b", limit=1.0, progress=False)
    kept = write_cache(encoder(folder, rows), tmp_path / "c", limit=0.8, progress=False)
    assert kept.ids == ["0"]


DAMAGES = {   # ten ways in which a file called .mp4 is none that can be trained on
    "empty": lambda good, g, d: b"",
    "first half": lambda good, g, d: good[:len(good) // 2],
    "second half": lambda good, g, d: good[len(good) // 2:],
    "zeros": lambda good, g, d: bytes(len(good)),
    "noise": lambda good, g, d: g.bytes(len(good)),
    "web page": lambda good, g, d: b"<!DOCTYPE html><html><body>404: not found</body></html>",
    "no sound": lambda good, g, d: written(replace(moving(90), audio=None), d / "x.mp4"),
    "no pictures": lambda good, g, d: written(replace(moving(91), video=None), d / "x.wav"),
    "too short": lambda good, g, d: written(moving(92, 1.0), d / "x.mp4"),
    "a photograph": lambda good, g, d: picture(d / "x.png")}


def written(clip, path):
    write_clip(clip, path)
    return path.read_bytes()


def picture(path):
    Image.fromarray(rng("picture").integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


def damaged_folder(d, n):
    "`n` files, a fifth of them damaged, in ten ways, in any order; the names of the damaged ones with the way."
    g = rng("damaged", n)
    good = [written(moving(i), d / "x.mp4") for i in range(n // 12)]
    (clips := d / "clips").mkdir()
    for i, data in enumerate(good): (d / f"good_{i}").write_bytes(data)
    order, ways = g.permutation(n), {}
    for k, i in enumerate(order.tolist()):
        path = clips / f"{i:03d}.mp4"
        if k < n // 5:
            ways[path.stem] = list(DAMAGES)[k % len(DAMAGES)]
            path.write_bytes(DAMAGES[ways[path.stem]](good[k % len(good)], g, d))
        else: os.link(d / f"good_{k % len(good)}", path)
    (clips / "manifest.csv").write_text("path,id,text\n" + "".join(f"{i:03d}.mp4,{i:03d},clip {i}\n" for i in range(n)))
    return clips, ways


def train(source, out, steps, batch):
    "The losses of a few steps of stage 3, and a hash of the weights after them."
    config = replace(CONFIG, train=replace(CONFIG.train, steps=steps, batch_size=batch), model=replace(CONFIG.model, depth=1, width=32, heads=2, video_channels=3, audio_channels=1, text_channels=1,
                     text_tokens=Words.tokens, skip="none"), codec=replace(CONFIG.codec, video_channels=3, video_stride=(4, 8, 8), audio_channels=1))
    torch.manual_seed(0)
    learn = flow_learner(JavisDiT(**vars(config.model)).init_weights("scratch", torch.Generator().manual_seed(0)), config, source, source.select([0, 1]), out, block=steps)
    with learn.no_bar(): train_steps(learn)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k.removeprefix("valid_") in ("video", "audio")} for row in rows], fingerprint(learn.model)


def damage_test(tmp_path, n):
    clips, ways = damaged_folder(tmp_path, n)
    assert sorted(set(ways.values())) == sorted(DAMAGES) and len(ways) == n // 5
    made = encoder(clips)
    kept, raw = write_cache(made, tmp_path / "cache", shard=32, progress=False), MediaSource(made)
    assert {s.id for s in kept.report.skipped} == set(ways) and len(kept) == n - n // 5
    assert str(kept.report).startswith(f"{n // 5} of {n} clips were skipped:")
    losses, _ = train(raw, tmp_path / "raw", n // 10, 10)                                     # an epoch: every file has its turn
    assert len(losses) >= 1 and all(len(x) == 2 and np.isfinite(list(x.values())).all() for x in losses)
    assert sorted(s.id for s in raw.report.skipped) == sorted(ways)                        # each of them once
    words = {"empty": "is empty", "no sound": "no sound track", "too short": "too short", "web page": "not a media file", "zeros": "not a media file"}
    for s in raw.report.skipped: assert words.get(ways[s.id], "") in s.reason and f"{s.id}.mp4" in s.reason
    a, b = MediaSource(made).checked(progress=False), kept
    assert len(a) == len(b)
    assert train(a, tmp_path / "a", 5, 8) == train(b, tmp_path / "b", 5, 8)


def test_fifty_files_of_which_ten_are_damaged(tmp_path): damage_test(tmp_path, 50)


@pytest.mark.slow
def test_five_hundred_files_of_which_a_hundred_are_damaged(tmp_path): damage_test(tmp_path, 500)


# ---- training on it

def test_which_source_is_behind_a_path(folder, tmp_path):
    write_cache(encoder(folder), tmp_path, progress=False)
    assert isinstance(open_source(tmp_path, CONFIG), CachedLatents) and isinstance(open_source(tmp_path, CONFIG, PARTS), CachedLatents)
    for path in (folder, folder / "manifest.csv"): assert len(open_source(path, CONFIG, PARTS)) == 7
    checked = open_source(folder, CONFIG, PARTS, check=True)
    assert isinstance(checked, MediaSource) and len(checked) == 6
    with pytest.raises(ValueError, match="video_codec has other weights"): open_source(tmp_path, CONFIG, (VideoBlocks(2.0), *PARTS[1:]))
    with pytest.raises(ValueError, match="clip.height was 32 and is 64: make one"): open_source(tmp_path, replace(CONFIG, clip=replace(CONFIG.clip, height=64)))
    with pytest.raises(ValueError, match="--negatives 2"): open_source(tmp_path, CONFIG, negatives=2)
    with pytest.raises(MediaError, match="does not exist"): open_source(tmp_path / "nothing.csv", CONFIG, PARTS)


def resident():
    "Bytes that this process holds by itself and of files, now."
    return sum(int(re.search(rf"{k}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) for k in ("RssAnon", "RssFile")) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not say what a process holds")
@pytest.mark.parametrize("tar", [False, True])
def test_memory_stays_flat_over_two_thousand_batches(tmp_path, tar):
    "A cache of 64 MB in 64 shards, of which two are open: what is held grows by less than a fifth of it."
    class Endless(Encoder):
        def encode(self, reading): return cache_module.Entry(dict(video=torch.full((64, 1024), float(reading.item.index % 100)).half(), audio=torch.zeros(8).half(), text=torch.ones(3, 2).half()), str(reading.item.index), "", (1, 8, 8))
        def read(self, key): return cache_module.Reading(cache_module.ClipItem(key, None, ""), 1, {})
    rows = [cache_module.Row(tmp_path / "x.mp4", "", str(i), 1, 1.0, 8, 8) for i in range(512)]
    write_cache(Endless(ClipDataset(rows, CONFIG.clip), CONFIG, PARTS), tmp_path / "cache", shard=8, tar=tar, progress=False)
    source, g = CachedLatents(tmp_path / "cache", keep=2), rng("memory")
    assert sum(p.stat().st_size for p in (tmp_path / "cache").glob("shard-*")) > 60e6
    def batches(n):
        for keys in g.integers(0, len(source), (n, 4)): assert source.batch(keys.tolist()).video[:, 0, 0].tolist() == [float(k % 100) for k in keys]
    batches(20)
    before = resident()
    batches(2000)
    assert resident() - before < 12e6
