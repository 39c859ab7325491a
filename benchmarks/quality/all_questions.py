"""Every question by its name, in the order of the report."""

from benchmarks.quality import (
    adacons,
    arc,
    conflicts,
    label_noise,
    shortcuts,
    structure,
)
from benchmarks.quality._question import Question

QUESTIONS: dict[str, Question] = {
    module.QUESTION.name: module.QUESTION
    for module in (arc, shortcuts, label_noise, adacons, conflicts, structure)
}
