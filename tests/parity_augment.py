"""The augmentations of chapter 03 against the reference's fixtures `prior_augment_*`, for `parity.py`.

Only inputs and the drawn parameters in the metadata are read; results are not."""
import numpy as np
import torch
from parity import Answer, family

from javisdit.augment import (AddSource, ChangeSpeed, ChangeVolume, InsertSilence, MaskCells, RemoveSource, RepeatAudio, ShiftAudio, ShiftVideo,
                              StallVideo, add_source, add_trajectory, change_speed, change_volume, insert_silence, mask_cells, mirror, paste,
                              remove_source, repeat_audio, shift_audio, shift_video, stall_video)
from javisdit.pools import Trajectory, usable

CURVES = dict(sine="sine", cosine="cosine", linear_increasing="rise", linear_decreasing="fall")


def samples(case, rate): return int(case["duration"] * rate)


def drawn(case, function): return [result for name, _, result in case["draws"] if name == function]


def audio_case(name, case, config, x):
    "Our result, the part that is meant to agree (None: all), and the deliberate difference, of one case."
    wave, rate, n = x["audio"], config["sr"], len(x["audio"])
    at, everything = np.arange(n), None
    if name == "audio_temporal_shift": return shift_audio(x["raw_audio"], ShiftAudio(case["start"], n)), everything, ""
    if name.startswith("audio_stall"): return insert_silence(wave, InsertSilence(case["start"], samples(case, rate))), everything, ""
    if name.startswith("audio_repeat"):
        length = samples(case, rate)
        return repeat_audio(wave, RepeatAudio(case["start"], length, 0)), at < case["start"] + 2 * length, "21"     # theirs plays it a third time
    if name.startswith("scale_volume_"):
        length = min(int(case["duration"] * n), n - case["start"])                                                 # their window
        return change_volume(wave, ChangeVolume(case["start"], length, CURVES[name[13:]], case["scale"])), everything, "18"
    if name.startswith("scale_speed_"):
        start, length, factor, at = case["start"], samples(case, config["speed_sr"]), float(name[12:]), np.arange(len(x["speed_audio"]))
        return change_speed(x["speed_audio"], ChangeSpeed(start, length, factor)), (at < start) | (factor > 1) & (at >= start + length), "23"
    if name == "add_sound_source":
        first, start = drawn(case, "randint")[-2:]
        cut = x["extra_audio"][first:first + samples(case, rate)]
        total = np.pad(cut, (start, max(0, n - start - len(cut))))[:n] + wave
        return add_source(wave, AddSource(start, 1.0, "", cut)), np.abs(total) <= 1, "20"                          # their gain, and where they do not leave [-1, 1]
    stem = wave if name == "del_sound_zero" else x["sep_audio"][config["audio_start"]:][:n]                        # zeroing: all of it is removed
    start, length = case["start"], samples(case, rate)
    outside = (at < start) | (at >= start + length)
    return remove_source(wave, RemoveSource(start, length, "", stem)), everything if name == "del_sound_zero" else outside, "19"


def video_case(name, case, config, x):
    "Our result of one case; pictures `(t h w 3)`."
    video = np.moveaxis(x["video"], 1, -1)
    if name == "mirror": return mirror(video)
    if name == "temporal_shift_video": return shift_video(video, ShiftVideo(case["shift"]))
    if name.startswith("video_stall"): return stall_video(video, StallVideo(case["start"], case["duration"]))
    if name == "video_random_mask":
        rows, columns = drawn(case, "torch_randint")
        return mask_cells(video, MaskCells(tuple(rows), tuple(columns), case["grid"]))
    source = Trajectory(x["masklet_bgr"][..., ::-1], x["masklet_mask"] > 127, x["masklet_bbox_xywh"], x["masklet_visible"], video.shape[1:3])
    _, first, left, top, start = drawn(case, "randint")
    used = usable(source.visible)[first:first + case["length"]]
    return add_trajectory(video, paste(source, used, drawn(case, "uniform")[0], (left, top), start))


@family(r"prior_augment_audio")
def audio(fixture):
    "Broken sound, case by case. `random_start` has no tensors; `test_augment.py` compares its ranges."
    x = {k: v.numpy() for k, v in fixture.inputs.items()}
    results = {k: audio_case(k, c, fixture.config, x) for k, c in fixture.config["cases"].items() if isinstance(c, dict)}
    return {f"out/{k}": Answer(torch.from_numpy(v), w if w is None else torch.from_numpy(w), row=row) for k, (v, w, row) in results.items()}


@family(r"prior_augment_video")
def video(fixture):
    "Broken pictures, case by case; the mirror draws nothing and so has no case."
    x = {k: v.numpy() for k, v in fixture.inputs.items()}
    results = {k: video_case(k, c, fixture.config, x) for k, c in {**fixture.config["cases"], "mirror": None}.items()}
    return {f"out/{k}": Answer(torch.from_numpy(np.ascontiguousarray(np.moveaxis(v, -1, 1), dtype=np.float32))) for k, v in results.items()}
