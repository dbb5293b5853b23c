"The book builds, and every page opens in a browser without network."
import shutil
import subprocess
import sys

import pytest
from notebooks import ROOT

TOOLS = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
KATEX = (ROOT / ".venv" / "katex").exists() or shutil.which("npm")


@pytest.mark.slow
@pytest.mark.skipif(bool(TOOLS), reason=f"not installed: {', '.join(TOOLS)}")
@pytest.mark.skipif(not KATEX, reason="equations offline need KaTeX, and npm to fetch it is not installed")
def test_book_opens_offline():
    for script in ("docs.py", "check_docs.py"):
        done = subprocess.run([sys.executable, f".ci/{script}"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
