"""Every question by its name, in the order of the report."""

from benchmarks.quality import (
    adacons,
    arc,
    clients,
    conflicts,
    groups,
    label_noise,
    shortcuts,
    structure,
)
from benchmarks.quality._question import Question

QUESTIONS: dict[str, Question] = {
    question.name: question
    for question in (
        structure.QUESTION,
        *shortcuts.QUESTIONS,
        label_noise.QUESTION,
        *groups.QUESTIONS,
        *clients.QUESTIONS,
        conflicts.QUESTION,
        *adacons.QUESTIONS,
        arc.QUESTION,
    )
}
