"""Which tensors of a file without a configuration are an adapter's, and in whose form, by their names alone.

diffusers writes `<component>.<module>` with `.lora_A.weight` or `.lora.down.weight` (older versions
`.processor.to_q_lora.down.weight`, `.lora_linear_layer.down.weight`), kohya's scripts write
`lora_unet_<module with _ for .>` with `.lora_down.weight`. Either may add `.alpha`: the scale is alpha /
rank, and 1 without it. PEFT's own files have the same factors, but their configuration has the scale.
Where a state dict was saved by other means than theirs, names have PEFT's name of the adapter
(`.lora_A.default.weight`, of DiffSynth-Studio).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import PurePath

from submerge.errors import Problem, RequestError, few
from submerge.store.adapter._kinds import KINDS
from submerge.store.adapter._parts import Form
from submerge.store.adapter._unsupported import NO_UPDATE

__all__ = ["LoraNames", "component_of", "is_of_lora", "lora_names"]

_FACTOR = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<letter>[AB])(?:\.default)?|(?:lora_|lora\.|lora_linear_layer\.)(?P<way>down|up))"
    r"\.weight"
)
_OLD_FACTOR = re.compile(r"(?P<parent>.+)\.(?P<leaf>to_(?:[qkv]|out))_lora\.(?P<way>down|up)\.weight")
_TEXT_LEAVES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_LETTERS = {"down": "A", "up": "B"}
# of LyCORIS: parts of products, differences of values (of norms under names of their own), cores
_DENSE = re.compile(r"(?P<module>.+)\.(?P<role>(?:hada|lokr)_[wt][12](?:_[ab])?|diff(?:_b)?|[wb]_norm)")
_CORE = re.compile(r"(?P<module>.+)\.lora_mid\.weight")
_DORA = re.compile(r"(?P<module>.+)\.dora_scale")
_MORE = re.compile(r"(?P<module>.+)\.(?P<role>lora_B\.bias|lora_magnitude_vector(?:\.weight)?|alpha)")
# names that only factors of LoRA have, in whatever form
_LIKE = re.compile(
    r"(?:^|[._])lora_(?:[AaBb]|up|down|embedding_[AB]|magnitude_vector)(?:\.[\w-]+)*$"
    r"|[._]lora\d*\.(?:up|down)\.weight$|\.lora_linear_layer\.|^(?:lora_(?:unet|te\d*|transformer)|lycoris)_"
    r"|\.(?:hada|lokr)_[wt][12](?:_[ab])?$|\.diff(?:_b)?$|\.dora_scale$"
)
_PEFT_KIND = "another kind of PEFT's"
_READ = tuple(f".{tensor}" for kind in KINDS.values() for tensor in kind.tensors)
"""How names of tensors end that are read with PEFT's configuration."""
# names that only other adapters have
_OTHERS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"\.lora_E$|\.ranknum$", "AdaLoRA"),
        (r"\.ia3_l(?:\.|$)", "IA3"),
        (r"\.adaption_(?:prompt|gate)", "adaption prompt"),
        (r"\.(?:oft|boft)_(?:blocks|diag|R|r|s)(?:\.|$)", "OFT"),
        (r"\.vera_lambda_[bd]$", "VeRA"),
        (r"\.vblora_", "VB-LoRA"),
        (r"\.randlora_", "RandLoRA"),
        (r"\.fourierft_spectrum|\.waveft_spectrum", "FourierFT or WaveFT"),
        (r"\.hra_u(?:\.|$)", "HRA"),
        (r"\.(?:bone_|miss_block)", "Bone or MiSS"),
        # the prefixes that PEFT's other tuners give their parameters
        (
            r"^base_model\.model\..+\.(?:adamss|beft|c3a|deft|delora|frod|glora|gralora|hira|lily|ln_tuning|osf"
            r"|peanut|poly|psoft|pvera_lambda|road|shadow|shira|supertuning|tinylora|trainable_tokens|unilora)_\w",
            _PEFT_KIND,
        ),
        (r"^(?:unet|text_encoder):\d+:(?:up|down)$", "LoRA that numbers its modules (cloneofsimo's scripts)"),
        (r"^lora_controlnet$", "Control-LoRA"),
    )
)
# of GLoRA, and of MLX-VLM: names that a model may have, too, but not all of these together
_GLORA = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
_MLX_VLM = (".A", ".B")
_TEXTS = "bundle_emb."  # textual inversions that were trained with the factors
# what files of prompt tuning hold and nothing else: models that are prompted have a `prompt_encoder` (SAM)
_PROMPT = re.compile(r"prompt_embeddings|prompt_encoder\..*|base_model\.prompt_.*")
_KOHYA = re.compile(
    r"(?P<component>lora_(?:unet|te\d*|transformer|prior_unet|prior_te|clip_[lg]|[a-z0-9]+)|lycoris)"
    r"_(?P<module>[^.]+(?:\.(?:weight|bias))?)"
)
_PIPELINE = re.compile(
    r"(?P<component>unet|transformer(?:_\d)?|text_encoder(?:_\d)?|prior|controlnet|vae|image_encoder"
    r"|diffusion_model)\.(?P<module>.+)"
)
_LANGUAGE = re.compile(r"transformer\.(?:h|layer|encoder|wte)\.")  # language models, which PEFT adapts
_OWN_NAME = "pytorch_lora_weights"
_PEFT_PREFIX = "base_model.model."
_MERGE = "merge it into its model with the program that made it, and give that model"


