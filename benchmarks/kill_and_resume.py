"""Kills `strongreg train` with SIGKILL at random moments, resumes it each time, and compares with an undisturbed run.

    python benchmarks/kill_and_resume.py [--kills 20] [--seed 0]

Prints where each kill hit and whether every file of the run is the same, byte for byte. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILES = ("metrics.jsonl", "history.safetensors", "weights.safetensors", "model.packed")
OPTIONS = ("--model", "lenet300", "--epochs", "150", "--set", "training.checkpoint_every=3", "--out", "out")
COMMAND = [sys.executable, "-m", "strongreg", "train", *OPTIONS]


def _run_directory(directory: Path) -> Path:
    return directory / "out" / "runs" / "coherent-seed0"


def _num_epochs(directory: Path) -> int:
    metrics = _run_directory(directory) / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def _wait_for_training(process: subprocess.Popen[bytes], directory: Path) -> None:
    """Until the run has begun to write anew."""
    metrics = _run_directory(directory) / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_mtime_ns != before):
        time.sleep(0.005)


def main() -> int:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as killed:
        started = time.perf_counter()
        subprocess.run(COMMAND, cwd=whole, check=True, capture_output=True)
        longest = (time.perf_counter() - started) / 8  # most kills fall into the training, and twenty fit into it
        kills = 0
        while kills < arguments.kills:
            process = subprocess.Popen(COMMAND, cwd=killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _wait_for_training(process, Path(killed))
            time.sleep(moments.uniform(0.0, longest))
            if process.poll() is not None:
                print("the run has ended before all kills: its directory is begun anew", flush=True)
                subprocess.run(["rm", "-rf", "out"], cwd=killed, check=True)
                continue
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            print(f"kill {kills}: after epoch {_num_epochs(Path(killed))}", flush=True)
        subprocess.run(COMMAND, cwd=killed, check=True, capture_output=True)
        same = {
            name: (_run_directory(Path(whole)) / name).read_bytes()
            == (_run_directory(Path(killed)) / name).read_bytes()
            for name in FILES
        }
    print(f"{kills} kills; the same bytes as without: {same}")
    return 0 if all(same.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
