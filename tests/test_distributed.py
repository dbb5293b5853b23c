"One process, DDP and FSDP compute the same training, and each goes on from a checkpoint of each other (chapter 04ca)."
from pathlib import Path

import pytest
import torch

from javisdit.launch import launch

WAYS = ("one", "ddp", "fsdp")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    "Everything that two processes compute, as rank 0 saw it."
    cell = "import sys\nsys.path.insert(0, tests)\nfrom javisdit.launch import give\nfrom shared import every_way\ngive(**every_way(folder))"
    given = dict(tests=str(Path(__file__).parent), folder=str(tmp_path_factory.mktemp("runs")))
    return launch(cell, 2, given, timeout=900)[0]


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


@pytest.mark.parametrize("source", WAYS)
@pytest.mark.parametrize("way", WAYS)
def test_any_number_of_processes_resumes_any_checkpoint(results, source, way):
    name = f"{source}-{way}"
    assert results[f"{name}.start"] == 10
    torch.testing.assert_close(results[f"{name}.losses"], results["one.losses"][10:], rtol=0, atol=1e-9)
    torch.testing.assert_close(results[f"{name}.weights"], results["one.weights"], rtol=0, atol=1e-9)
