"""Rules by name: the reducers among the library's public names, and a small parser."""

import ast
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

import consensus_optax as co

Factory = Callable[..., Any]


def factories() -> dict[str, Factory]:
    """The reducers that can be made without arguments, by their public names.

    Derived from ``consensus_optax.__all__``: a new reducer appears by itself.

    Returns:
      Name to factory, in the order of the public names.

    Examples:
      >>> "sign_consensus" in factories(), "per_example_grad" in factories()
      (True, False)
    """
    public = {name: getattr(co, name) for name in co.__all__}
    return {name: obj for name, obj in public.items() if _makes_reducer(obj)}


def needing_arguments() -> dict[str, Factory]:
    """The other reducers, each by how its call begins.

    Returns:
      A name with the arguments that must be given, to the factory.

    Examples:
      >>> "krum(num_byzantine)" in needing_arguments(), "mean()" in needing_arguments()
      (True, False)
    """
    found = {}
    for name in co.__all__:
        public = getattr(co, name)
        if public is not co.reducer and inspect.isfunction(public):
            returned = inspect.signature(public).return_annotation
            named = returned in (co.Reducer, co.Reducer.__name__)
            if named and _required(public):
                found[f"{name}({', '.join(_required(public))})"] = public
    return found


def _required(function: Any) -> list[str]:
    """Names of the arguments that have no default."""
    parameters = inspect.signature(function).parameters.values()
    return [
        p.name for p in parameters if p.default is p.empty and p.kind not in _VARIADIC
    ]


def _makes_reducer(obj: Any) -> bool:
    if not inspect.isfunction(obj) or _required(obj):
        return False
    try:
        return isinstance(obj(), co.Reducer)
    except (TypeError, ValueError):
        return False


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def describe(factory: Factory) -> str:
    """The first line of a docstring.

    Args:
      factory: any documented object.

    Returns:
      One line.

    Examples:
      >>> describe(describe)
      'The first line of a docstring.'
    """
    return (inspect.getdoc(factory) or "").partition("\n")[0]


def parse_rules(text: str) -> dict[str, Any]:
    """Makes reducers from a list such as ``"mean,sign_consensus(quorum=0.75)"``.

    Args:
      text: names of reducers, with arguments where the defaults do not do; an
        argument is a literal, a rule or what is ahead of one, or a random key,
        ``key(0)``. ``"all"`` means every reducer that needs no arguments.

    Returns:
      What was written to what it means, in the order written.

    Raises:
      ValueError: the text cannot be read, or names an unknown rule.

    Examples:
      >>> list(parse_rules("mean, among(cosine_filter(0.9), sign_consensus())"))
      ['mean', 'among(cosine_filter(0.9), sign_consensus())']
      >>> list(parse_rules("after(nearest_neighbor_mixing(1), median())").values())
      [after(nearest_neighbor_mixing(1), median())]
    """
    if text.strip() == "all":
        return {name: factory() for name, factory in factories().items()}
    if not text.strip():
        raise ValueError("no rules given")
    made = {ast.unparse(node): _build(node) for node in _listed(text, "rules")}
    for name, rule in made.items():
        if not isinstance(rule, co.Reducer):
            raise ValueError(f"{name!r} is not a reducer")
    return made


def parse_calls(text: str, known: Mapping[str, Factory], kind: str) -> dict[str, Any]:
    """Makes other things than rules from such a list, of names that are given.

    Args:
      text: names, with literal arguments where wanted, or such calls themselves.
      known: what each name makes.
      kind: what they are called in errors, such as ``"attack"``.

    Returns:
      What was written to what it means, in the order written.

    Raises:
      ValueError: the text cannot be read, or names nothing that is known.

    Examples:
      >>> parse_calls("double(2), double(4)", {"double": lambda x: 2 * x}, "number")
      {'double(2)': 4, 'double(4)': 8}
      >>> parse_calls("double(double(2))", {"double": lambda x: 2 * x}, "number")
      {'double(double(2))': 8}
    """

    def build(node: ast.expr) -> Any:
        name, args, kwargs = _called(node, kind, build)
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else "known: "
            hint += "" if close else ", ".join(known)
            raise ValueError(f"unknown {kind} {name!r}; {hint}")
        return _made(node, kind, known[name], args, kwargs)

    return {ast.unparse(node): build(node) for node in _listed(text, f"{kind}s")}


