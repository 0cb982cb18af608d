"""What recipes of the preference methods can't ask for. Imports no torch: `llmkit validate` runs these checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from llmkit.errors import RecipeError

if TYPE_CHECKING:
    from llmkit.recipe.recipe import Recipe

REWRITING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""PEFT's initialisations that change the base weights, by how their names begin (peft 0.21, `LoraLayer`)."""

_SWITCHED: Mapping[str, str] = MappingProxyType(
    {
        "ref_model_mixup_alpha": "sync_ref_model",
        "ref_model_sync_steps": "sync_ref_model",
        "precompute_ref_batch_size": "precompute_ref_log_probs",
    }
)
"""Fields that do something only where another one is true."""

_WITHOUT_USE: Mapping[str, str] = MappingProxyType(
    {
        "generate_during_eval": "use the `evaluation` section",
        "is_encoder_decoder": "the model's own config says it",
        "max_completion_length": "use `training.max_length` and `data.overflow`",
        "padding_value": "padding is masked, whatever its id",
        "remove_unused_columns": "llmkit hands over the columns that are read",
    }
)
"""Fields of ORPOConfig and CPOConfig that are for encoder-decoders, for rows of text, or set by the trainer itself."""


def refuse(recipe: Recipe, key: str, what: str, remedy: str) -> NoReturn:
    """Raise the RecipeError of one `training` key, with its place."""
    raise RecipeError(f"`training.{key}`: {what}", where=recipe.origin(("training", key)), remedy=remedy)


def has_effect(recipe: Recipe, key: str, losses: Iterable[str], useful: Iterable[str]) -> None:
    """Refuse a key that the recipe sets to more than 0 although none of its `losses` looks at it."""
    known, chosen = sorted(useful), list(losses)
    if recipe.training.kwargs().get(key) and not set(known) & set(chosen):
        refuse(recipe, key, f"no effect on {' and '.join(chosen)}", f"Remove it, or use one of {', '.join(known)}.")


def check_experimental(recipe: Recipe) -> None:
    """Refuse the fields of ORPOConfig and CPOConfig that could do nothing here, or harm."""
    for key, instead in _WITHOUT_USE.items():
        if key in recipe.training.kwargs():
            refuse(recipe, key, f"no use with method {recipe.method.type!r}: {instead}", "Remove it.")


def check_reference(recipe: Recipe) -> None:
    """Refuse what would compare the trained model with something else than the model it starts from."""
    training = recipe.training.kwargs()
    for key, switch in _SWITCHED.items():
        if training.get(key) is not None and not training.get(switch):
            refuse(recipe, key, f"no effect without `training.{switch}: true`", f"Set `training.{switch}` as well.")
    if training.get("sync_ref_model"):
        _check_sync(recipe, training)
    if recipe.adapter is not None:
        check_adapter_off(recipe, recipe.adapter.kwargs())


def _check_sync(recipe: Recipe, training: Mapping[str, Any]) -> None:
    if recipe.adapter is not None:
        what = "with an adapter, the reference is the base below it, which can't be moved towards the trained model"
        refuse(recipe, "sync_ref_model", what, "Remove it, or train the full model.")
    if training.get("precompute_ref_log_probs"):
        what = "the reference moves, so its log-probabilities can't be computed once"
        refuse(recipe, "sync_ref_model", what, "Remove it, or `training.precompute_ref_log_probs`.")


def check_adapter_off(recipe: Recipe, adapter: Mapping[str, Any]) -> None:
    """The reference is the model with its adapter off: that must be the base, unchanged."""
    init = adapter.get("init_lora_weights", True)
    if isinstance(init, str) and init.startswith(REWRITING_INITS):
        raise RecipeError(
            f"`adapter.init_lora_weights: {init}` rewrites the base weights, and method {recipe.method.type!r} "
            "compares with the model whose adapter is off: that would no longer be the base",
            where=recipe.origin(("adapter", "init_lora_weights")),
            remedy="Use true, gaussian, orthogonal or eva.",
        )
    bias = adapter.get("bias", "none")
    if bias != "none":
        raise RecipeError(
            f"`adapter.bias: {bias}` trains the base's own biases, and method {recipe.method.type!r} compares with "
            "the model whose adapter is off: that would no longer be the base",
            where=recipe.origin(("adapter", "bias")),
            remedy="Leave it out; `adapter.lora_bias: true` trains biases of the adapter.",
        )
