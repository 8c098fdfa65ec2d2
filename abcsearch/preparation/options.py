"""The options of preparations, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from abcsearch.errors import ConfigError, unknown_name
from abcsearch.records import problems, setting
from abcsearch.training.recipe import Recipe, check_shared, find_preset


@dataclass(frozen=True, kw_only=True)
class TrainedOptions:
    """Options of all preparations that train.

    Attributes:
        workers: processes of Ray Train that train together, each on its part of every batch, on the cluster of
            execution.ray_address if there is one. Batch norms see their process's part, so it decides results.
    """

    called: ClassVar[str]  # the name of the preparation, for messages
    usual: ClassVar[Recipe] = Recipe(lr=0.02)  # that changes are made to where none is named
    averaged: ClassVar[str] = ""  # why a moving average of the weights does not do
    LATER: ClassVar[tuple[str, ...]] = ("workers",)  # options that the first runs have not recorded

    workers: int = setting(1, at_least=1, at_most=1024)
    if TYPE_CHECKING:  # the last field of every subclass
        recipe: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: if one is of another type or out of range, or the recipe is none.
        """
        wrong = problems(self)
        if not isinstance(self.recipe, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            wrong.append(f"recipe is a table, found {self.recipe!r:.80}")
        if wrong:
            msg = f"{self.called}: {'; '.join(wrong)}"
            raise ConfigError(msg)
        if self.training.ema and self.averaged:
            msg = f"{self.called}: ema = {self.training.ema} averages {self.averaged}; set it to 0"
            raise ConfigError(msg)
        try:
            check_shared(self.training.batch_size, self.workers)
        except ConfigError as error:
            msg = f"{self.called}: {error}"
            raise ConfigError(msg) from error

    @property
    def training(self) -> Recipe:
        """The recipe of the training."""
        changes = dict(self.recipe)
        preset = changes.pop("preset", None)
        known = ["preset", *(f.name for f in fields(Recipe))]
        for name in changes:
            if name not in known:
                raise ConfigError(unknown_name(f"setting of {self.called}.recipe:", name, known))
        return replace(self.usual if preset is None else find_preset(str(preset)).recipe, **changes)

    @property
    def passes(self) -> int:
        """Forward passes that a training step takes, each of a whole batch, a teacher's among them; at most, over steps."""
        return 1 + self.training.taught


@dataclass(frozen=True, kw_only=True)
class SlimmingOptions(TrainedOptions):
    """Options of `Slimming`.

    Attributes:
        strength: lambda, of the penalty: strength * sum of |gamma|; > 0. The default is the published one (VGG; 1e-5
            for ResNet-164) for 125,000 steps. A gamma that no loss defends shrinks by the sum of lr * strength /
            (1 - momentum) over all steps, which the report says and which should exceed what gammas are: shorter
            trainings need more strength.
        step: how the penalty acts: "proximal", which reaches 0, or "subgradient", as published, which does not.
        start_gamma: what all penalised gammas begin with, > 0; published: 0.5, of a network that is trained from the
            beginning. None: what they are.
        recipe: of the training: a table as [finetune], preset and changes to it; by default 30 epochs of SGD at 0.02.

    Raises:
        ConfigError: if an option is of another type or out of range.
    """

    called: ClassVar[str] = "slimming"
    averaged: ClassVar[str] = "gammas that are 0 with what they were"

    strength: float = setting(1e-4, above=0)
    step: str = setting("proximal", words=("proximal", "subgradient"))
    start_gamma: float | None = setting(None, above=0)
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class SlimmableOptions(TrainedOptions):
    """Options of `Slimmable`.

    Attributes:
        networks: that every step trains, at least 2: the full one, the smallest of the space, and random ones of it.
        widths: how the random ones are drawn: "budget", every width by itself, then changed at random until the run's
            budget is met and spent; "free", every width by itself (AutoSlim); "uniform", one keep ratio for all widths
            (universally slimmable networks).
        full_share: of the loss that is the full network's, in (0, 1); the others have the rest in equal parts.
            Published: 1 / networks.
        distil: whether the others learn the outputs of the full network; if not, the labels.
        grow: share of the training, in [0, 1], in which the smallest network comes down from the largest of the space
            to the smallest one; random ones are never below it (once-for-all's progressive shrinking). 0: at once.
        recipe: of the training: a table as [finetune], preset and changes to it; by default 30 epochs of SGD at 0.02.

    Raises:
        ConfigError: if an option is of another type or out of range.
    """

    called: ClassVar[str] = "slimmable"

    networks: int = setting(4, at_least=2, at_most=64)
    widths: str = setting("budget", words=("budget", "free", "uniform"))
    full_share: float = setting(0.5, above=0, below=1)
    distil: bool = True
    grow: float = setting(0.0, at_least=0, at_most=1)
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def passes(self) -> int:
        """One of each network, and the teacher's, which the full one alone has."""
        return self.networks + self.training.taught


@dataclass(frozen=True, kw_only=True)
class PruningNetOptions(TrainedOptions):
    """Options of `PruningNet`.

    Attributes:
        form: what the generator makes: "residual", what is added to the trained weights, which takes `hidden` times
            their memory; "low_rank", factors per output and input of them, which take little; "published", weights
            alone, which begin as noise and take as much.
        hidden: units of the hidden layer of every weight, at least 1; published: 32, or 64 in MobileNetV2's blocks.
        widths: how structures are drawn, as of `SlimmableOptions`: "budget", "free" (published) or "uniform".
        recipe: of the training: a table as [finetune], preset and changes to it; by default 30 epochs of SGD at 0.02.

    Raises:
        ConfigError: if an option is of another type or out of range.
    """

    called: ClassVar[str] = "pruning_net"

    form: str = setting("residual", words=("residual", "low_rank", "published"))
    hidden: int = setting(32, at_least=1, at_most=4096)
    widths: str = setting("budget", words=("budget", "free", "uniform"))
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class GroupLassoOptions(TrainedOptions):
    """Options of `GroupLasso`.

    Attributes:
        strength: lambda, of the penalty: strength * sum over channels of usual * norm, where usual is the mean norm of
            the layer before; > 0. The norm of a channel that no loss defends shrinks by the sum of lr * strength /
            (1 - momentum) over all steps, in units of usual, which the report says and which should be about 1: shorter
            trainings need more strength.
        blocks: whether blocks are penalised likewise, where the space has them.
        recipe: of the training: a table as [finetune], preset and changes to it; by default 30 epochs of SGD at 0.02.

    Raises:
        ConfigError: if an option is of another type or out of range.
    """

    called: ClassVar[str] = "group_lasso"
    averaged: ClassVar[str] = "channels that are 0 with what they were"

    strength: float = setting(1e-4, above=0)
    blocks: bool = True
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class SoftPruningOptions(TrainedOptions):
    """Options of `SoftPruning`.

    Attributes:
        structure: that the network is trained towards: a value per dimension of the space, as a searcher's `initial`
            has them. None: the largest uniform one inside the budget.
        criterion: what channels are scored by after every epoch: one that looks at weights alone. On digits channels
            came back by "l2", as published, and by "reader_l2" none did.
        recipe: of the training: a table as [finetune], preset and changes to it; by default 30 epochs of SGD at 0.02.

    Raises:
        ConfigError: if an option is of another type or out of range.
    """

    called: ClassVar[str] = "soft_pruning"
    averaged: ClassVar[str] = "channels that are silent with what they were"

    structure: Sequence[int] | None = None
    criterion: str = setting("l2", words=("reader_l2", "l2", "l1", "fpgm"))
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        """Checks the values, and turns a list (TOML, JSON) into a tuple."""
        super().__post_init__()
        given: object = self.structure
        if given is None:
            return
        if not isinstance(given, list | tuple) or not all(type(value) is int for value in given):
            msg = f"soft_pruning: structure is a list of whole numbers, one per dimension, found {given!r:.80}"
            raise ConfigError(msg)
        object.__setattr__(self, "structure", tuple(given))


@dataclass(frozen=True, kw_only=True)
class VariationalOptions(TrainedOptions):
    """Options of `Variational`.

    Attributes:
        prior: spread of the prior, > 0. A mean that no loss defends shrinks by exp(-lr * strength / ((1 - momentum) *
            batch_size * prior^2)) per epoch: shorter trainings need a smaller one.
        strength: that the divergence is multiplied by, > 0; 1 is the bound of the likelihood of all images.
        recipe: of the training: a table as [finetune], preset and changes to it; by default 30 epochs of SGD at 0.02.

    Raises:
        ConfigError: if an option is of another type or out of range.
    """

    called: ClassVar[str] = "variational"

    prior: float = setting(0.1, above=0)
    strength: float = setting(1.0, above=0)
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class AutoPrunerOptions(TrainedOptions):
    """Options of `AutoPruner`.

    Attributes:
        weight: of the penalty on the expected cost, > 0.
        sharpest: sharpness of the gates when they are decided, > 1.
        decide: share of the training after which gates are 0 or 1, in (0, 1].
        gate_lr: highest learning rate of the gates' logits, > 0; the recipe's schedule lowers it.
        recipe: of the training: a table as [finetune], preset and changes to it; by default 30 epochs of SGD at 0.02.

    Raises:
        ConfigError: if an option is of another type or out of range.
    """

    called: ClassVar[str] = "autopruner"
    averaged: ClassVar[str] = "gates that are decided with what they were"

    weight: float = setting(10.0, above=0)
    sharpest: float = setting(100.0, above=1)
    decide: float = setting(0.6, above=0, at_most=1)
    gate_lr: float = setting(0.02, above=0)
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class TaylorIterativeOptions(TrainedOptions):
    """Options of `TaylorIterative`.

    Attributes:
        batches: steps from one pruning to the next, at least 1.
        at_once: channels that go at each, at least 1.
        memory: what the mean importance keeps of that before, in [0, 1).
        recipe: of the training: a table as [finetune], preset and changes to it; by default 30 epochs of SGD at 0.02.

    Raises:
        ConfigError: if an option is of another type or out of range.
    """

    called: ClassVar[str] = "taylor_iterative"
    averaged: ClassVar[str] = "channels that are silent with what they were"

    batches: int = setting(30, at_least=1)
    at_once: int = setting(100, at_least=1)
    memory: float = setting(0.9, at_least=0, below=1)
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class DMCPOptions(TrainedOptions):
    """Options of `DMCP`.

    Attributes:
        networks: that every step trains, as of `SlimmableOptions`; one more pass is the chains'.
        full_share: of the loss that is the full network's, likewise.
        split: share of the training images, in [0, 1), that chains learn on and weights do not; 0: both learn on all.
        chain_lr: highest learning rate of the chains.
        weight: of the distance of the expected cost from the budget, in logarithms.
        structures: how many the search begins with: the expected one, and the likeliest inside the budget.
        blocks: whether blocks have chains, too, where the space has them; published: they have none, and all stay.
        recipe: of the training: a table as [finetune], preset and changes to it; by default 30 epochs of SGD at 0.02.

    Raises:
        ConfigError: if an option is of another type or out of range.
    """

    called: ClassVar[str] = "dmcp"
    LATER: ClassVar[tuple[str, ...]] = ("workers", "blocks")

    networks: int = setting(4, at_least=2, at_most=64)
    full_share: float = setting(0.5, above=0, below=1)
    split: float = setting(0.5, at_least=0, below=1)
    chain_lr: float = setting(0.1, above=0)
    weight: float = setting(1.0, at_least=0)
    structures: int = setting(5, at_least=1, at_most=1000)
    blocks: bool = True
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def passes(self) -> int:
        """One of each network; from the middle of the training on, one more, on which the chains learn."""
        return self.networks + 1


@dataclass(frozen=True, kw_only=True)
class IterateOptions(TrainedOptions):
    """Options of `Iterate`.

    Attributes:
        rounds: how often channels go and what is left is trained, at least 1.
        epochs: of every round, in the place of the recipe's.
        searcher: who chooses the structure of a round: "threshold", one threshold on the scores of all channels; or a
            searcher, by name or as a table with its options, whose structures the run's evaluator scores.
        trials: structures that a searcher has evaluated in a round, besides those of its map.
        recipe: of the training of a round: a table as [finetune], preset and changes to it; by default 4 epochs of SGD
            at 0.02.

    Raises:
        ConfigError: if an option is of another type or out of range.
    """

    called: ClassVar[str] = "iterate"
    usual: ClassVar[Recipe] = Recipe(epochs=4, lr=0.02)

    rounds: int = setting(3, at_least=1, at_most=1000)
    epochs: int | None = setting(None, at_least=1)
    searcher: Mapping[str, Any] | str = "threshold"
    trials: int = setting(50, at_least=1)
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        """Checks the values."""
        super().__post_init__()
        given: object = self.searcher
        if not isinstance(given, str) and not (
            isinstance(given, Mapping) and isinstance(given.get("name"), str)
        ):
            msg = f'iterate: searcher is "threshold", a name, or a table with one, found {given!r:.80}'
            raise ConfigError(msg)
        if (
            self.epochs is not None
            and "epochs" in self.recipe
            and self.recipe["epochs"] != self.epochs
        ):
            msg = f"iterate: a round has epochs = {self.epochs} and recipe.epochs = {self.recipe['epochs']}: set one"
            raise ConfigError(msg)

    @property
    def training(self) -> Recipe:
        """The recipe of a round."""
        recipe = super().training
        return recipe if self.epochs is None else replace(recipe, epochs=self.epochs)

    @property
    def searching(self) -> tuple[str, dict[str, Any]]:
        """The searcher of a round and its options; "" for the threshold."""
        given = {"name": self.searcher} if isinstance(self.searcher, str) else dict(self.searcher)
        name = str(given.pop("name"))
        return ("" if name == "threshold" else name), given
