"The four stages one after the other, headless: each takes what the one before wrote, and a clip comes out at the end."
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from notebooks import ROOT

from javisdit.core import tiny
from javisdit.dit import stage_of
from javisdit.media import read_clip
from javisdit.models import read_model
from javisdit.stages import StageParameters, stage_data
from javisdit.train_joint import TrainJoint
from javisdit.world import write_world

QUICK = dict(preset="tiny", steps=4, block=2, batch_size=4, workers=1)


def stage(notebook, folder, **parameters):
    "Run a stage's notebook through papermill."
    flags = [x for name, value in {**QUICK, **parameters}.items() for x in ("-p", name, str(value))]
    done = subprocess.run([sys.executable, "-m", "papermill", str(ROOT / "nbs" / f"{notebook}.ipynb"), "out.ipynb", *flags], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def command(name, *words):
    "Run a command of the package."
    done = subprocess.run([Path(sys.executable).with_name(name), *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def chain(folder, data, **parameters):
    "All four; returns the folders of the runs."
    runs = {name: folder / name for name in ("video", "audio", "prior", "joint")}
    more = dict(data=data, valid=4, **parameters)
    stage("04d_train_video", folder, **more, out_dir=runs["video"])
    stage("05_train_audio", folder, **more, out_dir=runs["audio"], video=runs["video"])
    stage("06_train_prior", folder, clips=6, valid=4, out_dir=runs["prior"], **{k: v for k, v in parameters.items() if k == "nproc"})
    stage("07_train_joint", folder, **more, out_dir=runs["joint"], **{k: runs[k] for k in ("video", "audio", "prior")})
    return runs


def check(runs):
    "Both streams are as stages 0 and 1 left them; what joins them has moved; sound alone and clips can be made."
    joint, video, audio = (read_model(runs[k]) for k in ("joint", "video", "audio"))
    assert joint.prior is not None and (video.streams, audio.streams) == (("video",), ("audio",))
    state, fresh = joint.dit.state_dict(), 0
    for part, branch in ((0, video), (1, audio)):
        own = {n: x for n, x in branch.dit.state_dict().items() if stage_of(n) == part}
        assert own and all(torch.equal(x, state[n]) for n, x in own.items()), f"stage 3 changed what stage {part} had trained"
    for n, x in state.items(): fresh += stage_of(n) == 3 and n.endswith("out.weight") and bool(x.any())
    assert fresh, "no part that joins the streams has learned anything"
    for run, name, flags in (("audio", "a.wav", ["--audio_only"]), ("joint", "c.mp4", [])):
        command("javisdit_generate", "a red ball bounces twice", "--model", runs[run], "--steps", 2, "--out", runs[run] / name, *flags)
    assert read_clip(runs["joint"] / "c.mp4").audio is not None and (runs["audio"] / "a.wav").stat().st_size > 1000


def test_raw_media_on_one_process(tmp_path):
    write_world(tmp_path / "world", 16, clip=tiny().clip, workers=1)
    check(chain(tmp_path, tmp_path / "world", encode_once=False))


@pytest.mark.slow
def test_a_cache_on_two_processes(tmp_path):
    write_world(tmp_path / "world", 16, clip=tiny().clip, workers=1)
    command("javisdit_cache", tmp_path / "world", tmp_path / "cache")
    check(chain(tmp_path, tmp_path / "cache", nproc=2))


def test_raw_once_and_cache_are_the_same_clips(tmp_path):
    write_world(tmp_path / "world", 12, clip=tiny().clip, workers=1)
    command("javisdit_cache", tmp_path / "world", tmp_path / "cache")
    each = [stage_data(StageParameters(data=str(tmp_path / d), valid=4, out_dir=str(tmp_path / f"{d} {once}"), encode_once=once)) for d, once in (("world", True), ("world", False), ("cache", True))]
    for part in (0, 1):
        once, raw, cached = (list(x[part].captions) for x in each)
        assert once == raw == cached
        for other in (each[1][part], each[2][part]):
            for side in ("video", "audio", "text"):
                a, b = (getattr(x.batch([0, 1]), side) for x in (each[0][part], other))
                assert torch.allclose(a, b, atol=2e-3), f"{side}: {(a - b).abs().max()}"       # single and together, half precision between


def test_both_streams_or_neither():
    with pytest.raises(ValueError, match="stage 3 joins two streams"): TrainJoint(video=".")
    with pytest.raises(ValueError, match="parameter prior = /nowhere: no such file"): TrainJoint(prior="/nowhere")
    assert TrainJoint().config.train.steps == tiny().train.steps
