"Miniature folders in the layouts of the corpora: what is read from them, and what is said of what is wrong."
import json

import numpy as np
import pytest
import yaml

from javisdit.core import MediaError, tiny
from javisdit.corpora import CORPORA, gather, javisdit_manifest, recognised, table
from javisdit.data import ClipDataset, ClipItem, caption_beside, read_manifest, write_manifest
from javisdit.media import Clip, write_clip


@pytest.fixture(scope="session")
def bytes_of(tmp_path_factory):
    "A short sound and a short video, to be copied under any name."
    d, wave = tmp_path_factory.mktemp("media"), np.sin(np.arange(40000) / 9).astype(np.float32) / 3
    write_clip(Clip(None, wave), d / "x.wav")
    write_clip(Clip(np.arange(60 * 32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(60, 32, 32, 3), wave), d / "x.mp4")
    write_clip(Clip(None, wave), d / "x.flac")
    return {p.suffix: p.read_bytes() for p in d.iterdir()}


@pytest.fixture
def put(tmp_path, bytes_of):
    "put(name, text=None): a file of the folder; without text, a medium."
    def put(name, text=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None: path.write_bytes(bytes_of[path.suffix])
        else: path.write_text(text, encoding="utf-8")
        return path
    return put


# name -> (media, annotations, captions that must come out, entries without a file)
SOUNDS = {
    "audioset": (["wav/-0RWZT-miFs.wav", "wav/Y-0vPFx-wRRI.wav"], {
        "balanced_train_segments.csv": '# Segments csv created\n# num_ytids=3\n# YTID, start_seconds, end_seconds, positive_labels\n-0RWZT-miFs, 420.000, 430.000, "/m/03v3yw,/m/0k4j"\n-0vPFx-wRRI, 30.000, 40.000, "/m/0k4j"\n-gone, 0.000, 10.000, "/m/0k4j"\n',
        "class_labels_indices.csv": 'index,mid,display_name\n0,/m/03v3yw,"Keys jangling"\n1,/m/0k4j,"Car"\n'},
        ["the sound of keys jangling, car", "the sound of car"], 1),
    "audiocaps": (["audio/91139.wav", "audio/rqfQRErjfk8_170.wav", "audio/vfY_TJq7n_U.flac"], {
        "train.csv": 'audiocap_id,youtube_id,start_time,caption\n91139,r1nicOVtvkQ,130,"A woman talks nearby, as water pours"\n1,rqfQRErjfk8,170,Multiple clanging sounds\n2,vfY_TJq7n_U,130,Rain falls\n3,gone,0,Nothing\n'},
        ["A woman talks nearby, as water pours", "Multiple clanging sounds", "Rain falls"], 1),
    "vggsound": (["video/---g-f_I2yQ_000001.mp4", "video/--0PQM4-hqg_000030.mp4"], {
        "vggsound.csv": '---g-f_I2yQ,1,"people marching",train\n--0PQM4-hqg,30,"waterfall burbling",train\n--56QUhyDQM,185,"playing tennis",test\n'},
        ["the sound of people marching", "the sound of waterfall burbling"], 0),
    "wavcaps": (["AudioSet_SL_flac/Yb0RFKhbpFJA.flac", "FreeSound_flac/180913.flac", "SoundBible_flac/2219.flac"], {
        "json_files/AudioSet_SL/as_final.json": json.dumps(dict(num_captions_per_audio=1, data=[dict(id="Yb0RFKhbpFJA.wav", caption="Wind and a man speaking.", audio="wav_path", duration=10.0)])),
        "json_files/FreeSound/fsd_final.json": json.dumps(dict(data=[dict(id="180913", file_name="UK Mello.wav", caption="A ringtone is playing.", duration=3.2), dict(id="0", caption="Gone.")])),
        "json_files/SoundBible/sb_final.json": json.dumps(dict(data=[dict(id="2219", caption="An airplane is landing.")]))},
        ["Wind and a man speaking.", "A ringtone is playing.", "An airplane is landing."], 1),
    "clotho": (["development/Distorted AM Radio noise.wav", "development/Paper.wav"], {
        "clotho_captions_development.csv": "file_name,caption_1,caption_2\nDistorted AM Radio noise.wav,A muddled noise of broken channel,A TV blares\nPaper.wav,\"A person, turning a map\",A person\n"},
        ["A muddled noise of broken channel", "A person, turning a map"], 0),
    "esc50": (["audio/1-100032-A-0.wav"], {"meta/esc50.csv": "filename,fold,target,category,esc10,src_file,take\n1-100032-A-0.wav,1,0,dog,True,100032,A\n1-17-A-1.wav,1,1,can_opening,False,17,A\n"}, ["the sound of dog"], 1),
    "gtzan": (["genres_original/blues/blues.00000.wav", "genres_original/rock/rock.00001.wav"], {}, ["blues music", "rock music"], 0),
    "macs": (["TAU/audio/airport-barcelona-0-0-a.wav", "TAU/audio/park-lisbon-1-1-a.wav"], {
        "MACS.yaml": yaml.safe_dump(dict(files=[
            dict(filename="airport-barcelona-0-0-a.wav", annotations=[dict(annotator_id=1, sentence="people", tags=["a"]), dict(annotator_id=7, sentence="people are talking", tags=["a"])]),
            dict(filename="park-lisbon-1-1-a.wav", annotations=[dict(annotator_id=1, sentence="birds", tags=["b"])])])),
        "MACS_competence.yaml": yaml.safe_dump([dict(annotator_id=1, competence=0.3), dict(annotator_id=7, competence=0.9)])},
        ["people are talking", "birds"], 0),
    "urbansound8k": (["audio/fold5/100032-3-0-0.wav"], {"metadata/UrbanSound8K.csv": "slice_file_name,fsID,start,end,salience,fold,classID,class\n100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark\n"}, ["the sound of dog bark"], 0),
}
VIDEOS = {
    "mmtrail": (["video_dataset_32/zW1-6V_cN8I_0000141.mp4", "elsewhere/a_0000002.mp4"], {
        "meta.json": json.dumps([dict(video_id="zW1-6V_cN8I", clip_id="zW1-6V_cN8I_0000141", clip_path="video_dataset_32/zW1-6V_cN8I_0000141.mp4", caption="short", merge_caption="A woman in a robe.",
                                      music_caption=[dict(text="Electro trap.", time="0:00-10:00")]),
                                 dict(clip_id="a_0000002", clip_path="old/a_0000002.mp4", caption="A man."), dict(clip_id="b", clip_path="b.mp4", caption="")])},
        ["A woman in a robe.", "A man."], 1),
    "tavgbench": (["videos/-0_aB_12_20.mp4", "videos/xy_1_2.mp4"], {"caption.txt": "-0_aB_12_20.mp4 A dog barks at a car.\nxy_1_2.mp4\nnounderscore.mp4 x\n\ngone_1_2.mp4 A bell.\n"}, ["A dog barks at a car."], 1),
    "landscape": (["train/fire_crackling/a.mp4", "train/underwater_bubbling/a.mp4"], {}, ["fire crackling", "underwater bubbling"], 0),
    "aist++": (["gBR_sBM_cAll_d04_mBR0_ch01.mp4", "gJB_sFM_c02_d09_mJB3_ch12.mp4"], {}, ["a person dances break to music", "a person dances ballet jazz to music"], 0),
}
BY_NAME = {"audiocaps", "mmtrail", "tavgbench"}      # nothing in their folders is theirs alone


@pytest.mark.parametrize("name", [*SOUNDS, *VIDEOS])
def test_layouts(name, put, tmp_path):
    media, annotations, captions, missing = (SOUNDS | VIDEOS)[name]
    for m in media: put(m)
    for path, text in annotations.items(): put(path, text)
    assert recognised(tmp_path) == ("folder" if name in BY_NAME else name)
    found = gather(tmp_path, name if name in BY_NAME else "auto")
    assert [r.text for r in found.rows] == captions and len(found.missing) == missing and f"{name}: {len(captions)} clips" in str(found)
    for row in found.rows:
        alone = (row.audio_path or row.path).suffix != ".mp4"
        assert (row.path is None) == alone and row.num_frames == 60 and row.fps == 24 and (row.height is None) == alone
    again = read_manifest(write_manifest(found.rows, tmp_path / "manifest.csv"))
    assert [(r.path, r.text, r.id, r.num_frames, r.extra.items() >= f.extra.items()) for r, f in zip(again, found.rows)] == [(f.path, f.text, f.id, f.num_frames, True) for f in found.rows]
    sounds = ClipDataset(again, tiny().clip, pictures=False)
    assert all(isinstance(item, ClipItem) and len(item.clip.audio) == 32000 for item in sounds)
    if name == "mmtrail": assert sounds[0].text == "Electro trap." and sounds[1].text == "A man."


def test_every_corpus_has_a_test():
    assert set(CORPORA) - {"folder"} == set(SOUNDS) | set(VIDEOS) and all(c.entries.__doc__ for c in CORPORA.values())


def test_any_folder(put, tmp_path, capsys):
    for name in ("a/dog.mp4", "a/cat.wav", "b_c.wav", "bell.mp4", "bell.wav", "door.flac"): put(name)
    put("a/dog.txt", " a dog\n barks ")
    put("a/cat.json", json.dumps(dict(caption="a cat purrs")))
    put("captions.csv", "caption,file\na bell,bell.mp4\n\"a door, slowly\",door\n")
    javisdit_manifest(str(tmp_path))
    said, rows = capsys.readouterr().out, read_manifest(tmp_path / "manifest.csv")
    assert {r.text for r in rows} == {"a dog barks", "a cat purrs", "a bell", "a door, slowly", "b c"}
    bell = [r for r in rows if r.text == "a bell"]
    assert len(bell) == 1 and (bell[0].path.name, bell[0].audio_path.name) == ("bell.mp4", "bell.wav") and "captions from a file beside it" in said and "1 captions from its name" in said


@pytest.mark.parametrize("wish, words", [((), "captions.csv: names no column"), (("x",), "corpus 'x' is not known")])
def test_the_command_says_in_one_line_what_is_wrong(wish, words, put, tmp_path):
    put("a.wav"), put("captions.csv", "who,what\na.wav,dog\n")
    with pytest.raises(SystemExit, match=f"^javisdit_manifest: [^\n]*{words}[^\n]*$"): javisdit_manifest(str(tmp_path), None, *wish)


@pytest.mark.parametrize("files, words", [
    ({"esc50.csv": "filename,category\na.wav,dog\nb.wav,\n"}, "esc50.csv: line 3: category is empty"),
    ({"esc50.csv": "filename,kind\na.wav,dog\n"}, "has no column category; it has filename, kind"),
    ({"esc50.csv": "filename,category\nb.wav,dog\n"}, "holds no clip that can be used.*1 entries without a file: b.*esc50.csv"),
    ({"x_final.json": "{"}, "x_final.json: cannot be parsed"),
    ({"clotho_captions_x.csv": "file_name\na.wav\n"}, "has no column caption_1"),
    ({"captions.csv": "who,what\na.wav,dog\n"}, "captions.csv: names no column of files or of captions; its first line is who, what: begin it with a line like file_name,text"),
    ({"captions.csv": "a.wav,a dog barks\n"}, "its first line is a.wav, a dog barks"),
    ({"captions.csv": ""}, "its first line is :"),
    ({"captions.csv": "file_name;text\na.wav;dog\n"}, "its first line is file_name;text"),
    ({"metadata.csv": "file_name,text,description\na.wav,dog,cat\n"}, "has 2 columns that may be the caption: text, description"),
    ({"captions.csv": "file_name,text\na.wav,a dog, barking\n"}, "line 2 has 3 cells for 2 columns: put a text with commas in quotes"),
    ({"captions.csv": b"file_name,text\na.wav,\xff\n"}, "captions.csv: is not a CSV file in UTF-8"),
    ({"x_final.json": "[]"}, "cannot be read as wavcaps.*json_files/<subset>"),
    ({"x_final.json": '{"data": [{"id": "a"}]}'}, "cannot be read as wavcaps .KeyError: 'caption'"),
    ({"a.json": "{"}, "a.json: cannot be read"),
])
def test_mistakes_are_named(files, words, put, tmp_path):
    put("a.wav")
    for name, text in files.items(): (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MediaError, match=f"(?s){words}"): gather(tmp_path)


def test_a_clip_at_the_top_keeps_its_own_sound(put, tmp_path):
    "A sound of the same name in another folder is another clip."
    for name in ("corpus/dog.mp4", "corpus/a/dog.wav", "corpus/b/dog.wav", "corpus/b/dog.mp4"): put(name)
    put("corpus/dog.txt", "top"), put("corpus/a/dog.txt", "sound"), put("corpus/b/dog.txt", "both")
    found = gather(tmp_path / "corpus")
    assert {(r.text, r.path and r.path.parent.name, r.audio_path and r.audio_path.parent.name) for r in found.rows} == {("top", "corpus", None), ("sound", None, "a"), ("both", "b", "b")}


def test_a_name_counts_only_where_it_is_clear(put, tmp_path):
    put("vggsound.csv", "one,1,bark,train\ntwo,1,meow,train\nthree,1,moo,train\n")
    for name in ("video/one_000001.mp4", "audio/one_000001.wav", "a/two_000001.mp4", "b/two_000001.mp4", "c/three_000001.wav", "c/three_000001.flac"): put(name)
    found = gather(tmp_path)
    assert [(r.text.split()[-1], r.path and r.path.parent.name, r.audio_path.name) for r in found.rows] == [("bark", "video", "one_000001.wav"), ("moo", None, "three_000001.flac")]
    assert not found.missing and found.ambiguous == ["two_000001 (a/two_000001.mp4, b/two_000001.mp4)"]
    assert "1 of them with a video and a sound from different folders" in str(found) and "1 entries with several files of their name: two_000001 (a/two" in str(found)


def test_captions_of_a_table_go_to_their_own_files(put, tmp_path):
    for name in ("a/dog.wav", "b/dog.wav", "c/cat.wav", "d.wav", "x.mp4", "x.mp4.wav"): put(name)
    put("metadata.csv", "# note,file_name,text\n1,a/dog.wav,a dog\n2,cat.wav,a cat\n3,cat.wav,again\n4,dog,which?\n5,z/d.wav,a door\n6,x.mp4.wav,steps\n")
    found = gather(tmp_path)
    assert {(r.path or r.audio_path).relative_to(tmp_path).as_posix(): r.text for r in found.rows} == {"a/dog.wav": "a dog", "b/dog.wav": "dog", "c/cat.wav": "a cat", "d.wav": "d", "x.mp4": "x", "x.mp4.wav": "steps"}
    assert found.missing == ["z/d.wav"] and found.ambiguous == ["dog (a/dog.wav, b/dog.wav)"]
    assert found.sources == {"metadata.csv, column text": 3, "its name": 3}


def test_nothing_to_read(tmp_path, put):
    with pytest.raises(MediaError, match="is not a folder"): gather(tmp_path / "gone")
    with pytest.raises(MediaError, match="holds no clip"): gather(tmp_path)
    with pytest.raises(ValueError, match="corpus 'x' is not known"): gather(tmp_path, "x")
    with pytest.raises(MediaError, match="not a CSV file"): list(table(tmp_path, ("a",)))
    assert caption_beside(tmp_path / "a.mp4") is None


def test_speech_is_dropped_by_the_command(put, tmp_path, monkeypatch, capsys):
    "The detector itself is tried in the chapter; here it says what it is told."
    put("quiet.wav"), put("talk.wav"), (tmp_path / "broken.wav").write_bytes(b"RIFF")
    monkeypatch.setattr("javisdit.corpora.load_vad", lambda: iter((0.1, 0.8)))
    monkeypatch.setattr("javisdit.corpora.speech_share", lambda wave, vad: next(vad))
    javisdit_manifest(str(tmp_path), max_speech=0.5)
    assert "1 clips left out: more than 50% speech" in capsys.readouterr().out
    assert {r.text: r.extra["speech"] for r in read_manifest(tmp_path / "manifest.csv")} == {"quiet": "0.100", "broken": ""}