@dataclass(frozen=True)
class LoraNames:
    """The tensors of a LoRA file: PEFT's key for each of the file's keys, and the keys of alpha by module.

    `cores` are the keys of matrices between factors, `norms` those of DoRA's magnitudes, by module, and
    `dense` those of other updates, by module and LyCORIS' name. `texts` are embeddings of tokens (textual
    inversions), which no model has a place for.
    """

    form: Form
    keys: dict[str, str] = field(default_factory=dict)
    alphas: dict[str, str] = field(default_factory=dict)
    cores: dict[str, str] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)
    dense: dict[str, dict[str, str]] = field(default_factory=dict)
    texts: tuple[str, ...] = ()


def is_of_lora(name: str) -> bool:
    """Return whether a tensor is of an adapter, by its name alone."""
    return bool(_LIKE.search(name)) or name.endswith(".alpha")


def lora_names(
    names: Collection[str], where: str, *, has_lora: bool = False, configured: bool = False
) -> LoraNames | None:
    """Return how the tensors of a LoRA file are to be read, or None for the tensors of a model.

    `has_lora` says that the model has LoRA modules by itself, so that their factors are parameters like any;
    `configured` that the file's metadata say what PEFT's configuration would. Raises `RequestError` for files
    of other adapters, for factors without a scale, and for models whose adapter was never merged.
    """
    like = [name for name in names if _LIKE.search(name)]
    kinds = _other_kinds(names, like)
    if like:  # rows of new tokens are trained with LoRA, too
        kinds.pop(_PEFT_KIND, None)
    if has_lora or not (like or kinds):
        return None
    if kinds:
        what = f"is an adapter that is no plain LoRA: {'; '.join(f'{k} ({n})' for k, n in kinds.items())}"
        hint = NO_UPDATE if any("prompt" in kind for kind in kinds) else _MERGE
        if any(name.startswith(_PEFT_PREFIX) and name.endswith(_READ) for name in kinds.values()):
            hint = "give the folder in which PEFT saved it, with its adapter_config.json"
        raise RequestError(Problem(what, where, hint))
    roles = _roles(names)
    if any(name.startswith(_PEFT_PREFIX) for name in like):
        raise RequestError(_without_configuration(like, where))
    if not roles.modules:
        raise RequestError(
            Problem(f"holds factors of LoRA in a form that is not known ({few(like)})", where, _MERGE)
        )
    if roles.twice:
        what = f"holds a factor in two forms: {few(roles.twice)}"
        raise RequestError(Problem(what, where, "keep the tensors of one form"))
    if roles.others:
        what = f"holds factors of LoRA ({few(like)}) beside tensors that are none ({few(roles.others)})"
        hint = (
            "if it is a model with an adapter in it, merge that with PEFT (merge_and_unload) and save again"
        )
        if all(
            _PIPELINE.fullmatch(name) or _KOHYA.fullmatch(name) for name in (*roles.modules, *roles.others)
        ):
            hint = f"LoRA files may hold factors alone: {_MERGE}"
        raise RequestError(Problem(what, where, hint))
    scaled = configured or roles.modules == roles.alphas.keys()
    form = _form(roles.modules, like, where, scaled)
    texts = tuple(roles.texts)
    return LoraNames(form, roles.keys, roles.alphas, roles.cores, roles.norms, roles.dense, texts)


