"""One step of a training loop, replayed as a CUDA graph where there is a GPU."""

from __future__ import annotations

import functools
import gc
import itertools
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from adv_worldmodel.errors import first_line

#: Plain calls before the capture: libraries and optimisers allocate their state in them.
WARM_UP_CALLS = 3
#: Streams that torch has for each device.
POOL = 32
#: Branches of a step that run at once; 0: all work is done where it stands. A stream whose turn
#: comes again makes its next piece wait for the one before: with ten, a long one held others up.
SIDE_STREAMS = 20
#: What torch's warning of a wait for the device says.
WAIT = "called a synchronizing CUDA operation"


@contextmanager
def waits_for_the_device(*, cuda: bool = True) -> Iterator[list[str]]:
    """Collect where the code inside waits for a CUDA device: file and line of each time.

    :param cuda: ``False`` looks out for torch's warnings without asking for them.
    """
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        before = torch.cuda.get_sync_debug_mode() if cuda else 0
        if cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if cuda:
                torch.cuda.set_sync_debug_mode(before)
            found += [f"{w.filename}:{w.lineno}" for w in caught if WAIT in str(w.message)]
    for w in caught:
        if WAIT not in str(w.message):
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)


#: Living steps that have a stream.
_STEPS: weakref.WeakSet[GraphedStep] = weakref.WeakSet()


class GraphedStep:
    """Calls a function of tensors; on a CUDA device by replaying a capture of it.

    The updates here are a hundred small kernels each, and on a GPU the time goes into launching
    them: a captured graph is launched as one. On other devices, and where the capture fails
    (a user's termination function that waits for the device, say), the function is called plainly.
    Every call is a real one, those of the warm-up too: nothing runs twice.

    :param function: maps tensors to a tuple of tensors. Shapes must not change. It must not read
        values back or draw random numbers (pass them in), must change state in place, and every
        earlier tensor that it touches must live as long as this object.
    :param device: where its tensors are.
    :param enabled: ``False`` always calls plainly.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        device: torch.device,
        *,
        enabled: bool = True,
    ) -> None:
        self.function, self.device = function, device
        self.enabled = enabled and device.type == "cuda"
        self._calls = 0
        self._stream: torch.cuda.Stream | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: tuple[Tensor, ...] = ()

    @property
    def captured(self) -> bool:
        """Whether calls are replays by now."""
        return self._graph is not None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The function's result on ``inputs``, in tensors of the caller's own."""
        if not self.enabled:
            return self.function(*inputs)
        if self._graph is None:
            with torch.cuda.device(self.device):  # streams are those of the current device
                # one for warm-up and capture: cuBLAS keeps a workspace for each stream it meets
                self._stream = self._stream or self._own_stream()
                if self._stream is None:
                    self._give_up(f"{POOL} others have taken all streams that torch has")
                    return self.function(*inputs)
                if self._calls < WARM_UP_CALLS:
                    self._calls += 1
                    return self._warm_up(inputs, self._stream)
                if not self._capture(inputs, self._stream):
                    return self.function(*inputs)
        assert self._graph is not None
        for dtype in {tensor.dtype for tensor in inputs}:  # each in one kernel
            pairs = zip(self._inputs, inputs, strict=True)
            mine, theirs = zip(*(p for p in pairs if p[1].dtype == dtype), strict=True)
            torch._foreach_copy_(mine, theirs)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to the device: a copy captures for itself."""
        return {"function": self.function, "device": self.device, "enabled": self.enabled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _own_stream(self) -> torch.cuda.Stream | None:
        """A stream on which no other living step was captured; None where none is left.

        Torch reuses a fixed pool of streams. In late versions destroying a graph frees its stream's
        workspace, which another graph on that stream may be using.
        """
        taken = {step._stream for step in _STEPS}
        for _ in range(POOL):
            if (stream := torch.cuda.Stream()) not in taken:
                _STEPS.add(self)
                return stream
        return None

    def _warm_up(self, inputs: tuple[Tensor, ...], side: torch.cuda.Stream) -> tuple[Tensor, ...]:
        """A plain call. The last of them says whether a capture would fail: up to torch 2.12 one
        that fails leaves the allocator, and with it all captures after it, broken.
        """
        if self._calls < WARM_UP_CALLS:
            return self._on_side_stream(inputs, side)
        with waits_for_the_device() as places:
            outputs = self._on_side_stream(inputs, side)
        if places:
            self._give_up(f"{places[0]} waits for the device")
        return outputs

    def _give_up(self, reason: str) -> None:
        self.enabled = False
        self._inputs = []
        warnings.warn(f"running without CUDA graphs, which is slower: {reason}", stacklevel=4)

    def _on_side_stream(
        self, inputs: tuple[Tensor, ...], side: torch.cuda.Stream
    ) -> tuple[Tensor, ...]:
        main = torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            outputs = self._run(inputs)
        main.wait_stream(side)
        return outputs

    def _run(self, inputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
        """The function's result; each piece on the stream that it always has."""
        Branches.turns = itertools.count()
        return self.function(*inputs)

    def _capture(self, inputs: tuple[Tensor, ...], side: torch.cuda.Stream) -> bool:
        graph, main = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self._inputs = [tensor.clone() for tensor in inputs]
        gc.collect()  # a graph that nobody needs any more, destroyed in a capture, would end it
        collecting = gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.graph(graph, stream=side):  # records, runs nothing
                self._outputs = self._run(self._inputs)
        except RuntimeError as error:
            torch.cuda.set_stream(main)  # a capture that fails at its end leaves its own behind
            cause = error.__context__ or error  # the end of a failed capture fails once more
            self._give_up(first_line(cause))
            return False
        finally:
            if collecting:
                gc.enable()
        self._graph = graph
        return True


