"""Damaged files: each must give a correct clip, or a MediaError, within 10 s and 1 GB; `python tests/fuzz_media.py --n 1000 --seed 0`.

A correct clip has the asked number of pictures and samples, of the right type and range, and where both flashes can still be seen and both
clicks be heard, they lie within half a picture (and a frame of sound, for AVI) of each other, or as far apart as the damaged file itself states. The pictures and sounds themselves may differ from
the undamaged file's: a flipped byte inside a compressed picture is a smear that nobody can tell from a picture.
The report counts clips that are equal to the undamaged file's, clips that differ, and errors; anything else is a failure.
"""
import argparse
import csv
import json
import os
import resource
import selectors
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

SECONDS, MEMORY = 10, 1 << 30
KINDS = ("mp4-libx264-aac", "mp4-libx264-aac-fragments", "mov-libx265-pcm_s16le", "mkv-libx264-libmp3lame", "mkv-mpeg4-vorbis", "webm-libvpx-vp9-libopus", "avi-mpeg4-libmp3lame",
         "avi-mpeg2video-pcm_s16le", "ts-libx264-aac-transport_stream", "mpg-mpeg2video-mp2-program_stream", "ogv-theora-vorbis-theora", "mov-qtrle-pcm_s16le-transparent",
         "webm-libvpx-vp9-libopus-transparent", "wav-pcm_f32le-sound_alone", "flac-flac-sound_alone", "ogg-libopus-sound_alone", "mp3-libmp3lame-sound_alone", "m4a-aac-sound_alone")
DAMAGES = "cut", "bytes", "header", "bits", "swap", "hole", "tail", "less"


# ---- making damaged files

def originals(folder):
    "One undamaged file of each kind, with its case, and pictures."
    from formats import cases, make
    from PIL import Image
    by_id = {c.id: c for c in cases()}
    found = [(make(by_id[k], folder), by_id[k]) for k in KINDS]
    ramp = Image.fromarray(np.indices((40, 60)).sum(0).astype(np.uint8)[..., None].repeat(3, -1))
    for ending in ("png", "jpg", "webp", "gif"):
        ramp.save(path := Path(folder) / f"picture.{ending}")
        found.append((path, None))
    return found


def damaged(data, others, how, g):
    "The bytes of a file after an accident."
    b = bytearray(data)
    at = int(g.integers(0, len(b)))
    if how == "cut": return bytes(b[:at])
    if how == "tail": return bytes(b[at:])
    if how == "bytes":
        for i in g.integers(0, len(b), 1 + int(g.integers(0, 30))): b[i] = g.integers(0, 256)
    if how == "bits":
        for i in g.integers(0, len(b), 1 + int(g.integers(0, 5))): b[i] ^= 1 << int(g.integers(0, 8))
    if how == "header":                                                 # most headers stand in the first or the last kilobytes
        near = min(2000, len(b))
        for i in g.integers(0, near, 1 + int(g.integers(0, 8))): b[i if g.integers(0, 2) else -1 - i] = g.integers(0, 256)
    if how == "swap":
        other = others[int(g.integers(0, len(others)))]
        n = int(g.integers(16, 1500))
        b[:n] = other[:n]
    if how == "hole": b[at:at + int(g.integers(1, 4000))] = bytes(g.integers(0, 256, 1, dtype=np.uint8)) * int(g.integers(0, 4000))
    return bytes(b)


def without(path, which, target):
    "Copy a file without its pictures or without its sound."
    import av
    with av.open(str(path)) as i, av.open(str(target), "w", format=i.format.name.split(",")[0] if i.format.name != "mov,mp4,m4a,3gp,3g2,mj2" else "mp4") as o:
        copies = {s: o.add_stream_from_template(s) for s in (i.streams.audio if which == "video" else i.streams.video)}
        for p in i.demux(*copies):
            if p.dts is None: continue
            p.stream = copies[p.stream]
            o.mux(p)