def _other_kinds(names: Collection[str], like: Collection[str]) -> dict[str, str]:
    """Return which other kinds of adapters there are tensors of, and one of each; `like` are LoRA's."""
    kinds = {kind: name for name in names for pattern, kind in _OTHERS if pattern.search(name)}
    prompts = [name for name in names if _PROMPT.fullmatch(name)]
    if prompts and set(names) <= {*prompts, *like}:
        kinds["prompt or prefix tuning"] = prompts[0]
    if names and all(name.endswith(_MLX_VLM) for name in names):
        kinds["LoRA of MLX-VLM"] = min(names)
    known = set(names)
    for name in names:
        module = name.removesuffix(_GLORA[0])
        if name.endswith(f".{_GLORA[0]}") and all(module + leaf in known for leaf in _GLORA):
            kinds["GLoRA"] = name
    return kinds


@dataclass
class _Roles:
    """Tensors by their role: factors and alphas, those that are neither, and second ones of one factor."""

    keys: dict[str, str] = field(default_factory=dict)
    alphas: dict[str, str] = field(default_factory=dict)
    cores: dict[str, str] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)
    dense: dict[str, dict[str, str]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def modules(self) -> set[str]:
        """The modules that have updates."""
        return {_split(name)[0] for name in self.keys.values()} | self.dense.keys()


def _roles(names: Iterable[str]) -> _Roles:
    roles = _Roles()
    for name in names:
        if match := _DENSE.fullmatch(name):
            roles.dense.setdefault(_plain(match["module"]), {})[match["role"]] = name
            continue
        if match := _CORE.fullmatch(name) or _DORA.fullmatch(name):
            table = roles.norms if name.endswith(".dora_scale") else roles.cores
            table[_plain(match["module"])] = name
            continue
        module, role = _split(name)
        if not role:
            (roles.texts if name.startswith(_TEXTS) else roles.others).append(name)
            continue
        table, key = (roles.alphas, module) if role == "alpha" else (roles.keys, f"{module}.{role}")
        if key in table:
            roles.twice.append(name)
        table[key] = name
    modules = roles.modules
    factored = {_split(name)[0] for name in roles.keys.values()}
    roles.others += [name for module, name in roles.alphas.items() if module not in modules]
    own = (*roles.cores.items(), *roles.norms.items())
    roles.others += [name for module, name in own if module not in factored]
    return roles


def component_of(name: str, form: Form) -> tuple[str, str]:
    """Return which part of a pipeline a module of a LoRA file is in ("" if it is not said), and the rest."""
    pattern = {"kohya": _KOHYA, "diffusers": _PIPELINE}.get(form)
    match = pattern.fullmatch(name) if pattern else None
    return (match["component"], match["module"]) if match else ("", name)


def _split(name: str) -> tuple[str, str]:
    """Return the module that a tensor belongs to, and its role as PEFT calls it ("" if it has none)."""
    if match := _FACTOR.fullmatch(name):
        return _plain(match["module"]), f"lora_{match['letter'] or _LETTERS[match['way']]}.weight"
    if match := _OLD_FACTOR.fullmatch(name):
        parent = _plain(match["parent"])
        text = parent.endswith("self_attn")  # of a text encoder; its modules had other names then
        leaf = _TEXT_LEAVES[match["leaf"]] if text else match["leaf"].replace("to_out", "to_out.0")
        return f"{parent}.{leaf}", f"lora_{_LETTERS[match['way']]}.weight"
    if match := _MORE.fullmatch(name):
        return _plain(match["module"]), match["role"].removesuffix(".weight")
    return name, ""


def _plain(module: str) -> str:
    """Return a module's path without the attention processors that held the factors in older versions."""
    return module.replace(".processor.", ".").removesuffix(".processor")


def _form(modules: Iterable[str], like: Collection[str], where: str, scaled: bool) -> Form:
    """Return whose form it is; raise `RequestError` where nothing says the scale but PEFT's configuration."""
    modules = list(modules)
    # kohya's prefixes stand in no other form, while PEFT and newer diffusers both write lora_A and lora_B
    if all(_KOHYA.fullmatch(module) for module in modules):
        return "kohya"
    by_letter = any(re.search(r"\.lora_[AB]\.", name) for name in like)
    named = PurePath(where).name.startswith(_OWN_NAME)
    of_pipeline = all(_PIPELINE.fullmatch(m) and not _LANGUAGE.match(m) for m in modules)
    if not by_letter or scaled or named or of_pipeline:
        return "diffusers"
    raise RequestError(_without_configuration(like, where))


def _without_configuration(like: Collection[str], where: str) -> Problem:
    what = f"holds factors of LoRA ({few(like)}), and nothing says their scale"
    hint = "give the folder in which PEFT saved adapter_model.safetensors beside its adapter_config.json"
    if not any(name.startswith(_PEFT_PREFIX) for name in like):
        hint += (
            f"; a file of an image or video model, whose scale is 1, is to be called {_OWN_NAME}.safetensors"
        )
    return Problem(what, where, hint)