def compressors() -> dict[str, Factory]:
    """What ``--compress`` may name: those of ``co.compressors``, if there are any.

    Returns:
      Name to factory.

    Examples:
      >>> isinstance(compressors(), dict)
      True
    """
    room = getattr(co, "compressors", None)
    found = {name: getattr(room, name) for name in getattr(room, "__all__", ())}
    return {name: made for name, made in found.items() if inspect.isfunction(made)}


def _listed(text: str, called: str) -> list[ast.expr]:
    """The parts of a comma list of names and calls."""
    try:
        tree = ast.parse(f"({text.strip()},)", mode="eval").body
    except SyntaxError:
        raise ValueError(f"cannot read the {called} {text!r}") from None
    if not isinstance(tree, ast.Tuple) or not text.strip():
        raise ValueError(f"no {called} given")
    return tree.elts


def _build(node: ast.expr) -> Any:
    """What a name or a call stands for: a reducer, or what one is made of."""
    name, args, kwargs = _called(node, "rule", _build)
    return _made(node, "rule", _find(name), args, kwargs)


def _called(
    node: ast.expr, kind: str, build: Callable[[ast.expr], Any]
) -> tuple[str, list[Any], dict[str, Any]]:
    """The name of a call and its arguments; a name alone is a call without any."""
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if not isinstance(call.func, ast.Name) or None in keywords:
        raise ValueError(f"cannot read the {kind} {ast.unparse(node)!r}")
    args = [_argument(arg, build) for arg in call.args]
    kwargs = {str(name): _argument(value, build) for name, value in keywords.items()}
    return call.func.id, args, kwargs


def _made(
    node: ast.expr, kind: str, factory: Factory, args: list[Any], kwargs: dict[str, Any]
) -> Any:
    """What a factory makes of arguments, or one clear error."""
    try:
        inspect.signature(factory).bind(*args, **kwargs)
        return factory(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{kind} {ast.unparse(node)!r}: {error}") from None


def _argument(node: ast.expr, build: Callable[[ast.expr], Any]) -> Any:
    """A literal, a random key, or what ``build`` makes of a call."""
    match node:
        case ast.Call(ast.Name("key"), [ast.Constant(int() as seed)], []):
            try:
                return jax.random.key(seed)
            except OverflowError:
                raise ValueError(f"{seed} is too large for a random key") from None
        case ast.Call():
            return build(node)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"cannot read the argument {ast.unparse(node)!r}") from None


def _find(name: str) -> Factory:
    known = factories()
    if name in known:
        return known[name]
    public = getattr(co, name) if name in co.__all__ else None
    if inspect.isfunction(public):
        return public  # one that needs arguments
    hint = suggestion(name) or f"known: {', '.join(known)}"
    raise ValueError(f"unknown rule {name!r}; {hint}")


def suggestion(name: str) -> str:
    """The public name that a name that is not there may have meant.

    Args:
      name: a misspelt name, or one by which others call it: the docstrings' "Also known
        as".

    Returns:
      A question, or "".

    Examples:
      >>> suggestion("GAF"), suggestion("trimed_mean"), suggestion("zzz")
      ('did you mean `cosine_filter`?', 'did you mean `trimmed_mean`?', '')
    """
    known = _names_and_synonyms()
    close = difflib.get_close_matches(_plain(name), known, 1, cutoff=0.75)
    return f"did you mean `{known[close[0]]}`?" if close else ""


@functools.cache
def _names_and_synonyms() -> dict[str, str]:
    """Public names by themselves and by what else their docstrings call them."""
    docs = {name: inspect.getdoc(getattr(co, name)) or "" for name in co.__all__}
    lines = {name: _SYNONYMS.search(doc) for name, doc in docs.items()}
    pairs = [
        (x, name) for name, line in lines.items() if line for x in line[1].split(",")
    ]
    pairs += [(name, name) for name in co.__all__]  # last, as names win
    return {_plain(called): name for called, name in pairs}


_SYNONYMS = re.compile(r"^Also known as: (.+)\.$", re.MULTILINE)


def _plain(name: str) -> str:
    """Letters and digits alone, since others write AND-mask, CClip, pc_grad."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
