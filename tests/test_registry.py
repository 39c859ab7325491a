"""Rules by name: whatever is public and needs no arguments, and what can be written."""

import inspect

import jax.numpy as jnp
import pytest

import consensus_optax as co
from consensus_optax import _registry

SEEDS = ["mean", "normalized_mean", "sign_consensus", "cosine_filter"]


def test_every_public_reducer_with_defaults_is_found():
    found = _registry.factories()
    assert {*SEEDS, "subspace_weighting"} <= set(found)
    assert set(found) <= set(co.__all__)
    assert not {"among", "clip_examples", "skip_if_empty", "reducer"} & set(found)


def test_every_other_reducer_is_listed_with_what_it_needs():
    found = _registry.needing_arguments()
    assert {"pcgrad(key)", "ema_weights(rule, num_rows)"} <= set(found)
    names = {name.partition("(")[0] for name in found}
    assert not names & set(_registry.factories())
    assert "reducer" not in names
    for factory in found.values():
        assert _registry.describe(factory).endswith(".")


def test_a_new_reducer_appears_by_itself(monkeypatch):
    def brand_new():
        """Does what no other does."""
        return co.mean()

    monkeypatch.setattr(co, "brand_new", brand_new, raising=False)
    monkeypatch.setattr(co, "__all__", [*co.__all__, "brand_new"])
    found = _registry.factories()["brand_new"]
    assert _registry.describe(found) == "Does what no other does."
    assert "brand_new" in _registry.parse_rules("all")


def test_every_rule_is_described():
    for factory in _registry.factories().values():
        assert _registry.describe(factory).endswith(".")


def test_names_keep_their_order():
    assert list(_registry.parse_rules(" sign_consensus,mean ")) == [
        "sign_consensus",
        "mean",
    ]


def test_arguments_are_passed():
    rules = _registry.parse_rules("sign_consensus(quorum=0.6),mean()")
    rows, params = jnp.array([[1.0], [1.0], [-1.0]]), jnp.zeros(1)
    rule, _ = rules.values()
    update, _ = rule.update(rows, rule.init(params), params)
    assert update.tolist() == [1.0]


def test_arguments_may_be_random_keys():
    text = "pcgrad(key(3)), graddrop(leak=0.5, key=key(0))"
    rules = _registry.parse_rules(text)
    assert all(isinstance(rule, co.Reducer) for rule in rules.values())


@pytest.mark.parametrize(
    "text",
    [
        "among(cosine_filter(max_distance=0.5), sign_consensus())",
        "after(nearest_neighbor_mixing(1), median())",
        "chain(clip_examples(1.0), median())",
    ],
)
def test_rules_may_be_made_of_rules_and_of_what_is_ahead_of_them(text):
    assert repr(_registry.parse_rules(text)[text]) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "sign_consensu",
            "unknown rule 'sign_consensu'; did you mean `sign_consensus`",
        ),
        ("GAF", "unknown rule 'GAF'; did you mean `cosine_filter`"),
        ("zzz", "unknown rule 'zzz'; known: "),
        ("", "no rules given"),
        ("mean,,sign_consensus", "cannot read the rules"),
        ("mean;import os", "cannot read the rules"),
        ("__import__('os').system('true')", "cannot read the rule"),
        ("sign_consensus(quorum=open)", "cannot read the argument 'open'"),
        ("sign_consensus(quorum=0.3)", r"must be in \(0.5, 1\]; got 0.3"),
        ("sign_consensus(quota=1)", "unexpected keyword argument 'quota'"),
        ("cosine_filter(*[1])", "cannot read the argument"),
        ("mean(**{})", "cannot read"),
        ("skip_if_empty(mean())", "is not a reducer"),
        ("nearest_neighbor_mixing(1)", "is not a reducer"),
        ("after(mean(), median())", "`mixing` must be a linear map .* got a Reducer"),
        ("after(nearest_neighbour_mixing(1), mean())", "`nearest_neighbor_mixing`"),
        ("subspace_weighting(momentum=0.9)", "num_rows"),
        ("1.5", "cannot read the rule"),
    ],
)
def test_what_cannot_be_read(text, message):
    with pytest.raises(ValueError, match=message):
        _registry.parse_rules(text)


KNOWN_AS = {
    **dict.fromkeys(["GAF", "gradient_agreement_filtering"], "cosine_filter"),
    **dict.fromkeys(["AND_mask", "consensus_training"], "sign_consensus"),
    **dict.fromkeys(["min_norm", "MGDA"], "mgda"),
    **dict.fromkeys(["pcgrad_", "project_conflicts"], "pcgrad"),
    **dict.fromkeys(["conflict_averse", "CAGrad_Clip", "RACO"], "cagrad"),
    **dict.fromkeys(["RLW", "RGW", "random_loss_weighting"], "random_weights"),
    "linear_scalarization": "constant",
    "priority_constrained_descent": "pcd",
    "nash": "nash_mtl",
    "fair": "fairgrad",
    "aligned": "aligned_mtl",
    "impartial": "imtl_g",
    "ConFIG": "conflict_free",
    "AdaCons": "subspace_weighting",
    "MeaMed": "mean_around_median",
    "CGE": "comparative_elimination",
    "NNM": "nearest_neighbor_mixing",
    "CCLIP": "centered_clipping",
    "RFA": "geometric_median",
    "MDA": "minimum_diameter",
    "smallest_maximum_eigenvalue_averaging": "smea",
    "covariance_bound_agnostic_filter": "caf",
    "DnC": "divide_and_conquer",
    "FLTrust": "trusted_row",
    "RM3": "median_of_three_steps",
    "trimed_mean": "trimmed_mean",
    "Reducr": "Reducer",
    "ARC": "adaptive_clipping",
}


@pytest.mark.parametrize("name", KNOWN_AS)
def test_other_names_lead_to_ours(name):
    if name.lower() not in co.__all__:
        with pytest.raises(AttributeError, match=rf"`{KNOWN_AS[name]}`\?$"):
            getattr(co, name)
    assert _registry.suggestion(name) == f"did you mean `{KNOWN_AS[name]}`?"


def test_a_name_like_none_of_ours_is_missing_plainly():
    with pytest.raises(AttributeError, match=r"has no attribute 'zzz'$"):
        co.zzz  # noqa: B018
    assert not hasattr(co, "_no_such_module")


def test_no_two_rules_claim_one_name():
    """A synonym that two docstrings have, or that is another rule's name, misleads."""
    claimed = {}
    for name in co.__all__:
        for line in _registry._SYNONYMS.findall(
            inspect.getdoc(getattr(co, name)) or ""
        ):
            for synonym in map(_registry._plain, line.split(",")):
                assert claimed.setdefault(synonym, name) == name
    others = {_registry._plain(name): name for name in co.__all__}
    assert all(others.get(x, name) == name for x, name in claimed.items())


def test_every_synonym_is_on_one_line_of_one_form():
    for name in co.__all__:
        doc = inspect.getdoc(getattr(co, name)) or ""
        assert doc.count("lso known as") == len(_registry._SYNONYMS.findall(doc)) <= 1
