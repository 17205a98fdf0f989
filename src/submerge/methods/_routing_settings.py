"""How MASS' router finds the tasks of an input: the gate's settings as values, for one model.

Recipes and `submerge.json` hold words; `RoutingSettings.from_mapping` is the one place that reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from submerge.methods._layer_rule import LayerRule, paper_site

__all__ = ["POSITIONS", "Pooling", "RoutingSettings", "Score"]

POSITIONS = ("attention", "attention_out", "mlp", "mlp_out")
"""The four inputs of a transformer's block that maps take in, in the order in which they are met."""


class Score(Enum):
    """What tells tasks apart at a site, by the word for it in recipes.

    `RESIDUAL` is the length of what a task's subspace leaves of the input, `WHITENED` that of a whitened
    input. `GAUSSIAN` is minus the log-density under the task's covariance. `TRAILING_ENERGY` is the share of
    what an update reads of the input that the trailing half of its singular directions reads; recipes call
    it `leading`, for it is small where the leading half reads most. `NULL_SPACE` is the share of the input
    that an update does not read, as a mean over tokens, beside the share of noise that it does not read.
    """

    RESIDUAL = "residual"
    TRAILING_ENERGY = "leading"
    WHITENED = "whitened"
    GAUSSIAN = "gaussian"
    NULL_SPACE = "null_space"

    @property
    def agreement_weight(self) -> float:
        """What a standard deviation that all sites agree on is worth beside other evidence, in nats.

        Chosen on validation items: of three suites of fine-tunes, where anything from 16 to 32 does as well
        as 24, and of two suites of adapters, where 64 to 128 do. Random rows make every site of an adapter
        waver, each in its own way, so that the same agreement says more. Of null-space ratios, whose maps are
        on one scale, 12 to 24 did best on one suite of adapters.
        """
        return 96.0 if self is Score.TRAILING_ENERGY else 24.0

    @property
    def per_map(self) -> bool:
        """Whether each map of a site counts by itself, and not the mean of the site's maps.

        Each map of an adapter has an A of its own, with rows that are nearly as they were drawn: what two
        maps of a site show is two pieces of evidence, of which neither is on the other's scale.
        """
        return self in (Score.TRAILING_ENERGY, Score.NULL_SPACE)

    @property
    def one_scale(self) -> bool:
        """Whether scores of different maps are on one scale, so that the mean of the scores themselves ranks.

        On validation items of twenty adapters the mean of the null-space ratios themselves finds 31 % of the
        tasks, the mean of their z-scores 23 %: where all ratios of a map are alike, their order is chance.
        """
        return self is Score.NULL_SPACE


class Pooling(Enum):
    """What is taken of a sample's tokens: their mean, the first of them, or each."""

    MEAN = "mean"
    CLS = "cls"
    TOKENS = "tokens"


