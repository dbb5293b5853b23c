"Guards of chapter 03aa: the commands on random models of the official formats, and whatever may go wrong with a user's media, captions and models."
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pool_models
import pytest
import soundfile
import torch
import transformers as hf
from safetensors.torch import save_file

from javisdit import make_pools as mp
from javisdit.augment import make_negatives
from javisdit.core import MediaError, rng
from javisdit.data import Row, read_manifest
from javisdit.hub import WEIGHTS
from javisdit.make_pools import (AudioLDM2, ChatNamer, ContrastSegmenter, DetectedBoxes, FileBoxes, SamSegmenter, WorldBoxes, WorldNamer, by_name, chosen, clean_names,
                                 cut_out, find_tracks, link, load_separator, loud_spans, make_names, make_stems, make_tracks, make_unpaired, read_names, run_lengths)
from javisdit.media import Clip, read_clip, write_clip
from javisdit.pools import FolderSounds, FolderStems, FolderTrajectories, FolderUnpaired, Pools
from javisdit.world import write_world

COMMANDS = "javisdit_names", "javisdit_stems", "javisdit_tracks", "javisdit_unpaired"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "A manifest of three clips, their names, and models in folders."
    d = tmp_path_factory.mktemp("world")
    rows = read_manifest(write_world(d / "clips", 3, seed=8, workers=1, progress=False))
    make_names(rows, d / "names.json", WorldNamer(), progress=False)
    for name in ("chat_model", "sam_model", "owl_model", "dino_model", "sound_model", "audiosep"): getattr(pool_models, name)(d / name)
    return d


def rows_of(world): return read_manifest(world / "clips" / "manifest.csv")


# --- names ---

@pytest.mark.parametrize("answer, names", [
    ('["dog"]', ["dog"]), ('```json\n["dog", "DOG"]\n```', ["dog"]), ("[]", []), ('["../etc", "a.b_c"]', ["etc", "a b c"]), ('["寺の鐘"]', ["寺の鐘"]),
    ('["none", "None.", "Background noise", "x [y]", " "]', []), (f'["{"x" * 49}"]', [])])
def test_answers(answer, names):
    assert mp.parse_names(answer) == names


@pytest.mark.parametrize("answer", ["", "dog", "[", "[1]", '{"a": 1}', '["a", ["b"]]', "[dog, cat]", "\x00[\ufffd"])
def test_answers_that_are_none(answer):
    with pytest.raises(ValueError): mp.parse_names(answer)


def test_names_by_hand(tmp_path):
    path = tmp_path / "names.json"
    path.write_text('{"a": ["dog", "Dog"], "b": []}')
    assert read_names(path) == {"a": ["dog"], "b": []}
    for bad in ("[1]", '{"a": "dog"}', '{"a": [1]}', '{"a"'):
        path.write_text(bad)
        with pytest.raises(MediaError, match="names.json"): read_names(path)
    with pytest.raises(MediaError, match="nowhere"): read_names(tmp_path / "nowhere.json")


def test_a_random_model_is_asked_and_its_nonsense_counted(world, tmp_path, capsys):
    with pytest.raises(SystemExit): mp.javisdit_names.__wrapped__(world / "clips" / "manifest.csv", tmp_path / "n.json", str(world / "chat_model"), 2)
    assert "3 of 3 clips were skipped" in capsys.readouterr().out
    assert read_names(tmp_path / "n.json") == {}


def test_answers_do_not_depend_on_the_batch(world):
    ask = ChatNamer(world / "chat_model", max_tokens=12)
    captions = [r.text for r in rows_of(world)]
    assert ask(captions) == [ask([c])[0] for c in captions]


def test_a_model_without_a_chat_format(world, tmp_path):
    pool_models.chat_model(tmp_path, template=None)
    with pytest.raises(MediaError, match="has no chat format"): ChatNamer(tmp_path)


