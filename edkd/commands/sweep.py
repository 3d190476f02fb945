"""The command sweep."""

from collections.abc import Sequence
from functools import partial

from edkd.commands._command_line import ArgumentParser
from edkd.commands._options import add_device
from edkd.invocation import command
from edkd.signals import hold

DESCRIPTION = """Train with several configurations, seeds and values of keys, from a YAML file:

  configs: [configs/digits/kd/res20_res8.yaml, configs/digits/dkd/*.yaml]
  seeds: [1, 2, 3]                       # SOLVER.SEED
  overrides: {{KD.TEMPERATURE: [2, 4]}}    # each value, or each combination of values
  set: {{SOLVER.EPOCHS: 12}}               # for all runs
  retries: 2                             # of a run that crashed; it resumes
  resources: {{gpus: 0.5, cpus: 2}}        # that a run occupies on Ray

All configurations are checked before the first run starts. A finished run is not run again, and a
started one is resumed, so the same command continues a sweep that was stopped.

examples:
  {sweep} configs/suites/digits.yaml --list
  {sweep} configs/suites/digits.yaml
  {sweep} my_sweep.yaml --ray auto
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, and list or run the runs."""
    parser = ArgumentParser(
        prog=command("sweep"), description=DESCRIPTION.format(sweep=command("sweep"))
    )
    parser.add_argument("file", metavar="FILE", help="a YAML file")
    parser.add_argument(
        "--list",
        "--dry-run",
        action="store_true",
        dest="lists",
        help="print the runs with their states and folders, and run none",
    )
    parser.add_argument(
        "--ray",
        default="",
        metavar="ADDRESS",
        help="run on a Ray cluster: auto (that of this machine or of RAY_ADDRESS), local (one that "
        "is started on this machine for the sweep), HOST:PORT or ray://HOST:PORT",
    )
    add_device(parser)
    args = parser.parse_args(argv)

    with hold():  # a signal must not interrupt the import of torch, which takes seconds
        from edkd.sweep.plan import plan
        from edkd.sweep.running import run_here, run_sweep
        from edkd.sweep.states import state_of

    sweep = plan(args.file)
    states = [state_of(run) for run in sweep.runs]
    if args.lists:
        for run, state in zip(sweep.runs, states, strict=True):
            print(f"{run.number:4}  {state:8}  {run.folder}")
        return

    say = partial(print, flush=True)
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    if not args.ray:
        say(f"runs: {', '.join(counts)}")
        run_sweep(sweep, args.device, say, run_here)
        return

    from edkd.sweep.on_ray import connected, run_on_ray

    with connected(args.ray, sweep.resources):
        say(f"runs on Ray: {', '.join(counts)}")
        run_sweep(sweep, args.device, say, run_on_ray)
