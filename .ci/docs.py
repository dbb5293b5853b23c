"The book as a static site in _docs that opens offline: nbdev processes the notebooks, smalldocs renders them, KaTeX comes along."
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from nbdev.config import get_config
from nbdev.doclinks import _build_modidx
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parents[1]
KATEX = "katex@0.16.11"
KATEX_CDN = re.compile(r"https://[^\"']+/katex@[\d.]+/dist/")
KATEX_FILES = re.compile(r"package/dist/(katex\.min\.(js|css)|contrib/auto-render\.min\.js|fonts/.*\.woff2)|package/LICENSE")


def fetch_katex(folder: Path):  # where katex.min.js and its fonts go; kept between builds
    "KaTeX (MIT) from the package registry, once. Without npm the pages keep their link to the network, and this says so."
    if (folder / "katex.min.js").exists(): return
    if not shutil.which("npm"): return print("docs: npm is not installed, so equations will need the network")
    pack = folder.with_suffix(".pack")
    pack.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "pack", "--silent", KATEX], cwd=pack, check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(next(pack.glob("*.tgz"))) as tar:
        for member in filter(lambda m: KATEX_FILES.fullmatch(m.name), tar):
            path = folder / re.sub("^package/(dist/)?", "", member.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tar.extractfile(member).read())
    shutil.rmtree(pack)


def render():
    "Notebooks to pages. (`nbdev_proc_nbs` would do the first half, but it insists on downloading quarto.)"
    refresh_quarto_yml()
    _build_modidx()
    proc = proc_nbs(force=True)
    subprocess.run(["smalldocs", "render", str(proc)], cwd=ROOT, check=True)
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    shutil.move(proc / "_docs", ROOT / "_docs")


def localise(page: Path, docs: Path, katex: bool):
    "Links of one page: KaTeX from the site, backticked names to their chapter."
    up = "../" * len(page.relative_to(docs).parent.parts)
    cfg = get_config()
    chapters = {p.stem.split("_", 1)[-1]: p.name for p in (docs / "nbs").glob("*.html")}
    base = re.escape(f"{cfg.doc_host}{cfg.doc_baseurl}/nbs/")
    html = re.sub(rf'href="{base}(\w+)\.html', lambda m: f'href="{up}nbs/{chapters.get(m[1], m[1] + ".html")}', page.read_text())
    if katex: html = KATEX_CDN.sub(f"{up}site_libs/katex/", html)
    html = html.replace("</head>", f'<link rel="stylesheet" href="{up}site_libs/book.css"></head>', 1)
    page.write_text(html)


def offline(css: Path):
    "A stylesheet without the fonts that it would fetch from another host."
    css.write_text(re.sub(r"@import url\([\"']?https?://[^)]*\)[^;]*;", "", css.read_text()))


def main():
    katex = ROOT / ".venv" / "katex"
    fetch_katex(katex)
    render()
    docs = ROOT / "_docs"
    if katex.exists(): shutil.copytree(katex, docs / "site_libs" / "katex")
    shutil.copy(Path(__file__).with_name("book.css"), docs / "site_libs" / "book.css")
    for css in docs.rglob("*.css"): offline(css)
    for page in docs.rglob("*.html"): localise(page, docs, katex.exists())
    print(f"docs: {docs.relative_to(ROOT)}/index.html")


if __name__ == "__main__": main()
