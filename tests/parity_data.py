"""The data engine against the reference's fixtures: buckets, their order, a clip's stretch and its log-mel, for `parity.py`."""
import math
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch
from parity import Answer, family

from javisdit.buckets import Buckets, BucketSampler, ByBucket, aspects, reference_order
from javisdit.core import ClipConfig
from javisdit.data import Row
from javisdit.media import Clip, cover, log_mel, mel_basis, shown

SAMPLER_CASES = [f"ws{w}_drop{d}_ep{e}_resume{s}_rank{r}" for w in (1, 2) for d in (1, 0) for e in (0, 1) for s in (0, 3) for r in range(w)]


def numbers(config): return {name: {int(t): value for t, value in lengths.items()} for name, lengths in config.items()}


def enough(frames, interval, strict):
    "How many pictures are left of `frames` where one of `interval` is taken: T >= t f and floor(T / f) >= t are the same, and T > t f and ceil(T / f) > t."
    left = -(-frames // interval) if strict else frames // interval
    return torch.where((frames > 1) & (left < 2), 0, left)      # several pictures are never a single one


@family(r"prior_bucket.*")
def buckets(fixture):
    "Which bucket takes each clip, for today's comparison and for that of April 2025."
    x, out = fixture.inputs, {}
    for name, case in fixture.config["configs"].items():
        for prefix, strict in (("", False), ("release_", True)):
            table = Buckets(numbers(case["config"]), strict)
            frames = torch.where(x["frames"] == 1, 1, enough(x["frames"], case["frame_interval"], strict))
            shapes = torch.stack([frames, x["height"], x["width"]], 1).numpy()
            taken = table.assign_all(shapes, case["base_seed"] + x["id"].numpy() * table.count)
            order = [level[0] for level in table.levels]
            place = lambda b: (order.index(b.resolution), b.frames, list(aspects(b.resolution)).index(b.aspect))
            exact = lambda rows: Answer(torch.tensor([r or (-1,) * 3 for r in rows]), tolerance=0)
            out[f"out/{prefix}{name}_bucket"] = exact([b and place(b) for b in taken])
            out[f"out/{prefix}{name}_thw"] = exact([b and (b.frames, *b.size) for b in taken])
    return out


def check_batches(ours, theirs):
    "A line a case: how many batches differ."
    differ = lambda a, b: sum(x != y for x, y in zip(a, b)) + abs(len(a) - len(b))
    return [(name, float(differ(ours["batches"].get(name, ()), plan)), 0.0) for name, plan in theirs["batches"].items()]


@family(r"prior_sampler.*", check=check_batches)
def sampler(fixture):
    "The batches of each process, fresh or resumed, by the reference's order; a resumed run is the rest of an uninterrupted one (deviation 26)."
    x, c, out = fixture.inputs, fixture.config, {}
    rows = [Row("", "", str(i), t, None, h, w) for i, (t, h, w) in enumerate(zip(*(x[k].tolist() for k in ("num_frames", "height", "width"))))]
    grouping = ByBucket(Buckets(numbers(c["config"])))
    for name in c.get("cases", SAMPLER_CASES):
        world, drop, epoch, skip, rank = (int("".join(filter(str.isdigit, part))) for part in name.split("_"))
        plan = BucketSampler(rows, grouping, c["seed"], world, fill=not drop, order=reference_order).plan(epoch)
        out[name] = [["-".join(map(str, sample)) for sample in batch] for batch in plan[world * skip + rank::world]]
    return {"batches": out}


INTERPOLATE = torch.nn.functional.interpolate


def bilinear(x, size, **_): return INTERPOLATE(x, size, mode="bilinear", align_corners=False)


@family(r"prior_clip.*")
def clip(fixture):
    "Where a stretch of pictures and its sound lie, and how pictures are scaled and cropped."
    x, out = fixture.inputs, {}
    for i, row in enumerate(fixture.config["rows"]):
        (first, last), fps, rate = row["window"], row["fps"], row["audio_fps"]
        samples = math.ceil(row["total"] / fps * rate)
        wave = np.pad(x[f"audio_{i}"].numpy(), (0, max(0, samples - len(x[f"audio_{i}"]))))[:samples]
        clock = samples / row["total"]                       # the reference rounds the end of a stretch, we its start: at most a sample apart
        seconds, end = round(row["num_frames"] * clock) / rate, round(last * clock) / rate
        out[f"audio_crop_{i}"] = Answer(torch.from_numpy(Clip(None, wave, fps, rate).crop(end - seconds, seconds).audio.copy()), tolerance=0)
        every = np.arange(row["total"]) / fps
        out[f"frame_index_{i}"] = Answer(torch.from_numpy(shown(every, first / fps + np.arange(row["num_frames"]) * row["frame_interval"] / fps)), tolerance=0)
        pictures = x[f"frames_{i}"].permute(0, 2, 3, 1).float().numpy()
        with patch("javisdit.media.torch.nn.functional.interpolate", bilinear):      # their filter, our geometry (deviation 38)
            out[f"frames_{i}"] = Answer(torch.from_numpy(cover(pictures, tuple(row["target"]))).permute(0, 3, 1, 2) / 127.5 - 1)
    return {f"out/{k}": v for k, v in out.items()}


@family(r"prior_mel.*")
def mel(fixture):
    "Log-mel spectrograms, padded as the released weights saw them, and the bands."
    c = fixture.config
    facts = c["config"]["preprocessing"]
    base = ClipConfig(sample_rate=facts["audio"]["sampling_rate"], n_fft=facts["stft"]["filter_length"], hop=facts["stft"]["hop_length"],
                      n_mels=facts["mel"]["n_mel_channels"], mel_multiple=c["time_multiple"], mel_pad="zero")
    out = {"out/mel_basis": Answer(mel_basis(base.sample_rate, base.n_fft, base.n_mels))}
    for i, row in enumerate(c["rows"]):
        out[f"out/mel_{i}"] = Answer(log_mel(fixture.inputs[f"wave_{i}"][None], replace(base, frames=row["num_frames"], fps=row["fps"])), tolerance=1e-4)
    return out
