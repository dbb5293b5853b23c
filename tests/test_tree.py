"Guards of the tree: what is generated is fresh, nothing points at somebody's machine, nothing is too big."
import csv
import filecmp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from notebooks import PACKAGE, ROOT, chapters, tracked

BIN = Path(sys.executable).parent
MACHINE = re.compile(r"(?<![\w.:/~-])/(work|root|tmp|home/\w+|Users/\w+)/\w")
REGISTRY = re.compile(r"\b(pypi|pythonhosted|npmjs|debian)\.(org|com)\b")
BINARY = {".mp4", ".png", ".jpg", ".wav", ".ogv", ".webm", ".mkv", ".safetensors"}


def run(*command, cwd=ROOT):
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_undefined_names():
    run(BIN / "ruff", "check", "--quiet", "--isolated", "--select", "F821", "javisdit", "tests", ".ci")


def test_clean_and_export_change_nothing(tmp_path):
    files = [p.relative_to(ROOT) for p in tracked()]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    run(BIN / "nbdev_clean", cwd=tmp_path)
    run(BIN / "nbdev_export", cwd=tmp_path)
    made = {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert made == set(files)
    assert not filecmp.cmpfiles(ROOT, tmp_path, files, shallow=False)[1]


@pytest.mark.skipif(not (ROOT / "index.ipynb").exists(), reason="no index.ipynb yet")
def test_readme_is_fresh_and_its_links_lead_somewhere():
    run(sys.executable, ".ci/readme.py", "--check")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)|(?:src|href)=\"([^\"#]+)", text)
    missing = [a or b for a, b in links if not (a or b).startswith("http") and not (ROOT / (a or b)).exists()]
    assert not missing, missing


def test_nothing_names_a_machine_or_a_registry():
    found = []
    for path in tracked():
        if path.suffix in BINARY: continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            match = MACHINE.search(line) or REGISTRY.search(line)
            if match: found.append(f"{path.relative_to(ROOT)}:{number}: {line[max(0, match.start() - 40):match.end() + 40].strip()}")
    assert not found, "\n".join(found)


def size(folder): return sum(p.stat().st_size for p in tracked() if p.is_relative_to(folder))


def test_sizes_of_folders():
    assert size(ROOT / "nbs" / "media") <= 10e6
    fitted = [p for p in tracked() if p.parent == PACKAGE / "weights"]
    assert sum(p.stat().st_size for p in fitted) <= 4e6      # codecs and detectors; models have folders of their own
    assert size(ROOT / "tests" / "goldens") <= 35e6


def test_links_between_chapters_lead_somewhere():
    known = {n.name for n in chapters()}
    for nb in chapters():
        for cell in nb.cells:
            linked = re.findall(r"\]\((\w+)\.ipynb", cell.source) if cell.kind == "markdown" else []
            assert set(linked) <= known, f"{nb.name}/{cell.id} links {set(linked) - known}"


def test_the_card_of_the_model_says_what_was_measured():
    card = (PACKAGE / "weights" / "tiny" / "README.md").read_text()
    for table, lines in {"08_worth": ("{one_event_ms}", "{own_ms} ({shuffled_ms})", "{right_kind}", "{right_side}", "{silent}, {still}"), "08_worth_test": ("{own_ms} ({shuffled_ms})", "{right_order}")}.items():
        with open(ROOT / "nbs" / "tables" / f"{table}.csv", newline="") as f: rows = {r["way"]: r for r in csv.DictReader(f)}
        for wanted in lines: assert f"| {wanted.format(**rows['as shipped'])} | {wanted.format(**rows['real clips, through the codecs'])} |" in card, wanted
