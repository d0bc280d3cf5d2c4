"""Correlators of deep linear networks the naive way, sharing nothing with the library.

`mean_at_widths` writes f out as a polynomial in all weights at given small widths, differentiates
it, multiplies, and averages each monomial by the moments of a Gaussian: (k - 1)!! for even k.
`sum_over_matchings` is the sum over all matchings and all assignments of contractions to layers.
"""

import itertools
from collections import Counter, defaultdict
from fractions import Fraction


def network(x, widths):
    """sum_ijk V_k .. W_ji U_id x_d as {monomial: coefficient}; the scale n^{-1/2} is left out."""
    sizes = [len(x), *widths, 1]
    polynomial = {(): 1}
    current = [{(): value} for value in x]
    for layer, (inner, outer) in enumerate(itertools.pairwise(sizes)):
        current = [
            add(*(times({((layer, o, i),): 1}, current[i]) for i in range(inner)))
            for o in range(outer)
        ]
    (polynomial,) = current
    return polynomial


def add(*polynomials):
    total = defaultdict(int)
    for polynomial in polynomials:
        for monomial, value in polynomial.items():
            total[monomial] += value
    return dict(total)


def times(p, q):
    total = defaultdict(int)
    for (a, v), (b, w) in itertools.product(p.items(), q.items()):
        total[tuple(sorted(a + b))] += v * w
    return dict(total)


def derivative(polynomial, weight):
    """Every weight occurs at most once in a monomial of f."""
    return {
        tuple(w for w in monomial if w != weight): value
        for monomial, value in polynomial.items()
        if weight in monomial
    }


def mean_at_widths(inputs, contractions, vectors, widths):
    """E of the correlator at the widths, a Fraction; `vectors` maps names to integer vectors."""
    f = {name: network(vector, widths) for name, vector in vectors.items()}
    weights = sorted({w for p in f.values() for monomial in p for w in monomial})
    total = Fraction(0)
    for indices in itertools.product(weights, repeat=len(contractions)):
        product = {(): 1}
        for tensor, name in enumerate(inputs):
            factor = f[name]
            for pair, weight in zip(contractions, indices, strict=True):
                if tensor in pair:
                    factor = derivative(factor, weight)
            product = times(product, factor)
            if not product:
                break
        total += sum(value * gaussian(monomial) for monomial, value in product.items())
    for width in widths:
        total /= width ** (len(inputs) // 2)
    return total


def gaussian(monomial):
    value = 1
    for power in Counter(monomial).values():
        if power % 2:
            return 0
        value *= double_factorial(power - 1)
    return value


def double_factorial(k):
    return 1 if k <= 0 else k * double_factorial(k - 2)


def pairings(vertices):
    if not vertices:
        yield []
        return
    first = vertices[0]
    for partner in vertices[1:]:
        rest = [v for v in vertices if v not in (first, partner)]
        for others in pairings(rest):
            yield [frozenset((first, partner)), *others]


def sum_over_matchings(num_tensors, contractions, depth):
    """{power of 1/n: coefficient} for equal widths and unit inputs."""
    total = Counter()
    layers = range(depth + 1)
    for chosen in itertools.product(list(pairings(list(range(num_tensors)))), repeat=depth + 1):
        ways = 0
        for given in itertools.product(layers, repeat=len(contractions)):
            used = [
                (layer, frozenset(pair)) for layer, pair in zip(given, contractions, strict=True)
            ]
            ways += len(set(used)) == len(used) and all(pair in chosen[h] for h, pair in used)
        if ways:
            power = sum(num_tensors // 2 - components(p + q) for p, q in itertools.pairwise(chosen))
            total[power] += ways
    return dict(total)


def components(pairs):
    groups = []
    for pair in pairs:
        touching = [g for g in groups if g & pair]
        groups = [g for g in groups if not g & pair] + [pair.union(*touching)]
    return len(groups)
