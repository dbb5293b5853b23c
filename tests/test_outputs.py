"Stored outputs are what the committed code prints: every notebook is run again and its text compared."
import math
import re

import nbformat
import pytest
from nbclient import NotebookClient
from notebooks import ROOT, Notebook, chapters

PAGES = [Notebook(p) for p in ROOT.glob("index.ipynb")] + chapters()
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
FOLDER = re.compile(r'(?<=src=")[^"]*/(?=[^"/]*")')   # of a player's file, which a test puts elsewhere


def text(outputs):
    "What a reader sees as text: standard output and plain or markdown results."
    printed = ["".join(o["text"]) for o in outputs if o["output_type"] == "stream" and o["name"] == "stdout"]
    results = ["".join(o["data"].get(kind, "")) for o in outputs if "data" in o for kind in ("text/plain", "text/markdown")]
    return FOLDER.sub("", ADDRESS.sub("", "\n".join(["".join(printed), *results]))).strip()


def same(old, new):
    "Equal words, and numbers equal to one unit of the last digit shown: another machine rounds differently."
    if NUMBER.split(old) != NUMBER.split(new): return False
    pairs = zip(NUMBER.findall(old), NUMBER.findall(new))
    unit = lambda s: 10.0 ** -len(s.partition(".")[2].partition("e")[0])
    return all(math.isclose(float(a), float(b), rel_tol=1e-3, abs_tol=1.01 * unit(a) if "." in a and "e" not in a else 0) for a, b in pairs)


def test_comparison():
    assert same("loss 0.123 at step 7", "loss 0.124 at step 7")
    assert not same("loss 0.123 at step 7", "loss 0.123 at step 8") and not same("left", "right") and not same("0.50", "0.52")


@pytest.mark.slow
@pytest.mark.parametrize("nb", [n for n in PAGES if not any("parameters" in c.tags for c in n.cells)], ids=lambda n: n.name)  # trainings take too long
def test_outputs_are_fresh(nb, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("IN_TEST", "1")           # as nbdev_test: chapters leave the book's media alone
    again = nbformat.read(nb.path, 4)
    skipped = {c.id for c in nb.code if "varies" in c.tags or c.has("slow", "gpu", "weights") or "eval: false" in c.directives}
    for cell in again.cells:
        if cell.id in skipped and cell.cell_type == "code" and "varies" not in cell.metadata.get("tags", ()): cell.source = ""
    NotebookClient(again, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(nb.path.parent)}}).execute()
    for old, new in zip(nb.cells, again.cells):
        if old.kind != "code" or old.id in skipped: continue
        before, now = text(old.outputs), text(new.outputs)
        assert same(before, now), f"{nb.name}/{old.id} is stale\n{before}\n-- now --\n{now}"
