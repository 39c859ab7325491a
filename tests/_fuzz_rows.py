"""Rows for random cases: what is given to the library, and to the references."""

import jax.numpy as jnp
import numpy as np

import consensus_optax as co
from consensus_optax import Columns, Fold
from consensus_optax._rows.statistics import MOMENTS
from consensus_optax._rules.kinds import After

DTYPES = {"bfloat16": 2.0**-8, "float16": 2.0**-10, "float32": 0.0, "float64": 0.0}
SHAPES = [(), (1,), (4,), (3, 2), (2, 2, 2), (0, 3), (5, 3)]
FAR = {"far": 1e6, "farther": 1e10}
STYLES = ("noisy", "agreeing", "sparse", "equal", "rank one")
# Of a row that is a product of two vectors the last two have one of them alone.
BAD = ("nan", "inf", *FAR, "zero", "opposed", "no inputs", "no inputs, farther")


class Data:
    """Rows of one case, whole or as factors, in the case's dtype.

    Of a matrix a row is the product of two vectors, in all sources but that of arrays.
    """

    def __init__(self, case, leaves, weights):
        self.case = case
        self.dtype = jnp.dtype(case.dtype)
        self.leaves = leaves  # of each: (rows,) or (left, right), NumPy in that dtype
        self.weights = weights

    def params(self):
        """A list of leaves."""
        return [jnp.ones(shape, self.dtype) for shape in self.case.shapes]

    def jax_weights(self):
        """(B,), or None."""
        dtype = jnp.float64 if self.dtype == jnp.float64 else jnp.float32
        return None if self.weights is None else jnp.asarray(self.weights, dtype)

    def batch(self):
        """What a loss makes these rows of."""
        return [tuple(map(jnp.asarray, parts)) for parts in self.leaves]

    def loss(self, params, batch):
        """Linear: its gradient is what the batch holds."""
        total = jnp.zeros((), self.dtype)
        for param, parts in zip(params, batch, strict=True):
            if len(parts) == 2:
                left, right = parts  # (1, M), (1, N)
                total += jnp.sum((left @ param) * right)
            else:
                total += jnp.sum(param * parts[0][0])
        return total

    def rows(self, params, batch):
        """Arrays, or what `co.per_example_grad` gives."""
        if self.case.source == "arrays":
            return [parts[0] for parts in batch]
        return co.per_example_grad(self.loss)(params, batch)

    @property
    def matrices(self):
        """Rows of every leaf in float64, (B, size)."""
        wide = [[np.asarray(part, np.float64) for part in each] for each in self.leaves]
        whole = [x[0] if len(x) == 1 else np.einsum("bm,bn->bmn", *x) for x in wide]
        return [x.reshape(len(x), -1) for x in whole]

    def present(self, first):
        """Which rows count, of leaves from ``first`` on, and how many are broken."""
        leaves = self.matrices[first:]
        with np.errstate(over="ignore"):
            narrow = np.finfo(np.float32 if self.dtype != jnp.float64 else np.float64)
        finite = np.ones(self.case.num_rows, bool)
        for leaf in leaves:
            finite &= (np.isfinite(leaf) & (np.abs(leaf) <= float(narrow.max))).all(1)
        weights = np.ones(len(finite)) if self.weights is None else self.weights
        return finite & (weights > 0), int(((weights > 0) & ~finite).sum())

    def reference(self, row, first, present, perturb):
        """The update of the references, (P,), of rows changed by roundings or not."""
        leaves = [leaf[present] for leaf in self.matrices[first:]]
        sizes = sum(leaf.shape[1] for leaf in leaves)
        if not present.any():
            return np.zeros(sizes)
        if perturb is not None:
            leaves = self._perturbed(row, leaves, perturb)
        weights = self.weights if self.weights is not None else np.ones(len(present))
        try:
            update = np.concatenate(row.reference(leaves, weights[present]))
        except (ZeroDivisionError, ValueError, OverflowError, np.linalg.LinAlgError):
            return np.full(sizes, np.nan)
        limit = float(jnp.finfo(self.dtype).max)
        return update if np.abs(update).max(initial=0) <= limit else np.zeros(sizes)

    def _perturbed(self, row, leaves, rng):
        """Entries changed as their rounding does; for products of rows as theirs.

        For moments as those of what lies in one coordinate.
        """
        eps = 1e-14 if self.dtype == jnp.float64 else 1e-6
        rule = row.make().rule
        own = max(eps, DTYPES[self.case.dtype] if self._rounds(rule) else 0)
        total = np.sqrt(sum((leaf**2).sum(1, keepdims=True) for leaf in leaves))
        by_products = row.degree is not None or not hasattr(rule, "resolve")
        by_moments = isinstance(rule, Fold) and MOMENTS in rule.statistics
        changed = []
        for leaf in leaves:
            noise = rng.standard_normal((2, *leaf.shape))
            size = np.abs(leaf).max(0) if by_moments else total * by_products
            changed.append(leaf * (1 + own * noise[0]) + eps * size * noise[1])
        return changed

    def hides(self, row, solves, first, present):
        """Whether what short rows, or eigenvalues, ask for is lost beside the longest.

        Of rules that ask for eigenvalues, or that solve a problem. And of equal rows
        beside a far one a mixing makes two kinds: their median may lie half-way, and
        which of them are nearest to it is a tie.
        """
        if self.case.style == "equal" and isinstance(row.make().rule, After):
            return any(kind in FAR for _, kind in self.case.bad)
        if not present.any() or not (row.rounding or solves):
            return False
        rows = np.concatenate([leaf[present] for leaf in self.matrices[first:]], 1)
        lengths = np.linalg.norm(rows, axis=1)
        lengths = lengths[lengths > 0]
        if lengths.size and lengths.max() > 1e3 * lengths.min():
            return True
        values = np.linalg.svd(rows, compute_uv=False)
        least = 1e-6 if self.dtype == jnp.float64 else 1e-2
        lost = len(values) < len(rows) or values[-1] < least * values[0]
        return bool(row.rounding) and lost

    def _rounds(self, rule):
        """Whether products may have been rounded on their way, or parts of a sum.

        On a mesh every device sends its part of a combination in the rows' dtype.
        """
        if self.case.source != "arrays":
            return True
        return self.case.place != "one device" and not isinstance(rule, Fold | Columns)

    def rtol(self, row):
        """Of the rule, a few times, and of the update's dtype."""
        if self.dtype == jnp.float64:  # of problems that are solved step by step, also
            return 0.1 * row.rtol  # beside rows that are 1e10 times as long
        return 10 * row.rtol + DTYPES[self.case.dtype]


