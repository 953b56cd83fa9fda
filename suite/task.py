"""What a task is, and how tasks are found.

A task is one file, ``tasks/chNN_chapter/name.py``, that ends in a constant ``TASK``; its id is
``chNN.name``. Finding, listing and describing tasks reads file names and source text only, so
it needs neither torch nor the task itself; ``find`` imports the one task it is asked for.
"""

import ast
import dataclasses
import difflib
import fnmatch
import functools
import hashlib
import importlib
import inspect
import re
import tokenize
import typing
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from suite import fields
from suite.threshold import meets

Metrics = Mapping[str, float]
Yielded = None | Metrics | Callable[[], Metrics]
Run = Callable[[Any, Any], Generator[Yielded, None, None]]

PROFILES = ("smoke", "laptop", "paper")
MODES = ("max", "min", "near")
QUOTES = ("'''", '"""', '"', "'")
# What suite.fields declares numbers with, and the types that they are: Count -> int.
NUMBERS = {
    name: typing.get_args(kind)[0].__name__
    for name, kind in vars(fields).items()
    if typing.get_origin(kind) is typing.Annotated
}


def unknown(kind: str, given: str, allowed: Iterable[str]) -> ValueError:
    """The error for a name that is not known: what was given, what is allowed, the nearest."""
    names = sorted(allowed)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return ValueError(f"unknown {kind} {given!r}{hint} Allowed: {', '.join(names) or 'none'}")