def damage_all(folder, n, seed):
    "`n` damaged files: (path, what was damaged, how)."
    folder = Path(folder)
    found, g, made = originals(folder), np.random.default_rng(seed), []
    contents = [p.read_bytes() for p, _ in found]
    for k in range(n):
        (path, case), how = found[k % len(found)], DAMAGES[int(g.integers(0, len(DAMAGES)))]
        target = folder / f"{k:04d}{path.suffix}"
        if how == "less":
            try: without(path, ("video", "audio")[int(g.integers(0, 2))], target)
            except Exception: how = "bits"                              # the container cannot be without: damage it otherwise
        if how != "less": target.write_bytes(damaged(contents[k % len(found)], contents, how, g))
        made.append(dict(path=str(target), original=str(path), kind=case.id if case else path.name, how=how))
    return made


# ---- reading them, in a process that may die

def asked(job):
    "Read as a data loader would."
    from javisdit.formats import read_image
    from javisdit.media import read_audio, read_clip
    from formats import cases
    if job["kind"].startswith("picture"): return lambda path: read_image(path, size=(32, 48))
    case = {c.id: c for c in cases()}[job["kind"]]
    if not case.video: return lambda path: read_audio(path, 16000, start=0.25, seconds=1.5)
    return lambda path: read_clip(path, fps=24, size=(32, 32), sample_rate=16000, start=0.25, seconds=1.5)


def wrong(got):
    "What is wrong with a result, in words; empty if nothing."
    from javisdit.media import Clip
    if isinstance(got, np.ndarray) and got.dtype == np.uint8: return "" if got.shape == (32, 48, 3) else f"picture of {got.shape}"
    audio = got.audio if isinstance(got, Clip) else got
    if audio.shape != (24000,) or audio.dtype != np.float32 or not np.isfinite(audio).all() or np.abs(audio).max() > 1: return f"sound {audio.shape} {audio.dtype}"
    if isinstance(got, Clip) and (got.video.shape != (36, 32, 32, 3) or got.video.dtype != np.uint8): return f"pictures {got.video.shape} {got.video.dtype}"
    return ""


def apart(clip):
    "The largest distance in seconds between a flash and the click nearest to it; 0 if there are none to compare."
    from formats import flashes
    heard = np.flatnonzero(np.abs(clip.audio) > 0.4) / clip.sample_rate
    heard = heard[np.diff(heard, prepend=-1) > 0.05]
    seen = flashes(clip)
    if len(seen) != 2 or len(heard) != 2: return 0.0
    return float(np.abs(seen - heard).max())


def stated(path):
    "The same distance by what the file itself states: everything decoded from the beginning, with PyAV alone."
    import av
    with av.open(str(path)) as c: seen = [f.time for f in c.decode(video=0) if f.to_ndarray(format="gray").mean() > 150]
    with av.open(str(path)) as c:
        heard = [f.time + np.abs(x).argmax() / f.sample_rate for f in c.decode(audio=0) if np.abs(x := f.to_ndarray().reshape(-1).astype(float)).max() > 0.4 * (32768 if f.format.name[:3] == "s16" else 1)]
    first = lambda times: [t for i, t in enumerate(times) if not i or t > times[i - 1] + 0.05]
    seen, heard = first(seen), first(heard)
    return max(abs(s - h) for s, h in zip(seen, heard)) if len(seen) == len(heard) else float("inf")


def same(a, b):
    from javisdit.media import Clip
    if not isinstance(a, Clip): return bool(np.array_equal(a, b))
    return bool(np.array_equal(a.video, b.video) and np.array_equal(a.audio, b.audio))


def outcome(job, whole):
    "(word, detail) of one file."
    from javisdit.core import MediaError
    from javisdit.media import Clip
    read = asked(job)
    if job["original"] not in whole: whole[job["original"]] = read(job["original"])
    try: got = read(job["path"])
    except MediaError as e: return "error", e.reason
    if said := wrong(got): return "wrong", said
    if same(got, whole[job["original"]]): return "equal", ""
    off = apart(got) if isinstance(got, Clip) else 0.0
    near = 0.5 / 24 + 1152 / 48000
    return ("moved" if off > near and abs(off - stated(job["path"])) > near else "different"), f"{1000 * off:.0f} ms apart"


