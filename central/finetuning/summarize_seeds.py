"""Sum up fine-tuning runs that differ in their seed: mean, standard deviation, best, and runs that failed.

    python central/finetuning/summarize_seeds.py --output_dir /tmp/out/mrpc

Reads `seed_*/all_results.json` in that folder (of the seeds named by --seeds only), prints a table, writes `seeds.json`
and `seeds.png`.
"""

import argparse
import os
import re
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from central.files import known_in, write_json
from central.runtime.exits import DONE, BadRequest, run

# Measures of a run that are no scores of its model.
NO_SCORES = re.compile(r".*(_per_second|_runtime|_samples|_flos|_time|_threshold|_majority_class)(_mm)?$")


@dataclass(frozen=True)
class Summary:
    """One score over the runs that have it."""

    name: str
    mean: float
    deviation: float | None  # sample standard deviation; None for one run
    best: float
    best_seed: int


def read_runs(folder: Path, seeds: list[int], failed: list[int]) -> dict[int, dict[str, float] | None]:
    """Seed -> scores of its run, None where it failed or left no results; of these seeds, else of all that are there.

    Raises BadRequest for a folder without runs.
    """
    if seeds:
        files = {seed: folder / f"seed_{seed}" / "all_results.json" for seed in seeds}
        return {seed: None if seed in failed else _scores(file) for seed, file in files.items()}
    runs = {}
    for path in folder.glob("seed_*"):
        match = re.fullmatch(r"seed_(\d+)", path.name)  # not seed_42.1, which an earlier run became
        if match and path.is_dir():
            runs[int(match[1])] = _scores(path / "all_results.json")
    if not runs:
        raise BadRequest(f"--output_dir {folder}: holds no folder seed_<number>")
    return dict(sorted(runs.items()))


def _scores(file: Path) -> dict[str, float] | None:
    scores = {k: v for k, v in known_in(file).items() if k.startswith("eval_") and not NO_SCORES.fullmatch(k)}
    return scores or None


def summarise(runs: dict[int, dict[str, float] | None]) -> list[Summary]:
    """A summary of each score, in the order of their names; of a loss the best is the lowest."""
    done = {seed: scores for seed, scores in runs.items() if scores}
    summaries = []
    for name in sorted({name for scores in done.values() for name in scores}):
        values = {seed: scores[name] for seed, scores in done.items() if name in scores}
        best = (min if "loss" in name else max)(values, key=lambda seed: values[seed])
        deviation = statistics.stdev(values.values()) if len(values) > 1 else None
        summaries.append(Summary(name, statistics.fmean(values.values()), deviation, values[best], best))
    return summaries


def table(runs: dict[int, dict[str, float] | None], summaries: list[Summary]) -> str:
    """Rows for the seeds and for what they have in common; columns for the scores."""
    names = [summary.name for summary in summaries]
    rows = [["seed", *names]]
    rows += [
        [str(seed), *(f"{scores[n]:.4f}" if scores and n in scores else "failed" for n in names)]
        for seed, scores in runs.items()
    ]
    rows.append(["mean", *(f"{s.mean:.4f}" for s in summaries)])
    rows.append(["deviation", *("-" if s.deviation is None else f"{s.deviation:.4f}" for s in summaries)])
    rows.append(["best", *(f"{s.best:.4f}" for s in summaries)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


def draw(runs: dict[int, dict[str, float] | None], summaries: list[Summary], file: Path) -> None:
    """One panel a score: its value for each seed, the mean as a line."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook's is a module that need not be here
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(summaries), figsize=(4 * len(summaries), 3.5), squeeze=False)
    for panel, summary in zip(panels[0], summaries):
        values = {str(seed): scores[summary.name] for seed, scores in runs.items() if scores and summary.name in scores}
        panel.plot(list(values), list(values.values()), "o")
        panel.axhline(summary.mean, linewidth=1)
        panel.set(title=f"{summary.name}: {summary.mean:.4f}", xlabel="seed")
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder with seed_<number>/")
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="N", default=[], help="runs to sum up; unset: all that are there"
    )
    help = "those of --seeds that left earlier scores only; may be given again"
    parser.add_argument("--failed", type=int, nargs="+", action="extend", metavar="N", default=[], help=help)
    arguments = parser.parse_args(argv)
    folder = arguments.output_dir
    runs = read_runs(folder, arguments.seeds, arguments.failed)
    summaries = summarise(runs)
    failed = [seed for seed, scores in runs.items() if scores is None]
    if not summaries:
        raise BadRequest(f"{folder}: none of the {len(runs)} runs left scores: was --do_eval given?")
    print(table(runs, summaries))
    if failed:
        print(f"failed: {', '.join(f'seed {seed}' for seed in failed)}")
    report = {"runs": runs, "failed": failed, "scores": [asdict(summary) for summary in summaries]}
    write_json(folder / "seeds.json", report)
    draw(runs, summaries, folder / "seeds.png")
    print(f"written: {folder / 'seeds.json'}, {folder / 'seeds.png'}")
    return DONE


if __name__ == "__main__":
    sys.exit(run(main))
