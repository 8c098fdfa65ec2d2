"""A clone is what deepcopy makes: the same types, attributes, values and references, and nothing shared."""

import copy
import copyreg
import functools
import io
import pickle
import types
import warnings
import weakref
from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import fx, nn
from torch.nn.utils import parametrizations, parametrize

from abcsearch.channels.fast.cloning import clone
from abcsearch.models.resnet import SmallResNet
from tests.channels.networks import strange_network
from tests.channels.strange import STRANGE

SHARED = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    torch.dtype,
    torch.device,
    str,
    int,
    float,
    type(None),
)


class Twins:
    """Walks two object graphs side by side; `pairs` maps what was met on one side to what it met on the other."""

    def __init__(self):
        self.pairs, self.storages, self.alive, self.met = {}, {}, [], 0

    def check(self, a, b, where="model"):
        self.met += 1
        if not isinstance(a, fx.GraphModule):  # each is of a class of its own
            assert type(a) is type(b), (where, type(a), type(b))
        if isinstance(a, SHARED):
            assert a is b or a == b, where
            return
        self.alive.append((a, b))
        if not (isinstance(a, tuple) and a is b):
            known = self.pairs.get(id(a))
            if known is not None:
                assert known == id(b), f"{where}: refers to something else"
                return
            assert id(b) not in self.pairs.values(), f"{where}: two things have become one"
            self.pairs[id(a)] = id(b)
        if isinstance(a, torch.Tensor):
            self.tensor(a, b, where)
        else:
            one, other = parts(a), parts(b)
            assert len(one) == len(other), (where, one, other)
            for (key, value), (_, counterpart) in zip(one, other, strict=True):
                self.check(value, counterpart, f"{where} {key}")

    def tensor(self, a, b, where):
        facts = ("shape", "dtype", "device", "requires_grad", "layout", "is_leaf")
        if not isinstance(a, nn.parameter.UninitializedTensorMixin):
            assert [getattr(a, fact) for fact in facts] == [getattr(b, fact) for fact in facts], (
                where
            )
            self.check(a.grad, b.grad, where + ".grad")
        self.check(a.__dict__, b.__dict__, where + ".__dict__")
        if isinstance(a, nn.parameter.UninitializedTensorMixin) or a.is_meta or a.is_sparse:
            return
        assert (a.stride(), a.storage_offset()) == (b.stride(), b.storage_offset()), where
        assert (a.is_conj(), a.is_neg()) == (b.is_conj(), b.is_neg()), where
        assert torch.equal(a, b), where
        known = self.storages.setdefault(
            a.untyped_storage().data_ptr(), b.untyped_storage().data_ptr()
        )
        assert known == b.untyped_storage().data_ptr(), (
            f"{where}: views of one storage are so no more"
        )


def parts(x):
    """What an object refers to, as (name, value)."""
    found = []
    if isinstance(x, types.MethodType):
        return [("function", x.__func__), ("self", x.__self__)]
    if isinstance(x, functools.partial):
        return [("function", x.func), ("arguments", x.args), ("keywords", x.keywords)]
    if isinstance(x, weakref.ref):
        return [("referent", x())]
    if isinstance(x, fx.Graph):
        return [("code", str(x))]
    if isinstance(x, dict):
        found += [
            (f"{where} of {key!r}", value)
            for key, own in x.items()
            for where, value in enumerate((key, own))
        ]
    elif isinstance(x, list | tuple):
        found += list(enumerate(x))
    elif isinstance(x, set | frozenset):
        found += [("entry", value) for value in sorted(x, key=str)]
    own = getattr(x, "__dict__", {})
    return [*found, ("order of attributes", str(list(own))), *own.items()]


def tensors(model):
    """All tensors in modules: parameters, buffers, and other attributes."""
    for module in model.modules():
        for own in (module._parameters, module._buffers, module.__dict__):
            yield from (value for value in own.values() if isinstance(value, torch.Tensor))


def snapshot(model):
    """What a module is made of, and the values of its tensors."""
    known = [t for t in tensors(model) if type(t) in (torch.Tensor, nn.Parameter) and not t.is_meta]
    return (
        [
            {name: id(value) for name, value in module.__dict__.items()}
            for module in model.modules()
        ],
        [(id(t), t._version, t.grad is None, t.detach().to_dense().clone()) for t in known],
    )


