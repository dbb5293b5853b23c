"Training masks: the reference's fixtures, every length, faults."
from pathlib import Path

import parity
import pytest
import torch

from javisdit.core import generator
from javisdit.masks import MODES, Draw, MaskMix, as_video, mode_masks, paper_mix, reference_mix

GOLDENS = Path(__file__).parent / "goldens"


def test_parity(tmp_path, capsys):
    files = [GOLDENS / f"{name}.safetensors" for name in ("prior_masks", "dit_mask_train")]
    assert parity.main(["--out", str(tmp_path), *map(str, files)]) == 0, capsys.readouterr().out
    assert {f.name for f in tmp_path.iterdir()} == {f.name for f in files}


def test_parity_of_other_sizes():
    config = dict(B=2, T=7, Ta=33, names=[m for m in MODES if m != "interpolate"] + ["intepolate"])
    ours = parity.compute(parity.Fixture("dit_mask_train", config, {}, {}, {}))
    assert len(ours) == 28 and all(a.value.shape == (2, 7 if k.endswith("video") else 33) for k, a in ours.items())


@pytest.mark.parametrize("mode", MODES)
def test_every_length(mode):
    for frames in range(1, 13):
        for steps in (1, 2, 3, 5, 4 * frames):
            for i in range(3):
                draw = lambda: Draw(generator(mode, frames, i))
                video, audio = mode_masks(mode, frames, steps, draw())
                again = mode_masks(mode, frames, steps, draw())
                assert len(video) == frames and len(audio) == steps and (video.any() or audio.any()) and torch.equal(video, again[0]) and torch.equal(audio, again[1])
                given = int((~video).sum())
                if mode.startswith("quarter"): assert given <= max(1, frames // 4) * (2 if "head_tail" in mode else 1)
                if mode.startswith("image"): assert given in (1, min(2, frames)) and audio.all()
                if mode in ("random", "interpolate") or mode.startswith("quarter"): assert torch.equal(audio, as_video(video, steps))


def test_faults():
    with pytest.raises(ValueError, match="0 video frames and 3 audio steps"): mode_masks("random", 0, 3, Draw(generator(0)))
    with pytest.raises(ValueError, match="modes dub are not known"): MaskMix({"dub": 0.1})
    for shares in ({"random": -0.1}, {"random": 0.6, "image_head": 0.5}):
        with pytest.raises(ValueError, match="must not be negative nor add up"): MaskMix(shares)


@pytest.mark.parametrize("mix", [paper_mix(), reference_mix(), MaskMix({"random": 1.0})])
def test_shares_are_kept(mix):
    draw, n = Draw(generator("shares")), 4000
    drawn = [mix.mode(draw) for _ in range(n)]
    for mode in MODES:
        share = mix.shares.get(mode, 1 - sum(mix.shares.values()) if mode == "identity" else 0)
        assert abs(drawn.count(mode) / n - share) <= 4 * (share * (1 - share) / n) ** 0.5 + 1e-9, mode


def test_a_clip_is_drawn_from_its_own_generator():
    mix, place = reference_mix(), lambda i: generator(0, "train", 3, i)
    batch = [mix(1, 15, 56, place(i)) for i in range(8)]
    assert all(torch.equal(a, b) for i in (2, 5) for a, b in zip(batch[i], mix(1, 15, 56, place(i))))
