"""The command line: the commands, in the order of `--help`, and how errors and interrupts end them.

Everything heavy is imported where it is used, so `--help` answers at once.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from workbench import __version__
from workbench.run.commands import notebooks, results, scans, training

COMMANDS: dict[str, Callable[..., None]] = {
    "doctor": notebooks.doctor,
    "phantom": scans.phantom,
    "implant": scans.implant,
    "import": scans.take,
    "convert": scans.convert,
    "check": scans.check,
    "demo": notebooks.demo,
    "train": training.train,
    "models": training.list_models,
    "pack": training.pack,
    "adapt": training.adapt,
    "segment": results.segment,
    "radiomics": scans.radiomics,
    "evaluate": scans.evaluate,
    "run": notebooks.run,
    "view": results.view,
    "correct": results.correct,
    "report": results.report,
    "cohort": notebooks.cohort,
    "sweep": training.sweep,
    "evidence": results.evidence,
    "lineage": results.lineage,
}
EXPORTS: dict[str, Callable[..., None]] = {
    "nnunet": scans.nnunet,
    "dicomseg": results.dicomseg,
    "lesions": results.lesions,
}
OTHERS_OPTIONS = ("run", "cohort")  # take options that they hand on: a notebook's parameters, Snakemake's

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Liver tumor segmentation in CT, stage by stage. Research use only: not a medical device.",
)
exports = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Write a cohort or results as other programs read them."
)
app.add_typer(exports, name="export")
for name, command in COMMANDS.items():
    more = name in OTHERS_OPTIONS
    app.command(name, context_settings={"allow_extra_args": more, "ignore_unknown_options": more})(command)
for name, command in EXPORTS.items():
    exports.command(name)(command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"workbench {__version__}")
        raise typer.Exit()


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    stopped: list[int] = []

    def stop(number: int, _: object) -> None:
        stopped.append(number)
        raise KeyboardInterrupt

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal of ASCII, a name that is no UTF-8
            stream.reconfigure(errors="backslashreplace")
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        app()
    except SystemExit:
        if not stopped:
            raise
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(128 + stopped[0])
    except ValueError as error:
        from workbench.volume import Refused  # here, so that --help need not load torch

        if not isinstance(error, Refused):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
