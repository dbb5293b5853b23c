"Guards of chapters 09ad, 09ae and 09b: truth, the page, and the benchmark on clips and files of strangers."
import csv
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from notebooks import ROOT

import javisdit.javisbench as javisbench
from javisdit.core import MediaError, tiny
from javisdit.i3d import I3D
from javisdit.audioclip import AudioClipEar
from javisdit.javisbench import (MM_METRICS, AudioClipStretches, I3DStretches, Item, all_done, can_run, feature_file, find_clip, inside, javisdit_score,
                                 load_embedder, load_judges, paired, prepare, read_folder, recall, score_folder, verdict, weights_of)
from javisdit.media import Clip, read_clip, write_clip
from javisdit.metrics import METRICS
from javisdit.page import data_uri
from javisdit.truth import in_order, onset_error, sequence, shared
from javisdit.world import world_clip, write_world

FAST = "av_align,sync_ms,heard_error_ms,fd_mel"
ALONE = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    "Eight clips of the world, one of them damaged."
    folder = tmp_path_factory.mktemp("bench") / "clips"
    write_world(folder, 8, split="valid", workers=1, progress=False)
    (folder / "000003.mp4").write_bytes((folder / "000003.mp4").read_bytes()[:900])
    return folder


@pytest.fixture(scope="module")
def scored(clips):
    "Their report, and where it lies."
    out = clips.parent / "scores"
    return score_folder(clips, out, metrics=FAST, reference=clips), out


