"""Launch kernels in their compiled form, found by a key that costs a few microseconds.

Triton's own launch binds and specialises each of a kernel's forty arguments anew and asks the driver about each
pointer; for short sequences that takes longer than the GPU works. The first launch of every kind goes Triton's way,
whose compiled kernel is kept under a key that holds all that it depends on, and often more: of tensors dtype and
alignment, of integers what the compiler may know of them, types and compile-time arguments as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
import triton
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver

from seqkit.kernels.triton_launch import INTERPRETED

LAUNCHERS = (3, 6), (3, 9)  # first and last version of Triton whose launcher takes what is passed here
KNOWN = not INTERPRETED and LAUNCHERS[0] <= tuple(int(n) for n in triton.__version__.split(".")[:2]) <= LAUNCHERS[1]
ALIGNMENT = 16  # bytes of a pointer, or divisor of an integer, that Triton compiles for
MOST_SETTLED = 1024  # launches of one kernel that are remembered with all their scalars
LIMIT = 1 << 31  # integers below are 32 bits wide
TENSORS = (torch.Tensor, torch.nn.Parameter)
CONSTANTS = (int, bool, str, type(None), triton.language.dtype)  # types of compile-time arguments that == tells apart


class Form(NamedTuple):
    """A compiled kernel as it is launched; ``compiled`` keeps it loaded, ``rest`` stands for its last arguments."""

    compiled: CompiledKernel
    run: Any
    function: int
    packed_metadata: Any
    rest: tuple[None, ...]

    def launch(self, programs: int, device: int, given: Sequence) -> None:
        """Launch with addresses in the place of tensors, and without hooks."""
        stream = driver.active.get_current_stream(device)
        self.run(programs, 1, 1, stream, self.function, self.packed_metadata, None, None, None, *given, *self.rest)


class Plan:
    """What to look at in the arguments of a launch whose types are known.

    Attributes:
        tensors: Picks the tensors.
        pointers: Their positions.
        exact: Picks what the key holds as it is.
        wide: Picks integers of which only the width matters.
        special: Picks integers that are specialised: 1 becomes a constant, multiples of 16 are known to be.
        constants: Number of parameters that follow, all of them compile-time arguments.
    """

    def __init__(self, kernel: Any, types: tuple[type, ...]):
        parameters = kernel.params[: len(types)]
        places = list(enumerate(zip(types, parameters, strict=True)))
        integers = [i for i, (kind, parameter) in places if kind is int and not parameter.is_constexpr]
        self.pointers = [i for i, (kind, _) in places if kind in TENSORS]
        self.tensors = _picking(self.pointers)
        self.exact = _picking([i for i, (kind, parameter) in places if parameter.is_constexpr or kind is bool])
        self.wide = _picking([i for i in integers if parameters[i].do_not_specialize])
        self.special = _picking([i for i in integers if not parameters[i].do_not_specialize])
        self.constants = (None,) * (len(kernel.params) - len(types))

    @staticmethod
    def covers(kernel: Any, types: tuple[type, ...]) -> bool:
        """Whether a key tells launches with such arguments apart."""
        rest = kernel.params[len(types) :]
        return (
            any(kind in TENSORS for kind in types)
            and all(
                kind in CONSTANTS if parameter.is_constexpr else kind in (*TENSORS, int, bool, float, type(None))
                for kind, parameter in zip(types, kernel.params, strict=False)
            )
            and all(parameter.is_constexpr for parameter in rest)
        )


def _picking(places: list[int]):
    """``itemgetter`` that always returns a tuple."""
    if len(places) > 1:
        return itemgetter(*places)
    return (lambda args, i=places[0]: (args[i],)) if places else lambda args: ()


def _special(x: int) -> int | tuple[bool, bool]:
    """What may be compiled into a kernel of an integer argument, or the integer itself."""
    return (x == 1, x % ALIGNMENT == 0) if -LIMIT <= x < LIMIT else x


class Launches:
    """The launches of one kernel that have a compiled form."""

    def __init__(self, kernel: Any):
        self.kernel = kernel
        self.plans: dict[tuple[type, ...], Plan | None] = {}
        self.forms: dict[tuple, Form] = {}
        self.settled: dict[Hashable, Settled] = {}

    def plan(self, types: tuple[type, ...]) -> Plan | None:
        """How to read arguments of these types; None where Triton has to."""
        if types not in self.plans:
            self.plans[types] = Plan(self.kernel, types) if Plan.covers(self.kernel, types) else None
        return self.plans[types]

    def key(
        self, device: int, types: tuple[type, ...], plan: Plan, args: tuple, constants: dict[str, Any]
    ) -> tuple[tuple, list[int]]:
        """(key of the compiled form, addresses of the tensors). Launches that Triton tells apart have unequal keys."""
        tensors, wide, values = plan.tensors(args), plan.wide(args), constants.values()
        pointers, bits = [], 0
        for x in tensors:
            pointer = x.data_ptr()
            pointers.append(pointer)
            bits |= pointer
        key = (
            device,
            types,
            *[x.dtype for x in tensors],
            bits % ALIGNMENT == 0 or tuple(pointer % ALIGNMENT == 0 for pointer in pointers),
            not wide or (min(wide) >= -LIMIT and max(wide) < LIMIT) or wide,
            *plan.exact(args),
            *map(_special, plan.special(args)),
            *constants,
            *values,
            *map(type, values),
        )
        return key, pointers

    def __call__(self, programs: int, args: tuple, constants: dict[str, Any]) -> Form | None:
        """Launch, Triton's way where no form is known; the form that such a launch takes from now on, if any."""
        types = tuple(map(type, args))
        plan = self.plan(types)
        device = driver.active.get_current_device()
        if plan is None or args[plan.pointers[0]].get_device() != device:
            self.kernel[(programs,)](*args, **constants)
            return None
        key, pointers = self.key(device, types, plan, args, constants)
        form = self.forms.get(key)
        if form is None:
            compiled = self.kernel[(programs,)](*args, **constants)
            return self._remember(key, plan, compiled, plan.tensors(args), constants)
        given = list(args)
        for i, pointer in zip(plan.pointers, pointers, strict=True):
            given[i] = pointer
        form.launch(programs, device, given)
        return form

    def _remember(self, key: tuple, plan: Plan, compiled: Any, tensors: tuple, constants: dict[str, Any]):
        """Keep the form that the next launch with this key may take, and return it; None where it may not."""
        if (
            type(compiled) is CompiledKernel
            and compiled.metadata.target.backend == "cuda"
            and all(x.get_device() == tensors[0].get_device() for x in tensors)
            and all(type(value) in CONSTANTS for value in constants.values())
        ):
            form = Form(compiled, compiled.run, compiled.function, compiled.packed_metadata, plan.constants)
            return self.forms.setdefault(key, form)
        return None


