"""MobiLlama: a Llama in which one feed-forward network serves all layers.

Thawakar et al., "MobiLlama: Towards Accurate and Lightweight Fully Transparent GPT", 2024. Saved folders hold
a copy of this file, so that plain transformers can load them: it imports torch and transformers alone.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)


class MobiLlamaConfig(LlamaConfig):
    """A Llama's fields; ``intermediate_size`` is that of the one shared network."""

    model_type = "mobillama"


class MobiLlamaModel(LlamaModel):
    """A Llama's body whose layers all hold the same ``LlamaMLP`` object, that of layer 0."""

    config: MobiLlamaConfig
    _tied_weights_keys = {r"layers\.(?!0\.)\d+\.mlp\.": r"layers\.0\.mlp\."}  # noqa: RUF012 (read when saving)

    def __init__(self, config: MobiLlamaConfig) -> None:
        super().__init__(config)
        for layer in self.layers:
            layer.mlp = self.layers[0].mlp

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Names of the later layers' parameters → layer 0's; they are one whether the head is tied or not."""
        if all_submodels:
            return dict(super().get_expanded_tied_weights_keys(all_submodels=True))
        shared = [name for name, _ in self.layers[0].get_submodule("mlp").named_parameters()]
        later = range(1, len(self.layers))
        return {f"layers.{i}.mlp.{name}": f"layers.0.mlp.{name}" for i in later for name in shared}


class MobiLlamaForCausalLM(LlamaForCausalLM):
    """MobiLlama's language model; the shared network is counted, trained and saved once."""

    config: MobiLlamaConfig

    def __init__(self, config: MobiLlamaConfig) -> None:
        super().__init__(config)
        self.model = MobiLlamaModel(config)
        self.post_init()  # type: ignore[no-untyped-call]  # transformers leaves it untyped


def register() -> None:
    """Register the family with transformers' auto classes, which save a copy of this file with each model."""
    AutoConfig.register(MobiLlamaConfig.model_type, MobiLlamaConfig, exist_ok=True)
    AutoModel.register(MobiLlamaConfig, MobiLlamaModel, exist_ok=True)
    AutoModelForCausalLM.register(MobiLlamaConfig, MobiLlamaForCausalLM, exist_ok=True)
    MobiLlamaConfig.register_for_auto_class()  # type: ignore[no-untyped-call]  # likewise
    MobiLlamaModel.register_for_auto_class("AutoModel")  # type: ignore[no-untyped-call]  # likewise
    MobiLlamaForCausalLM.register_for_auto_class("AutoModelForCausalLM")  # type: ignore[no-untyped-call]  # likewise
