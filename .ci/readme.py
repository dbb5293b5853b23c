"README.md from index.ipynb, as GitHub shows it: `python .ci/readme.py` writes it, `--check` says whether it is up to date."
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def fence(text, lang=""): return f"```{lang}\n{text.strip()}\n```"


def output(out):
    "Markdown of one output of a cell."
    if out["output_type"] == "stream": return fence("".join(out["text"])) if out["name"] == "stdout" else ""
    if out["output_type"] == "error": raise ValueError(f"index.ipynb holds an error: {out['ename']}: {out['evalue']}")
    data = {kind: "".join(value) for kind, value in out["data"].items() if isinstance(value, (str, list))}
    if "text/markdown" in data: return data["text/markdown"]
    if any(kind.startswith("image/") for kind in data): raise ValueError("index.ipynb holds a picture: save it in nbs/media and link it, so that GitHub can show it")
    return fence(data.get("text/plain", ""))


def code(cell):
    "Markdown of a code cell: source and outputs, as its directives say."
    lines = "".join(cell["source"]).splitlines()
    directives = {line.removeprefix("#|").strip() for line in lines if line.startswith("#|")}
    if directives & {"hide", "export", "include: false"} or any(d.startswith("default_exp") for d in directives): return ""
    source = "\n".join(line for line in lines if not line.startswith("#|"))
    shown = [] if "echo: false" in directives or not source.strip() else [fence(source, "python")]
    return "\n\n".join(shown + [o for o in map(output, cell["outputs"]) if o])


def readme(path=ROOT / "index.ipynb"):
    "The whole notebook as markdown; a raw cell is metadata of the site."
    nb = json.loads(path.read_text(encoding="utf-8"))
    kinds = {"markdown": lambda cell: "".join(cell["source"]).strip(), "code": code, "raw": lambda cell: ""}
    parts = ["<!-- Made from index.ipynb by .ci/readme.py: edit the notebook. -->", *(kinds[c["cell_type"]](c) for c in nb["cells"])]
    return "\n\n".join(filter(None, parts)) + "\n"


if __name__ == "__main__":
    path, text = ROOT / "README.md", readme()
    if "--check" not in sys.argv: path.write_text(text, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != text: sys.exit("README.md is older than index.ipynb: run python .ci/readme.py")
