"""Deep deterministic policy gradient: an agent that prunes layer after layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

from abcsearch.errors import SearcherError
from abcsearch.searchers.base import Searcher
from abcsearch.searchers.ddpg_environment import Environment, Transitions
from abcsearch.searchers.ddpg_options import DDPGOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from abcsearch.space import Candidate
    from abcsearch.trial import Trial

_MOST = 1e6  # reward, either way


@final
class DDPG(Searcher):
    """An agent sets one dimension after another and learns from the reward at the end which actions pay.

    An episode is a structure. At every dimension, in the order of the space, the actor sees the state (its features:
    `ddpg_environment.Environment`) and answers with a keep ratio; truncated normal noise is added, and the result
    clipped to what still leads into the budget and rounded to a choice; a block is kept from 0.5 on. During the first
    `warmup` episodes choices are drawn uniformly within the same bounds. The reward of the structure goes to all its
    transitions. The critic learns r - baseline + discount * Q'(s', actor'(s')), the actor climbs the critic; the
    baseline is the moving average of rewards.

    Source: He et al., AMC: AutoML for Model Compression and Acceleration on Mobile Devices (ECCV 2018); Lillicrap et
    al., Continuous control with deep reinforcement learning (ICLR 2016).

    Differences from the paper:
        - Actions are bounded from below as well, so that an episode spends at least `fill` of an upper bound, or
          reaches the lower end of a band: a random policy under a bound of 0.5 averages 0.30. Most end just there, so
          at 0.8 a fifth of the budget was left. `fill=0` is the paper's.
        - Costs are exact, with the coupling of layers; the paper takes what earlier layers remove for granted.
        - The critic is asked only about actions within the bounds, and the actor not pushed beyond them. In the paper
          the clipped action is replayed, but the critic's slope is taken at the one that was not clipped, of which
          nothing is known: the actor can end at 0 or 1 everywhere.
        - Actions are choices of the space, the nearest ones; residual streams and whole blocks are actions as well.
        - The state tells widths from blocks, and the costs in it are shares of the unpruned network's.
        - Several episodes are rolled out with the same actor, and learning follows when all of them are evaluated.
          Warm-up and noise go by the episodes learned from, also where further ones are asked for ahead.
        - No structure is evaluated twice. An episode that ends in a known one, as most do once the noise has decayed,
          is taken on by random single steps until it is new; so the search goes on around the policy's structure;
          what it finds there may spend a little less than `fill`.
        - What is learnt is the structure that was evaluated, also where it was repaired, or given as a warm start.
        - The paper replays 2,000 transitions; the published code 100 per layer, which is `replay`: at 49 dimensions
          2,000 would be 41 episodes, fewer than the warm-up.
        - The published code makes one update per transition; here an episode is followed by at most
          `updates_per_episode` of them, so that deep networks do not wait for the agent.
        - Rewards beyond a million either way count as a million: the networks are single precision.
        - A failed evaluation gets the lowest reward so far; before the first success it teaches nothing.
    """

    name: ClassVar[str] = "ddpg"
    Options: ClassVar[type] = DDPGOptions
    options: DDPGOptions
    overlaps: ClassVar[bool] = True

    def _begin(self) -> None:
        # Imported here, so that reading a config file does not load torch.
        from abcsearch.searchers.ddpg_agent import Agent

        if self.options.reward != "accuracy" and self.constraint.costs is None:
            msg = (
                f'ddpg: reward "{self.options.reward}" needs costs, and there are none without a budget; pass '
                f"Constraint(space, costs=graph.costs)"
            )
            raise SearcherError(msg)
        self._environment = Environment(self.constraint, self.options.fill)
        n_features, n_dims = self._environment.n_features, len(self.space)
        self._agent = Agent(n_features, self.options, self.seed)
        self._episodes = 0  # told
        self._baseline: float | None = None
        self._lowest = math.inf  # reward
        # The replay, oldest episode first.
        self._states = np.zeros((0, n_dims, n_features), dtype=np.float32)
        self._actions = np.zeros((0, n_dims, 3), dtype=np.float32)  # taken, lowest, highest
        self._rewards = np.zeros(0, dtype=np.float32)

    def _propose(self) -> list[Candidate]:
        """Returns the structures that a batch of episodes ends with."""
        batch: list[Candidate] = []
        for row in self._roll_out(self.options.episodes_per_batch):
            variants = self._variants(row)
            candidate = self._fresh(lambda variants=variants: next(variants))
            if candidate is None:
                break
            batch.append(candidate)
        return batch

    def _roll_out(self, n: int) -> NDArray[np.int64]:
        """Returns the values that n episodes end with, (n, n_dims) int64."""
        after_warmup = self._episodes + np.arange(n) - self.options.warmup
        sigma = self.options.sigma * self.options.sigma_decay ** np.maximum(after_warmup, 0).astype(
            np.float64
        )
        rows = np.tile(self.space.values(self.space.last_indices), (n, 1))
        for i, dimension in enumerate(self.space.dimensions):
            lowest, highest = self._environment.bounds(rows, i)
            taken = self.rng.integers(lowest, highest + 1)
            if after_warmup[-1] >= 0:
                means = self._agent.act(self._environment.states(rows, i))
                wanted = self._environment.positions(truncated_normal(means, sigma, self.rng), i)
                wanted = np.clip(wanted, lowest, highest)
                taken = np.where(after_warmup >= 0, wanted, taken)
            rows[:, i] = np.array(dimension.choices)[taken]
        return rows

    def _variants(self, row: NDArray[np.int64]) -> Iterator[Candidate]:
        """Yields a structure, then what random single steps make of it, one more each time."""
        here = self.space.indices(row.tolist())
        while True:
            yield self.space.at(here)
            i = int(self.rng.integers(len(self.space)))
            here[i] = np.clip(
                here[i] + (1 if self.rng.random() < 0.5 else -1), 0, self.space.last_indices[i]
            )

    def _learn(self, batch: list[Trial]) -> None:
        """Remembers the episodes, then updates the networks."""
        learning = max(0, min(len(batch), self._episodes + len(batch) - self.options.warmup))
        self._episodes += len(batch)
        raw = [self._reward(trial) for trial in batch]
        rewards = [None if reward is None else min(max(reward, -_MOST), _MOST) for reward in raw]
        self._lowest = min(self._lowest, *(r for r in rewards if r is not None), math.inf)
        if math.isinf(self._lowest):
            return
        known = np.array([self._lowest if r is None else r for r in rewards])
        for reward in known.tolist():
            old = reward if self._baseline is None else self._baseline
            self._baseline = (
                self.options.baseline_decay * old + (1 - self.options.baseline_decay) * reward
            )
        rows = self._rows([trial.candidate for trial in batch])
        states, actions = self._environment.episodes(rows)
        keep = slice(-self.options.replay, None)
        self._states = np.concatenate([self._states, states])[keep]
        self._actions = np.concatenate([self._actions, actions])[keep]
        self._rewards = np.concatenate([self._rewards, known.astype(np.float32)])[keep]
        for _ in range(learning):
            self._update(min(self.options.updates_per_episode, len(self.space)))

    def _reward(self, trial: Trial) -> float | None:
        """Returns the reward of an episode, None for a failed one."""
        if trial.evaluation.fitness is None:
            return None
        if self.options.reward == "accuracy" or self.constraint.costs is None:
            return trial.fitness
        cost = (
            self.constraint.costs.flops
            if self.options.reward == "flops"
            else self.constraint.costs.params
        )
        return -(1 - trial.fitness) * math.log(max(int(cost([trial.candidate])[0]), 1))

    def _update(self, n_updates: int) -> None:
        """Updates the networks on transitions drawn from the replay."""
        if not n_updates:
            return
        n, n_dims, _ = self._states.shape
        episode, i = divmod(
            self.rng.integers(n * n_dims, size=(n_updates, self.options.batch_size)), n_dims
        )
        following = np.minimum(i + 1, n_dims - 1)
        self._agent.learn(
            Transitions(
                self._states[episode, i],
                *np.split(self._actions[episode, i], 3, axis=2),
                rewards=(self._rewards[episode] - (self._baseline or 0.0))[..., None],
                discounts=np.where(i < n_dims - 1, self.options.discount, 0.0)[..., None],
                next_states=self._states[episode, following],
                next_low=self._actions[episode, following, 1:2],
                next_high=self._actions[episode, following, 2:],
            )
        )

    def _state(self) -> dict[str, Any]:
        return {
            "episodes": self._episodes,
            "baseline": self._baseline,
            "lowest": None if math.isinf(self._lowest) else self._lowest,
            "states": self._states,
            "actions": self._actions,
            "rewards": self._rewards,
            "agent": self._agent.state(),
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        self._agent.load_state(state["agent"])
        self._episodes = int(state["episodes"])
        self._baseline = None if state["baseline"] is None else float(state["baseline"])
        self._lowest = math.inf if state["lowest"] is None else float(state["lowest"])
        self._states = state["states"].reshape(-1, len(self.space), self._environment.n_features)
        self._actions = state["actions"].reshape(-1, len(self.space), 3)
        self._rewards = state["rewards"].reshape(-1)


def truncated_normal(
    mean: NDArray[np.float64], sigma: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Returns draws from normal distributions truncated to [0, 1], of mean in [0, 1] and sigma up to 1: (n,) each."""
    drawn = rng.normal(mean, sigma)
    while (outside := (drawn < 0) | (drawn > 1)).any():  # a third are inside at least
        drawn[outside] = rng.normal(mean[outside], sigma[outside])
    return drawn
