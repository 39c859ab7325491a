"""Tables inside of documents: written from the results, between two comments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from benchmarks.quality import _tables
from benchmarks.quality._answer import Answer
from benchmarks.quality._question import Question

Results = Mapping[str, tuple[Question, Sequence[Answer]]]

_PLACE = re.compile(
    r"<!-- (table|differences|choices) (\w+)(?: (\w+))? -->\n.*?<!-- end -->", re.DOTALL
)


def refreshed(text: str, results: Results) -> str:
    """A document with its tables as the results are.

    Each stands between ``<!-- KIND QUESTION METRIC -->`` and ``<!-- end -->``, KIND one
    of ``table``, ``differences``, ``choices`` (which has no METRIC).
    """
    return _PLACE.sub(lambda place: _written(place, results), text)


def _written(place: re.Match[str], results: Results) -> str:
    head = place[0].partition("\n")[0]
    question, found = results[place[2]]
    kinds = {
        "table": lambda: _tables.table(question, found, place[3]),
        "differences": lambda: _tables.differences(question, found, place[3]),
        "choices": lambda: _tables.choices(question, found),
    }
    body = kinds[place[1]]() if found else "*not run yet*\n"
    return f"{head}\n{body}<!-- end -->"
