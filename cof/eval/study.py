"""What a study of the embedded benchmark is planned to be, decides on validation, and finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cof.adaptive import Rule
from cof.eval.adaptive.fitting import fit
from cof.eval.adaptive.signs import Signs, adapted
from cof.eval.halving import best_of
from cof.eval.methods import PLAIN, Method, Where
from cof.eval.results import (
    Groups,
    by_group,
    changed,
    grounding_table,
    two_by_two,
)
from cof.eval.saved import Replies, lines
from cof.eval.store import GROUNDING, write_atomically
from cof.eval.sweep import Grid
from cof.eval.tasks import Example, SceneTask
from cof.settings import Settings
from cof.tiny.benchmark import FINE, KINDS, NUM_OBJECTS
from cof.tiny.scenes import SIDE
from cof.types import Scope

EXACT = "exact match"
"""How answers are read: the one possible answer that the reply names."""

CONTROLS: tuple[Where, ...] = ("whole", "oracle", "random")


@dataclass(frozen=True)
class Plan:
    """How large a study is.

    Attributes:
        scenes: test scenes of each num_objects level.
        validation_scenes: the same for the split on which settings are chosen.
        num_objects: numbers of objects.
        side: of the scenes' canvases, pixels (`cof.tiny.scenes.make_scene`).
        strengths, expands, scopes: the grid of lambda, alpha and scope.
        batch_size: questions in one forward pass.
        limit: only the first so many questions of each split; None: all.
        seed: of the control's boxes and of the bootstrap.
        grounding_max_new_tokens: the longest reply of stage 1.
    """

    scenes: int = 32
    validation_scenes: int = 8
    num_objects: tuple[int, ...] = NUM_OBJECTS
    side: int = SIDE
    strengths: tuple[float, ...] = (1.5, 2.0, 4.0, 8.0, 16.0, 32.0)
    expands: tuple[float, ...] = (1.0, 1.3, 1.6)
    scopes: tuple[Scope, ...] = ("all", "text")
    batch_size: int = 48
    limit: int | None = None
    seed: int = 0
    grounding_max_new_tokens: int = 64

    @classmethod
    def quick(cls) -> Plan:
        """A look at whether everything runs: too few questions to conclude anything."""
        return cls(
            scenes=2, validation_scenes=2, strengths=(4.0, 16.0), expands=(1.0,), scopes=("all",)
        )

    def grid(self) -> list[Method]:
        """CoF with every combination of settings, the mildest first."""
        return Grid(self.strengths, self.expands, self.scopes).methods(Settings())


@dataclass(frozen=True)
class Choice:
    """What the validation split decided.

    Attributes:
        cof: the settings of CoF, and of all others in the main comparison.
        best: each other source of boxes with the lambda that suits it best.
        rule: for CoF where it pays, at the same lambda, and the plain answer elsewhere.
    """

    cof: Method
    best: Mapping[str, Method]
    rule: Rule

    def methods(self) -> dict[str, Method]:
        """Every method by the name under which the test split reports it."""
        same = {
            where: Method(where, self.cof.strength, self.cof.expand, self.cof.scope)
            for where in CONTROLS
        }
        best = {f"{where} (own lambda)": method for where, method in self.best.items()}
        return {
            "plain": PLAIN,
            "whole": same["whole"],
            "cof": self.cof,
            "oracle": same["oracle"],
            "random": same["random"],
            **best,
        }


def gathered(plan: Plan, about: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Score what a study's folder holds, and gather all numbers; `lines.jsonl` has all that is
    known of each test question.

    Args:
        plan: of the study.
        about: what produced the replies.
        out: the study's folder, its run at an end.

    Returns:
        What `results.json` holds.

    Raises:
        CofError: questions or replies are missing or damaged.
    """
    work = out / "work"
    validation, test = (replies_of(work, plan, split) for split in ("validation", "test"))
    choice = choice_of(plan, validation)
    methods = {name: method.key for name, method in choice.methods().items()}
    answers, found = test.of(methods), test.of({GROUNDING: GROUNDING})[GROUNDING]
    looked = {choice.cof.strength: answers["cof"]}
    answers["cof (adaptive)"] = adapted(choice.rule, answers["plain"], found, looked)
    examples = test.examples
    write_atomically(out / "lines.jsonl", lines(test, methods, answers, about, EXACT))
    return {
        "about": about,
        "plan": asdict(plan),
        "choice": {
            "rule": "most validation questions answered rightly, of equals the mildest setting",
            "cof": _settings(choice.cof),
            "own_lambda": {name: method.strength for name, method in choice.best.items()},
            "adaptive": {"sentence": choice.rule.sentence(), **asdict(choice.rule)},
            "validation": _curve(validation, [PLAIN, *plan.grid(), *others(plan, choice.cof)]),
        },
        "test": {
            "questions": len(examples),
            "images": len({example.image for example in examples}),
            "methods": methods,
            "groups": by_group(answers, examples, _groups(plan), seed=plan.seed),
            "changed": changed(answers, examples),
            "grounding": grounding_table(found, examples, _grounding_groups(plan)),
            "two_by_two": {
                name: two_by_two(answers, found, list(filter(belongs, examples)))
                for name, belongs in _fine_groups(plan).items()
                if any(map(belongs, examples))
            },
        },
        "seconds": {"validation": validation.seconds(), "test": test.seconds()},
    }


