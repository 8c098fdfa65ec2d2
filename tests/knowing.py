"""A searcher of a user's own that wants to know something before it begins, and whose proposals depend on it."""

from abcsearch.searchers.base import Searcher


class Mapped(Searcher):
    """Keeps the dimension whole that the map says matters most; else draws."""

    name = "mapped"

    def probes(self):
        """The full network, and each dimension at its narrowest."""
        full = [d.choices[-1] for d in self.space.dimensions]
        cut = [
            [*full[:i], d.choices[0], *full[i + 1 :]] for i, d in enumerate(self.space.dimensions)
        ]
        return [tuple(one) for one in (full, *cut, full)]

    def _propose(self):
        effects = {trial.candidate: trial.fitness for trial in self.knowledge}
        worst = min(
            effects, key=lambda candidate: (effects[candidate], candidate), default=self.space.full
        )
        choices = [d.choices for d in self.space.dimensions]
        places = [i for i, own in enumerate(choices) if worst[i] == own[0]] or [0]
        return [
            one
            for one in (self._fresh(lambda: self._kept_whole(places)) for _ in range(4))
            if one is not None
        ]

    def _kept_whole(self, places):
        drawn = list(self.space.sample(self.rng))
        for place in places:
            drawn[place] = self.space.dimensions[place].choices[-1]
        return tuple(drawn)

    def _learn(self, batch):
        pass


class Strange(Mapped):
    """Wants to know of structures that there are not."""

    name = "strange"

    def probes(self):
        return [(1, 2, 3)]
