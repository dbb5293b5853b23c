"Guards of chapter 09c: a folder of scores holds one run, and what is left out of it is said."
from dataclasses import replace

import pytest

import javisdit.verify as verify_module
from javisdit.core import tiny
from javisdit.media import write_clip
from javisdit.ruler import Ruler, load_ruler
from javisdit.verify import javisdit_verify, read_rows
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
