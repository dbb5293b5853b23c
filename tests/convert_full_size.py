"""Convert a synthetic checkpoint of the released model's size there and back, and say what it took.

    python tests/convert_full_size.py DIR

Writes three times 7.4 GB below DIR (two at once) and removes them. Each conversion runs in a process of its own, whose peak memory is read
when it ends. `tests/test_checkpoints.py` runs the same at a tenth of the size.
"""
import argparse
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from javisdit.checkpoints import ShardWriter, content_hash, reference_shapes, rope_freqs
from javisdit.core import ModelConfig, generator, released

# VmHWM and not ru_maxrss: the latter also remembers the process that started this one
RUN = """
import re, sys
from pathlib import Path
from javisdit.checkpoints import convert
src, out, to = sys.argv[1:]
convert(src, out, to)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def write_synthetic(config: ModelConfig, folder: Path, shard_bytes: int, dtype=torch.bfloat16) -> int:
    "A sharded checkpoint under the reference's names, random bits that are finite numbers; how many numbers it has."
    folder.mkdir(parents=True)
    writer, g, count = ShardWriter(folder, "model", shard_bytes), generator("synthetic"), 0
    for name, shape in {**reference_shapes(config), "rope.freqs": rope_freqs(config).shape}.items():
        writer.add(name, torch.randint(-2**13, 2**13, tuple(shape), generator=g, dtype=torch.int16).view(dtype) if dtype.itemsize == 2 else torch.randn(shape, generator=g))
        count += math.prod(shape) * (not name.endswith("y_embedding"))
    writer.close()
    return count


def converted(src: Path, out: Path, to: str) -> tuple:
    "`(peak bytes, seconds)` of a conversion in a fresh process, on Linux."
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", RUN, src, out, to], check=True, capture_output=True, text=True)
    return int(done.stdout.splitlines()[-1]) * 1024, time.perf_counter() - start


def round_trip(config: ModelConfig, folder: Path, shard_bytes: int) -> dict:
    "Parameters, peaks and times of a conversion to our names and back; raises where the way back ends elsewhere."
    count = write_synthetic(config, folder / "theirs", shard_bytes)
    before = content_hash(folder / "theirs")
    there, seconds_there = converted(folder / "theirs", folder / "ours", "ours")
    shutil.rmtree(folder / "theirs")
    back, seconds_back = converted(folder / "ours", folder / "back", "reference")
    after = content_hash(folder / "back")
    if before != after: raise SystemExit(f"the hash was {before} and is {after} after there and back")
    return dict(parameters=count, hash=before, peak_there=there, peak_back=back, seconds_there=seconds_there, seconds_back=seconds_back)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("folder", type=Path, help="where there are 15 GB free")
    args.add_argument("--shard_gb", type=float, default=5.0, help="size of the files that are read (8: all in one)")
    args = args.parse_args()
    folder = args.folder / "convert_full_size"
    try: result = round_trip(released().model, folder, int(args.shard_gb * 1e9))
    finally: shutil.rmtree(folder, ignore_errors=True)
    for name, value in result.items(): print(f"{name:>14}: {f'{value / 1e9:.2f} GB' if name.startswith('peak') else f'{value:,.0f}' if isinstance(value, (int, float)) else value}")


if __name__ == "__main__": main()
