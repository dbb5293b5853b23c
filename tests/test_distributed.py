"One process, DDP and FSDP compute the same training, and each goes on from a checkpoint of each other (chapter 04ca)."
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from javisdit.launch import launch

WAYS = ("one", "ddp", "fsdp")


def compute(folder, resume):
    cell = "import sys\nsys.path.insert(0, tests)\nfrom javisdit.launch import give\nfrom shared import every_way\ngive(**every_way(folder, resume))"
    return launch(cell, 2, dict(tests=str(Path(__file__).parent), folder=str(folder), resume=resume), timeout=1800)[0]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    "What two processes compute, as rank 0 saw it."
    return compute(tmp_path_factory.mktemp("runs"), resume=False)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    "And from checkpoints."
    return compute(tmp_path_factory.mktemp("resumed"), resume=True)


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
    assert json.loads(again.stdout.splitlines()[-1]) | dict(parameters=0) == dict(steps=6, processes=1, parameters=0)
