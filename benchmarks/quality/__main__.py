"""Answers the questions: `python -m benchmarks.quality`, or some by name.

What is finished is kept, also after Ctrl-C or a crash; the same command goes on.
`--jobs 4` starts four processes, each for a part of every question's arms, and joins
what they found. On several machines: `--part 1/4` ... `--part 4/4`, then `--tables`.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from benchmarks import _harness
from benchmarks.quality import _documents, _pictures, _tables
from benchmarks.quality._answer import Answer, answers
from benchmarks.quality._cells import Cells
from benchmarks.quality._jobs import finished
from benchmarks.quality._question import Question, smoke
from benchmarks.quality.all_questions import QUESTIONS

RESULTS = _harness.RESULTS / "quality"
DOCUMENTS = (
    Path(__file__).parent / "README.md",
    Path(__file__).parents[2] / "docs" / "does_it_help.md",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, or only writes tables and pictures of what is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(QUESTIONS)}")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny, to see that it runs"
    )
    parser.add_argument("--tables", action="store_true", help="train nothing")
    parser.add_argument(
        "--part", type=_part, help="I/N: every N-th arm from the I-th on, no tables"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in QUESTIONS]
    if unknown:
        parser.error(f"unknown question {unknown[0]!r}; known: {', '.join(QUESTIONS)}")
    usual = [name for name, asked in QUESTIONS.items() if not asked.asked_by_name]
    out = args.out
    if args.smoke and out == RESULTS:
        out = _harness.SMOKE_RESULTS / "quality"
    env = _harness.environment("flax", *_installed("scikit-learn", "mlxtend"))
    start = time.monotonic()
    say = lambda text: print(f"{time.monotonic() - start:6.0f} s  {text}", flush=True)
    asked_for = args.names or (QUESTIONS if args.tables else usual)
    try:
        if args.jobs > 1 and not args.part and not args.tables:
            smaller = ["--smoke"] if args.smoke else []
            if not finished([*asked_for, *smaller, "--out", str(out)], args.jobs):
                print("a process failed; what is finished is kept", file=sys.stderr)
                return 1
            args.tables = True
        for name in asked_for:
            question = smoke(QUESTIONS[name]) if args.smoke else QUESTIONS[name]
            part = "{}-{}".format(*args.part) if args.part else ""
            cells = Cells(out / f"{name}.jsonl", env, part)
            if args.tables:
                cells.join()
            asked = of_part(question, *args.part) if args.part else question
            found = list(answers(asked, cells, say, train=not args.tables))
            if not args.part:
                write(question, found, out)
        if out == RESULTS and not args.part:
            for document in DOCUMENTS:
                text = document.read_text(encoding="utf-8")
                new = _documents.refreshed(text, known(RESULTS))
                document.write_text(new, encoding="utf-8")
    except KeyboardInterrupt:
        print("stopped; what is finished is kept: the same command goes on")
        return 130
    return 0


def _installed(*packages: str) -> list[str]:
    """Those that are: not every question needs all data sets."""
    return [name for name in packages if [*metadata.Distribution.discover(name=name)]]


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"must be I/N, 1 <= I <= N; got {text!r}")
    return int(found[1]), int(found[2])


def of_part(question: Question, place: int, parts: int) -> Question:
    """With every so manieth arm: choices are an arm's own, so nothing is done twice."""
    every = slice(place - 1, None, parts)
    few = lambda setting: dict([*question.arms(setting).items()][every])
    return question._replace(arms=few)


def known(folder: Path) -> _documents.Results:
    """What is there of every question; nothing is trained."""
    quiet = lambda text: None
    return {
        name: (
            question,
            list(answers(question, Cells(folder / f"{name}.jsonl"), quiet, False)),
        )
        for name, question in QUESTIONS.items()
    }


def write(question: Question, found: Sequence[Answer], out: Path) -> None:
    """Tables and picture of one question, where anything was found."""
    if not found:
        print(f"{question.name}: nothing is there yet", file=sys.stderr)
        return
    parts = [
        f"### {title}\n\n{_tables.table(question, found, metric)}\n"
        f"{_tables.differences(question, found, metric)}"
        for metric, title in question.shown.items()
    ]
    parts.append(f"### Chosen rows and rates\n\n{_tables.choices(question, found)}")
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{question.name}.md").write_text("\n".join(parts), encoding="utf-8")
    _pictures.picture(question, found).savefig(out / f"{question.name}.png", dpi=80)


if __name__ == "__main__":
    sys.exit(main())
