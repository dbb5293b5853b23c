"The book builds, every page opens in a browser without network and every player plays; and each of those checks can fail."
import importlib.util
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from notebooks import ROOT

TOOLS = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
KATEX = (ROOT / ".venv" / "katex").exists() or shutil.which("npm")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(TOOLS), reason=f"not installed: {', '.join(TOOLS)}"),
              pytest.mark.skipif(not KATEX, reason="equations offline need KaTeX, and npm to fetch it is not installed")]


def script(name): return subprocess.run([sys.executable, f".ci/{name}"], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def book():
    "The site, built once."
    done = script("docs.py")
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "_docs"


def test_book_opens_offline(book):
    done = script("check_docs.py")
    assert done.returncode == 0, done.stdout + done.stderr


BROKEN = r"""
<p style="width: 3000px">wide</p><pre style="overflow: visible; width: 2000px">x</pre><img src="nowhere.png"><img src="http://example.org/x.png">
<span class="math">left alone</span><span class="katex-error" title="broken"></span><p>$x$ and \(y\)</p><a href="#nowhere">a</a><a href="nowhere.html">b</a>
<p><video src="media/mute.mp4"></video></p><script>console.error("broken")</script>
<style>body { background: #fff !important } main { color: #333 !important } main img { background: none !important }</style>
"""
EXPECTED = """not dark in dark mode|picture without its own background in the dark|page wider than its window by|cut off at the right|picture not loaded
request to another host|equation not rendered|equation with an error|markup left in the text|link to a missing place|link to nothing|console|player without media
player does not play|player without sound|silent player|player without a picture beside it|link to the previous page|link to the next page|search
light and dark|sidebar""".replace("\n", "|").split("|")


def broken_copy(book, to):
    "A copy of the site with one page on which everything is wrong, and one whose player is gone."
    from javisdit.media import Clip, write_clip
    docs = shutil.copytree(book, to / "docs")
    still, page, other = np.zeros((48, 32, 32, 3), np.uint8), docs / "nbs" / "00c_codecs.html", docs / "nbs" / "00b_world.html"
    write_clip(Clip(still, np.zeros(32000, np.float32)), docs / "nbs/media/00c_original.mp4")
    write_clip(Clip(still, None), docs / "nbs/media/mute.mp4")
    (docs / "nbs/media/00c_decoded.mp4").unlink()
    (docs / "search.js").write_text("window.bookIndex = [];")
    text = re.sub(r"<img[^>]*>|<nav class=\"page-navigation\">.*?</nav>", "", page.read_text(), flags=re.DOTALL)
    text = text.replace("quarto-btn-toggle", "no-toggle").replace("quarto-color-scheme-toggle", "no-toggle")
    page.write_text(text.replace("</main>", BROKEN + "</main>").replace("</body>", '<div style="width: 3000px; height: 1px"></div></body>'))
    other.write_text(re.sub(r"<video.*?</video>", "", other.read_text(), flags=re.DOTALL))
    return docs


def test_each_check_can_fail(book, tmp_path):
    spec = importlib.util.spec_from_file_location("check_docs", ROOT / ".ci" / "check_docs.py")
    spec.loader.exec_module(check := importlib.util.module_from_spec(spec))
    where, pages, _ = check.faults(broken_copy(book, tmp_path), only={"00c_codecs", "00b_world"})
    assert pages == 2
    on = lambda stem: {kind for (kind, _), pages in where.items() if stem in [p.stem for p in pages]}
    assert not set(EXPECTED) - on("00c_codecs"), set(EXPECTED) - on("00c_codecs")
    assert "chapter without a player" in on("00b_world")
    assert any(kind == "silent player" and "00c_original.mp4" in what for kind, what in where), "the fault does not name its player"
