"""The ground floor: what every room needs, and no method of any poster.

Import the module you want (`from poster_jax.core import data, models, training`); nothing is
imported here, so that `import poster_jax` stays light.
"""
