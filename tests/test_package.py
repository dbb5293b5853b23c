"Guards of the package: every module imports in a fresh interpreter with nothing installed but what settings.ini promises."
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

import pytest
from notebooks import ROOT, modules
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SETTINGS = ConfigParser(delimiters=["="], interpolation=None)
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]
# what `pip install javisdit[extra]` is needed for; every other module must do with `pip install javisdit`
EXTRA = {"learner": "train", "heldout": "train", "engines": "train", "memory": "train", "stages": "train", "train_video": "train",
         "train_audio": "train", "train_prior": "train", "train_joint": "train", "explore": "explore"}
# never part of the base: not installed here, or only by accident
ALWAYS = {"torchvision", "torchaudio", "spacy", "sentence_transformers"}


def installed(requirements):
    "Names of all packages that these requirements bring along, as far as they are installed here."
    todo, found = [Requirement(r) for r in requirements], set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in found: continue
        try: needs = requires(name) or []
        except PackageNotFoundError: continue
        found.add(name)
        extras = {"", *requirement.extras}
        for need in map(Requirement, needs):
            if not need.marker or any(need.marker.evaluate({"extra": e}) for e in extras): todo.append(Requirement(str(need).split(";")[0]))
    return found


def blocked(extra=""):
    "Top-level modules installed here that a user with this extra need not have."
    wanted = SETTINGS["requirements"].split() + (SETTINGS[f"{extra}_requirements"].split() if extra else [])
    has = installed(wanted) | {"javisdit", "setuptools"}
    outside = {module for module, dists in packages_distributions().items() if not {canonicalize_name(d) for d in dists} & has}
    return sorted(outside | ALWAYS)


def alone(code, extra=""):
    "Runs `code` in a fresh interpreter that cannot import what `extra` does not promise; returns what went wrong, if anything."
    hide = f"import json, sys; sys.modules.update(dict.fromkeys(json.loads({json.dumps(blocked(extra))!r})))\n"
    done = subprocess.run([sys.executable, "-c", hide + code], cwd=ROOT.parent, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


@pytest.fixture(scope="module")
def fresh_imports():
    "All fresh interpreters, two at a time: module -> future of its error."
    with ThreadPoolExecutor(2) as pool: yield {m: pool.submit(alone, f"import javisdit.{m}", EXTRA.get(m, "")) for m in modules()}


def test_the_blocked_packages_are_the_right_ones():
    base = blocked()
    assert {"fastai", "nbdev", "papermill", "pandas", "jupyterlab", "ipywidgets", "pytest", "execnb", "torchvision", "torchaudio"} <= set(base)
    assert not {"torch", "numpy", "librosa", "transformers", "diffusers", "fastcore", "scipy", "yaml"} & set(base)
    assert "fastai" not in blocked("train") and "nbdev" in blocked("train")


@pytest.mark.parametrize("module", modules())
def test_imports_in_a_fresh_interpreter(module, fresh_imports):
    error = fresh_imports[module].result()
    assert not error, f"javisdit.{module} needs more than javisdit{[EXTRA[module]] if module in EXTRA else ''}:\n{error}"


def test_settings_and_modules_agree():
    for command in SETTINGS["console_scripts"].split():
        module, function = re.fullmatch(r"\w+=javisdit\.(\w+):(\w+)", command).groups()
        source = (ROOT / "javisdit" / f"{module}.py").read_text(encoding="utf-8")
        assert re.search(rf"^def {function}\(", source, re.MULTILINE), command


GENERATE = """
from dataclasses import asdict
from javisdit.codecs import load_codecs
from javisdit.core import tiny
from javisdit.dit import JavisDiT
from javisdit.encoders import load_text_encoder
from javisdit.sampler import JavisDiTPipeline
c = tiny()
clip = JavisDiTPipeline(JavisDiT(**asdict(c.model)), *load_codecs(c), load_text_encoder(c), c)("a red ball", steps=2)[0]
assert clip.video.shape == (48, 32, 32, 3) and clip.audio.shape == (32000,)
"""


@pytest.mark.skipif(not (ROOT / "javisdit" / "sampler.py").exists(), reason="no sampler yet")
def test_generates_with_the_base_requirements():
    assert not alone(GENERATE)
