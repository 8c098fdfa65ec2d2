# pyright: basic
# torch's types are partial.
"""Actor and critic of deep deterministic policy gradient."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from abcsearch.rng import torch_stream
from abcsearch.searchers.ddpg_environment import Transitions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from abcsearch.searchers.ddpg_options import DDPGOptions

_LAST = 3e-3  # range of the last layer's first weights (Lillicrap 2015, section 7): the first actions are near 0.5

_NOTHING = 1e-25  # of a moment, next to Adam's epsilon of 1e-8


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Runs a block with gradients and one torch thread, whatever the caller has set, and puts the threads back.

    Sums over several threads may differ in the last bit, and networks this small gain nothing from them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(mode=False), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)


class _Network:
    """Two hidden layers with ReLU and one output, its slowly following target, and Adam.

    All weights lie in one array, and so do their targets and moments: at this size, what a step costs is the number of
    its operations.

    Attributes:
        weights: weight and bias of every layer.
        target: likewise.
        steps: of Adam.
        arrays: "weights", "target", and the "mean" and "square" of gradients, (n_weights,) float32 each.
    """

    def __init__(
        self, n_inputs: int, hidden: int, learning_rate: float, generator: torch.Generator
    ) -> None:
        self._learning_rate = learning_rate
        self.steps = 0
        drawn: list[torch.Tensor] = []
        for n_in, n_out in ((n_inputs, hidden), (hidden, hidden), (hidden, 1)):
            limit = n_in**-0.5 if len(drawn) < 4 else _LAST
            for shape in ((n_out, n_in), (n_out,)):
                uniform = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
                drawn.append((2 * uniform - 1) * limit)
        flat = torch.cat([tensor.flatten() for tensor in drawn])
        self.arrays = {
            "weights": flat,
            "target": flat.clone(),
            "mean": torch.zeros_like(flat),
            "square": torch.zeros_like(flat),
        }
        self.weights, self.target = (
            [
                piece.view(like.shape)
                for piece, like in zip(whole.split([d.numel() for d in drawn]), drawn, strict=True)
            ]
            for whole in (flat, self.arrays["target"])
        )
        for weight in self.weights:
            weight.requires_grad_()

    def step(self, loss: torch.Tensor) -> None:
        """Takes one step of Adam against the gradient of a loss (Kingma and Ba 2015, the defaults there)."""
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, self.weights)])
        mean, square = self.arrays["mean"], self.arrays["square"]
        self.steps += 1
        mean.lerp_(gradient, 1 - 0.9)
        square.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
        spread = square.div(1 - 0.999**self.steps).sqrt_().add_(1e-8)
        self.arrays["weights"].addcdiv_(
            mean, spread, value=-self._learning_rate / (1 - 0.9**self.steps)
        )

    def follow(self, tau: float) -> None:
        """Moves the target by a share tau towards the weights."""
        self.arrays["target"].lerp_(self.arrays["weights"], tau)

    def tidy(self) -> None:
        """Sets moments to zero that are too small to matter.

        Those of units that no longer respond decay to denormal numbers, with which a step takes many times as long.
        """
        for key in ("mean", "square"):
            self.arrays[key][self.arrays[key].abs() < _NOTHING] = 0

    def state(self) -> dict[str, Any]:
        """Returns all numbers."""
        return {
            "steps": self.steps,
            **{key: array.numpy().copy() for key, array in self.arrays.items()},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Sets all numbers; raises ValueError for arrays of another shape."""
        for key, array in self.arrays.items():
            given = np.array(state[key], dtype=np.float32)
            if given.shape != tuple(array.shape):
                msg = f"expected an array of shape {tuple(array.shape)}, found {given.shape}"
                raise ValueError(msg)
            array.copy_(torch.from_numpy(given))
        self.steps = int(state["steps"])


def _run(weights: Sequence[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """Returns the outputs of a network: (n, n_inputs) to (n, 1)."""
    for weight, bias in zip(weights[0:4:2], weights[1:4:2], strict=True):
        inputs = F.relu(F.linear(inputs, weight, bias))
    return F.linear(inputs, weights[4], weights[5])


class Agent:
    """An actor that maps states to actions and a critic that tells what they are worth."""

    def __init__(self, n_features: int, options: DDPGOptions, seed: int) -> None:
        """Draws the first weights; torch's global generator is not touched.

        Args:
            n_features: length of a state.
            options: learning rates, discount, tau and the size of the networks.
            seed: the run's seed.
        """
        self.options = options
        generator = torch_stream(seed, "ddpg")
        with _undisturbed():
            self.actor = _Network(n_features, options.hidden, options.actor_lr, generator)
            self.critic = _Network(n_features + 1, options.hidden, options.critic_lr, generator)

    def act(self, states: NDArray[np.float32]) -> NDArray[np.float64]:
        """Returns the actions that seem best: (n, n_features) float32 to (n,) float64 in [0, 1]."""
        with _undisturbed(), torch.no_grad():
            return (
                self._policy(self.actor.weights, torch.from_numpy(states))[:, 0]
                .numpy()
                .astype(np.float64)
            )

    def learn(self, batches: Transitions) -> None:
        """Takes one update after another, as many as there are batches: every array is (n_updates, batch, ...)."""
        with _undisturbed():
            tensors = [torch.from_numpy(np.asarray(field, dtype=np.float32)) for field in batches]
            for batch in zip(*tensors, strict=True):
                self._update(Transitions(*batch))
            for network in (self.actor, self.critic):
                network.tidy()

    def _update(self, batch: Transitions) -> None:
        """Takes one step of the critic towards its targets, and one of the actor up the critic's slope.

        The critic is only asked about actions that can be taken, and the actor not pushed beyond them: nothing that was
        seen says what an action out of bounds is worth, and the slope there drives the actor into saturation.
        """
        with torch.no_grad():
            best = self._policy(self.actor.target, batch.next_states).clamp(
                batch.next_low, batch.next_high
            )
            following = self._value(self.critic.target, batch.next_states, best)
            wanted = batch.rewards + batch.discounts * following
        self.critic.step(
            F.mse_loss(self._value(self.critic.weights, batch.states, batch.actions), wanted)
        )
        actions = self._policy(self.actor.weights, batch.states)
        possible = actions.detach().clamp(batch.low, batch.high).requires_grad_()
        (slope,) = torch.autograd.grad(
            self._value(self.critic.weights, batch.states, possible).mean(), possible
        )
        outward = ((actions >= batch.high) & (slope > 0)) | ((actions <= batch.low) & (slope < 0))
        self.actor.step(-(actions * slope.masked_fill(outward, 0)).sum())
        for network in (self.actor, self.critic):
            network.follow(self.options.tau)

    def _policy(self, weights: Sequence[torch.Tensor], states: torch.Tensor) -> torch.Tensor:
        """Returns actions: (n, n_features) to (n, 1) in [0, 1]."""
        return torch.sigmoid(_run(weights, states))

    def _value(
        self, weights: Sequence[torch.Tensor], states: torch.Tensor, actions: torch.Tensor
    ) -> torch.Tensor:
        """Returns what actions are worth: (n, n_features) and (n, 1) to (n, 1)."""
        return _run(weights, torch.cat([states, actions], dim=1))

    def state(self) -> dict[str, Any]:
        """Returns all numbers of both networks."""
        return {"actor": self.actor.state(), "critic": self.critic.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned; raises KeyError, TypeError or ValueError where that is damaged."""
        self.actor.load_state(state["actor"])
        self.critic.load_state(state["critic"])