def assert_clone(model):
    """Compares a clone with a deepcopy; returns the clone."""
    before = snapshot(model)
    ours = clone(model, {})
    after = snapshot(model)
    assert before[0] == after[0]
    assert all(
        a[:-1] == b[:-1] and torch.equal(a[-1], b[-1])
        for a, b in zip(before[1], after[1], strict=True)
    )
    twins = Twins()
    twins.check(copy.deepcopy(model), ours)
    assert twins.met > 20
    memory = {address(t) for t in tensors(model)} - {None}
    assert not memory & {address(t) for t in tensors(ours)}
    assert not {id(m) for m in model.modules()} & {id(m) for m in ours.modules()}
    return ours


def address(tensor):
    """Where a tensor's numbers are, if they are in memory."""
    lazy = isinstance(tensor, nn.parameter.UninitializedTensorMixin)
    return (
        None
        if lazy or tensor.is_meta or tensor.is_sparse or not tensor.numel()
        else tensor.data_ptr()
    )


TORCHVISION = [
    "alexnet",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mobilenet_v3_small",
    "mnasnet0_5",
]
TORCHVISION += [
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_0",
    "swin_t",
    "vgg11_bn",
    "vit_b_32",
]
TORCHVISION += ["convnext_tiny", "maxvit_t"]


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name == "maxvit_t":
        extra = {"input_size": (224, 224)}
    model = torchvision.models.get_model(name, weights=None, num_classes=3, **extra)
    if name in ("alexnet", "vgg11_bn"):
        model.classifier = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    assert_clone(model)


@pytest.mark.parametrize("name", sorted(STRANGE))
def test_strange_networks(name):
    assert_clone(strange_network(name))


def test_own_networks():
    model = SmallResNet(3, 10, (4, 8, 16), (2, 2, 2))
    ours = assert_clone(model.eval())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(ours(x), model(x))