def test_names_survive_an_interruption(world, tmp_path):
    calls = []
    def tired(captions):
        calls.append(captions)
        if len(calls) == 2: raise KeyboardInterrupt
        return ['["dog"]'] * len(captions)
    with pytest.raises(KeyboardInterrupt): make_names(rows_of(world), tmp_path / "n.json", tired, batch_size=1, progress=False)
    assert len(read_names(tmp_path / "n.json")) == 1
    make_names(rows_of(world), tmp_path / "n.json", tired, batch_size=1, progress=False)
    assert len(read_names(tmp_path / "n.json")) == 3 and len(calls) == 4


def test_an_empty_caption_is_a_mistake_of_the_manifest(world, tmp_path):
    (tmp_path / "m.csv").write_text("path,text\na.mp4,a dog\nb.mp4,\n")
    with pytest.raises(SystemExit, match="line 3: text is empty"): mp.javisdit_names.__wrapped__(tmp_path / "m.csv", tmp_path / "n.json", str(world / "chat_model"))


def test_two_clips_of_one_name():
    with pytest.raises(MediaError, match="same name"): by_name([Row(Path("a/x.mp4"), "t", "0"), Row(Path("b/x.mov"), "t", "1")])
    with pytest.raises(MediaError, match="x.wav: has the same name as a/x.mp4"): by_name([Row(Path("a/x.mp4"), "t", "0"), Row(None, "t", "1", audio_path=Path("x.wav"))])


def test_sound_alone_goes_through_all_four(tmp_path):
    "It has sources and a caption, and no subjects to cut out."
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "rain.wav", np.full(16000, 0.25, np.float32), 16000)
    (tmp_path / "in" / "m.csv").write_text("path,audio_path,text\n,rain.wav,rain falls\n")
    rows = read_manifest(tmp_path / "in" / "m.csv")
    make_names(rows, tmp_path / "new" / "n.json", lambda captions: ['["rain"]'] * len(captions), progress=False)
    assert not make_stems(rows, tmp_path / "stems", read_names(tmp_path / "new" / "n.json"), half, progress=False).skipped
    assert FolderStems(tmp_path / "stems").get("rain")[0].name == "rain"
    assert ["rain.wav: is sound alone" in s.reason for s in make_tracks(rows, tmp_path / "tracks", {}, one_box, everything, progress=False).skipped] == [True]
    compose = type("Hum", (), dict(sample_rate=16000, alike=lambda self, caption: 0, __call__=lambda self, captions, names: np.full((len(names), 800), 0.5)))()
    assert not make_unpaired(rows, tmp_path / "unpaired", compose, match_duration=True, progress=False).skipped
    assert len(FolderUnpaired(tmp_path / "unpaired").get("rain").wave) == 16000
    (new,) = read_manifest(mp.add_unpaired(rows, tmp_path / "unpaired", tmp_path / "in" / "m2.csv"))
    assert new.path is None and new.extra["unpaired_audio_path"] == "../unpaired/rain.wav"


# --- separation ---

def half(wave, sample_rate, query): return wave / 2


def test_loud_spans():
    wave = np.concatenate([np.full(8, v, np.float32) for v in (0.2, 0.2, 0.0, 0.3)] + [np.full(3, 0.1, np.float32)])
    assert loud_spans(wave, 8) == [[0, 16], [24, 35]]
    assert loud_spans(wave, 8, 0.25) == [[24, 32]]
    assert loud_spans(np.zeros(0, np.float32), 8) == []


def test_long_sounds_are_separated_in_parts(tmp_path):
    wave = np.full(25000, 0.25, np.float32)
    wave[:10000] = 0                                                                # the first part is silent
    soundfile.write(tmp_path / "a.wav", wave, 1000)
    row = Row(tmp_path / "a.mp4", "t", "0", audio_path=tmp_path / "a.wav")
    assert not make_stems([row], tmp_path / "out", {"a": ["dog", "cat"]}, half, sample_rate=1000, progress=False).skipped
    note = json.loads((tmp_path / "out" / "a.wav.json").read_text())
    assert note["dog_000_000"] == [] and note["cat_001_001"] == [[10000, 20000]] and note["dog_002_000"] == [[20000, 25000]]
    assert len(list((tmp_path / "out").glob("*.wav"))) == 4
    for s in FolderStems(tmp_path / "out", 1000).get("a"): assert all(np.abs(s.wave[a:b]).min() > 0.1 for a, b in s.intervals)


