"Guards of chapter 08a: the command with lists of prompts, when it is killed, shared out, or out of room; long clips; files as modes."
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from javisdit.conditional import MODES, condition, javisdit_generate, read_prompts, stretches, write_stretches
from javisdit.core import MediaError
from javisdit.media import Clip, read_clip, read_settings
from javisdit.sampler import JavisDiTPipeline
from javisdit.world import world_clip

PROMPTS = [f"a {c} ball bounces {n}" for c in ("red", "blue") for n in ("once", "twice", "twice on the left")]


@pytest.fixture(scope="module")
def pipe():
    pipe = JavisDiTPipeline.from_pretrained("tiny")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return tmp_path / "prompts.txt"


def made(folder): return sorted(p.name for p in folder.iterdir() if p.suffix == ".mp4" and not p.name.startswith("."))


def test_a_killed_list_goes_on(prompts, tmp_path):
    out = tmp_path / "clips"
    command = [sys.executable, "-c", f"from javisdit.conditional import javisdit_generate as g; g({str(prompts)!r}, {str(out)!r}, steps=1)"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while not (out.is_dir() and len(made(out)) >= 2) and running.poll() is None and time.monotonic() < until: time.sleep(0.02)
    running.send_signal(signal.SIGKILL), running.wait()
    before = {name: ((out / name).stat().st_mtime_ns, (out / name).read_bytes()) for name in made(out)}
    assert len(before) >= 2
    javisdit_generate(str(prompts), str(out), steps=1)
    assert made(out) == [f"sample_{i:04d}.mp4" for i in range(6)] and not [*out.glob(".sample*")]
    for name, (stamp, content) in before.items(): assert (out / name).stat().st_mtime_ns == stamp and (out / name).read_bytes() == content
    for i, p in enumerate(PROMPTS): assert (s := read_settings(out / f"sample_{i:04d}.mp4"))["prompt"] == p and s["seed"] == i
    assert (out / "manifest.csv").read_text().splitlines()[:2] == ["path,text,seed", f"sample_0000.mp4,{PROMPTS[0]},0"]


def test_processes_share_a_list(prompts, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        javisdit_generate(str(prompts), str(tmp_path / "two"), steps=1)
        assert made(tmp_path / "two") == [f"sample_{i:04d}.mp4" for i in (range(0, 6, 2) if rank == "0" else range(6))]
    monkeypatch.setenv("WORLD_SIZE", "1"), monkeypatch.setenv("RANK", "0")
    javisdit_generate(str(prompts), str(tmp_path / "one"), steps=1)
    for name in made(tmp_path / "one"):
        a, b = (tmp_path / "one" / name, tmp_path / "two" / name)
        assert read_settings(a) == read_settings(b) and np.abs(read_clip(a).video.astype(int) - read_clip(b).video).mean() < 1     # to rounding, see chapter 08


def test_no_room(prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(SystemExit, match="6 clips need about 0.. MB where 0.0 MB are free"): javisdit_generate(str(prompts), str(tmp_path / "clips"), steps=1)
    assert not (tmp_path / "clips").exists()


def test_a_file_is_there_when_it_is_whole(tmp_path, monkeypatch):
    def breaks(clip, part, **more):
        Path(part).write_bytes(b"half")
        raise MediaError(part, "no space left on device", "make room")
    with monkeypatch.context() as m, pytest.raises(SystemExit, match="make room"):
        m.setattr(Clip, "save", breaks)
        javisdit_generate("a red ball bounces", str(tmp_path / "a.mp4"), steps=1)
    assert not [*tmp_path.iterdir()]
    with pytest.raises(MediaError, match="cannot be written.*make room"): write_stretches(iter([world_clip(0).clip]), "/dev/full", kind="mp4")


def test_lists_of_prompts(tmp_path):
    bench = tmp_path / "JavisBench.csv"
    bench.write_text('path,id,text,cat0_ind\na.mp4,1,"a dog, barking",1\nb.mp4,2,rain,2\n')
    assert read_prompts(str(bench)) == ["a dog, barking", "rain"] and read_prompts("a sentence. csv") == ["a sentence. csv"]
    (tmp_path / "p.csv").write_text("prompt\nx\ny\n")
    assert read_prompts(str(tmp_path / "p.csv")) == ["x", "y"]
    for name, text, says in (("a.csv", "id\n1\n", "no column prompt or text, but id"), ("b.txt", "\n \n", "holds no prompt"), ("c.csv", "", "but nothing")):
        (tmp_path / name).write_text(text)
        with pytest.raises(MediaError, match=says): read_prompts(str(tmp_path / name))
    (tmp_path / "d.csv").write_text("text,id\n,1\nx,2\n")
    with pytest.raises(SystemExit, match="prompt 0 is ''"): javisdit_generate(str(tmp_path / "d.csv"), str(tmp_path / "out"))
    with pytest.raises(SystemExit, match="10,000 characters"): javisdit_generate("ball " * 2000, str(tmp_path / "x.mp4"))


def test_modes_on_clips_of_the_world(pipe):
    "Whatever is given comes back bit for bit, decoded it is what the codecs make of it; everything else is new."
    clips = [world_clip(i).clip for i in range(3)]
    captions = [world_clip(i).caption for i in range(3)]
    for mode in MODES:
        sources = () if mode == "text" else [*zip(clips, clips[1:] + clips[:1])] if mode == "interpolate" else clips
        given = condition(pipe, mode, sources)[[0, 0, 0] if mode == "text" else slice(None)]
        x = pipe(captions, steps=1, given=given, output="latents")
        for a, (z, s) in zip(x, given.streams):
            kept = s[0] == 0
            assert torch.equal(a[:, :, kept], z[:, :, kept]) and (kept.all() or not torch.equal(a[:, :, ~kept], z[:, :, ~kept]))
    again = pipe(captions, steps=1, given=condition(pipe, "video-to-audio", clips))
    real = pipe.video_codec.decode(pipe.video_codec.encode(torch.stack([torch.from_numpy(c.video).permute(3, 0, 1, 2).float() / 127.5 - 1 for c in clips])), 48)
    for made_clip, x in zip(again, real): assert np.abs(made_clip.video - ((x.permute(1, 2, 3, 0).numpy() + 1) * 127.5)).max() <= 0.51


def test_other_rates_and_sizes_are_converted(pipe):
    clip = world_clip(0).clip
    other = clip.resample(fps=30, size=(64, 80), sample_rate=44100)
    for mode in ("video-to-audio", "audio-to-video", "image", "extend"):
        given = condition(pipe, mode, other)
        assert given.video.shape[1:] == pipe.settings.video_latent and (given.video_share.min() == 0 or given.audio_share.min() == 0)
    a, b = condition(pipe, "audio-to-video", clip).audio, condition(pipe, "audio-to-video", replace(clip, audio=clip.audio[:-100])).audio
    assert (a - b).abs().mean() < 0.1 * a.abs().mean()
    with pytest.raises(ValueError, match="1.988 s of sound where 2.000 s"): condition(pipe, "audio-to-video", replace(clip, audio=clip.audio[:-200]))


def test_image_with_a_sound(tmp_path, pipe):
    clip = world_clip(0).clip
    clip.save(tmp_path / "clip.mp4"), Image.fromarray(clip.video[0]).save(tmp_path / "first.png")
    javisdit_generate("a ball", str(tmp_path / "made.mp4"), image=str(tmp_path / "first.png"), audio=str(tmp_path / "clip.mp4"), steps=1)
    javisdit_generate("a ball", str(tmp_path / "between.webm"), extend=str(tmp_path / "clip.mp4"), to=str(tmp_path / "clip.mp4"), steps=1)
    javisdit_generate("a ball", str(tmp_path / "a.wav"), audio_only=True, guidance="2,1", negative="a bell", size="32x40", seconds=1, steps=1)
    assert read_settings(tmp_path / "made.mp4")["mode"] == "image+audio" and read_settings(tmp_path / "between.webm")["mode"] == "interpolate"
    assert len(read_clip(tmp_path / "made.mp4").video) == 48


def seams(parts):
    "Frame difference and spectral flux where stretches are joined, as ranks among those at all borders of latent frames (four pictures), and of all sound."
    video, audio = np.concatenate([p.video for p in parts]).astype(float), np.concatenate([p.audio for p in parts])
    moved = np.abs(np.diff(video, axis=0)).mean((1, 2, 3))
    power = np.log1p(np.abs(np.lib.stride_tricks.sliding_window_view(audio, 512)[::160] * np.hanning(512) @ np.exp(-2j * np.pi * np.outer(np.arange(512), np.arange(257)) / 512)))
    flux = np.maximum(np.diff(power, axis=0), 0).sum(1)
    at = np.cumsum([len(p.video) for p in parts])[:-1]
    return [(moved[3::4] < moved[k - 1]).mean() for i in at for k in (i, i + 4) if k < len(video)], [(flux < flux[int(i / 0.24) - 3:int(i / 0.24) + 3].mean()).mean() for i in at]


@pytest.mark.slow
def test_a_minute_in_the_memory_of_a_clip(pipe):
    sizes, parts = [], []
    for part in stretches(pipe, "|0| a red ball bounces twice |20| a blue drum is struck", 60, steps=4):
        parts.append(part)
        sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - sum(p.video.nbytes + p.audio.nbytes for p in parts) / 1e6)
    assert sum(len(p.video) for p in parts) == 60 * 24 and sum(len(p.audio) for p in parts) == 60 * 16000
    assert sizes[-1] - sizes[9] < 20, sizes
    moved, flux = seams(parts)
    print(f"seams: median rank of frame difference {np.median(moved):.2f}, of spectral flux {np.median(flux):.2f}")
    assert np.median(moved) < 0.95 and np.median(flux) < 0.95
