"""Federated rounds as a table, as a picture and as JSON."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from consensus_optax.comparison._federate import Federation
from consensus_optax.comparison._format import (
    aligned,
    environment,
    json_text,
    plus_minus,
)
from consensus_optax.comparison._plot import panels_of
from consensus_optax.comparison._result import estimate


def federated_table(result: Federation) -> str:
    """The final numbers, one line per contestant, as Markdown with its caption.

    Args:
      result: from `federate`; one contestant at least.

    Returns:
      Some lines of text.

    Examples:
      >>> import consensus_optax as co
      >>> from consensus_optax import comparison, tasks
      >>> split = lambda labels: tasks.even_split(len(labels), 4)
      >>> task = comparison.picture_clients(tasks.digits(), split)
      >>> small = {"rounds": 1, "seeds": 1, "num_sampled": 2, "num_steps": 1}
      >>> one = {"mean": comparison.Contestant(co.mean())}
      >>> text = federated_table(comparison.federate(task, one, **small))
      >>> text.splitlines()[0].split("|")[1].strip()
      'contestant'
    """
    patched = any("back_door" in name for name in result.curves)
    head = ["contestant", "train loss", "test loss", "test %"]
    head += ["fooled %"] if patched else []
    head += ["kB from a client"]
    lines = []
    for name, curves in result.curves.items():
        last = {metric: estimate(values[-1]) for metric, values in curves.items()}
        line = [name, plus_minus(last["train_loss"], 3)]
        line += [plus_minus(last["test_loss"], 3)]
        line += [plus_minus(last["test_accuracy"], 2, 100)]
        line += [plus_minus(last["fooled"], 1, 100)] if patched else []
        line += [f"{result.num_bytes[name] / 1000:.1f}"]
        lines.append(line)
    return aligned([head, *lines]) + "\n\n" + _caption(result)


def _caption(result: Federation) -> str:
    told, (what, accuracy) = result.settings, result.task.trivial
    lines = [
        f"{result.task.name}: {told['num_clients']} clients, {told['num_sampled']} in "
        f"each of {told['rounds']} rounds, {told['num_byzantine']} of them attack; "
        f"{told['num_steps']} local steps of SGD at {told['local_rate']:g}, the "
        f"server's at {told['rate']:g} with momentum {told['momentum']:g}, none tuned.",
        "All clients weigh the same. Mean ± standard error over "
        f"{told['seeds']} seed{'s' * (told['seeds'] > 1)}.",
        f"test %: of {what}: {100 * accuracy:.2f}.",
    ]
    if result.interrupted:
        lines.append("Interrupted: those who had not finished are left out.")
    lines += [f"Left out: {name}: {why}" for name, why in result.failed.items()]
    return "\n".join(lines)


def federated_json(result: Federation) -> str:
    """Settings, versions, device, final numbers and curves.

    Args:
      result: from `federate`.

    Returns:
      A JSON object.

    Examples:
      >>> print(federated_json(result))  # doctest: +SKIP
    """
    what, accuracy = result.task.trivial
    contestants = {
        name: {
            "bytes_from_a_client": result.num_bytes[name],
            "final": {
                m: estimate(values[-1])._asdict() for m, values in curves.items()
            },
            "final_of_each_seed": {m: values[-1, 0] for m, values in curves.items()},
            "curves": {
                metric: [estimate(values) for values in found]
                for metric, found in curves.items()
            },
        }
        for name, curves in result.curves.items()
    }
    return json_text(
        {
            "task": {
                "name": result.task.name,
                "counts": result.task.counts,
                "trivial": {"what": what, "test_accuracy": accuracy},
            },
            "settings": result.settings,
            **environment(),
            "interrupted": result.interrupted,
            "failed": result.failed,
            "rounds": result.rounds,
            "contestants": contestants,
        }
    )


def federated_plot(result: Federation) -> Figure:
    """Training loss, test accuracy and test loss against rounds.

    Args:
      result: from `federate`; one contestant at least.

    Returns:
      A figure of three panels; bands are one standard error wide on either side.

    Examples:
      >>> federated_plot(result).show()  # doctest: +SKIP
    """
    panels = {
        "train_loss": "clients' loss before training",
        "test_accuracy": "test accuracy",
        "test_loss": "test loss",
    }
    return panels_of(result.rounds, result.curves, panels, result.task.trivial, "round")


def save_federated_plot(result: Federation, path: Path) -> None:
    """Writes the picture as PNG.

    Args:
      result: from `federate`; one contestant at least.
      path: the file.

    Examples:
      >>> save_federated_plot(result, Path("curves.png"))  # doctest: +SKIP
    """
    federated_plot(result).savefig(path, dpi=110)
