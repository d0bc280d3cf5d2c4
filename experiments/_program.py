"""The wiring that all experiments share: flags in, library called, claims and pictures out.

An experiment is a dataclass of settings, one instance a preset, and a function
`experiment(run) -> Findings`. `launch` gives it `--preset`, `--workdir`, `--seed` and one flag for
each setting, and writes `claims.json`, `metrics.jsonl`, `figures/*.png` and `index.html`.
"""

import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from poster_jax.core import checkpoints, claims, data, devices, progress, report, training
from poster_jax.core.training.identity import digest_arrays, digest_program


class RefusedError(Exception):
    """What the user asked for cannot be done; one sentence says why."""


class Findings(NamedTuple):
    """What an experiment hands back.

    Attributes:
      title: of the page.
      lead: what was asked and done, one paragraph.
      claims: in the order of the poster.
      sections: of the page, after the claims.
    """

    title: str
    lead: str
    claims: Sequence[claims.Claim]
    sections: Sequence[report.Section]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of an experiment.

    Attributes:
      name: of the experiment, the name of its file.
      preset: "smoke", "laptop" or "paper", or one more of the experiment's own.
      settings: the preset with the flags that were given.
      workdir: an existing directory.
      seed: at least 0.
    """

    name: str
    preset: str
    settings: Any
    workdir: Path
    seed: int

    @property
    def key(self) -> Any:
        """The PRNG key of the seed."""
        return jax.random.key(self.seed)

    @property
    def mesh(self) -> Any:
        """All devices where there are several, None on one."""
        return devices.data_mesh() if jax.device_count() > 1 else None

    def load(self, name: str, **options: Any) -> data.Dataset:
        """`core.data.load`; a set that is not there ends the program in one sentence."""
        try:
            return data.load(name, **options)
        except (FileNotFoundError, ImportError, ValueError) as error:
            raise RefusedError(str(error)) from error

    def progress(self, description: str, total: int) -> Any:
        """A progress bar; see `core.progress`."""
        return progress.progress_bar(description, total)

    def log(self, **row: Any) -> None:
        """Appends a row to `metrics.jsonl`; arrays as lists, what is not finite as null."""
        with (self.workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(_plain(row), allow_nan=False) + "\n")

    def stage(self, name: str, fn: Callable[..., Any], *args: Any) -> Any:
        """`fn(*args)` for arrays `args`, kept on disk.

        Killed and started again, a run reads the stages that were finished, to the bit; a stage
        whose program or arguments are others than those on disk is computed anew.
        """
        args = jax.tree.map(jnp.asarray, args)
        directory = self.workdir / "checkpoints" / name
        identity = f"{digest_program(fn, *args)} {digest_arrays(args)}"
        if (found := checkpoints.latest(directory)) and found[1].get("identity") == identity:
            return checkpoints.restore(directory, jax.eval_shape(fn, *args))
        shutil.rmtree(directory, ignore_errors=True)
        # The program that was digested: neither traced nor lowered again.
        result = jax.block_until_ready(jax.jit(fn)(*args))
        checkpoints.save(directory, 0, result, metadata={"identity": identity})
        return result

    def population(self, name: str, fn: Callable[..., Any], shared: Any, *members: Any) -> Any:
        """`fn(shared, *member)` of each network as one stage, over the devices there are."""
        axes = (None, *(0 for _ in members))
        options = {"group_size": self.settings.group_size, "mesh": self.mesh, "in_axes": axes}
        return self.stage(name, partial(training.map_population, fn, **options), shared, *members)


def setting(default: Any, text: str) -> Any:
    """A field of an experiment's settings with its help text; numbers and texts become flags."""
    return dataclasses.field(default=default, metadata={"help": text})


