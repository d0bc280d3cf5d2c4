"""Every poster at one preset, one after another, and the table of all their claims.

    python -m experiments.posters --preset=laptop --workdir=out/posters

Each runs as a program of its own, with its own folder in the workdir; one that fails is named at
the end and does not keep the others from running.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import app, flags

from poster_jax.core import claims

NOT_POSTERS = {"__init__", "demo", "posters"}
PRESET = flags.DEFINE_enum("preset", "laptop", ["smoke", "laptop", "paper"], "how much to run")
WORKDIR = flags.DEFINE_string("workdir", "out/posters", "a folder of it for each poster")
SEED = flags.DEFINE_integer("seed", 0, "of all random numbers", lower_bound=0)


def poster_names() -> list[str]:
    """The experiments of this folder."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(f.stem for f in files if f.stem not in NOT_POSTERS and not f.stem.startswith("_"))


def main(_: Any) -> None:
    """Runs them, prints the table, ends with status 1 when one failed."""
    found, failed = [], []
    for name in poster_names():
        folder = Path(WORKDIR.value) / name
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"experiments.{name}", f"--preset={PRESET.value}"]
        command += [f"--workdir={folder}", f"--seed={SEED.value}"]
        if subprocess.run(command).returncode:
            failed.append(name)
        else:
            found += claims.load_claims(folder / "claims.json")
    if found:
        print(claims.table(found))
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    app.run(main)
