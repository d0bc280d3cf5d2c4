"""Writes dual_figures.json: duals of ReLU, erf and GELU by mpmath with 50 digits.

Run in .venv-oracles. ReLU is Cho & Saul's arc-cosine kernel, erf is Williams' arc-sine; GELU's, for
which the library has a closed form, is integrated: given u, w is Gaussian with mean m and variance
s^2, and E[w Phi(w)] = m Phi(m/q) + s^2/q phi(m/q) with q^2 = 1 + s^2, so that one integral is left.
Inputs are doubles; the figures belong to exactly these.
"""

import itertools
import json
import pathlib

import mpmath as mp

mp.mp.dps = 50
COSINES = (1.0, 1 - 2.0**-40, 1 - 1e-6, 0.7, 0.0, -0.4, -1 + 2.0**-40, -1.0)
# Squares of powers of 2, so that k = cos r1 r2 is the product that it stands for.
VARIANCES = (
    (1.0, 1.0),
    (0.25, 4.0),
    (2.0**-40, 2.0**40),
    (2.0**-20, 2.0**-20),
    (0.0, 1.0),
    (0.0, 0.0),
)


def relu(k, v1, v2):
    """E[phi phi] and E[phi' phi'], the latter with the limit 1/4 where an input is zero."""
    r = mp.sqrt(v1 * v2)
    theta = mp.acos(k / r) if r else mp.pi / 2
    return (r * mp.sin(theta) + (mp.pi - theta) * k) / (2 * mp.pi), (mp.pi - theta) / (2 * mp.pi)


def erf(k, v1, v2):
    """Likewise."""
    square = (1 + 2 * v1) * (1 + 2 * v2)
    value = 2 / mp.pi * mp.asin(2 * k / mp.sqrt(square))
    return value, 4 / mp.pi / mp.sqrt(square - 4 * k**2)


def gelu(k, v1, v2):
    """Likewise, by one integral over u = r1 x."""
    r1 = mp.sqrt(v1)
    slope = k / v1 if v1 else mp.mpf(0)
    s2 = v2 - slope * k
    q = mp.sqrt(1 + s2)

    def phi(x):
        return mp.npdf(x)

    def mean_gelu(m):
        return m * mp.ncdf(m / q) + s2 / q * phi(m / q)

    def mean_gelu_slope(m):  # d/dm of the mean is the mean of the derivative
        return mp.ncdf(m / q) + m / q * phi(m / q) - s2 * m / q**3 * phi(m / q)

    def integral(f):
        return mp.quad(lambda x: f(r1 * x, slope * r1 * x) * phi(x), [-16, -4, -1, 0, 1, 4, 16])

    value = integral(lambda u, m: u * mp.ncdf(u) * mean_gelu(m))
    return value, integral(lambda u, m: (mp.ncdf(u) + u * phi(u)) * mean_gelu_slope(m))


def main():
    """Every cosine with every pair of variances; GELU where the integrand has one scale."""
    rows = []
    for (v1, v2), c in itertools.product(VARIANCES, COSINES):
        k = c * float(mp.sqrt(v1)) * float(mp.sqrt(v2))
        for name, dual in (("relu", relu), ("erf", erf), ("gelu", gelu)):
            if name == "gelu" and max(v1, v2) > 100:
                continue
            value, slope = dual(*map(mp.mpf, (k, v1, v2)))
            rows.append([name, k, v1, v2, float(value), float(slope)])
    path = pathlib.Path(__file__).parent / "dual_figures.json"
    path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    print(len(rows), "rows")


if __name__ == "__main__":
    main()