class Odd(nn.Module):
    """Every kind of attribute that somebody might think of."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.again = self.conv  # a shared module
        self.tied = nn.Conv2d(3, 4, 3)
        self.tied.weight = self.conv.weight
        self.items = nn.ParameterList([nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(3))])
        self.named = nn.ModuleDict({"a": nn.ReLU(), "b": self.norm})
        self.parameter_dict = nn.ParameterDict({"x": nn.Parameter(torch.ones(1))})
        self.register_parameter("absent", None)
        self.register_buffer("hidden", torch.arange(3.0), persistent=False)
        self.register_buffer("nothing", None)
        self.register_buffer("scalar", torch.tensor(3))
        whole = torch.arange(12.0)
        self.register_buffer("whole", whole)
        self.register_buffer("part", whole[2:6])  # views of one storage
        self.turned, self.same = whole.view(3, 4).t(), whole.detach()
        later = torch.arange(4.0)
        self.earlier, self.later = later[1:], later  # here the view comes first
        self.expanded = torch.ones(1).expand(5)
        self.empty = torch.empty(0)
        self.half, self.brain = torch.ones(3).half(), torch.ones(3).bfloat16()
        self.complex = torch.ones(2, dtype=torch.complex64).conj()
        self.negative = torch.ones(2, dtype=torch.complex64).conj().imag
        self.last = torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
        self.sparse = torch.eye(3).to_sparse()
        self.meta = torch.ones(2, device="meta")
        self.marked = torch.ones(2)
        self.marked.note = ["mine", self.conv]
        self.conv.weight.note = "deepcopy drops it"
        self.leaf = torch.ones(2, requires_grad=True)
        self.leaf.grad = torch.full((2,), 5.0)
        self.norm.weight.grad = torch.ones(4)
        self.conv.bias.requires_grad_(False)
        object.__setattr__(self, "alias", self.conv.weight)  # a plain attribute that is a parameter
        object.__setattr__(self, "myself", self)
        self.list = [torch.ones(2), self.hidden, self.conv, self.conv.weight]
        self.dict = {"norm": self.norm, 1: (2, [self.named]), (self.half.dtype, "x"): None}
        self.dict["dict"] = self.dict
        self.loop = ([],)
        self.loop[0].append(self.loop)
        self.tuples = ((1, 2), ("a", (3.0, None)), (self.list, self.list))
        self.sets = ({1, "a"}, frozenset({2}), set())
        self.same_set = self.sets[0]
        self.ordered = OrderedDict(a=self.list, b=OrderedDict())
        self.labelled = OrderedDict()
        self.labelled.label = self.list
        self.function, self.builtin, self.kind = torch.relu, len, nn.Conv2d
        self.short = lambda x: x
        self.own, self.childs = self.helper, self.conv.forward
        self.partial = functools.partial(self.conv.forward, None)
        self.plain, self.range, self.slice = Plain(self.conv), range(3), slice(1, 2)
        self.dtype, self.device, self.size = torch.float16, torch.device("cpu"), torch.Size([1, 2])
        self.generator_state, self.bytes = torch.Generator().get_state(), b"x"
        self.handle = self.register_forward_hook(self.hook)
        self.conv.register_forward_pre_hook(lambda module, inputs: inputs)
        self.norm.register_full_backward_hook(lambda module, grads, outs: None)
        self.register_state_dict_post_hook(lambda module, state, prefix, meta: None)
        self.register_load_state_dict_post_hook(lambda module, keys: None)
        self.norm.eval()

    @property
    def first(self):
        return self.conv

    def helper(self):
        return self.conv

    def hook(self, module, inputs, output):
        return output


class Plain:
    def __init__(self, module):
        self.module, self.numbers = module, [1, 2]


def test_odd_attributes():
    model = Odd()
    ours = assert_clone(model)
    assert (
        ours.again
        is ours.conv
        is ours.first
        is ours.helper()
        is ours.own()
        is ours.list[2]
        is ours.plain.module
    )
    assert ours.tied.weight is ours.conv.weight is ours.alias is ours.list[3]
    assert ours.own.__self__ is ours
    assert ours.myself is ours
    assert ours.partial.func.__self__ is ours.conv
    assert ours.norm.training is False
    assert ours.training is True
    assert "hidden" not in ours.state_dict()
    with torch.no_grad():
        ours.whole[3] = 100.0
    assert ours.part[1] == ours.turned[3, 0] == 100.0
    assert model.part[1] == 3.0
    assert len(ours._forward_hooks) == 1
    ours.handle.remove()
    assert len(ours._forward_hooks) == 0
    assert len(model._forward_hooks) == 1


class Counting(nn.Module):
    """Has its own idea of being copied, and says which way it went."""

    def __init__(self):
        super().__init__()
        self.conv, self.way = nn.Conv2d(1, 2, 1), []


class DeepCopied(Counting):
    def __deepcopy__(self, memo):
        new = DeepCopied()
        new.way = [*self.way, "deepcopy"]
        memo[id(self)] = new
        new.conv = copy.deepcopy(self.conv, memo)
        return new


class Reduced(Counting):
    def __reduce__(self):
        return Reduced, (), {"way": [*self.way, "reduce"], "conv": self.conv}

    def __setstate__(self, state):
        self.way, self.conv = state["way"], state["conv"]


class ReducedEx(Counting):
    def __reduce_ex__(self, protocol):
        return ReducedEx, (), {"_modules": {"conv": self.conv}, "way": ["reduce_ex"]}


class WithState(Counting):
    def __getstate__(self):
        return {**self.__dict__, "way": [*self.way, [torch.ones(1)], self.conv]}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.way.append("setstate")


class NoState(Counting):
    def __getstate__(self):
        return None


class OnlyRestored(Counting):
    def __setstate__(self, state):
        super().__setstate__(state)
        self.way = [*self.way, "setstate"]


class NewArguments(Counting):
    def __new__(cls, way="new"):
        new = super().__new__(cls)
        new.__dict__["made"] = way
        return new

    def __getnewargs__(self):
        return ("getnewargs",)


class Slotted(Counting):
    __slots__ = ("slot",)

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "slot", [1])


class Wrapper(Counting):
    def __getattr__(self, name):
        if name == "__deepcopy__":
            return lambda memo: ["from getattr", memo is not None]
        return super().__getattr__(name)


class Entries(Counting, dict):
    __hash__ = object.__hash__


class Registered(Counting):
    pass


def instance_with_its_own():
    model = Counting()
    model.__dict__["__deepcopy__"] = lambda memo: ["of the instance"]
    return model


OWN_WAYS = [DeepCopied, Reduced, ReducedEx, WithState, OnlyRestored, NewArguments, Entries]
OWN_WAYS += [Registered]


@pytest.mark.parametrize("kind", OWN_WAYS)
def test_classes_with_their_own_way_of_being_copied(kind, monkeypatch):
    if kind is Registered:
        monkeypatch.setitem(
            copyreg.dispatch_table,
            Registered,
            lambda x: (Registered, (), {**x.__dict__, "way": ["copyreg"]}),
        )
    child = kind()
    if kind is Entries:
        child["key"] = [1]
    model = nn.Sequential(child, nn.ReLU(), child)
    model.other = [child.conv.weight, child]
    ours = assert_clone(model)
    assert type(ours[0]) is kind
    assert (
        ours[0].__dict__.get("way") == copy.deepcopy(model)[0].__dict__.get("way")
        or kind is WithState
    )
    if kind is Entries:
        assert ours[0]["key"] == [1]


def test_states_made_for_the_occasion():
    assert_clone(nn.Sequential(*(WithState() for _ in range(50))))


@pytest.mark.parametrize("make", [Wrapper, instance_with_its_own])
def test_answers_of_getattr_and_of_instances_count(make):
    model = nn.ReLU()
    model.__dict__["odd"] = make()
    assert clone(model, {}).odd == copy.deepcopy(model).odd
    assert isinstance(clone(model, {}).odd, list)


def test_slots_are_lost_as_with_deepcopy():
    model = Slotted()
    assert hasattr(clone(model, {}), "slot") is hasattr(copy.deepcopy(model), "slot")
    assert_clone(model)


def test_no_state_is_a_bare_module():
    assert clone(NoState(), {}).__dict__.keys() == copy.deepcopy(NoState()).__dict__.keys()


def test_buffers_that_are_attributes():
    model = nn.Linear(2, 2)
    model.marked = nn.Buffer(torch.ones(2))
    assert_clone(model)


def parametrized():
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU())
    model.append(parametrizations.orthogonal(nn.Linear(4, 4)))
    parametrize.register_parametrization(model[0], "bias", nn.Identity())
    return model


def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.ReLU())
    with torch.no_grad():  # else the computed weight is no leaf, and deepcopy refuses
        model(torch.ones(1, 3))
    return model


def recurrent():
    return nn.Sequential(
        nn.LSTM(3, 4, num_layers=2, bidirectional=True), nn.GRU(3, 2), nn.RNNCell(2, 2)
    )


def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.LazyLinear(2))


def attention():
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False
    )


def traced():
    return fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))


def wrapped():
    model = nn.Sequential(traced(), nn.Conv2d(3, 4, 3))
    model.append(nn.Sequential(model[1], nn.ReLU()))
    return model


def odd_inside():
    return nn.Sequential(nn.Sequential(Odd()), nn.Identity(), DeepCopied())


MAKERS = [parametrized, old_weight_norm, recurrent, lazy, attention, wrapped, odd_inside]


@pytest.mark.parametrize("make", MAKERS)
def test_modules_of_torch(make):
    assert_clone(make())


def test_recurrent_weights_stay_their_own():
    lstm = clone(recurrent(), {})[0]
    assert all(flat is own for flat, own in zip(lstm._flat_weights, lstm.parameters(), strict=True))


def test_script_modules():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        model = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    ours = clone(nn.Sequential(model, nn.ReLU()), {})
    assert type(ours[0]) is type(copy.deepcopy(model))
    assert not {t.data_ptr() for t in ours.parameters()} & {
        t.data_ptr() for t in model.parameters()
    }


def test_compiled_modules():
    model = nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager"))
    ours = clone(model, {})
    assert type(ours[0]) is type(model[0])
    assert ours[0]._orig_mod.weight is not model[0]._orig_mod.weight
    plain = nn.Linear(2, 2)
    plain.compile(backend="eager")
    assert_clone(plain)


def test_what_deepcopy_refuses_is_refused():
    model = nn.Linear(2, 2)
    object.__setattr__(model, "computed", model.weight * 2)
    with pytest.raises(RuntimeError, match="Only Tensors created explicitly"):
        clone(model, {})


def test_clones_can_be_pickled_saved_and_trained():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    ours = clone(model, {})
    again = pickle.loads(pickle.dumps(ours))
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    ours(torch.ones(2, 3, 4, 4)).sum().backward()
    assert ours[0].weight.grad is not None
    assert model[0].weight.grad is None
    assert int(model[1].num_batches_tracked) == 0


def test_replacements_stand_wherever_the_original_is_referred_to():
    model = Odd()
    weight, norm = nn.Parameter(torch.zeros(1)), nn.Identity()
    ours = clone(model, {id(model.conv.weight): weight, id(model.norm): norm})
    assert ours.conv.weight is ours.tied.weight is ours.alias is ours.list[3] is weight
    assert ours.norm is ours.named["b"] is ours.dict["norm"] is norm
    assert model.conv.weight.shape == (4, 3, 3, 3)
    assert clone(nn.Sequential(norm), {id(norm): None})._modules == {"0": None}


def test_inference_tensors_and_modes():
    with torch.inference_mode():
        model = nn.Linear(2, 2)
    assert not clone(model, {}).weight.is_inference()
    with torch.inference_mode():
        assert clone(nn.BatchNorm1d(2), {}).running_mean.is_inference()
