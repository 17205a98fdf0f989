"""The steps of the suite skills-8: train, merge and report."""

from __future__ import annotations

import argparse

from benchmarks.console import say
from benchmarks.replication import methods
from benchmarks.replication.bench import MergeOptions
from benchmarks.replication.cache import Cache, cached
from benchmarks.replication.calibrated import calibrated_rows
from benchmarks.replication.data import data_folder
from benchmarks.replication.jobs import quiet, run_all
from benchmarks.replication.skills import report
from benchmarks.replication.skills.chat import Chat, Conversation
from benchmarks.replication.skills.learned import learn
from benchmarks.replication.skills.merge import LORA, REFERENCES, SkillsBench
from benchmarks.replication.skills.null_space import diagnose
from benchmarks.replication.skills.routed import MASS_ROWS, serve
from benchmarks.replication.skills.sequence import SkillsInSequence
from benchmarks.replication.skills.specialists import train
from benchmarks.replication.skills.suite import ROWS, Skills
from benchmarks.replication.skills.tasks import Skill

__all__ = ["STEPS"]


def _train(suite: Skills, cache: Cache, options: argparse.Namespace) -> None:
    """Write the LM, then train an adapter for each skill and seed."""
    quiet(options.threads)
    cached(suite.lm_folder(cache), {"base": suite.base.home}, lambda folder, _: suite.base.write(folder))
    jobs = [(seed, skill) for seed in options.seeds for skill in suite.skills]
    run_all(_train_one, [(suite, cache, options, *job) for job in jobs], options.jobs)


def _train_one(suite: Skills, cache: Cache, options: argparse.Namespace, seed: int, skill: Skill) -> None:
    quiet(options.threads)
    base, name = suite.lm_folder(cache), f"seed {seed} {skill.name}"

    def conversations() -> list[Conversation]:
        every = Chat(base).conversations(skill, suite.examples(skill, data_folder())["train"])
        return [one for one in every if len(one) <= suite.longest]

    facts = {"skill": skill.name, "seed": seed, **suite.training_facts(skill)}
    marker = train(
        base,
        conversations,
        cache.specialist(seed, LORA, skill.name),
        suite.training,
        suite.targets,
        facts,
        lambda line: say(f"{name}: {line}"),
    )
    say(f"{name}: {marker['seconds']:.0f} s, loss {marker['losses'][-1]:.3f}")


def _merge(suite: Skills, cache: Cache, options: argparse.Namespace) -> None:
    """Score base and adapters, merge by every method, let MASS find the skills, and measure null spaces."""
    for seeds in (options.seeds[:1], options.seeds[1:]):  # later seeds look for scales near the first one's
        run_all(_merge_one, [(suite, cache, options, seed) for seed in seeds], options.jobs)


def _merge_one(suite: Skills, cache: Cache, options: argparse.Namespace, seed: int) -> None:
    quiet(options.threads)
    how = MergeOptions(suite.grid, costs=seed == 0, threads=options.threads)
    given = (suite, cache, seed, data_folder(), how, say)
    bench = SkillsBench(*given)
    for name in REFERENCES:
        bench.reference(name)
    for name in options.methods or (*ROWS, methods.MANY.name, *MASS_ROWS):
        for row in methods.rows(LORA, [name]):
            bench.run(row)
        for learned in calibrated_rows(LORA, [name]):
            learn(bench, learned)
        if name == methods.MANY.name:
            SkillsInSequence(*given).run(methods.MANY)
        if name in MASS_ROWS:
            serve(bench, name)
    diagnose(bench)


STEPS = {"train": _train, "merge": _merge, "report": report.write}
