"Long runs: killed, interrupted, out of space, with damaged checkpoints, with clips that are not numbers."
import errno
import os
import resource
import signal
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from kill_test import BLOCK, CONFIG, differences, latents, outcome, small_learner, train
from notebooks import ROOT

from javisdit import runs
from javisdit.bench import step_flops
from javisdit.flow import read_log
from javisdit.learner import Callback, CheckpointCallback, EvalLoader, SampleCallback, StepLoader, StepSampler, train_steps, training_flops
from javisdit.runs import checkpoints, damage, newest_checkpoint, read_index

SHORT = replace(CONFIG, train=replace(CONFIG.train, steps=2 * BLOCK))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "What a run of two blocks leaves that nobody touches."
    train(out := tmp_path_factory.mktemp("whole"), config=SHORT)
    return outcome(out)


class At(Callback):
    "Does something in the middle of one step."
    run_valid = False
    def __init__(self, step, do): self.step_to_act, self.do = step, do
    def after_pred(self):
        if self.learn.step == self.step_to_act and self.micro.last: self.do()


def steps(out): return [read_index(p)["step"] for p in checkpoints(out / "checkpoints")]


slow = pytest.mark.slow


@pytest.mark.parametrize("how", ["--kills 3", "--nproc 2 --kills 2", pytest.param("--kills 20", marks=slow), pytest.param("--nproc 2 --kills 20", marks=slow), pytest.param("--nproc 2 --launch --kills 20", marks=slow)])
def test_killed(how):
    torn = max(1, int(how.split()[-1]) // 4)
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "kill_test.py"), *how.split(), "--torn", str(torn)], capture_output=True, text=True)
    assert done.returncode == 0 and "all equal bit for bit" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("sent, raised", [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_interrupted(tmp_path, whole, sent, raised):
    with pytest.raises(raised) as e: train(tmp_path, config=SHORT, cbs=(At(3, lambda: os.kill(os.getpid(), sent)),))
    if raised is SystemExit: assert e.value.code == 143
    assert steps(tmp_path) == [4] and signal.getsignal(sent) in (signal.SIG_DFL, signal.default_int_handler)
    train(tmp_path, config=SHORT)
    assert differences(whole, outcome(tmp_path)) == []


def test_interrupted_at_the_end_of_a_block_validates_first(tmp_path, whole):
    with pytest.raises(SystemExit): train(tmp_path, config=SHORT, cbs=(At(BLOCK - 1, lambda: os.kill(os.getpid(), signal.SIGTERM)),))
    assert steps(tmp_path) == [BLOCK] and read_index(newest_checkpoint(tmp_path / "checkpoints"))["valid"] > 0
    train(tmp_path, config=SHORT)
    assert differences(whole, outcome(tmp_path)) == []


def test_disk_full(tmp_path, whole, monkeypatch):
    write = CheckpointCallback.write
    def full(self, folder):
        if self.learn.step > BLOCK:
            (folder / "state.pt").write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, folder)
    monkeypatch.setattr(CheckpointCallback, "write", full)
    with pytest.raises(OSError, match="make room and start again") as e: train(tmp_path, config=SHORT)
    assert e.value.errno == errno.ENOSPC
    assert steps(tmp_path) == [BLOCK] and not damage(newest_checkpoint(tmp_path / "checkpoints"))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [f"step-{BLOCK:08d}"]
    monkeypatch.undo()
    train(tmp_path, config=SHORT)
    assert differences(whole, outcome(tmp_path)) == []


def test_a_write_that_fails_in_the_middle(tmp_path):
    "The system, not a stand-in, refuses the second half of a file."
    with runs.new_checkpoint(tmp_path, 1) as part: torch.save(torch.zeros(10), part / "state.pt")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(OSError, match="step-00000002 could not be written"), runs.new_checkpoint(tmp_path, 2) as part: torch.save(torch.zeros(100_000), part / "state.pt")
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"] and not damage(tmp_path / "step-00000001")


def test_a_damaged_checkpoint(tmp_path, whole):
    train(tmp_path, config=SHORT)
    state = checkpoints(tmp_path / "checkpoints")[-1] / "state.pt"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    with pytest.warns(UserWarning, match="is damaged .state.pt does not hold what was written.: the one before it is used"): learn = small_learner(tmp_path, SHORT)
    assert learn.step == BLOCK
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(tmp_path, config=SHORT)
    assert differences(whole, outcome(tmp_path)) == []


def test_no_checkpoint_is_whole(tmp_path):
    train(tmp_path, config=SHORT)
    for p in checkpoints(tmp_path / "checkpoints"): (p / "index.json").unlink()
    with pytest.raises(ValueError, match="not one of the 2 checkpoints"), pytest.warns(UserWarning): small_learner(tmp_path, SHORT)


def test_an_index_that_names_no_files(tmp_path):
    for text in ("{}", "[]", "null", '{"step": 1}', '{"files": 3}', "\xff", ""):
        (tmp_path / "index.json").write_text(text)
        assert damage(tmp_path) == "it has no readable index"


def test_what_a_checkpoint_says_of_itself(tmp_path):
    train(tmp_path, config=SHORT)
    index = read_index(newest_checkpoint(tmp_path / "checkpoints"))
    assert index["step"] == 2 * BLOCK and index["config"]["train"]["steps"] == 2 * BLOCK and set(index["code"]) == {"javisdit", "commit", "torch"}
    row = [r for r in read_log(tmp_path / "log.jsonl") if "valid_video" in r][-1]
    assert index["valid"] == row["valid_video"] + row["valid_audio"]


def test_guard(tmp_path):
    poisoned = latents(16, 0)
    poisoned.video[3] = torch.nan
    with pytest.raises(FloatingPointError, match="clip 3"): train(tmp_path / "stop", config=SHORT, source=poisoned)
    with pytest.warns(UserWarning, match="clip 3.*: skipped, the 1. of this run") as said: learn = train(tmp_path / "skip", config=replace(SHORT, train=replace(SHORT.train, on_nan="skip")), source=poisoned)
    assert all(f"the {i}. of this run" in str(w.message) for i, w in enumerate([w for w in said if "skipped" in str(w.message)], 1))
    rows = [r for r in read_log(tmp_path / "skip" / "log.jsonl") if "skipped" in r]
    assert [r["skipped"] for r in rows] == list(range(1, learn.guard.skipped + 1)) and all("clip 3" in r["clips"] and len(r["clips"]) == 2 for r in rows)
    assert learn.step == 2 * BLOCK and all(p.isfinite().all() for p in learn.model.parameters())
    assert all(r[k] == r[k] for r in read_log(tmp_path / "skip" / "log.jsonl") for k in r)


@pytest.mark.parametrize("stage, files", [(0, "mp4"), (1, "wav")])
def test_a_branch_samples_what_it_has(tmp_path, stage, files):
    stream = ("video",) if stage == 0 else ("audio",)
    train(tmp_path, config=replace(SHORT, train=replace(SHORT.train, steps=2)), stage=stage, cbs=(SampleCallback(SHORT, latents(8, 1), tmp_path, every=2, streams=stream),))
    assert [p.name for p in (tmp_path / "samples").iterdir()] == [f"step-00000002-0.{files}"]


def test_status_where_nobody_sees_a_bar(tmp_path, capsys):
    learn = small_learner(tmp_path, SHORT)
    learn.progress.flops, learn.progress.peak = 1e6, 1e9
    with learn.no_logging(): train_steps(learn)
    assert "step 10 of 12 · video" in (out := capsys.readouterr().out) and "clips/s · MFU " in out and "left" in out


def test_a_source_hears_what_comes():
    "A source that reads in the background is told of two micro batches more than it is asked for."
    class Told:
        def __init__(self): self.told, self.ahead, self.clips = [], [], latents(16, 0)
        def __len__(self): return 16
        def expect(self, keys): self.told.append(keys)
        def batch(self, keys): self.ahead.append(self.told.index(keys) - len(self.told)); return self.clips.batch(keys)
    for loader in (StepLoader(Told(), StepSampler(16, 4, micro=2), stop=4, block=4), EvalLoader(Told(), 2)):
        assert len(list(loader)) == 8 and loader.source.ahead == [-3] * 6 + [-2, -1]


def test_flops_are_those_of_chapter_11():
    "PyTorch counts what the formulas count: three forward passes where all weights learn, fewer where some are frozen."
    counted = {stage: training_flops(CONFIG, stage) for stage in (None, 0, 1, 3)}
    assert 1 < counted[None] / (3 * sum(step_flops(CONFIG, rows=1).values())) < 1.3
    assert counted[0] + counted[1] < counted[None] and counted[3] < counted[None]
    deep = replace(CONFIG, model=replace(CONFIG.model, depth=5))
    assert training_flops(deep, 3) > 2.5 * counted[3]


def test_a_fake_wandb_gets_the_rows(tmp_path, monkeypatch):
    class Fake:
        rows = []
        def init(self, **kw): self.asked = kw; return self
        def log(self, row, step): self.rows.append((step, row))
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train(tmp_path, config=SHORT, logs=("wandb",))
    assert [s for s, _ in fake.rows] == [BLOCK, 10, 2 * BLOCK] and fake.asked["resume"] == "allow"
    with pytest.raises(ValueError, match="there is no log wand: choose from tensorboard, wandb"): small_learner(tmp_path, SHORT, logs=("wand",))


def test_processes_share_a_step():
    "Two processes with half of the micro batches each see what one process sees, at the same places."
    source, sampler = latents(16, 0), StepSampler(16, 8, micro=4)
    def seen(rank, world):
        loader = StepLoader(source, sampler, stop=2, block=2)
        loader.rank, loader.world = rank, world
        return [(m.place + i, int(k), m.last) for (m,) in loader for i, k in enumerate(m.batch.index)]
    one, both = seen(0, 1), [x for r in range(2) for x in seen(r, 2)]
    assert sorted(x[:2] for x in one) == sorted(x[:2] for x in both) and len(one) == 16
    assert sum(last for *_, last in one) == 4 and sum(last for *_, last in both) == 8      # the last micro batch of each step and process
    with pytest.raises(ValueError, match="cannot be shared by 3 processes"): seen(0, 3)