def draw_data(case):
    """The rows that a case describes."""
    rng = np.random.default_rng(case.seed)
    dtype = jnp.dtype(case.dtype)
    num = case.num_rows
    factored = case.source != "arrays"
    leaves = []
    for shape in case.shapes:
        if factored and len(shape) == 2:
            leaves.append(tuple(_drawn(case, rng, num, (side,)) for side in shape))
        else:
            leaves.append((_drawn(case, rng, num, shape),))
    for index, kind in case.bad:
        _spoil(leaves, index, kind, rng, case.dtype)
    with np.errstate(over="ignore"):
        leaves = [tuple(np.asarray(x, dtype) for x in parts) for parts in leaves]
    return Data(case, leaves, _weights(case, rng))


def _drawn(case, rng, num, shape):
    base = rng.standard_normal(shape)
    normal = rng.standard_normal((num, *shape))
    match case.style:
        case "agreeing":
            return np.sign(base) * rng.uniform(0.5, 1.5, (num, *shape))
        case "sparse":
            return np.where(rng.uniform(size=normal.shape) < 0.4, 0, base + normal)
        case "equal":
            return np.broadcast_to(base, normal.shape).copy()
        case "rank one":
            sizes = rng.uniform(0.5, 2, num).reshape(num, *[1] * len(shape))
            return sizes * base
    return base + 0.6 * normal


def _spoil(leaves, index, kind, rng, dtype):
    """Changes one row, in one leaf where one is enough."""
    if kind in ("nan", "inf"):
        full = [parts for parts in leaves if parts[-1][index].size and parts[0].size]
        part = full[rng.integers(len(full))][-1]
        place = tuple(rng.integers(size) for size in part.shape[1:])
        part[(index, *place)] = {"nan": np.nan, "inf": np.inf}[kind]
        return
    # what overflows in float16 is a row that is not finite
    far = {name: 1e3 if dtype == "float16" else size for name, size in FAR.items()}
    for parts in leaves:
        if kind.startswith("no inputs"):
            parts[0][index] = 0
        factor = {"zero": 0.0, "opposed": -1.0, "no inputs": 1.0, **far}
        parts[-1][index] *= factor[kind.removeprefix("no inputs, ")]


def _weights(case, rng):
    num = case.num_rows
    match case.weighted:
        case "padded":
            return (rng.uniform(size=num) < 0.7).astype(float)
        case "counts":
            return rng.choice([0.0, 0.5, 1.0, 2.0, 3.0], num)
        case "nobody":
            return np.zeros(num)
    return None
