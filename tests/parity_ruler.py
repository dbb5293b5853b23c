"""The ruler's families of `parity.py`: ImageBind's eye and ear with their front ends, JavisScore, and the other metrics.

A formula's tolerance is absolute, as `goldens/README.md` says; what a metric's registry calls a corrected value is compared where the fixture holds it."""
import numpy as np
import torch
from parity import Answer, family

from javisdit.imagebind_av import AudioTower, VisionTower, av_tower, sound_mels, still_pixels, video_pixels
from javisdit.javisscore import Windows, avh_score, cut, javis_score


# --- ImageBind ---

def tower_of(fixture, kind, name): return av_tower(kind, fixture.weights, fixture.config.get("config", fixture.config)[f"{name}_num_heads"])


@family(r"eval_imagebind_audio.*")
def ear(fixture):
    "Three mels a sound: their mean, the first alone, its tokens, and the variant without the factor 20."
    tower, mel = tower_of(fixture, AudioTower, "audio"), fixture.inputs["mel"].float()
    whole = tower(mel)
    out = {"audio_emb": whole, "audio_emb_clip0": tower(mel[:, 0]), "audio_tokens_in_clip0": tower.modality_preprocessors["audio"](mel[:1, 0]),
           "audio_emb_prior_encoder_variant": whole / tower.modality_postprocessors["audio"][1].log_logit_scale.exp()}
    return {f"out/{k}": Answer(v, tolerance=1e-4) for k, v in out.items()}


@family(r"eval_imagebind_image.*")
def eye(fixture):
    "A still, and its tokens."
    tower, image = tower_of(fixture, VisionTower, "vision"), fixture.inputs["image"].float()
    out = {"vision_emb": tower(image), "vision_tokens_in": tower.modality_preprocessors["vision"](image)}
    return {f"out/{k}": Answer(v, tolerance=1e-4) for k, v in out.items()}


@family(r"eval_imagebind_video.*")
def eye_of_videos(fixture):
    "Pairs of frames of several stretches and crops: their mean."
    video = fixture.inputs["video"].float()
    return {"out/vision_emb": Answer(tower_of(fixture, VisionTower, "vision")(video), tolerance=1e-4)}


# --- front ends ---

def all_three(wave): return sound_mels(wave).expand(3, -1, -1, -1)[None]


def windows_heard(wave, spans, inplace):
    "What the ear is given of each window of a sound; with `inplace` all windows share their samples."
    wave = wave.copy()
    return [sound_mels(wave[:, a:b] if inplace else wave[:, a:b].copy(), reference_inplace=inplace) for a, b in spans]


@family(r"eval_preprocess.*")
def front_ends(fixture):
    "What ImageBind is shown and given, before its towers."
    c, x, out = fixture.config, fixture.inputs, {}
    for name in sorted({k.split("/")[0] for k in x if k.startswith("ib_audio")}):
        wave = x[f"{name}/waveform"].numpy()
        out[f"{name}/mel_t4"] = Answer(sound_mels(wave.copy(), reference_inplace=True)[None, ..., ::4], tolerance=2e-5)
        out[f"{name}/mel_independent_t4"] = Answer(all_three(wave)[..., ::4], tolerance=2e-5)
    frames, win = x["ib_video/frames_rgb"].numpy(), c["win"]
    spans = [s.samples for s in cut(win["n_frames"], win["n"], win["fps"])]
    official, own = (windows_heard(x["win/waveform"].numpy(), spans, inplace) for inplace in (True, False))
    out["win/mel_official_t4"] = Answer(torch.stack(official)[..., ::4], tolerance=2e-5)
    out["win/mel_independent_t4"] = Answer(torch.cat(own)[..., ::4], tolerance=2e-5)
    out["ib_video/pixels_s14"] = Answer(video_pixels(frames, c["ib_video"]["fps"])[None, ..., ::14, ::14])
    out["frame/pixels_s8"] = Answer(still_pixels(frames[:2])[..., ::8, ::8])
    return {f"out/{k}": v for k, v in out.items()}


# --- JavisScore ---

@family(r"eval_javisscore.*")
def javis(fixture):
    "Windows, cosines, JavisScore and AVHScore of stored embeddings."
    out = {}
    for name, case in fixture.config["cases"].items():
        frames, whole, sounds = (fixture.inputs[f"{name}/{k}"] for k in ("frame_emb", "audio_emb", "window_audio_emb"))
        found = cut(case["n_frames"], case["n_audio_samples"], case["fps"], Windows(case["window_size_s"], case["window_overlap_s"], fixture.config["topk_min"]))
        agreement = javis_score(frames, sounds, found, fixture.config["topk_min"])
        differs = dict(where=torch.tensor(False), row="29") if any(int(fixture.config["topk_min"] * len(c)) < 1 for c in agreement.cosines) else {}
        out |= {f"{name}/frame_windows": Answer(torch.tensor([s.frames for s in found]), tolerance=0), f"{name}/audio_windows": Answer(torch.tensor([s.samples for s in found]), tolerance=0),
                f"{name}/window_frame_cos": Answer(torch.stack(agreement.cosines)), f"{name}/window_scores": Answer(torch.tensor(agreement.windows), **differs),
                f"{name}/javis_score": Answer(torch.tensor([agreement.score]), **differs), f"{name}/avh_score": Answer(torch.tensor([avh_score(frames, whole[0])]))}
    return {f"out/{k}": v for k, v in out.items()}
