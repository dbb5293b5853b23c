"""Peak memory of OpenSora's video codec with random weights, one row at a time, each in a process of its own: writes 00ca_memory.csv.

    python nbs/tables/00ca_memory.py            # all rows that are not there yet; the full size takes about half an hour on one core
    python nbs/tables/00ca_memory.py --row '{"size": "small", "task": "stream", "frames": 17}'    # one row, as JSON
"""
import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from javisdit.core import generator
from javisdit.opensora import OpenSoraCodec, TemporalVAE

TABLE = Path(__file__).with_suffix(".csv")
SIZES = dict(small=dict(widths=(32, 32, 32, 32), filters=32, count=1, height=128, width=192), full=dict(widths=(128, 256, 512, 512), filters=128, count=4, height=240, width=424))
ROWS = [dict(size="small", task=task, frames=frames) for task in ("stream", "decode", "at once") for frames in (17, 68, 272) if task != "at once" or frames < 272]
ROWS = [dict(size="full", task="both", frames=17), *ROWS, dict(size="full", task="stream", frames=1), dict(size="full", task="tiles", frames=1)]


def random_codec(widths, filters, count, **_):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        n = len(widths)
        spatial = AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n, block_out_channels=widths, layers_per_block=2)
        codec = OpenSoraCodec(spatial, TemporalVAE(filters=filters, count=count))
    codec.shift.add_(0.1), codec.scale.add_(3)
    return codec.eval().requires_grad_(False)


def status(field):
    "Bytes: `VmRSS` now, `VmHWM` at most since the last reset."
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)).split()[1]) * 1024


def measure(size, task, frames):
    "Peak memory and time of one task."
    s = SIZES[size]
    codec = random_codec(**s)
    z = torch.randn(1, codec.channels, codec.latent_frames(frames), s["height"] // 8, s["width"] // 8, generator=generator("00ca", frames))
    video = torch.rand(1, 3, frames, s["height"], s["width"], generator=generator("00ca", "video")) * 2 - 1 if task == "both" else None
    Path("/proc/self/clear_refs").write_text("5")     # forget the peak so far
    before, start, output = status("VmRSS"), time.perf_counter(), 0
    if task == "both": z = codec.encode(video)
    if task == "at once": codec.batch = frames
    if task == "tiles": codec.tile = 12
    if task in ("stream", "tiles"):
        for few in codec.stream(z, frames): pass
    else: output = codec.decode(z, frames).numel() * 4
    peak = status("VmHWM")
    return dict(size=size, task=task, frames=frames, peak_mb=round(peak / 1e6), above_start_mb=round((peak - before) / 1e6), output_mb=round(output / 1e6, 1), seconds=round(time.perf_counter() - start, 1))


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--row", type=json.loads, help="measure this row and print it")
    if row := args.parse_args().row: return print(json.dumps(measure(**row)))
    done = list(csv.DictReader(TABLE.open())) if TABLE.exists() else []
    for row in ROWS:
        if any(all(str(v) == old[k] for k, v in row.items()) for old in done): continue
        made = subprocess.run([sys.executable, __file__, "--row", json.dumps(row)], check=True, capture_output=True, text=True).stdout
        done.append(json.loads(made.splitlines()[-1]))
        print(done[-1], flush=True)
        with TABLE.open("w", newline="") as f:
            out = csv.DictWriter(f, done[0].keys(), lineterminator="\n")
            out.writeheader(), out.writerows(done)


if __name__ == "__main__": main()
