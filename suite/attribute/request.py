"""What is asked for: a task, its kernels, and the implementations to compare."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from suite import exact, task
from suite.plan import Spec, expand
from suite.record import digest

BASELINE = "torch"
CONTROL = "control"


@dataclass(frozen=True)
class Arm:
    """One process of a pair.

    Attributes:
        name: of it.
        spec: the run that it makes.
        kept: ops that it runs in the baseline's implementation, whatever the run asks for.
        baseline: what that is.
    """

    name: str
    spec: Spec
    kept: tuple[str, ...] = ()
    baseline: str = BASELINE


@dataclass(frozen=True)
class Request:
    """What to compare.

    Attributes:
        task: its id.
        profile: how big.
        variant: what is computed.
        baseline: the implementation that others are compared with.
        impls: those.
        ops: the ops whose implementation changes; others stay in the baseline's.
        others: ops that the task calls beside them.
        device: a torch device.
        threads: of each process.
    """

    task: str
    profile: str
    variant: str
    baseline: str
    impls: tuple[str, ...]
    ops: tuple[str, ...]
    others: tuple[str, ...] = ()
    device: str = "cpu"
    threads: int = 1

    def specs(self, impls: Iterable[str], seeds: Iterable[int]) -> list[Spec]:
        """The runs under some implementations.

        Raises:
            ValueError: an implementation that the task does not have, or this machine cannot run.
        """
        return expand(
            [self.task],
            profile=self.profile,
            variants=[self.variant],
            impls=impls,
            seeds=seeds,
            device=self.device,
        )

    def arms(self, seed: int) -> list[Arm]:
        """The baseline, the baseline again, and each implementation: everywhere, and but for an op.

        Args:
            seed: of all of them, so that all train on the same examples in the same order.
        """
        found = {s.impl: s for s in self.specs([self.baseline, *self.impls], [seed])}
        base = found[self.baseline]
        made = [Arm(self.baseline, base), Arm(CONTROL, base)]
        for impl in self.impls:
            made.append(Arm(impl, found[impl], self.others, self.baseline))
            for op in self.ops if len(self.ops) > 1 else ():
                kept = (*self.others, op)
                made.append(Arm(without(impl, op), found[impl], kept, self.baseline))
        return made

    @functools.cached_property
    def session(self) -> str:
        """Names what is compared: the same code of task and kernels, on one kind of machine."""
        from suite import bench, provenance

        env = provenance.env()
        return digest(
            {
                "task": self.task,
                "version": task.version(self.task),
                "kernels": {
                    op: bench.version(op, self.device) for op in sorted((*self.ops, *self.others))
                },
                "profile": self.profile,
                "variant": self.variant,
                "baseline": self.baseline,
                "impls": sorted(self.impls),
                "ops": sorted(self.ops),
                "machine": bench.device_name(self.device),
                "threads": self.threads,
                "torch": env.torch.version,
                "triton": (env.triton or {}).get("version"),
            }
        )


def without(impl: str, op: str) -> str:
    """The name of the arm that has an implementation everywhere but in one op."""
    return f"{impl} without {op}"


def resolve(
    name: str,
    *,
    profile: str,
    variant: str | None = None,
    baseline: str | None = None,
    impls: Iterable[str] = (),
    only: Iterable[str] = (),
    device: str = "cpu",
    threads: int = 1,
) -> Request:
    """What is meant, with everything that was not said.

    Args:
        name: a task id.
        profile: how big.
        variant: the first one that calls a kernel when None.
        baseline: PyTorch's own operators when None.
        impls: all others that can run on the device when empty.
        only: the ops to look at; all when empty.
        device: a torch device.
        threads: of each process.

    Raises:
        ValueError: a name that does not exist, or a task or variant without a kernel.
    """
    t = task.find(name)
    # A task that lets nobody choose how its kernels are computed has nothing to compare.
    calling = kernels_of(name) if len(t.impls) > 1 else {}
    if not calling:
        raise ValueError(
            f"{name} calls no kernel in more than one implementation: there is nothing to "
            f"attribute. Tasks that do: {', '.join(attributable()) or 'none'}"
        )
    if variant is not None and variant not in t.variants:
        raise task.unknown("variant", variant, t.variants)
    if variant is not None and variant not in calling:
        raise ValueError(
            f"variant {variant!r} of {name} calls no kernel. Variants that do: {', '.join(calling)}"
        )
    variant = variant or next(iter(calling))
    base = baseline or (BASELINE if BASELINE in t.impls else t.impls[0])
    others = [i for i in t.impls if i != base and (i != "triton" or device.startswith("cuda"))]
    chosen = list(dict.fromkeys(impls)) or others
    for kind, given, allowed in (
        ("impl", [base, *chosen], t.impls),
        ("op", list(only), calling[variant]),
    ):
        for one in given:
            if one not in allowed:
                raise task.unknown(kind, one, allowed)
    if "triton" in (base, *chosen) and not device.startswith("cuda"):
        raise ValueError("impl 'triton' needs a CUDA device: interpreted kernels have no speed")
    if base in chosen:
        raise ValueError(f"--impl {base} is the baseline: name another one of {', '.join(others)}")
    ops = tuple(op for op in calling[variant] if not only or op in set(only))
    rest = tuple(op for op in calling[variant] if op not in ops)
    made = Request(name, profile, variant, base, tuple(chosen), ops, rest, device, threads)
    made.specs([base, *chosen], [0])
    return made


def kernels_of(name: str) -> dict[str, list[str]]:
    """Variant -> the ops that it calls, of those that call any.

    What the stored table of exact quantities does not know is found out by smoke runs.
    """
    known: Mapping[str, exact.Quantities] = exact.stored().get(name, {})
    variants = task.find(name).variants
    if not set(variants) <= set(known):
        known = {variant: found for _, variant, found in exact.measure([name])}
    return {v: sorted(known[v]["dispatched"]) for v in variants if known[v]["dispatched"]}


def attributable() -> list[str]:
    """The tasks with a kernel in several implementations, as the stored table has them."""
    return sorted(
        name
        for name, variants in exact.stored().items()
        if any(found["dispatched"] for found in variants.values())
    )
