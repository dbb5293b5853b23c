"Guards of chapters 09ac and 09c: a folder of scores holds one run, and what is left out of it is said."
from dataclasses import replace

import numpy as np
import pytest

import javisdit.verify as verify_module
from javisdit.core import tiny
from javisdit.data import VIDEO_ENDINGS
from javisdit.media import write_clip
from javisdit.ruler import Ruler, javisdit_fit_ruler, load_ruler, save_ruler
from javisdit.verify import Item, folder_items, javisdit_verify, partners, read_rows
from javisdit.world import world_clip

CLIP = replace(tiny().clip, frames=24)


class Other(Ruler): name = "imagebind_huge"


def test_a_folder_of_scores_holds_one_run(tmp_path, monkeypatch):
    "Other judges, other clips, another number of them and other files of the same names are refused; the same run goes on."
    films = tmp_path / "films"; films.mkdir()
    for i in range(2): write_clip(world_clip(i, clip=CLIP).clip, films / f"{i}.mp4")
    run = lambda **kw: javisdit_verify(**dict(out=str(tmp_path / "out"), clips=str(films), seconds=1.0) | kw)
    monkeypatch.setattr(verify_module, "load_imagebind", lambda path, towers: Other(load_ruler().likeness, load_ruler().moments))
    run()
    rows, table = read_rows(tmp_path / "out" / "scores.csv"), (tmp_path / "out" / "table.md").read_text()
    run()
    assert read_rows(tmp_path / "out" / "scores.csv") == rows and (tmp_path / "out" / "table.md").read_text() == table and "by offline-ruler" in table
    for other, what in ((dict(imagebind="x.pth"), "judges.imagebind_huge"), (dict(seconds=0.5), "seconds"), (dict(seed=1), "seed"), (dict(clips="", n=2), "clips")):
        with pytest.raises(SystemExit, match=f"javisdit_verify: .* other settings .*{what}"): run(**other)
    write_clip(world_clip(5, clip=CLIP).clip, films / "1.mp4")
    with pytest.raises(SystemExit, match=r"other settings \(clips\)"): run()
    assert read_rows(tmp_path / "out" / "scores.csv") == rows and (tmp_path / "out" / "table.md").read_text() == table


def test_every_ending_of_a_video_is_known(tmp_path):
    write_clip(world_clip(0, clip=CLIP).clip, tmp_path / "a.mp4")
    (tmp_path / "a.mp4").rename(tmp_path / "a.m4v")
    for ending in VIDEO_ENDINGS: (tmp_path / f"broken{ending}").write_bytes(b"x")
    found, left = folder_items(tmp_path)
    assert [x.name for x in found] == ["a.m4v"] and sorted(p.suffix for p, _ in left) == sorted(VIDEO_ENDINGS)


def test_a_short_sound_is_repeated_and_called_so():
    "Silence at its end would give it away."
    a, b = (world_clip(i, clip=CLIP).clip for i in (0, 1))
    short = replace(b, video=b.video[:12], audio=b.audio[:8000] + np.float32(0.01))
    swapped, whole = (next(p for p in partners(items, 0) if p.group == "swapped") for items in ([Item("a", a), Item("b", short)], [Item("a", a), Item("b", b)]))
    assert (swapped.way, whole.way) == ("another clip, repeated", "another clip") and np.array_equal(whole.clip.audio, b.audio)
    assert len(swapped.clip.audio) == len(a.audio) and np.array_equal(swapped.clip.audio[8000:16000], swapped.clip.audio[:8000])


def test_a_ruler_is_written_whole_and_faults_take_one_line(tmp_path, monkeypatch):
    save_ruler(load_ruler(), path := tmp_path / "ruler.safetensors", {})
    before = path.read_bytes()
    monkeypatch.setattr(type(path), "write_bytes", lambda self, data: self.open("wb").write(data[:9]) and 1 / 0)
    with pytest.raises(ZeroDivisionError): save_ruler(load_ruler(), path, {})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(SystemExit, match="javisdit_fit_ruler: .*File exists"): javisdit_fit_ruler(out=str(path))
