"""Networks in int8, by torchao."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch

from abcsearch.channels.layout import fitting
from abcsearch.errors import ExportError, one_line
from abcsearch.example import Example, repeated
from abcsearch.exporting.checking import Frozen, copied, run_checked, wrapped
from abcsearch.exporting.interchange import quiet, torchao, traced
from abcsearch.exporting.structures import call_outline, input_names
from abcsearch.rng import torch_seeded
from abcsearch.transforms.base import Applied, Transform
from abcsearch.transforms.options import QuantizeOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from abcsearch.data.splits import Data

_BATCH = 64  # images per pass


def quantize(model: nn.Module, data: Data, *, images: int = 256) -> nn.Module:
    """Returns a network that computes in int8: weights per channel, activations by ranges seen on training images.

    Weights take 7 of the 8 bits: CPUs without VNNI add two products in 16 bits, where those of 8 bits overflow.

    Static quantisation after training: batch norms are folded into convolutions, ranges are observed on unaugmented
    training images, evenly spread over the split, and nothing is trained. Outputs of convolutions and of additions are
    rounded, too, without which onnxruntime would compute those in front of additions and means in float32. What comes
    back has no class: `export` it as .pt2, or as .onnx with `tolerance=0.05`; onnxruntime then computes in integers. As
    a module of PyTorch, also out of a .pt2 file, it computes the same numbers in float32 arithmetic. `torch.compile`
    makes integer code of what is returned if `torch._inductor.config.freezing` is set; of a loaded file it does not.

    Args:
        model: a trained network, on any device; not changed.
        data: its training images are looked at.
        images: how many.

    Returns:
        The int8 network, on the CPU, in evaluation mode.

    Raises:
        ExportError: if torchao is not installed, the network cannot be traced, or it cannot quantise it.

    Source: Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only inference
    (CVPR 2018); torchao's pt2e flow with its quantiser for x86, which leaves such outputs as they are.
    """
    torchao()
    with quiet():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    if images < 1:
        msg = f"int8 ranges are observed on at least 1 image, found images = {images}"
        raise ExportError(msg)
    chosen = torch.linspace(0, len(data.train) - 1, min(images, len(data.train))).round().long()
    seen = data.train.part(chosen)
    twin, two = copied(model, "cpu"), repeated(data.example, 2)
    two = fitting(twin, two.fitting(twin) if isinstance(two, Example) else two)
    with torch.inference_mode():
        whole = wrapped(twin, two, run_checked(twin, two))
    program = traced(whole, two)
    graph = cast("torch.fx.GraphModule", program.module())
    _tell_calls_apart(graph)
    try:
        # torchao draws inputs for its patterns from the global generator.
        with quiet(), torch.no_grad(), torch_seeded(0, "quantize"):
            observed = prepare_pt2e(graph, _quantizer())
            for batch, _ in seen.batches(_BATCH):
                given = Example.of(fitting(twin, batch)).fitting(twin)
                observed(*given.args, **given.kwargs)
            made = convert_pt2e(observed)
    except Exception as error:  # of many kinds
        msg = f"torchao cannot quantise the network: {type(error).__name__}: {one_line(str(error), 300)}"
        raise ExportError(msg) from error
    _drop_unused(made)
    return Frozen(made, call_outline(Example.of(two), input_names(twin, Example.of(two))))


class Quantize(Transform):
    """The network in int8, as the last link of a chain; see `quantize`."""

    Options = QuantizeOptions
    makes = "int8"
    ends = "it is a traced computation without weights that could be changed"
    format = "pt2"
    tolerance = 0.05  # onnxruntime rounds otherwise here and there
    bits = (8, 8)

    def check(self, model: nn.Module, data: Data) -> None:
        """Refuses if torchao is not installed."""
        del model, data
        torchao()

    def apply(self, model: nn.Module, data: Data, seed: int) -> Applied:
        """Returns the int8 network."""
        del seed
        return Applied(
            model=quantize(model, data, images=self.options.images), facts={"kind": "int8"}
        )


def _quantizer() -> Any:  # noqa: ANN401 - a class of torchao, which may be missing
    """Returns torchao's quantiser for x86, which then has outputs of convolutions and of additions rounded as well."""
    with quiet():
        from torchao.quantization.pt2e import quantizer as pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    config = x86.get_default_x86_inductor_quantization_config()
    config = replace(
        config, weight=replace(cast("Any", config.weight), quant_min=-64, quant_max=63)
    )

    class Rounding(x86.X86InductorQuantizer):
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            annotated = super().annotate(model)
            for node in _outputs(annotated):
                note = node.meta.setdefault(
                    "quantization_annotation", pt2e.QuantizationAnnotation(_annotated=True)
                )
                note.output_qspec = note.output_qspec or config.input_activation
            return annotated

    return Rounding().set_global(config)


def _outputs(graph: torch.fx.GraphModule) -> Iterator[torch.fx.Node]:
    """Yields what convolutions and additions of tensors hand on: after their ReLU; not the network's own output."""
    aten = torch.ops.aten
    relus = {aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default}
    for node in graph.graph.nodes:
        both = all(isinstance(value, torch.fx.Node) for value in node.args[:2])
        if node.target is not aten.conv2d.default and not (
            both
            and node.target in {aten.add.Tensor, aten.add_.Tensor}
            and node.meta["val"].is_floating_point()
        ):
            continue
        users = [*node.users]
        last = users[0] if len(users) == 1 and users[0].target in relus else node
        if all(user.op != "output" for user in last.users):
            yield last


def _tell_calls_apart(graph: torch.fx.GraphModule) -> None:
    """Gives every operation a module path of its own.

    The quantiser looks for patterns module by module and refuses one that is called twice, as activations often are.
    """
    for node in graph.graph.nodes:
        path = node.meta.get("nn_module_stack")
        if node.op == "call_function" and path:
            key, (name, kind) = list(path.items())[-1]
            node.meta["nn_module_stack"] = {**path, key: (f"{name}.{node.name}", kind)}


def _drop_unused(graph: torch.fx.GraphModule) -> None:
    """Removes parameters and buffers that nothing reads: the weights in float32, which a file would hold as well."""
    read = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    for name, _ in [*graph.named_parameters(), *graph.named_buffers()]:
        if name not in read:
            owner, _, attribute = name.rpartition(".")
            delattr(graph.get_submodule(owner), attribute)