def execute(
    experiment: Callable[[Run], Findings],
    *,
    name: str,
    preset: str,
    settings: Any,
    workdir: str | Path,
    seed: int,
) -> Findings:
    """Runs an experiment and writes its files into `workdir`."""
    start = time.perf_counter()
    run = Run(name, preset, settings, Path(workdir), seed)
    shutil.rmtree(run.workdir / "figures", ignore_errors=True)
    (run.workdir / "figures").mkdir(parents=True)
    (run.workdir / "metrics.jsonl").write_text("")
    found = experiment(run)
    for section in found.sections:
        for picture in section.pictures:
            (run.workdir / "figures" / f"{picture.name}.png").write_bytes(picture.png)
    about = {
        "experiment": name,
        "preset": preset,
        "seed": seed,
        "settings": _plain(dataclasses.asdict(settings)),
        "versions": {package: version(package) for package in ("jax", "flax", "optax")},
    }
    claims.save_claims(run.workdir / "claims.json", found.claims, about=about)
    foot = {
        "command": f"python -m experiments.{name} --preset={preset} --seed={seed}",
        **about["versions"],
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "seconds": f"{time.perf_counter() - start:.0f}",
    }
    heading = "The rule of each was written down before the measurement; what fails is shown."
    parts = [report.Section("Claims", heading, claims=found.claims)] if found.claims else []
    page = report.Page(found.title, found.lead, [*parts, *found.sections], foot)
    (run.workdir / "index.html").write_text(report.render_page(page))
    return found


def spread_over_cores() -> None:
    """Makes every CPU core a device; to be called before anything else of JAX.

    Small networks keep one core busy: each device then has its own share of a population.
    """
    if "device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


def launch(name: str, presets: Mapping[str, Any], experiment: Callable[[Run], Findings]) -> None:
    """The program of one experiment: parses flags, runs, prints the table of claims.

    `presets` maps "smoke", "laptop" and "paper" to instances of one dataclass of numbers and texts,
    each field with a `help` in its metadata. Bad flags end in one sentence and exit status 2.
    """
    flags.DEFINE_enum("preset", "laptop", list(presets), "how much to run")
    flags.DEFINE_string("workdir", f"out/{name}", "where results go, made when missing")
    flags.DEFINE_integer("seed", 0, "of all random numbers", lower_bound=0, upper_bound=2**31 - 1)
    fields = [field for field in dataclasses.fields(presets["laptop"]) if _define_flag(field)]
    values = flags.FLAGS
    for flag in ("preset", "workdir", "seed", *(field.name for field in fields)):
        values.register_key_flag_for_module(sys.argv[0], values[flag])  # those that --help lists

    def main(_: Any) -> None:
        logging.set_verbosity(logging.WARNING)  # orbax tells of every file it touches
        given = {f.name: v for f in fields if (v := getattr(values, f.name)) is not None}
        try:
            settings = dataclasses.replace(presets[values.preset], **given)
        except ValueError as error:  # of the settings' own checks
            _refuse(f"bad flag: {error}")
        try:
            found = execute(
                experiment,
                name=name,
                preset=values.preset,
                settings=settings,
                workdir=_make_workdir(values.workdir),
                seed=values.seed,
            )
        except RefusedError as refusal:
            _refuse(refusal)
        if found.claims:
            width = shutil.get_terminal_size((120, 24)).columns
            print(claims.table(found.claims, width=max(width, 80)))
        print(f"Page: {Path(values.workdir) / 'index.html'}")

    app.run(main, flags_parser=_parse)


def _define_flag(field: dataclasses.Field) -> bool:
    """Whether the field became a flag: those of one number or text do."""
    kinds = {
        int: partial(flags.DEFINE_integer, lower_bound=1),
        float: partial(flags.DEFINE_float, lower_bound=0.0),
        str: flags.DEFINE_string,
    }
    define = kinds.get(type(field.default))
    if define is not None:
        define(field.name, None, f"{field.metadata['help']} (laptop: {field.default})")
    return define is not None


def _parse(arguments: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(arguments)
    except flags.Error as error:
        _refuse(error)
    if len(rest) > 1:
        _refuse(f"flags begin with --, got {' '.join(rest[1:])}")
    return rest


def _make_workdir(workdir: str) -> Path:
    try:
        path = Path(workdir).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise RefusedError(
            f"flag --workdir={workdir}: cannot write there: {error.strerror}."
        ) from error


def _refuse(reason: Any) -> NoReturn:
    print(f"{' '.join(str(reason).split())} (--help lists the flags)", file=sys.stderr)
    sys.exit(2)


def _plain(value: Any) -> Any:
    """Arrays as lists, numbers as Python's own, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return _plain(np.asarray(value).tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value