class Settled:
    """A launch all of whose arguments but the tensors, which come first, stay the same."""

    def __init__(self, launches: Launches, programs: int, scalars: tuple, constants: dict[str, Any]):
        self.launches, self.programs, self.scalars, self.constants = launches, programs, scalars, constants
        self.forms: dict[tuple, Form] = {}

    def __call__(self, tensors: tuple[torch.Tensor | None, ...]) -> None:
        """Launch; all that a form can depend on here is where the tensors lie and of which dtype they are."""
        device = driver.active.get_current_device()
        pointers, bits = [x if x is None else x.data_ptr() for x in tensors], 0
        for pointer in pointers:
            bits |= pointer or 0
        aligned = bits % ALIGNMENT == 0 or tuple([(pointer or 0) % ALIGNMENT == 0 for pointer in pointers])
        key = tensors[0].get_device() == device, device, aligned, *[x if x is None else x.dtype for x in tensors]
        form = self.forms.get(key)
        if form is not None:
            form.launch(self.programs, device, (*pointers, *self.scalars))
            return
        form = self.launches(self.programs, (*tensors, *self.scalars), self.constants)
        if form is not None:
            self.forms[key] = form


_LAUNCHES: dict[int, Launches] = {}  # by the identity of the kernel, whose hash is its source's


def launch(kernel: Any, programs: int, *args, **constants) -> None:
    """Launch ``programs`` programs of a kernel on the current device and stream.

    Args:
        kernel: The jitted function.
        programs: Size of the grid.
        *args: Its arguments up to the last that is not a compile-time one. Tensors lie on one device: the ops check.
        **constants: Compile-time arguments and compiler options.
    """
    if not KNOWN or observed(kernel):
        kernel[(programs,)](*args, **constants)
    else:
        _launches_of(kernel)(programs, args, constants)


def launch_settled(
    kernel: Any,
    key: Hashable,
    settle: Callable[[], tuple[int, tuple, dict[str, Any]]],
    *tensors: torch.Tensor | None,
) -> None:
    """:func:`launch` for half its time, where a call repeats one before but for the data.

    Args:
        kernel: The jitted function.
        key: Of what ``settle`` returns: equal ones where that is equal.
        settle: Gives the programs, the arguments behind the tensors, and compile-time arguments and compiler options.
        *tensors: The first arguments, not None the very first. They lie on one device: the ops check.
    """
    if not KNOWN or observed(kernel):
        programs, scalars, constants = settle()
        kernel[(programs,)](*tensors, *scalars, **constants)
        return
    launches = _launches_of(kernel)
    settled = launches.settled.get(key)
    if settled is None:
        if len(launches.settled) >= MOST_SETTLED:
            launches.settled.clear()
        settled = launches.settled[key] = Settled(launches, *settle())
    settled(tensors)


def _launches_of(kernel: Any) -> Launches:
    found = _LAUNCHES.get(id(kernel))
    if found is None:
        found = _LAUNCHES[id(kernel)] = Launches(kernel)
    return found


def observed(kernel: Any) -> bool:
    """Whether someone watches launches, or changes what is compiled, in ways that only Triton knows of."""
    runtime = knobs.runtime
    return bool(
        runtime.debug
        or knobs.compilation.instrumentation_mode
        or runtime.add_stages_inspection_hook is not None
        or kernel.pre_run_hooks
        or _has_calls(runtime.launch_enter_hook)
        or _has_calls(runtime.launch_exit_hook)
    )


def _has_calls(hook: Any) -> bool:
    return hook is not None and bool(getattr(hook, "calls", True))
