"""What `peers.py` compares: each returns a row with what its search took, and what its network is worth."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from abcsearch import (
    AdaptiveBN,
    AdaptiveBNOptions,
    Budget,
    Data,
    Sliced,
    finetune,
    make_searcher,
    rank_channels,
    score,
    search,
    trace_channels,
)
from abcsearch.rng import torch_stream
from experiments.benchmarks.criteria import Bench, Loaded, loaded, marked
from experiments.benchmarks.kept import PACKAGES, stamped

if TYPE_CHECKING:
    from collections.abc import Callable

    from experiments.benchmarks.kept import Row

KEY = ("name", "method", "evaluations", "macs", "seed")  # what a row is of
DEFAULT = "response_surface+repair"  # what a run does that asks for nothing
# Images that fitness is measured on, and that statistics are estimated on
VALIDATION, CALIBRATION = (1000, 512)
STEPS = 400  # of Torch-Pruning's own examples, towards no channels
LEAST = 0.1  # of its channels every layer keeps, as in ours
_PACKAGES = {"fastnas": "nvidia-modelopt", "torch_pruning": "torch-pruning"}


def packages(method: str) -> tuple[str, ...]:
    """Returns the packages whose versions the rows of a method depend on."""
    peer = _PACKAGES.get(method.partition("-")[0])
    return (*PACKAGES, *([peer] if peer else []))


def measured(bench: Bench, row: Row) -> Row:
    """Returns the row of a method; of a peer that is not installed or fails, why, under "skipped"."""
    torch.set_num_threads(1)
    used = packages(row["method"])
    peer = PEERS.get(row["method"].partition("-")[0])
    if peer is None:
        return stamped(_ours(bench, row), used)
    try:
        return stamped(peer(bench, row), used)
    except Exception as error:  # noqa: BLE001 - theirs may raise anything, and the rest goes on
        return {**row, "skipped": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def _fastnas(bench: Bench, row: Row) -> Row:
    """Returns the row of ModelOpt's FastNAS.

    As `fastnas` it has the widths of our space, as `fastnas-default` multiples of its own default, 32 channels.
    """
    import modelopt.torch.prune as mtp  # pyright: ignore[reportMissingImports]

    it = loaded(bench)
    data = replace(it.data, seed=row["seed"])
    validation = _drawn(data, "validation", VALIDATION)
    calibration = _drawn(data, "train", CALIBRATION)
    scores = [0]

    def top1(network: nn.Module) -> float:
        scores[0] += 1
        with torch.inference_mode():
            outputs = torch.cat([network(images) for images in validation.images.split(250)])
        return float((outputs.argmax(1) == validation.labels).float().mean())

    ratios = tuple(round(LEAST * tenth, 1) for tenth in range(1, 11))
    features = {"*": {"features_ratio": ratios, "feature_divisor": 1}}
    rules = {
        "nn.Conv2d": {"*": {"channels_ratio": ratios, "kernel_size": (), "channel_divisor": 1}},
        "nn.Linear": features,
        "nn.BatchNorm2d": features,
    }
    mode = "fastnas" if row["method"] == "fastnas-default" else [("fastnas", rules)]
    folder = bench.runs / marked(bench, row, packages(row["method"]))
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / f"{row['method']}-{row['seed']}.pt"
    start = time.process_time()
    network, _ = mtp.prune(
        copy.deepcopy(it.model),
        mode=mode,
        constraints={"flops": f"{100 * row['macs']}%"},
        dummy_input=it.data.example,
        config={
            "data_loader": list(calibration.images.split(128)),
            "collect_func": lambda images: images,
            "score_func": top1,
            "checkpoint": str(kept),
            "verbose": False,
        },
    )
    spent = {"scored": scores[0], "seconds": time.process_time() - start}
    # Its map serves all budgets: what it took belongs to each of them.
    known = kept.with_suffix(".json")
    whole = json.loads(known.read_text()) if known.exists() else spent
    known.write_text(json.dumps(whole))
    return {**row, **whole, **_worth(bench, it, network, row["seed"])}


def _torch_pruning(bench: Bench, row: Row) -> Row:
    """Returns the row of Torch-Pruning: "torch_pruning-SCOPE-CRITERION".

    SCOPE is "uniform", all layers by one ratio, or "global", one threshold for all; CRITERION is "l1" or "l2", of the
    first layer of a group, or "group", the l2 norm over all of its layers; scores are divided by their mean in each
    group, its default. It prunes in small steps, as its examples do, until the budget is met.
    """
    import torch_pruning as tp  # pyright: ignore[reportMissingImports]

    _, scope, criterion = row["method"].split("-")
    norm = {"l1": 1, "l2": 2, "group": 2}[criterion]
    reduction = "mean" if criterion == "group" else "first"
    it = loaded(bench)
    network, example = copy.deepcopy(it.model), it.data.example
    start = time.process_time()
    pruner = tp.pruner.BasePruner(
        network,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=norm, group_reduction=reduction),
        global_pruning={"uniform": False, "global": True}[scope],
        pruning_ratio=1.0,
        max_pruning_ratio=1 - LEAST,
        iterative_steps=STEPS,
        ignored_layers=[_last_linear(network)],
    )
    most = row["macs"] * _macs(network, example)
    for _ in range(STEPS):
        if _macs(network, example) <= most:
            break
        pruner.step()
    else:
        msg = f"its narrowest network is above {row['macs']:.0%} of the MACs"
        raise ValueError(msg)
    seconds = time.process_time() - start
    return {**row, "scored": 0, "seconds": seconds, **_worth(bench, it, network, row["seed"])}


def _macs(network: nn.Module, example: torch.Tensor) -> int:
    """Returns the MACs of convolutions and linear layers, as our costs count them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(example)
    return counter.get_total_flops() // 2


