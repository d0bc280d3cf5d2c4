"""Draws batchnorm_only.png from a run: python docs/images/batchnorm_only.py out/batchnorm_only.

Test accuracy of each condition, every network a point, from the metrics of
`python -m experiments.batchnorm_only`.
"""

import json
import pathlib
import sys

from poster_jax.core import report

rows = map(json.loads, (pathlib.Path(sys.argv[1]) / "metrics.jsonl").read_text().splitlines())
accuracy = {row["condition"]: row["accuracy"] for row in rows if "condition" in row}
SHOWN = {
    "everything": "everything",
    "BatchNorm and output": "BatchNorm\nand output",
    "BatchNorm only": "BatchNorm\nonly",
    "affine only, γ = 1": "the same, no\nnormalisation",
    "output only": "output\nonly",
    "8 random a channel": "8 random\na channel",
    "2 random a channel": "2 random\na channel",
}
figure = report.strips({SHOWN[n]: accuracy[n] for n in SHOWN}, ylabel="test accuracy")
figure.savefig(pathlib.Path(__file__).with_suffix(".png"), dpi=120)
