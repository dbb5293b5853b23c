"The four stages one after the other, headless: each takes what the one before wrote, and a clip comes out at the end."
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback
from notebooks import ROOT

import javisdit.stages as stages_module
from javisdit.core import tiny
from javisdit.dit import stage_of
from javisdit.media import read_clip, write_clip
from javisdit.models import read_model
from javisdit.stages import StageParameters, stage_data
from javisdit.train_audio import TrainAudio, run as run_audio
from javisdit.train_joint import TrainJoint, run
from javisdit.world import world_clip, write_world

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


class Lengths(Callback):
    "Notes how many latent frames the clips of each step have."
    order, run_valid = 5, False
    def __init__(self): self.seen = []
    def after_pred(self): self.seen.append(tuple(x.shape[2] for x in self.xb[:2]))


@pytest.mark.parametrize("once", [True, False])
def test_clips_of_two_lengths_and_a_resumed_run(tmp_path, monkeypatch, once):
    "Buckets from raw media and from kept latents; a run in two lives is the run in one, bit for bit."
    write_world(tmp_path / "world", 16, clip=tiny().clip, workers=1)
    (tmp_path / "table.json").write_text(json.dumps({"32x32": {"48": [[1.0, 0.5], 2], "24": [1.0, 2]}}))
    parameters = lambda name: TrainJoint(data=str(tmp_path / "world"), valid=4, steps=6, block=3, buckets=str(tmp_path / "table.json"), encode_once=once, masks="paper", workers=1, out_dir=str(tmp_path / name))
    real, watch = stages_module.train_steps, Lengths()
    def watched(learn, train=real): learn.add_cb(watch); train(learn)
    monkeypatch.setattr(stages_module, "train_steps", watched)
    run(parameters("whole"))
    whole, watch.seen = watch.seen, []
    assert set(whole) == {(12, 50), (6, 26)} and len(whole) == 6
    monkeypatch.setattr(stages_module, "train_steps", lambda learn: watched(learn, lambda learn: learn.fit(1)))
    assert run(parameters("twice"))["steps"] == 3
    monkeypatch.setattr(stages_module, "train_steps", watched)
    assert run(parameters("twice"))["steps"] == 6 and watch.seen == whole
    a, b = (read_model(tmp_path / name).dit.state_dict() for name in ("whole", "twice"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_buckets_for_more_processes_than_the_presets_batch(tmp_path, monkeypatch):
    "As `paper` on a node of eight GPUs: a batch of 4 in the preset, 8 parts of a step, and batches from the buckets."
    write_world(tmp_path / "world", 12, clip=tiny().clip, workers=1)
    (tmp_path / "table.json").write_text(json.dumps({"32x32": {"48": [1.0, 1]}}))
    p = TrainJoint(data=str(tmp_path / "world"), valid=4, steps=1, block=1, buckets=str(tmp_path / "table.json"), workers=1, out_dir=str(tmp_path / "run"))
    wide = replace(p.config, train=replace(p.config.train, batch_size=4, micro=8))
    monkeypatch.setattr(TrainJoint, "config", property(lambda self: wide))
    assert run(p)["steps"] == 1


def test_sound_without_pictures(tmp_path):
    "Stage 1 from files of sound alone."
    for i in range(8): write_clip(replace(world_clip(i).clip, video=None), tmp_path / f"{i}.wav")
    (tmp_path / "sounds.csv").write_text("path,id,audio_path,num_frames,fps,audio_fps,audio_text\n" + "".join(f",{i},{i}.wav,48,24,16000,a bell rings\n" for i in range(8)))
    p = TrainAudio(data=str(tmp_path / "sounds.csv"), valid=2, steps=1, block=1, batch_size=2, workers=1, out_dir=str(tmp_path / "run"))
    assert run_audio(p)["steps"] == 1 and read_model(tmp_path / "run").streams == ("audio",)


def test_what_cannot_be_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="parameter batch_size = 4: buckets bring their own"): StageParameters(buckets="joint", batch_size=4)
    with pytest.raises(ValueError, match="choose audio or joint, or a JSON file"): StageParameters(buckets="/nowhere.json").table
    assert TrainJoint(preset="paper").table.config.keys() >= {"240p", "720p"} and TrainJoint(preset="paper", buckets="none").table is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no clips"): stage_data(StageParameters(data=str(tmp_path / "empty"), out_dir=str(tmp_path / "run")))
    with pytest.raises(ValueError, match="precision = half: choose one of float32, bfloat16"): TrainJoint(precision="half")
    with pytest.raises(ValueError, match="give init or the two streams"): TrainJoint(init=str(tmp_path), video=str(tmp_path), audio=str(tmp_path))
    assert not (tmp_path / "run").exists()
