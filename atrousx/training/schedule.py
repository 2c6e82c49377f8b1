"""The learning rate at every iteration."""

from __future__ import annotations

from .recipe import Recipe


def rate_factor(recipe: Recipe, iteration: int) -> float:
    r"""Returns the factor of the learning rates at an iteration, counted from 0.

    .. math::
        f(i) = (1 - m) (1 - i / n)^p + m
        \quad\text{("poly")}, \qquad
        f(i) = \gamma^{\lfloor i / s \rfloor} \quad\text{("step")}

    for n iterations, with m = ``min_lr / lr``. During the warm-up of w iterations the factor is
    also multiplied by :math:`a + (1 - a) i / w`, with a = ``warmup_factor``.

    >>> from atrousx.training import RECIPES
    >>> [round(rate_factor(RECIPES["v3_os16"], i), 3) for i in (0, 15000, 29999)]
    [1.0, 0.536, 0.0]
    >>> [round(rate_factor(RECIPES["v1"], i), 3) for i in (0, 1999, 2000, 4000)]
    [1.0, 1.0, 0.1, 0.01]
    """
    factor = 1.0
    if recipe.schedule == "poly":
        least = recipe.min_lr / recipe.lr
        left = max(0.0, 1 - iteration / recipe.iterations)
        factor = (1 - least) * left**recipe.power + least
    elif recipe.schedule == "step":
        factor = recipe.gamma ** (iteration // recipe.step_size)
    if iteration < recipe.warmup_iterations:
        done = iteration / recipe.warmup_iterations
        factor *= recipe.warmup_factor + (1 - recipe.warmup_factor) * done
    return factor