def worker():
    "Read jobs from standard input, one a line; answer with one line each."
    import javisdit.formats, formats                                    # noqa: F401, E401  imports are not the files' fault
    warnings.simplefilter("ignore")
    whole = {}
    for line in sys.stdin:
        job, opened = json.loads(line), len(os.listdir("/proc/self/fd"))
        print(json.dumps(dict(start=job["path"])), flush=True)
        began = time.perf_counter()
        try: word, detail = outcome(job, whole)
        except BaseException as e: word, detail = "escaped", f"{type(e).__name__}: {e}"
        if len(os.listdir("/proc/self/fd")) > opened: word, detail = "leak", f"{os.listdir('/proc/self/fd')}"
        print(json.dumps(dict(path=job["path"], word=word, detail=detail, seconds=time.perf_counter() - began,
                              memory=formats.memory_now(peak=True) * 2**20)), flush=True)


# ---- watching over them

def limits(): resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30)); resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(jobs):
    "Outcomes of all jobs; a worker that dies or hangs is replaced, and its file is to blame."
    answers, todo = [], list(jobs)
    while todo:
        with subprocess.Popen([sys.executable, __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, preexec_fn=limits) as p:
            blame = watch(p, todo, answers)
        if blame: answers.append(dict(todo.pop(0), **blame))
    return answers


def watch(p, todo, answers):
    "Feed one worker until it is done (None) or has failed on the first of `todo` (why)."
    with selectors.DefaultSelector() as ready:
        ready.register(p.stdout, selectors.EVENT_READ)
        while todo:
            try: p.stdin.write(json.dumps(todo[0]).encode() + b"\n")
            except BrokenPipeError: pass
            started, patience = False, 120                              # importing torch may take a while
            while True:
                if not ready.select(patience): p.kill(); return dict(word="hang", detail=f"more than {patience} s", seconds=patience, memory=0)
                line = p.stdout.readline()
                if not line: return dict(word="crash", detail=f"exit {p.wait()}", seconds=0, memory=0) if started else dict(word="crash", detail="at start", seconds=0, memory=0)
                answer = json.loads(line)
                if "start" in answer: started, patience = True, SECONDS
                else: break
            if answer["seconds"] > SECONDS: answer["word"] = "slow"
            if answer["memory"] > MEMORY: answer["word"] = "big"
            answers.append(dict(todo.pop(0), **answer))
            if answer["memory"] > MEMORY: return None                   # the peak stays: a new process for the rest
        p.stdin.close()
    return None


BAD = {"wrong", "moved", "escaped", "leak", "hang", "crash", "slow", "big"}


def failures(answers): return [a for a in answers if a["word"] in BAD]


def write_table(answers, path):
    "A row a kind of damage: how many files, and what came of them."
    with open(path, "w", newline="") as f:
        out = csv.writer(f, lineterminator="\n")
        out.writerow(("how", "files", "equal", "different", "error", "bad", "seconds", "memory_mb"))
        for how in DAMAGES:
            rows = [a for a in answers if a["how"] == how]
            words = Counter(a["word"] for a in rows)
            out.writerow((how, len(rows), words["equal"], words["different"], words["error"], sum(words[w] for w in BAD),
                          f"{max(a['seconds'] for a in rows):.2f}", f"{max(a['memory'] for a in rows) / 1e6:.0f}"))


def fuzz(n, seed, folder):
    return run(damage_all(folder, n, seed))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000, help="files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the damaged files, and answers.json")
    parser.add_argument("--table", type=Path, help="a csv file for the counts")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker: return worker()
    with tempfile.TemporaryDirectory() as folder:
        answers = fuzz(args.n, args.seed, args.keep or folder)
    if args.keep: (args.keep / "answers.json").write_text(json.dumps(answers, indent=1))
    if args.table: write_table(answers, args.table)
    for word, count in Counter(a["word"] for a in answers).most_common(): print(f"{count:5d} {word}")
    print(f"slowest {max(a['seconds'] for a in answers):.2f} s, most memory {max(a['memory'] for a in answers) / 1e6:.0f} MB")
    for a in answers:
        if a["word"] in BAD: print(f"{a['word']}: {a['kind']}, {a['how']}: {a['detail']} ({Path(a['path']).name})")
    sys.exit(bool(failures(answers)))


if __name__ == "__main__": main()
