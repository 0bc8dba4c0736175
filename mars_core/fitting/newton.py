"""Damped Newton iterations with bounds on many problems at once.

Each step solves (H + c * G) step = -gradient, where H is the curvature from the loss's true second
derivative and G the one from iteratively reweighted least squares. With c = 1 a step is a cautious
reweighted least-squares step; as c falls it becomes Newton's, which ends in a few iterations because
the Huber objective is nearly piecewise quadratic. A step that does not lower the objective is undone
and c grows. A coefficient on a bound whose gradient points outwards stays there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from mars_core.fitting.problem import Evaluation, Integers, Problem
from mars_core.laws.law import Floats

FIRST_DAMPING = 0.3
LARGEST_STEP = 3.0  # per coefficient and iteration, floors aside: a factor of 20 in a scale
_BLAS = ThreadpoolController()
CHUNK = 96  # problems per thread task: its working arrays stay in the cache


@dataclass(frozen=True)
class Minima:
    """Where the iterations ended: phi (n_problems, n_params), objective (n_problems,), iterations used."""

    phi: Floats
    objective: Floats
    n_iterations: int


@dataclass
class _State:
    """Iterates still moving; arrays have one row per problem."""

    phi: Floats
    at: Evaluation
    damping: Floats


def minimise(
    problem: Problem,
    starts: Floats,
    weights: Floats,
    *,
    lower: Floats | None = None,
    upper: Floats | None = None,
    max_iterations: int = 60,
    tolerance: float = 1e-9,
) -> Minima:
    """Local minima from many starts, spread over the machine's cores.

    Args:
        problem: data and law.
        starts: centred internal coefficients, (n_problems, n_params).
        weights: counts of the caller-ordered points, (n_problems, n_points) or (1, n_points).
        lower: bounds, (n_params,) or (n_problems, n_params); the problem's where None. Equal bounds fix
            a coefficient.
        upper: see lower.
        max_iterations: most evaluations per problem.
        tolerance: a problem has ended when a step promises less than this share of its objective.

    Returns:
        One minimum per start, in the order of the starts.
    """
    n_problems = len(starts)
    low = np.broadcast_to(problem.lower if lower is None else lower, starts.shape)
    high = np.broadcast_to(problem.upper if upper is None else upper, starts.shape)
    sorted_weights = weights[:, problem.order]
    chunks = [slice(i, i + CHUNK) for i in range(0, n_problems, CHUNK)]

    def solve(chunk: slice) -> Minima:
        own = sorted_weights if len(sorted_weights) == 1 else sorted_weights[chunk]
        return _minimise_chunk(problem, starts[chunk], own, low[chunk], high[chunk], max_iterations, tolerance)

    # The matrices are small: threads inside BLAS would only fight with ours for the same cores.
    with _BLAS.limit(limits=1, user_api="blas"):
        parts = _map_chunks(solve, chunks)
    return Minima(
        phi=np.concatenate([part.phi for part in parts]),
        objective=np.concatenate([part.objective for part in parts]),
        n_iterations=max(part.n_iterations for part in parts),
    )


def _map_chunks(solve: Callable[[slice], Minima], chunks: list[slice]) -> list[Minima]:
    if len(chunks) == 1:
        return [solve(chunks[0])]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return list(pool.map(solve, chunks))


def _minimise_chunk(
    problem: Problem,
    starts: Floats,
    weights: Floats,
    lower: Floats,
    upper: Floats,
    max_iterations: int,
    tolerance: float,
) -> Minima:
    phi = _within(starts, lower, upper)
    final_phi, final_objective = phi.copy(), np.empty(len(phi))
    moving, box, own = np.arange(len(phi)), (lower, upper), weights
    state = _State(phi, problem.evaluate(phi, weights), np.full(len(phi), FIRST_DAMPING))
    floors = np.flatnonzero(problem.floors)
    n_iterations = 0
    while n_iterations < max_iterations:
        n_iterations += 1
        step, promise = _step(state, *box, floors)
        going = promise > tolerance * np.maximum(state.at.objective, 1e-300)
        going &= state.damping < 1e8
        if not going.all():
            final_phi[moving], final_objective[moving] = state.phi, state.at.objective
            moving, state, step, promise = moving[going], _keep(state, going), step[going], promise[going]
            box = (box[0][going], box[1][going])
            own = weights if len(weights) == 1 else own[going]
        if len(moving) == 0:
            break
        trial_phi = _within(state.phi + step, *box)
        state = _accept(state, trial_phi, problem.evaluate(trial_phi, own), promise)
    final_phi[moving], final_objective[moving] = state.phi, state.at.objective
    return Minima(final_phi, final_objective, n_iterations)


def _within(values: Floats, lower: Floats | float, upper: Floats | float) -> Floats:
    """`np.clip` without its checks, which cost more than these small arrays."""
    return np.asarray(np.minimum(np.maximum(values, lower), upper))


def _step(state: _State, lower: Floats, upper: Floats, floors: Integers) -> tuple[Floats, Floats]:
    """Step to the model's minimum within the box, (n_problems, n_params), and the decrease it promises.

    floors: indices of the coefficients that are logarithms of a constant term.
    """
    gradient = state.at.gradient
    stuck = ((state.phi <= lower) & (gradient >= 0)) | ((state.phi >= upper) & (gradient <= 0))
    matrix = state.at.newton + state.damping[:, None, None] * state.at.majorant
    diagonal = _diagonal(matrix)
    if stuck.any():
        free = ~stuck
        matrix *= free[:, :, None] & free[:, None, :]
        least = 1e-10 * diagonal + 1e-14 * diagonal.max(axis=1, keepdims=True) + 1e-300
        diagonal += np.where(free, least, 1.0)
        gradient = np.where(free, gradient, 0.0)
    else:
        diagonal += 1e-10 * diagonal + 1e-14 * diagonal.max(axis=1, keepdims=True) + 1e-300
    step = _solve_scaled(matrix, -gradient)
    promise = 0.5 * np.abs(np.einsum("bp,bp->b", gradient, step))
    bounded = _within(step, -LARGEST_STEP, LARGEST_STEP)
    if len(floors):
        bounded[:, floors] = _floor_step(step[:, floors])
    return bounded, promise


def _floor_step(step: Floats) -> Floats:
    """Change of ln E for a step of the size `step * E` in E itself.

    The prediction is linear in a floor E, not in ln E: the valley of the objective is straight in E.
    """
    return np.log1p(np.maximum(step, -0.95))


def _solve_scaled(matrix: Floats, right: Floats) -> Floats:
    """Solve after scaling the diagonal to 1, so that coefficients of any size are treated alike."""
    scale = 1.0 / np.sqrt(_diagonal(matrix))
    scaled = matrix * scale[:, :, None] * scale[:, None, :]
    _diagonal(scaled)[...] += 1e-11
    return np.asarray(np.linalg.solve(scaled, (right * scale)[:, :, None])[:, :, 0] * scale)


def _diagonal(matrices: Floats) -> Floats:
    """Diagonals of contiguous square matrices, (n_problems, n_params), as a view that can be written to."""
    n_params = matrices.shape[1]
    return matrices.reshape(len(matrices), -1)[:, :: n_params + 1]


def _accept(state: _State, trial_phi: Floats, trial: Evaluation, promise: Floats) -> _State:
    """Take the trials that lower the objective; damp by how much of the promised decrease was kept."""
    kept = (state.at.objective - trial.objective) / np.maximum(promise, 1e-300)
    better = kept > 0
    factor = np.where(kept > 0.75, 0.1, np.where(kept > 0.25, 0.5, np.where(better, 2.0, 6.0)))
    damping = np.maximum(state.damping * factor, 1e-7)
    if better.all():
        return _State(trial_phi, trial, damping)
    pick = better[:, None]
    chosen = Evaluation(
        np.where(better, trial.objective, state.at.objective),
        np.where(pick, trial.gradient, state.at.gradient),
        np.where(pick[:, :, None], trial.newton, state.at.newton),
        np.where(pick[:, :, None], trial.majorant, state.at.majorant),
    )
    return _State(np.where(pick, trial_phi, state.phi), chosen, damping)


def _keep(state: _State, rows: np.ndarray) -> _State:
    return _State(state.phi[rows], Evaluation(*(part[rows] for part in state.at)), state.damping[rows])