def test_stems_of_bad_and_silent_media(world, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no")
    write_clip(Clip(np.zeros((24, 32, 32, 3), np.uint8), None), tmp_path / "mute.mp4")
    write_clip(Clip(np.zeros((24, 32, 32, 3), np.uint8), np.zeros(16000, np.float32)), tmp_path / "silent.mp4")
    rows = [Row(tmp_path / f"{n}.mp4", "t", n) for n in ("broken", "mute", "silent", "unnamed", "gone")]
    report = make_stems(rows, tmp_path / "out", {n: ["dog"] for n in ("broken", "mute", "silent", "gone")}, half, progress=False)
    assert [s.id for s in report.skipped] == ["broken", "mute", "unnamed", "gone"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["silent.wav.json"]
    assert json.loads((tmp_path / "out" / "silent.wav.json").read_text()) == {"dog_000_000": []}


def test_stems_resume(world, tmp_path):
    names, calls = read_names(world / "names.json"), []
    def tired(wave, rate, query):
        calls.append(query)
        if len(calls) == 3: raise KeyboardInterrupt
        return wave
    with pytest.raises(KeyboardInterrupt): make_stems(rows_of(world), tmp_path, names, tired, threshold=0.01, progress=False)
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*.json"))
    make_stems(rows_of(world), tmp_path, names, tired, threshold=0.01, progress=False)
    done, n = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}, len(calls)
    make_stems(rows_of(world), tmp_path, names, tired, threshold=0.01, progress=False)
    assert len(calls) == n == 3 + sum(map(len, names.values())) and done == {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}


@pytest.mark.parametrize("answer", [lambda w, r, q: w[:-1], lambda w, r, q: w * np.nan, lambda w, r, q: (w * 100).astype(int), lambda w, r, q: None])
def test_a_separator_that_answers_nonsense_stops_the_run(world, tmp_path, answer):
    with pytest.raises(ValueError, match="the separator answered"): make_stems(rows_of(world), tmp_path, {f"{i:06d}": ["dog"] for i in range(3)}, answer, progress=False)


def test_separators_by_name(world):
    assert load_separator("test_make_pools:half") is half or load_separator("test_make_pools:half")(np.ones(2), 1, "") .tolist() == [0.5, 0.5]
    with pytest.raises(MediaError, match="cannot be imported"): load_separator("nowhere_at_all:f")
    with pytest.raises(MediaError, match="is no function"): load_separator("test_make_pools:COMMANDS")
    with pytest.raises(MediaError, match="about 1.3 GB, licence MIT"): load_separator("audiosep_base_4M_steps.ckpt")
    with pytest.raises(MediaError, match="roberta-base"): load_separator(world / "audiosep" / "audiosep.ckpt")     # the tokenizer is not there


def test_audiosep_reads_its_checkpoint(world, tmp_path):
    "As lightning wrote it, and as safetensors; sound of any length and rate; the answer depends on the query."
    folder = world / "audiosep"
    net = load_separator(folder / "audiosep.ckpt", folder)
    assert not net.training and "ss_model.film.encoder_block1->conv_block1->beta1.weight" in net.state_dict()
    save_file(torch.load(folder / "audiosep.ckpt", weights_only=True)["state_dict"], tmp_path / "a.safetensors")
    same, wave = load_separator(tmp_path / "a.safetensors", folder), rng("wave").normal(size=8001).astype(np.float32) / 5
    for rate, n in ((16000, 8001), (32000, 5000), (44100, 100), (16000, 1)):
        a = net(wave[:n], rate, "a dog")
        assert a.shape == (n,) and a.dtype == np.float32 and np.isfinite(a).all()
    np.testing.assert_array_equal(net(wave, 16000, "a dog"), same(wave, 16000, "a dog"))
    assert np.abs(net(wave, 16000, "a dog") - net(wave, 16000, "rain")).max() > 1e-4
    assert not net(np.zeros(4000, np.float32), 16000, "a dog").any()


@pytest.mark.parametrize("gone, message", [("text_branch", "holds no text tower"), ("decoder_block3.conv1", "Missing key"), ("encoder_block6.conv_block1.conv2", "encoder_block6")])
def test_audiosep_says_what_a_checkpoint_lacks(world, tmp_path, gone, message):
    state = torch.load(world / "audiosep" / "audiosep.ckpt", weights_only=True)["state_dict"]
    save_file({k: v for k, v in state.items() if gone not in k}, tmp_path / "a.safetensors")
    with pytest.raises(MediaError, match=message): load_separator(tmp_path / "a.safetensors", world / "audiosep")


def test_audiosep_has_its_published_shape():
    "Names and sizes of the checkpoint's U-Net, as its authors describe it."
    net = mp.ResUNet30()
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    assert shapes["base.bn0.weight"] == (1025,) and shapes["base.pre_conv.weight"] == (32, 1, 1, 1) and shapes["base.after_conv.weight"] == (3, 32, 1, 1)
    assert shapes["base.encoder_block5.conv_block1.shortcut.weight"] == (384, 256, 1, 1) and "base.encoder_block6.conv_block1.shortcut.weight" not in shapes
    assert shapes["base.decoder_block1.conv1.weight"] == (384, 384, 1, 2) and shapes["base.decoder_block6.conv1.weight"] == (64, 32, 2, 2)
    assert shapes["film.decoder_block6->conv_block2->beta1.weight"] == (64, 512) and shapes["film.decoder_block6->beta2.weight"] == (64, 512)
    assert shapes["film.conv_block7a->conv_block1->beta2.bias"] == (384,)
    assert sum(k.startswith("film.") for k in shapes) == 2 * 2 * (7 + 2 * 6)


# --- tracks ---

def one_box(frames, row, names): return np.tile(np.array([8.0, 8, 40, 40]), (1, len(frames), 1))


def everything(frames, boxes): return np.ones((*boxes.shape[:2], *frames.shape[1:3]), bool)


def test_rules():
    of = lambda *sides: np.array([[[0, 0, s, s]] * 3 for s in sides], float)
    assert chosen(of(100, 60, 50, 33)) == [0, 1]                                   # 0.36, 0.25, 0.11 of the largest
    assert chosen(of(40, 33, 31)) == [0, 1]                                        # small ones
    for boxes, why in ((of(31), "at least 32 x 32"), (of(*[50] * 10), "10 subjects are a crowd"), (np.full((1, 3, 4), np.nan), "in sight"), (np.zeros((0, 3, 4)), "in sight")):
        with pytest.raises(ValueError, match=why): chosen(boxes)


def test_cut_out():
    frames = rng("frames").integers(0, 255, (12, 60, 80, 3), dtype=np.uint8)
    boxes = np.tile(np.array([3.5, 2, 41, 30.2]), (12, 1))
    boxes[[0, 5]] = np.nan
    t = cut_out(frames, np.ones((12, 60, 80), bool), boxes, side=20)
    assert len(t.frames) == 11 and not t.visible[4] and t.visible.sum() == 10 and t.size == (60, 80)
    assert max(t.frames.shape[1:3]) <= 20 and not any(s % 2 for s in t.frames.shape[1:3])
    assert (t.boxes[0] == [3, 2, 42, 31]).all() and (t.boxes[4] == t.boxes[3]).all()
    boxes[4:] = np.nan
    assert cut_out(frames, np.ones((12, 60, 80), bool), boxes) is None


def test_videos_without_a_subject_and_bad_ones(world, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no")
    still = Clip(np.full((24, 64, 64, 3), 90, np.uint8), None)
    for name in ("empty", "short", "good"): write_clip(Clip(still.video[:4 if name == "short" else 24], None), tmp_path / f"{name}.mp4")
    write_clip(Clip(np.zeros((2, 1088, 1922, 3), np.uint8), None), tmp_path / "huge.mp4")
    rows = [Row(tmp_path / f"{n}.mp4", "t", n) for n in ("broken", "empty", "short", "huge", "good")]
    def tracker(frames, row, names): return np.full((0, len(frames), 4), np.nan) if row.id == "empty" else one_box(frames, row, names)
    report = make_tracks(rows, tmp_path / "out", {}, tracker, everything, progress=False)
    said = {s.id: s.reason for s in report.skipped}
    assert list(said) == ["broken", "empty", "short", "huge"]
    assert "is in sight" in said["empty"] and "six pictures" in said["short"] and "1922 x 1088" in said["huge"]
    assert len(FolderTrajectories(tmp_path / "out").lengths) == 1
    def never(*a): raise AssertionError("asked again")
    again = make_tracks([r for r in rows if r.id not in ("broken", "huge")], tmp_path / "out", {}, never, never, progress=False)
    assert [s.id for s in again.skipped] == ["empty", "short"]                     # remembered, and listed again


def test_only_what_a_video_shows_is_remembered(world, tmp_path):
    "A file that could not be read, or a model that failed, is asked again; neither leaves a note that says that the video is done."
    rows, calls = rows_of(world)[:2], []
    def shaky(frames, row, names):
        calls.append(row.id)
        if len(calls) == 1: raise MediaError(row.path, "cannot be used (OSError: the network is gone)", "wait")
        return one_box(frames, row, names)
    assert len(make_tracks(rows, tmp_path / "a", {}, shaky, everything, progress=False).skipped) == 1
    assert not make_tracks(rows, tmp_path / "a", {}, shaky, everything, progress=False).skipped and calls == [rows[0].id, rows[1].id, rows[0].id]
    def broken(frames, boxes): raise ValueError("the model does not like this")
    with pytest.raises(ValueError, match="does not like"): make_tracks(rows, tmp_path / "b", {}, one_box, broken, progress=False)
    assert not list((tmp_path / "b").iterdir())


def test_tracks_resume(world, tmp_path):
    calls = []
    def tired(frames, boxes):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return everything(frames, boxes)
    for _ in range(2):
        try: make_tracks(rows_of(world), tmp_path, {}, one_box, tired, progress=False)
        except KeyboardInterrupt: pass
    assert len(calls) == 4 and len(FolderTrajectories(tmp_path).lengths) == 3


def test_boxes_from_files(world, tmp_path):
    row = rows_of(world)[0]
    frames = np.zeros((12, 64, 64, 3), np.uint8)
    with pytest.raises(MediaError, match="has no boxes"): FileBoxes(tmp_path)(frames, row, [])
    (tmp_path / "000000_manual.json").write_text(json.dumps(dict(masklet=[[dict(size=[3, 2], counts="231"), dict(size=[3, 2], counts="6")]] * 12)))
    boxes = FileBoxes(tmp_path)(frames, row, [])
    assert boxes.shape == (2, 12, 4) and (boxes[0, 0] == [0, 0, 2, 3]).all() and np.isnan(boxes[1]).all()
    (tmp_path / "000000.json").write_text(json.dumps(dict(boxes=[[[1, 2, 30, 40]] * 11 + [None]])))
    assert np.isnan(FileBoxes(tmp_path)(frames, row, [])[0, -1]).all()
    (tmp_path / "000000.json").write_text(json.dumps(dict(boxes=[[[1, 2, 30, 40]] * 3])))
    with pytest.raises(MediaError, match=r"shape \(1, 3, 4\), expected \(subjects, 12, 4\)"): find_tracks(row, [], FileBoxes(tmp_path), everything)
    (tmp_path / "000000.json").write_text('{"boxes": 3')
    with pytest.raises(MediaError, match="000000.json"): FileBoxes(tmp_path)(frames, row, [])


def coco(mask):
    "Run lengths in COCO's letters, written by the definition."
    flat, runs, value = mask.T.ravel(), [], False
    while len(flat):
        n = int((flat != value).argmax()) if (flat != value).any() else len(flat)
        runs.append(n); flat = flat[n:]; value = not value
    text = ""
    for i, run in enumerate(runs):
        x = run - (runs[i - 2] if i > 2 else 0)
        more = True
        while more:
            digit, x = x & 31, x >> 5
            more = not (x == -1 and digit & 16 or x == 0 and not digit & 16)
            text += chr(48 + digit + 32 * more)
    return dict(size=list(mask.shape), counts=text)


@pytest.mark.parametrize("shape, share", [((5, 7), 0.5), ((200, 150), 0.01), ((64, 64), 0.99), ((3, 3), 0.0), ((3, 3), 1.0)])
def test_run_lengths(shape, share):
    mask = rng("rle", shape).random(shape) < share
    np.testing.assert_array_equal(run_lengths(coco(mask)), mask)


def test_world_boxes_are_where_the_subjects_are(world):
    for row in rows_of(world):
        frames = read_clip(row.path, audio=False).video
        boxes = WorldBoxes()(frames[::4], row, [])
        assert boxes.shape[1:] == (12, 4)
        seen = boxes[~np.isnan(boxes).any(-1)]
        assert (seen[:, :2] >= 0).all() and (seen[:, :2] + seen[:, 2:] <= 64).all() and (seen[:, 2:] >= 2).all()
    with pytest.raises(MediaError, match="has no truth"): WorldBoxes()(frames, Row(row.path, "t", "0"), [])


def test_link_tells_equal_names_apart():
    at = lambda x: np.array([x, 0.0, 10, 10])
    tracks = link([[(0.9, "dog", at(0 + t)), (0.8, "dog", at(40 - t))] for t in range(10)])
    assert len(tracks) == 2 and not np.isnan(tracks).any() and (np.diff(tracks[:, :, 0]) == [[1], [-1]]).all()
    assert len(link([[(0.9, "dog", at(0))], *[[]] * 7, [(0.9, "dog", at(0))]])) == 2        # away for too long


def test_contrast_at_the_edge_of_the_picture():
    frames = np.full((1, 20, 20, 3), 50, np.uint8)
    frames[0, :8, :8] = 200
    boxes = np.array([[[0, 0, 10, 10.0]], [[0, 0, 20, 20]], [[np.nan] * 4]])
    masks = ContrastSegmenter()(frames, boxes)
    assert masks[0, 0].sum() == 64 and masks[0, 0, :8, :8].all() and masks[1].all() and not masks[2].any()   # no ring: the whole box


@pytest.mark.parametrize("batch_size", [1, 5])
def test_sam_masks_do_not_depend_on_the_batch(world, batch_size):
    frames = rng("sam").integers(0, 255, (4, 40, 60, 3), dtype=np.uint8)
    boxes = np.array([[[5, 5, 20, 20.0]] * 4, [[0, 0, 30, 30]] * 3 + [[np.nan] * 4], [[np.nan] * 4] * 4])
    masks = SamSegmenter(world / "sam_model", batch_size=batch_size)(frames, boxes)
    assert masks.shape == (3, 4, 40, 60) and masks.dtype == bool and not masks[2].any() and not masks[1, 3].any()
    np.testing.assert_array_equal(masks, SamSegmenter(world / "sam_model", batch_size=2)(frames, boxes))


@pytest.mark.parametrize("model", ["owl_model", "dino_model"])
def test_detectors(world, model):
    frames = rng("detector").integers(0, 255, (3, 40, 60, 3), dtype=np.uint8)
    detect = DetectedBoxes(world / model, threshold=0.0, batch_size=2)
    seen = detect.look(frames, ["red dog", "car"])
    assert len(seen) == 3 and all(len(d) == 3 and d[2].shape == (4,) for picture in seen for d in picture) and any(seen)
    assert detect(frames, None, ["red dog"]).shape[1:] == (3, 4)
    row = Row(Path("a.mp4"), "t", "0")
    with pytest.raises(MediaError, match="no named source"): detect(frames, row, [])
    assert DetectedBoxes(world / model, threshold=1.0)(frames, row, ["red dog"]).shape == (0, 3, 4)


# --- sound from text ---

def test_sound_does_not_depend_on_the_batch(world, tmp_path):
    rows = [Row(Path(f"{i}.mp4"), text, str(i), num_frames=12, fps=24.0) for i, text in enumerate(("a dog", "a cat", "a very long caption of a dog", "dogs bark"))]
    compose = AudioLDM2(world / "sound_model", steps=2, seconds=0.64)
    for name, batch in (("a", 1), ("b", 4)): assert not make_unpaired(rows, tmp_path / name, compose, batch, progress=False).skipped
    waves = [[FolderUnpaired(tmp_path / name).get(str(i)).wave for i in range(4)] for name in "ab"]
    np.testing.assert_allclose(waves[0], waves[1], atol=2e-4)
    assert all(np.abs(w).max() > 0.01 for w in waves[0]) and np.abs(waves[0][0] - waves[0][1]).max() > 0.01
    make_unpaired(rows, tmp_path / "c", compose, match_duration=True, progress=False)
    assert {len(FolderUnpaired(tmp_path / "c").get(str(i)).wave) for i in range(4)} == {8000}
    unknown = make_unpaired([Row(Path("x.mp4"), "a dog", "x")], tmp_path / "c", compose, match_duration=True, progress=False)
    assert "length is not known" in unknown.skipped[0].reason


def test_unpaired_resumes(tmp_path):
    class Tired:
        sample_rate, calls = 8000, 0
        def alike(self, caption): return 0
        def __call__(self, captions, names):
            self.calls += len(names)
            if self.calls == 2: raise KeyboardInterrupt
            return np.full((len(names), 800), 0.5, np.float32)
    rows, tired = [Row(Path(f"{i}.mp4"), "t", str(i)) for i in range(3)], Tired()
    with pytest.raises(KeyboardInterrupt): make_unpaired(rows, tmp_path, tired, 1, progress=False)
    make_unpaired(rows, tmp_path, tired, 1, progress=False)
    assert tired.calls == 4 and len(list(tmp_path.iterdir())) == 3


# --- the commands ---

def test_the_commands_fill_pools_that_make_negatives_uses(world, tmp_path, monkeypatch, capsys):
    manifest, call = world / "clips" / "manifest.csv", lambda name, *a, **kw: getattr(mp, name).__wrapped__(manifest, *a, **kw)
    call("javisdit_stems", tmp_path / "stems", world / "names.json", str(world / "audiosep" / "audiosep.ckpt"), str(world / "audiosep"), threshold=0.001)
    call("javisdit_tracks", tmp_path / "tracks", world / "names.json", detector=str(world / "owl_model"), threshold=0.0, segmenter=str(world / "sam_model"), smallest=2, batch_size=8)
    (tmp_path / "boxes").mkdir()
    for i in range(3): (tmp_path / "boxes" / f"{i:06d}.json").write_text(json.dumps(dict(boxes=[[[4, 4, 40, 40]] * 12])))
    call("javisdit_tracks", tmp_path / "hand", boxes=tmp_path / "boxes", segmenter=str(world / "sam_model"))
    call("javisdit_unpaired", tmp_path / "unpaired", str(world / "sound_model"), steps=1, seconds=0.64, match_duration=True)
    assert capsys.readouterr().out.count("3 of 3 clips are done") >= 2
    pools = Pools(FolderTrajectories(tmp_path / "hand"), FolderSounds(tmp_path / "stems"), FolderStems(tmp_path / "stems"), FolderUnpaired(tmp_path / "unpaired"))
    made = [make_negatives(read_clip(r.path), 6, rng("commands", r.id), pools, name=r.path.stem) for r in rows_of(world)]
    assert not any(m.passed_over for m in made)
    assert {"trajectory", "add", "remove", "unpaired"} <= {n.way for m in made for g in ("video_spatial", "audio_spatial", "audio_temporal") for n in getattr(m, g)}
    new = read_manifest(world / "clips" / "manifest_unpaired.csv")
    assert all((manifest.parent / r.extra["unpaired_audio_path"]).exists() for r in new) and [r.text for r in new] == [r.text for r in rows_of(world)]


def test_help_and_missing_weights(world, tmp_path):
    "As a shell sees it: the help reads well, and where weights are absent one line says which."
    script = tmp_path / "command.py"
    script.write_text("import sys\nimport javisdit.make_pools as m\nfor line in sys.stdin:\n    name, *args = line.split()\n    sys.argv = [name, *args]\n"
                      "    try: getattr(m, name)()\n    except SystemExit as e: print('EXIT', name, e.code)\n    except BaseException as e: print('CRASH', name, repr(e))\n")
    manifest, names = world / "clips" / "manifest.csv", world / "names.json"
    lines = [f"{c} --help" for c in COMMANDS] + [f"javisdit_names {manifest} {tmp_path / 'n'}", f"javisdit_stems {manifest} {tmp_path / 's'} {names}",
             f"javisdit_tracks {manifest} {tmp_path / 't'} --names {names}", f"javisdit_unpaired {manifest} {tmp_path / 'u'}", f"javisdit_tracks {manifest} {tmp_path / 't'}",
             f"javisdit_names {tmp_path / 'none.csv'} x"]
    page = json.loads((Path(__file__).parents[1] / "nbs" / "03aa_make_pools.ipynb").read_text(encoding="utf-8"))
    (shown,) = ["".join(c["source"]) for c in page["cells"] if c["id"] == "commands-md"]
    lines += [line for line in shown.splitlines() if line.startswith("javisdit_")]         # as the page says, where there is no manifest.csv
    said = subprocess.run([sys.executable, script], input="\n".join(lines), capture_output=True, text=True, cwd=tmp_path).stdout
    assert "CRASH" not in said, said
    for word in ("any instruction-tuned model", "module:function", "Grounding DINO", "cut or pad to the clip's own length"): assert word in " ".join(said.split()), word
    errors = [line for line in said.splitlines() if line.startswith("EXIT") and not line.endswith(" 0")]
    expected = ("Qwen/Qwen2.5-1.5B-Instruct, 3.09 GB, licence Apache-2.0", "about 1.3 GB, licence MIT", "google/owlv2-base-patch16-ensemble, 0.62 GB", "cvssp/audioldm2, about 4.5 GB, licence CC BY-NC-SA 4.0",
                "say --boxes FOLDER or --names FILE", "none.csv: does not exist", *[f"{c}: manifest.csv: does not exist" for c in COMMANDS])
    assert len(errors) == len(expected)
    for line, words in zip(errors, expected): assert words in line, line
    assert not [p for p in tmp_path.iterdir() if p != script]                      # nothing was begun


def test_sizes_are_numbers_times_bytes():
    "Of the models whose shape transformers knows, or that is published with them."
    qwen = hf.Qwen2Config(vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=True)
    owl = hf.Owlv2Config(vision_config=dict(image_size=960, patch_size=16))
    with torch.device("meta"): models = dict(sam=(hf.SamModel(hf.SamConfig()), 4), owlv2=(hf.Owlv2ForObjectDetection(owl), 4), **{"qwen2.5": (hf.Qwen2ForCausalLM(qwen), 2)})
    for name, (model, size) in models.items(): assert WEIGHTS[name].gigabytes == round(sum(p.numel() for p in model.parameters()) * size / 1e9, 2) and WEIGHTS[name].counted


def test_names_stay_names():
    assert clean_names(["a" * 48, "dog's", "tick-tock"]) == ["a" * 48, "dog's", "tick-tock"]