def command(clips, out, **more):
    "`javisdit_score` in a process of its own."
    code = f"from javisdit.javisbench import javisdit_score; javisdit_score({str(clips)!r}, metrics={FAST!r}, reference={str(clips)!r}, out={str(out)!r})"
    return subprocess.Popen([sys.executable, "-c", code], env={**ALONE, **more}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# --- reports ---

def test_report_files(scored):
    report, out = scored
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
    rows, by = list(csv.DictReader(open(out / "clips.csv"))), {m["name"]: m for m in report["metrics"]}
    assert len(rows) == report["clips"] == 8 and rows[3]["av_align"] == "" and "damaged" in rows[3]["left_out"]
    for name in ("av_align", "sync_ms", "heard_error_ms"):
        values = [float(r[name]) for r in rows if r[name]]
        assert by[name]["n"] == len(values) == 7 and by[name]["excluded"] == 1 and by[name]["mean"] == pytest.approx(np.mean(values)) and by[name]["low"] < by[name]["mean"] < by[name]["high"]
    assert report["excluded"]["000003"].keys() == {"av_align", "sync_ms", "heard_error_ms", "fd_mel"} and "1 of 8 clips" in report["warnings"][0]
    assert "7 clips for 128 features" in by["fd_mel"]["note"] and by["fd_mel"]["mean"] == pytest.approx(0, abs=1e-3)
    assert [c["which"] for c in report["shown"]] == ["best"] * 3 + ["worst"] * 3 and report["lead"] == "sync_ms"


def test_order_of_clips_does_not_matter(clips, scored, tmp_path):
    lines = (clips / "manifest.csv").read_text().splitlines()
    turned = tmp_path / "turned"
    shutil.copytree(clips, turned)
    (turned / "manifest.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    means = lambda r: {m["name"]: pytest.approx(m["mean"], abs=1e-6) for m in r["metrics"]}
    assert means(score_folder(turned, tmp_path / "out", metrics=FAST, reference=clips)) == means(scored[0])


@pytest.mark.slow
def test_command_kill_and_resume(clips, scored, tmp_path):
    "Killed in the middle and started again: the same report as in one go, byte for byte; so with two ranks."
    killed = command(clips, tmp_path / "killed")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").rglob("clips/*.json")) and time.monotonic() < deadline: time.sleep(0.05)
    killed.send_signal(signal.SIGKILL); killed.communicate()
    assert not (tmp_path / "killed" / "report.json").exists()
    again = command(clips, tmp_path / "killed")
    said, wrong = again.communicate(timeout=300)
    assert again.returncode == 0, wrong
    assert "sync_ms" in said and "7 clips, 1 left out" in said and "report.html" in said
    for rank in "01":
        one = command(clips, tmp_path / "ranks", RANK=rank, WORLD_SIZE="2")
        said, wrong = one.communicate(timeout=300)
        assert one.returncode == 0, wrong
        assert ("others are not" in said) == (rank == "0")
    for name in ("report.json", "clips.csv", "report.html"):
        assert len({(folder / name).read_bytes() for folder in (tmp_path / "killed", tmp_path / "ranks", scored[1])}) == 1, name


def test_every_run_counts_its_shares_anew(tmp_path):
    for _ in range(3): assert [all_done(tmp_path, rank, 3, dict(folder="x")) for rank in (1, 0, 2)] == [False, False, True]
    assert not all_done(tmp_path, 0, 2, dict(folder="x"))                       # of two processes


def test_each_process_has_its_gpu(clips, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(javisbench, "prepare", lambda **wishes: seen.append(wishes["device"]) or (None, [], {}, {}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4); monkeypatch.setattr(torch.cuda, "is_available", lambda: True); monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    for rank in (1, 6): javisbench.work(rank, 8, device="cuda")                 # of --processes 8
    for name, value in dict(RANK="7", WORLD_SIZE="16", LOCAL_RANK="3").items(): monkeypatch.setenv(name, value)
    for device in ("cuda", "auto", "cpu"): javisdit_score(str(clips), out=str(tmp_path / "out"), device=device)
    assert seen == ["cuda:1", "cuda:2", "cuda:3", "cuda:3", "cpu"]


def test_features_are_written_whole(clips, scored, monkeypatch):
    path = scored[1] / "features.safetensors"
    before = path.read_bytes()
    def full(rows, to): to.write_bytes(b"half"); raise OSError("no space left")
    monkeypatch.setattr(javisbench, "save_file", full)
    with pytest.raises(OSError, match="no space"): score_folder(clips, scored[1], metrics=FAST, reference=clips)
    assert path.read_bytes() == before and not list(scored[1].glob("*.part"))


def test_players_are_the_same_file_each_time():
    "Whatever lies in memory beside the pictures: x264's macroblock tree does not keep this for rows that are no multiple of eight macroblocks."
    made, junk, r = [world_clip(i, split="valid", clip=replace(tiny().clip, height=96, width=96)).clip for i in (3, 5)], [], np.random.default_rng(0)
    first = [data_uri(c) for c in made]
    for _ in range(20):
        junk = [*junk[-20:], r.standard_normal(int(r.integers(10, 200_000)))]
        assert [data_uri(c) for c in made] == first


@pytest.mark.parametrize("wish, said", [(dict(metrics="fid"), "metric 'fid' does not exist"), (dict(metrics="fvd"), "no metric can be computed: fvd"), (dict(protocol="x"), "protocol 'x'"),
                                        (dict(embedder="x", metrics="javisscore"), "embedder 'x' does not exist"), (dict(prompts="none.csv"), "does not exist"), (dict(reference="none.pt", metrics="fd_mel"), "none.pt")])
def test_wishes_that_cannot_be(clips, tmp_path, wish, said):
    with pytest.raises(SystemExit, match=re.escape(said)): javisdit_score(str(clips), out=str(tmp_path / "out"), **wish)


def test_a_clip_that_nobody_has_judged_lasts_no_seconds(tmp_path):
    (tmp_path / "damaged.json").write_text("{")
    assert recall(tmp_path / "none.json") == recall(tmp_path / "damaged.json") == dict(values={}, detail={}, seconds=0.0, notes=[])


def test_what_cannot_run_is_said(clips):
    judges = load_judges({n for m in METRICS.values() for n in (*m.needs, m.features)}, embedder="imagebind")
    chosen, why = can_run(list(METRICS.values()), judges, read_folder(clips), reference=False)
    assert {m.name for m in chosen} == {"av_align", "av_align_reference"} and set(why) == set(METRICS) - {"av_align", "av_align_reference"}
    assert "imagebind_huge.pth" in why["javisscore"] and "i3d_pretrained_400.pt" in why["fvd"] and "--reference" in why["fd_mel"] and "not known here" in why["cavp"]
    with pytest.raises(ValueError, match="weights are not here"): load_embedder("imagebind")
    with pytest.raises(ValueError, match="AudioCLIP-Full-Training.pt into the folder of --weights"): weights_of("audioclip")


class Net: name = "mine"


def test_own_judges_need_no_others(clips, tmp_path):
    "Blanks between names do not matter, networks that are brought are not looked for, and the caller's object stays as it was."
    mine = load_judges({"mel", "opencv"})
    mine.models["clip"], before = Net(), dict(mine.extractors)
    judge, chosen, missing, _ = prepare(clips, None, None, "clip, av_align", tmp_path, None, None, "auto", "javisbench", "cpu", 120, mine)
    assert [m.name for m in chosen] == ["clip", "av_align"] and not missing and judge.judges.models is mine.models and not judge.judges.extractors and mine.extractors == before
    with pytest.raises(ValueError, match="metric 'fid' does not exist"): score_folder(clips, tmp_path / "out", metrics="av_align, fid", judges=mine)


# --- two folders ---

def test_comparison(clips, tmp_path):
    late = tmp_path / "late"
    shutil.copytree(clips, late)
    for path in late.glob("*.mp4"):
        if path.name != "000003.mp4": write_clip(replace(c := read_clip(path), audio=np.roll(c.audio, 3200)), path)
    (late / "000005.mp4").unlink()
    c = score_folder(late, tmp_path / "out", metrics=FAST, reference=clips, compare=clips)["compare"]
    by = {m["name"]: m for m in c["metrics"]}
    assert by["sync_ms"]["n"] == 6 and by["sync_ms"]["verdict"] == "clips" and by["sync_ms"]["low"] > 50 and c["with"] == "clips"
    assert by["fd_mel"]["n"] == 6 and by["fd_mel"]["low"] <= by["fd_mel"]["difference"] <= by["fd_mel"]["high"]
    other = tmp_path / "other"; other.mkdir()
    shutil.copy(clips / "000000.mp4", other / "another.mp4")
    with pytest.raises(ValueError, match="no clip in common"): score_folder(other, tmp_path / "none", metrics=FAST, reference=clips, compare=clips)
    assert not (tmp_path / "none").exists()                                     # before anything was scored


def test_paired_intervals_hold_the_difference():
    "Of two equal models nothing is decided; a constant gain is, however much prompts differ."
    r, m = np.random.default_rng(0), METRICS["javisscore"]
    hard = {str(i): float(x) for i, x in enumerate(r.normal(0, 10, 200))}
    better = {i: x + 0.1 + r.normal(0, 0.2) for i, x in hard.items()}
    here, there, low, high, n = paired(m, better, hard, None)
    assert low < here - there < high and 0.05 < low and high < 0.15 and n == 200 and verdict(m, low, high, "a", "b") == "a" and verdict(METRICS["fvd"], low, high, "a", "b") == "b"
    assert paired(m, hard, hard, None)[2:4] == (0, 0) and verdict(m, 0, 0, "a", "b") == "not decided" and verdict(m, None, None, "a", "b") == "not decided"
    assert paired(m, {"a": 1.0}, {"b": 1.0}, None)[4] == 0


# --- references ---

def test_feature_files(tmp_path):
    items = [Item(str(i), None) for i in range(4)]
    torch.save(dict(video=torch.randn(4, 400), audio=torch.randn(4, 1024)), tmp_path / "f.pt")
    found = feature_file(tmp_path / "f.pt", items)
    assert {n: (len(x), list(x)[0]) for n, x in found.items()} == {"i3d_reference": (4, "0"), "audioclip": (4, "0")}
    assert list(feature_file(tmp_path / "f.pt", items[:3])["audioclip"])[0] == "row 0"
    torch.save(dict(video=torch.full((4, 400), torch.nan)), tmp_path / "nan.pt")
    with pytest.raises(MediaError, match="no table of numbers"): feature_file(tmp_path / "nan.pt", items)


class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("kind", ["features", "i3d_pretrained_400.pt", "imagebind_huge.pth"])
def test_pickles_with_code_are_refused(clips, tmp_path, kind):
    done, path = tmp_path / "done", tmp_path / ("f.pt" if kind == "features" else kind)
    torch.save(dict(video=Evil(done)), path)
    if kind == "features":
        with pytest.raises(MediaError, match="more than tensors"): score_folder(clips, tmp_path / "out", metrics="fd_mel", reference=path)
    else:
        name = "i3d" if kind.startswith("i3d") else "imagebind"
        assert "more than tensors" in load_judges({name}, tmp_path).missing[name]
    path.write_bytes(pickle.dumps(Evil(done)))
    with pytest.raises(MediaError): feature_file(path, [])
    assert not done.exists()


# --- strangers' folders ---

@pytest.mark.parametrize("name", ["../secret.mp4", "/etc/passwd", "a/../../secret.mp4", "link/secret.mp4", "x\0y", "n" * 5000])
def test_names_that_lead_out(tmp_path, name):
    (tmp_path / "secret.mp4").write_bytes(b"x"); (tmp_path / "clips").mkdir(); (tmp_path / "clips" / "link").symlink_to(tmp_path)
    with pytest.raises(MediaError): find_clip(tmp_path / "clips", [name.removesuffix(".mp4")])
    if len(name) < 1000:
        with pytest.raises(MediaError, match="lies outside|no name of a file"): inside(tmp_path / "clips", name)


def test_truth_outside_is_not_read(tmp_path):
    (tmp_path / "clips").mkdir(); (tmp_path / "clips" / "a.mp4").write_bytes(b"x"); (tmp_path / "t.json").write_text("{}")
    (tmp_path / "clips" / "manifest.csv").write_text("path,text,truth\na.mp4,x,../t.json\n")
    item, = read_folder(tmp_path / "clips")
    assert "lies outside" in item.fault and item.truth is None


def crowd(n):
    "A small mp4 whose index names its sound track `n` times more."
    write_clip(world_clip(0).clip, file := io.BytesIO())
    mp4 = file.getvalue()
    size = lambda at: int.from_bytes(mp4[at:at + 4], "big")
    index, track = (mp4.rfind(name) - 4 for name in (b"moov", b"trak"))
    body = mp4[index + 4:index + size(index)] + n * mp4[track:track + size(track)]
    return mp4[:index] + (len(body) + 4).to_bytes(4, "big") + body + mp4[index + size(index):]


def bombs(folder):
    "Files that cost little to store and much to read."
    def video(name, frames, size, fps, rate=None):
        with av.open(str(folder / name), "w") as out:
            v = out.add_stream("libx264", rate=fps, options=dict(preset="ultrafast", x264opts="keyint=5000")); v.width, v.height, v.pix_fmt = *size, "yuv420p"
            picture = av.VideoFrame.from_ndarray(np.zeros((size[1] * 3 // 2, size[0]), np.uint8), format="yuv420p")
            for i in range(frames): picture.pts = i; out.mux(v.encode(picture))
            out.mux(v.encode(None))
    video("large.mp4", 2, (8192, 4320), 24)             # more pixels than 8K
    video("heavy.mp4", 60, (3840, 2160), 24)            # 1.5 GB of pictures in a few kB
    video("long.mp4", 4000, (16, 16), 1)                # more than an hour
    video("quick.mp4", 8000, (16, 16), 240)             # too many pictures
    with av.open(str(folder / "streams.mkv"), "w") as out:
        tracks = [out.add_stream("pcm_s16le", rate=8000, layout="mono") for _ in range(60)]
        for t in tracks:
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono"); sound.sample_rate, sound.pts = 8000, 0
            out.mux(t.encode(sound)); out.mux(t.encode(None))
    (folder / "crowd.mp4").write_bytes(crowd(3000))     # thousands of sound tracks
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile '/etc/passwd'\n")
    (folder / "empty.mp4").write_bytes(b"")
    with open(folder / "huge.mp4", "wb") as f: f.truncate(3 << 30)      # sparse: no byte on the disk


def test_bombs_are_refused_in_bounded_time_and_memory(tmp_path):
    (tmp_path / "clips").mkdir(); bombs(tmp_path / "clips")
    code = (f"import resource, time; from javisdit.javisbench import score_folder, read_folder; t = time.perf_counter(); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            f"r = score_folder({str(tmp_path / 'clips')!r}, {str(tmp_path / 'out')!r}, metrics='av_align,sync_ms')\n"
            f"print(r['clips'], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.perf_counter() - t)")
    done = subprocess.run([sys.executable, "-c", code], env=ALONE, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    n, grown, seconds = done.stdout.split()
    left = json.loads((tmp_path / "out" / "report.json").read_text())["excluded"]
    assert int(n) == len(left) == 9 and int(grown) < 900_000, (grown, left)                         # kB; one decoder at 8K takes some
    for name, why in dict(large="pixels|pictures|damaged", heavy="bytes", long="seconds", quick="frames", streams="no pictures", crowd="more streams than the thousand", list="cannot be used|list of other files|damaged", empty="is empty", huge="GB").items():
        assert re.search(why, left[name]["av_align"]), (name, left[name])


def test_odd_clips_give_a_score_or_a_reason(tmp_path):
    (tmp_path / "clips").mkdir()
    r = np.random.default_rng(0)
    for i, (t, h, w, n) in enumerate([(1, 32, 32, 100), (2, 2, 2, 16000), (5, 2, 400, 400), (30, 48, 32, 1), (30, 32, 32, 20000)]):
        write_clip(Clip(r.integers(0, 255, (t, h, w, 3), dtype=np.uint8), (0.1 * r.standard_normal(n)).astype(np.float32), 24.0, 16000), tmp_path / "clips" / f"{i}.mp4")
    write_clip(Clip(None, (0.1 * r.standard_normal(16000)).astype(np.float32)), tmp_path / "clips" / "sound.wav")
    report = score_folder(tmp_path / "clips", tmp_path / "out", metrics="av_align,sync_ms,fd_mel", reference=tmp_path / "clips")
    rows = list(csv.DictReader(open(tmp_path / "out" / "clips.csv")))
    assert len(rows) == 6 and all(x["av_align"] or x["left_out"] for x in rows) and rows[5]["av_align"] == "" and rows[4]["av_align"] != ""
    assert all(m["mean"] is None or np.isfinite(m["mean"]) for m in report["metrics"])


# --- the second protocol ---

def test_stretches(clips):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, ear = I3D(), AudioClipEar()
    clip = read_clip(clips / "000000.mp4")
    see, hear = I3DStretches(net.eval()), AudioClipStretches(ear.eval())
    few = replace(clip, video=clip.video[:42])
    seen, heard = see(few), hear(Clip(None, clip.audio[:int(1.6 * 16000) + 2700]))
    assert seen.shape == (3, 400) and heard.shape == (3, 1024)
    torch.testing.assert_close(seen[1], see(replace(clip, video=clip.video[2:40]))[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(heard[0], hear(Clip(None, clip.audio[:25600]))[0], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="a stretch has 38"): see(replace(clip, video=clip.video[:20]))
    assert {m.features for m in MM_METRICS.values()} == {see.name, hear.name} and see.fingerprint and see.protocol != hear.protocol


# --- truth ---

def test_truth_formulas():
    assert onset_error([1.0, 0.5], [0.5, 1.0]) == 0 and onset_error([0.5], [0.5, 1.0]) == 125 and onset_error([0.9], [0.5]) == 250
    assert shared(["a"], []) == 0 and in_order([], []) == 1 and in_order(["a", "b"], ["b", "a"]) == 0.5
    assert sequence([0.2, 0.0, 0.05, 0.11], list("dbac")) == ["a", "b", "c", "d"]


# --- the page in a browser ---

@pytest.fixture(scope="module")
def driver():
    if missing := [n for n in ("chromium", "chromedriver") if not shutil.which(n)]: pytest.skip(f"the page is not looked at: {' and '.join(missing)} not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    options = webdriver.ChromeOptions()
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required", "--host-resolver-rules=MAP * ~NOTFOUND"): options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    d = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    yield d
    d.quit()


PLAY = """const done = arguments[arguments.length - 1];
Promise.all([...document.querySelectorAll("video")].map(v => new Promise(ok => {
  if (v.error) return ok("error " + v.error.message);
  v.muted = true; v.play().then(() => { const t = setInterval(() => { if (v.currentTime > 0.2) { clearInterval(t); ok(true) } }, 50) }, e => ok(String(e)));
  setTimeout(() => ok("stays at " + v.currentTime), 20000) }))).then(done)"""


def test_page_in_a_browser(scored, driver):
    "Offline, without an error, every player plays, nothing is cut off on a phone, numbers are those of the JSON."
    report, out = scored
    driver.set_script_timeout(40)
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", dict(width=375, height=800, deviceScaleFactor=1, mobile=True))
    driver.get((out / "report.html").as_uri())
    assert driver.execute_async_script(PLAY) == [True] * 6
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 375
    assert [e for e in driver.get_log("browser") if e["level"] in ("SEVERE", "WARNING")] == []
    cells = driver.execute_script("return Object.fromEntries([...document.querySelectorAll('[data-metric]')].map(r => [r.dataset.metric, [...r.cells].map(c => c.textContent)]))")
    assert set(cells) == {m["name"] for m in report["metrics"]}
    for m in report["metrics"]: assert float(cells[m["name"]][2]) == pytest.approx(m["mean"], rel=1e-3, abs=1e-4) and cells[m["name"]][4].startswith(str(m["n"]))
