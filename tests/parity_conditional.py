"""What is given to a walk, as the reference's strategy strings say it."""
import torch
from parity import Answer, family

from javisdit.conditional import apply_strategy, read_strategy


@family(r"dit_mask_infer.*")
def strategies(fixture):
    "Latents and masks after each strategy string."
    out, ratio = {}, (17 / 5) / fixture.config["fps"] / 0.01 / 4
    for i, case in enumerate(fixture.config["cases"]):
        x = {k: fixture.inputs[f"case{i}/{k}"] for k in ("vz", "az", "v_ref", "a_ref")}
        rows = [apply_strategy(read_strategy(case["strategy"]), v, a, [(x["v_ref"], x["a_ref"])], ratio, align=case["align"]) for v, a in zip(x["vz"], x["az"])]
        join = lambda name: torch.cat([getattr(g, name) for g in rows])
        out |= {f"out/case{i}/{k}": join(name) for k, name in (("vz", "video"), ("az", "audio"), ("vmask", "video_share"), ("amask", "audio_share"))}
    return {k: Answer(v, tolerance=1e-6) for k, v in out.items()}
