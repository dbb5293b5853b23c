"Guards of chapter 00db: T5 from a folder in the official layout, how captions are cleaned, and that it leaves."
import io
import json
import pickle
import warnings

import parity
import pytest
import sentencepiece
import torch
from notebooks import ROOT
from transformers import T5Config, T5EncoderModel

from javisdit.core import MediaError, paper, released, tiny
from javisdit.encoders import TextEncoder, load_text_encoder
from javisdit.t5 import T5, add_suffix, clean_caption, load_t5, merge_prompt, prepare_prompt, split_prompt

WORDS = ["a red ball bounces twice on the left", "a lamp flashes", "a drum is struck off screen, then a bird sings", "a robot hums while a bell rings on the right"]


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return T5EncoderModel(T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu")).eval()


def tokenizer_files(folder):
    pieces, special = io.BytesIO(), dict(eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(WORDS * 4), model_writer=pieces, vocab_size=90, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)
    (folder / "spiece.model").write_bytes(pieces.getvalue())
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class="T5Tokenizer", extra_ids=0, **special)))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    "A folder as the repository has it: two pickled shards and their index."
    folder, state = tmp_path_factory.mktemp("t5"), model.state_dict()
    tokenizer_files(folder), model.config.save_pretrained(folder)
    names = [k for k in state if k != "encoder.embed_tokens.weight"]
    shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for file, keys in shards.items(): torch.save({k: state[k] for k in keys}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(dict(metadata={}, weight_map={k: f for f, keys in shards.items() for k in keys})))
    return folder


@pytest.fixture
def encoder(folder): return load_t5(folder, tokens=40, dtype=torch.float32, batch_size=2)


def test_parity(tmp_path, capsys):
    path = ROOT / "tests" / "goldens" / "eval_text_cleaning.json"
    assert parity.main(["--out", str(tmp_path), str(path)]) == 0, capsys.readouterr().out
    theirs = json.loads(path.read_text())
    theirs["cases"][3]["out"] += " wrong"
    (tmp_path / path.name).write_text(json.dumps(theirs))
    assert parity.main(["--out", str(tmp_path / "ours"), str(tmp_path / path.name)]) == 1 and "FAIL" in capsys.readouterr().out


def test_loads_the_official_layout(encoder, model):
    states, mask = encoder(WORDS)
    assert isinstance(encoder, TextEncoder) and (encoder.channels, encoder.tokens) == (32, 40) and states.dtype == torch.float32
    ids = torch.tensor([encoder.tokenizer(WORDS[0])["input_ids"]])
    assert torch.allclose(states[0, :ids.shape[1]], model(ids).last_hidden_state[0], atol=1e-5) and mask[0].sum() == ids.shape[1] and ids[0, -1] == 1
    assert (states[~mask] == 0).all() and not any(p.requires_grad for p in encoder.parameters()) and not encoder.train().model.training


def test_as_safetensors(model, tmp_path, encoder):
    tokenizer_files(tmp_path), model.save_pretrained(tmp_path)
    assert torch.equal(load_t5(tmp_path, tokens=40, dtype=torch.float32, batch_size=2)(WORDS).states, encoder(WORDS).states)


def test_the_presets_get_it(folder):
    for config in (paper(), released()):
        encoder = load_text_encoder(config, folder=folder)
        assert isinstance(encoder, T5) and encoder.tokens == 300 and encoder.place.dtype == torch.bfloat16 and encoder.model is None   # nothing is read before it is needed
    states, mask = encoder(["a drum"])
    assert encoder.model.dtype == torch.bfloat16 and states.dtype == torch.float32 and states.shape == (1, 300, 32)
    assert released().sample.suffix == "aesthetic score: 6.5." and paper().sample.suffix == tiny().sample.suffix == ""


def test_alone_or_in_company(encoder):
    assert torch.allclose(encoder(WORDS).states, torch.cat([encoder([w]).states for w in WORDS]), atol=1e-5)
    assert encoder([]).states.shape == (0, 40, 32)
    with pytest.raises(TypeError, match="pass a list of strings"): encoder("one string")
    with pytest.warns(UserWarning, match="1 of 2 captions are longer than 40 tokens"): assert encoder(["a ball " * 40, "a"]).mask[0].all()


def test_leaves_and_comes_back(encoder):
    with encoder as inside: before = inside(WORDS).states
    assert encoder.model is None and not [*encoder.parameters()]
    assert torch.equal(encoder(WORDS).states, before) and encoder.model is not None
    encoder.release(); encoder.to(torch.bfloat16)
    encoder(WORDS[:1])
    assert encoder.model.dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="inside"):
        with encoder: raise RuntimeError("inside")
    assert encoder.model is None


def test_cleaning_is_the_encoders(folder, encoder):
    assert torch.equal(encoder(["A <b>Drum</b>"]).states, encoder(["a drum"]).states)
    plain = load_t5(folder, tokens=40, dtype=torch.float32, passes=None)
    assert not torch.equal(plain(["A Drum"]).states, plain(["a drum"]).states)
    assert clean_caption(" A Drum ", 0) == "a drum"


def test_missing_weights_give_one_clear_message(tmp_path, folder):
    with pytest.raises(MediaError, match=r"lacks .*pytorch_model\*.bin\*.*T5-XXL v1.1's encoder \(19 GB, Apache-2.0\).*https://huggingface.co/DeepFloyd/t5-v1_1-xxl"): load_t5(tmp_path)
    for p in folder.iterdir():
        if "00002-of" not in p.name: (tmp_path / p.name).write_bytes(p.read_bytes())
    with pytest.raises(MediaError, match="lacks pytorch_model-00002-of-00002.bin"): load_t5(tmp_path)
    with pytest.raises(MediaError, match="cannot be downloaded"): load_text_encoder(paper())     # nothing is downloaded in tests
    with pytest.raises(ValueError, match="tokens=1"): load_t5(folder, tokens=1)


class Evil:
    def __reduce__(self): return (exec, ("raise SystemExit('code was run')",))


def test_a_pickle_is_never_run(tmp_path, folder):
    for p in folder.iterdir(): (tmp_path / p.name).write_bytes(p.read_bytes())
    (tmp_path / "pytorch_model-00001-of-00002.bin").write_bytes(pickle.dumps({"shared.weight": Evil()}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception) as e: load_t5(tmp_path)(["a drum"])
    assert "code was run" not in str(e.value)


def test_prompts():
    assert prepare_prompt("|0| A Drum |2| Rain. Aesthetic score: 4.0.", "aesthetic score: 6.5.") == "|0|a drum aesthetic score: 6.5.|2|rain. aesthetic score: 4.0."
    assert add_suffix("x", "", "motion score: 2.0.") == "x motion score: 2.0." and prepare_prompt("") == ""
    for prompt in ("plain", "|0|a", "|0|a|1|b|7|c"): assert merge_prompt(*split_prompt(prompt)) == prompt
    for bad in ("a |0| b", "|1| b", "|0| a |0| b", "|0| a |3| b |2| c"):
        with pytest.raises(ValueError, match="begin with"): split_prompt(bad)
