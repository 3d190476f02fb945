"""The command tune."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from edkd.commands._command_line import ArgumentParser
from edkd.commands._options import add_device
from edkd.invocation import command
from edkd.signals import hold

if TYPE_CHECKING:
    from edkd.tune.plan import Plan

DESCRIPTION = """Search hyper-parameters on held-out training images, as a YAML file describes:

  config: configs/digits/kd/res20_res8.yaml
  search:
    KD.TEMPERATURE: {{low: 1, high: 8, log: true}}
    SOLVER.LR: [0.02, 0.05, 0.1]
  trials: 20
  halving: {{min_epochs: 3, reduction: 3}}   # bad trials end early; False: none does
  val_split: 0.1                           # share of the training images that is held out
  seeds: [1, 2, 3]                         # of the final runs

The test set is not evaluated. The best values are written to best.yaml in the folder of the study.
With --final, a run with each seed then trains with them on all training images. The same command
continues a study that was stopped.

examples:
  {tune} configs/tune/kd_digits.yaml
  {tune} configs/tune/kd_digits.yaml --list
  {tune} configs/tune/kd_digits.yaml --final
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, and search, list the trials, or train the final runs too."""
    parser = ArgumentParser(
        prog=command("tune"), description=DESCRIPTION.format(tune=command("tune"))
    )
    parser.add_argument("file", metavar="FILE", help="a YAML file")
    parser.add_argument(
        "--list",
        action="store_true",
        dest="lists",
        help="print the best trials so far and their cost, and run none",
    )
    parser.add_argument(
        "--final",
        action="store_true",
        help="after the search, train with the best values on all training images, for each seed",
    )
    add_device(parser)
    args = parser.parse_args(argv)

    with hold():  # a signal must not interrupt the import of torch, which takes seconds
        from edkd.tune.plan import plan_study
        from edkd.tune.study import JOURNAL, import_optuna, open_study

        import_optuna()

    plan = plan_study(args.file)
    say = partial(print, flush=True)
    if args.lists:
        is_begun = (plan.folder / JOURNAL).is_file()
        say(_summary(plan, open_study(plan)) if is_begun else f"no trial yet: {plan.folder}")
        return

    from edkd.tune.final import refuse_final_runs_of_others
    from edkd.tune.running import tune

    if args.final:
        refuse_final_runs_of_others(plan)
    study = tune(plan, args.device, say)
    say(f"\n{_summary(plan, study)}\n")
    _finish(plan, study, args.device, args.final, say)


def _summary(plan: "Plan", study: Any) -> str:
    """The best trials, the importance of the keys, and the cost."""
    from edkd.tune.outcome import budget_text, importance_text, table

    about = [importance_text(plan, study), f"cost: {budget_text(plan, study)}"]
    shown = [line for line in about if line]
    return "\n".join([table(plan, study), "", *shown])


def _finish(
    plan: "Plan", study: Any, device: str, is_final: bool, say: Callable[[str], None]
) -> None:
    """Write the best configuration; train the final runs where they are wanted."""
    from edkd.sweep.plan import plan as plan_sweep
    from edkd.sweep.running import run_here, run_sweep
    from edkd.tune.final import refuse_other_values, write_best, write_final
    from edkd.tune.outcome import RESULTS

    best = write_best(plan, study)
    final = write_final(plan)
    say(f"all trials: {plan.folder / RESULTS}")
    say(f"best values: {best}")
    if not is_final:
        say(f"final runs: {command('tune')} {plan.source.path} --final")
        return

    refuse_other_values(plan)
    run_sweep(plan_sweep(str(final)), device, say, run_here)
