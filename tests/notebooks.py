"What the guards know about the notebooks: found by looking, so later chapters are covered."
import ast
import json
import re
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "javisdit"


@dataclass(frozen=True)
class Cell:
    id: str
    kind: str
    source: str
    tags: tuple
    outputs: tuple

    @cached_property
    def directives(self): return [line[2:].strip() for line in self.source.splitlines() if line.startswith("#|")]

    @cached_property
    def code(self):
        "Source without directives, and with magics blanked out, so that it parses."
        return re.sub(r"^(#\||\s*[%!]).*$", "", self.source, flags=re.MULTILINE)

    @cached_property
    def tree(self): return ast.parse(self.code) if self.kind == "code" and "%%" not in self.source[:2] else ast.Module([], [])

    def has(self, *words): return any(d.split()[:1] == [word] for d in self.directives for word in words)

    @property
    def exported(self): return self.has("export", "exports", "exporti")


@dataclass(frozen=True)
class Notebook:
    path: Path

    @property
    def name(self): return self.path.stem
    @property
    def number(self): return self.name.split("_")[0]

    @cached_property
    def cells(self):
        raw = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
        return [Cell(c["id"], c["cell_type"], "".join(c["source"]), tuple(c["metadata"].get("tags", ())), tuple(c.get("outputs", ()))) for c in raw]

    @property
    def code(self): return [c for c in self.cells if c.kind == "code"]

    @cached_property
    def module(self):
        "Name of the module that this notebook writes, or None."
        return next((d.split()[1] for c in self.code for d in c.directives if d.startswith("default_exp")), None)


def chapters():
    "Every notebook in nbs, in reading order."
    return sorted((Notebook(p) for p in (ROOT / "nbs").glob("[0-9]*.ipynb")), key=lambda n: n.number)


def modules():
    "Names of the package's modules, in reading order of their notebooks, then any other."
    found = {p.stem for p in PACKAGE.glob("[a-z]*.py")}
    return [n.module for n in chapters() if n.module in found] + sorted(found - {n.module for n in chapters()})


def imports(tree):
    "Modules of this package that a tree of code imports."
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            base = "javisdit." + (node.module or "") if node.level else node.module or ""
            names = [base] if base.strip(".") != "javisdit" else [f"javisdit.{a.name}" for a in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("javisdit."))


def tracked():
    "Files of the project: what git tracks or would add, or all but generated folders where there is no git."
    run = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if run.returncode == 0: return [p for p in map(ROOT.joinpath, run.stdout.splitlines()) if p.is_file()]
    skip = {".git", ".venv", "_runs", "_docs", "_proc", "demo", "__pycache__"}
    return [p for p in ROOT.rglob("*") if p.is_file() and not skip & set(p.relative_to(ROOT).parts)]