@dataclasses.dataclass(frozen=True)
class Target:
    """The number a run has to reach, and where that number comes from.

    Attributes:
        metric: name of the metric a run yields.
        value: the number to reach.
        mode: ``max`` (at or above), ``min`` (at or below) or ``near`` (within ``tolerance``).
        source: where the number is stated; never empty.
        tolerance: how far short still counts as WITHIN_TOLERANCE (``max``, ``min``), or the
            half-width of the band (``near``), in the metric's unit.
    """

    metric: str
    value: float
    mode: str
    source: str
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown("target mode", self.mode, MODES)
        if not self.source.strip():
            raise ValueError(f"the target on {self.metric!r} names no source")
        if self.tolerance < 0 or (self.mode == "near" and self.tolerance == 0):
            raise ValueError(f"the target on {self.metric!r} has tolerance {self.tolerance}")

    def reached(self, metrics: Metrics) -> bool:
        """Whether ``metrics`` meets the target; see `suite.threshold.meets`."""
        return meets(metrics[self.metric], self)

    def __str__(self) -> str:
        if self.mode == "near":
            return f"{self.metric} = {self.value:g} ± {self.tolerance:g}"
        return f"{self.metric} {'≥' if self.mode == 'max' else '≤'} {self.value:g}"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of the book that compares a variant with another, or with a number.

    Attributes:
        text: the statement, as a reader would say it.
        metric: a metric of the run's last row, or ``steps_to_target``.
        left: the variant that is claimed to do better.
        right: the variant it is compared with, paired by seed, or a number.
        mode: ``max`` when the left should be the larger, ``min`` when the smaller.
        source: where the claim is made; never empty.
        margin: by how much the left should be better, in the metric's unit.
        profiles: where the claim is judged.
        note: why the verdict is what it is, where it needs saying.
        censored: the metric says when something happened, and is missing in a run in which it did
            not: later than every number. ``steps_to_target`` always is.
    """

    text: str
    metric: str
    left: str
    right: str | float
    mode: str
    source: str
    margin: float = 0.0
    profiles: tuple[str, ...] = ("laptop", "paper")
    note: str = ""
    censored: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min"):
            raise unknown("claim mode", self.mode, ("max", "min"))
        if not self.source.strip():
            raise ValueError(f"the claim {self.text!r} names no source")

    @property
    def ordered(self) -> bool:
        """Whether the metric may be missing as what it times did not happen."""
        return self.censored or self.metric == "steps_to_target"


@dataclasses.dataclass(frozen=True)
class Needs:
    """What one run takes of a node of a cluster.

    Attributes:
        cpus: processor cores, which are also its torch threads.
        gpus: GPUs of a run on a GPU; a fraction shares one.
        actors: Ray actors that it starts, each with one more core on any node.
    """

    cpus: int = 1
    gpus: float = 1.0
    actors: int = 0

    def __post_init__(self) -> None:
        if self.actors < 0:
            raise ValueError(f"{self.actors} Ray actors: a run starts none or more")
        if self.cpus < 1 or self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ValueError(
                f"needs of {self.cpus} CPUs and {self.gpus:g} GPUs: give at least one CPU, "
                "and whole GPUs or a fraction of one"
            )

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU{'s' * (self.gpus > 1)}" if self.gpus else ""
        return f"{self.cpus} CPU{'s' * (self.cpus > 1)}{gpus}"


@dataclasses.dataclass(frozen=True)
class Task:
    """One experiment of the book.

    Attributes:
        config: a frozen dataclass instance; its defaults are the book's own setting.
        run: the generator function ``run(cfg, ctx)``; see the README, "Adding a task".
        sections: the sections of the book that it covers.
        profiles: what ``smoke``, ``laptop`` and ``paper`` change in the config: sizes only.
        variants: what is computed: name -> changes of the config. The first is the default.
        targets: profile -> variant -> target. A variant may have none: it is then there for
            a claim to compare with.
        claims: the comparisons the book makes.
        impls: how it may be computed; the first is the default. More than one needs ``cfg.impl``.
        sweep: field -> the ``suite.space.Range`` or ``Choice`` that a sweep searches.
        nondeterministic: variants whose runs do not repeat bit for bit on a CPU, with the reason.
        needs: profile -> what a run takes of a node of a cluster; a core, and a GPU where it runs
            on one, when not given.
        actors: the config field that says how many Ray actors a run starts beside its own
            process; such a run needs a cluster, and does not repeat itself bit for bit.
        gpu_first: variants that only a GPU can run at the paper's size in a sensible time; on one
            ``suite gpu`` runs them before all others.
    """

    config: Any
    run: Run
    sections: tuple[str, ...]
    profiles: Mapping[str, Mapping[str, Any]]
    variants: Mapping[str, Mapping[str, Any]]
    targets: Mapping[str, Mapping[str, Target]]
    claims: tuple[Claim, ...] = ()
    impls: tuple[str, ...] = ("torch",)
    sweep: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    nondeterministic: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needs: Mapping[str, Needs] = dataclasses.field(default_factory=dict)
    actors: str = ""
    gpu_first: tuple[str, ...] = ()

    def needs_of(self, profile: str, cfg: Any) -> Needs:
        """What a run with this config takes of a cluster.

        Raises:
            ValueError: a negative number of actors.
        """
        own = self.needs.get(profile, Needs())
        actors = getattr(cfg, self.actors) if self.actors else 0
        return dataclasses.replace(own, actors=actors) if actors else own

    def configure(
        self,
        profile: str = "paper",
        variant: str | None = None,
        impl: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Any:
        """The config of one run: book's setting, then profile, variant, impl and overrides.

        Raises:
            ValueError: an unknown profile, variant, impl, field or data set, a value of another
                type, or a word or number that a field may not be.
        """
        variant = variant or next(iter(self.variants))
        impl = impl or self.impls[0]
        for kind, given, allowed in (
            ("profile", profile, self.profiles),
            ("variant", variant, self.variants),
            ("impl", impl, self.impls),
        ):
            if given not in allowed:
                raise unknown(kind, given, allowed)
        changes = {**self.profiles[profile], **self.variants[variant]}
        if len(self.impls) > 1:
            changes["impl"] = impl
        cfg = dataclasses.replace(self.config, **changes)
        cfg = dataclasses.replace(cfg, **_checked(cfg, overrides or {}))
        words = choices(type(self.config))
        if "data" not in words and isinstance(getattr(cfg, "data", None), str):
            words["data"] = self._data_sets()
        for field, allowed in words.items():
            if getattr(cfg, field) not in allowed:
                raise unknown(field, getattr(cfg, field), allowed)
        for field, interval in fields.intervals(type(self.config)).items():
            if not fields.contains(interval, value := getattr(cfg, field)):
                allowed_numbers = fields.described(interval, type(value))
                raise ValueError(f"field {field!r} takes {allowed_numbers}, got {value!r}")
        return cfg

    def _data_sets(self) -> tuple[str, ...]:
        """What the field ``data`` may be: what there is, and what only this task knows."""
        from suite.data import CATALOGUE  # which needs the errors of this module

        changes = (*self.profiles.values(), *self.variants.values())
        return tuple({*CATALOGUE, self.config.data, *(c["data"] for c in changes if "data" in c)})

    def target(self, profile: str, variant: str) -> Target | None:
        """The target of a variant under a profile, or None."""
        return self.targets.get(profile, {}).get(variant)

    def timed_to(self, profile: str, variant: str) -> Target | None:
        """The target whose crossing is timed: the variant's own, or the one it is compared at.

        A variant without a target of its own may stand on one side of a claim on
        ``steps_to_target``; it is then timed to the target of the other side.
        """
        target = self.target(profile, variant)
        for claim in self.claims:
            timed = claim.metric == "steps_to_target" and profile in claim.profiles
            if target is None and timed:
                sides = {claim.left: claim.right, claim.right: claim.left}
                other = sides.get(variant)
                target = self.target(profile, other) if isinstance(other, str) else None
        return None if target is None or target.mode == "near" else target

    def judged(self, profile: str) -> list[str]:
        """The variants that some target or claim of this profile needs, in declared order."""
        needed = set(self.targets.get(profile, {}))
        for claim in self.claims:
            if profile in claim.profiles:
                needed |= {claim.left, str(claim.right)}
        return [v for v in self.variants if v in needed]


def choices(config: type) -> dict[str, tuple[str, ...]]:
    """The fields of a task's config that are one of some words, declared ``Literal[...]``."""
    declared = typing.get_type_hints(config)
    return {
        field: typing.get_args(kind)
        for field, kind in declared.items()
        if typing.get_origin(kind) is typing.Literal
    }