@dataclass(frozen=True)
class RoutingSettings:
    """The settings of a router, with nothing left open but what the layers that `auto` means are.

    Attributes:
        routes_on_base: whether the first pass is the base's, and not the static merge's.
        one_pass: whether the layers that are looked at run once, as the static merge.
        layers: which layers are looked at.
        positions: which inputs of a layer are: `all`, one of `POSITIONS`, or `paper`.
        pooling: what is taken of a sample's tokens.
        score: what tells tasks apart there.
        reference: whether scores count from those of inputs of no task.
        norm: of residuals: `l2`, `l1` or `mahalanobis`.
        head_evidence: whether the heads' outputs in the first pass count, too.
        calibration: whether what inputs of the tasks showed counts, too, where the folder has it.
        select: which tasks run: the first (`top1`), those above a share (`threshold`), or `weighted`, which
            is the same for shares of the residuals themselves, without z-scores and without a limit.
        threshold: least share η of a task that runs.
        max_tasks: most tasks K that run at once; None for any number.
        temperature: τ of the shares.
        heads: which head answers: the best task's (`router`), or that of the largest `max` or mean (`avg`)
            logit.
        batch_is_group: whether a batch without groups gets one decision.
        mean_of_residuals: whether residuals of a group are averaged before z-scores, and not the scores.
        forms: for each task the inputs that it takes: `any`, `single` or `pair`.
    """

    routes_on_base: bool
    one_pass: bool
    layers: LayerRule
    positions: str
    pooling: Pooling
    score: Score
    reference: bool
    norm: str
    head_evidence: bool
    calibration: bool
    select: Literal["top1", "threshold", "weighted"]
    threshold: float
    max_tasks: int | None
    temperature: float
    heads: Literal["router", "max", "avg"]
    batch_is_group: bool
    mean_of_residuals: bool
    forms: tuple[str, ...]

    @classmethod
    def from_mapping(
        cls,
        settings: Mapping[str, Any],
        *,
        images: bool = False,
        low_rank: bool = False,
        decoder: bool = False,
    ) -> RoutingSettings:
        """Return the values that the gate's settings mean for a model.

        Args:
            settings: every setting of the gate by its name in recipes.
            images: whether the model's main input are images.
            low_rank: whether most of its updates are of adapters.
            decoder: whether it is a decoder that generates.

        Raises:
            RequestError: `routing_layers` has no form that is known.
        """
        select, score = settings["select"], _score(settings["score"], low_rank)
        return cls(
            routes_on_base=routes_on_base(settings),
            one_pass=settings["passes"] == "one",
            layers=LayerRule.parse(str(settings["routing_layers"])),
            positions=settings["routing_sites"],
            pooling=_pooling(settings["pooling"], images, score),
            score=score,
            reference=_reference(settings["reference"], score, decoder),
            norm=settings["norm"],
            head_evidence=settings["head_evidence"] == "auto" and select != "weighted",
            calibration=settings["calibration"] == "auto",
            select=select,
            threshold=settings["threshold"],
            max_tasks=None if select == "weighted" else settings["max_tasks"],
            temperature=settings["temperature"],
            heads=settings["heads"],
            batch_is_group=settings["batch"] == "batch",
            mean_of_residuals=settings["group_mean"] == "residuals",
            forms=tuple(settings["form"]),
        )

    @property
    def standardised(self) -> bool:
        """Whether residuals become z-scores over the tasks, beside which other evidence can be put."""
        return self.select != "weighted"

    @property
    def first_pass_words(self) -> dict[str, Any]:
        """What decides about the scores of a first pass, but for the heads', as plain words.

        Folders that were calibrated before there was a reference have no word for it.
        """
        words = {
            "routes_on_base": self.routes_on_base,
            "one_pass": self.one_pass,
            "layers": self.layers.text,
            "positions": self.positions,
            "pooling": self.pooling.value,
            "score": self.score.value,
            "norm": self.norm,
            "standardised": self.standardised,
        }
        return {**words, "reference": "noise"} if self.reference else words

    def layer_rule(self, count: int) -> LayerRule:
        """Return the rule for a model of `count` layers, where one pass makes `auto` the first third of them.

        One pass shares the layers that are looked at. Those run as the static merge for every task, so few
        should.
        """
        if self.one_pass and self.layers.text == "auto":
            return LayerRule.parse(f"first:{max(1, round(count / 3))}")
        return self.layers

    def position(self, stack: str, count: int) -> str | None:
        """Return the one of `POSITIONS` that is looked at in a stack of `count` layers; None for all."""
        if self.positions == "paper":
            return paper_site(stack, count)[1]
        return None if self.positions == "all" else self.positions


def routes_on_base(settings: Mapping[str, Any]) -> bool:
    """Say whether the first pass is the base's."""
    first, passes = settings["first_pass"], settings["passes"]
    return bool(first == "base" or (first == "auto" and passes == "two"))


def _pooling(word: str, images: bool, score: Score) -> Pooling:
    """Return the pooling that a setting means; the paper's is an image's first token, or a text's mean."""
    if word == "auto":
        word = "tokens" if images or score is Score.NULL_SPACE else "mean"
    if word == "paper":
        word = "cls" if images else "mean"
    return Pooling(word)


def _score(word: str, low_rank: bool) -> Score:
    """Return the score; not the residual of adapters, whose rows span what they did when they were drawn."""
    if word == "auto":
        return Score.TRAILING_ENERGY if low_rank else Score.RESIDUAL
    return Score(word)


def _reference(word: str, score: Score, decoder: bool) -> bool:
    """Return whether scores count from those of noise; if not chosen, those of a decoder's adapters do.

    All activations of a decoder have much in common, so that without it prompts meet adapters of other tasks.
    To an encoder of texts random tokens are unlike any text, and the tasks of fewer texts are found.
    """
    return word == "noise" or (word == "auto" and decoder and score is Score.TRAILING_ENERGY)
