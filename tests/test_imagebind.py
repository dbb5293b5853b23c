"Guards of chapter 00da: ImageBind's reader, its tokeniser, and how files are read."
import importlib.util
import pickle
import warnings

import parity
import pytest
import torch
from notebooks import ROOT
from safetensors.torch import save_file

from javisdit.core import MediaError
from javisdit.encoders import TextEncoder
from javisdit.imagebind import ClipTokenizer, ImageBindText, TextTower, load_imagebind_text, merges_file, read_state, text_tower

GOLDENS = [p for p in sorted((ROOT / "tests" / "goldens").glob("*imagebind*")) if "text" in p.name or "tokens" in p.name]
LONG = "a drum is struck and then " * 30


@pytest.fixture(scope="module")
def tower():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return TextTower(width=32, depth=2, heads=4, out=8).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def encoder(tower): return ImageBindText(tower, batch_size=3)


@pytest.mark.parametrize("path", GOLDENS, ids=lambda p: p.stem)
def test_parity(path, tmp_path, capsys):
    assert parity.main(["--out", str(tmp_path), str(path)]) == 0, capsys.readouterr().out
    assert len(GOLDENS) == 3 and [*tmp_path.iterdir()][0].name == path.name


def test_official_names():
    with torch.device("meta"): state = TextTower().state_dict()
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    assert len(shapes) == 295 and sum(v.numel() for k, v in state.items() if not k.endswith(".mask")) == 354_032_641
    assert shapes["modality_preprocessors.text.mask"] == (77, 77) and shapes["modality_preprocessors.text.pos_embed"] == (1, 77, 1024)
    assert shapes["modality_trunks.text.blocks.23.attn.in_proj_weight"] == (3072, 1024) and shapes["modality_trunks.text.blocks.0.mlp.fc1.weight"] == (4096, 1024)
    assert shapes["modality_heads.text.proj.1.weight"] == (1024, 1024) and shapes["modality_postprocessors.text.1.log_logit_scale"] == ()


def test_long_captions_are_cut_aloud():
    with pytest.warns(UserWarning, match="1 of 2 captions are longer than 77 tokens .* 'a drum"): kept = ClipTokenizer()([LONG, "a drum"])
    assert kept[0, -1] == 49407 and kept[0, 0] == 49406 and kept.shape == (2, 77) and kept.dtype == torch.int64
    with pytest.warns(UserWarning): lost = ClipTokenizer(keep_end=False)([LONG])
    assert (kept[0, :-1] == lost[0, :-1]).all() and 49407 not in lost
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (ClipTokenizer()(["drum " * 75])[0, [0, -1]] == torch.tensor([49406, 49407])).all()   # 75 and two marks fit exactly


def test_tokeniser_errors(monkeypatch):
    with pytest.raises(TypeError, match="pass a list of strings"): ClipTokenizer()("a drum")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps open-clip-torch"): merges_file()


def test_promise(encoder):
    assert isinstance(encoder, TextEncoder) and (encoder.channels, encoder.tokens) == (32, 77)
    states, mask = encoder(["a drum", "", "a bell", "a lamp flashes"])
    assert states.shape == (4, 77, 32) and states.dtype == torch.float32 and mask.all() and not states.requires_grad
    assert not any(p.requires_grad for p in encoder.parameters()) and not encoder.train().training
    assert encoder([]).states.shape == (0, 77, 32) and encoder.embed(["a drum"]).shape == (1, 8)


def test_does_not_depend_on_the_batch(encoder):
    texts = ["a drum", "a lamp flashes twice", "", "a red ball bounces", "a bell"]
    assert torch.allclose(encoder(texts).states, torch.cat([encoder([t]).states for t in texts]), atol=1e-5)


def test_files(tower, tmp_path):
    state = tower.state_dict()
    torch.save(state | {"modality_trunks.audio.blocks.0.norm_1.weight": torch.ones(3)}, tmp_path / "zip.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file({f"text_encoder.{k}": v for k, v in state.items()} | {"in_proj.bias": torch.ones(3)}, tmp_path / "prior.safetensors")
    want = tower.states(torch.arange(77)[None])
    for name in ("zip.pth", "old.pth", "prior.safetensors"):
        assert torch.equal(load_imagebind_text(tmp_path / name, heads=4).tower.states(torch.arange(77)[None]), want)


class Evil:
    def __reduce__(self): return (exec, ("raise SystemExit('code was run')",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_bad_files(tower, tmp_path):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"a": Evil()}))
    torch.save({"a": Evil()}, tmp_path / "evil_zip.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"state": {"a": torch.ones(1)}}, tmp_path / "nested.pth")
    for path in tmp_path.iterdir():
        with pytest.raises(MediaError, match=path.name): read_state(path)
    with pytest.raises(MediaError, match="download https://dl.fbaipublicfiles.com"): load_imagebind_text(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="no text tower among 1 tensors"): text_tower({"a": torch.ones(1)})
    state = tower.state_dict()
    with pytest.raises(ValueError, match="missing: modality_preprocessors.text.pos_embed"): text_tower({k: v for k, v in state.items() if "pos_embed" not in k})
    with pytest.raises(ValueError, match="blocks.1.mlp.fc2.bias"): text_tower({k: v for k, v in state.items() if "1.mlp.fc2.bias" not in k}, 4)
