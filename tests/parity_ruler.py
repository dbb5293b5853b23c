"""The ruler's families of `parity.py`: ImageBind's eye and ear with their front ends, JavisScore, and the other metrics.

A formula's tolerance is absolute, as `goldens/README.md` says; what a metric's registry calls a corrected value is compared where the fixture holds it."""
import numpy as np
import torch
from librosa.onset import onset_strength
from parity import Answer, family

from javisdit.audioclip import AudioClipEar
from javisdit.i3d import I3D, MaxPool, Mixed, Unit, fvd_frames, i3d_input
from javisdit.imagebind_av import AudioTower, VisionTower, av_tower, sound_mels, still_pixels, video_pixels
from javisdit.javisscore import Windows, avh_score, cut, javis_score
from javisdit.metrics import (auroc, av_align_reference, by_category, cavp_mel, flow_trajectory, frechet_reference, kernel_distance, kernel_distance_reference,
                              local_maxima, members, pair_accuracy, sound_onsets)


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
    "What ImageBind, I3D and CAVP are shown and given."
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
    fvd = torch.from_numpy(np.stack([fvd_frames(f[None], reference=True)[0].numpy() for f in frames[:3]]))     # the first three, not 24 over the clip
    out["fvd/padded_uint8_s8"], out["fvd/i3d_input_s8"] = Answer(fvd[..., ::8, ::8], tolerance=1), Answer(i3d_input(fvd[None])[..., ::8, ::8], tolerance=8.1e-3)
    out["cavp/mel_t2"] = Answer(torch.from_numpy(cavp_mel(x["cavp/waveform"].numpy())[:, ::2]), tolerance=2e-5)
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


# --- sets ---

def distances(fake, real):
    "The three distances of one pair of sets, as the reference reports them and as the textbook has them."
    video, audio = ([s[f"{side}_{stream}"].numpy() for side in ("fake", "real")] for s, stream in ((fake | real, "video"), (fake | real, "audio")))
    return dict(fvd=frechet_reference(*video), kvd_official_centred=kernel_distance_reference(*video), kvd_uncentred=kernel_distance(*video), fad_x1e4=1e4 * frechet_reference(*audio))


def sets_of(fixture, name):
    parts = {k.split("/", 1)[1]: v for k, v in fixture.inputs.items() if k.startswith(name + "/")}
    return {k: v for k, v in parts.items() if k.startswith("fake")}, {k: v for k, v in parts.items() if k.startswith("real")}


def category_facts(fixture):
    "Scores, distances and counts of every category of every aspect."
    if "cat_columns" not in fixture.config: return {}
    (fake, real), scores = sets_of(fixture, "cat"), fixture.inputs["cat/scores"].numpy()
    n, columns = len(scores), [v for _, v in sorted(fixture.config["cat_columns"].items())]
    sizes = [1 + max(int(x) for v in column for x in str(v).split(",")) for column in columns]
    pick = lambda sets, rows: {k: v[rows] for k, v in sets.items()}
    def breakdown(score): return {"overall": score(list(range(n))), **{str(a): by_category(score, column, size) for a, (column, size) in enumerate(zip(columns, sizes))}}
    distance = lambda key: lambda rows: distances(pick(fake, rows), pick(real, rows))[key]
    return {"cat_scores": breakdown(lambda rows: float(scores[rows].mean())), "cat_fvd": breakdown(distance("fvd")), "cat_kvd": breakdown(distance("kvd_official_centred")),
            "cat_fad_x1e4": breakdown(distance("fad_x1e4")), "cat_counts": [[len(m) for m in members(column, size)] for column, size in zip(columns, sizes)]}


@family(r"eval_frechet_mmd.*", facts=category_facts)
def sets(fixture):
    "Distances of stored features; 1e-4 of the value, because the reference's are float32."
    out = {}
    for name in sorted({k.split("/")[0] for k in fixture.inputs} - {"cat"}):
        for k, v in distances(*sets_of(fixture, name)).items():
            out[f"out/{name}/{k}"] = Answer(torch.tensor(v, dtype=torch.float64), tolerance=1e-4 if k in ("fvd", "fad_x1e4") else 1e-5, relative=True)
    return out


# --- events ---

def event_facts(fixture):
    "Scores of given lists of peaks, and maxima of given curves."
    lists = [{**case, "score": av_align_reference(case["audio"], case["video"], case["fps"])} for case in fixture.config.get("iou_lists", [])]
    return {"iou_lists": lists, "local_max": [{**case, "times": local_maxima(case["arr"], case["fps"])} for case in fixture.config.get("local_max", [])]}


@family(r"eval_avalign.*", facts=event_facts)
def events(fixture):
    "Flow, peaks, onsets and the reference's score (deviation 33)."
    out = {}
    for name, case in fixture.config["cases"].items():
        frames, wave = fixture.inputs[f"{name}/frames_bgr"].numpy()[..., ::-1], fixture.inputs[f"{name}/waveform"].numpy()
        flow, heard = flow_trajectory(frames), sound_onsets(wave, case["sr"])
        seen = local_maxima(flow, case["fps"])
        values = dict(flow_trajectory=flow, video_peaks=seen, audio_peaks=heard, av_align=av_align_reference(heard, seen, case["fps"]), onset_env=onset_strength(y=wave, sr=case["sr"]))
        out |= {f"out/{name}/{k}": Answer(torch.as_tensor(np.asarray(v)), tolerance=1e-5 if k == "onset_env" else 1e-6) for k, v in values.items()}
    return out


