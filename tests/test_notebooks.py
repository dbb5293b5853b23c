"Guards of form: what a chapter may import, and how it is built."
import ast
import re
from collections import Counter

import pytest
from notebooks import PACKAGE, ROOT, Notebook, chapters, imports

CHAPTERS = chapters()
ALL = [Notebook(p) for p in ROOT.glob("index.ipynb")] + CHAPTERS
WRITES = {n.module: n for n in CHAPTERS if n.module}
every = pytest.mark.parametrize("nb", ALL, ids=lambda n: n.name)
chapter = pytest.mark.parametrize("nb", CHAPTERS, ids=lambda n: n.name)
training = pytest.mark.parametrize("nb", [n for n in CHAPTERS if "04d" <= n.number < "08" and n.number not in ("06a", "07a")], ids=lambda n: n.name)
RANDOM_ID = re.compile(r"[0-9a-f]{6,}(-[0-9a-f]{4,})*")


@chapter
def test_imports_only_smaller_numbers(nb):
    for cell in nb.code:
        for name in imports(cell.tree):
            assert name in WRITES, f"{cell.id} imports javisdit.{name}, which no notebook writes"
            other = WRITES[name].number
            assert other < nb.number or other == nb.number and not cell.exported, f"{cell.id} imports javisdit.{name} of {other}"


def test_a_module_has_one_notebook():
    targets = Counter(n.module for n in CHAPTERS if n.module)
    assert max(targets.values()) == 1, targets.most_common(1)
    for nb in CHAPTERS:
        elsewhere = [d for c in nb.code if c.exported for d in c.directives if d.startswith("export") and len(d.split()) > 1]
        assert not elsewhere, f"{nb.name} exports to another module: {elsewhere}"
    assert len({n.number for n in CHAPTERS}) == len(CHAPTERS)
    written = {p.stem for p in PACKAGE.glob("[a-z]*.py")}
    assert written == set(targets), f"modules without a notebook: {written - set(targets)}; never exported: {set(targets) - written}"


@every
def test_cells_have_readable_ids(nb):
    ids = Counter(c.id for c in nb.cells)
    assert max(ids.values()) == 1, ids.most_common(1)
    bad = [i for i in ids if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", i) or RANDOM_ID.fullmatch(i) and re.search(r"\d", i)]
    assert not bad, bad


@every
def test_sizes(nb):
    assert len(nb.cells) <= 60, len(nb.cells)
    assert nb.path.stat().st_size <= 300_000, nb.path.stat().st_size
    assert sum("eval: false" in c.directives for c in nb.code) <= 2
    for cell in nb.code:
        if cell.exported: assert len(cell.code.strip().splitlines()) <= 40, f"{cell.id} is longer than 40 lines"
        for out in cell.outputs:
            assert out["output_type"] != "error", f"{cell.id} holds an error"
            html = "".join(out.get("data", {}).get("text/html", ""))
            assert not re.search(r"data:(video|audio)[^\"']{50000}", html), f"{cell.id} holds media: link a file instead"


@chapter
def test_forward_is_short(nb):
    for cell in filter(lambda c: c.exported, nb.code):
        for node in ast.walk(cell.tree):
            if not isinstance(node, ast.FunctionDef) or node.name != "forward": continue
            body = node.body[1:] if ast.get_docstring(node) else node.body
            assert body[-1].end_lineno - body[0].lineno < 15, f"{cell.id}: forward is longer than 15 lines"


@every
def test_starts_with_title_and_subtitle(nb):
    first = nb.cells[0]
    assert first.kind == "markdown" and re.match(r"# \S.*\n\n> \S.*(\n|$)", first.source), first.source[:200]


@chapter
def test_imports_stand_alone(nb):
    "nbdev runs cells with imports when it renders, so nothing else may be in them."
    kinds = ast.Import, ast.ImportFrom
    for cell in nb.code:
        nested = not cell.exported and any(isinstance(n, kinds) for n in ast.walk(cell.tree))
        if nested or any(isinstance(n, kinds) for n in cell.tree.body):
            assert all(isinstance(n, kinds) for n in cell.tree.body), f"{cell.id} mixes imports with other code"


def relative_paths(tree):
    "Strings in code that name a place relative to wherever the notebook was started."
    for node in ast.walk(tree):
        opens = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Path", "open") and node.args
        if opens and isinstance(node.args[0], ast.Constant) and not str(node.args[0].value).startswith("/"): yield node.args[0].value
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.match(r"(\.\.?|nbs|media|tables|demo|_runs|tests)/\S*$", node.value): yield node.value


@training
def test_training_notebooks_run_from_anywhere(nb):
    assert sum("parameters" in c.tags for c in nb.cells) == 1, "papermill ignores -p without one cell tagged parameters"
    for cell in nb.code:
        assert "eval: false" not in cell.directives, f"papermill runs {cell.id} all the same"
        assert "nbdev_export" not in cell.source, cell.id
        assert not [*relative_paths(cell.tree)], f"{cell.id}: {[*relative_paths(cell.tree)]}"


def test_sidebar_lists_every_chapter_in_order():
    listed = re.findall(r"- nbs/(\w+)\.ipynb", (ROOT / "sidebar.yml").read_text())
    assert listed == [n.name for n in CHAPTERS]
