"Processes start, fail and end as chapter 04c says, and none stays behind."
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from javisdit.launch import Processes, RankError, command, javisdit_train, launch, processes, run_stage

SLEEPS = "import subprocess, sys, time\nprint('rank 0 is here', flush=True)\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\ntime.sleep(600)"
KERNEL = """
import os, sys, time
from javisdit.launch import launch
if os.fork() == 0: time.sleep(600); os._exit(0)     # a data loader's worker, say: it must not keep the leash
launch({cell!r}, 2, folder={folder!r}, timeout={timeout}, grace=5)
"""


def family(folder):
    "Living processes that were launched with this folder: the launcher, its ranks, and what they started."
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            if f"JAVISDIT_LAUNCH={folder}".encode() in (proc / "environ").read_bytes().split(b"\0") and (proc / "stat").read_text().rpartition(")")[2].split()[0] != "Z": found.append(int(proc.name))
        except (OSError, ProcessLookupError): pass
    return found


def wait_until(condition, seconds, what):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.2)


@pytest.fixture
def kernel(tmp_path):
    "A process that launches two sleeping ranks, when they sleep."
    folder = (tmp_path / "run").resolve()
    run = subprocess.Popen([sys.executable, "-c", KERNEL.format(cell=SLEEPS, folder=str(folder), timeout=None)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))     # a job in the background is born deaf to interrupts
    assert run.stdout.readline() == "rank 0 is here\n"                        # shown while the ranks run
    wait_until(lambda: len(family(folder)) >= 5, 60, "two ranks with a child each and their launcher")
    yield run, folder
    try: os.killpg(run.pid, signal.SIGKILL)
    except ProcessLookupError: pass


def test_a_killed_kernel_leaves_no_orphan(kernel):
    run, folder = kernel
    run.kill()
    wait_until(lambda: not family(folder), 20, f"still there: {family(folder)}")


def test_an_interrupt_stops_all_and_is_raised(kernel):
    run, folder = kernel
    run.send_signal(signal.SIGINT)
    wait_until(lambda: run.poll() is not None, 120, "the interrupted kernel goes on")
    assert not family(folder)
    os.killpg(run.pid, signal.SIGKILL)                                        # the forked one holds stderr open
    assert "KeyboardInterrupt" in run.stderr.read()


def test_a_timeout_stops_all(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(TimeoutError, match="not done after 12 s"): launch(SLEEPS, 2, folder=folder, timeout=12)
    wait_until(lambda: not family(folder), 10, f"still there: {family(folder)}")


def test_a_rank_that_was_killed_is_named(tmp_path):
    cell = "import os, signal, torch, torch.distributed as dist\nprint('about to go')\nif dist.get_rank() == 1: os.kill(os.getpid(), signal.SIGKILL)\ndist.all_reduce(torch.ones(1))"
    with pytest.raises(RankError, match="rank 1 failed: killed by SIGKILL") as told: launch(cell, 2, folder=tmp_path, timeout=120)
    assert told.value.rank == 1 and told.value.details == "about to go"


def test_a_cell_sees_what_was_passed_and_nothing_else(tmp_path, capsys):
    cell = "mine = sorted(k for k in globals() if not k.startswith('__'))\nimport sys\nfrom javisdit.launch import give\nprint('half a line', end='')\ngive(mine=mine, x=x * 2)\ngive(more=[1, None])\nsys.exit()"
    result, = launch(cell, 1, dict(x=torch.arange(3.), word="ö"), folder=tmp_path, timeout=120)
    assert result["mine"] == ["word", "x"] and result["x"].tolist() == [0, 2, 4] and result["more"] == [1, None]
    assert capsys.readouterr().out == "half a line"


def test_impossible_wishes():
    for wish in (0, "many", -1, 1.5):
        with pytest.raises(ValueError, match="nproc"): processes(wish)
    with pytest.raises(ValueError, match="host:port"): command(1, nnodes=2)
    with pytest.raises(ValueError, match="cannot be imported"): launch(lambda: None, 1)
    with pytest.raises(TypeError, match="net is a Linear"): launch("pass", 1, dict(net=torch.nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="choose one of"): run_stage("dessert", Processes())
    with pytest.raises(SystemExit, match="choose one of"): javisdit_train(["dessert"])


def notebook(*cells):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in ("%load_ext javisdit.launch", *cells)], metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")))


FAILS = "%%torchrun -n 2 --timeout 120\nimport torch.distributed as dist\nif dist.get_rank() == 1: raise ArithmeticError('two and two')"


def test_a_notebook_goes_red_and_names_the_rank():
    with pytest.raises(CellExecutionError, match=r"(?s)rank 1 failed.*ArithmeticError.*two and two"): NotebookClient(notebook(FAILS), timeout=300, kernel_name="python3").execute()


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["papermill", "nbdev_test"])
def test_tools_go_red(tool, tmp_path):
    path, tools = tmp_path / "page.ipynb", Path(sys.executable).parent
    nbformat.write(notebook(FAILS), path)
    args = [tools / "papermill", path, tmp_path / "out.ipynb"] if tool == "papermill" else [tools / "nbdev_test", "--path", path, "--n_workers", "1"]
    run = subprocess.run(args, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[1])
    assert run.returncode and "two and two" in run.stdout + run.stderr, run.stderr


@pytest.mark.slow
def test_two_machines_meet(tmp_path):
    "Two launchers on one machine, each with one process, as on two nodes."
    cell = "import torch, torch.distributed as dist\nfrom javisdit.launch import give\nx = torch.ones(1)\ndist.all_reduce(x)\ngive(total=x.item(), rank=dist.get_rank())"
    code = "import json, sys\nfrom javisdit.launch import launch\nprint(json.dumps(launch(sys.argv[1], 1, nnodes=2, rdzv=sys.argv[2], timeout=200)))"
    runs = [subprocess.Popen([sys.executable, "-c", code, cell, "127.0.0.1:29611"], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(run.communicate(timeout=240)[0] for run in runs)
    assert said == ['[{"total": 2.0, "rank": 0}]\n', '[{"total": 2.0, "rank": 1}]\n']