def _last_linear(network: nn.Module) -> nn.Module:
    """Returns the layer that makes the classes, whose outputs have to stay."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def _ours(bench: Bench, row: Row) -> Row:
    """Returns the row of a searcher of ours; with "+repair", what reads channels is solved anew."""
    it = loaded(bench)
    searcher, _, repaired = row["method"].partition("+")
    options = bench.config.space
    space = it.graph.space(
        options.alpha, options.step, options.levels, options.divisor, options.lowest
    )
    probes = len(make_searcher(searcher, space).probes())
    start = time.process_time()
    result = search(
        it.model,
        replace(it.data, seed=row["seed"]),
        budget=Budget(macs=row["macs"]),
        n_trials=row["evaluations"] - probes,
        searcher=searcher,
        evaluator={
            "name": "adaptive_bn",
            "repair": "one_shot" if repaired else "none",
            "finalists": 0,
            "validation_images": VALIDATION,
            "calibration_images": CALIBRATION,
        },
        criterion="reader_l2",
        space=bench.config.space,
        seed=row["seed"],
        run_dir=bench.runs
        / marked(bench, row, packages(row["method"]))
        / "-".join(str(row[key]) for key in KEY),
    )
    seconds = time.process_time() - start
    return {
        **row,
        "scored": probes + len(result.trials),
        "seconds": seconds,
        **_worth(bench, it, result.model(), row["seed"]),
    }


def _drawn(data: Data, split: str, count: int) -> Any:  # noqa: ANN401 - a Split
    """Returns the images of a split that our evaluators draw by the data's seed."""
    images = getattr(data, split)
    stream = {"validation": "validation images", "train": "calibration"}[split]
    order = torch.randperm(len(images), generator=torch_stream(data.seed, stream))
    return images.part(order[:count].sort().values).loaded()


def _worth(bench: Bench, it: Loaded, network: nn.Module, seed: int) -> Row:
    """Returns accuracy before and after training, and cost, of what a method leaves, its statistics estimated alike."""
    graph = trace_channels(network, it.data.example)
    space = graph.space(1.0)
    source = Sliced(network, graph, rank_channels(network, graph, "l1"))
    network = AdaptiveBN(source, it.data, AdaptiveBNOptions(repair="none")).build(space.full)
    recipe = replace(bench.config.finetune, epochs=1, warmup_epochs=0.0)
    return {
        "cost": int(graph.costs.macs([space.full])[0]),
        "of": int(it.graph.costs.macs([it.graph.space(1.0).full])[0]),
        "full": it.full,
        "before": score(network, it.data.test)["top1"],
        "after": finetune(network, it.few, recipe, seed=seed).after["top1"],
    }


PEERS: dict[str, Callable[[Bench, Row], Row]] = {
    "fastnas": _fastnas,
    "torch_pruning": _torch_pruning,
}
