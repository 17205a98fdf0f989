"""The steps of the suite skills-8: train, merge and report."""

from __future__ import annotations

import argparse

from benchmarks.console import say
from benchmarks.replication import methods, observation
from benchmarks.replication.bench import MergeOptions
from benchmarks.replication.cache import Cache, cached
from benchmarks.replication.calibrated import calibrated_rows
from benchmarks.replication.data import data_folder
from benchmarks.replication.jobs import quiet, run_all
from benchmarks.replication.skills import observe, report
from benchmarks.replication.skills.learned import learn
from benchmarks.replication.skills.merge import LORA, REFERENCES, SkillsBench
from benchmarks.replication.skills.null_space import diagnose
from benchmarks.replication.skills.routed import MASS_ROWS, serve
from benchmarks.replication.skills.specialists import conversations, train
from benchmarks.replication.skills.suite import ROWS, Skills
from benchmarks.replication.skills.tasks import Skill
from benchmarks.replication.suite import Training

__all__ = ["STEPS"]


def _train(suite: Skills, cache: Cache, options: argparse.Namespace) -> None:
    """Write the LM, then train an adapter for each skill and seed."""
    quiet(options.threads)
    _write_lm(suite, cache)
    jobs = [(seed, skill) for seed in options.seeds for skill in suite.skills]
    run_all(_train_one, [(suite, cache, options, *job) for job in jobs], options.jobs)


def _write_lm(suite: Skills, cache: Cache) -> None:
    cached(suite.lm_folder(cache), {"base": suite.base.home}, lambda folder, _: suite.base.write(folder))


def _train_one(suite: Skills, cache: Cache, options: argparse.Namespace, seed: int, skill: Skill) -> None:
    quiet(options.threads)
    base, name = suite.lm_folder(cache), f"seed {seed} {skill.name}"

    facts = {"skill": skill.name, "seed": seed, **suite.training_facts(skill)}
    marker = train(
        base,
        lambda: conversations(suite, base, skill, data_folder()),
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
    bench = SkillsBench(suite, cache, seed, data_folder(), how, say)
    for name in REFERENCES:
        bench.reference(name)
    in_sequence = [row.name for row in methods.sequence_rows(LORA)]
    for name in options.methods or (*ROWS, *in_sequence, *MASS_ROWS):
        for row in (*methods.rows(LORA, [name]), *methods.sequence_rows(LORA, [name])):
            bench.run(row)
        for learned in calibrated_rows(LORA, [name]):
            learn(bench, learned)
        if name in MASS_ROWS:
            serve(bench, name)
    diagnose(bench)


def _observe(suite: Skills, cache: Cache, options: argparse.Namespace) -> None:
    """Follow adapters of the observed skills while they are trained, by the first seed; write tables."""
    quiet(options.threads)
    _write_lm(suite, cache)
    seed, chosen = options.seeds[0], observe.trainings(suite)
    run_all(_observe_one, [(suite, cache, options, seed, *one) for one in chosen], options.jobs)
    seen = {
        observation.title(skill.name, training): observe.follow(
            suite, cache, skill, training, seed, data_folder()
        )
        for skill, training in chosen
    }
    observation.publish(suite.facts(), seed, seen, observe.about(suite), observe.QUALITY, cache.root, options)


def _observe_one(
    suite: Skills, cache: Cache, options: argparse.Namespace, seed: int, skill: Skill, training: Training
) -> None:
    quiet(options.threads)
    name = observation.title(skill.name, training)
    marker = observe.follow(
        suite, cache, skill, training, seed, data_folder(), lambda line: say(f"{name}: {line}")
    )
    say(f"{name}: {marker['seconds']:.0f} s")


STEPS = {"train": _train, "merge": _merge, "report": report.write, "observe": _observe}