def described(config: Any) -> dict[str, tuple[Any, str]]:
    """Each field of a task's config: its default, and what else it may be, in words."""
    words, numbers = choices(type(config)), fields.intervals(type(config))
    found = {}
    for field in dataclasses.fields(config):
        default = getattr(config, field.name)
        if field.name in words:
            allowed = ", ".join(words[field.name])
        elif field.name in numbers:
            allowed = fields.described(numbers[field.name], type(default))
        else:
            allowed = type(default).__name__
        found[field.name] = (default, allowed)
    return found


def _checked(cfg: Any, overrides: Mapping[str, Any]) -> dict[str, Any]:
    known = {f.name for f in dataclasses.fields(cfg)}
    checked = {}
    for name, value in overrides.items():
        if name not in known:
            raise unknown("field", name, known)
        checked[name] = _coerced(name, value, getattr(cfg, name))
    return checked


def _coerced(name: str, value: Any, like: Any) -> Any:
    """``value``, perhaps typed on a command line, as the type of ``like``."""
    if isinstance(value, type(like)):
        return value
    try:
        parsed = ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        parsed = value
    if isinstance(parsed, str) and parsed.lower() in ("true", "false"):
        parsed = parsed.lower() == "true"
    if isinstance(like, float) and isinstance(parsed, int) and not isinstance(parsed, bool):
        parsed = float(parsed)
    if like is not None and type(parsed) is not type(like):
        kind = type(like).__name__
        raise ValueError(f"field {name!r} takes a {kind} such as {like!r}, got {value!r}")
    return parsed


@functools.cache
def _roots() -> list[Path]:
    """The folders that hold chapters: ours, then the user's own."""
    return [Path(p) for p in importlib.import_module("tasks").__path__]


@functools.cache
def _files(name: str) -> list[Path]:
    """The files of that name, or glob, in the chapters' folders; of two the one an import gets."""
    found = {p.parts[-2:]: p for r in reversed(_roots()) for p in r.glob(f"ch[0-9][0-9]_*/{name}")}
    return [path for _, path in sorted(found.items())]


def _paths() -> Iterator[tuple[str, Path]]:
    for path in _files("*.py"):
        if not path.stem.startswith("_"):
            yield f"{path.parent.name[:4]}.{path.stem}", path


def names() -> list[str]:
    """Every task id, sorted."""
    return [name for name, _ in _paths()]


def source_path(name: str) -> Path:
    """The file of a task. Raises ValueError with the nearest id where there is none."""
    paths = dict(_paths())
    if name not in paths:
        raise unknown("task", name, paths)
    return paths[name]


def find(name: str) -> Task:
    """Import one task. Raises ValueError with the nearest id where there is none."""
    path = source_path(name)
    module = importlib.import_module(f"tasks.{path.parent.name}.{path.stem}")
    return module.TASK  # type: ignore[no-any-return]


def select(patterns: Iterable[str]) -> list[str]:
    """The task ids that ids, chapters (``ch12``) and globs (``'ch*.lstm*'``) stand for.

    Raises:
        ValueError: a pattern that selects nothing, with the nearest id or chapter.
    """
    known, chosen = names(), []
    for pattern in patterns:
        if re.fullmatch(r"ch\d+", pattern):
            found = [n for n in known if n.startswith(f"ch{int(pattern[2:]):02d}.")]
        else:
            found = [n for n in known if fnmatch.fnmatchcase(n, pattern)]
        if not found:
            raise unknown("task", pattern, [*known, *{n.split(".")[0] for n in known}])
        chosen += found
    return list(dict.fromkeys(chosen))


