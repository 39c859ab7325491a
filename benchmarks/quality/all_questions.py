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
    module.QUESTION.name: module.QUESTION
    for module in (
        structure,
        shortcuts,
        label_noise,
        groups,
        clients,
        conflicts,
        adacons,
        arc,
    )
}
