"The book as a static site in _docs that opens offline: nbdev processes the notebooks, smalldocs renders them, KaTeX comes along."
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import nbdev.processors as nbp
import nbdev.serve
from execnb.nbio import mk_cell
from nbdev.config import get_config
from nbdev.process import Processor
from nbdev.quarto import refresh_quarto_yml

ROOT = Path(__file__).resolve().parents[1]
KATEX = "katex@0.16.11"
KATEX_CDN = re.compile(r"https://[^\"']+/katex@[\d.]+/dist/")
KATEX_FILES = re.compile(r"package/(dist/(katex\.min\.(js|css)|contrib/auto-render\.min\.js|fonts/.*\.woff2)|LICENSE)")
# smalldocs fetches its index as JSON, which a page opened from disk may not do: a script with the same index may
FETCH_INDEX = 'const r = await fetch(offset + "search.json");\n      index = await r.json();'
LOAD_INDEX = """await new Promise((ok, no) => document.head.append(Object.assign(document.createElement("script"), {src: offset + "search.js", onload: ok, onerror: no})));
      index = window.bookIndex;"""


class SplitTitle(Processor):
    "Keeps what follows the subtitle in the first cell; nbdev turns that cell into metadata and drops the rest."
    def begin(self):
        first = self.nb.cells[0]
        found = re.match(r"(# .+\n+>.+\n)(\s*\S.*)", first.source, re.DOTALL) if first.cell_type == "markdown" else None
        if not found: return
        first.source, rest = found.groups()
        self.nb.cells.insert(1, mk_cell(rest.strip(), "markdown"))


class ShowSource(Processor):
    "An exported cell is shown as it is, under the name of its module, with an anchor for each name that it defines."
    def begin(self):
        module = nbp._default_exp(self.nb)
        for i, cell in reversed([*enumerate(self.nb.cells)]):
            if cell.cell_type != "code" or not {"export", "exports"} & cell.directives_.keys(): continue
            names = nbp._def_names(cell, set())
            if "exports" in cell.directives_: cell.source = f'#| code-fold: show\n#| code-summary: "javisdit.{module}"\n{cell.source}'
            if names: self.nb.cells.insert(i, mk_cell("".join(f'<span id="{name.lower()}"></span>' for name in names), "markdown"))


class BookFilter(nbp.FilterDefaults):
    "nbdev's processors; shown source replaces the generated signatures, so no cell has to run."
    def base_procs(self):
        left_out = {nbp.add_show_docs, nbp.clean_show_doc, nbp.exec_show_docs, nbp.mv_exports, nbp.add_fold}
        return [SplitTitle, ShowSource, *(p for p in super().base_procs() if p not in left_out)]


def fetch_katex(folder: Path):  # where katex.min.js and its fonts go; kept between builds
    "KaTeX (MIT) from the npm registry, once. Without npm the pages keep their link to the network, and this says so."
    if (folder / "katex.min.js").exists(): return
    if not shutil.which("npm"): return print("docs: npm is not installed, so equations will need the network")
    pack = folder.with_suffix(".pack")
    pack.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "pack", "--silent", KATEX], cwd=pack, check=True, capture_output=True)
    with tarfile.open(next(pack.glob("*.tgz"))) as tar:
        for member in filter(lambda m: KATEX_FILES.fullmatch(m.name), tar):
            path = folder / re.sub("^package/(dist/)?", "", member.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tar.extractfile(member).read())
    shutil.rmtree(pack)


def render(docs: Path):
    "Notebooks to pages. (`nbdev_proc_nbs` would do the first half, but without quarto it tries to install it.)"
    refresh_quarto_yml()
    nbdev.serve.FilterDefaults = BookFilter
    proc = nbdev.serve.proc_nbs(force=True, n_workers=0)
    said = subprocess.run(["smalldocs", "render", str(proc)], cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    print(*(line for line in said.splitlines() if "output-file" not in line), sep="\n")
    shutil.rmtree(docs, ignore_errors=True)
    shutil.move(proc / "_docs", docs)


def localise(docs: Path):
    "The site's own copy of whatever it would fetch from another host or could not fetch from a disk."
    katex, libs = ROOT / ".venv" / "katex", docs / "site_libs"
    fetch_katex(katex)
    if katex.exists(): shutil.copytree(katex, libs / "katex")
    for css in docs.rglob("*.css"): css.write_text(re.sub(r"@import url\([\"']?https?://[^)]*\)[^;]*;", "", css.read_text()))
    script = (libs / "smalldocs.js").read_text()
    if FETCH_INDEX not in script: raise SystemExit("docs: smalldocs loads its search index in a new way: adapt FETCH_INDEX")
    (libs / "smalldocs.js").write_text(script.replace(FETCH_INDEX, LOAD_INDEX))
    (docs / "search.js").write_text(f"window.bookIndex = {(docs / 'search.json').read_text()};")
    shutil.copy(Path(__file__).with_name("book.css"), libs)


def finish(page: Path, docs: Path):
    "One page: KaTeX from the site, backticked names to their chapter, chapter numbers in the sidebar."
    up, cfg = "../" * len(page.relative_to(docs).parent.parts), get_config()
    chapters = {p.stem.split("_", 1)[-1]: p.name for p in (docs / "nbs").glob("*.html")}
    html = page.read_text()
    if (docs / "site_libs" / "katex").exists(): html = KATEX_CDN.sub(f"{up}site_libs/katex/", html)
    names = re.escape(f"{cfg.doc_host}{cfg.doc_baseurl}/nbs/") + r"(\w+)\.html"
    html = re.sub(names, lambda m: f"{up}nbs/{chapters.get(m[1], m[1] + '.html')}", html)
    html = re.sub(r'(href="[^"]*?(\d\d[a-z]*)_\w+\.html"[^>]*class="sidebar-item-text[^>]*>\s*(<span class="menu-text">)?)', r'\1<span class="chapter">\2</span> ', html)
    page.write_text(html.replace("</head>", f'<link rel="stylesheet" href="{up}site_libs/book.css"></head>', 1))


def main():
    docs = ROOT / "_docs"
    render(docs)
    localise(docs)
    for page in docs.rglob("*.html"): finish(page, docs)
    print(f"docs: {docs.name}/index.html")


if __name__ == "__main__": main()
