"Guards of the offline ruler and of the verification of metrics."
from dataclasses import replace

import numpy as np
import pytest
import torch

from javisdit.core import generator, tiny
from javisdit.imagebind_av import JointEmbedder
from javisdit.media import Clip, write_clip
from javisdit.ruler import FPS, IN_STEP, SOON, Eye, guests, load_ruler, moment_score
from javisdit.verify import GROUPS, Item, Judges, folder_items, judged_rows, measured, partners, verify, world_items
from javisdit.world import running_clip, world_clip

RULER = load_ruler()


def test_it_is_an_embedder_and_says_its_name():
    assert isinstance(RULER, JointEmbedder) and RULER.name == "offline-ruler"
    assert not any(p.requires_grad for p in RULER.parameters()) and not RULER.train().training


@pytest.mark.parametrize("shape, fps", [((1, 32, 32, 3), 24.0), ((5, 64, 48, 3), 10.0), ((60, 32, 56, 3), 29.97), ((3, 8, 8, 3), 1.0)])
def test_a_vector_for_every_frame_of_any_clip(shape, fps):
    video = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    x = RULER.frames(video, fps)
    assert x.shape == (shape[0], 64) and torch.allclose(x.norm(dim=1), torch.ones(shape[0]), atol=1e-4)
    assert RULER.videos([video, video], [fps, fps]).shape == (2, 64)


@pytest.mark.parametrize("n", [1, 50, 700, 16000])
def test_any_sound_has_a_vector(n):
    x = RULER.sounds([np.zeros(n, np.float32), np.random.default_rng(0).standard_normal(n).astype(np.float32)], 16000)
    assert x.shape == (2, 64) and torch.isfinite(x).all()


def test_captions_and_their_order():
    words = ["a red ball bounces", "a kettle whistles on the left"]
    assert torch.allclose(RULER.texts(words), RULER.texts(words[::-1]).flip(0), atol=1e-5)


def test_no_tower_knows_where_the_end_is():
    eye = Eye(8, (1, 2, 4)).eval()
    x = torch.rand(1, 3, 40, 16, 16)
    with torch.no_grad(): a, b = eye(x), eye(x.roll(7, 2))
    inner = ~torch.isin(torch.arange(40), torch.arange(-14, 22) % 40)           # away from the first frame, which has no predecessor
    assert torch.allclose(a.roll(7, 1)[:, inner], b[:, inner], atol=1e-5)


def test_less_than_half_a_picture_is_in_step():
    seen = torch.nn.functional.normalize(torch.randn(48, 32, generator=generator("cap")), dim=-1)
    assert RULER.moments.score(seen, seen).item() == 1.0 and RULER.moments.score(seen, -seen).item() < 0.1
    assert IN_STEP == pytest.approx(np.exp(-0.5 / FPS / SOON)) and IN_STEP > np.exp(-1 / FPS / SOON)      # a whole picture is below it


def test_guests_stand_still_in_half_of_the_clips():
    x = torch.rand(64, 3, 20, 32, 32, generator=generator("guests"))
    y = guests(x, generator(1))
    assert torch.equal(y, guests(x, generator(1))) and not torch.equal(y, guests(x, generator(2))) and y.shape == x.shape
    changed = (y != x).any(1).flatten(2).any(2)                          # clip, frame
    assert 16 < changed.any(1).sum() < 48
    for v, w, when in zip(y, x, changed):
        if not when.any(): continue
        times = when.nonzero()[:, 0]
        assert len(times) == times[-1] - times[0] + 1 >= 4                # one stretch
        here = (v != w).any(0)[times[0]]
        assert 36 <= here.sum() <= 256 and torch.equal(v[:, times[0]][:, here], v[:, times[-1]][:, here])    # the same piece throughout


def test_streams_of_unequal_length_are_judged_where_both_are():
    c = world_clip(0).clip
    assert len(moment_score(replace(c, audio=c.audio[:16000]), RULER).cosines) == 24
    assert len(moment_score(replace(c, video=c.video[:12]), RULER).cosines) == 12


def test_items_are_the_same_whatever_their_number():
    geometry = replace(tiny().clip, frames=60)
    three, two = world_items(3, geometry), world_items(2, geometry)
    assert all(np.array_equal(a.clip.audio, b.clip.audio) and np.array_equal(a.generated, b.generated) and a.name == b.name for a, b in zip(three, two))


def test_what_cannot_be_broken_is_listed():
    geometry = replace(tiny().clip, frames=60)
    items = [*world_items(2, geometry), Item("silent", replace(world_clip(0).clip, audio=np.zeros(32000, np.float32)))]
    rows = [r for more in judged_rows(items, Judges(RULER, RULER)) for r in more]
    assert [r["item"] for r in rows if r["group"] == "skipped"] == ["silent"] and "negative" in next(r for r in rows if r["group"] == "skipped")["way"]
    assert verify(rows, "moments").pairs == 2 * len(GROUPS)                     # and does not enter


def test_a_folder_with_what_folders_have(tmp_path):
    c = world_clip(0).clip
    write_clip(c, tmp_path / "a.mp4"); write_clip(replace(c, audio=None), tmp_path / "mute.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"x"); (tmp_path / "notes.txt").write_text("no clip")
    found, left = folder_items(tmp_path)
    assert [x.name for x in found] == ["a.mp4"] and sorted(p.name for p, _ in left) == ["broken.mp4", "mute.mp4"]


def test_swapped_sound_fits_the_clip():
    c, d = world_clip(0).clip, running_clip().clip
    items = [Item("a", c), Item("b", Clip(d.video[:40], d.audio[:24000], d.fps, d.sample_rate))]
    swapped = [next(p for p in partners(items, i) if p.group == "swapped").clip for i in (0, 1)]
    assert [len(s.audio) for s in swapped] == [len(c.audio), 24000]


def test_intervals_hold_the_value_and_narrow():
    r = np.random.default_rng(0)
    wide, narrow = (measured(r.random(n) + 0.2, r.random(n), np.arange(n)) for n in (30, 600))
    for m in (wide, narrow): assert m.auroc_low <= m.auroc <= m.auroc_high and m.half_low <= m.ties_half <= m.half_high
    assert narrow.auroc_high - narrow.auroc_low < (wide.auroc_high - wide.auroc_low) / 2