@functools.cache
def _side_stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """Of high priority: torch takes those from another pool than the streams of steps."""
    return torch.cuda.Stream(device, priority=-1)


@functools.cache
def memory_stays_with_its_stream() -> bool:
    """Whether freed memory goes only to work of the stream it was given to, which comes later.

    Not by the allocator ``cudaMallocAsync``: other streams may read what a piece has freed.
    """
    return torch.cuda.get_allocator_backend() == "native"


#: Where work is done that is not done beside anything.
HERE = nullcontext()


class Branches:
    """Pieces of work that a GPU does beside what is given to it after them.

    A small kernel leaves most of a GPU idle. Elsewhere all work is done where it stands, and what
    is computed is the same.

    :param device: where the work is done.
    """

    #: The side streams' turns: of all pieces, so that few wait for another's end.
    turns = itertools.count()

    def __init__(self, device: torch.device) -> None:
        self.device = device
        #: the last work of the pieces, by the side stream that they were given to
        self._ends: dict[torch.cuda.Stream, torch.cuda.Event] = {}
        self._held: list[object] = []

    def beside(self, *held: object) -> AbstractContextManager[None]:
        """What is done inside may take until the next :meth:`join`; it begins after all before.

        :param held: tensors read inside which nothing else keeps until then: their memory would be
            used again too early. What is read inside must not be written before that either.
        """
        if self.device.type != "cuda" or SIDE_STREAMS == 0 or not memory_stays_with_its_stream():
            return HERE
        self._held += held
        return self._on_a_side_stream()

    @contextmanager
    def _on_a_side_stream(self) -> Iterator[None]:
        stream = _side_stream(self.device, next(Branches.turns) % SIDE_STREAMS)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            yield
            self._ends[stream] = stream.record_event()

    def join(self) -> None:
        """What follows begins after all pieces given so far."""
        for end in self._ends.values():
            torch.cuda.current_stream(self.device).wait_event(end)
        self._ends, self._held = {}, []


def taken_from_outside(
    parts: Iterable[Tensor | nn.Module], *optimizers: torch.optim.Optimizer | None
) -> tuple[Any, ...]:
    """What a capture takes as it is: where tensors lie, whether they learn, the hooks of tensors,
    layers and optimisers, the optimisers' states and numbers, and how precise products are.

    A step is to be captured anew where this has changed: SB3's TRPO, for one, gives its parameters
    new memory at each update, and a callback may set another learning rate. An optimiser makes its
    states in its first step.
    """
    there = [optimizer for optimizer in optimizers if optimizer is not None]
    groups = [group for optimizer in there for group in optimizer.param_groups]
    settings = [value for group in groups for value in group.values()]
    numbers = [value for value in settings if isinstance(value, Real | tuple)]  # NumPy's as well
    tensors = [(t.data_ptr(), t._version) for t in settings if isinstance(t, Tensor)]
    states = [
        value.data_ptr()
        for optimizer in there
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    hooks = [hooks_of(optimizer) for optimizer in there]
    return (*map(_as_it_is, parts), *numbers, *tensors, *states, *hooks, precision_of_products())


def precision_of_products() -> str:
    """Of float32 ones on a GPU, as the user has chosen it: a captured product stays as it is."""
    chosen: str | None = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    # before torch 2.9; later versions refuse that name once the other has been used
    return torch.get_float32_matmul_precision() if chosen is None else chosen


def _as_it_is(part: Tensor | nn.Module) -> tuple[Any, ...]:
    if isinstance(part, Tensor):
        return part.data_ptr(), part.requires_grad, hooks_of(part)
    return hooks_of(part)


def parts_of(network: nn.Module) -> list[Tensor | nn.Module]:
    """What of a network :func:`taken_from_outside` looks at: parameters, buffers and layers."""
    return [*network.parameters(), *network.buffers(), *network.modules()]


def hooks_of(part: Tensor | nn.Module | torch.optim.Optimizer) -> tuple[int, ...]:
    """The numbers of the hooks that PyTorch calls at a tensor's gradient, at a layer's calls, or at
    an optimiser's steps. A replay calls none.
    """
    names: tuple[str, ...] = (
        "_forward_pre_hooks",
        "_forward_hooks",
        "_backward_pre_hooks",
        "_backward_hooks",
    )
    if isinstance(part, Tensor):
        names = ("_backward_hooks", "_post_accumulate_grad_hooks")
    elif isinstance(part, torch.optim.Optimizer):
        names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    return tuple(number for name in names for number in getattr(part, name) or ())


def can_be_captured(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a replayed step counts on. One of another maker that counts its steps in Python would
    stay at that of the capture, without a word.
    """
    return "capturable" in optimizer.defaults or type(optimizer) is torch.optim.SGD


def make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep an Adam's step counts on the device, without which it cannot be captured."""
    for group in optimizer.param_groups:
        group["capturable"] = device.type == "cuda"
    # torch warns of steps outside a capture, which the calls before it are
    optimizer._warned_capturable_if_run_uncaptured = True
    for state in optimizer.state.values():  # loaded from a run on another device
        if "step" in state:
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=device)