# --- networks of sets ---

def closed_form(state, rule, keep=()):
    "Weights by the formula that stands in the fixtures' README."
    keys = sorted(k for k in state if not k.startswith(tuple(keep) or "\0"))
    out = {k: v for k, v in state.items() if k not in keys}
    for k, name in enumerate(keys):
        v = state[name]
        s = torch.sin(rule["a"] * torch.arange(1, v.numel() + 1, dtype=torch.float64) + rule["b"] * (k + 1)).reshape(v.shape)
        if v.dtype == torch.int64: s = torch.zeros_like(v)
        elif name.endswith("running_var"): s = 1 + 0.5 * s
        elif v.ndim <= 1: s = 1 + 0.2 * s if name.endswith("weight") else 0.1 * s
        else: s = s * (2 / (v.numel() / v.shape[0])) ** 0.5
        out[name] = s.to(v.dtype)
    return out


def ruled_video(run, p):
    "The video that stands in the fixtures' README, uint8 (1 t 3 h w)."
    t, c, h, w = (torch.arange(n, dtype=torch.float32).view([-1 if i == j else 1 for j in range(4)]) for i, n in enumerate((run["T"], 3, run["H"], run["W"])))
    return (127.5 + 120 * torch.sin(0.21 * t + 0.035 * h * (c + 1) + p * w)).round().clamp(0, 255).to(torch.uint8)[None]


def filled(module, fixture, name):
    module.load_state_dict({k.removeprefix(name + "."): v for k, v in fixture.weights.items() if k.startswith(name + ".")})
    return module.eval()


@family(r"eval_i3d.*")
def i3d(fixture):
    "The whole network on ruled videos with ruled weights; small blocks with stored ones."
    c, x, out = fixture.config, fixture.inputs, {}
    net = I3D().eval()
    net.load_state_dict(closed_form(net.state_dict(), c["weight_rule"]))
    for name, run in c["runs"].items(): out[f"{name}/logits"] = Answer(net(i3d_input(ruled_video(run, c["video_rule_p"]))), tolerance=1e-4, relative=True)
    for name in (k.split("/")[0] for k in x if k.startswith("maxpool")):
        kernel, stride = ([int(d) for d in part] for part in name.split("_")[1:])
        out[f"{name}/y"] = Answer(MaxPool(kernel, stride)(x[f"{name}/x"]))
    w = fixture.weights
    if "unit_k7s2/x" in x: out["unit_k7s2/y"] = Answer(filled(Unit(*w["unit_k7s2.conv3d.weight"].shape[1::-1], 7, 2), fixture, "unit_k7s2")(x["unit_k7s2/x"]))
    if "inception/x" in x:
        sizes = [len(w[f"inception.{b}.conv3d.weight"]) for b in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")]
        out["inception/y"] = Answer(filled(Mixed(x["inception/x"].shape[1], sizes), fixture, "inception")(x["inception/x"]))
    return {f"out/{k}": v for k, v in out.items()}


@family(r"eval_audioclip_audio.*")
def audioclip(fixture):
    "The picture that the network makes of a sound, and its embedding with ruled weights; as fed by the reference, and in whole numbers."
    net, out = AudioClipEar().eval(), {}
    for end, scale in (("", 1), ("_int16_scaled", 32768)):
        x = net.picture(scale * fixture.inputs["waveform"][:, 0])[:, None, ..., ::4, ::2]
        out[f"default_init/x_db{end}"] = Answer(x, where=x > x.max() - 80, tolerance=1e-2)      # decibels; 80 below the loudest, float32 has only its own noise left
    net.load_state_dict(closed_form(net.state_dict(), fixture.config["weight_rule"], keep=("fbsp.", "window")))
    for end, scale in (("", 1), ("_int16_scaled", 32768)):
        out[f"closed_form/embedding{end}"] = Answer(net(scale * fixture.inputs["waveform"][:, 0]), tolerance=1e-4, relative=True)
    return {f"out/{k}": v for k, v in out.items()}


# --- verification ---

def check_verification(ours, theirs):
    "A line a number of each case."
    return [(f"case {i} {k}", abs(a[k] - b[k]), 1e-9) for i, (a, b) in enumerate(zip(ours, theirs["cases"] if isinstance(theirs, dict) else theirs, strict=True)) for k in a if isinstance(b.get(k), float)]


@family(r"eval_metric_verification.*", check=check_verification)
def verification(fixture):
    "AUROC and pair accuracy of scores, over all pairs and over those whose second clip is really wrong."
    out = []
    for case in fixture.inputs["cases"]:
        labels, scores, pairs = (np.array(case[k]) for k in ("labels", "scores", "pairs"))
        true = pair_accuracy(scores, pairs[labels[pairs[:, 1]] == 0])
        out.append({**{k: case[k] for k in ("scores", "labels", "pairs")}, "auroc": auroc(labels, scores), "acc_strict_true_negatives": true.strict, "tie_rate": true.ties,
                    "acc_ties_half": true.ties_half, "acc_strict_all_pairs": pair_accuracy(scores, pairs).strict})
    return out