def choice_of(plan: Plan, validation: Replies) -> Choice:
    """What the replies to the validation questions decide."""
    said = validation.records
    chosen = best_of(plan.grid(), said)
    return Choice(
        cof=chosen,
        best={where: best_of(methods, said) for where, methods in _rivals(plan, chosen).items()},
        rule=best_rule(validation, chosen),
    )


def best_rule(validation: Replies, cof: Method) -> Rule:
    """The adaptive rule for CoF's own lambda (`cof.eval.adaptive.fitting`)."""
    said = validation.records
    looked = {cof.strength: said[cof.key]}
    return fit(Signs.of(validation.examples, said[PLAIN.key], said[GROUNDING], looked)).rule


def _rivals(plan: Plan, cof: Method) -> dict[str, list[Method]]:
    """The other sources of boxes with every lambda, all else as CoF has it."""
    return {
        where: [Method(where, strength, cof.expand, cof.scope) for strength in plan.strengths]
        for where in CONTROLS
    }


def others(plan: Plan, cof: Method) -> list[Method]:
    """All of the other sources of boxes' methods, for the validation split."""
    return [method for methods in _rivals(plan, cof).values() for method in methods]


def replies_of(work: Path, plan: Plan, split: str) -> Replies:
    """The questions of a split and what was said to them, scored."""
    task = SceneTask(work / split, limit=plan.limit)
    return Replies.read(task.examples, [work / f"{split}.jsonl"]).scored(task)


def _settings(method: Method) -> dict[str, Any]:
    return {"strength": method.strength, "expand": method.expand, "scope": method.scope}


def _curve(replies: Replies, methods: Sequence[Method]) -> list[Any]:
    rows = []
    for method in methods:
        said = replies.records[method.key]
        fine = [said[example.id].right for example in replies.examples if example.kind in FINE]
        rows.append(
            {
                "where": method.where,
                **_settings(method),
                "n": len(said),
                "right": sum(bool(record.right) for record in said.values()),
                "n_fine": len(fine),
                "right_fine": sum(map(bool, fine)),
            }
        )
    return rows


def _within(kinds: Sequence[str], num_objects: int | None = None) -> Callable[[Example], bool]:
    return lambda e: e.kind in kinds and num_objects in (None, e.num_objects)


def _fine_groups(plan: Plan) -> Groups:
    levels = {f"fine, {n} objects": _within(FINE, n) for n in plan.num_objects}
    return {"fine": _within(FINE), **levels}


def _groups(plan: Plan) -> Groups:
    levels = {f"all, {n} objects": _within(KINDS, n) for n in plan.num_objects}
    kinds = {kind: _within((kind,)) for kind in KINDS}
    return {**_fine_groups(plan), "all": _within(KINDS), **levels, **kinds}


def _grounding_groups(plan: Plan) -> Groups:
    levels = {f"{n} objects": _within(KINDS, n) for n in plan.num_objects}
    fine = {f"fine, {n} objects": _within(FINE, n) for n in plan.num_objects}
    kinds = {kind: _within((kind,)) for kind in KINDS}
    return {"all": _within(KINDS), **levels, "fine": _within(FINE), **fine, **kinds}
