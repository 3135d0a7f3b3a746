"""phi4 report: turns a finished run into one page, one table and one file of numbers.

Reads the folder of a pipeline that compares arms, of a sweep of such pipelines over
seeds, or of a search for pivotal tokens, by its command or from Python. Writes
results.json, report.html and, where a solution was traced, trace.svg into it; nothing
is computed anew but intervals. The page of a search has a script that shows every
question and pivot; the others have none.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments import cli
from experiments.reporting import pages
from experiments.reporting.reading import Run, open_run
from experiments.reporting.report import Report
from experiments.reporting.search_page import report_search
from phi4_jax.common import io
from phi4_jax.common.errors import ConfigError, DataError

_BUILDERS: dict[str, Callable[[Run], Report]] = {
  "pipeline": pages.report_chain,
  "sweep": pages.report_sweep,
  "find_pivotal_tokens": report_search,
}


def write_report(folder: Path, *, out_json: Path | None = None) -> Report:
  """Writes the report of a finished run into its folder, and prints its table.

  Raises:
    DataError: if the folder holds no finished run that can be reported.
  """
  run = open_run(folder)
  if run.verb not in _BUILDERS:
    own = [folder / f"report.{kind}" for kind in ("html", "md")]
    where = "result.json has what it came to."
    if found := [page for page in own if page.is_file()]:
      where = f"Its own report is {found[0]}."
    raise DataError(
      f"{folder} was made by {run.verb!r}; a report can be made of "
      f"{', '.join(_BUILDERS)}. {where}"
    )
  report = _BUILDERS[run.verb](run)
  io.write_json(folder / "results.json", report.results)
  io.write_atomic(folder / "report.html", report.html)
  written = ["results.json", "report.html"]
  if report.picture is not None:
    io.write_atomic(folder / "trace.svg", report.picture)
    written.append("trace.svg")
  if out_json is not None:
    io.write_json(out_json, report.results)
  print(report.table)
  print(", ".join(str(folder / name) for name in written), flush=True)
  return report


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog="phi4 report",
    description="Turns finished runs into report.html, results.json and trace.svg.",
    epilog="example:\n  phi4 report runs/demo\n",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "folders",
    metavar="DIR",
    nargs="+",
    help="--workdir of a finished pipeline, sweep of pipelines, or "
    "find_pivotal_tokens, or the out_dir of a call of the latter",
  )
  parser.add_argument(
    "--out_json", metavar="FILE", help="write the numbers to this file as well"
  )
  arguments = parser.parse_args(argv)

  def body() -> None:
    folders = [Path(folder) for folder in arguments.folders]
    out_json = Path(arguments.out_json) if arguments.out_json else None
    if out_json is not None and len(folders) > 1:
      raise ConfigError(
        f"--out_json takes the numbers of one report, but {len(folders)} folders were "
        "given. Call it once for each."
      )
    for folder in folders:
      write_report(folder, out_json=out_json)

  return cli.run_verb(body)


if __name__ == "__main__":
  sys.exit(main())