def summary(name: str) -> dict[str, str]:
    """What a task's file says of itself, read without importing it: id, title, summary, path."""
    path = source_path(name)
    text = _docstring(path)
    return {
        "id": name,
        "chapter": str(int(name[2:4])),
        "title": text.partition("\n")[0].rstrip("."),
        "file": f"{path.parent.parent.name}/{path.parent.name}/{path.name}",
        "doc": text,
    }


def _docstring(path: Path) -> str:
    """A file's docstring; what follows it is not even parsed, for ``suite list`` to be quick."""
    between = (tokenize.COMMENT, tokenize.NL)
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.STRING:
                return inspect.cleandoc(ast.literal_eval(token.string))
            if token.type not in between:
                break
    return ""


def headlines() -> list[str]:
    """One task a chapter: the ``HEADLINE`` its ``__init__`` names."""
    found = []
    for init in _files("__init__.py"):
        match = re.search(r'^HEADLINE = "(\w+)"$', init.read_text(), re.MULTILINE)
        if match:
            found.append(f"{init.parent.name[:4]}.{match[1]}")
    return found


@functools.cache
def version(name: str) -> str:
    """Hash of what a task computes: its file, and the models, loops and kernels that it imports.

    Comments, docstrings, layout and what a config refuses do not count, so tidying a file keeps
    its series of results.
    """
    todo, done = [source_path(name)], {}
    while todo:
        path = todo.pop()
        if path in done:
            continue
        tree = _without_docstrings(ast.parse(path.read_bytes()))
        done[path] = ast.unparse(_Quoted().visit(_Declared().visit(tree)))
        todo += [p for m in _imported(tree) if (p := _shared_source(m)) is not None]
    text = "\n".join(done[p] for p in sorted(done, key=_within_checkout))
    return hashlib.sha256(text.encode()).hexdigest()


def _within_checkout(path: Path) -> tuple[str, ...]:
    """A source file's path from its checkout on: the checkout's own name decides nothing."""
    root = next(r.parent for r in _roots() if path.is_relative_to(r.parent))
    return path.relative_to(root).parts


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef():
                if ast.get_docstring(node, clean=False) is not None:
                    node.body = node.body[1:]
    return tree


class _Declared(ast.NodeTransformer):
    """Fields as the plain types that they are: what a config refuses computes nothing."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        match node.annotation:
            case ast.Subscript(value=ast.Name("Literal")):
                node.annotation = ast.Name("str")
            case ast.Subscript(value=ast.Name("Annotated"), slice=ast.Tuple(elts=[kind, *_])):
                node.annotation = kind
            case ast.Name(name) if name in NUMBERS:
                node.annotation = ast.Name(NUMBERS[name])
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef | None:
        return None if node.name == "__post_init__" and _only_refuses(node) else node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom | None:
        if node.module in ("suite.fields", "annotated_types"):
            return None
        if node.module == "typing":
            declaring = ("Literal", "Annotated")
            node.names = [name for name in node.names if name.name not in declaring]
        return node if node.names else None


def _only_refuses(function: ast.FunctionDef) -> bool:
    """Whether a function is nothing but ``if ...: raise ...``."""
    return all(
        isinstance(node, ast.If)
        and not node.orelse
        and all(isinstance(then, ast.Raise) for then in node.body)
        for node in function.body
    )


class _Quoted(ast.NodeTransformer):
    """F-strings written with quotes that do not occur in them, so that all Pythons agree.

    Python 3.12 takes single ones whatever stands inside; those before and after it do not.
    """

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Name:
        self.generic_visit(node)
        text = ast.unparse(node)
        old = next(q for q in QUOTES if text.startswith(f"f{q}"))
        body = text[1 + len(old) : -len(old)]
        new = next((q for q in QUOTES[::-1] if q not in body), old)
        # A name is written as it is.
        return ast.Name(f"f{new}{body}{new}")

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.FormattedValue:
        # Its format is an f-string too, and has no quotes.
        node.value = self.visit(node.value)
        return node


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{a.name}" for a in node.names)


def _shared_source(module: str) -> Path | None:
    """The file of a module whose text is part of what a task computes, or None.

    Code for a GPU is not: it computes the reference, faster. Nor is what chooses between
    implementations. Results name the implementation that ran, and the commit.
    """
    if module.startswith("kernels.") and module.endswith((".op", ".triton", ".dispatch")):
        return None
    if not module.startswith(("tasks.", "kernels.", "suite.fit", "suite.rl")):
        return None
    path = Path(*module.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    found = (root.parent / file for root in _roots() for file in files)
    return next((p for p in found if p.is_file()), None)
