"One process, DDP and FSDP compute the same training, and each goes on from a checkpoint of each other (chapter 04ca)."
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from javisdit.flow import read_log
from javisdit.launch import launch

WAYS = ("one", "ddp", "fsdp")


def compute(what, folder, *args):
    "What each of two processes returns that calls a function of shared.py."
    cell = "import sys\nsys.path.insert(0, tests)\nimport shared\nfrom javisdit.launch import give\ngive(**getattr(shared, what)(folder, *args))"
    return launch(cell, 2, dict(tests=str(Path(__file__).parent), what=what, folder=str(folder), args=args), timeout=1800)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    "What two processes compute, as rank 0 saw it."
    return compute("every_way", tmp_path_factory.mktemp("runs"), False)[0]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    "And from checkpoints."
    return compute("every_way", tmp_path_factory.mktemp("resumed"), True)[0]


def test_one_process_learns_and_everything_moves(results):
    losses = results["one.losses"]
    assert len(losses) == 20 and losses[-1] < 0.9 * losses[0], losses
    assert results["one.still"] == []


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_give_the_curve_of_one(results, way):
    torch.testing.assert_close(results[f"{way}.losses"], results["one.losses"], rtol=0, atol=1e-9)
    torch.testing.assert_close(results[f"{way}.weights"], results["one.weights"], rtol=0, atol=1e-9)
    assert results[f"{way}.still"] == []


def test_fsdp_holds_half(results):
    assert results["ddp.pieces"] == results["one.pieces"]
    assert 0.5 <= results["fsdp.pieces"] / results["one.pieces"] < 0.52


def test_two_processes_agree(tmp_path):
    both = compute("together", tmp_path)
    speed = {"steps_per_second", "clips_per_second"}
    logs = [[{k: x for k, x in row.items() if k not in speed} for row in read_log(tmp_path / name / "log.jsonl")] for name in ("whole", "broken")]
    assert logs[0] == logs[1] and [r["step"] for r in logs[0] if "video" in r] == [10]                     # rows that two lives share are whole
    assert both[0]["bad"] == both[1]["bad"] and len(both[0]["bad"].partition("clips: ")[2].partition(". Look")[0].split(", ")) == 2      # one of two micro batches
    assert " 5" in both[0]["bad"]
    for engine in ("ddp", "fsdp"): assert sorted(p.name for p in (tmp_path / engine / "samples").iterdir()) == ["step-00000002-0.mp4", "step-00000004-0.mp4"]
    torch.testing.assert_close(both[0]["ddp"], both[0]["fsdp"], rtol=1e-4, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("source", WAYS)
@pytest.mark.parametrize("way", WAYS)
def test_any_number_of_processes_resumes_any_checkpoint(resumed, source, way):
    name = f"{source}-{way}"
    assert resumed[f"{name}.start"] == 10
    torch.testing.assert_close(resumed[f"{name}.losses"], resumed["one.losses"][10:], rtol=0, atol=1e-9)
    torch.testing.assert_close(resumed[f"{name}.weights"], resumed["one.weights"], rtol=0, atol=1e-9)


@pytest.mark.slow
def test_stage_3_on_two_processes_and_on_one_again(tmp_path):
    "Chapter 07 under papermill with FSDP; then the command goes on alone from what two processes wrote."
    settings = dict(steps=6, clips=24, valid=8, block=3, batch_size=4, workers=1, out_dir=str(tmp_path / "run"))
    notebook = Path(__file__).resolve().parents[1] / "nbs" / "07_train_joint.ipynb"
    flags = [word for k, v in dict(settings, nproc=2, engine="fsdp").items() for word in ("-p", k, str(v))]
    run = subprocess.run([sys.executable, "-m", "papermill", str(notebook), str(tmp_path / "out.ipynb"), *flags], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert (tmp_path / "run/checkpoints/step-00000006/pieces").is_dir() and (tmp_path / "run/model/config.json").exists() and (tmp_path / "run/heldout.json").exists()
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000006")
    options = [word for k, v in settings.items() for word in (f"--{k}", str(v))]
    again = subprocess.run([sys.executable, "-c", "from javisdit.launch import javisdit_train; javisdit_train()", "joint", *options], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-3000:]
    assert json.loads(again.stdout.splitlines()[-1]) | dict(learning=0) == dict(steps=6, processes=1, learning=0)
