"""Options of deep deterministic policy gradient."""

from __future__ import annotations

from dataclasses import dataclass

from abcsearch.errors import SearcherError
from abcsearch.records import check, setting
from abcsearch.searchers.base import MOST_MODELLED

_REWARDS = ("accuracy", "flops", "params")


@dataclass(frozen=True, kw_only=True)
class DDPGOptions:
    """Options of `DDPG`; the defaults are AMC's where it has the option, but for `warmup`.

    Attributes:
        reward: of an episode: "accuracy" is the fitness, for searches under a budget; "flops" and "params" are
            -error * log(flops) and -error * log(params), error = 1 - fitness, for those without one: then the fitness
            must be an accuracy in [0, 1]. A run needs a budget; `budget.macs = 1.0` excludes nothing.
        warmup: episodes of random actions before learning begins, up to 1,000,000. AMC takes 100 of its 400; of 200
            that would be half.
        sigma: standard deviation of the noise on actions after them, in keep ratios, 0 to 1.
        sigma_decay: factor on sigma per episode, 0 to 1.
        replay: episodes that are remembered, each with a transition per dimension, 1 to 1,000,000.
        batch_size: transitions per update, 1 to 10,000.
        discount: factor on the value of the next state, 0 to 1.
        tau: share by which target networks follow per update, 0 to 1.
        hidden: width of both hidden layers of actor and critic, 1 to 10,000.
        actor_lr: learning rate of the actor, 0 to 1.
        critic_lr: learning rate of the critic, 0 to 1.
        baseline_decay: share of the old baseline in the new one, per episode, 0 to 1.
        fill: share of an upper bound that episodes spend at least, 0 to 1; 0 allows any small structure, as AMC does.
        episodes_per_batch: episodes that are proposed together, 1 to 1,000: that many workers are kept busy.
        updates_per_episode: updates of the networks per episode; at most one per dimension is made.

    Raises:
        SearcherError: if an option is out of range, or the reward unknown.
    """

    reward: str = setting("accuracy", words=_REWARDS)
    warmup: int = setting(40, at_least=0, at_most=1_000_000)
    sigma: float = setting(0.5, at_least=0, at_most=1)
    sigma_decay: float = setting(0.95, at_least=0, at_most=1)
    replay: int = setting(100, at_least=1, at_most=1_000_000)
    batch_size: int = setting(64, at_least=1, at_most=10_000)
    discount: float = setting(1.0, at_least=0, at_most=1)
    tau: float = setting(0.01, at_least=0, at_most=1)
    hidden: int = setting(300, at_least=1, at_most=10_000)
    actor_lr: float = setting(1e-4, at_least=0, at_most=1)
    critic_lr: float = setting(1e-3, at_least=0, at_most=1)
    baseline_decay: float = setting(0.95, at_least=0, at_most=1)
    fill: float = setting(0.95, at_least=0, at_most=1)
    episodes_per_batch: int = setting(8, at_least=1, at_most=MOST_MODELLED)
    updates_per_episode: int = setting(8, at_least=0)

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check(self, "ddpg", SearcherError)
