"""Observations of version 1 the slow way: everything is counted from nothing before every layer."""

import numpy as np

from autocompress_envs import Solver
from autocompress_envs.actions import DiscreteActions
from autocompress_envs.labeling.forecast import Forecast, labels_at
from autocompress_envs.labeling.observation import BOUND, LAYER_NAMES, OPTION_NAMES, SHOWN, _static_layers
from autocompress_envs.observation import progress
from autocompress_envs.problem import Labeling
from autocompress_envs.problem.tables import RESOURCES

QUANTILE = 0.1


class SlowEnv:
    """The observations of an environment, from the same solver, forecast and limits, without its ledger."""

    def __init__(self, env):
        self.solver = Solver(env.problem, env.limits)
        self.tables, self.reference = self.solver.tables, env.reference
        self.forecast = Forecast(self.tables, env._sketch, env.reference)
        self.actions, self.most = DiscreteActions(self.solver), env._most
        self.original, self.count = env.problem.original(), self.tables.layer_count
        self.is_limited = np.array([name in env.limits for name in RESOURCES])
        self.limits = np.array([env.limits.get(n, max(self.original.get(n, 1), 1)) for n in RESOURCES], dtype=float)
        self.names = [name for name in RESOURCES if name in env.limits]
        self.whole = max(self.forecast.value(), 1e-12)
        used = np.array([self.tables.resources(self.reference, self.names)[name] for name in self.names])
        self.weights = (used / self.limits[self.is_limited]) ** 3
        self.static_layers = _static_layers(self.solver, self.reference, self.forecast, self.whole)
        self.multiplier = self._multiplier()

    def reset(self):
        self.actions.start()
        self.forecast.start()
        self.step_count = 0
        return self.observe()

    def step(self, action):
        self.actions.apply(self.step_count, action)
        self.forecast.add(action)
        self.step_count += 1
        return self.observe()

    def action_masks(self):
        mask = np.zeros(self.most[1], dtype=bool)
        allowed = self.actions.allowed(self.step_count).ravel()
        mask[: allowed.size] = allowed
        return mask

    def observe(self):
        options = np.zeros((self.most[1], len(OPTION_NAMES)))
        base = np.zeros(self.most[1])
        if self.step_count < self.count:
            rows, scores = self._options()
            options[: len(rows)], base[: len(rows)] = rows, scores
        found = {"layers": self._layers(), "options": options, "context": self._context(), "base": base}
        return {name: np.clip(part, -BOUND, BOUND).astype(np.float32) for name, part in found.items()}

    def _costs(self, step, so_far):
        """(O, R) costs beside the reference's label, and (O,) the least room left, both in limit / L."""
        parts = []
        own = labels_at(self.tables, step)
        for before, rest, labels in zip(parts_of(so_far), parts_of(self.reference), own, strict=True):
            rows = np.repeat(np.concatenate([before[:step], rest[step:]])[None], len(labels), axis=0)
            rows[:, step] = labels
            parts.append(rows)
        amounts = self.tables.amounts(Labeling(*parts), self.names)
        shares = np.stack([amounts[name] for name in self.names], axis=1) / self.limits[self.is_limited]
        changes = np.zeros((len(shares), len(RESOURCES)))
        changes[:, self.is_limited] = self.count * (shares - shares[self.forecast.reference_options[step]])
        return changes, self.count * (1 - shares.max(1))

    def _options(self):
        step, count, forecast, tables = self.step_count, self.count, self.forecast, self.tables
        at, options = int(forecast.reference_options[step]), forecast.options[step]
        own = labels_at(tables, step)
        menus = (
            tables.sparsities[step],
            np.log2(tables.weight_bits[step]) / 5,
            np.log2(tables.activation_bits[step]) / 5,
        )
        labels = [menu[index] for menu, index in zip(menus, own, strict=True)]
        labels.append(tables.ranks[step][own[1]] / max(min(int(w[step]) for w in self._widths()), 1))
        places = [index / max(length - 1, 1) for index, length in zip(own, tables.counts[step], strict=True)]
        alone = options.expected, options.pruning, options.rounding, 0.5 * (options.effects**2).sum(1)
        alone = [np.log10(np.maximum(loss, 1e-12) / self.whole) / 6 for loss in alone]
        changes, slack = self._costs(step, self.actions.so_far())
        losses = np.stack([forecast.first_order(), options.pruning, options.rounding, forecast.values()])
        losses = (losses - losses[:, at, None]) * count / self.whole
        price = self.multiplier * (changes[:, self.is_limited] @ self.weights)
        lagrangian = losses[3] + price
        allowed = self.actions.allowed(step).ravel()
        columns = [
            *labels, *places, *np.arcsinh(changes.T)[: len(SHOWN)], np.arcsinh(slack), *alone,
            cosines(options.effects - options.effects[at], forecast.others), cosines(options.effects, forecast.prefix),
            *np.arcsinh(losses), np.arcsinh(price), np.arcsinh(lagrangian),
            *(np.arange(len(price)) == number for number in (
                at, np.where(allowed, lagrangian, np.inf).argmin(), np.where(allowed, changes.sum(1), np.inf).argmin(),
            )),
        ]  # fmt: skip
        return np.stack(columns, axis=1), -lagrangian

    def _layers(self):
        step, so_far, tables = self.step_count, self.actions.so_far(), self.tables
        layers, rows = np.zeros((self.most[0], len(LAYER_NAMES))), np.arange(self.step_count)
        layers[: self.count] = self.static_layers
        layers[:step, LAYER_NAMES.index("is_labelled")] = 1
        layers[step : min(step + 1, self.count), LAYER_NAMES.index("is_next")] = 1
        layers[:step, -3] = tables.sparsities[rows, so_far.sparsity[:step]]
        layers[:step, -2] = np.log2(tables.weight_bits[rows, so_far.weight_bits[:step]]) / 5
        layers[:step, -1] = np.log2(tables.activation_bits[rows, so_far.activation_bits[:step]]) / 5
        return layers

    def _context(self):
        step, names, is_limited = self.step_count, tuple(RESOURCES), self.is_limited
        spent, least = progress(self.tables, self.actions.so_far(), step, names)
        before, _ = progress(self.tables, self.reference, step, names)
        budget = self.limits / np.maximum([self.original.get(name, 1) for name in RESOURCES], 1)
        drift = np.arcsinh(self.count * (spent - before) / self.limits)
        last = np.log10(self.whole) / 6, np.arcsinh((self.forecast.value() - self.whole) / self.whole)
        of_resources = (
            is_limited, np.where(is_limited, budget, 1), spent / self.limits, (least - spent) / self.limits,
            np.where(is_limited, drift, 0),
        )  # fmt: skip
        return np.concatenate([
            *(each[: len(SHOWN)] for each in of_resources), last,
            [np.log2(self.count) / 16, self.forecast.prefix.size > 0],
        ])  # fmt: skip

    def _multiplier(self):
        gains, losses = [], []
        for step in range(self.count):
            at = int(self.forecast.reference_options[step])
            cost = self._costs(step, self.reference)[0][:, self.is_limited] @ self.weights
            loss = self.forecast.values() * self.count / self.whole
            loss = loss - loss[at]
            self.forecast.add(at)
            gains.append((-loss / np.maximum(cost, 1e-9))[(cost > 1e-6) & (loss < 0)])
            losses.append((loss / np.maximum(-cost, 1e-9))[(cost < -1e-6) & (loss > 0)])
        best, least = np.concatenate(gains), np.concatenate(losses)
        bounds = [np.quantile(best, 1 - QUANTILE)] if len(best) else []
        bounds += [np.quantile(least, QUANTILE)] if len(least) else []
        return float(np.exp(np.mean(np.log(np.clip(bounds, 1e-6, 1e6))))) if bounds else 1.0

    def _widths(self):
        costs = self.tables.problem.costs
        return costs.widths(costs.group_width)


def parts_of(labeling):
    return labeling.sparsity, labeling.weight_bits, labeling.activation_bits


def cosines(rows, vector):
    lengths = np.sqrt((rows**2).sum(1) * (vector @ vector))
    return np.divide(rows @ vector, lengths, out=np.zeros(len(rows)), where=lengths > 1e-15)
